//! The README's commands, run as they stand there, and its tables beside what
//! the programs say of themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use scenarios::surroundings::Room;
use scenarios::{Process, Program, World, all_processes, binary, python, text};

/// The commands that no test can run here, and who runs them.
const RUN_ELSEWHERE: [&str; 5] = [
    "scripts/test",
    // systemd.rs, with the rest of this block
    "echo VOICE_GUARD_PROJECT_DIR=/srv/agent | sudo tee /etc/default/letta-voice-agent\n\
     sudo cp systemd/letta-voice-agent-safe.service /etc/systemd/system/\n\
     sudo systemctl daemon-reload\n\
     sudo systemctl enable letta-voice-agent-safe\n\
     sudo systemctl start letta-voice-agent-safe",
    // production_document.rs, debian_package.rs, and scripts/test where a newcomer builds
    "sudo cp packaging/logrotate /etc/logrotate.d/voice-guard",
    "sudo apt install \"$(scripts/package)\"",
    "cargo install --path check-agent-running",
];

fn clone() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the clone").to_owned()
}

fn readme() -> String {
    fs::read_to_string(clone().join("README.md")).expect("the README")
}

/// One ` ```sh ` block: it is typed in the clone's folder.
struct Block {
    line: usize,
    text: String,
    skipped: bool,
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open = false;
    let mut skipped = false;
    for (index, line) in readme.lines().enumerate() {
        match line {
            "```sh" => {
                open = true;
                blocks.push(Block {
                    line: index + 1,
                    text: String::new(),
                    skipped,
                });
                skipped = false;
            }
            "```" => open = false,
            _ if open => {
                let block = blocks.last_mut().expect("an open block");
                writeln!(block.text, "{line}").expect("a String takes everything");
            }
            _ => skipped |= line.starts_with("<!-- test: skip"),
        }
    }
    blocks
}

/// The block's commands, each with the exit status that the README gives it
/// in a comment (`# exit 1`), else 0. A here-document belongs to its command.
fn commands(block: &str) -> Vec<(String, i32)> {
    let mut commands = Vec::new();
    let mut lines = block.lines();
    while let Some(first) = lines.next() {
        let mut command = first.to_owned();
        if let Some((_, word)) = first.split_once("<<") {
            let word = word.trim_matches('\'');
            for line in lines.by_ref() {
                write!(command, "\n{line}").expect("a String takes everything");
                if line == word {
                    break;
                }
            }
        }
        let status = first.split_once("# exit ").map_or(0, |(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().expect("an exit status after `# exit `")
        });
        commands.push((command, status));
    }
    commands
}

/// A bash script that runs a block and says which command did not end as told.
fn script(block: &Block) -> String {
    let mut script = String::new();
    for (command, status) in commands(&block.text) {
        write!(
            script,
            "cat <<'README'\n$ {command}\nREADME\n{command}\nstatus=$?\n\
             [ $status = {status} ] || {{ echo \"exit status $status, expected {status}\"; exit 99; }}\n"
        )
        .expect("a String takes everything");
    }
    script
}

/// A reader's home: his agent, his old scripts, and the programs, built.
fn readers_world() -> World {
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
    // Not built again: a release build would take longer than all the rest.
    let programs = world.path("built/release");
    fs::create_dir_all(&programs).expect("a folder for the programs");
    for program in Program::ALL {
        symlink(binary(program), programs.join(program.name())).expect("a link to a program");
    }
    world.set("VOICE_GUARD_PROGRAMS", programs);
    let home = world.path("home");
    for folder in ["my-agent", "old-agent"] {
        let folder = home.join(folder);
        fs::create_dir(&folder).expect("an agent's folder");
        fs::copy(
            clone().join("scripts/demo/letta_voice_agent.py"),
            folder.join("letta_voice_agent.py"),
        )
        .expect("an agent");
    }
    for program in Program::ALL {
        let script = home.join("old-agent").join(program.script());
        fs::copy(world.old_style_script(program), script).expect("an old script");
    }
    world
}

