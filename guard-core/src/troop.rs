//! The companions on their way up or down, all in one loop: each is a little
//! machine that never waits, and is stepped whenever something has happened.
//! One thread, since births fork.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::agent::{Family, MARK_VARIABLE, Mark};
use crate::birth::{BirthPlan, Bond, Ending, Newborn, give_birth};
use crate::cleaning::{self, Places};
use crate::config::{OnFailure, OnStart};
use crate::deadline::Deadline;
use crate::errand::{Errand, Surroundings};
use crate::failure::Failure;
use crate::http::HttpUrl;
use crate::log_file::{AgentLog, LogError};
use crate::member::OwnProgram;
use crate::pid_file::Tracking;
use crate::plan::{CommandLine, Companion, Demand, Job, Need, Plan, Ready, put_in};
use crate::port_owner::{holds, listeners, name_holders};
use crate::probe::Probe;
use crate::process_table::{Identity, Pid, ProcessTable, split_arguments};
use crate::progress::{PartState, Progress};
use crate::report::{Format, Report};
use crate::runtime;
use crate::scene::{Scene, cannot, odd, proc_failure};
use crate::settings::Settings;
use crate::sighting::{Kin, KinOf, Strangers};
use crate::start::{LAST_LINES, clear_pid_file, environment, forget_the_dead, new_mark};
use crate::stop::{Clearance, Clearing, Round, remove_tracking_files, tracked};
use crate::terminate::{Farewell, is_dead};
use crate::vigil::Meanwhile;

/// Everything that is configured beside the agent, and how far each is.
#[derive(Debug)]
pub struct Troop {
    plan: Plan,
    members: Vec<Member>,
    agent_is_up: bool,
    /// A part that everything depends on has failed: nothing new is begun.
    halted: bool,
    surroundings: Surroundings,
    places: Places,
    progress: Progress,
    /// When this program was started, as the kernel counts it.
    own_start: u64,
    restarting: bool,
}

/// One companion.
#[derive(Debug)]
pub struct Member {
    companion: Companion,
    /// Its files and its family, as for an agent.
    settings: Settings,
    state: State,
    begun: Instant,
    took: Option<Duration>,
    port: Option<u16>,
    process: Option<Process>,
    origin: Origin,
    problem: Option<Problem>,
    strangers: Strangers,
    /// What is said of it on the way.
    notes: Report,
}

/// May a stop of the system stop it?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ours {
    /// Yes.
    Yes,
    /// Nothing of it runs.
    Absent,
    /// It was there before, and nobody here has started it.
    Found(Pid),
    /// Somebody else owns it.
    Never,
}

/// How a companion came to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// By this program.
    Started,
    /// It was there.
    Reused,
}

/// A process that is watched.
#[derive(Debug)]
struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    /// Our child, to be reaped.
    newborn: bool,
}

/// Why a part failed.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    /// What went wrong.
    pub why: String,
    /// The last lines of its output.
    pub last_lines: Vec<String>,
    /// What helps.
    pub help: Option<String>,
}

enum State {
    Waiting,
    /// Is what is there ready? `Some` deadline: wait for that.
    Asking(Probe, Option<Deadline>),
    /// Another manager was asked to start it.
    Commanding(Errand),
    Starting {
        probe: Probe,
        deadline: Deadline,
        mark: Mark,
        log: AgentLog,
    },
    Ending {
        clearance: Clearance,
        farewell: Option<Farewell>,
        then: Then,
    },
    Ready,
    Failed,
    /// Not begun, since something that it needs has failed, or the start was
    /// given up.
    Skipped,
    /// Born, tracked, and not waited for any longer.
    Left,
    /// To be stopped once those that need it are.
    ToStop,
    Stopped,
}

impl fmt::Debug for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Waiting => "Waiting",
            Self::Asking(..) => "Asking",
            Self::Commanding(_) => "Commanding",
            Self::Starting { .. } => "Starting",
            Self::Ending { .. } => "Ending",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
            Self::Skipped => "Skipped",
            Self::Left => "Left",
            Self::ToStop => "ToStop",
            Self::Stopped => "Stopped",
        })
    }
}

/// What comes after the end of the old processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Start,
    Fail,
    Undo,
    Stop,
}

/// What one look at a companion's processes has found.
#[derive(Debug)]
enum Found {
    Nothing,
    One(Identity),
    /// Several, or leftovers of a dead one.
    Mess,
}

