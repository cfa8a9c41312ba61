//! Whoever shares something with the agent (a terminal, a group, a pipe, a
//! name, an environment) and is not the agent: alive after everything.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use scenarios::surroundings::{
    NO_ARGUMENTS, Stranger, Terminal, outcome, pids, report, run, verdict,
};
use scenarios::{Program, World, is_alive, left_out, process, python, text, until};

/// Waits until `count` agents have said that they are ready, in the log: from
/// then on they end with status 0 when they are asked to.
#[track_caller]
fn until_ready(world: &World, count: usize) {
    until("an agent to be ready", || {
        world.log().matches("registered worker").count() == count
    });
}

/// The world's log, to be appended to.
fn log(world: &World) -> fs::File {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(world.log_file());
    log.unwrap()
}

/// The number after a word on a screen: `job-123`.
fn number_after(shown: &str, word: &str) -> u32 {
    let at = shown
        .rfind(word)
        .unwrap_or_else(|| panic!("no {word} in {shown}"));
    let digits = shown[at + word.len()..].chars();
    let digits: String = digits.take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// An interactive shell on a terminal of its own, with one job that has
/// nothing to do with the agent; gives the job's PID.
fn shell_with_a_job(world: &World) -> (Terminal, u32) {
    let mut shell = Terminal::new(world, &["bash", "--norc", "--noprofile", "-i"]);
    shell.types("sleep 1000 & echo \"job\"-\"$!\".");
    until("the job", || {
        let shown = shell.shown();
        shown.contains("job-") && number_ends(&shown, "job-")
    });
    let job = number_after(&shell.shown(), "job-");
    world.declare(job);
    (shell, job)
}

/// Has the full stop behind the number arrived?
fn number_ends(shown: &str, word: &str) -> bool {
    shown.rsplit(word).next().is_some_and(|rest| {
        rest.trim_start_matches(|c: char| c.is_ascii_digit())
            .starts_with('.')
    })
}

#[track_caller]
fn assert_shell_works(shell: &mut Terminal) {
    shell.types("echo \"works\"-$((40 + 2))");
    shell.until_shows("works-42");
}

#[test]
fn shell_that_runs_the_agent_in_the_background_keeps_its_other_jobs() {
    let world = World::new();
    let (mut shell, job) = shell_with_a_job(&world);
    shell.types("\"$VOICE_GUARD_PYTHON\" \"$VOICE_GUARD_AGENT_SCRIPT\" dev &");
    until("the agent", || world.starts().len() == 1);
    let agent = world.starts()[0];
    // A background job shares the shell's session, not its group.
    assert_eq!(
        process(agent).unwrap().session,
        process(job).unwrap().session
    );
    world.expect(Program::Stop, 0);
    assert!(!is_alive(agent) && is_alive(job));
    assert_shell_works(&mut shell);
    shell.types("kill %1; exit");
    let _ = shell.end();
}

#[test]
fn shell_that_runs_the_agent_in_the_foreground_gets_its_prompt_back() {
    let world = World::new();
    let (mut shell, job) = shell_with_a_job(&world);
    shell.types("\"$VOICE_GUARD_PYTHON\" \"$VOICE_GUARD_AGENT_SCRIPT\" dev; echo \"ended\"-\"$?\"");
    shell.until_shows("registered worker");
    world.expect(Program::Restart, 0);
    shell.until_shows("ended-0");
    world.assert_one_agent();
    assert_shell_works(&mut shell);
    assert!(is_alive(job));
    world.expect(Program::Stop, 0);
    assert!(is_alive(job));
    shell.types("kill %1; exit");
    let _ = shell.end();
}

#[test]
fn shell_that_suspended_the_agent_keeps_its_other_jobs() {
    let world = World::new();
    let (mut shell, job) = shell_with_a_job(&world);
    shell.types("\"$VOICE_GUARD_PYTHON\" \"$VOICE_GUARD_AGENT_SCRIPT\" dev &");
    until("the agent", || world.starts().len() == 1);
    let agent = world.starts()[0];
    world.signal(agent, Signal::STOP);
    until("the agent to be suspended", || {
        process(agent).is_some_and(|process| process.state == 'T')
    });
    world.expect(Program::Check, 1);
    world.expect(Program::Stop, 0);
    assert!(!is_alive(agent) && is_alive(job));
    assert_shell_works(&mut shell);
    shell.types("kill %1; exit");
    let _ = shell.end();
}

#[test]
fn agent_of_the_safe_starter_survives_the_terminal() {
    let world = World::new();
    let (mut shell, job) = shell_with_a_job(&world);
    shell.types("./start_voice_agent_safe.sh; echo \"code\"-\"$?\"");
    shell.until_shows("code-0");
    let agent = world.assert_one_agent();
    let own = process(agent).unwrap();
    assert_eq!((own.session, own.group), (agent, agent));
    // Closing the window: the terminal is gone for everybody on it.
    shell.types("kill -HUP $$");
    let _ = shell.end();
    until("the job's death with its terminal", || !is_alive(job));
    assert_eq!(world.assert_one_agent(), agent);
    world.expect(Program::Stop, 0);
}

#[test]
fn script_and_its_other_children_go_on() {
    let world = World::new();
    let line = "sleep 1000 & echo $!
\"$VOICE_GUARD_PYTHON\" \"$VOICE_GUARD_AGENT_SCRIPT\" dev >> \"$VOICE_GUARD_LOG_FILE\" & agent=$!
wait $agent; echo \"agent ended with $?\"
wait";
    let mut command = world.command("bash");
    command.args(["-c", line]).stdout(Stdio::piped());
    let mut script = Stranger::of(command);
    let script_pid = script.pid();
    let mut said = BufReader::new(script.take_stdout()).lines();
    let child: u32 = said.next().unwrap().unwrap().parse().unwrap();
    world.declare(child);
    until_ready(&world, 1);
    let agent = world.starts()[0];
    assert_eq!(process(agent).unwrap().group, process(child).unwrap().group);
    let (code, report) = report(&world, Program::Stop);
    assert_eq!(code, 0, "{report}");
    assert_eq!(pids(&report, "stopped"), [u64::from(agent)], "{report}");
    assert_eq!(said.next().unwrap().unwrap(), "agent ended with 0");
    assert!(is_alive(child) && is_alive(script_pid));
    script.assert_lives();
}

#[test]
fn pipeline_ends_by_itself() {
    let world = World::new();
    let out = world.scratch().join("out");
    // With `set -o pipefail` off, PIPESTATUS tells of each part by itself.
    let line = "\"$VOICE_GUARD_PYTHON\" \"$VOICE_GUARD_AGENT_SCRIPT\" dev 2>&1 | tee \"$0\" | cat > /dev/null
echo \"${PIPESTATUS[@]}\"";
    let mut command = world.command("bash");
    command.args(["-c", line]).arg(&out).stdout(Stdio::piped());
    let mut script = Stranger::of(command);
    until("the readiness line through the pipe", || {
        fs::read_to_string(&out).is_ok_and(|log| log.contains("registered worker"))
    });
    world.expect(Program::Stop, 0);
    let mut said = String::new();
    BufReader::new(script.take_stdout())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said, "0 0 0\n", "a part of the pipeline was signalled");
    assert!(fs::read_to_string(&out).unwrap().ends_with("good-bye\n"));
}

