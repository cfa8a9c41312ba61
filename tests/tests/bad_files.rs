//! Tracking files as a crash, an editor, another user or an enemy leaves them:
//! the right verdict or a clear error, nothing followed through a link, no
//! stranger signalled.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::stat::{Mode, SFlag};
use scenarios::surroundings::{
    NO_ARGUMENTS, OtherUser, Room, Stranger, after, assert_names, move_files_into_sticky_folder,
    outcome, pids, remove_traces, report, run, verdict,
};
use scenarios::{Program, World, left_out, python, text};

const HOUR: Duration = Duration::from_hours(1);

/// Contents of a PID file that name no process at all.
fn worthless_contents() -> Vec<(&'static str, Vec<u8>)> {
    let dead = unused_pid();
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("empty", text("")),
        ("a newline", text("\n")),
        ("garbage", text("not a number\n")),
        ("negative", text("-1\n")),
        (
            "minus a living group",
            text(&format!("-{}\n", std::process::id())),
        ),
        ("zero", text("0\n")),
        ("beyond 32 bits", text("4294967297\n")),
        ("beyond 64 bits", text("99999999999999999999999999\n")),
        ("a dead process", text(&format!("{dead}\n"))),
        ("hexadecimal", text("0x10\n")),
        ("a fraction", text("1.5\n")),
        ("binary", vec![0, 255, 10, 0, 49, 0]),
        ("not UTF-8", vec![0xff, 0xfe, b'1', b'2']),
        ("several lines", text(&format!("{dead}\n{dead}\n\n"))),
        ("Windows line end", text(&format!("{dead}\r\n"))),
        ("a megabyte of digits", vec![b'7'; 1 << 20]),
    ]
}

/// A number that no process has: above the kernel's highest (2^22).
fn unused_pid() -> u32 {
    4_194_304 + 1
}

fn set_age(file: &Path, age: Duration) {
    let file = File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

fn set_ahead(file: &Path, ahead: Duration) {
    let file = File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() + ahead).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A file that nobody who follows a link may touch.
fn victim(world: &World) -> PathBuf {
    world.scratch().join("victim")
}

/// A character device of the kernel's memory devices (3 is null, 5 zero); where
/// only root may make one, a FIFO, which is no plain file either.
fn make_device(path: &Path, minor: u64) {
    let mode = Mode::from_bits_truncate(0o666);
    let device = nix::sys::stat::makedev(1, minor);
    if nix::sys::stat::mknod(path, SFlag::S_IFCHR, mode, device).is_err() {
        left_out("a device in place of a file", "needs root, to make one");
        nix::unistd::mkfifo(path, mode).unwrap();
    }
}

/// What may stand where a tracking file belongs.
#[derive(Debug, Clone, Copy)]
enum Obstacle {
    Folder,
    FullFolder,
    Fifo,
    Socket,
    LinkToFile,
    LinkToNothing,
    LinkToItself,
    LinkToEndlessDevice,
    /// A node of the world's own: a program that is wrong as root must not be
    /// able to remove or change one of the machine's.
    Device,
}

impl Obstacle {
    const ALL: [Self; 9] = [
        Self::Folder,
        Self::FullFolder,
        Self::Fifo,
        Self::Socket,
        Self::LinkToFile,
        Self::LinkToNothing,
        Self::LinkToItself,
        Self::LinkToEndlessDevice,
        Self::Device,
    ];

    fn put(self, world: &World, path: &Path) {
        match self {
            Self::Folder => fs::create_dir(path).unwrap(),
            Self::FullFolder => {
                fs::create_dir(path).unwrap();
                fs::write(path.join("precious"), "precious\n").unwrap();
            }
            Self::Fifo => nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o666)).unwrap(),
            Self::Socket => drop(UnixListener::bind(path).unwrap()),
            Self::LinkToFile => {
                fs::write(victim(world), "precious\n").unwrap();
                symlink(victim(world), path).unwrap();
            }
            Self::LinkToNothing => {
                let _ = fs::remove_file(victim(world));
                symlink(victim(world), path).unwrap();
            }
            Self::LinkToItself => symlink(path, path).unwrap(),
            Self::LinkToEndlessDevice => {
                let device = world.scratch().join("zero");
                if !device.exists() {
                    make_device(&device, 5);
                }
                symlink(device, path).unwrap();
            }
            Self::Device => make_device(path, 3),
        }
    }

    /// Fails if something was written, made or removed through it.
    #[track_caller]
    fn assert_untouched(self, world: &World, path: &Path) {
        match self {
            Self::LinkToFile => {
                assert_eq!(fs::read_to_string(victim(world)).unwrap(), "precious\n");
                assert_eq!(victim(world).metadata().unwrap().nlink(), 1);
            }
            Self::LinkToNothing => assert!(
                victim(world).symlink_metadata().is_err(),
                "a file was made through a link"
            ),
            Self::FullFolder => {
                assert_eq!(
                    fs::read_to_string(path.join("precious")).unwrap(),
                    "precious\n"
                );
            }
            // What is no plain file was made by nobody's program, and removing
            // it could take a machine's device away.
            Self::Folder => assert!(path.is_dir(), "a folder was removed"),
            Self::Fifo | Self::Socket | Self::Device => assert!(
                path.symlink_metadata().is_ok_and(|found| !found.is_file()),
                "{self:?} was removed or replaced"
            ),
            Self::LinkToItself | Self::LinkToEndlessDevice => {}
        }
    }

    fn remove(path: &Path) {
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
            Ok(_) => fs::remove_file(path).unwrap(),
            Err(_) => {}
        }
    }
}

