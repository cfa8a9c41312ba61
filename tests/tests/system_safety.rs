//! What the voice system's programs must not do to others: hang on them, remove
//! or empty what is theirs, stop them, or take them for parts of the system.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::Signal;
use scenarios::surroundings::{self, OtherUser, Room, Stranger};
use scenarios::system::{System, free_port, part};
use scenarios::{World, available, python, text, until};

/// Waits for its end, which must come soon.
#[track_caller]
fn end_of(child: &mut Child) -> std::process::ExitStatus {
    until("the program to end", || child.try_wait().unwrap().is_some());
    child.wait().unwrap()
}

/// Reads what it writes until these words come.
#[track_caller]
fn read_until(child: &mut Child, words: &str) -> (String, BufReader<ChildStdout>) {
    let mut said = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    while !said.contains(words) {
        assert_ne!(output.read_line(&mut said).unwrap(), 0, "{said}");
    }
    (said, output)
}

/// A program that becomes root, also by its real user number, as `sudo` does.
fn make_sudo(system: &System) -> Option<String> {
    if !available(&["setpriv"], "a command that becomes root") {
        return None;
    }
    let path = system.world.path("sudo");
    fs::copy("/usr/bin/setpriv", &path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    let become_root = "\"--reuid=0\", \"--regid=0\", \"--clear-groups\"";
    Some(format!("\"{}\", {become_root}", path.display()))
}

#[test]
fn a_command_that_has_become_root_holds_nothing_up() {
    let Some(user) = OtherUser::nobody("a command that becomes root") else {
        return;
    };
    let mut system = System::new();
    user.moves_into(&mut system.world);
    let Some(sudo) = make_sudo(&system) else {
        return;
    };
    let configure = |text: &str| {
        fs::write(system.world.project().join("voice-system.toml"), text).unwrap();
    };
    let start = || {
        let mut command = system.command("start_voice_system.sh", &[]);
        user.runs(&mut command);
        command
    };
    let roots = || {
        let mut all = system.world.processes();
        all.retain(|process| process.argv.first().is_some_and(|word| word == "sleep"));
        all.iter().map(|process| process.pid).collect::<Vec<_>>()
    };
    // Past its deadline.
    configure(&format!(
        "[[companion]]\nname = \"db\"\ncheck = [\"false\"]\n\
         start = [{sudo}, \"sleep\", \"1000\"]\ndeadline_seconds = 0.8\n[agent]\nneeds = [\"db\"]"
    ));
    let output = surroundings::run(&system.world, start());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let [pid] = roots()[..] else {
        panic!("{said}\n{}", system.world.describe());
    };
    assert!(
        said.contains(&format!(
            "not done within 0.8 s, and goes on as PID {pid}, which this user may not end"
        )),
        "{said}"
    );
    system.world.kill(pid);
    // Interrupted.
    configure(&format!(
        "[[step]]\nname = \"root\"\nwhen = \"before_agent\"\ncommand = [{sudo}, \"sleep\", \"1000\"]"
    ));
    let mut child = start().spawn().unwrap();
    until("the step to have become root", || roots().len() == 1);
    system.world.signal(child.id(), Signal::INT);
    end_of(&mut child);
    system.world.kill(roots()[0]);
    // A companion of ours that is not ready, and cannot be ended.
    configure(&format!(
        "[agent]\nneeds = [\"one\"]\n[[companion]]\nname = \"one\"\ncommand = [{sudo}, \"sleep\", \"1000\"]\n\
         deadline_seconds = 0.8\nready = {{ port = {} }}",
        free_port()
    ));
    let output = surroundings::run(&system.world, start());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("one failed"), "{said}");
    system.world.kill(roots()[0]);
}

// --- what is removed or emptied

