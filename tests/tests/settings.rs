//! Where settings come from: flags over environment over defaults; the project
//! folder, the interpreter and the env file; and values that cannot be used.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scenarios::surroundings::{
    NO_ARGUMENTS, OtherUser, Room, assert_names, odd_name, outcome, pids, report, run, verdict,
};
use scenarios::{Program, World, process, python, text};

/// The one agent's command line.
#[track_caller]
fn argv(world: &World) -> Vec<String> {
    let agents = world.agents();
    assert_eq!(agents.len(), 1, "{}", world.describe());
    let argv = process(agents[0]).unwrap().argv;
    argv.iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// A variable of the one agent.
#[track_caller]
fn variable(world: &World, name: &str) -> Option<String> {
    let agents = world.agents();
    assert_eq!(agents.len(), 1, "{}", world.describe());
    let agent = process(agents[0]).unwrap();
    agent
        .variable(name)
        .map(|value| value.to_string_lossy().into_owned())
}

#[track_caller]
fn stop(world: &World) {
    world.expect(Program::Stop, 0);
    assert!(world.agents().is_empty(), "{}", world.describe());
}

// ---- Flags > environment > defaults.

#[test]
fn flag_wins_over_environment_for_every_file() {
    let world = World::new();
    for (flag, name) in [
        ("--pid-file", "VOICE_GUARD_PID_FILE"),
        ("--log-file", "VOICE_GUARD_LOG_FILE"),
    ] {
        let (given, ignored) = (world.path("given"), world.path("ignored"));
        let mut start = world.program(Program::Start);
        start.env(name, &ignored).arg(flag).arg(&given);
        let output = run(&world, start);
        assert_eq!(verdict(&output), 0, "{flag}: {}", text(&output));
        assert!(given.exists() && !ignored.exists(), "{flag}");
        stop(&world);
        let _ = fs::remove_file(given);
    }
    // The lock file is there during a start only, but it is looked at.
    let (locked, free) = (world.path("locked"), world.path("free"));
    fs::write(&locked, "").unwrap();
    for (environment, flag, code) in [(&locked, &free, 0), (&free, &locked, 1)] {
        let mut check = world.program(Program::Check);
        check.env("VOICE_GUARD_LOCK_FILE", environment);
        check.arg("--lock-file").arg(flag);
        let output = run(&world, check);
        assert_eq!(verdict(&output), code, "{}", text(&output));
    }
}

#[test]
fn flag_wins_over_environment_for_what_runs() {
    let mut world = World::new();
    let other = world.add_script("other");
    let other = other.file_name().unwrap().to_owned();
    let mut start = world.program(Program::Start);
    start
        .env("VOICE_GUARD_AGENT_MODE", "start")
        .env("VOICE_GUARD_PYTHON", "/missing/python3")
        .env("VOICE_GUARD_PROJECT_DIR", "/missing/project")
        .args(["--agent-mode", "connect"])
        .arg("--python")
        .arg(python())
        .arg("--project-dir")
        .arg(world.project());
    let output = run(&world, start);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    let own = format!("{}.py", world.family());
    assert_eq!(
        argv(&world),
        [&*python().to_string_lossy(), &own, "connect"]
    );
    stop(&world);

    // Environment over defaults. (Another script, another family.)
    world.set("VOICE_GUARD_AGENT_MODE", "start");
    let mut start = world.program(Program::Start);
    start.arg("--agent-script").arg(&other);
    let output = run(&world, start);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    assert_eq!(argv(&world)[1..], [&*other.to_string_lossy(), "start"]);
    let mut stop = world.program(Program::Stop);
    stop.arg("--agent-script").arg(&other);
    let output = run(&world, stop);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    assert!(world.agents().is_empty());
    let stem = Path::new(&other).file_stem().unwrap().to_string_lossy();
    fs::remove_file(format!("/tmp/.{stem}.guard")).unwrap();
}

#[test]
fn readiness_is_what_the_pattern_says() {
    let mut world = World::new();
    world.set("VOICE_GUARD_READY_PATTERN", "never shown");
    // The flag is to win, and the test not to wait.
    world.set("VOICE_GUARD_VERIFY_SECONDS", "60");
    let mut start = world.program(Program::Start);
    start.args(["--json", "--verify-seconds", "0.3"]);
    let begun = Instant::now();
    let output = run(&world, start);
    let waited = begun.elapsed();
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["registration_confirmed"], false, "{seen}");
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    assert!(waited < Duration::from_secs(20), "{waited:?}");
    stop(&world);
    let mut start = world.program(Program::Start);
    start.args(["--json", "--ready-pattern", "^starting w[o]rker$"]);
    start.args(["--verify-seconds", "30"]);
    let output = run(&world, start);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["registration_confirmed"], true, "{seen}");
    stop(&world);
}

