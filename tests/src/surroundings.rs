//! What a test can put around a program: another user, namespaces, a
//! terminal, limits, strangers.
#![allow(
    clippy::must_use_candidate,
    reason = "what these give may be dropped: they assert"
)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::unistd::geteuid;

use crate::{Program, World, binary, eventually, left_out, python, text, until};

/// No verdict takes longer; what does has hung.
const HUNG: Duration = Duration::from_secs(30);

/// Runs a command to its end and gives up on it, failing the test, when it hangs.
#[track_caller]
pub fn run(world: &World, mut command: Command) -> Output {
    let folder = tempfile::tempdir_in(world.path("")).expect("a folder for the output");
    let file = |name| fs::File::create(folder.path().join(name)).expect("a file for the output");
    let mut child = command
        .stdout(file("out"))
        .stderr(file("err"))
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut status = None;
    let ended = eventually(HUNG, || {
        status = child.try_wait().expect("wait for the command");
        status.is_some()
    });
    let read = |name| fs::read(folder.path().join(name)).expect("the output");
    let (stdout, stderr) = (read("out"), read("err"));
    if !ended {
        let _ = child.kill();
        let _ = child.wait();
    }
    let Some(status) = status else {
        panic!(
            "{command:?} hung; it had said:\n{}{}\n{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr),
            world.describe()
        );
    };
    Output {
        status,
        stdout,
        stderr,
    }
}

/// The exit code of a program that came to a verdict of its own: 0 or 1, with
/// something said on stdout and no panic.
#[track_caller]
pub fn verdict(output: &Output) -> i32 {
    assert!(!output.stdout.is_empty(), "nothing was said: {output:?}");
    exit_code(output)
}

/// Like [`verdict`], for a program that may have had nowhere to say anything.
#[track_caller]
pub fn exit_code(output: &Output) -> i32 {
    let said = text(output);
    assert!(!said.contains("panicked at"), "it panicked:\n{said}");
    match output.status.code() {
        Some(code @ (0 | 1)) => code,
        _ => panic!("it ended with {}, saying:\n{said}", output.status),
    }
}

/// For [`outcome`] without any.
pub const NO_ARGUMENTS: &[&str] = &[];

/// Runs one of the programs with arguments; gives its exit code and what it said.
#[track_caller]
pub fn outcome<A: AsRef<OsStr>>(world: &World, program: Program, arguments: &[A]) -> (i32, String) {
    let mut command = world.program(program);
    command.args(arguments);
    let output = run(world, command);
    (verdict(&output), text(&output))
}

/// Runs a program with `--json`; gives its exit code and its one object.
#[track_caller]
pub fn report(world: &World, program: Program) -> (i32, serde_json::Value) {
    let mut command = world.program(program);
    command.arg("--json");
    let output = run(world, command);
    let code = verdict(&output);
    let object = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("not one JSON object: {error}\n{}", text(&output)));
    (code, object)
}

/// The PIDs in a list of the report.
#[must_use]
pub fn pids(report: &serde_json::Value, list: &str) -> Vec<u64> {
    let entries = report[list].as_array();
    let entries = entries.unwrap_or_else(|| panic!("no list `{list}` in {report}"));
    let pid = |entry: &serde_json::Value| entry.as_u64().or_else(|| entry["pid"].as_u64());
    entries.iter().filter_map(pid).collect()
}

/// Fails unless the text names the path.
#[track_caller]
pub fn assert_names(said: &str, path: &Path) {
    assert!(
        said.contains(&*path.to_string_lossy()),
        "{} is not named in:\n{said}",
        path.display()
    );
}

/// A process that has nothing to do with the agent, a child of the test.
#[derive(Debug)]
pub struct Stranger {
    child: Child,
}

impl Stranger {
    /// `sleep`, with a command line like any other.
    #[must_use]
    pub fn sleeping(world: &World) -> Self {
        let mut command = world.command("sleep");
        command.arg("1000");
        Self::of(command)
    }

