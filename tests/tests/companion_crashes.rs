//! The programs of the whole system killed and interrupted at every system call
//! that has an effect: neither a companion nor the agent is left untracked, and
//! the next start ends with exactly one of each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::PathBuf;

use rustix::process::Signal;
use scenarios::syscalls::sweep::{Case, Look, Scenario, Seen, alone, overlap, tracked_agent};
use scenarios::syscalls::{Call, End, Fault, Order, Victims, Who};
use scenarios::{Program, World, text};

/// How many cases of each scenario an everyday run visits.
const SAMPLE: usize = 6;

/// The companions, and who waits for whom: `fresh`, then `kept`, then the agent,
/// then `last`.
const NAMES: [&str; 3] = ["fresh", "kept", "last"];

fn program_of(world: &World, name: &str) -> PathBuf {
    world.project().join(name)
}

/// Companions that are ready at once, each with an executable of its own.
fn configure(world: &mut World) {
    let runtime = world.path("run");
    std::fs::create_dir(&runtime).unwrap();
    world.set("XDG_RUNTIME_DIR", runtime);
    let mut config = "[agent]\nneeds = [\"kept\"]\n".to_owned();
    for (name, keys) in [
        (
            "fresh",
            "on_start = \"fresh\"\nclean = { folders = [\"data\"], log = true }",
        ),
        ("kept", "needs = [\"fresh\"]"),
        ("last", "needs = [\"agent\"]\nrestart = true"),
    ] {
        std::fs::copy("/bin/sleep", program_of(world, name)).unwrap();
        write!(
            config,
            "[[companion]]\nname = \"{name}\"\ncommand = [\"./{name}\", \"1000\"]\n\
             ready = {{ alive_seconds = 0 }}\ngrace_seconds = 0.4\n{keys}\n"
        )
        .unwrap();
    }
    std::fs::write(world.project().join("voice-system.toml"), config).unwrap();
    std::fs::create_dir(world.project().join("data")).unwrap();
}

fn running(world: &World, name: &str) -> Vec<u32> {
    let program = program_of(world, name);
    world
        .processes()
        .iter()
        .filter(|process| {
            std::fs::read_link(format!("/proc/{}/exe", process.pid)).is_ok_and(|exe| exe == program)
        })
        .map(|process| process.pid)
        .collect()
}

fn pid_file(world: &World, name: &str) -> Option<PathBuf> {
    let mut folders = std::fs::read_dir(world.path("run/voice-guard")).ok()?;
    Some(folders.next()?.ok()?.path().join(format!("{name}.pid")))
}

fn pid_in_file(world: &World, name: &str) -> Option<u32> {
    let content = std::fs::read_to_string(pid_file(world, name)?).ok()?;
    content.strip_suffix('\n')?.parse().ok()
}

/// Of each at most one, and none that its PID file does not name.
fn all_tracked(world: &World) -> Result<(), String> {
    for name in NAMES {
        match running(world, name)[..] {
            [] => {}
            [pid] if pid_in_file(world, name) == Some(pid) => {}
            [pid] => {
                return Err(format!(
                    "UNTRACKED: {name} is PID {pid}, its PID file says {:?}\n{}",
                    pid_in_file(world, name),
                    world.describe()
                ));
            }
            ref several => {
                return Err(format!(
                    "SEVERAL of {name}: {several:?}\n{}",
                    world.describe()
                ));
            }
        }
    }
    tracked_agent(world).map(|_| ())
}

fn expect(world: &World, program: Program) -> Result<(), String> {
    let output = world.run(program);
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "the next {} ended with {} and said: {}\n{}",
        program.name(),
        output.status,
        text(&output),
        world.describe()
    ))
}

/// Tracked or not there; one of each after the next start; nothing after the next
/// stop.
fn made_good_by_the_next(world: &World, seen: &Seen) -> Result<(), String> {
    if seen.run.hung {
        return Err("it HANGS".to_owned());
    }
    if seen.run.output.contains("panicked") {
        return Err("it PANICS".to_owned());
    }
    all_tracked(world)?;
    if seen.case.is_some_and(|case| case.fault == Fault::Interrupt) {
        nothing_half_done(world, seen)?;
    }
    expect(world, Program::System)?;
    all_tracked(world)?;
    for name in NAMES {
        if running(world, name).is_empty() {
            return Err(format!(
                "the next start leaves no {name}\n{}",
                world.describe()
            ));
        }
    }
    if tracked_agent(world)?.is_none() {
        return Err(format!(
            "the next start leaves no agent\n{}",
            world.describe()
        ));
    }
    expect(world, Program::StopSystem)?;
    let left = world.processes();
    if !left.is_empty() || NAMES.iter().any(|name| pid_in_file(world, name).is_some()) {
        return Err(format!(
            "the next stop leaves something\n{}",
            world.describe()
        ));
    }
    overlap(world)
}

