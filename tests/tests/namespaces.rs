//! Default names, recycled numbers and containers: scenarios in PID and mount
//! namespaces of their own, so that nothing outside is touched or in the way.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use scenarios::surroundings::{NO_ARGUMENTS, Room, Stranger, outcome, pids, report, run, verdict};
use scenarios::{Program, World, is_alive, left_out, process, python, text, until};

/// A world whose programs get no file name from the environment. Its agent is
/// `name`, for which nobody else may look: only for a room with an own `/tmp`.
fn world_with_default_names(name: &str) -> World {
    let mut world = World::new();
    fs::rename(world.script(), world.project().join(name)).unwrap();
    for setting in [
        "PROJECT_DIR",
        "AGENT_SCRIPT",
        "PID_FILE",
        "LOCK_FILE",
        "LOG_FILE",
    ] {
        world.unset(format!("VOICE_GUARD_{setting}"));
    }
    world
}

fn number_in(file: &str) -> u32 {
    let content = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    content.trim_end().parse().unwrap()
}

#[track_caller]
fn expect(world: &World, program: Program, code: i32) -> String {
    let (exit, said) = outcome(world, program, NO_ARGUMENTS);
    assert_eq!(exit, code, "{}: {said}", program.name());
    said
}

#[test]
fn default_names_are_those_of_the_original_scripts() {
    const PID_FILE: &str = "/tmp/letta_voice_agent.pid";
    Room::new().tmpfs("/tmp", "mode=1777").enter(
        "default_names_are_those_of_the_original_scripts",
        || {
            let world = world_with_default_names("letta_voice_agent.py");
            expect(&world, Program::Check, 0);
            expect(&world, Program::Start, 0);
            let agent = number_in(PID_FILE);
            assert!(
                process(agent)
                    .unwrap()
                    .runs_agent("letta_voice_agent", Some("dev"))
            );
            let log = fs::read_to_string("/tmp/voice_agent.log").unwrap();
            assert!(log.contains("registered worker"), "{log}");
            assert!(!Path::new("/tmp/letta_voice_agent.lock").exists());
            assert!(Path::new("/tmp/.letta_voice_agent.guard").exists());

            // The documented fix never makes a duplicate possible.
            let fix = "rm -f /tmp/letta_voice_agent.*";
            assert!(
                Command::new("sh")
                    .args(["-c", fix])
                    .status()
                    .unwrap()
                    .success()
            );
            assert!(Path::new("/tmp/.letta_voice_agent.guard").exists());
            let said = expect(&world, Program::Start, 1);
            assert!(said.contains("ERROR: Already running or locked"), "{said}");
            // And the next system start names the agent again.
            expect(&world, Program::System, 0);
            assert_eq!(number_in(PID_FILE), agent);

            // A variant of the script is the same agent.
            let variant = "letta_voice_agent_groq.py";
            fs::copy(
                world.project().join("letta_voice_agent.py"),
                world.project().join(variant),
            )
            .unwrap();
            let (code, said) = outcome(&world, Program::Start, &["--agent-script", variant]);
            assert_eq!(code, 1, "{said}");

            // `kill $(cat …) && ./start_voice_agent_safe.sh`
            let line = format!("kill $(cat {PID_FILE}) && ./start_voice_agent_safe.sh");
            let output = run(&world, world.shell(&line));
            // The agent may not have ended when the start looks: then it refuses.
            if verdict(&output) == 0 {
                assert_ne!(number_in(PID_FILE), agent);
            } else {
                assert!(text(&output).contains("ERROR: Already running or locked"));
                until("the killed agent's end", || !is_alive(agent));
                expect(&world, Program::Start, 0);
            }
            // `./start_voice_system.sh &`, and a stop that does not wait for it.
            let mut system = Stranger::of(world.program(Program::System));
            expect(&world, Program::Stop, 0);
            let status = system.wait();
            assert!(matches!(status.code(), Some(0 | 1)), "{status}");
            expect(&world, Program::Stop, 0);
            assert!(!Path::new(PID_FILE).exists());
            world.assert_no_overlap();
        },
    );
}

