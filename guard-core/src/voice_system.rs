//! The whole voice system, as `voice-system.toml` describes it: up, down, up
//! again, and how it is. Without that file, the agent alone.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::birth::Ending;
use crate::config::{OnFailure, OnStart, When};
use crate::deadline::Deadline;
use crate::detach::{Place, leave_agent};
use crate::errand::{Errand, Surroundings};
use crate::failure::Failure;
use crate::guard::{Guard, GuardError, HeldGuard, Taking};
use crate::outcome::Outcome;
use crate::plan::{AGENT, CommandLine, Companion, Demand, Job, Need, Plan, Ready, Step, put_in};
use crate::process_table::{Pid, ProcessTable};
use crate::progress::{PartState, Progress};
use crate::report::{PartFacts, Report};
use crate::runtime;
use crate::scene::{Scene, odd, proc_failure};
use crate::settings::Settings;
use crate::signals::Interruption;
use crate::start::{LAST_LINES, find_script, hold_interruptions, prepare};
use crate::startup_lock::program_name;
use crate::stop::{relayed, stop, tracked};
use crate::system::{self, restart_agent, start_agent};
use crate::troop::{Member, Ours, Troop, guard_file};
use crate::vigil::{Meanwhile, Vigil, Woken};

/// How long, beyond what the parts themselves may take, these programs wait
/// for others of their kind to finish.
const GUARD_PATIENCE: Duration = Duration::from_mins(1);

/// There is always something that ends a wait; if not, it is looked again.
const LONG: Duration = Duration::from_hours(1);

/// Brings the whole system up.
///
/// # Errors
/// When the configuration or something that a start needs cannot be used.
pub fn start_system(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    let Some(config) = settings.config.clone() else {
        return system::start_system(settings, report);
    };
    if let Place::Relayed(exit_code) = leave_agent(&settings.family)? {
        return Ok(relayed(exit_code, Outcome::Started, Outcome::Failed));
    }
    let plan = Plan::resolve(&config, settings, Demand::Start)?;
    // Before anything is started or stopped, not after a minute.
    prepare(settings)?;
    let mut run = match Run::begin(plan, settings, report, Direction::Start)? {
        Ok(run) => run,
        Err(outcome) => return Ok(outcome),
    };
    let result = run.start(report);
    run.end(result, report)
}

/// Brings down what a restart restarts, and the whole system up.
///
/// # Errors
/// As [`start_system`].
pub fn restart_system(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    let Some(config) = settings.config.clone() else {
        return system::restart_system(settings, report);
    };
    if let Place::Relayed(exit_code) = leave_agent(&settings.family)? {
        return Ok(relayed(exit_code, Outcome::Restarted, Outcome::Failed));
    }
    let plan = Plan::resolve(&config, settings, Demand::Start)?;
    // Before anything is started or stopped, not after a minute.
    prepare(settings)?;
    let mut run = match Run::begin(plan, settings, report, Direction::Restart)? {
        Ok(run) => run,
        Err(outcome) => return Ok(outcome),
    };
    let result = run.restart(report);
    run.end(result, report)
}

/// How much a stop of the system stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What these programs have started.
    Ours,
    /// Also what they have found running and used.
    All,
}

/// Brings down everything that the configuration owns.
///
/// # Errors
/// When the configuration cannot be used, or something cannot be looked at.
pub fn stop_system(
    settings: &Settings,
    extent: Extent,
    report: &mut Report,
) -> Result<Outcome, Failure> {
    let Some(config) = settings.config.clone() else {
        return stop(settings, report);
    };
    if let Place::Relayed(exit_code) = leave_agent(&settings.family)? {
        return Ok(relayed(exit_code, Outcome::Stopped, Outcome::NotStopped));
    }
    let plan = Plan::resolve(&config, settings, Demand::Stop)?;
    let mut run = match Run::begin(plan, settings, report, Direction::Stop)? {
        Ok(run) => run,
        Err(outcome) => return Ok(outcome),
    };
    let result = run.stop(extent, report);
    run.end(result, report)
}

/// Checks the configuration and says what would be done.
///
/// # Errors
/// What is wrong with it, and where.
pub fn check_config(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    let Some(config) = &settings.config else {
        report.system_is("no voice-system.toml: only the agent is managed");
        return Ok(Outcome::Valid);
    };
    let plan = Plan::resolve(config, settings, Demand::Start)?;
    find_script(settings)?;
    settings.interpreter()?;
    report.system_is(&format!("{} can be used", plan.file.display()));
    describe_plan(&plan, settings, report);
    Ok(Outcome::Valid)
}

