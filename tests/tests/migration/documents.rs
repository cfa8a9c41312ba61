//! Every command in `docs/`, as it stands there, by a reader in one terminal.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use scenarios::document::script_that_counts_agents;
use scenarios::surroundings::Room;
use scenarios::{Process, Program, World, all_processes, binary, python, text};

use super::clone;

/// A reader's home with the agent, under its real name, in `~/my-agent`.
fn reader() -> World {
    let mut world = World::new();
    let settings: Vec<_> = world
        .environment()
        .iter()
        .map(|(name, _)| name.clone())
        .filter(|name| name.to_string_lossy().starts_with("VOICE_GUARD_"))
        .collect();
    for setting in settings {
        world.unset(setting);
    }
    let interpreters = python().parent().expect("an interpreter's folder");
    world.set(
        "PATH",
        format!("{}:/usr/local/bin:/usr/bin:/bin", interpreters.display()),
    );
    world.set("OLD_STYLE_VERIFY_SECONDS", "0.2");
    let programs = world.path("built");
    fs::create_dir(&programs).unwrap();
    for program in Program::ALL {
        symlink(binary(program), programs.join(program.name())).unwrap();
    }
    world.set("VOICE_GUARD_PROGRAMS", programs);
    let folder = world.path("home/my-agent");
    fs::create_dir(&folder).unwrap();
    fs::copy(
        clone().join("scripts/demo/letta_voice_agent.py"),
        folder.join("letta_voice_agent.py"),
    )
    .unwrap();
    world
}

fn read(world: &World, name: &str) {
    let document = fs::read_to_string(clone().join("docs").join(name)).unwrap();
    // In a file: on its command line `pkill -f` would find the words it looks for.
    let file = world.path("reader.sh");
    fs::write(&file, script_that_counts_agents(name, &document)).unwrap();
    let mut bash = world.command("bash");
    bash.arg(file).current_dir(clone());
    let output = world.run_command(bash);
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output),
        world.describe()
    );
    let left: Vec<_> = all_processes()
        .iter()
        .filter(|process| process.runs_agent("letta_voice_agent", None))
        .map(Process::describe)
        .collect();
    assert!(
        left.is_empty() && fs::read("/tmp/letta_voice_agent.pid").is_err(),
        "{name} leaves an agent behind: {left:?}\n{}",
        text(&output)
    );
}

fn room() -> Room {
    Room::new().tmpfs("/tmp", "mode=1777").keep(clone())
}

#[test]
fn every_command_of_duplicate_prevention_does_what_it_says() {
    room().enter(
        "documents::every_command_of_duplicate_prevention_does_what_it_says",
        || {
            let world = reader();
            for program in Program::ALL {
                symlink(
                    binary(program),
                    world.path("home/my-agent").join(program.script()),
                )
                .unwrap();
            }
            read(&world, "duplicate-prevention.md");
        },
    );
}

/// A stand-in for an old script, with what the stand-ins of the tests read
/// from the environment at its head.
fn write_old_script(folder: &Path, program: Program) {
    let body = fs::read_to_string(clone().join("tests/old-style").join(program.script())).unwrap();
    let (shebang, body) = body.split_once('\n').unwrap();
    let head = "VOICE_GUARD_PROJECT_DIR=\"$(cd \"$(dirname \"$0\")\" && pwd)\"\n\
         VOICE_GUARD_PID_FILE=/tmp/letta_voice_agent.pid\n\
         VOICE_GUARD_LOCK_FILE=/tmp/letta_voice_agent.lock\n\
         VOICE_GUARD_LOG_FILE=/tmp/voice_agent.log\n\
         VOICE_GUARD_AGENT_SCRIPT=letta_voice_agent.py\n\
         VOICE_GUARD_PYTHON=python3\n";
    let path = folder.join(program.script());
    fs::write(&path, format!("{shebang}\n{head}{body}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn every_command_of_migration_does_what_it_says() {
    room().enter(
        "documents::every_command_of_migration_does_what_it_says",
        || {
            let world = reader();
            for program in Program::ALL {
                write_old_script(&world.path("home/my-agent"), program);
            }
            read(&world, "migration.md");
        },
    );
}

#[test]
fn the_documents_name_every_program_and_no_other_script() {
    for name in ["duplicate-prevention.md", "migration.md"] {
        let document = fs::read_to_string(clone().join("docs").join(name)).unwrap();
        for word in document.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')) {
            if let Some(stem) = word.strip_suffix(".sh")
                && stem.contains('_')
            {
                assert!(
                    Program::ALL.iter().any(|program| program.script() == word),
                    "{name} speaks of {word}"
                );
            }
        }
    }
}
