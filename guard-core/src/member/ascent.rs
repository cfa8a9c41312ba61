//! A companion on its way up: found or born, asked until it is ready, watched
//! until the start is over.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use super::presence::open_pidfd;
use super::{Context, Found, Member, Origin, Problem, Process, State, Then};
use crate::birth::{BirthPlan, Bond, Ending, Newborn, give_birth};
use crate::cleaning;
use crate::config::OnStart;
use crate::deadline::Deadline;
use crate::errand::{Errand, Overdue, Surroundings};
use crate::failure::Failure;
use crate::log_file::{AgentLog, LogError};
use crate::plan::{Job, Ready, put_in};
use crate::port_owner::{listeners, name_holders};
use crate::probe::Probe;
use crate::process_details::age_of;
use crate::process_table::ProcessTable;
use crate::scene::{Scene, cannot, odd, proc_failure};
use crate::sighting::{Kin, KinOf, Strangers};
use crate::start::{LAST_LINES, clear_pid_file, forget_the_dead, new_mark};
use crate::terminate::is_dead;

impl Member {
    pub(super) fn begin(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        self.begun = Instant::now();
        let fresh = self.companion.on_start == OnStart::Fresh
            && (!context.restarting || self.companion.restart);
        if matches!(self.companion.job, Job::Own(_)) {
            let found = self.find(context.readings, context.now)?;
            let mark = match found {
                Found::One(identity) => self.mark_of(identity.pid)?,
                _ => None,
            };
            match found {
                // A fresh one that another of these programs has started since we
                // were called is fresh enough. (Whoever else did it may have done
                // so in the same clock tick, just before.)
                Found::One(identity)
                    if !fresh || (identity.start >= context.own_start && mark.is_some()) =>
                {
                    self.watch_found(identity, mark)?;
                    let deadline = (self.companion.on_start != OnStart::Manual)
                        .then(|| Deadline::after(self.companion.deadline));
                    return self.ask_first(context, deadline);
                }
                // A birth says what is in its way.
                Found::Nothing | Found::Locked => {}
                Found::One(_) | Found::Mess(_) if self.companion.on_start == OnStart::Manual => {}
                Found::One(_) | Found::Mess(_) => {
                    self.state = State::going_down(Then::Start);
                    return Ok(());
                }
            }
            // Somebody else's server is as good as ours if it does the work; an
            // open port does not say so.
            let proves_itself =
                matches!(self.companion.ready, Ready::Http { .. } | Ready::Command(_));
            if self.companion.on_start != OnStart::Manual && (fresh || !proves_itself) {
                return self.give_birth(context);
            }
        }
        self.ask_first(context, None)
    }

    fn ask_first(
        &mut self,
        context: &Context<'_>,
        deadline: Option<Deadline>,
    ) -> Result<(), Failure> {
        let probe = self.question(context.surroundings)?;
        self.state = State::Asking(probe, deadline);
        self.ask(context)
    }

    pub(super) fn probe(
        &self,
        surroundings: &Surroundings,
        since: Instant,
        log: Option<&AgentLog>,
    ) -> Result<Probe, Failure> {
        self.probe_for(&self.companion.ready, surroundings, since, log)
    }

    pub(super) fn probe_for(
        &self,
        ready: &Ready,
        surroundings: &Surroundings,
        since: Instant,
        log: Option<&AgentLog>,
    ) -> Result<Probe, Failure> {
        let surroundings = Surroundings {
            environment: self.environment(surroundings),
            ignored_signals: surroundings.ignored_signals,
        };
        Probe::new(
            ready,
            self.port,
            &self.companion.folder,
            &surroundings,
            since,
            log,
        )
        .map_err(|why| Failure::new(format!("cannot tell whether it is ready: {why}")))
    }

    /// When its process was started; now, if it has none.
    pub(super) fn born_at(&self) -> Instant {
        let now = Instant::now();
        let Some(process) = &self.process else {
            return now;
        };
        let age = ProcessTable::open()
            .and_then(|table| age_of(&table, process.pid))
            .unwrap_or_default();
        age.and_then(|age| now.checked_sub(age)).unwrap_or(now)
    }

