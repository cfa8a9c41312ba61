//! Many programs at one instant: one agent, always.
//!
//! Every round stands behind a real barrier (see [`Barrier`]). The test agent
//! holds a lock of its own and reports when it finds another one running, so an
//! overlap of a moment is found that no look at the process table would show.
//! `VOICE_GUARD_TEST_ROUNDS` sets the number of rounds of each race.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use scenarios::{Barrier, Finished, Program, World, python, rounds, slow_rounds, until};

const REFUSAL: &str = "ERROR: Already running or locked";

/// One whose agents begin at once: Python would hide a short overlap, and here
/// are tens of thousands of births.
fn world() -> World {
    let mut world = World::new();
    world.quick_agents();
    world
}

#[test]
fn two_starters_make_one_agent() {
    starters_race(&world(), 2, rounds(12));
}

#[test]
fn twenty_starters_make_one_agent() {
    starters_race(&world(), 20, rounds(6));
}

#[test]
fn sixty_four_starters_make_one_agent() {
    starters_race(&world(), 64, rounds(2));
}

/// Under pyenv `python3` is a shell script for its first tens of milliseconds:
/// the agent is born, but does not look like one yet.
#[test]
fn starters_make_one_agent_whose_interpreter_is_a_shell_wrapper() {
    let mut world = World::new();
    let shim = world.path("python3");
    let script = format!(
        "#!/bin/bash\nsleep 0.05\nexec '{}' \"$@\"\n",
        python().display()
    );
    std::fs::write(&shim, script).expect("the shim");
    std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).expect("the shim");
    world.set("VOICE_GUARD_PYTHON", shim);
    starters_race(&world, 12, slow_rounds(6));
}

fn starters_race(world: &World, starters: usize, rounds: usize) {
    for round in 0..rounds {
        let ended = together(world, &vec![Program::Start; starters]);
        let context = || world.transcript(round, &ended);
        let (started, refused): (Vec<_>, Vec<_>) =
            ended.iter().partition(|one| one.code() == Some(0));
        assert_eq!(started.len(), 1, "{}", context());
        for one in refused {
            assert_eq!(one.code(), Some(1), "{}", context());
            assert!(one.output.contains(REFUSAL), "{}", context());
        }
        assert!(world.overlaps().is_empty(), "{}", context());
        assert_eq!(world.starts().len(), round + 1, "{}", context());
        let agent = world.assert_one_agent();
        assert_eq!(world.starts().last(), Some(&agent), "{}", context());
        assert!(world.pid_file_is_locked(), "{}", context());
        end_round(world, round, agent);
    }
}

/// A check takes the guard too, and may remove what is stale: it must neither
/// keep all starters out nor take anything away from a start.
#[test]
fn checks_disturb_no_start() {
    let world = world();
    for round in 0..slow_rounds(15) {
        let mut programs = vec![Program::Check; 16];
        programs.extend([Program::Start; 4]);
        let ended = together(&world, &programs);
        let context = || world.transcript(round, &ended);
        let codes: Vec<_> = ended.iter().map(Finished::code).collect();
        assert!(
            codes.iter().all(|code| matches!(code, Some(0 | 1))),
            "{}",
            context()
        );
        let started = codes[16..].iter().filter(|code| **code == Some(0)).count();
        assert_eq!(started, 1, "{}", context());
        assert!(world.overlaps().is_empty(), "{}", context());
        let agent = world.assert_one_agent();
        end_round(&world, round, agent);
    }
}

/// Each of them probes the lock of the PID file: no probe may look like an agent
/// to another.
#[test]
fn checks_together_all_find_a_stale_pid_file_safe() {
    let world = world();
    world.expect(Program::Start, 0);
    world.kill(world.assert_one_agent());
    for round in 0..slow_rounds(8) {
        let mut barrier = Barrier::new(&world);
        for _ in 0..48 {
            let mut check = world.program(Program::Check);
            // The file is to stay: whoever comes first would remove it.
            check.arg("--dry-run");
            barrier.add(&check);
        }
        let ended = barrier.release().wait();
        let context = || world.transcript(round, &ended);
        assert!(
            ended.iter().all(|one| one.code() == Some(0)),
            "{}",
            context()
        );
        assert!(world.pid_file().exists(), "{}", context());
    }
}

