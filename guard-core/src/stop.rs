//! `stop-voice-agent-safe`: whole families, orphans, leftovers; then the files.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::detach::{Place, leave_agent};
use crate::failure::Failure;
use crate::guard::HeldGuard;
use crate::hand_over::{self, Stopping, Verb};
use crate::outcome::Outcome;
use crate::pid_file::Tracking;
use crate::process_table::{Identity, Pid};
use crate::report::{Left, Report};
use crate::scene::{Scene, cannot_end, cannot_remove, odd};
use crate::settings::Settings;
use crate::sighting::{Kin, KinOf, Relative, Sighting, Strangers};
use crate::signals::Interruption;
use crate::startup_lock::Starter;
use crate::terminate::{Impatience, Termination, end};
use crate::tracking_file::{self, PlainError};
use crate::vigil::{Vigil, Woken};

/// How long, beyond the grace period, a stop waits for other programs to let
/// go of the guard: their own verification window and their clearing up.
const GUARD_PATIENCE: Duration = Duration::from_secs(20);

/// How long a stop waits for an original starter to bring out its agent, which
/// is ended then.
const ORIGINAL_LIMIT: Duration = Duration::from_secs(5);

/// After so many rounds something keeps starting agents.
const ROUNDS: usize = 12;

/// From this round on nobody is given a grace period any more.
const PATIENT_ROUNDS: usize = 3;

/// What is left after everything was stopped that could be.
#[derive(Debug)]
pub(crate) enum Clearing {
    /// Nothing. How many processes were ended.
    Done(usize),
    /// Something; the report names it.
    Incomplete,
    /// The program was interrupted.
    Interrupted(Interruption),
}

/// Stops everything that answers calls, and ends a start in progress.
///
/// # Errors
/// When the guard cannot be had, or something cannot be looked at.
pub fn stop(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    // It may be interrupted at any point: the next one goes on from there.
    stop_heeding(&mut Vigil::default(), settings, report)
}

/// The same, where `vigil` hears interruptions.
///
/// # Errors
/// As [`stop`].
pub(crate) fn stop_heeding(
    vigil: &mut Vigil,
    settings: &Settings,
    report: &mut Report,
) -> Result<Outcome, Failure> {
    if let Some(outcome) = hand_over::from_inside(settings, Verb::Stop, report)? {
        return Ok(outcome);
    }
    if let Place::Relayed(exit_code) = leave_agent(&settings.family)? {
        return Ok(relayed(exit_code, Outcome::Stopped, Outcome::NotStopped));
    }
    let scene = Scene::open(settings)?;
    let units = hand_over::units(&scene, Verb::Stop)?;
    let mut ended_before = match hand_over::stop(&scene, &units, Verb::Stop, report)? {
        Stopping::Done(count) => count,
        Stopping::Asked => return Ok(Outcome::Asked),
    };
    let patience = settings.grace + GUARD_PATIENCE;
    let guard = take_guard(&scene, patience, vigil, |kin, vigil| {
        ended_before += kin.relatives.len();
        let grace = settings.grace;
        end(
            &scene.table,
            kin.relatives,
            grace,
            vigil,
            Impatience::GiveUp,
        )
        .map(|termination| {
            report.ended(&termination.ended);
            report.survivors(&termination.survivors);
            termination.interrupted
        })
        .map_err(|error| cannot_end(&error))
    })?;
    let guard = match guard {
        Ok(guard) => guard,
        Err(interruption) => {
            report.interrupted(interruption, Left::Ending);
            return Ok(Outcome::Interrupted(interruption));
        }
    };
    let clearing = clear_everything(&scene, &guard, &mut Strangers::default(), vigil, report)?;
    let ended = match clearing {
        Clearing::Done(ended) => ended + ended_before,
        Clearing::Incomplete => {
            report.not_stopped();
            return Ok(Outcome::NotStopped);
        }
        Clearing::Interrupted(interruption) => return Ok(Outcome::Interrupted(interruption)),
    };
    remove_tracking_files(&scene, report)?;
    if ended == 0 {
        report.nothing_to_stop();
        return Ok(Outcome::NothingToStop);
    }
    report.stopped();
    Ok(Outcome::Stopped)
}

/// The outcome of a program that was run again outside the agent.
pub(crate) fn relayed(exit_code: u8, good: Outcome, bad: Outcome) -> Outcome {
    if exit_code == 0 { good } else { bad }
}

