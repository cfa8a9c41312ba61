//! What two parts must not share, and what nobody may empty or remove: logs,
//! ports, and the files that a part is made of.

use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::{AGENT, CommandLine, Companion, Demand, Job, PORT, Plan, Ready, Resolver};
use crate::cleaning::{self, Places};
use crate::config::{CompanionTable, PortValue};
use crate::failure::Failure;
use crate::http::HttpUrl;
use crate::settings::{EnvFile, Settings};
use crate::tracking_file::is_same;

/// A file that somebody needs, and what it is, in words.
struct Needed(PathBuf, String);

impl Plan {
    /// What no cleaning may remove.
    #[must_use]
    pub fn places(&self, settings: &Settings) -> Places {
        let folders = self
            .companions
            .iter()
            .map(|companion| companion.folder.clone())
            .chain(self.steps.iter().map(|step| step.folder.clone()));
        let logs = self
            .companions
            .iter()
            .map(|companion| companion.log.clone());
        Places::of(
            [
                settings.project_dir.clone(),
                self.runtime.clone(),
                settings.log_file.clone(),
            ]
            .into_iter()
            .chain(folders)
            .chain(logs)
            .chain(
                self.needed(settings)
                    .into_iter()
                    .map(|Needed(path, _)| path),
            ),
        )
    }

    /// The files that are read or executed, and those that track the agent.
    fn needed(&self, settings: &Settings) -> Vec<Needed> {
        let mut needed = vec![
            Needed(self.file.clone(), "the configuration".to_owned()),
            Needed(
                settings.project_dir.join(&settings.script),
                "the agent's script".to_owned(),
            ),
            Needed(settings.pid_file.clone(), "the PID file".to_owned()),
            Needed(settings.lock_file.clone(), "the startup lock".to_owned()),
        ];
        if let Ok(interpreter) = settings.interpreter() {
            needed.push(Needed(interpreter.path, "the agent's Python".to_owned()));
        }
        let env_files = match &settings.env_file {
            EnvFile::Configured(files) => files.clone(),
            EnvFile::Default(file) => vec![file.clone()],
        };
        needed.extend(
            env_files
                .into_iter()
                .map(|file| Needed(file, "an env file".to_owned())),
        );
        let mut of = |owner: &str, command: &CommandLine, folder: &Path| {
            needed.push(Needed(
                command.program.clone(),
                format!("a program of {owner}"),
            ));
            // What an interpreter reads.
            let script = command
                .words
                .iter()
                .skip(1)
                .find(|word| !word.starts_with('-'))
                .map(|word| folder.join(word))
                .filter(|path| path.is_file());
            if let Some(script) = script {
                needed.push(Needed(script, format!("a program of {owner}")));
            }
        };
        for companion in &self.companions {
            let (name, folder) = (&companion.name, &companion.folder);
            match &companion.job {
                Job::Own(command) => of(name, command, folder),
                Job::Managed { check, start, .. } => {
                    of(name, check, folder);
                    if let Some(start) = start {
                        of(name, start, folder);
                    }
                }
                Job::Foreign { .. } => {}
            }
            if let Ready::Command(command) = &companion.ready {
                of(name, command, folder);
            }
        }
        for step in &self.steps {
            of(
                &format!("the step {}", step.name),
                &step.command,
                &step.folder,
            );
        }
        needed
    }
}

