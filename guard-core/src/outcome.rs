//! How a program ends, and with which exit code (`docs/contract.md`, "Exit codes").

use crate::birth::Ending;
use crate::signals::Interruption;

/// The exit code of a starter in the foreground that found another agent, or
/// could not rule one out. No other program has it: the codes up to 125 are the
/// agent's own and `sysexits.h`'s, 126 to 192 a shell's (a signal's number more
/// than 128), 200 and above systemd's.
pub const REFUSED_IN_FOREGROUND: u8 = 195;

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
    /// start in the foreground: the same.
    RefusedInForeground,
    /// start in the foreground: the agent has ended so.
    AgentEnded(Ending),
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
    /// systemd was asked, and will do it.
    Asked,
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
            | Self::Asked
            | Self::Valid => 0,
            Self::Interrupted(interruption) => 128 + interruption.number(),
            Self::RefusedInForeground => REFUSED_IN_FOREGROUND,
            Self::AgentEnded(ending) => ending.exit_code(),
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
            Self::Refused | Self::RefusedInForeground => "refused",
            Self::AgentEnded(_) => "ended",
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
            Self::Asked => "asked",
            Self::Failed => "failed",
        }
    }
}
