//! A world of its own for each test.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::processes::{processes_with, signal_proven};
use crate::{
    Finished, Process, Program, binary, built_tool, eventually, is_alive, process, python,
};

const TOKEN: &str = "VOICE_TEST_WORLD";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const AGENT: &str = include_str!("../agents/agent.py");

/// A temporary folder with a project folder in it, an agent script of a name
/// that nobody else has, and everything that is started here.
pub struct World {
    // Dropped last: the processes that use it have been killed by then.
    folder: TempDir,
    project: PathBuf,
    family: String,
    token: String,
    interpreter: PathBuf,
    environment: Vec<(OsString, OsString)>,
    declared: Mutex<Vec<u32>>,
    agents_declared: AtomicBool,
}

impl World {
    /// A fresh world: the test agent under its own name and the `.sh`
    /// links in `project/`, no tracking files, nothing running.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a world is made on purpose")]
    pub fn new() -> Self {
        Self::with_project("project")
    }

    /// A fresh world whose project folder has a given name (spaces, bytes that
    /// are not UTF-8).
    #[must_use]
    pub fn with_project(name: impl AsRef<OsStr>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("voice-world-")
            .tempdir()
            .expect("a temporary folder");
        let token = random_hex();
        let family = format!("agent_{}", &token[..12]);
        let project = folder.path().join(name.as_ref());
        for path in [
            &project,
            &folder.path().join("home"),
            &folder.path().join("scratch"),
        ] {
            std::fs::create_dir(path).expect("a folder of the world");
        }
        let mut world = Self {
            folder,
            project,
            family,
            token,
            interpreter: python().to_owned(),
            environment: Vec::new(),
            declared: Mutex::new(Vec::new()),
            agents_declared: AtomicBool::new(false),
        };
        std::fs::write(world.script(), AGENT).expect("the agent script");
        for program in Program::ALL {
            symlink(binary(program), world.link(program)).expect("a link to a program");
        }
        world.set("PATH", PATH);
        world.set("LANG", "C.UTF-8");
        world.set("TERM", "dumb");
        world.set("HOME", world.path("home"));
        world.set(TOKEN, world.token.clone());
        world.set("VOICE_GUARD_PROJECT_DIR", world.project.clone());
        world.set("VOICE_GUARD_AGENT_SCRIPT", format!("{}.py", world.family));
        world.set("VOICE_GUARD_PYTHON", world.interpreter.clone());
        world.set("VOICE_GUARD_PID_FILE", world.pid_file());
        world.set("VOICE_GUARD_LOCK_FILE", world.lock_file());
        world.set("VOICE_GUARD_LOG_FILE", world.log_file());
        world.set("TEST_AGENT_OVERLAP_LOCK", world.path("overlap.lock"));
        world.set("TEST_AGENT_OVERLAP_LOG", world.path("overlap.log"));
        world.set("TEST_AGENT_STARTS_LOG", world.path("starts.log"));
        world.set("TEST_AGENT_CHILDREN_LOG", world.path("children.log"));
        world.set("PYTHONDONTWRITEBYTECODE", "1");
        world
    }

    /// From now on the interpreter is one that runs a test agent of its own at
    /// once, whatever is in the script: for tests that start very many. (See
    /// `src/bin/quick_agent.rs`; it knows few of the `TEST_AGENT_` variables.)
    pub fn quick_agents(&mut self) -> &mut Self {
        let folder = self.path("bin");
        std::fs::create_dir(&folder).expect("a folder of the world");
        self.interpreter = folder.join("python3");
        symlink(built_tool("quick_agent"), &self.interpreter).expect("the interpreter");
        self.set("VOICE_GUARD_PYTHON", self.interpreter.clone())
    }

    /// What agents of this world are started with.
    #[must_use]
    pub fn interpreter(&self) -> &Path {
        &self.interpreter
    }

