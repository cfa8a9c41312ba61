//! The five programs on the real `livekit-agents` worker.
//!
//! How many agents there are is what a `LiveKit` server sees: the workers that are
//! registered at `tests/real/livekit-endpoint.py`, which stands in for the
//! server's worker endpoint. What the versions are made of, and why each of them
//! is here, is in `tests/real/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use scenarios::{Program, World, eventually, is_alive, left_out, text, until, within};
use serde_json::Value;

const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/real");

/// Importing `livekit-agents` takes seconds of processor time for each process,
/// and the tests share the machine with one another.
const PATIENCE: Duration = Duration::from_mins(2);

/// Every scenario below, once for each version.
macro_rules! in_each_version {
    ($($scenario:ident)*) => {
        in_version!(livekit_agents_1_0_23 "1.0.23" $($scenario)*);
        in_version!(livekit_agents_1_4_6 "1.4.6" $($scenario)*);
        in_version!(livekit_agents_1_8_9 "1.8.9" $($scenario)*);
    };
}

macro_rules! in_version {
    ($module:ident $version:literal $($scenario:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $scenario() {
                    if let Some(python) = super::python_with($version) {
                        super::$scenario(&python);
                    }
                }
            )*
        }
    };
}

in_each_version! {
    one_worker_when_a_start_returns_and_after_the_pid_file_was_removed
    one_worker_when_a_start_in_production_mode_returns
    one_worker_after_a_kill_and_a_hangup_with_new_starts_and_after_a_restart
    one_worker_after_kill_9_in_a_call_and_a_new_start_and_none_after_a_stop_in_a_call
    one_worker_after_kill_9_in_production_mode_and_a_new_start_and_none_after_a_stop_in_a_call
    stop_ends_what_an_agent_started_by_hand_left_behind
    a_start_beside_orphans_makes_no_second_worker_and_a_system_start_over_them_makes_one
    one_worker_after_a_system_start_over_two_started_by_hand
    a_system_start_keeps_an_agent_started_by_hand_without_orphans_beside_it_and_stop_ends_it
    stop_ends_what_an_agent_typed_into_a_terminal_left_behind
    the_endpoint_is_a_fresh_companion_and_one_worker_registers_with_each
}

// To boot an agent takes seconds of processor time, more than all else here: what
// can be shown with an agent that runs already is shown with that one.

fn one_worker_when_a_start_returns_and_after_the_pid_file_was_removed(python: &Path) {
    let real = Real::new(python, Calls::None);
    real.world.expect(Program::Check, 0);
    real.start_returns_when_the_worker_has_registered();

    real.world.expect(Program::Check, 1);
    let refusal = real.world.expect(Program::Start, 1);
    assert!(
        refusal.contains("ERROR: Already running or locked"),
        "{refusal}"
    );
    real.assert_one_worker();
    let agent = real.root();

    real.remove_pid_file();
    real.world.expect(Program::Check, 1);
    real.world.expect(Program::Start, 1);
    real.expect_workers(1);
    real.world.expect(Program::System, 0);
    real.assert_one_worker();
    assert_eq!(real.root(), agent, "kept, and named in the PID file again");

    real.remove_pid_file();
    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    real.assert_never_two_workers();
}

fn one_worker_when_a_start_in_production_mode_returns(python: &Path) {
    let mut real = Real::new(python, Calls::None);
    real.world.set("VOICE_GUARD_AGENT_MODE", "start");
    real.start_returns_when_the_worker_has_registered();
    real.world.expect(Program::Start, 1);
    real.world.expect(Program::System, 0);
    real.assert_one_worker();
    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    real.assert_never_two_workers();
}

fn one_worker_after_a_kill_and_a_hangup_with_new_starts_and_after_a_restart(python: &Path) {
    let real = Real::new(python, Calls::None);
    real.start();
    real.end_the_root_and_start_again("kill");
    real.end_the_root_and_start_again("kill -HUP");

    let before = real.root();
    real.world.expect(Program::Restart, 0);
    real.assert_one_worker();
    assert_ne!(before, real.root());
    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    real.assert_never_two_workers();
}

