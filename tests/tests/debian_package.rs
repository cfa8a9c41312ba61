//! The Debian package, built, installed, used, upgraded and removed under a real
//! systemd.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use scenarios::{Program, Sandbox, available, binary, built_tool, is_full_proof, left_out, text};

const AGENT: &str = include_str!("../agents/agent.py");
const UNIT: &str = "letta-voice-agent-safe";
const SYSTEM: &str = "letta-voice-system";
const MONITOR: &str = "letta-voice-agent-monitor";

fn clone() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the clone").to_owned()
}

/// Two versions of the package, where a sandbox can see them.
struct Packages {
    old: PathBuf,
    new: PathBuf,
}

/// The packages of the programs under test. `None`, and said so, without cargo-deb.
fn packages(what: &str) -> Option<&'static Packages> {
    static BUILT: OnceLock<Packages> = OnceLock::new();
    if !is_full_proof() {
        left_out(what, "it takes long; scripts/test runs it");
        return None;
    }
    if !available(&["apt-get", "dpkg-deb", "dpkg-shlibdeps", "xz"], what) {
        return None;
    }
    let tools = clone().join("target/tools/bin/cargo-deb");
    let in_path = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join("cargo-deb").is_file())
    });
    if !tools.is_file() && !in_path {
        left_out(
            what,
            "cargo-deb is not there; scripts/test tools installs it",
        );
        return None;
    }
    Some(BUILT.get_or_init(build))
}

fn build() -> Packages {
    let programs = binary(Program::Check);
    let programs = programs.parent().expect("a folder");
    // Of a name that stays: a static is never dropped.
    let folder = programs.join("debian-package-test");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder for the packages");
    let run = |command: &mut Command| {
        let output = command.output().expect("run it");
        assert!(output.status.success(), "{command:?}: {}", text(&output));
        String::from_utf8(output.stdout).expect("text")
    };
    let printed = run(Command::new(clone().join("scripts/package"))
        .args(["--fast", "--version", "0.0.1-1"])
        .arg(&folder)
        .env("VOICE_GUARD_PROGRAMS", programs)
        // As cargo has built it with the tests.
        .env("VOICE_GUARD_PACKAGING", built_tool("packaging")));
    let old = PathBuf::from(printed.trim());
    assert!(old.starts_with(&folder), "it printed: {printed}");
    // The same with another number: building it again would only take time.
    let unpacked = folder.join("new");
    run(Command::new("dpkg-deb").arg("-R").arg(&old).arg(&unpacked));
    run(Command::new("sed")
        .args(["-i", "s/^Version: .*/Version: 0.0.2-1/"])
        .arg(unpacked.join("DEBIAN/control")));
    let new = folder.join("new.deb");
    run(Command::new("dpkg-deb")
        .args(["-Znone", "-b"])
        .arg(&unpacked)
        .arg(&new));
    Packages { old, new }
}

/// A sandbox with a user `voice` and his agent; nothing of ours is installed.
fn machine(what: &str) -> Option<Sandbox> {
    let sandbox = Sandbox::up(what)?;
    sandbox.expect(
        // Images of containers forbid packages to start and stop anything, which a
        // machine does not; and an index of all pages would take seconds.
        "set -e
         rm -f /usr/sbin/policy-rc.d /var/lib/man-db/auto-update
         mkdir -p /srv/agent /srv/state
         echo 'voice:x:4321:4321::/srv/agent:/bin/sh' >>/etc/passwd
         echo 'voice:x:4321:' >>/etc/group
         chown -R voice:voice /srv/agent /srv/state",
        0,
    );
    sandbox.write("/srv/agent/letta_voice_agent.py", AGENT);
    sandbox.expect("mkdir -p /srv/agent/.venv/bin; ln -s /usr/bin/python3 /srv/agent/.venv/bin/; chown -R voice /srv/agent", 0);
    Some(sandbox)
}

/// As the README does it; without a network, and without a question.
fn install(sandbox: &Sandbox, package: &Path) -> String {
    let line = format!(
        "DEBIAN_FRONTEND=noninteractive apt-get install -y --reinstall \
             -o DPkg::Options::=--force-unsafe-io '{}' 2>&1",
        package.display()
    );
    sandbox.expect(&line, 0)
}