#[test]
fn grace_period_is_as_set() {
    let mut world = World::new();
    world.set("TEST_AGENT_DEAF", "1");
    world.set("VOICE_GUARD_GRACE_SECONDS", "30");
    world.expect(Program::Start, 0);
    let begun = Instant::now();
    let mut command = world.program(Program::Stop);
    command.args(["--grace-seconds", "0.3"]);
    let output = run(&world, command);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    world.assert_nothing_left();
}

#[test]
fn relative_paths_are_taken_from_the_project_folder() {
    let mut world = World::new();
    world.set("VOICE_GUARD_PID_FILE", "relative.pid");
    world.set("VOICE_GUARD_LOG_FILE", "relative.log");
    world.set("VOICE_GUARD_ENV_FILE", "relative.env");
    let bin = world.project().join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(python(), bin.join("python3")).unwrap();
    world.set("VOICE_GUARD_PYTHON", "bin/python3");
    fs::write(world.project().join("relative.env"), "FROM_FILE=yes\n").unwrap();
    let mut start = world.program(Program::Start);
    start.current_dir("/");
    let output = run(&world, start);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    assert!(world.project().join("relative.pid").exists());
    assert!(world.project().join("relative.log").exists());
    assert_eq!(variable(&world, "FROM_FILE").as_deref(), Some("yes"));
    assert_names(&argv(&world)[0], &bin.join("python3"));
    stop(&world);
    assert!(!world.project().join("relative.pid").exists());
}

#[test]
fn empty_variable_is_no_setting() {
    let mut world = World::new();
    for name in [
        "PROJECT_DIR",
        "AGENT_MODE",
        "PYTHON",
        "ENV_FILE",
        "READY_PATTERN",
        "VERIFY_SECONDS",
        "GRACE_SECONDS",
        "KEEP_LOG_MB",
    ] {
        world.set(format!("VOICE_GUARD_{name}"), "");
    }
    world.expect(Program::Start, 0);
    assert_eq!(argv(&world).last().unwrap(), "dev");
    stop(&world);
}

#[test]
fn value_that_cannot_be_used_is_named_with_its_origin() {
    let world = World::new();
    for (name, flag, values) in [
        (
            "VERIFY_SECONDS",
            "--verify-seconds",
            &["x", "-1", "NaN", "inf", "1e400", "1e300", "3,5", "0x1"][..],
        ),
        (
            "GRACE_SECONDS",
            "--grace-seconds",
            &["x", "-1", "NaN", "-inf", "1e19"],
        ),
        ("KEEP_LOG_MB", "--keep-log-mb", &["x", "-1", "NaN", "1e7"]),
        ("READY_PATTERN", "--ready-pattern", &["(", "[", "*"]),
        ("PYTHON", "--python", &["python3", "python3.11", "."]),
        ("PROJECT_DIR", "--project-dir", &["/missing"]),
        ("AGENT_SCRIPT", "--agent-script", &["/", ".."]),
        ("ENV_FILE", "--env-file", &["/missing/env"]),
    ] {
        for value in values {
            let mut command = world.program(Program::Start);
            command.env(format!("VOICE_GUARD_{name}"), value);
            let output = run(&world, command);
            let said = text(&output);
            assert_eq!(verdict(&output), 1, "{name}={value}: {said}");
            assert!(
                said.contains(name) || said.contains(value),
                "{name}={value}: {said}"
            );
            let mut command = world.program(Program::Start);
            command.arg(format!("{flag}={value}"));
            let output = run(&world, command);
            let said = text(&output);
            assert!(
                matches!(output.status.code(), Some(1 | 2)),
                "{flag}={value}: {said}"
            );
            assert!(
                said.contains(&flag[2..]) || said.contains(value),
                "{flag}={value}: {said}"
            );
            assert!(!said.contains("panicked"), "{flag}={value}: {said}");
            assert!(world.agents().is_empty(), "{name}={value}");
        }
    }
    world.assert_nothing_left();
}

