//! Programs in hostile surroundings: no room, no descriptors, no processes, no
//! streams, no environment, no folder, no `/proc`. The right verdict or a clear
//! error with exit code 1; never a panic, never an agent that nobody tracks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag};
use scenarios::surroundings::{
    NO_ARGUMENTS, OtherUser, Room, Stranger, after, assert_names, exit_code,
    move_files_into_sticky_folder, outcome, pids, remove_traces, report, run, verdict,
};
use scenarios::{Program, World, is_alive, left_out, process, python, text, until};

/// After whatever happened: no agent, or one that the PID file names.
#[track_caller]
fn assert_tracked_or_none(world: &World, context: &str) {
    let agents = world.agents();
    assert!(
        agents.is_empty() || (agents.len() == 1 && world.pid_in_file() == Some(agents[0])),
        "{context}\n{}",
        world.describe()
    );
}

// ---- Limits.

#[test]
fn few_descriptors() {
    let world = World::new();
    // With three descriptors the dynamic linker itself cannot load libc.
    for limit in 4..=12 {
        for program in Program::ALL {
            let line = format!("ulimit -n {limit}");
            let output = run(&world, after(&world, &line, program));
            let code = verdict(&output);
            let context = format!("{} with {limit}: {}", program.name(), text(&output));
            assert_tracked_or_none(&world, &context);
            match program {
                Program::Start | Program::System | Program::Restart => {
                    assert_eq!(world.agents().len(), usize::from(code == 0), "{context}");
                }
                // Nothing runs: what it cannot find out it has to say.
                Program::Check | Program::Stop | Program::StopSystem => assert!(
                    code == 0
                        || text(&output).contains("open files")
                        || text(&output).contains("os error 24"),
                    "{context}"
                ),
            }
            if !world.agents().is_empty() {
                world.expect(Program::Stop, 0);
            }
            world.assert_nothing_left();
        }
    }
}