// ---- The PID file.

#[test]
fn worthless_pid_file_never_stands_in_the_way() {
    // PID 1 and whole groups are named here: those of a room.
    Room::new().enter("worthless_pid_file_never_stands_in_the_way", || {
        let world = World::new();
        for (what, content) in worthless_contents() {
            let write = || fs::write(world.pid_file(), &content).unwrap();
            write();
            let (code, said) = outcome(&world, Program::Check, &["--dry-run"]);
            assert_eq!(code, 0, "{what}: {said}");
            assert_eq!(
                fs::read(world.pid_file()).unwrap(),
                content,
                "{what}: a dry run wrote"
            );
            let said = world.expect(Program::Check, 0);
            assert!(
                !world.pid_file().exists(),
                "{what}: left by check, which said {said}"
            );

            write();
            world.expect(Program::Start, 0);
            world.assert_one_agent();
            // An editor or a script writes into the file of the running agent.
            write();
            let (code, said) = outcome(&world, Program::Check, NO_ARGUMENTS);
            assert_eq!(code, 1, "{what}: the running agent is overlooked: {said}");
            world.expect(Program::Start, 1);
            assert_eq!(world.agents().len(), 1, "{what}");
            world.expect(Program::Stop, 0);
            world.assert_nothing_left();

            write();
            world.expect(Program::Stop, 0);
            world.assert_nothing_left();
        }
        world.assert_no_overlap();
    });
}