impl Troop {
    /// The companions of this plan, nothing begun.
    ///
    /// # Errors
    /// When what they are to be born with cannot be read.
    pub fn new(
        plan: Plan,
        settings: &Settings,
        progress: Progress,
        restarting: bool,
        demand: Demand,
    ) -> Result<Self, Failure> {
        let environment = match environment(settings) {
            // A stop or a look goes on without the env file.
            Err(_) if demand == Demand::Stop => std::env::vars_os()
                .filter(|(name, _)| name != MARK_VARIABLE)
                .collect(),
            other => other?,
        };
        let surroundings = Surroundings {
            environment,
            ignored_signals: crate::signals::ignored_signals()
                .map_err(|error| cannot("read", Path::new("/proc/self/status"), &error))?,
        };
        let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
        let own_start = table
            .stat(Pid::own())
            .ok()
            .flatten()
            .map_or(0, |stat| stat.start);
        let members = (0..plan.companions.len())
            .map(|index| Member::new(&plan, index, settings))
            .collect();
        Ok(Self {
            members,
            agent_is_up: false,
            halted: false,
            surroundings,
            places: Places::of(&settings.project_dir),
            progress,
            own_start,
            restarting,
            plan,
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What steps are run with.
    #[must_use]
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// The live lines or plain events.
    pub fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// Its members.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Its members, for a look at their processes.
    pub fn members_mut(&mut self) -> &mut [Member] {
        &mut self.members
    }

    /// The agent is up: what needs it may begin.
    pub fn agent_is_up(&mut self) {
        self.agent_is_up = true;
    }

    /// Begin nothing new.
    pub fn halt(&mut self) {
        self.halted = true;
        for member in &mut self.members {
            if matches!(member.state, State::Waiting) {
                member.state = State::Skipped;
            }
        }
    }

    /// Did a part fail that the start cannot do without?
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// Is everything ready that the agent needs, or failed and not missed?
    #[must_use]
    pub fn agent_may_start(&self) -> bool {
        self.plan
            .agent_needs
            .iter()
            .all(|&index| self.is_settled_for_others(Need::Companion(index)))
    }

    /// Has every member come to an end, as far as the agent does not keep it
    /// waiting?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.members.iter().enumerate().all(|(index, member)| {
            member.is_settled()
                || (matches!(member.state, State::Waiting)
                    && !self.agent_is_up
                    && self.plan.waits_for_agent(index))
        })
    }

    fn is_settled_for_others(&self, need: Need) -> bool {
        match need {
            Need::Agent => self.agent_is_up,
            Need::Companion(index) => {
                let member = &self.members[index];
                match member.state {
                    State::Ready => true,
                    State::Failed => member.companion.on_failure == OnFailure::Warn,
                    _ => false,
                }
            }
        }
    }

    /// Everybody who is chosen goes down, dependents first.
    pub fn stop(&mut self, mut chosen: impl FnMut(usize, &Companion) -> bool) {
        for (index, member) in self.members.iter_mut().enumerate() {
            if matches!(member.companion.job, Job::Own(_)) && chosen(index, &member.companion) {
                member.state = State::ToStop;
                member.begun = Instant::now();
            }
        }
    }

    /// After they have been stopped, everybody may begin again.
    pub fn start_over(&mut self) {
        for member in &mut self.members {
            if matches!(member.state, State::Stopped) {
                member.state = State::Waiting;
            }
        }
    }

    /// The start is given up: what was begun and is not ready is undone.
    pub fn undo(&mut self) {
        self.halted = true;
        for member in &mut self.members {
            let state = std::mem::replace(&mut member.state, State::Skipped);
            member.state = match state {
                State::Commanding(mut errand) => {
                    errand.kill();
                    State::Skipped
                }
                State::Waiting | State::Asking(..) => State::Skipped,
                State::Starting { .. } => going_down(Then::Undo),
                State::Ending {
                    clearance,
                    farewell,
                    then: Then::Start,
                } => State::Ending {
                    clearance,
                    farewell,
                    then: Then::Undo,
                },
                other => other,
            };
        }
    }

    /// Is nobody on the way down?
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self
            .members
            .iter()
            .any(|member| matches!(member.state, State::Ending { .. } | State::ToStop))
    }

    /// The start is over early: what was born goes on, tracked.
    pub fn leave(&mut self) {
        self.halt();
        for member in &mut self.members {
            let state = std::mem::replace(&mut member.state, State::Skipped);
            member.state = match state {
                State::Starting { .. } => State::Left,
                State::Asking(..) | State::Commanding(_) if member.process.is_some() => State::Left,
                State::Asking(..) | State::Commanding(_) | State::Waiting => State::Skipped,
                State::Ending {
                    clearance,
                    farewell,
                    then: Then::Start,
                } => State::Ending {
                    clearance,
                    farewell,
                    then: Then::Undo,
                },
                other => other,
            };
        }
    }

    /// No more grace for those who are being ended.
    pub fn hurry(&mut self) {
        for member in &mut self.members {
            if let State::Ending {
                farewell: Some(farewell),
                ..
            } = &mut member.state
                && farewell.is_polite()
            {
                farewell.kill();
            }
        }
    }

    fn step_member(&mut self, index: usize) {
        // A step may make the next possible at once.
        for _ in 0..16 {
            let before = self.members[index].stage();
            self.advance(index);
            if self.members[index].stage() == before {
                break;
            }
            self.show(index);
        }
    }

    fn advance(&mut self, index: usize) {
        if matches!(self.members[index].state, State::Waiting) {
            let needs = &self.members[index].companion.needs;
            let may_begin =
                !self.halted && needs.iter().all(|&need| self.is_settled_for_others(need));
            if !may_begin {
                if self.halted {
                    self.members[index].state = State::Skipped;
                }
                return;
            }
        }
        if matches!(self.members[index].state, State::ToStop) {
            let blocked = self.members.iter().any(|member| {
                member.companion.needs.contains(&Need::Companion(index))
                    && matches!(member.state, State::ToStop | State::Ending { .. })
            });
            if blocked {
                return;
            }
        }
        let context = Context {
            surroundings: &self.surroundings,
            places: &self.places,
            own_start: self.own_start,
            restarting: self.restarting,
        };
        let member = &mut self.members[index];
        if let Err(failure) = member.advance(&context) {
            member.fail(Problem {
                why: failure.to_string(),
                last_lines: Vec::new(),
                help: failure.remedy().map(str::to_owned),
            });
        }
        if matches!(member.state, State::Failed)
            && member.companion.on_failure == OnFailure::Stop
            && !self.halted
        {
            self.halt();
            for other in 0..self.members.len() {
                if matches!(self.members[other].state, State::Skipped) {
                    self.show(other);
                }
            }
        }
    }

    fn show(&mut self, index: usize) {
        let member = &self.members[index];
        let (state, detail) = member.shown(&self.plan);
        self.progress.show(index, state, &detail);
    }

    /// Says how everybody stands.
    pub fn show_all(&mut self) {
        for index in 0..self.members.len() {
            self.show(index);
        }
    }
}

