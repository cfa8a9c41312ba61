//! An error at every system call of the programs.
//!
//! At each call that a program makes after its main begins, and at each that
//! the child makes which becomes the agent, each of the errors that are
//! documented for the call and can come from the surroundings (a full disk, no
//! descriptors, a read-only folder, …): the program ends with 1 and a message,
//! or with a 0 that is true. Never a panic, a death, a hang, a lie or an
//! untracked agent, and afterwards everything works again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::cell::RefCell;
use std::collections::HashMap;

use scenarios::syscalls::sweep::{
    Case, Look, Scenario, Seen, agents, alone, exit_code, next_start, next_stop, nothing_left,
    overlap, tracked_agent,
};
use scenarios::syscalls::{Access, Call, End, Errno, Fault, Order};
use scenarios::{Program, World};

/// How many cases of each scenario an everyday run visits.
const SAMPLE: usize = 12;

/// The errors that a call can report because of its surroundings: what `man 2`
/// says, without those that only a wrong argument causes.
#[expect(clippy::too_many_lines, reason = "a table")]
fn errors_of(call: &Call) -> Vec<Errno> {
    use Errno as E;
    let mut errors: Vec<Errno> = match call.point.name {
        "open" | "openat" | "openat2" => {
            let mut errors = vec![
                E::EACCES,
                E::EMFILE,
                E::ENFILE,
                E::ENOENT,
                E::ENOMEM,
                E::EINTR,
            ];
            if !call.about.starts_with("/proc") {
                errors.extend([E::ELOOP, E::EIO]);
            }
            if call.access != Access::Reads {
                errors.extend([E::EROFS, E::EPERM]);
            }
            if call.access == Access::Makes {
                errors.extend([E::ENOSPC, E::EDQUOT, E::EEXIST]);
            }
            errors
        }
        "read" | "pread64" | "readv" => vec![E::EIO, E::EINTR, E::EAGAIN],
        "write" | "pwrite64" | "writev" => {
            vec![E::ENOSPC, E::EIO, E::EINTR, E::EPIPE, E::EAGAIN]
        }
        "close" => vec![E::EIO, E::EINTR],
        "rename" | "renameat" | "renameat2" | "link" | "linkat" | "symlink" | "symlinkat" => vec![
            E::EACCES,
            E::EPERM,
            E::ENOSPC,
            E::EROFS,
            E::EIO,
            E::ENOENT,
            E::EEXIST,
            E::ENOMEM,
        ],
        "unlink" | "unlinkat" | "rmdir" => {
            vec![E::EACCES, E::EPERM, E::EROFS, E::EIO, E::EBUSY, E::ENOENT]
        }
        "mkdir" | "mkdirat" => vec![E::EACCES, E::ENOSPC, E::EROFS, E::EEXIST],
        "ftruncate" | "truncate" => vec![E::EIO, E::EINTR, E::EPERM],
        "fallocate" => vec![E::ENOSPC, E::EOPNOTSUPP],
        "fsync" | "fdatasync" => vec![E::EIO, E::ENOSPC],
        "lseek" => vec![E::ESPIPE, E::EOVERFLOW],
        "flock" => vec![E::EAGAIN, E::EINTR, E::ENOLCK],
        "fcntl" => vec![E::EMFILE, E::EAGAIN],
        "fork" | "clone" | "clone3" | "vfork" => vec![E::EAGAIN, E::ENOMEM],
        "pipe" | "pipe2" | "socketpair" | "epoll_create1" | "timerfd_create" | "eventfd2" => {
            vec![E::EMFILE, E::ENFILE]
        }
        "pidfd_open" => vec![
            E::EMFILE,
            E::ENFILE,
            E::ENOMEM,
            E::ESRCH,
            E::ENOSYS,
            E::EPERM,
        ],
        "pidfd_send_signal" | "kill" | "tgkill" => vec![E::EPERM, E::ESRCH, E::ENOSYS],
        "poll" | "ppoll" | "select" | "pselect6" => vec![E::EINTR, E::ENOMEM],
        "epoll_ctl" => vec![E::ENOMEM, E::ENOSPC],
        "epoll_wait" | "epoll_pwait" | "nanosleep" | "clock_nanosleep" => vec![E::EINTR],
        "signalfd" | "signalfd4" | "inotify_init1" => vec![E::EMFILE, E::ENFILE, E::ENOMEM],
        "inotify_add_watch" => vec![E::ENOSPC, E::ENOMEM, E::EACCES, E::ENOENT],
        "fchmod" | "fchmodat" | "chmod" | "fchown" | "fchownat" | "utimensat" => {
            vec![E::EPERM, E::EROFS, E::EIO]
        }
        "dup" | "dup2" | "dup3" => vec![E::EMFILE, E::EBUSY, E::EINTR],
        "close_range" => vec![E::EMFILE, E::ENOMEM, E::ENOSYS, E::EINVAL],
        "chdir" | "fchdir" => vec![E::EACCES, E::ENOENT, E::EIO, E::ENOTDIR],
        "setsid" => vec![E::EPERM],
        "execve" | "execveat" => vec![
            E::ENOENT,
            E::EACCES,
            E::ENOMEM,
            E::E2BIG,
            E::ETXTBSY,
            E::ENOEXEC,
            E::EAGAIN,
        ],
        "getdents64" => vec![E::ENOENT, E::EIO],
        "stat" | "lstat" | "statx" | "newfstatat" | "access" | "faccessat" | "faccessat2" => {
            vec![E::EACCES, E::ENOENT, E::ENOMEM, E::ELOOP, E::EIO]
        }
        "fstat" | "fstatfs" | "statfs" => vec![E::ENOMEM, E::EIO],
        "readlink" | "readlinkat" => vec![E::EACCES, E::ENOENT, E::EIO, E::ENOMEM],
        "getcwd" => vec![E::ENOENT, E::EACCES, E::ENOMEM],
        "getrandom" => vec![E::EINTR, E::ENOSYS],
        "copy_file_range" => vec![
            E::ENOSPC,
            E::EIO,
            E::EXDEV,
            E::EOPNOTSUPP,
            E::ENOMEM,
            E::ENOSYS,
            E::EINVAL,
        ],
        "sendfile" | "splice" => vec![E::EIO, E::ENOMEM, E::EAGAIN, E::EINVAL],
        "waitid" | "wait4" => vec![E::EINTR, E::ECHILD],
        "mmap" | "mremap" | "brk" | "mprotect" | "munmap" | "madvise" | "sigaltstack" => {
            vec![E::ENOMEM]
        }
        "rt_sigaction" | "rt_sigprocmask" => vec![E::EINVAL],
        "getrlimit" | "prlimit64" | "prctl" => vec![E::EPERM, E::EINVAL],
        "ioctl" => vec![E::ENOTTY, E::EIO],
        "socket" => vec![E::EMFILE, E::EACCES],
        "connect" => vec![E::ECONNREFUSED, E::EINTR],
        _ => Vec::new(),
    };
    if call.about.starts_with("/proc/") && matches!(call.point.name, "read" | "pread64" | "openat")
    {
        errors.push(E::ESRCH);
    }
    if call.about.starts_with("/proc/") && call.point.name == "read" {
        errors.retain(|&errno| errno != E::EAGAIN);
    }
    errors
}

