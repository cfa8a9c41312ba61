//! One run of a program over the whole system: the parts, the agent, the steps,
//! each at its time; and the way back if that fails or is interrupted.

mod steps;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::config::{OnFailure, When};
use crate::failure::Failure;
use crate::guard::HeldGuard;
use crate::member::Ours;
use crate::outcome::Outcome;
use crate::part_facts::{PartFacts, print_table};
use crate::plan::{AGENT, Companion, Demand, Plan};
use crate::process_table::Pid;
use crate::progress::{PartState, Progress};
use crate::report::{Left, Report};
use crate::runtime;
use crate::scene::Scene;
use crate::settings::Settings;
use crate::signals::Interruption;
use crate::start::hold_interruptions;
use crate::stop::{stop_heeding, tracked};
use crate::system::{restart_agent, start_agent};
use crate::system_guard::take_guard;
use crate::troop::Troop;
use crate::vigil::{Meanwhile as _, Vigil, Woken};
use crate::voice_system::Extent;

/// There is always something that ends a wait; if not, it is looked again.
const LONG: Duration = Duration::from_hours(1);

/// In JSON: there, and not this run's work.
const RUNNING: &str = "running";
/// In JSON: nothing of it is there.
const NOT_RUNNING: &str = "not running";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Start,
    Restart,
    Stop,
}

/// One run of a program over the whole system.
pub(crate) struct SystemRun<'a> {
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

