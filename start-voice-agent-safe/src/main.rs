//! Starts the voice agent, unless one is running or being started.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::{CommonOptions, run};
use guard_core::start::start;

/// Starts the voice agent, unless one is running or being started.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 the agent runs, 1 it was refused or died, 2 wrong usage; interrupted, it dies by that signal."
)]
struct Arguments {
    #[command(flatten)]
    common: CommonOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run("start-voice-agent-safe", &arguments.common, start)
}