/// Says what runs and what does not; changes nothing.
///
/// # Errors
/// When the configuration cannot be used, or something cannot be looked at.
pub fn status(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    let plan = settings
        .config
        .as_ref()
        .map(|config| Plan::resolve(config, settings, Demand::Stop))
        .transpose()?;
    let mut facts = Vec::new();
    if let Some(plan) = &plan {
        facts = survey(plan, settings, report)?;
    } else {
        report.agent_only();
    }
    facts.push(agent_status(settings, report)?);
    let bad: Vec<String> = facts
        .iter()
        .filter(|part| part.state != PartState::Ready.name())
        .map(|part| {
            let why = part.error.as_deref().unwrap_or(part.state);
            format!("{}: {why}", part.name)
        })
        .collect();
    let outcome = if bad.is_empty() {
        report.system_is(&format!("all is well: {} part(s) ready", facts.len()));
        Outcome::Well
    } else {
        report.system_is_not(&format!("not all is well: {}", bad.join("; ")));
        Outcome::Unwell
    };
    table(&facts, report);
    report.parts(facts);
    Ok(outcome)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Start,
    Restart,
    Stop,
}

/// One run of a program over the whole system.
struct Run<'a> {
    settings: &'a Settings,
    troop: Rc<RefCell<Troop>>,
    vigil: Vigil,
    agent: PartFacts,
    agent_since: Option<Instant>,
    steps: Vec<PartFacts>,
    direction: Direction,
    /// Held until the end.
    _guard: HeldGuard,
}

/// The parts failed or were interrupted, and how the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Failed(Outcome),
    Interrupted(Interruption),
}

impl<'a> Run<'a> {
    /// Takes the system's guard and gets everything ready.
    fn begin(
        plan: Plan,
        settings: &'a Settings,
        report: &mut Report,
        direction: Direction,
    ) -> Result<Result<Self, Outcome>, Failure> {
        runtime::prepare(&plan.runtime)?;
        let mut vigil = Vigil {
            interruptions: Some(hold_interruptions()?),
            ..Vigil::default()
        };
        let guard = match take_guard(&plan, &mut vigil, direction, report)? {
            Ok(guard) => guard,
            Err(interruption) => {
                report.interrupted(interruption, None);
                return Ok(Err(Outcome::Interrupted(interruption)));
            }
        };
        let restarting = direction == Direction::Restart;
        let demand = match direction {
            Direction::Stop => Demand::Stop,
            Direction::Start | Direction::Restart => Demand::Start,
        };
        let mut names: Vec<&str> = plan
            .companions
            .iter()
            .map(|companion| companion.name.as_str())
            .collect();
        names.push(AGENT);
        names.extend(plan.steps.iter().map(|step| step.name.as_str()));
        let progress = Progress::new(report.format(), report.is_coloured(), &names);
        report.print_above(progress.live());
        let agent = PartFacts {
            name: AGENT.to_owned(),
            kind: "agent",
            state: PartState::Waiting.name(),
            log: Some(settings.log_file.display().to_string()),
            ..PartFacts::default()
        };
        let troop = Rc::new(RefCell::new(Troop::new(
            plan, settings, progress, restarting, demand,
        )?));
        vigil.meanwhile = Some(troop.clone());
        Ok(Ok(Self {
            settings,
            troop,
            vigil,
            agent,
            agent_since: None,
            steps: Vec::new(),
            direction,
            _guard: guard,
        }))
    }

    // --- up ---

    fn start(&mut self, report: &mut Report) -> Result<Outcome, Failure> {
        self.troop.borrow_mut().show_all();
        if let Some(stopped) = self.before_agent(report)? {
            return self.give_up(stopped, report);
        }
        self.show_agent(PartState::Starting, "");
        let outcome = start_agent(self.settings, &mut self.vigil, report)?;
        self.after_agent(outcome, report)
    }

    /// Everything that the agent needs, and its steps.
    fn before_agent(&mut self, report: &mut Report) -> Result<Option<Stopped>, Failure> {
        let up = |troop: &Troop| troop.agent_may_start() || troop.is_idle();
        if let Some(stopped) = self.drive(up)? {
            return Ok(Some(stopped));
        }
        self.steps(When::BeforeAgent, report)
    }

    /// The agent has come up, or not; the rest.
    fn after_agent(&mut self, outcome: Outcome, report: &mut Report) -> Result<Outcome, Failure> {
        if let Outcome::Interrupted(interruption) = outcome {
            return self.give_up(Stopped::Interrupted(interruption), report);
        }
        if outcome.exit_code() != 0 {
            self.show_agent(PartState::Failed, "");
            return self.give_up(Stopped::Failed(outcome), report);
        }
        self.agent.pid = tracked(&Scene::open(self.settings)?)?.map(Pid::get);
        self.agent.seconds = self.agent_since.map(|since| since.elapsed().as_secs_f64());
        self.agent.reused = Some(outcome == Outcome::Kept);
        let detail = match self.agent.pid {
            Some(pid) if outcome == Outcome::Kept => format!("as it was, PID {pid}"),
            Some(pid) => format!("PID {pid}"),
            None => String::new(),
        };
        self.show_agent(PartState::Ready, &detail);
        self.troop.borrow_mut().agent_is_up();
        if let Some(stopped) = self.drive(Troop::is_idle)? {
            return self.give_up(stopped, report);
        }
        if let Some(stopped) = self.steps(When::AfterAll, report)? {
            return self.give_up(stopped, report);
        }
        if self.direction == Direction::Restart
            && let Some(stopped) = self.steps(When::Restart, report)?
        {
            return self.give_up(stopped, report);
        }
        // The steps took time: is everything still there?
        if let Some(stopped) = self.drive(Troop::is_idle)? {
            return self.give_up(stopped, report);
        }
        if !self.agent_lives()? {
            self.show_agent(PartState::Failed, "it died after it was ready");
            self.agent.error = Some("it died after it was ready".to_owned());
            return self.give_up(Stopped::Failed(Outcome::Died), report);
        }
        Ok(self.up(outcome, report))
    }

