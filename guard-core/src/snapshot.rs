//! One reading of the processes, and who belongs to whom in it (see
//! `ARCHITECTURE.md`, "Who belongs to an agent").

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use crate::agent::{
    AgentCommand, Family, Mark, MultiprocessingRole, base_name, is_python, multiprocessing_role,
    tracker_descriptor,
};
use crate::process_table::{
    Credentials, Identity, PassSummary, Pid, ProcessTable, Stat, split_arguments,
};
use crate::reading::{Reading, mark_of};
use crate::sighting::{
    Agent, Kin, KinOf, Kinship, Lookout, OrphanWorker, Relative, Sighting, SpareReason, Spared,
    Unseen, Wrapper,
};
use crate::supervision::Unit;

/// The library that tells a worker of `livekit-agents` from another program's.
const WORKER_LIBRARY: &[u8] = b"liblivekit_ffi";

/// `livekit-agents` 1.0 loads that library with the first call only. Until
/// then its worker maps these two dependencies (`PyAV`, protobuf) and has the
/// server's address in its environment (`tests/real/README.md`).
const WORKER_DEPENDENCIES: [&[u8]; 2] = [b"/av/", b"/google/_upb/"];
const WORKER_VARIABLE: &[u8] = b"\0LIVEKIT_";

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Python processes only.
    Python,
    /// All processes, with parents and environments.
    Everything,
}

/// Processes that are known to belong to no agent, so that a second look need
/// not read all of each again: only whether it still has the same command line.
#[derive(Debug, Default)]
pub struct Strangers(BTreeMap<Pid, u64>);

impl Strangers {
    fn know(&self, pid: Pid, block: &[u8]) -> bool {
        self.0
            .get(&pid)
            .is_some_and(|&known| known == fingerprint(block))
    }

    fn remember(&mut self, pid: Pid, block: &[u8]) {
        // An empty one may be in the middle of its exec.
        if !block.is_empty() {
            self.0.insert(pid, fingerprint(block));
        }
    }

    fn forget(&mut self, pid: Pid) {
        self.0.remove(&pid);
    }
}

fn fingerprint(block: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    block.hash(&mut hasher);
    hasher.finish()
}

/// What was read of one process.
struct Entry {
    stat: Stat,
    python: bool,
    name: String,
    command: Option<AgentCommand>,
    role: Option<MultiprocessingRole>,
    tracker_descriptor: Option<i32>,
    /// `None` also if the environment is private: another user's.
    mark: Option<Mark>,
}

impl Entry {
    /// May it answer calls, as far as its command line tells?
    fn is_worker(&self) -> bool {
        matches!(
            self.role,
            Some(MultiprocessingRole::SpawnChild | MultiprocessingRole::ForkServer)
        )
    }
}

/// The processes as they were read, and the rules of who belongs to whom.
pub(crate) struct Snapshot<'a> {
    /// Who is there.
    pub(crate) sighting: Sighting,
    table: &'a ProcessTable,
    family: &'a Family,
    project_dir: &'a Path,
    entries: BTreeMap<Pid, Entry>,
    /// Ancestors that are not entries.
    others: RefCell<BTreeMap<Pid, Option<Stat>>>,
}

impl<'a> Snapshot<'a> {
    fn empty(lookout: &Lookout<'a>) -> Self {
        Self {
            table: lookout.table,
            family: lookout.family,
            project_dir: lookout.project_dir,
            entries: BTreeMap::new(),
            others: RefCell::default(),
            sighting: Sighting::default(),
        }
    }

    /// Reads one process and its ancestors: the agent that it is.
    pub(crate) fn of_one(lookout: &Lookout<'a>, pid: Pid) -> io::Result<Option<Agent>> {
        let mut snapshot = Self::empty(lookout);
        let block = lookout.table.command_line(pid)?.unwrap_or_default();
        if let Some(entry) = snapshot.read(pid, &block, true)? {
            snapshot.entries.insert(pid, entry);
        }
        snapshot.count_as_agent(pid);
        snapshot.find_agents()?;
        Ok(snapshot.sighting.agents.pop())
    }

