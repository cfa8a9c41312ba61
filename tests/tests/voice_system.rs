//! The whole voice system: companions described in `voice-system.toml`, real
//! processes on free ports, each test in a world of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scenarios::surroundings::{OtherUser, Room};
use scenarios::system::{System, free_port, part};
use scenarios::{is_alive, python, rounds, text, until};
use serde_json::Value;

// --- the configuration

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn what_is_wrong_with_the_configuration_is_named_with_its_place() {
    let python = python().display();
    let own = format!("command = [\"{python}\", \"part.py\"]");
    for (text, place, word, help) in [
        (
            "[agent]\nscritp = \"x\"\n".to_owned(),
            "2:1",
            "unknown field `scritp`",
            "did you mean `script`?",
        ),
        (
            "[agent]\nmode = 1\n".to_owned(),
            "2:8",
            "expected a string",
            "write it in quotes: \"1\"",
        ),
        (
            "[agent]\nenv_files = [\"nope.env\"]\n".to_owned(),
            "2:14",
            "cannot find the env file",
            "LIVEKIT_URL",
        ),
        (
            "[agent]\nneeds = [\"livekt\"]\n[[companion]]\nname = \"livekit\"\n".to_owned() + &own,
            "2:10",
            "no companion is named \"livekt\"",
            "did you mean \"livekit\"?",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\n[[companion]]\nname = \"a\"\n{own}\n"),
            "5:8",
            "a second part named \"a\"",
            "voice-system.toml:2:8",
        ),
        (
            format!(
                "[[companion]]\nname = \"a\"\n{own}\n[[step]]\nname = \"a\"\nwhen = \"restart\"\ncommand = [\"true\"]\n"
            ),
            "5:8",
            "a second part named \"a\"",
            "rename",
        ),
        (
            format!(
                "[[companion]]\nname = \"a\"\n{own}\nneeds = [\"b\"]\n[[companion]]\nname = \"b\"\n{own}\nneeds = [\"a\"]\n"
            ),
            "4:10",
            "a needs b needs a",
            "take one of these needs out",
        ),
        (
            format!(
                "[agent]\nneeds = [\"a\"]\n[[companion]]\nname = \"a\"\n{own}\nneeds = [\"agent\"]\n"
            ),
            "6:10",
            "a needs agent needs a",
            "take one",
        ),
        (
            "[[companion]]\nname = \"a\"\ncommand = [\"./nope\"]\n".to_owned(),
            "3:12",
            "cannot find the program",
            "folder",
        ),
        (
            "[[companion]]\nname = \"a\"\ncommand = [\"no-such-program-anywhere\"]\n".to_owned(),
            "3:12",
            "in PATH",
            "install it",
        ),
        (
            "[[companion]]\nname = \"a\"\ncommand = [\"part.py -x\"]\n".to_owned(),
            "3:12",
            "in PATH",
            "a command is a list",
        ),
        (
            "[[companion]]\nname = \"a\"\ncommand = [\"$NO_SUCH_NAME/x\"]\n".to_owned(),
            "3:12",
            "no NO_SUCH_NAME",
            "set NO_SUCH_NAME",
        ),
        (
            format!("[[companion]]\nname = \"a\"\nfolder = \"nope\"\n{own}\n"),
            "3:10",
            "cannot use the folder",
            "make it",
        ),
        (
            format!("[[companion]]\nname = \"a b\"\n{own}\n"),
            "2:8",
            "cannot be a part's name",
            "letters",
        ),
        (
            format!("[[companion]]\nname = \"agent\"\n{own}\n"),
            "2:8",
            "own name",
            "[agent]",
        ),
        (
            "[[companion]]\nname = \"a\"\n".to_owned(),
            "2:8",
            "has no command",
            "add command",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\ncheck = [\"true\"]\n"),
            "2:8",
            "together with",
            "another manager",
        ),
        (
            "[[companion]]\nname = \"a\"\ncheck = [\"true\"]\n".to_owned(),
            "2:8",
            "without start",
            "manual",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\nready = {{}}\n"),
            "4:9",
            "exactly one of",
            "for example",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\nready = {{ port = 1, log = \"x\" }}\n"),
            "4:9",
            "exactly one of",
            "for example",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\nready = {{ port = \"{{port}}\" }}\n"),
            "4:18",
            "without ports",
            "add ports",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\nready = {{ http = \"https://x/\" }}\n"),
            "4:18",
            "https",
            "curl",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\nready = {{ log = \"(\" }}\n"),
            "4:17",
            "regular expression",
            "escape",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\ndeadline_seconds = -1\n"),
            "4:20",
            "no span of time",
            "0 to",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\nclean = {{ folders = [\"/\"] }}\n"),
            "4:22",
            "will not remove /",
            "folder of its own",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\nclean = {{ folders = [\".\"] }}\n"),
            "4:22",
            "project folder",
            "folder of its own",
        ),
        (
            format!("[[companion]]\nname = \"a\"\n{own}\nclean = {{ folders = [\"~\"] }}\n"),
            "4:22",
            "home",
            "folder of its own",
        ),
        (
            format!(
                "[[companion]]\nname = \"a\"\n{own}\nfolder = \"$WORKS\"\nclean = {{ folders = [\"$WORKS\"] }}\n"
            ),
            "5:22",
            "one that a part works in",
            "folder of its own",
        ),
        (
            format!(
                "[[companion]]\nname = \"a\"\n{own}\nclean = {{ folders = [\"data\"] }}\n[[companion]]\nname = \"b\"\n{own}\nlog = \"data/b.log\"\n"
            ),
            "4:22",
            "data/b.log is inside it",
            "folder of its own",
        ),
    ] {
        let mut system = System::new();
        std::fs::create_dir(system.world.project().join("data")).unwrap();
        system.world.set("WORKS", system.world.scratch());
        let system = system.with(&text);
        for (program, arguments) in [
            ("start_voice_system.sh", &["--check-config"][..]),
            ("start_voice_system.sh", &[]),
        ] {
            let said = system.run(program, arguments, 1);
            let file = system.world.project().join("voice-system.toml");
            let expected = format!("{}:{place}: ", file.display());
            assert!(
                said.contains(&expected),
                "{text}\nexpected {expected}\n{said}"
            );
            assert!(said.contains(word), "{text}\nexpected {word}\n{said}");
            assert!(said.contains(help), "{text}\nexpected {help}\n{said}");
        }
        assert!(system.world.agents().is_empty(), "{text}");
    }
}

#[test]
fn a_checked_configuration_is_described_and_nothing_is_started() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"one\"]\n")
        .part("one", one, "", "on_start = \"fresh\"\nneeds = [\"two\"]")
        .part("two", two, "", "on_failure = \"warn\"")
        .with("[[step]]\nname = \"token\"\nwhen = \"restart\"\ncommand = [\"true\"]");
    let said = system.run("start_voice_system.sh", &["--check-config"], 0);
    let at = |word: &str| {
        said.find(word)
            .unwrap_or_else(|| panic!("no {word} in {said}"))
    };
    // In the order in which they are started.
    assert!(
        at("two: ") < at("one: ") && at("one: ") < at("agent: "),
        "{said}"
    );
    at("always started fresh");
    at("not missed if it fails");
    at("step token");
    assert_eq!(system.world.processes().len(), 0);
    assert!(!system.world.path("run/voice-guard").exists());
    let object = system.json("start_voice_system.sh", &["--check-config"], 0);
    assert_eq!(object["outcome"], "valid");
    assert_eq!(object["parts"].as_array().unwrap().len(), 4);
}

#[test]
fn the_configuration_is_found_where_it_may_be() {
    let mut system = System::new();
    let folder = system.world.path("config/voice-guard");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("voice-system.toml"),
        "[agent]\nfrom = \"user\"\n",
    )
    .unwrap();
    let check = |system: &System, arguments: &[&str], code| {
        let mut all = vec!["--check-config"];
        all.extend(arguments);
        system.run("start_voice_system.sh", &all, code)
    };
    assert!(check(&system, &[], 0).contains("only the agent"));
    system
        .world
        .set("XDG_CONFIG_HOME", system.world.path("config"));
    assert!(check(&system, &[], 1).contains("unknown field `from`"));
    // The project's own comes first, and the one that is named before all.
    std::fs::write(system.world.project().join("voice-system.toml"), "").unwrap();
    assert!(check(&system, &[], 0).contains("can be used"));
    std::fs::write(system.world.project().join("other.toml"), "[nope]\n").unwrap();
    assert!(check(&system, &["--config", "other.toml"], 1).contains("unknown field `nope`"));
    system.world.set("VOICE_GUARD_CONFIG", "other.toml");
    assert!(check(&system, &[], 1).contains("unknown field `nope`"));
    assert!(
        check(&system, &["--config", "missing.toml"], 1).contains("cannot find the configuration")
    );
}

#[test]
fn a_configuration_that_everybody_may_write_is_not_used() {
    let system = System::new().with("[agent]\n");
    let file = system.world.project().join("voice-system.toml");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(
        said.contains("everybody may write it") && said.contains("chmod o-w"),
        "{said}"
    );
}

#[test]
fn all_programs_take_the_agents_settings_from_the_configuration() {
    let mut system = System::new();
    let family = system.world.family().to_owned();
    let pid_file = system.world.path("configured.pid");
    let mode = "connect";
    for name in ["AGENT_SCRIPT", "PID_FILE", "LOCK_FILE", "LOG_FILE"] {
        system.world.unset(format!("VOICE_GUARD_{name}"));
    }
    system.world.set("WHERE", system.world.path(""));
    let system = system.with(&format!(
        "[agent]\nscript = \"{family}.py\"\nmode = \"{mode}\"\npid_file = \"$WHERE/configured.pid\"\n\
         lock_file = \"$WHERE/agent.lock\"\nlog = \"${{WHERE}}/agent.log\"\nverify_seconds = 10\n"
    ));
    system.run("start_voice_agent_safe.sh", &[], 0);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert_eq!(system.world.agents(), [pid.trim().parse::<u32>().unwrap()]);
    assert!(
        system
            .run("check_agent_running.sh", &[], 1)
            .contains("connect")
    );
    // The environment wins over the file, and a flag over both.
    let said = system.run("start_voice_system.sh", &["--agent-mode", "dev"], 0);
    assert!(said.contains("replacing"), "{said}");
    system.run("stop_voice_agent_safe.sh", &[], 0);
    assert!(!pid_file.exists());
}

// --- up

#[test]
fn parts_come_up_side_by_side_and_each_waits_only_for_what_it_needs() {
    let ports: Vec<u16> = (0..6).map(|_| free_port()).collect();
    let system = System::new()
        .with("[agent]\nneeds = [\"c\"]")
        .part("a", ports[0], "delay=0.5", "")
        .part("b", ports[1], "delay=0.5", "needs = [\"a\"]")
        .part("c", ports[2], "delay=0.5", "needs = [\"b\"]")
        .part("d", ports[3], "delay=0.5", "")
        .part("e", ports[4], "delay=0.5", "")
        .part("f", ports[5], "delay=0.5", "");
    let begun = Instant::now();
    let said = system.start();
    eprintln!("six companions, a chain of three: {:?}", begun.elapsed());
    let pids: Vec<u32> = ["a", "b", "c", "d", "e", "f"]
        .iter()
        .map(|name| system.assert_one(name))
        .collect();
    system.world.assert_one_agent();
    // One after the other where it must be, at once where it can be.
    let at = |event: &str| {
        said.find(event)
            .unwrap_or_else(|| panic!("no {event} in {said}"))
    };
    assert!(at("a: ready") < at("b: starting") && at("b: ready") < at("c: starting"));
    assert!(at("c: ready") < at("agent: starting"), "{said}");
    for name in ["d", "e", "f"] {
        assert!(at(&format!("{name}: starting")) < at("a: ready"), "{said}");
    }
    let begun = Instant::now();
    let again = system.json("start_voice_system.sh", &[], 0);
    eprintln!("all of it running: {:?}", begun.elapsed());
    assert_eq!(again["outcome"], "kept");
    for (name, pid) in ["a", "b", "c", "d", "e", "f"].into_iter().zip(pids) {
        assert_eq!(part(&again, name)["pid"], pid);
        assert_eq!(part(&again, name)["reused"], true);
        assert_eq!(system.starts(name).len(), 1);
    }
    system.stop();
    assert_eq!(
        system.world.processes().len(),
        0,
        "{}",
        system.world.describe()
    );
    assert!(!system.pid_file("a").exists());
}

#[test]
fn tracking_files_are_private() {
    let system = System::new().part("a", free_port(), "", "");
    system.start();
    let folder = system.pid_file("a").parent().unwrap().to_owned();
    for folder in [folder.clone(), folder.parent().unwrap().to_owned()] {
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
    }
    system.stop();
}

#[test]
fn fresh_ones_are_always_started_anew_and_others_are_kept() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .part("one", one, "", "on_start = \"fresh\"")
        .part("two", two, "", "");
    system.start();
    let before = (system.assert_one("one"), system.assert_one("two"));
    let agent = system.world.assert_one_agent();
    system.start();
    let after = (system.assert_one("one"), system.assert_one("two"));
    assert_ne!(before.0, after.0);
    assert_eq!(before.1, after.1);
    assert_eq!(system.world.assert_one_agent(), agent);
    system.stop();
}

#[test]
fn a_folder_is_removed_and_a_log_emptied_before_a_fresh_start() {
    let port = free_port();
    let mut system = System::new();
    system.world.set("DATA", system.world.path("data"));
    let system = system.part(
        "one",
        port,
        "",
        "on_start = \"fresh\"\nlog = \"$DATA.log\"\nclean = { folders = [\"$DATA\"], log = true }",
    );
    let data = system.world.path("data");
    std::fs::create_dir_all(data.join("deep")).unwrap();
    std::fs::write(system.world.path("data.log"), "old\n").unwrap();
    system.start();
    assert!(!data.exists());
    let log = std::fs::read_to_string(system.world.path("data.log")).unwrap();
    assert_eq!(log, "part begins\n");
    assert!(!system.world.path("data.log.1").exists());
    // Made a link meanwhile, it is not followed, and not removed.
    let precious = system.world.path("precious");
    std::fs::create_dir(&precious).unwrap();
    symlink(&precious, &data).unwrap();
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(said.contains("symbolic link"), "{said}");
    assert!(precious.exists());
    system.stop();
}

#[test]
fn a_stranger_on_the_port_is_named_and_left_alone() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = stranger.local_addr().unwrap().port();
    let system = System::new()
        .with("[agent]\nneeds = [\"one\"]")
        .part("one", port, "", "");
    let said = system.run("start_voice_system.sh", &[], 1);
    let me = std::process::id();
    assert!(
        said.contains(&format!("port {port} is taken by PID {me} (")),
        "{said}"
    );
    assert!(said.contains("user "), "{said}");
    assert!(system.starts("one").is_empty());
    assert!(system.world.agents().is_empty());
    drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
}

#[test]
fn the_first_free_port_is_taken_and_found_again() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = stranger.local_addr().unwrap().port();
    let free = free_port();
    let system = System::new().with(&format!(
        "[[companion]]\nname = \"demo\"\ncommand = [\"{}\", \"part.py\", \"{{port}}\"]\n\
         ports = [{taken}, {free}]\nready = {{ port = \"{{port}}\" }}\nurl = \"http://localhost:{{port}}/x\"",
        python().display()
    ));
    let object = system.json("start_voice_system.sh", &[], 0);
    assert_eq!(part(&object, "demo")["port"], free);
    assert_eq!(
        part(&object, "demo")["url"],
        format!("http://localhost:{free}/x")
    );
    let pid = part(&object, "demo")["pid"].clone();
    let again = system.json("start_voice_system.sh", &[], 0);
    assert_eq!(part(&again, "demo")["port"], free);
    assert_eq!(part(&again, "demo")["pid"], pid);
    system.stop();
}

#[test]
fn one_that_never_gets_ready_ends_the_start_and_is_not_left() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"one\"]")
        .part(
            "one",
            one,
            "never",
            "deadline_seconds = 0.6\nneeds = [\"two\"]",
        )
        .part("two", two, "", "");
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(
        said.contains("one failed: not ready within 0.6 s"),
        "{said}"
    );
    assert!(said.contains("refused"), "{said}");
    assert!(said.contains("| part begins"), "{said}");
    assert!(said.contains("what still runs: two (PID "), "{said}");
    assert!(system.running("one").is_empty());
    assert!(!system.pid_file("one").exists());
    system.assert_one("two");
    assert!(system.world.agents().is_empty());
    system.stop();
}

