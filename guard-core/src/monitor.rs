//! What a monitor makes of a check: a plugin's line and exit status, and
//! Prometheus metrics in a file.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::outcome::Outcome;
use crate::process_table::Pid;
use crate::report::span;
use crate::tracking_file::{self, Oddity};

/// Nobody writes a file of metrics for so long.
const ABANDONED: Duration = Duration::from_mins(5);

/// How the agent does, by the exit statuses that monitoring plugins have
/// (Nagios Plugin Development Guidelines, "Plugin Return Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// One agent runs, and nothing lies around.
    Ok = 0,
    /// It runs or is about to, but something is not as it should be.
    Warning = 1,
    /// None runs, or several do, or workers of a dead one answer calls.
    Critical = 2,
    /// It cannot be told.
    Unknown = 3,
}

impl Health {
    /// As a plugin's exit status.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        self as u8
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// How urgent that is in the journal (`sd-daemon(3)`); what is well is not
    /// worth a line there every minute.
    fn priority(self) -> Option<u8> {
        match self {
            Self::Ok => None,
            Self::Warning => Some(4),
            Self::Critical | Self::Unknown => Some(3),
        }
    }
}

/// What one look has found.
#[derive(Debug, Clone)]
pub struct Observation<'a> {
    /// Whose agents; unknown if the settings cannot be used.
    pub family: Option<&'a str>,
    /// The check's own verdict.
    pub outcome: Outcome,
    /// Its headline.
    pub message: &'a str,
    /// Agents that run.
    pub agents: usize,
    /// The PID of the oldest.
    pub pid: Option<i32>,
    /// Its age in seconds, and when it was born, in Unix time.
    pub age: Option<(u64, u64)>,
    /// Every agent that could be in the PID file (one in a container cannot) is.
    pub tracked: bool,
    /// Workers of dead agents.
    pub orphans: usize,
    /// Files that name nobody.
    pub stale_files: usize,
    /// How old the startup lock is, in seconds, if there is one.
    pub lock_age: Option<u64>,
}