/// What the reference file of the Letta stack names, as stand-ins on the original
/// ports: the network is this test's own.
fn furnish_the_stack(world: &mut World) {
    let project = world.path("home/my-stack");
    let bin = world.path("bin");
    for folder in [&project, &project.join("livekit"), &bin, &world.path("run")] {
        fs::create_dir(folder).expect("a folder of the stack");
    }
    set_mode(&world.path("run"), 0o700);
    world.set("XDG_RUNTIME_DIR", world.path("run"));
    let path = world
        .environment()
        .iter()
        .find(|(name, _)| name == "PATH")
        .map(|(_, value)| value.to_string_lossy().into_owned())
        .expect("a PATH");
    world.set("PATH", format!("{}:{path}", bin.display()));
    let up = bin.join("postgresql-is-up");
    let up = up.display();
    let web = |port: u16| format!("exec python3 -m http.server --bind 127.0.0.1 {port}");
    for (program, text) in [
        (bin.join("pg_isready"), format!("test -e {up}")),
        (bin.join("sudo"), format!("test \"$1\" = -n && touch {up}")),
        (bin.join("letta"), web(8283)),
        (project.join("livekit/livekit-server"), web(7880)),
        (project.join("make_livekit_token.sh"), "exit 0".to_owned()),
        (project.join("update_pages.sh"), "exit 0".to_owned()),
    ] {
        fs::write(&program, format!("#!/bin/sh\n{text}\n")).expect("a stand-in");
        set_mode(&program, 0o755);
    }
    for (script, text) in [
        (
            "cors_proxy_server.py",
            "import http.server\n\
             http.server.test(http.server.SimpleHTTPRequestHandler, port=9000, bind='127.0.0.1')\n",
        ),
        ("room_health_monitor.py", "import signal\nsignal.pause()\n"),
        (".env", "LIVEKIT_URL=ws://localhost:7880\n"),
    ] {
        fs::write(project.join(script), text).expect("a stand-in");
    }
    fs::copy(
        clone().join("scripts/demo/letta_voice_agent.py"),
        project.join("letta_voice_agent.py"),
    )
    .expect("an agent");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("a mode");
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let room = Room::new().tmpfs("/tmp", "mode=1777").keep(clone());
    room.own_network()
        .enter("every_command_of_the_readme_does_what_it_says", || {
            let mut world = readers_world();
            furnish_the_stack(&mut world);
            for block in blocks(&readme()) {
                if block.skipped {
                    let command = block.text.trim();
                    assert!(RUN_ELSEWHERE.contains(&command), "nobody runs {command}");
                    continue;
                }
                // In a file: on its command line `pkill -f` would find the words
                // that it looks for.
                let file = world.path("block.sh");
                fs::write(&file, script(&block)).expect("a file for the block");
                let mut bash = world.command("bash");
                bash.arg(file).current_dir(clone());
                let output = world.run_command(bash);
                assert!(
                    output.status.success(),
                    "README.md, line {}: {}\n{}\n{}",
                    block.line,
                    output.status,
                    text(&output),
                    world.describe()
                );
                // The quick start's agent is the reader's to stop, as it says.
                if block.text.contains("scripts/quickstart") {
                    let stop = world.path("built/demo").join(Program::Stop.script());
                    assert!(world.run_command(world.command(stop)).status.success());
                }
            }
            let left: Vec<_> = all_processes()
                .iter()
                .filter(|process| process.runs_agent("letta_voice_agent", None))
                .map(Process::describe)
                .collect();
            assert!(
                left.is_empty() && fs::read("/tmp/letta_voice_agent.pid").is_err(),
                "the README leaves an agent behind: {left:?}"
            );
        });
}

fn help_of(program: Program) -> String {
    let world = World::new();
    let mut command = world.program(program);
    command.arg("--help");
    text(&world.run_command(command))
}

