//! Which systemd unit runs an agent, and asking systemd about it.
//!
//! A unit counts if a starter in the foreground is its main process. What merely
//! lives in a unit's control group (a terminal below `user@1000.service`, a job of
//! `cron.service`) is run by nobody.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::agent::MARK_VARIABLE;
use crate::detach::DETACH_VARIABLE;
use crate::process_table::{Pid, ProcessTable, split_arguments};
use crate::startup_lock::{private_is_none, program_name};

/// The program that runs an agent as a unit's main process.
const STARTER: &str = "start-voice-agent-safe";

/// Exists on a machine that systemd has booted (`sd_booted(3)`).
const BOOTED: &str = "/run/systemd/system";

/// The units' names in the documents.
const SYSTEM_UNIT: &str = "letta-voice-agent-safe.service";
const USER_UNIT: &str = "letta-voice-agent.service";

/// Where an administrator and a package put system units (`systemd.unit(5)`).
const UNIT_FOLDERS: [&str; 3] = [
    "/etc/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Where they put units of everybody's own systemd; a user has one more.
const USER_UNIT_FOLDERS: [&str; 2] = ["/etc/systemd/user", "/usr/lib/systemd/user"];

/// A unit that runs an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name, with its suffix.
    pub name: String,
    /// Who manages it.
    pub manager: Manager,
    /// The starter, its main process.
    pub starter: Pid,
}

/// Which systemd manages a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// The machine's.
    System,
    /// This user's own.
    User(u32),
}

/// Is it worth asking systemd?
#[must_use]
pub fn is_booted_by_systemd() -> bool {
    Path::new(BOOTED).is_dir()
}

