//! The programs, and where they are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// One of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// `check-agent-running`
    Check,
    /// `start-voice-agent-safe`
    Start,
    /// `stop-voice-agent-safe`
    Stop,
    /// `start-voice-system`
    System,
    /// `restart-voice-system`
    Restart,
    /// `stop-voice-system`
    StopSystem,
}

impl Program {
    /// All six.
    pub const ALL: [Self; 6] = [
        Self::Check,
        Self::Start,
        Self::Stop,
        Self::System,
        Self::Restart,
        Self::StopSystem,
    ];

    /// The program's own name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Check => "check-agent-running",
            Self::Start => "start-voice-agent-safe",
            Self::Stop => "stop-voice-agent-safe",
            Self::System => "start-voice-system",
            Self::Restart => "restart-voice-system",
            Self::StopSystem => "stop-voice-system",
        }
    }

    /// The name of the script it replaces, under which users call it.
    #[must_use]
    pub const fn script(self) -> &'static str {
        match self {
            Self::Check => "check_agent_running.sh",
            Self::Start => "start_voice_agent_safe.sh",
            Self::Stop => "stop_voice_agent_safe.sh",
            Self::System => "start_voice_system.sh",
            Self::Restart => "restart_voice_system.sh",
            Self::StopSystem => "stop_voice_system.sh",
        }
    }
}

/// The built program: in `VOICE_GUARD_TEST_BIN_DIR` if that is set (to test a
/// release build), otherwise beside this test executable.
#[must_use]
pub fn binary(program: Program) -> PathBuf {
    let path = binary_folder().join(program.name());
    assert!(
        path.is_file(),
        "{} is not built. `cargo test --workspace` builds the programs; `cargo test -p scenarios` \
         alone does not: run `cargo build --workspace` first.",
        path.display()
    );
    path
}

pub(crate) fn binary_folder() -> PathBuf {
    std::env::var_os("VOICE_GUARD_TEST_BIN_DIR").map_or_else(beside_the_tests, PathBuf::from)
}

/// A program that is none of those under test, as cargo builds it with the tests
/// of the workspace.
#[must_use]
pub fn built_tool(name: &str) -> PathBuf {
    let path = beside_the_tests().join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace` first",
        path.display()
    );
    path
}

fn beside_the_tests() -> PathBuf {
    let test = std::env::current_exe().expect("the test executable has a path");
    let mut folder = test.parent().expect("the test executable is in a folder");
    // Test executables are in target/PROFILE/deps, the programs one above.
    if folder.ends_with("deps") {
        folder = folder.parent().expect("deps is in a folder");
    }
    folder.to_path_buf()
}

/// The Python interpreter for test agents: of an empty virtual environment, as
/// an agent's mostly is. (It starts in a third of the time of one that has to
/// read the path files of many installed packages, and the tests start
/// thousands.) Where that cannot be made, the interpreter itself. The system's
/// own, if there is one, starts up to three times as fast as one that was built
/// on the machine.
#[must_use]
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let system = Path::new("/usr/bin/python3");
        let runs = |python: &Path| {
            let status = Command::new(python).args(["-c", ""]).status();
            status.is_ok_and(|status| status.success())
        };
        let base = if runs(system) {
            system.to_owned()
        } else {
            resolve_python("python3")
        };
        empty_environment(&base).unwrap_or(base)
    })
}

/// The interpreter of a virtual environment without packages, beside the test
/// executables. `None` if there can be none.
fn empty_environment(base: &Path) -> Option<PathBuf> {
    let home = Command::new(base)
        .args([
            "-c",
            "import os, sys; print(os.path.realpath(sys._base_executable))",
        ])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let real = PathBuf::from(String::from_utf8(home.stdout).ok()?.trim());
    let version = real.file_name()?.to_str()?.to_owned();
    let place = std::env::current_exe().ok()?.parent()?.to_owned();
    let environment = place.join(format!("empty-{version}"));
    let python = environment.join("bin/python3");
    let starts = |python: &Path| {
        let output = Command::new(python)
            .args(["-c", "import sys; print(sys.prefix != sys.base_prefix)"])
            .output();
        output.is_ok_and(|output| output.stdout == b"True\n")
    };
    if starts(&python) {
        return Some(python);
    }
    // Many test programs may do so at once: whole, by a rename, or not at all.
    let new = place.join(format!("empty-{version}.{}", std::process::id()));
    std::fs::create_dir_all(new.join("bin")).ok()?;
    std::os::unix::fs::symlink(&real, new.join("bin/python3")).ok()?;
    let configuration = format!("home = {}\n", real.parent()?.display());
    std::fs::write(new.join("pyvenv.cfg"), configuration).ok()?;
    let _ = std::fs::rename(&new, &environment);
    let _ = std::fs::remove_dir_all(&new);
    starts(&python).then_some(python)
}

/// What interpreter `command` ends up as: the binary itself, not a shim
/// (pyenv's `python3` is a shell script that execs the real one later).
#[must_use]
pub fn resolve_python(command: &str) -> PathBuf {
    let output = Command::new(command)
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .unwrap_or_else(|error| panic!("the tests need {command}: {error}"));
    assert!(
        output.status.success(),
        "{command} does not run: {output:?}"
    );
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(path.is_absolute(), "{command} names no path of its own");
    path
}
