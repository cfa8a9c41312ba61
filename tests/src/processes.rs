//! An own reading of `/proc`, so that the tests do not trust what they test.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process, as `/proc` showed it at one moment.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its parent's number.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// Its session.
    pub session: u32,
    /// `R`, `S`, `Z` and so on.
    pub state: char,
    /// Its command line; empty for a zombie and in the middle of an exec.
    pub argv: Vec<OsString>,
    /// The file that it executes, if that may be seen.
    pub executable: Option<PathBuf>,
    /// Its environment as it was at its last exec; empty if it may not be read.
    pub environ: Vec<OsString>,
}

impl Process {
    /// Neither a zombie nor dead.
    #[must_use]
    pub const fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// The value of a variable in its environment.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environ.iter().find_map(|entry| {
            entry
                .as_bytes()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")
                .map(OsStr::from_bytes)
        })
    }

    /// Is this, by its command line, a Python interpreter that runs the script
    /// `STEM.py` or `STEM_….py` in the given mode (any running mode if none is given)?
    #[must_use]
    pub fn runs_agent(&self, stem: &str, mode: Option<&str>) -> bool {
        let mut words = self.argv.iter();
        let Some(interpreter) = words.next().and_then(|word| Path::new(word).file_name()) else {
            return false;
        };
        if !interpreter.as_bytes().starts_with(b"python") {
            return false;
        }
        let Some(at) = self.argv.iter().position(|word| {
            Path::new(word)
                .file_name()
                .and_then(OsStr::to_str)
                .and_then(|name| name.strip_prefix(stem)?.strip_suffix(".py"))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        }) else {
            return false;
        };
        let found = self.argv.get(at + 1).and_then(|word| word.to_str());
        match mode {
            Some(mode) => found == Some(mode),
            None => matches!(found, Some("dev" | "start" | "connect")),
        }
    }

    /// Does it execute one of the programs?
    #[must_use]
    pub fn is_program(&self) -> bool {
        let name = self.executable.as_deref().and_then(Path::file_name);
        crate::Program::ALL
            .iter()
            .any(|program| name == Some(OsStr::new(program.name())))
    }

    /// A line for a message: number, parent, state and command line.
    #[must_use]
    pub fn describe(&self) -> String {
        let words: Vec<_> = self
            .argv
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        format!(
            "PID {} (parent {}, session {}, state {}): {}",
            self.pid,
            self.parent,
            self.session,
            self.state,
            words.join(" ")
        )
    }
}

/// Every process that `/proc` shows now.
#[must_use]
pub fn all_processes() -> Vec<Process> {
    numbers().filter_map(process).collect()
}

/// Every process whose command line (`cmdline`) or environment (`environ`)
/// contains this text; on a machine with thousands of processes much cheaper
/// than [`all_processes`].
pub(crate) fn processes_with(file: &str, text: &str) -> Vec<Process> {
    numbers()
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/{file}"))
                .is_ok_and(|content| String::from_utf8_lossy(&content).contains(text))
        })
        .filter_map(process)
        .collect()
}

fn numbers() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .expect("/proc can be read")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// One process, if it exists.
#[must_use]
pub fn process(pid: u32) -> Option<Process> {
    let folder = Path::new("/proc").join(pid.to_string());
    let stat = std::fs::read(folder.join("stat")).ok()?;
    // The second field is the command's name in brackets and may hold anything.
    let rest = &stat[stat.iter().rposition(|&byte| byte == b')')? + 1..];
    let rest = std::str::from_utf8(rest).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    Some(Process {
        pid,
        parent,
        group,
        session,
        state,
        argv: words(&folder.join("cmdline")),
        executable: std::fs::read_link(folder.join("exe")).ok(),
        environ: words(&folder.join("environ")),
    })
}

/// Does a process of this number live (a zombie does not)?
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    process(pid).is_some_and(|process| process.lives())
}

fn words(file: &Path) -> Vec<OsString> {
    let Ok(bytes) = std::fs::read(file) else {
        return Vec::new();
    };
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes
        .split(|&byte| byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect()
}

/// Signals a process through a pidfd, after `proof` has held for it *after* the
/// pidfd was opened; waits for its death if the signal is KILL. Says whether
/// the signal was sent.
pub(crate) fn signal_proven(
    pid: u32,
    signal: Signal,
    proof: impl FnOnce(&Process) -> bool,
) -> bool {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let Ok(pidfd) = pidfd_open(number, PidfdFlags::empty()) else {
        return false;
    };
    if !process(pid).is_some_and(|process| process.lives() && proof(&process)) {
        return false;
    }
    if pidfd_send_signal(&pidfd, signal).is_err() {
        return false;
    }
    if signal == Signal::KILL {
        let _ = crate::eventually(Duration::from_secs(10), || !is_alive(pid));
    }
    true
}
