//! Stop the voice agent and everything born of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(1)
}