#[test]
fn interpreter_is_a_path_and_never_looked_up() {
    let mut world = World::new();
    // Whoever can put a program into PATH or the folder must not win.
    symlink(python(), world.project().join("python3")).unwrap();
    let folder = world.project().to_owned();
    world.set("PATH", folder);
    world.set("VOICE_GUARD_PYTHON", "python3");
    let said = world.expect(Program::Start, 1);
    assert!(said.contains("VOICE_GUARD_PYTHON"), "{said}");
    assert!(world.agents().is_empty());
    world.set("VOICE_GUARD_PYTHON", "./python3");
    world.expect(Program::Start, 0);
    stop(&world);
}

#[test]
fn words_after_a_setting_flag_may_be_no_utf_8() {
    let world = World::new();
    let odd = world.path(OsStr::from_bytes(b"odd \xff.pid"));
    let mut start = world.program(Program::Start);
    start.arg("--pid-file").arg(&odd);
    let output = run(&world, start);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    assert!(odd.exists());
    let mut check = world.program(Program::Check);
    check.arg("--json").arg("--pid-file").arg(&odd);
    let output = run(&world, check);
    assert_eq!(verdict(&output), 1);
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pids(&seen, "agents"), [u64::from(world.agents()[0])]);
    assert_eq!(seen["agents"][0]["tracked"], true, "{seen}");
    let mut stop = world.program(Program::Stop);
    stop.arg("--pid-file").arg(&odd);
    assert_eq!(verdict(&run(&world, stop)), 0);
    assert!(!odd.exists());
}

// ---- The project folder.

/// A second folder with links to the programs and an agent script that is not
/// the world's own.
fn second_folder(world: &World, name: impl AsRef<OsStr>) -> PathBuf {
    let folder = world.path(Path::new(name.as_ref()));
    fs::create_dir(&folder).unwrap();
    for program in Program::ALL {
        symlink(scenarios::binary(program), folder.join(program.script())).unwrap();
    }
    fs::copy(
        world.script(),
        folder.join(world.script().file_name().unwrap()),
    )
    .unwrap();
    folder
}

#[track_caller]
fn working_folder(world: &World) -> PathBuf {
    let agents = world.agents();
    assert_eq!(agents.len(), 1, "{}", world.describe());
    fs::read_link(format!("/proc/{}/cwd", agents[0])).unwrap()
}

#[test]
fn project_folder_is_the_links_own_folder() {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PROJECT_DIR");
    let folder = second_folder(&world, "second");
    let link = folder.join(Program::Start.script());
    let elsewhere = world.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();

    // By an absolute path; by a relative one; by a link of a folder.
    let mut absolute = world.command(&link);
    absolute.current_dir("/");
    let mut relative = world.command("../second/start_voice_agent_safe.sh");
    relative.current_dir(&elsewhere);
    let alias = world.path("alias");
    symlink(&folder, &alias).unwrap();
    let mut aliased = world.command(alias.join(Program::Start.script()));
    aliased.current_dir("/");
    // Through PATH, where the shell leaves no folder in argv[0].
    let mut by_path = world.command("sh");
    by_path
        .args(["-c", "exec start_voice_agent_safe.sh"])
        .env("PATH", format!("{}:/usr/bin:/bin", folder.display()))
        .current_dir("/");
    // From a working folder that has a script of that name too.
    let mut rival = world.command(&link);
    rival.current_dir(world.project());
    for command in [absolute, relative, aliased, by_path, rival] {
        let shown = format!("{command:?}");
        let output = run(&world, command);
        assert_eq!(verdict(&output), 0, "{shown}: {}", text(&output));
        assert_eq!(
            working_folder(&world),
            folder.canonicalize().unwrap(),
            "{shown}"
        );
        stop(&world);
    }
}

