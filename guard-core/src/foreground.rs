//! `start-voice-agent-safe --foreground`: the same start, by a program that
//! stays with its agent until that is dead, with all that was born of it.
//!
//! The agent is tracked as always, so all other programs see it. What is
//! different: nothing waits 30 s for anybody, a supervisor is told how it
//! stands, and the agent's end is the program's.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use crate::attendant::Attendant;
use crate::birth::Ending;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::notify::{MARGIN, Supervisor};
use crate::outcome::Outcome;
use crate::pid_file::Tracking;
use crate::report::{Format, Report};
use crate::scene::Scene;
use crate::settings::Settings;
use crate::signals::{Interruption, Interruptions};
use crate::start::{Brought, Start, start_under_guard};
use crate::system::{guard_patience, wait_for_guard};
use crate::vigil::{Vigil, Woken};

/// How long the agent's end waits for the guard, to remove the PID file. If it
/// stays, it is stale, and whoever holds the guard sees to it.
const GUARD_PATIENCE: Duration = Duration::from_secs(1);

/// How long an agent that was killed may take: 0.33 s were seen.
const DYING_LIMIT: Duration = Duration::from_secs(1);

/// There is always something that ends a wait; if not, it is looked again.
const LONG: Duration = Duration::from_hours(1);

/// Starts the agent unless one runs, and stays with it until it has ended.
///
/// # Errors
/// When something that a start needs is missing or cannot be used.
pub fn start_in_foreground(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    let supervisor = Rc::new(Supervisor::of_environment());
    let result = run(settings, &supervisor, report);
    match &result {
        Ok(_) => supervisor.status(report.message()),
        Err(failure) => supervisor.status(&format!("ERROR: {failure}")),
    }
    Ok(match result? {
        Outcome::Refused => Outcome::RefusedInForeground,
        other => other,
    })
}

fn run(
    settings: &Settings,
    supervisor: &Rc<Supervisor>,
    report: &mut Report,
) -> Result<Outcome, Failure> {
    let scene = Scene::open(settings)?;
    report.wait_for_no_reader();
    let copies = report.format() == Format::Text;
    let held = Attendant::new(copies, supervisor.clone())
        .and_then(|attendant| Ok((attendant, Interruptions::hold_in_foreground()?)));
    let (attendant, interruptions) = held.map_err(|error| {
        Failure::new(format!("cannot hold back signals: {error}"))
            .help("check how many files this user may open (ulimit -n)")
    })?;
    let attendant = Rc::new(RefCell::new(attendant));
    let mut vigil = Vigil {
        interruptions: Some(interruptions),
        meanwhile: Some(attendant.clone()),
        ..Vigil::default()
    };
    // One that is stopped or started by hand just now is waited for: nobody
    // would try again after a refusal.
    supervisor.extend(guard_patience(settings) + settings.verify + settings.grace + MARGIN);
    wait_for_the_dying(&scene)?;
    supervisor.status("waiting until no other program starts or stops an agent");
    let guard = match wait_for_guard(&scene, &mut vigil, report)? {
        Ok(guard) => guard,
        Err(outcome) => return Ok(outcome),
    };
    supervisor.status("starting the agent");
    let brought = start_under_guard(&scene, &guard, Some(attendant.clone()), &mut vigil, report);
    drop(vigil.startup_lock.take());
    drop(guard);
    let mut start = match brought? {
        Brought::Up(start) => start,
        Brought::Not(outcome) => return Ok(outcome),
    };
    supervisor.ready(report.message());
    let asked = wait_for_end(&start, &mut vigil);
    supervisor.stopping(settings.grace);
    let asked = asked.and_then(|asked| {
        if asked == Some(Interruption::Interrupt) {
            interrupt(&start, settings.grace, &mut vigil)?;
        }
        Ok(asked)
    });
    // However it came to this: nothing of the agent outlives its starter.
    let ending = start.end_family(&mut vigil, report);
    attendant.borrow_mut().finish();
    forget(&scene, &start, report)?;
    let Some(interruption) = asked? else {
        report.ended_by_itself(start.pid(), ending, &settings.log_file);
        return Ok(Outcome::AgentEnded(ending));
    };
    report.stopped_on(interruption, start.pid(), ending);
    Ok(match ending {
        Ending::Exited(0) => Outcome::AgentEnded(ending),
        // How else it ends says nothing: it was asked to, and livekit-agents 1.4
        // ends with 1 then. A supervisor must not take a stop for a failure.
        _ => Outcome::Interrupted(interruption),
    })
}

/// The kernel kills an agent with its starter, and takes a moment; a supervisor
/// that is quicker must not be told that an agent runs.
fn wait_for_the_dying(scene: &Scene<'_>) -> Result<(), Failure> {
    let mut deadline = Deadline::after(DYING_LIMIT);
    while matches!(scene.tracking()?, Tracking::Running(_)) && deadline.wait() {}
    Ok(())
}

/// Waits until the agent is dead (`None`) or this program is asked to end.
fn wait_for_end(start: &Start<'_>, vigil: &mut Vigil) -> Result<Option<Interruption>, Failure> {
    while !start.is_dead()? {
        let pidfd = start.newborn().pidfd.as_fd();
        if let Woken::ByInterruption(interruption) = wait(vigil, pidfd, LONG)? {
            return Ok(Some(interruption));
        }
    }
    Ok(None)
}

/// Ctrl-C is the agent's alone at first, as in a terminal; what it has not
/// ended by itself when its time is over, or at a second one, is ended.
fn interrupt(start: &Start<'_>, grace: Duration, vigil: &mut Vigil) -> Result<(), Failure> {
    let pidfd = &start.newborn().pidfd;
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::INT);
    let deadline = Deadline::after(grace);
    while !start.is_dead()? && !deadline.passed() {
        if let Woken::ByInterruption(_) = wait(vigil, pidfd.as_fd(), deadline.left())? {
            break;
        }
    }
    Ok(())
}

fn wait(
    vigil: &mut Vigil,
    pidfd: std::os::fd::BorrowedFd<'_>,
    limit: Duration,
) -> Result<Woken, Failure> {
    vigil
        .wait(&[pidfd], limit)
        .map_err(|error| Failure::new(format!("cannot wait for the agent: {error}")))
}

fn forget(scene: &Scene<'_>, start: &Start<'_>, report: &mut Report) -> Result<(), Failure> {
    let mut deadline = Deadline::after(GUARD_PATIENCE);
    loop {
        if let Some(_guard) = scene.try_guard()? {
            start.forget(report);
            return Ok(());
        }
        if !deadline.wait() {
            return Ok(());
        }
    }
}
