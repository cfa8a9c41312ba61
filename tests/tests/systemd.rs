//! The units under a real systemd: `scripts/systemd-sandbox` boots one for each
//! test, in namespaces of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::path::Path;

use scenarios::{Sandbox, left_out};

const UNIT: &str = "letta-voice-agent-safe";

/// The four commands of the document, word for word.
const INSTALL: [&str; 4] = [
    "sudo cp systemd/letta-voice-agent-safe.service /etc/systemd/system/",
    "sudo systemctl daemon-reload",
    "sudo systemctl enable letta-voice-agent-safe",
    "sudo systemctl start letta-voice-agent-safe",
];

/// Installed, and its waits made short; not started.
fn installed(what: &str) -> Option<Sandbox> {
    let sandbox = Sandbox::with_agent(what)?;
    sandbox.drop_in(
        &format!("{UNIT}.service"),
        "[Service]\nUser=voice\nRestartSec=100ms",
    );
    for command in &INSTALL[..2] {
        sandbox.expect(command, 0);
    }
    Some(sandbox)
}

/// Started with the document's last command; the agent's PID.
fn started(sandbox: &Sandbox) -> u32 {
    sandbox.expect(INSTALL[3], 0);
    one_agent(sandbox)
}

/// Exactly one agent runs, named in the PID file; its PID.
#[track_caller]
fn one_agent(sandbox: &Sandbox) -> u32 {
    // A forked child has its parent's command line.
    let pids = sandbox.expect(
        "ps -eo pid=,ppid=,args= |
         awk '/[0-9] [^ ]*python[^ ]* letta_voice_agent[.]py/ { parent[$1] = $2 }
              END { for (pid in parent) if (!(parent[pid] in parent)) print pid }'",
        0,
    );
    let file = sandbox.expect("cat /tmp/letta_voice_agent.pid || :", 0);
    assert_eq!(pids, file, "{}", sandbox.describe());
    pids.trim()
        .parse()
        .unwrap_or_else(|_| panic!("not one agent: {pids:?}\n{}", sandbox.describe()))
}

/// Waits until another agent than this one is up, and the unit too.
#[track_caller]
fn another_agent(sandbox: &Sandbox, unit: &str, before: u32) -> u32 {
    sandbox.until(
        "another agent",
        &format!(
            "test -s /tmp/letta_voice_agent.pid && test \"$(cat /tmp/letta_voice_agent.pid)\" != {before} && systemctl is-active -q {unit}"
        ),
    );
    one_agent(sandbox)
}

#[track_caller]
fn nothing_left(sandbox: &Sandbox) {
    let left = sandbox.expect(
        "grep -l VOICE_GUARD_MARK /proc/[0-9]*/environ 2>/dev/null; \
         pgrep -af 'python|sleep 1000|start-voice'; ls /tmp/letta_voice_agent.* 2>/dev/null; :",
        0,
    );
    assert_eq!(left, "", "{}", sandbox.describe());
}

#[track_caller]
fn no_overlap(sandbox: &Sandbox) {
    let overlaps = sandbox.expect("cat /srv/state/overlap.log 2>/dev/null || :", 0);
    assert_eq!(overlaps, "", "two agents ran at once");
}

/// Waits until a unit is down whose stop has been asked for.
#[track_caller]
fn inactive(sandbox: &Sandbox, unit: &str) {
    sandbox.until(
        "the unit to be down",
        &format!("test \"$(systemctl is-active {unit})\" = inactive"),
    );
}

fn property(sandbox: &Sandbox, unit: &str, name: &str) -> String {
    let value = sandbox.expect(&format!("systemctl show -P {name} {unit}"), 0);
    value.trim().to_owned()
}

#[test]
fn the_four_commands_of_the_document_make_one_agent_that_comes_back() {
    let Some(sandbox) = installed("the service under systemd") else {
        return;
    };
    for command in INSTALL {
        sandbox.expect(command, 0);
    }
    let agent = one_agent(&sandbox);
    let main = property(&sandbox, UNIT, "MainPID");
    let parent = sandbox.expect(&format!("ps -o ppid= -p {agent}"), 0);
    assert_eq!(parent.trim(), main);
    assert_eq!(
        sandbox.expect(&format!("ps -o user= -p {agent}"), 0),
        "voice\n"
    );
    let status = sandbox.expect("systemctl status letta-voice-agent-safe", 0);
    assert!(
        status.contains(&format!(
            "Status: \"OK: agent started (PID {agent}), ready\""
        )),
        "{status}"
    );
    assert!(
        sandbox
            .expect("systemctl is-enabled letta-voice-agent-safe", 0)
            .contains("enabled")
    );

    // Both ways to see what it says.
    sandbox.until(
        "the agent's words in the journal",
        "journalctl -u letta-voice-agent-safe | grep -q 'registered worker'",
    );
    assert!(
        sandbox
            .expect("tail /tmp/voice_agent.log", 0)
            .contains("registered worker")
    );

    // All five see it, as its user and as root.
    sandbox.expect("/srv/agent/check_agent_running.sh", 1);
    sandbox.expect("runuser -u voice /srv/agent/start_voice_agent_safe.sh", 1);

    // It goes on through a daemon-reload.
    sandbox.expect("systemctl daemon-reload", 0);
    assert_eq!(one_agent(&sandbox), agent);

    // It has nothing to read again.
    sandbox.expect("! systemctl reload letta-voice-agent-safe", 0);
    assert_eq!(one_agent(&sandbox), agent);

    // Killed, it comes back; whoever of the two was killed.
    sandbox.expect(&format!("kill -9 {agent}"), 0);
    let second = another_agent(&sandbox, UNIT, agent);
    sandbox.expect(
        "kill -9 $(systemctl show -P MainPID letta-voice-agent-safe)",
        0,
    );
    let third = another_agent(&sandbox, UNIT, second);
    sandbox.expect("systemctl reload-or-restart letta-voice-agent-safe", 0);
    let fourth = one_agent(&sandbox);
    assert!(![agent, second, third].contains(&fourth));
    assert_eq!(property(&sandbox, UNIT, "Result"), "success");

    sandbox.expect("systemctl stop letta-voice-agent-safe", 0);
    nothing_left(&sandbox);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "inactive");
    sandbox.expect("/srv/agent/check_agent_running.sh", 0);

    // Enabled, it is there after a boot.
    sandbox.reboot();
    sandbox.until(
        "the unit to be up",
        "systemctl is-active -q letta-voice-agent-safe",
    );
    one_agent(&sandbox);
    no_overlap(&sandbox);
}

