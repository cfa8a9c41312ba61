//! The world itself: that it finds what runs, and that it leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use scenarios::{Barrier, World, is_alive, until};

#[test]
fn an_agent_by_hand_is_found_and_killed_at_the_end() {
    let world = World::new();
    let agent = world.agent_by_hand("dev");
    assert_eq!(world.agents(), [agent.pid()]);
    until("the readiness line", || {
        world.log().contains("registered worker {")
    });
    world.leave_agents();
    drop(world);
    assert!(!is_alive(agent.pid()));
}

#[test]
#[should_panic(expected = "left processes behind")]
fn an_undeclared_agent_fails_the_test() {
    let world = World::new();
    let _agent = world.agent_by_hand("dev");
}

#[test]
fn two_agents_at_once_are_reported_as_an_overlap() {
    let world = World::new();
    let first = world.agent_by_hand("dev");
    let second = world.agent_by_hand("dev");
    assert!(world.overlaps().contains(&format!(
        "{} began while {} held the lock",
        second.pid(),
        first.pid()
    )));
    world.leave_agents();
}

#[test]
fn forked_children_of_an_agent_are_no_agents() {
    let mut world = World::new();
    world.set(
        "TEST_AGENT_CHILDREN",
        "fork,deaf,setsid,grandchild,spawn,forkserver,system,inheriting",
    );
    let agent = world.agent_by_hand("dev");
    until("all children", || {
        world.log().contains("registered worker {")
    });
    assert_eq!(world.agents(), [agent.pid()]);
    assert!(world.family_processes().len() >= 9, "{}", world.describe());
    for child in world.agent_children() {
        assert!(is_alive(child.1), "{child:?} of\n{}", world.describe());
        // Without a mark nothing tells whose child a re-parented `sleep` was.
        world.declare(child.1);
    }
    world.leave_agents();
}

#[test]
fn a_barrier_lets_nobody_through_before_the_release() {
    let world = World::new();
    let file = world.path("passed");
    let mut barrier = Barrier::new(&world);
    for _ in 0..64 {
        let mut command = world.shell("echo >> \"$0\"; exit 3");
        command.arg(&file);
        barrier.add(&command);
    }
    until("all to stand at the barrier", || {
        world.processes().len() == 64
    });
    assert!(!file.exists());
    let ended = barrier.release().wait();
    assert_eq!(std::fs::read_to_string(file).unwrap().len(), 64);
    assert!(ended.iter().all(|one| one.code() == Some(3)));
}
