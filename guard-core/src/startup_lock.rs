//! The startup lock: the original scripts' convention, honoured and kept up.
//!
//! It keeps original starters away from ours, and ours from theirs, as far as
//! that convention can. Among our own programs the guard decides.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;

use crate::agent::base_name;
use crate::process_table::{Pid, ProcessTable, split_arguments};
use crate::tracking_file::{self, FileId, NumberFile, Oddity, OpenFile, Opening};

/// A lock older than this is stale (`docs/contract.md`, "Tracking files").
pub const STALE_AFTER: Duration = Duration::from_secs(30);

/// How often a long start renews its lock, well below [`STALE_AFTER`].
pub const RENEW_EVERY: Duration = Duration::from_secs(10);

/// The programs of this workspace, by the names they are installed under.
pub const PROGRAMS: [&str; 6] = [
    "check-agent-running",
    "start-voice-agent-safe",
    "stop-voice-agent-safe",
    "start-voice-system",
    "restart-voice-system",
    "stop-voice-system",
];

/// What a startup lock says.
#[derive(Debug)]
pub enum LockVerdict {
    /// No start is in progress.
    Absent,
    /// A start is in progress.
    Starting(Starter),
    /// Left behind; why, and which file it was.
    Stale {
        /// Why nobody is starting.
        reason: StaleReason,
        /// Which file was judged.
        id: FileId,
        /// Its owner.
        owner: u32,
    },
    /// Something else has its name.
    Odd(Oddity),
}

/// Who is starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// One of our programs.
    Ours(Pid),
    /// A shell, as the originals are.
    Original(Pid),
    /// An original that has created the file and not written into it yet.
    Unnamed,
}

/// Why a startup lock is stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StaleReason {
    /// Its owner is dead, or a stranger has its number.
    OwnerGone(Pid),
    /// Its owner is one of our programs, which has released the guard.
    Finished(Pid),
    /// 30 s old or older.
    Old,
    /// Names nobody.
    Unusable(String),
}

/// The startup lock's file.
#[derive(Debug, Clone)]
pub struct StartupLock {
    path: PathBuf,
}

impl StartupLock {
    /// The startup lock at `path`.
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

    /// Is a start in progress?
    ///
    /// `guard_is_free`: nobody else holds the guard, so no program of ours is
    /// starting, whatever number stands in the file.
    ///
    /// # Errors
    /// When the file or `/proc` cannot be read.
    pub fn verdict(&self, table: &ProcessTable, guard_is_free: bool) -> io::Result<LockVerdict> {
        let opened = match tracking_file::open(&self.path)? {
            Opening::Absent => return Ok(LockVerdict::Absent),
            Opening::Odd(oddity) => return Ok(LockVerdict::Odd(oddity)),
            Opening::Plain(opened) => opened,
        };
        let number = NumberFile::read(&opened.file)?;
        let stale = |reason| {
            Ok(LockVerdict::Stale {
                reason,
                id: opened.id,
                owner: opened.owner,
            })
        };
        let age = Age::of(&opened);
        let pid = match number {
            // An original's `echo $$ >` creates first and writes then.
            NumberFile::Empty if age == Age::Young => {
                return Ok(LockVerdict::Starting(Starter::Unnamed));
            }
            NumberFile::Empty => return stale(StaleReason::Old),
            NumberFile::Unusable(why) => return stale(StaleReason::Unusable(why)),
            NumberFile::Number(pid) => pid,
        };
        match owner_of(table, pid)? {
            LockOwner::Program if guard_is_free => stale(StaleReason::Finished(pid)),
            LockOwner::Program => Ok(LockVerdict::Starting(Starter::Ours(pid))),
            LockOwner::Shell if age == Age::Old => stale(StaleReason::Old),
            LockOwner::Shell => Ok(LockVerdict::Starting(Starter::Original(pid))),
            LockOwner::Nobody => stale(StaleReason::OwnerGone(pid)),
        }
    }