    pub(super) fn ask(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        let State::Asking(probe, deadline) = &mut self.state else {
            return Ok(());
        };
        if let Some(process) = &self.process
            && is_dead(process.pidfd.as_fd()).unwrap_or(true)
        {
            // Dead while we asked: as if it had never been there.
            self.process = None;
            if self.companion.on_start != OnStart::Manual {
                self.state = State::going_down(Then::Start);
            }
            return Ok(());
        }
        if probe.step() {
            let patient = deadline.is_some();
            let Some(stranger) = self.stranger_on_port(context.readings)? else {
                self.origin = if patient && matches!(self.companion.job, Job::Managed { .. }) {
                    Origin::Started
                } else {
                    Origin::Reused
                };
                return self.become_ready();
            };
            if let State::Asking(probe, _) = &mut self.state {
                probe.is_not_it(stranger);
            }
        }
        let State::Asking(probe, deadline) = &mut self.state else {
            return Ok(());
        };
        let why = probe.why_not().to_owned();
        match deadline {
            Some(deadline) if !deadline.passed() => return Ok(()),
            None if !probe.is_answered() => return Ok(()),
            _ => {}
        }
        let patient = deadline.is_some();
        let (limit, name) = (self.companion.deadline, &self.companion.name);
        match &self.companion.job {
            Job::Own(_) if self.companion.on_start == OnStart::Manual => {
                let problem = Problem {
                    why: format!(
                        "it is not ready: {why}; it is not started from here (on_start = \"manual\")"
                    ),
                    ..Problem::default()
                };
                self.fail(problem);
                Ok(())
            }
            Job::Own(_) if patient => {
                let note = format!(
                    "{name} was running, but not ready within {} s ({why}): it is replaced",
                    limit.as_secs_f64()
                );
                self.notes.note(note);
                self.process = None;
                self.state = State::going_down(Then::Start);
                Ok(())
            }
            Job::Own(_) => self.give_birth(context),
            Job::Managed { remedy, .. } if patient => {
                let problem = Problem {
                    why: format!(
                        "started, but not ready within {} s: {why}",
                        limit.as_secs_f64()
                    ),
                    last_lines: Vec::new(),
                    help: remedy.clone(),
                };
                self.fail(problem);
                Ok(())
            }
            Job::Managed {
                start: Some(start),
                remedy,
                ..
            } if self.companion.on_start != OnStart::Manual => {
                let (start, remedy) = (start.clone(), remedy.clone());
                match Errand::begin(&start, &self.companion.folder, context.surroundings, limit) {
                    Ok(errand) => self.state = State::Commanding(errand),
                    Err(why) => self.fail(Problem {
                        why,
                        last_lines: Vec::new(),
                        help: remedy,
                    }),
                }
                Ok(())
            }
            Job::Managed { remedy, .. } | Job::Foreign { remedy } => {
                let problem = Problem {
                    why: format!("it is not ready: {why}"),
                    last_lines: Vec::new(),
                    help: remedy.clone(),
                };
                self.fail(problem);
                Ok(())
            }
        }
    }

    /// The command that asks another manager has ended.
    pub(super) fn commanded(
        &mut self,
        ended: Result<Ending, Overdue>,
        last_lines: Vec<String>,
        context: &Context<'_>,
    ) -> Result<(), Failure> {
        let Job::Managed { start, remedy, .. } = &self.companion.job else {
            return Ok(());
        };
        let command = start
            .as_ref()
            .map_or_else(String::new, |start| start.words.join(" "));
        let why = match ended {
            Ok(Ending::Exited(0)) => {
                let left = self.companion.deadline.saturating_sub(self.begun.elapsed());
                return self.ask_first(context, Some(Deadline::after(left)));
            }
            Ok(ending) => format!("cannot start it with `{command}`: {ending}"),
            Err(overdue) => format!("cannot start it with `{command}`: {overdue}"),
        };
        let problem = Problem {
            why,
            last_lines,
            help: remedy.clone(),
        };
        self.fail(problem);
        Ok(())
    }

