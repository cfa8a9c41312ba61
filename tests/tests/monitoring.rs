//! What monitors read: `check-agent-running --dry-run --json`, `--nagios` and
//! `--metrics`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use scenarios::surroundings::Stranger;
use scenarios::{Program, World, text, until};

fn check(world: &World, arguments: &[&str]) -> Output {
    let mut command = world.program(Program::Check);
    command.args(arguments);
    world.run_command(command)
}

/// Exit status and line of the plugin.
#[track_caller]
fn plugin(world: &World) -> (i32, String) {
    let output = check(world, &["--nagios"]);
    let said = text(&output);
    assert_eq!(
        said.lines().count(),
        1,
        "a plugin answers one line:\n{said}"
    );
    assert!(output.stderr.is_empty(), "{said}");
    (output.status.code().expect("an exit status"), said)
}

fn object(world: &World) -> serde_json::Value {
    let output = check(world, &["--dry-run", "--json"]);
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn metrics_file(world: &World) -> PathBuf {
    world.path("scratch/voice_guard.prom")
}

/// The metrics that a check writes, by name, for this world's family.
#[track_caller]
fn metrics(world: &World) -> BTreeMap<String, i64> {
    let file = metrics_file(world);
    let mut command = world.program(Program::Check);
    command.arg("--metrics").arg(&file).arg("--quiet");
    let output = world.run_command(command);
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "{}",
        text(&output)
    );
    let text = fs::read_to_string(&file).expect("the metrics");
    let mut values = BTreeMap::new();
    for sample in parse(&text) {
        assert_eq!(
            sample.labels,
            [("family".to_owned(), world.family().to_owned())],
            "{text}"
        );
        values.insert(
            sample
                .name
                .strip_prefix("voice_guard_")
                .expect("one namespace for all")
                .to_owned(),
            sample.value,
        );
    }
    values
}

struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: i64,
}

/// Prometheus' text format, strictly: each sample belongs to the HELP and TYPE
/// right before it, nothing comes twice, the last line ends.
#[track_caller]
fn parse(text: &str) -> Vec<Sample> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    assert!(text.ends_with('\n'), "the last line must end: {text:?}");
    let mut samples = Vec::new();
    let mut seen = BTreeSet::new();
    let (mut helped, mut typed) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect("words of help");
            assert!(is_name(name) && !words.trim().is_empty(), "{line}");
            assert!(seen.insert(name.to_owned()), "{name} comes twice");
            name.clone_into(&mut helped);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!((name, kind), (helped.as_str(), "gauge"), "{line}");
            name.clone_into(&mut typed);
        } else {
            let (metric, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = match metric.split_once('{') {
                None => (metric, Vec::new()),
                Some((name, labels)) => {
                    let labels = labels.strip_suffix('}').expect("an end of the labels");
                    let (label, value) = labels.split_once('=').expect("a label's value");
                    let value = value
                        .strip_prefix('"')
                        .and_then(|value| value.strip_suffix('"'))
                        .expect("a quoted value");
                    assert!(is_name(label) && !value.contains(['"', '\\']), "{line}");
                    (name, vec![(label.to_owned(), value.to_owned())])
                }
            };
            assert!(is_name(name) && name == typed, "{line}");
            samples.push(Sample {
                name: name.to_owned(),
                labels,
                value: value.parse().expect("a number"),
            });
        }
    }
    assert_eq!(samples.len(), seen.len(), "one sample for each:\n{text}");
    samples
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_secs()).unwrap()
}

