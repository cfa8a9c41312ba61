//! How a start can go, what the agent gets from it, and what is left when it
//! is interrupted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scenarios::surroundings::{
    NO_ARGUMENTS, Stranger, after, assert_names, outcome, pids, report, run, verdict,
};
use scenarios::{Program, World, is_alive, process, python, text, until};

/// A window that no test may wait out.
const LONG: &str = "60";

const STARTERS: [Program; 3] = [Program::Start, Program::System, Program::Restart];

// ---- Ready.

#[test]
fn ready_as_soon_as_the_log_says_so_however_it_is_written() {
    let mut world = World::new();
    world.set("VOICE_GUARD_VERIFY_SECONDS", LONG);
    for style in ["plain", "json", "ansi", "wrapped"] {
        world.set("TEST_AGENT_OUTPUT", style);
        for program in STARTERS {
            let begun = Instant::now();
            let (code, seen) = report(&world, program);
            assert_eq!(code, 0, "{style}: {seen}");
            assert_eq!(seen["registration_confirmed"], true, "{style}: {seen}");
            assert_eq!(pids(&seen, "agents"), [u64::from(world.assert_one_agent())]);
            assert!(begun.elapsed() < Duration::from_secs(20), "{style}");
            world.expect(Program::Stop, 0);
        }
    }
    world.assert_no_overlap();
}

#[test]
fn silent_agent_that_lives_is_a_success_without_confirmation() {
    let mut world = World::new();
    world.set("TEST_AGENT_SILENT", "1");
    world.set("VOICE_GUARD_VERIFY_SECONDS", "0.4");
    // What an earlier agent said proves nothing now.
    fs::write(world.log_file(), "registered worker\n").unwrap();
    let begun = Instant::now();
    let said = world.expect(Program::Start, 0);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(400), "{waited:?}: {said}");
    assert!(said.contains("not confirmed"), "{said}");
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    let (code, seen) = report(&world, Program::Start);
    assert_eq!(
        (code, &seen["registration_confirmed"]),
        (0, &false.into()),
        "{seen}"
    );
    world.expect(Program::Stop, 0);
}

#[test]
fn flood_of_output_hides_no_readiness() {
    let mut world = World::new();
    world.set("VOICE_GUARD_VERIFY_SECONDS", LONG);
    let script = "\
import os, signal
os.write(1, b'\\xff\\xfe\\x00' + b'x' * 5_000_000)
for _ in range(200):
    os.write(1, b'noise ' * 2000 + b'\\n')
os.write(1, b'registered worker\\n')
signal.pause()
";
    fs::write(world.script(), script).unwrap();
    let (code, seen) = report(&world, Program::Start);
    assert_eq!(
        (code, &seen["registration_confirmed"]),
        (0, &true.into()),
        "{seen}"
    );
    world.expect(Program::Stop, 0);
}

#[test]
fn readiness_line_in_two_pieces_is_one_line() {
    let mut world = World::new();
    world.set("VOICE_GUARD_VERIFY_SECONDS", LONG);
    let fifo = world.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    world.set("FIFO", &fifo);
    let script = "\
import os, signal
os.write(1, b'INFO regist')
open(os.environ['FIFO']).read()
os.write(1, b'ered worker {}\\n')
signal.pause()
";
    fs::write(world.script(), script).unwrap();
    let mut start = world.program(Program::Start);
    start.arg("--json").stdout(Stdio::piped());
    let mut start = Stranger::of(start);
    until("the first piece", || world.log().ends_with("regist"));
    drop(fs::File::create(&fifo).unwrap());
    let mut said = String::new();
    start.stdout().read_to_string(&mut said).unwrap();
    assert_eq!(start.wait().code(), Some(0), "{said}");
    let seen: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(seen["registration_confirmed"], true, "{seen}");
    world.expect(Program::Stop, 0);
}

// ---- Dead.

