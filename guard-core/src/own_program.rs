//! What counts as a companion: a process that runs its program in its folder,
//! whoever started it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::agent::is_python;
use crate::process_table::{Pid, ProcessTable};

/// How to recognise a companion's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnProgram {
    /// The file that is executed, all links resolved.
    program: PathBuf,
    /// The working folder, all links resolved.
    folder: PathBuf,
    /// Every way its arguments may look: one for each of its ports.
    arguments: Vec<Vec<OsString>>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The companion's own executable: that and the folder prove it.
    Binary,
    /// An executable that others use as well: the arguments must be the same.
    Shared,
    /// An interpreter runs it, and stands first in the command line.
    Script,
    /// Any Python, with the same arguments.
    Python,
}

impl OwnProgram {
    /// `alone`: no other companion runs the same program in the same folder.
    #[must_use]
    pub fn new(
        program: &Path,
        folder: &Path,
        project_dir: &Path,
        arguments: Vec<Vec<OsString>>,
        alone: bool,
    ) -> Self {
        let called = program.file_name().unwrap_or_default().as_bytes().to_vec();
        let program = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
        let is_inside = program.starts_with(folder) || program.starts_with(project_dir);
        let runs_others = is_interpreter(&called)
            || program
                .file_name()
                .is_some_and(|name| is_interpreter(name.as_bytes()));
        let kind = if is_python(&called) {
            Kind::Python
        } else if is_script(&program) {
            Kind::Script
        } else if is_inside && alone && !runs_others {
            Kind::Binary
        } else {
            Kind::Shared
        };
        Self {
            program,
            folder: folder.to_owned(),
            arguments,
            kind,
        }
    }

    /// Nothing is recognised: what runs is known by its mark alone.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            program: PathBuf::new(),
            folder: PathBuf::new(),
            arguments: Vec::new(),
            kind: Kind::Shared,
        }
    }

    /// Is this process the companion? Another user's that may not be looked at
    /// is not.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn is_run_by(&self, table: &ProcessTable, pid: Pid, argv: &[&[u8]]) -> io::Result<bool> {
        let Some((first, rest)) = argv.split_first() else {
            return Ok(false);
        };
        let by_arguments = match self.kind {
            Kind::Binary => !first.is_empty(),
            Kind::Shared => self.has_arguments(rest),
            Kind::Python => is_python(first) && self.has_arguments(rest),
            // "#!/usr/bin/env -S x" puts at most one argument before the script.
            Kind::Script => (0..rest.len().min(2))
                .any(|at| self.is_the_script(rest[at]) && self.has_arguments(&rest[at + 1..])),
        };
        if !by_arguments {
            return Ok(false);
        }
        if matches!(self.kind, Kind::Binary | Kind::Shared)
            && !private_is_none(table.executable(pid))?.is_some_and(|path| self.is_program(&path))
        {
            return Ok(false);
        }
        Ok(private_is_none(table.working_folder(pid))?.as_deref() == Some(&*self.folder))
    }

    /// Which of its ports stands in this command line.
    #[must_use]
    pub fn variant_of(&self, argv: &[&[u8]]) -> Option<usize> {
        self.arguments.iter().position(|variant| {
            argv.len() >= variant.len() && same(&argv[argv.len() - variant.len()..], variant)
        })
    }

    fn has_arguments(&self, rest: &[&[u8]]) -> bool {
        self.arguments.iter().any(|variant| same(rest, variant))
    }

    fn is_program(&self, path: &Path) -> bool {
        // After an upgrade the old executable still runs.
        let bytes = path.as_os_str().as_bytes();
        let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
        self.program == Path::new(OsStr::from_bytes(bytes))
    }

    fn is_the_script(&self, word: &[u8]) -> bool {
        let path = self.folder.join(OsStr::from_bytes(word));
        path.file_name() == self.program.file_name()
            && fs::canonicalize(&path).is_ok_and(|path| path == self.program)
    }
}

fn same(words: &[&[u8]], variant: &[OsString]) -> bool {
    words.len() == variant.len()
        && words
            .iter()
            .zip(variant)
            .all(|(word, wanted)| *word == wanted.as_bytes())
}

/// Programs that run other programs' text: one in the project folder (a version
/// manager's, when that is the home folder) says nothing of what it runs.
const INTERPRETERS: [&str; 36] = [
    "ash", "bash", "beam.smp", "bun", "busybox", "cargo", "csh", "dart", "dash", "deno", "dotnet",
    "elixir", "env", "erl", "fish", "go", "java", "julia", "ksh", "lua", "luajit", "make", "mono",
    "node", "nodejs", "npm", "npx", "perl", "php", "pnpm", "R", "ruby", "sh", "tclsh", "uv", "zsh",
];

/// Is this such a program's name, with a version or not (`perl5.36`)?
fn is_interpreter(name: &[u8]) -> bool {
    let end = name
        .iter()
        .rposition(|byte| !byte.is_ascii_digit() && *byte != b'.' && *byte != b'-')
        .map_or(0, |at| at + 1);
    INTERPRETERS
        .iter()
        .any(|interpreter| interpreter.as_bytes() == &name[..end])
}

fn is_script(program: &Path) -> bool {
    use std::io::Read as _;
    let mut start = [0; 2];
    fs::File::open(program)
        .and_then(|mut file| file.read_exact(&mut start))
        .is_ok_and(|()| &start == b"#!")
}

fn private_is_none<T>(reading: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match reading {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        other => other,
    }
}
