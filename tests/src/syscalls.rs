//! Visits the system calls of a program one by one: names them, lets one fail,
//! or kills the program just before one takes effect.
//!
//! Why a tracer of our own and not `strace --inject`: strace counts each process
//! on its own, cannot let the new-born child wait while its parent goes on (or
//! the other way round), and stops tracing at the first exec, which is that of
//! the program itself. Here the program and its children before their exec are
//! stopped at every call; which of the two goes first after a fork is chosen.
//!
//! Killed before call N is the same as killed right after call N - 1: what a
//! process changes in between is its own memory, which dies with it. So one kill
//! at the entry of every call shows both "before" and "after" each of them. At
//! the entry stop a SIGKILL takes the call back; the kernel does not begin it.

pub mod sweep;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

/// One of the processes that are traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// The program itself.
    Program,
    /// A child of it, until it execs: 1 is the one that was forked first.
    Child(usize),
}

impl std::fmt::Display for Who {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Program => write!(out, "program"),
            Self::Child(number) => write!(out, "child{number}"),
        }
    }
}

impl std::str::FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "program" {
            return Ok(Self::Program);
        }
        text.strip_prefix("child")
            .and_then(|number| number.parse().ok())
            .map(Self::Child)
            .ok_or_else(|| format!("{text:?} is neither `program` nor `childN`"))
    }
}

/// A place in a run: the N-th call of a name by one of its processes.
///
/// By name, because a run differs from the next one here and there by a poll or
/// a read more; counted over all calls, everything after it would be another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point {
    /// Whose call.
    pub who: Who,
    /// Which call.
    pub name: &'static str,
    /// The how-manieth of this name, from 1: of the program's since its main
    /// began, of a child's since its birth.
    pub number: usize,
}

/// A system call that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Where.
    pub point: Point,
    /// The how-manieth call of this process, whatever its name.
    pub position: usize,
    /// The path or the open file that it is about, as far as it has one.
    pub about: String,
    /// How many processes were being traced when it was made.
    pub company: usize,
    /// An open that may make a file, or write to one.
    pub access: Access,
}

/// Calls that change nothing but the process that makes them, or look.
const WITHOUT_EFFECT: [&str; 28] = [
    "read",
    "pread64",
    "close",
    "lseek",
    "fstat",
    "newfstatat",
    "statx",
    "stat",
    "lstat",
    "readlink",
    "readlinkat",
    "getdents64",
    "fcntl",
    "ioctl",
    "mmap",
    "munmap",
    "mprotect",
    "brk",
    "madvise",
    "getrandom",
    "poll",
    "ppoll",
    "rt_sigprocmask",
    "rt_sigaction",
    "getpid",
    "geteuid",
    "pidfd_open",
    "sigaltstack",
];

impl Call {
    /// May it change what other processes see? A kill before a call that does not
    /// is the same as one before the next.
    #[must_use]
    pub fn has_effect(&self) -> bool {
        match self.point.name {
            "open" | "openat" => self.access != Access::Reads,
            // What it says.
            "write" => !self.about.contains("(deleted)"),
            name => !WITHOUT_EFFECT.contains(&name),
        }
    }

    /// Where it is and what it is about.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{} number {} (call {}) of the {}: {}({})",
            self.point.name,
            self.point.number,
            self.position,
            self.point.who,
            self.point.name,
            self.about
        )
    }
}

/// What an open is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It is no open, or one that only reads.
    Reads,
    /// It writes to a file that is there.
    Writes,
    /// It makes the file if it is not there.
    Makes,
}

/// Where the counting begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the first call after the exec.
    Exec,
    /// With the first call after the Rust runtime has set up the main thread's
    /// signal stack, which is the last thing it does before it calls `main`.
    Main,
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victims {
    /// The program alone; its child goes on.
    Program,
    /// The child alone; the program goes on.
    Child,
    /// Both at once.
    Both,
}

/// Who goes first after a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Both run as the kernel lets them.
    Free,
    /// The child waits at its birth until the program has come to the point,
    /// or to a call in which it may be waiting for the child.
    ProgramFirst,
    /// The program waits in its fork until the child has come to the point,
    /// has execed, or makes a call in which it may be waiting for the program.
    ChildFirst,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL before the call takes effect.
    Kill(Victims),
    /// SIGINT to the program before the call takes effect, as by Ctrl-C.
    Interrupt,
    /// The call is not made and reports this error. (A `close` is made all the
    /// same: on Linux the descriptor is gone whatever `close` reports.)
    Fail(Errno),
    /// The same, and so does every later call of this name by this process.
    FailFromThenOn(Errno),
    /// A read or write of at most one byte: short, but no error.
    Short,
}

/// One run: nothing, or one fault at one point.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Where the counting begins.
    pub from: Begin,
    /// The fault.
    pub fault: Option<(Point, Fault)>,
    /// Who goes first after a fork.
    pub order: Order,
    /// When the run counts as hanging and everything in it is killed.
    pub deadline: Duration,
}

