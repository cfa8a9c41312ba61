//! What every verb works with, and the judgements that several of them make.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::guard::{Guard, GuardError, HeldGuard, Taking};
use crate::pid_file::{PidFile, Record, Tracking};
use crate::process_table::{Pid, ProcessTable};
use crate::reading::Reading;
use crate::report::{Removal, Report, stale_reason};
use crate::settings::Settings;
use crate::sighting::{Agent, Kin, KinOf, Lookout, Sighting, Strangers};
use crate::startup_lock::{LockVerdict, Starter, StartupLock, program_name};
use crate::tracking_file::{self, NumberFile, Oddity};

/// How long the kernel may take to end all threads of a killed process: 0.33 s
/// were seen with `livekit-agents` on a busy machine.
const DEATH_LIMIT: Duration = Duration::from_secs(2);

/// A verb's surroundings.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// The processes.
    pub table: ProcessTable,
    /// The guard.
    pub guard: Guard,
    /// The PID file.
    pub pid_file: PidFile,
    /// The startup lock.
    pub startup_lock: StartupLock,
    /// What was read of all processes already.
    reading: Option<Rc<Reading>>,
}

impl<'a> Scene<'a> {
    /// Opens what the verbs need.
    ///
    /// # Errors
    /// When `/proc` cannot be used.
    pub fn open(settings: &'a Settings) -> Result<Self, Failure> {
        Ok(Self {
            settings,
            table: ProcessTable::open().map_err(|error| proc_failure(&error))?,
            guard: Guard::at(&settings.guard_file),
            pid_file: PidFile::at(&settings.pid_file),
            startup_lock: StartupLock::at(&settings.lock_file),
            reading: None,
        })
    }