impl Resolver<'_> {
    /// Nothing may be removed that anybody needs.
    pub(super) fn check_cleaning(&self, plan: &Plan) -> Result<(), Failure> {
        let places = plan.places(self.settings);
        let tables = &self.config.tables().companions;
        for (table, companion) in tables.iter().zip(&plan.companions) {
            let Some(clean) = &table.clean else { continue };
            let folders = &clean.get_ref().folders;
            for (folder, path) in folders.iter().zip(&companion.clean_folders) {
                cleaning::may_remove(path, &places).map_err(|why| {
                    self.wrong(
                        folder,
                        &format!("will not remove {}: {why}", path.display()),
                    )
                    .help("name a folder of its own that only this companion fills")
                })?;
            }
        }
        Ok(())
    }

    /// A log is emptied and written: it is nothing else, and one part's alone.
    pub(super) fn check_logs(&self, plan: &Plan) -> Result<(), Failure> {
        if self.demand == Demand::Stop {
            return Ok(());
        }
        let needed = plan.needed(self.settings);
        let clash = |log: &Path, others: &[Needed]| {
            // Anybody may have /dev/null.
            if fs::metadata(log).is_ok_and(|metadata| !metadata.is_file()) {
                return None;
            }
            others
                .iter()
                .find(|Needed(path, _)| is_one_file(log, path))
                .map(|Needed(_, what)| format!("the log {} is also {what}", log.display()))
        };
        let help = "name a file that nobody else uses";
        let agents = &self.settings.log_file;
        if let Some(why) = clash(agents, &needed) {
            return Err(match &self.config.tables().agent.log {
                Some(log) => self.wrong(log, &why),
                None => Failure::new(why),
            }
            .help(help));
        }
        let mut logs = vec![Needed(agents.clone(), format!("the log of the {AGENT}"))];
        let tables = &self.config.tables().companions;
        for (table, companion) in tables.iter().zip(&plan.companions) {
            if !matches!(companion.job, Job::Own(_)) {
                continue;
            }
            let why = clash(&companion.log, &needed).or_else(|| clash(&companion.log, &logs));
            if let Some(why) = why {
                let place = table.log.as_ref().unwrap_or(&table.name);
                return Err(self.wrong(place, &why).help(help));
            }
            logs.push(Needed(
                companion.log.clone(),
                format!("the log of {}", companion.name),
            ));
        }
        Ok(())
    }

    /// A part that is told ready by a port that it need not have would be ready by
    /// a stranger; and two parts cannot have one port.
    pub(super) fn check_ports(&self, plan: &Plan) -> Result<(), Failure> {
        if self.demand == Demand::Stop {
            return Ok(());
        }
        let tables = &self.config.tables().companions;
        let mut fixed: Vec<(u16, &Companion)> = Vec::new();
        for (table, companion) in tables.iter().zip(&plan.companions) {
            if !companion.ports.is_empty() {
                self.check_ready_port(table, companion)?;
            }
            let Some(port) = companion.fixed_port() else {
                continue;
            };
            if let Some((_, other)) = fixed.iter().find(|(taken, _)| *taken == port) {
                return Err(self
                    .wrong(
                        &table.name,
                        &format!(
                            "\"{}\" has port {port}, and so has \"{}\"",
                            companion.name, other.name
                        ),
                    )
                    .help("give one of them another port"));
            }
            fixed.push((port, companion));
        }
        Ok(())
    }

    /// Beside `ports`, readiness is told by the port that was chosen.
    fn check_ready_port(
        &self,
        table: &CompanionTable,
        companion: &Companion,
    ) -> Result<(), Failure> {
        let Some(ready) = table.ready.as_ref().map(Spanned::get_ref) else {
            return Ok(());
        };
        let (port, place) = match (&ready.port, &ready.http, &companion.ready) {
            (Some(given), ..) => match given.get_ref() {
                PortValue::Number(port) => (*port, given.span()),
                PortValue::Chosen => return Ok(()),
            },
            (_, Some(given), Ready::Http { url, .. }) if !url.contains(PORT) => {
                match HttpUrl::parse(url) {
                    Ok(url) if url.is_local() => (url.port(), given.span()),
                    _ => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        if companion.ports == [port] {
            return Ok(());
        }
        Err(self
            .config
            .wrong(
                place,
                &format!(
                    "ready asks port {port}, but \"{}\" may get another of its ports",
                    companion.name
                ),
            )
            .help("write {port} for the one that it gets"))
    }
}

impl Companion {
    /// The one port that its process can have, if it has one and no choice. What
    /// others run may be looked at by several.
    #[must_use]
    pub fn fixed_port(&self) -> Option<u16> {
        if self.ports.len() > 1 || !matches!(self.job, Job::Own(_)) {
            None
        } else {
            self.first_port()
        }
    }
}

/// As `is_same`; two that are not there yet may be called by different names.
fn is_one_file(log: &Path, other: &Path) -> bool {
    let place = |path: &Path| {
        let folder = fs::canonicalize(path.parent()?).ok()?;
        Some(folder.join(path.file_name()?))
    };
    is_same(log, other) || place(log).is_some_and(|log| place(other) == Some(log))
}