impl Plan {
    /// Only looks.
    #[must_use]
    pub const fn look() -> Self {
        Self {
            from: Begin::Main,
            fault: None,
            order: Order::Free,
            deadline: Duration::from_secs(30),
        }
    }

    /// With a fault at a point.
    #[must_use]
    pub const fn with(point: Point, fault: Fault, order: Order) -> Self {
        Self {
            fault: Some((point, fault)),
            order,
            ..Self::look()
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With an exit code.
    Exit(i32),
    /// By a signal.
    Signal(Signal),
}

/// What was seen in a run.
#[derive(Debug)]
pub struct Run {
    /// Every call that was counted, up to the fault.
    pub calls: Vec<Call>,
    /// The call at which the fault happened; none if it never came to it.
    pub reached: Option<Call>,
    /// How the program ended.
    pub end: End,
    /// Did it have to be killed because the deadline had passed?
    pub hung: bool,
    /// What it wrote, stdout and stderr together.
    pub output: String,
    /// PIDs of children that came to their exec.
    pub execed: Vec<i32>,
}

/// Can system calls be visited on this machine? If not: why.
///
/// # Errors
/// The reason, for a line `left out: …`.
pub fn available() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("system calls are visited on x86_64 only".to_owned());
    }
    let run = run(
        &Command::new("/bin/true"),
        &Plan {
            from: Begin::Exec,
            ..Plan::look()
        },
    )?;
    if run.calls.is_empty() {
        return Err("ptrace shows no system calls".to_owned());
    }
    Ok(())
}

/// Runs a command under the tracer; of the command its program, arguments,
/// explicit environment and folder are taken (the environment is otherwise
/// empty, stdin is empty, the output goes to [`Run::output`]).
///
/// # Errors
/// If tracing is not permitted here.
pub fn run(command: &Command, plan: &Plan) -> Result<Run, String> {
    run_with(command, plan, &|| {})
}

/// Like [`run`]; after a kill, `meanwhile` is called while whoever survives it
/// still stands before its call: here a rival may come in.
///
/// # Errors
/// If tracing is not permitted here.
pub fn run_with(
    command: &Command,
    plan: &Plan,
    meanwhile: &(dyn Fn() + Sync),
) -> Result<Run, String> {
    // A thread of its own: only the thread that seized a process may control
    // it, and `waitpid` shall see no other child of this test.
    std::thread::scope(|scope| {
        scope
            .spawn(|| Tracer::run(command, plan, meanwhile))
            .join()
            .expect("the tracer's thread")
    })
}

