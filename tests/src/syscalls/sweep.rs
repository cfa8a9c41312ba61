//! One scenario after the other, each with one fault at one system call.
//!
//! How much is visited: every `cargo test` a sample; everything with
//! `VOICE_GUARD_SWEEP=full`; one case with `VOICE_GUARD_SWEEP_AT='…'`, which
//! every failure names in a command that can be pasted.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{
    Call, End, Fault, Order, Plan, Point, Run, Victims, Who, available, known_name, run_with,
};
use crate::{Program, World, left_out, text};

/// One fault at one point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Where.
    pub point: Point,
    /// What.
    pub fault: Fault,
    /// Who goes first after a fork.
    pub order: Order,
}

impl Case {
    /// A case at a call that was seen in a run in this order.
    #[must_use]
    pub const fn at(call: &Call, fault: Fault, order: Order) -> Self {
        Self {
            point: call.point,
            fault,
            order,
        }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Point { who, name, number } = self.point;
        write!(out, "{who} {name} {number} ")?;
        match self.fault {
            Fault::Kill(Victims::Program) => write!(out, "kill:program"),
            Fault::Kill(Victims::Child) => write!(out, "kill:child"),
            Fault::Kill(Victims::Both) => write!(out, "kill:both"),
            Fault::Interrupt => write!(out, "interrupt"),
            Fault::Fail(errno) => write!(out, "fail:{errno:?}"),
            Fault::FailFromThenOn(errno) => write!(out, "fail-on:{errno:?}"),
            Fault::Short => write!(out, "short"),
        }?;
        match self.order {
            Order::Free => write!(out, " free"),
            Order::ProgramFirst => write!(out, " program-first"),
            Order::ChildFirst => write!(out, " child-first"),
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [who, name, number, fault, order] = words[..] else {
            return Err(format!("{text:?} is not `WHO NAME NUMBER FAULT ORDER`"));
        };
        let errno = |name: &str| {
            (1..=133)
                .map(Errno::from_raw)
                .find(|errno| format!("{errno:?}") == name)
                .ok_or_else(|| format!("{name:?} is no errno"))
        };
        Ok(Self {
            point: Point {
                who: Who::from_str(who)?,
                name: known_name(name).ok_or_else(|| format!("{name:?} is no call"))?,
                number: number
                    .parse()
                    .map_err(|error| format!("{number:?}: {error}"))?,
            },
            fault: match fault.split_once(':') {
                Some(("kill", "program")) => Fault::Kill(Victims::Program),
                Some(("kill", "child")) => Fault::Kill(Victims::Child),
                Some(("kill", "both")) => Fault::Kill(Victims::Both),
                Some(("fail", name)) => Fault::Fail(errno(name)?),
                Some(("fail-on", name)) => Fault::FailFromThenOn(errno(name)?),
                None if fault == "short" => Fault::Short,
                None if fault == "interrupt" => Fault::Interrupt,
                _ => return Err(format!("{fault:?} is no fault")),
            },
            order: match order {
                "free" => Order::Free,
                "program-first" => Order::ProgramFirst,
                "child-first" => Order::ChildFirst,
                _ => return Err(format!("{order:?} is no order")),
            },
        })
    }
}

/// What there was when a run began, and what was seen in it.
#[derive(Debug)]
pub struct Seen {
    /// The agents that lived before.
    pub before: Vec<u32>,
    /// The fault; none in the run that only looks.
    pub case: Option<Case>,
    /// The run.
    pub run: Run,
    /// What the rival did, if there was one.
    pub rival: Option<Output>,
}

/// Runs the program without a fault, in an order of its processes: its calls.
pub type Look<'run> = &'run mut dyn FnMut(Order) -> Vec<Call>;

/// A program in a situation, and what must be true after a fault in it.
pub struct Scenario<'test> {
    /// The test's file and function, for the command that repeats a case.
    pub test: (&'test str, &'test str),
    /// The program that is visited.
    pub program: Program,
    /// Makes the situation.
    pub set_up: &'test dyn Fn(&mut World),
    /// The cases, from what the given function sees when nothing goes wrong.
    pub cases: &'test dyn Fn(Look<'_>) -> Vec<Case>,
    /// Does a good run leave the situation as it was? Then the next case uses it
    /// again, unless something can be seen to differ; and it is stopped at the end.
    pub lasting: bool,
    /// Says what is wrong after a run.
    pub judge: &'test dyn Fn(&World, &Seen) -> Result<(), String>,
    /// The program that comes in after a kill, while the surviving process still
    /// stands before its call.
    pub rival: Option<Program>,
    /// How many cases an everyday run visits, evenly spread.
    pub sample: usize,
    /// Begins as none.
    pub kept: RefCell<Option<Situation>>,
}