#[test]
fn tmux_server_that_the_agent_started_lives_on() {
    let mut world = World::new();
    if Command::new("tmux").arg("-V").output().is_err() {
        return left_out(
            "a tmux server started by the agent",
            "tmux is not installed",
        );
    }
    let socket = world.path("tmux");
    world.set("TEST_AGENT_CHILDREN", "tmux");
    // Not everybody's login shell runs commands.
    world.set("SHELL", "/bin/sh");
    world.set("TEST_AGENT_TMUX_SOCKET", &socket);
    world.expect(Program::Start, 0);
    let (_, server) = world.agent_children().first().cloned().unwrap();
    world.declare(server);
    let panes: Vec<_> = scenarios::all_processes()
        .into_iter()
        .filter(|process| process.parent == server)
        .map(|process| process.pid)
        .collect();
    assert!(!panes.is_empty(), "the server has a shell or a sleep");
    let said = world.expect(Program::Stop, 0);
    assert!(is_alive(server), "the tmux server was ended: {said}");
    assert!(panes.iter().all(|&pane| is_alive(pane)), "{said}");
    assert!(
        said.contains(&server.to_string()),
        "it is not named: {said}"
    );
    assert!(world.agents().is_empty());
    // It blocks nobody, and is not ended by what follows.
    world.unset("TEST_AGENT_CHILDREN");
    world.expect(Program::Check, 0);
    world.expect(Program::Start, 0);
    world.expect(Program::System, 0);
    world.expect(Program::Restart, 0);
    world.expect(Program::Stop, 0);
    assert!(is_alive(server) && panes.iter().all(|&pane| is_alive(pane)));
    let end = world
        .command("tmux")
        .arg("-S")
        .arg(&socket)
        .arg("kill-server")
        .status();
    assert!(end.unwrap().success());
    world.assert_no_overlap();
}