#[test]
fn one_that_dies_at_once_is_explained_by_its_last_lines() {
    let system = System::new().with("[agent]\nneeds = [\"one\"]").part(
        "one",
        free_port(),
        "early=7",
        "deadline_seconds = 30",
    );
    let begun = Instant::now();
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert!(
        said.contains("died before it was ready: exit status 7"),
        "{said}"
    );
    assert!(said.contains("| cannot go on: no such thing"), "{said}");
    assert!(!system.pid_file("one").exists());
}

#[test]
fn one_that_dies_after_it_was_ready_fails_the_start() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"two\"]")
        .part("one", one, "die=0.2", "")
        .part("two", two, "delay=1.5", "needs = [\"one\"]");
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(
        said.contains("one failed: it died after it was ready: exit status 3"),
        "{said}"
    );
    assert!(said.contains("dying as told"), "{said}");
    system.assert_all_tracked(&["one", "two"]);
    system.stop();
}

#[test]
fn one_that_forks_itself_away_is_tracked_all_the_same() {
    let port = free_port();
    let system = System::new().part("one", port, "away delay=0.3", "");
    system.start();
    let pid = system.assert_one("one");
    // The first process is gone, its child has taken its place.
    assert_eq!(system.starts("one").len(), 1);
    assert_ne!(system.starts("one")[0].0, pid);
    system.start();
    assert_eq!(system.assert_one("one"), pid);
    system.stop();
    assert!(system.running("one").is_empty());
}