#[test]
fn few_descriptors_do_not_hide_a_running_agent() {
    let world = World::new();
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    for limit in 4..=12 {
        for program in [Program::Check, Program::Start] {
            let line = format!("ulimit -n {limit}");
            let output = run(&world, after(&world, &line, program));
            assert_eq!(verdict(&output), 1, "{}: {}", program.name(), text(&output));
        }
        let output = run(
            &world,
            after(&world, &format!("ulimit -n {limit}"), Program::System),
        );
        let _ = verdict(&output);
        assert_eq!(world.assert_one_agent(), agent, "{}", text(&output));
    }
    for limit in 4..=12 {
        let output = run(
            &world,
            after(&world, &format!("ulimit -n {limit}"), Program::Stop),
        );
        let code = verdict(&output);
        assert_eq!(code == 0, world.agents().is_empty(), "{}", text(&output));
    }
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn no_process_more() {
    Room::new().enter("no_process_more", || {
        let Some(user) = OtherUser::without_processes("a limit on processes") else {
            return;
        };
        let mut world = World::new();
        user.moves_into(&mut world);
        for program in [Program::Start, Program::System, Program::Restart] {
            // POSIX knows no limit on processes; bash does.
            let mut command = world.command("bash");
            command
                .args(["-c", "ulimit -u 1; exec \"$0\""])
                .arg(world.link(program));
            user.runs(&mut command);
            let output = run(&world, command);
            assert_eq!(verdict(&output), 1, "{}: {}", program.name(), text(&output));
            assert!(world.agents().is_empty(), "{}", program.name());
            world.assert_nothing_left();
        }
        for program in [Program::Check, Program::Stop] {
            // POSIX knows no limit on processes; bash does.
            let mut command = world.command("bash");
            command
                .args(["-c", "ulimit -u 1; exec \"$0\""])
                .arg(world.link(program));
            user.runs(&mut command);
            let output = run(&world, command);
            assert_eq!(verdict(&output), 0, "{}: {}", program.name(), text(&output));
        }
    });
}

#[test]
fn little_address_space_and_file_size() {
    let world = World::new();
    for line in [
        "ulimit -v 20000",
        "ulimit -f 0",
        "ulimit -s 256",
        "ulimit -c 0; ulimit -t 1",
    ] {
        for program in Program::ALL {
            let output = run(&world, after(&world, line, program));
            // A write beyond the limit is answered by a signal, by default deadly.
            let code = output.status.code();
            let context = format!(
                "{} after {line}: {} {}",
                program.name(),
                output.status,
                text(&output)
            );
            assert!(matches!(code, Some(0 | 1)), "{context}");
            assert_tracked_or_none(&world, &context);
            let agents = world.agents().len();
            if matches!(program, Program::Start | Program::System | Program::Restart) && agents == 1
            {
                assert_eq!(code, Some(0), "{context}");
            }
            world.expect(Program::Stop, 0);
            world.assert_nothing_left();
        }
    }
}

// ---- `/tmp` and `/proc`.

#[test]
fn read_only_tmp() {
    Room::new()
        .tmpfs("/run", "mode=755")
        .worlds_in("/run")
        .tmpfs("/tmp", "mode=1777")
        .enter("read_only_tmp", || {
            let world = World::new();
            let remount = |how| {
                let status = Command::new("mount").args(["-o", how, "/tmp"]).status();
                assert!(status.unwrap().success());
            };
            world.expect(Program::Start, 0);
            let agent = world.assert_one_agent();
            remount("remount,bind,ro");
            let said = world.expect(Program::Check, 1);
            assert!(said.contains(&agent.to_string()), "{said}");
            world.expect(Program::Start, 1);
            assert_eq!(world.assert_one_agent(), agent);
            // The guard exists and can be locked: there is nothing in the way.
            world.expect(Program::Stop, 0);
            world.assert_nothing_left();

            remount("remount,bind,rw");
            fs::remove_file(world.guard_file()).unwrap();
            remount("remount,bind,ro");
            for program in [Program::Start, Program::System, Program::Restart] {
                let (code, said) = outcome(&world, program, NO_ARGUMENTS);
                assert_eq!(code, 1, "{}: {said}", program.name());
                assert_names(&said, &world.guard_file());
                assert!(world.agents().is_empty());
            }
            for program in [Program::Check, Program::Stop] {
                let (code, said) = outcome(&world, program, NO_ARGUMENTS);
                if code == 1 {
                    assert_names(&said, &world.guard_file());
                }
            }
        });
}

#[test]
fn full_tmp() {
    Room::new()
        .tmpfs("/run", "mode=755")
        .worlds_in("/run")
        .tmpfs("/tmp", "mode=1777,size=64k,nr_inodes=64")
        .enter("full_tmp", || {
            let mut world = World::new();
            let folder = Path::new("/tmp/full");
            fs::create_dir(folder).unwrap();
            for name in ["PID", "LOCK", "LOG"] {
                world.set(format!("VOICE_GUARD_{name}_FILE"), folder.join(name));
            }
            let no_blocks = || {
                // Fails at the end, which is what it is for.
                let _ = fs::write("/tmp/ballast", vec![b'x'; 1 << 20]);
            };
            let no_inodes = || {
                for number in 0..100 {
                    if fs::write(format!("/tmp/ballast{number}"), "").is_err() {
                        break;
                    }
                }
            };
            let fillings: [&dyn Fn(); 2] = [&no_blocks, &no_inodes];
            for fill in fillings {
                fill();
                for program in [Program::Start, Program::System, Program::Restart] {
                    let (code, said) = outcome(&world, program, NO_ARGUMENTS);
                    let agents = world.agents();
                    assert_eq!(
                        agents.len(),
                        usize::from(code == 0),
                        "{}: {said}",
                        program.name()
                    );
                    if code == 1 {
                        assert!(said.contains("/tmp/"), "{}: {said}", program.name());
                    } else {
                        let number = fs::read_to_string(folder.join("PID")).unwrap();
                        assert_eq!(number, format!("{}\n", agents[0]), "{said}");
                    }
                    world.expect(Program::Stop, 0);
                    assert!(world.agents().is_empty());
                }
                let _ = outcome(&world, Program::Check, NO_ARGUMENTS);
                for ballast in fs::read_dir("/tmp").unwrap() {
                    let path = ballast.unwrap().path();
                    if path.to_string_lossy().contains("ballast") {
                        fs::remove_file(path).unwrap();
                    }
                }
                // With room again, what the failures left is in nobody's way.
                world.expect(Program::Check, 0);
                world.expect(Program::Start, 0);
                assert_eq!(world.agents().len(), 1);
                world.expect(Program::Stop, 0);
            }
        });
}

#[test]
fn disk_that_fills_under_the_log_does_not_end_a_start() {
    Room::new()
        .tmpfs("/run", "mode=755")
        .worlds_in("/run")
        .tmpfs("/tmp", "mode=1777,size=64k")
        .enter("disk_that_fills_under_the_log_does_not_end_a_start", || {
            let mut world = World::new();
            let log = Path::new("/tmp/agent.log");
            world.set("VOICE_GUARD_LOG_FILE", log);
            world.set("VOICE_GUARD_VERIFY_SECONDS", "0.3");
            fs::write(world.guard_file(), "").unwrap();
            // The previous log is so large that there is no room for its copy.
            fs::write(log, vec![b'x'; 48 * 1024]).unwrap();
            let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
            if code == 0 {
                world.assert_one_agent();
            } else {
                assert_names(&said, log);
                assert!(world.agents().is_empty(), "{said}");
            }
            world.expect(Program::Stop, 0);
            world.assert_nothing_left();
        });
}

#[test]
fn no_proc() {
    Room::new()
        .tmpfs("/run", "mode=755")
        .worlds_in("/run")
        .enter("no_proc", || {
            let world = World::new();
            for program in Program::ALL {
                let mut command = world.command("unshare");
                let line = "mount -t tmpfs tmpfs /proc && exec \"$0\"";
                command
                    .args(["--mount", "sh", "-c", line])
                    .arg(world.link(program));
                let output = run(&world, command);
                assert_eq!(verdict(&output), 1, "{}", program.name());
                assert!(text(&output).contains("/proc"), "{}", text(&output));
                world.assert_nothing_left();
            }
        });
}

#[test]
fn proc_that_hides_other_users() {
    Room::new().enter("proc_that_hides_other_users", || {
        let Some(user) = OtherUser::nobody("hidepid=2") else {
            return;
        };
        let mut world = World::new();
        user.may_use(&mut world);
        let hide = Command::new("mount")
            .args(["-t", "proc", "-o", "hidepid=2", "proc", "/proc"])
            .status();
        if !hide.unwrap().success() {
            return left_out("hidepid=2", "this machine does not let /proc be mounted so");
        }
        let as_user = |world: &World, program, arguments: &[&str]| {
            let mut command = world.program(program);
            command.args(arguments);
            user.runs(&mut command);
            let output = run(world, command);
            (verdict(&output), text(&output))
        };
        // Nothing runs, but he cannot know it: whatever he is told, it is said.
        let (_, said) = as_user(&world, Program::Check, &[]);
        assert!(said.contains("hidepid") || said.contains("/proc"), "{said}");
        // Root's agent, tracked in a file that he can read: its lock is held.
        world.expect(Program::Start, 0);
        let agent = world.assert_one_agent();
        for program in [Program::Check, Program::Start] {
            let (code, said) = as_user(&world, program, &[]);
            assert_eq!(code, 1, "{}: {said}", program.name());
        }
        let (code, said) = as_user(&world, Program::Stop, &[]);
        assert_eq!(code, 1, "it cannot have been stopped: {said}");
        assert_eq!(world.assert_one_agent(), agent);
        world.expect(Program::Stop, 0);
        // A status names that as the reason, without an agent that he can see and with one.
        remove_traces(&world);
        user.moves_into(&mut world);
        let status = |why: &str| {
            let (code, said) = as_user(&world, Program::System, &["--status"]);
            assert_eq!(code, 1, "{said}");
            assert!(said.contains(why) && !said.contains("orphan"), "{said}");
        };
        status("agent: none can be seen, but not every process could be");
        let mut own = world.command(user.interpreter());
        own.arg(world.script().file_name().unwrap()).arg("dev");
        user.runs(&mut own);
        let own = Stranger::of(own);
        until("his own agent to run", || world.agents() == [own.pid()]);
        status("agent: not every process could be seen");
    });
}

// ---- What the start needs.

#[test]
fn missing_or_useless_agent_script() {
    let world = World::new();
    fs::remove_file(world.script()).unwrap();
    for program in [Program::Start, Program::System, Program::Restart] {
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, 1, "{}: {said}", program.name());
        assert_names(&said, &world.script());
        world.assert_nothing_left();
    }
    fs::create_dir(world.script()).unwrap();
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    assert_eq!(code, 1, "{said}");
    assert_names(&said, &world.script());
    world.assert_nothing_left();
}