/// Waits for the guard, and meanwhile hands the agents of a start in progress
/// to `end_start`: the starter sees the death and leaves.
fn take_guard(
    scene: &Scene<'_>,
    patience: Duration,
    vigil: &mut Vigil,
    mut end_start: impl FnMut(Kin, &mut Vigil) -> Result<Option<Interruption>, Failure>,
) -> Result<Result<HeldGuard, Interruption>, Failure> {
    let mut deadline = Deadline::after(patience);
    let mut strangers = Strangers::default();
    loop {
        if let Some(guard) = scene.try_guard()? {
            return Ok(Ok(guard));
        }
        let holder = scene.guard_holder();
        let is_starting = !matches!(
            holder,
            Some((_, Some("check-agent-running" | "stop-voice-agent-safe")))
        );
        if is_starting {
            let kin = scene.gather(tracked(scene)?, KinOf::Everyone, &mut strangers)?;
            if !kin.relatives.is_empty()
                && let Some(interruption) = end_start(kin, vigil)?
            {
                return Ok(Err(interruption));
            }
        }
        let Some(pause) = deadline.next_pause() else {
            return Err(guard_is_held(scene));
        };
        if let Some(interruption) = pause_for(pause, vigil)? {
            return Ok(Err(interruption));
        }
    }
}

/// Pauses, unless an interruption is heard.
fn pause_for(pause: Duration, vigil: &mut Vigil) -> Result<Option<Interruption>, Failure> {
    match vigil.wait(&[], pause) {
        Ok(Woken::ByInterruption(interruption)) => Ok(Some(interruption)),
        Ok(_) => Ok(None),
        Err(error) => Err(cannot_end(&error)),
    }
}

/// The guard did not become free.
pub(crate) fn guard_is_held(scene: &Scene<'_>) -> Failure {
    let (holder, help) = match scene.guard_holder() {
        Some((pid, program)) => (
            format!("{} (PID {pid})", program.unwrap_or("a process")),
            format!("see what it does: ps -fp {pid}; end it with: kill {pid}"),
        ),
        None => (
            "a process that cannot be seen from here".to_owned(),
            "see who has it open: fuser -v on that file, as root".to_owned(),
        ),
    };
    Failure::new(format!(
        "cannot get the guard {}: {holder} holds it",
        scene.guard.path().display()
    ))
    .help(help)
}

/// The process that the PID file proves to be the agent.
pub(crate) fn tracked(scene: &Scene<'_>) -> Result<Option<Pid>, Failure> {
    Ok(match scene.tracking()? {
        Tracking::Running(identity) => Some(identity.pid),
        _ => None,
    })
}

/// Ends all agents and all born of them, round by round until a look finds
/// nothing; waits for an original starter in between.
///
/// # Errors
/// When `/proc` or the PID file cannot be read.
pub(crate) fn clear_everything(
    scene: &Scene<'_>,
    guard: &HeldGuard,
    strangers: &mut Strangers,
    vigil: &mut Vigil,
    report: &mut Report,
) -> Result<Clearing, Failure> {
    let mut clearance = Clearance::default();
    let mut original = Deadline::after(ORIGINAL_LIMIT);
    loop {
        let tracked = tracked(scene)?;
        let (relatives, grace) = match clearance.round(scene, tracked, strangers, report)? {
            Round::End(relatives, grace) => (relatives, grace),
            Round::Empty(_) if is_original_starting(scene)? && original.wait() => continue,
            Round::Empty(sighting) => {
                match clearance.settle(scene, tracked, &sighting, strangers, report)? {
                    Some(clearing) => return Ok(clearing),
                    None => continue,
                }
            }
            Round::Endless => return Ok(Clearing::Incomplete),
        };
        guard.note_farewell(
            &scene.guard,
            relatives.iter().map(|relative| relative.identity),
        );
        let termination = end(&scene.table, relatives, grace, vigil, Impatience::GiveUp)
            .map_err(|error| cannot_end(&error))?;
        clearance.take(&termination, report);
        if let Some(interruption) = termination.interrupted {
            report.interrupted(interruption, Left::Ending);
            return Ok(Clearing::Interrupted(interruption));
        }
    }
}

/// Ending everybody of a family, round by round.
#[derive(Debug, Default)]
pub(crate) struct Clearance {
    ended: usize,
    survivors: BTreeSet<Identity>,
    named: BTreeSet<Identity>,
    rounds: usize,
}

/// What a round begins with.
#[derive(Debug)]
pub(crate) enum Round {
    /// These are to be ended, with this grace period.
    End(Vec<Relative>, Duration),
    /// Nobody is left that could be ended.
    Empty(Sighting),
    /// They come back as often as they are ended.
    Endless,
}