/// As a daemon does that first waits until its child is at work.
#[test]
fn one_that_is_ready_before_its_first_process_has_gone_is_tracked_all_the_same() {
    let system = System::new()
        .part("one", free_port(), "away linger=0.3", "")
        .part("two", free_port(), "delay=0.6", "");
    system.start();
    let pid = system.assert_one("one");
    assert_ne!(system.starts("one")[0].0, pid);
    system.start();
    assert_eq!(system.assert_one("one"), pid);
    system.stop();
    assert!(system.running("one").is_empty());
}

#[test]
fn one_that_is_deaf_to_term_is_replaced_after_its_grace_period() {
    let port = free_port();
    let system = System::new().part(
        "one",
        port,
        "deaf",
        "on_start = \"fresh\"\ngrace_seconds = 0.3",
    );
    system.start();
    let before = system.assert_one("one");
    system.start();
    assert_ne!(system.assert_one("one"), before);
    system.stop();
    assert!(system.running("one").is_empty());
}

#[test]
fn a_slow_web_server_is_waited_for_and_a_wrong_status_is_not_ready() {
    let (slow, wrong) = (free_port(), free_port());
    let system = System::new()
        .part(
            "slow",
            slow,
            "slow=0.6",
            &format!("ready = {{ http = \"http://localhost:{slow}/\" }}"),
        )
        .part(
            "wrong",
            wrong,
            "status=503",
            &format!("ready = {{ http = \"http://127.0.0.1:{wrong}/\" }}\ndeadline_seconds = 1\non_failure = \"warn\""),
        );
    let object = system.json("start_voice_system.sh", &[], 0);
    assert!(part(&object, "slow")["seconds"].as_f64().unwrap() >= 0.6);
    assert_eq!(part(&object, "wrong")["state"], "failed");
    let why = part(&object, "wrong")["error"].as_str().unwrap().to_owned();
    assert!(why.contains("status 503"), "{why}");
    assert!(system.running("wrong").is_empty());
    system.stop();
}

