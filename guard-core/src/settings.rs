//! Flags > environment > defaults: the one home of every name and default.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use regex_lite::Regex;

use crate::agent::Family;
use crate::config::{self, Config};
use crate::failure::Failure;
use crate::readiness::compile;
use crate::tracking_file::is_same;
use crate::wrapper;

/// What every environment variable of ours begins with.
pub const PREFIX: &str = "VOICE_GUARD_";

const DEFAULT_SCRIPT: &str = "letta_voice_agent.py";
const DEFAULT_MODE: &str = "dev";
const DEFAULT_READY_PATTERN: &str = "registered worker";
const DEFAULT_VERIFY_SECONDS: f64 = 3.0;
const DEFAULT_GRACE_SECONDS: f64 = 10.0;
const DEFAULT_KEEP_LOG_MB: f64 = 20.0;
/// Longer is a slip of the keyboard, and would hold the guard for days.
const MOST_SECONDS: f64 = 3600.0;
/// More is no limit.
const MOST_MEGABYTES: f64 = 1e6;

/// The options that all programs share. None is ever needed.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
#[expect(
    clippy::doc_markdown,
    reason = "the help text shows them, where backticks are noise"
)]
pub struct SettingsOptions {
    /// Project folder [default: the folder of the path the program was called
    /// by, if the agent script is there, else the current folder]
    /// [env: VOICE_GUARD_PROJECT_DIR]
    #[arg(long, value_name = "DIR")]
    pub project_dir: Option<PathBuf>,
    /// Agent script [default: letta_voice_agent.py]
    /// [env: VOICE_GUARD_AGENT_SCRIPT]
    #[arg(long, value_name = "FILE")]
    pub agent_script: Option<PathBuf>,
    /// Agent mode, its first argument [default: dev]
    /// [env: VOICE_GUARD_AGENT_MODE]
    #[arg(long, value_name = "MODE")]
    pub agent_mode: Option<OsString>,
    /// Python interpreter, a path [default: .venv or venv of the project folder
    /// or above, $VIRTUAL_ENV, $CONDA_PREFIX, python3 in PATH]
    /// [env: VOICE_GUARD_PYTHON]
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Env file for the agent [default: .env, if there is one]
    /// [env: VOICE_GUARD_ENV_FILE]
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// PID file [default: /tmp/letta_voice_agent.pid]
    /// [env: VOICE_GUARD_PID_FILE]
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Startup lock file [default: /tmp/letta_voice_agent.lock]
    /// [env: VOICE_GUARD_LOCK_FILE]
    #[arg(long, value_name = "FILE")]
    pub lock_file: Option<PathBuf>,
    /// Agent's log [default: /tmp/voice_agent.log]
    /// [env: VOICE_GUARD_LOG_FILE]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Regular expression of the log line that says the agent is ready
    /// [default: registered worker]
    /// [env: VOICE_GUARD_READY_PATTERN]
    #[arg(long, value_name = "REGEX")]
    pub ready_pattern: Option<OsString>,
    /// Seconds to wait for the readiness line [default: 3]
    /// [env: VOICE_GUARD_VERIFY_SECONDS]
    #[arg(long, value_name = "SECONDS")]
    pub verify_seconds: Option<OsString>,
    /// Seconds between TERM and KILL [default: 10]
    /// [env: VOICE_GUARD_GRACE_SECONDS]
    #[arg(long, value_name = "SECONDS")]
    pub grace_seconds: Option<OsString>,
    /// Megabytes at the end of an earlier log that are kept at a start, 0: none
    /// [default: 20]
    /// [env: VOICE_GUARD_KEEP_LOG_MB]
    #[arg(long, value_name = "MEGABYTES")]
    pub keep_log_mb: Option<OsString>,
    /// Description of the voice system [default: voice-system.toml in the
    /// project folder, $XDG_CONFIG_HOME/voice-guard or /etc/voice-guard]
    /// [env: VOICE_GUARD_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Where a setting comes from, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Flag,
    Environment,
    Config,
}

struct Given {
    value: OsString,
    source: Source,
    name: &'static str,
    /// File, line, column and key, if it comes from the configuration.
    place: String,
}