    fn agent_lives(&self) -> Result<bool, Failure> {
        let scene = Scene::open(self.settings)?;
        let sighting = scene.look(tracked(&scene)?)?;
        Ok(sighting.agents.len() == 1)
    }

    fn up(&mut self, outcome: Outcome, report: &mut Report) -> Outcome {
        self.finish_progress(report);
        let mut failed = 0;
        let mut started = 0;
        {
            let troop = self.troop.borrow();
            for member in troop.members() {
                report.take_over(member.notes());
                match member.part_state() {
                    PartState::Failed => failed += 1,
                    _ if !member.is_reused() => started += 1,
                    _ => {}
                }
            }
            report_failures(&troop, report);
        }
        let facts = self.facts();
        let ready = facts
            .iter()
            .filter(|part| part.kind != "step" && part.state == PartState::Ready.name())
            .count();
        let mut message = format!("the voice system is up: {ready} part(s) ready");
        if failed > 0 {
            let _ = write!(message, ", {failed} failed and not missed");
        }
        report.system_is(&message);
        table(&facts, report);
        self.how_to_go_on(report);
        report.parts(facts);
        match outcome {
            Outcome::Kept if started > 0 => Outcome::Started,
            other => other,
        }
    }

    fn how_to_go_on(&self, report: &mut Report) {
        let naming = &self.settings.naming;
        report.line(&format!(
            "  stop everything: {}   restart: {}   look: {} --status",
            naming.command("stop-voice-system"),
            naming.command("restart-voice-system"),
            naming.command("start-voice-system"),
        ));
    }

    // --- up again ---

    fn restart(&mut self, report: &mut Report) -> Result<Outcome, Failure> {
        let chosen = |troop: &Troop, index: usize, companion: &Companion, after_agent: bool| {
            companion.restart && troop.plan().waits_for_agent(index) == after_agent
        };
        let dependents: Vec<bool> =
            self.chosen(|troop, index, companion| chosen(troop, index, companion, true));
        let others: Vec<bool> =
            self.chosen(|troop, index, companion| chosen(troop, index, companion, false));
        self.troop.borrow_mut().stop(|index, _| dependents[index]);
        if let Some(stopped) = self.drive_down()? {
            return self.give_up(stopped, report);
        }
        self.show_agent(PartState::Stopping, "");
        // The agent's own restart holds its guard from its stop to its start.
        let mut vigil = std::mem::take(&mut self.vigil);
        let mut halted = None;
        let outcome = restart_agent(self.settings, &mut vigil, report, |vigil, report| {
            std::mem::swap(vigil, &mut self.vigil);
            self.troop.borrow_mut().stop(|index, _| others[index]);
            let stopped = match self.drive_down() {
                Ok(None) => {
                    self.troop.borrow_mut().start_over();
                    self.before_agent(report)
                }
                other => other,
            };
            std::mem::swap(vigil, &mut self.vigil);
            self.show_agent(PartState::Starting, "");
            Ok(stopped?.map(|stopped| {
                halted = Some(stopped);
                Outcome::Failed
            }))
        });
        self.vigil = vigil;
        let outcome = outcome?;
        if let Some(stopped) = halted {
            return self.give_up(stopped, report);
        }
        self.after_agent(outcome, report)
    }

    fn chosen(&self, choose: impl Fn(&Troop, usize, &Companion) -> bool) -> Vec<bool> {
        let troop = self.troop.borrow();
        let companions = &troop.plan().companions;
        companions
            .iter()
            .enumerate()
            .map(|(index, companion)| choose(&troop, index, companion))
            .collect()
    }

    /// Waits until everybody is down who was to be; a failure there ends it.
    fn drive_down(&mut self) -> Result<Option<Stopped>, Failure> {
        // Those who are not stopped wait: nothing is begun before all are down.
        let held = self.vigil.meanwhile.take();
        let result = loop {
            self.troop.borrow_mut().step_down();
            if self.troop.borrow().is_quiet() {
                let failed = self
                    .troop
                    .borrow()
                    .members()
                    .iter()
                    .any(|member| member.part_state() == PartState::Failed);
                break Ok(failed.then_some(Stopped::Failed(Outcome::NotStopped)));
            }
            let waited = {
                let troop = self.troop.borrow();
                let events: Vec<_> = troop.events().into_iter().map(|(event, _)| event).collect();
                let limit = troop.due_in().unwrap_or(LONG);
                self.vigil.wait(&events, limit)
            };
            match waited {
                Ok(Woken::ByInterruption(interruption)) => {
                    break Ok(Some(Stopped::Interrupted(interruption)));
                }
                Ok(_) => {}
                Err(error) => break Err(cannot_wait(&error)),
            }
        };
        self.vigil.meanwhile = held;
        result
    }

