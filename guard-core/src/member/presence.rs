//! What there is of a companion: its processes, who started them, its port.

use super::{AgeAndMemory, Found, Member, Mess, Ours, Process};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::agent::Mark;
use crate::config::OnStart;
use crate::errand::Surroundings;
use crate::failure::Failure;
use crate::log_file::AgentLog;
use crate::pid_file::Tracking;
use crate::plan::{Job, Ready};
use crate::port_owner::{holder_of, holds, listeners};
use crate::probe::Probe;
use crate::process_details::{age_of, memory_of};
use crate::process_table::{Identity, Pid, ProcessTable, split_arguments};
use crate::reading::Readings;
use crate::scene::{Scene, cannot, proc_failure};
use crate::sighting::{KinOf, Strangers};

impl Member {
    /// Is it ours to stop: configured to be started fresh, or started by these
    /// programs and not merely found?
    ///
    /// # Errors
    /// When its processes cannot be looked at.
    pub fn is_ours(&self, readings: &Readings, moment: Instant) -> Result<Ours, Failure> {
        if !matches!(self.companion.job, Job::Own(_)) {
            return Ok(Ours::Never);
        }
        Ok(
            match (self.find(readings, moment)?, self.companion.on_start) {
                (Found::Nothing, _) => Ours::Absent,
                // Nobody else has a file that is locked: a stop will say what it cannot end.
                (Found::Locked, _) | (_, OnStart::Fresh) => Ours::Yes,
                (Found::Mess(mess), OnStart::Reuse) => self.are_ours(mess)?,
                (Found::One(identity), on_start) => {
                    let marked = self.mark_of(identity.pid)?.is_some();
                    match on_start {
                        _ if marked => Ours::Yes,
                        OnStart::Manual => Ours::Never,
                        _ => Ours::Found(vec![identity.pid]),
                    }
                }
                (Found::Mess(_), OnStart::Manual) => Ours::Never,
            },
        )
    }

    /// Several at once are ours if one of these programs has started one of them.
    fn are_ours(&self, mess: Mess) -> Result<Ours, Failure> {
        let mut pids = mess.copies;
        pids.extend(mess.left);
        for &pid in &pids {
            if self.mark_of(pid)?.is_some() {
                return Ok(Ours::Yes);
            }
        }
        Ok(Ours::Found(pids))
    }

    /// The mark of it that a process bears, if one of these programs has started it.
    pub(super) fn mark_of(&self, pid: Pid) -> Result<Option<Mark>, Failure> {
        let table = ProcessTable::open().map_err(|error| proc_failure(&error))?;
        let environment = table.environment(pid).ok().flatten();
        let mark = environment.and_then(|block| Mark::in_environment(&block));
        Ok(mark.filter(|mark| mark.is_of(&self.settings.family)))
    }

    /// What runs of it, for a look that changes nothing.
    ///
    /// # Errors
    /// When its processes cannot be looked at.
    pub fn look(&mut self, readings: &Readings, moment: Instant) -> Result<Option<Pid>, Failure> {
        if !matches!(self.companion.job, Job::Own(_)) {
            return Ok(None);
        }
        self.mess = None;
        let identity = match self.find(readings, moment)? {
            Found::One(identity) => identity,
            Found::Mess(mess) => {
                self.mess = Some(mess);
                return Ok(None);
            }
            Found::Locked => {
                self.mess = Some(Mess {
                    is_locked: true,
                    ..Mess::default()
                });
                return Ok(None);
            }
            Found::Nothing => return Ok(None),
        };
        let mark = self.mark_of(identity.pid)?;
        self.watch_found(identity, mark)?;
        Ok(Some(identity.pid))
    }

    /// Since when its process runs, and the memory of all that is born of it.
    ///
    /// # Errors
    /// When its processes cannot be looked at.
    pub fn age_and_memory(
        &self,
        pid: Pid,
        readings: &Readings,
        moment: Instant,
    ) -> Result<AgeAndMemory, Failure> {
        let scene = self.scene_since(readings, moment)?;
        let kin = scene.gather(Some(pid), KinOf::Everyone, &mut Strangers::default())?;
        let pids: Vec<Pid> = kin
            .relatives
            .iter()
            .map(|relative| relative.identity.pid)
            .collect();
        Ok(AgeAndMemory {
            age: age_of(&scene.table, pid).map_err(|error| proc_failure(&error))?,
            memory: memory_of(pids.into_iter()),
        })
    }