/// Kills what is left of a run when its deadline has passed.
struct Watchdog {
    hung: Arc<AtomicBool>,
    traced: Arc<Mutex<Vec<OwnedFd>>>,
    finish: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    fn new(deadline: Duration) -> Self {
        let hung = Arc::new(AtomicBool::new(false));
        let traced = Arc::new(Mutex::new(Vec::<OwnedFd>::new()));
        let (finish, finished) = channel();
        let thread = std::thread::spawn({
            let hung = Arc::clone(&hung);
            let traced = Arc::clone(&traced);
            move || {
                if finished.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
                    hung.store(true, Ordering::SeqCst);
                    for pidfd in traced.lock().expect("the traced processes").iter() {
                        let _ = pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
                    }
                }
            }
        });
        Self {
            hung,
            traced,
            finish,
            thread,
        }
    }

    fn watch(&self, pid: Pid) {
        // A process that is stopped for us, or dead and not yet waited for: its
        // number cannot have been given to another one.
        if let Some(number) = rustix::process::Pid::from_raw(pid.as_raw())
            && let Ok(pidfd) = pidfd_open(number, PidfdFlags::empty())
        {
            let mut traced = self.traced.lock().expect("the traced processes");
            if self.hung.load(Ordering::SeqCst) {
                let _ = pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
            traced.push(pidfd);
        }
    }

    fn finish(self) -> bool {
        let _ = self.finish.send(());
        self.thread.join().expect("the watchdog");
        self.hung.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// On its way to the next stop.
    Runs,
    /// Stopped, waiting for its turn.
    Held,
}

#[derive(Debug, Clone, Copy)]
enum AtExit {
    /// Report this error.
    Fail(Errno),
    /// Give back the count that was asked for: a call leaves the registers of
    /// its arguments as they were, and compiled code relies on it.
    RestoreCount(u64),
}

struct Tracee {
    pid: Pid,
    who: Who,
    state: State,
    counting: bool,
    /// What to do at the exit stop of the call that it is in.
    at_exit: Option<AtExit>,
    /// It is in a call in which it may be waiting for another process.
    waits: bool,
    /// The next exit stop ends the runtime's set-up.
    main_begins: bool,
}

struct Tracer<'plan> {
    plan: &'plan Plan,
    meanwhile: &'plan (dyn Fn() + Sync),
    root: Pid,
    tracees: Vec<Tracee>,
    /// Children that stopped for the first time before their parent's fork was seen.
    early: Vec<Pid>,
    counters: HashMap<(Who, &'static str), usize>,
    children: usize,
    calls: Vec<Call>,
    reached: Option<Call>,
    end: Option<End>,
    execed: Vec<i32>,
    started: bool,
    watchdog: Watchdog,
}

const OPTIONS: ptrace::Options = ptrace::Options::PTRACE_O_TRACESYSGOOD
    .union(ptrace::Options::PTRACE_O_TRACEEXEC)
    .union(ptrace::Options::PTRACE_O_TRACEFORK)
    .union(ptrace::Options::PTRACE_O_TRACEVFORK)
    .union(ptrace::Options::PTRACE_O_TRACECLONE)
    .union(ptrace::Options::PTRACE_O_EXITKILL);

/// Says that it is there, waits to be seized, then becomes the program. That it
/// is there matters: `spawn` returns while the shell's own exec is going on, and
/// the first exec to be seen must be the program's.
const GATE: &str = r#"echo >&0; read -r _; exec "$0" "$@" </dev/null"#;

impl<'plan> Tracer<'plan> {
    fn run(
        command: &Command,
        plan: &'plan Plan,
        meanwhile: &'plan (dyn Fn() + Sync),
    ) -> Result<Run, String> {
        let mut output = tempfile::tempfile().expect("a file for the output");
        let mut shell = Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(GATE)
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear();
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        let (mut gate, inside) = UnixStream::pair().expect("the gate");
        #[expect(
            clippy::zombie_processes,
            reason = "it is waited for together with its children, in `step`"
        )]
        let mut shell = shell
            .stdin(OwnedFd::from(inside))
            .stdout(output.try_clone().expect("the output file"))
            .stderr(output.try_clone().expect("the output file"))
            .spawn()
            .expect("/bin/sh");
        gate.read_exact(&mut [0]).expect("the shell arrives");
        let root = Pid::from_raw(i32::try_from(shell.id()).expect("a PID"));
        if let Err(error) = ptrace::seize(root, OPTIONS) {
            let _ = shell.kill();
            let _ = shell.wait();
            return Err(format!("tracing is not permitted: {error}"));
        }
        let watchdog = Watchdog::new(plan.deadline);
        watchdog.watch(root);
        gate.write_all(b"\n").expect("open the gate");
        let mut tracer = Self {
            plan,
            meanwhile,
            root,
            tracees: vec![Tracee::new(root, Who::Program)],
            early: Vec::new(),
            counters: HashMap::new(),
            children: 0,
            calls: Vec::new(),
            reached: None,
            end: None,
            execed: Vec::new(),
            started: false,
            watchdog,
        };
        while tracer.end.is_none() || !tracer.tracees.is_empty() {
            tracer.step();
        }
        let mut said = Vec::new();
        output.seek(SeekFrom::Start(0)).expect("rewind the output");
        output.read_to_end(&mut said).expect("read the output");
        Ok(Run {
            calls: tracer.calls,
            reached: tracer.reached,
            end: tracer.end.expect("the program's end"),
            hung: tracer.watchdog.finish(),
            output: String::from_utf8_lossy(&said).into_owned(),
            execed: tracer.execed,
        })
    }

    /// Waits for one thing to happen and deals with it.
    fn step(&mut self) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        match waitpid(None, Some(flags)) {
            Ok(WaitStatus::Exited(pid, code)) => self.ended(pid, End::Exit(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => self.ended(pid, End::Signal(signal)),
            Ok(WaitStatus::PtraceEvent(pid, _, event)) => self.event(pid, event),
            Ok(WaitStatus::PtraceSyscall(pid)) => self.syscall(pid),
            Ok(WaitStatus::Stopped(pid, signal)) => self.resume(pid, Some(signal)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => panic!("waitpid for the traced processes: {error}"),
        }
    }

    fn find(&mut self, pid: Pid) -> Option<&mut Tracee> {
        self.tracees.iter_mut().find(|tracee| tracee.pid == pid)
    }

    /// Lets a stopped process go on; to its next call while that is of interest.
    fn resume(&mut self, pid: Pid, signal: Option<Signal>) {
        let finished = self.reached.is_some()
            && !matches!(self.plan.fault, Some((_, Fault::FailFromThenOn(_))));
        let started = self.started;
        let Some(tracee) = self.find(pid) else {
            return;
        };
        tracee.state = State::Runs;
        // ESRCH: it was killed meanwhile; its end will be reported.
        let _ = if !started || (finished && tracee.at_exit.is_none()) {
            ptrace::cont(pid, signal)
        } else {
            ptrace::syscall(pid, signal)
        };
    }

    fn release_held(&mut self) {
        let held: Vec<Pid> = self
            .tracees
            .iter()
            .filter(|tracee| tracee.state == State::Held)
            .map(|tracee| tracee.pid)
            .collect();
        for pid in held {
            self.resume(pid, None);
        }
    }

    fn ended(&mut self, pid: Pid, end: End) {
        if pid == self.root {
            self.end = Some(end);
        }
        self.early.retain(|early| *early != pid);
        self.tracees.retain(|tracee| tracee.pid != pid);
        self.release_held();
    }

    fn event(&mut self, pid: Pid, event: i32) {
        match event {
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                self.forked(pid, event == libc::PTRACE_EVENT_FORK);
            }
            libc::PTRACE_EVENT_EXEC if pid == self.root => {
                if !self.started {
                    self.started = true;
                    let counting = self.plan.from == Begin::Exec;
                    self.find(pid).expect("the program").counting = counting;
                }
                self.resume(pid, None);
            }
            libc::PTRACE_EVENT_EXEC => {
                // The child has become something else: let it go for good.
                let _ = ptrace::detach(pid, None);
                self.execed.push(pid.as_raw());
                self.tracees.retain(|tracee| tracee.pid != pid);
                self.release_held();
            }
            libc::PTRACE_EVENT_STOP => match self.find(pid) {
                None => self.early.push(pid),
                Some(tracee) if tracee.state == State::Held => {}
                Some(_) => self.begin_or_hold(pid),
            },
            _ => self.resume(pid, None),
        }
    }

    fn forked(&mut self, parent: Pid, may_hold: bool) {
        let Ok(child) = ptrace::getevent(parent) else {
            return;
        };
        let child = Pid::from_raw(i32::try_from(child).expect("a PID"));
        let thread = is_thread_of(child, self.root);
        let who = if thread {
            Who::Program
        } else {
            self.children += 1;
            Who::Child(self.children)
        };
        self.watchdog.watch(child);
        let mut tracee = Tracee::new(child, who);
        tracee.counting = self.find(parent).is_some_and(|parent| parent.counting);
        self.tracees.push(tracee);
        if self.early.contains(&child) {
            self.early.retain(|early| *early != child);
            self.begin_or_hold(child);
        }
        let holds =
            may_hold && !thread && self.plan.order == Order::ChildFirst && self.reached.is_none();
        if holds {
            self.find(parent).expect("the parent").state = State::Held;
        } else {
            self.resume(parent, None);
        }
    }

    /// The first stop of a new child: does it wait for its parent?
    fn begin_or_hold(&mut self, pid: Pid) {
        let holds = self.plan.order == Order::ProgramFirst
            && self.reached.is_none()
            && self
                .tracees
                .iter()
                .any(|tracee| tracee.who == Who::Program && !tracee.waits);
        let tracee = self.find(pid).expect("a new child");
        if holds && tracee.who != Who::Program {
            tracee.state = State::Held;
        } else {
            self.resume(pid, None);
        }
    }

    fn syscall(&mut self, pid: Pid) {
        let is_entry =
            ptrace::syscall_info(pid).is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY);
        let from = self.plan.from;
        let Some(tracee) = self.find(pid) else {
            return;
        };
        if !is_entry {
            let _ = match tracee.at_exit.take() {
                Some(AtExit::Fail(errno)) => Registers::set_result(pid, errno),
                Some(AtExit::RestoreCount(count)) => Registers::set_count(pid, count),
                None => Ok(()),
            };
            tracee.waits = false;
            if std::mem::take(&mut tracee.main_begins) {
                tracee.counting = true;
            }
            self.resume(pid, None);
            return;
        }
        let Ok(registers) = Registers::of(pid) else {
            return;
        };
        if !tracee.counting {
            tracee.main_begins = tracee.who == Who::Program
                && from == Begin::Main
                && registers.call() == libc::SYS_sigaltstack
                && registers.argument(0) != 0;
            self.resume(pid, None);
            return;
        }
        let who = tracee.who;
        self.counted(pid, who, &registers);
    }

    fn counted(&mut self, pid: Pid, who: Who, registers: &Registers) {
        let name = name(registers.call());
        let mut count = |name| {
            let number = self.counters.entry((who, name)).or_default();
            *number += 1;
            *number
        };
        let position = count("");
        let number = count(name);
        let point = Point { who, name, number };
        let waits = may_block(name);
        let here = self.plan.fault.filter(|(at, _)| *at == point);
        let call = Call {
            point,
            position,
            about: if here.is_some() || self.plan.fault.is_none() {
                about(pid, name, registers)
            } else {
                String::new()
            },
            company: self.tracees.len(),
            access: access(name, registers),
        };
        if self.reached.is_none() {
            self.calls.push(call.clone());
        } else if let Some((at, Fault::FailFromThenOn(errno))) = self.plan.fault
            && at.who == who
            && self
                .reached
                .as_ref()
                .is_some_and(|first| first.point.name == name)
        {
            self.fail(pid, errno, registers);
        }
        if let Some((_, fault)) = here {
            self.reached = Some(call);
            match fault {
                Fault::Fail(errno) | Fault::FailFromThenOn(errno) => {
                    self.fail(pid, errno, registers);
                }
                Fault::Short => {
                    let count = registers.argument(2);
                    if Registers::set_count(pid, count.min(1)).is_ok() {
                        self.find(pid).expect("the process in the call").at_exit =
                            Some(AtExit::RestoreCount(count));
                    }
                }
                Fault::Interrupt => self.interrupt(),
                Fault::Kill(victims) => {
                    self.kill(pid, who, victims);
                    return;
                }
            }
            self.release_held();
        } else if waits {
            self.find(pid).expect("the process in the call").waits = true;
            self.release_held();
        }
        self.resume(pid, None);
    }

    fn interrupt(&self) {
        // Traced by us, so not reaped by anybody else: the number is its own.
        if let Some(number) = rustix::process::Pid::from_raw(self.root.as_raw()) {
            let _ = rustix::process::kill_process(number, rustix::process::Signal::INT);
        }
    }

    fn fail(&mut self, pid: Pid, errno: Errno, registers: &Registers) {
        if registers.call() == libc::SYS_close || registers.take_back(pid).is_ok() {
            self.find(pid).expect("the process in the call").at_exit = Some(AtExit::Fail(errno));
        }
    }

    /// At the entry stop of a call of `who`: kills, and waits for each death
    /// before anybody else goes on, so that what follows does not depend on luck.
    fn kill(&mut self, pid: Pid, who: Who, victims: Victims) {
        let dies = |candidate: Who| match victims {
            Victims::Both => true,
            Victims::Program => candidate == Who::Program,
            Victims::Child => candidate != Who::Program,
        };
        let victims: Vec<Pid> = self
            .tracees
            .iter()
            .filter(|tracee| dies(tracee.who))
            .map(|tracee| tracee.pid)
            .collect();
        for victim in &victims {
            // Not yet waited for by anybody, so the number is still its own.
            if let Some(number) = rustix::process::Pid::from_raw(victim.as_raw()) {
                let _ = rustix::process::kill_process(number, rustix::process::Signal::KILL);
            }
        }
        for victim in victims {
            loop {
                match waitpid(victim, Some(WaitPidFlag::__WALL)) {
                    Ok(WaitStatus::Exited(pid, code)) => {
                        self.forget(pid, End::Exit(code));
                        break;
                    }
                    Ok(WaitStatus::Signaled(pid, signal, _)) => {
                        self.forget(pid, End::Signal(signal));
                        break;
                    }
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
        }
        if !dies(who) {
            (self.meanwhile)();
            self.resume(pid, None);
        }
        self.release_held();
    }

    fn forget(&mut self, pid: Pid, end: End) {
        if pid == self.root {
            self.end = Some(end);
        }
        self.tracees.retain(|tracee| tracee.pid != pid);
    }
}

impl Tracee {
    const fn new(pid: Pid, who: Who) -> Self {
        Self {
            pid,
            who,
            state: State::Runs,
            counting: false,
            at_exit: None,
            waits: false,
            main_begins: false,
        }
    }
}

fn is_thread_of(task: Pid, process: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{task}/status")).is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Tgid:"))
            .is_some_and(|group| group.trim().parse() == Ok(process.as_raw()))
    })
}

