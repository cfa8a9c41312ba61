//! Ending processes: through pidfds, politely first, seen to be dead.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::deadline::Deadline;
use crate::process_table::ProcessTable;
use crate::sighting::Relative;
use crate::signals::Interruption;
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
    let heard = await_deaths(&mut targets, &mut termination, grace, vigil)?;
    if let Some(interruption) = heard
        && impatience == Impatience::GiveUp
    {
        termination.interrupted = Some(interruption);
        let left = targets.into_iter().map(|target| Survivor {
            relative: target.relative,
            reason: SurvivalReason::Interrupted,
        });
        termination.survivors.extend(left);
        return Ok(termination);
    }
    let mut killed = Vec::with_capacity(targets.len());
    for target in targets {
        match send(&target.pidfd, Signal::KILL, false) {
            Ok(()) => killed.push(target),
            Err(error) => termination.survive(target.relative, error),
        }
    }
    // A second interruption does not make a SIGKILL faster.
    let mut deaf = Vigil {
        interruptions: None,
        startup_lock: vigil.startup_lock.take(),
    };
    let waited = await_deaths(&mut killed, &mut termination, KILL_LIMIT, &mut deaf);
    vigil.startup_lock = deaf.startup_lock.take();
    waited?;
    let stuck = killed.into_iter().map(|target| Survivor {
        relative: target.relative,
        reason: SurvivalReason::Stuck,
    });
    termination.survivors.extend(stuck);
    Ok(termination)
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

/// Moves the dead from `targets` to `termination` until none or no time is
/// left, or an interruption arrives.
fn await_deaths(
    targets: &mut Vec<Target>,
    termination: &mut Termination,
    limit: Duration,
    vigil: &mut Vigil,
) -> io::Result<Option<Interruption>> {
    let deadline = Deadline::after(limit);
    loop {
        // A pidfd is readable from its process's death on, zombie or not.
        let mut alive = Vec::with_capacity(targets.len());
        for target in targets.drain(..) {
            if is_dead(target.pidfd.as_fd())? {
                termination.ended.push(target.relative);
            } else {
                alive.push(target);
            }
        }
        *targets = alive;
        if targets.is_empty() || deadline.passed() {
            return Ok(None);
        }
        let pidfds: Vec<BorrowedFd<'_>> =
            targets.iter().map(|target| target.pidfd.as_fd()).collect();
        if let Woken::ByInterruption(interruption) = vigil.wait(&pidfds, deadline.left())? {
            return Ok(Some(interruption));
        }
    }
}

/// Has the process behind this pidfd ended?
///
/// # Errors
/// Those of `poll(2)`.
pub fn is_dead(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let woken = Vigil::default().wait(&[pidfd], Duration::ZERO)?;
    Ok(woken == Woken::ByEvent)
}
