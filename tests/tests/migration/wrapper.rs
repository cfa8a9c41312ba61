//! The two-line wrapper, in the hands of everybody who calls scripts.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use scenarios::{Program, World, binary, eventually_some, is_alive, left_out, text, until};

use super::{NOTHING, expect, expect_of, old_folder_named};

/// A folder, not easy to name, in which all are wrappers.
fn world() -> World {
    let world = old_folder_named("my agent's \"new\" $folder");
    expect(&world, "switch", &["--all", "--wrapper"], 0);
    world
}

/// The same, with an agent script that is not there: the program says where it
/// has looked for it.
fn world_without_agent() -> World {
    let mut world = old_folder_named("my agent's \"new\" $folder\nof two lines");
    expect(&world, "switch", &["--all", "--wrapper"], 0);
    let missing = format!("missing/{}.py", world.family());
    world.set("VOICE_GUARD_AGENT_SCRIPT", missing);
    world
}

/// The program takes this folder for the project folder.
#[track_caller]
fn looks_in(world: &World, command: Command, folder: &Path) {
    let said = expect_of(world, command, 1);
    assert!(said.contains(&in_missing(folder)), "{said}");
}

/// What the program says of an agent script that it has not found.
fn in_missing(folder: &Path) -> String {
    let folder = folder.to_str().unwrap().replace('\n', "\\n");
    format!("cannot find the agent script {folder}/missing/")
}

#[track_caller]
fn knows_its_folder(world: &World, command: Command) {
    looks_in(world, command, world.project());
}

/// The shells that are here: the executable and its first arguments.
fn shells() -> Vec<(PathBuf, Vec<&'static str>)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for shell in [
        "sh",
        "bash",
        "dash",
        "bash --posix",
        "busybox sh",
        "mksh",
        "ksh",
        "yash",
        "zsh",
    ] {
        let mut words = shell.split(' ');
        let name = words.next().unwrap();
        let here = std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|executable| executable.is_file());
        match here {
            Some(executable) => found.push((executable, words.collect())),
            None => missing.push(shell),
        }
    }
    if !missing.is_empty() {
        left_out(
            "the wrapper in some shells",
            &format!("{missing:?} are not here"),
        );
    }
    found
}

#[test]
fn it_is_two_lines_of_plain_shell() {
    let world = world();
    for program in Program::ALL {
        let text = fs::read_to_string(world.link(program)).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with("#!/bin/sh\n"), "{text}");
        assert!(text.contains(binary(program).to_str().unwrap()), "{text}");
    }
    let mut shellcheck = world.command("shellcheck");
    // BASH_SOURCE is unset where there is none, and that is what is asked for.
    shellcheck
        .args(["--shell=sh", "--exclude=SC3028,SC2155"])
        .arg(world.link(Program::Start));
    match shellcheck.output() {
        Ok(output) => assert!(output.status.success(), "{}", text(&output)),
        Err(_) => left_out("shellcheck on the wrapper", "it is not installed"),
    }
}

#[test]
fn it_knows_its_folder_in_every_shell_and_from_everywhere() {
    let world = world_without_agent();
    let script = Program::Start.script();
    let absolute = world.link(Program::Start);
    let beside = PathBuf::from("project/..").join(world.project().file_name().unwrap());
    fs::create_dir(world.path("project")).unwrap();
    // Directly: from the folder, from elsewhere, found in PATH.
    knows_its_folder(&world, world.command(format!("./{script}")));
    let mut from_root = world.command(&absolute);
    from_root.current_dir("/");
    knows_its_folder(&world, from_root);
    let mut path = world.project().as_os_str().to_owned();
    path.push(":/usr/bin:/bin");
    let mut in_path = world.command("sh");
    in_path
        .args(["-c", script])
        .env("PATH", path)
        .current_dir("/");
    knows_its_folder(&world, in_path);

    for (shell, arguments) in shells() {
        let by_shell = |folder: PathBuf, script: PathBuf| {
            let mut command = world.command(&shell);
            command.args(&arguments).arg(script).current_dir(folder);
            command
        };
        let project = world.project().to_owned();
        knows_its_folder(&world, by_shell(project, PathBuf::from(script)));
        knows_its_folder(&world, by_shell("/".into(), absolute.clone()));
        knows_its_folder(&world, by_shell(world.path(""), beside.join(script)));
    }
}

