//! The companions on their way up or down, all in one loop: each is a little
//! machine that never waits, and is stepped whenever something has happened.
//! One thread, since births fork.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::cleaning::Places;
use crate::errand::Surroundings;
use crate::failure::Failure;
use crate::member::{AgeAndMemory, Context, Member, Ours, Problem};
use crate::plan::{Companion, Demand, Job, Need, Plan};
use crate::process_table::{Pid, ProcessTable};
use crate::progress::Progress;
use crate::reading::{Reading, Readings};
use crate::scene::{cannot, proc_failure};
use crate::settings::Settings;
use crate::start::{environment, without_our_own};
use crate::vigil::Meanwhile;

/// Everything that is configured beside the agent, and how far each is.
#[derive(Debug)]
pub struct Troop {
    plan: Plan,
    members: Vec<Member>,
    agent_is_up: bool,
    /// A part that everything depends on has failed: nothing new is begun.
    halted: bool,
    surroundings: Surroundings,
    places: Places,
    progress: Progress,
    /// The port that each must have, if it has no choice.
    fixed_ports: Vec<Option<u16>>,
    /// When this program was started, as the kernel counts it.
    own_start: u64,
    restarting: bool,
    readings: Readings,
    /// When this step began.
    now: Instant,
}

impl Troop {
    /// The companions of this plan, nothing begun.
    ///
    /// # Errors
    /// When what they are to be born with cannot be read.
    pub fn new(
        plan: Plan,
        settings: &Settings,
        progress: Progress,
        restarting: bool,
        demand: Demand,
    ) -> Result<Self, Failure> {
        let environment = match environment(settings) {
            // A stop or a look goes on without the env file.
            Err(_) if demand == Demand::Stop => without_our_own(std::env::vars_os()).collect(),
            other => other?,
        };
        let surroundings = Surroundings {
            environment,
            ignored_signals: crate::signals::ignored_signals()
                .map_err(|error| cannot("read", Path::new("/proc/self/status"), &error))?,
        };
        let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
        let own_start = table
            .stat(Pid::own())
            .ok()
            .flatten()
            .map_or(0, |stat| stat.start);
        let members = (0..plan.companions.len())
            .map(|index| Member::new(&plan, index, settings))
            .collect();
        Ok(Self {
            fixed_ports: plan.companions.iter().map(Companion::fixed_port).collect(),
            members,
            agent_is_up: false,
            halted: false,
            surroundings,
            places: plan.places(settings),
            progress,
            own_start,
            restarting,
            readings: Readings::default(),
            now: Instant::now(),
            plan,
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What steps are run with.
    #[must_use]
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// The live lines or plain events.
    pub fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// Its members.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Which of them are ours to stop.
    ///
    /// # Errors
    /// When their processes cannot be looked at.
    pub fn ours(&mut self) -> Result<Vec<Ours>, Failure> {
        self.begin_step();
        self.members
            .iter()
            .map(|member| member.is_ours(&self.readings, self.now))
            .collect()
    }

    /// Looks what runs of each, and changes nothing: since when, and with how
    /// much memory.
    ///
    /// # Errors
    /// When their processes cannot be looked at.
    pub fn look(&mut self) -> Result<Vec<AgeAndMemory>, Failure> {
        self.begin_step();
        self.members
            .iter_mut()
            .map(|member| match member.look(&self.readings, self.now)? {
                Some(pid) => member.age_and_memory(pid, &self.readings, self.now),
                None => Ok(AgeAndMemory::default()),
            })
            .collect()
    }

    /// Looks what runs of those that were not begun, or have failed.
    ///
    /// # Errors
    /// When their processes cannot be looked at.
    pub fn look_at_the_rest(&mut self) -> Result<(), Failure> {
        self.begin_step();
        for member in &mut self.members {
            if member.is_beyond_us() {
                member.look(&self.readings, self.now)?;
            }
        }
        Ok(())
    }

    /// The reading of all processes that the last look was at.
    ///
    /// # Errors
    /// When there is none and `/proc` cannot be read.
    pub fn reading(&self) -> Result<Rc<Reading>, Failure> {
        let reading = self.readings.since(self.now);
        reading.map_err(|error| proc_failure(&error))
    }

    /// Who serves the port of a member instead of it, as far as can be seen.
    ///
    /// # Errors
    /// When its processes cannot be looked at.
    pub fn stranger_on_port(&self, member: &Member) -> Result<Option<String>, Failure> {
        member.stranger_on_port(&self.readings)
    }

    /// The agent is up: what needs it may begin.
    pub fn agent_is_up(&mut self) {
        self.agent_is_up = true;
    }

    /// Begin nothing new.
    pub fn halt(&mut self) {
        self.halted = true;
        for member in &mut self.members {
            member.skip();
        }
    }

    /// Did a part fail that the start cannot do without?
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// Is everything ready that the agent needs, or failed and not missed?
    #[must_use]
    pub fn agent_may_start(&self) -> bool {
        self.plan
            .agent_needs
            .iter()
            .all(|&index| self.is_settled_for_others(Need::Companion(index)))
    }

    /// Has every member come to an end, as far as the agent does not keep it
    /// waiting?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.members.iter().enumerate().all(|(index, member)| {
            member.is_settled()
                || (member.is_waiting() && !self.agent_is_up && self.plan.waits_for_agent(index))
        })
    }

