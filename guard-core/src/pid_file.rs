//! The PID file: the number, as always, and a lock that the agent holds.
//!
//! The number alone may be recycled; the lock alone may be inherited by what
//! the agent started. Together with what `/proc` says of the process they
//! prove that the agent runs, at the same cost however many processes run.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fd_lock::RwLock;

use crate::agent::{Family, Mark};
use crate::deadline::Deadline;
use crate::process_table::{Identity, Pid, ProcessTable, split_arguments};
use crate::tracking_file::{self, FileId, NumberFile, Oddity, Opening};

/// How long a process that a locked PID file names may stay without command
/// line: the middle of its `exec`, milliseconds at most on a loaded machine.
const BIRTH_LIMIT: Duration = Duration::from_millis(500);

/// The PID file of one agent.
#[derive(Debug, Clone)]
pub struct PidFile {
    path: PathBuf,
}

/// A PID file as it was read.
#[derive(Debug)]
pub struct Record {
    /// What stands in it.
    pub number: NumberFile,
    /// Somebody holds its lock.
    pub locked: bool,
    /// Its owner.
    pub owner: u32,
    /// Which file it is.
    pub id: FileId,
}

impl Record {
    /// The process that it names.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        match self.number {
            NumberFile::Number(pid) => Some(pid),
            _ => None,
        }
    }
}

/// What a PID file proves.
#[derive(Debug)]
pub enum Tracking {
    /// There is none.
    Absent,
    /// Something else has its name.
    Odd(Oddity),
    /// It names a running agent.
    Running(Identity),
    /// It proves nothing; only a pass over all processes can tell.
    Unproven(Record),
}

impl PidFile {
    /// The PID file at `path`.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it proves, in constant time.
    ///
    /// # Errors
    /// When the file or `/proc` cannot be read.
    pub fn tracking(&self, table: &ProcessTable, family: &Family) -> io::Result<Tracking> {
        let record = match tracking_file::open(&self.path)? {
            Opening::Absent => return Ok(Tracking::Absent),
            Opening::Odd(oddity) => return Ok(Tracking::Odd(oddity)),
            Opening::Plain(opened) => Record {
                number: NumberFile::read(&opened.file)?,
                locked: is_locked(opened.file)?,
                owner: opened.owner,
                id: opened.id,
            },
        };
        // The number in another owner's file is never trusted.
        let trusted = record.owner == rustix::process::geteuid().as_raw();
        let proven = match record.pid().filter(|_| trusted) {
            Some(pid) => self.prove(pid, record.locked, table, family)?,
            None => None,
        };
        Ok(proven.map_or(Tracking::Unproven(record), Tracking::Running))
    }

    /// Is this number the agent: by its argv, or, under the lock, by the birth
    /// mark of this very file?
    fn prove(
        &self,
        pid: Pid,
        locked: bool,
        table: &ProcessTable,
        family: &Family,
    ) -> io::Result<Option<Identity>> {
        let mut birth = Deadline::after(BIRTH_LIMIT);
        loop {
            let Some(stat) = table.stat(pid)?.filter(|stat| !stat.is_dead()) else {
                return Ok(None);
            };
            let identity = Identity {
                pid,
                start: stat.start,
            };
            let line = match table.command_line(pid) {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
                Err(error) => return Err(error),
            };
            let argv = split_arguments(&line);
            if family.recognise_process(table, pid, &argv, None)?.is_some() {
                return Ok(Some(identity));
            }
            // A companion that has forked itself away has left the lock behind;
            // nobody but us writes into the companions' private folder.
            let by_mark = locked || family.companion().is_some();
            if !by_mark || (!locked && line.is_empty()) {
                return Ok(None);
            }
            if !line.is_empty() {
                let marked = match table.environment(pid) {
                    Ok(block) => block
                        .and_then(|block| Mark::in_environment(&block))
                        .is_some_and(|mark| mark.names(family, &self.path)),
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
                    Err(error) => return Err(error),
                };
                return Ok(marked.then_some(identity));
            }
            if !birth.wait() {
                return Ok(None);
            }
        }
    }

    /// Writes `pid` into the file: an agent that nobody tracks. It appears
    /// complete, and without lock, which only the agent itself could hold.
    ///
    /// # Errors
    /// Those of creating and renaming a file beside it.
    pub fn adopt(&self, pid: Pid) -> io::Result<()> {
        let (beside, _file) =
            tracking_file::create_beside(&self.path, format!("{pid}\n").as_bytes())?;
        rustix::fs::rename(&beside, &self.path).inspect_err(|_| {
            let _ = tracking_file::remove(&beside);
        })?;
        Ok(())
    }

    /// The number that stands in it now, whoever wrote it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn number(&self) -> io::Result<Option<Pid>> {
        match tracking_file::open(&self.path)? {
            Opening::Plain(opened) => match NumberFile::read(opened.file)? {
                NumberFile::Number(pid) => Ok(Some(pid)),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Removes the file if it still names `pid`. `true` if it did.
    ///
    /// # Errors
    /// When it cannot be read or removed.
    pub fn remove_if_naming(&self, pid: Pid) -> io::Result<bool> {
        let Opening::Plain(opened) = tracking_file::open(&self.path)? else {
            return Ok(false);
        };
        if NumberFile::read(opened.file)? != NumberFile::Number(pid) {
            return Ok(false);
        }
        tracking_file::remove_same(&self.path, opened.id)
    }
}

/// Probes with a shared lock: two exclusive probes at once would each see the
/// other as the holder.
fn is_locked(file: File) -> io::Result<bool> {
    let lock = RwLock::new(file);
    loop {
        return match lock.try_read() {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
    }
}
