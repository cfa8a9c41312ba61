//! Start the voice agent, once.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(1)
}
