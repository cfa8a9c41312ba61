//! A machine with a systemd of its own, for as long as a test takes.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use crate::program::binary_folder;
use crate::{Program, left_out, text, within};

const AGENT: &str = include_str!("../agents/agent.py");

/// The interpreter in there: everybody may run it.
const PYTHON: &str = "/usr/bin/python3";

/// `scripts/systemd-sandbox`, up until it is dropped.
///
/// In there it is a machine of its own: `/tmp` is empty, no other process can be
/// seen, and the files are this machine's until they are changed.
#[derive(Debug)]
pub struct Sandbox {
    folder: TempDir,
}

impl Sandbox {
    /// Boots one. `None`, and said so, where that is not possible.
    #[must_use]
    pub fn up(what: &str) -> Option<Self> {
        static HINDRANCE: OnceLock<Option<String>> = OnceLock::new();
        let hindrance = HINDRANCE.get_or_init(|| {
            let can = Command::new(script())
                .arg("can")
                .output()
                .expect("run scripts/systemd-sandbox");
            (!can.status.success()).then(|| text(&can).trim().to_owned())
        });
        if let Some(hindrance) = hindrance {
            left_out(what, hindrance);
            return None;
        }
        if !Path::new(PYTHON).is_file() {
            left_out(what, &format!("there is no {PYTHON}"));
            return None;
        }
        let sandbox = Self {
            folder: tempfile::Builder::new()
                .prefix("voice-sandbox-")
                .tempdir()
                .expect("a folder for the sandbox"),
        };
        let up = sandbox
            .script("up")
            .output()
            .expect("run scripts/systemd-sandbox");
        assert!(up.status.success(), "no sandbox: {}", text(&up));
        Some(sandbox)
    }

    /// The same, with what a user has: the programs in `/usr/local/bin`, a user
    /// `voice`, and his agent in `/srv/agent`, configured in `/etc/default`.
    #[must_use]
    pub fn with_agent(what: &str) -> Option<Self> {
        let sandbox = Self::up(what)?;
        let programs = binary_folder();
        let mut links = String::new();
        for program in Program::ALL {
            let name = program.name();
            writeln!(
                links,
                "ln -s '{0}/{name}' /usr/local/bin/{name}; ln -s '{0}/{name}' /srv/agent/{1}",
                programs.display(),
                program.script()
            )
            .expect("a string");
        }
        sandbox.expect(
            &format!(
                "set -e
                 mkdir -p /srv/agent /srv/state
                 echo 'voice:x:4321:4321::/srv/agent:/bin/sh' >>/etc/passwd
                 echo 'voice:*:20000::::::' >>/etc/shadow
                 echo 'voice:x:4321:' >>/etc/group
                 {links}
                 printf '#!/bin/sh\\nexec \"$@\"\\n' >/usr/local/bin/sudo
                 chmod 755 /usr/local/bin/sudo
                 chown -R voice:voice /srv/agent /srv/state"
            ),
            0,
        );
        sandbox.write("/srv/agent/letta_voice_agent.py", AGENT);
        sandbox.configure("");
        Some(sandbox)
    }

    /// Writes `/etc/default/letta-voice-agent`: where the agent is, and more.
    pub fn configure(&self, more: &str) {
        self.write(
            "/etc/default/letta-voice-agent",
            &format!(
                "VOICE_GUARD_PROJECT_DIR=/srv/agent\n\
                 VOICE_GUARD_PYTHON={PYTHON}\n\
                 PYTHONDONTWRITEBYTECODE=1\n\
                 TEST_AGENT_OVERLAP_LOCK=/srv/state/overlap.lock\n\
                 TEST_AGENT_OVERLAP_LOG=/srv/state/overlap.log\n\
                 TEST_AGENT_STARTS_LOG=/srv/state/starts.log\n\
                 TEST_AGENT_CHILDREN_LOG=/srv/state/children.log\n{more}\n"
            ),
        );
    }

