//! The agent itself calls the programs, in every way a Python program can.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::time::Duration;

use rustix::process::Signal;
use scenarios::{Program, World, is_alive, until, within};

/// A world whose agent runs `program` in the way `by` when it gets USR1.
fn world(program: Program, by: &str) -> World {
    let mut world = World::new();
    world.set("TEST_AGENT_RESTART_COMMAND", world.link(program));
    world.set("TEST_AGENT_RESTART_BY", by);
    world
}

// ---- Restart.

#[test]
fn an_agent_restarts_itself_and_waits_for_the_restart() {
    restarts_itself(&world(Program::Restart, "subprocess"));
}

#[test]
fn an_agent_restarts_itself_through_a_shell() {
    restarts_itself(&world(Program::Restart, "system"));
}

#[test]
fn an_agent_starts_its_restart_and_exits() {
    restarts_itself(&world(Program::Restart, "popen-and-exit"));
}

#[test]
fn an_agent_becomes_its_own_restart() {
    restarts_itself(&world(Program::Restart, "execv"));
}

#[test]
fn an_agent_with_deaf_children_restarts_itself() {
    let mut world = world(Program::Restart, "subprocess");
    world.with_children();
    restarts_itself(&world);
}

#[test]
fn a_deaf_agent_restarts_itself() {
    let mut world = world(Program::Restart, "subprocess");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.5");
    world.set("TEST_AGENT_DEAF", "1");
    restarts_itself(&world);
}

#[test]
fn a_draining_agent_restarts_itself() {
    let mut world = world(Program::Restart, "subprocess");
    world.set("TEST_AGENT_DRAIN", "0.5");
    restarts_itself(&world);
}

/// Nothing but its parentage tells that this one's restart came from inside.
#[test]
fn an_agent_started_by_hand_restarts_itself() {
    for by in ["subprocess", "system", "execv"] {
        let world = world(Program::Restart, by);
        let mut agent = world.agent_by_hand("dev");
        until("the agent to be ready", || {
            world.log().contains("registered worker")
        });
        expect_successor(&world, agent.pid());
        assert!(!agent.lives());
        world.leave_agents();
    }
}

#[test]
fn the_successor_can_restart_itself_in_its_turn() {
    for by in ["subprocess", "system", "popen-and-exit", "execv"] {
        let world = world(Program::Restart, by);
        world.expect(Program::Start, 0);
        let first = world.assert_one_agent();
        let second = expect_successor(&world, first);
        let third = expect_successor(&world, second);
        assert_eq!(world.starts(), [first, second, third]);
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

/// Born of the agent, they must not be taken for a part of it by each other.
#[test]
fn restarts_from_inside_at_once_end_with_one_agent() {
    let world = world(Program::Restart, "three-at-once");
    world.expect(Program::Start, 0);
    let first = world.assert_one_agent();
    world.signal(first, Signal::USR1);
    // A restart that the agent has started and that has not left it yet when the
    // first one stops the family is a child like any other: one to three succeed.
    within(Duration::from_secs(20), "a successor", || {
        world.starts().len() >= 2
    });
    settle(&world);
    assert_eq!(world.starts().last(), Some(&world.assert_one_agent()));
    world.assert_no_overlap();
    world.leave_agents();
}

/// What an agent started is not the agent: the restart that it runs must not
/// make its successor a part of itself that the next stop forgets.
#[test]
fn the_successor_is_stopped_as_any_agent() {
    let world = world(Program::Restart, "subprocess");
    world.expect(Program::Start, 0);
    let successor = expect_successor(&world, world.assert_one_agent());
    let process = scenarios::process(successor).unwrap();
    assert_eq!(process.session, successor, "{}", process.describe());
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
    assert!(!is_alive(successor));
}

fn restarts_itself(world: &World) {
    world.expect(Program::Start, 0);
    let before: Vec<u32> = world
        .family_processes()
        .iter()
        .map(|one| one.pid)
        .chain(world.agent_children().into_iter().map(|(_, pid)| pid))
        .collect();
    let first = world.assert_one_agent();
    let successor = expect_successor(world, first);
    for pid in before {
        assert!(!is_alive(pid), "PID {pid} is left\n{}", world.describe());
    }
    assert_eq!(world.starts(), [first, successor]);
    world.assert_no_overlap();
    world.leave_agents();
}

/// Tells an agent to restart itself; gives the one agent that runs afterwards.
fn expect_successor(world: &World, first: u32) -> u32 {
    world.signal(first, Signal::USR1);
    within(Duration::from_secs(20), "a successor", || {
        world.starts().last() != Some(&first)
    });
    settle(world);
    let successor = world.assert_one_agent();
    assert_ne!(successor, first);
    assert!(!is_alive(first), "{}", world.describe());
    world.assert_no_overlap();
    successor
}

/// Waits until nobody but agents and their like is at work in this world.
fn settle(world: &World) {
    within(Duration::from_secs(20), "the programs to end", || {
        !world
            .processes()
            .iter()
            .any(|process| process.is_program() || process.argv.is_empty())
    });
}

// ---- The other programs.

#[test]
fn an_agent_stops_itself_and_nothing_is_left() {
    for by in ["subprocess", "system", "popen-and-exit", "execv"] {
        let mut world = world(Program::Stop, by);
        world.with_children();
        world.expect(Program::Start, 0);
        let agent = world.assert_one_agent();
        world.signal(agent, Signal::USR1);
        within(Duration::from_secs(20), "the agent's end", || {
            !is_alive(agent) && world.family_processes().is_empty()
        });
        settle(&world);
        world.assert_nothing_left();
        assert_eq!(world.starts(), [agent]);
        expect_no_children(&world);
        world.expect(Program::Check, 0);
    }
}

#[test]
fn an_agent_that_starts_itself_is_refused_and_lives_on() {
    for by in ["subprocess", "system"] {
        let mut world = world(Program::Start, by);
        world.set("TEST_AGENT_SAY_WHEN_DONE", "came back");
        world.expect(Program::Start, 0);
        let agent = world.assert_one_agent();
        world.signal(agent, Signal::USR1);
        until("the refused start to come back", || {
            world.log().contains("came back")
        });
        assert_eq!(world.assert_one_agent(), agent);
        assert_eq!(world.starts(), [agent]);
        world.leave_agents();
    }
}

#[test]
fn a_system_start_by_the_agent_keeps_the_agent() {
    for by in ["subprocess", "system"] {
        let mut world = world(Program::System, by);
        world.set("TEST_AGENT_SAY_WHEN_DONE", "came back");
        world.expect(Program::Start, 0);
        let agent = world.assert_one_agent();
        world.signal(agent, Signal::USR1);
        until("the system start to come back", || {
            world.log().contains("came back")
        });
        assert_eq!(world.assert_one_agent(), agent);
        assert_eq!(world.starts(), [agent]);
        world.leave_agents();
    }
}

#[test]
fn a_check_by_the_agent_finds_the_agent() {
    let mut world = world(Program::Check, "system");
    world.set("TEST_AGENT_SAY_WHEN_DONE", "came back");
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    world.signal(agent, Signal::USR1);
    until("the check to come back", || {
        world.log().contains("came back with 1")
    });
    assert_eq!(world.assert_one_agent(), agent);
    world.leave_agents();
}

fn expect_no_children(world: &World) {
    for (kind, pid) in world.agent_children() {
        assert!(!is_alive(pid), "{kind} child {pid}\n{}", world.describe());
    }
}
