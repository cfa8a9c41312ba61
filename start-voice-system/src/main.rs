//! Brings the voice system up: exactly one agent, any number of times.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::{CommonOptions, run};
use guard_core::system::start_system;

/// Brings the voice system up: exactly one agent, any number of times.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 everything runs (also if it already ran), 1 a part failed, 2 wrong usage; interrupted, it dies by that signal."
)]
struct Arguments {
    #[command(flatten)]
    common: CommonOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run("start-voice-system", &arguments.common, start_system)
}
