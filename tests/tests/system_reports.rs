//! What the voice system's programs say: what runs after a start that failed,
//! how each part stands, what a terminal shows; and that every key of the
//! configuration reaches what it is for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use scenarios::python;
use scenarios::surroundings::{OtherUser, Room, Terminal};
use scenarios::system::{System, free_port, part};

/// Fails unless the words come in this order.
#[track_caller]
fn assert_order(said: &str, words: &[&str]) {
    let mut from = 0;
    for word in words {
        let at = said[from..].find(word);
        let at = at.unwrap_or_else(|| panic!("no {word} after the one before it in:\n{said}"));
        from += at + word.len();
    }
}

// --- what runs

#[test]
fn a_start_that_fails_names_what_runs_though_it_did_not_come_to_it() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"one\"]")
        .part("one", one, "", "needs = [\"two\"]")
        .part("two", two, "", "");
    system.start();
    let (pid, agent) = (system.assert_one("one"), system.world.assert_one_agent());
    system.world.kill(system.assert_one("two"));
    let _taken = TcpListener::bind(("127.0.0.1", two)).unwrap();
    let said = system.run("start_voice_system.sh", &[], 1);
    let expected = format!("what still runs: one (PID {pid}), agent (PID {agent})");
    assert!(said.contains(&expected), "{said}");
    let object = system.json("start_voice_system.sh", &[], 1);
    assert_eq!(part(&object, "two")["state"], "failed", "{object}");
    for (name, pid) in [("one", pid), ("agent", agent)] {
        assert_eq!(part(&object, name)["state"], "running", "{object}");
        assert_eq!(part(&object, name)["pid"], pid, "{object}");
    }
    system.stop();
}

#[test]
fn a_stop_says_how_each_part_stands() {
    let (kept, absent, ended) = (free_port(), free_port(), free_port());
    let system = System::new()
        .part("kept", kept, "", "")
        .part("absent", absent, "", "")
        .part("ended", ended, "", "")
        .with("[[companion]]\nname = \"managed\"\ncheck = [\"true\"]\non_start = \"manual\"");
    let mut by_hand = system.world.command(python());
    by_hand
        .args(["part.py", &kept.to_string()])
        .arg(format!("starts={}", system.starts_file("kept").display()));
    let mut by_hand = by_hand.spawn().unwrap();
    system.start();
    system.world.kill(system.assert_one("absent"));
    system.run("stop_voice_agent_safe.sh", &[], 0);
    let object = system.json("stop_voice_system.sh", &[], 0);
    for (name, state) in [
        ("kept", "running"),
        ("absent", "not running"),
        ("ended", "stopped"),
        ("managed", "not ours"),
        ("agent", "not running"),
    ] {
        assert_eq!(part(&object, name)["state"], state, "{name} in {object}");
    }
    assert_eq!(part(&object, "kept")["pid"], by_hand.id());
    let message = object["message"].as_str().unwrap();
    assert!(
        message.contains("1 companion(s); no agent was running"),
        "{message}"
    );
    system.run("stop_voice_system.sh", &["--all"], 0);
    by_hand.wait().unwrap();
}

#[test]
fn two_agents_at_the_end_of_a_start_are_counted() {
    let mut system = System::new();
    let family = system.world.family().to_owned();
    system.world.set("PYTHON", python());
    let system = system.with(&format!(
        "[[step]]\nname = \"second\"\nwhen = \"after_all\"\n\
         command = [\"sh\", \"-c\", \"\\\"$$PYTHON\\\" {family}.py dev > /dev/null 2>&1 & while ! test -s \\\"$$TEST_AGENT_OVERLAP_LOG\\\"; do :; done\"]"
    ));
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(said.contains("2 agents run at once"), "{said}");
    assert!(!said.contains("died"), "{said}");
    assert_eq!(system.world.agents().len(), 2);
    system.stop();
}