/// All words of `text` that begin with `prefix`, up to the first character
/// that cannot belong to one.
fn words(text: &str, prefix: &str, belongs: fn(char) -> bool) -> BTreeSet<String> {
    text.match_indices(prefix)
        .map(|(at, _)| text[at..].chars().take_while(|c| belongs(*c)).collect())
        .collect()
}

fn section<'a>(readme: &'a str, title: &str) -> &'a str {
    let (_, rest) = readme
        .split_once(&format!("\n## {title}\n"))
        .unwrap_or_else(|| panic!("the README has no section {title}"));
    rest.split_once("\n## ")
        .map_or(rest, |(section, _)| section)
}

#[test]
fn settings_table_has_every_option_of_the_help_and_no_other() {
    let readme = readme();
    let table: String = section(&readme, "Settings")
        .lines()
        .filter(|line| line.starts_with("| `VOICE_GUARD_"))
        .fold(String::new(), |table, line| table + line + "\n");
    let flags = words(&table, "--", |c| c == '-' || c.is_ascii_lowercase());
    let variables = words(&table, "VOICE_GUARD_", |c| {
        c == '_' || c.is_ascii_uppercase()
    });
    let named: BTreeSet<_> = flags
        .iter()
        .map(|flag| {
            let name = flag.trim_start_matches('-').replace('-', "_");
            format!("VOICE_GUARD_{}", name.to_uppercase())
        })
        .collect();
    assert_eq!(variables, named, "each flag has the variable's name");

    let mut settings = words(&help_of(Program::Start), "--", |c| {
        c == '-' || c.is_ascii_lowercase()
    });
    for general in ["--json", "--quiet", "--help", "--version"] {
        assert!(settings.remove(general), "--help does not name {general}");
    }
    assert!(settings.remove("--foreground"));
    assert_eq!(flags, settings);
}

#[test]
fn every_program_of_the_table_has_the_same_settings() {
    let options = |program| {
        let mut options = words(&help_of(program), "--", |c| {
            c == '-' || c.is_ascii_lowercase()
        });
        if program == Program::Check {
            for own in ["--dry-run", "--nagios", "--metrics"] {
                assert!(options.remove(own), "check has no {own}");
            }
        }
        if program == Program::Start {
            assert!(options.remove("--foreground"), "start has no --foreground");
        }
        if program == Program::System {
            for own in ["--check-config", "--status"] {
                assert!(options.remove(own), "system has no {own}");
            }
        }
        if program == Program::StopSystem {
            assert!(options.remove("--all"), "stop-voice-system has no --all");
        }
        options
    };
    for program in Program::ALL {
        assert_eq!(options(program), options(Program::Start), "{program:?}");
    }
}

#[test]
fn json_table_has_every_member_that_is_printed_and_no_other() {
    let world = World::new();
    let mut check = world.program(Program::Check);
    check.args(["--dry-run", "--json"]);
    let said = world.run_command(check).stdout;
    let verdict: serde_json::Value = serde_json::from_slice(&said).expect("one JSON object");
    let printed: BTreeSet<String> = verdict
        .as_object()
        .expect("a JSON object")
        .keys()
        .cloned()
        .collect();
    let readme = readme();
    let described: BTreeSet<String> = section(&readme, "JSON")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| {
            let cell = line.split('|').nth(1).expect("a first cell");
            cell.split(',')
                .map(|name| name.trim().trim_matches('`').to_owned())
        })
        .collect();
    assert_eq!(described, printed);
}

#[test]
fn benchmark_tables_are_there() {
    let readme = readme();
    let (_, rest) = readme
        .split_once("<!-- bench:begin -->\n")
        .expect("where the tables begin");
    let (tables, _) = rest
        .split_once("<!-- bench:end -->\n")
        .expect("where the tables end");
    for row in [
        "check-agent-running",
        "/proc/N/cmdline",
        "pgrep -f",
        "ps aux",
    ] {
        assert!(
            tables.contains(row),
            "no row for {row}; scripts/bench --readme"
        );
    }
}