    // --- down ---

    fn stop(&mut self, extent: Extent, report: &mut Report) -> Result<Outcome, Failure> {
        let mut ours = Vec::new();
        for member in self.troop.borrow_mut().members_mut() {
            ours.push(member.is_ours()?);
        }
        let wanted: Vec<bool> = ours
            .iter()
            .map(|ours| match ours {
                Ours::Yes => true,
                Ours::Found(_) => extent == Extent::All,
                Ours::Absent | Ours::Never => false,
            })
            .collect();
        let after: Vec<bool> = self.chosen(|troop, index, _| troop.plan().waits_for_agent(index));
        self.troop
            .borrow_mut()
            .stop(|index, _| wanted[index] && after[index]);
        if let Some(stopped) = self.drive_down()? {
            return self.give_up(stopped, report);
        }
        self.show_agent(PartState::Stopping, "");
        let agent = stop(self.settings, report)?;
        let stopped_agent = agent.exit_code() == 0;
        let state = if stopped_agent {
            PartState::Stopped
        } else {
            PartState::Failed
        };
        self.show_agent(state, "");
        self.troop
            .borrow_mut()
            .stop(|index, _| wanted[index] && !after[index]);
        let stopped = self.drive_down()?;
        if let Some(Stopped::Interrupted(_)) = stopped {
            return stopped.map_or(Ok(Outcome::NotStopped), |stopped| {
                self.give_up(stopped, report)
            });
        }
        self.finish_progress(report);
        let troop = self.troop.borrow();
        for (member, ours) in troop.members().iter().zip(&ours) {
            report.take_over(member.notes());
            let name = &member.companion().name;
            if let (Ours::Found(pid), Extent::Ours) = (ours, extent) {
                report.note(format!(
                    "{name} (PID {pid}) was not started from here and goes on; stop it too with: {} --all",
                    self.settings.naming.command("stop-voice-system")
                ));
            }
        }
        report_failures(&troop, report);
        let count = troop
            .members()
            .iter()
            .filter(|member| member.part_state() == PartState::Stopped)
            .count();
        drop(troop);
        let facts = self.facts();
        let outcome = if stopped.is_some() || !stopped_agent {
            report.not_stopped();
            Outcome::NotStopped
        } else if count == 0 && agent == Outcome::NothingToStop {
            report.system_is("nothing of the voice system was running");
            Outcome::NothingToStop
        } else {
            report.system_is(&format!(
                "the voice system is stopped: {count} companion(s) and the agent"
            ));
            Outcome::Stopped
        };
        report.parts(facts);
        Ok(outcome)
    }

    // --- on the way ---

    /// Lets the parts come up until `done`.
    fn drive(&mut self, done: impl Fn(&Troop) -> bool) -> Result<Option<Stopped>, Failure> {
        loop {
            self.troop.borrow_mut().step();
            {
                let troop = self.troop.borrow();
                if troop.is_halted() {
                    return Ok(Some(Stopped::Failed(Outcome::Failed)));
                }
                if done(&troop) {
                    return Ok(None);
                }
            }
            match self.vigil.wait(&[], LONG) {
                Ok(Woken::ByInterruption(interruption)) => {
                    return Ok(Some(Stopped::Interrupted(interruption)));
                }
                Ok(_) => {}
                Err(error) => return Err(cannot_wait(&error)),
            }
        }
    }

    /// Runs the steps of this moment, one after the other.
    fn steps(&mut self, when: When, report: &mut Report) -> Result<Option<Stopped>, Failure> {
        let (steps, first): (Vec<(usize, Step)>, usize) = {
            let troop = self.troop.borrow();
            let plan = troop.plan();
            let steps = plan.steps.iter().cloned().enumerate();
            (
                steps.filter(|(_, step)| step.when == when).collect(),
                plan.companions.len() + 1,
            )
        };
        for (index, step) in steps {
            let line = first + index;
            let since = Instant::now();
            self.show(line, PartState::Starting, "");
            let ended = match self.run_step(&step)? {
                Ok(ended) => ended,
                Err(interruption) => {
                    self.show(line, PartState::Failed, "interrupted");
                    return Ok(Some(Stopped::Interrupted(interruption)));
                }
            };
            let mut facts = PartFacts {
                name: step.name.clone(),
                kind: "step",
                state: PartState::Ready.name(),
                seconds: Some(since.elapsed().as_secs_f64()),
                ..PartFacts::default()
            };
            let Err((why, last_lines)) = ended else {
                self.show(
                    line,
                    PartState::Ready,
                    &format!("done in {:.1} s", since.elapsed().as_secs_f64()),
                );
                self.steps.push(facts);
                continue;
            };
            self.show(line, PartState::Failed, &why);
            facts.state = PartState::Failed.name();
            facts.error = Some(why.clone());
            facts.last_lines.clone_from(&last_lines);
            self.steps.push(facts);
            let missed = step.on_failure == OnFailure::Stop;
            report.part_failed(
                &format!("the step {}", step.name),
                &why,
                &last_lines,
                None,
                missed,
            );
            if missed {
                return Ok(Some(Stopped::Failed(Outcome::Failed)));
            }
        }
        Ok(None)
    }