impl Given {
    fn find(flag: Option<&OsStr>, name: &'static str) -> Option<Self> {
        if let Some(value) = flag {
            return Some(Self {
                value: value.to_owned(),
                source: Source::Flag,
                name,
                place: String::new(),
            });
        }
        // An empty variable is how a shell says "not set".
        let value = env::var_os(format!("{PREFIX}{name}")).filter(|value| !value.is_empty())?;
        Some(Self {
            value,
            source: Source::Environment,
            name,
            place: String::new(),
        })
    }

    /// As [`Self::find`], or as the configuration says.
    fn find_or(
        flag: Option<&OsStr>,
        name: &'static str,
        config: Option<&Config>,
    ) -> Result<Option<Self>, Failure> {
        if let Some(given) = Self::find(flag, name) {
            return Ok(Some(given));
        }
        let Some(config) = config else {
            return Ok(None);
        };
        Ok(config.agent(name)?.map(|value| Self {
            value: value.value,
            source: Source::Config,
            name,
            place: value.shown,
        }))
    }

    fn shown_name(&self) -> String {
        match self.source {
            Source::Environment => format!("{PREFIX}{}", self.name),
            Source::Flag => format!("--{}", self.name.to_ascii_lowercase().replace('_', "-")),
            Source::Config => self.place.clone(),
        }
    }

    fn wrong(&self, why: &str) -> Failure {
        let value = self.value.to_string_lossy();
        Failure::new(format!("{} is \"{value}\": {why}", self.shown_name()))
            .help(format!("correct {} or leave it out", self.shown_name()))
    }
}

/// The env file of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvFile {
    /// Named by the user: they must exist; later ones win.
    Configured(Vec<PathBuf>),
    /// `.env` of the project folder, if it exists.
    Default(PathBuf),
}

/// Everything that a program needs to know, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Physical path of the project folder.
    pub project_dir: PathBuf,
    /// Agent script as it is handed to Python.
    pub script: PathBuf,
    /// The agent's family.
    pub family: Family,
    /// Its first argument.
    pub mode: OsString,
    /// Configured interpreter.
    pub python: Option<PathBuf>,
    /// Env file.
    pub env_file: EnvFile,
    /// PID file.
    pub pid_file: PathBuf,
    /// Startup lock.
    pub lock_file: PathBuf,
    /// Guard; never a setting, since everybody must use the same.
    pub guard_file: PathBuf,
    /// Agent's log.
    pub log_file: PathBuf,
    /// Readiness line.
    pub ready_pattern: Regex,
    /// Verification window.
    pub verify: Duration,
    /// Grace period.
    pub grace: Duration,
    /// How much of each earlier log is kept, in bytes.
    pub keep_log: u64,
    /// How the caller names our programs, for advice.
    pub naming: Naming,
    /// The description of the voice system, if there is one.
    pub config: Option<Rc<Config>>,
}

/// By which names the user calls the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// By links in a folder, with the scripts' names.
    Links(PathBuf),
    /// By the programs' own names.
    Programs,
}

impl Naming {
    fn of(argv0: &Path) -> Self {
        let is_link = argv0.extension().is_some_and(|extension| extension == "sh");
        match argv0.parent() {
            Some(folder) if is_link && !folder.as_os_str().is_empty() => {
                Self::Links(folder.to_owned())
            }
            _ => Self::Programs,
        }
    }

    /// The command line for `program`, as this user would type it.
    #[must_use]
    pub fn command(&self, program: &str) -> String {
        match self {
            Self::Links(folder) => {
                // Somebody who has linked some of them has the others by name.
                let script = folder.join(format!("{}.sh", program.replace('-', "_")));
                if script.exists() {
                    script.display().to_string()
                } else {
                    program.to_owned()
                }
            }
            Self::Programs => program.to_owned(),
        }
    }
}