/// The registers of a process at the entry of a call.
#[cfg(target_arch = "x86_64")]
struct Registers(libc::user_regs_struct);

#[cfg(target_arch = "x86_64")]
impl Registers {
    fn of(pid: Pid) -> nix::Result<Self> {
        ptrace::getregs(pid).map(Self)
    }

    const fn call(&self) -> i64 {
        self.0.orig_rax.cast_signed()
    }

    const fn argument(&self, number: usize) -> u64 {
        [
            self.0.rdi, self.0.rsi, self.0.rdx, self.0.r10, self.0.r8, self.0.r9,
        ][number]
    }

    /// The kernel makes no call with the number -1.
    fn take_back(&self, pid: Pid) -> nix::Result<()> {
        let mut changed = self.0;
        changed.orig_rax = u64::MAX;
        ptrace::setregs(pid, changed)
    }

    /// How many bytes are to be read or written.
    fn set_count(pid: Pid, count: u64) -> nix::Result<()> {
        let mut changed = ptrace::getregs(pid)?;
        changed.rdx = count;
        ptrace::setregs(pid, changed)
    }

    fn set_result(pid: Pid, errno: Errno) -> nix::Result<()> {
        let mut changed = ptrace::getregs(pid)?;
        changed.rax = i64::from(-(errno as i32)).cast_unsigned();
        ptrace::setregs(pid, changed)
    }
}