    /// Any command that goes on until it is killed.
    #[must_use]
    pub fn of(mut command: Command) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stranger = Self { child };
        // Until its exec it is a copy of the test, and in the middle nothing.
        until("a stranger to have begun", || {
            let own = crate::process(std::process::id()).expect("the test itself");
            crate::process(stranger.pid()).is_none_or(|process| {
                let begun = !process.argv.is_empty() && process.argv != own.argv;
                begun || !process.lives()
            })
        });
        stranger
    }

    /// Its PID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it writes, if its command's stdout was piped.
    pub fn stdout(&mut self) -> &mut ChildStdout {
        self.child.stdout.as_mut().expect("a piped stdout")
    }

    /// The same, for good: to read it while the process is watched.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("a piped stdout")
    }

    /// Waits for its own end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("wait for a stranger")
    }

    /// Fails if it was ended.
    #[track_caller]
    pub fn assert_lives(&mut self) {
        let ended = self.child.try_wait().expect("look at the stranger");
        assert!(ended.is_none(), "a stranger was signalled: {ended:?}");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Another user of the machine, whom only root can become.
#[derive(Debug, Clone, Copy)]
pub struct OtherUser {
    uid: u32,
}

impl OtherUser {
    /// `nobody`; `None`, and said so, where the test cannot become him.
    #[must_use]
    pub fn nobody(what: &str) -> Option<Self> {
        Self::with_uid(65_534, what)
    }

    /// A user who owns no process yet: limits per user count from zero.
    #[must_use]
    pub fn without_processes(what: &str) -> Option<Self> {
        Self::with_uid(61_000 + std::process::id() % 4_000, what)
    }

    fn with_uid(uid: u32, what: &str) -> Option<Self> {
        let user = Self { uid };
        if !geteuid().is_root() {
            left_out(what, "needs root, to run programs as another user");
            return None;
        }
        if !user.can_run(Path::new("true"), &[]) {
            left_out(what, "this namespace knows no other user");
            return None;
        }
        if user.python().is_none() {
            left_out(what, "no python3 that another user may run");
            return None;
        }
        Some(user)
    }

    /// His number.
    #[must_use]
    pub const fn uid(self) -> u32 {
        self.uid
    }

    /// An interpreter that he may run.
    pub fn interpreter(self) -> PathBuf {
        self.python().expect("looked for it before")
    }

    /// Makes him the one who runs the command.
    pub fn runs(self, command: &mut Command) -> &mut Command {
        command.uid(self.uid).gid(self.uid)
    }

    /// Gives him everything in the world, an interpreter and the programs.
    pub fn moves_into(self, world: &mut World) {
        self.may_use(world);
        self.owns_all(&world.path(""));
    }

    /// Lets him see the world, which stays its maker's.
    pub fn may_use(self, world: &mut World) {
        world.set("VOICE_GUARD_PYTHON", self.interpreter());
        let readable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(world.path(""), readable.clone()).expect("open the world");
        for program in Program::ALL {
            if self.can_run(&binary(program), &["--version"]) {
                continue;
            }
            // The build's folder is somewhere below a home that is closed to him.
            let copy = world.path(program.name());
            fs::copy(binary(program), &copy).expect("a copy of the program");
            fs::set_permissions(&copy, readable.clone()).expect("open the program");
            fs::remove_file(world.link(program)).expect("the old link");
            symlink(copy, world.link(program)).expect("the new link");
        }
    }

    fn owns_all(self, path: &Path) {
        lchown(path, Some(self.uid), Some(self.uid)).expect("give him a file");
        let kind = path.symlink_metadata().expect("a file's kind").file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(path).expect("a folder's content") {
                self.owns_all(&entry.expect("a folder's entry").path());
            }
        }
    }

    fn python(self) -> Option<PathBuf> {
        [
            Path::new("/usr/bin/python3"),
            Path::new("/usr/local/bin/python3"),
            python(),
        ]
        .into_iter()
        .find(|path| self.can_run(path, &["-c", "import signal"]))
        .map(Path::to_owned)
    }

    fn can_run(self, program: &Path, arguments: &[&str]) -> bool {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = self.runs(&mut command).status();
        // Any exit means that it ran: an unfinished program may answer 1.
        status.is_ok_and(|status| status.code().is_some_and(|code| code < 126))
    }
}

/// PID and mount namespaces for one test: default names, limits on `/tmp` and
/// many processes touch nothing outside.
#[derive(Debug, Default)]
pub struct Room {
    tmpfs: Vec<(PathBuf, String)>,
    kept: Vec<PathBuf>,
    scratch: Option<PathBuf>,
    own_network: bool,
}