impl Settings {
    /// Resolves flags, environment and defaults. `argv0` is the path by which
    /// the program was called.
    ///
    /// # Errors
    /// When a value cannot be used; the message names where it comes from.
    pub fn resolve(options: &SettingsOptions, argv0: &Path) -> Result<Self, Failure> {
        let first = |flag: &Option<PathBuf>, name| {
            Given::find(flag.as_ref().map(|path| path.as_os_str()), name)
        };
        let script = first(&options.agent_script, "AGENT_SCRIPT")
            .map_or_else(|| PathBuf::from(DEFAULT_SCRIPT), |given| given.value.into());
        let called = called_path(argv0);
        let project_dir = match first(&options.project_dir, "PROJECT_DIR") {
            Some(given) => fs::canonicalize(&given.value)
                .and_then(|folder| {
                    if folder.is_dir() {
                        Ok(folder)
                    } else {
                        Err(io::ErrorKind::NotADirectory.into())
                    }
                })
                .map_err(|error| given.wrong(&error.to_string()))?,
            None => match wrapper::called_as() {
                Some(wrapper) => wrapper::folder_of(&wrapper)?,
                None => default_project_dir(&called, &script)?,
            },
        };

        let named = first(&options.config, "CONFIG").map(|given| project_dir.join(given.value));
        let config = Config::find(named.as_deref(), &project_dir)?;
        let find = |flag: &Option<PathBuf>, name| {
            Given::find_or(
                flag.as_ref().map(|path| path.as_os_str()),
                name,
                config.as_ref(),
            )
        };
        let text =
            |flag: &Option<OsString>, name| Given::find_or(flag.as_deref(), name, config.as_ref());

        let script = find(&options.agent_script, "AGENT_SCRIPT")?;
        if let Some(given) = &script
            && Path::new(&given.value).file_name().is_none()
        {
            return Err(given.wrong("it names no file"));
        }
        let script =
            script.map_or_else(|| PathBuf::from(DEFAULT_SCRIPT), |given| given.value.into());
        let mode = text(&options.agent_mode, "AGENT_MODE")?
            .map_or_else(|| OsString::from(DEFAULT_MODE), |given| given.value);
        let family = Family::of(&script, &mode);

        let path = |given: Option<Given>| given.map(|given| project_dir.join(given.value));
        let python = find(&options.python, "PYTHON")?;
        if let Some(given) = &python
            && !given.value.as_bytes().contains(&b'/')
        {
            return Err(given.wrong(
                "it must be a path such as /usr/bin/python3; it is never looked up in PATH",
            ));
        }
        let env_file = match path(find(&options.env_file, "ENV_FILE")?) {
            Some(path) => EnvFile::Configured(vec![path]),
            None => env_files(config.as_ref(), &project_dir)?,
        };
        let tracking = |extension: &str| in_tmp(&family, extension);
        let log_default = if family.is_original() {
            PathBuf::from("/tmp/voice_agent.log")
        } else {
            tracking("log")
        };
        let pid_file = find(&options.pid_file, "PID_FILE")?;
        let lock_file = find(&options.lock_file, "LOCK_FILE")?;
        let log_file = find(&options.log_file, "LOG_FILE")?;
        let written = [
            shown_or(pid_file.as_ref(), "the PID file"),
            shown_or(lock_file.as_ref(), "the startup lock"),
            shown_or(log_file.as_ref(), "the log"),
        ];
        let settings = Self {
            python: path(python),
            env_file,
            pid_file: path(pid_file).unwrap_or_else(|| tracking("pid")),
            lock_file: path(lock_file).unwrap_or_else(|| tracking("lock")),
            guard_file: guard_of(&family),
            log_file: path(log_file).unwrap_or(log_default),
            ready_pattern: ready_pattern(text(&options.ready_pattern, "READY_PATTERN")?)?,
            verify: seconds(
                text(&options.verify_seconds, "VERIFY_SECONDS")?,
                DEFAULT_VERIFY_SECONDS,
            )?,
            grace: seconds(
                text(&options.grace_seconds, "GRACE_SECONDS")?,
                DEFAULT_GRACE_SECONDS,
            )?,
            keep_log: megabytes(text(&options.keep_log_mb, "KEEP_LOG_MB")?)?,
            naming: Naming::of(argv0),
            config: config.map(Rc::new),
            project_dir,
            script,
            family,
            mode,
        };
        settings.refuse_double_parts(&written)?;
        Ok(settings)
    }