#[test]
fn a_log_line_a_command_and_a_life_tell_readiness() {
    let port = free_port();
    let system = System::new()
        .part(
            "log",
            port,
            "log delay=0.3",
            "ready = { log = \"part is .p\" }",
        )
        .part(
            "command",
            port,
            "log",
            "ready = { command = [\"test\", \"-e\", \"flag\"] }",
        )
        .part("alive", port, "log", "ready = { alive_seconds = 0.2 }")
        .with("[[step]]\nname = \"never-first\"\nwhen = \"after_all\"\ncommand = [\"true\"]");
    let flag = system.world.project().join("flag");
    let mut child = system
        .command("start_voice_system.sh", &[])
        .spawn()
        .unwrap();
    until("all parts to be born", || {
        ["log", "command", "alive"]
            .iter()
            .all(|name| system.starts(name).len() == 1)
    });
    assert!(child.try_wait().unwrap().is_none());
    std::fs::write(&flag, "").unwrap();
    assert!(child.wait().unwrap().success());
    for name in ["log", "command", "alive"] {
        system.assert_one(name);
    }
    // They are known again.
    let object = system.json("start_voice_system.sh", &[], 0);
    for name in ["log", "command", "alive"] {
        assert_eq!(part(&object, name)["reused"], true, "{object}");
    }
    system.stop();
}

