//! After a stop nothing born of the agent lives, whatever it does against it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scenarios::surroundings::{NO_ARGUMENTS, Stranger, assert_names, outcome, pids, report};
use scenarios::{Program, World, is_alive, process, python, text, until};

const EVERY_KIND: &str = "fork,deaf,setsid,grandchild,spawn,forkserver,system,inheriting";

fn world_with_children(kinds: &str) -> World {
    let mut world = World::new();
    world.set("TEST_AGENT_CHILDREN", kinds);
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.5");
    world.set("VOICE_GUARD_VERIFY_SECONDS", "30");
    world
}

/// A running agent whose children all run.
fn start_with_children(world: &World) -> u32 {
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    let kinds = world.environment().iter();
    let kinds = kinds
        .filter(|(name, _)| name == "TEST_AGENT_CHILDREN")
        .map(|(_, kinds)| kinds.to_string_lossy().split(',').count())
        .sum::<usize>();
    until("all children", || world.agent_children().len() >= kinds);
    agent
}

#[test]
fn whole_family_ends() {
    let world = world_with_children(EVERY_KIND);
    let agent = start_with_children(&world);
    let (code, seen) = report(&world, Program::Stop);
    assert_eq!(code, 0, "{seen}");
    let stopped = pids(&seen, "stopped");
    assert!(stopped.contains(&u64::from(agent)), "{seen}");
    for (kind, child) in world.agent_children() {
        assert!(!is_alive(child), "{kind} lives: {seen}");
        assert!(
            stopped.contains(&u64::from(child)),
            "{kind} is not named: {seen}"
        );
    }
    world.assert_nothing_left();
}

#[test]
fn agent_is_given_time_to_say_good_bye() {
    let mut world = World::new();
    world.set("TEST_AGENT_DRAIN", "0.7");
    world.set("VOICE_GUARD_GRACE_SECONDS", "20");
    world.expect(Program::Start, 0);
    let begun = Instant::now();
    world.expect(Program::Stop, 0);
    let waited = begun.elapsed();
    assert!(world.log().ends_with("good-bye\n"), "{}", world.log());
    assert!(waited >= Duration::from_millis(700), "{waited:?}");
    assert!(waited < Duration::from_secs(10), "it waited on: {waited:?}");
}

#[test]
fn deaf_agent_is_killed_after_the_grace_period() {
    let mut world = world_with_children("deaf,setsid");
    world.set("TEST_AGENT_DEAF", "1");
    let agent = start_with_children(&world);
    let begun = Instant::now();
    let said = world.expect(Program::Stop, 0);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(500), "no grace: {waited:?}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    assert!(said.contains(&agent.to_string()), "{said}");
    world.assert_nothing_left();
}