impl<'a> SystemRun<'a> {
    /// Takes the system's guard and gets everything ready.
    pub(crate) fn begin(
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
        let guard = match take_guard(&plan, settings, &mut vigil, direction, report)? {
            Ok(guard) => guard,
            Err(interruption) => {
                report.interrupted(interruption, Left::AsItWas);
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

    pub(crate) fn start(&mut self, report: &mut Report) -> Result<Outcome, Failure> {
        self.troop.borrow_mut().show_all();
        if let Some(stopped) = self.before_agent(report)? {
            return self.give_up(stopped, report);
        }
        // One that the PID file proves is most likely kept.
        let state = match tracked(&Scene::open(self.settings)?)? {
            Some(_) => PartState::Checking,
            None => PartState::Starting,
        };
        self.show_agent(state, "");
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
        let (why, outcome_then) = match self.agents()?.len() {
            1 => return Ok(self.up(outcome, report)),
            0 => ("it died after it was ready".to_owned(), Outcome::Died),
            count => (format!("{count} agents run at once"), Outcome::Failed),
        };
        self.show_agent(PartState::Failed, &why);
        self.agent.error = Some(why);
        self.give_up(Stopped::Failed(outcome_then), report)
    }

    /// The agents that run, oldest first.
    fn agents(&self) -> Result<Vec<Pid>, Failure> {
        let scene = Scene::open(self.settings)?;
        let sighting = scene.look(tracked(&scene)?)?;
        let agents = sighting.agents.iter();
        Ok(agents.map(|agent| agent.identity.pid).collect())
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
        print_table(&facts, report);
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

    pub(crate) fn restart(&mut self, report: &mut Report) -> Result<Outcome, Failure> {
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
        // Nobody begins while it stops: those who are restarted would twice.
        let mut meanwhile = vigil.meanwhile.take();
        let mut halted = None;
        let outcome = restart_agent(self.settings, &mut vigil, report, |vigil, report| {
            std::mem::swap(vigil, &mut self.vigil);
            self.vigil.meanwhile = meanwhile.take();
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
        if meanwhile.is_some() {
            self.vigil.meanwhile = meanwhile;
        }
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

    pub(crate) fn stop(&mut self, extent: Extent, report: &mut Report) -> Result<Outcome, Failure> {
        let ours = self.troop.borrow_mut().ours()?;
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
        // One that cannot be ended does not keep the others up.
        if let Some(stopped @ Stopped::Interrupted(_)) = self.drive_down()? {
            return self.give_up(stopped, report);
        }
        self.show_agent(PartState::Stopping, "");
        // Nobody is begun meanwhile.
        let meanwhile = self.vigil.meanwhile.take();
        let agent = stop_heeding(&mut self.vigil, self.settings, report);
        self.vigil.meanwhile = meanwhile;
        let agent = agent?;
        if let Outcome::Interrupted(interruption) = agent {
            return self.give_up(Stopped::Interrupted(interruption), report);
        }
        let stopped_agent = agent.exit_code() == 0;
        let state = if stopped_agent {
            PartState::Stopped
        } else {
            PartState::Failed
        };
        self.show_agent(state, "");
        if agent == Outcome::NothingToStop {
            self.agent.state = NOT_RUNNING;
        }
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
            if let (Ours::Found(pids), Extent::Ours) = (ours, extent) {
                let pids = list(pids);
                report.note(format!(
                    "{name} (PID {pids}) was not started from here and goes on; stop it too with: {} --all",
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
        let mut facts = self.facts();
        for (part, ours) in facts.iter_mut().zip(&ours) {
            part.state = match ours {
                Ours::Absent => NOT_RUNNING,
                Ours::Found(pids) if extent == Extent::Ours => {
                    part.pid = pids.first().map(|pid| pid.get());
                    RUNNING
                }
                Ours::Never => "not ours",
                Ours::Yes | Ours::Found(_) => part.state,
            };
        }
        let outcome = if stopped.is_some() || !stopped_agent {
            report.not_stopped();
            Outcome::NotStopped
        } else if count == 0 && agent == Outcome::NothingToStop {
            report.system_is("nothing of the voice system was running");
            Outcome::NothingToStop
        } else {
            let agent = if agent == Outcome::NothingToStop {
                "; no agent was running"
            } else {
                " and the agent"
            };
            report.system_is(&format!(
                "the voice system is stopped: {count} companion(s){agent}"
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

    fn show(&mut self, line: usize, state: PartState, detail: &str) {
        self.troop.borrow_mut().progress().show(line, state, detail);
    }

    fn show_agent(&mut self, state: PartState, detail: &str) {
        if matches!(state, PartState::Checking | PartState::Starting) {
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
        let unfinished = [PartState::Waiting, PartState::Checking, PartState::Starting];
        if unfinished
            .iter()
            .any(|state| state.name() == self.agent.state)
        {
            self.show_agent(PartState::Skipped, "");
        }
        self.finish_progress(report);
        self.look_at_the_rest()?;
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
                let up = [PartState::Ready.name(), PartState::Left.name(), RUNNING];
                part.kind != "step" && (part.pid.is_some() || up.contains(&part.state))
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

    /// What runs of that which this run has not come to, or could not end: it is
    /// not this run's, but it is there.
    fn look_at_the_rest(&mut self) -> Result<(), Failure> {
        self.troop.borrow_mut().look_at_the_rest()?;
        if self.agent.state != PartState::Ready.name() {
            self.agent.pid = self.agents()?.first().map(|pid| pid.get());
            if self.agent.pid.is_some() && self.agent.state != PartState::Failed.name() {
                self.agent.state = RUNNING;
            }
        }
        Ok(())
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
    pub(crate) fn end(
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
        let mut facts: Vec<PartFacts> = troop.members().iter().map(PartFacts::of).collect();
        for part in &mut facts {
            let not_begun = [PartState::Skipped, PartState::Waiting];
            if part.pid.is_some() && not_begun.iter().any(|state| state.name() == part.state) {
                part.state = RUNNING;
            }
        }
        facts.push(self.agent.clone());
        facts.extend(self.steps.iter().cloned());
        facts
    }
}

/// Numbers, for people.
pub(crate) fn list(pids: &[Pid]) -> String {
    let pids: Vec<String> = pids.iter().map(Pid::to_string).collect();
    pids.join(", ")
}

pub(crate) fn cannot_wait(error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot wait for the parts: {error}"))
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
