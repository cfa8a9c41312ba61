//! What systemd runs, systemd stops and starts: otherwise its `Restart=` and
//! these programs would work against each other.

use crate::deadline::Deadline;
use crate::detach::is_born_of_agent;
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::pid_file::Tracking;
use crate::process_table::{Pid, Stat};
use crate::report::Report;
use crate::scene::{Scene, proc_failure};
use crate::settings::Settings;
use crate::stop::tracked;
use crate::supervision::{Unit, Waiting, is_booted_by_systemd, is_called_by_systemd};
use crate::system::guard_patience;

/// The units that run agents of the family, confirmed by systemd, which is to be
/// asked to do this with them.
///
/// # Errors
/// When systemd cannot be asked, or `/proc` cannot be read.
pub(crate) fn units(scene: &Scene<'_>, verb: Verb) -> Result<Vec<Unit>, Failure> {
    if !is_booted_by_systemd() {
        return Ok(Vec::new());
    }
    let sighting = scene.look(tracked(scene)?)?;
    let mut units = Vec::new();
    // One that is about to give birth holds the guard.
    let starting = match scene.guard_holder() {
        Some((pid, _)) => {
            Unit::of_starter(&scene.table, pid).map_err(|error| proc_failure(&error))?
        }
        None => None,
    };
    let running = sighting.agents.into_iter().filter_map(|agent| agent.unit);
    for unit in running.chain(starting) {
        if is_confirmed(&unit, verb)? && !units.contains(&unit) {
            units.push(unit);
        }
    }
    if units.is_empty() {
        units = about_to_start(scene);
    }
    Ok(units)
}

fn is_confirmed(unit: &Unit, verb: Verb) -> Result<bool, Failure> {
    unit.is_confirmed()
        .map_err(|error| cannot_ask(unit, verb.word(), &error))
}

fn cannot_ask(unit: &Unit, verb: &str, error: &str) -> Failure {
    Failure::new(format!(
        "systemd runs the agent, as {}, and cannot be asked to {verb} it: {error}",
        unit.name
    ))
    .help(unit.command(verb))
}

/// For a program that was called from inside an agent that a unit runs: it will
/// end with it, so that it asks and does not wait. `None`: it was not.
///
/// # Errors
/// When systemd cannot be asked.
pub(crate) fn from_inside(
    settings: &Settings,
    verb: Verb,
    report: &mut Report,
) -> Result<Option<Outcome>, Failure> {
    if !is_booted_by_systemd() || !is_born_of_agent(&settings.family)? {
        return Ok(None);
    }
    let scene = Scene::open(settings)?;
    let Some(unit) = own_unit(&scene, verb)? else {
        return Ok(None);
    };
    match verb {
        Verb::Stop => unit
            .ask("stop", Waiting::No)
            .map_err(|error| cannot_ask(&unit, "stop", &error))?,
        Verb::Restart => restart(&scene, &unit, Waiting::No)?,
    }
    report.asked(verb.word(), &unit);
    Ok(Some(Outcome::Asked))
}

/// The unit whose agent has called this program.
fn own_unit(scene: &Scene<'_>, verb: Verb) -> Result<Option<Unit>, Failure> {
    let failure = |error: std::io::Error| proc_failure(&error);
    // An agent that has executed this program is none any more, and its starter
    // is still its parent.
    let own = Pid::own();
    let ancestors = scene.table.ancestors(own).map_err(failure)?;
    for pid in std::iter::once(own).chain(ancestors) {
        if let Some(unit) = Unit::of(&scene.table, pid).map_err(failure)?
            && is_confirmed(&unit, verb)?
        {
            return Ok(Some(unit));
        }
    }
    for unit in units(scene, verb)? {
        if unit.holds_caller(&scene.table).map_err(failure)? {
            return Ok(Some(unit));
        }
    }
    Ok(None)
}

/// What a unit is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Stop it.
    Stop,
    /// Restart it.
    Restart,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// What came of stopping units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopping {
    /// They are down; how many there were.
    Done(usize),
    /// systemd was asked and will do it.
    Asked,
}

/// Stops these units, for good or (`verb`) for a restart; those that stop just now,
/// and have called this program to help with it, are left to it.
///
/// # Errors
/// When systemd does not stop one: then nothing else is stopped either.
pub(crate) fn stop(
    scene: &Scene<'_>,
    units: &[Unit],
    verb: Verb,
    report: &mut Report,
) -> Result<Stopping, Failure> {
    let failure = |error: std::io::Error| proc_failure(&error);
    // A part of another unit's stop: that may be what this one has to wait for.
    let waiting = if is_called_by_systemd(&scene.table).map_err(failure)? {
        Waiting::No
    } else {
        Waiting::Yes
    };
    let mut stopped = 0;
    let mut asked = 0;
    for unit in units {
        if unit.holds_caller(&scene.table).map_err(failure)? {
            continue;
        }
        unit.ask("stop", waiting)
            .map_err(|error| cannot_ask(unit, verb.word(), &error))?;
        if waiting == Waiting::Yes {
            report.unit_stopped(unit);
            stopped += 1;
        } else {
            report.asked(Verb::Stop.word(), unit);
            asked += 1;
        }
    }
    Ok(if asked == 0 {
        Stopping::Done(stopped)
    } else {
        Stopping::Asked
    })
}