impl Observation<'_> {
    /// The check has come to a verdict, so its figures are true.
    fn is_certain(&self) -> bool {
        matches!(
            self.outcome,
            Outcome::Safe | Outcome::Running | Outcome::StartInProgress | Outcome::OrphanWorkers
        )
    }

    /// How the agent does.
    #[must_use]
    pub fn health(&self) -> Health {
        match (self.outcome, self.agents) {
            _ if !self.is_certain() => Health::Unknown,
            _ if self.orphans > 0 => Health::Critical,
            (_, 1) if self.tracked && self.stale_files == 0 => Health::Ok,
            (Outcome::StartInProgress, 0) | (_, 1) => Health::Warning,
            _ => Health::Critical,
        }
    }

    fn reason(&self) -> String {
        let plain = self.message.trim_start_matches("ERROR: ");
        let mut reason = match (self.outcome, self.agents, self.pid) {
            (Outcome::Running, 1, Some(pid)) => format!("agent PID {pid} runs"),
            (Outcome::Safe, ..) => "no agent runs".to_owned(),
            _ => plain.to_owned(),
        };
        if self.agents == 1
            && let Some((age, _)) = self.age
        {
            let _ = write!(reason, ", for {}", span(age));
        }
        if self.agents > 0 && self.orphans > 0 {
            let _ = write!(reason, ", {} orphan worker(s) besides", self.orphans);
        }
        if self.agents > 0 && !self.tracked {
            reason.push_str(", not in the PID file");
        }
        if self.stale_files > 0 {
            let _ = write!(reason, ", {} stale file(s)", self.stale_files);
        }
        reason
    }

    /// A plugin's one line: the state, why, and figures to draw.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("VOICE AGENT {}: {}", self.health().name(), self.reason());
        // What follows a bar is figures; so is what follows a line's end.
        line = line.replace('|', "/").replace('\n', " ");
        if !self.is_certain() {
            return line;
        }
        let _ = write!(
            line,
            " | agents={};;1:1;0 orphan_workers={};;0;0 stale_files={};0;;0",
            self.agents, self.orphans, self.stale_files
        );
        if let Some((age, _)) = self.age {
            let _ = write!(line, " up={age}s;;;0");
        }
        if let Some(age) = self.lock_age {
            let _ = write!(line, " lock_age={age}s;;;0");
        }
        line
    }

    /// The same for the journal, if standard output leads there: its priority
    /// in front (`sd-daemon(3)`), so that what is wrong can be asked for; nothing
    /// if all is well. (`LogLevelMax=` in the unit does not suffice: journald looks
    /// it up when it reads the line, and then the unit may be gone.)
    #[must_use]
    pub fn line_for(&self, journal: bool) -> Option<String> {
        if !journal {
            return Some(self.line());
        }
        let priority = self.health().priority()?;
        Some(format!("<{priority}>{}", self.line()))
    }

    /// Metrics in Prometheus' text format. What could not be found out is left
    /// out, and `voice_guard_health` says so by 3.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut metrics = Metrics::of(self.family);
        metrics.gauge(
            "health",
            "0 one agent runs, 1 warning, 2 none or several or orphaned workers, 3 unknown.",
            u64::from(self.health().exit_code()),
        );
        if !self.is_certain() {
            return metrics.text;
        }
        let count = |number: usize| number as u64;
        metrics.gauge("agents", "Voice agents that run.", count(self.agents));
        metrics.gauge(
            "agents_untracked",
            "1 if an agent runs that is not in the PID file.",
            u64::from(self.agents > 0 && !self.tracked),
        );
        metrics.gauge(
            "orphan_workers",
            "Workers of dead agents that still answer calls.",
            count(self.orphans),
        );
        metrics.gauge(
            "stale_files",
            "PID and lock files that name nobody.",
            count(self.stale_files),
        );
        metrics.gauge(
            "start_in_progress",
            "1 while an agent is being started.",
            u64::from(self.outcome == Outcome::StartInProgress),
        );
        if let Some(age) = self.lock_age {
            metrics.gauge(
                "lock_age_seconds",
                "How old the startup lock is; absent without one.",
                age,
            );
        }
        if let Some((_, since)) = self.age {
            metrics.gauge(
                "agent_start_time_seconds",
                "Since when the oldest agent runs, in Unix time.",
                since,
            );
        }
        metrics.text
    }
}

struct Metrics {
    label: String,
    text: String,
}

impl Metrics {
    fn of(family: Option<&str>) -> Self {
        let label = family.map_or_else(String::new, |family| {
            let value = family
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            format!("{{family=\"{value}\"}}")
        });
        Self {
            label,
            text: String::new(),
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        let label = &self.label;
        let _ = write!(
            self.text,
            "# HELP voice_guard_{name} {help}\n# TYPE voice_guard_{name} gauge\n\
             voice_guard_{name}{label} {value}\n"
        );
    }
}

/// Puts `text` into `path`, whole or not at all: whoever reads it meanwhile
/// has the previous text.
///
/// # Errors
/// When something else than a plain file has that name, which is never
/// replaced, or the file cannot be made.
pub fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    match rustix::fs::lstat(path) {
        Ok(stat) => {
            if let Some(oddity) = Oddity::of(&stat) {
                return Err(io::Error::other(format!("it is {oddity}")));
            }
        }
        Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    // A name of this process's own: two monitors must not write into one file.
    // It does not end in `.prom`, so nobody reads it half written.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    remove_abandoned(path, &name);
    name.push(Pid::own().to_string());
    let beside = path.with_file_name(name);
    tracking_file::remove_plain(&beside)?;
    tracking_file::create_new(&beside, text.as_bytes())?;
    rustix::fs::rename(&beside, path).map_err(|errno| {
        let _ = tracking_file::remove(&beside);
        errno.into()
    })
}

/// Removes what monitors have left beside `path` that were killed in the middle
/// of writing, some time ago. What stays harms nobody.
fn remove_abandoned(path: &Path, prefix: &OsStr) {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let Ok(entries) = std::fs::read_dir(folder.unwrap_or(Path::new("."))) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours = name
            .as_bytes()
            .strip_prefix(prefix.as_bytes())
            .is_some_and(|rest| !rest.is_empty() && rest.iter().all(u8::is_ascii_digit));
        let is_abandoned = is_ours
            && entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > ABANDONED));
        if is_abandoned {
            let _ = tracking_file::remove_plain(&entry.path());
        }
    }
}

