//! A barrier that releases any number of commands at one instant.
//!
//! Each command is a shell that says it has arrived and then reads from a pipe
//! that all share; closing the pipe's other end wakes all of them at once, and
//! each execs its program. No threads, and no time between fork and release.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::World;

/// Commands that wait to be released together.
pub struct Barrier<'world> {
    world: &'world World,
    gate: (PipeReader, PipeWriter),
    arrivals: (PipeReader, PipeWriter),
    waiting: Vec<(Child, PathBuf)>,
}

/// A command that was released and has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote, stdout and stderr together.
    pub output: String,
}

impl Finished {
    /// Its exit code; none if it died by a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl<'world> Barrier<'world> {
    /// A barrier with nobody waiting.
    #[must_use]
    pub fn new(world: &'world World) -> Self {
        Self {
            world,
            gate: std::io::pipe().expect("a pipe"),
            arrivals: std::io::pipe().expect("a pipe"),
            waiting: Vec::new(),
        }
    }

    /// Adds a command: its program, arguments, environment and folder are kept,
    /// its streams are not (stdin is empty, the output is in [`Finished`]).
    pub fn add(&mut self, command: &Command) {
        let output = self
            .world
            .scratch()
            .join(format!("starter-{}.out", self.waiting.len()));
        let mut shell = Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(r#"echo >&2; read -r _; exec "$0" "$@" </dev/null 2>&1"#)
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear();
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        let child = shell
            .stdin(self.gate.0.try_clone().expect("the gate"))
            .stdout(File::create(&output).expect("the output file"))
            .stderr(Stdio::from(
                self.arrivals.1.try_clone().expect("the arrivals"),
            ))
            .spawn()
            .expect("/bin/sh");
        self.waiting.push((child, output));
    }

    /// Waits until all have arrived, then releases them at once.
    pub fn release(mut self) -> Released {
        let mut arrived = vec![0; self.waiting.len()];
        self.arrivals
            .0
            .read_exact(&mut arrived)
            .expect("every starter arrives");
        // A pipe that nobody can write to any more: end of file for all readers.
        drop(self.gate);
        Released {
            running: self.waiting,
        }
    }
}

/// Commands that have been released and may be running still.
#[must_use]
pub struct Released {
    running: Vec<(Child, PathBuf)>,
}

impl Released {
    /// Have all of them ended?
    pub fn done(&mut self) -> bool {
        self.running
            .iter_mut()
            .all(|(child, _)| child.try_wait().expect("wait for a starter").is_some())
    }

    /// Waits for all, in the order in which they were added.
    #[must_use]
    pub fn wait(self) -> Vec<Finished> {
        self.running
            .into_iter()
            .map(|(mut child, output)| Finished {
                status: child.wait().expect("wait for a starter"),
                output: String::from_utf8_lossy(&std::fs::read(output).expect("its output"))
                    .into_owned(),
            })
            .collect()
    }
}
