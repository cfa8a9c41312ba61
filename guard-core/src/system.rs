//! `start-voice-system`: one agent in the wanted mode, whatever was before; any
//! number of times, any number at once.
//! `restart-voice-system`: the same, from scratch.

use std::time::Duration;

use crate::deadline::Deadline;
use crate::detach::{Place, leave_agent};
use crate::failure::Failure;
use crate::guard::HeldGuard;
use crate::hand_over::{self, Stopping, Verb};
use crate::outcome::Outcome;
use crate::process_table::Pid;
use crate::report::{Left, Refusal, Report};
use crate::scene::{Scene, cannot};
use crate::settings::Settings;
use crate::sighting::{Agent, KinOf, Sighting, Strangers};
use crate::start::{
    Preparation, Rivalry, bring_up, clear_orphans, hold_interruptions, prepare, take_startup_lock,
};
use crate::startup_lock::{LockVerdict, STALE_AFTER, Starter};
use crate::stop::{Clearing, clear_everything, guard_is_held, relayed, tracked};
use crate::supervision::{Unit, Waiting, is_booted_by_systemd};
use crate::tracking_file;
use crate::vigil::{Vigil, Woken};

/// How long, beyond windows and grace periods, these programs wait for others
/// of their kind to finish.
const GUARD_PATIENCE: Duration = Duration::from_mins(1);

/// Brings the system up.
///
/// # Errors
/// When something that a start needs is missing or cannot be used.
pub fn start_system(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    if let Place::Relayed(exit_code) = leave_agent(&settings.family)? {
        return Ok(relayed(exit_code, Outcome::Started, Outcome::Failed));
    }
    report.agent_only();
    start_agent(settings, &mut Vigil::default(), report)
}

