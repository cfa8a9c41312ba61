//! `start-voice-agent-safe --foreground`: the starter that stays with its agent,
//! as a supervisor, a container or a person sees it.
#![expect(clippy::unwrap_used, reason = "in a test an unwrap is the assertion")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use scenarios::{Program, World, available, eventually, is_alive, until};

/// The status of a start in the foreground that was refused.
const REFUSED: i32 = 195;

/// A starter in the foreground, its output in a file of the world.
struct Starter {
    child: Child,
}

impl Starter {
    fn begin(world: &World, arguments: &[&str]) -> Self {
        let output = File::create(world.path("foreground.out")).unwrap();
        let mut command = world.program(Program::Start);
        command.arg("--foreground").args(arguments).stdout(output);
        Self {
            child: command.spawn().unwrap(),
        }
    }

    /// Begun, and the agent verified.
    fn up(world: &World) -> (Self, u32) {
        let starter = Self::begin(world, &[]);
        starter.until_up(world);
        (starter, world.assert_one_agent())
    }

    fn until_up(&self, world: &World) {
        until("the agent to be started in the foreground", || {
            said(world).contains("OK: agent started") || !is_alive(self.pid())
        });
        until("the start to be over", || !world.lock_file().exists());
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn ended(&mut self, world: &World) -> ExitStatus {
        assert!(
            eventually(Duration::from_secs(20), || !self.lives()),
            "the starter goes on; it said:\n{}\n{}",
            said(world),
            world.describe()
        );
        self.child.wait().unwrap()
    }
}

fn said(world: &World) -> String {
    fs::read_to_string(world.path("foreground.out")).unwrap_or_default()
}

#[test]
fn everybody_sees_the_agent_and_a_second_start_has_a_status_of_its_own() {
    let world = World::new();
    let (mut starter, agent) = Starter::up(&world);
    assert!(world.pid_file_is_locked());
    world.expect(Program::Check, 1);
    assert!(
        world
            .expect(Program::Start, 1)
            .contains("Already running or locked")
    );
    world.expect(Program::System, 0);
    let mut second = world.program(Program::Start);
    let second = world.run_command({
        second.arg("--foreground");
        second
    });
    assert_eq!(second.status.code(), Some(REFUSED), "{second:?}");
    assert_eq!(world.assert_one_agent(), agent);
    assert!(starter.lives());
    // A stop by hand ends the agent, and with it the starter.
    world.expect(Program::Stop, 0);
    assert_eq!(starter.ended(&world).code(), Some(0));
    world.assert_nothing_left();
    world.assert_no_overlap();
}

#[test]
fn json_is_one_object_when_it_ends() {
    let world = World::new();
    let mut starter = Starter::begin(&world, &["--json"]);
    until("the agent to be up", || {
        world.log().contains("registered worker") && !world.lock_file().exists()
    });
    world.signal(starter.pid(), Signal::TERM);
    assert_eq!(starter.ended(&world).code(), Some(0));
    let object: serde_json::Value = serde_json::from_str(&said(&world)).unwrap();
    assert_eq!(object["outcome"], "ended", "{object}");
    assert_eq!(object["exit_code"], 0);
    world.assert_nothing_left();
}

#[test]
fn the_agents_output_is_in_the_log_and_on_standard_output() {
    let world = World::new();
    let (mut starter, _) = Starter::up(&world);
    until("the output to be copied", || {
        said(&world).contains("registered worker")
    });
    world.signal(starter.pid(), Signal::TERM);
    assert_eq!(starter.ended(&world).code(), Some(0));
    for text in [said(&world), world.log()] {
        assert!(text.contains("starting worker\n"), "{text}");
        // Said after it was asked to end.
        assert!(text.contains("good-bye\n"), "{text}");
    }
    world.assert_nothing_left();
}

#[test]
fn output_that_goes_into_the_log_is_not_copied_there() {
    let world = World::new();
    let log = File::options()
        .create(true)
        .append(true)
        .open(world.log_file())
        .unwrap();
    let mut command = world.program(Program::Start);
    command.arg("--foreground").stdout(log);
    let mut child = command.spawn().unwrap();
    until("the agent to be started", || {
        world.log().contains("OK: agent started")
    });
    world.signal(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(
        world.log().matches("starting worker").count(),
        1,
        "{}",
        world.log()
    );
    assert_eq!(
        world.log().matches("good-bye").count(),
        1,
        "{}",
        world.log()
    );
    world.assert_nothing_left();
}

#[test]
fn a_log_that_is_emptied_is_copied_on_from_its_beginning() {
    let world = World::new();
    let (mut starter, _) = Starter::up(&world);
    let mut log = File::options().append(true).open(world.log_file()).unwrap();
    writeln!(log, "before {}", "x".repeat(10_000)).unwrap();
    until("the first to be copied", || said(&world).contains("before"));
    until("the first to be copied whole", || {
        said(&world).contains(&"x".repeat(10_000))
    });
    log.set_len(0).unwrap();
    writeln!(log, "after").unwrap();
    until("the second to be copied", || {
        said(&world).contains("after\n")
    });
    world.signal(starter.pid(), Signal::TERM);
    starter.ended(&world);
}

#[test]
fn a_supervisor_hears_of_readiness_when_it_is_verified() {
    let mut world = World::new();
    let gate = world.path("ready");
    world.set("TEST_AGENT_READY_FILE", &gate);
    world.set("VOICE_GUARD_VERIFY_SECONDS", "30");
    let name = format!("voice-guard-{}", world.family());
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let path = world.path("notify.socket");
    for (address, listener) in [
        (
            path.display().to_string(),
            UnixDatagram::bind(&path).unwrap(),
        ),
        (
            format!("@{name}"),
            UnixDatagram::bind_addr(&abstract_name).unwrap(),
        ),
    ] {
        let _ = fs::remove_file(&gate);
        listener
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let hear = |wanted: &str| {
            let mut heard = Vec::new();
            loop {
                let mut message = [0; 1000];
                let length = listener.recv(&mut message).unwrap();
                let message = String::from_utf8_lossy(&message[..length]).into_owned();
                if message.contains(wanted) {
                    return (message, heard);
                }
                heard.push(message);
            }
        };
        world.set("NOTIFY_SOCKET", &address);
        let mut starter = Starter::begin(&world, &[]);
        until("the agent to be born", || world.agents().len() == 1);
        hear("STATUS=starting the agent");
        listener.set_nonblocking(true).unwrap();
        assert!(
            listener.recv(&mut [0; 1]).is_err(),
            "ready before the readiness line"
        );
        listener.set_nonblocking(false).unwrap();
        File::create(&gate).unwrap();
        let (ready, before) = hear("READY=1");
        assert!(ready.contains("STATUS=OK: agent started (PID"), "{ready}");
        assert!(!before.iter().any(|message| message.contains("READY")));
        let agent = world.agents()[0];
        let environment = scenarios::process(agent).unwrap();
        assert_eq!(environment.variable("NOTIFY_SOCKET"), None);
        world.signal(starter.pid(), Signal::TERM);
        hear("STOPPING=1");
        assert_eq!(starter.ended(&world).code(), Some(0));
        world.unset("NOTIFY_SOCKET");
    }
    world.assert_nothing_left();
}

#[test]
fn a_signal_to_end_ends_the_whole_family() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut world = World::new();
        world.with_children();
        let (mut starter, _) = Starter::up(&world);
        assert!(world.marked().len() > 8, "{}", world.describe());
        world.signal(starter.pid(), signal);
        assert_eq!(starter.ended(&world).code(), Some(0), "{}", said(&world));
        world.assert_nothing_left();
    }
}