/// Whoever comes first: a start that says 0 was followed by the stop or has its
/// agent still; a start that says 1 leaves none; the stop always succeeds.
#[test]
fn a_start_against_a_stop_ends_with_a_tracked_agent_or_none() {
    let world = world();
    for round in 0..rounds(10) {
        // Every other round there is an agent to begin with.
        if round % 2 == 1 && world.agents().is_empty() {
            world.expect(Program::Start, 0);
        }
        let ended = together(&world, &[Program::Start, Program::Stop]);
        let context = || world.transcript(round, &ended);
        assert_eq!(ended[1].code(), Some(0), "{}", context());
        assert!(matches!(ended[0].code(), Some(0 | 1)), "{}", context());
        assert!(world.overlaps().is_empty(), "{}", context());
        if world.agents().is_empty() {
            world.assert_nothing_left();
        } else {
            world.assert_one_agent();
            assert_eq!(ended[0].code(), Some(0), "{}", context());
        }
    }
    world.leave_agents();
}

/// Many of each: whatever the order, nobody doubles an agent or loses one.
#[test]
fn starts_and_stops_in_a_crowd_end_with_a_tracked_agent_or_none() {
    let world = world();
    for round in 0..slow_rounds(8) {
        let programs: Vec<_> = [Program::Start, Program::Stop].repeat(10);
        let ended = together(&world, &programs);
        let context = || world.transcript(round, &ended);
        for (program, one) in programs.iter().zip(&ended) {
            match program {
                Program::Stop => assert_eq!(one.code(), Some(0), "{}", context()),
                _ => assert!(matches!(one.code(), Some(0 | 1)), "{}", context()),
            }
        }
        assert!(world.overlaps().is_empty(), "{}", context());
        if world.agents().is_empty() {
            world.assert_nothing_left();
        } else {
            world.assert_one_agent();
        }
    }
    world.leave_agents();
}

#[test]
fn a_start_against_a_restart_ends_with_one_agent() {
    let world = world();
    for round in 0..rounds(5) {
        let ended = together(&world, &[Program::Start, Program::Restart]);
        let context = || world.transcript(round, &ended);
        assert_eq!(ended[1].code(), Some(0), "{}", context());
        assert!(matches!(ended[0].code(), Some(0 | 1)), "{}", context());
        assert!(world.overlaps().is_empty(), "{}", context());
        let agent = world.assert_one_agent();
        // Every third round begins with the agent of the one before.
        if round % 3 != 0 {
            end_round(&world, round, agent);
        }
    }
    world.leave_agents();
}

#[test]
fn system_starts_together_all_succeed_with_one_agent() {
    let world = world();
    for round in 0..rounds(5) {
        let before = world.starts().len();
        let running = world.agents();
        let ended = together(&world, &[Program::System; 8]);
        let context = || world.transcript(round, &ended);
        assert!(
            ended.iter().all(|one| one.code() == Some(0)),
            "{}",
            context()
        );
        assert!(world.overlaps().is_empty(), "{}", context());
        let agent = world.assert_one_agent();
        if let [kept] = running[..] {
            assert_eq!(kept, agent, "{}", context());
        }
        let born = world.starts().len() - before;
        assert_eq!(born, usize::from(running.is_empty()), "{}", context());
        if round % 2 == 0 {
            end_round(&world, round / 2, agent);
        }
    }
    world.leave_agents();
}

#[test]
fn system_starts_together_over_duplicates_end_with_one_agent() {
    let world = world();
    for round in 0..slow_rounds(5) {
        let mut duplicates = [world.agent_by_hand("dev"), world.agent_by_hand("dev")];
        // The two were an overlap, as meant; from here on there may be none.
        forget_overlaps(&world);
        let ended = together(&world, &[Program::System; 4]);
        let context = || world.transcript(round, &ended);
        assert!(
            ended.iter().all(|one| one.code() == Some(0)),
            "{}",
            context()
        );
        assert!(world.overlaps().is_empty(), "{}", context());
        let agent = world.assert_one_agent();
        assert_eq!(world.starts().last(), Some(&agent), "{}", context());
        for duplicate in &mut duplicates {
            assert!(!duplicate.lives(), "{}", context());
        }
        end_round(&world, round, agent);
    }
}

/// They wait for each other: every one of them stops what the one before it
/// started, and starts its own.
#[test]
fn restarts_together_all_succeed_with_one_agent() {
    let world = world();
    for round in 0..slow_rounds(4) {
        let before = world.starts().len();
        let ended = together(&world, &[Program::Restart; 6]);
        let context = || world.transcript(round, &ended);
        assert!(
            ended.iter().all(|one| one.code() == Some(0)),
            "{}",
            context()
        );
        assert_eq!(world.starts().len() - before, 6, "{}", context());
        assert!(world.overlaps().is_empty(), "{}", context());
        world.assert_one_agent();
    }
    world.leave_agents();
}