#[test]
fn a_stop_leaves_no_process_whatever_the_agent_has_started() {
    let Some(sandbox) = installed("a stop under systemd") else {
        return;
    };
    sandbox.configure(
        "TEST_AGENT_CHILDREN=fork,deaf,setsid,grandchild,spawn,forkserver,system,inheriting\n\
         VOICE_GUARD_GRACE_SECONDS=0.3",
    );
    let agent = started(&sandbox);
    let tasks = sandbox.expect(
        "wc -l </sys/fs/cgroup$(systemctl show -P ControlGroup letta-voice-agent-safe)/cgroup.procs",
        0,
    );
    assert!(
        tasks.trim().parse::<u32>().unwrap() > 9,
        "{}",
        sandbox.describe()
    );
    // Killed, its children must not keep the next one out.
    sandbox.expect(&format!("kill -9 {agent}"), 0);
    another_agent(&sandbox, UNIT, agent);
    sandbox.expect("systemctl stop letta-voice-agent-safe", 0);
    nothing_left(&sandbox);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "inactive");
    no_overlap(&sandbox);
}

#[test]
fn a_broken_agent_ends_in_failure_and_one_that_gives_up_is_started_again() {
    let Some(sandbox) = installed("a crash loop under systemd") else {
        return;
    };
    for (code, result) in [(0, "protocol"), (7, "exit-code")] {
        sandbox.configure(&format!(
            "TEST_AGENT_DIE_AFTER=0\nTEST_AGENT_DIE_SAYING=no server reachable\nTEST_AGENT_DIE_WITH={code}"
        ));
        sandbox.expect(
            "rm -f /srv/state/starts.log; systemctl start letta-voice-agent-safe",
            1,
        );
        sandbox.until(
            "the unit to give up",
            "test \"$(systemctl is-active letta-voice-agent-safe)\" = failed",
        );
        assert_eq!(
            property(&sandbox, UNIT, "Result"),
            result,
            "{}",
            sandbox.describe()
        );
        let starts = sandbox.expect("wc -l </srv/state/starts.log", 0);
        assert_eq!(starts.trim(), "10", "StartLimitBurst=");
        nothing_left(&sandbox);
        let status = sandbox.expect("systemctl status letta-voice-agent-safe", 3);
        assert!(
            status.contains(&format!("has ended: exit status {code}")),
            "{status}"
        );
        sandbox.expect("systemctl reset-failed letta-voice-agent-safe", 0);
    }
    // One that gives up later, when the unit is up: it comes back.
    sandbox.configure(
        "TEST_AGENT_DIE_AFTER=0.6\nTEST_AGENT_DIE_WITH=0\nVOICE_GUARD_VERIFY_SECONDS=0.1",
    );
    sandbox.expect(
        "rm -f /srv/state/starts.log; systemctl start letta-voice-agent-safe",
        0,
    );
    sandbox.until(
        "another start",
        "test $(wc -l </srv/state/starts.log) -gt 1",
    );
    sandbox.configure("");
    sandbox.until(
        "an agent that stays",
        "test $(systemctl show -P NRestarts letta-voice-agent-safe) -gt 0 && \
         systemctl is-active -q letta-voice-agent-safe && \
         tail -1 /tmp/voice_agent.log | grep -q 'registered worker'",
    );
    one_agent(&sandbox);
    let journal = sandbox.expect("journalctl -u letta-voice-agent-safe", 0);
    assert!(journal.contains("has ended: exit status 0"), "{journal}");
}

#[test]
fn the_unit_names_nobody_and_is_configured_by_one_file() {
    let unit = document("systemd/letta-voice-agent-safe.service");
    for line in unit.lines().filter(|line| !line.starts_with('#')) {
        for named in ["/home", "/root", "User=", "Group=", "WorkingDirectory="] {
            assert!(!line.contains(named), "{line}");
        }
    }
    let Some(sandbox) = installed("the unit's configuration") else {
        return;
    };
    // Whoever it is, he has what stands in the env file.
    sandbox.write("/srv/agent/keys.env", "export LIVEKIT_API_KEY='a b'\n");
    sandbox.configure("VOICE_GUARD_ENV_FILE=/srv/agent/keys.env");
    let agent = started(&sandbox);
    sandbox.expect(
        &format!("grep -qzx 'LIVEKIT_API_KEY=a b' /proc/{agent}/environ"),
        0,
    );
    // One that is not there is an error.
    sandbox.expect(
        "rm /srv/agent/keys.env; systemctl restart letta-voice-agent-safe",
        1,
    );
    sandbox.until(
        "the journal to say so",
        "journalctl -u letta-voice-agent-safe | grep -q 'cannot use the env file /srv/agent/keys.env'",
    );
    // It has been tried again until now.
    sandbox.expect(
        "systemctl stop letta-voice-agent-safe; systemctl reset-failed letta-voice-agent-safe; :",
        0,
    );
    // A drop-in alone does it too: the file's lines, as its own.
    sandbox.write("/srv/agent/keys.env", "LIVEKIT_API_KEY=c\n");
    sandbox.expect(
        "{ printf '[Service]\\nUser=voice\\n'; sed -n 's/^[A-Z].*/Environment=&/p' /etc/default/letta-voice-agent; } \
             >/etc/systemd/system/letta-voice-agent-safe.service.d/test.conf
         rm /etc/default/letta-voice-agent; systemctl daemon-reload",
        0,
    );
    let agent = started(&sandbox);
    sandbox.expect(
        &format!("grep -qzx LIVEKIT_API_KEY=c /proc/{agent}/environ"),
        0,
    );
}