impl Troop {
    /// Steps those only who are on their way down.
    pub fn step_down(&mut self) {
        for _ in 0..=self.members.len() {
            let before: Vec<_> = self.members.iter().map(Member::stage).collect();
            for index in 0..self.members.len() {
                if matches!(
                    self.members[index].state,
                    State::Ending { .. } | State::ToStop
                ) {
                    self.step_member(index);
                }
            }
            let after: Vec<_> = self.members.iter().map(Member::stage).collect();
            if before == after {
                break;
            }
        }
        self.progress.refresh();
    }
}

impl Meanwhile for Troop {
    fn events(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.members.iter().flat_map(Member::events).collect()
    }

    fn due_in(&self) -> Option<Duration> {
        let members = self.members.iter().filter_map(Member::due_in).min();
        match (members, self.progress.due_in()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn step(&mut self) {
        // One that is ready may let another begin.
        for _ in 0..=self.members.len() {
            let before: Vec<_> = self.members.iter().map(Member::stage).collect();
            for index in 0..self.members.len() {
                self.step_member(index);
            }
            let after: Vec<_> = self.members.iter().map(Member::stage).collect();
            if before == after {
                break;
            }
        }
        self.progress.refresh();
    }
}

/// What a member needs to know of the others.
struct Context<'a> {
    surroundings: &'a Surroundings,
    places: &'a Places,
    own_start: u64,
    restarting: bool,
}

impl Member {
    /// The companion `index` of the plan.
    #[must_use]
    pub fn new(plan: &Plan, index: usize, settings: &Settings) -> Self {
        let companion = plan.companions[index].clone();
        let own = match &companion.job {
            Job::Own(command) => Some(own_program(plan, index, command, settings)),
            _ => None,
        };
        let system = runtime::key_of(&settings.project_dir);
        let file = |extension: &str| plan.runtime.join(format!("{}.{extension}", companion.name));
        let settings = Settings {
            project_dir: companion.folder.clone(),
            script: companion.name.clone().into(),
            family: Family::of_companion(&companion.name, &system, own),
            mode: OsString::new(),
            pid_file: file("pid"),
            lock_file: file("lock"),
            guard_file: guard_file(plan),
            log_file: companion.log.clone(),
            verify: companion.deadline,
            grace: companion.grace,
            ..settings.clone()
        };
        Self {
            settings,
            state: State::Waiting,
            begun: Instant::now(),
            took: None,
            port: companion.first_port(),
            process: None,
            origin: Origin::Started,
            problem: None,
            strangers: Strangers::default(),
            notes: Report::new("", "", Format::Quiet),
            companion,
        }
    }

    /// What the configuration says of it.
    #[must_use]
    pub fn companion(&self) -> &Companion {
        &self.companion
    }

    /// Its files and family.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Why it failed.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    /// Its process, if it has one of its own.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// The port that it has, or is to have.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// How long it took from its beginning to readiness.
    #[must_use]
    pub fn took(&self) -> Option<Duration> {
        self.took
    }

    /// What was said of it on the way.
    #[must_use]
    pub fn notes(&self) -> &Report {
        &self.notes
    }

    /// Was it there before?
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.origin == Origin::Reused
    }

    /// How it stands.
    #[must_use]
    pub fn part_state(&self) -> PartState {
        match self.state {
            State::Waiting => PartState::Waiting,
            State::Asking(..) => PartState::Checking,
            State::Commanding(_) | State::Starting { .. } => PartState::Starting,
            State::Ending {
                then: Then::Fail, ..
            }
            | State::Failed => PartState::Failed,
            State::Ending { .. } | State::ToStop => PartState::Stopping,
            State::Ready => PartState::Ready,
            State::Skipped => PartState::Skipped,
            State::Left => PartState::Left,
            State::Stopped => PartState::Stopped,
        }
    }

    fn stage(&self) -> (std::mem::Discriminant<State>, bool) {
        let busy = matches!(
            &self.state,
            State::Ending {
                farewell: Some(_),
                ..
            }
        );
        (std::mem::discriminant(&self.state), busy)
    }

    fn is_settled(&self) -> bool {
        matches!(
            self.state,
            State::Ready | State::Failed | State::Skipped | State::Left | State::Stopped
        )
    }

