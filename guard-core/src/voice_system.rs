//! The verbs over the whole voice system, as `voice-system.toml` describes it: up,
//! up again, down. Without that file, they are the agent's.

use crate::detach::{Place, leave_agent};
use crate::failure::Failure;
use crate::hand_over::{self, Verb};
use crate::outcome::Outcome;
use crate::plan::{Demand, Plan};
use crate::report::Report;
use crate::settings::Settings;
use crate::start::prepare;
use crate::stop::{relayed, stop};
use crate::system;
use crate::system_run::{Direction, SystemRun};

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
    let mut run = match SystemRun::begin(plan, settings, report, Direction::Start)? {
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
    if let Some(outcome) = hand_over::from_inside(settings, Verb::Restart, report)? {
        return Ok(outcome);
    }
    if let Place::Relayed(exit_code) = leave_agent(&settings.family)? {
        return Ok(relayed(exit_code, Outcome::Restarted, Outcome::Failed));
    }
    let plan = Plan::resolve(&config, settings, Demand::Start)?;
    // Before anything is started or stopped, not after a minute.
    prepare(settings)?;
    let mut run = match SystemRun::begin(plan, settings, report, Direction::Restart)? {
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
    if let Some(outcome) = hand_over::from_inside(settings, Verb::Stop, report)? {
        return Ok(outcome);
    }
    if let Place::Relayed(exit_code) = leave_agent(&settings.family)? {
        return Ok(relayed(exit_code, Outcome::Stopped, Outcome::NotStopped));
    }
    let plan = Plan::resolve(&config, settings, Demand::Stop)?;
    let mut run = match SystemRun::begin(plan, settings, report, Direction::Stop)? {
        Ok(run) => run,
        Err(outcome) => return Ok(outcome),
    };
    let result = run.stop(extent, report);
    run.end(result, report)
}