#[test]
fn missing_or_useless_interpreter() {
    let mut world = World::new();
    let file = |name, content: &str, mode| {
        let path = world.scratch().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    let useless = [
        world.scratch().join("missing"),
        world.scratch(),
        file("not-executable", "", 0o644),
        file("empty", "", 0o755),
        file("no-interpreter", "#!/missing/interpreter\n", 0o755),
        file("garbage", "\u{7f}ELF garbage", 0o755),
    ];
    for interpreter in useless {
        world.set("VOICE_GUARD_PYTHON", &interpreter);
        for program in [Program::Start, Program::System, Program::Restart] {
            let (code, said) = outcome(&world, program, NO_ARGUMENTS);
            assert_eq!(code, 1, "{}: {said}", program.name());
            assert_names(&said, &interpreter);
            world.assert_nothing_left();
        }
        // A broken interpreter is no reason not to find or stop an agent.
        world.expect(Program::Check, 0);
        world.expect(Program::Stop, 0);
    }
}

#[test]
fn log_that_cannot_be_written() {
    let mut world = World::new();
    let precious = world.scratch().join("precious");
    fs::write(&precious, "precious\n").unwrap();
    let logs = world.path("logs");
    fs::create_dir(&logs).unwrap();
    let folder = logs.join("folder");
    fs::create_dir(&folder).unwrap();
    let fifo = logs.join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o666)).unwrap();
    let link = logs.join("link");
    symlink(&precious, &link).unwrap();
    let nowhere = logs.join("nowhere");
    symlink(world.scratch().join("made"), &nowhere).unwrap();
    for log in [folder, fifo, link, nowhere] {
        world.set("VOICE_GUARD_LOG_FILE", &log);
        for program in [Program::Start, Program::System, Program::Restart] {
            let (code, said) = outcome(&world, program, NO_ARGUMENTS);
            assert_eq!(
                fs::read_to_string(&precious).unwrap(),
                "precious\n",
                "{said}"
            );
            assert!(!world.scratch().join("made").exists(), "{said}");
            assert_eq!(code, 1, "{} with {}: {said}", program.name(), log.display());
            assert_names(&said, &log);
            world.assert_nothing_left();
        }
    }
}