/// Everything that a package could leave somewhere. (What is beneath is the
/// machine's own file system: where others write at any time is no place to look.)
fn files(sandbox: &Sandbox) -> BTreeSet<String> {
    sandbox
        .expect(
            "find /etc /usr /var/lib /tmp /opt -xdev \
                ! -path '/var/lib/dpkg/*' ! -path '/var/lib/apt/*' ! -path '/var/lib/PackageKit/*' ! -path '/tmp/systemd-private-*' \
                ! -path '/var/lib/systemd/timers/*'",
            0,
        )
        .lines()
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn agent(sandbox: &Sandbox) -> String {
    let pid = sandbox.expect(
        "cat /tmp/letta_voice_agent.pid && ps -p $(cat /tmp/letta_voice_agent.pid) >&2",
        0,
    );
    pid.lines().next().expect("a PID").to_owned()
}

fn everything_is_there(sandbox: &Sandbox) {
    for program in Program::ALL {
        let name = program.name();
        let path = sandbox.expect(&format!("command -v {name}"), 0);
        assert_eq!(path.trim(), format!("/usr/bin/{name}"));
        let page = sandbox.expect(
            &format!("man -P cat {name} 2>/dev/null || test ! -x /usr/bin/man"),
            0,
        );
        assert!(page.is_empty() || page.contains("EXIT STATUS"), "{page}");
        for file in [
            format!("/usr/share/man/man1/{name}.1.gz"),
            format!("/usr/share/bash-completion/completions/{name}"),
            format!("/usr/share/zsh/vendor-completions/_{name}"),
            format!("/usr/share/fish/vendor_completions.d/{name}.fish"),
        ] {
            sandbox.expect(&format!("test -s '{file}'"), 0);
        }
    }
    for file in [
        "/etc/logrotate.d/voice-guard",
        "/usr/lib/tmpfiles.d/letta-voice-agent.conf",
        "/usr/share/doc/voice-guard/README.md",
        "/usr/share/doc/voice-guard/docs/production.md",
        "/usr/share/doc/voice-guard/copyright",
    ] {
        sandbox.expect(&format!("test -s '{file}'"), 0);
    }
    for unit in [
        format!("{UNIT}.service"),
        format!("{SYSTEM}.service"),
        format!("{MONITOR}.timer"),
    ] {
        let enabled = sandbox.run(&format!("systemctl is-enabled {unit}"));
        assert_eq!(text(&enabled).trim(), "disabled", "{unit}");
        let active = sandbox.run(&format!("systemctl is-active {unit}"));
        assert_eq!(text(&active).trim(), "inactive", "{unit}");
    }
}

#[test]
fn package_is_installed_used_upgraded_and_removed_without_a_trace() {
    let what = "the Debian package";
    let Some(packages) = packages(what) else {
        return;
    };
    let Some(sandbox) = machine(what) else {
        return;
    };
    let before = files(&sandbox);

    // Installed: everything is there, and nothing happens by itself.
    install(&sandbox, &packages.old);
    everything_is_there(&sandbox);

    // Used: the unit, its monitor, logrotate.
    sandbox.configure("");
    sandbox.drop_in(
        &format!("{UNIT}.service"),
        "[Service]\nUser=voice\nRestartSec=100ms",
    );
    sandbox.expect(
        &format!(
            "systemctl daemon-reload && systemctl enable --now {UNIT} {SYSTEM} {MONITOR}.timer"
        ),
        0,
    );
    let pid = agent(&sandbox);
    sandbox.expect("cd / && check-agent-running", 1);
    sandbox.expect(&format!("systemctl start {MONITOR}"), 0);
    sandbox.expect(
        "grep '^voice_guard_agents{.*} 1$' /var/lib/voice-guard/voice_guard.prom",
        0,
    );
    if available(&["logrotate"], "the package's logrotate file") {
        sandbox.expect(
            "logrotate --state /run/logrotate.state --force /etc/logrotate.d/voice-guard",
            0,
        );
        sandbox.expect("grep 'registered worker' /tmp/voice_agent.log.1", 0);
    }

    // Upgraded, and installed again: the agent does not notice.
    for package in [&packages.new, &packages.new] {
        install(&sandbox, package);
        assert_eq!(agent(&sandbox), pid, "the upgrade has changed the agent");
        sandbox.expect(
            &format!("systemctl is-active {UNIT} {SYSTEM} {MONITOR}.timer"),
            0,
        );
    }
    let version = sandbox.expect("dpkg-query -W -f '${Version}' voice-guard", 0);
    assert_eq!(version, "0.0.2-1");
    let starts = sandbox.expect("cat /srv/state/starts.log", 0);
    assert_eq!(starts.trim(), pid, "it was started again");

    // Removed: what systemd runs with it ends; purged: nothing is left. Metrics
    // that a collector reads are not, either.
    sandbox.expect(
        "mkdir -p /srv/collector; cp /var/lib/voice-guard/voice_guard.prom /srv/collector/; \
         echo '# mine' >/srv/collector/other.prom; \
         echo 'VOICE_GUARD_METRICS_FILE=/srv/collector/voice_guard.prom' >>/etc/default/letta-voice-agent",
        0,
    );
    sandbox.expect("dpkg -r voice-guard 2>&1", 0);
    assert_eq!(sandbox.expect("ls /srv/collector", 0), "other.prom\n");
    sandbox.expect(&format!("ps -p {pid}"), 1);
    // What others have left in /tmp meanwhile, with a number that is a stranger's.
    sandbox.expect(
        "systemd-run -q --unit=stranger sleep 3000
         systemctl show -P MainPID stranger >/tmp/letta_voice_agent.pid
         mkdir -p /tmp/voice-guard-4321/agent-1; echo 1 >/tmp/voice-guard-4321/agent-1/companion.pid
         touch /tmp/.voice-system-agent-1.guard /tmp/voice_agent.log.5
         chown -R voice /tmp/letta* /tmp/voice-guard-4321 /tmp/.voice-system*",
        0,
    );
    sandbox.expect("command -v check-agent-running", 127);
    sandbox.expect(
        "rm -r /etc/systemd/system/letta-voice-agent-safe.service.d; systemctl daemon-reload",
        0,
    );
    sandbox.expect("dpkg -P voice-guard 2>&1", 0);
    sandbox.expect("systemctl is-active stranger && systemctl stop stranger", 0);
    let after = files(&sandbox);
    let left: Vec<_> = after.difference(&before).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
    let lost: Vec<_> = before.difference(&after).collect();
    assert!(lost.is_empty(), "taken away: {lost:#?}");
    let units = sandbox.expect("systemctl list-units --all --plain --no-legend 'letta*'", 0);
    assert_eq!(units, "", "systemd still knows them");
}

#[test]
fn agent_that_was_started_by_hand_outlives_the_package() {
    let what = "the Debian package, removed beside an agent";
    let Some(packages) = packages(what) else {
        return;
    };
    let Some(sandbox) = machine(what) else {
        return;
    };
    install(&sandbox, &packages.old);
    sandbox.configure("");
    sandbox.expect(
        "set -a; . /etc/default/letta-voice-agent; \
         setpriv --reuid voice --regid voice --clear-groups start-voice-agent-safe",
        0,
    );
    let pid = agent(&sandbox);
    install(&sandbox, &packages.new);
    assert_eq!(agent(&sandbox), pid);
    sandbox.expect(
        "mkdir /tmp/voice-guard-4321; touch /tmp/.voice-system-agent-1.guard",
        0,
    );
    let said = sandbox.expect("dpkg -P voice-guard 2>&1", 0);
    assert!(said.contains("goes on"), "{said}");
    // By the check's own words.
    assert!(said.contains(&format!("agent PID {pid}")), "{said}");
    // With what it is known by, also to programs from elsewhere.
    assert_eq!(agent(&sandbox), pid);
    for file in [
        "/tmp/.letta_voice_agent.guard",
        "/tmp/voice_agent.log",
        "/tmp/voice-guard-4321",
        "/tmp/.voice-system-agent-1.guard",
    ] {
        sandbox.expect(&format!("test -e {file}"), 0);
    }
    sandbox.expect(&format!("kill {pid}"), 0);
}

#[test]
fn all_units_are_in_the_package() {
    let Some(packages) = packages("the units in the Debian package") else {
        return;
    };
    let unpacked = packages.new.with_extension("");
    let contents: BTreeSet<_> = ["systemd/system", "systemd/user", "tmpfiles.d"]
        .iter()
        .flat_map(|folder| fs::read_dir(unpacked.join("usr/lib").join(folder)).expect("a folder"))
        .map(|entry| fs::read(entry.expect("an entry").path()).expect("a file"))
        .collect();
    let units = ["systemd", "systemd/user"]
        .iter()
        .flat_map(|folder| fs::read_dir(clone().join(folder)).expect("the units"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file());
    for path in units {
        let content = fs::read(&path).expect("a unit");
        assert!(contents.contains(&content), "{} is not", path.display());
    }
}

#[test]
fn lintian_finds_no_error() {
    let what = "the Debian package, by lintian";
    if !available(&["lintian"], what) {
        return;
    }
    let Some(packages) = packages(what) else {
        return;
    };
    let output = Command::new("lintian")
        .args(["--fail-on", "error", "--allow-root"])
        .arg(&packages.old)
        .output()
        .expect("run lintian");
    assert!(output.status.success(), "{}", text(&output));
}
