//! Ending processes: through pidfds, politely first, seen to be dead.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::deadline::Deadline;
use crate::process_table::ProcessTable;
use crate::sighting::Relative;
use crate::signals::{Interruption, Interruptions};
use crate::vigil::{Vigil, Woken};

/// How long a death by SIGKILL may take: one that takes longer is stuck in the
/// kernel (a dead network file system), and no signal helps.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// What to do when an interruption arrives while we wait for deaths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impatience {
    /// Stop waiting and tell the caller.
    GiveUp,
    /// Kill at once what is left.
    Kill,
}

/// What came of ending some processes.
#[derive(Debug, Default)]
pub struct Termination {
    /// Those that are dead now, by our signals or by themselves.
    pub ended: Vec<Relative>,
    /// Those that live on, and why.
    pub survivors: Vec<Survivor>,
    /// We gave up waiting, on this interruption.
    pub interrupted: Option<Interruption>,
}

/// A process that could not be ended.
#[derive(Debug)]
pub struct Survivor {
    /// The process.
    pub relative: Relative,
    /// Why it lives on.
    pub reason: SurvivalReason,
}

/// Why a process lives on.
#[derive(Debug)]
pub enum SurvivalReason {
    /// It is another user's.
    NotPermitted,
    /// It was sent SIGKILL and is still there: stuck in the kernel.
    Stuck,
    /// The system refused a pidfd or a signal.
    Io(io::Error),
    /// We were interrupted before its grace period was over.
    Interrupted,
}

#[derive(Debug)]
struct Target {
    relative: Relative,
    pidfd: OwnedFd,
}

/// Sends TERM to all in their order, waits up to `grace` for their deaths,
/// sends KILL to the rest and waits for that.
///
/// Each is opened as a pidfd first and then looked at again: a number that was
/// recycled meanwhile is left alone.
///
/// # Errors
/// When `/proc` cannot be read or nothing can be waited for.
pub fn end(
    table: &ProcessTable,
    relatives: Vec<Relative>,
    grace: Duration,
    vigil: &mut Vigil,
    impatience: Impatience,
) -> io::Result<Termination> {
    let mut farewell = Farewell::begin(table, relatives, grace)?;
    while !farewell.is_over()? {
        // Once all are killed, a second interruption makes that no faster.
        let interruptions = vigil.interruptions.take();
        let mut descriptors = farewell.pidfds();
        if farewell.is_polite() {
            descriptors.extend(interruptions.as_ref().map(AsFd::as_fd));
        }
        let waited = vigil.wait(&descriptors, farewell.left());
        let heard = interruptions
            .as_ref()
            .filter(|_| farewell.is_polite())
            .and_then(Interruptions::pending);
        vigil.interruptions = interruptions;
        waited?;
        match (heard, impatience) {
            (Some(_), Impatience::Kill) => farewell.kill(),
            (Some(interruption), Impatience::GiveUp) => {
                farewell.give_up(interruption);
                break;
            }
            (None, _) => {}
        }
    }
    Ok(farewell.finish())
}

/// Processes that have been asked to end, and are waited for.
#[derive(Debug)]
pub struct Farewell {
    targets: Vec<Target>,
    termination: Termination,
    /// Nobody was killed yet.
    polite: bool,
    deadline: Deadline,
}

