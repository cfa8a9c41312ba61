//! Every command that users of the old scripts were told to type, through the
//! `.sh` links, word for word but for the paths; and what its document says of it.
//!
//! `/tmp/letta_voice_agent.pid`, `.lock` and the script's name are the world's
//! own here; scenarios under the real names belong in namespaces of their own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output, Stdio};

use scenarios::surroundings::Terminal;
use scenarios::{Program, World, available, is_alive, python, text, until};

const REFUSAL: &str = "ERROR: Already running or locked";

/// A world whose programs find everything by the link they are called by, as
/// users call them: the project folder is not told.
fn world() -> World {
    let mut world = World::new();
    world.unset("VOICE_GUARD_PROJECT_DIR");
    world
}

/// Types a line in the project folder; the document's names stand for the world's.
fn type_line(world: &World, line: &str) -> Output {
    world.run_command(typed(world, line))
}

fn typed(world: &World, line: &str) -> Command {
    let line = line
        .replace(
            "/tmp/letta_voice_agent.pid",
            world.pid_file().to_str().unwrap(),
        )
        .replace(
            "/tmp/letta_voice_agent.lock",
            world.lock_file().to_str().unwrap(),
        )
        .replace("/tmp/voice_agent.log", world.log_file().to_str().unwrap())
        .replace("letta_voice_agent", world.family())
        .replace("python ", &format!("'{}' ", python().display()))
        .replace("$PROJECT_DIR", world.project().to_str().unwrap());
    let mut command = world.command("/bin/bash");
    command.arg("-c").arg(line);
    command
}

/// Starts are in progress until this file is there, however slow this machine is.
fn hold_back(world: &mut World) -> std::path::PathBuf {
    let ready = world.path("ready");
    world.set("TEST_AGENT_READY_FILE", &ready);
    world.set("VOICE_GUARD_VERIFY_SECONDS", "60");
    ready
}

#[track_caller]
fn expect(world: &World, line: &str, code: i32) -> String {
    let output = type_line(world, line);
    let said = text(&output);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{line}\n{said}\n{}",
        world.describe()
    );
    said
}

// ---- "Testing": two terminals.

#[test]
fn the_second_terminal_is_refused_while_the_first_is_starting() {
    let mut world = world();
    let ready = hold_back(&mut world);
    let mut first_terminal = typed(&world, "./start_voice_agent_safe.sh")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the first terminal's start", || world.lock_file().exists());

    let said = expect(&world, "./start_voice_agent_safe.sh", 1);
    assert!(said.contains(REFUSAL), "{said}");
    assert!(
        first_terminal.try_wait().unwrap().is_none(),
        "the first was still starting"
    );

    std::fs::write(ready, "").unwrap();
    assert!(first_terminal.wait().unwrap().success());
    let agent = world.assert_one_agent();
    assert_eq!(world.starts(), [agent]);
    // And once it runs.
    let said = expect(&world, "./start_voice_agent_safe.sh", 1);
    assert!(said.contains(REFUSAL), "{said}");
    assert_eq!(world.assert_one_agent(), agent);
    world.leave_agents();
}

// ---- The scripts, in the order of the document.

#[test]
fn the_pid_file_snippet_finds_the_agent() {
    if !available(&["ps"], "the PID file snippet") {
        return;
    }
    let world = world();
    let snippet = r#"
        if [ -f "/tmp/letta_voice_agent.pid" ]; then
            PID=$(cat /tmp/letta_voice_agent.pid)
            if ps -p $PID > /dev/null; then
                echo "Agent already running!"
                exit 1
            fi
        fi"#;
    expect(&world, snippet, 0);
    expect(&world, "./start_voice_agent_safe.sh", 0);
    let agent = world.assert_one_agent();
    let said = expect(&world, snippet, 1);
    assert_eq!(said, "Agent already running!\n");
    assert_eq!(world.assert_one_agent(), agent);
    expect(&world, "./stop_voice_agent_safe.sh", 0);
    world.assert_nothing_left();
    expect(&world, snippet, 0);
    world.assert_nothing_left();
}

#[test]
fn the_lock_file_snippet_keeps_others_away_until_its_shell_ends() {
    let world = world();
    let mut starter = typed(
        &world,
        r#"
        echo $$ > /tmp/letta_voice_agent.lock
        trap "rm -f /tmp/letta_voice_agent.lock" EXIT
        read -r"#,
    )
    .stdin(Stdio::piped())
    .spawn()
    .unwrap();
    until("the snippet's lock", || {
        std::fs::read_to_string(world.lock_file())
            .is_ok_and(|text| text == format!("{}\n", starter.id()))
    });
    expect(&world, "./check_agent_running.sh", 1);
    let said = expect(&world, "./start_voice_agent_safe.sh", 1);
    assert!(said.contains(REFUSAL), "{said}");
    assert!(world.lock_file().exists());

    drop(starter.stdin.take());
    starter.wait().unwrap();
    expect(&world, "./check_agent_running.sh", 0);
    expect(&world, "./start_voice_agent_safe.sh", 0);
    world.assert_one_agent();
    world.leave_agents();
}