#[test]
fn dead_agent_is_reported_at_once_with_status_and_last_lines() {
    let mut world = World::new();
    world.set("VOICE_GUARD_VERIFY_SECONDS", LONG);
    world.set("TEST_AGENT_DIE_AFTER", "0");
    let lines: Vec<_> = (1..=25).map(|number| format!("line <{number}>")).collect();
    world.set("TEST_AGENT_DIE_SAYING", lines.join("\n"));
    for status in ["1", "23", "0"] {
        world.set("TEST_AGENT_DIE_WITH", status);
        for program in STARTERS {
            let begun = Instant::now();
            let (code, said) = outcome(&world, program, NO_ARGUMENTS);
            let context = format!("{} of {status}: {said}", program.name());
            assert_eq!(code, 1, "{context}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{context}");
            assert!(said.contains(status), "{context}");
            assert!(
                said.contains("line <6>") && said.contains("line <25>"),
                "{context}"
            );
            assert!(!said.contains("line <5>"), "more than 20 lines: {context}");
            assert_names(&said, &world.log_file());
            world.assert_nothing_left();
        }
        let (code, seen) = report(&world, Program::Start);
        assert_eq!((code, &seen["outcome"]), (1, &"died".into()), "{seen}");
    }
}

#[test]
fn agent_that_dies_by_a_signal() {
    let mut world = World::new();
    world.set("VOICE_GUARD_VERIFY_SECONDS", LONG);
    for (number, name) in [(9, "SIGKILL"), (11, "SIGSEGV"), (6, "SIGABRT")] {
        let script =
            format!("import os\nprint('last words', flush=True)\nos.kill(os.getpid(), {number})\n");
        fs::write(world.script(), script).unwrap();
        let said = world.expect(Program::Start, 1);
        let short = name.trim_start_matches("SIG");
        assert!(
            said.contains(short) || said.contains(&number.to_string()),
            "{said}"
        );
        assert!(said.contains("last words"), "{said}");
        world.assert_nothing_left();
    }
}

#[test]
fn agent_that_cannot_be_understood_by_python() {
    let world = World::new();
    fs::write(world.script(), "this is no Python\n").unwrap();
    let said = world.expect(Program::Start, 1);
    assert!(said.contains("SyntaxError"), "{said}");
    world.assert_nothing_left();
}

#[test]
fn agent_that_leaves_children_when_it_dies_in_the_start() {
    let mut world = World::new();
    world.set("TEST_AGENT_CHILDREN", "setsid,deaf");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.3");
    world.set("TEST_AGENT_DIE_AFTER", "0");
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    assert_eq!(code, 1, "{said}");
    // Whatever answers calls now is either gone or found by everybody.
    if !world.family_processes().is_empty() {
        world.expect(Program::Check, 1);
    }
    world.unset("TEST_AGENT_DIE_AFTER");
    world.unset("TEST_AGENT_CHILDREN");
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    let family = world.family_processes();
    assert_eq!(
        family.len(),
        1,
        "PID {agent} is not alone\n{}",
        world.describe()
    );
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn agent_that_goes_into_the_background_is_not_lost() {
    let world = World::new();
    let script = "\
import os, signal
if os.fork():
    os._exit(0)
os.setsid()
print('registered worker', flush=True)
signal.pause()
";
    fs::write(world.script(), script).unwrap();
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    let alive = !world.family_processes().is_empty();
    assert!(code == 1 || alive, "{said}");
    if alive {
        let (code, said) = outcome(&world, Program::Check, NO_ARGUMENTS);
        assert_eq!(code, 1, "{said}\n{}", world.describe());
    }
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

// ---- The log.

#[test]
fn previous_logs_are_kept_by_copying_and_a_tail_goes_on() {
    let world = World::new();
    fs::write(world.log_file(), "the log before\n").unwrap();
    let inode = world.log_file().metadata().unwrap().ino();
    let mut tail = world.command("tail");
    tail.args(["-n", "+1", "-f", "-s", "0.05"])
        .arg(world.log_file())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut tail = Stranger::of(tail);
    let (send, seen) = mpsc::channel();
    let mut stream = tail.take_stdout();
    let reader = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            let _ = send.send(String::from_utf8_lossy(&piece[..length]).into_owned());
        }
    });
    let mut shown = String::new();
    let mut waits_for = |words: &str| {
        until(words, || {
            shown.extend(seen.try_iter());
            shown.contains(words)
        });
        shown.clear();
    };
    waits_for("the log before");
    let mut numbers = Vec::new();
    for _ in 0..7 {
        world.expect(Program::Start, 0);
        numbers.push(world.assert_one_agent());
        waits_for("registered worker");
        assert_eq!(
            world.log_file().metadata().unwrap().ino(),
            inode,
            "another file"
        );
        assert_eq!(world.log().matches("registered worker").count(), 1);
        world.expect(Program::Stop, 0);
        waits_for("good-bye");
    }
    let kept = |number: u32| world.path(format!("agent.log.{number}"));
    for number in 1..=5 {
        let log = fs::read_to_string(kept(number)).unwrap();
        assert!(log.contains("good-bye"), "{number}: {log}");
    }
    assert!(!kept(6).exists() && !kept(0).exists());
    drop(tail);
    reader.join().unwrap();
    // A refused start empties nothing.
    world.expect(Program::Start, 0);
    world.expect(Program::Start, 1);
    assert!(world.log().contains("registered worker"));
    world.expect(Program::Stop, 0);
}

