//! From fork to exec: how an agent comes to be, tracked before its first
//! instruction. The only module with unsafe code.
//!
//! The agent must lock its own PID file, by a descriptor that no other process
//! has ever had, before it is an agent, and the guard must stay held until
//! then. That is code between `fork` and `exec`, which no library runs for us:
//! only async-signal-safe calls, and nothing that allocates
//! (`signal-safety(7)`). Everything is prepared before the fork.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use nix::libc::{self, c_char, c_int};
use rustix::process::WaitIdOptions;

use crate::agent::{MARK_VARIABLE, Mark};
use crate::process_table::Pid;
use crate::tracking_file;

/// What an agent is to be born with.
#[derive(Debug)]
pub struct BirthPlan<'a> {
    /// The program to execute.
    pub interpreter: &'a Path,
    /// Its arguments, the first of them its own name.
    pub arguments: &'a [OsString],
    /// Its environment, but for the mark.
    pub environment: &'a [(OsString, OsString)],
    /// Its mark, into which it writes its own number; none for a command.
    pub mark: Option<&'a Mark>,
    /// Its working folder.
    pub folder: &'a Path,
    /// The file that tracks it; none for a command that is waited for.
    pub pid_file: Option<&'a Path>,
    /// Its standard output and error.
    pub log: &'a OwnedFd,
    /// The signals that the caller ignores, a bit each; an agent ignores none.
    pub ignored_signals: u64,
    /// Does it live on when this program dies?
    pub bond: Bond,
}

/// What becomes of a child when its parent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bond {
    /// It lives on.
    None,
    /// The kernel kills it (`PR_SET_PDEATHSIG`): whoever supervises the parent
    /// starts another, which finds no agent in its way.
    Life,
}

/// A child that has become the agent; not reaped yet, so its number is its own.
#[derive(Debug)]
pub struct Newborn {
    /// Its number.
    pub pid: Pid,
    /// Readable once it is dead.
    pub pidfd: OwnedFd,
}

impl Newborn {
    /// Reaps it, once it is dead.
    #[must_use]
    pub fn reap(&self) -> Ending {
        self.wait(WaitIdOptions::empty()).unwrap_or(Ending::Unknown)
    }

    /// Reaps it if it is dead already; `None` while it lives.
    #[must_use]
    pub fn reap_if_dead(&self) -> Option<Ending> {
        self.wait(WaitIdOptions::NOHANG)
    }

    fn wait(&self, options: WaitIdOptions) -> Option<Ending> {
        use std::os::fd::AsFd as _;
        let waited = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(
                rustix::process::WaitId::PidFd(self.pidfd.as_fd()),
                WaitIdOptions::EXITED | options,
            )
        });
        match waited {
            Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ending::Exited(code),
                (_, Some(signal)) => Ending::Killed(signal),
                _ => Ending::Unknown,
            }),
            Ok(None) => None,
            Err(_) => Some(Ending::Unknown),
        }
    }

    /// Kills and reaps it, if it is not dead and reaped already; how it has ended.
    /// A child that has become another user (`sudo`) may not be killed, and is not
    /// waited for: `None` while it lives.
    #[must_use]
    pub fn kill_and_reap(&self) -> Option<Ending> {
        // Through the pidfd: whoever has reaped it, no stranger is hit.
        let sent = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        if sent == Err(rustix::io::Errno::PERM) {
            return self.reap_if_dead();
        }
        Some(self.reap())
    }
}

/// How a child has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Killed(i32),
    /// Nobody can tell any more.
    Unknown,
}

impl Ending {
    /// The exit code that says the same of the parent, as a shell counts.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Exited(code) => u8::try_from(code).unwrap_or(1),
            Self::Killed(signal) => u8::try_from(128 + signal).unwrap_or(1),
            Self::Unknown => 1,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(formatter, "exit status {code}"),
            Self::Killed(signal) => {
                let name = nix::sys::signal::Signal::try_from(*signal)
                    .map_or("an unknown signal", nix::sys::signal::Signal::as_str);
                write!(formatter, "killed by {name} (signal {signal})")
            }
            Self::Unknown => formatter.write_str("its exit status could not be read"),
        }
    }
}

/// What a child was about to do when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BirthStep {
    /// `setsid`.
    Session = 1,
    /// Standard streams.
    Streams,
    /// The working folder.
    Folder,
    /// Making, locking, writing or renaming the PID file.
    PidFile,
    /// The other descriptors.
    Descriptors,
    /// `execve`.
    Execute,
}

