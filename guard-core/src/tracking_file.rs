//! Opening the files in `/tmp` that tell programs of each other, where anybody
//! may have put anything.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Permissions of every tracking file: everybody may read whom it names.
pub(crate) const TRACKING_MODE: Mode = Mode::from_raw_mode(0o644);

/// A file for good: its name may be given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// Device that holds it.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl FileId {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }

    /// The file behind an open descriptor.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn of_open(file: impl std::os::fd::AsFd) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstat(file)?))
    }

    /// The file of that name now, itself if it is a symbolic link.
    ///
    /// # Errors
    /// Those of `lstat(2)` but for an absent name, which is `None`.
    pub fn of_name(path: &Path) -> io::Result<Option<Self>> {
        match rustix::fs::lstat(path) {
            Ok(stat) => Ok(Some(Self::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Is `written`, which is never followed if it is a link, the plain file that is
/// read as `read`?
#[must_use]
pub fn is_same(written: &Path, read: &Path) -> bool {
    match rustix::fs::lstat(written) {
        Ok(one) if Oddity::of(&one).is_some() => false,
        Ok(one) => rustix::fs::stat(read).is_ok_and(|other| FileId::of(&one) == FileId::of(&other)),
        Err(_) => written == read,
    }
}

/// What lies where a plain file is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// A symbolic link, which is never followed.
    Symlink,
    /// A folder.
    Folder,
    /// A named pipe, a socket or a device.
    Special,
}

impl fmt::Display for Oddity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Symlink => "a symbolic link",
            Self::Folder => "a folder",
            Self::Special => "a named pipe, socket or device",
        })
    }
}

impl Oddity {
    /// What kind of thing `stat` describes; `None` for a plain file.
    pub(crate) fn of(stat: &Stat) -> Option<Self> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => None,
            FileType::Symlink => Some(Self::Symlink),
            FileType::Directory => Some(Self::Folder),
            _ => Some(Self::Special),
        }
    }
}

/// An open plain file and what `fstat` said of it.
#[derive(Debug)]
pub struct OpenFile {
    /// Opened for reading.
    pub file: File,
    /// Which file it is.
    pub id: FileId,
    /// Its owner.
    pub owner: u32,
    /// When it was last written, by the wall clock.
    pub modified: SystemTime,
}

/// What a name in `/tmp` turned out to be.
#[derive(Debug)]
pub enum Opening {
    /// Nothing of that name.
    Absent,
    /// No plain file.
    Odd(Oddity),
    /// A plain file.
    Plain(OpenFile),
}

/// Opens what is there, creating and following nothing, never blocking.
///
/// # Errors
/// Those of `open(2)` and `fstat(2)`, such as another user's private file.
pub fn open(path: &Path) -> io::Result<Opening> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()));
    let file = match opened {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Opening::Absent),
        // A symbolic link, and a socket.
        Err(errno @ (Errno::LOOP | Errno::NXIO)) => {
            let stat = rustix::fs::lstat(path)?;
            return Oddity::of(&stat).map(Opening::Odd).ok_or(errno.into());
        }
        Err(errno) => return Err(errno.into()),
    };
    let stat = rustix::fs::fstat(&file)?;
    Ok(match Oddity::of(&stat) {
        Some(oddity) => Opening::Odd(oddity),
        None => Opening::Plain(OpenFile {
            file: file.into(),
            id: FileId::of(&stat),
            owner: stat.st_uid,
            modified: modified(&stat),
        }),
    })
}

/// Creates a file that must not be there yet, writes `content` and returns its
/// descriptor.
///
/// # Errors
/// Those of `open(2)`, `fchmod(2)` and `write(2)`; what was created is removed.
pub fn create_new(path: &Path, content: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, TRACKING_MODE))?;
    let filled = fill(&file, content);
    if filled.is_err() {
        let _ = rustix::fs::unlink(path);
    }
    filled.map(|()| file)
}

fn fill(file: &OwnedFd, mut content: &[u8]) -> io::Result<()> {
    // The umask may have taken the others' right to read.
    rustix::fs::fchmod(file, TRACKING_MODE)?;
    while !content.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(file, content))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => content = &content[count..],
        }
    }
    Ok(())
}

/// Makes a complete file beside `path`, to be renamed or linked there.
///
/// The name is the same every time, hidden, and `rm NAME*` misses it: what a
/// killed program left is replaced, and nothing piles up.
///
/// # Errors
/// Those of [`create_new`].
pub fn create_beside(path: &Path, content: &[u8]) -> io::Result<(PathBuf, OwnedFd)> {
    let beside = beside(path);
    remove_plain(&beside)?;
    let file = create_new(&beside, content)?;
    Ok((beside, file))
}

/// `.NAME.new` in the same folder.
#[must_use]
pub fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