fn make_old(file: &Path, age: Duration) {
    let file = File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

/// A number that is nobody's.
fn dead_pid(world: &World) -> u32 {
    let mut stranger = Stranger::of(world.command("true"));
    stranger.wait();
    stranger.pid()
}

#[test]
fn one_tracked_agent_is_well() {
    let world = World::new();
    world.expect(Program::Start, 0);
    let pid = world.assert_one_agent();

    let (status, line) = plugin(&world);
    assert_eq!(status, 0, "{line}");
    assert!(
        line.starts_with(&format!("VOICE AGENT OK: agent PID {pid} runs, for ")),
        "{line}"
    );
    assert!(line.contains(" | agents=1;;1:1;0 "), "{line}");

    let metrics = metrics(&world);
    for (name, value) in [
        ("health", 0),
        ("agents", 1),
        ("agents_untracked", 0),
        ("orphan_workers", 0),
        ("stale_files", 0),
        ("start_in_progress", 0),
    ] {
        assert_eq!(metrics.get(name), Some(&value), "{name} in {metrics:?}");
    }
    assert!(!metrics.contains_key("lock_age_seconds"), "{metrics:?}");
    // The kernel counts from boot, in hundredths; the test by the wall clock.
    let age = unix_now() - metrics["agent_start_time_seconds"];
    assert!((-2..60).contains(&age), "{age} s old: {metrics:?}");

    let object = object(&world);
    assert_eq!(
        object["agents"][0]["since"].as_i64(),
        Some(metrics["agent_start_time_seconds"])
    );
    assert_eq!(object["family"], world.family());
    world.expect(Program::Stop, 0);
}

#[test]
fn no_agent_is_critical_and_one_that_is_being_started_a_warning() {
    let world = World::new();
    let (status, line) = plugin(&world);
    assert_eq!(status, 2, "{line}");
    assert!(line.starts_with("VOICE AGENT CRITICAL: no agent runs |"));
    assert_eq!(metrics(&world)["health"], 2);

    // An old script that has created its lock and written nothing into it yet.
    fs::write(world.lock_file(), "").unwrap();
    make_old(&world.lock_file(), Duration::from_secs(5));
    let (status, line) = plugin(&world);
    assert_eq!(status, 1, "{line}");
    let metrics = metrics(&world);
    assert_eq!(metrics["start_in_progress"], 1);
    assert!((5..15).contains(&metrics["lock_age_seconds"]));
}

#[test]
fn stale_files_are_counted_by_every_look_and_stay() {
    let world = World::new();
    let nobody = dead_pid(&world);
    for file in [world.pid_file(), world.lock_file()] {
        fs::write(file, format!("{nobody}\n")).unwrap();
    }
    make_old(&world.lock_file(), Duration::from_hours(2));
    let mut agent = world.agent_by_hand("dev");

    for _ in 0..2 {
        let (status, line) = plugin(&world);
        assert_eq!(status, 1, "{line}");
        for part in [
            "not in the PID file",
            "2 stale file(s)",
            "stale_files=2;0;;0",
        ] {
            assert!(line.contains(part), "no `{part}` in {line}");
        }
        let metrics = metrics(&world);
        assert_eq!(metrics["stale_files"], 2);
        assert_eq!(metrics["agents_untracked"], 1);
        assert!((7200..7260).contains(&metrics["lock_age_seconds"]));
        let object = object(&world);
        let paths: BTreeSet<_> = object["stale_files"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|file| {
                assert!(file["reason"].as_str().is_some_and(|why| !why.is_empty()));
                PathBuf::from(file["path"].as_str().expect("a path"))
            })
            .collect();
        assert_eq!(paths, [world.lock_file(), world.pid_file()].into());
        assert!((7200..7260).contains(&object["lock_age_seconds"].as_u64().unwrap()));
    }
    world.signal(agent.pid(), Signal::KILL);
    agent.wait();
}

#[test]
fn a_second_agent_and_orphans_beside_a_tracked_one_are_critical() {
    let mut world = World::new();
    world.set("TEST_AGENT_CHILDREN", "spawn");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.5");
    world.expect(Program::Start, 0);
    let first = world.assert_one_agent();
    // The PID file proves the agent that runs; the others are seen all the same.
    world.unset("TEST_AGENT_CHILDREN");
    let mut second = world.agent_by_hand("dev");
    let (status, line) = plugin(&world);
    assert_eq!(status, 2, "{line}");
    assert!(line.contains("2 agents are running at once"), "{line}");
    assert_eq!(metrics(&world)["agents"], 2);

    // Its workers live on, and answer calls beside the agent that is left.
    world.signal(first, Signal::KILL);
    until("the agent to be dead", || !world.agents().contains(&first));
    let (status, line) = plugin(&world);
    assert_eq!(status, 2, "{line}");
    assert!(line.contains("orphan worker(s) besides"), "{line}");
    let seen = metrics(&world);
    assert!(seen["orphan_workers"] >= 1, "{seen:?}");
    assert_eq!(seen["agents"], 1);
    let orphans = object(&world)["orphan_workers"].as_array().unwrap().len();
    assert_eq!(seen["orphan_workers"], i64::try_from(orphans).unwrap());

    world.signal(second.pid(), Signal::KILL);
    second.wait();
    let (status, line) = plugin(&world);
    assert_eq!(status, 2, "{line}");
    assert!(line.contains("still answer calls"), "{line}");
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn what_cannot_be_found_out_is_unknown_and_no_figure() {
    let mut world = World::new();
    fs::create_dir(world.pid_file()).unwrap();
    let (status, line) = plugin(&world);
    assert_eq!(status, 3, "{line}");
    assert!(!line.contains('|'), "{line}");
    assert!(
        line.contains(&*world.pid_file().to_string_lossy()),
        "{line}"
    );
    let seen = metrics(&world);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [("health".into(), 3)]);
    fs::remove_dir(world.pid_file()).unwrap();

    // Settings that cannot be used, too: a monitor must not go blind silently.
    world.set("VOICE_GUARD_VERIFY_SECONDS", "soon");
    let (status, line) = plugin(&world);
    assert_eq!(status, 3, "{line}");
    assert!(line.contains("VOICE_GUARD_VERIFY_SECONDS"), "{line}");
    let file = metrics_file(&world);
    let output = check(&world, &["--metrics", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let samples = parse(&fs::read_to_string(&file).unwrap());
    assert_eq!(samples.len(), 1);
    assert!(samples[0].labels.is_empty());
}

#[test]
fn metrics_file_is_replaced_whole() {
    let world = World::new();
    let file = metrics_file(&world);
    let _ = metrics(&world);
    let size = fs::metadata(&file).unwrap().len();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            let mut inodes = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let mut open = File::open(&file).expect("the file is always there");
                let mut read = String::new();
                open.read_to_string(&mut read).unwrap();
                assert_eq!(parse(&read).len(), 6, "read in the middle:\n{read}");
                inodes.insert(open.metadata().unwrap().ino());
            }
            inodes.len()
        });
        // Two at a time write the same file.
        for _ in 0..20 {
            let run = || metrics(&world);
            let other = threads.spawn(run);
            run();
            other.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 1, "it was never replaced");
    });
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(metadata.len(), size);
    assert_eq!(metadata.mode() & 0o777, 0o644, "a collector must read it");
    let names: Vec<_> = fs::read_dir(world.scratch())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["voice_guard.prom"]);
}

