//! The agent's log cannot fill the disk: bounded at each start, rotated under
//! the running agent by the real logrotate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use scenarios::surroundings::Room;
use scenarios::{Program, World, available, text, until};

/// An agent that numbers its lines and writes them as fast as it gets on.
const TALKER: &str = r#"
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
os.write(1, b"registered worker\n")
number = 0
while True:
    number += 1
    os.write(1, b"line %d\n" % number)
    time.sleep(0.0002)
"#;

/// Lines as the talker writes them.
fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers.fold(String::new(), |text, number| {
        text + &format!("line {number}\n")
    })
}

/// The numbers of the lines in a piece of log; anything else in it is `None`.
fn numbers(log: &str) -> Vec<Option<u64>> {
    log.lines()
        .map(|line| line.strip_prefix("line ").and_then(|n| n.parse().ok()))
        .collect()
}

/// Fails unless each line follows on the one before; gives the first and last.
#[track_caller]
fn assert_whole(log: &str, what: &str) -> (u64, u64) {
    let mut numbers: Vec<u64> = numbers(log)
        .into_iter()
        .map(|number| number.unwrap_or_else(|| panic!("{what} has a line that is none")))
        .collect();
    let last = numbers.pop().unwrap_or_else(|| panic!("{what} is empty"));
    let first = numbers.first().copied().unwrap_or(last);
    numbers.push(last);
    for pair in numbers.windows(2) {
        assert_eq!(pair[0] + 1, pair[1], "{what}");
    }
    (first, last)
}

