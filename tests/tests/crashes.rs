//! The programs killed with SIGKILL at every system call.
//!
//! The starter, the stopper and the others are killed before each of the calls
//! that they make after their main begins, and so is the child that becomes the
//! agent, before each call up to its exec: the program alone, the child alone,
//! both; with the child ahead of the program and the other way round. (Before
//! call N is after call N - 1; see `scenarios::syscalls`.)
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::cell::RefCell;
use std::process::{Command, Stdio};

use scenarios::syscalls::sweep::{
    Case, Look, Scenario, Seen, agents, alone, exit_code, next_start, next_stop, nothing_left,
    overlap, tracked_agent,
};
use scenarios::syscalls::{Fault, Order, Victims, Who};
use scenarios::{Program, World, text, until};

/// How many cases of each scenario an everyday run visits.
const SAMPLE: usize = 12;

/// Every call; where two processes are at work: each alone and both.
fn every_call(look: Look<'_>) -> Vec<Case> {
    let mut cases = Vec::new();
    for order in [Order::ChildFirst, Order::ProgramFirst] {
        for call in look(order) {
            let victims: &[Victims] = match (call.point.who, call.company) {
                // Alone, the order changes nothing.
                (Who::Program, 1) if order == Order::ProgramFirst => &[],
                (Who::Program, 1) => &[Victims::Both],
                (Who::Program, _) => &[Victims::Program, Victims::Both],
                (Who::Child(_), _) => &[Victims::Program, Victims::Child, Victims::Both],
            };
            for &victims in victims {
                cases.push(Case::at(&call, Fault::Kill(victims), order));
            }
        }
    }
    cases
}

/// A child that was killed: the program itself must have noticed.
fn program_noticed(world: &World, seen: &Seen, living: Option<u32>) -> Result<(), String> {
    let survived = matches!(
        seen.case.as_ref().map(|case| case.fault),
        Some(Fault::Kill(Victims::Child))
    );
    if seen.run.hung {
        return Err("it HANGS".to_owned());
    }
    if !survived && seen.run.reached.is_some() {
        return Ok(());
    }
    match (exit_code(&seen.run)?, living) {
        (0, Some(_)) => Ok(()),
        (0, None) => Err("it LIES: exit 0, and no agent lives".to_owned()),
        (1, None) if survived && seen.run.output.trim().is_empty() => {
            Err("it says nothing about the death".to_owned())
        }
        (1, None) if survived => nothing_left(world),
        (code, living) => Err(format!("exit {code} with agent {living:?}")),
    }
}

fn sweep(
    test: &str,
    program: Program,
    set_up: &dyn Fn(&mut World),
    lasting: bool,
    judge: &dyn Fn(&World, &Seen) -> Result<(), String>,
) {
    alone(test, || {
        Scenario {
            test: ("crashes", test),
            program,
            set_up,
            cases: &every_call,
            lasting,
            judge,
            rival: None,
            sample: SAMPLE,
            kept: RefCell::default(),
        }
        .sweep();
    });
}

/// What every crash of a program that starts an agent must leave behind.
fn one_tracked_or_none(world: &World, seen: &Seen) -> Result<(), String> {
    let living = tracked_agent(world)?;
    program_noticed(world, seen, living)?;
    next_start(world, living)?;
    next_stop(world)
}

/// An agent with children, one of them re-parented, and an orphan worker of
/// another agent, which is dead.
fn family_with_orphan(world: &mut World) {
    // The grandchild is deaf; how long it is waited for does not matter.
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.03");
    world.set("TEST_AGENT_CHILDREN", "fork,grandchild");
    world.set("TEST_AGENT_CHILDREN_LOG", world.path("children.log"));
    world.expect(Program::Start, 0);
    orphan_worker(world);
}