/// Brings the loopback interface up (`ip link set lo up`, which is not everywhere):
/// `SIOCSIFFLAGS` with `IFF_UP`, `IFF_LOOPBACK` and `IFF_RUNNING`.
const LOOPBACK: &str = "import fcntl, socket, struct
with socket.socket() as any:
    fcntl.ioctl(any, 0x8914, struct.pack('16sh14x', b'lo', 0x49))";

/// Set, to the test's name, for a test that runs inside its room.
const INSIDE: &str = "VOICE_TEST_ROOM";

/// `$1`: number of folders to keep reachable, the folders; then pairs of a
/// folder to cover and mount options up to `--`; then the command.
const FURNISH: &str = r#"
set -eu
kept=$1; shift
mount -t tmpfs -o mode=755 tmpfs /mnt
at=0
while [ $at -lt "$kept" ]; do
    at=$((at + 1))
    mkdir "/mnt/$at"; mount --rbind "$1" "/mnt/$at"
    printf '%s\n' "$1" >> /mnt/kept
    shift
done
while [ "$1" != -- ]; do
    mount -t tmpfs -o "$2" tmpfs "$1"
    shift 2
done
shift
at=0
while read -r folder; do
    at=$((at + 1))
    mkdir -p "$folder"; mount --rbind "/mnt/$at" "$folder"
done < /mnt/kept
# This shell stays PID 1 and reaps whoever is re-parented to it.
"$@" || exit $?
exit 0
"#;

impl Room {
    /// A room like the machine, but with PIDs and mounts of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Covers a folder with an empty file system.
    #[must_use]
    pub fn tmpfs(mut self, path: impl Into<PathBuf>, options: &str) -> Self {
        self.tmpfs.push((path.into(), options.to_owned()));
        self
    }

    /// Keeps a folder reachable, should it be where an empty file system is put.
    #[must_use]
    pub fn keep(mut self, path: impl Into<PathBuf>) -> Self {
        self.kept.push(path.into());
        self
    }

    /// Makes temporary folders, and with them the worlds inside, somewhere
    /// else than in `/tmp`.
    #[must_use]
    pub fn worlds_in(mut self, path: impl Into<PathBuf>) -> Self {
        self.scratch = Some(path.into());
        self
    }

    /// With a network of its own: only the loopback interface, and every port free.
    #[must_use]
    pub const fn own_network(mut self) -> Self {
        self.own_network = true;
        self
    }

    /// Runs the body of the test `name` in the room: the test's executable runs
    /// that one test again in there.
    #[track_caller]
    pub fn enter(self, name: &str, body: impl FnOnce()) {
        if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
            if self.own_network {
                let up = Command::new(python()).args(["-c", LOOPBACK]).status();
                assert!(up.is_ok_and(|status| status.success()), "no loopback");
            }
            return body();
        }
        let mut unshare = vec!["unshare"];
        if !geteuid().is_root() {
            unshare.extend(["--user", "--map-root-user"]);
        }
        unshare.extend([
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        if self.own_network {
            unshare.push("--net");
        }
        let possible = Command::new(unshare[0])
            .args(&unshare[1..])
            .args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"])
            .output();
        if !possible.is_ok_and(|output| output.status.success()) {
            return left_out(name, "this machine gives no PID and mount namespaces");
        }
        let test = std::env::current_exe().expect("the test executable has a path");
        let mut keep = self.kept;
        keep.push(test.parent().expect("a folder").to_owned());
        keep.extend(binary(Program::Check).parent().map(Path::to_owned));
        let mut command = Command::new(unshare[0]);
        command
            .args(&unshare[1..])
            .args(["sh", "-c", FURNISH, "room"]);
        command.arg(keep.len().to_string()).args(&keep);
        for (path, options) in &self.tmpfs {
            command.arg(path).arg(options);
        }
        command
            .arg("--")
            .arg(&test)
            .args(["--exact", &path_of_test(&test, name), "--nocapture"]);
        // The folder it was started in may be covered in there.
        command.env(INSIDE, name).current_dir("/");
        match self.scratch {
            Some(folder) => command.env("TMPDIR", folder),
            None => command.env_remove("TMPDIR"),
        };
        let output = command.output().expect("a room");
        let said = text(&output);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "in a room of its own:\n{said}"
        );
        // What the test left out in there is left out here.
        for line in said.lines().filter(|line| line.contains("left out: ")) {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// The test `name` of this executable with the modules that it is in.
fn path_of_test(executable: &Path, name: &str) -> String {
    static LIST: OnceLock<String> = OnceLock::new();
    let list = LIST.get_or_init(|| {
        let mut listing = Command::new(executable);
        listing.args(["--list", "--format", "terse"]);
        text(&listing.output().expect("the list of the tests"))
    });
    let paths = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let is_it = |path: &&str| {
        path.strip_suffix(name)
            .is_some_and(|modules| modules.is_empty() || modules.ends_with("::"))
    };
    match paths.filter(is_it).collect::<Vec<_>>()[..] {
        [path] => path.to_owned(),
        ref paths => panic!("one test is to be called {name}: {paths:?}"),
    }
}

/// A command on a terminal of its own, which is its controlling terminal.
pub struct Terminal {
    driver: Child,
    keyboard: Option<ChildStdin>,
    screen: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

/// Copies between its own streams and a new terminal on which its arguments run.
const DRIVER: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])) & 255)";