    /// Nothing of it runs: cleans, chooses the port, and starts it.
    pub(super) fn give_birth(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        if !self.choose_port(context)? {
            return Ok(());
        }
        for folder in &self.companion.clean_folders {
            cleaning::remove(folder, context.places).map_err(|why| {
                Failure::new(format!(
                    "cannot remove the folder {}: {why}",
                    folder.display()
                ))
            })?;
        }
        let scene = Scene::open(&self.settings)?;
        clear_pid_file(&scene, &mut self.notes)?;
        self.forget_ready();
        let mut log = open_log(&self.companion.log)?;
        if self.companion.clean_log {
            rustix::fs::ftruncate(log.output(), 0)
                .map_err(|errno| cannot("empty the log", log.path(), &io::Error::from(errno)))?;
        } else if let Err(error) = log.keep_previous(self.settings.keep_log) {
            self.notes.log_not_kept(log.path(), &error);
        }
        let Some(command) = self.companion.command(self.port) else {
            return Ok(());
        };
        let mark = new_mark(&self.settings)?;
        let environment = self.environment(context.surroundings);
        let arguments: Vec<OsString> = command.words.iter().map(OsString::from).collect();
        let probe = self.probe(context.surroundings, Instant::now(), Some(&log))?;
        let newborn = give_birth(&BirthPlan {
            interpreter: &command.program,
            arguments: &arguments,
            environment: &environment,
            mark: Some(&mark),
            folder: &self.companion.folder,
            pid_file: Some(&self.settings.pid_file),
            log: log.output(),
            ignored_signals: context.surroundings.ignored_signals,
            bond: Bond::None,
        })
        .map_err(|error| {
            forget_the_dead(&scene);
            Failure::new(format!(
                "cannot start {}: {error}",
                command.program.display()
            ))
        })?;
        let mark = mark.born_as(newborn.pid);
        self.changed = Instant::now();
        self.origin = Origin::Started;
        self.process = Some(Process {
            pid: newborn.pid,
            pidfd: newborn.pidfd,
            newborn: true,
            mark: Some(mark),
        });
        self.state = State::Starting {
            probe,
            deadline: Deadline::after(self.companion.deadline),
            log,
        };
        Ok(())
    }

    /// The first port that nobody listens on. `false`: none, and it has failed.
    fn choose_port(&mut self, context: &Context<'_>) -> Result<bool, Failure> {
        let candidates: Vec<u16> = if self.companion.ports.is_empty() {
            self.companion.first_port().into_iter().collect()
        } else {
            self.companion.ports.clone()
        };
        if candidates.is_empty() {
            return Ok(true);
        }
        let mut taken = Vec::new();
        for &port in &candidates {
            if let Some((_, other)) = context.taken.iter().find(|(taken, _)| *taken == port) {
                taken.push(format!("port {port} is for {other}"));
                continue;
            }
            let listening = listeners(port)
                .map_err(|error| cannot("read", Path::new("/proc/net/tcp"), &error))?;
            if listening.is_empty() {
                if let Some(note) = taken.first() {
                    self.notes.note(format!(
                        "{}: {note}: it gets port {port}",
                        self.companion.name
                    ));
                }
                self.port = Some(port);
                return Ok(true);
            }
            let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
            taken.push(format!(
                "port {port} is taken by {}",
                name_holders(&table, &listening)
            ));
        }
        let problem = Problem {
            why: format!("{}; a stranger is never stopped", taken.join("; ")),
            last_lines: Vec::new(),
            help: Some("stop that process, or give this part another port".to_owned()),
        };
        self.fail(problem);
        Ok(false)
    }

    /// Born: is it ready, is it dead?
    pub(super) fn watch_birth(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        if let Some(ending) = self.has_died() {
            if self.adopt_heir(ending)? {
                return Ok(());
            }
            self.problem = Some(Problem {
                why: format!("it died before it was ready: {ending}"),
                last_lines: self.last_lines(),
                help: Some(format!("see {}", self.companion.log.display())),
            });
            self.state = State::going_down(Then::Fail);
            return Ok(());
        }
        let State::Starting { probe, .. } = &mut self.state else {
            return Ok(());
        };
        if probe.step() {
            let Some(stranger) = self.stranger_on_port(context.readings)? else {
                return self.become_ready();
            };
            if let State::Starting { probe, .. } = &mut self.state {
                probe.is_not_it(stranger);
            }
        }
        let State::Starting {
            probe, deadline, ..
        } = &mut self.state
        else {
            return Ok(());
        };
        if deadline.passed() {
            let why = format!(
                "not ready within {} s: {}",
                self.companion.deadline.as_secs_f64(),
                probe.why_not()
            );
            self.problem = Some(Problem {
                why,
                last_lines: self.last_lines(),
                help: Some(format!("see {}", self.companion.log.display())),
            });
            self.state = State::going_down(Then::Fail);
        }
        Ok(())
    }