enum Extent {
    Everything,
    Sample,
    One(Case),
}

impl Extent {
    fn wanted() -> Self {
        if let Ok(text) = std::env::var("VOICE_GUARD_SWEEP_AT") {
            return Self::One(
                text.parse()
                    .unwrap_or_else(|error| panic!("VOICE_GUARD_SWEEP_AT: {error}")),
            );
        }
        match std::env::var("VOICE_GUARD_SWEEP").as_deref() {
            Ok("full") => Self::Everything,
            Ok("sample") | Err(_) => Self::Sample,
            Ok(other) => panic!("VOICE_GUARD_SWEEP is `full` or `sample`, not {other:?}"),
        }
    }
}

/// Set in a test executable that is already alone (see [`alone`]).
const ALONE: &str = "VOICE_GUARD_SWEEP_ALONE";

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// How many cases a full sweep visits in a PID namespace that is not its own:
/// each pass over all processes there makes thousands of calls.
const CROWDED: usize = 400;

/// After so many failures a sweep gives up.
const ENOUGH: usize = 25;

/// Init of the namespace: runs the test and reaps what loses its parent.
const INIT: &str = r#""$@"; exit $?"#;

/// Runs a test again in a PID namespace of its own, where `/proc` shows only
/// what belongs to it: the calls of a pass over all processes are then few and
/// the same in every run. Where that is not permitted it runs here.
pub fn alone(test: &str, body: impl FnOnce()) {
    if let Err(why) = available() {
        left_out(test, &why);
        return;
    }
    let user = if nix::unistd::geteuid().is_root() {
        &[][..]
    } else {
        &["--user", "--map-root-user"][..]
    };
    let unshare = || {
        let mut command = Command::new("unshare");
        command
            .args(user)
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        command
    };
    let possible = || {
        unshare()
            .arg("true")
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if is_alone() {
        body();
    } else if possible() {
        let mut said = tempfile::tempfile().expect("a file for the output");
        let status = unshare()
            .args(["/bin/sh", "-c", INIT, "sh"])
            .arg(std::env::current_exe().expect("this test executable"))
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(ALONE, "1")
            .env("RUST_BACKTRACE", "0")
            .stdout(said.try_clone().expect("the output file"))
            .stderr(said.try_clone().expect("the output file"))
            .status()
            .expect("unshare");
        let mut words = String::new();
        said.seek(SeekFrom::Start(0)).expect("rewind the output");
        said.read_to_string(&mut words).expect("the output");
        assert!(status.success(), "{words}");
        eprint!("{words}");
    } else {
        left_out(
            &format!("a PID namespace of its own for {test}"),
            "unshare is missing or may not make one",
        );
        body();
    }
}

impl Scenario<'_> {
    /// Visits the cases; says each failure at once and panics at the end.
    ///
    /// # Panics
    /// If anything is wrong after any of them.
    pub fn sweep(&self) {
        let began = Instant::now();
        let all = || (self.cases)(&mut |order| self.look(order));
        let mut possible = 1;
        let mut some = |at_most: usize| {
            let all = all();
            possible = all.len();
            if all.len() <= at_most {
                return all;
            }
            // Never the same step as the rhythm of the calls themselves.
            let step = (all.len() / at_most.max(1)) | 1;
            all.into_iter().step_by(step).collect()
        };
        let cases = match Extent::wanted() {
            Extent::One(case) => vec![case],
            Extent::Everything if is_alone() => some(usize::MAX),
            Extent::Everything => {
                left_out(
                    &format!("every call in {}", self.test.1),
                    &format!(
                        "there are too many where all processes are seen; {CROWDED} are visited"
                    ),
                );
                some(CROWDED)
            }
            Extent::Sample => some(self.sample),
        };
        let mut tally = Tally::default();
        let mut failures = 0;
        let mut slowest = (Duration::ZERO, String::new());
        for case in &cases {
            let started = Instant::now();
            if let Err(failure) = self.visit(case, &mut tally) {
                // At once: a full sweep takes minutes.
                eprintln!("{failure}\n");
                failures += 1;
            }
            if failures == ENOUGH {
                eprintln!("{ENOUGH} failures are enough: the other cases are not visited");
                break;
            }
            if started.elapsed() > slowest.0 {
                slowest = (started.elapsed(), case.to_string());
            }
        }
        if let Some(kept) = self.kept.take()
            && let Err(failure) = next_stop(&kept.world)
        {
            eprintln!("at the end: {failure}\n");
            failures += 1;
        }
        let summary = format!(
            "{}: {}: {} of {} cases at {} calls, {} not reached, {} failed, {:.1} s; slowest {:.2} s: {}",
            self.program.name(),
            self.test.1,
            cases.len(),
            possible,
            tally.points.len(),
            tally.not_reached,
            failures,
            began.elapsed().as_secs_f64(),
            slowest.0.as_secs_f64(),
            slowest.1,
        );
        eprintln!("{summary}");
        assert!(failures == 0, "{summary}\n(each failure is said above)");
        assert!(
            tally.not_reached * 10 <= cases.len() + 10,
            "{summary}\nthe runs differ too much from each other to visit every call"
        );
    }

    /// A run in which nothing goes wrong: its calls.
    fn look(&self, order: Order) -> Vec<Call> {
        let plan = Plan {
            order,
            ..Plan::look()
        };
        let mut calls = Vec::new();
        let judged = self.judged(None, &plan, &mut |run| calls.clone_from(&run.calls));
        if let Err(what) = judged {
            panic!(
                "{} without any fault ({order:?}): {what}",
                self.program.name()
            );
        }
        assert!(
            !calls.is_empty(),
            "{} makes no system call after its main began",
            self.program.name()
        );
        calls
    }

    fn visit(&self, case: &Case, tally: &mut Tally) -> Result<(), String> {
        let plan = Plan {
            deadline: Duration::from_secs(30),
            ..Plan::with(case.point, case.fault, case.order)
        };
        let mut reached = None;
        let mut output = String::new();
        let mut end = None;
        let mut judged = Ok(());
        // A run may lack the last of its many reads, on a busy machine several
        // do; a later one has it.
        for _ in 0..4 {
            judged = self.judged(Some(case), &plan, &mut |run| {
                reached.clone_from(&run.reached);
                output.clone_from(&run.output);
                end = Some(run.end);
            });
            if reached.is_some() || judged.is_err() {
                break;
            }
        }
        let Some(call) = reached else {
            tally.not_reached += 1;
            return judged.map_err(|what| format!("{case} was not reached, yet: {what}"));
        };
        tally.points.insert(call.point);
        let (file, test) = self.test;
        judged.map_err(|what| {
            format!(
                "{} with `{case}` at {}\n  {what}\n  it ended with {end:?} and said: {}\n  again: VOICE_GUARD_SWEEP_AT='{case}' cargo test -p scenarios --test {file} {test} -- --exact --nocapture",
                self.program.name(),
                call.describe(),
                output.trim_end().replace('\n', "\n    "),
            )
        })
    }

    /// The situation, made or still there from the last case.
    fn situation(&self) -> Situation {
        if let Some(kept) = self.kept.borrow_mut().take() {
            return kept;
        }
        let mut world = World::new();
        // Short enough that a case without the awaited event costs little;
        // nothing here relies on how long they are.
        world.quick_agents();
        world.set("VOICE_GUARD_VERIFY_SECONDS", "0.4");
        world.set("VOICE_GUARD_GRACE_SECONDS", "0.4");
        (self.set_up)(&mut world);
        let traits = traits(&world);
        Situation {
            agents: agents(&world),
            world,
            traits,
        }
    }

    fn judged(
        &self,
        case: Option<&Case>,
        plan: &Plan,
        note: &mut dyn FnMut(&Run),
    ) -> Result<(), String> {
        let judged = catch_unwind(AssertUnwindSafe(|| {
            let situation = self.situation();
            let world = &situation.world;
            let rival = Mutex::new(None);
            let rivals_program = self.rival;
            let run = run_with(&world.program(self.program), plan, &|| {
                *rival.lock().expect("the rival") =
                    rivals_program.map(|program| world.run(program));
            })?;
            note(&run);
            let seen = Seen {
                before: situation.agents.clone(),
                case: case.copied(),
                run,
                rival: rival.into_inner().expect("the rival"),
            };
            let judged = (self.judge)(world, &seen);
            if judged.is_err() {
                world.kill_everything();
            } else if self.lasting {
                if traits(world) != situation.traits {
                    return next_stop(world);
                }
                *self.kept.borrow_mut() = Some(situation);
            }
            judged
        }));
        judged.unwrap_or_else(|panic| {
            Err(panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_else(|| "a panic without words".to_owned()))
        })
    }
}