/// Removes a name; an absent one is no error. `true` if something was there.
///
/// # Errors
/// Those of `unlink(2)`; a folder is never removed.
pub fn remove(path: &Path) -> io::Result<bool> {
    match rustix::fs::unlink(path) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Why a name was not removed.
#[derive(Debug)]
pub enum PlainError {
    /// It is no plain file's.
    Odd(Oddity),
    /// The system refused.
    Io(io::Error),
}

impl From<PlainError> for io::Error {
    fn from(error: PlainError) -> Self {
        match error {
            PlainError::Odd(oddity) => Self::other(format!("{oddity} is in the way")),
            PlainError::Io(error) => error,
        }
    }
}

/// Removes a name if a plain file has it: what our programs make. A link, a
/// device or a pipe is somebody's, and a setting that names one is a slip.
///
/// # Errors
/// When it is something else, and those of `lstat(2)` and `unlink(2)`.
pub fn remove_plain(path: &Path) -> Result<bool, PlainError> {
    match rustix::fs::lstat(path) {
        Ok(stat) => match Oddity::of(&stat) {
            None => remove(path).map_err(PlainError::Io),
            Some(oddity) => Err(PlainError::Odd(oddity)),
        },
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(PlainError::Io(errno.into())),
    }
}

/// Removes the name if it is still this file's. `true` if it was.
///
/// # Errors
/// Those of `lstat(2)` and `unlink(2)`.
pub fn remove_same(path: &Path, id: FileId) -> io::Result<bool> {
    if FileId::of_name(path)? == Some(id) {
        remove(path)
    } else {
        Ok(false)
    }
}

/// May the caller remove or replace a file of `owner` in its folder?
///
/// # Errors
/// Those of `access(2)` and `stat(2)` on the folder.
pub fn may_replace(path: &Path, owner: u32) -> io::Result<bool> {
    let folder = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let me = rustix::process::geteuid().as_raw();
    let stat = rustix::fs::stat(folder)?;
    let sticky = Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX);
    if sticky && me != 0 && me != owner && me != stat.st_uid {
        return Ok(false);
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match rustix::fs::accessat(CWD, folder, access, AtFlags::EACCESS) {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn modified(stat: &Stat) -> SystemTime {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    match u64::try_from(stat.st_mtime) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

/// A process number as people and scripts write it into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NumberFile {
    /// Nothing, or white space only.
    Empty,
    /// One positive number, and white space around it.
    Number(crate::process_table::Pid),
    /// Something else; why it is no process number, and in which line.
    Unusable(String),
}

impl NumberFile {
    /// Reads at most the beginning; a process number is short.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub fn read(mut file: impl io::Read) -> io::Result<Self> {
        let mut content = [0_u8; 4096];
        let mut length = 0;
        while length < content.len() {
            match file.read(&mut content[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self::parse(&content[..length]))
    }

    fn parse(content: &[u8]) -> Self {
        let content = content.trim_ascii();
        if content.is_empty() {
            return Self::Empty;
        }
        if let Some(at) = memchr::memchr(b'\n', content) {
            let second = content[at + 1..].trim_ascii();
            let shown = shown(
                second
                    .split(|&byte| byte == b'\n')
                    .next()
                    .unwrap_or_default(),
            );
            return Self::Unusable(format!("line 2: more than one line ({shown})"));
        }
        let number = std::str::from_utf8(content)
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .and_then(crate::process_table::Pid::new);
        number.map_or_else(
            || Self::Unusable(format!("line 1: not a process number ({})", shown(content))),
            Self::Number,
        )
    }
}

/// A short, printable rendering of bytes that somebody else wrote.
fn shown(content: &[u8]) -> String {
    let short = &content[..content.len().min(24)];
    let dots = if short.len() < content.len() {
        "…"
    } else {
        ""
    };
    format!("\"{}{dots}\"", short.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process_table::Pid;

    #[test]
    fn numbers_are_read_strictly() {
        let number = |pid| NumberFile::Number(Pid::new(pid).unwrap());
        assert_eq!(NumberFile::parse(b"1234\n"), number(1234));
        assert_eq!(NumberFile::parse(b"1234\r\n"), number(1234));
        assert_eq!(NumberFile::parse(b"  1234"), number(1234));
        assert_eq!(NumberFile::parse(b""), NumberFile::Empty);
        assert_eq!(NumberFile::parse(b" \n\n"), NumberFile::Empty);
        for bad in [
            &b"-1"[..],
            b"0",
            b"+5",
            b"12a",
            b"99999999999999999999",
            b"12\n34\n",
            b"\x00\xff\x01",
            b"4294967297",
        ] {
            assert!(
                matches!(NumberFile::parse(bad), NumberFile::Unusable(_)),
                "{}",
                bad.escape_ascii()
            );
        }
    }

    #[test]
    fn only_plain_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(matches!(open(&at("absent")).unwrap(), Opening::Absent));
        std::fs::write(at("plain"), "x").unwrap();
        assert!(matches!(open(&at("plain")).unwrap(), Opening::Plain(_)));
        std::os::unix::fs::symlink(at("plain"), at("link")).unwrap();
        assert!(matches!(
            open(&at("link")).unwrap(),
            Opening::Odd(Oddity::Symlink)
        ));
        std::fs::create_dir(at("folder")).unwrap();
        assert!(matches!(
            open(&at("folder")).unwrap(),
            Opening::Odd(Oddity::Folder)
        ));
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(
            open(&at("fifo")).unwrap(),
            Opening::Odd(Oddity::Special)
        ));
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert!(matches!(
            open(&at("socket")).unwrap(),
            Opening::Odd(Oddity::Special)
        ));
    }

    #[test]
    fn another_file_of_the_same_name_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pid");
        let first = create_new(&path, b"1\n").unwrap();
        let id = FileId::of_open(&first).unwrap();
        let (new, _second) = create_beside(&path, b"2\n").unwrap();
        std::fs::rename(new, &path).unwrap();
        assert!(!remove_same(&path, id).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"2\n");
    }
}