fn orphan_worker(world: &World) {
    let ready = world.path("orphan.ready");
    let mut mark = std::ffi::OsString::from(format!("{:032x}/{}", 0xfeed, world.family()));
    mark.push(world.pid_file());
    let status = world
        .command("/bin/sh")
        .args(["-c", r#""$0" -c worker 0<>"$1" >/dev/null 2>&1 &"#])
        .arg(world.interpreter())
        .arg(&ready)
        .env("VOICE_GUARD_MARK", mark)
        .env("TEST_AGENT_ROLE", "fork")
        .status()
        .expect("an orphan worker");
    assert!(status.success());
    until("the orphan worker to run", || {
        std::fs::read(&ready).is_ok_and(|said| !said.is_empty())
    });
}

#[test]
fn a_killed_starter_leaves_no_agent_or_a_tracked_one() {
    sweep(
        "a_killed_starter_leaves_no_agent_or_a_tracked_one",
        Program::Start,
        &|_| {},
        false,
        &one_tracked_or_none,
    );
}

/// The starter is dead, its child not yet the agent, and the next starter is
/// there already: the child has inherited the guard and keeps it out.
#[test]
fn nobody_gets_in_between_a_dead_starter_and_its_child() {
    let test = "nobody_gets_in_between_a_dead_starter_and_its_child";
    alone(test, || {
        Scenario {
            test: ("crashes", test),
            program: Program::Start,
            set_up: &|_| {},
            cases: &|look| {
                look(Order::ChildFirst)
                    .iter()
                    .filter(|call| call.point.who != Who::Program)
                    .map(|call| Case::at(call, Fault::Kill(Victims::Program), Order::ChildFirst))
                    .collect()
            },
            lasting: false,
            judge: &|world, seen| {
                let living = tracked_agent(world)?;
                overlap(world)?;
                if let Some(rival) = &seen.rival {
                    let said = text(rival);
                    if rival.status.code() != Some(1)
                        || !said.contains("ERROR: Already running or locked")
                    {
                        return Err(format!(
                            "the rival is not refused: it ended with {} and said: {said}",
                            rival.status
                        ));
                    }
                    if living.is_none() || world.starts().len() > 1 {
                        return Err(format!("the child is not the agent\n{}", world.describe()));
                    }
                }
                next_start(world, living)?;
                next_stop(world)
            },
            rival: Some(Program::Start),
            sample: SAMPLE / 2,
            kept: RefCell::default(),
        }
        .sweep();
    });
}

#[test]
fn a_killed_starter_over_the_remains_of_an_older_crash_does_no_harm() {
    sweep(
        "a_killed_starter_over_the_remains_of_an_older_crash_does_no_harm",
        Program::Start,
        &|world| {
            let dead = dead_pid();
            for file in [world.pid_file(), world.lock_file()] {
                std::fs::write(file, format!("{dead}\n")).expect("a stale file");
            }
            for file in [".agent.pid.new", ".agent.lock.new"] {
                std::fs::write(world.path(file), "").expect("a stale file");
            }
            orphan_worker(world);
        },
        false,
        &one_tracked_or_none,
    );
}

#[test]
fn a_killed_refusal_does_not_touch_the_running_agent() {
    sweep(
        "a_killed_refusal_does_not_touch_the_running_agent",
        Program::Start,
        &|world| {
            world.expect(Program::Start, 0);
        },
        true,
        &the_same_agent_lives,
    );
}

#[test]
fn a_killed_check_changes_nothing() {
    sweep(
        "a_killed_check_changes_nothing",
        Program::Check,
        &|world| {
            world.expect(Program::Start, 0);
            std::fs::write(world.lock_file(), format!("{}\n", dead_pid())).expect("a stale lock");
        },
        true,
        &the_same_agent_lives,
    );
}

fn the_same_agent_lives(world: &World, seen: &Seen) -> Result<(), String> {
    let living = tracked_agent(world)?;
    if living != seen.before.first().copied() {
        return Err(format!(
            "agent {:?} ran before, {living:?} runs now",
            seen.before
        ));
    }
    next_start(world, living)
}

#[test]
fn after_a_killed_stopper_the_next_stop_cleans_everything() {
    sweep(
        "after_a_killed_stopper_the_next_stop_cleans_everything",
        Program::Stop,
        &family_with_orphan,
        false,
        &|world, _| {
            tracked_agent(world)?;
            next_stop(world)?;
            next_start(world, None)?;
            next_stop(world)
        },
    );
}

#[test]
fn after_a_killed_restart_the_next_stop_cleans_everything() {
    sweep(
        "after_a_killed_restart_the_next_stop_cleans_everything",
        Program::Restart,
        &|world| {
            world.set("TEST_AGENT_CHILDREN", "fork");
            world.set("TEST_AGENT_CHILDREN_LOG", world.path("children.log"));
            world.expect(Program::Start, 0);
        },
        false,
        &|world, seen| {
            let living = tracked_agent(world)?;
            program_noticed(world, seen, living)?;
            overlap(world)?;
            next_stop(world)?;
            next_start(world, None)?;
            next_stop(world)
        },
    );
}

#[test]
fn a_killed_system_start_leaves_no_agent_or_a_tracked_one() {
    sweep(
        "a_killed_system_start_leaves_no_agent_or_a_tracked_one",
        Program::System,
        &|_| {},
        false,
        &one_tracked_or_none,
    );
}

#[test]
fn a_killed_system_start_keeps_the_running_agent() {
    sweep(
        "a_killed_system_start_keeps_the_running_agent",
        Program::System,
        &|world| {
            world.expect(Program::Start, 0);
        },
        true,
        &the_same_agent_lives,
    );
}

/// What system start replaces: a tracked agent and one that somebody typed.
fn two_agents(world: &mut World) {
    world.expect(Program::Start, 0);
    let status = world
        .command("/bin/sh")
        .args(["-c", r#""$0" "$1" dev >>"$2" 2>&1 &"#])
        .arg(world.interpreter())
        .arg(world.script().file_name().expect("the script's name"))
        .arg(world.log_file())
        .status()
        .expect("an agent by hand");
    assert!(status.success());
    until("two agents", || world.starts().len() == 2);
    std::fs::remove_file(world.path("overlap.log")).ok();
}

#[test]
fn after_a_killed_clearing_of_duplicates_the_next_stop_cleans_everything() {
    sweep(
        "after_a_killed_clearing_of_duplicates_the_next_stop_cleans_everything",
        Program::System,
        &two_agents,
        false,
        &|world, seen| {
            let agents = agents(world).len();
            if agents > 2 {
                return Err(format!("{agents} agents live\n{}", world.describe()));
            }
            if seen.run.reached.is_none() && tracked_agent(world)?.is_none() {
                return Err("not killed, and yet no agent lives".to_owned());
            }
            next_stop(world)
        },
    );
}

/// A number that no process has: of one that has just ended.
fn dead_pid() -> u32 {
    let mut child = Command::new("/bin/true")
        .stdin(Stdio::null())
        .spawn()
        .expect("/bin/true");
    let pid = child.id();
    child.wait().expect("/bin/true ends");
    pid
}