#[test]
fn a_second_one_is_refused_once_and_not_tried_again() {
    let Some(sandbox) = installed("single instance under systemd") else {
        return;
    };
    // An agent that somebody has started by hand.
    sandbox.expect(
        "set -a; . /etc/default/letta-voice-agent; runuser -u voice /srv/agent/start_voice_agent_safe.sh",
        0,
    );
    let agent = one_agent(&sandbox);
    sandbox.expect("systemctl start letta-voice-agent-safe", 1);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "failed");
    assert_eq!(property(&sandbox, UNIT, "ExecMainStatus"), "195");
    assert_eq!(property(&sandbox, UNIT, "NRestarts"), "0");
    let status = sandbox.expect("systemctl status letta-voice-agent-safe", 3);
    assert!(
        status.contains("Already running or locked: an agent is running"),
        "{status}"
    );
    assert_eq!(one_agent(&sandbox), agent);
    sandbox.expect("/srv/agent/stop_voice_agent_safe.sh", 0);

    // Two units: under another name, with other files, the same agent.
    sandbox.expect(
        "cp systemd/letta-voice-agent-safe.service /etc/systemd/system/letta-other.service; \
         mkdir -p /etc/systemd/system/letta-other.service.d; \
         cp /etc/systemd/system/letta-voice-agent-safe.service.d/test.conf /etc/systemd/system/letta-other.service.d; \
         systemctl daemon-reload; systemctl start letta-voice-agent-safe",
        0,
    );
    let agent = one_agent(&sandbox);
    sandbox.expect("systemctl start letta-other", 1);
    assert_eq!(property(&sandbox, "letta-other", "ExecMainStatus"), "195");
    assert_eq!(property(&sandbox, "letta-other", "NRestarts"), "0");
    // Both at once.
    sandbox.expect(
        "systemctl stop letta-voice-agent-safe; systemctl reset-failed letta-other; \
         systemctl start letta-voice-agent-safe letta-other",
        1,
    );
    assert_ne!(one_agent(&sandbox), agent);
    let active = sandbox.expect(
        "systemctl is-active letta-voice-agent-safe letta-other; :",
        0,
    );
    assert_eq!(active.matches("failed").count(), 1, "{active}");
    no_overlap(&sandbox);
}

#[test]
fn after_a_boot_a_stale_number_is_somebody_elses_and_nobody_is_hurt() {
    let Some(sandbox) = installed("a boot with a stale PID file") else {
        return;
    };
    // On a disk, where it outlives the boot.
    sandbox.configure("VOICE_GUARD_PID_FILE=/srv/state/agent.pid");
    // Takes the very number that stands in the PID file, before the agent's start.
    sandbox.write(
        "/srv/state/stranger.sh",
        "mount -t proc proc /proc\n\
         number=$(cat /srv/state/agent.pid) || exec sleep 2000\n\
         until echo $((number - 1)) >/proc/sys/kernel/ns_last_pid; sleep 2000 & [ $! = $number ]; do kill $!; done\n\
         echo $! >/srv/state/stranger.pid; wait\n",
    );
    sandbox.write(
        "/etc/systemd/system/stranger.service",
        "[Unit]\nBefore=letta-voice-agent-safe.service\n[Service]\nPrivateMounts=yes\n\
         ExecStart=sh /srv/state/stranger.sh\n\
         ExecStartPost=sh -c 'until test -e /srv/state/stranger.pid || ! test -e /srv/state/agent.pid; do sleep 0.01; done'\n\
         [Install]\nWantedBy=multi-user.target\n",
    );
    sandbox.expect(
        "systemctl daemon-reload; systemctl enable stranger letta-voice-agent-safe",
        0,
    );
    sandbox.expect("systemctl start letta-voice-agent-safe", 0);
    let before = sandbox.expect("cat /srv/state/agent.pid", 0);
    // As a machine that loses its power: nobody removes the file.
    sandbox.expect("cp /srv/state/agent.pid /srv/state/copy; systemctl stop letta-voice-agent-safe; mv /srv/state/copy /srv/state/agent.pid", 0);
    sandbox.reboot();
    sandbox.until(
        "the unit to be up",
        "systemctl is-active -q letta-voice-agent-safe",
    );
    let stranger = sandbox.expect("cat /srv/state/stranger.pid", 0);
    assert_eq!(stranger, before, "{}", sandbox.describe());
    let agent = sandbox.expect("cat /srv/state/agent.pid", 0);
    assert_ne!(agent, before);
    // Neither the start nor a stop has touched the stranger.
    sandbox.expect("systemctl stop letta-voice-agent-safe", 0);
    let line = sandbox.expect(&format!("ps -o args= -p {}", stranger.trim()), 0);
    assert_eq!(line, "sleep 2000\n");
}

