//! All processes, read once: the companions of a system begin and end together,
//! and a pass for each would cost as many passes.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use crate::agent::Mark;
use crate::process_table::{PassSummary, Pid, ProcessTable, Stat};

/// The last reading, for whoever wants no newer one.
#[derive(Debug, Default)]
pub struct Readings(RefCell<Option<Rc<Reading>>>);

impl Readings {
    /// One that was begun at `moment` or later: what has happened since then may
    /// be missing in it, what happened before is not.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn since(&self, moment: Instant) -> io::Result<Rc<Reading>> {
        if let Some(last) = &*self.0.borrow()
            && last.begun >= moment
        {
            return Ok(Rc::clone(last));
        }
        let reading = Rc::new(Reading::take(&ProcessTable::open()?)?);
        *self.0.borrow_mut() = Some(Rc::clone(&reading));
        Ok(reading)
    }
}

/// All processes, read once for several families.
#[derive(Debug)]
pub struct Reading {
    begun: Instant,
    pub(crate) processes: Vec<ReadProcess>,
    pub(crate) summary: PassSummary,
}

/// What every family must know of a process.
#[derive(Debug)]
pub(crate) struct ReadProcess {
    pub(crate) pid: Pid,
    pub(crate) command_line: Vec<u8>,
    /// `None` also if the environment is private: another user's.
    pub(crate) mark: Option<Mark>,
    pub(crate) stat: Stat,
}

impl Reading {
    /// Reads them.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn take(table: &ProcessTable) -> io::Result<Self> {
        let begun = Instant::now();
        let mut lines: Vec<(Pid, Vec<u8>)> = Vec::new();
        let summary = table.for_each(|pid, block| lines.push((pid, block.to_vec())))?;
        let mut processes = Vec::with_capacity(lines.len());
        for (pid, command_line) in lines {
            let Some(mark) = mark_of(table, pid)? else {
                continue;
            };
            if let Some(stat) = table.stat(pid)?.filter(|stat| !stat.is_dead()) {
                processes.push(ReadProcess {
                    pid,
                    command_line,
                    mark,
                    stat,
                });
            }
        }
        Ok(Self {
            begun,
            processes,
            summary,
        })
    }
}

/// The mark in a process's environment, if it has one and may be read; the
/// outer `None`: the process is gone.
#[expect(clippy::option_option, reason = "gone, without mark, with one")]
pub(crate) fn mark_of(table: &ProcessTable, pid: Pid) -> io::Result<Option<Option<Mark>>> {
    match table.environment(pid) {
        Ok(environment) => Ok(environment.map(|block| Mark::in_environment(&block))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Some(None)),
        Err(error) => Err(error),
    }
}