    /// Reads the processes and finds the agents and the orphans.
    pub(crate) fn take(
        lookout: &Lookout<'a>,
        depth: Depth,
        strangers: &mut Strangers,
    ) -> io::Result<Self> {
        let mut snapshot = Self::empty(lookout);
        let summary = match lookout.reading {
            Some(reading) => snapshot.enter_all_of(reading)?,
            None => snapshot.enter(lookout, depth, strangers)?,
        };
        snapshot.demote_forks_of_the_dead()?;
        if let Some(tracked) = lookout.tracked {
            snapshot.count_as_agent(tracked);
        }
        snapshot.find_agents()?;
        snapshot.find_orphans()?;
        if summary.hidden || summary.unreadable > 0 {
            snapshot.sighting.unseen.push(Unseen::HiddenProcesses);
        }
        Ok(snapshot)
    }

    /// Reads the processes that may matter.
    fn enter(
        &mut self,
        lookout: &Lookout<'_>,
        depth: Depth,
        strangers: &mut Strangers,
    ) -> io::Result<PassSummary> {
        let mut lines: Vec<(Pid, Vec<u8>)> = Vec::new();
        let mut seen = Strangers::default();
        let summary = lookout.table.for_each(|pid, block| {
            let argv0 = block.split(|&byte| byte == 0).next().unwrap_or_default();
            let known = strangers.know(pid, block);
            seen.remember(pid, block);
            let wanted = match depth {
                Depth::Python => lookout.family.companion().is_some() || is_python(argv0),
                Depth::Everything => !known,
            };
            if wanted || lookout.tracked == Some(pid) {
                lines.push((pid, block.to_vec()));
            }
        })?;
        *strangers = seen;
        for (pid, block) in lines {
            let everything = depth == Depth::Everything;
            let wanted = everything || lookout.tracked == Some(pid);
            match self.read(pid, &block, wanted)? {
                Some(entry) => {
                    self.entries.insert(pid, entry);
                }
                // Gone, or it seemed so: not known to be a stranger.
                None if everything => strangers.forget(pid),
                None => {}
            }
        }
        Ok(summary)
    }

    /// Takes what was read for all.
    fn enter_all_of(&mut self, reading: &Reading) -> io::Result<PassSummary> {
        for process in &reading.processes {
            let entry = self.judge(
                process.pid,
                &process.command_line,
                process.mark.clone(),
                true,
                || Ok(Some(process.stat)),
            )?;
            if let Some(entry) = entry {
                self.entries.insert(process.pid, entry);
            }
        }
        Ok(reading.summary)
    }

    /// The tracked process is the agent, unless a process under it is: then it
    /// is that one's wrapper.
    fn count_as_agent(&mut self, tracked: Pid) {
        let mode = self.family.mode().to_owned();
        let has_agent_below = self.entries.iter().any(|(&pid, entry)| {
            entry.command.is_some()
                && self
                    .ancestors(pid)
                    .is_ok_and(|ancestors| ancestors.contains(&tracked))
        });
        if let Some(entry) = self.entries.get_mut(&tracked)
            && !has_agent_below
        {
            let script = entry.name.clone().into();
            entry.command.get_or_insert(AgentCommand { script, mode });
        }
    }

