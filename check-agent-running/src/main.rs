//! Is it safe to start the voice agent?.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(1)
}