#[test]
fn a_check_before_ones_own_commands_lets_them_run_or_not() {
    let world = world();
    let line = "./check_agent_running.sh >/dev/null || exit 1; echo went on";
    assert_eq!(expect(&world, line, 0), "went on\n");
    world.assert_nothing_left();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    let agent = world.assert_one_agent();
    assert_eq!(expect(&world, line, 1), "");
    assert_eq!(world.assert_one_agent(), agent);
    world.leave_agents();
}

#[test]
fn the_stop_removes_the_agent_and_both_files() {
    let mut world = world();
    world.with_children();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    let agent = world.assert_one_agent();
    let children = world.agent_children();
    assert_eq!(children.len(), 8, "{}", world.describe());
    expect(&world, "./stop_voice_agent_safe.sh", 0);
    assert!(!is_alive(agent));
    for (kind, pid) in children {
        assert!(!is_alive(pid), "{kind} child {pid}\n{}", world.describe());
    }
    world.assert_nothing_left();
    expect(&world, "./stop_voice_agent_safe.sh", 0);
}

#[test]
fn the_system_start_may_be_run_any_number_of_times() {
    let world = world();
    expect(&world, "./start_voice_system.sh", 0);
    let agent = world.assert_one_agent();
    for _ in 0..3 {
        expect(&world, "./start_voice_system.sh", 0);
        assert_eq!(world.assert_one_agent(), agent);
    }
    assert_eq!(world.starts(), [agent]);
    world.leave_agents();
}

#[test]
fn a_system_start_in_the_background_starts_one_agent() {
    let world = world();
    expect(&world, "./start_voice_system.sh & wait $!", 0);
    let agent = world.assert_one_agent();
    expect(
        &world,
        "./start_voice_system.sh & ./start_voice_system.sh & wait",
        0,
    );
    assert_eq!(world.assert_one_agent(), agent);
    world.leave_agents();
}

#[test]
fn the_system_start_removes_duplicates() {
    let world = world();
    let duplicates = [world.agent_by_hand("dev"), world.agent_by_hand("dev")];
    expect(&world, "./start_voice_system.sh", 0);
    let agent = world.assert_one_agent();
    assert!(
        duplicates
            .iter()
            .all(|one| one.pid() != agent && !is_alive(one.pid()))
    );
    world.leave_agents();
}

#[test]
fn the_restart_reports_how_many_duplicates_it_removed() {
    let world = world();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    let first = world.assert_one_agent();
    let duplicates = [world.agent_by_hand("dev"), world.agent_by_hand("dev")];
    let said = expect(&world, "./restart_voice_system.sh", 0);
    assert!(
        said.lines()
            .any(|line| line.to_lowercase().contains("duplicate") && line.contains('2')),
        "{said}"
    );
    assert_ne!(world.assert_one_agent(), first);
    assert!(duplicates.iter().all(|one| !is_alive(one.pid())));
    world.leave_agents();
}

#[test]
fn a_restart_without_duplicates_reports_none() {
    let world = world();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    let said = expect(&world, "./restart_voice_system.sh --json", 0);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["duplicates_removed"], 0, "{said}");
    world.assert_one_agent();
    world.leave_agents();
}

#[test]
fn the_restart_starts_an_agent_where_none_runs() {
    let world = world();
    expect(&world, "./restart_voice_system.sh", 0);
    world.assert_one_agent();
    world.leave_agents();
}

// ---- "Troubleshooting".

#[test]
fn removing_both_files_after_a_crash_lets_the_next_start_work() {
    let world = world();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    world.kill(world.assert_one_agent());
    expect(
        &world,
        "rm -f /tmp/letta_voice_agent.pid /tmp/letta_voice_agent.lock",
        0,
    );
    expect(&world, "./start_voice_agent_safe.sh", 0);
    world.assert_one_agent();
    world.leave_agents();
}

#[test]
fn removing_both_files_makes_no_duplicate_possible() {
    let world = world();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    let agent = world.assert_one_agent();
    for start in ["./start_voice_agent_safe.sh", "./check_agent_running.sh"] {
        expect(
            &world,
            "rm -f /tmp/letta_voice_agent.pid /tmp/letta_voice_agent.lock",
            0,
        );
        expect(&world, start, 1);
        assert_eq!(world.agents(), [agent]);
    }
    expect(&world, "./start_voice_system.sh", 0);
    assert_eq!(world.assert_one_agent(), agent);
    expect(
        &world,
        "rm -f /tmp/letta_voice_agent.pid /tmp/letta_voice_agent.lock",
        0,
    );
    expect(&world, "./stop_voice_agent_safe.sh", 0);
    world.assert_nothing_left();
    world.assert_no_overlap();
}

