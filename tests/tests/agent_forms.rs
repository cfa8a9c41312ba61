//! What counts as the agent: the ways in which people start it, and what only
//! looks like it. Each form is a living process that the check judges.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use scenarios::surroundings::{Stranger, pids, report};
use scenarios::{Program, World, is_alive, python, until};

/// Scripts and modules that do nothing and go on.
const PAUSE: &str = "import signal\nsignal.pause()\n";

/// A world with scripts of every name that the forms use.
fn world() -> World {
    let world = World::new();
    let family = world.family();
    for name in [
        format!("{family}.py"),
        format!("{family}_groq.py"),
        format!("{family}_optimized.py"),
        format!("{family}s.py"),
        format!("my_{family}.py"),
        format!("{family}.py.bak"),
        "editor.py".into(),
        // A debugger that is on few machines: a stand-in.
        "debugpy.py".into(),
    ] {
        fs::write(world.project().join(name), PAUSE).unwrap();
    }
    let package = world.project().join("package");
    fs::create_dir(&package).unwrap();
    fs::write(package.join("__init__.py"), "").unwrap();
    fs::write(package.join(format!("{family}.py")), PAUSE).unwrap();
    world
}

/// Starts `line` (words separated by spaces, `STEM` is the family) with the
/// real interpreter under the name of the first word.
fn begin(world: &World, line: &str) -> Stranger {
    let line = line.replace("STEM", world.family());
    let mut words = line.split(' ');
    let mut command = world.command(python());
    command
        .arg0(words.next().unwrap())
        .args(words)
        // pdb waits at its prompt.
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Stranger::of(command)
}

#[test]
fn every_usual_form_is_the_agent() {
    let world = world();
    for (line, mode) in [
        ("python STEM.py dev", "dev"),
        ("python3 STEM.py dev", "dev"),
        ("python3.11 STEM.py dev", "dev"),
        ("python3.13t STEM.py dev", "dev"),
        ("/missing/.venv/bin/python3 STEM.py dev", "dev"),
        ("python ./STEM.py dev", "dev"),
        ("python -u STEM.py dev", "dev"),
        ("python -B STEM.py dev", "dev"),
        ("python -uB STEM.py dev", "dev"),
        ("python -X utf8 STEM.py dev", "dev"),
        ("python -Xutf8 STEM.py dev", "dev"),
        ("python -W ignore STEM.py dev", "dev"),
        ("python -uW ignore STEM.py dev", "dev"),
        ("python -I -s -E STEM.py dev", "dev"),
        ("python -OO STEM.py dev --log-level debug", "dev"),
        ("python -m STEM dev", "dev"),
        ("python -um STEM dev", "dev"),
        ("python -m package.STEM dev", "dev"),
        ("python -m pdb STEM.py dev", "dev"),
        ("python -m cProfile STEM.py dev", "dev"),
        ("python -m cProfile -o profile STEM.py dev", "dev"),
        ("python -m debugpy --listen 5678 STEM.py dev", "dev"),
        ("python -m debugpy --listen 5678 -m STEM dev", "dev"),
        ("python STEM_groq.py dev", "dev"),
        ("python STEM_optimized.py dev", "dev"),
        ("python STEM.py start", "start"),
        ("python STEM.py connect --room test-room", "connect"),
    ] {
        let agent = begin(&world, line);
        let (code, report) = report(&world, Program::Check);
        assert_eq!(code, 1, "{line}: {report}");
        assert_eq!(
            pids(&report, "agents"),
            [u64::from(agent.pid())],
            "{line}: {report}"
        );
        let seen = &report["agents"][0];
        assert_eq!(seen["mode"], mode, "{line}: {report}");
        assert_eq!(seen["tracked"], false, "{line}: {report}");
        assert_eq!(seen["container"], false, "{line}: {report}");
        assert!(seen["wrapper"].is_null(), "{line}: {report}");
        assert!(
            seen["age_seconds"].as_f64().unwrap() < 60.0,
            "{line}: {report}"
        );
        assert_eq!(
            seen["uid"],
            nix::unistd::geteuid().as_raw(),
            "{line}: {report}"
        );
    }
}

