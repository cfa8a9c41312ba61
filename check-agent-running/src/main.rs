//! Tells whether it is safe to start the voice agent.

use std::process::ExitCode;

use clap::Parser;
use guard_core::check::{Cleaning, check};
use guard_core::cli::{CommonOptions, run};

/// Tells whether it is safe to start the voice agent.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 safe to start, 1 not (an agent runs, a start is in progress, or it cannot be told), 2 wrong usage."
)]
struct Arguments {
    /// Remove no stale file, only say which are
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: CommonOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cleaning = if arguments.dry_run {
        Cleaning::DryRun
    } else {
        Cleaning::Remove
    };
    run(
        "check-agent-running",
        &arguments.common,
        |settings, report| check(settings, cleaning, report),
    )
}