/// The units without an agent that systemd is about to start again. The one whose
/// dead agent is still in the PID file is known by that; of the others, which
/// family their agents are of cannot be seen: the documents' units are the original's.
pub(crate) fn about_to_start(scene: &Scene<'_>) -> Vec<Unit> {
    if !is_booted_by_systemd() {
        return Vec::new();
    }
    let bereaved = bereaved(scene);
    if bereaved.is_some() || !scene.settings.family.is_original() {
        return bereaved.into_iter().collect();
    }
    Unit::about_to_start()
}

/// The unit whose agent has just died: until its workers are ended too, its
/// starter has not reaped it, and systemd may not even know yet.
fn bereaved(scene: &Scene<'_>) -> Option<Unit> {
    let dead = scene.pid_file.number().ok()??;
    scene.table.stat(dead).ok()?.filter(Stat::is_dead)?;
    let unit = Unit::of(&scene.table, dead).ok()??;
    let comes_back = unit.is_confirmed().ok()? && unit.comes_back().ok()?;
    comes_back.then_some(unit)
}

/// What a person asks for is not counted against `StartLimitBurst=`.
fn forgive(unit: &Unit) {
    let _ = unit.ask("reset-failed", Waiting::Yes);
}

/// Starts a unit that systemd is about to start again: that is a restart, a start
/// would wait for the same time (`Restart=`, `RestartSec=`).
///
/// # Errors
/// When systemd does not.
pub(crate) fn start_waiting(unit: &Unit) -> Result<(), Failure> {
    forgive(unit);
    unit.ask("restart", Waiting::Yes)
        .map_err(|error| cannot_ask(unit, "restart", &error))
}

/// Starts a unit, and waits until its agent is verified.
///
/// # Errors
/// When systemd does not.
pub(crate) fn start(unit: &Unit) -> Result<(), Failure> {
    forgive(unit);
    unit.ask("start", Waiting::Yes)
        .map_err(|error| cannot_ask(unit, "start", &error))
}

/// Restarts a unit. Whoever may not ask systemd for that, and may signal the
/// starter, ends it: `Restart=always` means that systemd starts it again.
///
/// # Errors
/// When neither works.
pub(crate) fn restart(scene: &Scene<'_>, unit: &Unit, waiting: Waiting) -> Result<(), Failure> {
    let before = tracked(scene)?;
    forgive(unit);
    let Err(error) = unit.ask("restart", waiting) else {
        return Ok(());
    };
    let refused = || cannot_ask(unit, "restart", &error);
    if !unit.always_restarts().unwrap_or(false) || !end_starter(unit)? {
        return Err(refused());
    }
    if waiting == Waiting::No {
        return Ok(());
    }
    let mut deadline = Deadline::after(guard_patience(scene.settings));
    loop {
        if let Tracking::Running(identity) = scene.tracking()?
            && Some(identity.pid) != before
            && scene.starter(false)?.is_none()
        {
            return Ok(());
        }
        if !deadline.wait() {
            return Err(Failure::new(format!(
                "the agent was ended, and systemd, which starts it again as {}, has not yet \
                 done so",
                unit.name
            ))
            .help(unit.command("status")));
        }
    }
}

/// Sends TERM to the unit's starter, if it is still that; `false` if it may not
/// be signalled.
fn end_starter(unit: &Unit) -> Result<bool, Failure> {
    use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(starter) = rustix::process::Pid::from_raw(unit.starter.get()) else {
        return Ok(false);
    };
    let Ok(pidfd) = pidfd_open(starter, PidfdFlags::empty()) else {
        return Ok(false);
    };
    // Looked at again after the pidfd was opened: a number may be recycled.
    if !is_confirmed(unit, Verb::Restart)? {
        return Ok(false);
    }
    Ok(pidfd_send_signal(&pidfd, Signal::TERM).is_ok())
}

/// The one agent that runs now, if it is one.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn verified(scene: &Scene<'_>, report: &mut Report) -> Result<Option<Pid>, Failure> {
    let tracked = tracked(scene)?;
    let agents = scene.look(tracked)?.agents;
    if let [agent] = agents.as_slice() {
        let pid = agent.identity.pid;
        report.restarted(pid);
        report.agents(&agents, tracked);
        return Ok(Some(pid));
    }
    report.running(agents.len());
    report.agents(&agents, tracked);
    Ok(None)
}
