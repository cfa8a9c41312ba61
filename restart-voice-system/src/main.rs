//! Restarts the voice system, ending with exactly one agent.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::run;
use guard_core::command_line::RestartSystem;
use guard_core::voice_system::restart_system;

fn main() -> ExitCode {
    let arguments = RestartSystem::parse();
    run("restart-voice-system", &arguments.common, restart_system)
}