#[test]
fn log_that_belongs_to_another_user() {
    Room::new().enter("log_that_belongs_to_another_user", || {
        let Some(user) = OtherUser::nobody("a log of root's before another user") else {
            return;
        };
        let mut world = World::new();
        user.moves_into(&mut world);
        fs::write(world.log_file(), "root's\n").unwrap();
        fs::set_permissions(world.log_file(), Permissions::from_mode(0o644)).unwrap();
        chown(world.log_file(), Some(0), Some(0)).unwrap();
        let mut command = world.program(Program::Start);
        user.runs(&mut command);
        let output = run(&world, command);
        assert_eq!(verdict(&output), 1, "{}", text(&output));
        assert_names(&text(&output), &world.log_file());
        world.assert_nothing_left();
    });
}

#[test]
fn log_that_is_a_device() {
    let mut world = World::new();
    // A null device of the world's own, never the machine's.
    let log = world.path("null");
    let mode = Mode::from_bits_truncate(0o666);
    let device = nix::sys::stat::makedev(1, 3);
    if nix::sys::stat::mknod(&log, SFlag::S_IFCHR, mode, device).is_err() {
        return left_out("a log that is a device", "needs root, to make one");
    }
    world.set("VOICE_GUARD_LOG_FILE", &log);
    world.set("VOICE_GUARD_VERIFY_SECONDS", "0.2");
    // Nothing can be read back from it: success without confirmation, or a refusal.
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    if code == 1 {
        assert_names(&said, &log);
    }
    assert_eq!(world.agents().len(), usize::from(code == 0), "{said}");
    assert!(!world.path("null.1").exists());
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
    let kind = log.symlink_metadata().unwrap().file_type();
    assert!(kind.is_char_device(), "the device was removed or replaced");
}

