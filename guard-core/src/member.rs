//! One companion: a little machine that never waits, and is stepped whenever
//! something has happened. On its way up: `ascent`; on its way down: `descent`; what there is of it: `presence`; that it was
//! ready: `remembered`.

mod ascent;
mod descent;
mod presence;
mod remembered;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::agent::{Family, Mark};
use crate::cleaning::Places;
use crate::config::OnFailure;
use crate::deadline::Deadline;
use crate::errand::{Errand, Surroundings};
use crate::failure::Failure;
use crate::log_file::AgentLog;
use crate::own_program::OwnProgram;
use crate::plan::{CommandLine, Companion, Job, Plan};
use crate::probe::Probe;
use crate::process_table::{Identity, Pid};
use crate::progress::PartState;
use crate::reading::Readings;
use crate::report::{Format, Report};
use crate::runtime;
use crate::scene::proc_failure;
use crate::settings::Settings;
use crate::start::LAST_LINES;
use crate::stop::Clearance;
use crate::terminate::Farewell;

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
    /// What a look has found of several at once.
    mess: Option<Mess>,
    origin: Origin,
    problem: Option<Problem>,
    /// When it last changed what there is of it: a look that began before does
    /// not count.
    changed: Instant,
    /// What is said of it on the way.
    notes: Report,
}

/// May a stop of the system stop it?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ours {
    /// Yes.
    Yes,
    /// Nothing of it runs.
    Absent,
    /// It was there before, and nobody here has started it; the processes.
    Found(Vec<Pid>),
    /// Somebody else owns it.
    Never,
}

/// Since when a companion runs, and the memory of all that is born of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct AgeAndMemory {
    /// For how long its process has been running.
    pub age: Option<Duration>,
    /// In bytes, resident.
    pub memory: Option<u64>,
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
    /// With which mark it was born; `None`: not of these programs.
    mark: Option<Mark>,
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

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self {
            why: failure.to_string(),
            last_lines: Vec::new(),
            help: failure.remedy().map(str::to_owned),
        }
    }
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

/// How far it is; the same after a step that has changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stage(std::mem::Discriminant<State>, bool);

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
    /// Its PID file is locked by a process that cannot be seen from here.
    Locked,
    One(Identity),
    /// Several, or leftovers of a dead one.
    Mess(Mess),
}

/// More of a companion than the one process that should run.
#[derive(Debug, Default)]
pub struct Mess {
    /// The companion itself: several, or one, or none.
    pub copies: Vec<Pid>,
    /// What is left of dead ones.
    pub left: Vec<Pid>,
    /// The PID file is locked by a process that cannot be seen from here.
    pub is_locked: bool,
}

/// What a member needs to know of the others.
pub(crate) struct Context<'a> {
    pub(crate) surroundings: &'a Surroundings,
    pub(crate) places: &'a Places,
    pub(crate) own_start: u64,
    pub(crate) restarting: bool,
    pub(crate) readings: &'a Readings,
    /// The ports of the other companions, and whose each is.
    pub(crate) taken: &'a [(u16, String)],
    /// When this step began.
    pub(crate) now: Instant,
}

impl State {
    fn going_down(then: Then) -> Self {
        Self::Ending {
            clearance: Clearance::default(),
            farewell: None,
            then,
        }
    }

    /// What was to be started once the old processes are gone is not.
    fn not_to_start(self) -> Self {
        match self {
            Self::Ending {
                clearance,
                farewell,
                then: Then::Start,
            } => Self::Ending {
                clearance,
                farewell,
                then: Then::Undo,
            },
            other => other,
        }
    }
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
            guard_file: runtime::guard_file(&settings.project_dir),
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
            mess: None,
            origin: Origin::Started,
            problem: None,
            changed: Instant::now(),
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

