//! The voice system as data: what `voice-system.toml` says, resolved against
//! the project folder and the environment, and checked for sense.

mod clashes;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex_lite::Regex;
use toml::Spanned;

use crate::config::{
    CompanionTable, Config, OnFailure, OnStart, PortValue, ReadyTable, StepTable, When, closest,
};
use crate::failure::Failure;
use crate::http::HttpUrl;
use crate::readiness;
use crate::settings::{EnvFile, Settings};

/// How the agent is called in `needs`.
pub const AGENT: &str = "agent";

const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
const DEFAULT_GRACE: Duration = Duration::from_secs(5);
const DEFAULT_ALIVE: Duration = Duration::from_millis(500);
const MOST_SECONDS: f64 = 3600.0;
const PORT: &str = "{port}";

/// Everything that the configuration says beside the agent's settings.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The file that it comes from.
    pub file: PathBuf,
    /// Where the companions' PID files, locks and default logs are.
    pub runtime: PathBuf,
    /// In the order of the file.
    pub companions: Vec<Companion>,
    /// Indices of what the agent waits for.
    pub agent_needs: Vec<usize>,
    /// In the order of the file.
    pub steps: Vec<Step>,
}

/// What a part waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The agent.
    Agent,
    /// A companion, by its index.
    Companion(usize),
}

/// One part of the system beside the agent.
#[derive(Debug, Clone)]
pub struct Companion {
    /// Its name, alone of its kind.
    pub name: String,
    /// Who runs it, and how.
    pub job: Job,
    /// How to tell that it is ready.
    pub ready: Ready,
    /// How long it may take.
    pub deadline: Duration,
    /// Between TERM and KILL.
    pub grace: Duration,
    /// What a start does with it.
    pub on_start: OnStart,
    /// What its failure means.
    pub on_failure: OnFailure,
    /// Does a restart restart it?
    pub restart: bool,
    /// What it waits for.
    pub needs: Vec<Need>,
    /// Folders to remove before a start.
    pub clean_folders: Vec<PathBuf>,
    /// Empty the log instead of keeping it.
    pub clean_log: bool,
    /// Ports to choose from.
    pub ports: Vec<u16>,
    /// For the summary.
    pub url: Option<String>,
    /// Its working folder.
    pub folder: PathBuf,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// Its output.
    pub log: PathBuf,
}

/// Who runs a companion.
#[derive(Debug, Clone)]
pub enum Job {
    /// We do: a process of our own.
    Own(CommandLine),
    /// Another manager does, by a pair of commands.
    Managed {
        /// Succeeds if it is ready.
        check: CommandLine,
        /// Asks the manager to start it.
        start: Option<CommandLine>,
        /// What a person can do if that fails.
        remedy: Option<String>,
    },
    /// Somebody does; we only look.
    Foreign {
        /// What a person can do if it is not ready.
        remedy: Option<String>,
    },
}

/// A program and its arguments, `{port}` not put in yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The program's file.
    pub program: PathBuf,
    /// As written: its own name first.
    pub words: Vec<String>,
}

/// How to tell that a part is ready.
#[derive(Debug, Clone)]
pub enum Ready {
    /// Somebody accepts connections there.
    Port(Option<u16>),
    /// A GET is answered with this status.
    Http {
        /// `{port}` not put in yet.
        url: String,
        /// The status.
        status: u16,
    },
    /// Its log has a line like this.
    Log(Regex),
    /// A command succeeds.
    Command(CommandLine),
    /// It has lived for so long.
    Alive(Duration),
}

/// A command that is run once, at a named moment.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// When.
    pub when: When,
    /// What.
    pub command: CommandLine,
    /// Where.
    pub folder: PathBuf,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// What its failure means.
    pub on_failure: OnFailure,
    /// How long it may take.
    pub deadline: Duration,
}