#[test]
fn link_to_a_link_means_the_first_links_folder() {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PROJECT_DIR");
    let folder = second_folder(&world, "second");
    let link = folder.join(Program::Start.script());
    fs::remove_file(&link).unwrap();
    symlink(world.link(Program::Start), &link).unwrap();
    let mut command = world.command(&link);
    command.current_dir("/");
    let output = run(&world, command);
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    assert_eq!(working_folder(&world), folder.canonicalize().unwrap());
    stop(&world);
}

#[test]
fn without_the_script_beside_the_link_the_working_folder_counts() {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PROJECT_DIR");
    // Links in a folder of programs, the project somewhere else.
    let bin = second_folder(&world, "bin");
    fs::remove_file(bin.join(world.script().file_name().unwrap())).unwrap();
    let output = run(&world, world.command(bin.join(Program::Start.script())));
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    assert_eq!(
        working_folder(&world),
        world.project().canonicalize().unwrap()
    );
    stop(&world);
    // The program itself, under its own name.
    let output = run(&world, world.command(scenarios::binary(Program::Start)));
    assert_eq!(verdict(&output), 0, "{}", text(&output));
    assert_eq!(
        working_folder(&world),
        world.project().canonicalize().unwrap()
    );
    stop(&world);
    // Nowhere: the message says which script in which folder.
    let mut command = world.command(bin.join(Program::Start.script()));
    command.current_dir("/");
    let output = run(&world, command);
    assert_eq!(verdict(&output), 1, "{}", text(&output));
    assert!(text(&output).contains(&*world.script().file_name().unwrap().to_string_lossy()));
    assert!(world.agents().is_empty());
}

#[test]
fn every_path_may_hold_spaces_quotes_and_bytes_that_are_no_utf_8() {
    let mut world = World::with_project(odd_name());
    world.unset("VOICE_GUARD_PROJECT_DIR");
    let odd = |name: &[u8]| {
        let mut path = world.project().to_owned().into_os_string();
        path.push("/");
        path.push(OsStr::from_bytes(name));
        PathBuf::from(path)
    };
    let environment = odd(b"the \xfe env");
    fs::write(&environment, "FROM_FILE='a b'\n").unwrap();
    let bin = odd(b"b i n");
    fs::create_dir(&bin).unwrap();
    symlink(python(), bin.join("python3")).unwrap();
    let settings = [
        ("ENV_FILE", environment),
        ("PYTHON", bin.join("python3")),
        ("PID_FILE", odd(b"p \xff.pid")),
        ("LOCK_FILE", odd(b"l \xff.lock")),
        ("LOG_FILE", odd(b"o \xff.log")),
    ];
    let pid_file = settings[2].1.clone();
    for (name, value) in settings {
        world.set(format!("VOICE_GUARD_{name}"), value);
    }
    let (code, seen) = report(&world, Program::Start);
    assert_eq!(
        (code, &seen["registration_confirmed"]),
        (0, &true.into()),
        "{seen}"
    );
    assert_eq!(
        working_folder(&world),
        world.project().canonicalize().unwrap()
    );
    assert_eq!(variable(&world, "FROM_FILE").as_deref(), Some("a b"));
    let number = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(number, format!("{}\n", world.agents()[0]));
    for (program, expected) in [
        (Program::Check, 1),
        (Program::Start, 1),
        (Program::System, 0),
        (Program::Restart, 0),
        (Program::Stop, 0),
    ] {
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, expected, "{}: {said}", program.name());
    }
    assert!(world.agents().is_empty() && !pid_file.exists());
    world.assert_no_overlap();
}

#[test]
fn script_in_a_subfolder_or_by_an_absolute_path() {
    let mut world = World::new();
    let sub = world.project().join("sub");
    fs::create_dir(&sub).unwrap();
    let script = sub.join(world.script().file_name().unwrap());
    fs::rename(world.script(), &script).unwrap();
    let relative = Path::new("sub").join(script.file_name().unwrap());
    for given in [relative, script] {
        world.set("VOICE_GUARD_AGENT_SCRIPT", &given);
        world.expect(Program::Start, 0);
        assert_eq!(argv(&world)[1], given.to_string_lossy());
        assert_eq!(
            working_folder(&world),
            world.project().canonicalize().unwrap()
        );
        world.expect(Program::Check, 1);
        world.expect(Program::Start, 1);
        stop(&world);
    }
}

