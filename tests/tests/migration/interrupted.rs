//! `scripts/migrate`, killed at each of its steps, and with each step failing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use scenarios::{Program, World, is_full_proof, text};

use super::{NOTHING, Original, expect, is_link, is_wrapper, kept, migrate, names, old_folder};

/// Every command by which the script changes something.
const STEPS: [&str; 6] = ["rm", "ln", "mv", "cp", "chmod", "sync"];

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The script is killed before the step is taken, and so after the one before.
    Before,
    /// It is killed when the step is done, which may be the last one.
    After,
    /// It is told to end before the step is taken.
    Told,
    /// The step fails.
    Fails,
}

/// Stands before each step: counts it, and makes one of them go wrong.
const STEP: &str = r#"#!/bin/sh
number=$(($(cat "$STEPS/count") + 1))
echo "$number" >"$STEPS/count"
command=${0##*/}
if [ "$number" = "$STEPS_AT" ]; then
    case $STEPS_FAULT in
        Before) kill -KILL "$PPID"; exit 1 ;;
        Told) kill -TERM "$PPID"; exit 1 ;;
        Fails) echo "$command: no space left on device" >&2; exit 1 ;;
    esac
fi
if [ "$command" = ln ] && [ "$1" = -P ] && [ -n "$STEPS_NO_HARD_LINKS" ]; then
    # What some file systems say.
    status=1
else
    PATH=/usr/bin:/bin "$command" "$@"
    status=$?
fi
[ "$number" != "$STEPS_AT" ] || [ "$STEPS_FAULT" != After ] || kill -KILL "$PPID"
exit "$status"
"#;

struct Steps {
    folder: PathBuf,
}

