//! The command line of `stop-voice-system`: options, exit codes, where the words go.

#![expect(clippy::unwrap_used, reason = "in a test an unwrap is the assertion")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use assert_cmd::Command;
use predicates::prelude::*;
use tempfile::TempDir;

/// A project folder, tracking files and a family name that no other test has.
struct Place {
    folder: TempDir,
    family: String,
}

impl Place {
    /// The agent there ends at once: nothing is left to clean up after any test.
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cli_stop_system_")
            .tempdir()
            .unwrap();
        let family = folder
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        fs::write(
            folder.path().join(format!("{family}.py")),
            "print('no server reachable', flush=True)\nraise SystemExit(7)\n",
        )
        .unwrap();
        Self { folder, family }
    }

    /// The program as a caller without settings of his own would run it, in the project folder.
    fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stop-voice-system"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("VOICE_GUARD_")
                || ["VIRTUAL_ENV", "CONDA_PREFIX", "NO_COLOR"].contains(&&*name)
            {
                command.env_remove(&*name);
            }
        }
        command
            .current_dir(self.folder.path())
            .env("VOICE_GUARD_AGENT_SCRIPT", format!("{}.py", self.family))
            .env("VOICE_GUARD_PID_FILE", self.file("agent.pid"))
            .env("VOICE_GUARD_LOCK_FILE", self.file("agent.lock"))
            .env("VOICE_GUARD_LOG_FILE", self.file("agent.log"))
            .timeout(Duration::from_secs(30));
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The guard is not settable and the programs never unlink it.
        let _ = fs::remove_file(format!("/tmp/.{}.guard", self.family));
    }
}

/// One JSON object and nothing beside it. The fields are compared in the scenarios.
fn one_json_object() -> impl Predicate<str> {
    predicate::function(|text: &str| {
        let (mut depth, mut in_string, mut escaped, mut ended) = (0_u32, false, false, false);
        text.starts_with('{')
            && text.trim_end().chars().all(|character| {
                let beside_the_object = ended;
                match character {
                    _ if escaped => escaped = false,
                    '\\' if in_string => escaped = true,
                    '"' => in_string = !in_string,
                    '{' if !in_string => depth += 1,
                    '}' if !in_string => depth = depth.saturating_sub(1),
                    _ => {}
                }
                ended = depth == 0;
                !beside_the_object
            })
            && ended
    })
}

#[test]
fn help_names_options_settings_and_exit_codes() {
    let place = Place::new();
    let mut help = place.program().arg("--help").assert().success().stderr("");
    for word in [
        "--json",
        "--quiet",
        "--help",
        "--version",
        "--all",
        "--project-dir",
        "--agent-script",
        "--agent-mode",
        "--python",
        "--env-file",
        "--pid-file",
        "--lock-file",
        "--log-file",
        "--ready-pattern",
        "--verify-seconds",
        "--grace-seconds",
        "VOICE_GUARD_PROJECT_DIR",
        "VOICE_GUARD_GRACE_SECONDS",
    ] {
        help = help.stdout(predicate::str::contains(word));
    }
}

#[test]
fn version_is_the_name_and_the_number() {
    let place = Place::new();
    place
        .program()
        .arg("--version")
        .assert()
        .success()
        .stdout(concat!(
            "stop-voice-system ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        ))
        .stderr("");
}

#[test]
fn unknown_option_or_argument_is_a_usage_error_and_does_nothing() {
    let place = Place::new();
    for argument in ["--no-such-option", "surplus"] {
        place
            .program()
            .arg(argument)
            .assert()
            .code(2)
            .stdout("")
            .stderr(predicate::str::contains(argument));
    }
    assert!(!place.file("agent.pid").exists() && !place.file("agent.log").exists());
}

#[test]
fn without_arguments_it_stops_the_agent_and_says_that_none_ran() {
    let place = Place::new();
    place
        .program()
        .assert()
        .code(0)
        .stdout(predicate::str::contains("no agent was running"))
        .stderr("");
    assert!(!place.file("agent.pid").exists() && !place.file("agent.lock").exists());
}

#[test]
fn json_is_one_object_and_nothing_else() {
    let place = Place::new();
    place
        .program()
        .arg("--json")
        .assert()
        .code(0)
        .stdout(one_json_object().from_utf8())
        .stdout(predicate::str::contains("\"exit_code\""))
        .stderr("");
}

#[test]
fn quiet_leaves_only_the_exit_code() {
    let place = Place::new();
    place
        .program()
        .args(["--quiet", "--all"])
        .assert()
        .code(0)
        .stdout("")
        .stderr("");
}