    /// How long ago it was written; `None` if there is none. A time that is
    /// still to come counts as now.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn age(&self) -> io::Result<Option<Duration>> {
        Ok(match tracking_file::open(&self.path)? {
            Opening::Plain(opened) => Some(
                SystemTime::now()
                    .duration_since(opened.modified)
                    .unwrap_or_default(),
            ),
            Opening::Absent | Opening::Odd(_) => None,
        })
    }

    /// Takes the lock: complete from its first instant, by linking a file that
    /// was written beside it. `Ok(None)` if there is one already.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn take(&self) -> io::Result<Option<HeldStartupLock>> {
        let pid = Pid::own();
        let (beside, file) =
            tracking_file::create_beside(&self.path, format!("{pid}\n").as_bytes())?;
        let linked = rustix::fs::link(&beside, &self.path);
        tracking_file::remove(&beside)?;
        match linked {
            Ok(()) => Ok(Some(HeldStartupLock {
                id: FileId::of_open(&file)?,
                path: self.path.clone(),
                file,
                pid,
                renewed: Instant::now(),
            })),
            Err(Errno::EXIST) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Our startup lock; removed when dropped, if it is still ours.
#[derive(Debug)]
pub struct HeldStartupLock {
    path: PathBuf,
    id: FileId,
    file: OwnedFd,
    pid: Pid,
    renewed: Instant,
}

impl HeldStartupLock {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When [`Self::renew_if_due`] has something to do next.
    #[must_use]
    pub fn renewal_in(&self) -> Duration {
        RENEW_EVERY.saturating_sub(self.renewed.elapsed())
    }

    /// Keeps the lock young during a long start.
    pub fn renew_if_due(&mut self) {
        if !self.renewal_in().is_zero() {
            return;
        }
        self.renewed = Instant::now();
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        // A lock that cannot be renewed only stops keeping originals away.
        let _ = rustix::fs::futimens(&self.file, &times);
    }

    /// The other starter that has overwritten our lock, if one has: an original
    /// whose check was over before our lock was there.
    ///
    /// # Errors
    /// When the file or `/proc` cannot be read.
    pub fn intruder(&self, table: &ProcessTable) -> io::Result<Option<Starter>> {
        let verdict = StartupLock::at(&self.path).verdict(table, false)?;
        Ok(match verdict {
            LockVerdict::Starting(Starter::Ours(pid)) if pid == self.pid => None,
            LockVerdict::Starting(starter) => Some(starter),
            _ => None,
        })
    }

    fn is_still_ours(&self) -> io::Result<bool> {
        // Through the descriptor that we have: there may be no other to be had.
        let mut content = [0; 16];
        let length = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut content, 0))?;
        Ok(FileId::of_name(&self.path)? == Some(self.id)
            && NumberFile::read(&content[..length])? == NumberFile::Number(self.pid))
    }
}

