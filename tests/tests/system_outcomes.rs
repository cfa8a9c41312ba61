//! `start-voice-system` and `restart-voice-system`, as far as the agent goes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::fs;

use scenarios::surroundings::{NO_ARGUMENTS, outcome, pids, report};
use scenarios::{Program, World, is_alive, until};

#[test]
fn none_is_started_one_is_kept_any_number_of_times() {
    let world = World::new();
    let (code, seen) = report(&world, Program::System);
    assert_eq!((code, &seen["outcome"]), (0, &"started".into()), "{seen}");
    let agent = world.assert_one_agent();
    for _ in 0..3 {
        let (code, seen) = report(&world, Program::System);
        assert_eq!((code, &seen["outcome"]), (0, &"kept".into()), "{seen}");
        assert_eq!(world.assert_one_agent(), agent);
    }
    assert_eq!(world.starts(), [agent]);
    world.expect(Program::Stop, 0);
}

#[test]
fn agent_that_no_file_names_is_taken_into_the_file() {
    let world = World::new();
    let agent = world.agent_by_hand("dev");
    for lost in [
        None,
        Some(String::new()),
        Some("4194305\n".to_owned()),
        Some(format!("{}\n", std::process::id())),
    ] {
        match &lost {
            None => {
                let _ = fs::remove_file(world.pid_file());
            }
            Some(content) => fs::write(world.pid_file(), content).unwrap(),
        }
        let (code, seen) = report(&world, Program::System);
        assert_eq!(
            (code, &seen["outcome"]),
            (0, &"kept".into()),
            "{lost:?}: {seen}"
        );
        assert_eq!(world.assert_one_agent(), agent.pid(), "{lost:?}");
        let (_, seen) = report(&world, Program::Check);
        assert_eq!(seen["agents"][0]["tracked"], true, "{lost:?}: {seen}");
    }
    world.expect(Program::Start, 1);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn own_agent_whose_file_was_removed_is_taken_back() {
    let world = World::new();
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    fs::remove_file(world.pid_file()).unwrap();
    world.expect(Program::Start, 1);
    world.expect(Program::System, 0);
    assert_eq!(world.assert_one_agent(), agent);
    world.expect(Program::Stop, 0);
    world.assert_no_overlap();
}

#[test]
fn one_in_another_mode_is_replaced() {
    let mut world = World::new();
    for (mode, wanted) in [("start", "dev"), ("connect", "dev"), ("dev", "start")] {
        world.set("VOICE_GUARD_AGENT_MODE", wanted);
        let old = world.agent_by_hand(mode);
        let (code, seen) = report(&world, Program::System);
        assert_eq!((code, &seen["outcome"]), (0, &"replaced".into()), "{seen}");
        assert!(!is_alive(old.pid()), "{seen}");
        assert!(
            pids(&seen, "stopped").contains(&u64::from(old.pid())),
            "{seen}"
        );
        world.assert_one_agent();
        assert_eq!(seen["agents"][0]["mode"], wanted, "{seen}");
        world.expect(Program::Stop, 0);
    }
    world.assert_no_overlap();
}

#[test]
fn several_are_counted_and_replaced_by_one() {
    let world = World::new();
    for program in [Program::System, Program::Restart] {
        let old: Vec<_> = ["dev", "dev", "start"]
            .into_iter()
            .map(|mode| world.agent_by_hand(mode))
            .collect();
        let (code, seen) = report(&world, program);
        assert_eq!(code, 0, "{}: {seen}", program.name());
        assert_eq!(seen["duplicates_removed"], 2, "{}: {seen}", program.name());
        for old in &old {
            assert!(!is_alive(old.pid()), "{}: {seen}", program.name());
            assert!(
                pids(&seen, "stopped").contains(&u64::from(old.pid())),
                "{seen}"
            );
        }
        world.assert_one_agent();
        world.expect(Program::Stop, 0);
    }
    let _two = [world.agent_by_hand("dev"), world.agent_by_hand("dev")];
    let said = world.expect(Program::System, 0);
    assert!(said.contains('2'), "it does not say how many: {said}");
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn workers_of_a_dead_agent_are_cleared_beside_a_kept_one() {
    let mut world = World::new();
    world.set("TEST_AGENT_CHILDREN", "spawn,fork");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.5");
    world.expect(Program::Start, 0);
    let dead = world.assert_one_agent();
    let orphans: Vec<_> = world
        .agent_children()
        .into_iter()
        .map(|(_, pid)| pid)
        .collect();
    world.kill(dead);
    world.unset("TEST_AGENT_CHILDREN");
    let kept = world.agent_by_hand("dev");
    let (code, seen) = report(&world, Program::System);
    assert_eq!((code, &seen["outcome"]), (0, &"kept".into()), "{seen}");
    for orphan in orphans {
        assert!(!is_alive(orphan), "{seen}");
        assert!(
            pids(&seen, "stopped").contains(&u64::from(orphan)),
            "{seen}"
        );
    }
    assert_eq!(world.assert_one_agent(), kept.pid());
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn kept_agents_own_children_are_kept_with_it() {
    let mut world = World::new();
    world.set(
        "TEST_AGENT_CHILDREN",
        "fork,setsid,spawn,forkserver,system,grandchild",
    );
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.5");
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    for removed in [false, true] {
        if removed {
            fs::remove_file(world.pid_file()).unwrap();
        }
        let (code, seen) = report(&world, Program::System);
        assert_eq!((code, &seen["outcome"]), (0, &"kept".into()), "{seen}");
        assert_eq!(pids(&seen, "stopped"), [0_u64; 0], "{seen}");
        assert_eq!(world.assert_one_agent(), agent);
        for (kind, child) in world.agent_children() {
            assert!(
                is_alive(child),
                "{kind} was ended beside its living agent: {seen}"
            );
        }
    }
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

#[test]
fn restart_makes_a_fresh_one_from_whatever_there_is() {
    let world = World::new();
    let (code, seen) = report(&world, Program::Restart);
    assert_eq!(code, 0, "{seen}");
    assert_eq!(seen["duplicates_removed"], 0, "{seen}");
    let first = world.assert_one_agent();
    let (code, seen) = report(&world, Program::Restart);
    assert_eq!((code, &seen["outcome"]), (0, &"restarted".into()), "{seen}");
    assert_eq!(seen["duplicates_removed"], 0, "{seen}");
    let second = world.assert_one_agent();
    assert_ne!(first, second);
    world.kill(second);
    world.expect(Program::Restart, 0);
    assert_ne!(world.assert_one_agent(), second);
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
    world.assert_no_overlap();
}

#[test]
fn restart_whose_agent_dies_says_so_and_leaves_nothing() {
    let mut world = World::new();
    world.expect(Program::Start, 0);
    world.set("TEST_AGENT_DIE_AFTER", "0");
    world.set("TEST_AGENT_DIE_SAYING", "no key");
    for program in [Program::Restart, Program::System] {
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no key"), "{said}");
        world.assert_nothing_left();
    }
}

#[test]
fn agent_that_is_deaf_is_replaced_without_an_overlap() {
    let mut world = World::new();
    world.set("TEST_AGENT_DEAF", "1");
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.3");
    world.expect(Program::Start, 0);
    let deaf = world.assert_one_agent();
    world.expect(Program::Restart, 0);
    assert!(!is_alive(deaf));
    world.assert_one_agent();
    until("the new agent", || world.starts().len() == 2);
    world.expect(Program::Stop, 0);
    world.assert_no_overlap();
}