#[test]
fn the_agents_memory_is_that_of_its_whole_family() {
    let mut system = System::new();
    system.world.set("TEST_AGENT_CHILDREN", "fork,fork,fork");
    system.start();
    let agent = system.world.assert_one_agent();
    let resident = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    };
    let all: u64 = system
        .world
        .family_processes()
        .iter()
        .map(|process| resident(process.pid))
        .sum();
    for configured in [false, true] {
        if configured {
            fs::write(system.world.project().join("voice-system.toml"), "").unwrap();
        }
        let object = system.json("start_voice_system.sh", &["--status"], 0);
        let told = part(&object, "agent")["memory_bytes"].as_u64().unwrap();
        assert!(
            told > resident(agent) * 3 / 2 && told <= all * 5 / 4,
            "{told} of {all}: {object}"
        );
    }
    system.stop();
}

// --- the summary, the terminal

#[test]
fn the_summary_names_everything_and_how_to_stop() {
    let mut system = System::new();
    let log = system.world.path("demo.log");
    system.world.set("LOG", &log);
    let port = free_port();
    let system = system.part(
        "demo",
        port,
        "",
        "log = \"$LOG\"\nurl = \"http://localhost:{port}/page.html\"",
    );
    let said = system.start();
    let (demo, agent) = (system.assert_one("demo"), system.world.assert_one_agent());
    let summary = &said[said
        .find("the voice system is up: 2 part(s) ready")
        .unwrap()..];
    let line = |name: &str| {
        let begins = format!("  {name} ");
        let line = summary.lines().find(|line| line.starts_with(&begins));
        line.unwrap_or_else(|| panic!("no line of {name} in:\n{summary}"))
    };
    for words in [
        "ready".to_owned(),
        format!("PID {demo}"),
        format!("port {port}"),
        format!("http://localhost:{port}/page.html"),
        format!("log {}", log.display()),
    ] {
        assert!(line("demo").contains(&words), "no {words} in {summary}");
    }
    let agents_log = format!("log {}", system.world.log_file().display());
    for words in ["ready", &format!("PID {agent}"), &agents_log] {
        assert!(line("agent").contains(words), "no {words} in {summary}");
    }
    let script = |program: &str| system.world.project().join(program).display().to_string();
    for words in [
        format!("stop everything: {}", script("stop_voice_system.sh")),
        format!("restart: {}", script("restart_voice_system.sh")),
        format!("look: {} --status", script("start_voice_system.sh")),
    ] {
        assert!(summary.contains(&words), "no {words} in {summary}");
    }
    system.stop();
}

#[test]
fn a_terminal_shows_who_waits_who_failed_and_how_long_it_took() {
    let (one, two) = (free_port(), free_port());
    let mut system = System::new()
        .part("one", one, "delay=0.4", "")
        .part("two", two, "", "needs = [\"one\"]")
        .part("bad", 1, "early=7", "on_failure = \"warn\"");
    system.world.set("TERM", "xterm");
    let terminal = Terminal::new(
        &system.world,
        &[system.world.project().join("start_voice_system.sh")],
    );
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(0), "{shown}");
    // Without colours and the cursor's ways.
    let mut plain = String::new();
    let mut rest = &*shown;
    while let Some(at) = rest.find('\x1b') {
        plain.push_str(&rest[..at]);
        let end = rest[at + 1..].find(|letter: char| letter.is_ascii_alphabetic());
        rest = end.map_or("", |end| &rest[at + 1 + end + 1..]);
    }
    plain.push_str(rest);
    let words: Vec<&str> = plain.split_whitespace().collect();
    let plain = words.join(" ");
    for expected in [
        "two waiting for one",
        "bad failed: it died before it was ready: exit status 7",
        "one ready in ",
    ] {
        assert!(plain.contains(expected), "no `{expected}` in:\n{plain}");
    }
    let took = plain.split("one ready in ").nth(1).unwrap();
    let took: f64 = took.split(' ').next().unwrap().parse().unwrap();
    assert!((0.4..60.0).contains(&took), "{took} in:\n{plain}");
    system.stop();
}

// --- the order of things