#[test]
fn hardening_is_what_the_unit_promises() {
    let Some(sandbox) = installed("the unit's hardening") else {
        return;
    };
    let verified = sandbox.expect("systemd-analyze verify --man=no systemd/*.service && XDG_RUNTIME_DIR=/run systemd-analyze verify --user --man=no systemd/user/*.service", 0);
    assert_eq!(verified, "");
    let said = sandbox.expect(
        &format!("systemd-analyze security --no-pager {UNIT} | tail -1"),
        0,
    );
    let level = said
        .split(": ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok())
        .unwrap_or_else(|| panic!("{said}"));
    assert!(level <= 5.0, "{said}");
    // What a browser's sandbox does needs both lines that the document names.
    let of_a_browser = "unshare --user --map-root-user chroot / true";
    if sandbox.run(of_a_browser).status.code() != Some(0) {
        left_out("a browser's sandbox in the unit", "no user namespaces here");
        return;
    }
    let namespaces = "RestrictNamespaces=no";
    let chroot = "SystemCallFilter=chroot";
    for (lines, code) in [
        (String::new(), 1),
        (namespaces.to_owned(), 1),
        (chroot.to_owned(), 1),
        (format!("{namespaces}\n{chroot}"), 0),
    ] {
        sandbox.drop_in(
            &format!("{UNIT}.service"),
            &format!("[Service]\nUser=voice\nRestart=no\nExecStartPre={of_a_browser}\n{lines}"),
        );
        sandbox.expect("systemctl daemon-reload", 0);
        sandbox.expect("systemctl start letta-voice-agent-safe", code);
    }
    let document = document("docs/systemd.md");
    assert!(document.contains(namespaces) && document.contains(chroot));
}

#[test]
fn the_agent_has_the_limits_of_the_unit() {
    let Some(sandbox) = installed("the unit's limits") else {
        return;
    };
    let agent = started(&sandbox);
    // The soft and the hard one of a process.
    let limit = |pid: u32, name: &str| -> [u64; 2] {
        let limits = sandbox.expect(&format!("cat /proc/{pid}/limits"), 0);
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let mut words = line
            .unwrap_or_else(|| panic!("{limits}"))
            .split_whitespace();
        [words.next(), words.next()].map(|word| match word.unwrap() {
            "unlimited" => u64::MAX,
            number => number.parse().unwrap(),
        })
    };
    assert_eq!(limit(agent, "Max core file size"), [0, 0]);
    // Not beyond what the sandbox itself may give.
    let files = limit(1, "Max open files")[1].min(65536);
    assert_eq!(limit(agent, "Max open files"), [files, files]);
    assert_eq!(property(&sandbox, UNIT, "TasksMax"), "2048");
    let memory = property(&sandbox, UNIT, "MemoryMax");
    assert!(
        memory.parse::<u64>().is_ok_and(|bytes| bytes > 0),
        "{memory}"
    );
    // Where the kernel has these controllers in the unified hierarchy, it counts.
    let group = property(&sandbox, UNIT, "ControlGroup");
    for (file, value) in [("pids.max", "2048"), ("memory.max", memory.as_str())] {
        let path = format!("/sys/fs/cgroup{group}/{file}");
        let set = sandbox.expect(&format!("cat {path} 2>/dev/null || echo none"), 0);
        match set.trim() {
            "none" => left_out(
                &format!("{file} of the unit"),
                "this kernel's controllers are not in the unified hierarchy",
            ),
            set => assert_eq!(set, value),
        }
    }
}

// ---- The commands by hand, while the unit runs.

/// The settings of the unit, for a command by hand.
const SETTINGS: &str = "set -a; . /etc/default/letta-voice-agent; set +a; ";

#[test]
fn commands_by_hand_see_that_systemd_runs_the_agent_and_ask_it() {
    let Some(sandbox) = installed("commands by hand beside the unit") else {
        return;
    };
    let agent = started(&sandbox);
    let named = "run by systemd as letta-voice-agent-safe.service";
    for user in ["root", "voice"] {
        let said = sandbox.expect(
            &format!("runuser -u {user} /srv/agent/start_voice_agent_safe.sh"),
            1,
        );
        assert!(said.contains("ERROR: Already running or locked"), "{said}");
        assert!(said.contains(named), "{said}");
        let said = sandbox.expect(
            &format!("runuser -u {user} /srv/agent/check_agent_running.sh"),
            1,
        );
        assert!(said.contains(named), "{said}");
        // It is kept, whatever its mode.
        let said = sandbox.expect(
            &format!(
                "VOICE_GUARD_AGENT_MODE=start runuser -u {user} /srv/agent/start_voice_system.sh"
            ),
            0,
        );
        assert!(said.contains("kept"), "{said}");
    }
    let json = sandbox.expect("/srv/agent/check_agent_running.sh --json", 1);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["agents"][0]["unit"], "letta-voice-agent-safe.service");
    assert_eq!(one_agent(&sandbox), agent);

    // Who may not ask systemd is told what to type, and nothing is killed.
    for script in ["stop_voice_agent_safe.sh", "stop_voice_system.sh"] {
        let said = sandbox.expect(&format!("runuser -u voice /srv/agent/{script}"), 1);
        assert!(
            said.contains("systemd runs the agent, as letta-voice-agent-safe.service"),
            "{said}"
        );
        assert!(
            said.contains("sudo systemctl stop letta-voice-agent-safe.service"),
            "{said}"
        );
    }
    assert_eq!(one_agent(&sandbox), agent);

    // A restart needs no permission: the unit is always restarted.
    let said = sandbox.expect("runuser -u voice /srv/agent/restart_voice_system.sh", 0);
    let second = one_agent(&sandbox);
    assert_ne!(second, agent, "{said}");
    sandbox.until(
        "the unit to be up",
        "systemctl is-active -q letta-voice-agent-safe",
    );
    // root asks.
    let restarts = property(&sandbox, UNIT, "NRestarts");
    let said = sandbox.expect("/srv/agent/restart_voice_system.sh", 0);
    assert!(
        said.contains("OK: restarted: exactly one agent is running"),
        "{said}"
    );
    let third = one_agent(&sandbox);
    assert_ne!(third, second);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "active");
    assert_eq!(restarts, "1");
    assert_eq!(property(&sandbox, UNIT, "NRestarts"), "0");

    // Without its PID file it is found all the same.
    sandbox.expect(
        "rm -f /tmp/letta_voice_agent.pid /tmp/letta_voice_agent.lock",
        0,
    );
    let said = sandbox.expect("/srv/agent/stop_voice_agent_safe.sh", 0);
    assert!(
        said.contains("systemd has stopped letta-voice-agent-safe.service"),
        "{said}"
    );
    nothing_left(&sandbox);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "inactive");
    assert_eq!(property(&sandbox, UNIT, "NRestarts"), "0");
    sandbox.expect("/srv/agent/stop_voice_agent_safe.sh", 0);
    no_overlap(&sandbox);
}

#[test]
fn duplicates_beside_the_unit_go_and_the_unit_stays() {
    let Some(sandbox) = installed("duplicates beside the unit") else {
        return;
    };
    let by_hand = format!(
        "{SETTINGS} cd /srv/agent; setsid runuser -u voice /usr/bin/python3 letta_voice_agent.py dev \
         >/dev/null 2>&1 & "
    );
    for script in ["start_voice_system.sh", "restart_voice_system.sh"] {
        sandbox.expect("systemctl start letta-voice-agent-safe", 0);
        let agent = one_agent(&sandbox);
        sandbox.expect(&by_hand, 0);
        sandbox.until(
            "the duplicate",
            "/srv/agent/check_agent_running.sh --dry-run | grep -q '2 agents'",
        );
        let said = sandbox.expect(&format!("/srv/agent/{script}"), 0);
        let only = one_agent(&sandbox);
        assert_ne!(only, agent, "{said}");
        assert_eq!(property(&sandbox, UNIT, "ActiveState"), "active");
        let parent = sandbox.expect(&format!("ps -o ppid= -p {only}"), 0);
        assert_eq!(parent.trim(), property(&sandbox, UNIT, "MainPID"));
    }
    // A stop by hand stops both, each in its way.
    sandbox.expect(&by_hand, 0);
    sandbox.until(
        "the duplicate",
        "/srv/agent/check_agent_running.sh --dry-run | grep -q '2 agents'",
    );
    sandbox.expect("/srv/agent/stop_voice_agent_safe.sh", 0);
    nothing_left(&sandbox);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "inactive");
}