impl BirthStep {
    fn from_code(code: u8) -> Option<Self> {
        [
            Self::Session,
            Self::Streams,
            Self::Folder,
            Self::PidFile,
            Self::Descriptors,
            Self::Execute,
        ]
        .into_iter()
        .find(|step| *step as u8 == code)
    }
}

/// Why no agent was born.
#[derive(Debug)]
pub enum BirthError {
    /// An argument, a path or a variable holds a NUL byte.
    Nul,
    /// No process, pipe or pidfd was to be had.
    Resources(&'static str, io::Error),
    /// The child could not do what it had to do first.
    Child(BirthStep, io::Error),
}

impl fmt::Display for BirthError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nul => {
                formatter.write_str("a NUL byte in a path, an argument or the environment")
            }
            Self::Resources(what, error) => write!(formatter, "{what}: {error}"),
            Self::Child(step, error) => {
                let what = match step {
                    BirthStep::Session => "cannot start a new session",
                    BirthStep::Streams => "cannot set its standard streams",
                    BirthStep::Folder => "cannot enter the project folder",
                    BirthStep::PidFile => "cannot write the PID file",
                    BirthStep::Descriptors => "cannot close inherited descriptors",
                    BirthStep::Execute => "cannot execute the interpreter",
                };
                write!(formatter, "{what}: {error}")
            }
        }
    }
}

/// Everything that the child needs, allocated before the fork.
struct Prepared {
    interpreter: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// `NAME=value` of the mark, ended by NUL, for the child to complete; or
    /// null.
    mark: *mut u8,
    folder: CString,
    /// The PID file, and its name until it is complete.
    pid_file: Option<(CString, CString)>,
    null: OwnedFd,
    log: RawFd,
    report: RawFd,
    ignored_signals: u64,
    /// Whose death it is not to outlive.
    bound_to: Option<libc::pid_t>,
}

/// Forks and executes the agent. On success the child runs the interpreter, its
/// PID file names it, and only it holds the file's lock.
///
/// Must be called by a program with one thread, under the guard.
///
/// # Errors
/// What the parent or the child could not do; then no child is left. The PID
/// file may name a dead one that was killed.
pub fn give_birth(plan: &BirthPlan<'_>) -> Result<Newborn, BirthError> {
    if let Some(pid_file) = plan.pid_file {
        // What a child left that was killed in the middle of its birth.
        tracking_file::remove_plain(&tracking_file::beside(pid_file))
            .map_err(|error| resources("cannot make way for the PID file", error.into()))?;
    }
    let (mut reader, writer) =
        io::pipe().map_err(|error| resources("cannot make a pipe", error))?;
    let null =
        File::open("/dev/null").map_err(|error| resources("cannot open /dev/null", error))?;
    let environment: Vec<OsString> = plan
        .environment
        .iter()
        .map(|(name, value)| {
            let mut entry = name.clone();
            entry.push("=");
            entry.push(value);
            entry
        })
        .collect();
    let mut mark: Option<Vec<u8>> = plan.mark.map(|mark| {
        let mut entry = [MARK_VARIABLE, "="].concat().into_bytes();
        entry.extend_from_slice(mark.to_value().as_bytes());
        entry.push(0);
        entry
    });
    let prepared = Prepared {
        mark: mark.as_mut().map_or(ptr::null_mut(), Vec::as_mut_ptr),
        interpreter: c_string(plan.interpreter.as_os_str())?,
        arguments: c_strings(plan.arguments)?,
        environment: c_strings(&environment)?,
        folder: c_string(plan.folder.as_os_str())?,
        pid_file: plan
            .pid_file
            .map(|path| {
                let new = tracking_file::beside(path);
                Ok((c_string(path.as_os_str())?, c_string(new.as_os_str())?))
            })
            .transpose()?,
        null: null.into(),
        log: plan.log.as_raw_fd(),
        report: writer.as_raw_fd(),
        ignored_signals: plan.ignored_signals,
        bound_to: (plan.bond == Bond::Life).then(|| Pid::own().get()),
    };
    let arguments = pointers(&prepared.arguments);
    let mut environment = pointers(&prepared.environment);
    if !prepared.mark.is_null() {
        environment.insert(0, prepared.mark.cast_const().cast());
    }

    let pid = {
        let blocked =
            BlockedSignals::all().map_err(|error| resources("cannot block signals", error))?;
        // SAFETY: this program has one thread, so the child's copy of memory is
        // consistent; the child makes only async-signal-safe calls and never
        // returns from `become_agent`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: all pointers are into `prepared`, `mark`, `arguments` and
            // `environment`, which outlive the call; the lists end with null.
            unsafe { become_agent(&prepared, &arguments, &environment) }
        }
        let error = io::Error::last_os_error();
        drop(blocked);
        Pid::new(pid).ok_or_else(|| resources("cannot fork", error))?
    };
    drop(writer);

    let pidfd = match open_pidfd(pid) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            end_child(pid);
            return Err(resources("cannot open a pidfd (Linux 5.3 or newer)", error));
        }
    };
    // The pipe closes at the child's exec or death; before, it may report.
    let mut report = Vec::new();
    if let Err(error) = reader.read_to_end(&mut report) {
        end_child(pid);
        return Err(resources("cannot hear of the child", error));
    }
    if let [step, errno @ ..] = report.as_slice() {
        end_child(pid);
        let errno = <[u8; 4]>::try_from(errno).map_or(libc::EIO, i32::from_ne_bytes);
        let error = io::Error::from_raw_os_error(errno);
        return Err(match BirthStep::from_code(*step) {
            Some(step) => BirthError::Child(step, error),
            None => resources("unknown step", error),
        });
    }
    Ok(Newborn { pid, pidfd })
}

