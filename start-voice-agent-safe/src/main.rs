//! Starts the voice agent, unless one is running or being started.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::run;
use guard_core::command_line::Start;
use guard_core::start::start;

fn main() -> ExitCode {
    let arguments = Start::parse();
    run("start-voice-agent-safe", &arguments.common, start)
}