impl Steps {
    fn of(world: &World) -> Self {
        let folder = world.path("steps");
        fs::create_dir(&folder).unwrap();
        for step in STEPS {
            let path = folder.join(step);
            fs::write(&path, STEP).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { folder }
    }

    fn watch(&self, command: &mut Command, fault: Option<(Fault, usize)>) {
        fs::write(self.folder.join("count"), "0\n").unwrap();
        command
            .env("PATH", format!("{}:/usr/bin:/bin", self.folder.display()))
            .env("STEPS", &self.folder)
            .env("STEPS_AT", fault.map_or(0, |(_, at)| at).to_string())
            .env(
                "STEPS_FAULT",
                fault.map_or(String::new(), |(fault, _)| format!("{fault:?}")),
            );
    }

    fn taken(&self) -> usize {
        let count = fs::read_to_string(self.folder.join("count")).unwrap();
        count.trim().parse().unwrap()
    }
}

/// A link and a wrapper: both ways of being ours.
const SWITCHED: [Program; 2] = [Program::Check, Program::System];
const SWITCH: [&str; 2] = ["check_agent_running", "start_voice_system"];

fn folder() -> World {
    let world = old_folder();
    // A caller for which the second becomes a wrapper.
    fs::write(
        world.project().join("menu"),
        "bash ./start_voice_system.sh\n",
    )
    .unwrap();
    world
}

/// Whatever happened: each name is there and whole, and no original is lost.
#[track_caller]
fn assert_nothing_lost(world: &World, before: &[Original], context: &str) {
    for (program, before) in Program::ALL.iter().zip(before) {
        let now = Original::read(&world.link(*program));
        let ours = is_link(world, *program) || is_wrapper(world, *program);
        assert!(ours || now.as_ref() == Some(before), "{context}: {now:?}");
        if ours {
            assert_eq!(
                Original::read(&kept(world, *program)).as_ref(),
                Some(before),
                "{context}"
            );
        }
    }
}

#[track_caller]
fn assert_switched(world: &World, before: &[Original], files: &[String], context: &str) {
    assert!(is_link(world, SWITCHED[0]), "{context}");
    assert!(is_wrapper(world, SWITCHED[1]), "{context}");
    assert_nothing_lost(world, before, context);
    let mut expected = files.to_vec();
    expected.extend(SWITCHED.map(|program| format!("{}.orig", program.script())));
    expected.sort();
    assert_eq!(names(world.project()), expected, "{context}");
}

#[track_caller]
fn assert_back(world: &World, before: &[Original], files: &[String], context: &str) {
    assert_eq!(Original::all(world), before, "{context}");
    assert_eq!(names(world.project()), files, "{context}");
}

fn take_back_by_hand(world: &World) {
    for program in SWITCHED {
        fs::rename(kept(world, program), world.link(program)).unwrap();
    }
}

/// Visits each step with each fault, every day a third of these; afterwards both verbs must converge.
fn visit(verb: &str, environment: &[(&str, &str)]) {
    let world = folder();
    let steps = Steps::of(&world);
    let before = Original::all(&world);
    let files = names(world.project());
    let prepared = |context: &str| {
        if Original::all(&world) != before || names(world.project()) != files {
            expect(&world, "back", &["--all"], 0);
        }
        assert_back(&world, &before, &files, context);
        if verb == "back" {
            expect(&world, "switch", &SWITCH, 0);
        }
    };
    let run = |fault: Option<(Fault, usize)>| {
        let mut command = migrate(&world, verb, &SWITCH);
        command.envs(environment.iter().copied());
        steps.watch(&mut command, fault);
        world.run_command(command)
    };
    prepared("before anything");
    let output = run(None);
    assert!(output.status.success(), "{}", text(&output));
    let number = steps.taken();
    assert!(number >= 2, "{number} steps were seen");

    let mut visited = 0;
    for at in 1..=number {
        for fault in [Fault::Before, Fault::After, Fault::Told, Fault::Fails] {
            if matches!(fault, Fault::After) && at < number
                || matches!(fault, Fault::Told) && at % 2 == 0
                || matches!(fault, Fault::Told | Fault::Fails) && !environment.is_empty()
            {
                continue;
            }
            visited += 1;
            if !is_full_proof() && visited % 3 != 0 {
                continue;
            }
            let context = format!("{verb}, step {at} of {number}, {fault:?}, {environment:?}");
            prepared(&context);
            let output = run(Some((fault, at)));
            // Nothing depends on a file being on the disk already, so that step may fail.
            if output.status.success() {
                assert!(
                    matches!(fault, Fault::Fails),
                    "{context}: {}",
                    text(&output)
                );
            } else if matches!(fault, Fault::Fails) {
                assert_eq!(output.status.code(), Some(1), "{context}");
                assert!(
                    text(&output).contains("migrate: "),
                    "{context}: {}",
                    text(&output)
                );
            } else {
                assert_eq!(output.status.code(), None, "{context}");
            }
            assert_nothing_lost(&world, &before, &context);
            if matches!(fault, Fault::Told) {
                let left = names(world.project());
                assert!(
                    !left.iter().any(|name| name.ends_with(".migrating")),
                    "{context}: {left:?}"
                );
            }
            // Half of them are finished, the other half is taken back.
            if at % 2 == 0 {
                expect(&world, "switch", &SWITCH, 0);
                assert_switched(&world, &before, &files, &context);
                take_back_by_hand(&world);
            }
        }
    }
    prepared("after everything");
}

#[test]
fn a_switch_may_be_interrupted_at_every_step() {
    visit("switch", &[]);
}

#[test]
fn a_switch_without_hard_links_may_be_interrupted_at_every_step() {
    visit("switch", &[("STEPS_NO_HARD_LINKS", "yes")]);
}

#[test]
fn going_back_may_be_interrupted_at_every_step() {
    visit("back", &[]);
}

#[test]
fn what_an_interrupted_run_left_is_cleared() {
    let world = folder();
    let before = Original::all(&world);
    let files = names(world.project());
    let leave = |name: &str| {
        let path = world.project().join(name);
        fs::write(&path, "#!/bin/sh\nexport VOI").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
    };
    for name in [
        ".start_voice_system.sh.migrating",
        ".start_voice_system.sh.orig.migrating",
    ] {
        leave(name);
        expect(&world, "switch", &SWITCH, 0);
        assert_switched(&world, &before, &files, name);
        leave(name);
        expect(&world, "switch", &SWITCH, 0);
        assert_switched(&world, &before, &files, name);
        leave(name);
        expect(&world, "back", &SWITCH, 0);
        assert_back(&world, &before, &files, name);
    }
    // A folder of that name nobody has left by accident.
    fs::create_dir(world.project().join(".start_voice_system.sh.migrating")).unwrap();
    let said = expect(&world, "switch", &["--all"], 1);
    assert!(said.contains("in the way"), "{said}");
    assert_eq!(Original::all(&world), before);
}

#[test]
fn status_tells_that_a_switch_was_interrupted() {
    let world = folder();
    fs::hard_link(world.link(Program::Stop), kept(&world, Program::Stop)).unwrap();
    let said = expect(&world, "status", NOTHING, 1);
    assert!(said.contains("interrupted"), "{said}");
    expect(&world, "back", &["--all"], 0);
    assert!(!kept(&world, Program::Stop).exists());
    expect(&world, "status", NOTHING, 0);
}

#[test]
fn two_at_once_end_with_one_result() {
    let world = folder();
    let before = Original::all(&world);
    let files = names(world.project());
    for _ in 0..2 {
        let mut running: Vec<_> = (0..3)
            .map(|_| {
                migrate(&world, "switch", &SWITCH)
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for one in &mut running {
            assert!(one.wait().unwrap().success());
        }
        assert_switched(&world, &before, &files, "three at once");
        expect(&world, "back", &["--all"], 0);
        assert_back(&world, &before, &files, "after three at once");
    }
}

#[test]
fn a_script_that_is_running_goes_on_in_its_own_text() {
    let world = folder();
    let script = world.link(Program::Stop);
    let fifo = world.path("go on");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // bash reads a script as it goes: from the open file, not from the name.
    fs::write(
        &script,
        format!(
            "#!/bin/bash\nread -r _ <'{}'\necho the old text\nexit 7\n",
            fifo.display()
        ),
    )
    .unwrap();
    let running = world
        .program(Program::Stop)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Opening it waits for the script to open its end.
    let gate = fs::File::options()
        .write(true)
        .open(Path::new(&fifo))
        .unwrap();
    expect(&world, "switch", &["stop_voice_agent_safe"], 0);
    drop(gate);
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(text(&output), "the old text\n");
}
