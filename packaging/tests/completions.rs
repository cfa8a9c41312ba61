//! The completions, in the shells themselves: something is begun on a terminal,
//! the tabulator key is pressed, and what comes of it is run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use scenarios::surroundings::Terminal;
use scenarios::{Program, World, available, text};

/// A world with the completions in `made`, and for each program a stand-in that
/// says with what it was called.
fn world() -> World {
    let mut world = World::new();
    let output = Command::new(env!("CARGO_BIN_EXE_packaging"))
        .arg(world.path("made"))
        .args(["--date", "2026-11-24"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let folder = world.path("bin");
    fs::create_dir(&folder).unwrap();
    for program in Program::ALL {
        let stand_in = folder.join(program.name());
        fs::write(&stand_in, "#!/bin/sh\necho \"called ${0##*/} $*.\"\n").unwrap();
        fs::set_permissions(&stand_in, Permissions::from_mode(0o755)).unwrap();
    }
    world.set(
        "PATH",
        format!("{}:/usr/local/bin:/usr/bin:/bin", folder.display()),
    );
    world.set("TERM", "xterm");
    fs::create_dir(world.path("scratch/a-folder")).unwrap();
    fs::write(world.path("scratch/a-file"), "").unwrap();
    world
}

/// What is typed up to the tabulator key, and what is called in the end.
fn presses(world: &World) -> Vec<(String, String)> {
    let scratch = world.scratch();
    let scratch = scratch.display();
    vec![
        (
            "check-agent-running --dr".into(),
            "called check-agent-running --dry-run.".into(),
        ),
        (
            "start-voice-agent-safe --agent-s".into(),
            "called start-voice-agent-safe --agent-script.".into(),
        ),
        (
            "stop-voice-system --al".into(),
            "called stop-voice-system --all.".into(),
        ),
        (
            "start-voice-system --check".into(),
            "called start-voice-system --check-config.".into(),
        ),
        (
            "stop-voice-agent-safe --agent-mode conn".into(),
            "called stop-voice-agent-safe --agent-mode connect.".into(),
        ),
        (
            format!("restart-voice-system --env-file {scratch}/a-fi"),
            format!("called restart-voice-system --env-file {scratch}/a-file."),
        ),
        (
            format!("restart-voice-system --project-dir {scratch}/a-fo"),
            format!("called restart-voice-system --project-dir {scratch}/a-folder"),
        ),
    ]
}

#[track_caller]
fn assert_completes(world: &World, shell: &[&str]) {
    let mut terminal = Terminal::new(world, shell);
    terminal.until_shows("ready> ");
    for (typed, called) in presses(world) {
        terminal.types(&format!("{typed}\t"));
        terminal.until_shows(&called);
    }
    terminal.types("exit");
    let _ = terminal.end();
}

#[test]
fn bash_completes() {
    if !available(&["bash"], "completion in bash") {
        return;
    }
    let world = world();
    let made = world.path("made/bash");
    let start = world.path("start.bash");
    fs::write(
        &start,
        format!(
            "PS1='re''ady> '\nfor file in '{}'/*; do . \"$file\"; done\n",
            made.display()
        ),
    )
    .unwrap();
    assert_completes(&world, &["bash", "--rcfile", start.to_str().unwrap(), "-i"]);
}

#[test]
fn zsh_completes() {
    if !available(&["zsh"], "completion in zsh") {
        return;
    }
    let mut world = world();
    let made = world.path("made/zsh");
    fs::write(
        world.path("home/.zshrc"),
        format!(
            "PS1='re''ady> '\nfpath=('{}' $fpath)\nautoload -U compinit\ncompinit -u -D\n",
            made.display()
        ),
    )
    .unwrap();
    let home = world.path("home");
    world.set("ZDOTDIR", home);
    // Not the machine's own start files.
    assert_completes(&world, &["zsh", "-d", "-i"]);
}

#[test]
fn fish_completes() {
    if !available(&["fish"], "completion in fish") {
        return;
    }
    let world = world();
    let made = world.path("made/fish");
    let start = format!(
        "function fish_prompt; echo -n 're''ady> '; end; \
         for file in '{}'/*.fish; source $file; end",
        made.display()
    );
    assert_completes(&world, &["fish", "--no-config", "-C", &start, "-i"]);
}