    fn shown(&self, plan: &Plan) -> (PartState, String) {
        let state = self.part_state();
        let detail = match state {
            PartState::Waiting => {
                let names: Vec<&str> = self
                    .companion
                    .needs
                    .iter()
                    .map(|&need| plan.name_of(need))
                    .collect();
                if names.is_empty() {
                    String::new()
                } else {
                    format!("for {}", names.join(", "))
                }
            }
            PartState::Ready => self.shown_process(),
            PartState::Failed => self
                .problem
                .as_ref()
                .map_or_else(String::new, |problem| problem.why.clone()),
            PartState::Starting | PartState::Left => self
                .pid()
                .map_or_else(String::new, |pid| format!("PID {pid}")),
            _ => String::new(),
        };
        (state, detail)
    }

    fn shown_process(&self) -> String {
        let mut words = Vec::new();
        match self.took {
            Some(took) if self.origin == Origin::Started => {
                words.push(format!("in {:.1} s", took.as_secs_f64()));
            }
            _ => words.push("as it was".to_owned()),
        }
        if let Some(pid) = self.pid() {
            words.push(format!("PID {pid}"));
        }
        if let Some(port) = self.port {
            words.push(format!("port {port}"));
        }
        words.join(", ")
    }

    fn events(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut events = match &self.state {
            State::Asking(probe, _) | State::Starting { probe, .. } => probe.events(),
            State::Commanding(errand) => vec![(errand.event(), PollFlags::IN)],
            State::Ending {
                farewell: Some(farewell),
                ..
            } => farewell
                .pidfds()
                .into_iter()
                .map(|pidfd| (pidfd, PollFlags::IN))
                .collect(),
            _ => Vec::new(),
        };
        if matches!(
            self.state,
            State::Asking(..) | State::Starting { .. } | State::Ready
        ) && let Some(process) = &self.process
        {
            events.push((process.pidfd.as_fd(), PollFlags::IN));
        }
        events
    }

    fn due_in(&self) -> Option<Duration> {
        let both =
            |one: Option<Duration>, other: Duration| Some(one.map_or(other, |one| one.min(other)));
        match &self.state {
            State::Asking(probe, None) => probe.due_in(),
            State::Asking(probe, Some(deadline))
            | State::Starting {
                probe, deadline, ..
            } => both(probe.due_in(), deadline.left()),
            State::Commanding(errand) => Some(errand.left()),
            State::Ending {
                farewell: Some(farewell),
                ..
            } => Some(farewell.left()),
            State::Ending { farewell: None, .. } => Some(Duration::ZERO),
            _ => None,
        }
    }

    fn fail(&mut self, problem: Problem) {
        self.problem.get_or_insert(problem);
        self.state = State::Failed;
    }

    fn advance(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        match &mut self.state {
            State::Waiting => self.begin(context),
            State::Asking(..) => self.ask(context),
            State::Commanding(errand) => {
                if let Some(ended) = errand.ended() {
                    let last_lines = errand.last_lines(LAST_LINES);
                    self.commanded(ended, last_lines, context)?;
                }
                Ok(())
            }
            State::Starting { .. } => self.watch_birth(),
            State::Ending { .. } => self.end_processes(context),
            State::Ready => {
                self.watch();
                Ok(())
            }
            State::ToStop => {
                self.process = None;
                self.state = going_down(Then::Stop);
                Ok(())
            }
            State::Failed | State::Skipped | State::Left | State::Stopped => Ok(()),
        }
    }

    // --- going up ---

    fn begin(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        self.begun = Instant::now();
        let fresh = self.companion.on_start == OnStart::Fresh
            && (!context.restarting || self.companion.restart);
        if matches!(self.companion.job, Job::Own(_)) {
            match self.find()? {
                // A fresh one that another program has started since we were
                // called is fresh enough. (Later, not as late: a tick is 10 ms.)
                Found::One(identity) if !fresh || identity.start > context.own_start => {
                    self.watch_found(identity)?;
                    let deadline = (self.companion.on_start != OnStart::Manual)
                        .then(|| Deadline::after(self.companion.deadline));
                    return self.ask_first(context, deadline);
                }
                Found::Nothing => {}
                Found::One(_) | Found::Mess if self.companion.on_start == OnStart::Manual => {}
                Found::One(_) | Found::Mess => {
                    self.state = going_down(Then::Start);
                    return Ok(());
                }
            }
            // Somebody else's server is as good as ours if it does the work; an
            // open port does not say so.
            let proves_itself =
                matches!(self.companion.ready, Ready::Http { .. } | Ready::Command(_));
            if self.companion.on_start != OnStart::Manual && (fresh || !proves_itself) {
                return self.give_birth(context);
            }
        }
        self.ask_first(context, None)
    }

    fn ask_first(
        &mut self,
        context: &Context<'_>,
        deadline: Option<Deadline>,
    ) -> Result<(), Failure> {
        let probe = self.question(context.surroundings)?;
        self.state = State::Asking(probe, deadline);
        self.ask(context)
    }

    fn probe(
        &self,
        surroundings: &Surroundings,
        since: Instant,
        log: Option<&AgentLog>,
    ) -> Result<Probe, Failure> {
        let surroundings = Surroundings {
            environment: self.environment(surroundings),
            ignored_signals: surroundings.ignored_signals,
        };
        Probe::new(
            &self.companion.ready,
            self.port,
            &self.companion.folder,
            &surroundings,
            since,
            log,
        )
        .map_err(|why| Failure::new(format!("cannot tell whether it is ready: {why}")))
    }

