//! Brings the voice system up: exactly one agent, any number of times.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::run;
use guard_core::command_line::StartSystem;
use guard_core::outline::check_config;
use guard_core::survey::status;
use guard_core::voice_system::start_system;

fn main() -> ExitCode {
    let arguments = StartSystem::parse();
    let verb = match arguments {
        StartSystem {
            check_config: true, ..
        } => check_config,
        StartSystem { status: true, .. } => status,
        StartSystem { .. } => start_system,
    };
    run("start-voice-system", &arguments.common, verb)
}