    /// A file cannot be the PID file and the log at once; and what is written,
    /// emptied or removed cannot be what is read.
    fn refuse_double_parts(&self, shown: &[String; 3]) -> Result<(), Failure> {
        let files = [&self.pid_file, &self.lock_file, &self.log_file];
        let env_files = match &self.env_file {
            EnvFile::Configured(files) => files.clone(),
            EnvFile::Default(file) => vec![file.clone()],
        };
        let script = self.project_dir.join(&self.script);
        let config = self.config.as_ref().map(|config| config.path());
        let read: Vec<(&Path, &str)> = [
            (&*self.guard_file, "the guard"),
            (&script, "the agent's script"),
        ]
        .into_iter()
        .chain(env_files.iter().map(|file| (&**file, "an env file")))
        .chain(
            self.python
                .iter()
                .map(|file| (&**file, "the agent's Python")),
        )
        .chain(config.map(|file| (file, "the configuration")))
        .collect();
        for (at, (name, path)) in shown.iter().zip(files).enumerate() {
            let is_read = read.iter().find(|(other, _)| is_same(path, other));
            let is_written = shown[..at]
                .iter()
                .zip(files)
                .find(|(_, other)| path == *other);
            let what = match (is_read, is_written) {
                (Some((_, what)), _) => Some(*what),
                (None, other) => other.map(|(what, _)| what.as_str()),
            };
            if let Some(what) = what {
                return Err(Failure::new(format!(
                    "{name} is {}, which is also {what}",
                    path.display()
                ))
                .help("name a file of its own, or leave it out"));
            }
        }
        Ok(())
    }
}

/// The env files that the configuration names, or the default one.
fn env_files(config: Option<&Config>, project_dir: &Path) -> Result<EnvFile, Failure> {
    let named = config.and_then(|config| {
        let files = config.tables().agent.env_files.as_ref()?;
        Some((config, files))
    });
    match named {
        Some((config, files)) => files
            .iter()
            .map(|file| Ok(project_dir.join(config.substitute(file)?)))
            .collect::<Result<_, _>>()
            .map(EnvFile::Configured),
        None => Ok(EnvFile::Default(project_dir.join(".env"))),
    }
}

fn shown_or(given: Option<&Given>, default: &str) -> String {
    given.map_or_else(|| default.to_owned(), Given::shown_name)
}

fn guard_of(family: &Family) -> PathBuf {
    let mut name = OsString::from("/tmp/.");
    name.push(family.name());
    name.push(".guard");
    name.into()
}

fn in_tmp(family: &Family, extension: &str) -> PathBuf {
    let mut name = OsString::from("/tmp/");
    name.push(family.name());
    name.push(".");
    name.push(extension);
    name.into()
}

/// The path by which the program was called: as given, or found in PATH as the
/// shell has found it.
fn called_path(argv0: &Path) -> PathBuf {
    if argv0.as_os_str().as_bytes().contains(&b'/') {
        return argv0.to_owned();
    }
    env::var_os("PATH")
        .and_then(|path| {
            env::split_paths(&path)
                .map(|folder| folder.join(argv0))
                .find(|candidate| candidate.is_file())
        })
        .unwrap_or_else(|| argv0.to_owned())
}

fn default_project_dir(called: &Path, script: &Path) -> Result<PathBuf, Failure> {
    // The link's own folder, not the binary's: `parent` follows nothing.
    let beside_program = called
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .filter(|folder| folder.join(script).is_file() || folder.join(config::FILE_NAME).is_file())
        .and_then(|folder| fs::canonicalize(folder).ok());
    beside_program.map_or_else(
        || {
            // getcwd(2) gives the physical path, or ENOENT if it was removed.
            env::current_dir().map_err(|error| {
                Failure::new(format!("cannot tell the current folder: {error}"))
                    .help("change to the project folder, or name it with VOICE_GUARD_PROJECT_DIR")
            })
        },
        Ok,
    )
}

fn ready_pattern(given: Option<Given>) -> Result<Regex, Failure> {
    let Some(given) = given else {
        return compile(DEFAULT_READY_PATTERN)
            .map_err(|error| Failure::new(format!("default pattern: {error}")));
    };
    let Some(pattern) = given.value.to_str() else {
        return Err(given.wrong("it is not UTF-8"));
    };
    compile(pattern).map_err(|error| given.wrong(&format!("no regular expression: {error}")))
}

fn seconds(given: Option<Given>, default: f64) -> Result<Duration, Failure> {
    number(given, default, MOST_SECONDS, "seconds").map(Duration::from_secs_f64)
}

/// In bytes.
fn megabytes(given: Option<Given>) -> Result<u64, Failure> {
    let megabytes = number(given, DEFAULT_KEEP_LOG_MB, MOST_MEGABYTES, "megabytes")?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 0 and 10^12"
    )]
    let bytes = (megabytes * 1e6) as u64;
    Ok(bytes)
}

