//! Out of the agent: a program that stops agents and was started by one would
//! end itself. It runs itself again outside, unmarked and without parent, and
//! passes on how that ended for as long as it is allowed to live.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use crate::agent::{Family, MARK_VARIABLE};
use crate::birth::{close_others_on_exec, inherited_descriptor};
use crate::failure::Failure;
use crate::process_table::{Pid, ProcessTable, split_arguments};

/// Tells the program that it was run again, and how to say how it ended:
/// `launch FD` or `run FD`.
pub(crate) const DETACH_VARIABLE: &str = "VOICE_GUARD_DETACH";

/// Where the program is.
#[derive(Debug)]
pub enum Place {
    /// Not born of an agent: go on.
    Outside,
    /// Run again outside, which went on and ended with this exit code.
    Relayed(u8),
}

/// The way to tell the process that was born of the agent how this one ended.
#[derive(Debug)]
pub struct Relay(Option<File>);

impl Relay {
    /// The relay that this program was started with, if it was.
    ///
    /// # Errors
    /// When the environment variable holds something else.
    pub fn of_this_program() -> Result<Self, Failure> {
        let Some((stage, descriptor)) = stage()? else {
            return Ok(Self(None));
        };
        Ok(Self((stage == Stage::Run).then(|| descriptor.into())))
    }

    /// Tells the exit code.
    pub fn tell(&mut self, exit_code: u8) {
        if let Some(pipe) = &mut self.0 {
            // Nobody listens any more once the agent is stopped.
            let _ = pipe.write_all(&[exit_code]);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Launch,
    Run,
}

fn stage() -> Result<Option<(Stage, OwnedFd)>, Failure> {
    let Some(value) = env::var_os(DETACH_VARIABLE) else {
        return Ok(None);
    };
    let parsed = value.to_str().and_then(|text| {
        let (stage, number) = text.split_once(' ')?;
        let stage = match stage {
            "launch" => Stage::Launch,
            "run" => Stage::Run,
            _ => return None,
        };
        Some((stage, inherited_descriptor(number.parse().ok()?).ok()?))
    });
    parsed.map(Some).ok_or_else(|| {
        Failure::new(format!(
            "{DETACH_VARIABLE} is set, which only this program does"
        ))
        .help(format!("unset {DETACH_VARIABLE}"))
    })
}

/// Makes sure that the program is not born of an agent.
///
/// # Errors
/// When it is and cannot be run again outside.
pub fn leave_agent(family: &Family) -> Result<Place, Failure> {
    match stage()? {
        Some((Stage::Run, _)) => return Ok(Place::Outside),
        Some((Stage::Launch, pipe)) => {
            // In a session of its own, and with this parent gone at once.
            let _ = rustix::process::setsid();
            again(Stage::Run, &pipe).map_err(|error| failure(&error))?;
            return Ok(Place::Relayed(0));
        }
        None => {}
    }
    if !is_inside(family).map_err(|error| failure(&error))? {
        return Ok(Place::Outside);
    }
    run_outside()
        .map(Place::Relayed)
        .map_err(|error| failure(&error))
}

fn failure(error: &io::Error) -> Failure {
    Failure::new(format!(
        "cannot leave the agent that started this program: {error}"
    ))
    .help("run it from a terminal instead")
}

/// Is this program born of an agent, or was it until it left it?
///
/// # Errors
/// When that cannot be found out.
pub fn is_born_of_agent(family: &Family) -> Result<bool, Failure> {
    Ok(stage()?.is_some() || is_inside(family).map_err(|error| failure(&error))?)
}

fn is_inside(family: &Family) -> io::Result<bool> {
    if env::var_os(MARK_VARIABLE).is_some() {
        return Ok(true);
    }
    // Without a usable /proc nobody is stopped either, and the verb says why.
    let Ok(table) = ProcessTable::open() else {
        return Ok(false);
    };
    for ancestor in table.ancestors(Pid::own())? {
        let line = match table.command_line(ancestor) {
            Ok(line) => line.unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(error) => return Err(error),
        };
        if family.recognise(&split_arguments(&line)).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn run_outside() -> io::Result<u8> {
    let (mut reader, writer) = io::pipe()?;
    // An agent that executed us directly has left us its PID file's lock.
    close_others_on_exec()?;
    let writer = OwnedFd::from(writer);
    again(Stage::Launch, &writer)?;
    drop(writer);
    let mut exit_code = [1];
    match reader.read_exact(&mut exit_code) {
        Ok(()) => Ok(exit_code[0]),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::other(
            "the program that was run outside has ended without a word",
        )),
        Err(error) => Err(error),
    }
}

/// Runs this program once more, with the same name and arguments.
fn again(stage: Stage, pipe: &OwnedFd) -> io::Result<()> {
    fcntl_setfd(pipe, FdFlags::empty())?;
    let word = match stage {
        Stage::Launch => "launch",
        Stage::Run => "run",
    };
    let mut arguments = env::args_os();
    let name: OsString = arguments.next().unwrap_or_default();
    let mut child = Command::new("/proc/self/exe")
        .arg0(&name)
        .args(arguments)
        .env_remove(MARK_VARIABLE)
        .env(
            OsStr::new(DETACH_VARIABLE),
            format!("{word} {}", pipe.as_raw_fd()),
        )
        .spawn()?;
    fcntl_setfd(pipe, FdFlags::CLOEXEC)?;
    if stage == Stage::Launch {
        child.wait()?;
    }
    Ok(())
}