    /// The processes, if a look has found more than the one that should run.
    #[must_use]
    pub fn mess(&self) -> Option<&Mess> {
        self.mess.as_ref()
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

    pub(crate) fn stage(&self) -> Stage {
        let busy = matches!(
            &self.state,
            State::Ending {
                farewell: Some(_),
                ..
            }
        );
        Stage(std::mem::discriminant(&self.state), busy)
    }

    pub(crate) fn is_settled(&self) -> bool {
        matches!(
            self.state,
            State::Ready | State::Failed | State::Skipped | State::Left | State::Stopped
        )
    }

    pub(crate) fn shown(&self, plan: &Plan) -> (PartState, String) {
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

    pub(crate) fn events(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
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

    pub(crate) fn due_in(&self) -> Option<Duration> {
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

    pub(crate) fn fail(&mut self, problem: Problem) {
        self.problem.get_or_insert(problem);
        self.state = State::Failed;
    }

    pub(crate) fn advance(&mut self, context: &Context<'_>) -> Result<(), Failure> {
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
            State::Starting { .. } => self.watch_birth(context),
            State::Ending { .. } => self.end_processes(context),
            State::Ready => self.watch(),
            State::ToStop => {
                self.process = None;
                self.state = State::going_down(Then::Stop);
                Ok(())
            }
            State::Failed | State::Skipped | State::Left | State::Stopped => Ok(()),
        }
    }

    // --- what the troop tells it ---

    /// It waits for what it needs.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// It was not begun, or has failed: nothing is known of what runs of it.
    pub(crate) fn is_beyond_us(&self) -> bool {
        matches!(
            self.state,
            State::Waiting | State::Skipped | State::Failed | State::ToStop
        )
    }

    /// It is on its way down.
    pub(crate) fn goes_down(&self) -> bool {
        matches!(self.state, State::Ending { .. } | State::ToStop)
    }

    /// It is to go down, and has not begun to.
    pub(crate) fn is_to_stop(&self) -> bool {
        matches!(self.state, State::ToStop)
    }

    /// May those begin that need it?
    pub(crate) fn lets_others_begin(&self) -> bool {
        match self.state {
            State::Ready => true,
            State::Failed => self.companion.on_failure == OnFailure::Warn,
            _ => false,
        }
    }

    /// It has failed, and is missed.
    pub(crate) fn is_missed(&self) -> bool {
        matches!(self.state, State::Failed) && self.companion.on_failure == OnFailure::Stop
    }

    /// Do not begin. `true` if it would have.
    pub(crate) fn skip(&mut self) -> bool {
        let waits = self.is_waiting();
        if waits {
            self.state = State::Skipped;
        }
        waits
    }

    /// Go down, once those are down that need it.
    pub(crate) fn stop(&mut self) {
        self.state = State::ToStop;
        self.begun = Instant::now();
    }

    /// Stopped, it may begin again.
    pub(crate) fn start_over(&mut self) {
        if matches!(self.state, State::Stopped) {
            self.state = State::Waiting;
        }
    }

    /// The start is given up: what was begun and is not ready is undone.
    pub(crate) fn undo(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Skipped);
        self.state = match state {
            State::Commanding(mut errand) => {
                if let Some(pid) = errand.kill() {
                    self.notes.note(format!(
                        "the command that starts {} goes on as PID {pid}, which this user may not end",
                        self.companion.name
                    ));
                }
                State::Skipped
            }
            State::Waiting | State::Asking(..) => State::Skipped,
            State::Starting { .. } => State::going_down(Then::Undo),
            other => other.not_to_start(),
        };
    }

    /// The start is over early: what was born goes on, tracked.
    pub(crate) fn leave(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Skipped);
        self.state = match state {
            State::Starting { .. } => State::Left,
            State::Asking(..) | State::Commanding(_) if self.process.is_some() => State::Left,
            State::Asking(..) | State::Commanding(_) | State::Waiting => State::Skipped,
            other => other.not_to_start(),
        };
    }

    /// Takes in that those are dead who were being ended: before any member
    /// looks, so that one look serves all whose processes end together.
    pub(crate) fn notice_deaths(&mut self) -> Result<(), Failure> {
        let State::Ending {
            clearance,
            farewell,
            ..
        } = &mut self.state
        else {
            return Ok(());
        };
        if let Some(running) = farewell
            && running.is_over().map_err(|error| proc_failure(&error))?
            && let Some(over) = farewell.take()
        {
            clearance.take(&over.finish(), &mut self.notes);
            self.changed = Instant::now();
        }
        Ok(())
    }

    /// No more grace for it, if it is being ended.
    pub(crate) fn hurry(&mut self) {
        if let State::Ending {
            farewell: Some(farewell),
            ..
        } = &mut self.state
            && farewell.is_polite()
        {
            farewell.kill();
        }
    }
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