/// Elsewhere nothing is traced; see [`available`].
#[cfg(not(target_arch = "x86_64"))]
struct Registers;

#[cfg(not(target_arch = "x86_64"))]
impl Registers {
    const fn of(_: Pid) -> nix::Result<Self> {
        Err(Errno::ENOSYS)
    }

    const fn call(&self) -> i64 {
        -1
    }

    const fn argument(&self, _: usize) -> u64 {
        0
    }

    const fn take_back(&self, _: Pid) -> nix::Result<()> {
        Err(Errno::ENOSYS)
    }

    const fn set_count(_: Pid, _: u64) -> nix::Result<()> {
        Err(Errno::ENOSYS)
    }

    const fn set_result(_: Pid, _: Errno) -> nix::Result<()> {
        Err(Errno::ENOSYS)
    }
}

/// In such a call a process may be waiting for the other one.
fn may_block(name: &str) -> bool {
    matches!(
        name,
        "read"
            | "recvfrom"
            | "recvmsg"
            | "poll"
            | "ppoll"
            | "select"
            | "pselect6"
            | "epoll_wait"
            | "epoll_pwait"
            | "wait4"
            | "waitid"
            | "futex"
            | "flock"
            | "nanosleep"
            | "clock_nanosleep"
            | "rt_sigtimedwait"
            | "rt_sigsuspend"
            | "pause"
            | "vfork"
            | "exit_group"
    )
}