#[test]
fn huge_pid_file_is_not_read_whole() {
    let world = World::new();
    let file = File::create(world.pid_file()).unwrap();
    file.set_len(1 << 40).unwrap();
    let begun = Instant::now();
    world.expect(Program::Check, 0);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn agent_by_hand_is_seen_whatever_the_pid_file_says() {
    let world = World::new();
    let mut stranger = Stranger::sleeping(&world);
    let agent = world.agent_by_hand("dev");
    let (number, other) = (agent.pid(), stranger.pid());
    for content in [
        String::new(),
        format!("{other}\n"),
        format!("{number}\r\n"),
        format!("{number}"),
        format!("{number}\n{other}\n"),
        format!("  {number}\n"),
        format!("{}\n", unused_pid()),
    ] {
        fs::write(world.pid_file(), &content).unwrap();
        let (code, said) = outcome(&world, Program::Check, NO_ARGUMENTS);
        assert_eq!(code, 1, "{content:?}: {said}");
        assert!(said.contains(&number.to_string()), "{content:?}: {said}");
    }
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
    stranger.assert_lives();
}

#[test]
fn number_of_a_stranger_is_no_agent_and_gets_no_signal() {
    // PID 1 and whole groups are named here: those of a room.
    Room::new().enter(
        "number_of_a_stranger_is_no_agent_and_gets_no_signal",
        || {
            let world = World::new();
            let mut stranger = Stranger::sleeping(&world);
            let mut dead = world.agent_by_hand("dev");
            world.kill(dead.pid());
            for (who, number) in [
                ("a stranger", stranger.pid()),
                ("PID 1", 1),
                ("the test", std::process::id()),
                ("a zombie", dead.pid()),
            ] {
                let write = || fs::write(world.pid_file(), format!("{number}\n")).unwrap();
                write();
                world.expect(Program::Check, 0);
                write();
                world.expect(Program::Stop, 0);
                assert!(!world.pid_file().exists(), "{who}: the file is left");
                write();
                world.expect(Program::Start, 0);
                assert_ne!(world.assert_one_agent(), number, "{who}");
                // Now the running agent's own file gets the stranger's number.
                write();
                world.expect(Program::Restart, 0);
                world.assert_one_agent();
                write();
                world.expect(Program::Stop, 0);
                world.assert_nothing_left();
                write();
                world.expect(Program::System, 0);
                world.assert_one_agent();
                world.expect(Program::Stop, 0);
                world.assert_nothing_left();
                stranger.assert_lives();
            }
            world.assert_no_overlap();
            dead.wait();
        },
    );
}

#[test]
fn dry_run_removes_nothing_and_check_says_what_it_removed() {
    let world = World::new();
    fs::write(world.pid_file(), format!("{}\n", unused_pid())).unwrap();
    fs::write(world.lock_file(), format!("{}\n", unused_pid())).unwrap();
    set_age(&world.lock_file(), HOUR);
    let (code, _) = outcome(&world, Program::Check, &["--dry-run"]);
    assert_eq!(code, 0);
    assert!(world.pid_file().exists() && world.lock_file().exists());
    let (code, report) = report(&world, Program::Check);
    assert_eq!(code, 0);
    assert!(!world.pid_file().exists() && !world.lock_file().exists());
    let removed = report["files_removed"].to_string();
    assert_names(&removed, &world.pid_file());
    assert_names(&removed, &world.lock_file());
}

#[test]
fn hard_linked_pid_file_is_replaced_not_written() {
    let world = World::new();
    fs::write(victim(&world), "precious\n").unwrap();
    fs::hard_link(victim(&world), world.pid_file()).unwrap();
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    assert_eq!(fs::read_to_string(victim(&world)).unwrap(), "precious\n");
    world.expect(Program::Stop, 0);
}

#[test]
fn pid_file_is_the_number_and_a_newline_and_nothing_else() {
    let world = World::new();
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    assert_eq!(
        fs::read(world.pid_file()).unwrap(),
        format!("{agent}\n").into_bytes()
    );
    let shown = Command::new("sh")
        .args(["-c", "ps -p $(cat \"$0\") -o args="])
        .arg(world.pid_file())
        .output()
        .unwrap();
    if shown.status.code() == Some(127) {
        left_out("`ps -p $(cat PIDFILE)`", "this machine has no ps");
    } else {
        let command_line = format!("{}.py dev", world.family());
        assert!(text(&shown).contains(&command_line), "{}", text(&shown));
    }
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn stranger_that_locks_the_pid_file_blocks_nobody() {
    let world = World::new();
    fs::write(world.pid_file(), format!("{}\n", unused_pid())).unwrap();
    let mut keeper = holder(&world, &world.pid_file());
    let (code, said) = outcome(&world, Program::Check, &["--dry-run"]);
    assert_eq!(code, 0, "{said}");
    fs::write(world.pid_file(), format!("{}\n", keeper.pid())).unwrap();
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
    keeper.assert_lives();
}

// ---- What is no regular file.

/// Every program against an obstacle: nobody is harmed, and either the program
/// does its work or it names the obstacle.
#[track_caller]
fn face(world: &World, path: &Path, obstacle: Obstacle) {
    let mut codes = Vec::new();
    for program in [
        Program::Check,
        Program::Start,
        Program::System,
        Program::Restart,
        Program::Stop,
    ] {
        obstacle.put(world, path);
        let output = run(world, world.program(program));
        let (code, said) = (verdict(&output), text(&output));
        let place = format!(
            "{} before {obstacle:?} at {}, saying {said}",
            program.name(),
            path.display()
        );
        obstacle.assert_untouched(world, path);
        if code == 1 {
            assert_names(&said, path);
        }
        if code == 1 || matches!(program, Program::Check | Program::Stop) {
            assert!(world.agents().is_empty(), "{place}");
        } else {
            world.assert_one_agent();
            assert!(!world.pid_file().is_symlink(), "{place}");
            world.expect(Program::Stop, 0);
        }
        codes.push(code);
        Obstacle::remove(path);
    }
    assert_eq!(
        codes[0],
        codes[1],
        "check promises more than start can keep, before {obstacle:?} at {}",
        path.display()
    );
    // And afterwards everything is as new.
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn obstacle_in_place_of_the_pid_file() {
    let world = World::new();
    for obstacle in Obstacle::ALL {
        face(&world, &world.pid_file(), obstacle);
    }
    world.assert_no_overlap();
}

#[test]
fn obstacle_in_place_of_the_lock_file() {
    let world = World::new();
    for obstacle in Obstacle::ALL {
        face(&world, &world.lock_file(), obstacle);
    }
    world.assert_no_overlap();
}

#[test]
fn obstacle_in_place_of_the_temporary_files() {
    let world = World::new();
    for name in [".agent.pid.new", ".agent.lock.new"] {
        for obstacle in Obstacle::ALL {
            obstacle.put(&world, &world.path(name));
            let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
            obstacle.assert_untouched(&world, &world.path(name));
            if code == 0 {
                assert_eq!(world.agents().len(), 1, "{obstacle:?} at {name}: {said}");
                assert_eq!(world.pid_in_file(), world.agents().first().copied());
                world.expect(Program::Stop, 0);
            } else {
                assert_names(&said, &world.path(name));
                assert!(world.agents().is_empty(), "{obstacle:?} at {name}: {said}");
            }
            Obstacle::remove(&world.path(name));
        }
        // What a killed starter leaves is no obstacle at all.
        fs::write(world.path(name), "4194305\n").unwrap();
        world.expect(Program::Start, 0);
        world.assert_one_agent();
        world.expect(Program::Stop, 0);
    }
    world.assert_no_overlap();
}

#[test]
fn files_turned_into_links_in_the_middle_of_a_start_are_not_followed() {
    let mut world = World::new();
    fs::write(victim(&world), "precious\n").unwrap();
    // The agent, a part of the start, is where the enemy strikes.
    let script = "\
import os, signal
for name in ('PID', 'LOCK'):
    path = os.environ['VOICE_GUARD_%s_FILE' % name]
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(os.environ['VICTIM'], path)
print('registered worker', flush=True)
signal.pause()
";
    fs::write(world.script(), script).unwrap();
    world.set("VICTIM", victim(&world));
    for program in [Program::Start, Program::System, Program::Restart] {
        for program in [program, Program::Stop] {
            let output = run(&world, world.program(program));
            let _ = verdict(&output);
            let content = fs::read_to_string(victim(&world)).unwrap();
            assert_eq!(content, "precious\n", "{}", program.name());
        }
        assert!(world.agents().is_empty(), "{}", program.name());
        for path in [world.pid_file(), world.lock_file()] {
            Obstacle::remove(&path);
        }
    }
}

#[test]
fn content_of_files_never_reaches_the_terminal_raw() {
    let world = World::new();
    fs::write(world.pid_file(), b"\x1b]0;owned\x07\x1b[2J12\n").unwrap();
    fs::write(world.lock_file(), b"\x1b[2J\n").unwrap();
    for program in [Program::Check, Program::Stop] {
        let said = text(&run(&world, world.program(program)));
        assert!(!said.contains(['\x1b', '\x07']), "{said:?}");
    }
}

#[test]
fn one_file_may_not_play_two_parts() {
    let mut world = World::new();
    for (name, own) in [
        ("VOICE_GUARD_LOCK_FILE", world.lock_file()),
        ("VOICE_GUARD_LOG_FILE", world.log_file()),
    ] {
        world.set(name, world.pid_file());
        let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
        assert_eq!(code, 1, "{name}: {said}");
        assert_names(&said, &world.pid_file());
        assert!(world.agents().is_empty(), "{name}: {said}");
        world.set(name, own);
    }
}

#[test]
fn folder_of_a_file_is_missing() {
    let mut world = World::new();
    let missing = world.path("missing");
    for (name, own) in [
        ("VOICE_GUARD_PID_FILE", world.pid_file()),
        ("VOICE_GUARD_LOCK_FILE", world.lock_file()),
        ("VOICE_GUARD_LOG_FILE", world.log_file()),
    ] {
        world.set(name, missing.join("file"));
        let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
        assert_eq!(code, 1, "{name}: {said}");
        assert_names(&said, &missing);
        assert!(world.agents().is_empty(), "{name}: {said}");
        world.assert_no_start_in_progress();
        world.expect(Program::Stop, 0);
        world.set(name, own);
    }
    world.expect(Program::Start, 0);
    world.expect(Program::Stop, 0);
}

// ---- The guard.

/// Holds an exclusive `flock` on a file until it is dropped.
fn holder(world: &World, file: &Path) -> Stranger {
    const HOLD: &str = "\
import fcntl, signal, sys
file = open(sys.argv[1], 'a')
fcntl.flock(file, fcntl.LOCK_EX)
print('held', flush=True)
signal.pause()
";
    let mut command = world.command(python());
    command.args(["-c", HOLD]).arg(file).stdout(Stdio::piped());
    let mut stranger = Stranger::of(command);
    let mut line = String::new();
    BufReader::new(stranger.stdout())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "held\n");
    stranger
}

#[test]
fn obstacle_in_place_of_the_guard_is_a_clear_refusal() {
    let world = World::new();
    for obstacle in Obstacle::ALL {
        obstacle.put(&world, &world.guard_file());
        for program in Program::ALL {
            let (code, said) = outcome(&world, program, NO_ARGUMENTS);
            assert_eq!(code, 1, "{} before {obstacle:?}: {said}", program.name());
            assert_names(&said, &world.guard_file());
            assert!(
                world.agents().is_empty(),
                "{} before {obstacle:?}",
                program.name()
            );
            obstacle.assert_untouched(&world, &world.guard_file());
        }
        Obstacle::remove(&world.guard_file());
    }
    world.expect(Program::Start, 0);
    world.expect(Program::Stop, 0);
}

#[test]
fn what_the_guard_contains_and_when_it_was_written_do_not_matter() {
    let world = World::new();
    for content in ["", "garbage", "1\n"] {
        for age in [set_age, set_ahead] {
            fs::write(world.guard_file(), content).unwrap();
            age(&world.guard_file(), 24 * HOUR);
            world.expect(Program::Check, 0);
            world.expect(Program::Start, 0);
            world.assert_one_agent();
            world.expect(Program::Stop, 0);
            assert!(world.guard_file().exists(), "the guard is never removed");
        }
    }
}

#[test]
fn guard_held_by_somebody_is_named_at_once() {
    let world = World::new();
    fs::write(world.guard_file(), "").unwrap();
    let mut keeper = holder(&world, &world.guard_file());
    fs::write(world.pid_file(), format!("{}\n", unused_pid())).unwrap();
    for program in [Program::Check, Program::Start] {
        let begun = Instant::now();
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, 1, "{}: {said}", program.name());
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{}",
            program.name()
        );
        assert!(
            said.contains(&keeper.pid().to_string()),
            "{} does not name PID {}: {said}",
            program.name(),
            keeper.pid()
        );
        assert!(world.agents().is_empty(), "{}", program.name());
        assert!(
            world.pid_file().exists(),
            "{} removed a file without the guard",
            program.name()
        );
    }
    keeper.assert_lives();
}