#[test]
fn suspended_family_ends() {
    let world = world_with_children("fork,spawn");
    let agent = start_with_children(&world);
    let mut all: Vec<_> = world
        .agent_children()
        .into_iter()
        .map(|(_, pid)| pid)
        .collect();
    all.push(agent);
    for &pid in &all {
        world.signal(pid, Signal::STOP);
        until("a suspended process", || {
            process(pid).is_some_and(|process| process.state == 'T')
        });
    }
    world.expect(Program::Check, 1);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn workers_of_a_dead_agent_count_are_named_and_end() {
    for kinds in [
        "fork",
        "deaf",
        "setsid",
        "spawn",
        "forkserver",
        "grandchild",
    ] {
        for signal in [Signal::KILL, Signal::HUP] {
            let world = world_with_children(kinds);
            let agent = start_with_children(&world);
            let orphans: Vec<_> = world
                .agent_children()
                .into_iter()
                .map(|(_, pid)| pid)
                .collect();
            world.signal(agent, signal);
            until("the agent's end", || !is_alive(agent));
            for removed in [false, true] {
                if removed {
                    // The documented fix hides nobody.
                    let _ = fs::remove_file(world.pid_file());
                    let _ = fs::remove_file(world.lock_file());
                }
                let (code, seen) = report(&world, Program::Check);
                assert_eq!(
                    (code, &seen["outcome"]),
                    (1, &"orphan_workers".into()),
                    "{kinds}: {seen}"
                );
                let found = pids(&seen, "orphan_workers");
                for &orphan in &orphans {
                    assert!(
                        found.contains(&u64::from(orphan)),
                        "{kinds} {orphan}: {seen}"
                    );
                }
                let remedy = seen["help"].to_string();
                assert!(remedy.contains("stop_voice_agent_safe.sh"), "{seen}");
            }
            world.expect(Program::Stop, 0);
            world.assert_nothing_left();
        }
    }
}

#[test]
fn starts_clear_the_workers_of_a_dead_agent_first() {
    for program in [Program::Start, Program::System, Program::Restart] {
        let mut world = world_with_children("deaf,fork,spawn,forkserver");
        let agent = start_with_children(&world);
        let orphans: Vec<_> = world
            .agent_children()
            .into_iter()
            .map(|(_, pid)| pid)
            .collect();
        world.kill(agent);
        world.unset("TEST_AGENT_CHILDREN");
        let (code, seen) = report(&world, program);
        assert_eq!(code, 0, "{}: {seen}", program.name());
        let cleared = pids(&seen, "stopped");
        for orphan in orphans {
            assert!(!is_alive(orphan), "{}: {seen}", program.name());
            assert!(
                cleared.contains(&u64::from(orphan)),
                "{} is silent about {orphan}: {seen}",
                program.name()
            );
        }
        let fresh = world.assert_one_agent();
        assert_eq!(
            world.family_processes().len(),
            1,
            "PID {fresh}\n{}",
            world.describe()
        );
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

#[test]
fn every_duplicate_ends() {
    let mut world = World::new();
    world.expect(Program::Start, 0);
    let tracked = world.assert_one_agent();
    // Whoever starts by hand makes duplicates; the tests' overlap lock knows.
    let mut by_hand: Vec<_> = ["dev", "start", "connect"]
        .into_iter()
        .map(|mode| world.agent_by_hand(mode))
        .collect();
    by_hand.push(world.agent_by_hand_as(&world.add_script("groq"), "dev"));
    world.set("TEST_AGENT_DEAF", "1");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.3");
    by_hand.push(world.agent_by_hand("dev"));
    // As long as the file proves one of them, a check looks no further.
    fs::remove_file(world.pid_file()).unwrap();
    let (code, seen) = report(&world, Program::Check);
    assert_eq!(code, 1, "{seen}");
    let mut expected: Vec<_> = by_hand.iter().map(|agent| u64::from(agent.pid())).collect();
    expected.push(tracked.into());
    expected.sort_unstable();
    let sorted = |report: &serde_json::Value, list: &str| {
        let mut found = pids(report, list);
        found.sort_unstable();
        found
    };
    assert_eq!(sorted(&seen, "agents"), expected, "{seen}");
    let modes: Vec<_> = ["dev", "start", "connect"]
        .into_iter()
        .filter(|mode| {
            seen["agents"]
                .to_string()
                .contains(&format!("\"mode\":\"{mode}\""))
        })
        .collect();
    assert_eq!(modes.len(), 3, "{seen}");
    let said = world.expect(Program::Check, 1);
    assert!(
        expected.iter().all(|pid| said.contains(&pid.to_string())),
        "{said}"
    );
    let (code, seen) = report(&world, Program::Stop);
    assert_eq!(code, 0, "{seen}");
    assert_eq!(sorted(&seen, "stopped"), expected, "{seen}");
    world.assert_nothing_left();
}

#[test]
fn family_that_grows_while_it_is_stopped_ends() {
    let mut world = World::new();
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.5");
    // Every child that is asked to end leaves another one, ten times over.
    let script = "\
import os, signal, sys
def again(*_):
    global left
    if left and os.fork() == 0:
        left -= 1
        return
    os._exit(0)
left = 10
signal.signal(signal.SIGTERM, again)
for _ in range(2):
    if os.fork() == 0:
        break
else:
    print('registered worker', flush=True)
while True:
    signal.pause()
";
    fs::write(world.script(), script).unwrap();
    world.expect(Program::Start, 0);
    until("the children", || world.family_processes().len() == 3);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn nothing_to_stop_is_a_success_and_removes_what_was_left() {
    let world = World::new();
    let (code, seen) = report(&world, Program::Stop);
    assert_eq!(
        (code, &seen["outcome"]),
        (0, &"nothing_to_stop".into()),
        "{seen}"
    );
    fs::write(world.pid_file(), "4194305\n").unwrap();
    fs::write(world.lock_file(), "4194305\n").unwrap();
    let (code, said) = outcome(&world, Program::Stop, NO_ARGUMENTS);
    assert_eq!(code, 0, "{said}");
    world.assert_nothing_left();
    fs::write(world.pid_file(), "4194305\n").unwrap();
    let (_, seen) = report(&world, Program::Stop);
    assert_names(&seen["files_removed"].to_string(), &world.pid_file());
}

#[test]
fn old_style_agent_in_the_background_ends() {
    let world = World::new();
    let line = "nohup \"$VOICE_GUARD_PYTHON\" \"$VOICE_GUARD_AGENT_SCRIPT\" dev > \"$VOICE_GUARD_LOG_FILE\" 2>&1 & echo $! > \"$VOICE_GUARD_PID_FILE\"";
    assert!(world.run_command(world.shell(line)).status.success());
    until("the agent", || world.starts().len() == 1);
    world.assert_one_agent();
    let said = world.expect(Program::Start, 1);
    assert!(said.contains("ERROR: Already running or locked"), "{said}");
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn recovery_by_hand_is_followed_by_a_start_that_works() {
    let world = World::new();
    for signal in [Signal::TERM, Signal::KILL, Signal::HUP, Signal::INT] {
        world.expect(Program::Start, 0);
        let agent = world.assert_one_agent();
        world.signal(agent, signal);
        until("the agent's end", || !is_alive(agent));
        assert!(world.pid_file().exists());
    }
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    world.assert_no_overlap();
}

/// Whoever is re-parented goes to the nearest subreaper, not always to PID 1:
/// a systemd user session, a container's init, a supervisor.
#[test]
fn workers_under_a_subreaper_are_orphans_too() {
    const SUBREAPER: &str = "\
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
print('started', code, flush=True)
sys.stdin.read()
";
    for (kinds, program) in [
        ("fork,spawn", Program::Stop),
        ("deaf,forkserver", Program::Start),
    ] {
        let mut world = world_with_children(kinds);
        let mut command = world.command(python());
        command
            .args(["-c", SUBREAPER])
            .arg(world.link(Program::Start))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut subreaper = Stranger::of(command);
        let mut line = String::new();
        BufReader::new(subreaper.stdout())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "started 0\n");
        let agent = world.assert_one_agent();
        assert_eq!(process(agent).unwrap().parent, subreaper.pid());
        let orphans: Vec<_> = world
            .agent_children()
            .into_iter()
            .map(|(_, pid)| pid)
            .collect();
        assert_eq!(orphans.len(), 2);
        world.kill(agent);
        let (code, seen) = report(&world, Program::Check);
        assert_eq!(
            (code, &seen["outcome"]),
            (1, &"orphan_workers".into()),
            "{seen}"
        );
        world.unset("TEST_AGENT_CHILDREN");
        let (code, seen) = report(&world, program);
        assert_eq!(code, 0, "{seen}");
        assert!(orphans.iter().all(|&orphan| !is_alive(orphan)), "{seen}");
        subreaper.assert_lives();
        world.expect(Program::Stop, 0);
        subreaper.assert_lives();
        world.assert_nothing_left();
    }
}

#[test]
fn interrupted_stop_is_finished_by_the_next_one() {
    let mut world = world_with_children("deaf");
    world.set("TEST_AGENT_DEAF", "1");
    world.set("VOICE_GUARD_GRACE_SECONDS", "60");
    let agent = start_with_children(&world);
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut stop = Stranger::of(world.program(Program::Stop));
        until("stop to be at work", || {
            fs::read_dir(format!("/proc/{}/fd", stop.pid())).is_ok_and(|all| {
                all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
                    .any(|target| target == world.guard_file())
            })
        });
        world.signal(stop.pid(), signal);
        let status = stop.wait();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
        assert!(
            is_alive(agent),
            "nobody is killed before the grace period is over"
        );
        world.expect(Program::Check, 1);
    }
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.2");
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn an_agent_that_an_interrupted_stop_has_asked_to_end_is_not_taken_for_a_healthy_one() {
    for (program, signal) in [
        (Program::Stop, Signal::INT),
        (Program::Stop, Signal::KILL),
        (Program::Restart, Signal::INT),
    ] {
        let mut world = World::new();
        world.set("TEST_AGENT_DEAF", "1");
        world.set("VOICE_GUARD_GRACE_SECONDS", "60");
        world.expect(Program::Start, 0);
        let agent = world.assert_one_agent();
        let mut stop = Stranger::of(world.program(program));
        until("the agent to be asked to end", || {
            fs::read_to_string(world.guard_file())
                .is_ok_and(|named| named.starts_with(&format!("{agent} ")))
        });
        world.signal(stop.pid(), signal);
        assert_eq!(stop.wait().signal(), Some(signal.as_raw()));
        assert!(is_alive(agent));

        for refusing in [Program::Check, Program::Start] {
            let (code, seen) = report(&world, refusing);
            assert_eq!(code, 1, "{seen}");
            assert!(
                seen["notes"]
                    .to_string()
                    .contains(&format!("PID {agent} was asked to end")),
                "{seen}"
            );
        }
        world.set("VOICE_GUARD_GRACE_SECONDS", "0.2");
        let (code, seen) = report(&world, Program::System);
        assert_eq!((code, &seen["outcome"]), (0, &"replaced".into()), "{seen}");
        let successor = world.assert_one_agent();
        assert_ne!(successor, agent);

        let (code, seen) = report(&world, Program::System);
        assert_eq!((code, &seen["outcome"]), (0, &"kept".into()), "{seen}");
        assert_eq!(world.assert_one_agent(), successor);
        let (_, seen) = report(&world, Program::Check);
        assert!(
            !seen["notes"].to_string().contains("asked to end"),
            "{seen}"
        );
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

#[test]
fn an_interrupted_restart_does_not_say_that_the_agent_it_stops_is_gone() {
    let mut world = World::new();
    world.set("TEST_AGENT_DEAF", "1");
    world.set("VOICE_GUARD_GRACE_SECONDS", "60");
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    let mut command = world.program(Program::Restart);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let restart = command.spawn().unwrap();
    until("the agent to be asked to end", || {
        fs::read_to_string(world.guard_file())
            .is_ok_and(|named| named.starts_with(&format!("{agent} ")))
    });
    world.signal(restart.id(), Signal::INT);
    let said = text(&restart.wait_with_output().unwrap());
    assert!(said.contains(&format!("agent PID {agent}")), "{said}");
    assert!(said.contains("was asked to end and still runs"), "{said}");
    assert!(said.contains("may still be saying good-bye"), "{said}");
    assert!(!said.contains("no agent was left running"), "{said}");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.2");
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}