#[test]
fn kept_logs_are_not_written_through_links() {
    let world = World::new();
    let precious = world.scratch().join("precious");
    fs::write(&precious, "precious\n").unwrap();
    fs::write(world.log_file(), "the log before\n").unwrap();
    for name in ["agent.log.1", "agent.log.2", ".agent.log.1.new"] {
        std::os::unix::fs::symlink(&precious, world.path(name)).unwrap();
    }
    fs::create_dir(world.path("agent.log.4")).unwrap();
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious\n");
    assert_eq!(world.agents().len(), usize::from(code == 0), "{said}");
    world.expect(Program::Stop, 0);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious\n");
    // The log before is somewhere still, whatever was in the way.
    let mut all = world.log();
    for number in 1..=5 {
        all += &fs::read_to_string(world.path(format!("agent.log.{number}"))).unwrap_or_default();
    }
    assert!(all.contains("the log before"), "{all}\n{said}");
}

// ---- What the agent gets.

/// An interpreter that writes down what it is given before it becomes Python.
fn recording_interpreter(world: &mut World) -> PathBuf {
    let record = world.path("record");
    let path = world.scratch().join("python3");
    let script = "#!/bin/sh
{ grep ^Sig /proc/self/status; ls -l /proc/self/fd; umask; pwd -P; } > \"$RECORD\"
exec \"$REAL_PYTHON\" \"$@\"
";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    world.set("RECORD", &record);
    world.set("REAL_PYTHON", python());
    world.set("VOICE_GUARD_PYTHON", &path);
    record
}