fn number(given: Option<Given>, default: f64, most: f64, unit: &str) -> Result<f64, Failure> {
    let Some(given) = given else {
        return Ok(default);
    };
    given
        .value
        .to_str()
        .and_then(|text| text.trim().parse::<f64>().ok())
        .filter(|number| (0.0..=most).contains(number))
        .ok_or_else(|| given.wrong(&format!("expected {unit} from 0 to {most}")))
}

/// The interpreter to run the agent with, and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// Its path.
    pub path: PathBuf,
    /// "configured", "virtual environment of …", …
    pub reason: String,
}

impl Settings {
    /// Chooses the Python interpreter.
    ///
    /// # Errors
    /// When the configured one is missing, or none is found.
    pub fn interpreter(&self) -> Result<Interpreter, Failure> {
        if let Some(path) = &self.python {
            return if is_executable(path) {
                Ok(Interpreter {
                    path: path.clone(),
                    reason: "configured".to_owned(),
                })
            } else {
                Err(Failure::new(format!(
                    "cannot use the configured Python {}: not an executable file",
                    path.display()
                ))
                .help("set VOICE_GUARD_PYTHON to an interpreter's path, or leave it out"))
            };
        }
        self.virtual_environment()
            .or_else(active_environment)
            .or_else(python_in_path)
            .ok_or_else(|| {
                Failure::new(format!(
                    "cannot find a Python: no .venv or venv in {} or above, no VIRTUAL_ENV, no CONDA_PREFIX, no python3 in PATH",
                    self.project_dir.display()
                ))
                .help("set VOICE_GUARD_PYTHON to the interpreter's path")
            })
    }

    /// `.venv` or `venv` of the project folder or above, where nobody else can
    /// have put it.
    fn virtual_environment(&self) -> Option<Interpreter> {
        self.project_dir
            .ancestors()
            .flat_map(|folder| [folder.join(".venv"), folder.join("venv")])
            .find_map(|environment| {
                let path = environment.join("bin/python3");
                let ours = [
                    environment.parent()?,
                    &environment,
                    &environment.join("bin"),
                ]
                .into_iter()
                .all(is_owned_by_caller_or_root);
                (ours && is_executable(&path)).then(|| Interpreter {
                    path,
                    reason: format!("virtual environment {}", environment.display()),
                })
            })
    }
}

fn active_environment() -> Option<Interpreter> {
    ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .find_map(|name| {
            let folder = env::var_os(name).filter(|value| !value.is_empty())?;
            let path = Path::new(&folder).join("bin/python3");
            (path.is_absolute() && is_executable(&path)).then(|| Interpreter {
                path,
                reason: name.to_owned(),
            })
        })
}

fn python_in_path() -> Option<Interpreter> {
    env::split_paths(&env::var_os("PATH")?)
        // A relative entry would mean another program in another folder.
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("python3"))
        .find(|path| is_executable(path))
        .map(|path| Interpreter {
            path,
            reason: "PATH".to_owned(),
        })
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn is_owned_by_caller_or_root(folder: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    fs::metadata(folder).is_ok_and(|metadata| [0, me].contains(&metadata.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_uses_the_callers_names() {
        let folder = tempfile::tempdir().unwrap();
        let stop = folder.path().join("stop_voice_agent_safe.sh");
        fs::write(&stop, "").unwrap();
        let links = Naming::of(&folder.path().join("start_voice_system.sh"));
        assert_eq!(
            links.command("stop-voice-agent-safe"),
            stop.display().to_string()
        );
        assert_eq!(links.command("stop-voice-system"), "stop-voice-system");
        let programs = Naming::of(Path::new("start-voice-system"));
        assert_eq!(
            programs.command("stop-voice-agent-safe"),
            "stop-voice-agent-safe"
        );
    }

    #[test]
    fn seconds_are_bounded() {
        let given = |value: &str| {
            Some(Given {
                value: value.into(),
                source: Source::Environment,
                name: "VERIFY_SECONDS",
                place: String::new(),
            })
        };
        assert_eq!(seconds(None, 3.0).unwrap(), Duration::from_secs(3));
        assert_eq!(
            seconds(given("0.25"), 3.0).unwrap(),
            Duration::from_millis(250)
        );
        for bad in ["-1", "NaN", "inf", "x", "3601", ""] {
            let failure = seconds(given(bad), 3.0).unwrap_err().to_string();
            assert!(failure.contains("VOICE_GUARD_VERIFY_SECONDS"), "{failure}");
        }
    }
}