impl Companion {
    /// The port to choose first, if it has one.
    #[must_use]
    pub fn first_port(&self) -> Option<u16> {
        self.ports.first().copied().or_else(|| match &self.ready {
            Ready::Port(port) => *port,
            // Another machine's ports are not ours to look at.
            Ready::Http { url, .. } => HttpUrl::parse(url)
                .ok()
                .filter(HttpUrl::is_local)
                .map(|url| url.port()),
            _ => None,
        })
    }

    /// Its command line with this port put in; `None` if it is not ours to run.
    #[must_use]
    pub fn command(&self, port: Option<u16>) -> Option<CommandLine> {
        match &self.job {
            Job::Own(command) => Some(command.at(port)),
            _ => None,
        }
    }
}

impl CommandLine {
    /// With `{port}` put in.
    #[must_use]
    pub fn at(&self, port: Option<u16>) -> Self {
        Self {
            program: self.program.clone(),
            words: self.words.iter().map(|word| put_in(word, port)).collect(),
        }
    }
}

/// `text` with `{port}` put in.
#[must_use]
pub fn put_in(text: &str, port: Option<u16>) -> String {
    match port {
        Some(port) => text.replace(PORT, &port.to_string()),
        None => text.to_owned(),
    }
}

impl Plan {
    /// Resolves the configuration that the settings come from.
    ///
    /// # Errors
    /// When something in it makes no sense or is missing; with its place.
    pub fn resolve(config: &Config, settings: &Settings, demand: Demand) -> Result<Self, Failure> {
        Resolver {
            config,
            settings,
            demand,
            runtime: crate::runtime::folder_of(&settings.project_dir),
        }
        .plan()
    }

    /// The order in which everything can be started one by one.
    #[must_use]
    pub fn order(&self) -> Vec<Need> {
        let mut order = Vec::new();
        for part in self.parts() {
            self.visit(part, &mut order);
        }
        order
    }

    /// Every part, the agent among them.
    fn parts(&self) -> impl Iterator<Item = Need> + use<> {
        (0..self.companions.len())
            .map(Need::Companion)
            .chain([Need::Agent])
    }

    /// What this part waits for.
    #[must_use]
    pub fn needs_of(&self, part: Need) -> Vec<Need> {
        match part {
            Need::Agent => self
                .agent_needs
                .iter()
                .copied()
                .map(Need::Companion)
                .collect(),
            Need::Companion(index) => self.companions[index].needs.clone(),
        }
    }

    fn visit(&self, part: Need, order: &mut Vec<Need>) {
        if order.contains(&part) {
            return;
        }
        for need in self.needs_of(part) {
            self.visit(need, order);
        }
        order.push(part);
    }

    /// Its name.
    #[must_use]
    pub fn name_of(&self, part: Need) -> &str {
        match part {
            Need::Agent => AGENT,
            Need::Companion(index) => &self.companions[index].name,
        }
    }

    /// Does `part` wait for the agent, if only through others?
    #[must_use]
    pub fn waits_for_agent(&self, index: usize) -> bool {
        self.before(index).contains(&Need::Agent)
    }

    /// Does the companion `index` wait for the companion `other`, if only through
    /// others?
    #[must_use]
    pub fn waits_for(&self, index: usize, other: usize) -> bool {
        self.before(index).contains(&Need::Companion(other))
    }

    /// Everything that is up before it.
    fn before(&self, index: usize) -> Vec<Need> {
        let mut order = Vec::new();
        self.visit(Need::Companion(index), &mut order);
        order.pop();
        order
    }
}

/// What a plan must be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// A start: everything that it names must be there.
    Start,
    /// A stop or a look: what runs runs, though its program or its folder may
    /// have been removed since.
    Stop,
}

struct Resolver<'a> {
    config: &'a Config,
    settings: &'a Settings,
    demand: Demand,
    runtime: PathBuf,
}

