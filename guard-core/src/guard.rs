//! The guard: mutual exclusion among these programs.
//!
//! An exclusive `flock(2)` on a file that is never unlinked and that
//! `rm /tmp/letta_voice_agent.*` misses. The startup lock of the original
//! scripts cannot serve: people and exit traps unlink it while it is held, and
//! the next starter would lock a fresh inode.
//!
//! In it stand the processes that the last stop asked to end, as `PID START`
//! lines: if that stop was interrupted or killed, they still look like running
//! agents, and will be gone in a moment.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use fd_lock::RwLock;
use rustix::fs::{Mode, OFlags};

use crate::process_table::{Identity, Pid};
use crate::tracking_file::{self, FileId, Oddity, Opening};

/// More than any family has processes; in bytes.
const FAREWELL_LIMIT: u64 = 64 * 1024;

/// The file whose lock is the guard.
#[derive(Debug, Clone)]
pub struct Guard {
    path: PathBuf,
}

/// The guard, held until this value is dropped or the program ends.
#[derive(Debug)]
pub struct HeldGuard {
    _lock: RwLock<File>,
    id: FileId,
}

/// What came of trying to take the guard.
#[derive(Debug)]
pub enum Taking {
    /// Ours now.
    Held(HeldGuard),
    /// Somebody else's.
    Busy,
}

/// Why the guard could not even be tried.
#[derive(Debug)]
pub enum GuardError {
    /// Something else has its name.
    Odd(Oddity),
    /// The system refused.
    Io(io::Error),
}

impl From<io::Error> for GuardError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Exclusive,
    Shared,
}

impl Guard {
    /// The guard at `path`.
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

    /// Takes the guard, if nobody holds it in any way.
    ///
    /// # Errors
    /// When the file is no plain file or cannot be opened or made.
    pub fn try_exclusive(&self) -> Result<Taking, GuardError> {
        self.take(Sharing::Exclusive)
    }

    /// Takes the guard beside others that only probe it, if nobody starts or
    /// stops.
    ///
    /// # Errors
    /// As [`Self::try_exclusive`].
    pub fn try_shared(&self) -> Result<Taking, GuardError> {
        self.take(Sharing::Shared)
    }

    /// Does nobody start or stop? Where there is no guard, nobody ever did, and
    /// none is made: who only looks may have nowhere to write.
    ///
    /// # Errors
    /// When the file is no plain file or cannot be opened.
    pub fn is_free(&self) -> Result<bool, GuardError> {
        Ok(match tracking_file::open(&self.path)? {
            Opening::Absent => true,
            Opening::Odd(oddity) => return Err(GuardError::Odd(oddity)),
            Opening::Plain(_) => matches!(self.try_shared()?, Taking::Held(_)),
        })
    }

    fn take(&self, sharing: Sharing) -> Result<Taking, GuardError> {
        loop {
            let file = self.open()?;
            let id = FileId::of_open(&file)?;
            let mut lock = RwLock::new(file);
            if !lock_without_waiting(&mut lock, sharing)? {
                return Ok(Taking::Busy);
            }
            // Nobody should remove this file; if somebody did between our open
            // and our lock, others lock its successor.
            if FileId::of_name(&self.path)? == Some(id) {
                return Ok(Taking::Held(HeldGuard { _lock: lock, id }));
            }
        }
    }

    /// Opened for reading, which is enough to lock, even another user's and on
    /// a read-only file system; made only if absent, since
    /// `fs.protected_regular` refuses `O_CREAT` on another user's file.
    fn open(&self) -> Result<File, GuardError> {
        loop {
            match tracking_file::open(&self.path)? {
                Opening::Plain(opened) => return Ok(opened.file),
                Opening::Odd(oddity) => return Err(GuardError::Odd(oddity)),
                Opening::Absent => match tracking_file::create_new(&self.path, b"") {
                    Ok(file) => return Ok(file.into()),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error.into()),
                },
            }
        }
    }

    /// The processes that the last stop asked to end, whatever came of it.
    #[must_use]
    pub fn farewell(&self) -> Vec<Identity> {
        let Ok(Opening::Plain(opened)) = tracking_file::open(&self.path) else {
            return Vec::new();
        };
        let mut content = Vec::new();
        let read = opened.file.take(FAREWELL_LIMIT).read_to_end(&mut content);
        if read.is_err() {
            return Vec::new();
        }
        let lines = content.split(|&byte| byte == b'\n');
        lines.filter_map(identity_in).collect()
    }

    /// The process that took the guard, according to `/proc/locks`; `None` if
    /// nobody holds it or it is not shown (another PID namespace, a file system
    /// that reports another device number).
    #[must_use]
    pub fn holder(&self) -> Option<Pid> {
        let id = FileId::of_name(&self.path).ok()??;
        let device = id.device;
        let name = format!(
            "{:02x}:{:02x}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device),
            id.inode
        );
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        locks.lines().find_map(|line| {
            // "1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF"; waiters have "->".
            let mut fields = line.split_whitespace().skip(1);
            let is_lock = fields.next() == Some("FLOCK");
            let number = fields.nth(2)?.parse().ok()?;
            (is_lock && fields.next() == Some(name.as_str()))
                .then(|| Pid::new(number))
                .flatten()
        })
    }
}