    /// How the watched process has ended, if it has; nobody can tell if it was
    /// not our child.
    fn has_died(&self) -> Option<Ending> {
        let process = self.process.as_ref()?;
        if !is_dead(process.pidfd.as_fd()).unwrap_or(true) {
            return None;
        }
        if !process.newborn {
            return Some(Ending::Unknown);
        }
        Some(process.pidfd.try_clone().map_or(Ending::Unknown, |pidfd| {
            Newborn {
                pid: process.pid,
                pidfd,
            }
            .reap()
        }))
    }

    /// The process has put itself into the background: the oldest that was
    /// born of it takes its place.
    fn adopt_heir(&mut self, ending: Ending) -> Result<bool, Failure> {
        let mark = self.process.as_ref().and_then(|gone| gone.mark.clone());
        let Some(mark) = mark.filter(|_| matches!(ending, Ending::Exited(0) | Ending::Unknown))
        else {
            return Ok(false);
        };
        let scene = Scene::open(&self.settings)?;
        let kin: Kin =
            scene.gather(None, KinOf::Birth(*mark.birth()), &mut Strangers::default())?;
        let heir = kin
            .relatives
            .iter()
            .map(|relative| relative.identity)
            .min_by_key(|identity| (identity.start, identity.pid));
        let Some(heir) = heir else {
            return Ok(false);
        };
        let Ok(pidfd) = open_pidfd(heir.pid) else {
            return Ok(false);
        };
        scene
            .pid_file
            .adopt(heir.pid)
            .map_err(|error| cannot("write the PID file", scene.pid_file.path(), &error))?;
        self.process = Some(Process {
            pid: heir.pid,
            pidfd,
            newborn: false,
            mark: Some(mark),
        });
        if matches!(self.state, State::Ready) {
            self.remember_ready();
        }
        Ok(true)
    }

    fn last_lines(&self) -> Vec<String> {
        match &self.state {
            State::Starting { log, .. } => log.last_lines(LAST_LINES).unwrap_or_default(),
            _ => AgentLog::open(&self.companion.log)
                .ok()
                .and_then(|log| log.last_lines(LAST_LINES).ok())
                .unwrap_or_default(),
        }
    }

    fn become_ready(&mut self) -> Result<(), Failure> {
        if let Some(process) = self.process.as_ref().filter(|process| !process.newborn) {
            let scene = Scene::open(&self.settings)?;
            if scene.pid_file.number().ok().flatten() != Some(process.pid) {
                scene
                    .pid_file
                    .adopt(process.pid)
                    .map_err(|error| cannot("write the PID file", scene.pid_file.path(), &error))?;
            }
        } else if self.process.is_none()
            && matches!(self.companion.job, Job::Own(_))
            && let Some(port) = self.companion.first_port()
        {
            let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
            let holder = name_holders(&table, &listeners(port).unwrap_or_default());
            self.notes.note(format!(
                "{} is served by {holder}, which was not started from here: it is left alone",
                self.companion.name
            ));
        }
        self.took = Some(self.begun.elapsed());
        self.state = State::Ready;
        self.remember_ready();
        Ok(())
    }

    /// Ready: it must stay so until the start is over. A daemon's first process
    /// may have waited only for that before it went.
    pub(super) fn watch(&mut self) -> Result<(), Failure> {
        if let Some(ending) = self.has_died()
            && !self.adopt_heir(ending)?
        {
            self.problem = Some(Problem {
                why: format!("it died after it was ready: {ending}"),
                last_lines: self.last_lines(),
                help: Some(format!("see {}", self.companion.log.display())),
            });
            self.state = State::going_down(Then::Fail);
        }
        Ok(())
    }

    fn environment(&self, surroundings: &Surroundings) -> Vec<(OsString, OsString)> {
        let mut environment: BTreeMap<OsString, OsString> =
            surroundings.environment.iter().cloned().collect();
        for (name, value) in &self.companion.env {
            environment.insert(name.into(), put_in(value, self.port).into());
        }
        environment.into_iter().collect()
    }
}

fn open_log(path: &Path) -> Result<AgentLog, Failure> {
    AgentLog::open(path).map_err(|error| match error {
        LogError::Odd(oddity) => odd("log", path, oddity),
        LogError::Io(error) => cannot("write the log", path, &error),
    })
}
