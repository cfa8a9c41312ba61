//! What counts as the agent: its command line, its family name, its birth mark.
//!
//! Everything here works on bytes that were already read; nothing here looks
//! at the system.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::own_program::OwnProgram;
use crate::process_table::{Pid, ProcessTable};

/// The family of the original scripts: `letta_voice_agent.py` and its
/// variants `letta_voice_agent_*.py` (`docs/contract.md`, "What counts as the agent").
const ORIGINAL_FAMILY: &str = "letta_voice_agent";

/// First arguments with which the script is a running agent. `download-files`
/// and the like do their work and leave, so they are none.
const RUNNING_MODES: [&[u8]; 3] = [b"dev", b"start", b"connect"];

/// Modules that run another script or module inside the same process.
const RUNNER_MODULES: [&[u8]; 6] = [
    b"pdb",
    b"debugpy",
    b"cProfile",
    b"profile",
    b"coverage",
    b"trace",
];

/// Environment variable that every process born of an agent of ours inherits.
pub const MARK_VARIABLE: &str = "VOICE_GUARD_MARK";

/// The scripts that are one agent among them: no two of a family may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    name: OsString,
    script_name: OsString,
    mode: OsString,
    companion: Option<OwnProgram>,
}

/// What a command line says about an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCommand {
    /// Script (or module) as it stands in the command line.
    pub script: OsString,
    /// First argument of the script: `dev`, `start`, …
    pub mode: OsString,
}

impl Family {
    /// The family of `script`, whose wanted mode is `mode`.
    ///
    /// The stem of the script names the family, except that every variant of
    /// the original script belongs to the original's family.
    #[must_use]
    pub fn of(script: &Path, mode: &OsStr) -> Self {
        let script_name = script.file_name().unwrap_or(script.as_os_str());
        let stem = Path::new(script_name).file_stem().unwrap_or(script_name);
        let original = ORIGINAL_FAMILY.as_bytes();
        let is_variant = stem
            .as_bytes()
            .strip_prefix(original)
            .is_some_and(|rest| rest.starts_with(b"_"));
        let name = if is_variant {
            OsStr::new(ORIGINAL_FAMILY)
        } else {
            stem
        };
        Self {
            name: name.to_owned(),
            script_name: script_name.to_owned(),
            mode: mode.to_owned(),
            companion: None,
        }
    }

    /// The family of a companion: whatever runs its program in its folder, and
    /// what is born of that. No agent's family has a colon and a name like it.
    #[must_use]
    pub fn of_companion(name: &str, system: &str, program: Option<OwnProgram>) -> Self {
        Self {
            name: format!("{}{name}", Self::prefix(system)).into(),
            script_name: OsString::new(),
            mode: OsString::new(),
            companion: Some(program.unwrap_or_else(OwnProgram::nothing)),
        }
    }

    fn prefix(system: &str) -> String {
        format!("companion:{system}:")
    }

    /// The companion's program, if this is a companion's family.
    #[must_use]
    pub fn companion(&self) -> Option<&OwnProgram> {
        self.companion.as_ref()
    }

    /// Can a process with this command line be a worker of the family, or one
    /// with this mark?
    #[must_use]
    pub fn may_work(&self, argv0: &[u8], mark: Option<&Mark>) -> bool {
        match self.companion {
            None => is_python(argv0),
            Some(_) => mark.is_some_and(|mark| mark.is_of(self)),
        }
    }

