//! Stops the voice system: the agent, and every companion that the
//! configuration owns.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::run;
use guard_core::command_line::StopSystem;
use guard_core::voice_system::{Extent, stop_system};

fn main() -> ExitCode {
    let arguments = StopSystem::parse();
    let extent = if arguments.all {
        Extent::All
    } else {
        Extent::Ours
    };
    run(
        "stop-voice-system",
        &arguments.common,
        |settings, report| stop_system(settings, extent, report),
    )
}
