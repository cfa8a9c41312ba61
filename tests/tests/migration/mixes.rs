//! Folders on the way from old to new, used while they are; and what people
//! try by hand to see that it works.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use scenarios::surroundings::Terminal;
use scenarios::{
    Barrier, Program, World, is_alive, is_full_proof, left_out, slow_rounds, text, until,
};

use super::{expect, expect_of, old_folder};

const REFUSAL: &str = "ERROR: Already running or locked";

/// What old starters call after a start, and here waits for the event instead:
/// the agent's first instruction, whose PID is the last in the list of starts.
/// (The one before it may still be a zombie; that has no command line.)
const SLEEP: &str = r#"#!/bin/sh
[ "$1" = until-born ] || exec /bin/sleep "$@"
looks=0
until grep -q . "/proc/$(tail -n 1 "$TEST_AGENT_STARTS_LOG")/cmdline" 2>/dev/null || [ "$looks" = 1000 ]; do
    looks=$((looks + 1))
    /bin/sleep 0.01
done
"#;

fn world() -> World {
    let mut world = old_folder();
    let folder = world.path("sleep");
    fs::create_dir(&folder).unwrap();
    let sleep = folder.join("sleep");
    fs::write(&sleep, SLEEP).unwrap();
    fs::set_permissions(sleep, fs::Permissions::from_mode(0o755)).unwrap();
    world.set("PATH", format!("{}:/usr/bin:/bin", folder.display()));
    world.set("OLD_STYLE_VERIFY_SECONDS", "until-born");
    // The old scripts have their project folder in themselves; here it is told.
    let project = world.project().to_owned();
    world.set("VOICE_GUARD_PROJECT_DIR", project);
    world
}

fn switch(world: &World, program: Program, wrapper: bool) {
    let name = program.name();
    if wrapper {
        expect(world, "switch", &[name, "--wrapper"], 0);
    } else {
        expect(world, "switch", &[name], 0);
    }
}

// ---- Every mix of the scripts.

/// Check, start, start again, stop, restart, in the folder as it is.
#[track_caller]
fn use_all(world: &World, mix: &str) {
    let run = |program: Program, code: i32| {
        let output = world.run(program);
        let said = text(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{mix}: {}\n{said}\n{}",
            program.script(),
            world.describe()
        );
        said
    };
    run(Program::Check, 0);
    run(Program::Start, 0);
    let agent = world.assert_one_agent();
    run(Program::Check, 1);
    let said = run(Program::Start, 1);
    assert!(said.contains(REFUSAL), "{mix}: {said}");
    run(Program::System, 0);
    assert_eq!(world.assert_one_agent(), agent, "{mix}");
    run(Program::Restart, 0);
    let restarted = world.agents();
    assert_eq!(restarted.len(), 1, "{mix}\n{}", world.describe());
    assert_ne!(restarted, [agent], "{mix}");
    run(Program::Stop, 0);
    world.assert_nothing_left();
    // Nothing to end first.
    run(Program::Restart, 0);
    let restarted = world.agents();
    assert_eq!(restarted.len(), 1, "{mix}\n{}", world.describe());
    run(Program::Check, 1);
    run(Program::Stop, 0);
    world.assert_nothing_left();
    world.assert_no_overlap();
}

/// The eight mixes of check, start and stop, each one step from the last: one
/// script switched or taken back, as an owner does it.
fn walk(switched: &[Program], wrapper: bool) {
    let world = world();
    for program in switched {
        switch(&world, *program, wrapper);
    }
    let mut new: Vec<Program> = switched.to_vec();
    let steps = [
        Program::Check,
        Program::Start,
        Program::Check,
        Program::Stop,
        Program::Check,
        Program::Start,
        Program::Check,
    ];
    use_all(&world, &format!("new: {new:?}"));
    for program in steps {
        if let Some(at) = new.iter().position(|each| *each == program) {
            new.remove(at);
            expect(&world, "back", &[program.name()], 0);
        } else {
            new.push(program);
            switch(&world, program, wrapper);
        }
        use_all(&world, &format!("new: {new:?}"));
    }
}

#[test]
fn every_mix_with_old_system_and_restart_lives_together() {
    if !is_full_proof() {
        return left_out("most mixes of old and new", "they take 40 s: scripts/test");
    }
    walk(&[], false);
}

#[test]
fn every_mix_with_old_system_and_new_restart_lives_together() {
    if !is_full_proof() {
        return left_out("most mixes of old and new", "they take 40 s: scripts/test");
    }
    walk(&[Program::Restart], true);
}

