//! `scripts/migrate import`: what scripts say at their head, without running them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use scenarios::surroundings::Room;
use scenarios::{Program, World, all_processes, left_out, python, text};
use serde_json::Value;

use super::{NOTHING, clone, expect, expect_of, migrate, names, old_folder};

fn target(world: &World) -> PathBuf {
    world.project().join("voice-system.toml")
}

/// A project folder with the scripts of `migration/stack` and no others.
fn stack() -> World {
    let world = old_folder();
    for program in Program::ALL {
        fs::remove_file(world.link(program)).unwrap();
        let from = clone().join("tests/migration/stack").join(program.script());
        if from.exists() {
            fs::copy(from, world.link(program)).unwrap();
        }
    }
    world
}

/// A project folder with one script: this one.
fn folder_with(program: Program, script: &str) -> World {
    let world = old_folder();
    for each in Program::ALL {
        fs::remove_file(world.link(each)).unwrap();
    }
    fs::write(world.link(program), script).unwrap();
    world
}

/// The file as data; none where no Python reads TOML.
fn parsed(world: &World) -> Option<Value> {
    const READ: &str = "import json, sys, tomllib; \
        json.dump(tomllib.load(open(sys.argv[1], 'rb')), sys.stdout)";
    if !world
        .command(python())
        .args(["-c", "import tomllib"])
        .output()
        .unwrap()
        .status
        .success()
    {
        left_out(
            "what import writes, as TOML",
            "this python3 has no tomllib (3.11 has)",
        );
        return None;
    }
    let output = world.run_command({
        let mut command = world.command(python());
        command.args(["-c", READ]).arg(target(world));
        command
    });
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output),
        fs::read_to_string(target(world)).unwrap()
    );
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn companion<'a>(file: &'a Value, name: &str) -> &'a Value {
    file["companion"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["name"] == name))
        .unwrap_or_else(|| panic!("no companion {name} in {file}"))
}

#[test]
fn a_whole_stack_is_imported() {
    let world = stack();
    expect(&world, "import", NOTHING, 0);
    let Some(file) = parsed(&world) else { return };
    let expected = serde_json::json!({
        "script": "letta_voice_agent_optimized.py",
        "python": "/srv/voice/.venv/bin/python3",
        "env_files": [".env"],
        "pid_file": "/tmp/letta_voice_agent.pid",
        "lock_file": "/tmp/letta_voice_agent.lock",
        "log": "logs/voice_agent.log",
        "needs": ["livekit", "letta"],
    });
    assert_eq!(file["agent"], expected);
    let names: Vec<_> = file["companion"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["postgresql", "letta", "livekit", "cors-proxy", "demo"]
    );

    let postgresql = companion(&file, "postgresql");
    assert_eq!(postgresql["check"], serde_json::json!(["pg_isready", "-q"]));
    let letta = companion(&file, "letta");
    assert_eq!(
        letta["command"],
        serde_json::json!(["${HOME}/bin/start_letta.sh"])
    );
    assert_eq!(letta["ready"]["http"], "http://localhost:8283/");
    let livekit = companion(&file, "livekit");
    assert_eq!(
        livekit["command"],
        serde_json::json!(["./livekit-server", "--dev", "--bind", "0.0.0.0"])
    );
    assert_eq!(livekit["folder"], "livekit");
    assert_eq!(livekit["ready"]["port"], 7880);
    assert_eq!(livekit["on_start"], "fresh");
    let proxy = companion(&file, "cors-proxy");
    assert_eq!(
        proxy["command"],
        serde_json::json!(["/srv/voice/.venv/bin/python3", "cors_proxy_server.py"])
    );
    assert_eq!(proxy["env"]["PORT_FILE"], "/tmp/port");
    assert_eq!(proxy["ready"]["port"], 9000);
    let demo = companion(&file, "demo");
    assert_eq!(
        demo["command"],
        serde_json::json!(["python3", "-m", "http.server", "{port}"])
    );
    assert_eq!(demo["ports"], serde_json::json!([8888, 8899]));
    assert_eq!(demo["log"], "/tmp/demo_server.log");
}

