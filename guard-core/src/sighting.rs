//! Who is there: the agents among the processes, the workers that outlived
//! theirs, and everything born of them.
//!
//! Two depths: [`Lookout::look`] reads every command line once and more only
//! of Python processes, which is what a verdict needs; [`Lookout::gather`] reads
//! everything of everybody, which is what a stop needs.

use std::io;
use std::path::Path;

use crate::agent::{AgentCommand, Family, Mark};
use crate::process_table::{Identity, Pid, ProcessTable};
use crate::reading::Reading;
use crate::snapshot::{Depth, Snapshot};
use crate::supervision::Unit;

pub use crate::snapshot::Strangers;

/// A running agent.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The process.
    pub identity: Identity,
    /// Its script and mode.
    pub command: AgentCommand,
    /// Its user.
    pub uid: u32,
    /// Lives in a container, where it can be seen but not stopped from here.
    pub contained: bool,
    /// The mark it was born with, if it is ours and may be read.
    pub mark: Option<Mark>,
    /// The wrapper (`uv run`, `sudo`, `timeout`, …) that started it.
    pub wrapper: Option<Wrapper>,
    /// The systemd unit that runs it, by what can be seen.
    pub unit: Option<Unit>,
}

/// A program that runs the agent as its child and is none itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapper {
    /// Its process.
    pub pid: Pid,
    /// Its name.
    pub command: String,
}

/// A worker whose agent is dead, and who goes on answering calls.
#[derive(Debug, Clone)]
pub struct OrphanWorker {
    /// The process.
    pub identity: Identity,
    /// Its user.
    pub uid: u32,
    /// Lives in a container.
    pub contained: bool,
    /// Born of an agent that these programs started; the others are known by
    /// what they map and where they work.
    pub marked: bool,
}

/// What the caller is not allowed to see, and might be an agent's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unseen {
    /// `/proc` hides other users' processes (`hidepid`).
    HiddenProcesses,
    /// A worker without parent whose agent cannot be told.
    Worker {
        /// The process.
        pid: Pid,
        /// Its user.
        uid: u32,
    },
}

/// What one look at all processes has found.
#[derive(Debug, Default)]
pub struct Sighting {
    /// Running agents, oldest first.
    pub agents: Vec<Agent>,
    /// Workers that outlived their agent.
    pub orphans: Vec<OrphanWorker>,
    /// What could not be told.
    pub unseen: Vec<Unseen>,
}

impl Sighting {
    /// Nothing that answers calls is there.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.agents.is_empty() && self.orphans.is_empty()
    }
}

/// Whose kin to gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KinOf {
    /// Every agent, every orphan worker, every marked leftover.
    Everyone,
    /// The orphan workers only: beside an agent that is to stay.
    Orphans,
    /// Marked orphan workers only: what a start may clear.
    MarkedOrphans,
    /// The bearers of one birth's mark: an agent that was just started.
    Birth([u8; 32]),
}

/// One process of the kin.
#[derive(Debug, Clone)]
pub struct Relative {
    /// The process.
    pub identity: Identity,
    /// How it belongs.
    pub kinship: Kinship,
    /// Its user.
    pub uid: u32,
    /// Its program's name, for messages.
    pub command: String,
}

/// How a process belongs to an agent; in this order they are signalled, so
/// that an agent that watches its workers does not start them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kinship {
    /// An agent itself.
    Agent,
    /// A worker that outlived its agent.
    OrphanWorker,
    /// A descendant.
    Descendant,
    /// Marked, not Python, and nobody's descendant: a browser it opened.
    Leftover,
}

/// A relative that must not be signalled.
#[derive(Debug, Clone)]
pub struct Spared {
    /// The relative.
    pub relative: Relative,
    /// Why.
    pub reason: SpareReason,
}

/// Why a relative is named and left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpareReason {
    /// It has a terminal of its own, or is the ancestor of one that has: a
    /// person may be working there.
    OwnTerminal,
    /// It lives in a container and belongs to whoever manages that.
    Contained,
}

/// Everything born of some agents.
#[derive(Debug, Default)]
pub struct Kin {
    /// To be signalled, in this order.
    pub relatives: Vec<Relative>,
    /// To be named and left alone.
    pub spared: Vec<Spared>,
    /// The look that this kin was gathered from.
    pub sighting: Sighting,
}

/// From where to look, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Lookout<'a> {
    /// Where the processes are read.
    pub table: &'a ProcessTable,
    /// Whose agents.
    pub family: &'a Family,
    /// Where workers without mark must be at work to count.
    pub project_dir: &'a Path,
    /// The process that the PID file proves to be the agent, which counts
    /// whatever its command line says: a wrapper as interpreter runs under its
    /// own name.
    pub tracked: Option<Pid>,
    /// What was read already, for several families; else it is read now.
    pub reading: Option<&'a Reading>,
}

impl Lookout<'_> {
    /// One pass over the process table: who is there.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn look(&self) -> io::Result<Sighting> {
        self.look_at_strangers(&mut Strangers::default())
    }

    /// As [`Self::look`]; everybody who is there now becomes a stranger to an
    /// agent that is born afterwards.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn look_at_strangers(&self, strangers: &mut Strangers) -> io::Result<Sighting> {
        Ok(Snapshot::take(self, Depth::Python, strangers)?.sighting)
    }

    /// The agent that this process is, without looking at any other but its
    /// ancestors; `None` once it is dead.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn describe(&self, pid: Pid) -> io::Result<Option<Agent>> {
        Snapshot::of_one(self, pid)
    }

    /// Reads every process's parent and environment, but of `strangers`, and
    /// gathers who belongs; the others become strangers.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn gather(&self, whose: KinOf, strangers: &mut Strangers) -> io::Result<Kin> {
        Snapshot::take(self, Depth::Everything, strangers)?.kin(whose, strangers)
    }
}