#[test]
fn it_knows_its_folder_behind_a_link_from_another_folder() {
    let world = world_without_agent();
    let bin = world.path("bin");
    fs::create_dir(&bin).unwrap();
    symlink(world.link(Program::Start), bin.join("voice")).unwrap();
    let mut command = world.command(bin.join("voice"));
    command.current_dir("/");
    knows_its_folder(&world, command);
    // And in a folder that is itself reached by a link.
    symlink(world.project(), world.path("shortcut")).unwrap();
    let mut command = world.command("sh");
    command
        .arg(world.path("shortcut").join(Program::Start.script()))
        .current_dir("/");
    knows_its_folder(&world, command);
}

#[test]
fn a_project_folder_of_the_callers_wins() {
    let world = world();
    let other = world.path("other");
    fs::create_dir(&other).unwrap();
    fs::copy(
        world.script(),
        other.join(world.script().file_name().unwrap()),
    )
    .unwrap();
    let mut command = world.program(Program::Start);
    command.env("VOICE_GUARD_PROJECT_DIR", &other);
    expect_of(&world, command, 0);
    let agent = world.assert_one_agent();
    assert_eq!(fs::read_link(format!("/proc/{agent}/cwd")).unwrap(), other);
    world.expect(Program::Stop, 0);
}

/// cron: another folder, hardly any environment, `/bin/sh -c`, nobody to talk to.
#[test]
fn it_works_from_cron() {
    let world = world_without_agent();
    let mut cron = Command::new("/bin/sh");
    cron.arg("-c")
        .arg(format!(
            "'{}' 2>&1",
            world
                .link(Program::Start)
                .to_str()
                .unwrap()
                .replace('\'', "'\\''")
        ))
        .env_clear()
        .envs(
            world
                .environment()
                .iter()
                .filter(|(name, _)| name != "TERM" && name != "LANG")
                .map(|(name, value)| (name, value)),
        )
        .env("PATH", "/usr/bin:/bin")
        .env("SHELL", "/bin/sh")
        .current_dir("/");
    knows_its_folder(&world, cron);
}

/// A menu: a shell that goes on, with a terminal's worth of choices on stdin
/// that are not the program's to read.
#[test]
fn it_works_from_a_menu() {
    let world = world();
    let menu = r#"
        while read -r choice; do
            case $choice in
                1) bash "$0" ;;
                2) echo "chosen: $choice" ;;
            esac
        done"#;
    let mut command = world.command("bash");
    command
        .arg("-c")
        .arg(menu)
        .arg(world.link(Program::System))
        .current_dir("/")
        .stdin(
            fs::File::open({
                let choices = world.path("choices");
                fs::write(&choices, "1\n1\n2\n").unwrap();
                choices
            })
            .unwrap(),
        );
    let output = world.run_command(command);
    assert!(text(&output).ends_with("chosen: 2\n"), "{}", text(&output));
    assert_eq!(world.starts(), [world.assert_one_agent()]);
    world.expect(Program::Stop, 0);
}

/// As with an original, which ends by `exit`, so does the shell that sources it.
/// What that shell was called with is not for the program.
#[test]
fn sourced_it_knows_its_folder_and_ends_the_shell_with_the_exit_code() {
    let world = world();
    for (program, code) in [(Program::Start, 0), (Program::Check, 1), (Program::Stop, 0)] {
        let mut command = world.command("bash");
        command
            .args(["-uc", ". \"$1\"; exit 99", "menu"])
            .arg(world.link(program))
            .arg("--no-such-option")
            .current_dir("/");
        expect_of(&world, command, code);
        if program == Program::Start {
            let agent = world.assert_one_agent();
            assert_eq!(
                fs::read_link(format!("/proc/{agent}/cwd")).unwrap(),
                world.project()
            );
        }
    }
}

/// Most shells do not tell a file that is sourced where it is: rather no answer
/// than another project's.
#[test]
fn sourced_by_any_shell_it_acts_on_its_own_folder_or_on_none() {
    let world = world_without_agent();
    for (shell, arguments) in shells() {
        let mut command = world.command(&shell);
        command
            .args(&arguments)
            .args(["-c", ". \"$SCRIPT\"; exit 99", "menu"])
            .env("SCRIPT", world.link(Program::Start))
            .current_dir("/");
        if shell.ends_with("bash") {
            knows_its_folder(&world, command);
            continue;
        }
        let said = expect_of(&world, command, 1);
        assert!(
            said.contains("cannot tell the project folder")
                || said.contains(&in_missing(world.project())),
            "{shell:?}\n{said}"
        );
    }
    let mut told = world.command("sh");
    told.args(["-c", ". \"$SCRIPT\"", "menu"])
        .env("SCRIPT", world.link(Program::Start))
        .env("VOICE_GUARD_PROJECT_DIR", world.project())
        .current_dir("/");
    knows_its_folder(&world, told);
}