#[test]
fn a_link_that_another_user_put_above_a_cleaned_folder_is_not_followed() {
    let Some(user) = OtherUser::nobody("a link of another user above a cleaned folder") else {
        return;
    };
    let mut system = System::new();
    let (precious, link) = (system.world.path("precious"), system.world.path("livekit"));
    let data = precious.join("data");
    fs::create_dir_all(&data).unwrap();
    symlink(&precious, &link).unwrap();
    lchown(&link, Some(user.uid()), None).unwrap();
    system.world.set("LIVEKIT", &link);
    let system = system.part(
        "one",
        free_port(),
        "",
        "clean = { folders = [\"$LIVEKIT/data\"] }",
    );
    for arguments in [&["--check-config"][..], &[]] {
        let said = system.run("start_voice_system.sh", arguments, 1);
        let why = format!("{} is a symbolic link of user ", link.display());
        assert!(said.contains(&why), "{said}");
        assert!(data.exists(), "{said}");
    }
    // The owner's own, or root's, leads where he wants.
    lchown(&link, Some(0), None).unwrap();
    system.start();
    assert!(!data.exists() && precious.exists());
    system.stop();
}

#[test]
fn what_a_part_is_made_of_is_neither_cleaned_nor_used_as_a_log() {
    let python = python().display();
    let own = |name: &str, keys: &str| {
        format!("[[companion]]\nname = \"{name}\"\ncommand = [\"{python}\", \"part.py\"]\n{keys}\n")
    };
    let cleans = |keys: &str, rest: &str| {
        own(
            "one",
            &format!("clean = {{ folders = [\"data\"] }}\n{keys}"),
        ) + rest
    };
    let step = |keys: &str| format!("[[step]]\nname = \"s\"\nwhen = \"restart\"\n{keys}\n");
    let logs = |path: &str| own("one", &format!("log = \"{path}\""));
    for (text, why) in [
        (
            cleans("", &step("command = [\"true\"]\nfolder = \"data\"")),
            "one that a part works in",
        ),
        (
            cleans("", &step("command = [\"data/tool\"]")),
            "data/tool is inside",
        ),
        (
            cleans(
                "",
                "[[companion]]\nname = \"db\"\ncheck = [\"data/tool\"]\non_start = \"manual\"\n",
            ),
            "data/tool is inside",
        ),
        (
            cleans("ready = { command = [\"data/tool\"] }", ""),
            "data/tool is inside",
        ),
        (
            cleans(
                "",
                &step(&format!("command = [\"{python}\", \"data/run.py\"]")),
            ),
            "data/run.py is inside",
        ),
        (
            cleans("", "[agent]\nenv_files = [\"data/env\"]\n"),
            "data/env is inside",
        ),
        (
            cleans("", "[agent]\npython = \"data/tool\"\n"),
            "data/tool is inside",
        ),
        (logs(".env"), "is also an env file"),
        (logs("hard-link"), "is also an env file"),
        (logs("voice-system.toml"), "is also the configuration"),
        (logs("part.py"), "is also a program of one"),
        (logs("$SCRIPT"), "is also the agent's script"),
        (logs("$VOICE_GUARD_PID_FILE"), "is also the PID file"),
        (
            logs("$VOICE_GUARD_LOG_FILE"),
            "is also the log of the agent",
        ),
        (
            logs("a.log") + &own("two", "log = \"./data/../a.log\""),
            "is also the log of one",
        ),
        (
            "[agent]\nlog = \"voice-system.toml\"\n".to_owned(),
            "is also the configuration",
        ),
    ] {
        let mut system = System::new();
        let project = system.world.project().to_owned();
        fs::create_dir(project.join("data")).unwrap();
        for file in ["data/tool", "data/run.py", "data/env", ".env"] {
            fs::write(project.join(file), "").unwrap();
        }
        fs::hard_link(project.join(".env"), project.join("hard-link")).unwrap();
        fs::set_permissions(project.join("data/tool"), PermissionsExt::from_mode(0o755)).unwrap();
        system.world.set("SCRIPT", system.world.script());
        if text.contains("[agent]\npython") {
            system.world.unset("VOICE_GUARD_PYTHON");
        }
        if text.contains("[agent]\nlog") {
            system.world.unset("VOICE_GUARD_LOG_FILE");
        }
        let system = system.with(&text);
        let said = system.run("start_voice_system.sh", &["--check-config"], 1);
        assert!(said.contains(why), "{text}\nexpected {why}\n{said}");
        assert!(said.contains("voice-system.toml:"), "{text}\n{said}");
    }
    // /dev/null is nobody's.
    let system = System::new()
        .with(&own("one", "log = \"/dev/null\""))
        .with(&own("two", "log = \"/dev/null\"\nfolder = \"..\""));
    system.run("start_voice_system.sh", &["--check-config"], 0);
}

