//! A voice agent for the tests that start thousands: called as an interpreter
//! is (`python3 SCRIPT dev`), it behaves as `agents/agent.py` does, of which it
//! knows a part, and runs its first instruction a millisecond after its exec
//! instead of the thirty that Python takes. So an overlap of two agents that
//! lasts a few milliseconds is seen as well.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "test code: a panic is its verdict"
)]

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, id};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};

/// Which child this is; unset in the agent itself.
const ROLE: &str = "TEST_AGENT_ROLE";

/// What it does not know must not be asked of it in vain.
const KNOWN: [&str; 6] = [
    "TEST_AGENT_OVERLAP_LOCK",
    "TEST_AGENT_OVERLAP_LOG",
    "TEST_AGENT_STARTS_LOG",
    "TEST_AGENT_CHILDREN",
    "TEST_AGENT_CHILDREN_LOG",
    ROLE,
];

fn main() -> ExitCode {
    if let Some(role) = env::var_os(ROLE) {
        child(role.to_str().expect("a role"));
    }
    let script = env::args_os().nth(1).unwrap_or_default();
    if !Path::new(&script).is_file() {
        eprintln!("can't open file {}", script.display());
        return ExitCode::from(2);
    }
    let lock = take_overlap_locks();
    append("STARTS_LOG", &id().to_string());
    let mode = env::args_os().nth(2).unwrap_or_default();
    if !["dev", "start", "connect"]
        .iter()
        .any(|known| mode == *known)
    {
        return ExitCode::from(2);
    }
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        assert!(
            !name.starts_with("TEST_AGENT_") || KNOWN.contains(&&*name),
            "{name} is for agent.py"
        );
    }
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block().expect("block signals");
    say("starting worker");
    start_children(&lock);
    say("2026-11-24 06:17:27,074 - INFO livekit.agents - registered worker {\"id\": \"AW_test\"}");
    ends.wait().expect("a signal");
    say("good-bye");
    ExitCode::SUCCESS
}

/// As `take_overlap_locks` in `agents/agent.py`.
fn take_overlap_locks() -> File {
    let path = variable("OVERLAP_LOCK");
    let lock = open_lock(&path);
    if let Err(holder) = free_of_the_living(&lock, &path) {
        let said = format!("{} began while the lock was held by {holder}", id());
        append("OVERLAP_LOG", &said);
    } else {
        lock.set_len(0).expect("empty the lock");
        lock.write_all_at(format!("{}\n", id()).as_bytes(), 0)
            .expect("write the lock");
    }
    let mut workers = path;
    workers.push(".workers");
    if let Err(worker) = free_of_the_living(&open_lock(&workers), &workers) {
        let said = format!("{} began while a worker lived: {worker}", id());
        append("OVERLAP_LOG", &said);
    }
    lock
}

/// Locks it. A process that has been killed and has lost its memory runs no more
/// instruction, but holds its locks for an instant longer: it is waited for.
///
/// # Errors
/// A living process that has the file open.
fn free_of_the_living(lock: &File, path: &OsStr) -> Result<(), String> {
    let path = Path::new(path).canonicalize().expect("the lock's path");
    let began = Instant::now();
    while flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let holders = processes().filter(|&pid| pid != id() && has_open(pid, &path));
        for holder in holders {
            let command = std::fs::read(format!("/proc/{holder}/cmdline")).unwrap_or_default();
            if !command.is_empty() {
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                return Err(format!("PID {holder}, {command}"));
            }
        }
        if began.elapsed() > Duration::from_secs(5) {
            return Err("somebody who is not seen here".to_owned());
        }
    }
    Ok(())
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn has_open(pid: u32, path: &Path) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let mut paths = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    paths.any(|open| open == path)
}

fn open_lock(path: &OsStr) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("an overlap lock")
}

fn variable(name: &str) -> OsString {
    env::var_os(format!("TEST_AGENT_{name}")).unwrap_or_default()
}

fn append(log: &str, line: &str) {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(variable(log))
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
        .expect("a log of the test");
}

/// To a log that may be full or closed, as an agent's.
fn say(line: &str) {
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

/// `CHILDREN`: words separated by commas; the PIDs go to `CHILDREN_LOG`.
fn start_children(lock: &File) {
    let kinds = variable("CHILDREN");
    let kinds = kinds.to_str().expect("words");
    for kind in kinds.split(',').filter(|kind| !kind.is_empty()) {
        // What a fork inherits: the agent's lock.
        fcntl_setfd(lock, FdFlags::empty()).expect("the lock");
        let (arrived, arrive) = std::io::pipe().expect("a pipe");
        start(kind, arrive);
        let mut pid = String::new();
        BufReader::new(arrived)
            .read_line(&mut pid)
            .expect("the child arrives");
        append("CHILDREN_LOG", &format!("{kind} {}", pid.trim()));
    }
}

/// With the command line and the environment of this process, as if forked.
#[expect(
    clippy::zombie_processes,
    reason = "an agent waits for none of its children"
)]
fn start(role: &str, arrive: PipeWriter) {
    let mut arguments = env::args_os();
    Command::new("/proc/self/exe")
        .arg0(arguments.next().expect("a name"))
        .args(arguments)
        .env(ROLE, role)
        .stdin(arrive)
        .spawn()
        .expect("a child");
}

/// Says who it is on its standard input, and lives until it is killed.
fn child(role: &str) -> ! {
    let is_deaf = match role {
        "fork" => false,
        "grandchild" | "deaf" => true,
        other => panic!("TEST_AGENT_CHILDREN: {other} is for agent.py"),
    };
    let mut deaf = SigSet::empty();
    deaf.add(Signal::SIGUSR1);
    if is_deaf {
        deaf.add(Signal::SIGTERM);
    }
    // The agent blocks others, and what it starts inherits that.
    deaf.thread_set_mask().expect("block signals");
    let arrive = std::io::stdin();
    if role == "grandchild" {
        let arrive = rustix::io::dup(&arrive).expect("the pipe");
        start("deaf", arrive.into());
    } else {
        rustix::io::write(&arrive, format!("{}\n", id()).as_bytes()).expect("the parent");
    }
    loop {
        std::thread::park();
    }
}