#[test]
fn guard_held_by_somebody_is_waited_for_by_those_who_must_have_it() {
    let world = World::new();
    fs::write(world.guard_file(), "").unwrap();
    for program in [Program::Stop, Program::System, Program::Restart] {
        let keeper = holder(&world, &world.guard_file());
        fs::write(world.pid_file(), format!("{}\n", unused_pid())).unwrap();
        let mut waiting = Stranger::of(world.program(program));
        // By the time a check has come and gone, it would have been over.
        world.expect(Program::Check, 1);
        waiting.assert_lives();
        assert!(world.pid_file().exists() && world.agents().is_empty());
        drop(keeper);
        assert_eq!(waiting.wait().code(), Some(0), "{}", program.name());
        assert_eq!(world.agents().len(), usize::from(program != Program::Stop));
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

// ---- The lock file.

/// An original starter in the middle of its start: a bash script that wrote
/// its number into the lock file and goes on as long as its stdin is open.
fn old_starter(world: &World) -> Stranger {
    const SCRIPT: &str = "\
echo $$ > \"$VOICE_GUARD_LOCK_FILE\"
echo locked
read -r _
";
    let script = world.scratch().join("start_voice_agent_safe.sh");
    fs::write(&script, SCRIPT).unwrap();
    let mut command = world.command("bash");
    command
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut stranger = Stranger::of(command);
    let mut line = String::new();
    BufReader::new(stranger.stdout())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "locked\n");
    stranger
}

#[test]
fn start_of_an_original_script_in_progress_is_respected() {
    let world = World::new();
    let mut old = old_starter(&world);
    for program in [Program::Check, Program::Start] {
        let (code, report) = report(&world, program);
        assert_eq!(code, 1, "{report}");
        assert!(
            report.to_string().contains(&old.pid().to_string()),
            "{} does not name PID {}: {report}",
            program.name(),
            old.pid()
        );
    }
    let said = world.expect(Program::Start, 1);
    assert!(said.contains("ERROR: Already running or locked"), "{said}");
    // A clock that jumped does not make a live start a dead one.
    set_ahead(&world.lock_file(), HOUR);
    world.expect(Program::Start, 1);
    let own = format!("{}\n", old.pid());
    assert_eq!(fs::read_to_string(world.lock_file()).unwrap(), own);
    // As old as this it is stale for every original script, so for us.
    set_age(&world.lock_file(), Duration::from_secs(31));
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    old.assert_lives();
}

#[test]
fn lock_file_of_a_dead_starter_blocks_nobody_from_the_first_moment() {
    let world = World::new();
    drop(old_starter(&world));
    assert!(world.lock_file().exists(), "killed, it left its lock");
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    drop(old_starter(&world));
    set_ahead(&world.lock_file(), HOUR);
    world.expect(Program::Check, 0);
    assert!(!world.lock_file().exists());
}

#[test]
fn lock_file_that_is_being_written_counts_for_thirty_seconds() {
    let world = World::new();
    fs::write(world.lock_file(), "").unwrap();
    for program in [Program::Check, Program::Start] {
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, 1, "{}: {said}", program.name());
        assert_names(&said, &world.lock_file());
    }
    assert!(world.lock_file().exists());
    set_age(&world.lock_file(), Duration::from_secs(31));
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
}

