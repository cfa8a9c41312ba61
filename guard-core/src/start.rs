//! `start-voice-agent-safe`: guard, look again, birth, verification, release.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::agent::{MARK_VARIABLE, Mark};
use crate::attendant::Attendant;
use crate::birth::{BirthPlan, Bond, Ending, Newborn, give_birth};
use crate::deadline::Deadline;
use crate::detach::DETACH_VARIABLE;
use crate::env_file;
use crate::failure::Failure;
use crate::guard::HeldGuard;
use crate::hand_over;
use crate::log_file::{AgentLog, LogError};
use crate::notify::NOTIFY_VARIABLE;
use crate::outcome::Outcome;
use crate::pid_file::Tracking;
use crate::process_table::Pid;
use crate::readiness::LogWatch;
use crate::report::{Left, Refusal, Report};
use crate::scene::{Scene, cannot, cannot_end, cannot_remove, odd};
use crate::settings::{EnvFile, Interpreter, Settings};
use crate::sighting::{Agent, KinOf, Strangers};
use crate::signals::{Interruption, Interruptions, ignored_signals};
use crate::startup_lock::{HeldStartupLock, LockVerdict, Starter};
use crate::terminate::{Impatience, end, is_dead};
use crate::tracking_file;
use crate::vigil::{Vigil, Woken};
use crate::wrapper::CALLED_AS_VARIABLE;

/// How long a starter waits for a check or a stop to release the guard.
const GUARD_PATIENCE: Duration = Duration::from_secs(1);

/// How long the pause between two glances at the log may grow.
const LONGEST_GLANCE: Duration = Duration::from_millis(4);

/// How long an original starter that has overwritten our lock may take until
/// its agent is there to be seen.
const RIVAL_LIMIT: Duration = Duration::from_secs(5);

/// How many of a dead agent's last lines are shown.
pub(crate) const LAST_LINES: usize = 20;

/// Starts the agent unless one runs or is being started.
///
/// # Errors
/// When something that a start needs is missing or cannot be used.
pub fn start(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    let scene = Scene::open(settings)?;
    let Some(guard) = guard_or_refusal(&scene, report)? else {
        return Ok(Outcome::Refused);
    };
    let mut vigil = Vigil {
        interruptions: Some(hold_interruptions()?),
        ..Vigil::default()
    };
    let brought = start_under_guard(&scene, &guard, None, &mut vigil, report);
    drop(vigil.startup_lock.take());
    drop(guard);
    brought.map(Brought::outcome)
}

/// Waits for a check or stop to end; refuses at once if a start is in progress.
fn guard_or_refusal(scene: &Scene<'_>, report: &mut Report) -> Result<Option<HeldGuard>, Failure> {
    let mut deadline = Deadline::after(GUARD_PATIENCE);
    loop {
        if let Some(guard) = scene.try_guard()? {
            return Ok(Some(guard));
        }
        if let Some(starter) = scene.starter(false)? {
            report.refused(&Refusal::Starting(starter, scene.startup_lock.path()));
            return Ok(None);
        }
        if !deadline.wait() {
            report.refused(&Refusal::Busy(scene.guard_holder()));
            return Ok(None);
        }
    }
}