/// Calls that fail only for wrong arguments, or never.
fn cannot_fail(name: &str) -> bool {
    matches!(
        name,
        "getpid"
            | "getppid"
            | "gettid"
            | "getuid"
            | "geteuid"
            | "getgid"
            | "getegid"
            | "getsid"
            | "getpgid"
            | "getpgrp"
            | "umask"
            | "uname"
            | "exit"
            | "exit_group"
            | "rt_sigreturn"
            | "sched_yield"
            | "clock_gettime"
            | "gettimeofday"
            | "sysinfo"
            | "set_robust_list"
            | "set_tid_address"
            | "rseq"
            | "sched_getaffinity"
            | "futex"
            | "arch_prctl"
            | "fadvise64"
    )
}

/// Errors that, once there, are there for every later call too.
fn lasts(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOSPC
            | Errno::EDQUOT
            | Errno::EROFS
            | Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOMEM
            | Errno::EACCES
            | Errno::EPERM
            | Errno::EIO
            | Errno::ENOSYS
    )
}

/// The first call of a name, the fourth, the sixteenth, …
fn is_milestone(times: usize) -> bool {
    times.is_power_of_two() && times.trailing_zeros().is_multiple_of(2)
}

/// Without any more memory there is nothing to be seen but an abort; without
/// `close_range` the child walks through all possible descriptors, which takes
/// its time under a tracer.
fn goes_on(name: &str) -> bool {
    !is_memory(name) && name != "close_range"
}

/// Every error at every call, and from then on at some.
fn every_error(look: Look<'_>) -> Vec<Case> {
    errors(look, usize::MAX)
}

/// One error at every call, in turn. A restart is a stop and a start, in which
/// every error is tried; it takes as long as both, and makes as many calls.
fn one_error(look: Look<'_>) -> Vec<Case> {
    errors(look, 1)
}