#[test]
fn another_script_gets_names_of_its_own() {
    Room::new()
        .tmpfs("/tmp", "mode=1777")
        .enter("another_script_gets_names_of_its_own", || {
            let mut world = world_with_default_names("other_agent.py");
            let original = world.project().join("letta_voice_agent.py");
            fs::copy(world.project().join("other_agent.py"), original).unwrap();
            expect(&world, Program::Start, 0);
            let first = number_in("/tmp/letta_voice_agent.pid");
            world.set("VOICE_GUARD_AGENT_SCRIPT", "other_agent.py");
            // The test agents share one overlap lock; these two may overlap.
            world.set("TEST_AGENT_OVERLAP_LOCK", world.path("other.lock"));
            expect(&world, Program::Check, 0);
            expect(&world, Program::Start, 0);
            let second = number_in("/tmp/other_agent.pid");
            assert_ne!(first, second);
            for file in ["/tmp/other_agent.log", "/tmp/.other_agent.guard"] {
                assert!(Path::new(file).exists(), "{file}");
            }
            expect(&world, Program::Stop, 0);
            assert!(is_alive(first) && !is_alive(second));
            world.unset("VOICE_GUARD_AGENT_SCRIPT");
            expect(&world, Program::Stop, 0);
            assert!(!is_alive(first));
        });
}

#[test]
fn number_that_the_kernel_gave_to_a_stranger() {
    const NAME: &str = "number_that_the_kernel_gave_to_a_stranger";
    Room::new().tmpfs("/tmp", "mode=1777").enter(NAME, || {
        let world = World::new();
        for next in [
            Program::Check,
            Program::Start,
            Program::Stop,
            Program::System,
            Program::Restart,
        ] {
            world.expect(Program::Start, 0);
            let number = world.assert_one_agent();
            world.kill(number);
            // PID 1 of the room reaps it, then the number is free.
            until("the number to be free", || process(number).is_none());
            let mut stranger = (0..50).find_map(|_| {
                let before = (number - 1).to_string();
                fs::write("/proc/sys/kernel/ns_last_pid", before).ok()?;
                let stranger = Stranger::sleeping(&world);
                (stranger.pid() == number).then_some(stranger)
            });
            let Some(stranger) = &mut stranger else {
                return left_out(NAME, "this kernel does not let the next PID be chosen");
            };
            assert_eq!(world.pid_in_file(), Some(number));
            world.expect(next, 0);
            stranger.assert_lives();
            if matches!(next, Program::Start | Program::System | Program::Restart) {
                assert_ne!(world.assert_one_agent(), number);
            }
            world.expect(Program::Stop, 0);
            stranger.assert_lives();
        }
        world.assert_no_overlap();
    });
}

/// The command that gives its arguments PID and mount namespaces, if the
/// machine can.
fn container(world: &World, what: &str) -> Option<Command> {
    let arguments = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let possible = world
        .command("unshare")
        .args(arguments)
        .arg("true")
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        left_out(what, "needs root, to make a container");
        return None;
    }
    let mut command = world.command("unshare");
    command.args(arguments);
    Some(command)
}

/// Starts an agent with the safe starter in a container that shares the
/// folder; the container lives as long as the stranger.
fn agent_in_a_container(world: &World, what: &str) -> Option<(Stranger, u32)> {
    let mut command = container(world, what)?;
    command
        .args(["sh", "-c", "\"$0\" && echo started && read -r _"])
        .arg(world.link(Program::Start))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut container = Stranger::of(command);
    let mut lines = BufReader::new(container.take_stdout()).lines();
    assert!(
        lines.any(|line| line.unwrap() == "started"),
        "{}",
        world.describe()
    );
    let agents = world.agents();
    assert_eq!(agents.len(), 1, "{}", world.describe());
    Some((container, agents[0]))
}