#[test]
fn an_agent_that_restarts_itself_asks_systemd() {
    let Some(sandbox) = installed("a restart from inside the unit") else {
        return;
    };
    let mut ways = vec![("voice", "execv"), ("root", "subprocess")];
    if std::env::var_os("VOICE_GUARD_SWEEP").is_some() {
        ways.extend([
            ("voice", "subprocess"),
            ("root", "system"),
            ("root", "execv"),
        ]);
    }
    for (user, by) in ways {
        sandbox.drop_in(
            &format!("{UNIT}.service"),
            &format!("[Service]\nUser={user}\nRestartSec=100ms"),
        );
        sandbox.configure(&format!(
            "TEST_AGENT_RESTART_COMMAND=/srv/agent/restart_voice_system.sh\nTEST_AGENT_RESTART_BY={by}\n\
             TEST_AGENT_CHILDREN=fork,setsid\nVOICE_GUARD_GRACE_SECONDS=0.3"
        ));
        sandbox.expect(
            "rm -f /srv/state/* /tmp/*letta* /tmp/.letta* /tmp/voice_agent.log*; \
             systemctl daemon-reload; systemctl start letta-voice-agent-safe",
            0,
        );
        let agent = one_agent(&sandbox);
        sandbox.expect(&format!("kill -USR1 {agent}"), 0);
        another_agent(&sandbox, UNIT, agent);
        sandbox.until(
            "the unit to be up",
            "systemctl is-active -q letta-voice-agent-safe",
        );
        let agent = one_agent(&sandbox);
        let parent = sandbox.expect(&format!("ps -o ppid= -p {agent}"), 0);
        assert_eq!(parent.trim(), property(&sandbox, UNIT, "MainPID"));
        no_overlap(&sandbox);
        sandbox.expect("systemctl stop letta-voice-agent-safe", 0);
        nothing_left(&sandbox);
    }
}

#[test]
fn a_stop_that_the_unit_itself_calls_does_not_wait_for_the_unit() {
    let Some(sandbox) = installed("ExecStop= and ExecStartPre=") else {
        return;
    };
    sandbox.drop_in(
        &format!("{UNIT}.service"),
        "[Service]\nUser=voice\nExecStartPre=check-agent-running\nExecStop=stop-voice-agent-safe",
    );
    sandbox.expect("systemctl daemon-reload", 0);
    started(&sandbox);
    sandbox.expect("timeout 20 systemctl stop letta-voice-agent-safe", 0);
    nothing_left(&sandbox);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "inactive");
}

#[test]
fn a_stop_or_restart_while_the_unit_starts_goes_by_systemd() {
    let Some(sandbox) = installed("a stop while the unit starts") else {
        return;
    };
    sandbox.configure("TEST_AGENT_READY_DELAY=600\nVOICE_GUARD_VERIFY_SECONDS=600");
    sandbox.expect("systemctl start --no-block letta-voice-agent-safe", 0);
    sandbox.until("the agent to be born", "test -s /srv/state/starts.log");
    // Originals see the startup lock, others the guard.
    let starter = property(&sandbox, UNIT, "MainPID");
    let lock = sandbox.expect("cat /tmp/letta_voice_agent.lock", 0);
    assert_eq!(lock.trim(), starter);
    sandbox.expect("/srv/agent/check_agent_running.sh", 1);
    let said = sandbox.expect("/srv/agent/stop_voice_agent_safe.sh", 0);
    assert!(
        said.contains("systemd has stopped letta-voice-agent-safe.service"),
        "{said}"
    );
    nothing_left(&sandbox);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "inactive");

    sandbox.expect(
        "rm /srv/state/starts.log; systemctl start --no-block letta-voice-agent-safe",
        0,
    );
    sandbox.until("the agent to be born", "test -s /srv/state/starts.log");
    sandbox.configure("");
    sandbox.expect("/srv/agent/restart_voice_system.sh", 0);
    one_agent(&sandbox);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "active");
    assert_eq!(property(&sandbox, UNIT, "NRestarts"), "0");
    no_overlap(&sandbox);
}

#[test]
fn a_stop_while_the_unit_starts_gives_the_agent_its_time() {
    let Some(sandbox) = installed("a slow stop while the unit starts") else {
        return;
    };
    sandbox.drop_in(
        &format!("{UNIT}.service"),
        "[Service]\nUser=voice\nTimeoutStopSec=3",
    );
    sandbox.configure(
        "TEST_AGENT_CHILDREN=deaf\nTEST_AGENT_READY_DELAY=600\n\
         VOICE_GUARD_VERIFY_SECONDS=600\nVOICE_GUARD_GRACE_SECONDS=4",
    );
    sandbox.expect(
        "systemctl daemon-reload; systemctl start --no-block letta-voice-agent-safe",
        0,
    );
    sandbox.until(
        "the agent's worker to be born",
        "test -s /srv/state/children.log",
    );
    sandbox.expect("systemctl stop letta-voice-agent-safe", 0);
    nothing_left(&sandbox);
    // Not ended by systemd, which has been told how long it takes.
    assert_eq!(
        property(&sandbox, UNIT, "Result"),
        "success",
        "{}",
        sandbox.describe()
    );
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "inactive");
}