/// By its path, whatever the agent has inherited.
#[test]
fn a_tool_of_the_agents_that_calls_another_projects_script_acts_on_that_project() {
    let world = world();
    let other = world.path("other");
    fs::create_dir(&other).unwrap();
    fs::copy(
        world.link(Program::Start),
        other.join(Program::Start.script()),
    )
    .unwrap();
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    let inherited = fs::read(format!("/proc/{agent}/environ")).unwrap();
    let variables = inherited.split(|byte| *byte == 0).filter_map(|entry| {
        let at = entry.iter().position(|byte| *byte == b'=')?;
        Some((
            OsStr::from_bytes(&entry[..at]).to_owned(),
            OsStr::from_bytes(&entry[at + 1..]).to_owned(),
        ))
    });
    let family = format!("{}x", world.family());
    for by in [&["/bin/sh"][..], &[]] {
        let script = other.join(Program::Start.script());
        let mut tool = match by {
            [shell] => {
                let mut tool = world.command(shell);
                tool.arg(&script);
                tool
            }
            _ => world.command(&script),
        };
        tool.env_clear().envs(variables.clone()).env(
            "VOICE_GUARD_AGENT_SCRIPT",
            // Of another family: this agent is no reason to refuse.
            format!("missing/{family}.py"),
        );
        tool.env("VOICE_GUARD_PID_FILE", world.path("other.pid"));
        looks_in(&world, tool, &other);
    }
    let _ = fs::remove_file(format!("/tmp/.{family}.guard"));
    world.expect(Program::Stop, 0);
}

#[test]
fn a_wrapper_of_an_earlier_version_is_ours_and_is_renewed() {
    // As it was until it handed the folder on by a variable of the program's own.
    const HEAD: &str = r#"export VOICE_GUARD_CALLED_AS="${BASH_SOURCE:-$0}" VOICE_GUARD_PROJECT_DIR="${VOICE_GUARD_PROJECT_DIR:-$(f=$(readlink -f -- "${BASH_SOURCE:-$0}") && printf %s. "${f%/*}/")}";"#;
    let world = world();
    let ours = fs::read_to_string(world.link(Program::Start)).unwrap();
    let (_, end) = ours.split_once(" exec ").unwrap();
    fs::write(
        world.link(Program::Start),
        format!("#!/bin/sh\n{HEAD} exec {end}"),
    )
    .unwrap();
    let said = expect(&world, "status", NOTHING, 1);
    assert!(said.contains("of an earlier version"), "{said}");
    assert!(said.contains("switch renews it"), "{said}");
    world.expect(Program::Start, 0);
    world.expect(Program::Stop, 0);
    expect(&world, "switch", &["start_voice_agent_safe"], 0);
    assert_eq!(
        fs::read_to_string(world.link(Program::Start)).unwrap(),
        ours
    );
    expect(&world, "status", NOTHING, 0);
}

#[test]
fn it_keeps_the_exit_code_and_the_arguments() {
    let world = world();
    for shell in [&[][..], &["sh"], &["bash"]] {
        let run = |program: Program, arguments: &[&str]| {
            let mut command = match shell {
                [] => world.program(program),
                [shell, ..] => {
                    let mut command = world.command(shell);
                    command.arg(world.link(program));
                    command
                }
            };
            command.args(arguments);
            world.run_command(command)
        };
        assert_eq!(run(Program::Check, &[]).status.code(), Some(0));
        assert_eq!(
            run(Program::Check, &["--no-such-option"]).status.code(),
            Some(2)
        );
        assert_eq!(
            run(Program::Start, &["--python", "/no such/python"])
                .status
                .code(),
            Some(1)
        );
        let said = run(
            Program::Check,
            &["--json", "--agent-script", "two words;  $x.py"],
        );
        let report: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        assert_eq!(report["outcome"], "safe");
    }
}

