//! Reading `/proc`: one pass over all processes, and facts about chosen ones.
//!
//! A pass costs one `open`, `read` and `close` per process; everything else is
//! read only for the few that may matter. The rules are those of `proc(5)`.

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, RawDir, openat, readlinkat};
use rustix::io::Errno;

/// A process number of this PID namespace; always positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pid(i32);

impl Pid {
    /// `None` for zero and negative numbers, which name groups or everybody.
    #[must_use]
    pub fn new(number: i32) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// The calling process.
    #[must_use]
    pub fn own() -> Self {
        Self(rustix::process::getpid().as_raw_pid())
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i32 {
        self.0
    }
}

impl std::fmt::Display for Pid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A process for good: its number may be recycled, together with the time of
/// its start it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The number.
    pub pid: Pid,
    /// Start time in clock ticks since boot (field 22 of `/proc/N/stat`).
    pub start: u64,
}

/// The fields of `/proc/N/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// One letter; `Z` and `X` are dead.
    pub state: u8,
    /// `None` for a process whose parent is outside this PID namespace.
    pub parent: Option<Pid>,
    /// Process group.
    pub group: i32,
    /// Session: the number of the process that began it.
    pub session: i32,
    /// Controlling terminal's device number; 0 for none.
    pub terminal: i32,
    /// Clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// A zombie has ended; only its number is still taken.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    fn parse(line: &[u8]) -> Option<Self> {
        // The command name may hold spaces and parentheses: count from the last.
        let rest = &line[memchr::memrchr(b')', line)? + 1..];
        let mut fields = rest
            .split(u8::is_ascii_whitespace)
            .filter(|field| !field.is_empty());
        let mut number = |skip: usize| -> Option<i64> {
            std::str::from_utf8(fields.nth(skip)?).ok()?.parse().ok()
        };
        let state = rest.iter().copied().find(|byte| *byte != b' ')?;
        let parent = number(1)?;
        let group = number(0)?;
        let session = number(0)?;
        let terminal = number(0)?;
        let start = number(14)?;
        Some(Self {
            state,
            parent: Pid::new(i32::try_from(parent).ok()?),
            group: i32::try_from(group).ok()?,
            session: i32::try_from(session).ok()?,
            terminal: i32::try_from(terminal).ok()?,
            start: u64::try_from(start).ok()?,
        })
    }
}

/// Who a process runs as, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Effective user id.
    pub uid: u32,
    /// Lives in a PID namespace below ours: a container.
    pub contained: bool,
}

impl Credentials {
    fn parse(status: &[u8]) -> Option<Self> {
        let field = |name: &[u8]| {
            let line = status
                .split(|&byte| byte == b'\n')
                .find_map(|line| line.strip_prefix(name))?;
            std::str::from_utf8(line).ok()
        };
        // Uid: real, effective, saved, file system.
        let uid = field(b"Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
        // NSpid: a number per namespace, from this procfs's downwards (Linux 4.1).
        let contained =
            field(b"NSpid:").is_some_and(|numbers| numbers.split_whitespace().count() > 1);
        Some(Self { uid, contained })
    }
}

/// The process table as `/proc` shows it to the caller.
#[derive(Debug)]
pub struct ProcessTable {
    root: OwnedFd,
    own: Pid,
}

/// How a pass over the table ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PassSummary {
    /// Processes whose command line may not be read (`hidepid=1`).
    pub unreadable: usize,
    /// Process 1, which always exists, was not listed (`hidepid=2`).
    pub hidden: bool,
}