#[test]
fn between_two_starts_of_the_unit_systemd_is_asked() {
    let Some(sandbox) = installed("a stop between two starts of the unit") else {
        return;
    };
    sandbox.drop_in(
        &format!("{UNIT}.service"),
        "[Service]\nUser=voice\nRestartSec=10min",
    );
    sandbox.expect("systemctl daemon-reload", 0);
    let agent = started(&sandbox);
    sandbox.expect(&format!("kill -9 {agent}"), 0);
    sandbox.until(
        "the unit to wait",
        "test \"$(systemctl show -P SubState letta-voice-agent-safe)\" = auto-restart",
    );
    let said = sandbox.expect("/srv/agent/start_voice_agent_safe.sh", 1);
    assert!(
        said.contains("ERROR: Already running or locked: systemd will start"),
        "{said}"
    );
    assert!(
        said.contains("systemctl restart letta-voice-agent-safe.service"),
        "{said}"
    );
    sandbox.expect("runuser -u voice /srv/agent/stop_voice_agent_safe.sh", 1);
    // systemd starts it now.
    sandbox.expect("/srv/agent/start_voice_system.sh", 0);
    let mut before = agent;
    for script in ["restart_voice_system.sh", "stop_voice_agent_safe.sh"] {
        let agent = one_agent(&sandbox);
        assert_ne!(agent, before);
        assert_eq!(property(&sandbox, UNIT, "ActiveState"), "active");
        sandbox.expect(&format!("kill -9 {agent}"), 0);
        sandbox.until(
            "the unit to wait",
            "test \"$(systemctl show -P SubState letta-voice-agent-safe)\" = auto-restart",
        );
        sandbox.expect(&format!("/srv/agent/{script}"), 0);
        before = agent;
    }
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "inactive");
    nothing_left(&sandbox);
}

#[test]
fn while_the_last_agents_workers_are_ended_systemd_is_asked() {
    let Some(sandbox) = installed("a stop or start while a dead agent's workers are ended") else {
        return;
    };
    // Its worker is deaf, so that the unit takes its time to end.
    sandbox.configure("TEST_AGENT_CHILDREN=deaf\nVOICE_GUARD_GRACE_SECONDS=1");
    let agent = started(&sandbox);
    let state = "systemctl show -P SubState letta-voice-agent-safe";
    // In one go: it is soon over.
    let killed = |agent: u32, then: &str, code: i32| {
        sandbox.expect(
            &format!(
                "kill -9 {agent}; until test \"$({state})\" = stop-sigterm; do :; done; {SETTINGS}{then}"
            ),
            code,
        )
    };
    let said = killed(agent, "/srv/agent/start_voice_agent_safe.sh", 1);
    assert!(said.contains("systemd will start"), "{said}");
    let agent = another_agent(&sandbox, UNIT, agent);
    // Whether systemd has heard of it or not.
    let said = sandbox.expect(
        &format!("{SETTINGS}kill -9 {agent}; /srv/agent/start_voice_agent_safe.sh"),
        1,
    );
    // It may be seen while it dies.
    assert!(said.contains("Already running or locked"), "{said}");
    let agent = another_agent(&sandbox, UNIT, agent);
    assert_eq!(property(&sandbox, UNIT, "Result"), "success");
    // Brought up by systemd all the same.
    killed(agent, "/srv/agent/start_voice_system.sh", 0);
    let agent = one_agent(&sandbox);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "active");
    killed(agent, "/srv/agent/stop_voice_agent_safe.sh", 0);
    // It says how its agent has died, and does not come back.
    assert_eq!(property(&sandbox, UNIT, "SubState"), "failed");
    nothing_left(&sandbox);
    // What systemd stops does not come back: a start by hand takes over.
    let agent = started(&sandbox);
    sandbox.expect("systemctl stop --no-block letta-voice-agent-safe", 0);
    sandbox.until(
        "the stop to begin",
        &format!("test \"$({state})\" = stop-sigterm && ! ps -p {agent} -o args= | grep -q letta"),
    );
    sandbox.expect(
        &format!("{SETTINGS}runuser -u voice /srv/agent/start_voice_agent_safe.sh"),
        0,
    );
    assert_ne!(one_agent(&sandbox), agent);
    inactive(&sandbox, UNIT);
    one_agent(&sandbox);
    no_overlap(&sandbox);
    sandbox.expect(
        &format!("{SETTINGS}VOICE_GUARD_GRACE_SECONDS=0 /srv/agent/stop_voice_agent_safe.sh"),
        0,
    );
}

// ---- The other units.

/// A voice system with one companion beside the agent.
const SYSTEM: &str = r#"
[agent]
needs = ["companion"]

[[companion]]
name = "companion"
command = ["/bin/sleep", "3000"]
ready = { alive_seconds = 0.05 }
"#;

fn system_installed(what: &str) -> Option<Sandbox> {
    let sandbox = installed(what)?;
    sandbox.write("/srv/agent/voice-system.toml", SYSTEM);
    sandbox.drop_in("letta-voice-system.service", "[Service]\nUser=voice");
    sandbox.expect(
        "cp systemd/letta-voice-system.service /etc/systemd/system/; systemctl daemon-reload",
        0,
    );
    Some(sandbox)
}

fn companion(sandbox: &Sandbox) -> String {
    let pids = sandbox.expect("pgrep -xf '/bin/sleep 3000' || :", 0);
    pids.trim().to_owned()
}

#[test]
fn the_voice_system_is_up_and_down_with_its_unit() {
    let Some(sandbox) = system_installed("the voice system's unit") else {
        return;
    };
    sandbox.expect(
        "systemctl enable letta-voice-system; systemctl start letta-voice-system",
        0,
    );
    let agent = one_agent(&sandbox);
    let first = companion(&sandbox);
    assert!(first.parse::<u32>().is_ok(), "{}", sandbox.describe());
    sandbox.until(
        "its words in the journal",
        "journalctl -u letta-voice-system | grep -q 'the voice system is up'",
    );
    // By hand beside it: the same system.
    sandbox.expect("runuser -u voice /srv/agent/start_voice_system.sh", 0);
    assert_eq!(
        (one_agent(&sandbox), companion(&sandbox)),
        (agent, first.clone())
    );
    sandbox.expect("systemctl reload letta-voice-system", 0);
    assert_ne!(one_agent(&sandbox), agent);
    assert_eq!(companion(&sandbox), first, "it is no fresh one");
    sandbox.expect("systemctl stop letta-voice-system", 0);
    nothing_left(&sandbox);
    assert_eq!(companion(&sandbox), "");
    assert_eq!(
        property(&sandbox, "letta-voice-system", "ActiveState"),
        "inactive"
    );
}