/// An interrupted program ends by the signal, or as it would have; and removes
/// what it was about to write.
fn nothing_half_done(world: &World, seen: &Seen) -> Result<(), String> {
    let by_the_signal =
        matches!(seen.run.end, End::Signal(signal) if signal as i32 == Signal::INT.as_raw());
    if !by_the_signal && seen.run.end != End::Exit(0) {
        return Err(format!("interrupted, it ends with {:?}", seen.run.end));
    }
    for name in NAMES {
        if let Some(file) = pid_file(world, name) {
            let beside = file.with_file_name(format!(".{name}.pid.new"));
            if beside.exists() {
                return Err(format!("{} is left", beside.display()));
            }
        }
    }
    Ok(())
}

/// Kills: the program alone, the child alone, both; with the child ahead of the
/// program and the other way round.
fn kills(look: Look<'_>) -> Vec<Case> {
    let mut cases = Vec::new();
    for order in [Order::ChildFirst, Order::ProgramFirst] {
        for call in look(order).iter().filter(|call| call.has_effect()) {
            let victims: &[Victims] = match (call.point.who, call.company) {
                // Alone, the order changes nothing.
                (Who::Program, 1) if order == Order::ProgramFirst => &[],
                (Who::Program, 1) => &[Victims::Both],
                (Who::Program, _) => &[Victims::Program, Victims::Both],
                (Who::Child(_), _) => &[Victims::Program, Victims::Child, Victims::Both],
            };
            cases.extend(
                victims
                    .iter()
                    .map(|&victims| Case::at(call, Fault::Kill(victims), order)),
            );
        }
    }
    cases
}

fn interrupts(look: Look<'_>) -> Vec<Case> {
    let is_wanted = |call: &&Call| call.point.who == Who::Program && call.has_effect();
    look(Order::Free)
        .iter()
        .filter(is_wanted)
        .map(|call| Case::at(call, Fault::Interrupt, Order::Free))
        .collect()
}

fn sweep(
    test: &str,
    program: Program,
    set_up: &dyn Fn(&mut World),
    cases: &dyn Fn(Look<'_>) -> Vec<Case>,
) {
    alone(test, || {
        Scenario {
            test: ("companion_crashes", test),
            program,
            set_up,
            cases,
            lasting: false,
            judge: &made_good_by_the_next,
            rival: None,
            sample: SAMPLE,
            kept: RefCell::default(),
        }
        .sweep();
    });
}

fn up(world: &mut World) {
    configure(world);
    world.expect(Program::System, 0);
}

#[test]
fn a_killed_start_of_the_system_leaves_nobody_untracked() {
    sweep(
        "a_killed_start_of_the_system_leaves_nobody_untracked",
        Program::System,
        &configure,
        &kills,
    );
}

#[test]
fn an_interrupted_start_of_the_system_leaves_nobody_untracked() {
    sweep(
        "an_interrupted_start_of_the_system_leaves_nobody_untracked",
        Program::System,
        &configure,
        &interrupts,
    );
}

#[test]
fn a_killed_restart_of_the_system_leaves_nobody_untracked() {
    sweep(
        "a_killed_restart_of_the_system_leaves_nobody_untracked",
        Program::Restart,
        &up,
        // Its births are those of a start.
        &|look| {
            let mut cases = kills(look);
            cases.retain(|case| case.order == Order::ChildFirst);
            cases
        },
    );
}

#[test]
fn an_interrupted_restart_of_the_system_leaves_nobody_untracked() {
    sweep(
        "an_interrupted_restart_of_the_system_leaves_nobody_untracked",
        Program::Restart,
        &up,
        &interrupts,
    );
}

#[test]
fn a_killed_stop_of_the_system_is_finished_by_the_next() {
    sweep(
        "a_killed_stop_of_the_system_is_finished_by_the_next",
        Program::StopSystem,
        &up,
        &kills,
    );
}

#[test]
fn an_interrupted_stop_of_the_system_is_finished_by_the_next() {
    sweep(
        "an_interrupted_stop_of_the_system_is_finished_by_the_next",
        Program::StopSystem,
        &up,
        &interrupts,
    );
}
