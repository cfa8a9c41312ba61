//! Starts the voice agent, unless one is running or being started.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::run;
use guard_core::command_line::Start;
use guard_core::foreground::start_in_foreground;
use guard_core::start::start;

fn main() -> ExitCode {
    let arguments = Start::parse();
    let verb = if arguments.foreground {
        start_in_foreground
    } else {
        start
    };
    run("start-voice-agent-safe", &arguments.common, verb)
}