fn one_worker_after_kill_9_in_a_call_and_a_new_start_and_none_after_a_stop_in_a_call(
    python: &Path,
) {
    let real = Real::new(python, Calls::One);
    real.start();
    real.end_the_root_and_start_again("kill -9");

    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    real.assert_never_two_workers();
}

fn one_worker_after_kill_9_in_production_mode_and_a_new_start_and_none_after_a_stop_in_a_call(
    python: &Path,
) {
    let mut real = Real::new(python, Calls::One);
    real.world.set("VOICE_GUARD_AGENT_MODE", "start");
    // It would wait for the end of the call for an hour.
    real.world.set("VOICE_GUARD_GRACE_SECONDS", "2");
    real.start();
    real.end_the_root_and_start_again("kill -9");

    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    real.assert_never_two_workers();
}

fn stop_ends_what_an_agent_started_by_hand_left_behind(python: &Path) {
    let real = Real::new(python, Calls::One);
    let script = Script::start(&real, "dev");
    real.expect_call();
    real.world.kill(script.agent);

    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    script.assert_unharmed();
    // Nothing of the script's is taken for an agent's, either.
    real.world.expect(Program::Check, 0);
}

fn a_start_beside_orphans_makes_no_second_worker_and_a_system_start_over_them_makes_one(
    python: &Path,
) {
    let real = Real::new(python, Calls::None);
    let script = Script::start(&real, "dev");
    real.expect_workers(1);
    real.world.kill(script.agent);
    // Which version leaves orphans is not what this is about.
    let orphaned = real.endpoint.settled_after_a_death() == 1;

    let report = real.report(Program::Check);
    let named: Vec<u32> = report["orphan_workers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|orphan| u32::try_from(orphan["pid"].as_u64().expect("a PID")).expect("a PID"))
        .collect();
    if orphaned {
        assert_eq!(report["exit_code"], 1, "{report}");
        assert!(!named.is_empty(), "{report}");
    } else {
        assert_eq!(report["exit_code"], 0, "{report}");
    }
    for bystander in &script.bystanders {
        assert!(!named.contains(bystander), "{bystander} in {report}");
    }
    // Refused or cleared first: both keep the promise.
    let output = real.world.run(Program::Start);
    let started = output.status.success();
    assert!(started || orphaned, "{}", text(&output));
    real.expect_workers(1);
    assert_eq!(real.endpoint.now("most_at_once"), 1, "{}", text(&output));
    script.assert_unharmed();
    if started {
        real.world.expect(Program::Stop, 0);
        real.assert_no_worker();
        script.assert_unharmed();
    }

    real.world.expect(Program::System, 0);
    real.assert_one_worker();
    script.assert_unharmed();
    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    script.assert_unharmed();
    real.assert_never_two_workers();
}

fn one_worker_after_a_system_start_over_two_started_by_hand(python: &Path) {
    let real = Real::new(python, Calls::None);
    let scripts = [Script::start(&real, "dev"), Script::start(&real, "dev")];
    real.expect_workers(2);

    let said = real.world.expect(Program::System, 0);
    assert!(said.contains('2'), "says how many there were: {said}");
    real.assert_one_worker();
    for script in &scripts {
        script.assert_unharmed();
    }
    real.world.expect(Program::System, 0);
    real.assert_one_worker();
    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
}

fn a_system_start_keeps_an_agent_started_by_hand_without_orphans_beside_it_and_stop_ends_it(
    python: &Path,
) {
    let real = Real::new(python, Calls::None);
    let gone = Script::start(&real, "dev");
    real.expect_workers(1);
    real.world.kill(gone.agent);
    let orphaned = real.endpoint.settled_after_a_death();
    let kept = Script::start(&real, "dev");
    real.expect_workers(orphaned + 1);

    real.world.expect(Program::System, 0);
    real.assert_one_worker();
    assert_eq!(real.root(), kept.agent);
    gone.assert_unharmed();
    kept.assert_unharmed();

    // Without the PID file it is again as it was started: nothing names it.
    real.remove_pid_file();
    real.world.expect(Program::Check, 1);
    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    gone.assert_unharmed();
    kept.assert_unharmed();
}

fn stop_ends_what_an_agent_typed_into_a_terminal_left_behind(python: &Path) {
    let real = Real::new(python, Calls::None);
    // A session, its terminal and its interactive shell, where the agent is a
    // job with a group of its own.
    let mut terminal = real.world.command("script");
    terminal
        .args([
            "--quiet",
            "--flush",
            "--command",
            "bash --norc --noprofile -i",
            "/dev/null",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let Ok(mut terminal) = terminal.spawn() else {
        left_out("an agent typed into a terminal", "there is no script(1)");
        return;
    };
    real.world.declare(terminal.id());
    let mut keyboard = terminal.stdin.take().expect("its input");
    let pids = real.world.scratch().join("pids");
    keyboard
        .write_all(
            b"set -a; . ./.env; set +a; \"$VOICE_GUARD_PYTHON\" \"$VOICE_GUARD_AGENT_SCRIPT\" dev &\n\
              sleep 600 &\n\
              echo $$ $(jobs -p) >scratch.new; mv scratch.new ../scratch/pids\n",
        )
        .expect("typed");
    real.expect_workers(1);
    until("the shell to say its jobs", || pids.exists());
    let pids: Vec<u32> = std::fs::read_to_string(pids)
        .expect("the PIDs")
        .split_whitespace()
        .map(|pid| pid.parse().expect("a PID"))
        .collect();
    let [shell, agent, job] = pids[..] else {
        panic!("not three PIDs: {pids:?}");
    };
    real.world.kill(agent);

    real.world.expect(Program::Stop, 0);
    real.assert_no_worker();
    assert!(
        is_alive(shell) && is_alive(job),
        "{}",
        real.world.describe()
    );
    real.world.kill(job);
    real.world.kill(shell);
    drop(keyboard);
    terminal.wait().expect("the terminal's end");
}

// ---- What the scenarios are told with.

/// Is anybody calling?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Calls {
    None,
    One,
}

/// The endpoint in the place of `livekit-server`: a companion that each start
/// replaces, while the agent is kept and registers again.
fn the_endpoint_is_a_fresh_companion_and_one_worker_registers_with_each(python: &Path) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("its number").port();
    drop(free);
    let mut real = Real::with_endpoint(python, Calls::None, |_| Endpoint::elsewhere(port));
    let runtime = real.world.path("run");
    std::fs::create_dir(&runtime).expect("a runtime folder");
    real.world.set("XDG_RUNTIME_DIR", runtime);
    std::fs::write(
        real.world.project().join("voice-system.toml"),
        format!(
            "[agent]\nneeds = [\"livekit\"]\n[[companion]]\nname = \"livekit\"\n\
             command = [{:?}, {:?}, \"--port\", \"{port}\", \"--stay\"]\n\
             ready = {{ port = {port} }}\non_start = \"fresh\"\ndeadline_seconds = {}\n",
            python.display().to_string(),
            format!("{REAL}/livekit-endpoint.py"),
            PATIENCE.as_secs(),
        ),
    )
    .expect("the configuration");
    let livekit = |report: &Value| {
        let parts = report["parts"].as_array().expect("the parts");
        let found = parts.iter().find(|part| part["name"] == "livekit");
        found.expect("livekit")["pid"].as_u64().expect("its PID")
    };
    let report = real.report(Program::System);
    assert_eq!(report["outcome"], "started", "{report}");
    assert_eq!(report["registration_confirmed"], true, "{report}");
    real.assert_one_worker();
    let (server, agent) = (livekit(&report), real.root());

    // The agent has lost its server, and finds the next one by itself.
    let report = real.report(Program::System);
    assert_eq!(report["exit_code"], 0, "{report}");
    assert_ne!(livekit(&report), server, "{report}");
    assert_eq!(real.root(), agent, "{report}");
    real.assert_one_worker();
    real.assert_never_two_workers();
    let server = livekit(&report);

    let report = real.report(Program::Restart);
    assert_eq!(report["outcome"], "restarted", "{report}");
    assert_ne!(livekit(&report), server, "{report}");
    assert_ne!(real.root(), agent, "{report}");
    real.assert_one_worker();
    real.assert_never_two_workers();
    let mut status = real.world.program(Program::System);
    status.arg("--status");
    let status = real.world.run_command(status);
    assert!(status.status.success(), "{}", text(&status));

    real.world.expect(Program::StopSystem, 0);
    real.world.assert_nothing_left();
    assert!(
        real.world.processes().is_empty(),
        "{}",
        real.world.describe()
    );
}

/// A world whose agent is a real one, with an endpoint that it registers at.
struct Real {
    // Before the world: the world kills what is left in it.
    endpoint: Endpoint,
    world: World,
    calls: Calls,
}

impl Real {
    fn new(python: &Path, calls: Calls) -> Self {
        Self::with_endpoint(python, calls, |world| Endpoint::start(world, python, calls))
    }

    fn with_endpoint(
        python: &Path,
        calls: Calls,
        endpoint: impl FnOnce(&World) -> Endpoint,
    ) -> Self {
        let mut world = World::new();
        std::fs::copy(Path::new(REAL).join("letta_voice_agent.py"), world.script())
            .expect("the agent script");
        let endpoint = endpoint(&world);
        // The agent learns of the endpoint as a user's agent does.
        std::fs::write(
            world.project().join(".env"),
            format!(
                "LIVEKIT_URL=ws://127.0.0.1:{}\nLIVEKIT_API_KEY=devkey\nLIVEKIT_API_SECRET=secret-secret-secret-secret-secret\n",
                endpoint.port
            ),
        )
        .expect("the env file");
        world.set("VOICE_GUARD_PYTHON", python);
        world.set("VOICE_GUARD_VERIFY_SECONDS", PATIENCE.as_secs().to_string());
        Self {
            endpoint,
            world,
            calls,
        }
    }

    /// Starts the agent safely; it is registered, tracked and, if somebody is
    /// calling, in the call.
    #[track_caller]
    fn start(&self) {
        self.world.expect(Program::Start, 0);
        self.assert_one_worker();
        if self.calls == Calls::One {
            self.expect_call();
        }
    }

    #[track_caller]
    fn start_returns_when_the_worker_has_registered(&self) {
        let (registered, returned, report) = std::thread::scope(|scope| {
            let seen = scope.spawn(|| {
                self.endpoint.wait_for("registered", 1);
                Instant::now()
            });
            let report = self.report(Program::Start);
            let returned = Instant::now();
            (seen.join().expect("the endpoint"), returned, report)
        });
        assert_eq!(report["outcome"], "started", "{report}");
        assert_eq!(report["registration_confirmed"], true, "{report}");
        // The benchmark has the sharp figure; here it is only told apart from
        // a start that did not recognise the line and waits for its window.
        let late = returned.saturating_duration_since(registered);
        assert!(
            late < Duration::from_secs(5),
            "the start returned {late:?} after the registration: {report}"
        );
        self.assert_one_worker();
    }

    /// Ends the root as people do, and starts the agent safely.
    #[track_caller]
    fn end_the_root_and_start_again(&self, kill: &str) {
        let first = self.root();
        // Repeated, since 1.0.23 takes no notice of the first TERM.
        within(PATIENCE, "the root to be gone", || {
            self.sh(&format!("{kill} $(cat $VOICE_GUARD_PID_FILE)"));
            eventually(Duration::from_secs(2), || !is_alive(first))
        });
        self.start();
        assert_ne!(first, self.root(), "after {kill}");
    }

    fn remove_pid_file(&self) {
        self.sh("rm -f $VOICE_GUARD_PID_FILE $VOICE_GUARD_LOCK_FILE");
    }

    #[track_caller]
    fn expect_call(&self) {
        assert_eq!(
            self.endpoint.wait_for("calls", 1),
            1,
            "calls\n{}",
            self.world.describe()
        );
        // The job's process says so itself, later than the worker takes the call;
        // in a log that each safe start begins anew.
        assert!(
            eventually(PATIENCE, || self.world.log().contains("in a call")),
            "waited in vain for the agent to be in the call\n{}",
            self.world.describe()
        );
    }

    #[track_caller]
    fn expect_workers(&self, number: usize) {
        assert_eq!(
            self.endpoint.wait_for("registered", number),
            number,
            "registered workers\n{}",
            self.world.describe()
        );
    }

    #[track_caller]
    fn assert_one_worker(&self) {
        self.world.assert_one_agent();
        self.expect_workers(1);
    }

    /// Nobody answers calls, and no process that could do so is left.
    #[track_caller]
    fn assert_no_worker(&self) {
        self.world.assert_nothing_left();
        // An orphan that was started by hand bears no mark and has no agent for
        // a parent; but nothing else here is a process of multiprocessing,
        // except the bystander.
        let workers: Vec<_> = self
            .world
            .processes()
            .into_iter()
            .filter(|process| {
                process
                    .argv
                    .iter()
                    .any(|word| word.to_string_lossy().starts_with("from multiprocessing."))
                    && process.variable("BYSTANDER").is_none()
            })
            .map(|process| process.describe())
            .collect();
        assert!(workers.is_empty(), "left behind:\n{}", workers.join("\n"));
        self.expect_workers(0);
    }

    #[track_caller]
    fn assert_never_two_workers(&self) {
        assert_eq!(self.endpoint.now("most_at_once"), 1, "two at once");
    }

    /// The agent that the PID file names.
    #[track_caller]
    fn root(&self) -> u32 {
        self.world.pid_in_file().expect("a number in the PID file")
    }

    /// Runs a program with `--json`.
    #[track_caller]
    fn report(&self, program: Program) -> Value {
        let mut command = self.world.program(program);
        command.arg("--json");
        let output = self.world.run_command(command);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}):\n{}", text(&output)))
    }

    /// What a person types.
    fn sh(&self, line: &str) {
        let _ = self.world.run_command(self.world.shell(line));
    }
}