#[test]
fn worthless_lock_file_never_blocks_longer_than_the_contract_says() {
    // PID 1 and whole groups are named here: those of a room.
    Room::new().enter(
        "worthless_lock_file_never_blocks_longer_than_the_contract_says",
        || {
            let world = World::new();
            let mut stranger = Stranger::sleeping(&world);
            let mut contents = worthless_contents();
            contents.push(("a stranger", format!("{}\n", stranger.pid()).into_bytes()));
            for (what, content) in contents {
                let write = || fs::write(world.lock_file(), &content).unwrap();
                // Fresh, it may be an original's that is being written: either verdict
                // is right, but check and start agree.
                write();
                let (check, said) = outcome(&world, Program::Check, &["--dry-run"]);
                let (start, more) = outcome(&world, Program::Start, NO_ARGUMENTS);
                assert_eq!(check, start, "{what}: {said}{more}");
                assert_eq!(world.agents().len(), usize::from(start == 0), "{what}");
                if start == 1 {
                    // Beside a script that is just beginning, a stop waits for its agent.
                    set_age(&world.lock_file(), HOUR);
                }
                world.expect(Program::Stop, 0);
                world.assert_nothing_left();
                let stale: [fn(&Path); 2] = [
                    |path| set_age(path, Duration::from_secs(31)),
                    |path| set_ahead(path, HOUR),
                ];
                for age in stale {
                    write();
                    age(&world.lock_file());
                    let (code, said) = outcome(&world, Program::Check, NO_ARGUMENTS);
                    assert_eq!(code, 0, "{what}: {said}");
                    assert!(!world.lock_file().exists(), "{what}: {said}");
                }
            }
            stranger.assert_lives();
        },
    );
}

