//! Stops the voice system: the agent, and every companion that the
//! configuration owns.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::{CommonOptions, run};
use guard_core::voice_system::{Extent, stop_system};

/// Stops the voice system: the agent, and every companion that the
/// configuration owns.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 nothing of it is left running (also if nothing ran), 1 something could not be stopped, 2 wrong usage."
)]
struct Arguments {
    /// Stop also the companions that were found running, and not started from
    /// here
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: CommonOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
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