/// `livekit-endpoint.py`; ends with this value.
struct Endpoint {
    /// `None`: somebody else starts it.
    process: Option<Child>,
    port: u16,
}

impl Endpoint {
    fn start(world: &World, python: &Path, calls: Calls) -> Self {
        let mut command = world.command(python);
        command
            .arg(Path::new(REAL).join("livekit-endpoint.py"))
            .args(["--port", "0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if calls == Calls::One {
            command.arg("--job");
        }
        let mut process = command.spawn().expect("the endpoint");
        let mut lines = BufReader::new(process.stdout.take().expect("its output"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("its first line");
        let port = line
            .trim()
            .strip_prefix("listening ")
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("the endpoint does not listen: {line:?}"));
        // It tells each event there; nobody has to read it, but the pipe must
        // neither fill nor break.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self {
            process: Some(process),
            port,
        }
    }

    const fn elsewhere(port: u16) -> Self {
        Self {
            process: None,
            port,
        }
    }

    fn ask(&self, query: &str) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the endpoint");
        write!(
            stream,
            "GET /workers{query} HTTP/1.0\r\nHost: localhost\r\n\r\n"
        )
        .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    fn now(&self, what: &str) -> usize {
        number(&self.ask(""), what)
    }

    /// Waits until there are so many; gives how many there are in the end.
    fn wait_for(&self, what: &str, wanted: usize) -> usize {
        let query = format!("?{what}={wanted}&within={}", PATIENCE.as_secs());
        number(&self.ask(&query), what)
    }

    /// How many are registered once the death of a root has had its effect:
    /// versions that leave no orphans take up to a second to be gone.
    fn settled_after_a_death(&self) -> usize {
        number(&self.ask("?registered=0&within=3"), "registered")
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}

fn number(answer: &Value, what: &str) -> usize {
    answer[what]
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .unwrap_or_else(|| panic!("no {what} in {answer}"))
}

/// A script of a user that starts the agent the old way, among other things,
/// and goes on. All its processes are of one group and in the project folder.
struct Script<'world> {
    world: &'world World,
    shell: Child,
    _stdin: ChildStdin,
    agent: u32,
    bystanders: Vec<u32>,
}

impl<'world> Script<'world> {
    fn start(real: &'world Real, mode: &str) -> Self {
        let world = &real.world;
        let mut command = world.shell(SCRIPT);
        let mut shell = command
            .arg(world.script().file_name().expect("the script's name"))
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a shell");
        let stdin = shell.stdin.take().expect("its input");
        let mut lines = BufReader::new(shell.stdout.take().expect("its output")).lines();
        let mut pid = || -> u32 {
            let line = lines.next().expect("a PID").expect("its output");
            line.trim().parse().expect("a PID")
        };
        let agent = pid();
        let mut bystanders: Vec<u32> = (0..5).map(|_| pid()).collect();
        bystanders.push(shell.id());
        for &bystander in &bystanders {
            world.declare(bystander);
        }
        Self {
            world,
            shell,
            _stdin: stdin,
            agent,
            bystanders,
        }
    }