    /// A process that an agent has forked has the agent's command line. Once
    /// the agent is dead it is an orphan worker like others. The mark says which
    /// process the agent was.
    fn demote_forks_of_the_dead(&mut self) -> io::Result<()> {
        let mut forks = Vec::new();
        for (&pid, entry) in &self.entries {
            let Some(mark) = entry.mark.as_ref().filter(|_| entry.command.is_some()) else {
                continue;
            };
            let Some(root) = mark.root() else {
                continue;
            };
            // At a terminal somebody has typed the command.
            if root == pid || entry.stat.terminal != 0 {
                continue;
            }
            // A container's number means nobody out here; nor is it signalled.
            if self
                .table
                .credentials(pid)?
                .is_none_or(|credentials| credentials.contained)
            {
                continue;
            }
            let root_lives = self
                .table
                .environment(root)
                .or_else(none_if_private)?
                .and_then(|environment| Mark::in_environment(&environment))
                .is_some_and(|roots| roots.birth() == mark.birth());
            if !root_lives {
                forks.push(pid);
            }
        }
        for pid in forks {
            if let Some(entry) = self.entries.get_mut(&pid) {
                entry.command = None;
            }
        }
        Ok(())
    }

    /// Reads what else matters of a process; `None` if it has ended, or if
    /// nothing does and it is not `wanted` anyway.
    fn read(&self, pid: Pid, block: &[u8], wanted: bool) -> io::Result<Option<Entry>> {
        match mark_of(self.table, pid)? {
            Some(mark) => self.judge(pid, block, mark, wanted, || self.table.stat(pid)),
            None => Ok(None),
        }
    }

    /// As [`Self::read`], with its mark.
    fn judge(
        &self,
        pid: Pid,
        block: &[u8],
        mark: Option<Mark>,
        wanted: bool,
        stat: impl FnOnce() -> io::Result<Option<Stat>>,
    ) -> io::Result<Option<Entry>> {
        let argv = split_arguments(block);
        let role = match self.family.companion() {
            None => multiprocessing_role(&argv),
            Some(_) => None,
        };
        let command = self
            .family
            .recognise_process(self.table, pid, &argv, mark.as_ref())?;
        let mark = mark.filter(|mark| mark.is_of(self.family));
        if !wanted && command.is_none() && role.is_none() && mark.is_none() {
            return Ok(None);
        }
        let Some(stat) = stat()?.filter(|stat| !stat.is_dead()) else {
            return Ok(None);
        };
        let argv0 = argv.first().copied().unwrap_or_default();
        Ok(Some(Entry {
            stat,
            python: self.family.may_work(argv0, mark.as_ref()),
            name: String::from_utf8_lossy(base_name(argv0)).into_owned(),
            command,
            role,
            tracker_descriptor: tracker_descriptor(&argv),
            mark,
        }))
    }

    /// The parent, as far as it is known here.
    fn parent(&self, pid: Pid) -> io::Result<Option<Pid>> {
        if let Some(entry) = self.entries.get(&pid) {
            return Ok(entry.stat.parent);
        }
        if let Some(known) = self.others.borrow().get(&pid) {
            return Ok(known.and_then(|stat| stat.parent));
        }
        let stat = self.table.stat(pid)?;
        self.others.borrow_mut().insert(pid, stat);
        Ok(stat.and_then(|stat| stat.parent))
    }

    fn ancestors(&self, pid: Pid) -> io::Result<Vec<Pid>> {
        let mut ancestors = Vec::new();
        let mut at = pid;
        while let Some(parent) = self.parent(at)? {
            // Processes that end while we read can make a ring.
            if ancestors.contains(&parent) {
                break;
            }
            ancestors.push(parent);
            at = parent;
        }
        Ok(ancestors)
    }

    fn is_agent(&self, pid: Pid) -> bool {
        self.entries
            .get(&pid)
            .is_some_and(|entry| entry.command.is_some())
    }