#[test]
fn what_another_manager_owns_is_checked_and_started_by_its_commands() {
    let system = System::new().with(
        "[agent]\nneeds = [\"db\"]\n[[companion]]\nname = \"db\"\ncheck = [\"test\", \"-e\", \"db-up\"]\n\
         start = [\"sh\", \"-c\", \"echo started >> db-starts; touch db-up\"]",
    );
    system.start();
    system.start();
    let starts = std::fs::read_to_string(system.world.project().join("db-starts")).unwrap();
    assert_eq!(starts, "started\n");
    // It is not ours to stop.
    system.stop();
    assert!(system.world.project().join("db-up").exists());
}

#[test]
fn a_manager_that_asks_for_a_password_or_fails_is_not_waited_for() {
    let system = System::new().with(
        "[agent]\nneeds = [\"db\"]\n[[companion]]\nname = \"db\"\ncheck = [\"false\"]\n\
         start = [\"sh\", \"-c\", \"cat /dev/tty || { echo a terminal is required; exit 1; }\"]\n\
         remedy = \"sudo service db start\"\ndeadline_seconds = 20",
    );
    let begun = Instant::now();
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert!(
        said.contains("exit status 1") && said.contains("a terminal is required"),
        "{said}"
    );
    assert!(said.contains("sudo service db start"), "{said}");
    // One that hangs is ended with all that it has started.
    let system = System::new().with(
        "[agent]\nneeds = [\"db\"]\n[[companion]]\nname = \"db\"\ncheck = [\"false\"]\n\
         start = [\"sh\", \"-c\", \"sleep 1000 & sleep 1000\"]\ndeadline_seconds = 0.5",
    );
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(said.contains("not done within 0.5 s"), "{said}");
    until("nothing of it to run", || {
        system.world.processes().is_empty()
    });
}

#[test]
fn a_manual_part_is_only_looked_at() {
    let port = free_port();
    let system = System::new().with(&format!(
        "[agent]\nneeds = [\"other\"]\n[[companion]]\nname = \"other\"\non_start = \"manual\"\n\
         ready = {{ port = {port} }}\nremedy = \"start the other\""
    ));
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(
        said.contains("other failed: it is not ready") && said.contains("start the other"),
        "{said}"
    );
    let _other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    system.start();
    system.stop();
}

#[test]
fn a_part_that_is_not_missed_lets_the_start_go_on() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"one\"]")
        .part("one", one, "early=1", "on_failure = \"warn\"")
        .part("two", two, "", "needs = [\"one\"]");
    let said = system.start();
    assert!(
        said.contains("WARNING: one failed") && said.contains("going on without it"),
        "{said}"
    );
    system.assert_one("two");
    system.world.assert_one_agent();
    assert_eq!(
        system
            .output("start_voice_system.sh", &["--status"])
            .status
            .code(),
        Some(1)
    );
    system.stop();
}