/// What the stack's scripts name, as stand-ins that can be run, and its file imported.
fn furnished_stack() -> World {
    let mut world = stack();
    let executable = |path: PathBuf, text: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let web = |port: u16| format!("exec python3 -m http.server --bind 127.0.0.1 {port}");
    let bin = world.path("bin");
    let up = world.path("postgresql-is-up");
    let up = up.display();
    executable(bin.join("pg_isready"), &format!("test -e {up}"));
    executable(bin.join("sudo"), &format!("test \"$1\" = -n && touch {up}"));
    executable(world.path("home/bin/start_letta.sh"), &web(8283));
    executable(world.project().join("livekit/livekit-server"), &web(7880));
    fs::write(world.project().join(".env"), "").unwrap();
    fs::write(
        world.project().join("cors_proxy_server.py"),
        "import http.server\n\
         http.server.test(http.server.SimpleHTTPRequestHandler, port=9000, bind='127.0.0.1')\n",
    )
    .unwrap();
    fs::create_dir(world.project().join("logs")).unwrap();
    fs::copy(
        world.script(),
        world.project().join("letta_voice_agent_optimized.py"),
    )
    .unwrap();
    let interpreters = python().parent().unwrap();
    let path = format!("{}:{}:/usr/bin:/bin", bin.display(), interpreters.display());
    world.set("PATH", path);
    for name in [
        "AGENT_SCRIPT",
        "PID_FILE",
        "LOCK_FILE",
        "LOG_FILE",
        "PYTHON",
    ] {
        world.unset(format!("VOICE_GUARD_{name}"));
    }
    expect(&world, "import", NOTHING, 0);
    // The one thing that is elsewhere on the owner's machine.
    let file = fs::read_to_string(target(&world)).unwrap();
    let interpreter = python().to_str().unwrap();
    let file = file.replace("/srv/voice/.venv/bin/python3", interpreter);
    fs::write(target(&world), file).unwrap();
    world
}

/// With what it names in its place, the programs take the file as it is.
#[test]
fn the_programs_accept_what_is_imported() {
    let world = furnished_stack();
    fs::remove_file(world.link(Program::System)).unwrap();
    symlink(
        scenarios::binary(Program::System),
        world.link(Program::System),
    )
    .unwrap();
    let mut check = world.program(Program::System);
    check.arg("--check-config");
    let said = expect_of(&world, check, 0);
    for part in ["postgresql", "letta", "livekit", "cors-proxy", "demo"] {
        assert!(said.contains(&format!("  {part}: ")), "{said}");
    }
    assert!(
        said.contains("agent: letta_voice_agent_optimized.py dev; needs livekit, letta"),
        "{said}"
    );
}