    /// A match is an agent of its own unless it descends from another match,
    /// or was born with one: forked children keep the argv.
    fn find_agents(&mut self) -> io::Result<()> {
        let mut roots: Vec<(Identity, AgentCommand)> = Vec::new();
        for (&pid, entry) in &self.entries {
            let Some(command) = &entry.command else {
                continue;
            };
            let ancestors = self.ancestors(pid)?;
            if !ancestors.iter().any(|&ancestor| self.is_agent(ancestor)) {
                roots.push((identity(pid, entry), command.clone()));
            }
        }
        roots.sort_by_key(|(identity, _)| (identity.start, identity.pid));
        let mut births = BTreeSet::new();
        for (identity, command) in roots {
            let Some(entry) = self.entries.get(&identity.pid) else {
                continue;
            };
            let mark = entry.mark.clone();
            // Somebody at a terminal that descends from an agent (a tmux it
            // started) who types the command makes a second agent, though the
            // mark is the first one's.
            let part_of_another = entry.stat.terminal == 0
                && mark
                    .as_ref()
                    .is_some_and(|mark| births.contains(mark.birth()));
            if part_of_another {
                continue;
            }
            if let Some(mark) = &mark {
                births.insert(*mark.birth());
            }
            let Some(credentials) = self.table.credentials(identity.pid)? else {
                continue;
            };
            let wrapper = self.wrapper(identity.pid)?;
            let unit = if credentials.contained {
                None
            } else {
                Unit::of(self.table, identity.pid)?
            };
            self.sighting.agents.push(Agent {
                identity,
                command,
                uid: credentials.uid,
                contained: credentials.contained,
                mark,
                wrapper,
                unit,
            });
        }
        Ok(())
    }

    /// The nearest ancestor that has the agent's script among its arguments.
    fn wrapper(&self, pid: Pid) -> io::Result<Option<Wrapper>> {
        for ancestor in self.ancestors(pid)? {
            let Some(block) = self.table.command_line(ancestor).or_else(none_if_private)? else {
                continue;
            };
            let argv = split_arguments(&block);
            if argv
                .iter()
                .any(|argument| self.family.is_named_by(argument))
            {
                return Ok(Some(Wrapper {
                    pid: ancestor,
                    command: wrapper_name(&argv),
                }));
            }
        }
        Ok(None)
    }