#[test]
fn both_units_share_one_agent_which_the_agents_unit_runs() {
    let Some(sandbox) = system_installed("both units together") else {
        return;
    };
    sandbox.expect(
        "systemctl enable letta-voice-system letta-voice-agent-safe",
        0,
    );
    sandbox.reboot();
    for unit in [UNIT, "letta-voice-system"] {
        sandbox.until("both to be up", &format!("systemctl is-active -q {unit}"));
    }
    let agent = one_agent(&sandbox);
    let parent = sandbox.expect(&format!("ps -o ppid= -p {agent}"), 0);
    assert_eq!(parent.trim(), property(&sandbox, UNIT, "MainPID"));
    assert!(companion(&sandbox).parse::<u32>().is_ok());
    let before = companion(&sandbox);
    // A user who may not ask systemd cannot restart both, and is told who can.
    let said = sandbox.expect("runuser -u voice /srv/agent/restart_voice_system.sh", 1);
    assert!(
        said.contains("sudo systemctl restart letta-voice-agent-safe.service"),
        "{said}"
    );
    assert_eq!((one_agent(&sandbox), companion(&sandbox)), (agent, before));
    // root restarts all of it: each part by whoever runs it.
    sandbox.expect("runuser -u root /srv/agent/restart_voice_system.sh", 0);
    let second = one_agent(&sandbox);
    assert_ne!(second, agent);
    assert_eq!(property(&sandbox, UNIT, "ActiveState"), "active");
    // The one stops while the other has to wait for it; nobody waits for ever.
    sandbox.expect(
        "timeout 20 systemctl stop letta-voice-system letta-voice-agent-safe",
        0,
    );
    nothing_left(&sandbox);
    assert_eq!(companion(&sandbox), "");
}

#[test]
fn a_user_without_root_has_a_unit_of_his_own() {
    let Some(sandbox) = Sandbox::with_agent("the user's unit") else {
        return;
    };
    if sandbox
        .run("loginctl enable-linger voice && systemctl start user@4321.service")
        .status
        .code()
        != Some(0)
    {
        left_out(
            "the user's unit",
            "no systemd of a user's own (libpam-systemd, dbus)",
        );
        return;
    }
    // What the head of the file says, as that user.
    let user = "runuser -u voice -- env XDG_RUNTIME_DIR=/run/user/4321 sh -c";
    let typed = |line: &str, code: i32| sandbox.expect(&format!("{user} '{line}'"), code);
    let unit = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../systemd/user/letta-voice-agent.service"
    ))
    .unwrap();
    typed(
        "mkdir -p ~/.config/voice-guard; cp /etc/default/letta-voice-agent ~/.config/voice-guard/letta-voice-agent.env",
        0,
    );
    let commands: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .collect();
    assert_eq!(commands.len(), 5);
    for command in commands {
        typed(command, 0);
    }
    let agent = one_agent(&sandbox);
    let named = "run by systemd as letta-voice-agent.service";
    assert!(typed("/srv/agent/check_agent_running.sh", 1).contains(named));
    assert!(
        sandbox
            .expect("/srv/agent/start_voice_agent_safe.sh", 1)
            .contains(named)
    );
    sandbox.expect(&format!("kill -9 {agent}"), 0);
    sandbox.until(
        "another agent",
        &format!("test -s /tmp/letta_voice_agent.pid && test \"$(cat /tmp/letta_voice_agent.pid)\" != {agent} && test ! -e /tmp/letta_voice_agent.lock"),
    );
    let second = one_agent(&sandbox);
    // Another user may not, and is told who may.
    let other = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let said = sandbox.expect(&format!("{other} /srv/agent/stop_voice_agent_safe.sh"), 1);
    assert!(
        said.contains("systemctl --user stop letta-voice-agent.service, as user voice"),
        "{said}"
    );
    sandbox.expect(&format!("{other} /srv/agent/start_voice_system.sh"), 0);
    assert_eq!(one_agent(&sandbox), second);
    // He restarts it through his systemd, and root does too.
    typed("/srv/agent/restart_voice_system.sh", 0);
    let third = one_agent(&sandbox);
    assert_ne!(third, second);
    let said = sandbox.expect("/srv/agent/stop_voice_agent_safe.sh", 0);
    assert!(
        said.contains("systemd has stopped letta-voice-agent.service"),
        "{said}"
    );
    nothing_left(&sandbox);
    assert_eq!(
        typed("systemctl --user is-active letta-voice-agent", 3),
        "inactive\n"
    );
    no_overlap(&sandbox);

    // Between two starts it is known, also where a package or the administrator
    // has put it.
    sandbox.expect(
        "rm -r /srv/agent/.config/systemd; cp systemd/user/letta-voice-agent.service /etc/systemd/user/; \
         mkdir /etc/systemd/user/letta-voice-agent.service.d; \
         printf '[Service]\\nRestartSec=10min\\n' >/etc/systemd/user/letta-voice-agent.service.d/test.conf",
        0,
    );
    typed("systemctl --user daemon-reload", 0);
    typed("systemctl --user start letta-voice-agent", 0);
    let agent = one_agent(&sandbox);
    sandbox.expect(&format!("kill -9 {agent}"), 0);
    sandbox.until(
        "the unit to wait",
        &format!(
            "test \"$({user} 'systemctl --user show -P SubState letta-voice-agent')\" = auto-restart"
        ),
    );
    assert!(typed("/srv/agent/start_voice_agent_safe.sh", 1).contains("systemd will start"),);
    typed("/srv/agent/stop_voice_agent_safe.sh", 0);
    assert_eq!(
        typed("systemctl --user is-active letta-voice-agent", 3),
        "inactive\n"
    );
    nothing_left(&sandbox);
}

#[test]
fn cleaners_of_tmp_leave_the_tracking_files() {
    let Some(sandbox) = Sandbox::with_agent("the cleaners of /tmp") else {
        return;
    };
    let files = "/tmp/letta_voice_agent.pid /tmp/letta_voice_agent.lock /tmp/.letta_voice_agent.guard \
                 /tmp/voice_agent.log /tmp/voice_agent_start.log /tmp/voice-guard-4321/x-1/companion.pid \
                 /tmp/.voice-system-x-1.guard";
    // Without an age, everything is cleaned that nothing keeps.
    sandbox.expect(
        &format!(
            "cp systemd/letta-voice-agent.tmpfiles.conf /etc/tmpfiles.d/letta-voice-agent.conf
             echo 'q /tmp 1777 root root 0' >/etc/tmpfiles.d/tmp.conf
             mkdir -p /tmp/voice-guard-4321/x-1
             for file in {files} /tmp/others; do echo 1 >$file; done
             systemctl start systemd-tmpfiles-clean"
        ),
        0,
    );
    sandbox.expect("ls /tmp/others", 2);
    sandbox.expect(&format!("ls {files}"), 0);
}

