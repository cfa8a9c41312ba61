//! That a companion's log has once said it is ready.
//!
//! Later the line may be gone, since logs are copied and emptied while their
//! writer runs (logrotate's `copytruncate`). So the process that has said it is
//! written down beside the PID file.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Member;
use crate::agent::Mark;
use crate::plan::Ready;
use crate::process_table::{Pid, ProcessTable};
use crate::tracking_file::{self, Opening};

/// More than two numbers need.
const MOST: u64 = 64;

impl Member {
    /// Its log has the line. If that cannot be written down, the log will be
    /// asked again.
    pub(super) fn remember_ready(&self) {
        if !matches!(self.companion.ready, Ready::Log(_)) {
            return;
        }
        let path = beside(&self.settings.pid_file);
        if let Some(content) = self.pid().and_then(process_for_good)
            && let Ok((new, _file)) = tracking_file::create_beside(&path, content.as_bytes())
            && rustix::fs::rename(&new, &path).is_err()
        {
            let _ = tracking_file::remove(&new);
        }
    }

    /// It is gone.
    pub(super) fn forget_ready(&self) {
        if matches!(self.companion.ready, Ready::Log(_)) {
            let _ = tracking_file::remove_plain(&beside(&self.settings.pid_file));
        }
    }

    /// Has the process that is watched been ready? It is written in this runtime
    /// folder, or in the one that the process was born in.
    pub(super) fn is_remembered_ready(&self) -> bool {
        let Some(process) = &self.process else {
            return false;
        };
        let Some(now) = process_for_good(process.pid) else {
            return false;
        };
        let birthplace = process.mark.as_ref().map(Mark::pid_file);
        [Some(&*self.settings.pid_file), birthplace]
            .into_iter()
            .flatten()
            .any(|pid_file| content_of(&beside(pid_file)).is_some_and(|then| then == now))
    }
}

fn beside(pid_file: &Path) -> PathBuf {
    pid_file.with_extension("ready")
}

/// The number and the start of a living process.
fn process_for_good(pid: Pid) -> Option<String> {
    let stat = ProcessTable::open().ok()?.stat(pid).ok()??;
    Some(format!("{pid} {}\n", stat.start))
}

fn content_of(path: &Path) -> Option<String> {
    let Ok(Opening::Plain(opened)) = tracking_file::open(path) else {
        return None;
    };
    let mut content = String::new();
    opened.file.take(MOST).read_to_string(&mut content).ok()?;
    Some(content)
}
