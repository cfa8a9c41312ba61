//! `cargo install --path PROGRAM`: each program by itself, as the README has it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use scenarios::{Program, World, is_full_proof, left_out, text};

#[test]
fn each_program_is_installed_by_itself_and_taken_out_again() {
    // Building each once more takes a minute.
    if !is_full_proof() {
        left_out("cargo install", "it takes long; scripts/test runs it");
        return;
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let clone = tests.parent().expect("the clone");
    let world = World::new();
    let root = world.path("installed");
    let cargo = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .arg("--root")
            .arg(&root)
            .current_dir(clone)
            .output()
            .expect("run cargo");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    };
    let there = || -> Vec<PathBuf> {
        let folder = fs::read_dir(root.join("bin")).expect("a folder");
        folder
            .map(|entry| entry.expect("an entry").path())
            .collect()
    };
    for program in Program::ALL {
        let name = program.name();
        // Unoptimised, since only that is fast; offline, since all is there.
        cargo(&[
            "install",
            "--debug",
            "--locked",
            "--offline",
            "--path",
            name,
        ]);
        assert_eq!(there(), [root.join("bin").join(name)]);
        let mut command = world.command(root.join("bin").join(name));
        command.arg("--version");
        let said = text(&world.run_command(command));
        assert_eq!(said, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        cargo(&["uninstall", name]);
        assert!(there().is_empty(), "{:?}", there());
    }
}
