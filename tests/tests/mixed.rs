//! Old scripts and new programs side by side on the same files, as during a
//! migration, script by script. The old ones are stand-ins, see `old-style/`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use scenarios::{
    Barrier, Finished, Program, World, available, eventually, is_alive, left_out, process,
    slow_rounds, text, until,
};

const REFUSAL: &str = "ERROR: Already running or locked";

/// `None` where the old scripts cannot run.
fn world() -> Option<World> {
    if !available(&["bash", "ps", "awk"], "old scripts beside new programs") {
        return None;
    }
    let mut world = World::new();
    world.set("OLD_STYLE_VERIFY_SECONDS", "0.2");
    Some(world)
}

// ---- Every mix of old and new check, start and stop.

#[test]
fn all_new_live_together() {
    live_together(&[]);
}

#[test]
fn old_check_lives_with_new_start_and_stop() {
    live_together(&[Program::Check]);
}

#[test]
fn old_start_lives_with_new_check_and_stop() {
    live_together(&[Program::Start]);
}

#[test]
fn old_stop_lives_with_new_check_and_start() {
    live_together(&[Program::Stop]);
}

#[test]
fn old_check_and_start_live_with_new_stop() {
    live_together(&[Program::Check, Program::Start]);
}

#[test]
fn old_check_and_stop_live_with_new_start() {
    live_together(&[Program::Check, Program::Stop]);
}

#[test]
fn old_start_and_stop_live_with_new_check() {
    live_together(&[Program::Start, Program::Stop]);
}

/// The stand-ins are as good as what they stand for: without this the others prove little.
#[test]
fn all_old_live_together() {
    live_together(&[Program::Check, Program::Start, Program::Stop]);
}

/// One life, from a safe check to a stop, with the given scripts still old.
fn live_together(old: &[Program]) {
    let Some(world) = world() else { return };
    world.migrate_all_but(old);
    world.expect(Program::Check, 0);
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();

    world.expect(Program::Check, 1);
    let said = world.expect(Program::Start, 1);
    assert!(said.contains(REFUSAL), "{said}");
    assert_eq!(world.assert_one_agent(), agent);

    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
    world.expect(Program::Stop, 0);
    world.expect(Program::Check, 0);

    // An agent that died leaves its PID file; that hinders nobody.
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    world.kill(agent);
    // The programs know a zombie for dead, the old scripts do not.
    let reaped = || eventually(Duration::from_secs(5), || process(agent).is_none());
    if old.is_empty() || reaped() {
        world.expect(Program::Check, 0);
        world.expect(Program::Start, 0);
        world.assert_one_agent();
    } else {
        left_out("old scripts after a death", "PID 1 does not reap here");
    }
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
    world.assert_no_overlap();
}

// ---- System start and restart, old and new, over agents of either kind.

#[test]
fn old_and_new_system_starts_keep_each_others_agent() {
    for starter in [Program::Start, Program::System] {
        for old_starter in [true, false] {
            let Some(world) = world() else { return };
            let first = if old_starter {
                world.old_style(starter)
            } else {
                world.program(starter)
            };
            expect(&world, first, 0);
            let agent = world.assert_one_agent();
            for _ in 0..2 {
                expect(&world, world.old_style(Program::System), 0);
                world.expect(Program::System, 0);
            }
            assert_eq!(world.assert_one_agent(), agent);
            until("the agent's first instruction", || {
                !world.starts().is_empty()
            });
            assert_eq!(world.starts(), [agent]);
            world.leave_agents();
        }
    }
}

#[test]
fn a_new_restart_replaces_what_an_old_restart_started() {
    let Some(world) = world() else { return };
    expect(&world, world.old_style(Program::Restart), 0);
    let [old] = world.agents()[..] else {
        panic!("one agent expected\n{}", world.describe());
    };
    // The old restart writes no PID file: the programs find its agent all the same.
    assert_eq!(world.pid_in_file(), None);
    world.expect(Program::Check, 1);
    let said = world.expect(Program::Start, 1);
    assert!(said.contains(REFUSAL), "{said}");

    world.expect(Program::Restart, 0);
    assert_ne!(world.assert_one_agent(), old);
    assert!(!is_alive(old));
    world.assert_no_overlap();
    world.leave_agents();
}

#[test]
fn a_new_system_start_takes_an_old_restarts_agent_into_the_pid_file() {
    let Some(world) = world() else { return };
    expect(&world, world.old_style(Program::Restart), 0);
    let agents = world.agents();
    world.expect(Program::System, 0);
    assert_eq!(agents, [world.assert_one_agent()]);
    // Named in the file, the old scripts find it there as well.
    expect(&world, world.old_style(Program::Check), 1);
    expect(&world, world.old_style(Program::Stop), 0);
    world.assert_nothing_left();
}