impl ProcessTable {
    /// Opens `/proc`.
    ///
    /// # Errors
    /// When it is not mounted, or is the procfs of another PID namespace, whose
    /// numbers would mean other processes than ours.
    pub fn open() -> io::Result<Self> {
        let root = rustix::io::retry_on_intr(|| {
            rustix::fs::open(
                c"/proc",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        })?;
        let own = Pid::own();
        let myself = readlinkat(&root, c"self", Vec::new())?;
        if myself.to_bytes() != own.to_string().as_bytes() {
            return Err(io::Error::other(
                "it belongs to another PID namespace; mount this namespace's own procfs",
            ));
        }
        Ok(Self { root, own })
    }

    /// Visits every other process once, with its command line (arguments ended
    /// by NUL; empty for kernel threads and zombies).
    ///
    /// Processes that end meanwhile are passed over.
    ///
    /// # Errors
    /// When the list or a command line cannot be read for a reason other than
    /// the process's end or its owner's privacy.
    pub fn for_each(&self, mut visit: impl FnMut(Pid, &[u8])) -> io::Result<PassSummary> {
        let mut summary = PassSummary {
            unreadable: 0,
            hidden: true,
        };
        let directory = rustix::io::retry_on_intr(|| {
            openat(
                &self.root,
                c".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        })?;
        let mut entries: Vec<u8> = Vec::with_capacity(32 * 1024);
        let mut listing = RawDir::new(directory, entries.spare_capacity_mut());
        let mut command_line = Vec::with_capacity(32 * 1024);
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let Some(pid) = parse_pid(entry.file_name().to_bytes()) else {
                continue;
            };
            summary.hidden &= pid.get() != 1;
            if pid == self.own {
                continue;
            }
            match self.read_into(pid, "cmdline", &mut command_line) {
                Ok(()) => visit(pid, &command_line),
                Err(error) if is_gone(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    summary.unreadable += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(summary)
    }

    /// `/proc/N/stat`; `None` once the process is gone.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn stat(&self, pid: Pid) -> io::Result<Option<Stat>> {
        let mut line = Vec::with_capacity(1024);
        self.read_if_there(pid, "stat", &mut line)?
            .then(|| Stat::parse(&line).ok_or_else(|| unexpected(pid, "stat")))
            .transpose()
    }

    /// Does this very process live (and is no zombie)?
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn lives(&self, identity: Identity) -> io::Result<bool> {
        Ok(self
            .stat(identity.pid)?
            .is_some_and(|stat| stat.start == identity.start && !stat.is_dead()))
    }

    /// Effective user and namespace, from `/proc/N/status`.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn credentials(&self, pid: Pid) -> io::Result<Option<Credentials>> {
        let mut status = Vec::with_capacity(4096);
        self.read_if_there(pid, "status", &mut status)?
            .then(|| Credentials::parse(&status).ok_or_else(|| unexpected(pid, "status")))
            .transpose()
    }

    /// `/proc/N/cmdline`: arguments ended by NUL; empty for a zombie, a kernel
    /// thread, and a process in the middle of `exec`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn command_line(&self, pid: Pid) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::with_capacity(4096);
        Ok(self
            .read_if_there(pid, "cmdline", &mut line)?
            .then_some(line))
    }

    /// `/proc/N/environ`: the environment at the last `exec`.
    ///
    /// # Errors
    /// `PermissionDenied` for another user's process.
    pub fn environment(&self, pid: Pid) -> io::Result<Option<Vec<u8>>> {
        let mut block = Vec::with_capacity(16 * 1024);
        Ok(self
            .read_if_there(pid, "environ", &mut block)?
            .then_some(block))
    }

    /// `/proc/N/cgroup`: the control groups that the process lives in.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn control_groups(&self, pid: Pid) -> io::Result<Option<Vec<u8>>> {
        let mut groups = Vec::with_capacity(1024);
        Ok(self
            .read_if_there(pid, "cgroup", &mut groups)?
            .then_some(groups))
    }

    /// The working folder; `None` once the process is gone.
    ///
    /// # Errors
    /// `PermissionDenied` for another user's process.
    pub fn working_folder(&self, pid: Pid) -> io::Result<Option<PathBuf>> {
        self.link(pid, "cwd")
    }

    /// The running executable's path; `None` once the process is gone.
    ///
    /// # Errors
    /// `PermissionDenied` for another user's process.
    pub fn executable(&self, pid: Pid) -> io::Result<Option<PathBuf>> {
        self.link(pid, "exe")
    }

    /// `/proc/N/maps`: the files that the process maps, among others the
    /// libraries it has loaded.
    ///
    /// # Errors
    /// `PermissionDenied` for another user's process.
    pub fn maps(&self, pid: Pid) -> io::Result<Option<Vec<u8>>> {
        let mut maps = Vec::with_capacity(64 * 1024);
        Ok(self.read_if_there(pid, "maps", &mut maps)?.then_some(maps))
    }

    /// Does the process hold this file open (device and inode)?
    ///
    /// # Errors
    /// `PermissionDenied` for another user's process.
    pub fn holds_open(&self, pid: Pid, device: u64, inode: u64) -> io::Result<bool> {
        let mut path = PathBuffer::new();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match openat(&self.root, path.of(pid, "fd"), flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(errno) if is_gone(&errno.into()) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        let mut buffer: Vec<u8> = Vec::with_capacity(8 * 1024);
        let listed = rustix::io::dup(&folder)?;
        let mut listing = RawDir::new(listed, buffer.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let Ok(entry) = entry else { return Ok(false) };
            // stat follows the magic link to the open file itself.
            let found =
                rustix::fs::statat(&folder, entry.file_name(), rustix::fs::AtFlags::empty());
            if found.is_ok_and(|stat| stat.st_dev == device && stat.st_ino == inode) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The file (device and inode) behind a descriptor of the process; `None` if
    /// it is not open.
    ///
    /// # Errors
    /// `PermissionDenied` for another user's process.
    pub fn open_file(&self, pid: Pid, descriptor: i32) -> io::Result<Option<(u64, u64)>> {
        let mut path = PathBuffer::new();
        let path = path.of(pid, &format!("fd/{descriptor}"));
        match rustix::fs::statat(&self.root, path, rustix::fs::AtFlags::empty()) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(errno) if is_gone(&errno.into()) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The caller's ancestors, nearest first.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn ancestors(&self, pid: Pid) -> io::Result<Vec<Pid>> {
        let mut ancestors = Vec::new();
        let mut at = pid;
        while let Some(parent) = self.stat(at)?.and_then(|stat| stat.parent) {
            if ancestors.contains(&parent) {
                break;
            }
            ancestors.push(parent);
            at = parent;
        }
        Ok(ancestors)
    }

    fn link(&self, pid: Pid, name: &str) -> io::Result<Option<PathBuf>> {
        let mut path = PathBuffer::new();
        match readlinkat(&self.root, path.of(pid, name), Vec::with_capacity(256)) {
            Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()).into())),
            Err(errno) if is_gone(&errno.into()) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn read_if_there(&self, pid: Pid, name: &str, buffer: &mut Vec<u8>) -> io::Result<bool> {
        match self.read_into(pid, name, buffer) {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_into(&self, pid: Pid, name: &str, buffer: &mut Vec<u8>) -> io::Result<()> {
        let mut path = PathBuffer::new();
        let path = path.of(pid, name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::io::retry_on_intr(|| openat(&self.root, path, flags, Mode::empty()))?;
        buffer.clear();
        // A read that leaves room and brings a whole entry has reached the end:
        // no second read to see it. `maps` comes a page at a time, and the others
        // end short if the kernel cannot get at the next page just then.
        let in_pieces = name == "maps";
        loop {
            if buffer.capacity() - buffer.len() < 1024 {
                buffer.reserve(buffer.capacity().max(4096));
            }
            let room = buffer.capacity() - buffer.len();
            let count = rustix::io::retry_on_intr(|| {
                rustix::io::read(&file, rustix::buffer::spare_capacity(buffer))
            })?;
            let whole = matches!(buffer.last(), Some(b'\0' | b'\n'));
            if count == 0 || (count < room && whole && !in_pieces) {
                return Ok(());
            }
        }
    }
}

/// Splits an argument block; a title written over it may lack the last NUL.
#[must_use]
pub fn split_arguments(block: &[u8]) -> Vec<&[u8]> {
    let block = block.strip_suffix(b"\0").unwrap_or(block);
    block.split(|&byte| byte == 0).collect()
}

/// The process has ended: its folder is gone, or empty to readers.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::SRCH)
    )
}

fn unexpected(pid: Pid, name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("/proc/{pid}/{name} is not as proc(5) describes it"),
    )
}

fn parse_pid(name: &[u8]) -> Option<Pid> {
    name.first().filter(|byte| byte.is_ascii_digit())?;
    Pid::new(std::str::from_utf8(name).ok()?.parse().ok()?)
}

/// Room for `N/name` and its NUL, so that a pass allocates nothing per process.
struct PathBuffer([u8; 32]);

impl PathBuffer {
    fn new() -> Self {
        Self([0; 32])
    }

    /// `name` is one of the short names used in this file.
    fn of(&mut self, pid: Pid, name: &str) -> &CStr {
        use std::io::Write as _;
        let mut rest = &mut self.0[..];
        // 10 digits, a slash and at most `fd/` with 11 digits fit.
        let _ = write!(rest, "{pid}/{name}\0");
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_a_hostile_name_is_read() {
        let line = b"4242 (a) Z 1 (b) S 17 4240 4239 34816 4242 4194304 1 0 0 0 5 6 0 0 20 0 1 0 98765 1 2";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.state, b'S');
        assert_eq!(stat.parent, Pid::new(17));
        assert_eq!(stat.group, 4240);
        assert_eq!(stat.session, 4239);
        assert_eq!(stat.terminal, 34816);
        assert_eq!(stat.start, 98765);
        assert_eq!(Stat::parse(b"1 (x) S"), None);
    }

    #[test]
    fn credentials_tell_user_and_namespace() {
        let plain = b"Name:\tx\nUid:\t0\t1000\t0\t0\nNSpid:\t77\n";
        assert_eq!(
            Credentials::parse(plain),
            Some(Credentials {
                uid: 1000,
                contained: false
            })
        );
        let inside = b"Uid:\t1\t2\t3\t4\nNSpid:\t77\t5\n";
        assert!(Credentials::parse(inside).unwrap().contained);
    }

    #[test]
    fn the_own_process_is_seen_by_number_but_not_visited() {
        let table = ProcessTable::open().unwrap();
        let own = Pid::own();
        assert!(table.stat(own).unwrap().is_some());
        let line = table.command_line(own).unwrap().unwrap();
        assert!(!split_arguments(&line)[0].is_empty());
        let mut others = Vec::new();
        let summary = table.for_each(|pid, _| others.push(pid)).unwrap();
        assert!(!others.contains(&own));
        assert!(!summary.hidden || !others.contains(&Pid(1)));
    }

    #[test]
    fn gone_processes_are_absent_not_errors() {
        let table = ProcessTable::open().unwrap();
        // Above the kernel's highest possible number (PID_MAX_LIMIT, 2^22).
        let nobody = Pid::new(4_194_305).unwrap();
        assert_eq!(table.stat(nobody).unwrap(), None);
        assert_eq!(table.command_line(nobody).unwrap(), None);
        assert_eq!(table.working_folder(nobody).unwrap(), None);
    }
}
