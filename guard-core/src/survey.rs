//! How every part is: asked all at once, nothing changed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::member::Mess;
use crate::outcome::Outcome;
use crate::part_facts::{PartFacts, print_table};
use crate::plan::{AGENT, Demand, Job, Plan, Ready};
use crate::probe::Probe;
use crate::process_details::memory_of;
use crate::process_table::Pid;
use crate::progress::{PartState, Progress};
use crate::reading::Reading;
use crate::report::{Format, Report};
use crate::scene::Scene;
use crate::settings::Settings;
use crate::sighting::{KinOf, Strangers};
use crate::stop::tracked;
use crate::system_run::{cannot_wait, list};
use crate::troop::Troop;
use crate::vigil::{Meanwhile, Vigil};

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
    let mut reading = None;
    if let Some(plan) = &plan {
        (facts, reading) = survey(plan, settings, report)?;
    } else {
        report.agent_only();
    }
    facts.push(agent_status(settings, reading, report)?);
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
    print_table(&facts, report);
    report.parts(facts);
    Ok(outcome)
}

/// How long a part may take to answer whether it is ready.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// All questions at once.
#[derive(Debug)]
struct Survey(Vec<(Probe, bool)>);

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
    fn open(&self) -> impl Iterator<Item = &(Probe, bool)> {
        self.0
            .iter()
            .filter(|(probe, ready)| !ready && !probe.is_answered())
    }
}

fn survey(
    plan: &Plan,
    settings: &Settings,
    report: &mut Report,
) -> Result<(Vec<PartFacts>, Option<Rc<Reading>>), Failure> {
    let progress = Progress::new(Format::Quiet, false, &[]);
    let mut troop = Troop::new(plan.clone(), settings, progress, false, Demand::Stop)?;
    let surroundings = troop.surroundings().clone();
    let mut probes = Vec::new();
    let lives = troop.look()?;
    for member in troop.members() {
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
    for ((member, life), (probe, ready)) in troop.members().iter().zip(lives).zip(&survey.0) {
        report.take_over(member.notes());
        let mut part = PartFacts::of(member);
        part.reused = None;
        let own = matches!(member.companion().job, Job::Own(_));
        let runs = member.pid().is_some();
        part.age_seconds = life.age.map(|age| age.as_secs());
        part.memory_bytes = life.memory;
        // A log or an age says nothing once the process is gone.
        let proves_itself = matches!(
            member.companion().ready,
            Ready::Http { .. } | Ready::Command(_)
        );
        let stranger = match ready {
            true => troop.stranger_on_port(member)?,
            false => None,
        };
        let ready = *ready && stranger.is_none() && (runs || !own || proves_itself);
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
                let why = stranger.as_deref().unwrap_or(probe.why_not());
                format!("not ready: {why}")
            };
            part.error = Some(why);
        }
        if let Some(mess) = member.mess() {
            let (state, why) = untidy(mess);
            part.state = state;
            part.error = Some(why);
        }
        facts.push(part);
    }
    let reading = troop.reading()?;
    Ok((facts, Some(reading)))
}

/// More runs than should: how many of what.
fn untidy(mess: &Mess) -> (&'static str, String) {
    let left = || {
        let (count, pids) = (mess.left.len(), list(&mess.left));
        format!("{count} process(es) of a dead one are left: PID {pids}")
    };
    if mess.is_locked {
        let why = "its PID file is locked by a process that cannot be seen from here";
        return ("unclear", why.to_owned());
    }
    match mess.copies.as_slice() {
        [] => ("not running", format!("not running, but {}", left())),
        [one] => ("unclear", format!("beside PID {one}, {}", left())),
        copies => (
            "duplicates",
            format!("{} of it run at once: PID {}", copies.len(), list(copies)),
        ),
    }
}

/// The memory of the agent and all born of it, as for companions.
fn family_memory(
    settings: &Settings,
    reading: Option<Rc<Reading>>,
    pid: Pid,
) -> Result<Option<u64>, Failure> {
    let scene = match reading {
        Some(reading) => Scene::of(settings, reading)?,
        None => Scene::open(settings)?,
    };
    let kin = scene.gather(Some(pid), KinOf::Everyone, &mut Strangers::default())?;
    // It may be younger than the reading.
    let pids: BTreeSet<Pid> = kin
        .relatives
        .iter()
        .map(|relative| relative.identity.pid)
        .chain([pid])
        .collect();
    Ok(memory_of(pids.into_iter()))
}

/// `reading` is one of the moment before, to tell what belongs to the agent.
fn agent_status(
    settings: &Settings,
    reading: Option<Rc<Reading>>,
    report: &mut Report,
) -> Result<PartFacts, Failure> {
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
            part.memory_bytes = family_memory(settings, reading, pid)?;
            if sighting.orphans.is_empty() && sighting.unseen.is_empty() {
                part.state = PartState::Ready.name();
            } else {
                part.state = "unclear";
                part.error = Some(if sighting.orphans.is_empty() {
                    "not every process could be seen: another agent may run beside it".to_owned()
                } else {
                    format!(
                        "{} orphan worker(s) of another agent answer calls beside it",
                        sighting.orphans.len()
                    )
                });
            }
        }
        [] if sighting.orphans.is_empty() && !sighting.unseen.is_empty() => {
            part.state = "unclear";
            part.error = Some("none can be seen, but not every process could be".to_owned());
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