#[test]
fn everything_at_once_never_makes_two_agents() {
    let world = world();
    for round in 0..slow_rounds(6) {
        let ended = together(&world, &Program::ALL.repeat(4));
        let context = || world.transcript(round, &ended);
        assert!(
            ended.iter().all(|one| matches!(one.code(), Some(0 | 1))),
            "{}",
            context()
        );
        assert!(world.overlaps().is_empty(), "{}", context());
        if world.agents().is_empty() {
            world.assert_nothing_left();
        } else {
            world.assert_one_agent();
        }
    }
    world.leave_agents();
}

#[test]
fn starters_make_one_agent_while_the_files_are_being_deleted() {
    let world = world();
    for round in 0..rounds(5) {
        let ended = while_deleting(&world, || together(&world, &[Program::Start; 20]));
        let context = || world.transcript(round, &ended);
        let started = ended.iter().filter(|one| one.code() == Some(0)).count();
        assert_eq!(started, 1, "{}", context());
        assert!(
            ended.iter().all(|one| matches!(one.code(), Some(0 | 1))),
            "{}",
            context()
        );
        assert!(world.overlaps().is_empty(), "{}", context());
        assert_eq!(world.starts().len(), round + 1, "{}", context());
        // The next system start names the agent in the file again.
        let agents = world.agents();
        world.expect(Program::System, 0);
        assert_eq!(agents, [world.assert_one_agent()], "{}", context());
        end_round(&world, round, agents[0]);
    }
}

#[test]
fn nothing_is_doubled_or_lost_while_the_files_are_being_deleted() {
    let world = world();
    for round in 0..slow_rounds(6) {
        let programs = [
            Program::Start,
            Program::Stop,
            Program::System,
            Program::Restart,
            Program::Check,
        ]
        .repeat(2);
        let ended = while_deleting(&world, || together(&world, &programs));
        let context = || world.transcript(round, &ended);
        assert!(
            ended.iter().all(|one| matches!(one.code(), Some(0 | 1))),
            "{}",
            context()
        );
        assert!(world.overlaps().is_empty(), "{}", context());
        assert!(world.agents().len() < 2, "{}", context());
        // Whatever there is, a stop finds it without any file.
        while_deleting(&world, || world.expect(Program::Stop, 0));
        world.assert_nothing_left();
    }
}

#[test]
fn restarts_end_with_one_agent_while_the_files_are_being_deleted() {
    let world = world();
    for round in 0..slow_rounds(8) {
        let ended = while_deleting(&world, || {
            together(&world, &[Program::Restart, Program::Start, Program::System])
        });
        let context = || world.transcript(round, &ended);
        assert_eq!(ended[0].code(), Some(0), "{}", context());
        assert!(world.overlaps().is_empty(), "{}", context());
        assert_eq!(world.agents().len(), 1, "{}", context());
    }
    world.leave_agents();
}

/// Runs programs behind a barrier, and waits for all of them.
fn together(world: &World, programs: &[Program]) -> Vec<Finished> {
    let mut barrier = Barrier::new(world);
    for program in programs {
        barrier.add(&world.program(*program));
    }
    barrier.release().wait()
}

/// Deletes the PID file and the lock file as fast as it can while `action` runs.
fn while_deleting<T>(world: &World, action: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let files: [PathBuf; 2] = [world.pid_file(), world.lock_file()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for file in &files {
                    let _ = std::fs::remove_file(file);
                }
                std::thread::yield_now();
            }
        });
        // Also when the action panics, or the scope would wait for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
        over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Ends a round's agent, each time in another way, so that rounds begin with no
/// files, with a PID file that names a dead process, and with stale files of both kinds.
fn end_round(world: &World, round: usize, agent: u32) {
    match round % 3 {
        0 => {
            world.expect(Program::Stop, 0);
            world.assert_nothing_left();
        }
        1 => world.kill(agent),
        _ => {
            world.kill(agent);
            // What a starter leaves behind that was killed: young, its owner dead.
            std::fs::write(world.lock_file(), format!("{agent}\n")).expect("a stale lock");
        }
    }
    until("the agent of the round to be gone", || {
        world.agents().is_empty()
    });
}

fn forget_overlaps(world: &World) {
    let _ = std::fs::remove_file(world.path("overlap.log"));
}