fn access(name: &str, registers: &Registers) -> Access {
    let flags = match name {
        "open" => registers.argument(1),
        "openat" => registers.argument(2),
        _ => return Access::Reads,
    };
    let has = |flag: i32| flags & u64::from(flag.unsigned_abs()) != 0;
    if has(libc::O_CREAT) {
        Access::Makes
    } else if has(libc::O_WRONLY | libc::O_RDWR) {
        Access::Writes
    } else {
        Access::Reads
    }
}

/// What a call is about: its paths, or what its descriptor is open on.
fn about(pid: Pid, name: &str, registers: &Registers) -> String {
    let paths: &[usize] = match name {
        "open" | "unlink" | "readlink" | "access" | "stat" | "lstat" | "chmod" | "chdir"
        | "mkdir" | "rmdir" | "truncate" | "execve" | "creat" => &[0],
        "openat" | "newfstatat" | "statx" | "unlinkat" | "readlinkat" | "faccessat"
        | "faccessat2" | "fchmodat" | "mkdirat" | "inotify_add_watch" | "utimensat"
        | "execveat" | "openat2" | "fchownat" | "name_to_handle_at" => &[1],
        "rename" | "link" | "symlink" => &[0, 1],
        "renameat" | "renameat2" | "linkat" => &[1, 3],
        _ => &[],
    };
    let descriptor = matches!(
        name,
        "read"
            | "write"
            | "pread64"
            | "pwrite64"
            | "readv"
            | "writev"
            | "close"
            | "fstat"
            | "lseek"
            | "ftruncate"
            | "flock"
            | "fcntl"
            | "fchmod"
            | "fchown"
            | "fsync"
            | "fdatasync"
            | "getdents64"
            | "dup"
            | "dup2"
            | "dup3"
            | "ioctl"
            | "pidfd_send_signal"
            | "copy_file_range"
            | "sendfile"
            | "newfstatat"
            | "statx"
            | "fadvise64"
            | "fallocate"
    );
    let open_on = |descriptor: u64| std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    let mut words: Vec<String> = paths
        .iter()
        .filter_map(|&argument| {
            let path = text_at(pid, registers.argument(argument))?;
            // Relative to a descriptor that is open on a folder.
            match argument
                .checked_sub(1)
                .map(|folder| open_on(registers.argument(folder)))
            {
                Some(Ok(folder)) if !path.is_empty() => {
                    Some(folder.join(path).display().to_string())
                }
                _ => Some(path),
            }
        })
        .filter(|text| !text.is_empty())
        .collect();
    if words.is_empty() && descriptor {
        let number = registers.argument(0);
        words.push(open_on(number).map_or_else(
            |_| format!("descriptor {number}, not open"),
            |path| path.display().to_string(),
        ));
    }
    if name == "pidfd_open" || name == "kill" || name == "tgkill" {
        words.push(registers.argument(0).to_string());
    }
    words.join(", ")
}

/// A string in a process's memory.
fn text_at(pid: Pid, address: u64) -> Option<String> {
    if address == 0 {
        return None;
    }
    let mut memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    memory.seek(SeekFrom::Start(address)).ok()?;
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    // Up to the end of the page at least; what follows may not be mapped.
    while length < bytes.len() {
        match memory.read(&mut bytes[length..]) {
            Ok(0) | Err(_) => break,
            Ok(more) => length += more,
        }
        if bytes[..length].contains(&0) {
            break;
        }
    }
    let end = bytes[..length].iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// The name of a call; `unknown` if the list below lacks it.
fn name(number: i64) -> &'static str {
    NAMES
        .iter()
        .find(|(known, _)| *known == number)
        .and_then(|(_, name)| name.strip_prefix("SYS_"))
        .unwrap_or("unknown")
}

/// A name that the list below has.
fn known_name(text: &str) -> Option<&'static str> {
    NAMES
        .iter()
        .filter_map(|(_, name)| name.strip_prefix("SYS_"))
        .find(|name| *name == text)
}