#[test]
fn agent_gets_a_clean_process() {
    let mut world = World::new();
    let record = recording_interpreter(&mut world);
    world.set("FROM_CALLER", "yes");
    // A caller with everything ignored, everything blocked, a terminal's
    // habits and three descriptors that are nobody's business.
    let caller = "\
import os, signal, sys
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
for number, path in ((7, '/etc/passwd'), (8, '/etc'), (19, '/dev/zero')):
    opened = os.open(path, os.O_RDONLY)
    os.dup2(opened, number, inheritable=True)
os.execv(sys.argv[1], sys.argv[1:])
";
    let mut command = world.command(python());
    command
        .args(["-c", caller])
        .arg(world.link(Program::Start))
        .stdin(fs::File::open("/etc/passwd").unwrap());
    let output = run(&world, command);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    let agent = world.assert_one_agent();
    let record = fs::read_to_string(&record).unwrap();
    for mask in ["SigBlk:", "SigIgn:"] {
        let line = record.lines().find(|line| line.starts_with(mask)).unwrap();
        let signals = u64::from_str_radix(line[mask.len()..].trim(), 16).unwrap();
        // 32 and 33 belong to the C library.
        assert_eq!(signals & !(3 << 31), 0, "{mask} {record}");
    }
    for foreign in [
        "/etc",
        "/dev/zero",
        ".guard",
        "agent.lock",
        "pipe:",
        "/proc/1/",
    ] {
        let found = record
            .lines()
            .any(|line| line.contains("->") && line.contains(foreign));
        assert!(!found, "{foreign} was handed down:\n{record}");
    }
    let own = process(agent).unwrap();
    assert_eq!(
        (own.group, own.session),
        (agent, agent),
        "no session of its own"
    );
    assert_eq!(own.variable("FROM_CALLER").unwrap(), "yes");
    let link = |name: &str| fs::read_link(format!("/proc/{agent}/{name}")).unwrap();
    assert_eq!(link("fd/0"), PathBuf::from("/dev/null"));
    assert_eq!(link("fd/1"), world.log_file());
    assert_eq!(link("fd/2"), world.log_file());
    assert_eq!(link("cwd"), world.project().canonicalize().unwrap());
    let arguments: Vec<_> = own.argv.iter().skip(1).collect();
    assert_eq!(
        arguments,
        [world.script().file_name().unwrap(), "dev".as_ref()]
    );
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn agent_keeps_the_callers_umask_and_limits() {
    let mut world = World::new();
    let record = recording_interpreter(&mut world);
    let output = run(
        &world,
        after(&world, "umask 027; ulimit -n 77", Program::Start),
    );
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    let agent = world.assert_one_agent();
    let record = fs::read_to_string(record).unwrap();
    assert!(record.contains("0027"), "{record}");
    let limits = fs::read_to_string(format!("/proc/{agent}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert!(files.contains("77"), "{files}");
    world.expect(Program::Stop, 0);
}

// ---- A start in progress.

/// A start whose agent runs and has not said that it is ready.
fn start_in_progress(world: &mut World, program: Program) -> Stranger {
    world.set("TEST_AGENT_SILENT", "1");
    world.set("VOICE_GUARD_VERIFY_SECONDS", LONG);
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.3");
    let before = world.starts().len();
    let starter = Stranger::of(world.program(program));
    until("the agent of a start in progress", || {
        world.starts().len() > before
    });
    starter
}

#[test]
fn everybody_sees_a_start_in_progress() {
    let mut world = World::new();
    let mut starter = start_in_progress(&mut world, Program::Start);
    // Original scripts look at the lock file.
    let number = fs::read_to_string(world.lock_file()).unwrap();
    assert_eq!(number, format!("{}\n", starter.pid()));
    let age = world
        .lock_file()
        .metadata()
        .unwrap()
        .modified()
        .unwrap()
        .elapsed();
    assert!(age.unwrap_or_default() < Duration::from_secs(20));
    let begun = Instant::now();
    let said = world.expect(Program::Start, 1);
    assert!(said.contains("ERROR: Already running or locked"), "{said}");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "refused only after a wait"
    );
    let (code, said) = outcome(&world, Program::Check, NO_ARGUMENTS);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains(&starter.pid().to_string()) || said.contains(&world.starts()[0].to_string()),
        "{said}"
    );
    // Stop ends it: the starter sees the death and leaves.
    world.expect(Program::Stop, 0);
    let status = starter.wait();
    assert_eq!(status.code(), Some(1), "{status}");
    world.assert_nothing_left();
    world.assert_no_overlap();
}

#[test]
fn killing_the_agent_ends_its_start() {
    let mut world = World::new();
    for program in STARTERS {
        let mut starter = start_in_progress(&mut world, program);
        let agent = world.pid_in_file().unwrap();
        world.kill(agent);
        let status = starter.wait();
        assert_eq!(status.code(), Some(1), "{}: {status}", program.name());
        world.assert_nothing_left();
    }
}

#[test]
fn interrupted_start_is_undone_or_tracked() {
    let mut world = World::new();
    for deaf in [false, true] {
        if deaf {
            world.set("TEST_AGENT_DEAF", "1");
        }
        for program in STARTERS {
            for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
                let mut starter = start_in_progress(&mut world, program);
                let agent = world.pid_in_file().unwrap();
                world.signal(starter.pid(), signal);
                let status = starter.wait();
                let context = format!("{} by {signal:?}: {status}", program.name());
                assert_eq!(status.signal(), Some(signal.as_raw()), "{context}");
                if signal == Signal::HUP {
                    assert_eq!(world.assert_one_agent(), agent, "{context}");
                    world.expect(Program::Stop, 0);
                }
                assert!(!is_alive(agent), "{context}");
                world.assert_nothing_left();
            }
        }
    }
    world.assert_no_overlap();
}

#[test]
fn what_the_caller_ignores_does_not_interrupt_a_start() {
    let mut world = World::new();
    let fifo = world.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    world.set("FIFO", &fifo);
    world.set("VOICE_GUARD_VERIFY_SECONDS", LONG);
    let script = "\
import os, signal
print('not yet', flush=True)
open(os.environ['FIFO']).read()
print('registered worker', flush=True)
signal.pause()
";
    fs::write(world.script(), script).unwrap();
    // As `nohup` and a script's background jobs do it.
    let line = "trap '' INT HUP TERM";
    let mut starter = Stranger::of(after(&world, line, Program::Start));
    until("the agent", || world.log().contains("not yet"));
    for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
        world.signal(starter.pid(), signal);
    }
    drop(fs::File::create(&fifo).unwrap());
    assert_eq!(starter.wait().code(), Some(0));
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
}

