//! Who runs a script in a way that a link does not stand.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use scenarios::surroundings::OtherUser;
use scenarios::{Program, World, left_out, text};

use super::{
    NOTHING, expect, expect_of, is_link, is_wrapper, migrate, old_folder, old_folder_named,
};

/// What switching everything says, with a caller in the folder.
fn switched_with(file: &str, content: &str) -> (World, String) {
    let world = old_folder();
    fs::write(world.project().join(file), content).unwrap();
    let said = expect(&world, "switch", &["--all"], 0);
    (world, said)
}

#[track_caller]
fn assert_only_wrapper(world: &World, program: Program, context: &str) {
    for each in Program::ALL {
        assert_eq!(
            is_wrapper(world, each),
            each == program,
            "{}: {context}",
            each.script()
        );
        assert_eq!(
            is_link(world, each),
            each != program,
            "{}: {context}",
            each.script()
        );
    }
}

#[test]
fn a_link_cannot_be_run_by_a_shell_and_a_wrapper_can() {
    let world = old_folder();
    expect(&world, "switch", &["check_agent_running"], 0);
    let mut bash = world.command("bash");
    bash.arg(world.link(Program::Check));
    let said = expect_of(&world, bash, 126);
    assert!(said.contains("cannot execute binary file"), "{said}");

    expect(&world, "switch", &["check_agent_running", "--wrapper"], 0);
    for shell in ["bash", "sh"] {
        let mut command = world.command(shell);
        command.arg(world.link(Program::Check));
        expect_of(&world, command, 0);
    }
}

#[test]
fn callers_that_need_a_wrapper_are_found_and_named_by_line() {
    let lines = [
        "bash ./start_voice_system.sh",
        "    bash start_voice_system.sh &",
        "bash \"$PROJECT_DIR/start_voice_system.sh\" || exit 1",
        "nohup /bin/bash -x ${DIR}/start_voice_system.sh > log 2>&1 &",
        "sh -eu \"my agents/start_voice_system.sh\"",
        "cd x && /usr/bin/env bash -o pipefail start_voice_system.sh",
        "exec bash \"$(dirname \"$0\")/start_voice_system.sh\"",
        "bash $(cd \"$(dirname $0)\" && pwd)/start_voice_system.sh",
        "if ! bash './start_voice_system.sh'; then exit; fi",
        "\"$SHELL\" start_voice_system.sh",
        ". ./start_voice_system.sh",
        "source \"$DIR/start_voice_system.sh\"",
        "true; . start_voice_system.sh",
        "subprocess.run([\"bash\", \"/nowhere/start_voice_system.sh\"])",
        "subprocess.Popen(['/bin/bash', os.path.join(here, 'start_voice_system.sh')])",
        "os.system(f\"bash {folder}/start_voice_system.sh\")",
        "  {\"name\": \"Start\", \"command\": \"bash /nowhere/start_voice_system.sh\"},",
        "  {\"command\": \"bash \\\"/no where/start_voice_system.sh\\\"\"},",
        "  {\"command\": \"bash\", \"args\": [\"./start_voice_system.sh\"]},",
        "ExecStart=/bin/bash /nowhere/start_voice_system.sh",
        "@reboot bash ~/agent/start_voice_system.sh",
        "\tbash $(DIR)/start_voice_system.sh",
        "Then run `bash start_voice_system.sh`.",
    ];
    // Far from each other: none counts for its neighbour.
    let apart = format!("\n{}", "-\n".repeat(4));
    let (world, said) = switched_with("caller.txt", &lines.join(&apart));
    assert_only_wrapper(&world, Program::System, "any of them");
    for (index, line) in lines.iter().enumerate() {
        let place = format!("caller.txt:{} ", index * 5 + 1);
        let (_, after) = said
            .split_once(&place)
            .unwrap_or_else(|| panic!("{line} is not named:\n{said}"));
        let shown = after.lines().nth(1).unwrap();
        assert_eq!(shown.trim(), line.trim());
    }
    assert_eq!(said.matches("caller.txt:").count(), lines.len(), "{said}");
}