/// Looks again at everything, and starts an agent if there is none; `attendant`
/// is to stay with it.
///
/// # Errors
/// When something that a start needs is missing or cannot be used.
pub(crate) fn start_under_guard<'a>(
    scene: &'a Scene<'a>,
    guard: &HeldGuard,
    attendant: Option<Rc<RefCell<Attendant>>>,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Brought<'a>, Failure> {
    // At a constant cost first: a refused start is as cheap as a check.
    if let Tracking::Running(identity) = scene.tracking()? {
        report.refused(&Refusal::Running);
        let agent = scene.describe(identity.pid)?;
        report.agents(agent.as_slice(), Some(identity.pid));
        scene.report_ending(agent.as_slice(), report);
        return Ok(Brought::Not(Outcome::Refused));
    }
    // One of ours beside a unit that is about to start its own would be refused by
    // it, and not supervised. Asked after that look: an agent that it has still
    // seen may be dead by now.
    if attendant.is_none()
        && let [unit, ..] = hand_over::about_to_start(scene).as_slice()
    {
        report.refused(&Refusal::Supervised(unit));
        return Ok(Brought::Not(Outcome::Refused));
    }
    match take_startup_lock(scene, guard, report)? {
        Ok(lock) => vigil.startup_lock = lock,
        Err(starter) => {
            report.refused(&Refusal::Starting(starter, scene.startup_lock.path()));
            return Ok(Brought::Not(Outcome::Refused));
        }
    }
    let mut strangers = Strangers::default();
    let sighting = scene.look_at_strangers(&mut strangers)?;
    if !sighting.agents.is_empty() {
        report.refused(&Refusal::Running);
        let named = scene.pid_file.number().ok().flatten();
        report.agents(&sighting.agents, named);
        scene.report_ending(&sighting.agents, report);
        return Ok(Brought::Not(Outcome::Refused));
    }
    if !sighting.unseen.is_empty() {
        report.refused(&Refusal::CannotTell);
        report.unseen(&sighting.unseen);
        return Ok(Brought::Not(Outcome::Refused));
    }
    if sighting.orphans.iter().any(|orphan| !orphan.marked) {
        report.refused(&Refusal::Orphans);
        report.orphans(&sighting.orphans);
        return Ok(Brought::Not(Outcome::Refused));
    }
    if !sighting.orphans.is_empty() {
        let cleared = clear_orphans(scene, None, KinOf::MarkedOrphans, vigil, report)?;
        if let Some(outcome) = cleared {
            return Ok(Brought::Not(outcome));
        }
        strangers = Strangers::default();
    }
    let mut preparation = prepare(scene.settings)?;
    preparation.attendant = attendant;
    bear(
        scene,
        guard,
        preparation,
        Rivalry::Refuse,
        strangers,
        vigil,
        report,
    )
}

/// Interruptions are heard from here to the end of a start.
///
/// # Errors
/// When they cannot be held back.
pub(crate) fn hold_interruptions() -> Result<Interruptions, Failure> {
    Interruptions::hold().map_err(|error| {
        Failure::new(format!("cannot hold back signals: {error}"))
            .help("check how many files this user may open (ulimit -n)")
    })
}

/// Takes the startup lock; the inner `Err` names an original starter that is at
/// it. `None`: another user's stale lock is in the way, which keeps originals
/// away as little as none.
///
/// The guard must be held: a lock of one of our programs is stale then.
///
/// # Errors
/// When the lock file cannot be used.
pub(crate) fn take_startup_lock(
    scene: &Scene<'_>,
    _guard: &HeldGuard,
    report: &mut Report,
) -> Result<Result<Option<HeldStartupLock>, Starter>, Failure> {
    // An original may slip in between our look and our link, and go again.
    for _ in 0..8 {
        match scene.lock_verdict(true)? {
            LockVerdict::Starting(starter) => return Ok(Err(starter)),
            LockVerdict::Stale { owner, .. }
                if !tracking_file::may_replace(scene.startup_lock.path(), owner)
                    .unwrap_or(true) =>
            {
                report.note(format!(
                    "the stale startup lock {} is another user's and stays: rm it as that user",
                    scene.startup_lock.path().display()
                ));
                return Ok(Ok(None));
            }
            verdict => scene.remove_stale_lock(&verdict, report)?,
        }
        let taken = scene.startup_lock.take().map_err(|error| {
            let path = scene.startup_lock.path();
            let beside = tracking_file::beside(path);
            cannot("make the startup lock", path, &error).help(format!(
                "it is written as {} first: see ls -ld of both",
                beside.display()
            ))
        })?;
        if taken.is_some() {
            return Ok(Ok(taken));
        }
    }
    Ok(Err(Starter::Unnamed))
}

/// Ends orphan workers, round by round until none is left. `Some` is how the
/// program ends, if they could not be ended.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn clear_orphans(
    scene: &Scene<'_>,
    tracked: Option<Pid>,
    whose: KinOf,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Option<Outcome>, Failure> {
    let mut strangers = Strangers::default();
    for round in 0.. {
        let kin = scene.gather(tracked, whose, &mut strangers)?;
        report.spared(&kin.spared);
        if kin.relatives.is_empty() {
            return Ok(None);
        }
        if round == 0 {
            report.clearing_orphans(kin.sighting.orphans.len());
            report.orphans(&kin.sighting.orphans);
        }
        let termination = end(
            &scene.table,
            kin.relatives,
            scene.settings.grace,
            vigil,
            Impatience::GiveUp,
        )
        .map_err(|error| cannot_end(&error))?;
        report.ended(&termination.ended);
        report.survivors(&termination.survivors);
        if let Some(interruption) = termination.interrupted {
            report.interrupted(interruption, Left::Ending);
            return Ok(Some(Outcome::Interrupted(interruption)));
        }
        if !termination.survivors.is_empty() || round > 8 {
            report.not_stopped();
            return Ok(Some(Outcome::NotStopped));
        }
    }
    Ok(None)
}

