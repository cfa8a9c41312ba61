//! The command lines of the six programs: what `--help` says, and what the
//! manual pages and completions are made from.

use std::path::PathBuf;

use clap::Parser;

use crate::cli::CommonOptions;

/// Tells whether it is safe to start the voice agent.
#[derive(Debug, Parser)]
#[command(
    name = "check-agent-running",
    version,
    after_help = "Exit status: 0 safe to start, 1 not (an agent runs, a start is in progress, or it cannot be told), 2 wrong usage; --nagios has its own."
)]
pub struct Check {
    /// Look at everything, remove nothing, say which files are stale
    #[arg(long)]
    pub dry_run: bool,
    /// Answer as a monitoring plugin, and remove nothing: one line, exit status
    /// 0 one agent runs, 1 warning, 2 critical, 3 unknown
    #[arg(long, conflicts_with_all = ["json", "quiet"])]
    pub nagios: bool,
    /// Write Prometheus metrics into a file, and remove nothing
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// What all programs have.
    #[command(flatten)]
    pub common: CommonOptions,
}

/// Starts the voice agent, unless one is running or being started.
#[derive(Debug, Parser)]
#[command(
    name = "start-voice-agent-safe",
    version,
    after_help = "Exit status: 0 the agent runs, 1 it was refused or died, 2 wrong usage; interrupted, it dies by that signal. With --foreground: the agent's own, or by the signal that ended it; asked to end, 0 or by that signal; 195 refused, another agent runs; 1 also if it could not be started."
)]
pub struct Start {
    /// Stay with the agent, for systemd, containers and other supervisors: copy
    /// its log to standard output, pass signals on, end with its exit status
    #[arg(long)]
    pub foreground: bool,
    /// What all programs have.
    #[command(flatten)]
    pub common: CommonOptions,
}

/// Stops the voice agent and everything that was born of it.
#[derive(Debug, Parser)]
#[command(
    name = "stop-voice-agent-safe",
    version,
    after_help = "Exit status: 0 nothing is left running (also if nothing ran), 1 something could not be stopped, 2 wrong usage."
)]
pub struct Stop {
    /// What all programs have.
    #[command(flatten)]
    pub common: CommonOptions,
}

/// Brings the voice system up: exactly one agent, any number of times.
#[derive(Debug, Parser)]
#[command(
    name = "start-voice-system",
    version,
    after_help = "Exit status: 0 everything runs (also if it already ran), 1 a part failed (--status: something is not well), 2 wrong usage; interrupted, it dies by that signal."
)]
pub struct StartSystem {
    /// Check voice-system.toml and say what would be done; start nothing
    #[arg(long)]
    pub check_config: bool,
    /// Say what runs and what does not; change nothing
    #[arg(long, conflicts_with = "check_config")]
    pub status: bool,
    /// What all programs have.
    #[command(flatten)]
    pub common: CommonOptions,
}

/// Restarts the voice system, ending with exactly one agent.
#[derive(Debug, Parser)]
#[command(
    name = "restart-voice-system",
    version,
    after_help = "Exit status: 0 restarted, exactly one agent runs, 1 a part failed, 2 wrong usage; interrupted, it dies by that signal."
)]
pub struct RestartSystem {
    /// What all programs have.
    #[command(flatten)]
    pub common: CommonOptions,
}

/// Stops the voice system: the agent, and every companion that the
/// configuration owns.
#[derive(Debug, Parser)]
#[command(
    name = "stop-voice-system",
    version,
    after_help = "Exit status: 0 nothing of it is left running (also if nothing ran), 1 something could not be stopped, 2 wrong usage."
)]
pub struct StopSystem {
    /// Stop also the companions that were found running, and not started from
    /// here
    #[arg(long)]
    pub all: bool,
    /// What all programs have.
    #[command(flatten)]
    pub common: CommonOptions,
}