    /// The inner result is the step's, or what interrupted it.
    #[expect(
        clippy::type_complexity,
        reason = "three ways to end, each told apart once"
    )]
    fn run_step(
        &mut self,
        step: &Step,
    ) -> Result<Result<Result<(), (String, Vec<String>)>, Interruption>, Failure> {
        let surroundings = {
            let troop = self.troop.borrow();
            let mut surroundings: Surroundings = troop.surroundings().clone();
            for (name, value) in &step.env {
                let name: std::ffi::OsString = name.into();
                surroundings.environment.retain(|(known, _)| *known != name);
                surroundings.environment.push((name, value.into()));
            }
            // So that a page can be written for the port that was chosen.
            for member in troop.members() {
                if let Some(port) = member.port() {
                    let name = format!("VOICE_SYSTEM_PORT_{}", variable(&member.companion().name));
                    surroundings
                        .environment
                        .push((name.into(), port.to_string().into()));
                }
            }
            surroundings
        };
        let mut errand =
            match Errand::begin(&step.command, &step.folder, &surroundings, step.deadline) {
                Ok(errand) => errand,
                Err(why) => return Ok(Ok(Err((why, Vec::new())))),
            };
        loop {
            if let Some(ended) = errand.ended() {
                let why = match ended {
                    Ok(Ending::Exited(0)) => return Ok(Ok(Ok(()))),
                    Ok(ending) => ending.to_string(),
                    Err(limit) => format!("not done within {} s", limit.as_secs_f64()),
                };
                return Ok(Ok(Err((why, errand.last_lines(LAST_LINES)))));
            }
            match self.vigil.wait(&[errand.event()], errand.left()) {
                Ok(Woken::ByInterruption(interruption)) => {
                    errand.kill();
                    return Ok(Err(interruption));
                }
                Ok(_) => {}
                Err(error) => {
                    errand.kill();
                    return Err(cannot_wait(&error));
                }
            }
        }
    }

    fn show(&mut self, line: usize, state: PartState, detail: &str) {
        self.troop.borrow_mut().progress().show(line, state, detail);
    }

    fn show_agent(&mut self, state: PartState, detail: &str) {
        if state == PartState::Starting {
            self.agent_since.get_or_insert_with(Instant::now);
        }
        self.agent.state = state.name();
        let line = self.troop.borrow().members().len();
        self.show(line, state, detail);
    }

    /// The way back: what was begun is undone or left tracked.
    fn give_up(&mut self, stopped: Stopped, report: &mut Report) -> Result<Outcome, Failure> {
        match stopped {
            Stopped::Failed(_) | Stopped::Interrupted(Interruption::HangUp) => {
                self.troop.borrow_mut().leave();
            }
            Stopped::Interrupted(_) => self.troop.borrow_mut().undo(),
        }
        self.quiet_down()?;
        if [PartState::Waiting.name(), PartState::Starting.name()].contains(&self.agent.state) {
            self.show_agent(PartState::Skipped, "");
        }
        self.finish_progress(report);
        let troop = self.troop.borrow();
        for member in troop.members() {
            report.take_over(member.notes());
        }
        report_failures(&troop, report);
        drop(troop);
        let facts = self.facts();
        let running: Vec<String> = facts
            .iter()
            .filter(|part| {
                part.kind != "step"
                    && (part.state == PartState::Ready.name()
                        || part.state == PartState::Left.name())
            })
            .map(|part| match part.pid {
                Some(pid) => format!("{} (PID {pid})", part.name),
                None => part.name.clone(),
            })
            .collect();
        let outcome = match stopped {
            Stopped::Interrupted(interruption) => {
                report.interrupted_system(interruption, &running);
                Outcome::Interrupted(interruption)
            }
            Stopped::Failed(outcome) => {
                if running.is_empty() {
                    report.line("  nothing of the system runs now");
                } else {
                    report.line(&format!("  what still runs: {}", running.join(", ")));
                    self.how_to_go_on(report);
                }
                outcome
            }
        };
        report.parts(facts);
        Ok(outcome)
    }

    /// Waits for those who are on the way down; asked twice, they are killed.
    fn quiet_down(&mut self) -> Result<(), Failure> {
        loop {
            self.troop.borrow_mut().step();
            if self.troop.borrow().is_quiet() {
                return Ok(());
            }
            match self.vigil.wait(&[], LONG) {
                Ok(Woken::ByInterruption(_)) => self.troop.borrow_mut().hurry(),
                Ok(_) => {}
                Err(error) => return Err(cannot_wait(&error)),
            }
        }
    }

    /// However it went: nobody is left between two states.
    fn end(
        &mut self,
        result: Result<Outcome, Failure>,
        report: &mut Report,
    ) -> Result<Outcome, Failure> {
        let Err(failure) = result else {
            return result;
        };
        self.troop.borrow_mut().leave();
        let _ = self.quiet_down();
        self.finish_progress(report);
        let facts = self.facts();
        report.parts(facts);
        Err(failure)
    }

    fn finish_progress(&mut self, report: &mut Report) {
        self.troop.borrow_mut().progress().finish();
        report.print_above(None);
    }

    fn facts(&self) -> Vec<PartFacts> {
        let troop = self.troop.borrow();
        let mut facts: Vec<PartFacts> = troop.members().iter().map(facts_of).collect();
        facts.push(self.agent.clone());
        facts.extend(self.steps.iter().cloned());
        facts
    }
}