    /// When its process was started; now, if it has none.
    fn born_at(&self) -> Instant {
        let now = Instant::now();
        let Some(process) = &self.process else {
            return now;
        };
        let age = crate::process_details::Ages::of([process.pid].into_iter()).get(process.pid);
        age.and_then(|age| now.checked_sub(age)).unwrap_or(now)
    }

    fn ask(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        let State::Asking(probe, deadline) = &mut self.state else {
            return Ok(());
        };
        if let Some(process) = &self.process
            && is_dead(process.pidfd.as_fd()).unwrap_or(true)
        {
            // Dead while we asked: as if it had never been there.
            self.process = None;
            if self.companion.on_start != OnStart::Manual {
                self.state = going_down(Then::Start);
            }
            return Ok(());
        }
        if probe.step() {
            self.origin = if deadline.is_some() && matches!(self.companion.job, Job::Managed { .. })
            {
                Origin::Started
            } else {
                Origin::Reused
            };
            return self.become_ready();
        }
        let why = probe.why_not().to_owned();
        match deadline {
            Some(deadline) if !deadline.passed() => return Ok(()),
            None if !probe.is_answered() => return Ok(()),
            _ => {}
        }
        let patient = deadline.is_some();
        let (limit, name) = (self.companion.deadline, &self.companion.name);
        match &self.companion.job {
            Job::Own(_) if self.companion.on_start == OnStart::Manual => {
                let problem = Problem {
                    why: format!(
                        "it is not ready: {why}; it is not started from here (on_start = \"manual\")"
                    ),
                    ..Problem::default()
                };
                self.fail(problem);
                Ok(())
            }
            Job::Own(_) if patient => {
                let note = format!(
                    "{name} was running, but not ready within {} s ({why}): it is replaced",
                    limit.as_secs_f64()
                );
                self.notes.note(note);
                self.process = None;
                self.state = going_down(Then::Start);
                Ok(())
            }
            Job::Own(_) => self.give_birth(context),
            Job::Managed { remedy, .. } if patient => {
                let problem = Problem {
                    why: format!(
                        "started, but not ready within {} s: {why}",
                        limit.as_secs_f64()
                    ),
                    last_lines: Vec::new(),
                    help: remedy.clone(),
                };
                self.fail(problem);
                Ok(())
            }
            Job::Managed {
                start: Some(start),
                remedy,
                ..
            } if self.companion.on_start != OnStart::Manual => {
                let (start, remedy) = (start.clone(), remedy.clone());
                match Errand::begin(&start, &self.companion.folder, context.surroundings, limit) {
                    Ok(errand) => self.state = State::Commanding(errand),
                    Err(why) => self.fail(Problem {
                        why,
                        last_lines: Vec::new(),
                        help: remedy,
                    }),
                }
                Ok(())
            }
            Job::Managed { remedy, .. } | Job::Foreign { remedy } => {
                let problem = Problem {
                    why: format!("it is not ready: {why}"),
                    last_lines: Vec::new(),
                    help: remedy.clone(),
                };
                self.fail(problem);
                Ok(())
            }
        }
    }

    /// The command that asks another manager has ended.
    fn commanded(
        &mut self,
        ended: Result<Ending, Duration>,
        last_lines: Vec<String>,
        context: &Context<'_>,
    ) -> Result<(), Failure> {
        let Job::Managed { start, remedy, .. } = &self.companion.job else {
            return Ok(());
        };
        let command = start
            .as_ref()
            .map_or_else(String::new, |start| start.words.join(" "));
        let why = match ended {
            Ok(Ending::Exited(0)) => {
                let left = self.companion.deadline.saturating_sub(self.begun.elapsed());
                return self.ask_first(context, Some(Deadline::after(left)));
            }
            Ok(ending) => format!("cannot start it with `{command}`: {ending}"),
            Err(limit) => format!(
                "cannot start it with `{command}`: not done within {} s",
                limit.as_secs_f64()
            ),
        };
        let problem = Problem {
            why,
            last_lines,
            help: remedy.clone(),
        };
        self.fail(problem);
        Ok(())
    }

    /// Is it ours to stop: configured to be started fresh, or started by these
    /// programs and not merely found?
    ///
    /// # Errors
    /// When its processes cannot be looked at.
    pub fn is_ours(&mut self) -> Result<Ours, Failure> {
        if !matches!(self.companion.job, Job::Own(_)) {
            return Ok(Ours::Never);
        }
        Ok(match (self.find()?, self.companion.on_start) {
            (Found::Nothing, _) => Ours::Absent,
            (_, OnStart::Fresh) | (Found::Mess, OnStart::Reuse) => Ours::Yes,
            (Found::One(identity), on_start) => {
                let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
                let marked = table
                    .environment(identity.pid)
                    .ok()
                    .flatten()
                    .and_then(|block| Mark::in_environment(&block))
                    .is_some_and(|mark| mark.is_of(&self.settings.family));
                match on_start {
                    _ if marked => Ours::Yes,
                    OnStart::Manual => Ours::Never,
                    _ => Ours::Found(identity.pid),
                }
            }
            (Found::Mess, OnStart::Manual) => Ours::Never,
        })
    }