    /// A drop-in of a unit.
    pub fn drop_in(&self, unit: &str, text: &str) {
        self.write(
            &format!("/etc/systemd/system/{unit}.d/test.conf"),
            &format!("{text}\n"),
        );
    }

    /// Runs a line of shell in there, in the clone's folder.
    #[must_use]
    pub fn run(&self, line: &str) -> Output {
        self.shell(line).output().expect("run in the sandbox")
    }

    /// The same, to be begun and waited for by the caller.
    #[must_use]
    pub fn shell(&self, line: &str) -> Command {
        let mut command = self.script("run");
        // In octal: on a command line as it stands, a search for an agent's name
        // would find it.
        let mut coded = String::new();
        for byte in format!("cd '{}'\n{line}\n", clone().display()).bytes() {
            write!(coded, "\\{byte:03o}").expect("a string");
        }
        command.args(["sh", "-c", "eval \"$(printf \"$1\")\"", "-", &coded]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a line and expects its exit code; gives what it said.
    #[track_caller]
    #[allow(clippy::must_use_candidate, reason = "it asserts")]
    pub fn expect(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        let said = text(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}\n{said}\n{}",
            self.describe()
        );
        said
    }

    /// Waits until a line ends with 0.
    #[track_caller]
    pub fn until(&self, what: &str, line: &str) {
        // Looked at in there: to get in costs more than to look.
        let looks = format!(
            "for look in $(seq 600); do
                 said=$( (\n{line}\n) 2>&1 ) && exit 0
                 sleep 0.03
             done
             printf '%s\\n' \"$said\"; exit 1"
        );
        let mut last = String::new();
        let held = crate::eventually(Duration::from_secs(20), || {
            let output = self.run(&looks);
            last = text(&output);
            output.status.success()
        });
        assert!(held, "in vain for: {what}\n{last}\n{}", self.describe());
    }

    /// Writes a file in there.
    pub fn write(&self, path: &str, content: &str) {
        let mut command = self.script("run");
        let line = format!("mkdir -p \"$(dirname '{path}')\"; cat >'{path}'");
        command.args(["sh", "-c", &line]).stdin(Stdio::piped());
        let mut child = command.spawn().expect("run in the sandbox");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(content.as_bytes()).expect("the content");
        drop(input);
        assert!(child.wait().expect("wait").success(), "cannot write {path}");
    }

    /// Asks it to reboot, and waits until it is up again.
    pub fn reboot(&self) {
        let look = || {
            let mut command = self.script("run");
            let line = "systemctl is-system-running --wait >/dev/null; cat /proc/1/stat";
            let output = command.args(["sh", "-c", line]).output().expect("run");
            output
                .status
                .success()
                .then(|| started(&text(&output)))
                .flatten()
        };
        let before = look();
        let _ = self.run("systemctl reboot");
        within(Duration::from_secs(30), "the sandbox to reboot", || {
            let now = look();
            now.is_some() && now != before
        });
    }

    /// Everything that helps to understand a failure.
    #[must_use]
    pub fn describe(&self) -> String {
        text(&self.run(
            "systemctl --no-pager status 'letta*' 2>&1 | head -60
             echo '--- processes'; ps -eo pid,ppid,user,args | tail -n +2 | grep -v ' ps -eo'
             echo '--- files'; ls -la /tmp /tmp/.*guard; cat /tmp/letta_voice_agent.pid
             echo '--- journal'; journalctl --no-pager -n 60 | cut -c1-200",
        ))
    }

    fn script(&self, verb: &str) -> Command {
        let mut command = Command::new(script());
        command
            .arg(verb)
            .env("SBX", self.folder.path())
            .env("SBX_OWNER", std::process::id().to_string())
            .env(
                "SBX_BIND",
                format!("{} {}", binary_folder().display(), clone().display()),
            );
        command
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.script("down").output();
    }
}

/// When process 1 was started, in `/proc/1/stat`.
fn started(stat: &str) -> Option<String> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

fn clone() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the clone").to_owned()
}

fn script() -> PathBuf {
    clone().join("scripts/systemd-sandbox")
}