#[test]
fn one_that_somebody_started_by_hand_is_taken_over_or_replaced() {
    for (policy, kept) in [("reuse", true), ("fresh", false)] {
        let port = free_port();
        let system = System::new().part("one", port, "", &format!("on_start = \"{policy}\""));
        let mut by_hand = system
            .world
            .command(python())
            .args(["part.py", &port.to_string()])
            .arg(format!("starts={}", system.starts_file("one").display()))
            .spawn()
            .unwrap();
        until("it to listen", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        system.start();
        let pid = system.assert_one("one");
        assert_eq!(pid == by_hand.id(), kept, "{policy}");
        let said = system.stop();
        if kept {
            assert!(said.contains("--all"), "{said}");
            assert!(by_hand.try_wait().unwrap().is_none(), "{said}");
            system.run("stop_voice_system.sh", &["--all"], 0);
        }
        by_hand.wait().unwrap();
        assert!(system.running("one").is_empty());
    }
}

#[test]
fn the_companions_own_executable_in_its_folder_is_ours_whatever_its_arguments() {
    let port = free_port();
    let mut system = System::new();
    let folder = system.world.project().join("livekit");
    std::fs::create_dir(&folder).unwrap();
    let program = folder.join("server");
    std::fs::copy("/bin/sleep", &program).unwrap();
    system.world.set("PORT", port.to_string());
    let system = system.with(
        "[[companion]]\nname = \"livekit\"\ncommand = [\"./server\", \"1000\"]\nfolder = \"livekit\"\n\
         ready = { alive_seconds = 0.1 }\non_start = \"fresh\"",
    );
    let mut old = system
        .world
        .command("./server")
        .arg("2000")
        .current_dir(&folder)
        .spawn()
        .unwrap();
    // The same program from another folder is somebody else's.
    let mut stranger = system.world.command(&program).arg("3000").spawn().unwrap();
    until("both to run", || {
        [&old, &stranger].iter().all(|child| {
            std::fs::read_link(format!("/proc/{}/exe", child.id())).is_ok_and(|exe| exe == program)
        })
    });
    system.start();
    until("the old one to end", || old.try_wait().unwrap().is_some());
    assert!(stranger.try_wait().unwrap().is_none());
    system.stop();
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_part_may_need_the_agent() {
    let port = free_port();
    let system = System::new().part("monitor", port, "", "needs = [\"agent\"]");
    let said = system.start();
    let agent = said.find("agent: ready").unwrap();
    assert!(agent < said.find("monitor: starting").unwrap(), "{said}");
    let said = system.stop();
    assert!(
        said.find("monitor: stopped").unwrap() < said.find("agent: stopped").unwrap(),
        "{said}"
    );
    assert_eq!(system.world.processes().len(), 0);
}

#[test]
fn an_agent_that_dies_fails_the_start_and_the_companions_stay() {
    let port = free_port();
    let mut system = System::new();
    system.world.set("TEST_AGENT_DIE_AFTER", "0");
    system.world.set("TEST_AGENT_DIE_SAYING", "no key");
    let system = system
        .with("[agent]\nneeds = [\"one\"]")
        .part("one", port, "", "")
        .part("two", free_port(), "", "needs = [\"agent\"]");
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(said.contains("no key"), "{said}");
    assert!(said.contains("what still runs: one (PID "), "{said}");
    system.assert_one("one");
    assert!(system.starts("two").is_empty());
    system.stop();
}

// --- steps

#[test]
fn steps_are_run_at_their_moments() {
    let port = free_port();
    let step = |name: &str, when: &str| {
        format!(
            "[[step]]\nname = \"{name}\"\nwhen = \"{when}\"\ncommand = [\"sh\", \"-c\", \"echo {name} $$VOICE_SYSTEM_PORT_ONE >> steps\"]\n"
        )
    };
    let system = System::new()
        .part("one", port, "", "")
        .with(&step("third", "restart"))
        .with(&step("second", "after_all"))
        .with(&step("first", "before_agent"));
    let steps = system.world.project().join("steps");
    system.start();
    let expected = format!("first {port}\nsecond {port}\n");
    assert_eq!(std::fs::read_to_string(&steps).unwrap(), expected);
    std::fs::remove_file(&steps).unwrap();
    system.run("restart_voice_system.sh", &[], 0);
    let expected = format!("first {port}\nsecond {port}\nthird {port}\n");
    assert_eq!(std::fs::read_to_string(&steps).unwrap(), expected);
    system.stop();
}

#[test]
fn a_step_that_fails_warns_or_ends_the_start() {
    for (policy, code) in [("warn", 0), ("stop", 1)] {
        let system = System::new().with(&format!(
            "[[step]]\nname = \"token\"\nwhen = \"before_agent\"\ncommand = [\"sh\", \"-c\", \"echo no secret; exit 4\"]\non_failure = \"{policy}\""
        ));
        let said = system.run("start_voice_system.sh", &[], code);
        assert!(
            said.contains("the step token failed: exit status 4"),
            "{said}"
        );
        assert!(said.contains("| no secret"), "{said}");
        assert_eq!(system.world.agents().len(), usize::from(code == 0));
        system.stop();
    }
}

// --- up again, down, and how it is

#[test]
fn a_restart_renews_what_it_restarts_and_reports_duplicates() {
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    let system = System::new()
        .with("[agent]\nneeds = [\"fresh\"]")
        .part("fresh", ports[0], "", "on_start = \"fresh\"")
        .part("kept", ports[1], "", "")
        .part(
            "renewed",
            ports[2],
            "",
            "restart = true\nneeds = [\"agent\"]",
        )
        .part(
            "spared",
            ports[3],
            "",
            "on_start = \"fresh\"\nrestart = false",
        );
    system.start();
    let names = ["fresh", "kept", "renewed", "spared"];
    let before: Vec<u32> = names.iter().map(|name| system.assert_one(name)).collect();
    let agent = system.world.assert_one_agent();
    let _second = system.world.agent_by_hand("dev");
    let object = system.json("restart_voice_system.sh", &[], 0);
    let after: Vec<u32> = names.iter().map(|name| system.assert_one(name)).collect();
    let renewed: Vec<bool> = before
        .iter()
        .zip(&after)
        .map(|(one, other)| one != other)
        .collect();
    assert_eq!(renewed, [true, false, true, false]);
    let starts: Vec<usize> = names.iter().map(|name| system.starts(name).len()).collect();
    assert_eq!(starts, [2, 1, 2, 1]);
    assert_ne!(system.world.assert_one_agent(), agent);
    assert_eq!(object["duplicates_removed"], 1);
    assert_eq!(object["outcome"], "restarted");
    system.stop();
}

#[test]
fn status_is_well_only_if_all_is() {
    let port = free_port();
    let system = System::new().part(
        "one",
        port,
        "",
        &format!("ready = {{ http = \"http://localhost:{port}/\" }}"),
    );
    let status = |code| system.json("start_voice_system.sh", &["--status"], code);
    let object = status(1);
    assert_eq!(object["outcome"], "unwell");
    assert_eq!(part(&object, "one")["state"], "not running");
    assert_eq!(part(&object, "agent")["state"], "not running");
    system.start();
    let object = status(0);
    assert_eq!(object["outcome"], "well");
    let one = part(&object, "one");
    assert_eq!(one["pid"], system.assert_one("one"));
    assert!(one["memory_bytes"].as_u64().unwrap() > 1_000_000);
    assert!(one["age_seconds"].as_u64().is_some());
    let said = system.run("start_voice_system.sh", &["--status"], 0);
    assert!(said.contains("MiB"), "{said}");
    // A second agent is not well.
    let second = system.world.agent_by_hand("dev");
    assert_eq!(part(&status(1), "agent")["state"], "duplicates");
    system.world.kill(second.pid());
    drop(second);
    // Nor is a dead companion, and nothing is changed by looking.
    let pid = system.assert_one("one");
    system.world.kill(pid);
    assert_eq!(part(&status(1), "one")["state"], "not running");
    assert_eq!(system.pid_in_file("one"), Some(pid));
    system.stop();
}

#[test]
fn without_a_configuration_only_the_agent_is_managed() {
    let system = System::new();
    let said = system.start();
    assert!(said.contains("Only the agent is managed"), "{said}");
    let object = system.json("start_voice_system.sh", &["--status"], 0);
    assert_eq!(object["parts"].as_array().unwrap().len(), 1);
    system.stop();
    system.world.assert_nothing_left();
    assert!(!system.world.path("run/voice-guard").exists());
}

#[test]
fn stop_says_when_nothing_was_running() {
    let system = System::new().part("one", free_port(), "", "");
    let object = system.json("stop_voice_system.sh", &[], 0);
    assert_eq!(object["outcome"], "nothing_to_stop");
}

// --- many at once, interrupted, killed

#[test]
fn many_starts_at_once_make_one_of_each() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"one\"]")
        .part("one", one, "delay=0.1", "")
        .part("two", two, "", "on_start = \"fresh\"");
    let mut barrier = scenarios::Barrier::new(&system.world);
    for _ in 0..6 {
        barrier.add(&system.command("start_voice_system.sh", &[]));
    }
    for finished in barrier.release().wait() {
        assert_eq!(finished.code(), Some(0), "{}", finished.output);
    }
    system.assert_one("one");
    system.assert_one("two");
    assert_eq!(system.starts("one").len(), 1);
    // All were called before the first one was started: it is fresh for all.
    assert_eq!(system.starts("two").len(), 1);
    system.world.assert_one_agent();
    system.world.assert_no_overlap();
    system.stop();
}