/// What to say of an original starter's agent that came up beside ours, for
/// which ours makes way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rivalry {
    /// This start was refused, if late.
    Refuse,
    /// One runs, which is all that was wanted.
    Accept,
}

/// What a start needs from outside, found before anything is stopped for it.
#[derive(Debug)]
pub(crate) struct Preparation {
    interpreter: Interpreter,
    environment: Vec<(OsString, OsString)>,
    mark: Mark,
    log: AgentLog,
    attendant: Option<Rc<RefCell<Attendant>>>,
}

/// What came of a birth.
#[derive(Debug)]
pub(crate) enum Brought<'a> {
    /// An agent that lives, verified.
    Up(Box<Start<'a>>),
    /// None, and how the program ends.
    Not(Outcome),
}

impl Brought<'_> {
    fn outcome(self) -> Outcome {
        match self {
            Self::Up(_) => Outcome::Started,
            Self::Not(outcome) => outcome,
        }
    }
}

/// Finds the script, the interpreter, the env file and the log; changes nothing
/// but to make the log if there is none.
///
/// # Errors
/// When one of them is missing or cannot be used.
pub(crate) fn prepare(settings: &Settings) -> Result<Preparation, Failure> {
    find_script(settings)?;
    let interpreter = settings.interpreter()?;
    let mark = new_mark(settings)?;
    Ok(Preparation {
        environment: environment(settings)?,
        log: open_log(settings)?,
        interpreter,
        mark,
        attendant: None,
    })
}

/// Birth and verification; nobody else's agent is there, and the guard is held.
///
/// `strangers` were there before and were not born of this agent.
///
/// # Errors
/// When something that an agent needs is missing or cannot be used.
pub(crate) fn bring_up(
    scene: &Scene<'_>,
    guard: &HeldGuard,
    preparation: Preparation,
    rivalry: Rivalry,
    strangers: Strangers,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Outcome, Failure> {
    bear(scene, guard, preparation, rivalry, strangers, vigil, report).map(Brought::outcome)
}

fn bear<'a>(
    scene: &'a Scene<'a>,
    _guard: &HeldGuard,
    preparation: Preparation,
    rivalry: Rivalry,
    strangers: Strangers,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Brought<'a>, Failure> {
    let Preparation {
        interpreter,
        environment,
        mark,
        mut log,
        attendant,
    } = preparation;
    clear_pid_file(scene, report)?;
    let settings = scene.settings;
    report.interpreter(&interpreter);
    if let Err(error) = log.keep_previous(settings.keep_log) {
        report.log_not_kept(log.path(), &error);
    }
    let watch = LogWatch::of(&log, settings.ready_pattern.clone())
        .map_err(|error| cannot("read the log", log.path(), &error))?;
    let ignored = ignored_signals()
        .map_err(|error| cannot("read", Path::new("/proc/self/status"), &error))?;
    if let Some(interruption) = vigil.interruption() {
        report.interrupted(interruption, Left::Nobody);
        return Ok(Brought::Not(Outcome::Interrupted(interruption)));
    }
    let newborn = give_birth(&BirthPlan {
        interpreter: &interpreter.path,
        arguments: &[
            interpreter.path.clone().into_os_string(),
            settings.script.clone().into_os_string(),
            settings.mode.clone(),
        ],
        environment: &environment,
        mark: Some(&mark),
        folder: &settings.project_dir,
        pid_file: Some(&settings.pid_file),
        log: log.output(),
        ignored_signals: ignored,
        bond: if attendant.is_some() {
            Bond::Life
        } else {
            Bond::None
        },
    });
    let newborn = match newborn {
        Ok(newborn) => newborn,
        Err(error) => {
            forget_the_dead(scene);
            return Err(Failure::new(format!(
                "cannot start the agent with {}: {error}",
                interpreter.path.display()
            ))
            .help(format!(
                "check the interpreter, and that {} and {} can be written",
                settings.pid_file.display(),
                tracking_file::beside(&settings.pid_file).display()
            )));
        }
    };
    let mut start = Start {
        scene,
        mark: mark.born_as(newborn.pid),
        newborn,
        log,
        watch,
        strangers,
        rivalry,
        attendant,
    };
    match start.attend().and_then(|()| start.verify(vigil, report)) {
        Ok(Outcome::Started) => Ok(Brought::Up(Box::new(start))),
        Ok(outcome) => Ok(Brought::Not(outcome)),
        Err(failure) => {
            // What cannot be verified is not left behind.
            start.undo(vigil, report);
            Err(failure)
        }
    }
}

