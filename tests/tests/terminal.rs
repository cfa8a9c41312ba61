//! What is shown on a terminal: colours there and nowhere else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::process::Stdio;

use scenarios::surroundings::{Terminal, run};
use scenarios::{Program, World, text};

const ESCAPE: char = '\x1b';

fn world() -> World {
    let mut world = World::new();
    // The worlds' usual `dumb` terminal has no colours.
    world.set("TERM", "xterm-256color");
    world
}

/// What a program shows on a terminal, after `words` in front of it.
fn shown(
    world: &World,
    words: &[&str],
    program: Program,
    arguments: &[&str],
) -> (Option<i32>, String) {
    let link = world.link(program);
    let mut argv = words.to_vec();
    argv.push(link.to_str().unwrap());
    argv.extend(arguments);
    Terminal::new(world, &argv).end()
}

/// The text without escape sequences of the form `ESC [ … letter`.
fn plain(text: &str) -> String {
    let mut pieces = text.split(ESCAPE);
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece
            .find(|letter: char| letter.is_ascii_alphabetic())
            .unwrap();
        plain.push_str(&piece[end + 1..]);
    }
    plain.replace("\r\n", "\n")
}

#[test]
fn colours_on_a_terminal_and_only_there() {
    let world = world();
    for (program, code) in [
        (Program::Check, 0),
        (Program::Start, 0),
        (Program::Start, 1),
        (Program::Check, 1),
        (Program::Stop, 0),
    ] {
        let (exit, on_terminal) = shown(&world, &[], program, &[]);
        assert_eq!(exit, Some(code), "{}: {on_terminal}", program.name());
        assert!(
            on_terminal.contains(ESCAPE),
            "{}: {on_terminal:?}",
            program.name()
        );
    }
    let (_, on_terminal) = shown(&world, &[], Program::Check, &[]);
    let into_a_file = text(&run(&world, world.program(Program::Check)));
    assert!(!into_a_file.contains(ESCAPE), "{into_a_file:?}");
    assert_eq!(plain(&on_terminal), into_a_file, "only the colours differ");
    let piped = world
        .program(Program::Check)
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(text(&piped), into_a_file);
}

#[test]
fn no_colours_where_they_are_not_wanted() {
    let world = world();
    for words in [
        &["env", "NO_COLOR=1"][..],
        &["env", "NO_COLOR=0"],
        &["env", "TERM=dumb"],
        &["env", "NO_COLOR=1", "TERM=xterm-256color"],
        // stdout is elsewhere, stderr is the terminal.
        &["sh", "-c", "\"$0\" \"$@\" | cat"],
    ] {
        for arguments in [&[][..], &["--help"], &["--no-such-option"]] {
            if words[0] == "sh" && arguments == ["--no-such-option"] {
                // The usage error goes to stderr, which is the terminal.
                continue;
            }
            let (_, shown) = shown(&world, words, Program::Check, arguments);
            assert!(!shown.is_empty());
            assert!(
                !shown.contains(ESCAPE),
                "{words:?} {arguments:?}: {shown:?}"
            );
        }
    }
    // Empty means: not set (no-color.org).
    let (_, shown) = shown(&world, &["env", "NO_COLOR="], Program::Check, &[]);
    assert!(shown.contains(ESCAPE), "{shown:?}");
}

#[test]
fn json_and_quiet_on_a_terminal() {
    let world = world();
    for program in Program::ALL {
        let (code, shown) = shown(&world, &[], program, &["--json"]);
        assert_eq!(code, Some(0), "{}: {shown}", program.name());
        assert!(!shown.contains(ESCAPE), "{}: {shown:?}", program.name());
        let seen: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(seen["program"], program.name());
    }
    world.expect(Program::Start, 0);
    let (code, shown) = shown(&world, &[], Program::Check, &["--quiet"]);
    assert_eq!((code, &*shown), (Some(1), ""));
    world.expect(Program::Stop, 0);
}

#[test]
fn agents_colours_are_no_colours_of_ours() {
    let mut world = world();
    // The last lines of a dead agent's log are shown; whatever is in them must
    // not reach the terminal as commands.
    world.set("TEST_AGENT_DIE_AFTER", "0");
    world.set(
        "TEST_AGENT_DIE_SAYING",
        "before \x1b]0;owned\x07\x1b[2J after\nlast \x1b[31mred",
    );
    let output = run(&world, world.program(Program::Start));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("after") && said.contains("red"), "{said:?}");
    assert!(!said.contains([ESCAPE, '\x07']), "{said:?}");
}
