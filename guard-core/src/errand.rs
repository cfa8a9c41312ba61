//! A command that is run to its end while others are waited for: a check, a
//! start by another manager, a step.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use crate::agent::Family;
use crate::birth::{BirthPlan, Bond, Ending, Newborn, give_birth};
use crate::plan::CommandLine;
use crate::process_table::{Pid, ProcessTable};
use crate::sighting::{KinOf, Lookout, Strangers};
use crate::terminate::{Impatience, end};
use crate::vigil::Vigil;

/// A running command.
#[derive(Debug)]
pub struct Errand {
    newborn: Newborn,
    output: OwnedFd,
    begun: Instant,
    limit: Duration,
}

/// A command took longer than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue {
    /// How long it might have taken.
    pub limit: Duration,
    /// Its process, if that could not be ended.
    pub goes_on: Option<Pid>,
}

impl fmt::Display for Overdue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "not done within {} s", self.limit.as_secs_f64())?;
        match self.goes_on {
            Some(pid) => write!(
                formatter,
                ", and goes on as PID {pid}, which this user may not end"
            ),
            None => Ok(()),
        }
    }
}

/// Where and with what commands are run.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The signals that the caller ignores.
    pub ignored_signals: u64,
}

impl Errand {
    /// Starts the command, in a session of its own without terminal: nothing in
    /// it can ask for a password and wait for ever. Its output is kept in
    /// memory.
    ///
    /// # Errors
    /// Why it cannot be started, in words.
    pub fn begin(
        command: &CommandLine,
        folder: &Path,
        surroundings: &Surroundings,
        limit: Duration,
    ) -> Result<Self, String> {
        let output = rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC)
            .map_err(|errno| format!("cannot keep its output: {}", io::Error::from(errno)))?;
        let arguments: Vec<OsString> = command.words.iter().map(OsString::from).collect();
        let newborn = give_birth(&BirthPlan {
            interpreter: &command.program,
            arguments: &arguments,
            environment: &surroundings.environment,
            mark: None,
            folder,
            pid_file: None,
            log: &output,
            ignored_signals: surroundings.ignored_signals,
            bond: Bond::None,
        })
        .map_err(|error| format!("cannot run {}: {error}", command.program.display()))?;
        Ok(Self {
            newborn,
            output,
            begun: Instant::now(),
            limit,
        })
    }

    /// Readable once it has ended.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.newborn.pidfd.as_fd()
    }

    /// How long it may still take.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.begun.elapsed())
    }

    /// How it has ended; `None` while it runs. `Some(Err)` if it took too long
    /// and was killed.
    pub fn ended(&mut self) -> Option<Result<Ending, Overdue>> {
        if let Some(ending) = self.newborn.reap_if_dead() {
            return Some(Ok(ending));
        }
        self.left().is_zero().then(|| {
            Err(Overdue {
                limit: self.limit,
                goes_on: self.kill(),
            })
        })
    }

    /// Ends it and everything under it. What has become another user's (`sudo`)
    /// cannot be ended and is not waited for: `Some` is its process.
    pub fn kill(&mut self) -> Option<Pid> {
        let mut survives = false;
        if let Ok(table) = ProcessTable::open() {
            let lookout = Lookout {
                table: &table,
                family: &Family::of_companion("errand", "", None),
                project_dir: Path::new("/"),
                tracked: Some(self.newborn.pid),
                reading: None,
            };
            let kin = lookout.gather(KinOf::Everyone, &mut Strangers::default());
            if let Ok(kin) = kin {
                let ended = end(
                    &table,
                    kin.relatives,
                    Duration::ZERO,
                    &mut Vigil::default(),
                    Impatience::Kill,
                );
                survives = ended.is_ok_and(|termination| {
                    let mut survivors = termination.survivors.iter();
                    survivors.any(|survivor| survivor.relative.identity.pid == self.newborn.pid)
                });
            }
        }
        let ending = if survives {
            self.newborn.reap_if_dead()
        } else {
            self.newborn.kill_and_reap()
        };
        ending.is_none().then_some(self.newborn.pid)
    }

    /// The last lines that it wrote.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        const ENOUGH: u64 = 64 * 1024;
        let mut written = Vec::new();
        let read = self
            .output
            .try_clone()
            .map(File::from)
            .and_then(|mut file| {
                let length = file.metadata()?.len();
                file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
                file.take(ENOUGH).read_to_end(&mut written)
            });
        if read.is_err() {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&written).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect()
    }
}