/// The agent script must be there.
///
/// # Errors
/// When it is not.
pub(crate) fn find_script(settings: &Settings) -> Result<(), Failure> {
    let script = settings.project_dir.join(&settings.script);
    if script.is_file() {
        return Ok(());
    }
    Err(
        Failure::new(format!("cannot find the agent script {}", script.display())).help(
            "run this from the project folder, link it into that folder, or set \
             VOICE_GUARD_PROJECT_DIR and VOICE_GUARD_AGENT_SCRIPT",
        ),
    )
}

/// A file in the agent's way, checked before there is an agent.
pub(crate) fn clear_pid_file(scene: &Scene<'_>, report: &mut Report) -> Result<(), Failure> {
    let path = scene.pid_file.path();
    match scene.tracking()? {
        Tracking::Absent | Tracking::Running(_) => Ok(()),
        Tracking::Odd(oddity) => Err(odd("PID file", path, oddity)),
        Tracking::Unproven(record) => {
            if scene.has_unseen_holder(&record)? {
                report.unseen_holder(path);
                return Err(Failure::new(format!(
                    "Already running or locked: the PID file {} is locked by a process that \
                     cannot be seen from here",
                    path.display()
                ))
                .help("stop the agent where it runs: in its container, or as its user"));
            }
            match tracking_file::may_replace(path, record.owner) {
                Ok(true) => scene.remove_stale_pid_file(&record, report),
                Ok(false) => {
                    let denied = io::ErrorKind::PermissionDenied.into();
                    Err(cannot_remove("PID file", path, record.owner, &denied))
                }
                Err(error) => Err(cannot("replace the PID file", path, &error)),
            }
        }
    }
}

pub(crate) fn new_mark(settings: &Settings) -> Result<Mark, Failure> {
    let mut random = [0_u8; 16];
    let filled = rustix::io::retry_on_intr(|| {
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
    });
    match filled {
        Ok(16) => Ok(Mark::new(
            u128::from_ne_bytes(random),
            &settings.family,
            &settings.pid_file,
        )),
        Ok(_) => Err(Failure::new("cannot get 16 random bytes: got fewer")),
        Err(errno) => Err(Failure::new(format!(
            "cannot get random bytes: {}",
            io::Error::from(errno)
        ))),
    }
}

/// The caller's environment, overridden by the env files, without what these
/// programs tell each other in it. A caller's mark is another agent's.
///
/// # Errors
/// When an env file cannot be used.
pub(crate) fn environment(settings: &Settings) -> Result<Vec<(OsString, OsString)>, Failure> {
    let mut environment: BTreeMap<OsString, OsString> = env::vars_os().collect();
    let paths = match &settings.env_file {
        EnvFile::Configured(paths) => paths.as_slice(),
        EnvFile::Default(path) if path.exists() => std::slice::from_ref(path),
        EnvFile::Default(_) => &[],
    };
    for path in paths {
        let assignments =
            env_file::read(path).map_err(|error| {
                Failure::new(format!("cannot use the env file {}: {error}", path.display())).help(
                "it holds lines NAME=value: LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET, and \
                 the keys of the providers that the agent uses",
            )
            })?;
        environment.extend(assignments);
    }
    Ok(without_our_own(environment).collect())
}

/// What others may inherit: not what is told to this program alone.
pub(crate) fn without_our_own(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    let ours = [
        DETACH_VARIABLE,
        CALLED_AS_VARIABLE,
        MARK_VARIABLE,
        NOTIFY_VARIABLE,
    ];
    let is_ours = move |name: &OsString| ours.iter().any(|our| name == our);
    environment
        .into_iter()
        .filter(move |(name, _)| !is_ours(name))
}

fn open_log(settings: &Settings) -> Result<AgentLog, Failure> {
    let path = &settings.log_file;
    AgentLog::open(path).map_err(|error| match error {
        LogError::Odd(oddity) => odd("log", path, oddity),
        LogError::Io(error) => {
            Failure::new(format!("cannot write the log {}: {error}", path.display()))
                .help("make it writable for you, or set VOICE_GUARD_LOG_FILE")
        }
    })
}