    /// As [`Self::recognise`], for whatever the family runs; what bears the
    /// mark of another companion of the same system is that one's.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn recognise_process(
        &self,
        table: &ProcessTable,
        pid: Pid,
        argv: &[&[u8]],
        mark: Option<&Mark>,
    ) -> io::Result<Option<AgentCommand>> {
        let Some(program) = &self.companion else {
            return Ok(self.recognise(argv));
        };
        let anothers = mark.is_some_and(|mark| !mark.is_of(self) && mark.is_of_system_of(self));
        if anothers || !program.is_run_by(table, pid, argv)? {
            return Ok(None);
        }
        Ok(Some(AgentCommand {
            script: OsString::from_vec(base_name(argv[0]).to_vec()),
            mode: OsString::new(),
        }))
    }

    /// The family's name; it names the guard and the default tracking files.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// The mode in which the agent is wanted.
    #[must_use]
    pub fn mode(&self) -> &OsStr {
        &self.mode
    }

    /// Is this the family that the original scripts manage?
    #[must_use]
    pub fn is_original(&self) -> bool {
        self.name == ORIGINAL_FAMILY
    }

    /// Reads a command line; `Some` if it is an agent of this family.
    ///
    /// An agent is a Python interpreter, with any of its own options, that
    /// runs a script or module of the family with a running mode as first
    /// argument, directly or under a debugger or profiler.
    #[must_use]
    pub fn recognise(&self, argv: &[&[u8]]) -> Option<AgentCommand> {
        if self.companion.is_some() || !is_python(argv.first()?) {
            return None;
        }
        let (program, mode) = match PythonProgram::of(argv) {
            PythonProgram::Script(at) if self.owns_script(argv.get(at)?) => (at, at + 1),
            PythonProgram::Module { name, rest } if self.owns_module(name) => {
                return self.command(name, argv.get(rest)?);
            }
            PythonProgram::Module { name, rest } if RUNNER_MODULES.contains(&name) => {
                let at = (rest..argv.len())
                    .find(|&at| self.owns_script(argv[at]) || self.owns_module(argv[at]))?;
                (at, at + 1)
            }
            _ => return None,
        };
        self.command(argv[program], argv.get(mode)?)
    }

    /// Does `argument` name a script or module of this family? Wrappers such
    /// as `uv run` and `timeout` carry it in their own command line.
    #[must_use]
    pub fn is_named_by(&self, argument: &[u8]) -> bool {
        self.companion.is_none() && self.owns_script(argument)
    }

    fn command(&self, script: &[u8], mode: &[u8]) -> Option<AgentCommand> {
        let running = RUNNING_MODES.contains(&mode) || mode == self.mode.as_bytes();
        running.then(|| AgentCommand {
            script: OsString::from_vec(script.to_vec()),
            mode: OsString::from_vec(mode.to_vec()),
        })
    }

    fn owns_script(&self, path: &[u8]) -> bool {
        let file_name = base_name(path);
        file_name == self.script_name.as_bytes()
            || file_name
                .strip_suffix(b".py")
                .is_some_and(|stem| self.owns_stem(stem))
    }

    fn owns_module(&self, dotted: &[u8]) -> bool {
        let last = dotted
            .rsplit(|&byte| byte == b'.')
            .next()
            .unwrap_or_default();
        self.owns_stem(last)
    }

    fn owns_stem(&self, stem: &[u8]) -> bool {
        stem.strip_prefix(self.name.as_bytes())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"_"))
    }
}

/// Where a Python command line names what it runs (`python --help-all`).
#[derive(Debug, PartialEq, Eq)]
enum PythonProgram<'a> {
    /// Index of the script's path.
    Script(usize),
    /// `-m name`, and the index of the module's first argument.
    Module { name: &'a [u8], rest: usize },
    /// `-c`, standard input, or nothing.
    Other,
}

impl<'a> PythonProgram<'a> {
    fn of(argv: &[&'a [u8]]) -> Self {
        let mut at = 1;
        while let Some(&argument) = argv.get(at) {
            match argument {
                b"-" => return Self::Other,
                b"--" => return Self::Script(at + 1),
                b"--check-hash-based-pycs" => at += 1,
                _ if argument.starts_with(b"--") => {}
                _ if argument.starts_with(b"-") => {
                    // Short options may be joined: `-uB`, `-Xutf8`, `-um agent`.
                    let with_value = argument
                        .iter()
                        .skip(1)
                        .position(|option| b"cmWX".contains(option))
                        .map(|position| position + 1);
                    if let Some(position) = with_value {
                        let attached = &argument[position + 1..];
                        let next = at + usize::from(attached.is_empty());
                        match argument[position] {
                            b'c' => return Self::Other,
                            b'm' => {
                                let name = if attached.is_empty() {
                                    argv.get(next).copied().unwrap_or_default()
                                } else {
                                    attached
                                };
                                let rest = next + 1;
                                return Self::Module { name, rest };
                            }
                            _ => at = next,
                        }
                    }
                }
                _ => return Self::Script(at),
            }
            at += 1;
        }
        Self::Other
    }
}

/// Is `argv0` a Python interpreter: `python`, `python3`, `python3.11`,
/// `pypy3`, a virtual environment's?
#[must_use]
pub fn is_python(argv0: &[u8]) -> bool {
    let name = base_name(argv0);
    [&b"python"[..], b"pypy"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(*prefix))
        // A version, and the letters of special builds (3.13t, 3.11d, 3.7m).
        .any(|rest| {
            rest.iter()
                .all(|byte| byte.is_ascii_digit() || b".tdm".contains(byte))
        })
}

/// The part that a process of Python's `multiprocessing` plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultiprocessingRole {
    /// A worker started afresh (`spawn_main`).
    SpawnChild,
    /// The server that forks workers, or a worker forked by it (same argv).
    ForkServer,
    /// The bookkeeper of shared resources; it answers no calls.
    ResourceTracker,
}

