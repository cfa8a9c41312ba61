//! A voice system of its own for each test: companions described in
//! `voice-system.toml`, real processes on free ports.
#![allow(
    clippy::must_use_candidate,
    reason = "what a run gives may be dropped: it asserts"
)]

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::{World, python, text};

const PART: &str = include_str!("../agents/part.py");

/// A world with a configuration, a runtime folder and the test companion.
pub struct System {
    /// Where it is.
    pub world: World,
    config: String,
}

impl System {
    /// Nothing configured yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a system is made on purpose")]
    pub fn new() -> Self {
        let mut world = World::new();
        let runtime = world.path("run");
        std::fs::create_dir(&runtime).unwrap();
        world.set("XDG_RUNTIME_DIR", runtime);
        std::fs::write(world.project().join("part.py"), PART).unwrap();
        Self {
            world,
            config: String::new(),
        }
    }

    /// A companion that runs the test part on `port` with these options.
    #[must_use]
    pub fn part(mut self, name: &str, port: u16, options: &str, keys: &str) -> Self {
        let words: String = std::iter::once(port.to_string())
            .chain(options.split_whitespace().map(str::to_owned))
            .chain([format!("starts={}", self.starts_file(name).display())])
            .fold(String::new(), |mut words, word| {
                let _ = write!(words, ", {word:?}");
                words
            });
        let ready = if keys.contains("ready") {
            String::new()
        } else {
            format!("ready = {{ port = {port} }}\n")
        };
        write!(
            self.config,
            "[[companion]]\nname = \"{name}\"\ncommand = [{:?}, \"part.py\"{words}]\n{ready}{keys}\n",
            python().display().to_string()
        )
        .unwrap();
        self.write();
        self
    }

    /// Any other text.
    #[must_use]
    pub fn with(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self.write();
        self
    }

    fn write(&self) {
        std::fs::write(self.world.project().join("voice-system.toml"), &self.config).unwrap();
    }

    /// Where a part writes each of its starts.
    #[must_use]
    pub fn starts_file(&self, name: &str) -> PathBuf {
        self.world.scratch().join(format!("{name}.starts"))
    }

    /// PID and time of every start of a part.
    #[must_use]
    pub fn starts(&self, name: &str) -> Vec<(u32, f64)> {
        std::fs::read_to_string(self.starts_file(name))
            .unwrap_or_default()
            .lines()
            .map(|line| {
                let (pid, time) = line.split_once(' ').unwrap();
                (pid.parse().unwrap(), time.parse().unwrap())
            })
            .collect()
    }

    /// A part's PID file, once there is a runtime folder.
    #[must_use]
    pub fn pid_file(&self, name: &str) -> PathBuf {
        let mut folders = std::fs::read_dir(self.world.path("run/voice-guard")).unwrap();
        let folder = folders.next().unwrap().unwrap().path();
        folder.join(format!("{name}.pid"))
    }

    /// The number in it.
    #[must_use]
    pub fn pid_in_file(&self, name: &str) -> Option<u32> {
        let content = std::fs::read_to_string(self.pid_file(name)).ok()?;
        content.strip_suffix('\n')?.parse().ok()
    }

    /// One of the programs, called by its link.
    #[must_use]
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.world.command(self.world.project().join(program));
        command.args(arguments);
        command
    }

    /// Runs one of the programs and expects an exit code; gives what it said.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str], code: i32) -> String {
        let output = self.output(program, arguments);
        let said = text(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{program} {arguments:?} ended with {}; it said:\n{said}\n{}",
            output.status,
            self.world.describe()
        );
        said
    }

    /// Runs one of the programs.
    #[must_use]
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        self.world.run_command(self.command(program, arguments))
    }

    /// A start that succeeds.
    #[track_caller]
    pub fn start(&self) -> String {
        self.run("start_voice_system.sh", &[], 0)
    }

    /// A stop that succeeds.
    #[track_caller]
    pub fn stop(&self) -> String {
        self.run("stop_voice_system.sh", &[], 0)
    }

    /// The one object of `--json`.
    #[track_caller]
    pub fn json(&self, program: &str, arguments: &[&str], code: i32) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let said = self.run(program, &all, code);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    /// The living processes of a part, by the option that names its file.
    #[must_use]
    pub fn running(&self, name: &str) -> Vec<u32> {
        let mark = format!("starts={}", self.starts_file(name).display());
        self.world
            .processes()
            .iter()
            .filter(|process| process.argv.iter().any(|word| *word == *mark))
            .map(|process| process.pid)
            .collect()
    }

    /// Exactly one process of the part runs, and its PID file names it.
    #[track_caller]
    pub fn assert_one(&self, name: &str) -> u32 {
        let running = self.running(name);
        assert!(
            running.len() == 1 && self.pid_in_file(name) == Some(running[0]),
            "{name}: running {running:?}, PID file {:?}\n{}",
            self.pid_in_file(name),
            self.world.describe()
        );
        running[0]
    }

    /// Nothing half-tracked: every living part is named in its PID file.
    #[track_caller]
    pub fn assert_all_tracked(&self, names: &[&str]) {
        for name in names {
            let running = self.running(name);
            assert!(running.len() <= 1, "{name}: {running:?}");
            if let [pid] = running[..] {
                assert_eq!(self.pid_in_file(name), Some(pid), "{name} is untracked");
            }
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.world.kill_everything();
    }
}

/// A port that nobody listens on.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A part in what `--json` gives.
#[must_use]
#[track_caller]
pub fn part<'a>(object: &'a Value, name: &str) -> &'a Value {
    object["parts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|part| part["name"] == name)
        .unwrap_or_else(|| panic!("no part {name} in {object}"))
}
