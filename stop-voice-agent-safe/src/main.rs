//! Stops the voice agent and everything that was born of it.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::run;
use guard_core::command_line::Stop;
use guard_core::stop::stop;

fn main() -> ExitCode {
    let arguments = Stop::parse();
    run("stop-voice-agent-safe", &arguments.common, stop)
}