// ---- The interpreter.

/// A virtual environment, as far as its interpreter goes.
fn virtual_environment(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder.join("bin")).unwrap();
    let interpreter = folder.join("bin/python3");
    symlink(python(), &interpreter).unwrap();
    interpreter
}

/// Starts, looks which interpreter the agent has and whether it was said, stops.
#[track_caller]
fn assert_interpreter(world: &World, expected: &Path) {
    let said = world.expect(Program::Start, 0);
    let used = argv(world).remove(0);
    assert_eq!(Path::new(&used), expected, "{said}");
    assert_names(&said, expected);
    stop(world);
}

#[test]
fn interpreter_comes_from_the_nearest_virtual_environment() {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PYTHON");
    let found_in_path = virtual_environment(&world.path("in-path"));
    let path = format!(
        "{}:/usr/bin:/bin",
        found_in_path.parent().unwrap().display()
    );
    world.set("PATH", path);
    assert_interpreter(&world, &found_in_path);
    let conda = virtual_environment(&world.path("conda"));
    world.set("CONDA_PREFIX", world.path("conda"));
    assert_interpreter(&world, &conda);
    let active = virtual_environment(&world.path("active"));
    world.set("VIRTUAL_ENV", world.path("active"));
    assert_interpreter(&world, &active);
    let above = virtual_environment(&world.path("venv"));
    assert_interpreter(&world, &above);
    let hidden_above = virtual_environment(&world.path(".venv"));
    assert_interpreter(&world, &hidden_above);
    let own = virtual_environment(&world.project().join("venv"));
    assert_interpreter(&world, &own);
    let hidden = virtual_environment(&world.project().join(".venv"));
    assert_interpreter(&world, &hidden);
    let configured = virtual_environment(&world.path("configured"));
    world.set("VOICE_GUARD_PYTHON", &configured);
    assert_interpreter(&world, &configured);
}

#[test]
fn environment_variables_that_name_no_interpreter_are_passed_over() {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PYTHON");
    let found_in_path = virtual_environment(&world.path("in-path"));
    let path = format!(
        "{}:/usr/bin:/bin",
        found_in_path.parent().unwrap().display()
    );
    world.set("PATH", path);
    for value in ["", "/missing", "relative"] {
        world.set("VIRTUAL_ENV", value);
        world.set("CONDA_PREFIX", value);
        assert_interpreter(&world, &found_in_path);
    }
    // A folder of that name with no interpreter in it.
    fs::create_dir_all(world.project().join(".venv/bin")).unwrap();
    fs::create_dir_all(world.project().join("venv/bin/python3")).unwrap();
    assert_interpreter(&world, &found_in_path);
}

#[test]
fn virtual_environment_of_somebody_else_is_not_used() {
    Room::new().enter("virtual_environment_of_somebody_else_is_not_used", || {
        let Some(user) = OtherUser::nobody("a virtual environment of another user") else {
            return;
        };
        let mut world = World::new();
        world.unset("VOICE_GUARD_PYTHON");
        let found_in_path = virtual_environment(&world.path("in-path"));
        let path = format!(
            "{}:/usr/bin:/bin",
            found_in_path.parent().unwrap().display()
        );
        world.set("PATH", path);
        let trap = world.project().join(".venv");
        virtual_environment(&trap);
        // Whoever owns any folder on the way can exchange what is below it.
        for folder in [trap.clone(), trap.join("bin")] {
            chown(&folder, Some(user.uid()), None).unwrap();
            assert_interpreter(&world, &found_in_path);
            chown(&folder, Some(0), None).unwrap();
        }
        assert_interpreter(&world, &trap.join("bin/python3"));
        // A folder of root's, for another user, is as good as his own.
        user.moves_into(&mut world);
        world.unset("VOICE_GUARD_PYTHON");
        let interpreter = trap.join("bin/python3");
        fs::remove_file(&interpreter).unwrap();
        symlink(user.interpreter(), &interpreter).unwrap();
        chown(&trap, Some(0), None).unwrap();
        let mut start = world.program(Program::Start);
        user.runs(&mut start);
        let output = run(&world, start);
        assert_eq!(verdict(&output), 0, "{}", text(&output));
        assert_eq!(Path::new(&argv(&world)[0]), interpreter);
        stop(&world);
    });
}