/// Removes a PID file that names a child of ours that was killed before it was
/// the agent.
pub(crate) fn forget_the_dead(scene: &Scene<'_>) {
    let _ = tracking_file::remove_plain(&tracking_file::beside(scene.pid_file.path()));
    let Ok(Some(pid)) = scene.pid_file.number() else {
        return;
    };
    if matches!(scene.table.stat(pid), Ok(None)) {
        // Should it stay, it is stale, and the next program says so.
        let _ = scene.pid_file.remove_if_naming(pid);
    }
}

/// An agent that was born of this program.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    scene: &'a Scene<'a>,
    mark: Mark,
    newborn: Newborn,
    log: AgentLog,
    watch: LogWatch,
    strangers: Strangers,
    rivalry: Rivalry,
    attendant: Option<Rc<RefCell<Attendant>>>,
}

impl Start<'_> {
    /// Its number.
    pub(crate) fn pid(&self) -> Pid {
        self.newborn.pid
    }

    /// It, to be waited for and signalled.
    pub(crate) fn newborn(&self) -> &Newborn {
        &self.newborn
    }

    fn attend(&self) -> Result<(), Failure> {
        let Some(attendant) = &self.attendant else {
            return Ok(());
        };
        attendant
            .borrow_mut()
            .attend(&self.newborn, &self.log)
            .map_err(|error| Failure::new(format!("cannot stay with the agent: {error}")))
    }

    /// Ready as soon as the log says so, failed as soon as the pidfd says dead,
    /// otherwise good after the window if alive; and alone.
    fn verify(&mut self, vigil: &mut Vigil, report: &mut Report) -> Result<Outcome, Failure> {
        let mut window = Deadline::after(self.scene.settings.verify);
        let registered = loop {
            let ready = self
                .watch
                .is_ready()
                .map_err(|error| cannot("read the log", self.log.path(), &error))?;
            if self.is_dead()? {
                return Ok(self.report_death(vigil, report));
            }
            if ready {
                break true;
            }
            let pause = window.next_pause().unwrap_or_default().min(LONGEST_GLANCE);
            let woken = vigil
                .wait(&[self.newborn.pidfd.as_fd()], pause)
                .map_err(|error| Failure::new(format!("cannot wait for the agent: {error}")))?;
            match woken {
                Woken::ByInterruption(interruption) => {
                    return Ok(self.interrupt(interruption, vigil, report));
                }
                Woken::ByTime if window.passed() => break false,
                Woken::ByTime | Woken::ByEvent => {}
            }
        };
        if let Some(rival) = self.rival(vigil)? {
            return self.yield_to(&rival, vigil, report);
        }
        if self.is_dead()? {
            return Ok(self.report_death(vigil, report));
        }
        report.started(
            self.pid(),
            registered,
            self.scene.settings.verify,
            self.log.path(),
        );
        let agent = self.scene.describe(self.pid())?;
        report.now_running(agent.as_slice(), self.pid());
        Ok(Outcome::Started)
    }

    /// Is it dead?
    ///
    /// # Errors
    /// When that cannot be found out.
    pub(crate) fn is_dead(&self) -> Result<bool, Failure> {
        is_dead(self.newborn.pidfd.as_fd())
            .map_err(|error| Failure::new(format!("cannot watch the agent: {error}")))
    }

    fn report_death(&mut self, vigil: &mut Vigil, report: &mut Report) -> Outcome {
        let how = self.newborn.reap();
        let copied = self.attendant.as_ref().is_some_and(|attendant| {
            attendant.borrow_mut().finish();
            attendant.borrow().copies()
        });
        if copied {
            report.ended_by_itself(self.pid(), how, self.log.path());
        } else {
            let last_lines = self.log.last_lines(LAST_LINES).unwrap_or_default();
            report.died(self.pid(), &how.to_string(), self.log.path(), &last_lines);
        }
        // Its workers may live on.
        self.undo(vigil, report);
        match self.attendant {
            Some(_) => Outcome::AgentEnded(how),
            None => Outcome::Died,
        }
    }

    /// Ctrl-C and TERM undo the start; a lost terminal does not: the agent is
    /// meant to survive it.
    fn interrupt(
        &mut self,
        interruption: Interruption,
        vigil: &mut Vigil,
        report: &mut Report,
    ) -> Outcome {
        if interruption == Interruption::HangUp {
            report.interrupted(interruption, Left::Running(self.pid()));
        } else {
            self.undo(vigil, report);
            report.interrupted(interruption, Left::Nobody);
        }
        Outcome::Interrupted(interruption)
    }

    /// Another agent beside ours: an original starter was at it when we looked,
    /// or is about to be, since its number stands in our lock.
    fn rival(&self, vigil: &mut Vigil) -> Result<Option<Agent>, Failure> {
        let mut deadline = Deadline::after(RIVAL_LIMIT);
        loop {
            let sighting = self.scene.look(Some(self.pid()))?;
            let rival = sighting.agents.into_iter().find(|agent| {
                let is_ours = agent
                    .mark
                    .as_ref()
                    .is_some_and(|mark| mark.birth() == self.mark.birth());
                !is_ours && agent.identity.pid != self.pid()
            });
            if rival.is_some() {
                return Ok(rival);
            }
            let intruder = match &vigil.startup_lock {
                Some(lock) => lock
                    .intruder(&self.scene.table)
                    .map_err(|error| cannot("read the startup lock", lock.path(), &error))?,
                None => None,
            };
            if intruder.is_none() || !deadline.wait() {
                return Ok(None);
            }
        }
    }

    /// The other stays, since its script will not look again; and it is tracked.
    /// That is what a program wants that only wants one to run.
    fn yield_to(
        &mut self,
        rival: &Agent,
        vigil: &mut Vigil,
        report: &mut Report,
    ) -> Result<Outcome, Failure> {
        self.undo(vigil, report);
        match self.rivalry {
            Rivalry::Refuse => report.refused(&Refusal::Rival),
            Rivalry::Accept => report.rival_kept(rival.identity.pid),
        }
        if !matches!(self.scene.tracking()?, Tracking::Running(_)) {
            self.scene
                .pid_file
                .adopt(rival.identity.pid)
                .map_err(|error| {
                    cannot("write the PID file", self.scene.pid_file.path(), &error)
                })?;
        }
        report.agents(std::slice::from_ref(rival), Some(rival.identity.pid));
        Ok(match self.rivalry {
            Rivalry::Refuse => Outcome::Refused,
            Rivalry::Accept => Outcome::Kept,
        })
    }

    /// Ends what was born of this start, and forgets it; under the guard.
    fn undo(&mut self, vigil: &mut Vigil, report: &mut Report) {
        self.end_family(vigil, report);
        // What a child leaves that is killed in the middle of its birth.
        let _ = tracking_file::remove_plain(&tracking_file::beside(self.scene.pid_file.path()));
        self.forget(report);
    }

    /// Ends what was born of this start; how the agent itself has ended.
    pub(crate) fn end_family(&mut self, vigil: &mut Vigil, report: &mut Report) -> Ending {
        let scene = self.scene;
        if let Some(attendant) = &self.attendant {
            attendant.borrow().tell_end(scene.settings.grace);
        }
        for _ in 0..4 {
            // What fails here for want of descriptors may succeed once more.
            let birth = KinOf::Birth(*self.mark.birth());
            let Ok(kin) = scene.gather(Some(self.pid()), birth, &mut self.strangers) else {
                continue;
            };
            if kin.relatives.is_empty() {
                break;
            }
            let grace = scene.settings.grace;
            if let Ok(termination) =
                end(&scene.table, kin.relatives, grace, vigil, Impatience::Kill)
            {
                report.survivors(&termination.survivors);
            }
        }
        self.newborn.kill_and_reap().unwrap_or(Ending::Unknown)
    }

    /// Removes the PID file that names the dead agent; under the guard.
    pub(crate) fn forget(&self, report: &mut Report) {
        let scene = self.scene;
        match scene.pid_file.remove_if_naming(self.pid()) {
            Ok(_) => {}
            Err(error) => report.note(format!(
                "cannot remove the PID file {}: {error}",
                scene.pid_file.path().display()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_inherit_nothing_that_is_told_to_this_program_alone() {
        let told = [
            "PATH",
            "VOICE_GUARD_CALLED_AS",
            "VOICE_GUARD_MARK",
            "VOICE_GUARD_PROJECT_DIR",
        ]
        .map(|name| (OsString::from(name), OsString::from("x")));
        let inherited: Vec<_> = without_our_own(told).map(|(name, _)| name).collect();
        assert_eq!(inherited, ["PATH", "VOICE_GUARD_PROJECT_DIR"]);
    }
}
