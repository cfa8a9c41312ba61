//! Tells whether it is safe to start the voice agent.

use std::process::ExitCode;

use clap::Parser;
use guard_core::check::{Cleaning, check};
use guard_core::cli::run_with;
use guard_core::command_line::Check;

fn main() -> ExitCode {
    let arguments = Check::parse();
    // A monitor that removed what it is to count would see it once.
    let cleaning = if arguments.dry_run || arguments.nagios || arguments.metrics.is_some() {
        Cleaning::DryRun
    } else {
        Cleaning::Remove
    };
    let mut report = arguments.common.report("check-agent-running");
    if arguments.nagios {
        report.answer_as_plugin();
    }
    if let Some(path) = arguments.metrics {
        report.write_metrics(path);
    }
    run_with(report, &arguments.common, |settings, report| {
        check(settings, cleaning, report)
    })
}