#[test]
fn deleted_working_folder() {
    let mut world = World::new();
    let gone = world.scratch().join("gone");
    let line = format!("mkdir '{0}' && cd '{0}' && rmdir '{0}'", gone.display());
    let from_nowhere = |world: &World, program| {
        let output = run(world, after(world, &line, program));
        (verdict(&output), text(&output))
    };
    for (program, expected) in [
        (Program::Check, 0),
        (Program::Stop, 0),
        (Program::Start, 0),
        (Program::Check, 1),
        (Program::System, 0),
        (Program::Restart, 0),
        (Program::Stop, 0),
    ] {
        let (code, said) = from_nowhere(&world, program);
        assert_eq!(code, expected, "{}: {said}", program.name());
    }
    world.assert_nothing_left();
    world.assert_no_overlap();

    // Now nothing says where the project is, but for the link that was called.
    world.unset("VOICE_GUARD_PROJECT_DIR");
    let (code, said) = from_nowhere(&world, Program::Start);
    assert_eq!(code, 0, "{said}");
    world.expect(Program::Stop, 0);
    // And now nothing at all.
    let lost = world.path("lost.sh");
    fs::rename(world.link(Program::Start), &lost).unwrap();
    let mut command = world.shell(&format!("{line}\nexec \"$0\""));
    command.arg(&lost);
    let output = run(&world, command);
    assert_eq!(verdict(&output), 1, "{}", text(&output));
    assert!(world.agents().is_empty());
    world.assert_nothing_left();
}

#[test]
fn project_folder_that_is_missing_or_no_folder() {
    let mut world = World::new();
    let file = world.scratch().join("file");
    fs::write(&file, "").unwrap();
    for folder in [world.scratch().join("missing"), file] {
        world.set("VOICE_GUARD_PROJECT_DIR", &folder);
        let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
        assert_eq!(code, 1, "{said}");
        assert_names(&said, &folder);
        world.assert_nothing_left();
    }
}

// ---- Streams.

const STREAMS: [&str; 9] = [
    ">&-",
    "2>&-",
    "<&-",
    ">&- 2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    ">/dev/full 2>&1",
    "</dev/full >/dev/full 2>/dev/full",
    ">/dev/null 2>&1",
];

#[test]
fn closed_or_full_streams_change_nothing_but_the_message() {
    let world = World::new();
    for streams in STREAMS {
        for (program, expected) in [
            (Program::Check, 0),
            (Program::Stop, 0),
            (Program::Start, 0),
            (Program::Check, 1),
            (Program::Start, 1),
            (Program::System, 0),
            (Program::Restart, 0),
            (Program::Stop, 0),
        ] {
            let output = run(&world, after(&world, &format!("exec {streams}"), program));
            let code = exit_code(&output);
            let context = format!("{} {streams}: {}", program.name(), text(&output));
            assert_eq!(code, expected, "{context}\n{}", world.describe());
            // With no stream open, files that are opened get the streams'
            // numbers: no message may end up in one of them.
            if program == Program::Start && expected == 0 {
                let agent = world.assert_one_agent();
                let number = format!("{agent}\n").into_bytes();
                assert_eq!(fs::read(world.pid_file()).unwrap(), number, "{context}");
                let guard = fs::read(world.guard_file()).unwrap();
                let is_number = |byte: &u8| byte.is_ascii_digit() || b" \n".contains(byte);
                assert!(guard.iter().all(is_number), "{context}: {guard:?}");
                let log = world.log();
                assert!(log.starts_with("starting worker\n"), "{context}: {log}");
                assert!(!log.contains("PID"), "{context}: {log}");
                let stdin = fs::read_link(format!("/proc/{agent}/fd/0")).unwrap();
                assert_eq!(stdin, Path::new("/dev/null"), "{context}");
                for stream in 1..=2 {
                    let stream = fs::read_link(format!("/proc/{agent}/fd/{stream}")).unwrap();
                    assert_eq!(stream, world.log_file(), "{context}");
                }
            }
        }
        world.assert_nothing_left();
    }
    world.assert_no_overlap();
}

#[test]
fn broken_pipe_changes_nothing_but_the_message() {
    let world = World::new();
    // The reader is gone before anything is written; whether a write then kills
    // depends on what the caller does with SIGPIPE, so both are tried.
    for disposition in ["SIG_DFL", "SIG_IGN"] {
        for (program, expected) in [
            (Program::Check, 0),
            (Program::Start, 0),
            (Program::Check, 1),
            (Program::Start, 1),
            (Program::Restart, 0),
            (Program::System, 0),
            (Program::Stop, 0),
        ] {
            let mut command = world.command(python());
            command.args([
                "-c",
                "import os, signal, sys\n\
                 reading, writing = os.pipe()\n\
                 os.close(reading)\n\
                 os.dup2(writing, 1)\n\
                 os.dup2(writing, 2)\n\
                 signal.signal(signal.SIGPIPE, getattr(signal, sys.argv[2]))\n\
                 os.execv(sys.argv[1], sys.argv[1:2])\n",
            ]);
            command.arg(world.link(program)).arg(disposition);
            let output = run(&world, command);
            assert_eq!(exit_code(&output), expected, "{}", world.describe());
        }
        world.assert_nothing_left();
    }
    world.assert_no_overlap();
}