macro_rules! names {
    ($($name:ident)*) => {
        &[$((libc::$name, stringify!($name))),*]
    };
}

#[cfg(not(target_arch = "x86_64"))]
const NAMES: &[(i64, &str)] = names!();

#[cfg(target_arch = "x86_64")]
const NAMES: &[(i64, &str)] = names!(
    SYS_read SYS_write SYS_open SYS_close SYS_stat SYS_fstat SYS_lstat SYS_poll SYS_lseek SYS_mmap
    SYS_mprotect SYS_munmap SYS_brk SYS_rt_sigaction SYS_rt_sigprocmask SYS_ioctl SYS_pread64
    SYS_pwrite64 SYS_readv SYS_writev SYS_access SYS_pipe SYS_select SYS_sched_yield SYS_mremap
    SYS_madvise SYS_dup SYS_dup2 SYS_pause SYS_nanosleep SYS_getpid SYS_sendfile SYS_socket
    SYS_connect SYS_accept SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_shutdown SYS_bind
    SYS_listen SYS_getsockname SYS_getpeername SYS_socketpair SYS_setsockopt SYS_getsockopt
    SYS_clone SYS_fork SYS_vfork SYS_execve SYS_exit SYS_wait4 SYS_kill SYS_uname SYS_fcntl
    SYS_flock SYS_fsync SYS_fdatasync SYS_truncate SYS_ftruncate SYS_getcwd SYS_chdir SYS_fchdir
    SYS_rename SYS_mkdir SYS_rmdir SYS_creat SYS_link SYS_unlink SYS_symlink SYS_readlink SYS_chmod
    SYS_fchmod SYS_chown SYS_fchown SYS_umask SYS_gettimeofday SYS_getrlimit SYS_getrusage
    SYS_sysinfo SYS_times SYS_getuid SYS_getgid SYS_setuid SYS_setgid SYS_geteuid SYS_getegid
    SYS_setpgid SYS_getppid SYS_getpgrp SYS_setsid SYS_getpgid SYS_getsid SYS_rt_sigpending
    SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_sigsuspend SYS_sigaltstack SYS_statfs
    SYS_fstatfs SYS_prctl SYS_arch_prctl SYS_setrlimit SYS_gettid SYS_tkill SYS_time SYS_futex
    SYS_sched_setaffinity SYS_sched_getaffinity SYS_getdents64 SYS_set_tid_address SYS_fadvise64
    SYS_timer_create SYS_clock_gettime SYS_clock_nanosleep SYS_exit_group SYS_epoll_wait
    SYS_epoll_ctl SYS_tgkill SYS_waitid SYS_inotify_add_watch SYS_inotify_rm_watch SYS_openat
    SYS_mkdirat SYS_fchownat SYS_newfstatat SYS_unlinkat SYS_renameat SYS_linkat SYS_symlinkat
    SYS_readlinkat SYS_fchmodat SYS_faccessat SYS_pselect6 SYS_ppoll SYS_set_robust_list
    SYS_get_robust_list SYS_splice SYS_utimensat SYS_epoll_pwait SYS_signalfd SYS_timerfd_create
    SYS_eventfd SYS_fallocate SYS_timerfd_settime SYS_accept4 SYS_signalfd4 SYS_eventfd2
    SYS_epoll_create1 SYS_dup3 SYS_pipe2 SYS_inotify_init1 SYS_prlimit64 SYS_name_to_handle_at
    SYS_process_vm_readv SYS_getcpu SYS_renameat2 SYS_getrandom SYS_memfd_create SYS_execveat
    SYS_membarrier SYS_copy_file_range SYS_statx SYS_rseq SYS_pidfd_send_signal SYS_pidfd_open
    SYS_clone3 SYS_close_range SYS_openat2 SYS_pidfd_getfd SYS_faccessat2
);

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str, folder: &std::path::Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", line])
            .env("PATH", "/usr/bin:/bin")
            .current_dir(folder);
        command
    }

    fn from_exec(fault: Option<(Point, Fault)>, order: Order) -> Plan {
        Plan {
            from: Begin::Exec,
            fault,
            order,
            deadline: Duration::from_secs(20),
        }
    }

    fn left_out() -> bool {
        available().is_err_and(|why| {
            crate::left_out("visiting system calls", &why);
            true
        })
    }

    /// `: >made; exit 7` in the shell, which forks nothing; the call that makes
    /// the file, and the call after it.
    fn maker(folder: &std::path::Path) -> (Command, Call, Call) {
        let command = shell(": >made; exit 7", folder);
        let run = run(&command, &from_exec(None, Order::Free)).unwrap();
        assert_eq!(run.end, End::Exit(7), "{}", run.output);
        assert!(folder.join("made").exists());
        std::fs::remove_file(folder.join("made")).unwrap();
        let at = run.calls.iter().position(|call| call.about == "made");
        let at = at.expect("the shell opens its file");
        (command, run.calls[at].clone(), run.calls[at + 1].clone())
    }

    #[test]
    fn a_call_before_which_the_program_is_killed_has_no_effect() {
        if left_out() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (command, call, after) = maker(folder.path());
        let kill = Fault::Kill(Victims::Both);
        let at = from_exec(Some((call.point, kill)), Order::Free);
        let killed = run(&command, &at).unwrap();
        assert_eq!(killed.end, End::Signal(Signal::SIGKILL));
        assert_eq!(killed.reached.unwrap().about, call.about);
        assert!(!folder.path().join("made").exists());
        let after = from_exec(Some((after.point, kill)), Order::Free);
        assert_eq!(
            run(&command, &after).unwrap().end,
            End::Signal(Signal::SIGKILL)
        );
        assert!(folder.path().join("made").exists());
    }

    #[test]
    fn a_call_that_is_made_to_fail_has_no_effect_and_reports_the_error() {
        if left_out() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (command, call, _) = maker(folder.path());
        let fault = Fault::Fail(Errno::EROFS);
        let failed = run(&command, &from_exec(Some((call.point, fault)), Order::Free)).unwrap();
        assert_eq!(failed.end, End::Exit(2), "{}", failed.output);
        assert!(failed.output.contains("Read-only file system"));
        assert!(!folder.path().join("made").exists());
    }

    #[test]
    fn a_short_write_is_one_byte_and_no_error() {
        if left_out() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let command = shell("printf content", folder.path());
        let whole = run(&command, &from_exec(None, Order::Free)).unwrap();
        let writes = |run: &Run| -> Vec<Call> {
            let name = |call: &&Call| call.point.name == "write";
            run.calls.iter().filter(name).cloned().collect()
        };
        let [write] = &writes(&whole)[..] else {
            panic!("the shell writes once: {:?}", whole.calls);
        };
        let fault = Some((write.point, Fault::Short));
        let short = run(&command, &from_exec(fault, Order::Free)).unwrap();
        assert!(short.reached.is_some());
        // The shell writes the rest, and must still know how much that is.
        assert_eq!((short.end, short.output), (End::Exit(0), whole.output));
    }

    #[test]
    fn a_point_that_is_never_reached_changes_nothing() {
        if left_out() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (command, call, _) = maker(folder.path());
        let far = Point {
            number: 100_000,
            ..call.point
        };
        let fault = Some((far, Fault::Kill(Victims::Both)));
        let past = run(&command, &from_exec(fault, Order::Free)).unwrap();
        assert_eq!((past.end, past.reached), (End::Exit(7), None));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_and_said_to_hang() {
        if left_out() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan {
            deadline: Duration::from_millis(200),
            ..from_exec(None, Order::Free)
        };
        let slow = run(&shell("while :; do :; done", folder.path()), &plan).unwrap();
        assert!(slow.hung);
        assert_eq!(slow.end, End::Signal(Signal::SIGKILL));
    }

    /// A shell whose child writes `child` and whose parent writes `parent`.
    const TWO: &str = "(: >child; exec true) & : >parent; wait; exit 5";

    #[test]
    fn the_chosen_process_goes_first_after_a_fork() {
        if left_out() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let command = shell(TWO, folder.path());
        for (order, first) in [
            (Order::ChildFirst, "child"),
            (Order::ProgramFirst, "parent"),
        ] {
            let seen = run(&command, &from_exec(None, order)).unwrap();
            assert_eq!(seen.end, End::Exit(5), "{}", seen.output);
            assert_eq!(seen.execed.len(), 1);
            let made: Vec<_> = seen
                .calls
                .iter()
                .map(|call| call.about.as_str())
                .filter(|about| ["child", "parent"].contains(about))
                .collect();
            assert_eq!(made.first(), Some(&first), "{made:?}");
            assert_eq!(made.len(), 2);
        }
    }

    #[test]
    fn program_and_child_are_killed_each_alone_or_together() {
        if left_out() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let child = folder.path().join("child");
        let command = shell(TWO, folder.path());
        let seen = run(&command, &from_exec(None, Order::ChildFirst)).unwrap();
        let call = seen
            .calls
            .iter()
            .find(|call| call.about == "child")
            .unwrap();
        assert_eq!(call.point.who, Who::Child(1));
        for (victims, made, end) in [
            (Victims::Program, true, End::Signal(Signal::SIGKILL)),
            (Victims::Child, false, End::Exit(5)),
            (Victims::Both, false, End::Signal(Signal::SIGKILL)),
        ] {
            std::fs::remove_file(&child).ok();
            let fault = Some((call.point, Fault::Kill(victims)));
            let killed = run(&command, &from_exec(fault, Order::ChildFirst)).unwrap();
            assert_eq!(
                killed.reached.map(|reached| reached.point),
                Some(call.point),
                "{victims:?}"
            );
            assert_eq!(killed.end, end, "{victims:?}");
            assert_eq!(child.exists(), made, "{victims:?}");
        }
    }
}