impl Clearance {
    /// Looks who is there.
    ///
    /// # Errors
    /// When `/proc` or the PID file cannot be read.
    pub(crate) fn round(
        &mut self,
        scene: &Scene<'_>,
        tracked: Option<Pid>,
        strangers: &mut Strangers,
        report: &mut Report,
    ) -> Result<Round, Failure> {
        let mut kin = scene.gather(tracked, KinOf::Everyone, strangers)?;
        kin.relatives
            .retain(|relative| !self.survivors.contains(&relative.identity));
        kin.spared
            .retain(|spared| self.named.insert(spared.relative.identity));
        report.spared(&kin.spared);
        if kin.relatives.is_empty() {
            return Ok(Round::Empty(kin.sighting));
        }
        if self.rounds == ROUNDS {
            report.keeps_coming();
            return Ok(Round::Endless);
        }
        let grace = if self.rounds < PATIENT_ROUNDS {
            scene.settings.grace
        } else {
            Duration::ZERO
        };
        self.rounds += 1;
        Ok(Round::End(kin.relatives, grace))
    }

    /// Takes in what came of ending them.
    pub(crate) fn take(&mut self, termination: &Termination, report: &mut Report) {
        self.ended += termination.ended.len();
        report.ended(&termination.ended);
        report.survivors(&termination.survivors);
        self.survivors.extend(
            termination
                .survivors
                .iter()
                .map(|survivor| survivor.relative.identity),
        );
    }

    /// How it has ended, when a look finds nobody; `None`: look again.
    ///
    /// # Errors
    /// When `/proc` or the PID file cannot be read.
    pub(crate) fn settle(
        &mut self,
        scene: &Scene<'_>,
        tracked: Option<Pid>,
        sighting: &Sighting,
        strangers: &mut Strangers,
        report: &mut Report,
    ) -> Result<Option<Clearing>, Failure> {
        if let Tracking::Unproven(record) = scene.tracking()?
            && scene.has_unseen_holder(&record)?
        {
            report.unseen_holder(scene.pid_file.path());
            return Ok(Some(Clearing::Incomplete));
        }
        // The PID file proves an agent that this look has missed: the system
        // did not let us read it just then.
        let is_accounted_for = |pid| {
            self.survivors.iter().any(|survivor| survivor.pid == pid)
                || sighting
                    .agents
                    .iter()
                    .any(|agent| agent.contained && agent.identity.pid == pid)
        };
        if let Some(pid) = tracked.filter(|&pid| !is_accounted_for(pid)) {
            *strangers = Strangers::default();
            self.rounds += 1;
            if self.rounds < ROUNDS {
                return Ok(None);
            }
            report.missed(pid);
            return Ok(Some(Clearing::Incomplete));
        }
        Ok(Some(settle(sighting, &self.survivors, self.ended, report)))
    }
}

/// Is an original starter between its check and its agent?
fn is_original_starting(scene: &Scene<'_>) -> Result<bool, Failure> {
    Ok(matches!(
        scene.starter(true)?,
        Some(Starter::Original(_) | Starter::Unnamed)
    ))
}

fn settle(
    sighting: &Sighting,
    survivors: &BTreeSet<Identity>,
    ended: usize,
    report: &mut Report,
) -> Clearing {
    let contained: Vec<_> = sighting
        .agents
        .iter()
        .filter(|agent| agent.contained)
        .collect();
    report.contained(&contained);
    report.unseen(&sighting.unseen);
    if survivors.is_empty() && contained.is_empty() {
        Clearing::Done(ended)
    } else {
        Clearing::Incomplete
    }
}

/// Removes both files, whatever stands in them; to be called under the guard, with
/// nothing left that they could name.
///
/// # Errors
/// When one cannot be removed.
pub(crate) fn remove_tracking_files(scene: &Scene<'_>, report: &mut Report) -> Result<(), Failure> {
    let files = [
        ("PID file", scene.pid_file.path()),
        ("startup lock", scene.startup_lock.path()),
    ];
    for (what, path) in files {
        let owner = owner_of(path);
        // What a program that was killed in the middle has left.
        let _ = tracking_file::remove_plain(&tracking_file::beside(path));
        match tracking_file::remove_plain(path) {
            Err(PlainError::Odd(oddity)) => return Err(odd(what, path, oddity)),
            Ok(true) => report.removed(path),
            Ok(false) => {}
            Err(PlainError::Io(error)) => return Err(cannot_remove(what, path, owner, &error)),
        }
    }
    Ok(())
}

fn owner_of(path: &std::path::Path) -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.uid())
}
