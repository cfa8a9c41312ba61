//! Running one program: options, settings, one verb, its report, its exit code.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::birth::{Ending, settle_signals};
use crate::detach::Relay;
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::report::{Format, Report};
use crate::settings::{Settings, SettingsOptions};
use crate::signals::die_of;
use crate::wrapper;

/// The options that all programs share. None is ever needed.
#[derive(Debug, Clone, Args)]
pub struct CommonOptions {
    /// Print one JSON object instead of sentences
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Print nothing; the exit code says it
    #[arg(long, short)]
    pub quiet: bool,
    /// The settings.
    #[command(flatten)]
    pub settings: SettingsOptions,
}

impl CommonOptions {
    /// A report of `program`, in the form that is asked for.
    #[must_use]
    pub fn report(&self, program: &str) -> Report {
        let format = match (self.json, self.quiet) {
            (true, _) => Format::Json,
            (_, true) => Format::Quiet,
            _ => Format::Text,
        };
        Report::new(program, env!("CARGO_PKG_VERSION"), format)
    }
}

/// Runs `verb` and turns what comes of it into words and an exit code.
///
/// `program` is the program's own name, under whatever link it was called.
pub fn run(
    program: &str,
    options: &CommonOptions,
    verb: impl FnOnce(&Settings, &mut Report) -> Result<Outcome, Failure>,
) -> ExitCode {
    run_with(options.report(program), options, verb)
}

/// As [`run`], with a report of the program that was made ready before.
pub fn run_with(
    mut report: Report,
    options: &CommonOptions,
    verb: impl FnOnce(&Settings, &mut Report) -> Result<Outcome, Failure>,
) -> ExitCode {
    settle_signals();
    let called = called_as(report.program());
    let mut relay = None;
    let outcome = Relay::of_this_program()
        .and_then(|of_this_program| {
            relay = Some(of_this_program);
            Settings::resolve(&options.settings, &called)
        })
        .and_then(|settings| {
            report.is_about(&settings);
            verb(&settings, &mut report)
        })
        .unwrap_or_else(|failure| {
            report.failure(&failure);
            Outcome::Failed
        });
    let exit_code = report.finish(outcome);
    if let Some(relay) = &mut relay {
        relay.tell(exit_code);
    }
    match outcome {
        Outcome::Interrupted(interruption) => interruption.die(),
        Outcome::AgentEnded(Ending::Killed(signal)) => die_of(signal),
        _ => {}
    }
    ExitCode::from(exit_code)
}

/// The path by which the user called this: the wrapper's, if there was one.
fn called_as(program: &str) -> PathBuf {
    wrapper::called_as()
        .or_else(|| {
            let name = env::args_os().next()?;
            (!name.is_empty()).then(|| PathBuf::from(name))
        })
        .unwrap_or_else(|| PathBuf::from(program))
}