#[test]
fn an_interrupted_start_leaves_nothing_half_tracked() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"two\"]")
        .part("one", one, "", "")
        .part("two", two, "delay=1000", "needs = [\"one\"]");
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = system
            .command("start_voice_system.sh", &[])
            .spawn()
            .unwrap();
        until("the second to be born", || {
            !system.running("two").is_empty()
        });
        system.world.signal(child.id(), signal);
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(signal.as_raw())
        );
        assert!(system.running("two").is_empty());
        assert!(!system.pid_file("two").exists());
        // What was ready goes on, tracked.
        system.assert_one("one");
        assert!(system.world.agents().is_empty());
    }
    system.stop();
    assert_eq!(system.world.processes().len(), 0);
}

#[test]
fn a_lost_terminal_leaves_what_was_born_tracked() {
    let port = free_port();
    let system =
        System::new()
            .with("[agent]\nneeds = [\"one\"]")
            .part("one", port, "delay=1000", "");
    let mut child = system
        .command("start_voice_system.sh", &[])
        .spawn()
        .unwrap();
    until("it to be born", || !system.running("one").is_empty());
    system.world.signal(child.id(), Signal::HUP);
    child.wait().unwrap();
    system.assert_one("one");
    system.stop();
    assert!(system.running("one").is_empty());
}

#[test]
fn a_stop_ends_a_start_in_progress() {
    let port = free_port();
    let system =
        System::new()
            .with("[agent]\nneeds = [\"one\"]")
            .part("one", port, "delay=1000", "");
    let mut child = system
        .command("start_voice_system.sh", &[])
        .spawn()
        .unwrap();
    until("it to be born", || !system.running("one").is_empty());
    let said = system.stop();
    assert!(said.contains("Interrupting start-voice-system"), "{said}");
    assert!(!child.wait().unwrap().success());
    assert_eq!(
        system.world.processes().len(),
        0,
        "{}",
        system.world.describe()
    );
}

#[test]
fn starts_killed_or_interrupted_at_any_moment_are_made_good_by_the_next() {
    let (one, two, three) = (free_port(), free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"two\"]")
        .part("one", one, "delay=0.05", "on_start = \"fresh\"")
        .part("two", two, "delay=0.05", "needs = [\"one\"]")
        .part("three", three, "away delay=0.05", "needs = [\"agent\"]");
    let names = ["one", "two", "three"];
    for round in 0..rounds(12) {
        let mut child = system
            .command("start_voice_system.sh", &[])
            .spawn()
            .unwrap();
        // Spread over the whole start, which takes about half a second here.
        let moment = Duration::from_millis(u64::try_from(round * 97 % 600).unwrap());
        let _ = scenarios::eventually(moment, || !is_alive(child.id()));
        let signal = if round % 3 == 2 {
            Signal::INT
        } else {
            Signal::KILL
        };
        // Our child, not reaped: the number is its own.
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, signal);
        child.wait().unwrap();
        system.assert_all_tracked(&["one", "two"]);
        if round % 2 == 0 {
            system.start();
            for name in names {
                system.assert_one(name);
            }
            system.world.assert_one_agent();
        }
        if round % 4 == 3 {
            system.stop();
            assert_eq!(
                system.world.processes().len(),
                0,
                "{}",
                system.world.describe()
            );
        }
    }
    system.world.assert_no_overlap();
    system.stop();
    assert_eq!(
        system.world.processes().len(),
        0,
        "{}",
        system.world.describe()
    );
}

#[test]
fn a_companion_killed_between_starts_is_started_again() {
    let port = free_port();
    let system = System::new().part("one", port, "", "");
    system.start();
    let pid = system.assert_one("one");
    system.world.kill(pid);
    system.start();
    assert_ne!(system.assert_one("one"), pid);
    // Its PID file deleted by hand, it is found all the same.
    let pid = system.assert_one("one");
    std::fs::remove_file(system.pid_file("one")).unwrap();
    system.start();
    assert_eq!(system.assert_one("one"), pid);
    system.stop();
}

#[test]
fn two_systems_on_one_machine_do_not_touch_each_other() {
    let one = System::new().part("web", free_port(), "", "");
    let two = System::new().part("web", free_port(), "", "");
    one.start();
    two.start();
    let pid = two.assert_one("web");
    one.stop();
    assert_eq!(two.assert_one("web"), pid);
    two.world.assert_one_agent();
    two.stop();
}