impl Unit {
    /// The unit that runs this agent, by all that can be seen without asking
    /// systemd; to be confirmed before anything is done to it.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of(table: &ProcessTable, agent: Pid) -> io::Result<Option<Self>> {
        match table.stat(agent)?.and_then(|stat| stat.parent) {
            Some(starter) => Self::of_starter(table, starter),
            None => Ok(None),
        }
    }

    /// The unit whose main process this starter is, if it is that; in the same way.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of_starter(table: &ProcessTable, starter: Pid) -> io::Result<Option<Self>> {
        if program_name(table, starter)? != Some(STARTER) {
            return Ok(None);
        }
        let line = private_is_none(table.command_line(starter))?.unwrap_or_default();
        if !split_arguments(&line).contains(&&b"--foreground"[..]) {
            return Ok(None);
        }
        let Some((name, manager)) = unit_of(table, starter)? else {
            return Ok(None);
        };
        // Started by its manager, and by nobody in the same control group.
        Ok(is_child_of(table, starter, manager)?.then_some(Self {
            name,
            manager,
            starter,
        }))
    }

    /// The units that the documents name and that have no agent just now, since
    /// systemd waits to start them again, or for the end of what the last agent
    /// has left: the machine's, and the caller's own.
    #[must_use]
    pub fn about_to_start() -> Vec<Self> {
        let me = rustix::process::geteuid().as_raw();
        // systemd is asked only where it is there and somebody has installed one.
        let installed = |name: &str, mut folders: Vec<PathBuf>, shared: &[&str]| {
            folders.extend(shared.iter().map(PathBuf::from));
            folders.iter().any(|folder| folder.join(name).exists())
        };
        let mut known = Vec::new();
        if installed(SYSTEM_UNIT, Vec::new(), &UNIT_FOLDERS) {
            known.push((SYSTEM_UNIT, Manager::System));
        }
        if Path::new(&format!("/run/user/{me}/systemd")).is_dir()
            && installed(USER_UNIT, own_unit_folders(), &USER_UNIT_FOLDERS)
        {
            known.push((USER_UNIT, Manager::User(me)));
        }
        known
            .into_iter()
            .map(|(name, manager)| Self {
                name: name.to_owned(),
                manager,
                starter: Pid::own(),
            })
            .filter(|unit| unit.is_between_agents().unwrap_or(false))
            .collect()
    }

    fn is_between_agents(&self) -> Result<bool, String> {
        let state = self.property("SubState")?;
        if state.contains("auto-restart") {
            return Ok(true);
        }
        // The starter or systemd still ends the dead agent's workers.
        if state.starts_with("stop") || state.starts_with("final-") {
            return self.comes_back();
        }
        Ok(false)
    }

    /// Its agent is dead: does systemd start it again? (Which ends of a starter
    /// are final, `RestartPreventExitStatus=`, is about starters without an agent.)
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn comes_back(&self) -> Result<bool, String> {
        match self.queued_job()?.as_deref() {
            None => Ok(self.property("Restart")? != "no"),
            Some(verb) => Ok(verb != "stop"),
        }
    }

    /// What systemd is at with it, or about to be: `start`, `stop`, `restart`, ...
    fn queued_job(&self) -> Result<Option<String>, String> {
        let mut command = self.systemctl()?;
        command.args(["list-jobs", "--plain", "--no-legend", "--full", "--"]);
        let jobs = run(command.arg(&self.name))?;
        Ok(jobs.lines().find_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let is_its = words.next() == Some(&self.name);
            words.next().filter(|_| is_its).map(str::to_owned)
        }))
    }

    /// Does this program live in the unit's control group?
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn holds_caller(&self, table: &ProcessTable) -> io::Result<bool> {
        let own = unit_of(table, Pid::own())?;
        Ok(own.is_some_and(|(name, manager)| name == self.name && manager == self.manager))
    }

    /// Is the starter really the unit's main process? systemd is asked.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn is_confirmed(&self) -> Result<bool, String> {
        Ok(self.property("MainPID")? == self.starter.to_string())
    }

    /// Does systemd start the unit again, however it has ended?
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn always_restarts(&self) -> Result<bool, String> {
        Ok(self.property("Restart")? == "always")
    }

    /// Asks systemd to `stop`, `start` or `restart` the unit.
    ///
    /// # Errors
    /// What it says, if it does not.
    pub fn ask(&self, verb: &str, waiting: Waiting) -> Result<(), String> {
        let mut command = self.systemctl()?;
        command.args(["--no-ask-password", verb]);
        if waiting == Waiting::No {
            command.arg("--no-block");
        }
        run(command.args(["--", &self.name])).map(|_| ())
    }

    /// The same as people type it.
    #[must_use]
    pub fn command(&self, verb: &str) -> String {
        let name = &self.name;
        let me = rustix::process::geteuid().as_raw();
        match self.manager {
            Manager::System if me == 0 => format!("systemctl {verb} {name}"),
            Manager::System => format!("sudo systemctl {verb} {name}"),
            Manager::User(uid) if uid == me => format!("systemctl --user {verb} {name}"),
            Manager::User(uid) => format!(
                "systemctl --user {verb} {name}, as user {}",
                crate::process_details::user_name(uid)
            ),
        }
    }

    fn property(&self, name: &str) -> Result<String, String> {
        let property = format!("--property={name}");
        let mut command = self.systemctl()?;
        run(command.args(["show", "--value", &property, "--", &self.name]))
    }

    fn systemctl(&self) -> Result<Command, String> {
        let mut command = Command::new("systemctl");
        command
            .stdin(Stdio::null())
            .env_remove(MARK_VARIABLE)
            .env_remove(DETACH_VARIABLE)
            .env("LC_ALL", "C.UTF-8")
            .env("SYSTEMD_PAGER", "")
            .env("SYSTEMD_COLORS", "0");
        if let Manager::User(uid) = self.manager {
            command
                .arg("--user")
                .env("XDG_RUNTIME_DIR", format!("/run/user/{uid}"))
                .env_remove("DBUS_SESSION_BUS_ADDRESS");
            if rustix::process::geteuid().is_root() && uid != 0 {
                become_user(&mut command, uid)?;
            }
        }
        Ok(command)
    }
}

/// Where a user has units of his own (`systemd.unit(5)`).
fn own_unit_folders() -> Vec<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let configuration = folder("XDG_CONFIG_HOME").filter(|folder| folder.is_absolute());
    let usual = folder("HOME").map(|home| home.join(".config"));
    configuration
        .into_iter()
        .chain(usual)
        .map(|folder| folder.join("systemd/user"))
        .collect()
}

/// root talks to a user's systemd as that user.
fn become_user(command: &mut Command, uid: u32) -> Result<(), String> {
    use std::os::unix::process::CommandExt as _;
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => {
            command.uid(uid).gid(user.gid.as_raw());
            Ok(())
        }
        // His group is not to be guessed.
        Ok(None) => Err(format!("there is no user {uid}")),
        Err(errno) => Err(format!("cannot look up user {uid}: {errno}")),
    }
}

/// Does the one who asks wait until it is done?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Until it is done.
    Yes,
    /// It will be part of what is done.
    No,
}

/// What `systemctl` prints; or why it has failed.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("cannot run systemctl: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    Err(if said.is_empty() {
        format!("systemctl ended with {}", output.status)
    } else {
        said
    })
}

/// Was this program called by systemd, as a part of a unit's start or stop?
///
/// # Errors
/// When `/proc` cannot be read.
pub fn is_called_by_systemd(table: &ProcessTable) -> io::Result<bool> {
    match unit_of(table, Pid::own())? {
        Some((_, manager)) => is_child_of(table, Pid::own(), manager),
        None => Ok(false),
    }
}