impl Terminal {
    /// Begins.
    #[must_use]
    pub fn new<A: AsRef<OsStr>>(world: &World, argv: &[A]) -> Self {
        let mut driver = world
            .command(python())
            .args(["-c", DRIVER])
            .args(argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a terminal");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let mut stream = driver.stdout.take().expect("the terminal's screen");
        let written = Arc::clone(&screen);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut piece) {
                lock(&written).extend_from_slice(&piece[..length]);
            }
        });
        Self {
            keyboard: driver.stdin.take(),
            driver,
            screen,
            reader: Some(reader),
        }
    }

    /// Types a line.
    pub fn types(&mut self, line: &str) {
        let keyboard = self.keyboard.as_mut().expect("the keyboard is there");
        keyboard
            .write_all(format!("{line}\n").as_bytes())
            .expect("type a line");
    }

    /// Everything that was on the screen so far.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&lock(&self.screen)).into_owned()
    }

    /// Waits for words on the screen.
    #[track_caller]
    pub fn until_shows(&self, words: &str) {
        let shown = eventually(HUNG, || self.shown().contains(words));
        assert!(shown, "`{words}` never appeared on:\n{}", self.shown());
    }

    /// Waits for the command's end; gives its exit code and all that was shown.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut status = None;
        let ended = eventually(HUNG, || {
            status = self.driver.try_wait().expect("wait for the terminal");
            status.is_some()
        });
        assert!(ended, "the terminal does not end; on it:\n{}", self.shown());
        // An agent may hold the screen open; what the command wrote is there.
        if let Some(reader) = self.reader.take() {
            let _ = eventually(Duration::from_secs(1), || reader.is_finished());
        }
        (status.and_then(|status| status.code()), self.shown())
    }
}

fn lock(screen: &Mutex<Vec<u8>>) -> std::sync::MutexGuard<'_, Vec<u8>> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command after `line` (`ulimit -n 5`, `umask 077`, `exec 7</dev/null`) in the same shell process.
#[must_use]
pub fn after(world: &World, line: &str, program: Program) -> Command {
    let mut command = world.shell(&format!("{line}\nexec \"$0\" \"$@\""));
    command.arg(world.link(program));
    command
}

/// Moves the world's tracking files into a folder in which, as in `/tmp`,
/// everybody may write and only owners remove.
pub fn move_files_into_sticky_folder(world: &mut World) -> PathBuf {
    let folder = world.path("sticky");
    fs::create_dir(&folder).expect("a sticky folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).expect("make it sticky");
    for (name, file) in [
        ("PID", "agent.pid"),
        ("LOCK", "agent.lock"),
        ("LOG", "agent.log"),
    ] {
        world.set(format!("VOICE_GUARD_{name}_FILE"), folder.join(file));
    }
    folder
}

/// Removes what the test agent of one user has left for the tests and that of
/// another could not overwrite.
pub fn remove_traces(world: &World) {
    for entry in fs::read_dir(world.path("")).expect("the world's folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("overlap.") || name == "starts.log" {
            fs::remove_file(&path).expect("remove a trace");
        }
    }
}

/// A path with a name that is no UTF-8.
#[must_use]
pub fn odd_name() -> OsString {
    use std::os::unix::ffi::OsStringExt;
    OsString::from_vec(b"pro ject \xff'\"$x".to_vec())
}