    /// Who serves the port by which it would be ready, if that is nobody of its
    /// own: it was free when it was chosen, but may have been taken since. `None`
    /// also if that cannot be seen.
    ///
    /// # Errors
    /// When its processes cannot be looked at.
    pub fn stranger_on_port(&self, readings: &Readings) -> Result<Option<String>, Failure> {
        let (Ready::Port(fixed), Some(process)) = (&self.companion.ready, &self.process) else {
            return Ok(None);
        };
        let Some(port) = fixed.or(self.port) else {
            return Ok(None);
        };
        let listening =
            listeners(port).map_err(|error| cannot("read", Path::new("/proc/net/tcp"), &error))?;
        if listening.is_empty() || holds(process.pid, &listening) != Some(false) {
            return Ok(None);
        }
        let scene = self.scene_since(readings, Instant::now())?;
        let kin = scene.gather(
            Some(process.pid),
            KinOf::Everyone,
            &mut Strangers::default(),
        )?;
        let of_its_own = kin
            .relatives
            .iter()
            .any(|relative| holds(relative.identity.pid, &listening) != Some(false));
        if of_its_own {
            return Ok(None);
        }
        Ok(holder_of(&scene.table, &listening)
            .map(|holder| format!("port {port} is served by {holder}")))
    }

    /// A question whether it is ready.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn question(&self, surroundings: &Surroundings) -> Result<Probe, Failure> {
        let log = match self.companion.ready {
            Ready::Log(_) if self.is_remembered_ready() => {
                return self.probe_for(
                    &Ready::Alive(Duration::ZERO),
                    surroundings,
                    Instant::now(),
                    None,
                );
            }
            Ready::Log(_) => self
                .output_of_process()
                .or_else(|| AgentLog::open(&self.companion.log).ok()),
            _ => None,
        };
        self.probe(surroundings, self.born_at(), log.as_ref())
    }

    /// Where its process writes: the log of another runtime folder, or of an older
    /// configuration.
    fn output_of_process(&self) -> Option<AgentLog> {
        let pid = self.pid()?;
        let output = std::fs::read_link(format!("/proc/{pid}/fd/1")).ok()?;
        let log = output.is_absolute() && output.is_file();
        log.then(|| AgentLog::open(&output).ok())?
    }

    /// What runs of it, by a look that began at `moment` or later.
    pub(super) fn find(&self, readings: &Readings, moment: Instant) -> Result<Found, Failure> {
        let scene = Scene::open(&self.settings)?;
        match scene.tracking()? {
            Tracking::Running(identity) => return Ok(Found::One(identity)),
            Tracking::Unproven(record) if scene.has_unseen_holder(&record)? => {
                return Ok(Found::Locked);
            }
            _ => {}
        }
        // Deep, since whatever bears its mark may be of any program.
        let scene = self.scene_since(readings, moment)?;
        let kin = scene.gather(None, KinOf::Everyone, &mut Strangers::default())?;
        Ok(match kin.sighting.agents.as_slice() {
            [] if kin.relatives.is_empty() => Found::Nothing,
            [one] if kin.sighting.orphans.is_empty() => Found::One(one.identity),
            agents => {
                let pids = |identities: &mut dyn Iterator<Item = Identity>| {
                    identities.map(|identity| identity.pid).collect()
                };
                Found::Mess(Mess {
                    copies: pids(&mut agents.iter().map(|agent| agent.identity)),
                    left: if agents.is_empty() {
                        pids(&mut kin.relatives.iter().map(|relative| relative.identity))
                    } else {
                        pids(&mut kin.sighting.orphans.iter().map(|orphan| orphan.identity))
                    },
                    is_locked: false,
                })
            }
        })
    }

    /// The processes as they are, or were at `moment` at the earliest, and not
    /// before it has last changed them.
    pub(super) fn scene_since(
        &self,
        readings: &Readings,
        moment: Instant,
    ) -> Result<Scene<'_>, Failure> {
        let reading = readings
            .since(moment.max(self.changed))
            .map_err(|error| proc_failure(&error))?;
        Scene::of(&self.settings, reading)
    }

    pub(super) fn watch_found(
        &mut self,
        identity: Identity,
        mark: Option<Mark>,
    ) -> Result<(), Failure> {
        let pidfd = open_pidfd(identity.pid)
            .map_err(|error| Failure::new(format!("cannot watch PID {}: {error}", identity.pid)))?;
        self.port = self.port_of(identity.pid).or(self.companion.first_port());
        self.process = Some(Process {
            pid: identity.pid,
            pidfd,
            newborn: false,
            mark,
        });
        Ok(())
    }

    /// Which of its ports a running one has.
    fn port_of(&self, pid: Pid) -> Option<u16> {
        let ports = &self.companion.ports;
        if ports.len() < 2 {
            return ports.first().copied();
        }
        let listening = ports.iter().copied().find(|&port| {
            listeners(port).is_ok_and(|listeners| {
                !listeners.is_empty() && holds(pid, &listeners) == Some(true)
            })
        });
        listening.or_else(|| {
            let table = ProcessTable::open().ok()?;
            let line = table.command_line(pid).ok()??;
            let program = self.settings.family.companion()?;
            ports
                .get(program.variant_of(&split_arguments(&line))?)
                .copied()
        })
    }
}

pub(super) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let raw = rustix::process::Pid::from_raw(pid.get()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(
        raw,
        rustix::process::PidfdFlags::empty(),
    )?)
}