fn errors(look: Look<'_>, at_most: usize) -> Vec<Case> {
    let order = Order::ChildFirst;
    let mut cases = Vec::new();
    let mut seen = HashMap::new();
    for call in look(order) {
        let errors = errors_of(&call);
        assert!(
            !errors.is_empty() || cannot_fail(call.point.name),
            "which errors does {} report? Add it to the table.",
            call.describe()
        );
        let times: &mut usize = seen.entry((call.point.who, call.point.name)).or_default();
        *times += 1;
        let turn = if at_most < errors.len() {
            *times * at_most
        } else {
            0
        };
        for errno in errors
            .iter()
            .copied()
            .cycle()
            .skip(turn)
            .take(errors.len().min(at_most))
        {
            cases.push(Case::at(&call, Fault::Fail(errno), order));
            if lasts(errno) && is_milestone(*times) && goes_on(call.point.name) {
                cases.push(Case::at(&call, Fault::FailFromThenOn(errno), order));
            }
        }
        if matches!(call.point.name, "read" | "pread64" | "write" | "pwrite64") {
            cases.push(Case::at(&call, Fault::Short, order));
        }
    }
    cases
}

fn is_memory(name: &str) -> bool {
    matches!(
        name,
        "mmap" | "mremap" | "brk" | "mprotect" | "munmap" | "madvise" | "sigaltstack"
    )
}

/// Its exit code; none if it had no memory, for which Rust has no other answer
/// than to abort.
fn code(seen: &Seen) -> Result<Option<i32>, String> {
    let Seen { run, case, .. } = seen;
    let reached = run.reached.as_ref();
    if reached.is_some_and(|call| is_memory(call.point.name))
        && matches!(run.end, End::Signal(nix::sys::signal::Signal::SIGABRT))
        && run.output.contains("memory allocation")
    {
        return Ok(None);
    }
    let code = exit_code(run)?;
    if code != 0 && code != 1 {
        return Err(format!("exit {code}"));
    }
    let could_speak = reached.is_none_or(|call| {
        let own_output = call.about.contains("(deleted)");
        let for_good = matches!(case.map(|case| case.fault), Some(Fault::FailFromThenOn(_)));
        call.point.name != "write" || !(own_output || for_good)
    });
    if code == 1 && could_speak && run.output.trim().is_empty() {
        return Err("exit 1 without a word".to_owned());
    }
    Ok(Some(code))
}

/// Did the kernel itself claim that a process is gone?
fn was_lied_to(seen: &Seen) -> bool {
    let Some(case) = &seen.case else {
        return false;
    };
    let (Fault::Fail(errno) | Fault::FailFromThenOn(errno)) = case.fault else {
        return false;
    };
    let process = seen.run.reached.as_ref().is_some_and(|call| {
        call.about.starts_with("/proc") || call.point.name.starts_with("pidfd")
    });
    process && matches!(errno, Errno::ENOENT | Errno::ESRCH)
}

/// The kernel itself denied that the agent exists: another may have been born
/// beside it; but the last look, after the birth, must find both all the same.
fn forgive_overlap(world: &World, seen: &Seen) {
    if was_lied_to(seen) {
        std::fs::remove_file(world.path("overlap.log")).ok();
    }
}

/// Did the kernel claim that a tracking file, which was to be removed, is not there?
fn denied_file(seen: &Seen) -> bool {
    let is_denial = seen
        .case
        .is_some_and(|case| case.fault == Fault::Fail(Errno::ENOENT));
    let is_about = |call: &Call| {
        ["agent.pid", "agent.lock"]
            .iter()
            .any(|file| call.about.ends_with(file))
    };
    is_denial && seen.run.reached.as_ref().is_some_and(is_about)
}

fn sweep(
    test: &str,
    program: Program,
    set_up: &dyn Fn(&mut World),
    lasting: bool,
    judge: &dyn Fn(&World, &Seen) -> Result<(), String>,
) {
    alone(test, || {
        Scenario {
            test: ("injected_errors", test),
            program,
            set_up,
            cases: if program == Program::Restart {
                &one_error
            } else {
                &every_error
            },
            lasting,
            judge,
            rival: None,
            sample: SAMPLE,
            kept: RefCell::default(),
        }
        .sweep();
    });
}

fn running(world: &mut World) {
    world.expect(Program::Start, 0);
}

/// As it is after `rm -f` of the tracking files: found by the processes only.
fn running_untracked(world: &mut World) {
    running(world);
    std::fs::remove_file(world.pid_file()).expect("remove the PID file");
}

