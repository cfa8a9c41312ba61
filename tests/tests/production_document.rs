//! Every command in `docs/production.md`, as it stands there, under a systemd.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::fs;
use std::path::Path;

use scenarios::document::script;
use scenarios::{Sandbox, available};

#[test]
fn every_command_of_the_document_does_what_it_says() {
    let what = "the commands of docs/production.md";
    if !available(&["logrotate"], what) {
        return;
    }
    let Some(sandbox) = Sandbox::with_agent(what) else {
        return;
    };
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = fs::read_to_string(clone.join("docs/production.md")).unwrap();
    // A reader has his settings, and the agent in the folder where he types.
    sandbox.write(
        "/run/reader.sh",
        &format!(
            "set -a; . /etc/default/letta-voice-agent; set +a\n{}",
            script("docs/production.md", &document)
        ),
    );
    sandbox.expect("bash /run/reader.sh", 0);
    let left = sandbox.run("pgrep -f letta_voice_agent.py");
    assert_eq!(left.status.code(), Some(1), "an agent is left");
}