    /// The same, where all looks are at this reading.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of(settings: &'a Settings, reading: Rc<Reading>) -> Result<Self, Failure> {
        Ok(Self {
            reading: Some(reading),
            ..Self::open(settings)?
        })
    }

    /// Takes the guard if it is free.
    ///
    /// # Errors
    /// When its file cannot be used.
    pub fn try_guard(&self) -> Result<Option<HeldGuard>, Failure> {
        self.taken(self.guard.try_exclusive())
    }

    /// Does nobody start or stop right now? Probed for an instant, and shared
    /// with other probes: any number of checks must not keep a starter out.
    ///
    /// # Errors
    /// When its file cannot be used.
    pub fn guard_is_free(&self) -> Result<bool, Failure> {
        self.guard.is_free().map_err(|error| self.no_guard(error))
    }

    fn taken(&self, taking: Result<Taking, GuardError>) -> Result<Option<HeldGuard>, Failure> {
        match taking {
            Ok(Taking::Held(held)) => Ok(Some(held)),
            Ok(Taking::Busy) => Ok(None),
            Err(error) => Err(self.no_guard(error)),
        }
    }

    fn no_guard(&self, error: GuardError) -> Failure {
        let path = self.guard.path();
        match error {
            GuardError::Odd(oddity) => odd("guard", path, oddity),
            GuardError::Io(error) => {
                Failure::new(format!("cannot use the guard {}: {error}", path.display())).help(
                    "make its folder writable and give it free space; if the file is there, \
                     make it readable for you",
                )
            }
        }
    }

    /// Who holds the guard, and which of our programs that is.
    #[must_use]
    pub fn guard_holder(&self) -> Option<(Pid, Option<&'static str>)> {
        let pid = self.guard.holder()?;
        Some((pid, program_name(&self.table, pid).ok().flatten()))
    }

    /// The agents that a stop has asked to end without seeing it through.
    #[must_use]
    pub fn ending(&self, agents: &[Agent]) -> Vec<Pid> {
        let farewell = self.guard.farewell();
        let identities = agents.iter().map(|agent| agent.identity);
        identities
            .filter(|identity| farewell.contains(identity))
            .map(|identity| identity.pid)
            .collect()
    }

    /// Says of each agent that will end soon that it will.
    pub fn report_ending(&self, agents: &[Agent], report: &mut Report) {
        for pid in self.ending(agents) {
            report.ending(pid);
        }
    }

    /// What the PID file proves.
    ///
    /// # Errors
    /// When it or `/proc` cannot be read.
    pub fn tracking(&self) -> Result<Tracking, Failure> {
        self.pid_file
            .tracking(&self.table, &self.settings.family)
            .map_err(|error| cannot("read the PID file", self.pid_file.path(), &error))
    }

    /// Is a start in progress?
    ///
    /// # Errors
    /// When the startup lock or `/proc` cannot be read.
    pub fn lock_verdict(&self, guard_is_free: bool) -> Result<LockVerdict, Failure> {
        self.startup_lock
            .verdict(&self.table, guard_is_free)
            .map_err(|error| cannot("read the startup lock", self.startup_lock.path(), &error))
    }

    /// The starter, if a start is in progress.
    ///
    /// # Errors
    /// As [`Self::lock_verdict`].
    pub fn starter(&self, guard_is_free: bool) -> Result<Option<Starter>, Failure> {
        Ok(match self.lock_verdict(guard_is_free)? {
            LockVerdict::Starting(starter) => Some(starter),
            _ => None,
        })
    }

    /// One look at all processes.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn look(&self, tracked: Option<Pid>) -> Result<Sighting, Failure> {
        self.lookout(tracked)
            .look()
            .map_err(|error| proc_failure(&error))
    }

    /// One look at all processes before a birth.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn look_at_strangers(&self, strangers: &mut Strangers) -> Result<Sighting, Failure> {
        self.lookout(None)
            .look_at_strangers(strangers)
            .map_err(|error| proc_failure(&error))
    }

    /// Everything born of some agents.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn gather(
        &self,
        tracked: Option<Pid>,
        whose: KinOf,
        strangers: &mut Strangers,
    ) -> Result<Kin, Failure> {
        self.lookout(tracked)
            .gather(whose, strangers)
            .map_err(|error| proc_failure(&error))
    }

    fn lookout(&self, tracked: Option<Pid>) -> Lookout<'_> {
        Lookout {
            table: &self.table,
            family: &self.settings.family,
            project_dir: &self.settings.project_dir,
            tracked,
            reading: self.reading.as_deref(),
        }
    }

    /// Is the unproven PID file locked by a process that nobody here can see?
    /// A process that can be seen and is no agent has merely inherited the
    /// lock, and does not count.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn has_unseen_holder(&self, record: &Record) -> Result<bool, Failure> {
        if !record.locked {
            return Ok(false);
        }
        let mut pids = Vec::new();
        self.table
            .for_each(|pid, _| pids.push(pid))
            .map_err(|error| proc_failure(&error))?;
        for pid in pids {
            match self
                .table
                .holds_open(pid, record.id.device, record.id.inode)
            {
                Ok(true) => return Ok(false),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(proc_failure(&error)),
            }
        }
        // Nobody has it; unless its holder has ended while we looked, or is about
        // to: a dead agent's first thread is a zombie without descriptors while
        // the others, which the kernel is still ending, keep the lock.
        let dies = record.pid().is_some_and(|pid| {
            self.table
                .stat(pid)
                .is_ok_and(|stat| stat.is_some_and(|stat| stat.is_dead()))
        });
        let mut deadline = Deadline::after(if dies { DEATH_LIMIT } else { Duration::ZERO });
        loop {
            let held = match self.tracking()? {
                Tracking::Unproven(now) => now.locked && now.id == record.id,
                _ => false,
            };
            if !held || !deadline.wait() {
                return Ok(held);
            }
        }
    }

    /// The agent behind a proven number, at a cost that does not depend on how
    /// many processes run; `None` once it is dead.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn describe(&self, pid: Pid) -> Result<Option<Agent>, Failure> {
        self.lookout(Some(pid))
            .describe(pid)
            .map_err(|error| proc_failure(&error))
    }

    /// Removes a PID file that proves nothing; to be called under the guard.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_stale_pid_file(
        &self,
        record: &Record,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let path = self.pid_file.path();
        let removed = tracking_file::remove_same(path, record.id)
            .map_err(|error| cannot_remove("PID file", path, record.owner, &error))?;
        if removed {
            report.stale("PID file", path, &stale_number(record), Removal::Done);
        }
        Ok(())
    }

    /// Removes a stale startup lock; to be called under the guard.
    ///
    /// # Errors
    /// When it is no plain file, or cannot be removed.
    pub fn remove_stale_lock(
        &self,
        verdict: &LockVerdict,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let path = self.startup_lock.path();
        match verdict {
            LockVerdict::Odd(oddity) => Err(odd("startup lock", path, *oddity)),
            LockVerdict::Stale { reason, id, owner } => {
                let removed = tracking_file::remove_same(path, *id)
                    .map_err(|error| cannot_remove("startup lock", path, *owner, &error))?;
                if removed {
                    report.stale("startup lock", path, &stale_reason(reason), Removal::Done);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Does the PID file name this agent, or the wrapper that runs it?
    #[must_use]
    pub fn is_tracked(&self, agent: &Agent) -> bool {
        self.pid_file.number().ok().flatten().is_some_and(|number| {
            number == agent.identity.pid || agent.wrapper.as_ref().is_some_and(|w| w.pid == number)
        })
    }

    /// The mode as text.
    #[must_use]
    pub fn mode(&self) -> String {
        String::from_utf8_lossy(self.settings.mode.as_bytes()).into_owned()
    }
}

/// Why a PID file's number proves nothing.
#[must_use]
pub fn stale_number(record: &Record) -> String {
    match &record.number {
        NumberFile::Empty => "it is empty".to_owned(),
        NumberFile::Number(pid) => format!("PID {pid} is no running agent"),
        NumberFile::Unusable(why) => why.clone(),
    }
}

/// `/proc` cannot be used.
#[must_use]
pub fn proc_failure(error: &io::Error) -> Failure {
    Failure::new(format!("cannot read /proc: {error}"))
        .help("check that /proc is mounted and that this user may open more files (ulimit -n)")
}

/// Processes could not be signalled or waited for.
#[must_use]
pub fn cannot_end(error: &io::Error) -> Failure {
    Failure::new(format!("cannot wait for processes to end: {error}"))
        .help("check how many files this user may open (ulimit -n), and try again")
}

/// Something else lies where a tracking file belongs.
#[must_use]
pub fn odd(what: &str, path: &std::path::Path, oddity: Oddity) -> Failure {
    let path = path.display();
    let command = if oddity == Oddity::Folder {
        "rmdir"
    } else {
        "rm"
    };
    Failure::new(format!(
        "the {what} {path} is {oddity}, not a plain file; nobody's program made that"
    ))
    .help(format!("look at it, then remove it: {command} {path}"))
}

/// "cannot VERB PATH: reason".
#[must_use]
pub fn cannot(verb: &str, path: &std::path::Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::new(format!("cannot {verb} {path}: {error}")).help(format!("see ls -l {path}"))
}

/// A stale file that is not ours to remove.
#[must_use]
pub fn cannot_remove(what: &str, path: &std::path::Path, owner: u32, error: &io::Error) -> Failure {
    let user = crate::process_details::user_name(owner);
    let path = path.display();
    Failure::new(format!(
        "cannot remove the stale {what} {path} of user {user}: {error}"
    ))
    .help(format!("as that user or as root: rm {path}"))
}