#[test]
fn look_alikes_are_no_agents() {
    let world = world();
    let mut strangers: Vec<_> = [
        "python STEM.py",
        "python STEM.py download-files",
        "python STEM.py console",
        "python STEM.py --help dev",
        "python STEMs.py dev",
        "python my_STEM.py dev",
        "python STEM.py.bak dev",
        "python editor.py STEM.py dev",
        "python -m editor STEM.py dev",
        "vim STEM.py dev",
        "python-config STEM.py dev",
        "pythonista STEM.py dev",
        "mypython STEM.py dev",
        "bash STEM.py dev",
    ]
    .into_iter()
    .map(|line| (line, begin(&world, line)))
    .collect();
    let (code, report) = report(&world, Program::Check);
    assert_eq!(code, 0, "{report}");
    assert_eq!(pids(&report, "agents"), [0_u64; 0], "{report}");
    world.expect(Program::Stop, 0);
    for (line, stranger) in &mut strangers {
        assert!(is_alive(stranger.pid()), "{line}");
        stranger.assert_lives();
    }
}

#[test]
fn configured_mode_and_script_count_too() {
    let mut world = world();
    let serving = begin(&world, "python STEM.py serve");
    world.expect(Program::Check, 0);
    world.set("VOICE_GUARD_AGENT_MODE", "serve");
    let (code, seen) = report(&world, Program::Check);
    assert_eq!(code, 1, "{seen}");
    assert_eq!(pids(&seen, "agents"), [u64::from(serving.pid())], "{seen}");
    assert_eq!(seen["agents"][0]["mode"], "serve");
    drop(serving);
    // The usual modes stay modes.
    let usual = begin(&world, "python STEM.py dev");
    world.expect(Program::Check, 1);
    drop(usual);
    // A name without `.py` is a name all the same.
    let script = format!("{}.agent", world.family());
    fs::write(world.project().join(&script), PAUSE).unwrap();
    world.set("VOICE_GUARD_AGENT_SCRIPT", &script);
    let other = begin(&world, "python STEM.agent serve");
    let (code, seen) = report(&world, Program::Check);
    assert_eq!(code, 1, "{seen}");
    assert_eq!(pids(&seen, "agents"), [u64::from(other.pid())], "{seen}");
    drop(other);
    world.expect(Program::Stop, 0);
}

#[test]
fn agent_that_changed_its_title_is_known_by_the_pid_file() {
    let world = World::new();
    // As setproctitle does it: the arguments are overwritten in place.
    let script = "\
import ctypes, signal
stat = open('/proc/self/stat', 'rb').read().rsplit(b')', 1)[1].split()
start, end = int(stat[45]), int(stat[46])
title = b'voice-agent: waiting'
ctypes.memmove(start, title.ljust(end - start, b'\\0'), end - start)
print('registered worker', flush=True)
signal.pause()
";
    fs::write(world.script(), script).unwrap();
    world.expect(Program::Start, 0);
    let agent = world.pid_in_file().unwrap();
    until("the title", || {
        let argv = scenarios::process(agent).unwrap().argv;
        argv.first()
            .is_some_and(|title| title == "voice-agent: waiting")
    });
    let (code, seen) = report(&world, Program::Check);
    assert_eq!(code, 1, "{seen}");
    assert!(seen.to_string().contains(&agent.to_string()), "{seen}");
    world.expect(Program::Start, 1);
    assert_eq!(world.pid_in_file(), Some(agent));
    // Without the file, its mark is found by whoever reads everything.
    fs::remove_file(world.pid_file()).unwrap();
    world.expect(Program::Stop, 0);
    assert!(!is_alive(agent));
}

#[test]
fn forks_of_the_agent_are_no_second_agent() {
    let mut world = World::new();
    world.set("TEST_AGENT_CHILDREN", "fork,setsid,grandchild");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.3");
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    let (_, seen) = report(&world, Program::Check);
    assert_eq!(pids(&seen, "agents"), [u64::from(agent)], "{seen}");
    let (code, kept) = report(&world, Program::System);
    assert_eq!((code, &kept["outcome"]), (0, &"kept".into()), "{kept}");
    assert_eq!(world.assert_one_agent(), agent);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn huge_environment_hides_no_agent() {
    let world = world();
    // An environment of a megabyte, and no mark in it.
    let mut command = world.command(python());
    command
        .arg(world.script())
        .arg("dev")
        .env("FILLING", "x".repeat(100_000))
        .env("MORE", "VOICE_GUARD_MARK=".repeat(1000));
    let agent = Stranger::of(command);
    let (code, seen) = report(&world, Program::Check);
    assert_eq!(code, 1, "{seen}");
    assert_eq!(pids(&seen, "agents"), [u64::from(agent.pid())], "{seen}");
}