fn is_child_of(table: &ProcessTable, pid: Pid, manager: Manager) -> io::Result<bool> {
    let Some(parent) = table.stat(pid)?.and_then(|stat| stat.parent) else {
        return Ok(false);
    };
    Ok(match manager {
        Manager::System => parent.get() == 1,
        Manager::User(uid) => {
            let groups = private_is_none(table.control_groups(parent))?.unwrap_or_default();
            let home = format!("/user@{uid}.service/init.scope");
            String::from_utf8_lossy(&groups)
                .lines()
                .any(|line| line.ends_with(&home))
        }
    })
}

/// The service whose control group a process lives in.
fn unit_of(table: &ProcessTable, pid: Pid) -> io::Result<Option<(String, Manager)>> {
    let groups = private_is_none(table.control_groups(pid))?.unwrap_or_default();
    let groups = String::from_utf8_lossy(&groups);
    Ok(groups.lines().find_map(|line| {
        // "0::/path", or systemd's own hierarchy of old, "1:name=systemd:/path".
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        ["", "name=systemd"]
            .contains(&controllers)
            .then(|| service_of(path))
            .flatten()
    }))
}

fn is_slice(name: &str) -> bool {
    name.strip_suffix("slice")
        .is_some_and(|rest| rest.ends_with('.'))
}

/// The service in a control group's path: below slices only, or below slices of
/// a user's own manager. Whatever is below a scope (a session, a container) is
/// somebody else's.
fn service_of(path: &str) -> Option<(String, Manager)> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let service = parts.find(|part| !is_slice(part))?;
    let user = service
        .strip_prefix("user@")
        .and_then(|rest| rest.strip_suffix(".service")?.parse().ok());
    let (service, manager) = match user {
        None => (service, Manager::System),
        Some(uid) => (parts.find(|part| !is_slice(part))?, Manager::User(uid)),
    };
    // A name that would look like the kernel's own is escaped.
    let name = service.strip_prefix('_').unwrap_or(service);
    let is_service = name
        .strip_suffix("service")
        .is_some_and(|rest| rest.ends_with('.'));
    (is_service && is_name(name)).then(|| (name.to_owned(), manager))
}

/// May a unit have this name? Users make control groups of any name below their
/// own manager's, and systemctl takes options and patterns.
fn is_name(name: &str) -> bool {
    !name.starts_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(path: &str) -> Option<(String, Manager)> {
        service_of(path)
    }

    #[test]
    fn services_are_told_from_what_merely_looks_like_one() {
        let system = |name: &str| Some((name.to_owned(), Manager::System));
        let user = |name: &str| Some((name.to_owned(), Manager::User(1000)));
        assert_eq!(service("/system.slice/a.service"), system("a.service"));
        assert_eq!(
            service("/system.slice/system-a.slice/a@1.service/sub"),
            system("a@1.service")
        );
        let manager = "/user.slice/user-1000.slice/user@1000.service";
        assert_eq!(
            service(&format!("{manager}/app.slice/a.service")),
            user("a.service")
        );
        for path in [
            "/",
            "/init.scope",
            "/user.slice/user-1000.slice/session-3.scope",
            manager,
            &format!("{manager}/init.scope"),
            &format!("{manager}/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope"),
            "/machine.slice/machine-a.scope/payload/system.slice/a.service",
            "/system.slice/docker-0123.scope/system.slice/a.service",
            // Options and patterns.
            &format!("{manager}/app.slice/-Hevil.service"),
            &format!("{manager}/app.slice/_-Hevil.service"),
            &format!("{manager}/app.slice/*.service"),
            &format!("{manager}/app.slice/[a-z]?.service"),
            &format!("{manager}/app.slice/a b.service"),
        ] {
            assert_eq!(service(path), None, "{path}");
        }
        let escaped = r"a\x2db@c:1.service";
        assert_eq!(
            service(&format!("/system.slice/{escaped}")),
            system(escaped)
        );
    }

    #[test]
    fn a_users_systemd_is_asked_as_somebody_known_or_not_at_all() {
        let mut command = Command::new("true");
        // Nobody has it: it means "no change" to the kernel.
        assert!(become_user(&mut command, u32::MAX).is_err());
    }

    #[test]
    fn a_name_is_never_taken_for_an_option() {
        let unit = Unit {
            name: "--version".to_owned(),
            manager: Manager::System,
            starter: Pid::own(),
        };
        // Whatever is wrong with it, systemctl does not tell its version.
        let answer = unit.property("MainPID");
        assert!(!answer.is_ok_and(|said| said.contains("systemd")));
        assert!(unit.ask("stop", Waiting::Yes).is_err());
    }
}