#[test]
fn lock_file_that_somebody_else_wrote_meanwhile_is_left_to_him() {
    let world = World::new();
    // The agent, a part of the start, is where an original starter writes.
    let script = "\
import os, signal
path = os.environ['VOICE_GUARD_LOCK_FILE']
os.unlink(path)
with open(path, 'w') as file:
    file.write('1\\n')
print('registered worker', flush=True)
signal.pause()
";
    fs::write(world.script(), script).unwrap();
    world.expect(Program::Start, 0);
    assert_eq!(fs::read_to_string(world.lock_file()).unwrap(), "1\n");
    world.expect(Program::Stop, 0);
}

// ---- Somebody else's files.

/// Runs a program as another user; gives its exit code and what it said.
#[track_caller]
fn as_user(world: &World, user: OtherUser, program: Program) -> (i32, String) {
    let mut command = world.program(program);
    user.runs(&mut command);
    let output = run(world, command);
    (verdict(&output), text(&output))
}

/// Removes everything in the sticky folder, the guard, and the agent's traces.
fn sweep(world: &World, folder: &Path) {
    for left in fs::read_dir(folder).unwrap() {
        fs::remove_file(left.unwrap().path()).unwrap();
    }
    let _ = fs::remove_file(world.guard_file());
    remove_traces(world);
}

