//! Every sentence that a user reads, as text or as one JSON object.
//!
//! Everything goes to standard output, refusals too: callers redirect that
//! (`docs/contract.md`, "Exit codes"). Output that cannot be written is lost
//! and changes nothing else.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::birth::Ending;
use crate::failure::Failure;
use crate::monitor::{self, Observation};
use crate::outcome::Outcome;
use crate::part_facts::PartFacts;
use crate::process_details::{Ages, user_name};
use crate::process_table::Pid;
use crate::settings::{Interpreter, Naming, Settings};
use crate::sighting::{Agent, Kinship, OrphanWorker, Relative, SpareReason, Spared, Unseen};
use crate::signals::Interruption;
use crate::startup_lock::{StaleReason, Starter};
use crate::supervision::Unit;
use crate::terminate::{SurvivalReason, Survivor};

/// How to say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Sentences, as things happen.
    Text,
    /// One object at the end.
    Json,
    /// Nothing; the exit code says it.
    Quiet,
    /// One line and an exit code of its own, as monitoring plugins answer.
    Plugin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Good,
    Plain,
    Warning,
    Error,
}

/// Collects what a program has to say.
#[derive(Debug)]
pub struct Report {
    format: Format,
    coloured: bool,
    naming: Naming,
    /// Where metrics go at the end.
    metrics: Option<PathBuf>,
    /// A reader that does not read loses sentences.
    patient: bool,
    /// Live lines that are on the terminal now.
    live: Option<indicatif::MultiProgress>,
    facts: Facts,
}

/// The JSON object. Keys are stable; new ones may be added.
#[derive(Debug, Default, Serialize)]
struct Facts {
    program: String,
    version: String,
    family: Option<String>,
    outcome: &'static str,
    exit_code: u8,
    message: String,
    agents: Vec<AgentFacts>,
    orphan_workers: Vec<ProcessFacts>,
    leftovers: Vec<ProcessFacts>,
    stale_files: Vec<StaleFileFacts>,
    lock_age_seconds: Option<u64>,
    stopped: Vec<i32>,
    duplicates_removed: usize,
    registration_confirmed: Option<bool>,
    log_file: Option<String>,
    files_removed: Vec<String>,
    notes: Vec<String>,
    help: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<PartFacts>>,
}

#[derive(Debug, Serialize)]
struct AgentFacts {
    pid: i32,
    mode: String,
    script: String,
    user: String,
    uid: u32,
    age_seconds: Option<u64>,
    since: Option<u64>,
    wrapper: Option<WrapperFacts>,
    tracked: bool,
    container: bool,
    unit: Option<String>,
}

#[derive(Debug, Serialize)]
struct WrapperFacts {
    pid: i32,
    command: String,
}