fn cannot_wait(error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot wait for the parts: {error}"))
}

/// A companion's name as a part of a variable's name.
fn variable(name: &str) -> String {
    name.chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}

/// The guard of the whole system; a stop ends a start in progress.
fn take_guard(
    plan: &Plan,
    vigil: &mut Vigil,
    direction: Direction,
    report: &mut Report,
) -> Result<Result<HeldGuard, Interruption>, Failure> {
    let path = guard_file(plan);
    let guard = Guard::at(&path);
    let parts: Duration = plan
        .companions
        .iter()
        .map(|companion| companion.deadline * 2 + companion.grace)
        .chain(plan.steps.iter().map(|step| step.deadline))
        .sum();
    let mut deadline = Deadline::after(parts + GUARD_PATIENCE);
    let mut told = None;
    loop {
        match guard.try_exclusive() {
            Ok(Taking::Held(held)) => return Ok(Ok(held)),
            Ok(Taking::Busy) => {}
            Err(GuardError::Odd(oddity)) => return Err(odd("guard", &path, oddity)),
            Err(GuardError::Io(error)) => {
                return Err(Failure::new(format!(
                    "cannot use the guard {}: {error}",
                    path.display()
                )));
            }
        }
        let holder = guard.holder();
        if told != holder
            && let Some(pid) = holder
        {
            told = holder;
            let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
            let program = program_name(&table, pid).ok().flatten();
            let name = program.unwrap_or("a process");
            if direction == Direction::Stop
                && matches!(program, Some("start-voice-system" | "restart-voice-system"))
            {
                report.line(&format!(
                    "Interrupting {name} (PID {pid}), which undoes its start"
                ));
                interrupt(&table, &guard, pid);
            } else {
                report.line(&format!("Waiting for {name} (PID {pid}) to finish"));
            }
        }
        let Some(pause) = deadline.next_pause() else {
            let holder = holder.map_or_else(
                || "a process that cannot be seen from here".to_owned(),
                |pid| format!("PID {pid}"),
            );
            return Err(Failure::new(format!(
                "cannot get the guard {}: {holder} holds it",
                path.display()
            ))
            .help("see what it does, and end it"));
        };
        match vigil.wait(&[], pause) {
            Ok(Woken::ByInterruption(interruption)) => return Ok(Err(interruption)),
            Ok(_) => {}
            Err(error) => return Err(cannot_wait(&error)),
        }
    }
}

/// Asks a program of ours to give up its start. Looked at again after its pidfd
/// was opened: it is one of our programs, and it holds this guard.
fn interrupt(table: &ProcessTable, guard: &Guard, pid: Pid) {
    let Some(raw) = rustix::process::Pid::from_raw(pid.get()) else {
        return;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let is_ours = matches!(program_name(table, pid), Ok(Some(_))) && guard.holder() == Some(pid);
    if is_ours {
        // If it is another user's, we wait instead.
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::TERM);
    }
}

/// What failed: which, why, its last lines, what helps.
fn report_failures(troop: &Troop, report: &mut Report) {
    for member in troop.members() {
        if member.part_state() != PartState::Failed {
            continue;
        }
        let Some(problem) = member.problem() else {
            continue;
        };
        report.part_failed(
            &member.companion().name,
            &problem.why,
            &problem.last_lines,
            problem.help.as_deref(),
            member.companion().on_failure == OnFailure::Stop,
        );
    }
}

fn facts_of(member: &Member) -> PartFacts {
    let companion = member.companion();
    let own = matches!(companion.job, Job::Own(_));
    PartFacts {
        name: companion.name.clone(),
        kind: "companion",
        state: member.part_state().name(),
        pid: member.pid().map(Pid::get),
        port: member.port(),
        url: companion.url.as_ref().map(|url| put_in(url, member.port())),
        log: own.then(|| companion.log.display().to_string()),
        seconds: member.took().map(|took| took.as_secs_f64()),
        reused: (member.part_state() == PartState::Ready).then(|| member.is_reused()),
        error: member.problem().map(|problem| problem.why.clone()),
        last_lines: member
            .problem()
            .map(|problem| problem.last_lines.clone())
            .unwrap_or_default(),
        ..PartFacts::default()
    }
}

