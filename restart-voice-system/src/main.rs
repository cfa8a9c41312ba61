//! Restarts the voice system, ending with exactly one agent.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::{CommonOptions, run};
use guard_core::voice_system::restart_system;

/// Restarts the voice system, ending with exactly one agent.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 restarted, exactly one agent runs, 1 a part failed, 2 wrong usage; interrupted, it dies by that signal."
)]
struct Arguments {
    #[command(flatten)]
    common: CommonOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run("restart-voice-system", &arguments.common, restart_system)
}