/// What a case begins with.
pub struct Situation {
    world: World,
    agents: Vec<u32>,
    traits: Vec<String>,
}

/// Everything about a situation that a program could have changed: the files,
/// what the tracking files say, and who runs.
fn traits(world: &World) -> Vec<String> {
    let mut traits: Vec<String> = std::fs::read_dir(world.path(""))
        .expect("the world's folder")
        .map(|entry| {
            let path = entry.expect("an entry of the world's folder").path();
            let content = std::fs::read(&path).unwrap_or_default();
            format!("{}: {content:?}", path.display())
        })
        .collect();
    traits.sort();
    traits.extend(
        world
            .family_processes()
            .iter()
            .map(crate::Process::describe),
    );
    traits
}

#[derive(Default)]
struct Tally {
    points: HashSet<Point>,
    not_reached: usize,
}

// ---- What must be true after any fault, whatever the program.

/// The agents that live. A forked child of a dead agent has an agent's command
/// line, but it is an orphan worker: it leads no session and never ran an
/// agent's first instruction.
#[must_use]
pub fn agents(world: &World) -> Vec<u32> {
    let starts = world.starts();
    let mut agents = world.agents();
    agents.retain(|&agent| {
        starts.contains(&agent)
            || crate::process(agent).is_some_and(|process| process.session == agent)
    });
    agents
}