impl Farewell {
    /// Sends TERM to all in their order.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn begin(
        table: &ProcessTable,
        relatives: Vec<Relative>,
        grace: Duration,
    ) -> io::Result<Self> {
        let mut termination = Termination::default();
        let mut targets = Vec::with_capacity(relatives.len());
        for relative in relatives {
            match open(table, &relative)? {
                Opened::Gone => termination.ended.push(relative),
                Opened::Refused(error) => termination.survive(relative, error),
                Opened::Open { pidfd, stopped } => match send(&pidfd, Signal::TERM, stopped) {
                    Ok(()) => targets.push(Target { relative, pidfd }),
                    Err(error) => termination.survive(relative, error),
                },
            }
        }
        Ok(Self {
            targets,
            termination,
            polite: true,
            deadline: Deadline::after(grace),
        })
    }

    /// Readable as the processes die.
    #[must_use]
    pub fn pidfds(&self) -> Vec<BorrowedFd<'_>> {
        self.targets
            .iter()
            .map(|target| target.pidfd.as_fd())
            .collect()
    }

    /// How long nothing but a death makes a difference.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.deadline.left()
    }

    /// Nobody was killed yet.
    #[must_use]
    pub fn is_polite(&self) -> bool {
        self.polite
    }

    /// Looks who is dead, and kills the rest once the grace period is over.
    /// `true` when all are dead, or there is nothing left to try.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub fn is_over(&mut self) -> io::Result<bool> {
        loop {
            let mut alive = Vec::with_capacity(self.targets.len());
            for target in self.targets.drain(..) {
                // A pidfd is readable from its process's death on, zombie or not.
                if is_dead(target.pidfd.as_fd())? {
                    self.termination.ended.push(target.relative);
                } else {
                    alive.push(target);
                }
            }
            self.targets = alive;
            if self.targets.is_empty() {
                return Ok(true);
            }
            if !self.deadline.passed() {
                return Ok(false);
            }
            if !self.polite {
                return Ok(true);
            }
            self.kill();
        }
    }

    /// Sends KILL to those who are left.
    pub fn kill(&mut self) {
        self.polite = false;
        self.deadline = Deadline::after(KILL_LIMIT);
        for target in std::mem::take(&mut self.targets) {
            match send(&target.pidfd, Signal::KILL, false) {
                Ok(()) => self.targets.push(target),
                Err(error) => self.termination.survive(target.relative, error),
            }
        }
    }

    /// Leaves those who are left to themselves.
    fn give_up(&mut self, interruption: Interruption) {
        self.termination.interrupted = Some(interruption);
        let left = self.targets.drain(..).map(|target| Survivor {
            relative: target.relative,
            reason: SurvivalReason::Interrupted,
        });
        self.termination.survivors.extend(left);
    }

    /// What came of it.
    #[must_use]
    pub fn finish(mut self) -> Termination {
        let stuck = self.targets.drain(..).map(|target| Survivor {
            relative: target.relative,
            reason: SurvivalReason::Stuck,
        });
        self.termination.survivors.extend(stuck);
        self.termination
    }
}

impl Termination {
    fn survive(&mut self, relative: Relative, error: io::Error) {
        let reason = match Errno::from_io_error(&error) {
            Some(Errno::PERM) => SurvivalReason::NotPermitted,
            _ => SurvivalReason::Io(error),
        };
        self.survivors.push(Survivor { relative, reason });
    }
}

enum Opened {
    Gone,
    Refused(io::Error),
    Open { pidfd: OwnedFd, stopped: bool },
}

fn open(table: &ProcessTable, relative: &Relative) -> io::Result<Opened> {
    let Some(pid) = rustix::process::Pid::from_raw(relative.identity.pid.get()) else {
        return Ok(Opened::Gone);
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(Opened::Gone),
        Err(errno) => return Ok(Opened::Refused(errno.into())),
    };
    // Read after the pidfd was opened: the same start time proves that it is
    // the process that was found to belong to the agent.
    Ok(match table.stat(relative.identity.pid)? {
        Some(stat) if stat.start == relative.identity.start && !stat.is_dead() => Opened::Open {
            pidfd,
            stopped: matches!(stat.state, b'T' | b't'),
        },
        _ => Opened::Gone,
    })
}

/// A stopped process acts on TERM only once it is continued.
fn send(pidfd: &OwnedFd, signal: Signal, stopped: bool) -> io::Result<()> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno.into()),
    }
    if stopped {
        let _ = pidfd_send_signal(pidfd, Signal::CONT);
    }
    Ok(())
}

/// Has the process behind this pidfd ended?
///
/// # Errors
/// Those of `poll(2)`.
pub fn is_dead(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let woken = Vigil::default().wait(&[pidfd], Duration::ZERO)?;
    Ok(woken == Woken::ByEvent)
}