#[test]
fn an_old_restart_replaces_what_a_new_start_started() {
    let Some(world) = world() else { return };
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    expect(&world, world.old_style(Program::Restart), 0);
    let [new] = world.agents()[..] else {
        panic!("one agent expected\n{}", world.describe());
    };
    assert_ne!(new, agent);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn a_new_stop_ends_duplicates_of_old_and_new_making() {
    let Some(world) = world() else { return };
    world.expect(Program::Start, 0);
    let duplicates = [world.agent_by_hand("dev"), world.agent_by_hand("dev")];
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
    assert!(duplicates.iter().all(|agent| !is_alive(agent.pid())));
}

// ---- What one kind leaves behind, and the other has to cope with.

#[test]
fn a_new_start_clears_the_orphan_workers_that_an_old_stop_leaves() {
    let Some(mut world) = world() else { return };
    world.set("TEST_AGENT_CHILDREN", "spawn,forkserver");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.5");
    world.expect(Program::Start, 0);
    expect(&world, world.old_style(Program::Stop), 0);
    let orphans = world.agent_children();
    assert_eq!(orphans.len(), 2, "{}", world.describe());
    assert!(orphans.iter().all(|(_, pid)| is_alive(*pid)));

    let said = world.expect(Program::Check, 1);
    for (_, pid) in &orphans {
        assert!(
            said.contains(&pid.to_string()),
            "{pid} is not named:\n{said}"
        );
    }
    world.unset("TEST_AGENT_CHILDREN");
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    assert!(orphans.iter().all(|(_, pid)| !is_alive(*pid)));
    world.assert_no_overlap();
    world.leave_agents();
}

#[test]
fn a_lock_left_by_a_killed_old_starter_does_not_hinder_a_new_start() {
    let Some(world) = world() else { return };
    let (mut starter, _) = paused_old_starter(&world);
    world.kill(starter.id());
    starter.wait().unwrap();
    assert!(world.lock_file().exists());
    // The old check waits for its thirty seconds; the new ones see that nobody starts.
    expect(&world, world.old_style(Program::Check), 1);
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.leave_agents();
}

#[test]
fn an_old_start_in_progress_refuses_a_new_check_and_a_new_start() {
    let Some(world) = world() else { return };
    let (mut starter, fifo) = paused_old_starter(&world);
    let lock = std::fs::read(world.lock_file()).unwrap();
    world.expect(Program::Check, 1);
    let said = world.expect(Program::Start, 1);
    assert!(said.contains(REFUSAL), "{said}");
    assert_eq!(std::fs::read(world.lock_file()).unwrap(), lock);
    assert!(world.starts().is_empty());

    resume(&fifo);
    assert!(starter.wait().unwrap().success());
    world.assert_one_agent();
    world.leave_agents();
}

#[test]
fn a_new_system_start_beside_an_old_start_in_progress_ends_with_one_agent() {
    let Some(world) = world() else { return };
    let (mut starter, fifo) = paused_old_starter(&world);
    let mut system = world
        .program(Program::System)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // It has looked at the lock as soon as it has opened it or decided without:
    // either way the old starter goes on beside it.
    resume(&fifo);
    assert!(system.wait().unwrap().success());
    let _ = starter.wait().unwrap();
    assert_eq!(world.agents().len(), 1, "{}", world.describe());
    world.leave_agents();
}

#[test]
fn a_new_start_in_progress_refuses_an_old_check_and_an_old_start() {
    let Some(mut world) = world() else { return };
    world.set("TEST_AGENT_SILENT", "1");
    world.set("VOICE_GUARD_VERIFY_SECONDS", "5");
    let mut starter = world
        .program(Program::Start)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the agent to run", || world.starts().len() == 1);
    assert_eq!(
        std::fs::read_to_string(world.lock_file()).unwrap(),
        format!("{}\n", starter.id())
    );
    expect(&world, world.old_style(Program::Check), 1);
    let said = expect(&world, world.old_style(Program::Start), 1);
    assert!(said.contains(REFUSAL), "{said}");
    // The refused old starter took nothing away from the start in progress.
    assert!(world.lock_file().exists());

    assert!(starter.wait().unwrap().success());
    world.assert_one_agent();
    world.leave_agents();
}

#[test]
fn an_old_check_sees_the_lock_of_a_new_start_without_any_agent() {
    let Some(mut world) = world() else { return };
    world.set("TEST_AGENT_SILENT", "1");
    world.set("VOICE_GUARD_VERIFY_SECONDS", "20");
    let mut starter = world
        .program(Program::Start)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the agent to run", || world.starts().len() == 1);
    // The old check by the lock alone: it looks for another script's agents
    // and at a PID file that is not there.
    let mut check = world.old_style(Program::Check);
    check
        .env("VOICE_GUARD_AGENT_SCRIPT", "nobody_runs_this.py")
        .env("VOICE_GUARD_PID_FILE", world.path("no.pid"));
    let said = expect(&world, check, 1);
    assert!(said.contains("A start is in progress"), "{said}");
    world.expect(Program::Stop, 0);
    assert_eq!(starter.wait().unwrap().code(), Some(1));
    world.assert_nothing_left();
}

// ---- Races between old and new: first the worst cases, made to happen.

#[test]
fn an_old_starter_that_nobody_saw_coming_ends_beside_a_new_start_with_one_agent() {
    old_comes_between(Program::Start, Between::Birth);
}

#[test]
fn an_old_starter_that_nobody_saw_coming_ends_beside_a_new_system_start_with_one_agent() {
    old_comes_between(Program::System, Between::Birth);
}

#[test]
fn an_old_starter_that_nobody_saw_coming_ends_beside_a_new_restart_with_one_agent() {
    old_comes_between(Program::Restart, Between::Birth);
}

#[test]
fn a_new_start_waits_for_the_agent_of_an_old_starter_that_has_taken_its_lock() {
    old_comes_between(Program::Start, Between::LastLook);
}

#[test]
fn a_new_system_start_waits_for_the_agent_of_an_old_starter_that_has_taken_its_lock() {
    old_comes_between(Program::System, Between::LastLook);
}

#[derive(Clone, Copy, PartialEq)]
enum Between {
    /// The old agent is born while the new one is not ready.
    Birth,
    /// The old lock is written while the new agent is not ready, the old agent
    /// is born when it is.
    LastLook,
}

/// The old starter has looked; the new one starts; then the old one goes on.
fn old_comes_between(program: Program, when: Between) {
    let Some(mut world) = world() else { return };
    let (mut old, before_lock, before_agent) = unseen_old_starter(&world);
    let ready = world.path("ready");
    world.set("TEST_AGENT_READY_FILE", &ready);
    let output = world.path("new.out");
    let mut new = world
        .program(program)
        .env("VOICE_GUARD_VERIFY_SECONDS", "30")
        .stdout(std::fs::File::create(&output).unwrap())
        .spawn()
        .unwrap();
    until("the new agent", || world.starts().len() == 1);
    resume(&before_lock);
    until("the old lock", || lock_names(&world, old.id()));
    if when == Between::LastLook {
        std::fs::write(&ready, "").unwrap();
        until("the new agent to be ready", || {
            world.log().contains("registered worker")
        });
        assert!(new.try_wait().unwrap().is_none(), "it did not wait");
    }
    resume(&before_agent);
    until("the old agent", || world.starts().len() == 2);
    std::fs::write(&ready, "").unwrap();
    let status = new.wait().unwrap();
    let old_status = old.wait().unwrap();
    let said = std::fs::read_to_string(output).unwrap();
    let context = || {
        format!(
            "old {old_status}, new {status}:\n{said}\n{}",
            world.describe()
        )
    };
    assert_eq!(world.agents().len(), 1, "{}", context());
    match program {
        // Whose agent stays is all the same, but somebody must say that there is one.
        Program::Start => assert!(old_status.success() || status.success(), "{}", context()),
        // Everything runs, whoever started it.
        _ => assert!(status.success(), "{}", context()),
    }
    world.expect(Program::Check, 1);
    world.expect(Program::System, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

// ---- Then many rounds at random.

/// The new starter ends with one agent: for a moment there may be two, since the
/// old one looks first and locks later. As with a real agent, which takes longer
/// to register than the old script takes between its look and its start, the
/// old agent begins before the new starter's last look.
#[test]
fn an_old_starter_racing_a_new_one_ends_with_one_agent() {
    let Some(mut world) = world() else { return };
    world.set("TEST_AGENT_READY_DELAY", "0.6");
    for round in 0..slow_rounds(8) {
        let mut old = world.old_style(Program::Start);
        let mut new = world.program(Program::Start);
        // Sometimes the one is ahead, sometimes the other; together in between.
        let lead = Duration::from_millis(15) * u32::try_from(round % 5).unwrap();
        if round % 2 == 0 {
            old = later(&world, &old, lead);
        } else {
            new = later(&world, &new, lead);
        }
        let ended = race(&world, &[old, new]);
        let context = || world.transcript(round, &ended);
        let [agent] = world.agents()[..] else {
            panic!("one agent expected\n{}", context());
        };
        assert!(
            ended.iter().all(|one| matches!(one.code(), Some(0 | 1))),
            "{}",
            context()
        );
        assert!(
            ended.iter().any(|one| one.code() == Some(0)),
            "{}",
            context()
        );
        // The old starter removes the PID file when its agent was the one to go;
        // the agent that stays counts without it, and is named again.
        world.expect(Program::Check, 1);
        world.expect(Program::Start, 1);
        world.expect(Program::System, 0);
        assert_eq!(world.assert_one_agent(), agent, "{}", context());
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

#[test]
fn an_old_starter_racing_a_new_system_start_ends_with_one_agent() {
    let Some(mut world) = world() else { return };
    world.set("TEST_AGENT_READY_DELAY", "0.6");
    for round in 0..slow_rounds(5) {
        let lead = Duration::from_millis(20) * u32::try_from(round % 4).unwrap();
        let system = later(&world, &world.program(Program::System), lead);
        let ended = race(&world, &[world.old_style(Program::Start), system]);
        let context = || world.transcript(round, &ended);
        assert_eq!(ended[1].code(), Some(0), "{}", context());
        assert_eq!(world.agents().len(), 1, "{}", context());
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

#[test]
fn an_old_stop_racing_a_new_start_leaves_no_untracked_agent() {
    let Some(world) = world() else { return };
    for round in 0..slow_rounds(8) {
        let lead = Duration::from_millis(10) * u32::try_from(round % 5).unwrap();
        let start = later(&world, &world.program(Program::Start), lead);
        let ended = race(&world, &[world.old_style(Program::Stop), start]);
        let context = || world.transcript(round, &ended);
        assert_eq!(ended[0].code(), Some(0), "{}", context());
        assert!(matches!(ended[1].code(), Some(0 | 1)), "{}", context());
        world.assert_no_overlap();
        match world.agents()[..] {
            [] => (),
            // The old stop removes the files whoever they are for.
            [_] => assert!(
                world.pid_in_file().is_some() || !world.pid_file().exists(),
                "{}",
                context()
            ),
            _ => panic!("{}", context()),
        }
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

#[test]
fn a_new_stop_racing_an_old_start_is_cleaned_by_the_next_stop() {
    let Some(world) = world() else { return };
    for round in 0..slow_rounds(6) {
        let lead = Duration::from_millis(15) * u32::try_from(round % 5).unwrap();
        let stop = later(&world, &world.program(Program::Stop), lead);
        let ended = race(&world, &[world.old_style(Program::Start), stop]);
        let context = || world.transcript(round, &ended);
        assert_eq!(ended[1].code(), Some(0), "{}", context());
        assert!(world.agents().len() < 2, "{}", context());
        world.assert_no_overlap();
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

/// An old starter that has written its lock and now waits to be resumed, and
/// the FIFO to do that with.
fn paused_old_starter(world: &World) -> (Child, PathBuf) {
    let before_agent = fifo(world, "before-agent");
    let starter = world
        .old_style(Program::Start)
        .env("OLD_STYLE_PAUSE_BEFORE_AGENT", &before_agent)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the old starter's lock", || lock_names(world, starter.id()));
    (starter, before_agent)
}

/// An old starter whose check has found it safe to start, and which has not
/// written its lock yet: nobody can see it coming.
fn unseen_old_starter(world: &World) -> (Child, PathBuf, PathBuf) {
    let before_lock = fifo(world, "before-lock");
    let before_agent = fifo(world, "before-agent");
    let said = world.path("old-starter.out");
    let starter = world
        .old_style(Program::Start)
        .env("OLD_STYLE_PAUSE_BEFORE_LOCK", &before_lock)
        .env("OLD_STYLE_PAUSE_BEFORE_AGENT", &before_agent)
        .stdout(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    until("the old starter's check to pass", || {
        std::fs::read_to_string(&said).is_ok_and(|text| text.contains("Safe to start"))
    });
    (starter, before_lock, before_agent)
}

fn lock_names(world: &World, pid: u32) -> bool {
    std::fs::read_to_string(world.lock_file()).is_ok_and(|text| text == format!("{pid}\n"))
}

fn fifo(world: &World, name: &str) -> PathBuf {
    let fifo = world.path(name);
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fifo
}

fn resume(fifo: &Path) {
    // Opening it waits for the starter to open its end.
    let mut pipe = std::fs::File::options().write(true).open(fifo).unwrap();
    writeln!(pipe).unwrap();
}

/// The same command, `lead` after the others of its barrier.
fn later(world: &World, command: &Command, lead: Duration) -> Command {
    let mut shell = world.command("/bin/sh");
    shell
        .arg("-c")
        .arg(format!("sleep {}; exec \"$0\"", lead.as_secs_f64()))
        .arg(command.get_program());
    shell
}

fn race(world: &World, commands: &[Command]) -> Vec<Finished> {
    let mut barrier = Barrier::new(world);
    for command in commands {
        barrier.add(command);
    }
    barrier.release().wait()
}

#[track_caller]
fn expect(world: &World, command: Command, code: i32) -> String {
    let shown = format!("{command:?}");
    let output = world.run_command(command);
    let said = text(&output);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{shown}\n{said}\n{}",
        world.describe()
    );
    said
}