// ---- The real worker.

#[test]
fn livekit_agents_1_4_6_is_one_worker_whatever_systemd_does_with_it() {
    let what = "livekit-agents 1.4.6 under systemd";
    let Some(venvs) = std::env::var_os("VOICE_GUARD_REAL_AGENTS") else {
        left_out(
            what,
            "VOICE_GUARD_REAL_AGENTS names no folder; scripts/test makes one and sets it",
        );
        return;
    };
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = clone.join(venvs).join("1.4.6/bin/python");
    if !python.is_file() {
        left_out(what, "it is not there; scripts/real-agents makes it");
        return;
    }
    let Some(sandbox) = Sandbox::with_agent(what) else {
        return;
    };
    let python = python.display();
    for command in &INSTALL[..2] {
        sandbox.expect(command, 0);
    }
    sandbox.drop_in(&format!("{UNIT}.service"), "[Service]\nRestartSec=100ms");
    sandbox.expect(
        &format!(
            "cp tests/real/letta_voice_agent.py /srv/agent/
             systemctl daemon-reload
             systemd-run -q --unit=endpoint -p StandardOutput=file:/run/endpoint.out \
                 sh -c 'sleep infinity | {python} '$PWD'/tests/real/livekit-endpoint.py --port 0'"
        ),
        0,
    );
    sandbox.until("the endpoint", "grep -q listening /run/endpoint.out");
    let port = sandbox.expect("sed -n 's/listening //p' /run/endpoint.out", 0);
    let port = port.trim();
    sandbox.write(
        "/srv/agent/.env",
        &format!(
            "LIVEKIT_URL=ws://127.0.0.1:{port}\nLIVEKIT_API_KEY=devkey\n\
             LIVEKIT_API_SECRET=secret-secret-secret-secret-secret\n"
        ),
    );
    sandbox.configure(&format!(
        "VOICE_GUARD_PYTHON={python}\nVOICE_GUARD_VERIFY_SECONDS=120"
    ));
    let workers = |wanted: u32| {
        let said = sandbox.expect(
            &format!(
                "{python} -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:{port}/workers?registered={wanted}&within=60\").read().decode())'"
            ),
            0,
        );
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["registered"], wanted, "{said}\n{}", sandbox.describe());
        assert_eq!(said["connected"], wanted, "{said}\n{}", sandbox.describe());
        assert_eq!(
            said["most_at_once"],
            1,
            "two at once\n{}",
            sandbox.describe()
        );
    };
    let mut agent = started(&sandbox);
    workers(1);
    // KILL and TERM both leave its worker behind, registered.
    for signal in ["KILL", "TERM", "HUP"] {
        sandbox.expect(&format!("kill -{signal} {agent}"), 0);
        agent = another_agent(&sandbox, UNIT, agent);
        workers(1);
    }
    sandbox.expect("systemctl restart letta-voice-agent-safe", 0);
    workers(1);
    sandbox.expect("/srv/agent/restart_voice_system.sh", 0);
    one_agent(&sandbox);
    workers(1);
    sandbox.expect("systemctl stop letta-voice-agent-safe", 0);
    workers(0);
    let left = sandbox.expect(
        "grep -l VOICE_GUARD_MARK /proc/[0-9]*/environ 2>/dev/null; :",
        0,
    );
    assert_eq!(left, "", "{}", sandbox.describe());
}

// ---- The documents.

/// The lines of a document's shell blocks, each with the exit status that its
/// comment gives it (`# exit 1`); a loop is one line.
fn typed(document: &str) -> Vec<(String, i32)> {
    let mut lines: Vec<(String, i32)> = Vec::new();
    let mut open = false;
    let mut looping = false;
    for line in document.lines() {
        match line {
            "```sh" => open = true,
            "```" => open = false,
            _ if open && looping => {
                let (last, _) = lines.last_mut().unwrap();
                *last += "\n";
                *last += line;
                looping = line != "done";
            }
            _ if open => {
                looping = line.ends_with("; do");
                let status = line.split_once("# exit ").map_or(0, |(_, rest)| {
                    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    digits.parse().unwrap()
                });
                lines.push((line.to_owned(), status));
            }
            _ => {}
        }
    }
    lines
}

fn document(path: &str) -> String {
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(clone.join(path)).unwrap()
}

/// A reader's machine: the demo agent, links beside it, and the programs where
/// `scripts/programs` says.
fn readers_machine(what: &str) -> Option<Sandbox> {
    let sandbox = Sandbox::with_agent(what)?;
    sandbox.expect(
        "cp scripts/demo/letta_voice_agent.py /srv/agent/; rm /etc/default/letta-voice-agent",
        0,
    );
    Some(sandbox)
}

#[test]
fn every_command_of_the_document_does_what_it_says() {
    let Some(sandbox) = readers_machine("the commands of docs/systemd.md") else {
        return;
    };
    let lines = typed(&document("docs/systemd.md"));
    assert!(lines.len() > 20, "{lines:?}");
    let programs = sandbox.expect(
        "dirname \"$(readlink /usr/local/bin/check-agent-running)\"",
        0,
    );
    for (line, status) in lines {
        sandbox.expect(
            &format!("export VOICE_GUARD_PROGRAMS={}\n{line}", programs.trim()),
            status,
        );
    }
    // Its last line asks systemd to stop the agent too, and does not wait for it.
    inactive(&sandbox, UNIT);
    nothing_left(&sandbox);
}

#[test]
fn the_commands_of_the_readme_start_the_service() {
    let Some(sandbox) = readers_machine("the README's commands for systemd") else {
        return;
    };
    let readme = document("README.md");
    let (_, section) = readme.split_once("\n## Under systemd\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines = typed(section);
    assert!(
        INSTALL
            .iter()
            .all(|line| lines.contains(&((*line).to_owned(), 0)))
    );
    for (line, status) in lines {
        sandbox.expect(&line, status);
    }
    one_agent(&sandbox);
}