/// The parts, a line each.
fn table(facts: &[PartFacts], report: &mut Report) {
    let width = |text: fn(&PartFacts) -> usize| facts.iter().map(text).max().unwrap_or(0);
    let names = width(|part| part.name.len());
    let states = width(|part| part.state.len());
    for part in facts {
        let mut words = Vec::new();
        if let Some(pid) = part.pid {
            words.push(format!("PID {pid}"));
        }
        if let Some(port) = part.port {
            words.push(format!("port {port}"));
        }
        if let Some(age) = part.age_seconds {
            words.push(format!("for {}", crate::report::span(age)));
        }
        #[expect(clippy::cast_precision_loss, reason = "one digit of it is shown")]
        if let Some(bytes) = part.memory_bytes {
            words.push(format!("{:.1} MiB", bytes as f64 / 1_048_576.0));
        }
        if let Some(url) = &part.url {
            words.push(url.clone());
        }
        if let Some(log) = &part.log {
            words.push(format!("log {log}"));
        }
        if part.kind == "step" {
            words.push("step".to_owned());
        }
        let line = format!(
            "  {:names$}  {:states$}  {}",
            part.name,
            part.state,
            words.join("  ")
        );
        report.line(line.trim_end());
    }
}

// --- what would be done ---

fn describe_plan(plan: &Plan, settings: &Settings, report: &mut Report) {
    let mut facts = Vec::new();
    for part in plan.order() {
        let (name, mut words, needs) = match part {
            Need::Agent => (
                AGENT,
                vec![format!(
                    "{} {}",
                    settings.script.display(),
                    settings.mode.to_string_lossy()
                )],
                plan.needs_of(part),
            ),
            Need::Companion(index) => {
                let companion = &plan.companions[index];
                (
                    companion.name.as_str(),
                    describe_companion(companion),
                    companion.needs.clone(),
                )
            }
        };
        if !needs.is_empty() {
            let names: Vec<&str> = needs.iter().map(|&need| plan.name_of(need)).collect();
            words.push(format!("needs {}", names.join(", ")));
        }
        report.line(&format!("  {name}: {}", words.join("; ")));
        facts.push(PartFacts {
            name: name.to_owned(),
            kind: if part == Need::Agent {
                "agent"
            } else {
                "companion"
            },
            state: "planned",
            ..PartFacts::default()
        });
    }
    for step in &plan.steps {
        let when = match step.when {
            When::BeforeAgent => "before the agent",
            When::AfterAll => "after all is up",
            When::Restart => "after all is up, on a restart",
        };
        report.line(&format!(
            "  step {}: {when}: {}",
            step.name,
            shown(&step.command)
        ));
        facts.push(PartFacts {
            name: step.name.clone(),
            kind: "step",
            state: "planned",
            ..PartFacts::default()
        });
    }
    report.line(&format!("  PID files in {}", plan.runtime.display()));
    report.parts(facts);
}

fn describe_companion(companion: &Companion) -> Vec<String> {
    let mut words = Vec::new();
    match &companion.job {
        Job::Own(command) => words.push(format!(
            "{} in {}",
            shown(command),
            companion.folder.display()
        )),
        Job::Managed { check, start, .. } => {
            words.push(format!("checked by {}", shown(check)));
            if let Some(start) = start {
                words.push(format!("started by {}", shown(start)));
            }
        }
        Job::Foreign { .. } => words.push("only looked at".to_owned()),
    }
    if !matches!(companion.job, Job::Managed { .. }) {
        words.push(match &companion.ready {
            Ready::Port(Some(port)) => format!("ready when port {port} is open"),
            Ready::Port(None) => "ready when its port is open".to_owned(),
            Ready::Http { url, status } => format!("ready when {url} answers {status}"),
            Ready::Log(pattern) => format!("ready when its log has {:?}", pattern.as_str()),
            Ready::Command(command) => format!("ready when {} succeeds", shown(command)),
            Ready::Alive(span) => format!("ready when it has lived {} s", span.as_secs_f64()),
        });
    }
    if companion.ports.len() > 1 {
        let ports: Vec<String> = companion.ports.iter().map(u16::to_string).collect();
        words.push(format!("first free port of {}", ports.join(", ")));
    }
    words.push(format!("within {} s", companion.deadline.as_secs_f64()));
    words.push(
        match companion.on_start {
            OnStart::Reuse => "kept if it is ready",
            OnStart::Fresh => "always started fresh",
            OnStart::Manual => "never started from here",
        }
        .to_owned(),
    );
    if companion.on_failure == OnFailure::Warn {
        words.push("not missed if it fails".to_owned());
    }
    for folder in &companion.clean_folders {
        words.push(format!("removes {} before it starts", folder.display()));
    }
    if matches!(companion.job, Job::Own(_)) {
        words.push(format!("log {}", companion.log.display()));
    }
    words
}