#[test]
fn interrupt_from_the_keyboard_does_not_reach_the_agent_by_itself() {
    let mut world = World::new();
    // Ctrl-C goes to the whole group of the terminal's foreground job; the
    // agent has a group of its own and dies only because the starter undoes it.
    let starter = start_in_progress(&mut world, Program::Start);
    let agent = process(world.pid_in_file().unwrap()).unwrap();
    let own = process(starter.pid()).unwrap();
    assert_ne!(agent.group, own.group);
    assert_ne!(agent.session, own.session);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn start_without_a_window_returns_at_once() {
    let mut world = World::new();
    world.set("TEST_AGENT_SILENT", "1");
    world.set("VOICE_GUARD_VERIFY_SECONDS", "0");
    let (code, seen) = report(&world, Program::Start);
    assert_eq!(code, 0, "{seen}");
    world.assert_one_agent();
    world.expect(Program::Start, 1);
    world.expect(Program::Stop, 0);
    world.assert_no_overlap();
}

/// What a killed starter left is worked off by the next program at once.
#[test]
fn killed_starter_leaves_a_tracked_agent_and_blocks_nobody() {
    let mut world = World::new();
    for program in STARTERS {
        let mut starter = start_in_progress(&mut world, program);
        let agent = world.pid_in_file().unwrap();
        world.kill(starter.pid());
        let _ = starter.wait();
        let (code, said) = outcome(&world, Program::Check, NO_ARGUMENTS);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&agent.to_string()), "{said}");
        world.expect(Program::System, 0);
        assert_eq!(
            (world.agents(), world.pid_in_file()),
            (vec![agent], Some(agent))
        );
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
    world.assert_no_overlap();
}

#[test]
fn python_that_is_a_shell_script_first_is_tracked_all_along() {
    let mut world = World::new();
    // A pyenv shim, held in its shell until the test says go on.
    let fifo = world.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let shim = world.scratch().join("python3");
    let script = "#!/bin/sh\nread -r _ < \"$FIFO\"\nexec \"$REAL_PYTHON\" \"$@\"\n";
    fs::write(&shim, script).unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    world.set("FIFO", &fifo);
    world.set("REAL_PYTHON", python());
    world.set("VOICE_GUARD_PYTHON", &shim);
    world.set("VOICE_GUARD_VERIFY_SECONDS", "0.2");
    world.expect(Program::Start, 0);
    let agent = world.pid_in_file().unwrap();
    assert!(
        is_alive(agent) && world.agents().is_empty(),
        "it is a shell yet"
    );
    world.expect(Program::Check, 1);
    world.expect(Program::Start, 1);
    let (code, seen) = report(&world, Program::System);
    assert_eq!(code, 0, "{seen}");
    assert_eq!(world.pid_in_file(), Some(agent), "{seen}");
    fs::write(&fifo, "go\n").unwrap();
    until("the agent", || world.starts() == [agent]);
    assert_eq!(world.assert_one_agent(), agent);
    world.expect(Program::Stop, 0);
    // And one that never becomes an agent is stopped too.
    world.expect(Program::Start, 0);
    let shell = world.pid_in_file().unwrap();
    world.expect(Program::Stop, 0);
    assert!(!is_alive(shell));
    world.assert_nothing_left();
    world.assert_no_overlap();
}

/// A killed agent's first thread is a zombie, without descriptors, while the
/// kernel still ends the others, which hold the lock of the PID file. Made to
/// last here: the first thread leaves alone, and the other one half a second
/// after the test has seen that. (So long a start waits for it; nobody else does.)
#[test]
fn start_right_after_a_death_waits_for_the_last_thread() {
    let world = World::new();
    fs::write(
        world.script(),
        "import ctypes, os, signal, threading, time\n\
         signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
         print('registered worker', flush=True)\n\
         signal.sigwait([signal.SIGUSR1])\n\
         last = lambda: (open('release').read(), time.sleep(0.5), os._exit(0))\n\
         threading.Thread(target=last).start()\n\
         ctypes.CDLL(None).pthread_exit(None)\n",
    )
    .unwrap();
    let release = world.project().join("release");
    nix::unistd::mkfifo(&release, nix::sys::stat::Mode::S_IRWXU).unwrap();
    world.expect(Program::Start, 0);
    let first = world.assert_one_agent();
    world.signal(first, Signal::USR1);
    until("its first thread has left", || {
        fs::read_to_string(format!("/proc/{first}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    });
    assert!(world.pid_file_is_locked());
    fs::write(&release, "").unwrap();
    world.expect(Program::Start, 0);
    assert_ne!(world.assert_one_agent(), first);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}
