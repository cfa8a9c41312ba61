//! What is known of one part of the voice system, for JSON and for the table at
//! the end.

use serde::Serialize;

use crate::member::Member;
use crate::plan::{Job, put_in};
use crate::process_table::Pid;
use crate::progress::PartState;
use crate::report::{Report, span};

/// One part of the voice system, in the JSON object.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PartFacts {
    /// Its name.
    pub name: String,
    /// `companion`, `agent` or `step`.
    pub kind: &'static str,
    /// How it stands.
    pub state: &'static str,
    /// Its process.
    pub pid: Option<i32>,
    /// Its port.
    pub port: Option<u16>,
    /// Its address for a browser.
    pub url: Option<String>,
    /// Its output.
    pub log: Option<String>,
    /// From its beginning to readiness, or to its end.
    pub seconds: Option<f64>,
    /// It was there before.
    pub reused: Option<bool>,
    /// For how long it has been running.
    pub age_seconds: Option<u64>,
    /// What its processes hold in memory together.
    pub memory_bytes: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
    /// The last lines of its output, if it failed.
    pub last_lines: Vec<String>,
}

impl PartFacts {
    /// What is known of this companion.
    #[must_use]
    pub fn of(member: &Member) -> Self {
        let companion = member.companion();
        let own = matches!(companion.job, Job::Own(_));
        Self {
            name: companion.name.clone(),
            kind: "companion",
            state: member.part_state().name(),
            pid: member
                .pid()
                .or_else(|| member.mess()?.copies.first().copied())
                .map(Pid::get),
            port: member.port(),
            url: companion.url.as_ref().map(|url| put_in(url, member.port())),
            log: own.then(|| companion.log.display().to_string()),
            seconds: member.took().map(|took| took.as_secs_f64()),
            reused: (member.part_state() == PartState::Ready).then(|| member.is_reused()),
            error: member.problem().map(|problem| problem.why.clone()),
            last_lines: member
                .problem()
                .map(|problem| problem.last_lines.clone())
                .unwrap_or_default(),
            ..PartFacts::default()
        }
    }
}

/// The parts, a line each.
pub(crate) fn print_table(facts: &[PartFacts], report: &mut Report) {
    let width = |text: fn(&PartFacts) -> usize| facts.iter().map(text).max().unwrap_or(0);
    let names = width(|part| part.name.len());
    let states = width(|part| part.state.len());
    for part in facts {
        let mut words = Vec::new();
        if let Some(pid) = part.pid {
            words.push(format!("PID {pid}"));
        }
        if let Some(port) = part.port {
            words.push(format!("port {port}"));
        }
        if let Some(age) = part.age_seconds {
            words.push(format!("for {}", span(age)));
        }
        #[expect(clippy::cast_precision_loss, reason = "one digit of it is shown")]
        if let Some(bytes) = part.memory_bytes {
            words.push(format!("{:.1} MiB", bytes as f64 / 1_048_576.0));
        }
        if let Some(url) = &part.url {
            words.push(url.clone());
        }
        if let Some(log) = &part.log {
            words.push(format!("log {log}"));
        }
        if part.kind == "step" {
            words.push("step".to_owned());
        }
        let line = format!(
            "  {:names$}  {:states$}  {}",
            part.name,
            part.state,
            words.join("  ")
        );
        report.line(line.trim_end());
    }
}