#[test]
fn removing_the_lock_during_a_start_makes_no_duplicate_possible() {
    let mut world = world();
    let ready = hold_back(&mut world);
    let mut first = typed(&world, "./start_voice_agent_safe.sh")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the first start", || world.lock_file().exists());
    expect(&world, "rm -f /tmp/letta_voice_agent.lock", 0);
    let said = expect(&world, "./start_voice_agent_safe.sh", 1);
    assert!(said.contains(REFUSAL), "{said}");
    std::fs::write(ready, "").unwrap();
    assert!(first.wait().unwrap().success());
    let agent = world.assert_one_agent();
    assert_eq!(world.starts(), [agent]);
    world.leave_agents();
}

#[test]
fn a_stale_pid_file_and_a_stale_lock_do_not_hinder_a_start() {
    let world = world();
    expect(
        &world,
        "sh -c 'exit 0' & wait; echo $! > /tmp/letta_voice_agent.pid; echo $! > /tmp/letta_voice_agent.lock",
        0,
    );
    expect(&world, "./check_agent_running.sh", 0);
    expect(&world, "./start_voice_agent_safe.sh", 0);
    world.assert_one_agent();
    world.leave_agents();
}

// ---- "Migration": an agent without any protection, and what becomes of it.

#[test]
fn an_unprotected_agent_is_not_doubled_and_is_stopped() {
    let world = world();
    expect(
        &world,
        "cd \"$PROJECT_DIR\"; python letta_voice_agent.py dev >/tmp/voice_agent.log 2>&1 &",
        0,
    );
    until("the unprotected agent", || world.starts().len() == 1);
    let agent = world.agents();
    let said = expect(&world, "./start_voice_agent_safe.sh", 1);
    assert!(said.contains(REFUSAL), "{said}");
    expect(&world, "./start_voice_system.sh", 0);
    assert_eq!(agent, [world.assert_one_agent()]);
    expect(&world, "./stop_voice_agent_safe.sh", 0);
    world.assert_nothing_left();
}

/// As it stands there, in a terminal that is busy with it until it ends.
#[test]
fn an_unprotected_agent_in_the_foreground_is_seen_and_stopped() {
    let world = world();
    let line = format!("'{}' {}.py dev; exit 7", python().display(), world.family());
    let terminal = Terminal::new(&world, &["/bin/bash", "-c", &line]);
    until("the unprotected agent", || world.starts().len() == 1);
    let agent = world.agents();
    assert_eq!(agent.len(), 1, "{}", world.describe());
    expect(&world, "./check_agent_running.sh", 1);
    let said = expect(&world, "./start_voice_agent_safe.sh", 1);
    assert!(said.contains(REFUSAL), "{said}");
    assert_eq!(world.agents(), agent);
    expect(&world, "./stop_voice_agent_safe.sh", 0);
    // The terminal's shell is nobody of the agent's, and goes on.
    let (code, said) = terminal.end();
    assert_eq!(code, Some(7), "{said}");
    world.assert_nothing_left();
}

// ---- Callers that exist.

#[test]
fn the_safe_starter_is_called_by_its_full_path_from_anywhere() {
    let mut command = {
        let world = world();
        let log = world.path("voice_agent_start.log");
        let line = format!(
            "cd / && \"$PROJECT_DIR/start_voice_agent_safe.sh\" > '{}' 2>&1",
            log.display()
        );
        expect(&world, &line, 0);
        world.assert_one_agent();
        assert!(!std::fs::read_to_string(log).unwrap().is_empty());
        let command = world.command(world.link(Program::Check));
        world.leave_agents();
        command
    };
    // With its world gone the link is gone too: nothing of it was left elsewhere.
    assert!(command.spawn().is_err());
}