/// Brings the agent up, or keeps the one that runs.
///
/// # Errors
/// When something that a start needs is missing or cannot be used.
pub(crate) fn start_agent(
    settings: &Settings,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Outcome, Failure> {
    if let Some(outcome) = start_by_unit(settings, vigil, report)? {
        return Ok(outcome);
    }
    let mut waiting = None;
    let outcome = with_guard(settings, vigil, report, |scene, guard, vigil, report| {
        let tracked = tracked(scene)?;
        let sighting = scene.look(tracked)?;
        let ending = scene.ending(&sighting.agents);
        match sighting.agents.as_slice() {
            // One that systemd runs has the mode that its unit says.
            [agent]
                if agent.unit.is_some()
                    || (agent.command.mode == settings.mode && ending.is_empty()) =>
            {
                report.unseen(&sighting.unseen);
                keep(scene, agent, tracked, vigil, report)
            }
            _ if !sighting.unseen.is_empty() => Ok(cannot_tell(&sighting, report)),
            [] => {
                // Its starter needs the guard.
                waiting = hand_over::about_to_start(scene).into_iter().next();
                if waiting.is_some() {
                    return Ok(Outcome::Asked);
                }
                if !sighting.orphans.is_empty()
                    && let Some(outcome) =
                        clear_orphans(scene, tracked, KinOf::Orphans, vigil, report)?
                {
                    return Ok(outcome);
                }
                raise(scene, guard, prepare(settings)?, vigil, report)
            }
            agents => {
                let preparation = prepare(settings)?;
                let mut strangers = Strangers::default();
                match (agents, &*ending) {
                    ([_], &[pid]) => report.replacing_the_ending(pid),
                    _ => report.replacing(agents, &scene.mode()),
                }
                report.agents(agents, tracked);
                if let Some(outcome) = clear(scene, guard, &mut strangers, vigil, report)? {
                    return Ok(outcome);
                }
                Ok(match raise(scene, guard, preparation, vigil, report)? {
                    Outcome::Started => Outcome::Replaced,
                    other => other,
                })
            }
        }
    })?;
    let Some(unit) = waiting else {
        return Ok(outcome);
    };
    // One that waits to start again is started now.
    hand_over::start_waiting(&unit)?;
    Ok(
        match hand_over::verified(&Scene::open(settings)?, report)? {
            Some(_) => Outcome::Started,
            None => Outcome::Failed,
        },
    )
}

/// Stops everything and starts one agent; nobody slips in between.
///
/// # Errors
/// When something that a start needs is missing or cannot be used.
pub fn restart_system(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    if let Some(outcome) = hand_over::from_inside(settings, Verb::Restart, report)? {
        return Ok(outcome);
    }
    if let Place::Relayed(exit_code) = leave_agent(&settings.family)? {
        return Ok(relayed(exit_code, Outcome::Restarted, Outcome::Failed));
    }
    report.agent_only();
    restart_agent(settings, &mut Vigil::default(), report, |_, _| Ok(None))
}

/// Stops everything, does what is to be done while nothing runs, and starts one
/// agent. `meanwhile` says how the program ends, if it cannot go on.
///
/// # Errors
/// When something that a start needs is missing or cannot be used.
pub(crate) fn restart_agent(
    settings: &Settings,
    vigil: &mut Vigil,
    report: &mut Report,
    meanwhile: impl FnOnce(&mut Vigil, &mut Report) -> Result<Option<Outcome>, Failure>,
) -> Result<Outcome, Failure> {
    {
        let scene = Scene::open(settings)?;
        let units = hand_over::units(&scene, Verb::Restart)?;
        if !units.is_empty() {
            let sighting = scene.look(tracked(&scene)?)?;
            report.restarting(sighting.agents.len(), sighting.orphans.len());
            let alone = sighting.agents.len() == 1 && sighting.orphans.is_empty();
            if let [unit] = units.as_slice()
                && alone
                && settings.config.is_none()
            {
                hand_over::restart(&scene, unit, Waiting::Yes)?;
                return Ok(restarted(hand_over::verified(&scene, report)?));
            }
            return restart_units(&scene, &units, vigil, report, meanwhile);
        }
    }
    with_guard(settings, vigil, report, |scene, guard, vigil, report| {
        // A restart that could not start would be a stop.
        let mut preparation = prepare(settings)?;
        // Taken before the stop: originals see a start in progress throughout.
        if let Some(outcome) = lock_or_refusal(scene, guard, vigil, report)? {
            return Ok(outcome);
        }
        let sighting = scene.look(tracked(scene)?)?;
        if !sighting.unseen.is_empty() {
            return Ok(cannot_tell(&sighting, report));
        }
        let mut strangers = Strangers::default();
        report.restarting(sighting.agents.len(), sighting.orphans.len());
        if let Some(outcome) = clear(scene, guard, &mut strangers, vigil, report)? {
            return Ok(outcome);
        }
        if let Some(outcome) = meanwhile(vigil, report)? {
            return Ok(outcome);
        }
        if settings.config.is_some() {
            // A step may have written the env file.
            preparation = prepare(settings)?;
        }
        let outcome = bring_up(
            scene,
            guard,
            preparation,
            Rivalry::Accept,
            strangers,
            vigil,
            report,
        )?;
        if !matches!(outcome, Outcome::Started | Outcome::Kept) {
            return Ok(outcome);
        }
        let tracked = tracked(scene)?;
        match scene.look(tracked)?.agents.as_slice() {
            [agent] => {
                report.restarted(agent.identity.pid);
                report.agents(std::slice::from_ref(agent), tracked);
                Ok(Outcome::Restarted)
            }
            agents => {
                report.running(agents.len());
                report.agents(agents, tracked);
                Ok(Outcome::Failed)
            }
        }
    })
}

/// What the system start does about units with agents: duplicates beside one go by
/// systemd. `None`: nothing of that.
fn start_by_unit(
    settings: &Settings,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Option<Outcome>, Failure> {
    if !is_booted_by_systemd() {
        return Ok(None);
    }
    let scene = Scene::open(settings)?;
    let tracked = tracked(&scene)?;
    let agents = scene.look(tracked)?.agents;
    if agents.len() < 2 || agents.iter().all(|agent| agent.unit.is_none()) {
        return Ok(None);
    }
    let units = hand_over::units(&scene, Verb::Restart)?;
    if units.is_empty() {
        return Ok(None);
    }
    report.replacing(&agents, &scene.mode());
    report.agents(&agents, tracked);
    let no_more = |_: &mut Vigil, _: &mut Report| Ok(None);
    Ok(Some(
        match restart_units(&scene, &units, vigil, report, no_more)? {
            Outcome::Restarted => Outcome::Replaced,
            other => other,
        },
    ))
}

/// Lets systemd stop the units, ends whatever else is there, and lets systemd
/// start one again: its starter takes the guard.
fn restart_units(
    scene: &Scene<'_>,
    units: &[Unit],
    vigil: &mut Vigil,
    report: &mut Report,
    meanwhile: impl FnOnce(&mut Vigil, &mut Report) -> Result<Option<Outcome>, Failure>,
) -> Result<Outcome, Failure> {
    let Some(unit) = units.first() else {
        return Ok(Outcome::Failed);
    };
    if hand_over::stop(scene, units, Verb::Restart, report)? == Stopping::Asked {
        return Ok(Outcome::Asked);
    }
    let cleared = with_guard(
        scene.settings,
        vigil,
        report,
        |scene, guard, vigil, report| {
            let mut strangers = Strangers::default();
            if let Some(outcome) = clear(scene, guard, &mut strangers, vigil, report)? {
                return Ok(outcome);
            }
            Ok(meanwhile(vigil, report)?.unwrap_or(Outcome::Stopped))
        },
    )?;
    if cleared != Outcome::Stopped {
        return Ok(cleared);
    }
    hand_over::start(unit)?;
    Ok(restarted(hand_over::verified(scene, report)?))
}

fn restarted(agent: Option<Pid>) -> Outcome {
    agent.map_or(Outcome::Failed, |_| Outcome::Restarted)
}

/// What cannot be seen may be an agent: nothing is started beside it.
fn cannot_tell(sighting: &Sighting, report: &mut Report) -> Outcome {
    report.refused(&Refusal::CannotTell);
    report.agents(&sighting.agents, None);
    report.unseen(&sighting.unseen);
    Outcome::Refused
}

/// How long a program that waits for its turn waits.
pub(crate) fn guard_patience(settings: &Settings) -> Duration {
    settings.verify + settings.grace + GUARD_PATIENCE
}

/// Waits for the guard. The inner `Err` is how the program ends if it was
/// interrupted.
///
/// # Errors
/// When it does not become free.
pub(crate) fn wait_for_guard(
    scene: &Scene<'_>,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Result<HeldGuard, Outcome>, Failure> {
    let mut deadline = Deadline::after(guard_patience(scene.settings));
    loop {
        if let Some(guard) = scene.try_guard()? {
            return Ok(Ok(guard));
        }
        let Some(pause) = deadline.next_pause() else {
            return Err(guard_is_held(scene));
        };
        if let Some(outcome) = pause_or_interruption(vigil, pause, report)? {
            return Ok(Err(outcome));
        }
    }
}

/// Waits for the guard and runs `verb` under it, deaf to nothing.
fn with_guard(
    settings: &Settings,
    vigil: &mut Vigil,
    report: &mut Report,
    verb: impl FnOnce(&Scene<'_>, &HeldGuard, &mut Vigil, &mut Report) -> Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    let scene = Scene::open(settings)?;
    if vigil.interruptions.is_none() {
        vigil.interruptions = Some(hold_interruptions()?);
    }
    let guard = match wait_for_guard(&scene, vigil, report)? {
        Ok(guard) => guard,
        Err(outcome) => return Ok(outcome),
    };
    let outcome = verb(&scene, &guard, vigil, report);
    drop(vigil.startup_lock.take());
    drop(guard);
    outcome
}

fn pause_or_interruption(
    vigil: &mut Vigil,
    pause: Duration,
    report: &mut Report,
) -> Result<Option<Outcome>, Failure> {
    match vigil.wait(&[], pause) {
        Ok(Woken::ByInterruption(interruption)) => {
            report.interrupted(interruption, Left::AsItWas);
            Ok(Some(Outcome::Interrupted(interruption)))
        }
        Ok(_) => Ok(None),
        Err(error) => Err(Failure::new(format!("cannot wait: {error}"))),
    }
}

/// Takes the startup lock, waiting for an original starter to end first.
/// `Some` is how the program ends if it does not.
fn lock_or_refusal(
    scene: &Scene<'_>,
    guard: &HeldGuard,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Option<Outcome>, Failure> {
    let mut deadline = Deadline::after(STALE_AFTER);
    loop {
        let starter: Starter = match take_startup_lock(scene, guard, report)? {
            Ok(lock) => {
                vigil.startup_lock = lock;
                return Ok(None);
            }
            Err(starter) => starter,
        };
        let Some(pause) = deadline.next_pause() else {
            report.refused(&Refusal::Starting(starter, scene.startup_lock.path()));
            return Ok(Some(Outcome::Refused));
        };
        if let Some(outcome) = pause_or_interruption(vigil, pause, report)? {
            return Ok(Some(outcome));
        }
    }
}

/// Stops everything; `Some` is how the program ends if that did not work.
fn clear(
    scene: &Scene<'_>,
    guard: &HeldGuard,
    strangers: &mut Strangers,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Option<Outcome>, Failure> {
    Ok(
        match clear_everything(scene, guard, strangers, vigil, report)? {
            Clearing::Done(_) => {
                // It names nobody now; what else lies there, a start reports.
                if let Ok(Some(pid)) = scene.pid_file.number() {
                    let _ = scene.pid_file.remove_if_naming(pid);
                }
                None
            }
            Clearing::Incomplete => {
                report.not_stopped();
                Some(Outcome::NotStopped)
            }
            Clearing::Interrupted(interruption) => Some(Outcome::Interrupted(interruption)),
        },
    )
}

/// Starts an agent where none was a moment ago.
fn raise(
    scene: &Scene<'_>,
    guard: &HeldGuard,
    preparation: Preparation,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Outcome, Failure> {
    if let Some(outcome) = lock_or_refusal(scene, guard, vigil, report)? {
        return Ok(outcome);
    }
    // An original may have started one while we waited for it.
    let tracked = tracked(scene)?;
    let mut strangers = Strangers::default();
    let sighting = scene.look_at_strangers(&mut strangers)?;
    match sighting.agents.as_slice() {
        [] => bring_up(
            scene,
            guard,
            preparation,
            Rivalry::Accept,
            strangers,
            vigil,
            report,
        ),
        [agent] if agent.command.mode == scene.settings.mode => {
            keep(scene, agent, tracked, vigil, report)
        }
        agents => {
            report.refused(&Refusal::Rival);
            report.agents(agents, tracked);
            Ok(Outcome::Refused)
        }
    }
}

/// Keeps the one agent: names it in the PID file if nobody does, and clears
/// the workers of dead ones beside it.
fn keep(
    scene: &Scene<'_>,
    agent: &Agent,
    tracked: Option<Pid>,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Outcome, Failure> {
    if let Some(outcome) = clear_orphans(scene, tracked, KinOf::Orphans, vigil, report)? {
        return Ok(outcome);
    }
    let path = scene.pid_file.path();
    let adopted = if scene.is_tracked(agent) {
        false
    } else {
        if let Ok(tracking_file::Opening::Odd(oddity)) = tracking_file::open(path) {
            return Err(crate::scene::odd("PID file", path, oddity));
        }
        scene
            .pid_file
            .adopt(agent.identity.pid)
            .map_err(|error| cannot("write the PID file", path, &error))?;
        true
    };
    // Left by a starter that was killed while its agent came up.
    let verdict = scene.lock_verdict(true)?;
    if matches!(verdict, LockVerdict::Stale { .. }) {
        let _ = scene.remove_stale_lock(&verdict, report);
    }
    report.kept(agent, adopted);
    report.agents(std::slice::from_ref(agent), Some(agent.identity.pid));
    Ok(Outcome::Kept)
}