/// And start it: every part, once, each where the old scripts had it.
#[test]
fn an_imported_stack_is_started_kept_and_stopped() {
    let room = Room::new().tmpfs("/tmp", "mode=1777").keep(clone());
    room.own_network().enter(
        "import::an_imported_stack_is_started_kept_and_stopped",
        || {
            let mut world = furnished_stack();
            let runtime = world.path("run");
            fs::create_dir(&runtime).unwrap();
            fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
            world.set("XDG_RUNTIME_DIR", &runtime);
            // A taken port: the demo goes where the old restart put it.
            let taken = std::net::TcpListener::bind("0.0.0.0:8888").unwrap();
            expect(
                &world,
                "switch",
                &["start_voice_system", "stop_voice_system"],
                0,
            );
            let agents = || -> Vec<u32> {
                all_processes()
                    .iter()
                    .filter(|process| process.runs_agent("letta_voice_agent", None))
                    .map(|process| process.pid)
                    .collect()
            };
            world.expect(Program::System, 0);
            let first = agents();
            assert_eq!(first.len(), 1, "{}", world.describe());
            for port in [8283, 7880, 9000, 8899] {
                assert!(
                    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(),
                    "nobody listens on {port}"
                );
            }
            let names: Vec<_> = fs::read_dir(world.project().join("logs"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert!(names.contains(&"voice_agent.log".into()), "{names:?}");
            for log in ["livekit.log", "letta_server.log", "cors_proxy.log"] {
                assert!(Path::new("/tmp").join(log).exists(), "{log}");
            }
            world.expect(Program::System, 0);
            assert_eq!(agents(), first);
            let mut status = world.program(Program::System);
            status.arg("--status");
            expect_of(&world, status, 0);
            world.expect(Program::StopSystem, 0);
            assert!(agents().is_empty());
            assert!(world.processes().is_empty(), "{}", world.describe());
            drop(taken);
        },
    );
}

#[test]
fn every_line_says_where_it_comes_from() {
    let world = stack();
    expect(&world, "import", NOTHING, 0);
    let file = fs::read_to_string(target(&world)).unwrap();
    let mut from_a_script = 0;
    for line in file
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (_, comment) = line
            .split_once(" # ")
            .unwrap_or_else(|| panic!("no comment: {line}"));
        if let Some((script, rest)) = comment.split_once(".sh:") {
            from_a_script += 1;
            let script = world.project().join(format!("{script}.sh"));
            let script = fs::read_to_string(script).unwrap();
            let mut words = rest.split(' ');
            let number: usize = words.next().unwrap().parse().unwrap();
            let there = script.lines().nth(number - 1).unwrap();
            if let Some(name) = words.next() {
                assert!(
                    there.contains(&format!("{name}=")) || there.contains(&format!("{name}:=")),
                    "{line}\n{there}"
                );
            }
        }
    }
    assert!(from_a_script > 25, "{file}");
    for (start, end) in [
        (
            "folder = \"livekit\" ",
            " # start_voice_system.sh:9 LIVEKIT_DIR",
        ),
        ("pid_file = ", " # start_voice_agent_safe.sh:5 PID_FILE"),
    ] {
        let found = |line: &str| line.starts_with(start) && line.ends_with(end);
        assert!(file.lines().any(found), "{start}...{end} is not in\n{file}");
    }
}

#[test]
fn what_cannot_be_translated_is_listed_at_the_end_and_said() {
    let world = stack();
    let said = expect(&world, "import", NOTHING, 0);
    let file = fs::read_to_string(target(&world)).unwrap();
    let (_, list) = file.split_once("# Not translated").unwrap();
    for entry in [
        "start_voice_system.sh:12  LETTA_PORT=${LETTA_PORT:-8283}: LETTA_PORT from the environment",
        "start_voice_system.sh:16  MAX_WAIT=60",
        "start_voice_system.sh:17  STARTED_AT=$(date +%s)",
        "start_voice_system.sh:18  PIDS=()",
        "start_voice_system.sh:32  LOG_DIR=/var/log/letta: assigned inside a block",
        "start_voice_system.sh:43  nohup python3 room_health_monitor.py",
        "start_voice_agent_safe.sh:8  ENV_FILE=\"$HOME/keys.env\": differs from start_voice_system.sh:8",
        "restart_voice_system.sh:5 PYTHON: python3 is no path",
        "restart_voice_system.sh:7  ./livekit-cli create-token",
        "start_voice_system.sh:8 ENV_FILE: there is no",
    ] {
        assert!(list.contains(entry), "{entry} is not listed in\n{list}");
        assert!(said.contains(entry), "{entry} is not said in\n{said}");
    }
    // Also where more of the word follows what cannot be known.
    let (_, said) = imported(
        &world,
        "#!/bin/bash\nPID_FILE=\"$(run_dir)/agent.pid\" X=1\nLOCK_FILE=$PID_FILE.lock\n",
    );
    for entry in [
        "start_voice_system.sh:2  PID_FILE=\"$(run_dir)/agent.pid\" X=1: the output of a command",
        "start_voice_system.sh:3  LOCK_FILE=$PID_FILE.lock: $PID_FILE is not known",
    ] {
        assert!(said.contains(entry), "{entry} is not said in\n{said}");
    }
    // Colours are nobody's setting, and a here-document is no assignment.
    assert!(!file.contains("033"), "{file}");
    assert!(!file.contains("/not/this/one"), "{file}");
}

#[test]
fn the_kept_originals_are_read_after_a_switch() {
    let world = stack();
    expect(&world, "import", NOTHING, 0);
    let before = fs::read(target(&world)).unwrap();
    fs::remove_file(target(&world)).unwrap();
    expect(&world, "switch", &["--all"], 0);
    expect(&world, "import", NOTHING, 0);
    assert_eq!(fs::read(target(&world)).unwrap(), before);
}

#[test]
fn an_existing_file_is_never_overwritten() {
    let world = stack();
    fs::write(target(&world), "mine\n").unwrap();
    for arguments in [NOTHING, &["--dry-run"]] {
        let said = expect(&world, "import", arguments, 1);
        assert!(said.contains("never overwritten"), "{said}");
        assert_eq!(fs::read_to_string(target(&world)).unwrap(), "mine\n");
    }
    fs::remove_file(target(&world)).unwrap();
    symlink("nowhere", target(&world)).unwrap();
    expect(&world, "import", NOTHING, 1);
    assert!(!world.project().join("nowhere").exists());
}

#[test]
fn an_import_leaves_one_file_and_a_dry_run_none() {
    let world = stack();
    let mut files = names(world.project());
    let printed = world
        .run_command(migrate(&world, "import", &["--dry-run"]))
        .stdout;
    assert_eq!(names(world.project()), files);
    // What an interrupted import has left.
    fs::write(world.project().join(".voice-system.toml.migrating"), "[age").unwrap();
    expect(&world, "import", NOTHING, 0);
    assert_eq!(fs::read(target(&world)).unwrap(), printed);
    files.push("voice-system.toml".to_owned());
    files.sort();
    assert_eq!(names(world.project()), files);
}

#[test]
fn a_folder_without_scripts_has_nothing_to_import() {
    let world = World::new();
    let said = expect(&world, "import", NOTHING, 1);
    assert!(said.contains("none of the original scripts"), "{said}");
}

#[test]
fn nothing_of_the_scripts_is_run() {
    let trap_name = "was-run";
    let world = old_folder();
    let trap = world.path(trap_name);
    let hostile = format!(
        "#!/bin/bash\nPROJECT_DIR=$(touch {0})\nVENV_DIR=`touch {0}`\n\
         ENV_FILE=\"$(dirname \"$(touch {0})\")\"\nLIVEKIT_DIR=${{X:-$(touch {0})}}\n\
         LOG_DIR=\"a;touch {0}\"\nLIVEKIT_PORT=$((a[$(touch {0})]))\nLETTA_PORT='x[$(touch {0})]'\n\
         PID_FILE=${{y@P}}\nLOCK_FILE=${{!z}}\n: \"${{DEMO_PORT:=$(touch {0})}}\"\n\
         nohup $(touch {0}) > $(touch {0})/livekit.log 2>&1 &\n\
         a='$(touch {0})' eval \"$a\"\n<(touch {0})\n",
        trap.display()
    );
    for program in Program::ALL {
        fs::write(world.link(program), &hostile).unwrap();
    }
    let output = world.run_command(migrate(&world, "import", NOTHING));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(!trap.exists(), "{}", text(&output));
    // Whatever it says, it is TOML.
    let _ = parsed(&world);
}

/// What becomes of a script's assignments, one script after the other.
struct Importer {
    world: World,
}

impl Importer {
    fn new() -> Self {
        Self {
            world: folder_with(Program::Start, ""),
        }
    }

    /// The value of a string in `[agent]`, as it stands in the file.
    #[track_caller]
    fn import(&self, script: &str, key: &str) -> Option<String> {
        let path = self.world.link(Program::Start);
        fs::write(path, format!("#!/bin/bash\n{script}\n")).unwrap();
        let output = self
            .world
            .run_command(migrate(&self.world, "import", &["--dry-run"]));
        assert_eq!(output.status.code(), Some(0), "{script}\n{}", text(&output));
        assert!(output.stderr.is_empty(), "{script}\n{}", text(&output));
        let file = String::from_utf8(output.stdout).unwrap();
        let start = format!("{key} = \"");
        let line = file.lines().find_map(|line| line.strip_prefix(&start))?;
        let (value, _) = line.rsplit_once(" # ").expect("a comment");
        let value = value.trim_end().strip_suffix('"').expect("a string");
        Some(value.to_owned())
    }
}

#[test]
fn assignments_of_every_form_are_read() {
    let importer = Importer::new();
    for (script, key, value) in [
        ("PID_FILE=/a/b", "pid_file", "/a/b"),
        ("PID_FILE='/a b'", "pid_file", "/a b"),
        ("PID_FILE=\"/a b\" # not this", "pid_file", "/a b"),
        ("PID_FILE=/a#b", "pid_file", "/a#b"),
        ("PID_FILE=/a\\ b", "pid_file", "/a b"),
        ("PID_FILE=\"/a\\\"b\"", "pid_file", "/a\\\"b"),
        ("PID_FILE='/a\\b'", "pid_file", "/a\\\\b"),
        ("PID_FILE=/a'b c'\"d\"", "pid_file", "/ab cd"),
        ("export PID_FILE=/a", "pid_file", "/a"),
        ("readonly PID_FILE=/a", "pid_file", "/a"),
        ("declare -rx PID_FILE=/a", "pid_file", "/a"),
        ("pid_file=/a", "pid_file", "/a"),
        ("X=1 PID_FILE=/a", "pid_file", "/a"),
        ("X=1; PID_FILE=/a", "pid_file", "/a"),
        ("X=1 && PID_FILE=/a", "pid_file", "/a"),
        ("D=/d\nPID_FILE=$D/a", "pid_file", "/d/a"),
        ("D=/d\nE=$D/e\nPID_FILE=\"${E}/a\"", "pid_file", "/d/e/a"),
        (
            "D=/d\nPID_FILE='$D'/a\nPID_FILE=/second",
            "pid_file",
            "/second",
        ),
        ("PID_FILE=~/a", "pid_file", "${HOME}/a"),
        ("PID_FILE=$HOME/a", "pid_file", "${HOME}/a"),
        ("PID_FILE=${PID_FILE:-/a}", "pid_file", "/a"),
        (
            "PID_FILE=\"${RUN:-${HOME}/run}/a\"",
            "pid_file",
            "${HOME}/run/a",
        ),
        (": \"${PID_FILE:=/a}\"", "pid_file", "/a"),
        ("PID_FILE=\\\n/a", "pid_file", "/a"),
        ("PID_FILE=/a\r", "pid_file", "/a"),
        ("PID_FILE=$(dirname \"$0\")/a", "pid_file", "a"),
        (
            "PID_FILE=$(cd \"$(dirname \"${BASH_SOURCE[0]}\")\" &>/dev/null && pwd -P)/a",
            "pid_file",
            "a",
        ),
        ("PID_FILE=`dirname $0`/a", "pid_file", "a"),
        ("PID_FILE=${0%/*}/a", "pid_file", "a"),
        (
            "PID_FILE=$(dirname \"$(readlink -f \"$0\")\")/a",
            "pid_file",
            "a",
        ),
        ("PID_FILE=$PWD/run/a", "pid_file", "run/a"),
        (
            "HERE=$(pwd)\nPROJECT_DIR=$HERE\nPID_FILE=$PROJECT_DIR/a",
            "pid_file",
            "a",
        ),
        (
            "LETTA_VOICE_AGENT_EXE=/x/my_agent.py",
            "script",
            "/x/my_agent.py",
        ),
        (
            "LETTA_VOICE_AGENT_EXE='/v/bin/python3 -u my_agent.py start'",
            "script",
            "my_agent.py",
        ),
        (
            "LETTA_VOICE_AGENT_EXE='/v/bin/python3 -u my_agent.py start'",
            "python",
            "/v/bin/python3",
        ),
        (
            "LETTA_VOICE_AGENT_EXE='/v/bin/python3 -u my_agent.py start'",
            "mode",
            "start",
        ),
        (
            "LETTA_VOICE_AGENT_EXE=/v/bin/python3.11",
            "python",
            "/v/bin/python3.11",
        ),
        (
            "python \"$DIR\"/other_agent.py start > x &",
            "mode",
            "start",
        ),
        ("VENV_DIR=$HOME/venv", "python", "${HOME}/venv/bin/python3"),
        ("echo hello\ncd /tmp\nPID_FILE=/a", "pid_file", "/a"),
        ("f() {\n  PID_FILE=/no\n}\nPID_FILE=/a", "pid_file", "/a"),
        ("if true; then X=1; fi\nPID_FILE=/a", "pid_file", "/a"),
        (
            "X='several\nPID_FILE=/no\nlines'\nPID_FILE=/a",
            "pid_file",
            "/a",
        ),
    ] {
        let found = importer.import(script, key);
        assert_eq!(found.as_deref(), Some(value), "{script}");
    }
}

#[test]
fn what_cannot_be_known_is_not_guessed() {
    let importer = Importer::new();
    for script in [
        "PID_FILE=$(mktemp)",
        "PID_FILE=$NOT_SET_ANYWHERE",
        "PID_FILE=\"${NOT_SET_ANYWHERE}/a\"",
        "PID_FILE=/tmp/$$.pid",
        "PID_FILE=$1",
        "PID_FILE=/tmp/a$RANDOM",
        "PID_FILE=${X##*/}",
        "PID_FILE=(a b)",
        "PID_FILE=$'\\x41'",
        "PID_FILE=~other/a",
        "PID_FILE='$HOME/a'",
        "PID_FILE=\"~/a\"",
        "X=$(hostname)\nPID_FILE=/tmp/$X",
        "X=1\nif true; then\n  X=2\nfi\nPID_FILE=/tmp/$X",
        "if true; then\n  PID_FILE=/a\nfi",
        "f() {\n  PID_FILE=/a\n}",
        "while read -r x; do\nPID_FILE=/a\ndone",
        "PID_FILE=/a command",
        "cat <<END\nPID_FILE=/a\nEND",
        "# PID_FILE=/a",
        "PID_FILE='never\nclosed",
        "PID_FILE=$((1 + 2))",
        "PID_FILE=/tmp/*.pid",
        "PID_FILE='/tmp/\u{1}x'",
    ] {
        assert_eq!(importer.import(script, "pid_file"), None, "{script}");
    }
}

/// Imports this as the system start; gives the file as data and what was said.
fn imported(world: &World, script: &str) -> (Option<Value>, String) {
    let _ = fs::remove_file(target(world));
    fs::write(world.link(Program::System), script).unwrap();
    let said = expect(world, "import", NOTHING, 0);
    (parsed(world), said)
}

/// Lines that go on, redirections before the command, folders of their own, and no
/// port, log or folder that is the default.
#[test]
fn the_commands_of_the_parts_are_read_as_a_shell_reads_them() {
    let world = folder_with(Program::System, "");
    let project = world.project().display().to_string();
    let script = format!(
        r#"#!/bin/bash
PROJECT_DIR="{project}"
# A comment goes on in no other line \
LIVEKIT_DIR=$PROJECT_DIR/livekit
LIVEKIT_PORT=7990 LETTA_PORT=8299
CORS_PORT=9111; DEMO_PORT=8001
DEMO_PORT_FALLBACK=8002
cat <<END
nohup ./not-this-one > /tmp/livekit.log 2>&1 &
END
: > /tmp/livekit.log && echo emptied
cat /dev/null > /tmp/letta_server.log; date >> /tmp/cors_proxy.log
cd "$LIVEKIT_DIR" || exit 1
nohup ./livekit-server --dev \
    --bind 0.0.0.0 --config "$PROJECT_DIR/lk.yaml" \
    --keys="$PROJECT_DIR/keys" > "/var/log/voice/livekit.log" 2>&1 &
cd ..
> /var/log/voice/letta_server.log nohup "$PROJECT_DIR/letta.sh" "$PROJECT_DIR/conf" $LETTA_PORT 2>&1 &
(cd proxy && PORT=$CORS_PORT ROOT=$PROJECT_DIR/www nohup python3 cors_proxy_server.py --allow "$PROJECT_DIR/www" > /tmp/proxy/cors_proxy.log 2>&1) & CORS_PID=$!
cd "$LIVEKIT_DIR"; echo here
cd -
cd web && nohup > /tmp/demo_server.log python3 -m http.server $DEMO_PORT 2>&1 &"#
    );
    let (file, said) = imported(&world, &script);
    assert!(!said.contains("could not be translated"), "{said}");
    let text = fs::read_to_string(target(&world)).unwrap();
    assert!(
        text.contains("# start_voice_system.sh:14\n"),
        "the first line's number\n{text}"
    );
    let Some(file) = file else { return };
    assert_eq!(
        file["agent"]["needs"],
        serde_json::json!(["livekit", "letta"])
    );
    let members = |name, keys: &[&str]| -> Vec<Value> {
        let part = companion(&file, name);
        keys.iter().map(|key| part[key].clone()).collect()
    };
    let there = |name: &str| format!("{project}/{name}");
    assert_eq!(
        serde_json::json!(members(
            "livekit",
            &["command", "folder", "log", "ready", "url"]
        )),
        serde_json::json!([
            ["./livekit-server", "--dev", "--bind", "0.0.0.0", "--config", there("lk.yaml"),
             format!("--keys={}", there("keys"))],
            "livekit", "/var/log/voice/livekit.log", {"port": 7990}, "http://localhost:7990/"
        ])
    );
    assert_eq!(
        serde_json::json!(members("letta", &["command", "folder", "log", "ready"])),
        serde_json::json!([
            ["./letta.sh", "conf", "8299"],
            null, "/var/log/voice/letta_server.log", {"http": "http://localhost:8299/"}
        ])
    );
    assert_eq!(
        serde_json::json!(members(
            "cors-proxy",
            &["command", "env", "folder", "log", "ready"]
        )),
        serde_json::json!([
            ["python3", "cors_proxy_server.py", "--allow", there("www")],
            {"PORT": "9111", "ROOT": there("www")},
            "proxy", "/tmp/proxy/cors_proxy.log", {"port": 9111}
        ])
    );
    assert_eq!(
        serde_json::json!(members(
            "demo",
            &["command", "folder", "log", "ports", "ready"]
        )),
        serde_json::json!([
            ["python3", "-m", "http.server", "{port}"],
            "web", "/tmp/demo_server.log", [8001, 8002], {"port": "{port}"}
        ])
    );
}

#[test]
fn a_port_or_log_folder_that_no_command_shows_is_taken_from_its_variable() {
    let world = folder_with(Program::System, "");
    let (file, said) = imported(
        &world,
        "#!/bin/bash\nLOG_DIR=/var/log/voice\nLIVEKIT_DIR=/opt/livekit\nLETTA_SCRIPT=/opt/letta.sh\n\
         LIVEKIT_PORT=07880\nLETTA_URL=http://10.0.0.1:1/\n\
         nohup python3 -m http.server 8123 > \"$(date +%F)/demo_server.log\" &\n\
         nohup python3 -m http.server 8123 > demo_server.log &\n",
    );
    assert!(said.contains("07880 is no port; 7880 is taken"), "{said}");
    let Some(file) = file else { return };
    assert_eq!(
        companion(&file, "livekit")["log"],
        "/var/log/voice/livekit.log"
    );
    assert_eq!(companion(&file, "livekit")["folder"], "/opt/livekit");
    assert_eq!(
        companion(&file, "letta")["log"],
        "/var/log/voice/letta_server.log"
    );
    assert_eq!(
        companion(&file, "letta")["ready"]["http"],
        "http://10.0.0.1:1/"
    );
    // The command knows better than what is usual.
    assert_eq!(
        companion(&file, "demo")["ports"],
        serde_json::json!([8123, 8899])
    );
}

/// Half a command would be started as if it were the whole one.
#[test]
fn a_part_whose_command_cannot_be_told_is_left_out_and_listed() {
    let world = folder_with(Program::System, "");
    let head = "#!/bin/bash\nLIVEKIT_DIR=/opt/livekit\nPROJECT_DIR=/srv/gone\n\
        serve() { exec python3 -m http.server 8888; }\nARGS='--dev --bind 0.0.0.0'\n";
    for lines in [
        [
            (
                "source venv/bin/activate && nohup python3 x.py > /tmp/cors_proxy.log 2>&1 &",
                "several commands in one line",
            ),
            (
                "test -x livekit-server && nohup ./livekit-server > /tmp/livekit.log 2>&1 &",
                "several commands in one line",
            ),
            (
                "[ -x letta ] && ./letta > /tmp/letta_server.log &",
                "several commands in one line",
            ),
            (
                "if true; then python3 -m http.server > /tmp/demo_server.log & fi",
                "several commands in one line",
            ),
        ],
        [
            (
                "nohup python3 \"$NOT_SET/x.py\" > /tmp/cors_proxy.log &",
                "needs NOT_SET, which is not set here",
            ),
            (
                "./livekit-server $ARGS > /tmp/livekit.log &",
                "$ARGS is split into several words",
            ),
            (
                "nohup sh -c 'echo $HOME' > /tmp/letta_server.log &",
                "holds what the file cannot say",
            ),
            (
                "KEY=$NOT_SET nohup python3 -m http.server 8888 > /tmp/demo_server.log &",
                "needs NOT_SET, which is not set here",
            ),
        ],
        [
            ("setsid -f ./x > /tmp/cors_proxy.log &", "with options"),
            (
                "cd \"$(find / -name livekit)\"\n./livekit-server > /tmp/livekit.log &",
                "the folder in which it is run is not known",
            ),
            (
                "./letta > /tmp/letta_server.log",
                "not started in the background",
            ),
            (
                "cd /\nserve > /tmp/demo_server.log &",
                "serve is a function of the script",
            ),
        ],
        [
            (
                "./a > /tmp/cors_proxy.log & ./b > /tmp/b.log &",
                "several commands in one line",
            ),
            (
                "cd /opt || { echo no; exit 1; }; ./livekit-server > /tmp/livekit.log &",
                "several commands in one line",
            ),
            (
                "cd \"$NOT_SET\"\n./letta > /tmp/letta_server.log &",
                "needs NOT_SET, which is not set here",
            ),
            (
                "cd /\n./demo <<< x > /tmp/demo_server.log &",
                "only a shell provides",
            ),
        ],
    ] {
        let script = lines.map(|(line, _)| line).join("\n");
        let (file, said) = imported(&world, &format!("{head}{script}\n"));
        for ((line, why), name) in lines.iter().zip(["cors-proxy", "livekit", "letta", "demo"]) {
            let entry =
                |entry: &str| entry.contains(why) && entry.contains("start_voice_system.sh:");
            assert!(said.lines().any(entry), "{line}: {why}\n{said}");
            let left_out = format!("{name} is left out, since");
            assert!(said.contains(&left_out), "{line}\n{said}");
        }
        let Some(file) = file else { return };
        assert!(file["companion"].is_null(), "{script}\n{file}");
        assert!(file["agent"]["needs"].is_null(), "{script}\n{file}");
    }
}

#[test]
fn what_a_moved_projects_commands_name_is_looked_for_in_this_folder() {
    let world = folder_with(Program::System, "");
    let (file, said) = imported(
        &world,
        "#!/bin/bash\nPROJECT_DIR=/srv/gone\ncd $PROJECT_DIR/livekit\n\
         ./livekit-server --config=$PROJECT_DIR/lk.yaml > /tmp/livekit.log &\n",
    );
    assert!(said.contains("is not there; its paths are taken"), "{said}");
    let Some(file) = file else { return };
    let livekit = companion(&file, "livekit");
    let config = format!("--config={}/lk.yaml", world.project().display());
    assert_eq!(
        livekit["command"],
        serde_json::json!(["./livekit-server", config])
    );
    assert_eq!(livekit["folder"], "livekit");
}

#[test]
fn bytes_that_are_no_text_are_listed_and_the_file_is_text() {
    let world = folder_with(Program::Start, "");
    fs::write(
        world.link(Program::Start),
        b"#!/bin/bash\nPID_FILE=/tmp/\xff.pid\nLOCK_FILE=\"/tmp/\xc3\xa9.lock\"\n",
    )
    .unwrap();
    expect(&world, "import", NOTHING, 0);
    let file = fs::read_to_string(target(&world)).expect("UTF-8");
    assert!(file.contains("lock_file = \"/tmp/é.lock\""), "{file}");
    assert!(!file.contains("\npid_file ="), "{file}");
    assert!(file.contains("# - start_voice_agent_safe.sh:2"), "{file}");
}

#[test]
fn paths_below_the_project_folder_are_written_from_there() {
    let world = folder_with(Program::System, "");
    let project = world.project().display().to_string();
    fs::write(
        world.link(Program::System),
        format!("#!/bin/bash\nPROJECT_DIR={project}\nENV_FILE=$PROJECT_DIR/conf/.env\nVENV_DIR={project}/venv\nLIVEKIT_DIR=$PROJECT_DIR\n"),
    )
    .unwrap();
    expect(&world, "import", NOTHING, 0);
    let Some(file) = parsed(&world) else { return };
    assert_eq!(file["agent"]["env_files"], serde_json::json!(["conf/.env"]));
    assert_eq!(file["agent"]["python"], "venv/bin/python3");
    assert_eq!(companion(&file, "livekit")["folder"], ".");
}

#[test]
fn a_project_in_another_folder_is_said() {
    let world = folder_with(Program::System, "");
    let other = world.scratch();
    fs::write(
        world.link(Program::System),
        format!(
            "#!/bin/bash\nPROJECT_DIR='{}'\nENV_FILE=$PROJECT_DIR/.env\n",
            other.display()
        ),
    )
    .unwrap();
    let said = expect(&world, "import", NOTHING, 0);
    assert!(said.contains("VOICE_GUARD_PROJECT_DIR"), "{said}");
    let Some(file) = parsed(&world) else { return };
    let env_file = other.join(".env").display().to_string();
    assert_eq!(file["agent"]["env_files"], serde_json::json!([env_file]));
}

#[test]
fn the_import_is_found_in_any_folder() {
    let world = super::old_folder_named("a \"b\" 'c'\n$d");
    fs::write(
        world.link(Program::Start),
        "#!/bin/bash\nPID_FILE=$(dirname \"$0\")/x\n",
    )
    .unwrap();
    let mut command = world.command(clone().join("scripts/migrate"));
    command.current_dir(world.project()).args(["import", "."]);
    expect_of(&world, command, 0);
    let Some(file) = parsed(&world) else { return };
    assert_eq!(file["agent"]["pid_file"], "x");
}
