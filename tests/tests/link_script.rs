//! `scripts/link`: the links in a folder of one's own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use scenarios::{Program, World, binary, python, text};

fn folder_of_programs() -> std::path::PathBuf {
    let folder = binary(Program::Check);
    folder.parent().expect("a folder").to_owned()
}

fn link(world: &World, folder: impl AsRef<Path>) -> Output {
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = world.command(clone.join("scripts/link"));
    let interpreters = python().parent().expect("an interpreter's folder");
    command
        .arg("--programs")
        .arg(folder_of_programs())
        .arg(folder.as_ref())
        .env("PATH", format!("{}:/usr/bin:/bin", interpreters.display()));
    world.run_command(command)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn assert_all_links(folder: &Path) {
    for program in Program::ALL {
        assert_eq!(
            fs::read_link(folder.join(program.script())).expect("a link"),
            folder_of_programs().join(program.name())
        );
    }
}

#[test]
fn all_links_lead_to_the_programs() {
    let world = World::new();
    let folder = world.path("my own $folder");
    fs::create_dir(&folder).unwrap();
    let output = link(&world, &folder);
    assert!(output.status.success(), "{}", text(&output));
    assert_all_links(&folder);
    assert_eq!(names(&folder).len(), Program::ALL.len());
}

#[test]
fn linking_again_changes_nothing() {
    let world = World::new();
    let folder = world.scratch();
    assert!(link(&world, &folder).status.success());
    let before = names(&folder);
    let inode = |program: Program| {
        use std::os::unix::fs::MetadataExt;
        let link = folder.join(program.script());
        link.symlink_metadata().expect("a link").ino()
    };
    let inodes = Program::ALL.map(inode);
    assert!(link(&world, &folder).status.success());
    assert_eq!(names(&folder), before);
    assert_eq!(Program::ALL.map(inode), inodes);
}

#[test]
fn link_to_a_clone_that_has_gone_is_replaced() {
    let world = World::new();
    let folder = world.scratch();
    symlink(
        "/nowhere/target/release/stop-voice-agent-safe",
        folder.join("stop_voice_agent_safe.sh"),
    )
    .unwrap();
    assert!(link(&world, &folder).status.success());
    assert_all_links(&folder);
    assert_eq!(
        names(&folder).len(),
        Program::ALL.len(),
        "{:?}",
        names(&folder)
    );
}

#[test]
fn script_in_the_way_stays_and_no_link_is_made() {
    let world = World::new();
    let folder = world.scratch();
    let script = folder.join("restart_voice_system.sh");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    let output = link(&world, &folder);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains(&script.display().to_string()));
    assert!(text(&output).contains(".orig"), "{}", text(&output));
    assert_eq!(names(&folder), ["restart_voice_system.sh"]);
    assert_eq!(fs::read_to_string(&script).unwrap(), "#!/bin/sh\n");
}

#[test]
fn links_and_folders_of_others_in_the_way_stay() {
    let world = World::new();
    let folder = world.scratch();
    symlink("/bin/true", folder.join("check_agent_running.sh")).unwrap();
    fs::create_dir(folder.join("start_voice_system.sh")).unwrap();
    let output = link(&world, &folder);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for name in ["check_agent_running.sh", "start_voice_system.sh"] {
        assert!(text(&output).contains(name), "{}", text(&output));
    }
    assert_eq!(
        fs::read_link(folder.join("check_agent_running.sh")).unwrap(),
        Path::new("/bin/true")
    );
    assert_eq!(names(&folder).len(), 2);
}

#[test]
fn folder_that_is_none_is_an_error() {
    let world = World::new();
    let output = link(&world, world.path("not there"));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("not there"));
}