impl HeldGuard {
    /// Which file is locked.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Writes down whom a stop is about to ask to end. Only a help for whoever
    /// comes after a stop that does not see it through: another owner's guard
    /// stays as it is, and a full disk hinders no stop.
    pub fn note_farewell(&self, guard: &Guard, identities: impl Iterator<Item = Identity>) {
        let mut lines = String::new();
        for Identity { pid, start } in identities {
            let _ = writeln!(lines, "{pid} {start}");
        }
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened =
            rustix::io::retry_on_intr(|| rustix::fs::open(guard.path(), flags, Mode::empty()));
        if let Ok(file) = opened
            && FileId::of_open(&file).is_ok_and(|id| id == self.id)
        {
            let mut file = File::from(file);
            let _ = file
                .set_len(0)
                .and_then(|()| file.write_all(lines.as_bytes()));
        }
    }
}

/// `PID START`.
fn identity_in(line: &[u8]) -> Option<Identity> {
    let (pid, start) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    Some(Identity {
        pid: Pid::new(pid.parse().ok()?)?,
        start: start.parse().ok()?,
    })
}

fn lock_without_waiting(lock: &mut RwLock<File>, sharing: Sharing) -> io::Result<bool> {
    loop {
        // fd-lock's guards borrow the lock and unlock when dropped. We hold to
        // the end of the descriptor instead, which is the end of the program.
        let taken = match sharing {
            Sharing::Exclusive => lock.try_write().map(std::mem::forget),
            Sharing::Shared => lock.try_read().map(std::mem::forget),
        };
        match taken {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_share_it_and_a_starter_excludes_all() {
        let folder = tempfile::tempdir().unwrap();
        let guard = Guard::at(&folder.path().join(".x.guard"));
        let Taking::Held(first) = guard.try_shared().unwrap() else {
            panic!("fresh guard is busy");
        };
        let Taking::Held(second) = guard.try_shared().unwrap() else {
            panic!("checks exclude each other");
        };
        assert!(matches!(guard.try_exclusive().unwrap(), Taking::Busy));
        assert_eq!(guard.holder(), Some(Pid::own()));
        drop((first, second));
        let Taking::Held(_held) = guard.try_exclusive().unwrap() else {
            panic!("a free guard is busy");
        };
        assert!(matches!(guard.try_shared().unwrap(), Taking::Busy));
    }

    #[test]
    fn a_removed_guard_is_replaced_not_shared() {
        let folder = tempfile::tempdir().unwrap();
        let guard = Guard::at(&folder.path().join(".x.guard"));
        let Taking::Held(old) = guard.try_exclusive().unwrap() else {
            panic!("fresh guard is busy");
        };
        std::fs::remove_file(guard.path()).unwrap();
        let Taking::Held(new) = guard.try_exclusive().unwrap() else {
            panic!("the new file is busy");
        };
        assert_ne!(old.id(), new.id());
    }

    #[test]
    fn it_remembers_whom_the_last_stop_asked_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let guard = Guard::at(&folder.path().join(".x.guard"));
        assert_eq!(guard.farewell(), []);
        let Taking::Held(held) = guard.try_exclusive().unwrap() else {
            panic!("fresh guard is busy");
        };
        let named = [(7, 70), (8, 80)].map(|(pid, start)| Identity {
            pid: Pid::new(pid).unwrap(),
            start,
        });
        held.note_farewell(&guard, named.into_iter());
        assert_eq!(guard.farewell(), named);
        held.note_farewell(&guard, named.into_iter().skip(1));
        assert_eq!(guard.farewell(), named[1..]);
        // Whatever a person, or half a write, has left in it.
        for content in ["", "7", "7 ", "0 5\n", "-1 5\nx y\n\n", "99999999999 1\n"] {
            std::fs::write(guard.path(), content).unwrap();
            assert_eq!(guard.farewell(), [], "{content:?}");
        }
        // Not the guard that is held.
        std::fs::remove_file(guard.path()).unwrap();
        std::fs::write(guard.path(), "kept").unwrap();
        held.note_farewell(&guard, named.into_iter());
        assert_eq!(std::fs::read(guard.path()).unwrap(), b"kept");
    }

    #[test]
    fn odd_things_in_its_place_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let guard = Guard::at(folder.path());
        assert!(matches!(
            guard.try_exclusive(),
            Err(GuardError::Odd(Oddity::Folder))
        ));
    }
}
