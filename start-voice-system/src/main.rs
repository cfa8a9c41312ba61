//! Brings the voice system up: exactly one agent, any number of times.

use std::process::ExitCode;

use clap::Parser;
use guard_core::cli::{CommonOptions, run};
use guard_core::voice_system::{check_config, start_system, status};

/// Brings the voice system up: exactly one agent, any number of times.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 everything runs (also if it already ran), 1 a part failed (--status: something is not well), 2 wrong usage; interrupted, it dies by that signal."
)]
struct Arguments {
    /// Check voice-system.toml and say what would be done; start nothing
    #[arg(long)]
    check_config: bool,
    /// Say what runs and what does not; change nothing
    #[arg(long, conflicts_with = "check_config")]
    status: bool,
    #[command(flatten)]
    common: CommonOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let verb = match arguments {
        Arguments {
            check_config: true, ..
        } => check_config,
        Arguments { status: true, .. } => status,
        Arguments { .. } => start_system,
    };
    run("start-voice-system", &arguments.common, verb)
}