#[test]
fn no_interpreter_anywhere_is_said_with_all_places() {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PYTHON");
    world.set("PATH", world.scratch());
    for program in [Program::Start, Program::System, Program::Restart] {
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, 1, "{said}");
        for place in [
            ".venv",
            "VIRTUAL_ENV",
            "CONDA_PREFIX",
            "PATH",
            "VOICE_GUARD_PYTHON",
        ] {
            assert!(said.contains(place), "{place} is not in: {said}");
        }
        world.assert_nothing_left();
    }
}

// ---- The env file.

#[test]
fn env_file_reaches_the_agent_and_overrides_the_caller() {
    let mut world = World::new();
    world.set("INHERITED", "from the caller");
    world.set("OVERRIDDEN", "from the caller");
    let content = "\
# keys
   # an indented comment

OVERRIDDEN=from the file
";
    // `source` takes unquoted blanks for a command; so they are an error.
    fs::write(world.project().join(".env"), content).unwrap();
    world.expect(Program::Start, 1);
    let content = "\
# keys
   # an indented comment

OVERRIDDEN=\"from the file\"
export LIVEKIT_URL=wss://example.livekit.cloud
  SPACED=1
SINGLE='single $HOME `touch x` \"quoted\"'
DOUBLE=\"double 'quoted'\" # a comment
HASH=a#b
EMPTY=
EQUALS=a=b=c==
LAST=no-newline-at-the-end";
    fs::write(world.project().join(".env"), content).unwrap();
    world.expect(Program::Start, 0);
    for (name, value) in [
        ("INHERITED", "from the caller"),
        ("OVERRIDDEN", "from the file"),
        ("LIVEKIT_URL", "wss://example.livekit.cloud"),
        ("SPACED", "1"),
        ("SINGLE", "single $HOME `touch x` \"quoted\""),
        ("DOUBLE", "double 'quoted'"),
        ("HASH", "a#b"),
        ("EMPTY", ""),
        ("EQUALS", "a=b=c=="),
        ("LAST", "no-newline-at-the-end"),
    ] {
        assert_eq!(variable(&world, name).as_deref(), Some(value), "{name}");
    }
    stop(&world);
}

#[test]
fn env_file_from_windows_gives_clean_values() {
    let world = World::new();
    let content = "\u{feff}FIRST=1\r\nexport KEY=secret\r\nQUOTED=\"a b\"\r\n\r\n# comment\r\n";
    fs::write(world.project().join(".env"), content).unwrap();
    world.expect(Program::Start, 0);
    assert_eq!(variable(&world, "KEY").as_deref(), Some("secret"));
    assert_eq!(variable(&world, "QUOTED").as_deref(), Some("a b"));
    assert_eq!(
        variable(&world, "FIRST").as_deref(),
        Some("1"),
        "the byte order mark is no name"
    );
    stop(&world);
}

#[test]
fn env_file_is_never_executed() {
    let world = World::new();
    let trace = world.scratch().join("executed");
    let shown = trace.display();
    let content =
        format!("A='$(touch {shown})'\nB='`touch {shown}`'\nC=\"x\"\nD=$(touch${{IFS}}{shown})\n");
    fs::write(world.project().join(".env"), content).unwrap();
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    if code == 0 {
        stop(&world);
    } else {
        assert!(said.contains("line 4"), "{said}");
    }
    fs::write(world.project().join(".env"), format!("touch {shown}\n")).unwrap();
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    assert_eq!(code, 1, "{said}");
    assert!(!trace.exists());
}

