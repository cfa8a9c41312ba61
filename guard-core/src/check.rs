//! `check-agent-running`: is it safe to start an agent?

use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::pid_file::{Record, Tracking};
use crate::process_table::Identity;
use crate::report::{Removal, Report, stale_reason};
use crate::scene::{Scene, cannot_remove, odd, stale_number};
use crate::settings::Settings;
use crate::sighting::Sighting;
use crate::startup_lock::LockVerdict;
use crate::tracking_file;

/// What to do with stale files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleaning {
    /// Remove them, as the original does.
    Remove,
    /// Look at everything, and only say so.
    DryRun,
}

/// Answers at constant cost when the PID file proves a running agent, unless
/// everything is to be looked at; otherwise looks at all processes once. What it cannot find out counts as
/// not safe.
///
/// # Errors
/// When something could not be looked at.
pub fn check(
    settings: &Settings,
    cleaning: Cleaning,
    report: &mut Report,
) -> Result<Outcome, Failure> {
    let scene = Scene::open(settings)?;
    let tracking = scene.tracking()?;
    let tracked = match tracking {
        Tracking::Running(identity) if cleaning == Cleaning::Remove => {
            return running(&scene, identity, report);
        }
        Tracking::Running(identity) => Some(identity.pid),
        _ => None,
    };
    let guard_is_free = scene.guard_is_free()?;
    let lock = scene.lock_verdict(guard_is_free)?;
    let sighting = scene.look(tracked)?;
    let stale = Stale::find(&scene, &tracking, &lock, &sighting)?;
    if let Ok(Some(age)) = scene.startup_lock.age() {
        report.lock_age(age);
    }

    let guard = if stale.is_any() && cleaning == Cleaning::Remove {
        scene.try_guard()?
    } else {
        None
    };
    let removal = match cleaning {
        Cleaning::DryRun => Removal::DryRun,
        Cleaning::Remove if guard.is_some() => Removal::Done,
        Cleaning::Remove => Removal::Left,
    };
    let cleaned = stale.clear(&scene, removal, report);
    drop(guard);

    if !sighting.agents.is_empty() {
        report.running(sighting.agents.len());
        let named = scene.pid_file.number().ok().flatten();
        report.agents(&sighting.agents, named);
        scene.report_ending(&sighting.agents, report);
        report.orphans(&sighting.orphans);
        return Ok(Outcome::Running);
    }
    if let LockVerdict::Starting(starter) = lock {
        report.starting(starter, scene.startup_lock.path());
        return Ok(Outcome::StartInProgress);
    }
    if !guard_is_free {
        // A start, stop or restart between two of its steps: nothing that is
        // seen now will be true in a moment.
        report.busy(scene.guard_holder());
        return Ok(Outcome::StartInProgress);
    }
    if !sighting.orphans.is_empty() {
        report.orphaned(sighting.orphans.len());
        report.orphans(&sighting.orphans);
        return Ok(Outcome::OrphanWorkers);
    }
    if !sighting.unseen.is_empty() || stale.unseen_holder {
        report.cannot_tell();
        report.unseen(&sighting.unseen);
        if stale.unseen_holder {
            report.unseen_holder(scene.pid_file.path());
        }
        return Ok(Outcome::Unknown);
    }
    cleaned?;
    report.safe();
    Ok(Outcome::Safe)
}

/// The PID file proves an agent; more is read of it alone.
fn running(scene: &Scene<'_>, identity: Identity, report: &mut Report) -> Result<Outcome, Failure> {
    report.running(1);
    let agent = scene.describe(identity.pid)?;
    report.agents(agent.as_slice(), Some(identity.pid));
    scene.report_ending(agent.as_slice(), report);
    Ok(Outcome::Running)
}

/// What lies around and names nobody.
struct Stale<'a> {
    pid_file: Option<&'a Record>,
    odd_pid_file: Option<Failure>,
    lock: &'a LockVerdict,
    unseen_holder: bool,
}

impl<'a> Stale<'a> {
    fn find(
        scene: &Scene<'_>,
        tracking: &'a Tracking,
        lock: &'a LockVerdict,
        sighting: &Sighting,
    ) -> Result<Self, Failure> {
        let mut stale = Self {
            pid_file: None,
            odd_pid_file: None,
            lock,
            unseen_holder: false,
        };
        match tracking {
            Tracking::Odd(oddity) => {
                stale.odd_pid_file = Some(odd("PID file", scene.pid_file.path(), *oddity));
            }
            Tracking::Unproven(record) => {
                // Another owner's number is not trusted, but may be right.
                let names_an_agent = record.pid().is_some_and(|pid| {
                    sighting.agents.iter().any(|agent| {
                        agent.identity.pid == pid
                            || agent.wrapper.as_ref().is_some_and(|w| w.pid == pid)
                    })
                });
                // A container's agent knows itself by another number.
                let held_by_an_agent = record.locked
                    && sighting.agents.iter().any(|agent| {
                        let pid = agent.identity.pid;
                        scene
                            .table
                            .holds_open(pid, record.id.device, record.id.inode)
                            .unwrap_or(true)
                    });
                if !names_an_agent && !held_by_an_agent {
                    stale.unseen_holder = scene.has_unseen_holder(record)?;
                    stale.pid_file = (!stale.unseen_holder).then_some(record);
                }
            }
            Tracking::Absent | Tracking::Running(_) => {}
        }
        Ok(stale)
    }

    fn is_any(&self) -> bool {
        self.pid_file.is_some() || matches!(self.lock, LockVerdict::Stale { .. })
    }

    /// Removes what is stale, if it may, after looking again; says so. What
    /// lies in the way of a start and cannot be removed is a failure.
    fn clear(
        &self,
        scene: &Scene<'_>,
        removal: Removal,
        report: &mut Report,
    ) -> Result<(), Failure> {
        if let Some(record) = self.pid_file {
            let path = scene.pid_file.path();
            if removal != Removal::DryRun {
                may_replace("PID file", path, record.owner)?;
            }
            if removal == Removal::Done {
                if let Tracking::Unproven(now) = scene.tracking()?
                    && now.id == record.id
                    && now.number == record.number
                {
                    scene.remove_stale_pid_file(record, report)?;
                }
            } else {
                report.stale("PID file", path, &stale_number(record), removal);
            }
        }
        let path = scene.startup_lock.path();
        match self.lock {
            LockVerdict::Stale { reason, owner, .. } => {
                // Who only looks may have less rights than who starts.
                let may_remove = match removal {
                    Removal::DryRun => Ok(()),
                    _ => may_replace("startup lock", path, *owner),
                };
                if let Err(failure) = may_remove {
                    // A start goes on without: it keeps original scripts away,
                    // and a stale one does so as little as none.
                    report.note(failure.to_string());
                } else if removal == Removal::Done {
                    scene.remove_stale_lock(&scene.lock_verdict(true)?, report)?;
                } else {
                    report.stale("startup lock", path, &stale_reason(reason), removal);
                }
            }
            LockVerdict::Odd(oddity) => return Err(odd("startup lock", path, *oddity)),
            _ => {}
        }
        self.odd_pid_file.clone().map_or(Ok(()), Err)
    }
}

fn may_replace(what: &str, path: &std::path::Path, owner: u32) -> Result<(), Failure> {
    match tracking_file::may_replace(path, owner) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let denied = std::io::ErrorKind::PermissionDenied.into();
            Err(cannot_remove(what, path, owner, &denied))
        }
        Err(error) => Err(cannot_remove(what, path, owner, &error)),
    }
}