#[test]
fn a_deaf_agent_is_killed_and_the_starter_dies_by_the_signal_it_got() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut world = World::new();
        world.set("TEST_AGENT_DEAF", "1");
        world.set("VOICE_GUARD_GRACE_SECONDS", "0.2");
        let (mut starter, _) = Starter::up(&world);
        world.signal(starter.pid(), signal);
        let ended = starter.ended(&world);
        assert_eq!(ended.signal(), Some(signal.as_raw()), "{ended}");
        world.assert_nothing_left();
    }
}

#[test]
fn a_second_signal_shortens_the_grace_period() {
    let mut world = World::new();
    world.set("TEST_AGENT_DEAF", "1");
    world.set("VOICE_GUARD_GRACE_SECONDS", "600");
    let (mut starter, _) = Starter::up(&world);
    world.signal(starter.pid(), Signal::TERM);
    // Taken before the second is sent; two of the same that wait are one.
    let proc_status = format!("/proc/{}/status", starter.pid());
    until("the first to be heard", || {
        let status = fs::read_to_string(&proc_status).unwrap_or_default();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        pending.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16) == Ok(0))
    });
    world.signal(starter.pid(), Signal::INT);
    starter.ended(&world);
    world.assert_nothing_left();
}

#[test]
fn other_signals_are_the_agents() {
    let mut world = World::new();
    world.set("TEST_AGENT_RESTART_COMMAND", "/bin/true");
    world.set("TEST_AGENT_SAY_WHEN_DONE", "heard USR1, done");
    world.set("TEST_AGENT_SAY_SIGNALS", "SIGQUIT,SIGUSR2");
    let (mut starter, agent) = Starter::up(&world);
    for signal in [Signal::QUIT, Signal::USR2] {
        world.signal(starter.pid(), signal);
        let said = format!("heard {}", signal.as_raw());
        until("the agent to hear it", || world.log().contains(&said));
    }
    world.signal(starter.pid(), Signal::USR1);
    until("the agent to hear USR1", || {
        world.log().contains("heard USR1")
    });
    assert!(starter.lives() && is_alive(agent));
    // Python's default for HUP is to die of it.
    world.signal(starter.pid(), Signal::HUP);
    let ended = starter.ended(&world);
    assert_eq!(ended.signal(), Some(Signal::HUP.as_raw()), "{ended}");
    world.assert_nothing_left();
}