    fn is_settled_for_others(&self, need: Need) -> bool {
        match need {
            Need::Agent => self.agent_is_up,
            Need::Companion(index) => self.members[index].lets_others_begin(),
        }
    }

    /// Everybody who is chosen goes down, dependents first.
    pub fn stop(&mut self, mut chosen: impl FnMut(usize, &Companion) -> bool) {
        for (index, member) in self.members.iter_mut().enumerate() {
            if matches!(member.companion().job, Job::Own(_)) && chosen(index, member.companion()) {
                member.stop();
            }
        }
    }

    /// After they have been stopped, everybody may begin again.
    pub fn start_over(&mut self) {
        for member in &mut self.members {
            member.start_over();
        }
    }

    /// The start is given up: what was begun and is not ready is undone.
    pub fn undo(&mut self) {
        self.halted = true;
        for member in &mut self.members {
            member.undo();
        }
    }

    /// Is nobody on the way down?
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.members.iter().any(Member::goes_down)
    }

    /// The start is over early: what was born goes on, tracked.
    pub fn leave(&mut self) {
        self.halt();
        for member in &mut self.members {
            member.leave();
        }
    }

    /// No more grace for those who are being ended.
    pub fn hurry(&mut self) {
        for member in &mut self.members {
            member.hurry();
        }
    }

    /// Whoever looks at the processes in one step shares a look.
    fn begin_step(&mut self) {
        for member in &mut self.members {
            if let Err(failure) = member.notice_deaths() {
                member.fail(Problem::from(failure));
            }
        }
        self.now = Instant::now();
    }

    fn step_member(&mut self, index: usize) {
        // A step may make the next possible at once.
        for _ in 0..16 {
            let before = self.members[index].stage();
            self.advance(index);
            if self.members[index].stage() == before {
                break;
            }
            self.show(index);
        }
    }

    fn advance(&mut self, index: usize) {
        if self.members[index].is_waiting() && !self.may_begin(index) {
            return;
        }
        if self.members[index].is_to_stop() && self.is_needed_by_another(index) {
            return;
        }
        let taken = self.ports_of_others(index);
        let context = Context {
            taken: &taken,
            surroundings: &self.surroundings,
            places: &self.places,
            own_start: self.own_start,
            restarting: self.restarting,
            readings: &self.readings,
            now: self.now,
        };
        let member = &mut self.members[index];
        if let Err(failure) = member.advance(&context) {
            member.fail(Problem::from(failure));
        }
        if member.is_missed() && !self.halted {
            self.halted = true;
            for other in 0..self.members.len() {
                if self.members[other].skip() {
                    self.show(other);
                }
            }
        }
    }

    /// The ports that the others have, or must have.
    fn ports_of_others(&self, index: usize) -> Vec<(u16, String)> {
        let others = self.members.iter().zip(&self.fixed_ports).enumerate();
        others
            .filter(|&(other, _)| other != index)
            .filter_map(|(_, (member, &fixed))| {
                let chosen = member.port().filter(|_| member.pid().is_some());
                Some((chosen.or(fixed)?, member.companion().name.clone()))
            })
            .collect()
    }

    /// Is everything up that it needs? It will not be begun any more once the
    /// start has ended.
    fn may_begin(&mut self, index: usize) -> bool {
        if self.halted {
            self.members[index].skip();
            return false;
        }
        let needs = &self.members[index].companion().needs;
        needs.iter().all(|&need| self.is_settled_for_others(need))
    }

    /// Does one need it, if only through others, that is on its way down too?
    fn is_needed_by_another(&self, index: usize) -> bool {
        self.members.iter().enumerate().any(|(other, member)| {
            other != index && member.goes_down() && self.plan.waits_for(other, index)
        })
    }

    fn show(&mut self, index: usize) {
        let member = &self.members[index];
        let (state, detail) = member.shown(&self.plan);
        self.progress.show(index, state, &detail);
    }

    /// Says how everybody stands.
    pub fn show_all(&mut self) {
        for index in 0..self.members.len() {
            self.show(index);
        }
    }
}

impl Troop {
    /// Steps those only who are on their way down.
    pub fn step_down(&mut self) {
        self.begin_step();
        for _ in 0..=self.members.len() {
            let before: Vec<_> = self.members.iter().map(Member::stage).collect();
            for index in 0..self.members.len() {
                if self.members[index].goes_down() {
                    self.step_member(index);
                }
            }
            let after: Vec<_> = self.members.iter().map(Member::stage).collect();
            if before == after {
                break;
            }
        }
        self.progress.refresh();
    }
}

impl Meanwhile for Troop {
    fn events(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.members.iter().flat_map(Member::events).collect()
    }

    fn due_in(&self) -> Option<Duration> {
        let members = self.members.iter().filter_map(Member::due_in).min();
        match (members, self.progress.due_in()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn step(&mut self) {
        self.begin_step();
        // One that is ready may let another begin.
        for _ in 0..=self.members.len() {
            let before: Vec<_> = self.members.iter().map(Member::stage).collect();
            for index in 0..self.members.len() {
                self.step_member(index);
            }
            let after: Vec<_> = self.members.iter().map(Member::stage).collect();
            if before == after {
                break;
            }
        }
        self.progress.refresh();
    }
}