/// Does standard output lead to the journal? systemd says which stream does
/// (`systemd.exec(5)`, `JOURNAL_STREAM`); a pipe behind it is another.
#[must_use]
pub fn stdout_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(io::stdout())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Observation<'static> = Observation {
        family: Some("letta_voice_agent"),
        outcome: Outcome::Running,
        message: "ERROR: an agent is already running",
        agents: 1,
        pid: Some(7),
        age: Some((61, 1_700_000_000)),
        tracked: true,
        orphans: 0,
        stale_files: 0,
        lock_age: None,
    };

    #[test]
    fn health_is_what_a_person_would_say() {
        assert_eq!(WELL.health(), Health::Ok);
        let none = Observation {
            outcome: Outcome::Safe,
            agents: 0,
            ..WELL
        };
        for (observation, health) in [
            (none.clone(), Health::Critical),
            (
                Observation {
                    outcome: Outcome::StartInProgress,
                    ..none.clone()
                },
                Health::Warning,
            ),
            (
                Observation {
                    outcome: Outcome::OrphanWorkers,
                    orphans: 2,
                    ..none.clone()
                },
                Health::Critical,
            ),
            (
                Observation {
                    outcome: Outcome::Unknown,
                    ..none.clone()
                },
                Health::Unknown,
            ),
            (
                Observation {
                    outcome: Outcome::Failed,
                    ..none
                },
                Health::Unknown,
            ),
            (Observation { agents: 2, ..WELL }, Health::Critical),
            (Observation { orphans: 1, ..WELL }, Health::Critical),
            (
                Observation {
                    stale_files: 1,
                    ..WELL
                },
                Health::Warning,
            ),
            (
                Observation {
                    tracked: false,
                    ..WELL
                },
                Health::Warning,
            ),
        ] {
            assert_eq!(observation.health(), health, "{observation:?}");
        }
    }

    #[test]
    fn the_line_has_one_bar_and_no_line_end() {
        assert_eq!(
            WELL.line(),
            "VOICE AGENT OK: agent PID 7 runs, for 1 min 1 s \
             | agents=1;;1:1;0 orphan_workers=0;;0;0 stale_files=0;0;;0 up=61s;;;0"
        );
        let odd = Observation {
            outcome: Outcome::Failed,
            message: "ERROR: cannot read /a|b\nc",
            ..WELL
        };
        assert_eq!(
            odd.line_for(true).as_deref(),
            Some("<3>VOICE AGENT UNKNOWN: cannot read /a/b c, for 1 min 1 s")
        );
        assert_eq!(WELL.line_for(true), None);
        assert_eq!(WELL.line_for(false), Some(WELL.line()));
    }

    #[test]
    fn what_is_unknown_is_no_metric() {
        let odd = Observation {
            outcome: Outcome::Failed,
            family: Some("a\"b\\c"),
            ..WELL
        };
        let text = odd.metrics();
        assert!(
            text.ends_with("voice_guard_health{family=\"a\\\"b\\\\c\"} 3\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn what_killed_monitors_have_left_does_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.prom");
        let left = |name: &str, age: Duration| {
            let file = std::fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - age)
                .unwrap();
        };
        left(".x.prom.1", ABANDONED * 2);
        left(".x.prom.99999", ABANDONED * 2);
        // Another's that is at it; and what is none.
        left(".x.prom.2", Duration::ZERO);
        left(".x.prom.old", ABANDONED * 2);
        left(".y.prom.1", ABANDONED * 2);
        write_whole(&path, "one\n").unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, [".x.prom.2", ".x.prom.old", ".y.prom.1", "x.prom"]);
    }

    #[test]
    fn only_a_plain_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.prom");
        write_whole(&path, "one\n").unwrap();
        write_whole(&path, "two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        let link = folder.path().join("link.prom");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_whole(&link, "three\n").unwrap_err();
        write_whole(folder.path(), "three\n").unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