/// The agent that lives, if any; wrong if there are two, or if one is not tracked.
///
/// # Errors
/// What is wrong.
pub fn tracked_agent(world: &World) -> Result<Option<u32>, String> {
    match agents(world)[..] {
        [] => Ok(None),
        [agent] if world.pid_in_file() == Some(agent) => Ok(Some(agent)),
        [agent] => Err(format!(
            "UNTRACKED: agent {agent} lives and the PID file does not name it\n{}",
            world.describe()
        )),
        _ => Err(format!("SEVERAL agents live\n{}", world.describe())),
    }
}

/// The next start, at once: afterwards exactly one agent lives, tracked; refused
/// if one lives already, which stays the same.
///
/// # Errors
/// What is wrong.
pub fn next_start(world: &World, living: Option<u32>) -> Result<(), String> {
    let began = Instant::now();
    let output = world.run(Program::Start);
    let took = began.elapsed();
    let said = text(&output);
    let told = |what: &str| {
        Err(format!(
            "the next start {what}; it ended with {} after {took:?} and said: {said}\n{}",
            output.status,
            world.describe()
        ))
    };
    match (living, output.status.code()) {
        (None, Some(0)) => {}
        (Some(_), Some(1)) if said.contains("ERROR: Already running or locked") => {}
        (None, _) => return told("does not start although no agent lives"),
        (Some(_), _) => return told("does not refuse although an agent lives"),
    }
    // Starting Python takes some 30 ms; what is meant is the originals' 30 s.
    if took > Duration::from_secs(10) {
        return told("waits");
    }
    match tracked_agent(world)? {
        None => told("leaves no agent"),
        Some(agent) if living.is_some_and(|living| living != agent) => {
            told("replaced the living agent")
        }
        Some(_) => overlap(world),
    }
}

/// The next stop cleans everything: no process, no tracking file, exit 0.
///
/// # Errors
/// What is wrong.
pub fn next_stop(world: &World) -> Result<(), String> {
    let output = world.run(Program::Stop);
    if output.status.code() != Some(0) {
        return Err(format!(
            "the next stop ended with {} and said: {}\n{}",
            output.status,
            text(&output),
            world.describe()
        ));
    }
    nothing_left(world).map_err(|what| format!("after the next stop {what}"))?;
    overlap(world)
}

/// No process of the family, no PID file, no lock file, no temporary file of a start.
///
/// # Errors
/// What is left.
pub fn nothing_left(world: &World) -> Result<(), String> {
    let mut left = String::new();
    for process in world.family_processes() {
        let _ = write!(left, "\n  {}", process.describe());
    }
    for name in [
        "agent.pid",
        "agent.lock",
        ".agent.pid.new",
        ".agent.lock.new",
    ] {
        if world.path(name).symlink_metadata().is_ok() {
            let _ = write!(left, "\n  {name}");
        }
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(format!("there is left:{left}"))
    }
}

/// Two agents never ran at the same time.
///
/// # Errors
/// What the agents saw.
pub fn overlap(world: &World) -> Result<(), String> {
    let overlaps = world.overlaps();
    if overlaps.is_empty() {
        Ok(())
    } else {
        Err(format!("two agents ran at once: {overlaps}"))
    }
}

/// The program came to an end by itself: no hang, no panic, no death by a
/// signal; its exit code.
///
/// # Errors
/// How it ended.
pub fn exit_code(run: &Run) -> Result<i32, String> {
    if run.hung {
        return Err("it HANGS".to_owned());
    }
    if run.output.contains("panicked") {
        return Err("it PANICS".to_owned());
    }
    match run.end {
        End::Exit(code) => Ok(code),
        End::Signal(signal) => Err(format!("it DIES by {signal}")),
    }
}