#[test]
fn what_is_needed_goes_down_after_those_that_need_it() {
    let system = System::new()
        .with("[agent]\nneeds = [\"b\"]")
        .part("a", free_port(), "", "on_start = \"fresh\"")
        .part(
            "b",
            free_port(),
            "",
            "on_start = \"fresh\"\nneeds = [\"a\"]",
        )
        .part(
            "c",
            free_port(),
            "",
            "on_start = \"fresh\"\nneeds = [\"agent\"]",
        );
    let down = ["c: stopped", "agent: stop", "b: stopped", "a: stopped"];
    system.start();
    let said = system.run("restart_voice_system.sh", &[], 0);
    assert_order(&said, &down);
    assert_order(
        &said,
        &[
            "a: stopped",
            "a: ready",
            "b: ready",
            "agent: ready",
            "c: ready",
        ],
    );
    let said = system.stop();
    assert_order(&said, &down);
    assert_order(&said, &["c: stopped", "agent: stopped", "b: stopped"]);
}

#[test]
fn a_restart_with_a_part_that_fails_says_what_runs() {
    let (one, two) = (free_port(), free_port());
    let system = System::new()
        .with("[agent]\nneeds = [\"one\"]")
        .part("one", one, "", "on_start = \"fresh\"")
        .part("two", two, "", "");
    system.start();
    let kept = system.assert_one("two");
    // Since then its program has been broken.
    fs::write(
        system.world.project().join("part.py"),
        "print('out of order'); raise SystemExit(9)",
    )
    .unwrap();
    let said = system.run("restart_voice_system.sh", &[], 1);
    for words in [
        "one failed: it died before it was ready: exit status 9",
        "| out of order",
        &format!("what still runs: two (PID {kept})"),
    ] {
        assert!(said.contains(words), "no {words} in {said}");
    }
    assert!(system.running("one").is_empty() && system.world.agents().is_empty());
    system.world.assert_nothing_left();
    system.stop();
}

// --- what the configuration says

#[test]
fn the_agents_python_pattern_and_grace_come_from_the_file() {
    let mut system = System::new();
    let shim = system.world.path("other/bin/python3");
    fs::create_dir_all(shim.parent().unwrap()).unwrap();
    symlink(python(), &shim).unwrap();
    for name in ["PYTHON", "GRACE_SECONDS", "READY_PATTERN"] {
        system.world.unset(format!("VOICE_GUARD_{name}"));
    }
    // Deaf to TERM, and ready by a line of its own.
    let agent = system.world.script();
    fs::write(
        &agent,
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('begun', flush=True)\n\
         print('ears open', flush=True)\nsignal.pause()\n",
    )
    .unwrap();
    system.world.set("OTHER", &shim);
    let system = system.with(
        "[agent]\npython = \"$OTHER\"\nready_pattern = \"^ears open$\"\nverify_seconds = 20\ngrace_seconds = 0.2",
    );
    // By that line: at the end of the window it would only be said to run.
    let said = system.start();
    assert!(said.contains("), ready\n"), "{said}");
    assert!(!said.contains("not confirmed"), "{said}");
    let pid = system.world.assert_one_agent();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let first = line.split(|&byte| byte == 0).next().unwrap();
    assert_eq!(String::from_utf8_lossy(first), shim.display().to_string());
    let begun = Instant::now();
    let said = system.stop();
    // The default is 10.
    assert!(
        (Duration::from_millis(200)..Duration::from_secs(8)).contains(&begun.elapsed()),
        "{said}"
    );
}

#[test]
fn the_environment_of_a_part_and_of_a_step_reaches_it() {
    let port = free_port();
    let system = System::new()
        .with(&format!(
            "[[companion]]\nname = \"one\"\ncommand = [\"sh\", \"-c\", \"echo $$COLOUR $$AT > seen; exec '{}' part.py {port}\"]\n\
             ports = [{port}]\nready = {{ port = \"{{port}}\" }}\nenv = {{ COLOUR = \"green\", AT = \"{{port}}\", HOME = \"/nowhere\" }}",
            python().display()
        ))
        .with(
            "[[step]]\nname = \"two\"\nwhen = \"after_all\"\ncommand = [\"sh\", \"-c\", \"echo $$COLOUR $$HOME > told\"]\n\
             env = { COLOUR = \"red\", HOME = \"/elsewhere\" }",
        );
    system.start();
    let read = |name: &str| fs::read_to_string(system.world.project().join(name)).unwrap();
    assert_eq!(read("seen"), format!("green {port}\n"));
    assert_eq!(read("told"), "red /elsewhere\n");
    system.stop();
}

