//! What the voice system's programs must not do to others: hang on them, remove
//! or empty what is theirs, stop them, or take them for parts of the system.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use scenarios::surroundings::{self, OtherUser};
use scenarios::system::{System, free_port};
use scenarios::{available, text, until};

/// A program that becomes root, also by its real user number, as `sudo` does.
fn make_sudo(system: &System) -> Option<String> {
    if !available(&["setpriv"], "a command that becomes root") {
        return None;
    }
    let path = system.world.path("sudo");
    fs::copy("/usr/bin/setpriv", &path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    let become_root = "\"--reuid=0\", \"--regid=0\", \"--clear-groups\"";
    Some(format!("\"{}\", {become_root}", path.display()))
}

#[test]
fn a_command_that_has_become_root_holds_nothing_up() {
    let Some(user) = OtherUser::nobody("a command that becomes root") else {
        return;
    };
    let mut system = System::new();
    user.moves_into(&mut system.world);
    let Some(sudo) = make_sudo(&system) else {
        return;
    };
    let configure = |text: &str| {
        fs::write(system.world.project().join("voice-system.toml"), text).unwrap();
    };
    let start = || {
        let mut command = system.command("start_voice_system.sh", &[]);
        user.runs(&mut command);
        command
    };
    let roots = || {
        let mut all = system.world.processes();
        all.retain(|process| process.argv.first().is_some_and(|word| word == "sleep"));
        all.iter().map(|process| process.pid).collect::<Vec<_>>()
    };
    // Past its deadline.
    configure(&format!(
        "[[companion]]\nname = \"db\"\ncheck = [\"false\"]\n\
         start = [{sudo}, \"sleep\", \"1000\"]\ndeadline_seconds = 0.3\n[agent]\nneeds = [\"db\"]"
    ));
    let output = surroundings::run(&system.world, start());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let [pid] = roots()[..] else {
        panic!("{said}\n{}", system.world.describe());
    };
    assert!(
        said.contains(&format!(
            "not done within 0.3 s, and goes on as PID {pid}, which this user may not end"
        )),
        "{said}"
    );
    system.world.kill(pid);
    // Interrupted.
    configure(&format!(
        "[[step]]\nname = \"root\"\nwhen = \"before_agent\"\ncommand = [{sudo}, \"sleep\", \"1000\"]"
    ));
    let mut child = start().spawn().unwrap();
    until("the step to have become root", || roots().len() == 1);
    system.world.signal(child.id(), Signal::INT);
    until("the start to end", || child.try_wait().unwrap().is_some());
    system.world.kill(roots()[0]);
    // A companion of ours that is not ready, and cannot be ended.
    configure(&format!(
        "[agent]\nneeds = [\"one\"]\n[[companion]]\nname = \"one\"\ncommand = [{sudo}, \"sleep\", \"1000\"]\n\
         deadline_seconds = 0.3\nready = {{ port = {} }}",
        free_port()
    ));
    let output = surroundings::run(&system.world, start());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("one failed"), "{said}");
    system.world.kill(roots()[0]);
}