#[test]
fn an_agents_own_file_is_not_written_as_another() {
    for (variable, program) in [
        ("LOG_FILE", "start_voice_agent_safe.sh"),
        ("PID_FILE", "stop_voice_agent_safe.sh"),
        ("LOCK_FILE", "check_agent_running.sh"),
    ] {
        for (named, file, what) in [
            (".env", ".env", "an env file"),
            ("./hard-link", ".env", "an env file"),
            (
                "voice-system.toml",
                "voice-system.toml",
                "the configuration",
            ),
        ] {
            let mut system = System::new().with("# nothing else");
            let path = system.world.project().join(file);
            fs::write(&path, "# precious\n").unwrap();
            if named.contains("link") {
                fs::hard_link(&path, system.world.project().join(named)).unwrap();
            }
            system.world.set(format!("VOICE_GUARD_{variable}"), named);
            let said = system.run(program, &[], 1);
            let begins = format!("VOICE_GUARD_{variable} is ");
            let ends = format!("which is also {what}");
            assert!(said.contains(&begins) && said.contains(&ends), "{said}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "# precious\n");
        }
    }
}

// --- ports

#[test]
fn two_parts_do_not_get_one_port() {
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    let [common, second, third, fixed] = ports[..] else {
        panic!("{ports:?}");
    };
    let choosing = |name: &str, ports: &str| {
        format!(
            "[[companion]]\nname = \"{name}\"\ncommand = [\"{}\", \"part.py\", \"{{port}}\", \"delay=0.1\"]\n\
             ports = {ports}\nready = {{ port = \"{{port}}\" }}",
            python().display()
        )
    };
    let system = System::new()
        .with(&choosing("a", &format!("[{common}, {second}]")))
        .with(&choosing("b", &format!("[{common}, {fixed}, {third}]")))
        .part("c", fixed, "delay=0.1", "");
    let object = system.json("start_voice_system.sh", &[], 0);
    let port = |name: &str| part(&object, name)["port"].as_u64().unwrap();
    assert_eq!(port("a"), u64::from(common), "{object}");
    assert_eq!(port("b"), u64::from(third), "{object}");
    assert_eq!(port("c"), u64::from(fixed), "{object}");
    system.stop();
    // What cannot go well is said at once.
    for (keys, why) in [
        (
            "ports = [8888, 8899]\nready = { port = 9000 }",
            "ready asks port 9000",
        ),
        (
            "ports = [8888, 8899]\nready = { port = 8888 }",
            "ready asks port 8888",
        ),
        (
            "ports = [8888, 8899]\nready = { http = \"http://localhost:8888/\" }",
            "ready asks port 8888",
        ),
        (
            "ready = { port = 8888 }\n[[companion]]\nname = \"two\"\ncommand = [\"true\"]\nready = { http = \"http://127.0.0.1:8888/\" }",
            "\"two\" has port 8888, and so has \"one\"",
        ),
    ] {
        let system = System::new().with(&format!(
            "[[companion]]\nname = \"one\"\ncommand = [\"true\"]\n{keys}"
        ));
        let said = system.run("start_voice_system.sh", &["--check-config"], 1);
        assert!(said.contains(why), "{keys}\n{said}");
    }
}

#[test]
fn a_stranger_on_the_port_does_not_make_a_part_ready() {
    let port = free_port();
    let system = System::new().with("[agent]\nneeds = [\"one\"]").part(
        "one",
        port,
        "delay=1000",
        "deadline_seconds = 1000",
    );
    let mut child = system
        .command("start_voice_system.sh", &[])
        .spawn()
        .unwrap();
    until("it to be born", || !system.running("one").is_empty());
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    taken.set_nonblocking(true).unwrap();
    let why = format!("port {port} is served by PID {} (", std::process::id());
    // Asked, and asked again: the first answer has not been believed.
    for _ in 0..2 {
        until("it to be asked", || taken.accept().is_ok());
    }
    let status = system.json("start_voice_system.sh", &["--status"], 1);
    let error = part(&status, "one")["error"].as_str().unwrap();
    assert!(error.contains(&why), "{error}");
    system.world.signal(child.id(), Signal::INT);
    assert!(!end_of(&mut child).success());
    assert!(system.running("one").is_empty() && system.world.agents().is_empty());
    // Nor one that was there before.
    let system = System::new().with("[agent]\nneeds = [\"one\"]").part(
        "one",
        port,
        "log",
        &format!("ready = {{ port = {port} }}\ndeadline_seconds = 0.3"),
    );
    let mut by_hand = system.world.command(python());
    by_hand
        .args(["part.py", &port.to_string(), "log"])
        .arg(format!("starts={}", system.starts_file("one").display()));
    let mut by_hand = Stranger::of(by_hand);
    let object = system.json("start_voice_system.sh", &["--status"], 1);
    let error = part(&object, "one")["error"].as_str().unwrap();
    assert!(error.contains(&why), "{error}");
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(said.contains(&why), "{said}");
    assert!(
        said.contains(&format!(
            "port {port} is taken by PID {} (",
            std::process::id()
        )),
        "{said}"
    );
    by_hand.wait();
    // One that is only looked at is not waited for.
    let system = System::new().with("[agent]\nneeds = [\"one\"]").part(
        "one",
        port,
        "log",
        &format!("ready = {{ port = {port} }}\non_start = \"manual\""),
    );
    let mut by_hand = system.world.command(python());
    by_hand
        .args(["part.py", &port.to_string(), "log"])
        .arg(format!("starts={}", system.starts_file("one").display()));
    let mut by_hand = Stranger::of(by_hand);
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(said.contains(&format!("it is not ready: {why}")), "{said}");
    by_hand.assert_lives();
    drop(by_hand);
    // A child of its own that listens is no stranger.
    let port = free_port();
    let system = System::new().with(&format!(
        "[[companion]]\nname = \"one\"\ncommand = [\"sh\", \"-c\", \"'{}' part.py {port}; true\"]\nready = {{ port = {port} }}\ndeadline_seconds = 5",
        python().display()
    ));
    system.start();
    system.stop();
}

// --- whose process it is

#[test]
fn an_interpreter_in_the_project_folder_runs_other_programs_too() {
    // As a version manager's `node` does, when the project is the home folder.
    let system = System::new();
    let program = system.world.project().join("node20");
    fs::copy("/bin/sleep", &program).unwrap();
    let system = system.with(
        "[[companion]]\nname = \"web\"\ncommand = [\"./node20\", \"1000\"]\n\
         ready = { alive_seconds = 0 }\non_start = \"fresh\"",
    );
    let mut command = system.world.command("./node20");
    command.arg("2000");
    let mut other = Stranger::of(command);
    system.start();
    system.stop();
    other.assert_lives();
}

#[test]
fn two_that_somebody_started_by_hand_are_named_and_left_alone() {
    let system = System::new().part("one", 1, "log", "ready = { alive_seconds = 0 }");
    let by_hand = || {
        let mut command = system.world.command(python());
        command
            .args(["part.py", "1", "log"])
            .arg(format!("starts={}", system.starts_file("one").display()));
        Stranger::of(command)
    };
    let mut copies = [by_hand(), by_hand()];
    let object = system.json("start_voice_system.sh", &["--status"], 1);
    let one = part(&object, "one");
    assert_eq!(one["state"], "duplicates", "{object}");
    let error = one["error"].as_str().unwrap();
    assert!(error.contains("2 of it run at once"), "{error}");
    for copy in &copies {
        assert!(error.contains(&copy.pid().to_string()), "{error}");
    }
    let said = system.stop();
    assert!(
        said.contains("was not started from here") && said.contains("--all"),
        "{said}"
    );
    for copy in &mut copies {
        assert!(said.contains(&copy.pid().to_string()), "{said}");
        copy.assert_lives();
    }
    system.run("stop_voice_system.sh", &["--all"], 0);
    for copy in &mut copies {
        copy.wait();
    }
}

#[test]
fn an_emptied_log_does_not_make_a_part_unready() {
    let mut system = System::new();
    let log = system.world.path("one.log");
    system.world.set("LOG", &log);
    let mut system = system.part(
        "one",
        1,
        "log",
        "ready = { log = \"^part is up$\" }\nlog = \"$LOG\"\ndeadline_seconds = 5",
    );
    // Its second line: `^` and `$` are a line's.
    system.start();
    let pid = system.assert_one("one");
    // As logrotate's copytruncate does.
    fs::write(&log, "").unwrap();
    system.json("start_voice_system.sh", &["--status"], 0);
    system.start();
    assert_eq!(system.assert_one("one"), pid);
    // Nor for those who have another runtime folder.
    let other = system.world.path("run-of-another-session");
    fs::create_dir(&other).unwrap();
    system.world.set("XDG_RUNTIME_DIR", other);
    system.json("start_voice_system.sh", &["--status"], 0);
    system.start();
    assert_eq!(system.running("one"), [pid]);
    // A new one has to say it again.
    let runtime = system.world.path("run");
    system.world.set("XDG_RUNTIME_DIR", runtime);
    assert!(system.pid_file("one").with_extension("ready").exists());
    system.stop();
    assert!(!system.pid_file("one").with_extension("ready").exists());
}

// --- what does not answer

#[test]
fn a_name_server_that_does_not_answer_holds_nothing_up() {
    let port = free_port();
    let mut system = System::new();
    let tools = system.world.path("tools");
    fs::create_dir(&tools).unwrap();
    fs::write(
        tools.join("getent"),
        "#!/bin/sh\n[ \"$1 $2\" = \"ahosts letta.test\" ] || exec sleep 1000\n\
         echo \"127.0.0.1       STREAM letta.test\"\n",
    )
    .unwrap();
    fs::set_permissions(tools.join("getent"), PermissionsExt::from_mode(0o755)).unwrap();
    let path = system
        .world
        .environment()
        .iter()
        .find(|(name, _)| name == "PATH");
    let path = path.unwrap().1.to_string_lossy().into_owned();
    system
        .world
        .set("PATH", format!("{}:{path}", tools.display()));
    let system = system
        .part(
            "known",
            port,
            "",
            &format!("ready = {{ http = \"http://letta.test:{port}/\" }}"),
        )
        .with(
            "[[companion]]\nname = \"silent\"\non_start = \"manual\"\nready = { http = \"http://nobody.test/\" }",
        );
    // The other part does not wait for it.
    let mut child = system
        .command("start_voice_system.sh", &[])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let asks = |world: &World| {
        let all = world.processes();
        all.iter().any(|process| process.argv == ["sleep", "1000"])
    };
    until("the name to be asked for", || asks(&system.world));
    let _output = read_until(&mut child, "known: ready");
    system.world.signal(child.id(), Signal::INT);
    end_of(&mut child);
    assert!(!asks(&system.world));
    // It is known again.
    let said = system.output("start_voice_system.sh", &["--status", "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(part(&object, "known")["state"], "ready", "{object}");
    assert_eq!(part(&object, "silent")["state"], "not ready", "{object}");
    system.stop();
}

// --- down

#[test]
fn what_is_needed_through_a_part_that_stays_goes_down_last() {
    let system = System::new()
        .part("a", free_port(), "", "")
        .with("[[companion]]\nname = \"b\"\ncheck = [\"true\"]\non_start = \"manual\"\nneeds = [\"a\"]")
        .part("c", free_port(), "deaf", "needs = [\"b\"]\ngrace_seconds = 0.2");
    system.start();
    let said = system.stop();
    let at = |words: &str| {
        said.find(words)
            .unwrap_or_else(|| panic!("no {words} in {said}"))
    };
    assert!(at("c: stopped") < at("a: stopping"), "{said}");
}

#[test]
fn one_that_cannot_be_ended_does_not_keep_the_others_up() {
    // Elsewhere workers of root without parent, of other tests, are in a user's way.
    Room::new().enter(
        "one_that_cannot_be_ended_does_not_keep_the_others_up",
        stop_with_one_that_cannot_be_ended,
    );
}

fn stop_with_one_that_cannot_be_ended() {
    let Some(user) = OtherUser::nobody("a part that becomes root") else {
        return;
    };
    let mut system = System::new();
    user.moves_into(&mut system.world);
    let Some(sudo) = make_sudo(&system) else {
        return;
    };
    let interpreter = user.interpreter().display().to_string();
    let port = free_port();
    let system = system.with(&format!(
        "[[companion]]\nname = \"one\"\ncommand = [{sudo}, \"sleep\", \"1000\"]\nneeds = [\"agent\"]\n\
         ready = {{ alive_seconds = 0.1 }}\n\
         [[companion]]\nname = \"two\"\ncommand = [\"{interpreter}\", \"part.py\", \"{port}\"]\n\
         ready = {{ port = {port} }}"
    ));
    let by_user = |program: &str, code: i32| {
        let mut command = system.command(program, &[]);
        user.runs(&mut command);
        let output = surroundings::run(&system.world, command);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    };
    by_user("start_voice_system.sh", 0);
    assert_eq!(system.world.agents().len(), 1);
    let mut status = system.command("start_voice_system.sh", &["--status"]);
    user.runs(&mut status);
    let said = text(&system.world.run_command(status));
    assert!(said.contains("one: its PID file is locked by"), "{said}");
    let said = by_user("stop_voice_system.sh", 1);
    assert!(
        said.contains("one failed") && said.contains("not everything could be stopped"),
        "{said}"
    );
    // Only that one is left.
    let left = system.world.processes();
    assert!(
        left.len() == 1 && left[0].argv == ["sleep", "1000"],
        "{said}\n{}",
        system.world.describe()
    );
    system.world.kill(left[0].pid);
}

#[test]
fn a_stop_that_waits_for_the_agent_can_be_interrupted() {
    let mut system = System::new();
    // Longer than anybody waits here.
    system.world.set("TEST_AGENT_DRAIN", "1000");
    system.world.set("VOICE_GUARD_GRACE_SECONDS", "1000");
    let system = system.part("one", free_port(), "", "");
    system.start();
    let agent = system.world.assert_one_agent();
    let mut child = system
        .command("stop_voice_system.sh", &[])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut said, mut output) = read_until(&mut child, "agent: stopping");
    system.world.signal(child.id(), Signal::INT);
    assert!(!end_of(&mut child).success());
    output.read_to_string(&mut said).unwrap();
    // What it has not come to is named.
    let one = system.assert_one("one");
    for words in [
        "Interrupted by SIGINT".to_owned(),
        format!("agent (PID {agent})"),
        format!("one (PID {one})"),
    ] {
        assert!(said.contains(&words), "no {words} in {said}");
    }
    system.world.kill(agent);
    system.stop();
}