#[derive(Debug, Serialize)]
struct StaleFileFacts {
    path: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct ProcessFacts {
    pid: i32,
    user: String,
    uid: u32,
    command: Option<String>,
    marked: Option<bool>,
}

impl Report {
    /// A report of `program`.
    #[must_use]
    pub fn new(program: &str, version: &str, format: Format) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            format,
            coloured: !no_color && !dumb && std::io::stdout().is_terminal(),
            naming: Naming::Programs,
            metrics: None,
            patient: true,
            live: None,
            facts: Facts {
                program: program.to_owned(),
                version: version.to_owned(),
                ..Facts::default()
            },
        }
    }

    /// Whose report it is.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.facts.program
    }

    /// From now on it answers as a monitoring plugin.
    pub fn answer_as_plugin(&mut self) {
        self.format = Format::Plugin;
    }

    /// How it says things.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Does it use colours?
    #[must_use]
    pub fn is_coloured(&self) -> bool {
        self.coloured
    }

    /// From now on it prints above these live lines; `None`: there are none.
    pub fn print_above(&mut self, live: Option<indicatif::MultiProgress>) {
        self.live = live;
    }

    /// The last note.
    #[must_use]
    pub fn last_note(&self) -> Option<&str> {
        self.facts.notes.last().map(String::as_str)
    }

    /// Takes over what was noted of a part on the way.
    pub fn take_over(&mut self, part: &Self) {
        for note in &part.facts.notes {
            self.note(note.clone());
        }
        self.facts.stopped.extend(&part.facts.stopped);
        self.facts
            .files_removed
            .extend(part.facts.files_removed.iter().cloned());
    }

    /// From now on it waits for no reader: a program that has an agent to look
    /// after must not hang on a pipe that is full.
    pub fn wait_for_no_reader(&mut self) {
        self.patient = false;
    }

    /// From now on, advice uses the caller's own names of the programs, and
    /// the agents have a family.
    pub fn is_about(&mut self, settings: &Settings) {
        self.naming = settings.naming.clone();
        let family = settings.family.name().to_string_lossy();
        self.facts.family = Some(family.into_owned());
    }

    /// At the end, metrics go into this file too.
    pub fn write_metrics(&mut self, path: PathBuf) {
        self.metrics = Some(path);
    }

    /// Ends the report: prints what is said at the end, and gives the exit code.
    #[must_use]
    pub fn finish(mut self, mut outcome: Outcome) -> u8 {
        if let Some(path) = self.metrics.take()
            && let Err(error) = monitor::write_whole(&path, &self.observation(outcome).metrics())
        {
            let path = path.display();
            let failure = Failure::new(format!("cannot write the metrics {path}: {error}"))
                .help("name a plain file in a folder that is there and may be written to");
            self.failure(&failure);
            outcome = Outcome::Failed;
        }
        let mut exit_code = outcome.exit_code();
        match self.format {
            Format::Plugin => {
                let observation = self.observation(outcome);
                exit_code = observation.health().exit_code();
                if let Some(line) = observation.line_for(monitor::stdout_is_journal()) {
                    print(&harmless(&line));
                }
            }
            Format::Json => {
                self.facts.outcome = outcome.name();
                self.facts.exit_code = exit_code;
                if (self.patient || is_output_ready())
                    && let Ok(object) = serde_json::to_string(&self.facts)
                {
                    print(&object);
                }
            }
            Format::Text | Format::Quiet => {}
        }
        exit_code
    }

    /// What a monitor makes of it.
    fn observation(&self, outcome: Outcome) -> Observation<'_> {
        let facts = &self.facts;
        let oldest = facts.agents.iter().max_by_key(|agent| agent.age_seconds);
        Observation {
            family: facts.family.as_deref(),
            outcome,
            message: &facts.message,
            agents: facts.agents.len(),
            pid: oldest.map(|agent| agent.pid),
            age: oldest.and_then(|agent| Some((agent.age_seconds?, agent.since?))),
            tracked: facts
                .agents
                .iter()
                .all(|agent| agent.tracked || agent.container),
            orphans: facts.orphan_workers.len(),
            stale_files: facts.stale_files.len(),
            lock_age: facts.lock_age_seconds,
        }
    }

    /// Something went wrong.
    pub fn failure(&mut self, failure: &Failure) {
        self.headline(Tone::Error, format!("ERROR: {failure}"));
        if let Some(help) = failure.remedy() {
            self.advise(help.to_owned());
        }
    }

    // --- what is there ---

    /// An agent runs; `tracked` is the process that the PID file names.
    pub fn agents(&mut self, agents: &[Agent], tracked: Option<Pid>) {
        let facts = facts_of(agents, tracked);
        for agent in &facts {
            self.say(Tone::Plain, &format!("  agent {}", describe(agent)));
        }
        self.facts.agents = facts;
    }

    /// Who runs at the end, for those who read the JSON object: the sentences
    /// have said it. Whoever was there before is among the stopped.
    pub fn now_running(&mut self, agents: &[Agent], tracked: Pid) {
        self.facts.agents = facts_of(agents, Some(tracked));
    }

    /// Workers that outlived their agent.
    pub fn orphans(&mut self, orphans: &[OrphanWorker]) {
        for orphan in orphans {
            let pid = orphan.identity.pid;
            let user = user_name(orphan.uid);
            let origin = if orphan.marked {
                "started by these programs"
            } else {
                "not started by these programs"
            };
            self.say(
                Tone::Plain,
                &format!("  orphan worker PID {pid}, user {user}, of an agent {origin}"),
            );
            self.facts.orphan_workers.push(ProcessFacts {
                pid: pid.get(),
                user,
                uid: orphan.uid,
                command: None,
                marked: Some(orphan.marked),
            });
        }
    }

    /// Relatives that are left alone.
    pub fn spared(&mut self, spared: &[Spared]) {
        for Spared { relative, reason } in spared {
            let why = match reason {
                SpareReason::OwnTerminal => "it has, or holds, a terminal where somebody may work",
                SpareReason::Contained => "it lives in a container: stop it there",
            };
            self.note(format!("left alone: {}: {why}", name(relative)));
            self.facts.leftovers.push(ProcessFacts {
                pid: relative.identity.pid.get(),
                user: user_name(relative.uid),
                uid: relative.uid,
                command: Some(relative.command.clone()),
                marked: None,
            });
        }
    }

    /// What could not be told.
    pub fn unseen(&mut self, unseen: &[Unseen]) {
        for unseen in unseen {
            self.note(match unseen {
                Unseen::HiddenProcesses => "/proc hides other users' processes (mount option \
                     hidepid): another user's agent could not be seen; run this as root, or join \
                     the group that the option gid= of that mount names"
                    .to_owned(),
                Unseen::Worker { pid, uid } => format!(
                    "PID {pid} of user {} is a worker process without parent: whether it answers \
                     calls for an agent cannot be told; ask that user, or run this as root",
                    user_name(*uid)
                ),
            });
        }
    }

    // --- verdicts of check ---

    /// check: nothing stands in the way.
    pub fn safe(&mut self) {
        self.headline(
            Tone::Good,
            "OK: safe to start: no agent is running".to_owned(),
        );
    }

    /// check: an agent runs.
    pub fn running(&mut self, count: usize) {
        let message = if count == 1 {
            "ERROR: an agent is already running".to_owned()
        } else {
            format!("ERROR: {count} agents are running at once")
        };
        self.headline(Tone::Error, message);
        let program = if count == 1 {
            "stop-voice-agent-safe"
        } else {
            "restart-voice-system"
        };
        self.advise_program(program);
    }

    /// check: a start is in progress.
    pub fn starting(&mut self, starter: Starter, lock: &Path) {
        let message = format!(
            "ERROR: startup in progress, by {}: see {}, which counts for 30 s",
            starter_name(starter),
            lock.display()
        );
        self.headline(Tone::Error, message);
        self.advise("wait for it to end, then try again".to_owned());
    }

    /// check: another program holds the guard.
    pub fn busy(&mut self, holder: Option<(Pid, Option<&str>)>) {
        let message = format!("ERROR: {} is at work right now", holder_name(holder));
        self.headline(Tone::Error, message);
        self.advise("wait for it to end, then try again".to_owned());
    }

    /// check: only orphan workers are there.
    pub fn orphaned(&mut self, count: usize) {
        self.headline(
            Tone::Error,
            format!("ERROR: the agent is dead, but {count} of its workers still answer calls"),
        );
        self.advise_program("stop-voice-agent-safe");
    }

    /// check: not everything could be found out.
    pub fn cannot_tell(&mut self) {
        self.headline(
            Tone::Error,
            "ERROR: cannot tell whether an agent is running".to_owned(),
        );
    }

    /// The PID file's lock is held by a process that cannot be seen.
    pub fn unseen_holder(&mut self, pid_file: &Path) {
        self.note(format!(
            "the lock of {} is held by a process that cannot be seen from here: an agent in a \
             container, or another user's; stop it there",
            pid_file.display()
        ));
    }

    /// A tracking file named nobody and was (or would be) removed.
    pub fn stale(&mut self, what: &str, path: &Path, why: &str, removal: Removal) {
        let path = path.display();
        if removal != Removal::Done {
            self.facts.stale_files.push(StaleFileFacts {
                path: path.to_string(),
                reason: why.to_owned(),
            });
        }
        match removal {
            Removal::Done => {
                self.facts.files_removed.push(path.to_string());
                self.say(Tone::Plain, &format!("Removed stale {what} {path}: {why}"));
            }
            Removal::DryRun => {
                self.note(format!(
                    "stale {what} {path}: {why}; not removed (--dry-run)"
                ));
            }
            Removal::Left => self.note(format!(
                "stale {what} {path}: {why}; left for the program that is at work now"
            )),
        }
    }

    /// The startup lock's age.
    pub fn lock_age(&mut self, age: Duration) {
        self.facts.lock_age_seconds = Some(age.as_secs());
    }

    /// A tracking file was removed, as always at the end of a stop.
    pub fn removed(&mut self, path: &Path) {
        self.facts.files_removed.push(path.display().to_string());
    }

    // --- start ---

    /// start: refused, since an agent runs or is being started.
    pub fn refused(&mut self, reason: &Refusal<'_>) {
        let why = match reason {
            Refusal::Running => "an agent is running".to_owned(),
            Refusal::Starting(starter, lock) => format!(
                "startup in progress, by {}: see {}, which counts for 30 s",
                starter_name(*starter),
                lock.display()
            ),
            Refusal::Busy(holder) => format!("{} is at work", holder_name(*holder)),
            Refusal::Orphans => "workers of a dead agent still answer calls".to_owned(),
            Refusal::CannotTell => "cannot tell whether an agent is running".to_owned(),
            Refusal::Supervised(unit) => {
                format!("systemd will start an agent in a moment, as {}", unit.name)
            }
            Refusal::Rival => {
                "another agent was started at the same time; ours was stopped".to_owned()
            }
        };
        self.headline(
            Tone::Error,
            format!("ERROR: Already running or locked: {why}"),
        );
        match reason {
            Refusal::Running | Refusal::Orphans => self.advise_program("stop-voice-agent-safe"),
            Refusal::Starting(..) | Refusal::Busy(_) => {
                self.advise("wait for it to end, then try again".to_owned());
            }
            Refusal::Supervised(unit) => {
                self.advise(format!("start it now with: {}", unit.command("restart")));
            }
            Refusal::CannotTell | Refusal::Rival => {}
        }
    }

    /// Which interpreter runs the agent.
    pub fn interpreter(&mut self, interpreter: &Interpreter) {
        self.say(
            Tone::Plain,
            &format!(
                "Python: {} ({})",
                interpreter.path.display(),
                interpreter.reason
            ),
        );
    }

    /// The previous log could not be kept.
    pub fn log_not_kept(&mut self, path: &Path, error: &std::io::Error) {
        self.note(format!(
            "the previous log {} could not be copied ({error}): this start's output is appended to it",
            path.display()
        ));
    }

    /// The agent lives.
    pub fn started(&mut self, pid: Pid, registered: bool, window: Duration, log: &Path) {
        self.facts.registration_confirmed = Some(registered);
        self.facts.log_file = Some(log.display().to_string());
        let how = if registered {
            "ready".to_owned()
        } else {
            format!(
                "alive, but its registration is not confirmed within {} s",
                window.as_secs_f64()
            )
        };
        self.headline(
            if registered {
                Tone::Good
            } else {
                Tone::Warning
            },
            format!("OK: agent started (PID {pid}), {how}"),
        );
        self.say(Tone::Plain, &format!("  log: {}", log.display()));
        let stop = self.naming.command("stop-voice-agent-safe");
        self.say(Tone::Plain, &format!("  stop it with: {stop}"));
    }

    /// The agent died.
    pub fn died(&mut self, pid: Pid, how: &str, log: &Path, last_lines: &[String]) {
        self.headline(
            Tone::Error,
            format!("ERROR: the agent (PID {pid}) died at once: {how}"),
        );
        if last_lines.is_empty() {
            self.say(Tone::Plain, "  it wrote nothing");
        } else {
            self.say(Tone::Plain, "  the end of its output:");
        }
        for line in last_lines {
            self.say(Tone::Plain, &format!("  | {line}"));
        }
        self.facts.notes.extend(last_lines.iter().cloned());
        self.facts.log_file = Some(log.display().to_string());
        self.advise(format!("see {}", log.display()));
    }

    /// The agent has ended, and its output was seen.
    pub fn ended_by_itself(&mut self, pid: Pid, how: Ending, log: &Path) {
        self.headline(
            Tone::Error,
            format!("ERROR: the agent (PID {pid}) has ended: {how}"),
        );
        self.facts.log_file = Some(log.display().to_string());
        self.say(Tone::Plain, &format!("  log: {}", log.display()));
    }

    /// The agent was stopped, as asked by a signal.
    pub fn stopped_on(&mut self, interruption: Interruption, pid: Pid, how: Ending) {
        self.headline(
            Tone::Good,
            format!(
                "OK: agent (PID {pid}) stopped on {}: {how}",
                interruption.name()
            ),
        );
    }

    /// What the report comes to so far.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.facts.message
    }

    /// The program was interrupted.
    pub fn interrupted(&mut self, interruption: Interruption, left: Left) {
        let state = match left {
            Left::Nobody => "no agent was left running".to_owned(),
            Left::Running(pid) => format!("the agent (PID {pid}) goes on"),
            Left::Ending => "what was asked to end may still be saying good-bye".to_owned(),
            Left::AsItWas => "everything is as it was".to_owned(),
        };
        self.headline(
            Tone::Warning,
            format!("Interrupted by {}: {state}", interruption.name()),
        );
    }

    // --- stop ---

    /// What a stop has ended.
    pub fn ended(&mut self, ended: &[Relative]) {
        for relative in ended {
            self.say(Tone::Plain, &format!("  stopped {}", name(relative)));
            self.facts.stopped.push(relative.identity.pid.get());
        }
    }

    /// What could not be ended.
    pub fn survivors(&mut self, survivors: &[Survivor]) {
        for survivor in survivors {
            let why = match &survivor.reason {
                SurvivalReason::NotPermitted => format!(
                    "it belongs to user {}: run this as that user or as root",
                    user_name(survivor.relative.uid)
                ),
                SurvivalReason::Stuck => {
                    "it does not even end by SIGKILL: it is stuck in the kernel".to_owned()
                }
                SurvivalReason::Io(error) => error.to_string(),
                SurvivalReason::Interrupted => {
                    self.note(format!(
                        "{} was asked to end and still runs",
                        name(&survivor.relative)
                    ));
                    continue;
                }
            };
            self.note(format!("cannot stop {}: {why}", name(&survivor.relative)));
        }
    }

    /// Agents in containers, which are not ours to stop.
    pub fn contained(&mut self, agents: &[&Agent]) {
        for agent in agents {
            self.note(format!(
                "cannot stop agent PID {}: it lives in a container: stop it there",
                agent.identity.pid
            ));
        }
    }

    /// The PID file proves an agent that no look at the processes shows.
    pub fn missed(&mut self, pid: Pid) {
        self.note(format!(
            "cannot stop agent PID {pid}: it runs, but what belongs to it cannot be read"
        ));
    }

    /// An agent comes back as often as it is stopped.
    pub fn keeps_coming(&mut self) {
        self.note(
            "an agent is started again as often as it is stopped: something supervises it; stop \
             that first"
                .to_owned(),
        );
    }

    /// stop: nothing was there.
    pub fn nothing_to_stop(&mut self) {
        self.headline(Tone::Good, "OK: no agent was running".to_owned());
    }

    /// stop: done.
    pub fn stopped(&mut self) {
        self.headline(
            Tone::Good,
            "OK: agent stopped, nothing of it is left".to_owned(),
        );
    }

    /// Something could not be stopped.
    pub fn not_stopped(&mut self) {
        self.headline(
            Tone::Error,
            "ERROR: not everything could be stopped".to_owned(),
        );
    }

    // --- systemd ---

    /// systemd has stopped a unit.
    pub fn unit_stopped(&mut self, unit: &Unit) {
        self.say(Tone::Plain, &format!("  systemd has stopped {}", unit.name));
    }

    /// systemd was asked, by a program that will not see it done.
    pub fn asked(&mut self, verb: &str, unit: &Unit) {
        self.headline(
            Tone::Good,
            format!(
                "OK: systemd runs the agent, as {}, and will {verb} it now",
                unit.name
            ),
        );
    }

    // --- system, restart ---

    /// Orphan workers are cleared before a start or beside a kept agent.
    pub fn clearing_orphans(&mut self, count: usize) {
        self.say(
            Tone::Warning,
            &format!("Clearing {count} orphan worker(s) of a dead agent"),
        );
    }

    /// The running agent is kept.
    pub fn kept(&mut self, agent: &Agent, adopted: bool) {
        let taken = if adopted { "; it is tracked now" } else { "" };
        self.headline(
            Tone::Good,
            format!(
                "OK: agent already running (PID {}, {} mode): kept{taken}",
                agent.identity.pid,
                agent.command.mode.to_string_lossy()
            ),
        );
    }

    /// Several agents, or one in another mode, make way.
    pub fn replacing(&mut self, agents: &[Agent], wanted_mode: &str) {
        let message = match agents {
            [agent] => format!(
                "An agent runs in {} mode, {wanted_mode} is wanted: replacing it",
                agent.command.mode.to_string_lossy()
            ),
            _ => format!(
                "WARNING: {} agents are running: removing all, starting one",
                agents.len()
            ),
        };
        self.say(Tone::Warning, &message);
        self.facts.duplicates_removed = agents.len().saturating_sub(1);
    }

    /// The agent has been asked to end already.
    pub fn replacing_the_ending(&mut self, pid: Pid) {
        self.say(
            Tone::Warning,
            &format!(
                "The agent (PID {pid}) was asked to end by a stop that did not see it through: \
                 replacing it"
            ),
        );
    }

    /// An agent that runs, but not for long.
    pub fn ending(&mut self, pid: Pid) {
        let stop = self.naming.command("stop-voice-agent-safe");
        self.note(format!(
            "PID {pid} was asked to end by a stop that did not see it through; finish that: {stop}"
        ));
    }

    /// restart: what it found.
    pub fn restarting(&mut self, agents: usize, orphans: usize) {
        let duplicates = agents.saturating_sub(1);
        self.facts.duplicates_removed = duplicates;
        self.say(
            Tone::Plain,
            &format!("Restarting: {agents} agent(s) and {orphans} orphan worker(s) found"),
        );
    }

    /// restart: done and verified.
    pub fn restarted(&mut self, pid: Pid) {
        let duplicates = self.facts.duplicates_removed;
        self.headline(
            Tone::Good,
            format!(
                "OK: restarted: exactly one agent is running (PID {pid}); duplicates removed: {duplicates}"
            ),
        );
    }

    /// An original starter's agent came up beside ours.
    pub fn rival_kept(&mut self, pid: Pid) {
        self.headline(
            Tone::Good,
            format!(
                "OK: a script has started an agent (PID {pid}) at the same time: that one is kept, \
                 ours was stopped"
            ),
        );
    }

    /// No companions are configured.
    pub fn agent_only(&mut self) {
        self.say(
            Tone::Plain,
            "Only the agent is managed: no companions are configured",
        );
    }

    /// The parts of the system, at the end.
    pub fn parts(&mut self, parts: Vec<PartFacts>) {
        self.facts.parts = Some(parts);
    }

    /// A line of the summary.
    pub fn line(&self, line: &str) {
        self.say(Tone::Plain, line);
    }

    /// The whole system is up, down, or well.
    pub fn system_is(&mut self, message: &str) {
        self.headline(Tone::Good, format!("OK: {message}"));
    }

    /// The whole system is not as it should be.
    pub fn system_is_not(&mut self, message: &str) {
        self.headline(Tone::Error, format!("ERROR: {message}"));
    }

    /// A start of the system was interrupted; what runs all the same.
    pub fn interrupted_system(&mut self, interruption: Interruption, running: &[String]) {
        let state = if running.is_empty() {
            "nothing of the system was left running".to_owned()
        } else {
            format!("what runs now: {}", running.join(", "))
        };
        self.headline(
            Tone::Warning,
            format!("Interrupted by {}: {state}", interruption.name()),
        );
    }

    /// A part failed: what, why, its last lines, what helps.
    pub fn part_failed(
        &mut self,
        what: &str,
        why: &str,
        last_lines: &[String],
        help: Option<&str>,
        missed: bool,
    ) {
        if missed {
            self.headline(Tone::Error, format!("ERROR: {what} failed: {why}"));
        } else {
            self.say(
                Tone::Warning,
                &format!("WARNING: {what} failed: {why}; going on without it"),
            );
        }
        if !last_lines.is_empty() {
            let words = match last_lines.len() {
                1 => "the last line of its output:".to_owned(),
                count => format!("the last {count} lines of its output:"),
            };
            self.say(Tone::Plain, &format!("  {words}"));
        }
        for line in last_lines {
            self.say(Tone::Plain, &format!("  | {line}"));
        }
        if let Some(help) = help {
            if missed {
                self.advise(help.to_owned());
            } else {
                self.say(Tone::Plain, &format!("  {help}"));
            }
        }
    }

    /// Something worth knowing that changes nothing.
    pub fn note(&mut self, note: String) {
        self.say(Tone::Warning, &format!("  note: {note}"));
        self.facts.notes.push(note);
    }

    fn advise_program(&mut self, program: &str) {
        let command = self.naming.command(program);
        let verb = if program.starts_with("stop") {
            "stop it with"
        } else {
            "put it right with"
        };
        self.advise(format!("{verb}: {command}"));
    }

    fn advise(&mut self, help: String) {
        self.say(Tone::Plain, &format!("  {help}"));
        self.facts.help = Some(help);
    }

    fn headline(&mut self, tone: Tone, message: String) {
        self.say(tone, &message);
        self.facts.message = message;
    }

    fn say(&self, tone: Tone, sentence: &str) {
        if self.format != Format::Text || !(self.patient || is_output_ready()) {
            return;
        }
        match &self.live {
            Some(lines) => lines.suspend(|| self.say_now(tone, sentence)),
            None => self.say_now(tone, sentence),
        }
    }

    fn say_now(&self, tone: Tone, sentence: &str) {
        let colour = match tone {
            Tone::Good => "\x1b[32m",
            Tone::Plain => "",
            Tone::Warning => "\x1b[33m",
            Tone::Error => "\x1b[1;31m",
        };
        let sentence = harmless(sentence);
        if self.coloured && !colour.is_empty() {
            print(&format!("{colour}{sentence}\x1b[0m"));
        } else {
            print(&sentence);
        }
    }
}