#[test]
fn whoever_names_the_script_is_no_agent() {
    let world = World::new();
    fs::write(world.log_file(), "").unwrap();
    let script = world.script();
    let name = script.file_name().unwrap().to_str().unwrap();
    let command_line = format!("python3 {name} dev");
    let wait = "read -r _";
    let pause = "import signal; signal.pause()";
    let naming = |program: &str, named: &str, arguments: &[&str]| {
        let mut command = world.command(program);
        command.arg0(named).args(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Stranger::of(command)
    };
    let python = python().to_str().unwrap();
    let mut strangers = [
        naming(
            "tail",
            "tail",
            &["-f", name, world.log_file().to_str().unwrap()],
        ),
        naming("grep", "grep", &[&format!("{name} dev"), "-"]),
        naming("sh", "vim", &["-c", wait, name, "dev"]),
        naming("sh", "emacs", &["-c", wait, "python", name, "dev"]),
        naming(
            "bash",
            "bash",
            &["-c", &format!("{wait}; : {command_line}"), &command_line],
        ),
        naming(
            python,
            "python3",
            &["-c", &format!("{pause} # {command_line}")],
        ),
        naming(python, "python3", &["-c", pause, name, "dev"]),
        naming(python, "python3", &["-uc", pause, name, "dev"]),
        naming(python, "python3", &["-", name, "dev"]),
        naming("sleep", &command_line, &["1000"]),
        naming("sh", "watch", &["-c", wait, "pgrep", "-f", name, "dev"]),
        naming("sh", "python-config", &["-c", wait, name, "dev"]),
    ];
    let (code, said) = outcome(&world, Program::Check, NO_ARGUMENTS);
    assert_eq!(code, 0, "{said}");
    world.expect(Program::Start, 0);
    let agent = world.pid_in_file().unwrap();
    let (_, report) = report(&world, Program::Check);
    assert_eq!(pids(&report, "agents"), [u64::from(agent)], "{report}");
    world.expect(Program::System, 0);
    world.expect(Program::Restart, 0);
    world.expect(Program::Stop, 0);
    for stranger in &mut strangers {
        stranger.assert_lives();
    }
    world.assert_no_overlap();
}

// ---- What the agent leaves behind that answers no calls.

#[test]
fn program_that_a_dead_agent_opened_blocks_no_start_and_ends_at_stop() {
    // `inheriting` holds the lock on the PID file, as a child of os.system does.
    for kind in ["system", "inheriting"] {
        let mut world = World::new();
        world.set("TEST_AGENT_CHILDREN", kind);
        world.expect(Program::Start, 0);
        let agent = world.assert_one_agent();
        let (_, leftover) = world.agent_children().first().cloned().unwrap();
        world.kill(agent);
        assert!(is_alive(leftover));
        // A check reads the environments of Python processes only; that this
        // one is marked is no matter to it.
        let (code, said) = outcome(&world, Program::Check, NO_ARGUMENTS);
        assert_eq!(code, 0, "{kind}: {said}");
        world.unset("TEST_AGENT_CHILDREN");
        world.expect(Program::Start, 0);
        world.assert_one_agent();
        world.expect(Program::Stop, 0);
        assert!(
            !is_alive(leftover),
            "{kind}: stop leaves nothing that is marked"
        );
        world.assert_nothing_left();
        world.assert_no_overlap();
    }
}

#[test]
fn stop_alone_ends_what_a_dead_agent_opened() {
    let mut world = World::new();
    world.set("TEST_AGENT_CHILDREN", "system,inheriting");
    world.expect(Program::Start, 0);
    world.kill(world.assert_one_agent());
    let (code, report) = report(&world, Program::Stop);
    assert_eq!(code, 0, "{report}");
    assert_eq!(pids(&report, "stopped").len(), 2, "{report}");
    world.assert_nothing_left();
}

// ---- Wrappers.

/// A program called `name` that starts its arguments after the first and
/// waits, and says what signals it gets.
fn wrapper(world: &World, name: &str) -> Command {
    let path = world.scratch().join(name);
    let script = "\
trap 'echo \"$0 got TERM\"' TERM
trap 'echo \"$0 got INT\"' INT
trap 'echo \"$0 got HUP\"' HUP
shift
\"$VOICE_GUARD_PYTHON\" \"$@\" >> \"$VOICE_GUARD_LOG_FILE\" 2>&1 &
wait $!
echo \"ended with $?\"
";
    fs::write(&path, script).unwrap();
    let mut command = world.command("sh");
    command.arg0(name).arg(path);
    command
}

#[test]
fn wrappers_are_named_and_get_no_signal() {
    let world = World::new();
    for (count, (name, verb)) in (1..).zip([("uv", "run"), ("sudo", "-E"), ("poetry", "run")]) {
        let mut command = wrapper(&world, name);
        command
            .arg(verb)
            .arg(world.script().file_name().unwrap())
            .arg("dev")
            .stdout(Stdio::piped());
        let mut stranger = Stranger::of(command);
        until("the wrapped agent", || world.agents().len() == 1);
        let agent = world.agents()[0];
        until_ready(&world, count);
        let (code, checked) = report(&world, Program::Check);
        assert_eq!(code, 1, "{checked}");
        assert_eq!(pids(&checked, "agents"), [u64::from(agent)], "{checked}");
        let wrapping = &checked["agents"][0]["wrapper"];
        assert_eq!(wrapping["pid"], stranger.pid(), "{name}: {checked}");
        assert!(
            wrapping["command"].to_string().contains(name),
            "{name}: {checked}"
        );
        let said = world.expect(Program::Check, 1);
        assert!(said.contains(&stranger.pid().to_string()), "{name}: {said}");
        world.expect(Program::Stop, 0);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut stranger.take_stdout(), &mut said).unwrap();
        assert_eq!(said, "ended with 0\n", "{name}");
        world.assert_nothing_left();
    }
}