#[test]
fn the_agents_end_is_the_starters() {
    let mut world = World::new();
    world.with_children();
    let (mut starter, agent) = Starter::up(&world);
    world.kill(agent);
    let ended = starter.ended(&world);
    assert_eq!(ended.signal(), Some(9), "{ended}");
    // Its workers did not outlive it.
    world.assert_nothing_left();
    assert!(
        said(&world).contains("killed by SIGKILL"),
        "{}",
        said(&world)
    );

    for code in ["0", "7"] {
        let mut world = World::new();
        world.set("TEST_AGENT_DIE_AFTER", "0");
        world.set("TEST_AGENT_DIE_SAYING", "no server reachable");
        world.set("TEST_AGENT_DIE_WITH", code);
        let mut starter = Starter::begin(&world, &[]);
        assert_eq!(
            starter.ended(&world).code(),
            Some(code.parse().unwrap()),
            "{}",
            said(&world)
        );
        assert_eq!(said(&world).matches("no server reachable").count(), 1);
        world.assert_nothing_left();
    }
}

#[test]
fn an_agent_does_not_outlive_a_starter_that_is_killed() {
    let mut world = World::new();
    world.with_children();
    let (mut starter, agent) = Starter::up(&world);
    world.kill(starter.pid());
    starter.ended(&world);
    until("the agent to die with its starter", || !is_alive(agent));
    // Its workers do, and are in nobody's way.
    let (mut starter, _) = Starter::up(&world);
    world.assert_no_overlap();
    world.signal(starter.pid(), Signal::TERM);
    starter.ended(&world);
    assert_eq!(world.agents(), Vec::<u32>::new());
    // What is no Python answers no calls: a stop ends it.
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn a_starter_killed_at_any_moment_is_in_nobodys_way() {
    type Moment = fn(&World) -> bool;
    let moments: [(&str, Moment); 4] = [
        ("the startup lock", |world| world.lock_file().exists()),
        ("the PID file", |world| world.pid_file().exists()),
        ("the agent's first instruction", |world| {
            !world.starts().is_empty()
        }),
        ("the readiness line", |world| {
            world.log().contains("registered worker")
        }),
    ];
    for (name, moment) in moments {
        let world = World::new();
        let mut starter = Starter::begin(&world, &[]);
        until(name, || moment(&world));
        world.kill(starter.pid());
        starter.ended(&world);
        // Not even for the time that the kernel takes to kill the agent: a new
        // start waits for nobody, and is refused or has the only agent.
        let mut next = Starter::begin(&world, &[]);
        until("the next start's verdict", || {
            !next.lives()
                || (said(&world).contains("OK: agent started") && !world.lock_file().exists())
        });
        if !next.lives() {
            assert_eq!(next.ended(&world).code(), Some(REFUSED), "{name}");
            until("the agent to be gone", || world.agents().is_empty());
            next = Starter::up(&world).0;
        }
        world.assert_one_agent();
        world.assert_no_overlap();
        world.signal(next.pid(), Signal::TERM);
        next.ended(&world);
        world.assert_nothing_left();
    }
}

#[test]
fn a_reader_that_does_not_read_stops_nothing() {
    let world = World::new();
    let mut command = world.program(Program::Start);
    command.arg("--foreground").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    until("the agent to be up", || {
        world.log().contains("registered worker") && !world.lock_file().exists()
    });
    let mut log = File::options().append(true).open(world.log_file()).unwrap();
    let line = "y".repeat(1023) + "\n";
    for _ in 0..1024 {
        log.write_all(line.as_bytes()).unwrap();
    }
    world.signal(child.id(), Signal::TERM);
    assert!(
        eventually(Duration::from_secs(20), || child
            .try_wait()
            .unwrap()
            .is_some()),
        "{}",
        world.describe()
    );
    world.assert_nothing_left();
    let mut copied = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut copied)
        .unwrap();
    assert!(copied.contains("registered worker"), "{copied}");
}