impl Drop for HeldStartupLock {
    fn drop(&mut self) {
        // What cannot be removed names a process that is about to end: stale.
        if self.is_still_ours().unwrap_or(false) {
            let _ = tracking_file::remove_same(&self.path, self.id);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Young,
    Old,
    /// Written "later than now": the wall clock was set back.
    Future,
}

impl Age {
    fn of(opened: &OpenFile) -> Self {
        match SystemTime::now().duration_since(opened.modified) {
            Ok(age) if age < STALE_AFTER => Self::Young,
            Ok(_) => Self::Old,
            Err(_) => Self::Future,
        }
    }
}

enum LockOwner {
    Program,
    Shell,
    Nobody,
}

fn owner_of(table: &ProcessTable, pid: Pid) -> io::Result<LockOwner> {
    if pid == Pid::own() {
        return Ok(LockOwner::Program);
    }
    if table.stat(pid)?.is_none_or(|stat| stat.is_dead()) {
        return Ok(LockOwner::Nobody);
    }
    if program_name(table, pid)?.is_some() {
        return Ok(LockOwner::Program);
    }
    let Some(line) = private_is_none(table.command_line(pid))? else {
        return Ok(LockOwner::Nobody);
    };
    let argv0 = base_name(split_arguments(&line)[0]);
    let argv0 = argv0.strip_prefix(b"-").unwrap_or(argv0);
    let shells: [&[u8]; 7] = [b"sh", b"bash", b"dash", b"zsh", b"ksh", b"ash", b"busybox"];
    Ok(if shells.contains(&argv0) {
        LockOwner::Shell
    } else {
        LockOwner::Nobody
    })
}

/// Which of our programs runs as `pid`, whatever link it was called by.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn program_name(table: &ProcessTable, pid: Pid) -> io::Result<Option<&'static str>> {
    let by_name = |name: &[u8]| {
        PROGRAMS
            .into_iter()
            .find(|program| program.as_bytes() == name)
    };
    let executable = private_is_none(table.executable(pid))?;
    if let Some(path) = executable {
        use std::os::unix::ffi::OsStrExt as _;
        let name = base_name(path.as_os_str().as_bytes());
        return Ok(by_name(name.strip_suffix(b" (deleted)").unwrap_or(name)));
    }
    // Another user's: its executable is private, the command line is not. A
    // script's interpreter stands first there, so this is no original script.
    let Some(line) = private_is_none(table.command_line(pid))? else {
        return Ok(None);
    };
    let called = base_name(split_arguments(&line)[0]);
    let called = called.strip_suffix(b".sh").unwrap_or(called);
    let called: Vec<u8> = called
        .iter()
        .map(|&byte| if byte == b'_' { b'-' } else { byte })
        .collect();
    Ok(by_name(&called))
}

pub(crate) fn private_is_none<T>(reading: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match reading {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read as _;

    fn verdict_of(content: &[u8], age: i64) -> LockVerdict {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        std::fs::write(&path, content).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let now = SystemTime::now();
        let shift = Duration::from_secs(age.unsigned_abs());
        let modified = if age < 0 { now + shift } else { now - shift };
        file.set_modified(modified).unwrap();
        let table = ProcessTable::open().unwrap();
        StartupLock::at(&path).verdict(&table, true).unwrap()
    }

    #[test]
    fn empty_is_being_written_while_young() {
        assert!(matches!(
            verdict_of(b"", 5),
            LockVerdict::Starting(Starter::Unnamed)
        ));
        assert!(matches!(verdict_of(b"", 31), LockVerdict::Stale { .. }));
        assert!(matches!(verdict_of(b"", -3600), LockVerdict::Stale { .. }));
    }

    #[test]
    fn nobody_and_strangers_start_nothing() {
        for content in [
            &b"4194305\n"[..],
            b"1\n",
            b"0\n",
            b"-7\n",
            b"junk",
            b"\xff\x00",
        ] {
            for age in [0, 29, 31, -3600] {
                assert!(
                    matches!(verdict_of(content, age), LockVerdict::Stale { .. }),
                    "{} at {age}",
                    content.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn a_live_shell_starts_for_thirty_seconds() {
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "echo ready; read line; :"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // `spawn` returns in the middle of the shell's exec.
        let mut ready = [0; 6];
        shell
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        let content = format!("{}\n", shell.id());
        let young = verdict_of(content.as_bytes(), 5);
        let future = verdict_of(content.as_bytes(), -3600);
        let old = verdict_of(content.as_bytes(), 31);
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(matches!(young, LockVerdict::Starting(Starter::Original(_))));
        assert!(matches!(
            future,
            LockVerdict::Starting(Starter::Original(_))
        ));
        assert!(matches!(old, LockVerdict::Stale { .. }));
    }

    #[test]
    fn it_is_complete_exclusive_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let lock = StartupLock::at(&path);
        let held = lock.take().unwrap().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{}\n", Pid::own())
        );
        assert!(lock.take().unwrap().is_none());
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn another_starters_content_in_our_file_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let held = StartupLock::at(&path).take().unwrap().unwrap();
        std::fs::write(&path, "1\n").unwrap();
        drop(held);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
    }
}