/// Recognises the processes that Python's `multiprocessing` starts by the
/// code that their `-c` runs (`multiprocessing/spawn.py`, `forkserver.py`,
/// `resource_tracker.py` of `CPython`).
#[must_use]
pub fn multiprocessing_role(argv: &[&[u8]]) -> Option<MultiprocessingRole> {
    if !is_python(argv.first()?) {
        return None;
    }
    argv.iter().skip(1).find_map(|argument| {
        let imported = argument.strip_prefix(b"from multiprocessing.")?;
        [
            (&b"spawn "[..], MultiprocessingRole::SpawnChild),
            (b"forkserver ", MultiprocessingRole::ForkServer),
            (b"resource_tracker ", MultiprocessingRole::ResourceTracker),
        ]
        .into_iter()
        .find_map(|(module, role)| imported.starts_with(module).then_some(role))
    })
}

/// The descriptor on which a resource tracker listens to the processes that it
/// keeps book for: `main(N)` in its code.
#[must_use]
pub fn tracker_descriptor(argv: &[&[u8]]) -> Option<i32> {
    let code = argv
        .iter()
        .find_map(|argument| argument.strip_prefix(b"from multiprocessing.resource_tracker "))?;
    let at = memchr::memmem::find(code, b"main(")? + b"main(".len();
    let digits = code[at..].split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The last component of a path, as bytes.
#[must_use]
pub fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// The birth mark in the environment of an agent that these programs started.
///
/// It survives `setsid`, re-parenting and the death of the agent, so whoever
/// bears it was born of that agent. Written as `ID/FAMILY/PATH`: 32
/// hexadecimal digits, the family's name (which holds no slash), and the
/// absolute path of the PID file. The last 8 digits are the agent's own number,
/// which tells it from what it forks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    birth: [u8; 32],
    family: OsString,
    pid_file: PathBuf,
}

impl Mark {
    /// Where the agent's number begins in the value of the variable.
    pub(crate) const ROOT_AT: usize = 24;

    /// The mark of an agent that is about to be born, from 96 random bits. The
    /// child that becomes the agent writes its number over the last 8 zeros.
    #[must_use]
    pub fn new(random: u128, family: &Family, pid_file: &Path) -> Self {
        let mut birth = [b'0'; 32];
        birth.copy_from_slice(format!("{:024x}00000000", random >> 32).as_bytes());
        Self {
            birth,
            family: family.name().to_owned(),
            pid_file: pid_file.to_owned(),
        }
    }

    /// The mark of the agent that was born as `root`.
    #[must_use]
    pub fn born_as(mut self, root: Pid) -> Self {
        let digits = format!("{:08x}", root.get());
        self.birth[Self::ROOT_AT..].copy_from_slice(digits.as_bytes());
        self
    }

    /// The number of the agent that all bearers of this mark were born of.
    #[must_use]
    pub fn root(&self) -> Option<Pid> {
        let digits = std::str::from_utf8(&self.birth[Self::ROOT_AT..]).ok()?;
        Pid::new(i32::from_str_radix(digits, 16).ok()?)
    }

    /// The value of the environment variable.
    #[must_use]
    pub fn to_value(&self) -> OsString {
        let mut value = self.birth.to_vec();
        value.push(b'/');
        value.extend_from_slice(self.family.as_bytes());
        value.extend_from_slice(self.pid_file.as_os_str().as_bytes());
        OsString::from_vec(value)
    }

