//! Makes the manual pages and completions of the six programs, from the same
//! definitions that the programs parse their command lines with. Not part of
//! any program: those stay as small as they are. `scripts/package` calls it.

mod pages;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Command, CommandFactory, Parser, ValueHint};
use clap_complete::Shell;
use guard_core::command_line::{Check, RestartSystem, Start, StartSystem, Stop, StopSystem};

/// Makes manual pages (`man/`) and completions (`bash/`, `zsh/`, `fish/`).
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The folder for them; made if it is not there
    folder: PathBuf,
    /// The date on the manual pages, such as 2026-11-24
    #[arg(long)]
    date: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match make(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a tool of the build, not of users")]
            {
                eprintln!("packaging: {}: {error}", arguments.folder.display());
            }
            ExitCode::FAILURE
        }
    }
}

fn programs() -> [Command; 6] {
    [
        Check::command(),
        Start::command(),
        Stop::command(),
        StartSystem::command(),
        RestartSystem::command(),
        StopSystem::command(),
    ]
}

fn make(arguments: &Arguments) -> io::Result<()> {
    let folder = |name: &str| {
        let folder = arguments.folder.join(name);
        fs::create_dir_all(&folder).map(|()| folder)
    };
    let manual = folder("man")?;
    for program in programs() {
        let name = program.get_name().to_owned();
        let page = pages::of(program, &arguments.date)?;
        fs::write(manual.join(format!("{name}.1")), page)?;
    }
    for program in programs() {
        let mut program = with_hints(program);
        let name = program.get_name().to_owned();
        for (shell, kind) in [
            (Shell::Bash, "bash"),
            (Shell::Zsh, "zsh"),
            (Shell::Fish, "fish"),
        ] {
            let made = clap_complete::generate_to(shell, &mut program, &name, folder(kind)?)?;
            if shell == Shell::Bash {
                // By the name under which bash-completion looks for it.
                fs::rename(made, folder(kind)?.join(&name))?;
            }
        }
    }
    Ok(())
}

/// What a shell may offer as a value. The programs need none of this, so it is
/// not in their definitions.
fn with_hints(program: Command) -> Command {
    program
        .mut_arg("project_dir", |argument| {
            argument.value_hint(ValueHint::DirPath)
        })
        .mut_arg("agent_mode", |argument| {
            argument.value_parser(PossibleValuesParser::new(["dev", "start", "connect"]))
        })
}