    /// Sets a variable for every command from now on.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> &mut Self {
        let name = name.into();
        self.unset(&name);
        self.environment.push((name, value.into()));
        self
    }

    /// Takes a variable out again.
    pub fn unset(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.environment.retain(|(known, _)| known != name.as_ref());
        self
    }

    /// The whole environment that commands get.
    #[must_use]
    pub fn environment(&self) -> &[(OsString, OsString)] {
        &self.environment
    }

    // ---- Where things are.

    /// A path in the world's folder.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder for whatever a test wants to write.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.path("scratch")
    }

    /// The project folder.
    #[must_use]
    pub fn project(&self) -> &Path {
        &self.project
    }

    /// The family name: the agent script's stem.
    #[must_use]
    pub fn family(&self) -> &str {
        &self.family
    }

    /// The agent script.
    #[must_use]
    pub fn script(&self) -> PathBuf {
        self.project.join(format!("{}.py", self.family))
    }

    /// The `.sh` link to a program in the project folder.
    #[must_use]
    pub fn link(&self, program: Program) -> PathBuf {
        self.project.join(program.script())
    }

    /// The PID file.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.path("agent.pid")
    }

    /// The startup lock file.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.path("agent.lock")
    }

    /// The agent's log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.path("agent.log")
    }

    /// The guard file of the family, which the programs never remove.
    #[must_use]
    pub fn guard_file(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/.{}.guard", self.family))
    }

    /// The guard file of the project's voice system, which the programs never
    /// remove either.
    #[must_use]
    pub fn system_guard_file(&self) -> PathBuf {
        let key = guard_core::runtime::key_of(&self.project);
        PathBuf::from(format!("/tmp/.voice-system-{key}.guard"))
    }

    // ---- Running things.

    /// A command with the world's environment and nothing else, in the project folder.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.project)
            .stdin(Stdio::null());
        command
    }

    /// One of the programs, called by its `.sh` link.
    #[must_use]
    pub fn program(&self, program: Program) -> Command {
        self.command(self.link(program))
    }

    /// The same for `assert_cmd`, given up after a minute.
    #[must_use]
    pub fn assert(&self, program: Program) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::from_std(self.program(program));
        command.timeout(Duration::from_mins(1));
        command
    }

    /// A line for `/bin/sh -c`.
    #[must_use]
    pub fn shell(&self, line: &str) -> Command {
        let mut command = self.command("/bin/sh");
        command.arg("-c").arg(line);
        command
    }

    /// Runs one of the programs to its end.
    #[must_use]
    pub fn run(&self, program: Program) -> Output {
        self.run_command(self.program(program))
    }

    /// Runs a command to its end. Its output goes through a file, so that a
    /// process which inherited the stream does not hold the test up.
    #[must_use]
    pub fn run_command(&self, mut command: Command) -> Output {
        let mut out = tempfile::tempfile().expect("a file for the output");
        let mut err = tempfile::tempfile().expect("a file for the errors");
        let status = command
            .stdout(out.try_clone().expect("the output file"))
            .stderr(err.try_clone().expect("the error file"))
            .status()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Output {
            status,
            stdout: read_back(&mut out),
            stderr: read_back(&mut err),
        }
    }

    /// Runs one of the programs and expects an exit code; gives its output.
    #[track_caller]
    pub fn expect(&self, program: Program, code: i32) -> String {
        let output = self.run(program);
        let said = text(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{} ended with {}, expected {code}; it said:\n{said}\n{}",
            program.name(),
            output.status,
            self.describe()
        );
        said
    }

    /// Starts an agent the old way, `python SCRIPT MODE &` in the project
    /// folder, as a child of the test, output to the log, tracked nowhere.
    #[must_use]
    pub fn agent_by_hand(&self, mode: &str) -> HandAgent {
        self.agent_by_hand_as(&self.script(), mode)
    }

    /// The same for another script of the family (see [`World::add_script`]).
    #[must_use]
    pub fn agent_by_hand_as(&self, script: &Path, mode: &str) -> HandAgent {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("the log");
        let child = self
            .command(&self.interpreter)
            .arg(script.file_name().expect("a script's name"))
            .arg(mode)
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("an agent by hand");
        let agent = HandAgent { child };
        // Until it has locked its overlap lock it could still be a fork of ours.
        crate::until("the agent started by hand to run", || {
            self.starts().contains(&agent.pid()) || !is_alive(agent.pid())
        });
        agent
    }

    /// Another script of the same family, `STEM_SUFFIX.py`.
    #[must_use]
    pub fn add_script(&self, suffix: &str) -> PathBuf {
        let path = self.project.join(format!("{}_{suffix}.py", self.family));
        std::fs::write(&path, AGENT).expect("an agent script");
        path
    }

    // ---- What there is.

    /// The number in the PID file, if it is exactly a number and a newline.
    #[must_use]
    pub fn pid_in_file(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.pid_file()).ok()?;
        let number = text.strip_suffix('\n')?;
        number
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| number.parse().ok())?
    }

    /// Is the PID file locked, as it is by the agent that one of the programs
    /// started, for as long as that lives?
    #[must_use]
    pub fn pid_file_is_locked(&self) -> bool {
        let file = File::open(self.pid_file()).expect("the PID file");
        // Shared: two exclusive probes would see each other.
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
    }

    /// The agent's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Does this process come from this world? Proved by the token in its environment.
    #[must_use]
    pub fn owns(&self, process: &Process) -> bool {
        process.variable(TOKEN) == Some(OsStr::new(&self.token))
    }

    /// Every living process of this world: agents, their children, starters, anything.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes_with("environ", &self.token)
            .into_iter()
            .filter(|process| process.lives() && self.owns(process))
            .collect()
    }

    /// Every living process that bears a birth mark of this world's family.
    #[must_use]
    pub fn marked(&self) -> Vec<Process> {
        self.processes()
            .into_iter()
            .filter(|process| {
                process.variable("VOICE_GUARD_MARK").is_some_and(|mark| {
                    mark.to_string_lossy()
                        .contains(&format!("/{}/", self.family))
                })
            })
            .collect()
    }

    /// The agents that live: by their command line, without the forked children
    /// of an agent, which have the same one.
    #[must_use]
    pub fn agents(&self) -> Vec<u32> {
        let mut agents = processes_with("cmdline", &self.family);
        agents.retain(|process| process.lives() && process.runs_agent(&self.family, None));
        agents
            .iter()
            .filter(|agent| {
                let mut parent = agent.parent;
                while parent > 1 {
                    if agents.iter().any(|other| other.pid == parent) {
                        return false;
                    }
                    parent = process(parent).map_or(0, |process| process.parent);
                }
                true
            })
            .map(|agent| agent.pid)
            .collect()
    }

    /// Every process that belongs to agents: agents by their command line, their
    /// descendants, and whatever is marked, orphans included.
    #[must_use]
    pub fn family_processes(&self) -> Vec<Process> {
        let all = self.processes();
        let mut inside: Vec<u32> = all
            .iter()
            .filter(|process| process.runs_agent(&self.family, None))
            .map(|process| process.pid)
            .chain(self.marked().into_iter().map(|process| process.pid))
            .collect();
        loop {
            let more: Vec<u32> = all
                .iter()
                .filter(|process| {
                    inside.contains(&process.parent) && !inside.contains(&process.pid)
                })
                .map(|process| process.pid)
                .collect();
            if more.is_empty() {
                break;
            }
            inside.extend(more);
        }
        all.into_iter()
            .filter(|process| inside.contains(&process.pid))
            .collect()
    }

    /// The PIDs of all agents that ever ran their first instruction here.
    #[must_use]
    pub fn starts(&self) -> Vec<u32> {
        std::fs::read_to_string(self.path("starts.log"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    /// Gives agents one child of each kind that has to go with them: forked,
    /// deaf, in a session of its own, orphaned, `multiprocessing`'s, and no Python.
    pub fn with_children(&mut self) -> &mut Self {
        self.set(
            "TEST_AGENT_CHILDREN",
            "fork,deaf,setsid,grandchild,spawn,forkserver,system,inheriting",
        );
        // Most of them are deaf to TERM.
        self.set("VOICE_GUARD_GRACE_SECONDS", "0.5")
    }

    /// The children that agents were told to have (`TEST_AGENT_CHILDREN`) and did
    /// start: their kind and PID.
    #[must_use]
    pub fn agent_children(&self) -> Vec<(String, u32)> {
        std::fs::read_to_string(self.path("children.log"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let (kind, pid) = line.split_once(' ')?;
                Some((kind.to_owned(), pid.parse().ok()?))
            })
            .collect()
    }

    /// What agents reported that found another one running when they began.
    #[must_use]
    pub fn overlaps(&self) -> String {
        std::fs::read_to_string(self.path("overlap.log")).unwrap_or_default()
    }

    /// Panics if two agents ever ran at the same time.
    #[track_caller]
    pub fn assert_no_overlap(&self) {
        let overlaps = self.overlaps();
        assert!(overlaps.is_empty(), "two agents ran at once:\n{overlaps}");
    }

    /// Panics unless exactly one agent lives, the PID file names it, and no
    /// start is left in progress; gives its PID.
    #[track_caller]
    pub fn assert_one_agent(&self) -> u32 {
        let agents = self.agents();
        assert!(
            agents.len() == 1 && self.pid_in_file() == Some(agents[0]),
            "expected one agent, named in the PID file\n{}",
            self.describe()
        );
        self.assert_no_start_in_progress();
        agents[0]
    }

    /// Panics if an agent or anything of its family lives, or a tracking file is left.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let family = self.family_processes();
        assert!(
            family.is_empty() && !self.pid_file().exists(),
            "expected nothing left\n{}",
            self.describe()
        );
        self.assert_no_start_in_progress();
    }

    /// Panics if the lock file or one of the temporary files of a start is left.
    #[track_caller]
    pub fn assert_no_start_in_progress(&self) {
        for file in [
            self.lock_file(),
            self.path(".agent.lock.new"),
            self.path(".agent.pid.new"),
        ] {
            assert!(
                file.symlink_metadata().is_err(),
                "{} is left\n{}",
                file.display(),
                self.describe()
            );
        }
    }

    /// Everything about this world that helps to understand a failure.
    #[must_use]
    pub fn describe(&self) -> String {
        let content = |path: PathBuf| match std::fs::read(&path) {
            Ok(bytes) => format!("{:?}", String::from_utf8_lossy(&bytes)),
            Err(error) => format!("({error})"),
        };
        let processes: Vec<_> = self.processes().iter().map(Process::describe).collect();
        format!(
            "agents: {:?}\nPID file: {}\nlock file: {}\nstarts: {:?}\noverlaps: {:?}\nprocesses of this world:\n  {}\nlog:\n{}",
            self.agents(),
            content(self.pid_file()),
            content(self.lock_file()),
            self.starts(),
            self.overlaps(),
            processes.join("\n  "),
            self.log(),
        )
    }

    /// What a failed round of a race needs to be understood: how everybody
    /// ended, what they said, and what is there now.
    #[must_use]
    pub fn transcript(&self, round: usize, ended: &[Finished]) -> String {
        let mut text = format!("round {round}\n");
        for (number, one) in ended.iter().enumerate() {
            write!(text, "--- {number}: {}\n{}", one.status, one.output).expect("a string");
        }
        text + &self.describe()
    }

    // ---- Ending things.

    /// Sends a signal to a process of this world and to no other.
    #[track_caller]
    pub fn signal(&self, pid: u32, signal: Signal) {
        assert!(
            signal_proven(pid, signal, |process| self.owns(process)),
            "PID {pid} is no living process of this world\n{}",
            self.describe()
        );
    }

    /// Kills a process of this world and waits for its death.
    #[track_caller]
    pub fn kill(&self, pid: u32) {
        self.signal(pid, Signal::KILL);
    }

    /// Kills every process of this world, until none is left.
    pub fn kill_everything(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        // Twice nothing: in the middle of an exec a process shows no environment.
        let mut quiet = 0;
        while quiet < 2 && Instant::now() < end {
            let all = self.processes();
            quiet = if all.is_empty() { quiet + 1 } else { 0 };
            for process in all {
                signal_proven(process.pid, Signal::KILL, |process| self.owns(process));
            }
        }
    }

    /// Says that this process and its descendants may live at the end of the test.
    pub fn declare(&self, pid: u32) {
        self.declared.lock().expect("declared").push(pid);
    }

    /// Says that agents and what belongs to them may live at the end of the test.
    pub fn leave_agents(&self) {
        self.agents_declared.store(true, Ordering::Relaxed);
    }

    fn undeclared(&self) -> Vec<Process> {
        let mut declared = self.declared.lock().expect("declared").clone();
        if self.agents_declared.load(Ordering::Relaxed) {
            declared.extend(self.family_processes().iter().map(|process| process.pid));
        }
        self.processes()
            .into_iter()
            .filter(|candidate| {
                let mut ancestor = candidate.pid;
                while ancestor > 1 {
                    if declared.contains(&ancestor) {
                        return false;
                    }
                    ancestor = process(ancestor).map_or(0, |process| process.parent);
                }
                true
            })
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A process that has just been told to end may take a moment.
        let mut left = Vec::new();
        if !std::thread::panicking() {
            let _ = eventually(Duration::from_secs(2), || {
                left = self.undeclared();
                left.is_empty()
            });
        }
        self.kill_everything();
        let _ = std::fs::remove_file(self.guard_file());
        let _ = std::fs::remove_file(self.system_guard_file());
        if !left.is_empty() && !std::thread::panicking() {
            let left: Vec<_> = left.iter().map(Process::describe).collect();
            panic!(
                "the test left processes behind that it had not declared:\n  {}",
                left.join("\n  ")
            );
        }
    }
}

/// An agent that was started without any of the programs, a child of the test.
#[derive(Debug)]
pub struct HandAgent {
    child: Child,
}

impl HandAgent {
    /// Its PID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Does it live? (Dead, it is a zombie until this or [`HandAgent::wait`] looks.)
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().expect("wait for the agent").is_none()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("wait for the agent")
    }
}

/// Everything a command wrote, stdout first.
#[must_use]
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Are these tools in the path that worlds have? If one is not, says on stderr
/// that `what` is left out.
#[must_use]
pub fn available(tools: &[&str], what: &str) -> bool {
    let missing = tools.iter().find(|tool| {
        !PATH
            .split(':')
            .any(|folder| Path::new(folder).join(tool).is_file())
    });
    if let Some(tool) = missing {
        left_out(what, &format!("{tool} is not installed"));
    }
    missing.is_none()
}

/// Says on stderr, once, that something is not tested here, and why. Not by
/// `eprintln!`: that is shown of tests that fail only.
pub fn left_out(what: &str, why: &str) {
    use std::io::Write;
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let line = format!("left out: {what}: {why}");
    if SAID.lock().expect("what was said").insert(line.clone()) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

fn read_back(file: &mut File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().expect("rewind the output");
    file.read_to_end(&mut bytes).expect("read the output");
    bytes
}

fn random_hex() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .expect("the kernel gives a random UUID")
        .trim()
        .replace('-', "")
}