    /// What runs of it, for a look that changes nothing.
    ///
    /// # Errors
    /// When its processes cannot be looked at.
    pub fn look(&mut self) -> Result<Option<Pid>, Failure> {
        if !matches!(self.companion.job, Job::Own(_)) {
            return Ok(None);
        }
        let Found::One(identity) = self.find()? else {
            return Ok(None);
        };
        self.watch_found(identity)?;
        Ok(Some(identity.pid))
    }

    /// Since when its process runs, and the memory of all that is born of it.
    ///
    /// # Errors
    /// When its processes cannot be looked at.
    pub fn age_and_memory(&self, pid: Pid) -> Result<(Option<Duration>, Option<u64>), Failure> {
        let scene = Scene::open(&self.settings)?;
        let kin = scene.gather(Some(pid), KinOf::Everyone, &mut Strangers::default())?;
        let pids: Vec<Pid> = kin
            .relatives
            .iter()
            .map(|relative| relative.identity.pid)
            .collect();
        let age = crate::process_details::Ages::of([pid].into_iter()).get(pid);
        Ok((age, crate::process_details::memory_of(pids.into_iter())))
    }

    /// A question whether it is ready.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn question(&self, surroundings: &Surroundings) -> Result<Probe, Failure> {
        let log = match self.companion.ready {
            Ready::Log(_) => AgentLog::open(&self.companion.log).ok(),
            _ => None,
        };
        self.probe(surroundings, self.born_at(), log.as_ref())
    }

    /// What runs of it now.
    fn find(&mut self) -> Result<Found, Failure> {
        let scene = Scene::open(&self.settings)?;
        if let Tracking::Running(identity) = scene.tracking()? {
            return Ok(Found::One(identity));
        }
        // Deep, since whatever bears its mark may be of any program.
        let kin = scene.gather(None, KinOf::Everyone, &mut self.strangers)?;
        Ok(match kin.sighting.agents.as_slice() {
            [] if kin.relatives.is_empty() => Found::Nothing,
            [one] if kin.sighting.orphans.is_empty() => Found::One(one.identity),
            _ => Found::Mess,
        })
    }

    fn watch_found(&mut self, identity: Identity) -> Result<(), Failure> {
        let pidfd = open_pidfd(identity.pid)
            .map_err(|error| Failure::new(format!("cannot watch PID {}: {error}", identity.pid)))?;
        self.port = self.port_of(identity.pid).or(self.companion.first_port());
        self.process = Some(Process {
            pid: identity.pid,
            pidfd,
            newborn: false,
        });
        Ok(())
    }

    /// Which of its ports a running one has.
    fn port_of(&self, pid: Pid) -> Option<u16> {
        let ports = &self.companion.ports;
        if ports.len() < 2 {
            return ports.first().copied();
        }
        let listening = ports.iter().copied().find(|&port| {
            listeners(port).is_ok_and(|listeners| {
                !listeners.is_empty() && holds(pid, &listeners) == Some(true)
            })
        });
        listening.or_else(|| {
            let table = ProcessTable::open().ok()?;
            let line = table.command_line(pid).ok()??;
            let program = self.settings.family.companion()?;
            ports
                .get(program.variant_of(&split_arguments(&line))?)
                .copied()
        })
    }

    fn environment(&self, surroundings: &Surroundings) -> Vec<(OsString, OsString)> {
        let mut environment: BTreeMap<OsString, OsString> =
            surroundings.environment.iter().cloned().collect();
        for (name, value) in &self.companion.env {
            environment.insert(name.into(), put_in(value, self.port).into());
        }
        environment.into_iter().collect()
    }

    /// Nothing of it runs: cleans, chooses the port, and starts it.
    fn give_birth(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        if !self.choose_port()? {
            return Ok(());
        }
        for folder in &self.companion.clean_folders {
            cleaning::remove(folder, context.places).map_err(|why| {
                Failure::new(format!(
                    "cannot remove the folder {}: {why}",
                    folder.display()
                ))
            })?;
        }
        let scene = Scene::open(&self.settings)?;
        clear_pid_file(&scene, &mut self.notes)?;
        let mut log = open_log(&self.companion.log)?;
        if self.companion.clean_log {
            rustix::fs::ftruncate(log.output(), 0)
                .map_err(|errno| cannot("empty the log", log.path(), &io::Error::from(errno)))?;
        } else if let Err(error) = log.keep_previous(self.settings.keep_log) {
            self.notes.log_not_kept(log.path(), &error);
        }
        let Some(command) = self.companion.command(self.port) else {
            return Ok(());
        };
        let mark = new_mark(&self.settings)?;
        let environment = self.environment(context.surroundings);
        let arguments: Vec<OsString> = command.words.iter().map(OsString::from).collect();
        let probe = self.probe(context.surroundings, Instant::now(), Some(&log))?;
        let newborn = give_birth(&BirthPlan {
            interpreter: &command.program,
            arguments: &arguments,
            environment: &environment,
            mark: Some(&mark),
            folder: &self.companion.folder,
            pid_file: Some(&self.settings.pid_file),
            log: log.output(),
            ignored_signals: context.surroundings.ignored_signals,
            bond: Bond::None,
        })
        .map_err(|error| {
            forget_the_dead(&scene);
            Failure::new(format!(
                "cannot start {}: {error}",
                command.program.display()
            ))
        })?;
        let mark = mark.born_as(newborn.pid);
        self.origin = Origin::Started;
        self.process = Some(Process {
            pid: newborn.pid,
            pidfd: newborn.pidfd,
            newborn: true,
        });
        self.state = State::Starting {
            probe,
            deadline: Deadline::after(self.companion.deadline),
            mark,
            log,
        };
        Ok(())
    }

    /// The first port that nobody listens on. `false`: none, and it has failed.
    fn choose_port(&mut self) -> Result<bool, Failure> {
        let candidates: Vec<u16> = if self.companion.ports.is_empty() {
            let local = match &self.companion.ready {
                Ready::Http { url, .. } => HttpUrl::parse(&put_in(url, None))
                    .ok()
                    .filter(HttpUrl::is_local)
                    .map(|url| url.port()),
                _ => None,
            };
            self.companion.first_port().or(local).into_iter().collect()
        } else {
            self.companion.ports.clone()
        };
        if candidates.is_empty() {
            return Ok(true);
        }
        let mut taken = Vec::new();
        for &port in &candidates {
            let listening = listeners(port)
                .map_err(|error| cannot("read", Path::new("/proc/net/tcp"), &error))?;
            if listening.is_empty() {
                if let Some(note) = taken.first() {
                    self.notes.note(format!(
                        "{}: {note}: it gets port {port}",
                        self.companion.name
                    ));
                }
                self.port = Some(port);
                return Ok(true);
            }
            let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
            taken.push(format!(
                "port {port} is taken by {}",
                name_holders(&table, &listening)
            ));
        }
        let problem = Problem {
            why: format!("{}; a stranger is never stopped", taken.join("; ")),
            last_lines: Vec::new(),
            help: Some("stop that process, or give this part another port".to_owned()),
        };
        self.fail(problem);
        Ok(false)
    }

    /// Born: is it ready, is it dead?
    fn watch_birth(&mut self) -> Result<(), Failure> {
        if let Some(ending) = self.has_died() {
            if ending == Ending::Exited(0) && self.adopt_heir()? {
                return Ok(());
            }
            self.problem = Some(Problem {
                why: format!("it died before it was ready: {ending}"),
                last_lines: self.last_lines(),
                help: Some(format!("see {}", self.companion.log.display())),
            });
            self.state = going_down(Then::Fail);
            return Ok(());
        }
        let State::Starting {
            probe, deadline, ..
        } = &mut self.state
        else {
            return Ok(());
        };
        if probe.step() {
            return self.become_ready();
        }
        if deadline.passed() {
            let why = format!(
                "not ready within {} s: {}",
                self.companion.deadline.as_secs_f64(),
                probe.why_not()
            );
            self.problem = Some(Problem {
                why,
                last_lines: self.last_lines(),
                help: Some(format!("see {}", self.companion.log.display())),
            });
            self.state = going_down(Then::Fail);
        }
        Ok(())
    }

    /// How the watched process has ended, if it has; nobody can tell if it was
    /// not our child.
    fn has_died(&self) -> Option<Ending> {
        let process = self.process.as_ref()?;
        if !is_dead(process.pidfd.as_fd()).unwrap_or(true) {
            return None;
        }
        if !process.newborn {
            return Some(Ending::Unknown);
        }
        Some(process.pidfd.try_clone().map_or(Ending::Unknown, |pidfd| {
            Newborn {
                pid: process.pid,
                pidfd,
            }
            .reap()
        }))
    }

    /// The process has put itself into the background: the oldest that was
    /// born of it takes its place.
    fn adopt_heir(&mut self) -> Result<bool, Failure> {
        let State::Starting { mark, .. } = &self.state else {
            return Ok(false);
        };
        let scene = Scene::open(&self.settings)?;
        let kin: Kin = scene.gather(None, KinOf::Birth(*mark.birth()), &mut self.strangers)?;
        let heir = kin
            .relatives
            .iter()
            .map(|relative| relative.identity)
            .min_by_key(|identity| (identity.start, identity.pid));
        let Some(heir) = heir else {
            return Ok(false);
        };
        let Ok(pidfd) = open_pidfd(heir.pid) else {
            return Ok(false);
        };
        scene
            .pid_file
            .adopt(heir.pid)
            .map_err(|error| cannot("write the PID file", scene.pid_file.path(), &error))?;
        self.process = Some(Process {
            pid: heir.pid,
            pidfd,
            newborn: false,
        });
        Ok(true)
    }

    fn last_lines(&self) -> Vec<String> {
        match &self.state {
            State::Starting { log, .. } => log.last_lines(LAST_LINES).unwrap_or_default(),
            _ => AgentLog::open(&self.companion.log)
                .ok()
                .and_then(|log| log.last_lines(LAST_LINES).ok())
                .unwrap_or_default(),
        }
    }

    fn become_ready(&mut self) -> Result<(), Failure> {
        if let Some(process) = self.process.as_ref().filter(|process| !process.newborn) {
            let scene = Scene::open(&self.settings)?;
            if scene.pid_file.number().ok().flatten() != Some(process.pid) {
                scene
                    .pid_file
                    .adopt(process.pid)
                    .map_err(|error| cannot("write the PID file", scene.pid_file.path(), &error))?;
            }
        } else if self.process.is_none()
            && matches!(self.companion.job, Job::Own(_))
            && let Some(port) = self.companion.first_port().or(self.http_port())
        {
            let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
            let holder = name_holders(&table, &listeners(port).unwrap_or_default());
            self.notes.note(format!(
                "{} is served by {holder}, which was not started from here: it is left alone",
                self.companion.name
            ));
        }
        self.took = Some(self.begun.elapsed());
        self.state = State::Ready;
        Ok(())
    }

    fn http_port(&self) -> Option<u16> {
        match &self.companion.ready {
            Ready::Http { url, .. } => HttpUrl::parse(&put_in(url, self.port))
                .ok()
                .map(|url| url.port()),
            _ => None,
        }
    }

    /// Ready: it must stay so until the start is over.
    fn watch(&mut self) {
        if let Some(ending) = self.has_died() {
            self.problem = Some(Problem {
                why: format!("it died after it was ready: {ending}"),
                last_lines: self.last_lines(),
                help: Some(format!("see {}", self.companion.log.display())),
            });
            self.state = going_down(Then::Fail);
        }
    }

    // --- going down ---

    fn end_processes(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        let scene = Scene::open(&self.settings)?;
        let State::Ending {
            clearance,
            farewell,
            then,
        } = &mut self.state
        else {
            return Ok(());
        };
        let then = *then;
        if let Some(running) = farewell {
            if !running.is_over().map_err(|error| proc_failure(&error))? {
                return Ok(());
            }
            if let Some(over) = farewell.take() {
                clearance.take(&over.finish(), &mut self.notes);
            }
        }
        let tracked = tracked(&scene)?;
        let round = clearance.round(&scene, tracked, &mut self.strangers, &mut self.notes)?;
        let clearing = match round {
            Round::End(relatives, grace) => {
                *farewell = Some(
                    Farewell::begin(&scene.table, relatives, grace)
                        .map_err(|error| proc_failure(&error))?,
                );
                return Ok(());
            }
            Round::Empty(sighting) => {
                let settled = clearance.settle(
                    &scene,
                    tracked,
                    &sighting,
                    &mut self.strangers,
                    &mut self.notes,
                )?;
                match settled {
                    Some(clearing) => clearing,
                    None => return Ok(()),
                }
            }
            Round::Endless => Clearing::Incomplete,
        };
        if let Some(process) = self.process.take().filter(|process| process.newborn) {
            // Dead: reaped, so that it does not stay behind as a zombie.
            Newborn {
                pid: process.pid,
                pidfd: process.pidfd,
            }
            .kill();
        }
        if !matches!(clearing, Clearing::Done(_)) {
            let why = self
                .notes
                .last_note()
                .unwrap_or("not everything of it could be stopped")
                .to_owned();
            self.fail(Problem {
                why,
                ..Problem::default()
            });
            return Ok(());
        }
        match then {
            Then::Start => {
                self.state = State::Waiting;
                self.give_birth(context)
            }
            Then::Fail => {
                remove_tracking_files(&scene, &mut self.notes)?;
                self.state = State::Failed;
                Ok(())
            }
            Then::Undo => {
                remove_tracking_files(&scene, &mut self.notes)?;
                self.state = State::Skipped;
                Ok(())
            }
            Then::Stop => {
                remove_tracking_files(&scene, &mut self.notes)?;
                self.took = Some(self.begun.elapsed());
                self.state = State::Stopped;
                Ok(())
            }
        }
    }
}