#[test]
fn bad_line_of_the_env_file_is_named_and_no_secret_shown() {
    let world = World::new();
    let env_file = world.project().join(".env");
    for (content, line) in [
        (&b"GOOD=1\n\nKEY=sesame open sesame\n"[..], 3),
        (b"GOOD=1\nsesame\n", 2),
        (b"GOOD=1\nKEY=\"sesame\n", 2),
        (b"=sesame\n", 1),
        (b"1KEY=sesame words\n", 1),
        (b"if true; then KEY=sesame; fi\n", 1),
        (b"GOOD=1\nKEY=sesame\0more\n", 2),
        (b"GOOD=1\nKEY=sesame\xff\xfe\n", 2),
    ] {
        fs::write(&env_file, content).unwrap();
        for program in [Program::Start, Program::System, Program::Restart] {
            let (code, said) = outcome(&world, program, NO_ARGUMENTS);
            let context = format!("{} with {}: {said}", program.name(), content.escape_ascii());
            assert_eq!(code, 1, "{context}");
            assert_names(&said, &env_file);
            assert!(
                said.contains(&line.to_string()),
                "no line {line}: {context}"
            );
            assert!(!said.contains("sesame"), "{context}");
            world.assert_nothing_left();
        }
        // Nobody needs it to look or to stop.
        world.expect(Program::Check, 0);
        world.expect(Program::Stop, 0);
    }
}

#[test]
fn running_agent_is_not_stopped_for_a_restart_that_cannot_start() {
    let world = World::new();
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    fs::write(world.project().join(".env"), "KEY=some words\n").unwrap();
    let (code, said) = outcome(&world, Program::Restart, NO_ARGUMENTS);
    assert_eq!(code, 1, "{said}");
    assert_eq!(world.assert_one_agent(), agent, "{said}");
    stop(&world);
}

#[test]
fn configured_env_file_that_is_missing_is_explained() {
    let mut world = World::new();
    let missing = world.path("missing.env");
    world.set("VOICE_GUARD_ENV_FILE", &missing);
    for program in [Program::Start, Program::System, Program::Restart] {
        let (code, said) = outcome(&world, program, NO_ARGUMENTS);
        assert_eq!(code, 1, "{}: {said}", program.name());
        assert_names(&said, &missing);
        for name in ["LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"] {
            assert!(said.contains(name), "{}: {said}", program.name());
        }
        world.assert_nothing_left();
    }
    world.expect(Program::Check, 0);
    world.expect(Program::Stop, 0);
    // A folder is no env file, whoever named it.
    fs::create_dir(&missing).unwrap();
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    assert_eq!(code, 1, "{said}");
    assert_names(&said, &missing);
    world.unset("VOICE_GUARD_ENV_FILE");
    fs::create_dir(world.project().join(".env")).unwrap();
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    assert_eq!(code, 1, "{said}");
    assert_names(&said, &world.project().join(".env"));
}

#[test]
fn env_file_that_may_not_be_read_is_named() {
    Room::new().enter("env_file_that_may_not_be_read_is_named", || {
        let Some(user) = OtherUser::nobody("an env file of root's before another user") else {
            return;
        };
        let mut world = World::new();
        user.moves_into(&mut world);
        let env_file = world.project().join(".env");
        fs::write(&env_file, "KEY=sesame\n").unwrap();
        fs::set_permissions(&env_file, fs::Permissions::from_mode(0o600)).unwrap();
        let mut start = world.program(Program::Start);
        user.runs(&mut start);
        let output = run(&world, start);
        assert_eq!(verdict(&output), 1, "{}", text(&output));
        assert_names(&text(&output), &env_file);
        world.assert_nothing_left();
    });
}

#[test]
fn env_file_on_a_pipe_does_not_hang() {
    let mut world = World::new();
    let fifo = world.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    world.set("VOICE_GUARD_ENV_FILE", &fifo);
    let (code, said) = outcome(&world, Program::Start, NO_ARGUMENTS);
    assert_eq!(code, 1, "{said}");
    assert_names(&said, &fifo);
    world.assert_nothing_left();
}

