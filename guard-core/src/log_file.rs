//! The agent's log: kept by copying, then emptied, at each start.
//!
//! What is kept is bounded, each log by its own last megabytes: a log that has
//! grown for months is not there twice after a start. The agent appends
//! (`O_APPEND`), so logrotate may empty the file under it at any time
//! (`copytruncate`).
//!
//! Copied and not renamed, since people leave a `tail -f` running across
//! starts (`docs/contract.md`, "Tracking files"), and it follows the file, not the name.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anstream::adapter::StripBytes;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::tracking_file::{self, Oddity, Opening};

/// How many previous logs are kept: `.1` is the newest.
pub const KEPT_LOGS: u32 = 5;

/// The first line of a log that was cut is no longer than this.
const LONGEST_FIRST_LINE: u64 = 64;

/// A line that is longer is cut in the middle.
const LONGEST_LINE: u64 = 64 * 1024;

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

    /// Keeps the end of what a previous agent wrote, `limit` bytes at most, as
    /// `NAME.1`, the older ones as `.2` to `.5`, and empties the log. A limit of
    /// 0 keeps nothing.
    ///
    /// # Errors
    /// When the copy cannot be made. Then nothing is emptied: this start's
    /// output is appended, and nothing is lost but what is beyond the limit.
    pub fn keep_previous(&mut self, limit: u64) -> io::Result<()> {
        let kept = self.copy_and_empty(limit);
        if kept.is_err() {
            self.start = rustix::fs::fstat(&self.output)
                .map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        }
        kept
    }

    fn copy_and_empty(&self, limit: u64) -> io::Result<()> {
        if rustix::fs::fstat(&self.output)?.st_size == 0 {
            return Ok(());
        }
        if limit > 0 {
            for number in 1..KEPT_LOGS {
                self.shorten(number, limit);
            }
            let newest = self.numbered(1);
            // Another description of the very file, to be read from its beginning:
            // by its name, it might be another one by now.
            let own = format!("/proc/self/fd/{}", self.output.as_raw_fd());
            let previous = File::open(own)?;
            keep_end(previous, Some(&self.output), &newest, limit, |copy| {
                for number in (1..KEPT_LOGS).rev() {
                    rename_if_there(&self.numbered(number), &self.numbered(number + 1))?;
                }
                rename_if_there(copy, &newest)
            })?;
        }
        rustix::fs::ftruncate(&self.output, 0)?;
        Ok(())
    }

    /// An older log that is beyond the limit (kept before there was one, or by
    /// somebody else) is cut, if it is ours; that it stays as it is harms no
    /// start.
    fn shorten(&self, number: u32, limit: u64) {
        let path = self.numbered(number);
        let Ok(Opening::Plain(older)) = tracking_file::open(&path) else {
            return;
        };
        let me = rustix::process::geteuid().as_raw();
        // With its first line, a log that was cut is somewhat longer.
        let length = older.file.metadata().map_or(0, |older| older.len());
        if older.owner == me && length > limit + LONGEST_FIRST_LINE {
            let _ = keep_end(older.file, None, &path, limit, |copy| {
                rename_if_there(copy, &path)
            });
        }
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

/// Copies the end of a log, from a line's beginning, into a file beside `path`,
/// which `place` then gives its name. If there is no room for the copy and
/// `source` may be written to, what is beyond the limit makes room.
fn keep_end(
    mut log: File,
    source: Option<&OwnedFd>,
    path: &Path,
    limit: u64,
    place: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let length = log.metadata()?.len();
    let mut dropped = length.saturating_sub(limit);
    if dropped > 0 {
        log.seek(SeekFrom::Start(dropped))?;
        let mut line = BufReader::new((&log).take(LONGEST_LINE));
        let cut = line.skip_until(b'\n')? as u64;
        // A line that is longer, or the last one, is cut in the middle.
        if cut < LONGEST_LINE.min(limit) {
            dropped += cut;
        }
    }
    let (copy, target) = tracking_file::create_beside(path, b"")?;
    let mut target = File::from(target);
    let mut filled = fill(&mut target, &mut log, dropped, length);
    if let (Err(error), Some(source)) = (&filled, source)
        && is_no_room(error)
        && dropped > 0
    {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        filled = rustix::fs::fallocate(source, hole, 0, dropped)
            .map_err(io::Error::from)
            .and_then(|()| fill(&mut target, &mut log, dropped, length));
    }
    let placed = filled.and_then(|()| place(&copy));
    if placed.is_err() {
        let _ = tracking_file::remove(&copy);
    }
    placed
}

/// Writes a log's end, from `dropped` to `length`, and what was dropped before it.
fn fill(target: &mut File, log: &mut File, dropped: u64, length: u64) -> io::Result<()> {
    target.set_len(0)?;
    target.rewind()?;
    if dropped > 0 {
        writeln!(target, "[{dropped} bytes before this were not kept]")?;
    }
    log.seek(SeekFrom::Start(dropped))?;
    // Not to its end: an orphan of the previous agent may still be writing.
    io::copy(&mut log.take(length - dropped), target)?;
    Ok(())
}

fn is_no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
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

    #[test]
    fn previous_logs_are_kept_and_a_reader_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        let mut reader = None;
        for round in 0..8 {
            let mut log = AgentLog::open(&path).unwrap();
            log.keep_previous(1000).unwrap();
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

    fn kept(path: &Path, number: u32) -> String {
        let mut name = OsString::from(path);
        name.push(format!(".{number}"));
        fs::read_to_string(PathBuf::from(name)).unwrap_or_default()
    }

    #[test]
    fn the_end_of_a_long_log_is_kept_from_a_lines_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        let text = (0..100).fold(String::new(), |text, number| {
            text + &format!("line {number}\n")
        });
        fs::write(&path, &text).unwrap();
        AgentLog::open(&path).unwrap().keep_previous(30).unwrap();
        let dropped = text.len() - "line 97\nline 98\nline 99\n".len();
        assert_eq!(
            kept(&path, 1),
            format!("[{dropped} bytes before this were not kept]\nline 97\nline 98\nline 99\n")
        );
        assert_eq!(fs::read(&path).unwrap(), b"");

        // What just fits, and what has no line's end.
        for (log, end) in [(&text[..30], &text[..30]), (&"x".repeat(99), "x")] {
            fs::write(&path, log).unwrap();
            AgentLog::open(&path).unwrap().keep_previous(30).unwrap();
            let kept = kept(&path, 1);
            assert!(kept.ends_with(end) && kept.len() <= 30 + 64, "{kept}");
            assert!(kept.len() >= 30, "{kept}");
        }
    }

    #[test]
    fn older_logs_beyond_the_limit_are_cut_and_a_limit_of_zero_keeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        let older = |number: u32| folder.path().join(format!("agent.log.{number}"));
        fs::write(older(1), "y".repeat(1000)).unwrap();
        fs::write(older(2), "short\n").unwrap();
        let precious = folder.path().join("precious");
        fs::write(&precious, "z".repeat(1000)).unwrap();
        std::os::unix::fs::symlink(&precious, older(3)).unwrap();
        fs::write(&path, "new\n").unwrap();
        AgentLog::open(&path).unwrap().keep_previous(100).unwrap();
        assert_eq!(kept(&path, 1), "new\n");
        assert!(kept(&path, 2).len() < 200, "{}", kept(&path, 2));
        assert!(kept(&path, 2).ends_with(&"y".repeat(100)));
        assert_eq!(kept(&path, 3), "short\n");
        assert_eq!(fs::read_link(older(4)).unwrap(), precious);
        assert_eq!(fs::metadata(&precious).unwrap().len(), 1000);
        // Once cut, it is not cut again.
        let before = kept(&path, 2);
        fs::write(&path, "newer\n").unwrap();
        AgentLog::open(&path).unwrap().keep_previous(100).unwrap();
        assert_eq!(kept(&path, 3), before);

        fs::write(&path, "dropped\n").unwrap();
        AgentLog::open(&path).unwrap().keep_previous(0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(kept(&path, 1), "newer\n");
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
    fn what_is_kept_is_what_was_opened_whatever_has_its_name_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let precious = folder.path().join("precious");
        fs::write(&precious, "secret\n").unwrap();
        let path = folder.path().join("agent.log");
        fs::write(&path, "mine\n").unwrap();
        let mut log = AgentLog::open(&path).unwrap();
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        log.keep_previous(1000).unwrap();
        assert_eq!(kept(&path, 1), "mine\n");
        assert_eq!(fs::read(&precious).unwrap(), b"secret\n");
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