#[test]
fn a_system_is_the_same_one_under_another_runtime_folder() {
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let mut system = System::new()
        .part("kept", ports[0], "", "")
        .part("fresh", ports[1], "", "on_start = \"fresh\"")
        // Its line is in the log that the first folder has.
        .part("log", ports[2], "log", "ready = { log = \"part is up\" }");
    let names = ["kept", "fresh", "log"];
    system.start();
    let before: Vec<u32> = names.iter().map(|name| system.assert_one(name)).collect();
    // As cron or another login has it.
    let other = system.world.path("run-of-another-session");
    std::fs::create_dir(&other).unwrap();
    system.world.set("XDG_RUNTIME_DIR", other);
    let object = system.json("start_voice_system.sh", &["--status"], 0);
    assert_eq!(object["outcome"], "well", "{object}");
    system.start();
    let running = |name: &str| {
        let running = system.running(name);
        assert_eq!(running.len(), 1, "{name}: {running:?}");
        running[0]
    };
    assert_eq!(running("kept"), before[0]);
    assert_ne!(running("fresh"), before[1]);
    assert_eq!(running("log"), before[2]);
    let said = system.stop();
    for name in names {
        assert!(system.running(name).is_empty(), "{name}: {said}");
    }
}

#[test]
fn starts_under_different_runtime_folders_keep_each_other_out() {
    let (one, two) = (free_port(), free_port());
    let system =
        System::new()
            .part("one", one, "delay=0.1", "")
            .part("two", two, "", "needs = [\"one\"]");
    let other = system.world.path("run-of-another-session");
    std::fs::create_dir(&other).unwrap();
    let mut barrier = scenarios::Barrier::new(&system.world);
    for number in 0..6 {
        let mut command = system.command("start_voice_system.sh", &[]);
        if number % 2 == 1 {
            command.env("XDG_RUNTIME_DIR", &other);
        }
        barrier.add(&command);
    }
    for finished in barrier.release().wait() {
        assert_eq!(finished.code(), Some(0), "{}", finished.output);
    }
    for name in ["one", "two"] {
        assert_eq!(system.running(name).len(), 1, "{name}");
        assert_eq!(system.starts(name).len(), 1, "{name}");
    }
    system.world.assert_one_agent();
    system.stop();
}

#[test]
fn what_another_user_has_started_is_kept_by_root_and_named_to_others() {
    Room::new().enter(
        "what_another_user_has_started_is_kept_by_root_and_named_to_others",
        || {
            let Some(user) = OtherUser::nobody("a voice system of another user") else {
                return;
            };
            let port = free_port();
            let mut system = System::new();
            let interpreter = user.interpreter().display().to_string();
            user.moves_into(&mut system.world);
            let system = system.with(&format!(
                "[[companion]]\nname = \"one\"\ncommand = [\"{interpreter}\", \"part.py\", \"{port}\"]\n\
                 ready = {{ port = {port} }}"
            ));
            let by_user = |program: &str, code: i32| {
                let mut command = system.command(program, &["--json"]);
                user.runs(&mut command);
                let output = system.world.run_command(command);
                let said = text(&output);
                assert_eq!(output.status.code(), Some(code), "{said}");
                serde_json::from_str::<Value>(&said).unwrap()
            };
            let pid = part(&by_user("start_voice_system.sh", 0), "one")["pid"].clone();
            // Root has a runtime folder of its own.
            let roots = system.world.path("run-of-root");
            std::fs::create_dir(&roots).unwrap();
            let root = |program: &str, arguments: &[&str]| {
                let mut command = system.command(program, arguments);
                command.env("XDG_RUNTIME_DIR", &roots);
                let output = system.world.run_command(command);
                assert!(output.status.success(), "{}", text(&output));
                serde_json::from_slice::<Value>(&output.stdout).unwrap()
            };
            let object = root("start_voice_system.sh", &["--json"]);
            assert_eq!(part(&object, "one")["pid"], pid, "{object}");
            root("stop_voice_system.sh", &["--json"]);
            assert_eq!(system.world.processes().len(), 0);
            // And root's is named to the user, who may not touch it.
            scenarios::surroundings::remove_traces(&system.world);
            let object = root("start_voice_system.sh", &["--json"]);
            let pid = part(&object, "one")["pid"].clone();
            let object = by_user("start_voice_system.sh", 1);
            let error = part(&object, "one")["error"].as_str().unwrap().to_owned();
            assert!(error.contains("is taken by a process of user root"), "{error}");
            let object = root("start_voice_system.sh", &["--json", "--status"]);
            assert_eq!(part(&object, "one")["pid"], pid, "{object}");
            root("stop_voice_system.sh", &["--json"]);
        },
    );
}

#[test]
fn a_terminal_shows_a_live_line_for_each_part() {
    let port = free_port();
    let mut system = System::new().part("one", port, "delay=0.3", "");
    system.world.set("TERM", "xterm");
    let mut command = system.world.command(python());
    command.arg("-c").arg(
        "import os, pty, sys\n\
         sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.argv[1]])))",
    );
    command.arg(system.world.project().join("start_voice_system.sh"));
    let output = system.world.run_command(command);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("\x1b["), "{said:?}");
    assert!(said.contains("ready"), "{said:?}");
    // No events beside the lines.
    assert!(!said.contains("] one: starting"), "{said:?}");
    system.stop();
}