impl Resolver<'_> {
    fn plan(&self) -> Result<Plan, Failure> {
        let tables = self.config.tables();
        self.check_agent()?;
        let mut places: BTreeMap<String, Range<usize>> = BTreeMap::new();
        for name in tables
            .companions
            .iter()
            .map(|table| &table.name)
            .chain(tables.steps.iter().map(|table| &table.name))
        {
            self.check_name(name)?;
            if let Some(first) = places.insert(name.get_ref().clone(), name.span()) {
                let first = self.config.wrong(first, "").to_string();
                return Err(self
                    .wrong(name, &format!("a second part named \"{}\"", name.get_ref()))
                    .help(format!(
                        "the first is at {}; rename one of them",
                        first.trim_end_matches([':', ' '])
                    )));
            }
        }
        let names: Vec<&str> = tables
            .companions
            .iter()
            .map(|table| table.name.get_ref().as_str())
            .collect();
        let companions = tables
            .companions
            .iter()
            .map(|table| self.companion(table, &names))
            .collect::<Result<Vec<_>, _>>()?;
        let agent_needs = tables
            .agent
            .needs
            .iter()
            .map(|need| match self.need(need, &names)? {
                Need::Companion(index) => Ok(index),
                Need::Agent => Err(self
                    .wrong(need, "the agent cannot need itself")
                    .help("take \"agent\" out of its own needs")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let plan = Plan {
            file: self.config.path().to_owned(),
            runtime: self.runtime.clone(),
            companions,
            agent_needs,
            steps: tables
                .steps
                .iter()
                .map(|table| self.step(table))
                .collect::<Result<Vec<_>, _>>()?,
        };
        self.check_cycles(&plan)?;
        self.check_cleaning(&plan)?;
        self.check_logs(&plan)?;
        self.check_ports(&plan)?;
        Ok(plan)
    }

    /// What the agent needs of files, at their places in the file.
    fn check_agent(&self) -> Result<(), Failure> {
        if self.demand == Demand::Stop {
            return Ok(());
        }
        if let (Some(files), EnvFile::Configured(paths)) = (
            &self.config.tables().agent.env_files,
            &self.settings.env_file,
        ) {
            for (file, path) in files.iter().zip(paths) {
                if !path.is_file() {
                    return Err(self
                        .wrong(
                            file,
                            &format!("cannot find the env file {}", path.display()),
                        )
                        .help(
                            "it holds lines NAME=value: LIVEKIT_URL, LIVEKIT_API_KEY, \
                             LIVEKIT_API_SECRET, and the keys of the providers that the agent uses",
                        ));
                }
            }
        }
        Ok(())
    }

    fn wrong<T>(&self, at: &Spanned<T>, message: &str) -> Failure {
        self.config.wrong(at.span(), message)
    }

    fn check_name(&self, name: &Spanned<String>) -> Result<(), Failure> {
        let text = name.get_ref();
        let plain = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if text.is_empty() || text.len() > 64 || text.starts_with('.') || !plain {
            return Err(self
                .wrong(name, &format!("\"{text}\" cannot be a part's name"))
                .help("a name has 1 to 64 letters, digits, - _ . and does not begin with a dot"));
        }
        if text == AGENT {
            return Err(self
                .wrong(name, "\"agent\" is the voice agent's own name")
                .help("describe the agent in the table [agent], and rename this part"));
        }
        Ok(())
    }

    fn need(&self, need: &Spanned<String>, names: &[&str]) -> Result<Need, Failure> {
        let wanted = need.get_ref().as_str();
        if wanted == AGENT {
            return Ok(Need::Agent);
        }
        names
            .iter()
            .position(|&name| name == wanted)
            .map(Need::Companion)
            .ok_or_else(|| {
                let help = match closest(wanted, names.iter().copied().chain([AGENT])) {
                    Some(meant) => format!("did you mean \"{meant}\"?"),
                    None if names.is_empty() => "no companion is described".to_owned(),
                    None => format!("companions: {}", names.join(", ")),
                };
                self.wrong(need, &format!("no companion is named \"{wanted}\""))
                    .help(help)
            })
    }

    fn check_cycles(&self, plan: &Plan) -> Result<(), Failure> {
        let mut done = BTreeSet::new();
        for part in plan.parts() {
            let mut path = Vec::new();
            if let Some(ring) = ring(plan, part, &mut path, &mut done) {
                let names: Vec<&str> = ring.iter().map(|&part| plan.name_of(part)).collect();
                let tables = self.config.tables();
                let needs = match ring[0] {
                    Need::Agent => &tables.agent.needs,
                    Need::Companion(index) => &tables.companions[index].needs,
                };
                let place = needs
                    .iter()
                    .find(|need| need.get_ref() == names[1])
                    .map_or(0..0, Spanned::span);
                return Err(self
                    .config
                    .wrong(
                        place,
                        &format!("a cycle in needs: {}", names.join(" needs ")),
                    )
                    .help("each would wait for the other for ever: take one of these needs out"));
            }
        }
        Ok(())
    }

    fn seconds(
        &self,
        given: Option<&Spanned<f64>>,
        default: Duration,
    ) -> Result<Duration, Failure> {
        let Some(given) = given else {
            return Ok(default);
        };
        if (0.0..=MOST_SECONDS).contains(given.get_ref()) {
            Ok(Duration::from_secs_f64(*given.get_ref()))
        } else {
            Err(self
                .wrong(given, &format!("{} is no span of time", given.get_ref()))
                .help(format!("expected seconds from 0 to {MOST_SECONDS}")))
        }
    }

    /// The environment put in; for a stop, what is not set there stays.
    fn substitute(&self, given: &Spanned<String>) -> Result<String, Failure> {
        match self.config.substitute(given) {
            Err(_) if self.demand == Demand::Stop => Ok(given.get_ref().clone()),
            other => other,
        }
    }

    fn path(&self, given: &Spanned<String>) -> Result<PathBuf, Failure> {
        Ok(self.settings.project_dir.join(self.substitute(given)?))
    }

    fn folder(&self, given: Option<&Spanned<String>>) -> Result<PathBuf, Failure> {
        let Some(given) = given else {
            return Ok(self.settings.project_dir.clone());
        };
        let path = self.path(given)?;
        match fs::canonicalize(&path) {
            Ok(folder) if folder.is_dir() => Ok(folder),
            _ if self.demand == Demand::Stop => Ok(path),
            Ok(_) => Err(self
                .wrong(given, &format!("{} is no folder", path.display()))
                .help("name the working folder")),
            Err(error) => Err(self
                .wrong(
                    given,
                    &format!("cannot use the folder {}: {error}", path.display()),
                )
                .help("make it, or correct the path; relative ones begin in the project folder")),
        }
    }

    fn texts(
        &self,
        env: &BTreeMap<String, Spanned<String>>,
    ) -> Result<Vec<(String, String)>, Failure> {
        env.iter()
            .map(|(name, value)| {
                let text = self.substitute(value)?;
                if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
                    return Err(self
                        .wrong(
                            value,
                            &format!("{name:?} cannot be an environment variable"),
                        )
                        .help("a name has no = in it, and neither name nor value a NUL byte"));
                }
                Ok((name.clone(), text))
            })
            .collect()
    }

    fn command(
        &self,
        words: &[Spanned<String>],
        place: Range<usize>,
        folder: &Path,
    ) -> Result<CommandLine, Failure> {
        let Some(first) = words.first() else {
            return Err(self
                .config
                .wrong(place, "an empty command")
                .help("name a program and its arguments: [\"PROGRAM\", \"ARGUMENT\"]"));
        };
        let words = words
            .iter()
            .map(|word| self.substitute(word))
            .collect::<Result<Vec<_>, _>>()?;
        let program = &words[0];
        let found = if program.contains('/') {
            [folder, &self.settings.project_dir]
                .into_iter()
                .map(|folder| folder.join(program))
                .find(|path| path.exists())
        } else {
            env::var_os("PATH").and_then(|path| {
                env::split_paths(&path)
                    .filter(|folder| folder.is_absolute())
                    .map(|folder| folder.join(program))
                    .find(|path| is_executable(path))
            })
        };
        match found {
            Some(path) if is_executable(&path) => Ok(CommandLine {
                program: path,
                words,
            }),
            _ if self.demand == Demand::Stop => Ok(CommandLine {
                program: folder.join(program),
                words,
            }),
            Some(path) => Err(self
                .wrong(first, &format!("{} is no executable file", path.display()))
                .help(format!("chmod +x {}", path.display()))),
            None if program.contains('/') => Err(self
                .wrong(
                    first,
                    &format!("cannot find the program {}", folder.join(program).display()),
                )
                .help("it is looked for in the part's folder, then in the project folder")),
            None if !program.trim().is_empty() && program.contains(' ') => Err(self
                .wrong(
                    first,
                    &format!("cannot find the program {program:?} in PATH"),
                )
                .help("a command is a list: [\"PROGRAM\", \"ARGUMENT\"], and no shell reads it")),
            None => Err(self
                .wrong(
                    first,
                    &format!("cannot find the program {program:?} in PATH"),
                )
                .help("install it, write its path, or take this part out")),
        }
    }

    fn companion(&self, table: &CompanionTable, names: &[&str]) -> Result<Companion, Failure> {
        let name = table.name.get_ref();
        let folder = self.folder(table.folder.as_ref())?;
        let remedy = table.remedy.as_ref().map(|remedy| remedy.get_ref().clone());
        let on_start = table
            .on_start
            .as_ref()
            .map_or(OnStart::Reuse, |on_start| *on_start.get_ref());
        let job = self.job(table, &folder, on_start, remedy)?;
        let own = matches!(job, Job::Own(_));
        if !own {
            let only_own = [
                (table.clean.as_ref().map(Spanned::span), "clean"),
                (table.log.as_ref().map(Spanned::span), "log"),
                (table.ports.as_ref().map(Spanned::span), "ports"),
                (
                    table
                        .restart
                        .as_ref()
                        .filter(|restart| *restart.get_ref())
                        .map(Spanned::span),
                    "restart = true",
                ),
            ];
            for (place, key) in only_own {
                if let Some(place) = place {
                    return Err(self
                        .config
                        .wrong(
                            place,
                            &format!("\"{name}\" is not run by us, {key} cannot be used"),
                        )
                        .help(format!("take {key} out, or give it a command of its own")));
                }
            }
        }
        let ports: Vec<u16> = table
            .ports
            .iter()
            .flat_map(Spanned::get_ref)
            .map(|port| *port.get_ref())
            .collect();
        if let Some(given) = &table.ports
            && (ports.is_empty() || ports.contains(&0))
        {
            return Err(self
                .wrong(given, "no usable port")
                .help("list ports from 1 to 65535, the preferred one first"));
        }
        let ready = self.ready(table, &folder, &job)?;
        let (clean_folders, clean_log) = self.clean(table)?;
        let log = match &table.log {
            Some(log) => {
                let path = self.path(log)?;
                if self.demand == Demand::Start
                    && path.parent().is_none_or(|parent| !parent.is_dir())
                {
                    return Err(self
                        .wrong(
                            log,
                            &format!("the folder of the log {} is missing", path.display()),
                        )
                        .help("make it, or name another log"));
                }
                path
            }
            None => self.runtime.join(format!("{name}.log")),
        };
        let companion = Companion {
            name: name.clone(),
            deadline: self.seconds(table.deadline_seconds.as_ref(), DEFAULT_DEADLINE)?,
            grace: self.seconds(table.grace_seconds.as_ref(), DEFAULT_GRACE)?,
            on_start,
            on_failure: table.on_failure.unwrap_or(OnFailure::Stop),
            restart: table
                .restart
                .as_ref()
                .map_or(on_start == OnStart::Fresh, |restart| *restart.get_ref()),
            needs: table
                .needs
                .iter()
                .map(|need| self.need(need, names))
                .collect::<Result<_, _>>()?,
            clean_folders,
            clean_log,
            ports,
            url: table
                .url
                .as_ref()
                .map(|url| self.substitute(url))
                .transpose()?,
            env: self.texts(&table.env)?,
            job,
            ready,
            folder,
            log,
        };
        self.check_port_use(table, &companion)?;
        Ok(companion)
    }

    fn job(
        &self,
        table: &CompanionTable,
        folder: &Path,
        on_start: OnStart,
        remedy: Option<String>,
    ) -> Result<Job, Failure> {
        let name = &table.name;
        match (&table.command, &table.check, &table.start) {
            (Some(command), None, None) => {
                Ok(Job::Own(self.command(command, name.span(), folder)?))
            }
            (None, Some(check), start) => {
                if table.ready.is_some() {
                    return Err(self
                        .wrong(name, "both check and ready are given")
                        .help("check is the readiness of what another manager owns: take ready out"));
                }
                if on_start == OnStart::Fresh {
                    return Err(self
                        .wrong(name, "what another manager owns cannot be started fresh")
                        .help("take on_start out, or give it a command of its own"));
                }
                if start.is_none() && on_start != OnStart::Manual {
                    return Err(self
                        .wrong(name, "check is given without start")
                        .help("add start = [...], or on_start = \"manual\" to only look"));
                }
                Ok(Job::Managed {
                    check: self.command(check, name.span(), folder)?,
                    start: start
                        .as_ref()
                        .map(|start| self.command(start, name.span(), folder))
                        .transpose()?,
                    remedy,
                })
            }
            (Some(_), ..) => Err(self
                .wrong(name, "command is given together with check or start")
                .help("command is for a process of our own, check and start are for what another manager owns")),
            (None, None, Some(_)) => Err(self
                .wrong(name, "start is given without check")
                .help("add check = [...], a command that succeeds when it is ready")),
            (None, None, None) if on_start == OnStart::Manual && table.ready.is_some() => {
                Ok(Job::Foreign { remedy })
            }
            (None, None, None) => Err(self
                .wrong(name, &format!("\"{}\" has no command", name.get_ref()))
                .help("add command = [...]; or check = [...] and start = [...]; or on_start = \"manual\" and ready = {...}")),
        }
    }

    fn ready(&self, table: &CompanionTable, folder: &Path, job: &Job) -> Result<Ready, Failure> {
        let Some(given) = &table.ready else {
            return Ok(match job {
                Job::Managed { check, .. } => Ready::Command(check.clone()),
                _ => Ready::Alive(DEFAULT_ALIVE),
            });
        };
        let ReadyTable {
            port,
            http,
            status,
            log,
            command,
            alive_seconds,
        } = given.get_ref();
        let count = usize::from(port.is_some())
            + usize::from(http.is_some())
            + usize::from(log.is_some())
            + usize::from(command.is_some())
            + usize::from(alive_seconds.is_some());
        if count != 1 {
            return Err(self
                .wrong(
                    given,
                    "ready needs exactly one of port, http, log, command, alive_seconds",
                )
                .help("for example: ready = { port = 7880 }"));
        }
        if let Some(status) = status
            && http.is_none()
        {
            return Err(self
                .wrong(status, "status is for http only")
                .help("take status out"));
        }
        if matches!(job, Job::Foreign { .. }) && (log.is_some() || alive_seconds.is_some()) {
            return Err(self
                .wrong(
                    given,
                    "what is not run by us is told ready by port, http or command only",
                )
                .help("for example: ready = { port = 5432 }"));
        }
        if let Some(port) = port {
            return Ok(Ready::Port(match port.get_ref() {
                PortValue::Number(port) => Some(*port),
                PortValue::Chosen if table.ports.is_some() => None,
                PortValue::Chosen => {
                    return Err(self
                        .wrong(port, "{port} is used without ports")
                        .help("add ports = [8888, 8899], the preferred one first"));
                }
            }));
        }
        if let Some(http) = http {
            let url = self.substitute(http)?;
            HttpUrl::parse(&put_in(&url, Some(1))).map_err(|why| {
                self.wrong(http, &format!("cannot probe {url}: {why}"))
                    .help("for example: ready = { http = \"http://localhost:8283/\" }; for https use command = [\"curl\", …]")
            })?;
            let expected = status.as_ref().map_or(200, |status| *status.get_ref());
            if let Some(status) = status
                && !(100..600).contains(&expected)
            {
                return Err(self
                    .wrong(status, &format!("{expected} is no HTTP status"))
                    .help("expected 100 to 599"));
            }
            return Ok(Ready::Http {
                url,
                status: expected,
            });
        }
        if let Some(log) = log {
            return readiness::compile(log.get_ref())
                .map(Ready::Log)
                .map_err(|error| {
                    self.wrong(log, &format!("no regular expression: {error}"))
                        .help("escape what is meant literally: \\( \\[ \\.")
                });
        }
        if let Some(command) = command {
            return Ok(Ready::Command(self.command(
                command,
                given.span(),
                folder,
            )?));
        }
        Ok(Ready::Alive(
            self.seconds(alive_seconds.as_ref(), DEFAULT_ALIVE)?,
        ))
    }

    fn clean(&self, table: &CompanionTable) -> Result<(Vec<PathBuf>, bool), Failure> {
        let Some(clean) = table
            .clean
            .as_ref()
            .filter(|_| self.demand == Demand::Start)
        else {
            return Ok((Vec::new(), false));
        };
        let folders = clean
            .get_ref()
            .folders
            .iter()
            .map(|folder| self.path(folder))
            .collect::<Result<Vec<_>, Failure>>()?;
        Ok((folders, clean.get_ref().log))
    }

    /// `{port}` anywhere needs a port to put in.
    fn check_port_use(&self, table: &CompanionTable, companion: &Companion) -> Result<(), Failure> {
        if companion.first_port().is_some() {
            return Ok(());
        }
        let ready = table.ready.as_ref().map(Spanned::get_ref);
        let all = table
            .command
            .iter()
            .flatten()
            .chain(table.env.values())
            .chain(&table.url)
            .chain(ready.and_then(|ready| ready.http.as_ref()))
            .chain(
                ready
                    .iter()
                    .flat_map(|ready| ready.command.iter().flatten()),
            );
        for text in all {
            if text.get_ref().contains(PORT) {
                return Err(self
                    .wrong(text, "{port} is used without ports")
                    .help("add ports = [8888, 8899], the preferred one first"));
            }
        }
        Ok(())
    }

    fn step(&self, table: &StepTable) -> Result<Step, Failure> {
        let folder = self.folder(table.folder.as_ref())?;
        Ok(Step {
            name: table.name.get_ref().clone(),
            when: table.when,
            command: self.command(&table.command, table.name.span(), &folder)?,
            env: self.texts(&table.env)?,
            on_failure: table.on_failure.unwrap_or(OnFailure::Warn),
            deadline: self.seconds(table.deadline_seconds.as_ref(), DEFAULT_DEADLINE)?,
            folder,
        })
    }
}

/// The first ring of needs that is met from `part` on, its first name twice.
fn ring(
    plan: &Plan,
    part: Need,
    path: &mut Vec<Need>,
    done: &mut BTreeSet<usize>,
) -> Option<Vec<Need>> {
    if let Some(at) = path.iter().position(|&before| before == part) {
        let mut ring = path[at..].to_vec();
        ring.push(part);
        return Some(ring);
    }
    let number = match part {
        Need::Agent => usize::MAX,
        Need::Companion(index) => index,
    };
    if done.contains(&number) {
        return None;
    }
    path.push(part);
    for need in plan.needs_of(part) {
        if let Some(ring) = ring(plan, need, path, done) {
            return Some(ring);
        }
    }
    path.pop();
    done.insert(number);
    None
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