#[test]
fn env_file_cannot_forge_the_birth_mark_nor_settings() {
    let world = World::new();
    let elsewhere = world.path("elsewhere.pid");
    let content = format!(
        "VOICE_GUARD_MARK=forged\nVOICE_GUARD_PID_FILE={}\nVOICE_GUARD_AGENT_MODE=start\n",
        elsewhere.display()
    );
    fs::write(world.project().join(".env"), content).unwrap();
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    assert_eq!(argv(&world).last().unwrap(), "dev");
    assert!(!elsewhere.exists());
    let mark = variable(&world, "VOICE_GUARD_MARK").unwrap();
    let (birth, rest) = mark.split_at(32);
    assert!(birth.bytes().all(|byte| byte.is_ascii_hexdigit()), "{mark}");
    assert_eq!(
        rest,
        format!("/{}{}", world.family(), world.pid_file().display())
    );
    let all = process(world.agents()[0]).unwrap().environ;
    let marks = all
        .iter()
        .filter(|entry| entry.as_bytes().starts_with(b"VOICE_GUARD_MARK="));
    assert_eq!(marks.count(), 1);
    stop(&world);
}

#[test]
fn birth_mark_of_the_caller_is_not_passed_on() {
    let mut world = World::new();
    // Started from inside an agent of another family.
    let foreign = "0123456789abcdef0123456789abcdef/other/tmp/other.pid";
    world.set("VOICE_GUARD_MARK", foreign);
    world.expect(Program::Start, 0);
    let mark = variable(&world, "VOICE_GUARD_MARK").unwrap();
    assert!(mark.contains(&format!("/{}/", world.family())), "{mark}");
    let first = mark;
    world.expect(Program::Restart, 0);
    let second = variable(&world, "VOICE_GUARD_MARK").unwrap();
    assert_ne!(first, second, "each birth has a mark of its own");
    stop(&world);
}

// ---- Words.

#[test]
fn help_shows_the_same_settings_for_all_programs() {
    let world = World::new();
    let settings = |program: Program| {
        let mut command = world.program(program);
        command.arg("--help").arg0(program.name());
        let output = run(&world, command);
        assert_eq!(output.status.code(), Some(0));
        let said = text(&output);
        let mut flags: Vec<_> = said
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
            .map(|word| word.trim_matches([',', ']', '.', ':']).to_owned())
            .filter(|word| {
                let own = [
                    "--dry-run",
                    "--nagios",
                    "--metrics",
                    "--foreground",
                    "--check-config",
                    "--status",
                    "--all",
                ];
                !own.contains(&word.as_str())
            })
            .collect();
        flags.sort();
        flags.dedup();
        flags
    };
    let first = settings(Program::Check);
    assert!(first.len() >= 15, "{first:?}");
    for program in Program::ALL {
        assert_eq!(settings(program), first, "{}", program.name());
    }
}

#[test]
fn every_json_report_has_the_documented_fields() {
    let world = World::new();
    for (program, outcome, code) in [
        (Program::Check, "safe", 0),
        (Program::Stop, "nothing_to_stop", 0),
        (Program::Start, "started", 0),
        (Program::Check, "running", 1),
        (Program::Start, "refused", 1),
        (Program::System, "kept", 0),
        (Program::Restart, "restarted", 0),
        (Program::Stop, "stopped", 0),
        (Program::System, "started", 0),
        (Program::Stop, "stopped", 0),
    ] {
        let (exit, seen) = report(&world, program);
        assert_eq!(exit, code, "{seen}");
        assert_eq!(seen["program"], program.name(), "{seen}");
        assert_eq!(seen["version"], env!("CARGO_PKG_VERSION"), "{seen}");
        assert_eq!(seen["outcome"], outcome, "{seen}");
        assert_eq!(seen["exit_code"], code, "{seen}");
        assert!(
            seen["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{seen}"
        );
        for list in [
            "agents",
            "orphan_workers",
            "leftovers",
            "stale_files",
            "stopped",
            "files_removed",
            "notes",
        ] {
            assert!(seen[list].is_array(), "{list}: {seen}");
        }
        assert!(seen["duplicates_removed"].is_u64(), "{seen}");
        let object = seen.as_object().unwrap();
        assert!(object.contains_key("registration_confirmed"), "{seen}");
        assert!(object.contains_key("help"), "{seen}");
        let running = world.agents();
        if program != Program::Stop {
            let named = pids(&seen, "agents");
            assert_eq!(named.len(), running.len(), "{seen}");
        }
    }
}