#[test]
fn files_that_another_user_owns_are_named_when_they_cannot_be_replaced() {
    Room::new().enter(
        "files_that_another_user_owns_are_named_when_they_cannot_be_replaced",
        || {
            let Some(user) = OtherUser::nobody("tracking files of root before another user") else {
                return;
            };
            let mut world = World::new();
            user.moves_into(&mut world);
            let folder = move_files_into_sticky_folder(&mut world);
            let mut stranger = Stranger::sleeping(&world);
            let content = format!("{}\n", stranger.pid());
            for name in ["agent.pid", "agent.lock", "agent.log"] {
                for mode in [0o644, 0o600] {
                    let path = folder.join(name);
                    fs::write(&path, &content).unwrap();
                    set_age(&path, HOUR);
                    set_mode(&path, mode);
                    let (code, said) = as_user(&world, user, Program::Check);
                    if code == 1 {
                        assert_names(&said, &path);
                    }
                    let (code, said) = as_user(&world, user, Program::Start);
                    assert_names(&said, &path);
                    // Only a stale lock that can be read is in nobody's way.
                    let expected = i32::from(name != "agent.lock" || mode == 0o600);
                    assert_eq!(code, expected, "{name} {mode:o}: {said}");
                    assert_eq!(world.agents().len(), usize::from(code == 0), "{said}");
                    let (code, said) = as_user(&world, user, Program::Stop);
                    assert!(world.agents().is_empty(), "{said}");
                    if code == 1 {
                        assert_names(&said, &path);
                    }
                    assert_eq!(fs::read_to_string(&path).unwrap(), content);
                    sweep(&world, &folder);
                }
            }
            stranger.assert_lives();
        },
    );
}

#[test]
fn files_of_another_user_give_way_to_root() {
    Room::new().enter("files_of_another_user_give_way_to_root", || {
        let Some(user) = OtherUser::nobody("tracking files of another user before root") else {
            return;
        };
        let mut world = World::new();
        let folder = move_files_into_sticky_folder(&mut world);
        let mut stranger = Stranger::sleeping(&world);
        for name in ["agent.pid", "agent.lock"] {
            for mode in [0o644, 0o600] {
                let path = folder.join(name);
                fs::write(&path, format!("{}\n", stranger.pid())).unwrap();
                set_age(&path, HOUR);
                set_mode(&path, mode);
                chown(&path, Some(user.uid()), Some(user.uid())).unwrap();
                world.expect(Program::Start, 0);
                assert_eq!(world.agents().len(), 1, "{name} {mode:o}");
                world.expect(Program::Stop, 0);
                assert!(world.agents().is_empty(), "{name} {mode:o}");
                sweep(&world, &folder);
            }
        }
        stranger.assert_lives();
    });
}

#[test]
fn number_in_another_users_file_proves_nothing() {
    Room::new().enter("number_in_another_users_file_proves_nothing", || {
        let Some(user) = OtherUser::nobody("a number in another user's file") else {
            return;
        };
        let world = World::new();
        let mut stranger = Stranger::sleeping(&world);
        fs::write(world.pid_file(), format!("{}\n", stranger.pid())).unwrap();
        chown(world.pid_file(), Some(user.uid()), Some(user.uid())).unwrap();
        let mut keeper = holder(&world, &world.pid_file());
        let (_, report) = report(&world, Program::Check);
        assert_eq!(pids(&report, "agents"), [0_u64; 0], "{report}");
        let _ = outcome(&world, Program::Stop, NO_ARGUMENTS);
        stranger.assert_lives();
        keeper.assert_lives();
    });
}