#[test]
fn another_http_status_than_200_may_be_the_right_one() {
    let port = free_port();
    let url = format!("http://localhost:{port}/");
    let system = System::new()
        .part(
            "good",
            port,
            "status=401",
            &format!("ready = {{ http = \"{url}\", status = 401 }}"),
        )
        // A second look at the same server.
        .with(&format!(
            "[[companion]]\nname = \"bad\"\non_start = \"manual\"\nneeds = [\"good\"]\n\
             on_failure = \"warn\"\nready = {{ http = \"{url}\", status = 402 }}"
        ));
    let object = system.json("start_voice_system.sh", &[], 0);
    assert_eq!(part(&object, "good")["state"], "ready", "{object}");
    let error = part(&object, "bad")["error"].as_str().unwrap();
    assert!(error.contains("it answers with status 401"), "{error}");
    system.stop();
}

#[test]
fn a_log_that_is_a_link_is_not_written() {
    let mut system = System::new();
    let (precious, link) = (system.world.path("precious"), system.world.path("one.log"));
    fs::write(&precious, "precious\n").unwrap();
    symlink(&precious, &link).unwrap();
    system.world.set("LOG", &link);
    let system = system.with("[agent]\nneeds = [\"one\"]").part(
        "one",
        free_port(),
        "",
        "log = \"$LOG\"\nclean = { log = true }",
    );
    let said = system.run("start_voice_system.sh", &[], 1);
    assert!(
        said.contains(&*link.to_string_lossy()) && said.contains("symbolic link"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious\n");
    assert!(system.starts("one").is_empty());
}

#[test]
fn the_systems_own_folders_are_used_where_there_are_no_others() {
    const NAME: &str = "the_systems_own_folders_are_used_where_there_are_no_others";
    let room = Room::new()
        .tmpfs("/etc", "mode=755")
        .tmpfs("/run", "mode=755")
        .tmpfs("/tmp", "mode=1777");
    room.enter(NAME, || {
        let mut system = System::new();
        // /etc/voice-guard, if neither the project nor the user has one.
        let port = free_port();
        fs::create_dir("/etc/voice-guard").unwrap();
        let file = Path::new("/etc/voice-guard/voice-system.toml");
        fs::write(
            file,
            format!(
                "[[companion]]\nname = \"one\"\ncommand = [\"{}\", \"part.py\", \"{port}\"]\nready = {{ port = {port} }}",
                python().display()
            ),
        )
        .unwrap();
        let said = system.run("start_voice_system.sh", &["--check-config"], 0);
        assert!(said.contains("/etc/voice-guard/voice-system.toml"), "{said}");
        // Another user's runtime folder, as `sudo -E` hands it on, is left alone.
        let users = system.world.path("run");
        if let Some(user) = OtherUser::nobody("the runtime folder of another user") {
            lchown(&users, Some(user.uid()), None).unwrap();
        } else {
            system.world.unset("XDG_RUNTIME_DIR");
        }
        let me = rustix::process::geteuid().as_raw();
        let fallback = format!("/tmp/voice-guard-{me}");
        system.start();
        assert_eq!(fs::read_dir(&users).unwrap().count(), 0);
        let folders: Vec<_> = fs::read_dir(&fallback)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.join("one.pid").exists())
            .collect();
        let key = guard_core::runtime::key_of(system.world.project());
        assert_eq!(folders, [Path::new(&fallback).join(key)]);
        for folder in [Path::new(&fallback), &folders[0]] {
            let mode = fs::metadata(folder).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
        }
        system.stop();
    });
}