#[test]
fn callers_over_several_lines_and_by_a_variable_are_found() {
    let world = old_folder();
    for (text, number) in [
        (
            "subprocess.run([\n    \"bash\",\n    \"./start_voice_system.sh\",\n])\n",
            3,
        ),
        ("bash \\\n    ./start_voice_system.sh\n", 2),
        (
            "\"command\": \"bash\",\n\"args\": [\n  \"start_voice_system.sh\"\n]\n",
            3,
        ),
        (
            "SCRIPT=\"$HOME/start_voice_system.sh\"\n[ -f \"$SCRIPT\" ] &&\nbash \"$SCRIPT\"\n",
            3,
        ),
        (
            "START = HERE / \"start_voice_system.sh\"\nrun([\"bash\", str(START)])\n",
            2,
        ),
        (
            "script = 'start_voice_system.sh'\nos.system(f'bash {script} &')\n",
            2,
        ),
        ("S=start_voice_system.sh\nall:\n\tbash $(S)\n", 3),
        ("S=./start_voice_system.sh\n. $S\n", 2),
        (
            "for s in start_voice_system.sh other.sh; do\n    bash \"./$s\"\ndone\n",
            2,
        ),
    ] {
        fs::write(world.project().join("caller"), text).unwrap();
        let said = expect(&world, "switch", &["start_voice_system", "--dry-run"], 0);
        assert!(said.contains("would be a wrapper"), "{text}\n{said}");
        assert!(
            said.contains(&format!("caller:{number} ")),
            "{text}\n{said}"
        );
    }
}

#[test]
fn callers_that_a_link_suits_get_a_link() {
    let lines = [
        "./start_voice_system.sh",
        "./start_voice_system.sh &",
        "\"$PROJECT_DIR/start_voice_system.sh\" > /tmp/voice_agent_start.log 2>&1",
        "bash -c './start_voice_system.sh'",
        "bash -lc \"cd agent && ./start_voice_system.sh\"",
        "subprocess.run([\"bash\", \"-c\", \"./start_voice_system.sh\"])",
        "ExecStart=/srv/agent/start_voice_system.sh",
        "# bash start_voice_system.sh",
        "bash start_voice_system.sh.bak",
        "bash my_start_voice_system.sh",
        "bash other.sh; ./start_voice_system.sh",
        "chmod +x start_voice_system.sh",
        "the bash script start_voice_system.sh",
        "bash / start_voice_system.sh is not there",
        "bash /usr/start_voice_system.sh",
    ];
    let (world, said) = switched_with("caller.txt", &lines.join("\n"));
    for program in Program::ALL {
        assert!(is_link(&world, program), "{}:\n{said}", program.script());
    }
    assert!(!said.contains("caller.txt:"), "{said}");
}

#[test]
fn only_the_name_that_is_called_gets_a_wrapper() {
    for program in [Program::Start, Program::Restart] {
        let (world, _) = switched_with("caller", &format!("bash ./{}\n", program.script()));
        assert_only_wrapper(&world, program, program.name());
    }
}

#[test]
fn an_original_that_calls_another_by_a_shell_counts() {
    let world = old_folder();
    fs::write(
        world.link(Program::System),
        "#!/bin/bash\nbash \"$(dirname \"$0\")/start_voice_agent_safe.sh\"\n",
    )
    .unwrap();
    expect(&world, "switch", &["start_voice_agent_safe"], 0);
    assert!(is_wrapper(&world, Program::Start));
    // Also when it has been switched itself, since it may go back.
    expect(&world, "back", &["--all"], 0);
    expect(&world, "switch", &["start_voice_system"], 0);
    expect(&world, "switch", &["start_voice_agent_safe"], 0);
    assert!(is_wrapper(&world, Program::Start));
    expect(&world, "back", &["start_voice_system"], 0);
    world.expect(Program::System, 0);
    world.assert_one_agent();
    world.expect(Program::Stop, 0);
}

#[test]
fn callers_are_looked_for_where_they_are_named() {
    let world = old_folder();
    let menu = world.path("menu");
    fs::create_dir_all(menu.join("deep/.git")).unwrap();
    fs::create_dir_all(menu.join("venv/lib")).unwrap();
    fs::write(
        menu.join("deep/items.json"),
        "\"bash start_voice_system.sh\"\n",
    )
    .unwrap();
    // Other people's files, and logs, call nobody.
    for file in ["deep/.git/x", "venv/lib/x", "today.log"] {
        fs::write(menu.join(file), "bash check_agent_running.sh\n").unwrap();
    }
    let file = world.path("crontab");
    fs::write(&file, "@reboot bash ~/restart_voice_system.sh\n").unwrap();

    expect(&world, "switch", &["--all"], 0);
    assert!(Program::ALL.iter().all(|program| is_link(&world, *program)));
    let said = expect(
        &world,
        "switch",
        &[
            "--all",
            "--callers",
            menu.to_str().unwrap(),
            &format!("--callers={}", file.display()),
        ],
        0,
    );
    assert!(is_wrapper(&world, Program::System), "{said}");
    assert!(is_wrapper(&world, Program::Restart), "{said}");
    assert!(is_link(&world, Program::Check), "{said}");
    assert!(said.contains("items.json:1"), "{said}");
    let missing = world.path("nowhere");
    let said = expect(
        &world,
        "switch",
        &["--all", "--callers", missing.to_str().unwrap()],
        1,
    );
    assert!(said.contains("nowhere"), "{said}");
}