#[test]
fn usual_wrappers_hide_no_agent() {
    let world = World::new();
    let forms = [
        &["timeout", "1000"][..],
        &["timeout", "--foreground", "1000"],
        &["nohup"],
        &["env", "X=1"],
        &["setsid", "--wait"],
        &["nice", "-n", "1"],
        &["stdbuf", "-oL"],
        &["bash", "-c", "\"$0\" \"$@\"; exit $?"],
    ];
    for (count, words) in (1..).zip(forms) {
        let mut command = world.command(words[0]);
        command
            .args(&words[1..])
            .arg(python())
            .arg(world.script().file_name().unwrap())
            .arg("dev")
            .stdout(log(&world))
            .stderr(log(&world));
        let mut wrapped = Stranger::of(command);
        until("the wrapped agent", || world.agents().len() == 1);
        let agent = world.agents()[0];
        until_ready(&world, count);
        let (code, checked) = report(&world, Program::Check);
        assert_eq!(code, 1, "{words:?}: {checked}");
        assert_eq!(
            pids(&checked, "agents"),
            [u64::from(agent)],
            "{words:?}: {checked}"
        );
        world.expect(Program::Start, 1);
        let (code, stopped) = report(&world, Program::Stop);
        assert_eq!(code, 0, "{words:?}: {stopped}");
        assert_eq!(
            pids(&stopped, "stopped"),
            [u64::from(agent)],
            "{words:?}: {stopped}"
        );
        assert_eq!(wrapped.wait().code(), Some(0), "{words:?} was signalled");
        world.assert_nothing_left();
    }
}