#[test]
fn it_keeps_its_streams_apart() {
    let world = world();
    let output = world.run_command({
        let mut command = world.program(Program::Check);
        command.arg("--no-such-option");
        command
    });
    assert!(output.stdout.is_empty(), "{}", text(&output));
    assert!(!output.stderr.is_empty());
    let output = world.run(Program::Check);
    assert!(output.stderr.is_empty(), "{}", text(&output));
    // Closed streams change nothing but the message.
    let mut closed = world.shell("./check_agent_running.sh <&- >&- 2>&-");
    assert!(closed.status().unwrap().success());
}

/// The program is the process that was started: its PID, and its signals.
#[test]
fn it_becomes_the_program_with_the_same_pid_and_dies_by_its_signals() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut world = world();
        world.set("TEST_AGENT_SILENT", "1");
        world.set("VOICE_GUARD_VERIFY_SECONDS", "20");
        let mut starter = world
            .program(Program::Start)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        until("the agent to run", || world.starts().len() == 1);
        let executable = fs::read_link(format!("/proc/{}/exe", starter.id())).unwrap();
        assert_eq!(executable, binary(Program::Start).canonicalize().unwrap());
        assert_eq!(
            fs::read_to_string(world.lock_file()).unwrap(),
            format!("{}\n", starter.id())
        );
        world.signal(starter.id(), signal);
        let status = starter.wait().unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
        let mut said = String::new();
        starter
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(!said.is_empty());
        world.expect(Program::Stop, 0);
        world.assert_nothing_left();
    }
}

/// `./start_voice_system.sh &`, and a job of a shell that is stopped by its PID.
#[test]
fn a_shell_can_wait_for_it_and_kill_it_in_the_background() {
    let mut world = world();
    let mut line = world.shell("./start_voice_system.sh >/dev/null & wait $!");
    assert!(line.status().unwrap().success());
    world.assert_one_agent();
    world.expect(Program::Stop, 0);

    world.set("TEST_AGENT_SILENT", "1");
    world.set("VOICE_GUARD_VERIFY_SECONDS", "20");
    let mut line = world.shell(
        "exec 2>/dev/null; ./start_voice_agent_safe.sh >/dev/null & \
         until [ -s \"$TEST_AGENT_STARTS_LOG\" ]; do :; done; kill $!; wait $!",
    );
    assert_eq!(line.status().unwrap().code(), Some(128 + 15));
    let agent = world.starts()[0];
    assert!(
        eventually_some(std::time::Duration::from_secs(5), || (!is_alive(agent))
            .then_some(()))
        .is_some()
    );
}

#[test]
fn an_agent_restarts_itself_through_the_wrapper() {
    let mut world = world();
    world.set("TEST_AGENT_RESTART_COMMAND", world.link(Program::Restart));
    world.expect(Program::Start, 0);
    let first = world.assert_one_agent();
    world.signal(first, Signal::USR1);
    until("a new agent", || {
        world.starts().len() == 2 && !is_alive(first)
    });
    until("the restart's end", || {
        !world.lock_file().exists() && world.pid_in_file() == world.starts().last().copied()
    });
    let second = world.assert_one_agent();
    assert_eq!(
        fs::read_link(format!("/proc/{second}/cwd")).unwrap(),
        world.project()
    );
    world.expect(Program::Stop, 0);
    world.assert_no_overlap();
}

/// What it says to do next can be typed as it stands.
#[test]
fn advice_names_the_scripts_as_they_were_called() {
    let world = world();
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    let absolute = world.link(Program::Check).to_str().unwrap().to_owned();
    for (line, advice) in [
        ("./check_agent_running.sh", "./stop_voice_agent_safe.sh"),
        ("bash check_agent_running.sh", "./stop_voice_agent_safe.sh"),
        ("sh ./check_agent_running.sh", "./stop_voice_agent_safe.sh"),
        (". ./check_agent_running.sh", "./stop_voice_agent_safe.sh"),
        (
            "exec \"$0\"",
            &absolute.replace("check_agent_running", "stop_voice_agent_safe"),
        ),
    ] {
        let mut command = world.command("bash");
        command.args(["-c", line, &absolute]);
        let said = expect_of(&world, command, 1);
        assert!(
            said.contains(&format!("with: {advice}\n")),
            "{line}\n{said}"
        );
    }
    // The agent goes on for weeks, and by other paths.
    let agent = scenarios::process(agent).unwrap();
    for name in ["VOICE_GUARD_CALLED_AS", "VOICE_GUARD_PROJECT_DIR"] {
        assert_eq!(agent.variable(name), None);
    }
    world.expect(Program::Stop, 0);
}