#[test]
fn the_check_is_called_by_systemd_with_no_folder_of_its_own() {
    let world = world();
    let mut command = world.command(world.link(Program::Check));
    let output = world.run_command({
        command.current_dir("/");
        command
    });
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

/// The old agent may take a moment to die; then the start that follows is
/// refused, or waits for it. What it may not do is double or lose the agent it reports.
#[test]
fn killing_by_the_pid_file_and_starting_ends_with_what_the_start_says() {
    let world = world();
    for _ in 0..5 {
        expect(&world, "./start_voice_system.sh", 0);
        let first = world.assert_one_agent();
        let output = type_line(
            &world,
            "kill $(cat /tmp/letta_voice_agent.pid) && ./start_voice_agent_safe.sh",
        );
        until("the killed agent's end", || !is_alive(first));
        match output.status.code() {
            Some(0) => assert_ne!(world.assert_one_agent(), first),
            Some(1) => assert!(world.agents().is_empty(), "{}", world.describe()),
            _ => panic!("{}", text(&output)),
        }
        world.assert_no_overlap();
    }
    world.leave_agents();
}

/// The line as it is meant: once the agent is dead, the next start works at once.
#[test]
fn killing_by_the_pid_file_waiting_and_starting_ends_with_one_agent() {
    let world = world();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    for signal in ["", "-9", "-HUP"] {
        let first = world.assert_one_agent();
        expect(
            &world,
            &format!("kill {signal} $(cat /tmp/letta_voice_agent.pid)"),
            0,
        );
        until("the killed agent's end", || !is_alive(first));
        expect(&world, "./start_voice_agent_safe.sh", 0);
        assert_ne!(world.assert_one_agent(), first);
    }
    world.assert_no_overlap();
    world.leave_agents();
}

/// An agent that is killed leaves its workers behind, and they answer calls: the
/// next start, without anything in between, ends with one agent and none of them.
#[test]
fn killing_by_the_pid_file_leaves_no_worker_beside_the_next_agent() {
    for signal in ["-9", "-HUP"] {
        let mut world = world();
        world.with_children();
        expect(&world, "./start_voice_agent_safe.sh", 0);
        let first = world.assert_one_agent();
        let orphans = world.agent_children();
        expect(
            &world,
            &format!("kill {signal} $(cat /tmp/letta_voice_agent.pid)"),
            0,
        );
        until("the killed agent's end", || !is_alive(first));
        world.unset("TEST_AGENT_CHILDREN");
        expect(&world, "./start_voice_agent_safe.sh", 0);
        world.assert_one_agent();
        // No Python, no worker: what a call opened does not block a start.
        for (kind, pid) in orphans {
            let is_worker = !matches!(kind.as_str(), "system" | "inheriting");
            assert!(
                !(is_worker && is_alive(pid)),
                "{kind} child {pid}\n{}",
                world.describe()
            );
        }
        world.assert_no_overlap();
        expect(&world, "./stop_voice_agent_safe.sh", 0);
        world.assert_nothing_left();
    }
}

/// Recovery scripts kill by the script's name; here no other process can bear it.
#[test]
fn recovery_by_the_scripts_name_lets_the_next_start_work() {
    if !available(&["pkill"], "recovery by pkill") {
        return;
    }
    let world = world();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    let pattern = format!("{}.py", world.family());
    for arguments in [["-f", &pattern].as_slice(), &["-9", "-f", world.family()]] {
        let agent = world.assert_one_agent();
        let mut recovery = world.command("pkill");
        recovery.args(arguments);
        let output = world.run_command(recovery);
        assert!(output.status.success(), "{}", text(&output));
        until("the agent's end", || !is_alive(agent));
        expect(&world, "./start_voice_agent_safe.sh", 0);
        assert_ne!(world.assert_one_agent(), agent);
    }
    world.leave_agents();
}

#[test]
fn ps_shows_one_line_for_a_running_agent_and_none_for_the_programs() {
    if !available(&["ps"], "what ps shows") {
        return;
    }
    let world = world();
    // Not a pipeline: its own grep would be a line too.
    let lines = || {
        let output = world.run_command({
            let mut ps = world.command("ps");
            ps.args(["axww", "-o", "pid,args"]);
            ps
        });
        text(&output)
            .lines()
            .filter(|line| line.contains(world.family()))
            .count()
    };
    assert_eq!(lines(), 0);
    expect(&world, "./start_voice_system.sh", 0);
    assert_eq!(lines(), 1);
    expect(&world, "./stop_voice_agent_safe.sh", 0);
    assert_eq!(lines(), 0);
}

#[test]
fn a_tail_left_on_the_log_follows_the_next_start() {
    let world = world();
    expect(&world, "./start_voice_agent_safe.sh", 0);
    let inode = std::fs::metadata(world.log_file()).unwrap().ino();
    let seen = world.path("tail.out");
    let mut tail = typed(&world, "exec tail -f /tmp/voice_agent.log 2>/dev/null")
        .stdout(std::fs::File::create(&seen).unwrap())
        .spawn()
        .unwrap();
    let ready_lines = || {
        std::fs::read_to_string(&seen)
            .unwrap()
            .matches("registered worker")
            .count()
    };
    until("tail to show the first start", || ready_lines() == 1);
    expect(&world, "./restart_voice_system.sh", 0);
    until("tail to show the second start", || ready_lines() == 2);
    assert_eq!(std::fs::metadata(world.log_file()).unwrap().ino(), inode);
    assert_eq!(world.log().matches("registered worker").count(), 1);
    world.kill(tail.id());
    tail.wait().unwrap();
    world.leave_agents();
}