#[test]
fn agent_in_a_container_counts_and_is_named_and_never_signalled() {
    let world = World::new();
    let Some((container, agent)) = agent_in_a_container(&world, "an agent in a container") else {
        return;
    };
    // Its number in the file is that of the container, and somebody else's here.
    assert_ne!(world.pid_in_file(), Some(agent));
    let (code, seen) = report(&world, Program::Check);
    assert_eq!(code, 1, "{seen}");
    assert_eq!(pids(&seen, "agents"), [u64::from(agent)], "{seen}");
    assert_eq!(seen["agents"][0]["container"], true, "{seen}");
    for program in [
        Program::Check,
        Program::Start,
        Program::Stop,
        Program::Restart,
    ] {
        let (code, said) = outcome(&world, program, &["--grace-seconds", "0.2"]);
        assert_eq!(code, 1, "{}: {said}", program.name());
        assert!(
            said.contains(&agent.to_string()),
            "{}: {said}",
            program.name()
        );
        assert!(said.contains("container"), "{}: {said}", program.name());
        assert_eq!(world.agents(), [agent], "{}: {said}", program.name());
    }
    let (_, said) = outcome(&world, Program::System, NO_ARGUMENTS);
    assert!(said.contains(&agent.to_string()), "{said}");
    assert_eq!(world.agents(), [agent], "{said}");
    assert_eq!(world.starts().len(), 1, "a second one was started: {said}");
    drop(container);
    until("the container's end", || world.agents().is_empty());
    // What it left is in nobody's way.
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn start_in_progress_in_a_container_is_respected() {
    let mut world = World::new();
    world.set("TEST_AGENT_SILENT", "1");
    world.set("VOICE_GUARD_VERIFY_SECONDS", "60");
    let Some(mut command) = container(&world, "a start in progress in a container") else {
        return;
    };
    command
        .arg(world.link(Program::Start))
        .stdout(Stdio::null());
    let container = Stranger::of(command);
    until("the agent", || world.starts().len() == 1);
    let agent = world.agents()[0];
    for program in [Program::Check, Program::Start] {
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, 1, "{}: {said}", program.name());
    }
    assert_eq!(world.agents(), [agent]);
    drop(container);
    until("the container's end", || world.agents().is_empty());
    world.unset("TEST_AGENT_SILENT");
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn agent_outside_is_respected_from_inside_a_container() {
    let world = World::new();
    let Some(mut check) = container(&world, "a check in a container") else {
        return;
    };
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    // It holds the lock of the PID file, and nobody who does can be seen.
    check.arg(world.link(Program::Check));
    let output = run(&world, check);
    assert_eq!(verdict(&output), 1, "{}", text(&output));
    for program in [
        Program::Start,
        Program::System,
        Program::Restart,
        Program::Stop,
    ] {
        let mut command = container(&world, "a container").unwrap();
        command.arg(world.link(program));
        let output = run(&world, command);
        let said = text(&output);
        assert_eq!(verdict(&output), 1, "{}: {said}", program.name());
        assert_eq!(
            world.assert_one_agent(),
            agent,
            "{}: {said}",
            program.name()
        );
        assert_eq!(world.starts().len(), 1, "{}: {said}", program.name());
    }
    // A stranger in there that happens to have the agent's number changes nothing.
    let mut command = container(&world, "a container").unwrap();
    let line = format!(
        "echo {} > /proc/sys/kernel/ns_last_pid; sleep 1000 & \"$0\"; code=$?; kill $!; exit $code",
        agent - 1
    );
    command
        .args(["sh", "-c", &line])
        .arg(world.link(Program::Start));
    let output = run(&world, command);
    assert_eq!(verdict(&output), 1, "{}", text(&output));
    assert_eq!(world.assert_one_agent(), agent);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn agent_that_is_process_1_of_its_container_is_an_agent() {
    let world = World::new();
    let Some(mut command) = container(&world, "an agent that is PID 1") else {
        return;
    };
    command
        .arg(python())
        .arg(world.script().file_name().unwrap())
        .arg("dev")
        .stdout(Stdio::null());
    let container = Stranger::of(command);
    until("the agent", || world.starts() == [1]);
    let agent = world.agents()[0];
    fs::write(world.pid_file(), "1\n").unwrap();
    let mut command = world.command("nsenter");
    command
        .args(["--target", &agent.to_string(), "--pid", "--mount"])
        .arg(world.link(Program::Check))
        .arg("--json");
    let output = run(&world, command);
    assert_eq!(verdict(&output), 1, "{}", text(&output));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pids(&seen, "agents"), [1_u64], "{seen}");
    drop(container);
    until("the container's end", || world.agents().is_empty());
    // Outside, 1 is somebody else.
    world.expect(Program::Check, 0);
}

#[test]
fn process_numbers_of_another_namespace_are_not_believed() {
    const WHAT: &str = "a /proc of another PID namespace";
    let world = World::new();
    if container(&world, WHAT).is_none() {
        return;
    }
    for program in Program::ALL {
        let mut command = world.command("unshare");
        // As `docker exec` into a container with the host's /proc mounted.
        command
            .args(["--pid", "--fork", "--kill-child"])
            .arg(world.link(program));
        let output = run(&world, command);
        assert_eq!(verdict(&output), 1, "{}: {}", program.name(), text(&output));
        assert!(text(&output).contains("/proc"), "{}", text(&output));
        assert!(world.agents().is_empty(), "{}", program.name());
    }
}

#[test]
fn zombie_of_a_reaper_that_does_not_reap_is_dead() {
    // In containers PID 1 is often no init: whoever is re-parented to it stays
    // a zombie for good.
    let world = World::new();
    let Some(mut command) = container(&world, "zombies under a PID 1 that does not reap") else {
        return;
    };
    let script = "\
import subprocess, sys
def run(path, expected):
    code = subprocess.run([path], stdin=subprocess.DEVNULL).returncode
    if code != expected:
        raise SystemExit('%s ended with %d' % (path, code))
check, start, stop, restart = sys.argv[1:]
for _ in range(2):
    run(start, 0)
    run(check, 1)
    run(restart, 0)
    run(stop, 0)
    run(check, 0)
print('all well')
";
    command.arg(python()).args(["-c", script]);
    for program in [
        Program::Check,
        Program::Start,
        Program::Stop,
        Program::Restart,
    ] {
        command.arg(world.link(program));
    }
    let output = run(&world, command);
    let said = text(&output);
    assert!(
        output.status.success() && said.contains("all well"),
        "{said}"
    );
    world.assert_nothing_left();
    world.assert_no_overlap();
}

#[test]
fn suspended_starter_is_still_starting() {
    let mut world = World::new();
    world.set("TEST_AGENT_SILENT", "1");
    world.set("VOICE_GUARD_VERIFY_SECONDS", "60");
    let mut starter = Stranger::of(world.program(Program::Start));
    until("the agent", || world.starts().len() == 1);
    world.signal(starter.pid(), Signal::STOP);
    for program in [Program::Check, Program::Start] {
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, 1, "{}: {said}", program.name());
    }
    // Stop ends the agent and waits for the suspended starter's guard.
    let mut stop = Stranger::of(world.program(Program::Stop));
    until("the agent's end", || world.agents().is_empty());
    stop.assert_lives();
    world.signal(starter.pid(), Signal::CONT);
    assert_eq!(stop.wait().code(), Some(0));
    assert_eq!(starter.wait().code(), Some(1));
    world.assert_nothing_left();
    assert!(world.starts().len() == 1, "{:?}", world.starts());
}