    #[track_caller]
    fn assert_unharmed(&self) {
        for &bystander in &self.bystanders {
            assert!(
                is_alive(bystander),
                "PID {bystander}, none of the agent's, is dead (of {:?})\n{}",
                self.bystanders,
                self.world.describe()
            );
        }
    }
}

impl Drop for Script<'_> {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Prints the agent's PID and those of all others but the shell's own: a `tail`
/// that names the log, a job and a Python that have been re-parented, and what a
/// web server that reloads itself leaves when it is killed: a spawn child of
/// multiprocessing and its resource tracker, just like an orphan of the agent,
/// down to the environment. (Its file is not in the project folder: older agents
/// reload when a Python file appears there.)
const SCRIPT: &str = r#"
set -a; . ./.env; set +a
: >>"$VOICE_GUARD_LOG_FILE"
nohup "$VOICE_GUARD_PYTHON" "$0" "$1" </dev/null >>"$VOICE_GUARD_LOG_FILE" 2>&1 &
echo $!
export BYSTANDER=1
tail -f "$VOICE_GUARD_LOG_FILE" >/dev/null 2>&1 & echo $!
(sleep 600 >/dev/null 2>&1 & echo $!)
("$VOICE_GUARD_PYTHON" -c 'import signal; signal.pause()' >/dev/null 2>&1 & echo $!)
cat >../scratch/token_server_$$.py <<'END'
import multiprocessing, os, signal
from multiprocessing import resource_tracker
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=signal.pause)
    child.start()
    print(child.pid, resource_tracker._resource_tracker._pid, sep="\n", flush=True)
    os._exit(0)
END
"$VOICE_GUARD_PYTHON" ../scratch/token_server_$$.py 2>/dev/null
read -r _
"#;

/// The interpreter of the venv with this version, if there is one.
fn python_with(version: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the repository");
    // Named, and not found: they take minutes, and `cargo test` alone must not.
    let Some(venvs) = std::env::var_os("VOICE_GUARD_REAL_AGENTS") else {
        left_out(
            &format!("livekit-agents {version}"),
            "VOICE_GUARD_REAL_AGENTS names no folder; scripts/test makes one and sets it",
        );
        return None;
    };
    let python = root.join(venvs).join(version).join("bin/python");
    if python.is_file() {
        return Some(python);
    }
    left_out(
        &format!("livekit-agents {version}"),
        &format!(
            "there is no {}; scripts/real-agents makes it",
            python.display()
        ),
    );
    None
}
