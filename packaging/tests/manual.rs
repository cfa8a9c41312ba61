//! The manual pages: correct for those who format them, complete for those who
//! read them.
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

use scenarios::{Program, available, binary, text};
use tempfile::TempDir;

fn pages() -> (TempDir, Vec<(Program, PathBuf)>) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_packaging"))
        .arg(folder.path())
        .args(["--date", "2026-11-24"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let pages = Program::ALL.map(|program| {
        let name = format!("man/{}.1", program.name());
        (program, folder.path().join(name))
    });
    (folder, pages.into())
}

/// The page as a terminal of 200 columns shows it.
fn formatted(page: &Path) -> String {
    let output = Command::new("man")
        .args(["--warnings=w", "-E", "UTF-8", "-P", "cat", "-l"])
        .arg(page)
        .env("MANWIDTH", "200")
        .env("MANOPT", "--nh --nj")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}: {}",
        page.display(),
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn words(text: &str, prefix: &str, belongs: fn(char) -> bool) -> BTreeSet<String> {
    text.match_indices(prefix)
        .map(|(at, _)| text[at..].chars().take_while(|c| belongs(*c)).collect())
        .collect()
}

fn section<'a>(page: &'a str, title: &str) -> &'a str {
    let (_, rest) = page
        .split_once(&format!("\n{title}\n"))
        .unwrap_or_else(|| panic!("no section {title} in:\n{page}"));
    // The next title is the next line that is not indented.
    let end = rest
        .match_indices('\n')
        .find(|(at, _)| rest[at + 1..].starts_with(|c: char| c.is_ascii_uppercase()))
        .map_or(rest.len(), |(at, _)| at);
    &rest[..end]
}

#[test]
fn pages_are_formatted_without_a_warning() {
    let (_folder, pages) = pages();
    if available(&["mandoc"], "manual pages, by mandoc") {
        for (_, page) in &pages {
            let mut lint = Command::new("mandoc");
            let output = lint.args(["-T", "lint", "-W", "warning"]).arg(page);
            let output = output.output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
    }
    if available(&["man"], "manual pages, by man") {
        for (_, page) in &pages {
            formatted(page);
        }
    }
}

#[test]
fn each_page_has_its_sections_options_variables_and_exit_statuses() {
    if !available(&["man"], "what the manual pages say") {
        return;
    }
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let table: String = readme
        .lines()
        .filter(|line| line.starts_with("| `VOICE_GUARD_"))
        .collect();
    let variables =
        |text: &str| words(text, "VOICE_GUARD_", |c| c == '_' || c.is_ascii_uppercase());
    let options = |text: &str| words(text, "--", |c| c == '-' || c.is_ascii_lowercase());

    let (_folder, pages) = pages();
    for (program, page) in pages {
        let page = formatted(&page);
        let name = program.name();
        assert!(section(&page, "NAME").contains(&format!("{name} - ")));
        for title in ["SYNOPSIS", "DESCRIPTION", "SEE ALSO"] {
            assert!(!section(&page, title).trim().is_empty(), "{name}: {title}");
        }
        let help = Command::new(binary(program)).arg("--help").output();
        let help = text(&help.unwrap());
        let (above, exit) = help.split_once("Exit status: ").expect("exit statuses");
        let described = section(&page, "OPTIONS").to_owned() + section(&page, "SETTINGS");
        assert_eq!(options(&described), options(above), "{name}");
        assert_eq!(
            variables(section(&page, "ENVIRONMENT")),
            variables(&table),
            "{name}"
        );
        let statuses = section(&page, "EXIT STATUS");
        for status in exit.split(", ").filter_map(|part| part.split(' ').next()) {
            if status.parse::<u8>().is_ok() {
                assert!(
                    statuses
                        .lines()
                        .any(|line| line.trim_start().starts_with(&format!("{status} "))),
                    "{name}: exit status {status} in:\n{statuses}"
                );
            }
        }
        for file in [
            "letta_voice_agent.pid",
            "voice_agent.log",
            "voice-system.toml",
        ] {
            assert!(section(&page, "FILES").contains(file), "{name}: {file}");
        }
        assert!(section(&page, "EXAMPLES").contains(name), "{name}");
    }
}