#[test]
fn a_folder_is_looked_into_whatever_its_name() {
    for name in ["target", "-venv", "node_modules"] {
        let world = old_folder_named(name);
        fs::write(
            world.project().join("menu"),
            "bash ./restart_voice_system.sh\n",
        )
        .unwrap();
        expect(&world, "switch", &["--all"], 0);
        assert_only_wrapper(&world, Program::Restart, name);
    }
}

#[test]
fn what_may_not_be_looked_into_is_said() {
    let what = "callers in closed folders";
    let Some(user) = OtherUser::nobody(what) else {
        return;
    };
    let mut world = old_folder();
    let menu = world.path("menu");
    fs::create_dir(&menu).unwrap();
    user.moves_into(&mut world);
    for closed in [menu.join("folder"), menu.join("file")] {
        if closed.ends_with("folder") {
            fs::create_dir(&closed).unwrap();
        } else {
            fs::write(&closed, "bash ./restart_voice_system.sh\n").unwrap();
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let mut command = migrate(
        &world,
        "switch",
        &["--all", "--callers", menu.to_str().unwrap()],
    );
    user.runs(&mut command);
    let output = world.run_command(command);
    let said = text(&output);
    if said.contains("Permission denied") {
        return left_out(what, "another user may not read this clone");
    }
    assert_eq!(output.status.code(), Some(0), "{said}");
    for closed in ["menu/folder", "menu/file"] {
        assert!(said.contains(&format!("{closed}: callers in it")), "{said}");
    }
}

#[test]
fn a_crontab_may_come_from_standard_input() {
    let world = old_folder();
    let file = world.path("crontab");
    fs::write(&file, "# m h\n@reboot bash ~/restart_voice_system.sh\n").unwrap();
    let mut command = migrate(&world, "switch", &["--all", "--callers", "-"]);
    command.stdin(fs::File::open(&file).unwrap());
    let said = expect_of(&world, command, 0);
    assert!(said.contains("standard\\ input:2"), "{said}");
    assert_only_wrapper(&world, Program::Restart, &said);
}

#[test]
fn a_link_from_another_folder_counts_as_a_caller() {
    let world = old_folder();
    let bin = world.path("bin");
    fs::create_dir(&bin).unwrap();
    symlink(world.link(Program::Check), bin.join("agent-running.sh")).unwrap();
    let said = expect(
        &world,
        "switch",
        &["--all", "--callers", bin.to_str().unwrap()],
        0,
    );
    assert_only_wrapper(&world, Program::Check, &said);
    let mut command = world.command(bin.join("agent-running.sh"));
    command.current_dir("/").stdout(Stdio::null());
    assert!(command.status().unwrap().success());
}

#[test]
fn status_names_callers_and_what_they_would_break() {
    let world = old_folder();
    expect(&world, "switch", &["start_voice_system"], 0);
    fs::write(
        world.project().join("menu.py"),
        "run([\"bash\", \"start_voice_system.sh\"])\n",
    )
    .unwrap();
    let said = text(&world.run_command(migrate(&world, "status", NOTHING)));
    assert!(said.contains("NOT FOR THE CALLERS BELOW"), "{said}");
    assert!(said.contains("menu.py:1"), "{said}");
    // Switching again makes it right.
    expect(&world, "switch", &["start_voice_system"], 0);
    assert!(is_wrapper(&world, Program::System));
    expect(&world, "status", NOTHING, 0);
}

/// A minified or generated file would take minutes.
#[test]
fn a_line_that_is_too_long_to_be_searched_is_said_and_the_others_are_searched() {
    let world = old_folder();
    let long = "bash -x \"$(foo)\" ".repeat(25_000);
    fs::write(
        world.project().join("menu"),
        format!("x='{long}start_voice_system.sh'\n{long}\nbash ./restart_voice_system.sh\n"),
    )
    .unwrap();
    let began = std::time::Instant::now();
    let said = expect(&world, "switch", &["--all"], 0);
    assert!(
        began.elapsed() < std::time::Duration::from_secs(30),
        "{said}"
    );
    let note = "menu:1 names start_voice_system.sh and is too long to be searched";
    assert_eq!(said.matches("too long").count(), 1, "{said}");
    assert!(said.contains(note), "{said}");
    assert!(is_link(&world, Program::System));
    assert!(is_wrapper(&world, Program::Restart));
}
