//! How a program ends, and with which exit code (`docs/contract.md`, "Exit codes").

use crate::signals::Interruption;

/// The end of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// check: an agent may be started.
    Safe,
    /// check: an agent runs.
    Running,
    /// check: a start is in progress.
    StartInProgress,
    /// check: workers of a dead agent answer calls.
    OrphanWorkers,
    /// check: something could not be found out.
    Unknown,
    /// start: an agent runs, or is being started by another.
    Refused,
    /// start, system: the agent was started and lives.
    Started,
    /// start, system, restart: the agent died at once.
    Died,
    /// The program was asked to give up.
    Interrupted(Interruption),
    /// stop: there was nothing to stop.
    NothingToStop,
    /// stop: nothing is left.
    Stopped,
    /// stop, and those that stop first: something could not be stopped.
    NotStopped,
    /// system: the running agent is kept.
    Kept,
    /// system: others were removed and one was started.
    Replaced,
    /// restart: done.
    Restarted,
    /// system status: every part is ready, and exactly one agent runs.
    Well,
    /// system status: something is not as it should be.
    Unwell,
    /// system: the configuration can be used.
    Valid,
    /// Something went wrong.
    Failed,
}

impl Outcome {
    /// The exit code. (An interrupted program dies by its signal instead.)
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Safe
            | Self::Started
            | Self::NothingToStop
            | Self::Stopped
            | Self::Kept
            | Self::Replaced
            | Self::Restarted
            | Self::Well
            | Self::Valid => 0,
            Self::Interrupted(interruption) => 128 + interruption.number(),
            _ => 1,
        }
    }

    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Running => "running",
            Self::StartInProgress => "start_in_progress",
            Self::OrphanWorkers => "orphan_workers",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
            Self::Started => "started",
            Self::Died => "died",
            Self::Interrupted(_) => "interrupted",
            Self::NothingToStop => "nothing_to_stop",
            Self::Stopped => "stopped",
            Self::NotStopped => "not_stopped",
            Self::Kept => "kept",
            Self::Replaced => "replaced",
            Self::Restarted => "restarted",
            Self::Well => "well",
            Self::Unwell => "unwell",
            Self::Valid => "valid",
            Self::Failed => "failed",
        }
    }
}