#[test]
fn supervisor_that_starts_the_agent_again_is_not_harmed_and_does_not_hold_stop_up() {
    let mut world = World::new();
    world.set("VOICE_GUARD_GRACE_SECONDS", "0.5");
    let line = "while :; do \"$VOICE_GUARD_PYTHON\" \"$VOICE_GUARD_AGENT_SCRIPT\" dev; done";
    let mut command = world.command("bash");
    command
        .args(["-c", line])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut supervisor = Stranger::of(command);
    until("the agent", || world.starts().len() == 1);
    // Whether stop looks in the moment between two agents is chance; that it
    // comes to an end is not.
    let output = run(&world, world.program(Program::Stop));
    let said = text(&output);
    if verdict(&output) == 1 {
        assert!(said.contains(&supervisor.pid().to_string()), "{said}");
    }
    supervisor.assert_lives();
    drop(supervisor);
    world.leave_agents();
}

// ---- Marks of others.

#[test]
fn mark_of_another_family_means_nothing_here() {
    let world = World::new();
    let marked = |mark: String| {
        let mut command = world.command(python());
        command
            .args(["-c", "import signal; signal.pause()"])
            .env("VOICE_GUARD_MARK", mark);
        Stranger::of(command)
    };
    let birth = "0123456789abcdef0123456789abcdef";
    let pid_file = world.pid_file();
    let pid_file = pid_file.display();
    let family = world.family();
    let mut strangers = [
        marked(format!("{birth}/other{pid_file}")),
        marked(format!("{birth}/{family}x{pid_file}")),
        marked(format!("{birth}/{pid_file}")),
        marked(format!("short/{family}{pid_file}")),
        marked(String::new()),
        marked("/".repeat(100)),
    ];
    world.expect(Program::Check, 0);
    world.expect(Program::Start, 0);
    world.assert_one_agent();
    world.expect(Program::System, 0);
    world.expect(Program::Restart, 0);
    world.expect(Program::Stop, 0);
    for stranger in &mut strangers {
        stranger.assert_lives();
    }
}

#[test]
fn agents_of_two_families_know_nothing_of_each_other() {
    let mine = World::new();
    let other = World::new();
    other.expect(Program::Start, 0);
    let agent = other.assert_one_agent();
    mine.expect(Program::Check, 0);
    mine.expect(Program::Start, 0);
    mine.expect(Program::System, 0);
    mine.expect(Program::Restart, 0);
    mine.assert_one_agent();
    mine.expect(Program::Stop, 0);
    assert_eq!(other.assert_one_agent(), agent);
    other.expect(Program::Stop, 0);
}

#[test]
fn other_tracking_files_do_not_make_another_family() {
    let mut world = World::new();
    world.expect(Program::Start, 0);
    let agent = world.assert_one_agent();
    let elsewhere = world.path("elsewhere.pid");
    world.set("VOICE_GUARD_PID_FILE", &elsewhere);
    let said = world.expect(Program::Check, 1);
    assert!(said.contains(&agent.to_string()), "{said}");
    world.expect(Program::Start, 1);
    world.expect(Program::System, 0);
    assert_eq!(world.agents(), [agent]);
    world.expect(Program::Stop, 0);
    assert!(world.agents().is_empty());
    world.assert_no_overlap();
    let _ = fs::remove_file(world.pid_file());
}
