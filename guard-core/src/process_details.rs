//! What a person wants to know of chosen processes: since when, whose.

use std::collections::BTreeMap;
use std::time::Duration;

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use crate::process_table::{Pid, ProcessTable};

/// How long some processes have been running.
#[derive(Debug, Default)]
pub struct Ages(BTreeMap<Pid, Age>);

/// How long a process has been running.
#[derive(Debug, Clone, Copy)]
struct Age {
    runs_for: Duration,
    /// Unix time, by the clock as it is set now.
    since: u64,
}

impl Ages {
    /// Asks for these processes only.
    pub fn of(pids: impl Iterator<Item = Pid>) -> Self {
        let wanted: Vec<(Pid, sysinfo::Pid)> = pids
            .filter_map(|pid| {
                let number = u32::try_from(pid.get()).ok()?;
                Some((pid, sysinfo::Pid::from_u32(number)))
            })
            .collect();
        let numbers: Vec<sysinfo::Pid> = wanted.iter().map(|(_, number)| *number).collect();
        // Without ages the report is poorer, not wrong.
        let Ok(mut system) = System::new() else {
            return Self::default();
        };
        system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&numbers),
            false,
            ProcessRefreshKind::nothing().without_tasks(),
        );
        let ages = wanted.into_iter().filter_map(|(pid, number)| {
            let process = system.process(number)?;
            let age = Age {
                runs_for: Duration::from_secs(process.run_time()),
                since: process.start_time(),
            };
            Some((pid, age))
        });
        Self(ages.collect())
    }

    /// The age of one of them, if it still runs.
    #[must_use]
    pub fn get(&self, pid: Pid) -> Option<Duration> {
        self.0.get(&pid).map(|age| age.runs_for)
    }

    /// Since when one of them runs, in Unix time, if it still does.
    #[must_use]
    pub fn since(&self, pid: Pid) -> Option<u64> {
        self.0.get(&pid).map(|age| age.since)
    }
}

/// For how long a process has been running, to the clock tick (10 ms); `None` once
/// it is gone.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn age_of(table: &ProcessTable, pid: Pid) -> std::io::Result<Option<Duration>> {
    let Some(stat) = table.stat(pid)? else {
        return Ok(None);
    };
    let ticks = rustix::param::clock_ticks_per_second();
    let born = Duration::from_millis(stat.start.saturating_mul(1000) / ticks.max(1));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = Duration::try_from(now).unwrap_or_default();
    Ok(Some(now.saturating_sub(born)))
}

/// The memory that these processes hold together (resident).
pub fn memory_of(pids: impl Iterator<Item = Pid>) -> Option<u64> {
    let page = rustix::param::page_size() as u64;
    pids.filter_map(|pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * page)
    })
    .reduce(|one, other| one + other)
}

/// The user's name, or the number if it has none here.
#[must_use]
pub fn user_name(uid: u32) -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(|| format!("uid {uid}"), |user| user.name)
}