#[test]
fn every_mix_with_new_system_and_old_restart_lives_together() {
    if !is_full_proof() {
        return left_out("most mixes of old and new", "they take 40 s: scripts/test");
    }
    walk(&[Program::System], true);
}

#[test]
fn every_mix_with_new_system_and_restart_lives_together() {
    if !is_full_proof() {
        return left_out("most mixes of old and new", "they take 40 s: scripts/test");
    }
    walk(&[Program::System, Program::Restart], false);
}

/// A folder that is switched and taken back all the time, while it is used.
#[test]
fn switching_while_the_scripts_are_used_makes_no_second_agent() {
    let world = world();
    let mut users: Vec<Child> = ["start_voice_system.sh", "start_voice_agent_safe.sh"]
        .into_iter()
        .map(|script| {
            world
                .shell(&format!("while [ ! -e enough ]; do ./{script}; done"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    // The old start is not atomic, and may make two; so that one stays new.
    switch(&world, Program::Start, true);
    until("an agent", || !world.agents().is_empty());
    for wrapper in [true, false] {
        for program in [Program::Check, Program::System] {
            switch(&world, program, wrapper);
        }
        expect(
            &world,
            "back",
            &["check_agent_running", "start_voice_system"],
            0,
        );
    }
    fs::write(world.project().join("enough"), "").unwrap();
    for user in &mut users {
        user.wait().unwrap();
    }
    expect(&world, "switch", &["--all"], 0);
    world.expect(Program::System, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
    world.assert_nothing_left();
}

/// The race that counts during a migration, from a menu that says `bash`.
#[test]
fn an_old_starter_racing_a_wrapper_ends_with_one_agent() {
    let mut world = world();
    world.set("OLD_STYLE_VERIFY_SECONDS", "0.2");
    world.set("TEST_AGENT_READY_DELAY", "0.6");
    expect(
        &world,
        "switch",
        &["start_voice_agent_safe", "--wrapper"],
        0,
    );
    for round in 0..slow_rounds(4) {
        let lead = Duration::from_millis(20) * u32::try_from(round % 3).unwrap();
        let mut new = world.command("bash");
        new.arg(world.link(Program::Start));
        let mut commands = [world.old_style(Program::Start), new];
        if round % 2 == 1 {
            commands.reverse();
        }
        let mut barrier = Barrier::new(&world);
        barrier.add(&commands[0]);
        barrier.add(&later(&world, &commands[1], lead));
        let ended = barrier.release().wait();
        let context = world.transcript(round, &ended);
        assert_eq!(world.agents().len(), 1, "{context}");
        assert!(ended.iter().any(|one| one.code() == Some(0)), "{context}");
        assert!(
            ended.iter().all(|one| matches!(one.code(), Some(0 | 1))),
            "{context}"
        );
        // The rest is the system start's to put right.
        let mut system = world.old_style(Program::System);
        system.stdout(Stdio::null());
        assert!(system.status().unwrap().success());
        expect(&world, "switch", &["stop_voice_agent_safe"], 0);
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

fn later(world: &World, command: &Command, lead: Duration) -> Command {
    let mut shell = world.command("/bin/sh");
    shell
        .arg("-c")
        .arg(format!("sleep {}; exec \"$0\" \"$@\"", lead.as_secs_f64()))
        .arg(command.get_program())
        .args(command.get_args());
    shell
}

// ---- What the old document told people to try by hand.

/// How people call the scripts after a migration.
#[derive(Debug, Clone, Copy)]
enum Way {
    Link,
    Wrapper,
    WrapperByBash,
}

const WAYS: [Way; 3] = [Way::Link, Way::Wrapper, Way::WrapperByBash];

struct Terminals {
    world: World,
    way: Way,
}

impl Terminals {
    fn new(way: Way) -> Self {
        let world = old_folder();
        let sort: &[&str] = match way {
            Way::Link => &["--all"],
            Way::Wrapper | Way::WrapperByBash => &["--all", "--wrapper"],
        };
        expect(&world, "switch", sort, 0);
        Self { world, way }
    }

    fn line(&self, program: Program) -> String {
        match self.way {
            Way::Link | Way::Wrapper => format!("./{}", program.script()),
            Way::WrapperByBash => format!("bash {}", program.script()),
        }
    }

    /// Types a script's name in a terminal of its own, and waits for the end.
    #[track_caller]
    fn types(&self, program: Program, code: i32) -> String {
        expect_of(&self.world, self.world.shell(&self.line(program)), code)
    }
}

#[test]
fn by_hand_the_first_start_works_and_the_stop_ends_it() {
    for way in WAYS {
        let terminals = Terminals::new(way);
        terminals.types(Program::Check, 0);
        terminals.types(Program::Start, 0);
        let agent = terminals.world.assert_one_agent();
        terminals.types(Program::Stop, 0);
        assert!(!is_alive(agent));
        terminals.world.assert_nothing_left();
        terminals.types(Program::Check, 0);
    }
}

/// Two real terminals: the first one is still starting when the second is told.
#[test]
fn by_hand_a_second_terminal_is_refused_while_the_first_is_starting() {
    for way in WAYS {
        let mut terminals = Terminals::new(way);
        // Until the second has ended, however slow this machine is.
        let ready = terminals.world.path("ready");
        terminals.world.set("TEST_AGENT_READY_FILE", &ready);
        terminals.world.set("VOICE_GUARD_VERIFY_SECONDS", "60");
        let world = &terminals.world;
        let line = terminals.line(Program::Start);
        let first = Terminal::new(world, &["/bin/sh", "-c", &line]);
        until("the first terminal's start", || world.lock_file().exists());
        let second = Terminal::new(world, &["/bin/sh", "-c", &line]);
        let (code, said) = second.end();
        assert_eq!(code, Some(1), "{way:?}: {said}");
        assert!(said.contains(REFUSAL), "{way:?}: {said}");
        assert!(world.lock_file().exists(), "the first was still starting");
        fs::write(ready, "").unwrap();
        let (code, said) = first.end();
        assert_eq!(code, Some(0), "{way:?}: {said}");
        assert!(!said.contains(REFUSAL), "{way:?}: {said}");
        let agent = world.assert_one_agent();
        assert_eq!(world.starts(), [agent]);
        terminals.types(Program::Stop, 0);
        terminals.world.assert_nothing_left();
    }
}

#[test]
fn by_hand_a_stale_pid_file_does_not_hinder_a_start() {
    for way in WAYS {
        let terminals = Terminals::new(way);
        let world = &terminals.world;
        terminals.types(Program::Start, 0);
        let killed = world.assert_one_agent();
        world.kill(killed);
        assert_eq!(world.pid_in_file(), Some(killed));
        terminals.types(Program::Check, 0);
        assert!(!world.pid_file().exists(), "the check removes it");
        // Dead, and perhaps not reaped yet by its new parent; this one is gone.
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        fs::write(world.pid_file(), format!("{}\n", child.id())).unwrap();
        terminals.types(Program::Start, 0);
        assert_ne!(world.assert_one_agent(), killed);
        terminals.types(Program::Stop, 0);
    }
}

#[test]
fn by_hand_a_stale_lock_does_not_hinder_a_start_and_a_fresh_one_does() {
    for way in WAYS {
        let terminals = Terminals::new(way);
        let world = &terminals.world;
        // Fresh and empty: an old starter is just writing it.
        fs::write(world.lock_file(), "").unwrap();
        terminals.types(Program::Check, 1);
        let said = terminals.types(Program::Start, 1);
        assert!(said.contains(REFUSAL), "{way:?}: {said}");
        assert!(world.lock_file().exists());
        assert!(world.starts().is_empty());
        // Half a minute old: stale, whoever wrote it.
        let lock = fs::File::options()
            .append(true)
            .open(world.lock_file())
            .unwrap();
        lock.set_modified(std::time::SystemTime::now() - Duration::from_secs(31))
            .unwrap();
        terminals.types(Program::Check, 0);
        assert!(!world.lock_file().exists(), "the check removes it");

        // Fresh, but of a starter that is dead: nobody waits for thirty seconds.
        let mut dead = world.command("true").spawn().unwrap();
        dead.wait().unwrap();
        fs::write(world.lock_file(), format!("{}\n", dead.id())).unwrap();
        terminals.types(Program::Start, 0);
        world.assert_one_agent();
        terminals.types(Program::Stop, 0);

        // Fresh, and its starter is at work.
        let mut starter = world
            .shell("echo $$ >\"$VOICE_GUARD_LOCK_FILE\"; read -r _; rm \"$VOICE_GUARD_LOCK_FILE\"")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        until("the starter's lock", || {
            fs::read_to_string(world.lock_file())
                .is_ok_and(|text| text == format!("{}\n", starter.id()))
        });
        let said = terminals.types(Program::Start, 1);
        assert!(said.contains(REFUSAL), "{way:?}: {said}");
        drop(starter.stdin.take());
        starter.wait().unwrap();
        terminals.types(Program::Start, 0);
        world.assert_one_agent();
        terminals.types(Program::Stop, 0);
        world.assert_nothing_left();
    }
}
