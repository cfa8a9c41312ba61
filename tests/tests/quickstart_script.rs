//! `scripts/quickstart`: from a clone to one running agent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::fs;
use std::path::Path;
use std::process::Output;

use scenarios::{Program, World, binary, python, text};

/// A world in which the quick start may run: the demo's agent bears the world's
/// own family name, so it is not the machine's voice agent.
fn newcomers_world() -> World {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PROJECT_DIR");
    let interpreters = python().parent().expect("an interpreter's folder");
    world.set(
        "PATH",
        format!("{}:/usr/local/bin:/usr/bin:/bin", interpreters.display()),
    );
    // Not built again: a release build would take longer than all the rest.
    let programs = binary(Program::Check);
    world.set("VOICE_GUARD_PROGRAMS", programs.parent().expect("a folder"));
    world
}

fn quickstart(world: &World, folder: &Path) -> Output {
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = world.command(clone.join("scripts/quickstart"));
    command.arg(folder);
    world.run_command(command)
}

#[test]
fn newcomer_has_one_agent_however_often_he_starts() {
    let world = newcomers_world();
    let folder = world.path("a folder/with spaces");
    let first = quickstart(&world, &folder);
    assert!(first.status.success(), "{}", text(&first));
    let said = text(&first);
    assert!(said.contains("ERROR: Already running or locked"), "{said}");
    assert!(said.contains("scripts/link' DIR"), "{said}");
    let agent = world.assert_one_agent();
    assert!(world.log().contains("registered worker"), "{}", world.log());

    let second = quickstart(&world, &folder);
    assert!(second.status.success(), "{}", text(&second));
    assert_eq!(world.assert_one_agent(), agent, "{}", text(&second));

    let stop = world.command(folder.join(Program::Stop.script()));
    let stopped = world.run_command(stop);
    assert!(stopped.status.success(), "{}", text(&stopped));
    world.assert_nothing_left();
}

#[test]
fn orphaned_worker_of_the_demo_is_found_and_cleared() {
    let world = newcomers_world();
    let folder = world.path("demo");
    let output = quickstart(&world, &folder);
    assert!(output.status.success(), "{}", text(&output));
    let agent = world.assert_one_agent();
    world.kill(agent);
    assert!(
        !world.marked().is_empty(),
        "the demo's agent left no orphan"
    );
    let again = quickstart(&world, &folder);
    assert!(again.status.success(), "{}", text(&again));
    assert_ne!(world.assert_one_agent(), agent);
    let stop = world.command(folder.join(Program::Stop.script()));
    assert!(world.run_command(stop).status.success());
    world.assert_nothing_left();
}

#[test]
fn demo_leaves_an_agent_alone_that_runs_already() {
    let world = newcomers_world();
    let mut other = world.agent_by_hand("dev");
    let folder = world.path("demo");
    let output = quickstart(&world, &folder);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains(&format!("PID {}", other.pid())), "{said}");
    assert!(
        said.contains("VOICE_GUARD_AGENT_SCRIPT=demo_agent.py"),
        "{said}"
    );
    assert!(other.lives());
    assert_eq!(world.agents(), [other.pid()]);
    world.kill(other.pid());
    other.wait();
}

#[test]
fn demo_does_not_replace_an_agent_script_of_ones_own() {
    let world = newcomers_world();
    let before = fs::read(world.script()).unwrap();
    let output = quickstart(&world, world.project());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("scripts/link"), "{}", text(&output));
    assert_eq!(fs::read(world.script()).unwrap(), before);
    world.assert_nothing_left();
}