#[test]
fn guard_of_another_user_is_locked_and_never_written() {
    Room::new().enter("guard_of_another_user_is_locked_and_never_written", || {
        let Some(user) = OtherUser::nobody("the guard of another user") else {
            return;
        };
        let mut world = World::new();
        user.moves_into(&mut world);
        fs::write(world.guard_file(), "root's\n").unwrap();
        set_mode(&world.guard_file(), 0o644);
        let (code, said) = as_user(&world, user, Program::Check);
        assert_eq!(code, 0, "{said}");
        let (code, said) = as_user(&world, user, Program::Start);
        assert_eq!(code, 0, "{said}");
        world.assert_one_agent();
        // And root respects the same guard and the same agent.
        world.expect(Program::Start, 1);
        let (code, said) = as_user(&world, user, Program::Stop);
        assert_eq!(code, 0, "{said}");
        world.assert_nothing_left();
        assert_eq!(fs::read_to_string(world.guard_file()).unwrap(), "root's\n");

        set_mode(&world.guard_file(), 0o600);
        for program in [Program::Check, Program::Start, Program::Stop] {
            let (code, said) = as_user(&world, user, program);
            assert_eq!(code, 1, "{}: {said}", program.name());
            assert_names(&said, &world.guard_file());
            assert!(world.agents().is_empty());
        }
    });
}

#[test]
fn narrow_umask_does_not_shut_other_users_out() {
    Room::new().enter("narrow_umask_does_not_shut_other_users_out", || {
        let Some(user) = OtherUser::nobody("files made under umask 077") else {
            return;
        };
        let mut world = World::new();
        user.moves_into(&mut world);
        let output = run(&world, after(&world, "umask 077", Program::Start));
        assert_eq!(verdict(&output), 0, "{}", text(&output));
        let agent = world.assert_one_agent();
        // `kill $(cat …)`, monitors and every other user's check read the number.
        let mode = world.pid_file().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "the PID file's mode is {mode:o}");
        let (code, said) = as_user(&world, user, Program::Check);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&agent.to_string()), "{said}");
        world.expect(Program::Stop, 0);
        // The log stays as private as the umask wanted it; not so the guard.
        fs::remove_file(world.log_file()).unwrap();
        remove_traces(&world);
        let (code, said) = as_user(&world, user, Program::Start);
        assert_eq!(code, 0, "{said}");
        world.assert_one_agent();
        world.expect(Program::Stop, 0);
    });
}

/// Sets a kernel setting and puts the old value back.
struct Sysctl {
    path: &'static str,
    before: String,
}

impl Sysctl {
    fn set(path: &'static str, value: &str) -> Option<Self> {
        let before = fs::read_to_string(path).ok()?;
        let kept = Self { path, before };
        fs::write(path, value).is_ok().then_some(kept)
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = fs::write(self.path, &self.before);
    }
}

#[test]
fn files_protected_by_the_kernel_are_opened_all_the_same() {
    Room::new().enter(
        "files_protected_by_the_kernel_are_opened_all_the_same",
        || {
            const WHAT: &str = "fs.protected_regular=2";
            let Some(user) = OtherUser::nobody(WHAT) else {
                return;
            };
            let Some(_setting) = Sysctl::set("/proc/sys/fs/protected_regular", "2") else {
                return left_out(WHAT, "this machine does not let it be set");
            };
            let mut world = World::new();
            let folder = move_files_into_sticky_folder(&mut world);
            for (what, path, must_work) in [
                ("guard", world.guard_file(), true),
                ("PID file", folder.join("agent.pid"), true),
                ("lock file", folder.join("agent.lock"), true),
                ("log", folder.join("agent.log"), false),
            ] {
                fs::write(&path, format!("{}\n", unused_pid())).unwrap();
                set_age(&path, HOUR);
                chown(&path, Some(user.uid()), Some(user.uid())).unwrap();
                let plain = File::options().create(true).append(true).open(&path);
                assert!(plain.is_err(), "even root may not open it with O_CREAT now");
                world.expect(Program::Check, 0);
                let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
                if code == 1 && !must_work {
                    assert_names(&said, &path);
                    assert!(world.agents().is_empty(), "{what}: {said}");
                } else {
                    assert_eq!(code, 0, "{what}: {said}");
                    assert_eq!(world.agents().len(), 1, "{what}: {said}");
                }
                world.expect(Program::Stop, 0);
                sweep(&world, &folder);
            }
        },
    );
}