fn resources(what: &'static str, error: io::Error) -> BirthError {
    BirthError::Resources(what, error)
}

fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let raw = rustix::process::Pid::from_raw(pid.get()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(
        raw,
        rustix::process::PidfdFlags::empty(),
    )?)
}

/// Ends and reaps our own child. Its number is safe to use: an unreaped child
/// keeps it.
fn end_child(pid: Pid) {
    // SAFETY: plain system calls on a number that is our child's until the
    // second one returns.
    unsafe {
        libc::kill(pid.get(), libc::SIGKILL);
        while libc::waitpid(pid.get(), ptr::null_mut(), 0) == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}

/// Marks every descriptor but the standard streams close-on-exec: what this
/// program executes next inherits nothing else.
///
/// # Errors
/// Those of `close_range(2)` and `fcntl(2)`.
pub fn close_others_on_exec() -> io::Result<()> {
    // SAFETY: plain system calls; descriptors stay open and owned as they are.
    if unsafe { mark_close_on_exec() } {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Undoes what a caller may have done to signals that a program of ours relies
/// on: an ignored SIGCHLD would take away the agent's exit status. And a limit
/// on file sizes is an error to report, not an end (`signal(7)`, SIGXFSZ).
pub fn settle_signals() {
    // SAFETY: plain system calls with constant dispositions.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// The mask of all signals, until dropped: a handler or a default action must
/// not run in the child before it is the agent.
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    fn all() -> io::Result<Self> {
        // SAFETY: both sets are valid for writing; `sigfillset` initialises the
        // first and `pthread_sigmask` the second.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            match libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) {
                0 => Ok(Self { before }),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by `pthread_sigmask`.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut());
        }
    }
}

fn c_string(text: &OsStr) -> Result<CString, BirthError> {
    CString::new(text.as_bytes()).map_err(|_| BirthError::Nul)
}

fn c_strings(texts: &[OsString]) -> Result<Vec<CString>, BirthError> {
    texts.iter().map(|text| c_string(text)).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// The child's whole life before the agent's.
///
/// # Safety
/// To be called in a freshly forked child, with pointer lists that end with
/// null. Allocates nothing and calls only async-signal-safe functions.
unsafe fn become_agent(
    prepared: &Prepared,
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> ! {
    // SAFETY: the caller's promise; every descriptor and string is alive.
    unsafe {
        reset_signals(prepared.ignored_signals);
        if let Some(parent) = prepared.bound_to {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // It may have died before the call.
            if libc::getppid() != parent {
                libc::_exit(127);
            }
        }
        let step = if libc::setsid() == -1 {
            BirthStep::Session
        } else if !set_streams(prepared) {
            BirthStep::Streams
        } else if libc::chdir(prepared.folder.as_ptr()) == -1 {
            BirthStep::Folder
        } else if !mark_close_on_exec() {
            BirthStep::Descriptors
        } else if !write_pid_file(prepared) {
            BirthStep::PidFile
        } else {
            if !prepared.mark.is_null() {
                complete_mark(prepared.mark);
            }
            unblock_signals();
            libc::execve(
                prepared.interpreter.as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
            );
            BirthStep::Execute
        };
        let errno = (*libc::__errno_location()).to_ne_bytes();
        if step == BirthStep::Execute
            && let Some((pid_file, _)) = &prepared.pid_file
        {
            // Ours since a moment ago, and about to name nobody.
            libc::unlink(pid_file.as_ptr());
        }
        let report = [step as u8, errno[0], errno[1], errno[2], errno[3]];
        libc::write(prepared.report, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// Writes the child's own number into its mark, in 8 hexadecimal digits.
///
/// # Safety
/// `mark` points to `MARK_VARIABLE=` and a mark's value.
unsafe fn complete_mark(mark: *mut u8) {
    // SAFETY: the caller's promise: the 8 digits are within that string.
    unsafe {
        let digits = mark.add(MARK_VARIABLE.len() + 1 + Mark::ROOT_AT);
        let number = libc::getpid().unsigned_abs();
        for at in 0_u8..8 {
            let digit = number >> (28 - 4 * u32::from(at)) & 0xf;
            *digits.add(usize::from(at)) = b"0123456789abcdef"[digit as usize];
        }
    }
}

/// A program started in the background passes on an ignored SIGINT, `nohup` an
/// ignored SIGHUP, and this program its own ignored SIGPIPE. (What is caught,
/// `exec` resets.)
unsafe fn reset_signals(ignored: u64) {
    // SAFETY: a zeroed `sigaction` is the default action with an empty mask.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            let pipe = signal == libc::SIGPIPE;
            if pipe || ignored & (1 << (signal - 1)) != 0 {
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
        }
    }
}

unsafe fn unblock_signals() {
    // SAFETY: `none` is initialised by `sigemptyset`.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

unsafe fn set_streams(prepared: &Prepared) -> bool {
    // SAFETY: plain system calls on open descriptors. The sources are above 2:
    // the Rust runtime opens /dev/null for streams that were closed.
    unsafe {
        libc::dup2(prepared.null.as_raw_fd(), 0) != -1
            && libc::dup2(prepared.log, 1) != -1
            && libc::dup2(prepared.log, 2) != -1
    }
}

/// cron's descriptors and `flock`'s would otherwise live as long as the agent.
unsafe fn mark_close_on_exec() -> bool {
    // SAFETY: plain system calls; nothing is closed here.
    unsafe {
        let all = libc::c_uint::MAX;
        let flags = libc::c_long::from(libc::CLOSE_RANGE_CLOEXEC);
        // By number: the C library's wrapper is newer than the kernel's call.
        if libc::syscall(libc::SYS_close_range, 3, all, flags) == 0 {
            return true;
        }
        // Before Linux 5.11: one by one.
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == -1 {
            return false;
        }
        let end = c_int::try_from(limit.rlim_cur.min(1 << 20)).unwrap_or(1 << 20);
        for descriptor in 3..end {
            let flags = libc::fcntl(descriptor, libc::F_GETFD);
            if flags != -1 && libc::fcntl(descriptor, libc::F_SETFD, flags | libc::FD_CLOEXEC) == -1
            {
                return false;
            }
        }
        true
    }
}

/// Makes the PID file beside its name, locks it, writes the number, renames it
/// into place, and keeps the one descriptor open through `exec`: the lock is
/// then the agent's, and nothing can take it away.
unsafe fn write_pid_file(prepared: &Prepared) -> bool {
    let Some((pid_file, new)) = &prepared.pid_file else {
        return true;
    };
    // SAFETY: plain system calls on our own strings and descriptor.
    unsafe {
        let new = new.as_ptr();
        // No O_CLOEXEC: this one is to survive.
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let file = libc::open(new, flags, 0o644);
        if file == -1 {
            return false;
        }
        let mut digits = [0; 12];
        let number = decimal(libc::getpid(), &mut digits);
        let length = number.len();
        let written = libc::fchmod(file, 0o644) == 0
            && libc::flock(file, libc::LOCK_EX | libc::LOCK_NB) == 0
            && usize::try_from(libc::write(file, number.as_ptr().cast(), length)) == Ok(length)
            && libc::rename(new, pid_file.as_ptr()) == 0;
        if !written {
            let errno = *libc::__errno_location();
            libc::unlink(new);
            // A write may end short without any errno: the disk is full.
            *libc::__errno_location() = if errno == 0 { libc::ENOSPC } else { errno };
        }
        written
    }
}

/// The number and a newline, in decimal, without allocating.
fn decimal(number: c_int, buffer: &mut [u8; 12]) -> &[u8] {
    let mut at = buffer.len() - 1;
    buffer[at] = b'\n';
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        buffer[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            return &buffer[at..];
        }
    }
}

/// Takes over a descriptor that this program was started with, by its number.
///
/// # Errors
/// When no such descriptor is open.
pub fn inherited_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call that fails on a number that is not open.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the duplicate is open, new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for (number, expected) in [(1, "1\n"), (10, "10\n"), (4_194_303, "4194303\n")] {
            assert_eq!(decimal(number, &mut [0; 12]), expected.as_bytes());
        }
        assert_eq!(decimal(i32::MAX, &mut [0; 12]), b"2147483647\n");
    }
}