fn going_down(then: Then) -> State {
    State::Ending {
        clearance: Clearance::default(),
        farewell: None,
        then,
    }
}

/// The file whose lock keeps the programs of one system apart.
#[must_use]
pub fn guard_file(plan: &Plan) -> std::path::PathBuf {
    plan.runtime.join(".system.guard")
}

fn own_program(
    plan: &Plan,
    index: usize,
    command: &CommandLine,
    settings: &Settings,
) -> OwnProgram {
    let companion = &plan.companions[index];
    let alone = plan
        .companions
        .iter()
        .enumerate()
        .all(|(other, candidate)| {
            other == index
                || candidate.folder != companion.folder
                || !matches!(&candidate.job, Job::Own(theirs) if theirs.program == command.program)
        });
    let ports: Vec<Option<u16>> = if companion.ports.is_empty() {
        vec![companion.first_port()]
    } else {
        companion.ports.iter().copied().map(Some).collect()
    };
    let variants = ports
        .into_iter()
        .map(|port| {
            command
                .at(port)
                .words
                .into_iter()
                .skip(1)
                .map(OsString::from)
                .collect()
        })
        .collect();
    OwnProgram::new(
        &command.program,
        &companion.folder,
        &settings.project_dir,
        variants,
        alone,
    )
}

fn open_log(path: &Path) -> Result<AgentLog, Failure> {
    AgentLog::open(path).map_err(|error| match error {
        LogError::Odd(oddity) => odd("log", path, oddity),
        LogError::Io(error) => cannot("write the log", path, &error),
    })
}

fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let raw = rustix::process::Pid::from_raw(pid.get()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(
        raw,
        rustix::process::PidfdFlags::empty(),
    )?)
}
