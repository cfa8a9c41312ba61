//! Tells whether it is safe to start the voice agent.

use std::process::ExitCode;

use clap::Parser;
use guard_core::check::{Cleaning, check};
use guard_core::cli::run;
use guard_core::command_line::Check;

fn main() -> ExitCode {
    let arguments = Check::parse();
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