/// What happened to a stale file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was removed.
    Done,
    /// Only looking.
    DryRun,
    /// Somebody else is at work.
    Left,
}

/// What an interrupted program leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// No agent.
    Nobody,
    /// The agent, which goes on.
    Running(Pid),
    /// Some that were asked to end, and do so now or in a moment.
    Ending,
    /// What it found.
    AsItWas,
}

/// Why a start is refused.
#[derive(Debug)]
pub enum Refusal<'a> {
    /// An agent runs.
    Running,
    /// Another start is in progress, as this startup lock says.
    Starting(Starter, &'a Path),
    /// The guard is held.
    Busy(Option<(Pid, Option<&'a str>)>),
    /// Orphan workers that these programs did not start.
    Orphans,
    /// systemd waits to start one again.
    Supervised(&'a Unit),
    /// Something could not be found out.
    CannotTell,
    /// An original starter was as fast as we were.
    Rival,
}

/// Why a startup lock counts as stale.
#[must_use]
pub fn stale_reason(reason: &StaleReason) -> String {
    match reason {
        StaleReason::OwnerGone(pid) => format!("its starter (PID {pid}) is gone"),
        StaleReason::Finished(pid) => format!("its starter (PID {pid}) has finished"),
        StaleReason::Old => "older than 30 s".to_owned(),
        StaleReason::Unusable(why) => why.clone(),
    }
}

fn starter_name(starter: Starter) -> String {
    match starter {
        Starter::Ours(pid) => format!("PID {pid}"),
        Starter::Original(pid) => format!("a script (PID {pid})"),
        Starter::Unnamed => "a script that has just begun".to_owned(),
    }
}

fn holder_name(holder: Option<(Pid, Option<&str>)>) -> String {
    match holder {
        Some((pid, Some(program))) => format!("{program} (PID {pid})"),
        Some((pid, None)) => format!("another program (PID {pid})"),
        None => "another program".to_owned(),
    }
}

fn name(relative: &Relative) -> String {
    let kind = match relative.kinship {
        Kinship::Agent => "agent",
        Kinship::OrphanWorker => "orphan worker",
        Kinship::Descendant => "child",
        Kinship::Leftover => "leftover",
    };
    let pid = relative.identity.pid;
    format!("{kind} PID {pid} ({})", relative.command)
}

fn facts_of(agents: &[Agent], tracked: Option<Pid>) -> Vec<AgentFacts> {
    let ages = Ages::of(agents.iter().map(|agent| agent.identity.pid));
    let facts = |agent: &Agent| {
        let pid = agent.identity.pid;
        let wrapper = agent.wrapper.as_ref();
        AgentFacts {
            pid: pid.get(),
            mode: agent.command.mode.to_string_lossy().into_owned(),
            script: agent.command.script.to_string_lossy().into_owned(),
            user: user_name(agent.uid),
            uid: agent.uid,
            age_seconds: ages.get(pid).map(|age| age.as_secs()),
            since: ages.since(pid),
            wrapper: wrapper.map(|wrapper| WrapperFacts {
                pid: wrapper.pid.get(),
                command: wrapper.command.clone(),
            }),
            tracked: tracked.is_some_and(|tracked| {
                tracked == pid || wrapper.is_some_and(|wrapper| wrapper.pid == tracked)
            }),
            container: agent.contained,
            unit: agent.unit.as_ref().map(|unit| unit.name.clone()),
        }
    };
    agents.iter().map(facts).collect()
}

fn describe(agent: &AgentFacts) -> String {
    use std::fmt::Write as _;
    let mut line = format!(
        "PID {}: {} {}, user {}",
        agent.pid, agent.script, agent.mode, agent.user
    );
    if let Some(seconds) = agent.age_seconds {
        let _ = write!(line, ", running for {}", span(seconds));
    }
    if let Some(wrapper) = &agent.wrapper {
        let _ = write!(line, ", run by {} (PID {})", wrapper.command, wrapper.pid);
    }
    if agent.container {
        line.push_str(", in a container");
    }
    if let Some(unit) = &agent.unit {
        let _ = write!(line, ", run by systemd as {unit}");
    }
    if !agent.tracked {
        line.push_str(", not in the PID file");
    }
    line
}

pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// What an agent writes and what settings hold must not steer the terminal that
/// shows it.
fn harmless(line: &str) -> String {
    let mut harmless = String::with_capacity(line.len());
    for character in line.chars() {
        if character.is_control() && character != '\t' {
            harmless.extend(character.escape_default());
        } else {
            harmless.push(character);
        }
    }
    harmless
}

/// Would a sentence be taken at once?
fn is_output_ready() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let output = std::io::stdout();
    let mut polled = [PollFd::new(&output, PollFlags::OUT)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// A closed or broken standard output loses the message, nothing else.
pub(crate) fn print(sentence: &(impl Display + ?Sized)) {
    let mut line = sentence.to_string();
    line.push('\n');
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(line.as_bytes());
    let _ = output.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        assert_eq!(span(59), "59 s");
        assert_eq!(span(61), "1 min 1 s");
        assert_eq!(span(7_260), "2 h 1 min");
        assert_eq!(span(90_000), "1 d 1 h");
    }
}
