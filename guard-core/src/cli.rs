//! Running one program: options, settings, one verb, its report, its exit code.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::birth::settle_signals;
use crate::detach::Relay;
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::report::{Format, Report};
use crate::settings::{Settings, SettingsOptions};

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

/// Runs `verb` and turns what comes of it into words and an exit code.
///
/// `program` is the program's own name, under whatever link it was called.
pub fn run(
    program: &str,
    options: &CommonOptions,
    verb: impl FnOnce(&Settings, &mut Report) -> Result<Outcome, Failure>,
) -> ExitCode {
    let format = match (options.json, options.quiet) {
        (true, _) => Format::Json,
        (_, true) => Format::Quiet,
        _ => Format::Text,
    };
    settle_signals();
    let mut report = Report::new(program, env!("CARGO_PKG_VERSION"), format);
    let called = env::args_os()
        .next()
        .filter(|name| !name.is_empty())
        .map_or_else(|| PathBuf::from(program), PathBuf::from);
    let mut relay = None;
    let outcome = Relay::of_this_program()
        .and_then(|of_this_program| {
            relay = Some(of_this_program);
            Settings::resolve(&options.settings, &called)
        })
        .and_then(|settings| {
            report.name_programs(&settings.naming);
            verb(&settings, &mut report)
        })
        .unwrap_or_else(|failure| {
            report.failure(&failure);
            Outcome::Failed
        });
    report.finish(outcome);
    let exit_code = outcome.exit_code();
    if let Some(relay) = &mut relay {
        relay.tell(exit_code);
    }
    if let Outcome::Interrupted(interruption) = outcome {
        interruption.die();
    }
    ExitCode::from(exit_code)
}
