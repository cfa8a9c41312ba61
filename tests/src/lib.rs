//! What the scenarios share: a [`World`] of its own for each test.
//!
//! A world has its own temporary folder, agent script (and with it its own
//! family name and guard file), PID, lock and log files, so that tests run side
//! by side and beside a real agent of this machine. Everything it starts bears
//! a random token in its environment; at the end whatever still bears it is
//! killed, and the test fails if it had not said that something would be left.
//!
//! Nothing here uses `guard-core`: the tests do not trust what they test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    reason = "this crate is test code throughout: a panic is its verdict"
)]

mod barrier;
pub mod document;
mod old_style;
mod processes;
mod program;
mod sandbox;
pub mod surroundings;
pub mod syscalls;
pub mod system;
mod wait;
mod world;

pub use barrier::{Barrier, Finished, Released};
pub use processes::{Process, all_processes, is_alive, process};
pub use program::{Program, binary, built_tool, python, resolve_python};
pub use sandbox::Sandbox;
pub use wait::{eventually, eventually_some, until, within};
pub use world::{HandAgent, World, available, left_out, text};

/// How many rounds a race runs: `VOICE_GUARD_TEST_ROUNDS` if it is set (the full
/// proof runs 200), otherwise the number the test gives for everyday use.
#[must_use]
pub fn rounds(everyday: usize) -> usize {
    wanted_rounds().unwrap_or(everyday)
}

/// The same for races whose rounds take long: five times the everyday number
/// in the full proof of 200, otherwise in proportion.
#[must_use]
pub fn slow_rounds(everyday: usize) -> usize {
    wanted_rounds().map_or(everyday, |wanted| (everyday * wanted / 40).max(1))
}

/// Is this the full proof, which takes its time? (`scripts/test` says so.)
#[must_use]
pub fn is_full_proof() -> bool {
    std::env::var_os("VOICE_GUARD_SWEEP").is_some_and(|extent| extent == "full")
}

fn wanted_rounds() -> Option<usize> {
    let value = std::env::var("VOICE_GUARD_TEST_ROUNDS").ok()?;
    Some(
        value
            .trim()
            .parse()
            .expect("VOICE_GUARD_TEST_ROUNDS is a number of rounds"),
    )
}