    /// Reads the value of the environment variable.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (birth, rest) = value.split_at_checked(32)?;
        let rest = rest.strip_prefix(b"/")?;
        let slash = memchr::memchr(b'/', rest)?;
        if !birth.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        Some(Self {
            birth: birth.try_into().ok()?,
            family: OsString::from_vec(rest[..slash].to_vec()),
            pid_file: PathBuf::from(OsString::from_vec(rest[slash..].to_vec())),
        })
    }

    /// Finds the mark in an environment block (`/proc/N/environ`, entries
    /// ended by NUL).
    #[must_use]
    pub fn in_environment(block: &[u8]) -> Option<Self> {
        // Most environments bear no mark at all: one fast search decides.
        memchr::memmem::find(block, MARK_VARIABLE.as_bytes())?;
        block.split(|&byte| byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(MARK_VARIABLE.as_bytes())?;
            Self::parse(value.strip_prefix(b"=")?)
        })
    }

    /// Was the bearer born of an agent of this family?
    #[must_use]
    pub fn is_of(&self, family: &Family) -> bool {
        self.family == family.name()
    }

    /// Was the bearer born of a companion of the same system?
    fn is_of_system_of(&self, family: &Family) -> bool {
        let until_name = |name: &OsString| {
            let name = name.as_bytes();
            name.iter()
                .rposition(|&byte| byte == b':')
                .map(|at| name[..at].to_vec())
        };
        until_name(&self.family).is_some_and(|prefix| until_name(&family.name) == Some(prefix))
    }

    /// Was the bearer born of an agent tracked in this PID file?
    #[must_use]
    pub fn names(&self, family: &Family, pid_file: &Path) -> bool {
        self.is_of(family) && self.pid_file == pid_file
    }

    /// The file that tracked the agent at its birth.
    #[must_use]
    pub fn pid_file(&self) -> &Path {
        &self.pid_file
    }

    /// The birth that the bearer comes from.
    #[must_use]
    pub fn birth(&self) -> &[u8; 32] {
        &self.birth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family() -> Family {
        Family::of(Path::new("letta_voice_agent.py"), OsStr::new("dev"))
    }

    fn recognise(line: &str) -> Option<String> {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        family()
            .recognise(&argv)
            .map(|command| command.mode.to_string_lossy().into_owned())
    }

    #[test]
    fn agents_are_recognised() {
        for line in [
            "python letta_voice_agent.py dev",
            "python3 letta_voice_agent.py dev",
            "/opt/my.venv/bin/python3.11 /srv/app/letta_voice_agent.py dev",
            "python3.13t letta_voice_agent.py dev",
            "pypy3 letta_voice_agent.py dev",
            "python -u letta_voice_agent.py dev",
            "python -uB letta_voice_agent.py dev",
            "python -X utf8 letta_voice_agent.py dev",
            "python -Xutf8 -W ignore letta_voice_agent.py dev",
            "python -uX utf8 letta_voice_agent.py dev",
            "python --check-hash-based-pycs always letta_voice_agent.py dev",
            "python -- letta_voice_agent.py dev",
            "python letta_voice_agent_groq.py dev",
            "python letta_voice_agent_optimized.py dev --log-level debug",
            "python -m letta_voice_agent dev",
            "python -um letta_voice_agent dev",
            "python -m hybrid.letta_voice_agent dev",
            "python -m pdb letta_voice_agent.py dev",
            "python -m pdb -c continue letta_voice_agent.py dev",
            "python -m debugpy --listen 5678 --wait-for-client letta_voice_agent.py dev",
            "python -m debugpy --listen 5678 -m letta_voice_agent dev",
            "python -m cProfile -o out.prof letta_voice_agent.py dev",
        ] {
            assert_eq!(recognise(line).as_deref(), Some("dev"), "{line}");
        }
        assert_eq!(
            recognise("python letta_voice_agent.py start").as_deref(),
            Some("start")
        );
        assert_eq!(
            recognise("python letta_voice_agent.py connect --room r").as_deref(),
            Some("connect")
        );
    }

    #[test]
    fn look_alikes_are_not() {
        for line in [
            "",
            "python",
            "python letta_voice_agent.py",
            "python letta_voice_agent.py download-files",
            "python -c import_letta_voice_agent.py letta_voice_agent.py dev",
            "python -ic letta_voice_agent.py dev",
            "python - letta_voice_agent.py dev",
            "python editor.py letta_voice_agent.py dev",
            "python -m editor letta_voice_agent.py dev",
            "python my_letta_voice_agent.py dev",
            "python letta_voice_agents.py dev",
            "python letta_voice_agent.pyc dev",
            "python-config letta_voice_agent.py dev",
            "vim letta_voice_agent.py dev",
            "tail -f letta_voice_agent.py dev",
            "bash -c python letta_voice_agent.py dev",
            "uv run letta_voice_agent.py dev",
            "timeout 60 python letta_voice_agent.py dev",
        ] {
            assert_eq!(recognise(line), None, "{line}");
        }
    }

    #[test]
    fn the_configured_script_and_mode_count() {
        let family = Family::of(Path::new("bot.agent"), OsStr::new("serve"));
        assert_eq!(family.name(), "bot");
        let found = family.recognise(&[b"python3", b"bot.agent", b"serve"]);
        assert_eq!(found.map(|command| command.mode), Some("serve".into()));
        assert!(
            family
                .recognise(&[b"python3", b"bot_2.py", b"dev"])
                .is_some()
        );
        assert!(
            family
                .recognise(&[b"python3", b"letta_voice_agent.py", b"dev"])
                .is_none()
        );
    }

    #[test]
    fn variants_of_the_original_are_one_family() {
        for script in [
            "letta_voice_agent.py",
            "letta_voice_agent_groq.py",
            "/srv/letta_voice_agent_optimized.py",
        ] {
            let family = Family::of(Path::new(script), OsStr::new("dev"));
            assert!(family.is_original(), "{script}");
        }
        assert!(!Family::of(Path::new("letta_voice_agents.py"), OsStr::new("dev")).is_original());
    }

    #[test]
    fn a_mark_survives_the_environment() {
        let mark = Mark::new(7, &family(), Path::new("/tmp/a b\n/x.pid"));
        let mut block = b"PATH=/bin\0XVOICE_GUARD_MARK=no\0VOICE_GUARD_MARK=".to_vec();
        block.extend_from_slice(mark.to_value().as_bytes());
        block.extend_from_slice(b"\0HOME=/\0");
        assert_eq!(Mark::in_environment(&block), Some(mark.clone()));
        assert_eq!(mark.root(), None);
        let agent = Pid::new(4_194_303).unwrap();
        assert_eq!(mark.clone().born_as(agent).root(), Some(agent));
        assert!(mark.names(&family(), Path::new("/tmp/a b\n/x.pid")));
        assert!(!mark.names(&family(), Path::new("/tmp/x.pid")));
        assert_eq!(Mark::in_environment(b"PATH=/bin\0"), None);
        for bad in [
            "",
            "1/f/p",
            "zz345678901234567890123456789012/f/p",
            "12345678901234567890123456789012",
        ] {
            assert_eq!(Mark::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn multiprocessing_children_are_recognised() {
        let role = |code: &str| multiprocessing_role(&[b"/v/bin/python", b"-c", code.as_bytes()]);
        assert_eq!(
            role("from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=19)"),
            Some(MultiprocessingRole::SpawnChild)
        );
        assert_eq!(
            role("from multiprocessing.forkserver import main; main(16, 18, [], **{})"),
            Some(MultiprocessingRole::ForkServer)
        );
        assert_eq!(
            role("from multiprocessing.resource_tracker import main;main(16)"),
            Some(MultiprocessingRole::ResourceTracker)
        );
        assert_eq!(role("print('from multiprocessing.spawn import x')"), None);
        assert_eq!(multiprocessing_role(&[b"bash", b"-c"]), None);
        let tracker: [&[u8]; 4] = [
            b"python",
            b"-B",
            b"-c",
            b"from multiprocessing.resource_tracker import main;main(16)",
        ];
        assert_eq!(tracker_descriptor(&tracker), Some(16));
    }
}
