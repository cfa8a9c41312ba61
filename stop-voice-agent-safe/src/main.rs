//! Stops the voice agent and everything that was born of it.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::{CommonOptions, run};
use guard_core::stop::stop;

/// Stops the voice agent and everything that was born of it.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 nothing is left running (also if nothing ran), 1 something could not be stopped, 2 wrong usage."
)]
struct Arguments {
    #[command(flatten)]
    common: CommonOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run("stop-voice-agent-safe", &arguments.common, stop)
}