// ---- What the caller hands down.

#[test]
fn empty_environment() {
    let world = World::new();
    let flags = |program: Program| {
        let mut command = world.command("env");
        command.arg("-i").arg(world.link(program));
        for (flag, value) in [
            ("--project-dir", world.project().as_os_str()),
            ("--agent-script", world.script().file_name().unwrap()),
            ("--python", python().as_os_str()),
            ("--pid-file", world.pid_file().as_os_str()),
            ("--lock-file", world.lock_file().as_os_str()),
            ("--log-file", world.log_file().as_os_str()),
        ] {
            command.arg(flag).arg(value);
        }
        let output = run(&world, command);
        (verdict(&output), text(&output))
    };
    // The test agent needs its environment; this one needs none.
    let script = "import signal\nprint('registered worker', flush=True)\nsignal.pause()\n";
    fs::write(world.script(), script).unwrap();
    for (program, expected) in [
        (Program::Check, 0),
        (Program::Start, 0),
        (Program::Check, 1),
        (Program::System, 0),
        (Program::Restart, 0),
    ] {
        let (code, said) = flags(program);
        assert_eq!(code, expected, "{}: {said}", program.name());
    }
    let agent = world.assert_one_agent();
    let names: Vec<_> = process(agent)
        .unwrap()
        .environ
        .iter()
        .map(|entry| {
            entry
                .to_string_lossy()
                .split('=')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(names, ["VOICE_GUARD_MARK"]);
    let (code, said) = flags(Program::Stop);
    assert_eq!(code, 0, "{said}");
    assert!(!is_alive(agent));
    // Without any PATH only a path can name the interpreter.
    let mut command = world.command("env");
    command.args(["-i"]).arg(world.link(Program::Start));
    command
        .arg("--agent-script")
        .arg(world.script().file_name().unwrap());
    command.arg("--pid-file").arg(world.pid_file());
    command.arg("--lock-file").arg(world.lock_file());
    command.arg("--log-file").arg(world.log_file());
    let output = run(&world, command);
    if verdict(&output) == 1 {
        assert!(text(&output).contains("python3"), "{}", text(&output));
        assert!(world.agents().is_empty());
    } else {
        // The system's default path led to one.
        world.assert_one_agent();
        let mut command = world.program(Program::Stop);
        command.env_remove("VOICE_GUARD_PYTHON");
        assert_eq!(verdict(&run(&world, command)), 0);
    }
}

#[test]
fn environment_that_is_no_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let mut world = World::new();
    world.set("ODD", OsStr::from_bytes(b"\xff\xfe=\n"));
    world.set("LANG", OsStr::from_bytes(b"\xff"));
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    let odd = process(agent).unwrap();
    assert_eq!(odd.variable("ODD"), Some(OsStr::from_bytes(b"\xff\xfe=\n")));
    world.expect(Program::Check, 1);
    world.expect(Program::Stop, 0);
}

#[test]
fn odd_names_of_the_program_itself() {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PROJECT_DIR");
    let long = "x".repeat(5000);
    for name in [
        "",
        "/",
        "./",
        "..",
        "-",
        "--json",
        "/missing/start.sh",
        "a\nb",
        &long,
        ".",
    ] {
        let as_named = |program| {
            let mut command = world.command(world.link(program));
            command.arg0(name);
            let output = run(&world, command);
            (verdict(&output), text(&output))
        };
        // The working folder is the project folder: that is where it is found.
        let (code, said) = as_named(Program::Start);
        assert_eq!(code, 0, "called {name:?}: {said}");
        world.assert_one_agent();
        let (code, said) = as_named(Program::Check);
        assert_eq!(code, 1, "called {name:?}: {said}");
        let (code, said) = as_named(Program::Stop);
        assert_eq!(code, 0, "called {name:?}: {said}");
        world.assert_nothing_left();
    }
}

#[test]
fn caller_that_ignores_dead_children_learns_how_the_agent_died() {
    let mut world = World::new();
    world.set("TEST_AGENT_DIE_AFTER", "0");
    world.set("TEST_AGENT_DIE_WITH", "23");
    let mut command = world.command(python());
    command.args([
        "-c",
        "import os, signal, sys\n\
         signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
         os.execv(sys.argv[1], sys.argv[1:])\n",
    ]);
    command.arg(world.link(Program::Start));
    let output = run(&world, command);
    assert_eq!(verdict(&output), 1);
    assert!(text(&output).contains("23"), "{}", text(&output));
    world.assert_nothing_left();
}

#[test]
fn narrowest_umask() {
    Room::new().enter("narrowest_umask", || {
        let Some(user) = OtherUser::nobody("umask 777, which does not bind root") else {
            return;
        };
        let mut world = World::new();
        user.moves_into(&mut world);
        for (program, expected) in [(Program::Start, 0), (Program::Check, 1), (Program::Stop, 0)] {
            let mut command = after(&world, "umask 777", program);
            command.env("VOICE_GUARD_VERIFY_SECONDS", "0.5");
            user.runs(&mut command);
            let output = run(&world, command);
            let (code, said) = (verdict(&output), text(&output));
            assert_tracked_or_none(&world, &said);
            if code == 1 && program == Program::Start {
                // A log that cannot be read back may be refused, if it is said.
                assert_names(&said, &world.log_file());
                return;
            }
            assert_eq!(code, expected, "{}: {said}", program.name());
        }
        world.assert_nothing_left();
    });
}

// ---- Other users.

#[test]
fn agent_of_another_user_is_named_and_counts_but_is_not_stopped() {
    Room::new().enter(
        "agent_of_another_user_is_named_and_counts_but_is_not_stopped",
        || {
            let Some(user) = OtherUser::nobody("an agent of root's before another user") else {
                return;
            };
            let mut world = World::new();
            user.may_use(&mut world);
            move_files_into_sticky_folder(&mut world);
            let hand = world.agent_by_hand("dev");
            let as_user = |program| {
                let mut command = world.program(program);
                command.arg("--grace-seconds").arg("0.2");
                user.runs(&mut command);
                let output = run(&world, command);
                (verdict(&output), text(&output))
            };
            for program in [
                Program::Check,
                Program::Start,
                Program::Stop,
                Program::Restart,
            ] {
                let (code, said) = as_user(program);
                assert_eq!(code, 1, "{}: {said}", program.name());
                assert!(
                    said.contains(&hand.pid().to_string()),
                    "{}: {said}",
                    program.name()
                );
                assert!(
                    said.contains("root"),
                    "{} does not say whose: {said}",
                    program.name()
                );
                assert_eq!(world.agents(), [hand.pid()], "{}", program.name());
            }
            // One agent in the wanted mode runs; whether he may take it into a file of
            // root's folder is another matter, that it runs is not.
            let (_, said) = as_user(Program::System);
            assert!(said.contains(&hand.pid().to_string()), "{said}");
            assert_eq!(world.agents(), [hand.pid()]);
            world.expect(Program::Stop, 0);
            world.assert_nothing_left();
        },
    );
}

#[test]
fn stopping_names_whom_it_could_not_stop_and_stops_the_others() {
    Room::new().enter(
        "stopping_names_whom_it_could_not_stop_and_stops_the_others",
        || {
            let Some(user) = OtherUser::nobody("one agent of one's own, one of root's") else {
                return;
            };
            let mut world = World::new();
            user.moves_into(&mut world);
            let as_user = |program| {
                let mut command = world.program(program);
                user.runs(&mut command);
                let output = run(&world, command);
                (verdict(&output), text(&output))
            };
            let (code, said) = as_user(Program::Start);
            assert_eq!(code, 0, "{said}");
            let own = world.assert_one_agent();
            let roots = world.agent_by_hand("dev");
            let (code, said) = as_user(Program::Stop);
            assert_eq!(code, 1, "{said}");
            assert!(said.contains(&roots.pid().to_string()), "{said}");
            assert!(!is_alive(own), "{said}");
            assert_eq!(world.agents(), [roots.pid()]);
            let (code, report) = report(&world, Program::Stop);
            assert_eq!(
                (code, &*report["outcome"].to_string()),
                (0, "\"stopped\""),
                "{report}"
            );
            assert_eq!(
                pids(&report, "stopped"),
                [u64::from(roots.pid())],
                "{report}"
            );
            world.assert_nothing_left();
        },
    );
}

#[test]
fn root_starts_as_root_and_stops_what_a_user_started() {
    Room::new().enter("root_starts_as_root_and_stops_what_a_user_started", || {
        let Some(user) = OtherUser::nobody("an agent of another user before root") else {
            return;
        };
        let mut world = World::new();
        user.moves_into(&mut world);
        let mut command = world.program(Program::Start);
        user.runs(&mut command);
        assert_eq!(verdict(&run(&world, command)), 0);
        let agent = world.assert_one_agent();
        let said = world.expect(Program::Check, 1);
        assert!(said.contains(&agent.to_string()), "{said}");
        assert!(
            said.contains("nobody") || said.contains(&user.uid().to_string()),
            "{said}"
        );
        world.expect(Program::Start, 1);
        world.expect(Program::System, 0);
        assert_eq!(world.assert_one_agent(), agent);
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    });
}

#[test]
fn many_processes_and_long_command_lines_hide_nothing() {
    let world = World::new();
    let mut crowd: Vec<_> = (0..30)
        .map(|number| {
            let mut command = world.command("sleep");
            // Longer than any one buffer, and with the script's name in it.
            command.arg0("x".repeat(100_000 + number)).arg("1000");
            Stranger::of(command)
        })
        .collect();
    let mut named = world.command("sleep");
    named
        .arg0(format!("python3\n{}\ndev", world.script().display()))
        .arg("1000");
    crowd.push(Stranger::of(named));
    world.expect(Program::Check, 0);
    let agent = world.agent_by_hand("dev");
    let said = world.expect(Program::Check, 1);
    assert!(said.contains(&agent.pid().to_string()), "{said}");
    world.expect(Program::Stop, 0);
    until("the agent's end", || world.agents().is_empty());
    for stranger in &mut crowd {
        stranger.assert_lives();
    }
}

/// A process that is not dumpable (set-capability interpreters, some key
/// agents) hides its environment even from its own user.
#[test]
fn agent_whose_environment_is_private_is_found_and_stopped() {
    Room::new().enter(
        "agent_whose_environment_is_private_is_found_and_stopped",
        || {
            let Some(user) = OtherUser::nobody("an agent that is not dumpable") else {
                return;
            };
            let mut world = World::new();
            let script = "\
import ctypes, signal
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print('registered worker', flush=True)
signal.pause()
";
            fs::write(world.script(), script).unwrap();
            user.moves_into(&mut world);
            let as_user = |program| {
                let mut command = world.program(program);
                user.runs(&mut command);
                let output = run(&world, command);
                (verdict(&output), text(&output))
            };
            let (code, said) = as_user(Program::Start);
            assert_eq!(code, 0, "{said}");
            let agent = world.assert_one_agent();
            for removed in [false, true] {
                if removed {
                    fs::remove_file(world.pid_file()).unwrap();
                }
                for program in [Program::Check, Program::Start] {
                    let (code, said) = as_user(program);
                    assert_eq!(code, 1, "{}: {said}", program.name());
                    assert!(said.contains(&agent.to_string()), "{said}");
                }
            }
            let (code, said) = as_user(Program::System);
            assert_eq!(code, 0, "{said}");
            assert_eq!(world.assert_one_agent(), agent);
            let (code, said) = as_user(Program::Stop);
            assert_eq!(code, 0, "{said}");
            assert!(!is_alive(agent));
            world.assert_nothing_left();
        },
    );
}

#[test]
fn no_file_watch_more() {
    const EXHAUST: &str = "\
import ctypes, signal
libc = ctypes.CDLL(None)
while libc.inotify_init1(0) >= 0:
    pass
print('exhausted', flush=True)
signal.pause()
";
    Room::new().enter("no_file_watch_more", || {
        let Some(user) = OtherUser::without_processes("a limit on file watches") else {
            return;
        };
        let mut world = World::new();
        user.moves_into(&mut world);
        world.set("TEST_AGENT_READY_DELAY", "0.3");
        world.set("VOICE_GUARD_VERIFY_SECONDS", "30");
        let mut command = world.command(user.interpreter());
        command.args(["-c", EXHAUST]).stdout(Stdio::piped());
        user.runs(&mut command);
        let mut hog = Stranger::of(command);
        let mut line = String::new();
        BufReader::new(hog.stdout()).read_line(&mut line).unwrap();
        assert_eq!(line, "exhausted\n");
        let mut start = world.program(Program::Start);
        start.arg("--json");
        user.runs(&mut start);
        let output = run(&world, start);
        assert_eq!(verdict(&output), 0, "{}", text(&output));
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(seen["registration_confirmed"], true, "{seen}");
        world.assert_one_agent();
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
        hog.assert_lives();
    });
}