#[test]
fn metrics_replace_no_link_and_no_folder() {
    let world = World::new();
    let precious = world.path("precious");
    fs::write(&precious, "data").unwrap();
    let link = world.path("link.prom");
    symlink(&precious, &link).unwrap();
    for place in [link.as_path(), &world.scratch(), &world.path("no/such")] {
        let output = check(&world, &["--nagios", "--metrics", place.to_str().unwrap()]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(&*place.to_string_lossy()), "{said}");
        let output = check(&world, &["--metrics", place.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    }
    assert_eq!(fs::read_to_string(&precious).unwrap(), "data");
}

#[test]
fn the_journal_gets_priorities_and_nobody_else_does() {
    let world = World::new();
    let said_to = |stream: Option<&str>, code| {
        let mut out = tempfile::tempfile().unwrap();
        let metadata = out.metadata().unwrap();
        let own = format!("{}:{}", metadata.dev(), metadata.ino());
        let mut command = world.program(Program::Check);
        command.arg("--nagios").stdout(out.try_clone().unwrap());
        command.env("JOURNAL_STREAM", stream.unwrap_or(&own));
        assert_eq!(command.status().unwrap().code(), Some(code));
        let mut said = String::new();
        out.rewind().unwrap();
        out.read_to_string(&mut said).unwrap();
        said
    };
    assert!(said_to(None, 2).starts_with("<3>VOICE AGENT CRITICAL"));
    assert!(said_to(Some("1:2"), 2).starts_with("VOICE AGENT CRITICAL"));
    // All is well, every minute: for the journal no news.
    world.expect(Program::Start, 0);
    assert_eq!(said_to(None, 0), "");
    assert!(said_to(Some("1:2"), 0).starts_with("VOICE AGENT OK"));
    world.expect(Program::Stop, 0);
}

#[test]
fn a_plugin_says_nothing_else() {
    let world = World::new();
    for other in ["--json", "--quiet"] {
        let output = check(&world, &["--nagios", other]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(output.stdout.is_empty());
    }
}