    fn find_orphans(&mut self) -> io::Result<()> {
        let births: BTreeSet<[u8; 32]> = self
            .sighting
            .agents
            .iter()
            .filter_map(|agent| agent.mark.as_ref())
            .map(|mark| *mark.birth())
            .collect();
        let mut orphans: BTreeMap<Pid, bool> = BTreeMap::new();
        let mut unseen = Vec::new();
        for (&pid, entry) in &self.entries {
            let dead_birth = entry
                .mark
                .as_ref()
                .is_some_and(|mark| !births.contains(mark.birth()));
            let marked = entry.python && dead_birth && entry.stat.terminal == 0;
            // Ancestors last: every one of them is a file to read.
            if entry.command.is_some()
                || !(marked || entry.is_worker())
                || self.ancestors(pid)?.iter().any(|&pid| self.is_agent(pid))
            {
                continue;
            }
            if marked {
                orphans.insert(pid, true);
                continue;
            }
            match self.is_old_style_worker(pid, entry) {
                Ok(true) => {
                    orphans.insert(pid, false);
                }
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    unseen.push(pid);
                }
                Err(error) => return Err(error),
            }
        }
        for pid in unseen {
            if let Some(Credentials { uid, .. }) = self.table.credentials(pid)? {
                self.sighting.unseen.push(Unseen::Worker { pid, uid });
            }
        }
        if orphans.values().any(|marked| !marked) {
            self.add_born_of_unmarked(&mut orphans)?;
        }
        for (pid, marked) in orphans {
            let Some(entry) = self.entries.get(&pid) else {
                continue;
            };
            let Some(Credentials { uid, contained }) = self.table.credentials(pid)? else {
                continue;
            };
            self.sighting.orphans.push(OrphanWorker {
                identity: identity(pid, entry),
                uid,
                contained,
                marked,
            });
        }
        Ok(())
    }

    /// What orphan workers without mark have forked; and their resource trackers,
    /// which listen on a pipe that the workers hold.
    fn add_born_of_unmarked(&self, orphans: &mut BTreeMap<Pid, bool>) -> io::Result<()> {
        for (&pid, entry) in &self.entries {
            let is_candidate = entry.python && entry.command.is_none();
            if is_candidate
                && !orphans.contains_key(&pid)
                && self
                    .ancestors(pid)?
                    .iter()
                    .any(|ancestor| orphans.get(ancestor) == Some(&false))
            {
                orphans.insert(pid, false);
            }
        }
        let workers: Vec<Pid> = orphans.keys().copied().collect();
        for (&pid, entry) in &self.entries {
            let Some(descriptor) = entry.tracker_descriptor else {
                continue;
            };
            let Ok(Some((device, inode))) = self.table.open_file(pid, descriptor) else {
                continue;
            };
            let listens = workers.iter().any(|&worker| {
                worker != pid
                    && self
                        .table
                        .holds_open(worker, device, inode)
                        .unwrap_or(false)
            });
            if listens {
                orphans.entry(pid).or_insert(false);
            }
        }
        Ok(())
    }

    /// A spawn child or fork server whose parent is gone, at work in the
    /// project folder with the libraries of `livekit-agents`.
    fn is_old_style_worker(&self, pid: Pid, entry: &Entry) -> io::Result<bool> {
        if !entry.is_worker()
            || !self.is_reparented(entry)?
            || self.table.working_folder(pid)?.as_deref() != Some(self.project_dir)
        {
            return Ok(false);
        }
        let maps = self.table.maps(pid)?.unwrap_or_default();
        let mapped = |name: &[u8]| memchr::memmem::find(&maps, name).is_some();
        if mapped(WORKER_LIBRARY) {
            return Ok(true);
        }
        if !WORKER_DEPENDENCIES.iter().all(|name| mapped(name)) {
            return Ok(false);
        }
        let mut environment = vec![0];
        environment.extend(self.table.environment(pid)?.unwrap_or_default());
        Ok(memchr::memmem::find(&environment, WORKER_VARIABLE).is_some())
    }

    /// `multiprocessing` parents are Python; init, a subreaper, a shell that
    /// took over are not.
    fn is_reparented(&self, entry: &Entry) -> io::Result<bool> {
        let Some(parent) = entry.stat.parent else {
            return Ok(true);
        };
        if parent.get() == 1 {
            return Ok(true);
        }
        if let Some(parent) = self.entries.get(&parent) {
            return Ok(!parent.python);
        }
        let line = self.table.command_line(parent).or_else(none_if_private)?;
        Ok(!line.is_some_and(|block| is_python(split_arguments(&block)[0])))
    }

    ///
    /// Whoever is kin, or Python and may become an orphan, is no stranger.
    pub(crate) fn kin(mut self, whose: KinOf, strangers: &mut Strangers) -> io::Result<Kin> {
        let seeds = self.seeds(whose);
        let mut members = seeds.clone();
        let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
        for (&pid, entry) in &self.entries {
            if let Some(parent) = entry.stat.parent {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut queue: Vec<Pid> = seeds.into_iter().collect();
        while let Some(pid) = queue.pop() {
            for &child in children.get(&pid).into_iter().flatten() {
                if members.insert(child) {
                    queue.push(child);
                }
            }
        }
        for (&pid, entry) in &self.entries {
            if entry.python || members.contains(&pid) {
                strangers.forget(pid);
            }
        }
        members.remove(&Pid::own());
        let on_terminal = self.on_own_terminal(&members)?;
        let orphans: BTreeSet<Pid> = self
            .sighting
            .orphans
            .iter()
            .map(|orphan| orphan.identity.pid)
            .collect();
        let agents: BTreeSet<Pid> = self
            .sighting
            .agents
            .iter()
            .map(|agent| agent.identity.pid)
            .collect();
        let mut kin = Kin::default();
        for pid in members {
            let Some(entry) = self.entries.get(&pid) else {
                continue;
            };
            let Some(credentials) = self.table.credentials(pid)? else {
                continue;
            };
            let kinship = if agents.contains(&pid) {
                Kinship::Agent
            } else if orphans.contains(&pid) {
                Kinship::OrphanWorker
            } else if self.ancestors(pid)?.iter().any(|&pid| self.is_agent(pid)) {
                Kinship::Descendant
            } else {
                Kinship::Leftover
            };
            let relative = Relative {
                identity: identity(pid, entry),
                kinship,
                uid: credentials.uid,
                command: entry.name.clone(),
            };
            let reason = if credentials.contained {
                Some(SpareReason::Contained)
            } else {
                on_terminal
                    .contains(&pid)
                    .then_some(SpareReason::OwnTerminal)
            };
            match reason {
                Some(reason) => kin.spared.push(Spared { relative, reason }),
                None => kin.relatives.push(relative),
            }
        }
        kin.relatives
            .sort_by_key(|relative| (relative.kinship, relative.identity.start));
        kin.sighting = std::mem::take(&mut self.sighting);
        Ok(kin)
    }

    fn seeds(&self, whose: KinOf) -> BTreeSet<Pid> {
        let orphans = |marked_only: bool| {
            self.sighting
                .orphans
                .iter()
                .filter(move |orphan| orphan.marked || !marked_only)
                .map(|orphan| orphan.identity.pid)
        };
        match whose {
            KinOf::Orphans => orphans(false).collect(),
            KinOf::MarkedOrphans => orphans(true).collect(),
            KinOf::Birth(birth) => self
                .entries
                .iter()
                .filter(|(_, entry)| {
                    entry
                        .mark
                        .as_ref()
                        .is_some_and(|mark| *mark.birth() == birth)
                })
                .map(|(&pid, _)| pid)
                .collect(),
            KinOf::Everyone => orphans(false)
                .chain(
                    self.entries
                        .iter()
                        .filter(|(_, entry)| entry.command.is_some() || entry.mark.is_some())
                        .map(|(&pid, _)| pid),
                )
                .collect(),
        }
    }

    /// Members with a controlling terminal that is not the one of the agent
    /// they descend from, and those they descend from in turn, up to the agent.
    fn on_own_terminal(&self, members: &BTreeSet<Pid>) -> io::Result<BTreeSet<Pid>> {
        let is_worker = |pid: Pid| {
            self.is_agent(pid)
                || self
                    .sighting
                    .orphans
                    .iter()
                    .any(|orphan| orphan.identity.pid == pid)
        };
        let mut spared = BTreeSet::new();
        for &pid in members {
            let Some(entry) = self.entries.get(&pid) else {
                continue;
            };
            if entry.stat.terminal == 0 || is_worker(pid) {
                continue;
            }
            let ancestors = self.ancestors(pid)?;
            let head = ancestors.iter().position(|&ancestor| is_worker(ancestor));
            let with_the_agent = head
                .and_then(|at| self.entries.get(&ancestors[at]))
                .is_some_and(|head| head.stat.terminal == entry.stat.terminal);
            if !with_the_agent {
                spared.insert(pid);
                let between = &ancestors[..head.unwrap_or(ancestors.len())];
                spared.extend(between.iter().filter(|pid| members.contains(pid)));
            }
        }
        Ok(spared)
    }
}

fn identity(pid: Pid, entry: &Entry) -> Identity {
    Identity {
        pid,
        start: entry.stat.start,
    }
}

/// A script's name says more than its interpreter's.
fn wrapper_name(argv: &[&[u8]]) -> String {
    let interpreters: [&[u8]; 5] = [b"sh", b"bash", b"dash", b"zsh", b"env"];
    let program = base_name(argv[0]);
    let is_interpreter = interpreters.contains(&program) || is_python(program);
    let script = argv
        .iter()
        .skip(1)
        .find(|argument| !argument.starts_with(b"-"))
        .filter(|_| is_interpreter);
    String::from_utf8_lossy(script.map_or(program, |script| base_name(script))).into_owned()
}

fn none_if_private(error: io::Error) -> io::Result<Option<Vec<u8>>> {
    if error.kind() == io::ErrorKind::PermissionDenied {
        Ok(None)
    } else {
        Err(error)
    }
}
