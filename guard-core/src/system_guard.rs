//! The guard of the whole system, and how a stop gets it from a start in
//! progress.

use std::time::Duration;

use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::guard::{Guard, GuardError, HeldGuard, Taking};
use crate::plan::Plan;
use crate::process_table::{Pid, ProcessTable};
use crate::report::Report;
use crate::runtime;
use crate::scene::{odd, proc_failure};
use crate::settings::Settings;
use crate::signals::Interruption;
use crate::startup_lock::program_name;
use crate::system_run::{Direction, cannot_wait};
use crate::vigil::{Vigil, Woken};

/// How long, beyond what the parts themselves may take, these programs wait
/// for others of their kind to finish.
const GUARD_PATIENCE: Duration = Duration::from_mins(1);

/// The guard of the whole system; a stop ends a start in progress.
pub(crate) fn take_guard(
    plan: &Plan,
    settings: &Settings,
    vigil: &mut Vigil,
    direction: Direction,
    report: &mut Report,
) -> Result<Result<HeldGuard, Interruption>, Failure> {
    let path = runtime::guard_file(&settings.project_dir);
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
