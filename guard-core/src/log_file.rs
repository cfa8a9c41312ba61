//! The agent's log: kept by copying, then emptied, at each start.
//!
//! Copied and not renamed, since people leave a `tail -f` running across
//! starts (`docs/contract.md`, "Tracking files"), and it follows the file, not the name.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anstream::adapter::StripBytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::tracking_file::{self, Oddity, Opening};

/// How many previous logs are kept: `.1` is the newest.
pub const KEPT_LOGS: u32 = 5;

/// The log, ready for an agent to write into.
#[derive(Debug)]
pub struct AgentLog {
    path: PathBuf,
    output: OwnedFd,
    start: u64,
}

/// Why the log cannot be used.
#[derive(Debug)]
pub enum LogError {
    /// Something else has its name.
    Odd(Oddity),
    /// The system refused.
    Io(io::Error),
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl AgentLog {
    /// Opens the log for appending, makes it if absent, touches nothing in it.
    ///
    /// # Errors
    /// When it is no plain file, or cannot be written.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let flags =
            OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        // Two passes: somebody may make or remove it in between.
        for _ in 0..2 {
            match tracking_file::open(path)? {
                Opening::Odd(oddity) => return Err(LogError::Odd(oddity)),
                Opening::Plain(_) => {}
                Opening::Absent => match tracking_file::create_new(path, b"") {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error.into()),
                },
            }
            match rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())) {
                Ok(output) => {
                    if let Some(oddity) =
                        Oddity::of(&rustix::fs::fstat(&output).map_err(io::Error::from)?)
                    {
                        return Err(LogError::Odd(oddity));
                    }
                    return Ok(Self {
                        path: path.to_owned(),
                        output,
                        start: 0,
                    });
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Err(io::Error::from(io::ErrorKind::NotFound).into())
    }

    /// Keeps what a previous agent wrote as `NAME.1`, the older ones as `.2` to
    /// `.5`, and empties the log.
    ///
    /// # Errors
    /// When the copy cannot be made. Then nothing is emptied: this start's
    /// output is appended, and nothing is lost.
    pub fn keep_previous(&mut self) -> io::Result<()> {
        let kept = self.copy_and_empty();
        if kept.is_err() {
            self.start = rustix::fs::fstat(&self.output)
                .map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        }
        kept
    }

    fn copy_and_empty(&self) -> io::Result<()> {
        if rustix::fs::fstat(&self.output)?.st_size == 0 {
            return Ok(());
        }
        let newest = self.numbered(1);
        let (copy, target) = tracking_file::create_beside(&newest, b"")?;
        let copied = File::open(&self.path)
            .and_then(|mut previous| io::copy(&mut previous, &mut File::from(target)))
            .and_then(|_| {
                for number in (1..KEPT_LOGS).rev() {
                    rename_if_there(&self.numbered(number), &self.numbered(number + 1))?;
                }
                rename_if_there(&copy, &newest)
            });
        if let Err(error) = copied {
            let _ = tracking_file::remove(&copy);
            return Err(error);
        }
        rustix::fs::ftruncate(&self.output, 0)?;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the agent writes.
    #[must_use]
    pub fn output(&self) -> &OwnedFd {
        &self.output
    }

    /// Where this start's output begins, in bytes.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The last lines that were written since this start began.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn last_lines(&self, count: usize) -> io::Result<Vec<String>> {
        const ENOUGH: u64 = 64 * 1024;
        let file = File::from(self.output.try_clone()?);
        let length = file.metadata()?.len();
        let from = self.start.max(length.saturating_sub(ENOUGH)).min(length);
        let mut written = vec![0; usize::try_from(length - from).unwrap_or(0)];
        let mut filled = 0;
        while filled < written.len() {
            match file.read_at(&mut written[filled..], from + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        written.truncate(filled);
        let plain: Vec<u8> = StripBytes::new()
            .strip_next(&written)
            .flatten()
            .copied()
            .collect();
        let text = String::from_utf8_lossy(&plain);
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(count);
        Ok(lines[skipped..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect())
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::rename(from, to) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

    #[test]
    fn previous_logs_are_kept_and_a_reader_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        let mut reader = None;
        for round in 0..8 {
            let mut log = AgentLog::open(&path).unwrap();
            log.keep_previous().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"");
            let file = reader.get_or_insert_with(|| File::open(&path).unwrap());
            let mut output = File::from(log.output.try_clone().unwrap());
            writeln!(output, "round {round}").unwrap();
            let mut seen = String::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut seen).unwrap();
            assert_eq!(seen, format!("round {round}\n"));
        }
        for number in 1..=5 {
            let kept = fs::read_to_string(folder.path().join(format!("agent.log.{number}")));
            assert_eq!(kept.unwrap(), format!("round {}\n", 7 - number));
        }
        assert!(!folder.path().join("agent.log.6").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 6);
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let precious = folder.path().join("precious");
        fs::write(&precious, "data").unwrap();
        let path = folder.path().join("agent.log");
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        assert!(matches!(
            AgentLog::open(&path),
            Err(LogError::Odd(Oddity::Symlink))
        ));
        assert_eq!(fs::read(&precious).unwrap(), b"data");
    }

    #[test]
    fn last_lines_are_those_of_this_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        fs::write(&path, "old\n").unwrap();
        let mut log = AgentLog::open(&path).unwrap();
        log.start = 4;
        let mut output = File::from(log.output.try_clone().unwrap());
        for line in 0..30 {
            writeln!(output, "{line}").unwrap();
        }
        let lines = log.last_lines(20).unwrap();
        assert_eq!(lines.len(), 20);
        assert_eq!(lines[0], "10");
    }
}