/// For programs that start an agent where none runs.
fn zero_means_one_agent(world: &World, seen: &Seen) -> Result<(), String> {
    let living = tracked_agent(world)?;
    match (code(seen)?, living) {
        (Some(0), None) => return Err("it LIES: exit 0, and no agent lives".to_owned()),
        (Some(1), Some(agent)) => {
            return Err(format!("exit 1, and agent {agent} lives (tracked)"));
        }
        _ => {}
    }
    overlap(world)?;
    next_start(world, living)?;
    next_stop(world)
}

/// For programs that must not touch the agent that runs; `expected` is the exit code.
fn agent_untouched(world: &World, seen: &Seen, expected: &[i32]) -> Result<(), String> {
    let code = code(seen)?;
    let living = agents(world);
    if living != seen.before {
        return Err(format!(
            "agents {:?} ran before, {living:?} run now",
            seen.before
        ));
    }
    if code.is_some_and(|code| !expected.contains(&code)) {
        return Err(format!(
            "it LIES: exit {code:?} while agent {living:?} runs"
        ));
    }
    overlap(world)
}

#[test]
fn check_on_a_clean_machine() {
    sweep(
        "check_on_a_clean_machine",
        Program::Check,
        &|_| {},
        false,
        &|world, seen| {
            code(seen)?;
            next_start(world, None)?;
            next_stop(world)
        },
    );
}

#[test]
fn check_never_says_safe_while_an_agent_runs() {
    sweep(
        "check_never_says_safe_while_an_agent_runs",
        Program::Check,
        &running,
        true,
        &|world, seen| agent_untouched(world, seen, &[1]),
    );
}

#[test]
fn check_never_says_safe_while_an_untracked_agent_runs() {
    sweep(
        "check_never_says_safe_while_an_untracked_agent_runs",
        Program::Check,
        &running_untracked,
        true,
        &|world, seen| {
            let expected: &[i32] = if was_lied_to(seen) { &[0, 1] } else { &[1] };
            agent_untouched(world, seen, expected)
        },
    );
}

#[test]
fn start_on_a_clean_machine() {
    sweep(
        "start_on_a_clean_machine",
        Program::Start,
        &|_| {},
        false,
        &zero_means_one_agent,
    );
}

#[test]
fn start_while_an_agent_runs() {
    sweep(
        "start_while_an_agent_runs",
        Program::Start,
        &running,
        true,
        &|world, seen| {
            tracked_agent(world)?;
            agent_untouched(world, seen, &[1])
        },
    );
}

#[test]
fn start_while_an_untracked_agent_runs() {
    sweep(
        "start_while_an_untracked_agent_runs",
        Program::Start,
        &running_untracked,
        true,
        &|world, seen| {
            forgive_overlap(world, seen);
            agent_untouched(world, seen, &[1])
        },
    );
}

#[test]
fn stop_over_a_family() {
    sweep(
        "stop_over_a_family",
        Program::Stop,
        &|world| {
            world.set("VOICE_GUARD_GRACE_SECONDS", "0.03");
            world.set("TEST_AGENT_CHILDREN", "fork,grandchild");
            world.set("TEST_AGENT_CHILDREN_LOG", world.path("children.log"));
            running(world);
        },
        false,
        &|world, seen| {
            if code(seen)? == Some(0) {
                // Unless the kernel itself said that a file was not there.
                if !denied_file(seen) || !world.family_processes().is_empty() {
                    nothing_left(world).map_err(|what| format!("it LIES: exit 0, and {what}"))?;
                }
            } else {
                tracked_agent(world)?;
            }
            next_stop(world)
        },
    );
}

#[test]
fn system_start_on_a_clean_machine() {
    sweep(
        "system_start_on_a_clean_machine",
        Program::System,
        &|_| {},
        false,
        &zero_means_one_agent,
    );
}

#[test]
fn system_start_while_an_agent_runs() {
    sweep(
        "system_start_while_an_agent_runs",
        Program::System,
        &running,
        true,
        &|world, seen| {
            tracked_agent(world)?;
            agent_untouched(world, seen, &[0, 1])
        },
    );
}

#[test]
fn restart_of_a_running_agent() {
    sweep(
        "restart_of_a_running_agent",
        Program::Restart,
        &running,
        false,
        &|world, seen| {
            let living = tracked_agent(world)?;
            if code(seen)? == Some(0) && living.is_none_or(|one| seen.before.contains(&one)) {
                return Err(format!("it LIES: exit 0, and agent {living:?} lives"));
            }
            forgive_overlap(world, seen);
            overlap(world)?;
            // An agent that was told to end, and not waited for, may still seem to
            // run to a start that comes at once; so the stop comes first.
            next_stop(world)?;
            next_start(world, None)?;
            next_stop(world)
        },
    );
}