fn shown(command: &CommandLine) -> String {
    command.words.join(" ")
}

// --- how it is ---

/// How long a part may take to answer whether it is ready.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// All questions at once.
#[derive(Debug)]
struct Survey(Vec<(crate::probe::Probe, bool)>);

impl Meanwhile for Survey {
    fn events(&self) -> Vec<(std::os::fd::BorrowedFd<'_>, rustix::event::PollFlags)> {
        self.open().flat_map(|(probe, _)| probe.events()).collect()
    }

    fn due_in(&self) -> Option<Duration> {
        self.open().filter_map(|(probe, _)| probe.due_in()).min()
    }

    fn step(&mut self) {
        for (probe, ready) in &mut self.0 {
            if !*ready && !probe.is_answered() {
                *ready = probe.step();
            }
        }
    }
}

impl Survey {
    /// Those that have not answered yet.
    fn open(&self) -> impl Iterator<Item = &(crate::probe::Probe, bool)> {
        self.0
            .iter()
            .filter(|(probe, ready)| !ready && !probe.is_answered())
    }
}

fn survey(
    plan: &Plan,
    settings: &Settings,
    report: &mut Report,
) -> Result<Vec<PartFacts>, Failure> {
    let progress = Progress::new(crate::report::Format::Quiet, false, &[]);
    let mut troop = Troop::new(plan.clone(), settings, progress, false, Demand::Stop)?;
    let surroundings = troop.surroundings().clone();
    let mut probes = Vec::new();
    for member in troop.members_mut() {
        member.look()?;
        probes.push((member.question(&surroundings)?, false));
    }
    let survey = Rc::new(RefCell::new(Survey(probes)));
    let mut vigil = Vigil {
        meanwhile: Some(survey.clone()),
        ..Vigil::default()
    };
    let deadline = Deadline::after(STATUS_LIMIT);
    survey.borrow_mut().step();
    while survey.borrow().open().next().is_some() && !deadline.passed() {
        vigil
            .wait(&[], deadline.left())
            .map_err(|error| cannot_wait(&error))?;
    }
    let survey = survey.borrow();
    let mut facts = Vec::new();
    for (member, (probe, ready)) in troop.members().iter().zip(&survey.0) {
        report.take_over(member.notes());
        let mut part = facts_of(member);
        part.reused = None;
        let own = matches!(member.companion().job, Job::Own(_));
        let runs = member.pid().is_some();
        if let Some(pid) = member.pid() {
            let (age, memory) = member.age_and_memory(pid)?;
            part.age_seconds = age.map(|age| age.as_secs());
            part.memory_bytes = memory;
        }
        // A log or an age says nothing once the process is gone.
        let proves_itself = matches!(
            member.companion().ready,
            Ready::Http { .. } | Ready::Command(_)
        );
        let ready = *ready && (runs || !own || proves_itself);
        if ready {
            part.state = PartState::Ready.name();
        } else {
            part.state = if own && !runs {
                "not running"
            } else {
                "not ready"
            };
            let why = if own && !runs {
                "not running".to_owned()
            } else {
                format!("not ready: {}", probe.why_not())
            };
            part.error = Some(why);
        }
        facts.push(part);
    }
    Ok(facts)
}

fn agent_status(settings: &Settings, report: &mut Report) -> Result<PartFacts, Failure> {
    let scene = Scene::open(settings)?;
    let tracked = tracked(&scene)?;
    let sighting = scene.look(tracked)?;
    report.unseen(&sighting.unseen);
    let mut part = PartFacts {
        name: AGENT.to_owned(),
        kind: "agent",
        state: "not running",
        log: Some(settings.log_file.display().to_string()),
        ..PartFacts::default()
    };
    match sighting.agents.as_slice() {
        [agent] => {
            let pid = agent.identity.pid;
            part.pid = Some(pid.get());
            let ages = crate::process_details::Ages::of([pid].into_iter());
            part.age_seconds = ages.get(pid).map(|age| age.as_secs());
            part.memory_bytes = crate::process_details::memory_of([pid].into_iter());
            if sighting.orphans.is_empty() && sighting.unseen.is_empty() {
                part.state = PartState::Ready.name();
            } else {
                part.state = "unclear";
                part.error = Some(format!(
                    "{} orphan worker(s) of another agent answer calls beside it",
                    sighting.orphans.len()
                ));
            }
        }
        [] if sighting.orphans.is_empty() => part.error = Some("not running".to_owned()),
        [] => {
            part.error = Some(format!(
                "not running, but {} orphan worker(s) answer calls",
                sighting.orphans.len()
            ));
        }
        agents => {
            part.state = "duplicates";
            part.error = Some(format!("{} agents run at once", agents.len()));
        }
    }
    report.agents(&sighting.agents, tracked);
    report.orphans(&sighting.orphans);
    Ok(part)
}
