//! The monitor's units under a real systemd: metrics, and alerts in the journal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use scenarios::{Sandbox, text};

const MONITOR: &str = "letta-voice-agent-monitor";
const METRICS: &str = "/var/lib/voice-guard/voice_guard.prom";

/// The monitor installed as its own file says.
fn installed(what: &str) -> Option<Sandbox> {
    let sandbox = Sandbox::with_agent(what)?;
    sandbox.expect(
        "cp systemd/letta-voice-agent-monitor.* /etc/systemd/system/ && systemctl daemon-reload",
        0,
    );
    Some(sandbox)
}

/// Starts an agent as its user would by hand.
fn start(sandbox: &Sandbox) {
    as_voice(sandbox, "start-voice-agent-safe");
}

fn as_voice(sandbox: &Sandbox, program: &str) {
    sandbox.expect(
        &format!(
            "set -a; . /etc/default/letta-voice-agent; \
             setpriv --reuid voice --regid voice --clear-groups {program}"
        ),
        0,
    );
}

/// One look; whether the unit has failed by it.
fn look(sandbox: &Sandbox) -> bool {
    let status = sandbox.run(&format!("systemctl start {MONITOR}")).status;
    let failed = sandbox
        .run(&format!("systemctl is-failed -q {MONITOR}"))
        .status;
    assert_eq!(status.success(), !failed.success());
    failed.success()
}

fn metric(sandbox: &Sandbox, name: &str) -> String {
    let line = format!("sed -n 's/^voice_guard_{name}{{.*}} //p' {METRICS}");
    sandbox.expect(&line, 0).trim().to_owned()
}

/// What the journal has of a priority or a more urgent one.
fn journal(sandbox: &Sandbox, priority: &str) -> Vec<String> {
    let line =
        format!("journalctl --sync; journalctl -u {MONITOR} -p {priority} -o cat -q --no-pager");
    sandbox
        .expect(&line, 0)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn monitor_writes_metrics_and_alerts_through_the_journal() {
    let Some(sandbox) = installed("the monitor's unit") else {
        return;
    };
    // As always, its timer is there; but this test says when it is looked. Without
    // one, systemd forgets the unit at once, and then the journal does not know
    // how silent it is to be.
    sandbox.drop_in(
        &format!("{MONITOR}.timer"),
        "[Timer]\nOnCalendar=\nOnBootSec=1d",
    );
    sandbox.expect(
        &format!("systemctl daemon-reload; systemctl start {MONITOR}.timer"),
        0,
    );
    // All is well: metrics, and not a word in the journal.
    start(&sandbox);
    assert!(!look(&sandbox), "{}", sandbox.describe());
    assert_eq!(metric(&sandbox, "health"), "0");
    assert_eq!(metric(&sandbox, "agents"), "1");
    assert!(!metric(&sandbox, "agent_start_time_seconds").is_empty());
    assert_eq!(journal(&sandbox, "debug"), [""; 0]);
    let readable = sandbox.expect(&format!("stat -c %a {METRICS}"), 0);
    assert_eq!(readable.trim(), "644");

    // Something lies around: a warning, and no failure; it still lies there.
    sandbox.expect("echo 4194304 >/tmp/letta_voice_agent.lock", 0);
    assert!(!look(&sandbox), "{}", sandbox.describe());
    assert_eq!(metric(&sandbox, "stale_files"), "1");
    assert_eq!(metric(&sandbox, "health"), "1");
    let warned = journal(&sandbox, "warning");
    assert!(
        warned.len() == 1 && warned[0].starts_with("VOICE AGENT WARNING: "),
        "{warned:?}"
    );
    sandbox.expect("rm /tmp/letta_voice_agent.lock", 0);

    // The agent is killed: an error, and a failed unit.
    sandbox.expect("kill -9 $(cat /tmp/letta_voice_agent.pid)", 0);
    sandbox.until(
        "the agent to be dead",
        "! ps -p $(cat /tmp/letta_voice_agent.pid)",
    );
    assert!(look(&sandbox), "{}", sandbox.describe());
    assert_eq!(metric(&sandbox, "health"), "2");
    assert_eq!(metric(&sandbox, "agents"), "0");
    // Its PID file is stale now, and not the monitor's to remove.
    assert_eq!(metric(&sandbox, "stale_files"), "1");
    sandbox.expect("test -e /tmp/letta_voice_agent.pid", 0);
    let said = journal(&sandbox, "err");
    assert!(
        said.iter()
            .any(|line| line.starts_with("VOICE AGENT CRITICAL: no agent runs")),
        "{said:?}"
    );

    // And well again.
    start(&sandbox);
    // Without systemd's own words on the failure, which may come late.
    let said = || {
        let mut said = journal(&sandbox, "debug");
        said.retain(|line| line.starts_with("VOICE AGENT"));
        said
    };
    let before = said();
    assert!(!look(&sandbox), "{}", sandbox.describe());
    assert_eq!(said(), before);
    as_voice(&sandbox, "stop-voice-agent-safe");
}

#[test]
fn timer_looks_by_itself_and_whoever_is_to_be_called_is_called() {
    let Some(sandbox) = installed("the monitor's timer") else {
        return;
    };
    let minutely = sandbox.expect(&format!("systemctl cat {MONITOR}.timer"), 0);
    assert!(minutely.contains("OnCalendar=minutely"), "{minutely}");
    // A minute is long for a test.
    sandbox.drop_in(
        &format!("{MONITOR}.timer"),
        "[Timer]\nOnCalendar=\nOnCalendar=*:*:*\nAccuracySec=10ms",
    );
    sandbox.drop_in(
        &format!("{MONITOR}.service"),
        "[Unit]\nOnFailure=call-somebody.service\nStartLimitIntervalSec=0",
    );
    sandbox.write(
        "/etc/systemd/system/call-somebody.service",
        "[Service]\nType=oneshot\nExecStart=touch /run/called\n",
    );
    sandbox.expect(
        &format!("systemctl daemon-reload; systemctl enable --now {MONITOR}.timer"),
        0,
    );
    sandbox.until("a look", &format!("grep 'health{{.*}} 2' {METRICS}"));
    sandbox.until("the call", "test -e /run/called");
    start(&sandbox);
    // It goes on after a failure.
    sandbox.until("another look", &format!("grep 'health{{.*}} 0' {METRICS}"));
    as_voice(&sandbox, "stop-voice-agent-safe");
}

#[test]
fn metrics_go_where_a_collector_looks_whoever_owns_that() {
    let Some(sandbox) = installed("metrics in a collector's folder") else {
        return;
    };
    let folder = "/var/lib/prometheus/node-exporter";
    sandbox.configure(&format!(
        "VOICE_GUARD_METRICS_FILE={folder}/voice_guard.prom"
    ));
    sandbox.expect(&format!("mkdir -p {folder} && chown voice {folder}"), 0);
    assert!(look(&sandbox), "no agent runs");
    let agents = format!("grep '^voice_guard_agents{{.*}} 0$' {folder}/voice_guard.prom");
    sandbox.expect(&agents, 0);
    sandbox.expect(&format!("test -e {METRICS}"), 1);
}

#[test]
fn monitor_is_confined() {
    let Some(sandbox) = installed("what the monitor may do") else {
        return;
    };
    let said = sandbox.run(&format!(
        "systemd-analyze security --no-pager --threshold=30 {MONITOR}.service"
    ));
    assert!(said.status.success(), "{}", text(&said));
}
