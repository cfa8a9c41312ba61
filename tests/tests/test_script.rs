//! `scripts/test`: what it makes of the tests' words. A cargo that only speaks
//! stands in for the real one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this file is test code throughout: a panic is its verdict"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use scenarios::{left_out, text};

/// The tests stage, with tests that say this and end with this status; how it ends.
fn tested(said: &str, status: i32, ci: &str) -> (i32, String) {
    let scripts = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts"));
    let place = tempfile::tempdir().unwrap();
    let clone = place.path().join("clone/scripts");
    fs::create_dir_all(&clone).unwrap();
    fs::copy(scripts.join("test"), clone.join("test")).unwrap();
    let stubs = place.path().join("bin");
    fs::create_dir(&stubs).unwrap();
    for (path, script) in [
        (stubs.join("cargo"), "cat \"$SAID\" >&2; exit \"$STATUS\""),
        (clone.join("programs"), "echo /nowhere"),
    ] {
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(place.path().join("said"), said).unwrap();
    let output = Command::new(clone.join("test"))
        .arg("tests")
        .env("PATH", format!("{}:/usr/bin:/bin", stubs.display()))
        .env("SAID", place.path().join("said"))
        .env("STATUS", status.to_string())
        .env("CI", ci)
        .output()
        .unwrap();
    (output.status.code().unwrap(), text(&output))
}

#[test]
fn what_is_left_out_is_named_and_fails_a_whole_proof_in_ci() {
    let known = "left out: pids.max of the unit: this kernel's controllers are not in the unified hierarchy\n\
                 test x ... left out: the wrapper in some shells: [\"mksh\"] are not here\n";
    let sandbox = "left out: the service under systemd: no namespaces here\n";
    for ci in ["", "true"] {
        assert_eq!(tested("", 0, ci).0, 0);
        assert_eq!(tested("", 101, ci).0, 101);
        let (status, said) = tested(known, 0, ci);
        assert_eq!(status, 0, "{said}");
        assert_eq!(said.matches("left out: pids.max").count(), 2, "{said}");
    }
    let more = format!("{known}{sandbox}");
    assert_eq!(tested(&more, 0, "").0, 0);
    if !rustix::process::geteuid().is_root() {
        return left_out("a proof in CI that is not whole", "it is about root's");
    }
    let (status, said) = tested(&more, 0, "true");
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("nothing else than what is known"), "{said}");
    assert!(said.contains("tests     FAILED"), "{said}");
}