fn numbered(log: &Path, number: u32) -> PathBuf {
    PathBuf::from(format!("{}.{number}", log.display()))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn start_keeps_the_end_of_a_log_that_has_grown() {
    let mut world = World::new();
    world.set("VOICE_GUARD_KEEP_LOG_MB", "0.01");
    let long = lines(0..100_000);
    fs::write(world.log_file(), &long).unwrap();
    world.expect(Program::Start, 0);
    assert!(
        world.log().starts_with("starting worker"),
        "{}",
        world.log()
    );
    let kept = read(&world.path("agent.log.1"));
    assert!(kept.len() < 10_100, "{} bytes are kept", kept.len());
    let (note, end) = kept.split_once('\n').expect("a first line");
    let dropped = long.len() - end.len();
    assert_eq!(note, format!("[{dropped} bytes before this were not kept]"));
    assert_eq!(assert_whole(end, "the end").1, 99_999);
    world.expect(Program::Stop, 0);

    world.set("VOICE_GUARD_KEEP_LOG_MB", "0");
    world.expect(Program::Start, 0);
    assert_eq!(read(&world.path("agent.log.1")), kept, "0 keeps nothing");
    world.expect(Program::Stop, 0);
}

#[test]
fn log_that_has_filled_its_disk_makes_room_for_its_own_end() {
    Room::new().tmpfs("/srv", "size=3m,mode=755").enter(
        "log_that_has_filled_its_disk_makes_room_for_its_own_end",
        || {
            let mut world = World::new();
            let log = Path::new("/srv/agent.log");
            world.set("VOICE_GUARD_LOG_FILE", log);
            world.set("VOICE_GUARD_KEEP_LOG_MB", "1");
            let mut number = 0;
            let mut file = File::create(log).unwrap();
            loop {
                if file
                    .write_all(lines(number..number + 100).as_bytes())
                    .is_err()
                {
                    break;
                }
                number += 100;
            }
            drop(file);
            world.expect(Program::Start, 0);
            let kept = read(&numbered(log, 1));
            let (note, end) = kept.split_once('\n').expect("a first line");
            assert!(note.contains("bytes before this were not kept"), "{note}");
            assert!((900_000..1_000_100).contains(&kept.len()), "{}", kept.len());
            assert!(end.starts_with("line "), "{}", &end[..20]);
            assert!(read(log).contains("registered worker"));
            world.expect(Program::Stop, 0);
        },
    );
}

/// Runs the real logrotate with the project's file; its state is the world's.
#[track_caller]
fn logrotate(world: &World, options: &[&str]) {
    // A clone may be anybody's, and writable for others; logrotate refuses that.
    let configuration = world.path("voice-guard.logrotate");
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::copy(clone.join("packaging/logrotate"), &configuration).expect("the logrotate file");
    fs::set_permissions(&configuration, Permissions::from_mode(0o644)).unwrap();
    let mut command = world.command("logrotate");
    command
        .arg("--state")
        .arg(world.path("logrotate.state"))
        .args(options)
        .arg(&configuration);
    let output = world.run_command(command);
    let said = text(&output);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn logrotate_empties_the_log_and_the_agent_goes_on_writing() {
    if !available(&["logrotate"], "rotation by logrotate") {
        return;
    }
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // The file names what is in `/tmp`; this `/tmp` is the test's own.
    Room::new().tmpfs("/tmp", "mode=1777").keep(clone).enter(
        "logrotate_empties_the_log_and_the_agent_goes_on_writing",
        || {
            let mut world = World::new();
            let log = Path::new("/tmp/voice_agent.log");
            world.set("VOICE_GUARD_LOG_FILE", log);
            fs::write(world.script(), TALKER).unwrap();
            world.expect(Program::Start, 0);
            let agent = world.agents()[0];
            let inode = fs::metadata(log).unwrap().ino();
            let grows = |what| {
                let before = fs::metadata(log).unwrap().len();
                until(what, || fs::metadata(log).unwrap().len() > before);
            };
            grows("the agent to write");

            logrotate(&world, &[]);
            assert!(!numbered(log, 1).exists(), "a small log was rotated");

            // Somebody's long output, in one go: the agent's own would take minutes.
            let big = "a long line of somebody's\n".repeat(21 * 1024 * 1024 / 25);
            File::options()
                .append(true)
                .open(log)
                .unwrap()
                .write_all(big.as_bytes())
                .unwrap();
            logrotate(&world, &[]);
            assert!(fs::metadata(numbered(log, 1)).unwrap().len() > 20 << 20);
            assert!(fs::metadata(log).unwrap().len() < 1 << 20);
            assert_eq!(fs::metadata(log).unwrap().ino(), inode, "another file");
            grows("the agent to write on");
            assert_eq!(world.agents(), [agent]);
            // It appends: no hole of zeros where it was before.
            let (first, _) = assert_whole(&read(log), "the emptied log");
            assert!(first > 1, "it began again");

            // Nothing is lost but what is written between copy and emptying.
            logrotate(&world, &["--force"]);
            grows("the agent to write after a second rotation");
            let (_, before) = assert_whole(&read(&numbered(log, 1)), "the copy");
            let (after, _) = assert_whole(&read(log), "the log");
            assert!(after > before, "{after} comes after {before}");

            // And nothing at all while the agent is silent.
            world.signal(agent, Signal::STOP);
            until("the agent to be stopped", || {
                scenarios::process(agent).is_some_and(|process| process.state == 'T')
            });
            logrotate(&world, &["--force"]);
            world.signal(agent, Signal::CONT);
            grows("the agent to write after its pause");
            let (_, before) = assert_whole(&read(&numbered(log, 1)), "the copy");
            let (after, _) = assert_whole(&read(log), "the log");
            assert_eq!(after, before + 1, "a line was lost in between");

            // A start counts on where logrotate stopped: five earlier logs in all.
            let newest = read(&numbered(log, 1));
            for _ in 0..2 {
                world.expect(Program::Stop, 0);
                world.expect(Program::Start, 0);
            }
            assert_eq!(read(&numbered(log, 3)), newest);
            for _ in 0..4 {
                grows("something to rotate");
                logrotate(&world, &["--force"]);
            }
            let mut left: Vec<_> = fs::read_dir("/tmp")
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with("voice_agent"))
                .collect();
            left.sort();
            assert_eq!(left.len(), 6, "{left:?}");
            assert_eq!(left[5], "voice_agent.log.5");
            world.expect(Program::Stop, 0);
        },
    );
}

#[test]
fn what_a_supervisor_reads_goes_on_after_a_rotation() {
    if !available(&["logrotate"], "rotation under a supervised agent") {
        return;
    }
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Room::new().tmpfs("/tmp", "mode=1777").keep(clone).enter(
        "what_a_supervisor_reads_goes_on_after_a_rotation",
        || {
            let mut world = World::new();
            let log = Path::new("/tmp/voice_agent.log");
            world.set("VOICE_GUARD_LOG_FILE", log);
            fs::write(world.script(), TALKER).unwrap();
            let journal = world.path("journal");
            let mut command = world.program(Program::Start);
            command
                .arg("--foreground")
                .stdout(File::create(&journal).unwrap());
            let mut starter = command.spawn().unwrap();
            let copied = || numbers(&read(&journal)).into_iter().flatten().last();
            until("lines for the supervisor", || copied().is_some());
            for _ in 0..3 {
                logrotate(&world, &["--force"]);
                let (_, last) = assert_whole(
                    read(&numbered(log, 1)).trim_start_matches("registered worker\n"),
                    "the copy",
                );
                until("lines after the rotation", || copied() > Some(last + 100));
            }
            world.signal(starter.id(), Signal::TERM);
            starter.wait().unwrap();
            world.assert_nothing_left();
        },
    );
}