#[test]
fn a_start_waits_for_a_stop_that_is_at_it() {
    let mut world = World::new();
    world.set("TEST_AGENT_DRAIN", "1.5");
    world.expect(Program::Start, 0);
    let mut stop = world
        .program(Program::Stop)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the stop to be at it", || {
        let probe = File::open(world.guard_file()).unwrap();
        rustix::fs::flock(&probe, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
    });
    world.unset("TEST_AGENT_DRAIN");
    let mut starter = Starter::begin(&world, &[]);
    stop.wait().unwrap();
    until("the start to come to a verdict", || {
        !starter.lives()
            || (said(&world).contains("OK: agent started") && !world.lock_file().exists())
    });
    if starter.lives() {
        world.assert_one_agent();
        world.signal(starter.pid(), Signal::TERM);
        starter.ended(&world);
    } else {
        // It came first, saw the agent still running, and was refused.
        assert_eq!(starter.ended(&world).code(), Some(REFUSED));
    }
    world.assert_nothing_left();
}

#[test]
fn as_the_first_process_of_a_container_it_reaps_and_passes_the_status_on() {
    let mut world = World::new();
    if !available(&["unshare"], "the starter as process 1 of a container") {
        return;
    }
    let can = world.run_command({
        let mut probe = world.command("unshare");
        probe.args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
            "true",
        ]);
        probe
    });
    if !can.status.success() {
        scenarios::left_out(
            "the starter as process 1 of a container",
            "no user and PID namespaces here",
        );
        return;
    }
    world.with_children();
    world.set("TEST_AGENT_CHILDREN", "grandchild,setsid");
    let output = File::create(world.path("foreground.out")).unwrap();
    let mut command = world.command("unshare");
    command
        .args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
        ])
        .arg(world.link(Program::Start))
        .arg("--foreground")
        .stdout(output);
    let mut child = command.spawn().unwrap();
    until("the agent to be up in there", || {
        said(&world).contains("OK: agent started")
    });
    let agent = world.agents()[0];
    let starter = scenarios::process(agent).unwrap().parent;
    // A grandchild whose parent is dead is process 1's to reap.
    let (child_of_agent, grandchild) = lineage(&world, agent);
    world.kill(child_of_agent);
    until("the grandchild to be inherited", || {
        scenarios::process(grandchild).is_some_and(|process| process.parent == starter)
    });
    world.kill(grandchild);
    until("the dead grandchild to be reaped", || {
        scenarios::process(grandchild).is_none()
    });
    assert!(is_alive(agent));
    world.kill(agent);
    let ended = child.wait().unwrap();
    // No signal of its own ends process 1: 128 and the number.
    assert_eq!(ended.code(), Some(137), "{ended}; {}", said(&world));
    until("everything in there to end", || world.agents().is_empty());
    let _ = fs::remove_file(world.pid_file());
}

/// A child of the agent that has a child of its own, and that.
fn lineage(world: &World, agent: u32) -> (u32, u32) {
    let all = world.processes();
    let mut children = all.iter().filter(|process| process.parent == agent);
    let found = children.find_map(|child| {
        let grandchild = all.iter().find(|process| process.parent == child.pid)?;
        Some((child.pid, grandchild.pid))
    });
    assert!(found.is_some(), "no grandchild\n{}", world.describe());
    found.unwrap()
}
