//! A command that is run to its end while others are waited for: a check, a
//! start by another manager, a step.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use crate::agent::Family;
use crate::birth::{BirthPlan, Bond, Ending, Newborn, give_birth};
use crate::plan::CommandLine;
use crate::process_table::ProcessTable;
use crate::sighting::{KinOf, Lookout, Strangers};
use crate::terminate::{Impatience, end, is_dead};
use crate::vigil::Vigil;

/// A running command.
#[derive(Debug)]
pub struct Errand {
    newborn: Newborn,
    output: OwnedFd,
    begun: Instant,
    limit: Duration,
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
    pub fn ended(&mut self) -> Option<Result<Ending, Duration>> {
        if is_dead(self.newborn.pidfd.as_fd()).unwrap_or(true) {
            return Some(Ok(self.newborn.reap()));
        }
        if self.left().is_zero() {
            self.kill();
            return Some(Err(self.limit));
        }
        None
    }

    /// Ends it and everything under it.
    pub fn kill(&mut self) {
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
                let _ = end(
                    &table,
                    kin.relatives,
                    Duration::ZERO,
                    &mut Vigil::default(),
                    Impatience::Kill,
                );
            }
        }
        self.newborn.kill();
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
