//! What a starter does for its agent while it stays with it: it copies the log
//! to its own standard output, passes signals on, reaps whoever dies in its care,
//! and tells the supervisor of the end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::birth::Newborn;
use crate::deadline::Deadline;
use crate::log_file::AgentLog;
use crate::notify::Supervisor;
use crate::process_table::Pid;
use crate::signals::PassedOn;
use crate::vigil::Meanwhile;

/// What a pipe that polls as writable takes without making us wait (`pipe(7)`,
/// `PIPE_BUF`).
const PIECE: usize = 4096;

/// So many pieces in one go: signals are heard in between.
const PIECES: usize = 64;

/// How often the log is looked at where no inotify instance is to be had.
const GLANCE: Duration = Duration::from_millis(200);

/// How soon a write is tried again for which there was no room.
const ROOM: Duration = Duration::from_secs(1);

/// How long a reader of our output may take for what is left at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// An agent's attendant, before there is an agent and until it is dead.
#[derive(Debug)]
pub struct Attendant {
    signals: PassedOn,
    copies: bool,
    copy: Option<LogCopy>,
    agent: Option<(Pid, OwnedFd)>,
    supervisor: Rc<Supervisor>,
}

impl Attendant {
    /// Holds signals from here on: what arrives before there is an agent is
    /// passed on as soon as there is one. `copies`: its output is copied.
    ///
    /// # Errors
    /// When they cannot be held.
    pub fn new(copies: bool, supervisor: Rc<Supervisor>) -> io::Result<Self> {
        Ok(Self {
            signals: PassedOn::hold()?,
            copies,
            copy: None,
            agent: None,
            supervisor,
        })
    }

    /// Here is the agent, and the log that it writes into.
    ///
    /// # Errors
    /// When no descriptor is to be had.
    pub fn attend(&mut self, agent: &Newborn, log: &AgentLog) -> io::Result<()> {
        self.agent = Some((agent.pid, agent.pidfd.try_clone()?));
        // Whoever has sent our output into the log has it there already.
        self.copies = self.copies && !is_output(log)?;
        if self.copies {
            self.copy = Some(LogCopy::of(log)?);
        }
        Ok(())
    }

    /// The agent's family is about to be ended, which may take long, in whatever
    /// the supervisor is at: starting or stopping.
    pub fn tell_end(&self, grace: Duration) {
        self.supervisor.stopping(grace);
    }

    /// Is the agent's output copied to ours?
    #[must_use]
    pub fn copies(&self) -> bool {
        self.copies
    }

    /// Copies what is left in the log, if its reader is there to read it.
    pub fn finish(&mut self) {
        let Some(copy) = &mut self.copy else {
            return;
        };
        let mut deadline = Deadline::after(LAST_WORDS);
        while !copy.step() && deadline.wait() {}
    }

    fn pass_signals_on(&mut self) {
        let Some((pid, pidfd)) = &self.agent else {
            return;
        };
        while let Some(signal) = self.signals.next() {
            match signal {
                Some(signal) => {
                    let _ = rustix::process::pidfd_send_signal(pidfd, signal);
                }
                None => reap_all_but(*pid),
            }
        }
    }
}

impl Meanwhile for Attendant {
    fn events(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut events = Vec::new();
        if self.agent.is_some() {
            events.push((self.signals.as_fd(), PollFlags::IN));
        }
        events.extend(self.copy.as_ref().and_then(LogCopy::event));
        events
    }

    fn due_in(&self) -> Option<Duration> {
        self.copy.as_ref().and_then(LogCopy::due_in)
    }

    fn step(&mut self) {
        self.pass_signals_on();
        if let Some(copy) = &mut self.copy {
            copy.step();
        }
    }
}

/// Reaps dead children until the agent is the first of them: as process 1 of a
/// container, a starter inherits everybody.
fn reap_all_but(agent: Pid) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let reap = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    while let Ok(dead) = waitid(Id::All, reap | WaitPidFlag::WNOWAIT) {
        let Some(pid) = dead.pid().filter(|pid| pid.as_raw() != agent.get()) else {
            return;
        };
        if waitid(Id::Pid(pid), reap).is_err() {
            return;
        }
    }
}

/// The log as it grows, copied to standard output; never faster than its
/// reader reads, and never waiting for it.
#[derive(Debug)]
struct LogCopy {
    log: File,
    output: OwnedFd,
    position: u64,
    /// Read from the log and not written yet.
    pending: Vec<u8>,
    watch: Option<OwnedFd>,
    /// There was more than could be copied in one go.
    more: bool,
    /// Nobody reads our output.
    closed: bool,
    /// The disk that our output goes to was full.
    no_room: bool,
}

impl LogCopy {
    fn of(log: &AgentLog) -> io::Result<Self> {
        let file = File::from(log.output().try_clone()?);
        let watch = watch(&file).ok();
        Ok(Self {
            log: file,
            output: io::stdout().as_fd().try_clone_to_owned()?,
            position: log.start(),
            pending: Vec::new(),
            watch,
            more: true,
            closed: false,
            no_room: false,
        })
    }

    fn event(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if self.closed {
            return None;
        }
        if self.no_room {
            // It would be "ready" all the time.
            return None;
        }
        if !self.pending.is_empty() {
            return Some((self.output.as_fd(), PollFlags::OUT));
        }
        self.watch
            .as_ref()
            .map(|watch| (watch.as_fd(), PollFlags::IN))
    }

    fn due_in(&self) -> Option<Duration> {
        if self.no_room {
            Some(ROOM)
        } else if self.closed || !self.pending.is_empty() {
            None
        } else if self.more {
            Some(Duration::ZERO)
        } else {
            self.watch.is_none().then_some(GLANCE)
        }
    }

    /// `true` when everything is copied that was there.
    fn step(&mut self) -> bool {
        self.heed_watch();
        for _ in 0..PIECES {
            if self.closed {
                return true;
            }
            if self.pending.is_empty() && !self.read_on() {
                self.more = false;
                return true;
            }
            if !self.write_on() {
                return self.closed;
            }
        }
        self.more = true;
        false
    }

    fn heed_watch(&self) {
        if let Some(watch) = &self.watch {
            let mut events = [0_u8; 1024];
            while rustix::io::read(watch, &mut events).is_ok_and(|count| count > 0) {}
        }
    }

    /// `false` when there is nothing new.
    fn read_on(&mut self) -> bool {
        let Ok(length) = self.log.metadata().map(|metadata| metadata.len()) else {
            return false;
        };
        if length < self.position {
            // Emptied by whoever rotates it.
            self.position = 0;
        }
        let mut piece = [0; PIECE];
        let Ok(count) = self.log.read_at(&mut piece, self.position) else {
            return false;
        };
        self.position += count as u64;
        self.pending.extend_from_slice(&piece[..count]);
        count > 0
    }

    /// `false` when our reader is not ready.
    fn write_on(&mut self) -> bool {
        let output = self.output.as_fd();
        let mut polled = [PollFd::from_borrowed_fd(output, PollFlags::OUT)];
        match poll(&mut polled, Some(&Timespec::default())) {
            Ok(0) | Err(Errno::INTR) => return false,
            Ok(_) => {}
            Err(_) => {
                self.closed = true;
                return false;
            }
        }
        self.no_room = false;
        match rustix::io::write(output, &self.pending) {
            Ok(count) => {
                self.pending.drain(..count);
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => false,
            Err(Errno::NOSPC | Errno::DQUOT) => {
                self.no_room = true;
                false
            }
            Err(_) => {
                self.closed = true;
                false
            }
        }
    }
}

/// Is our standard output this very file? A copy of itself would have no end.
fn is_output(log: &AgentLog) -> io::Result<bool> {
    let log = rustix::fs::fstat(log.output())?;
    let output = rustix::fs::fstat(io::stdout())?;
    Ok((log.st_dev, log.st_ino) == (output.st_dev, output.st_ino))
}

/// Readable whenever the log was written to. The file itself is watched, not
/// whatever has its name by then.
fn watch(log: &File) -> io::Result<OwnedFd> {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let watch = inotify::init(flags)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", log.as_raw_fd()));
    inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY)?;
    Ok(watch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_full_disk_interrupts_the_copy_and_does_not_end_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        fs::write(&path, "one\ntwo\n").unwrap();
        let output = |path: &std::path::Path| {
            let file = File::options().create(true).append(true).open(path);
            OwnedFd::from(file.unwrap())
        };
        let mut copy = LogCopy::of(&AgentLog::open(&path).unwrap()).unwrap();
        copy.output = output(std::path::Path::new("/dev/full"));
        assert!(!copy.step());
        // Tried again after a while, and not all the time until then.
        assert!(copy.event().is_none());
        assert_eq!(copy.due_in(), Some(ROOM));
        let copied = folder.path().join("output");
        copy.output = output(&copied);
        assert!(copy.step());
        assert_eq!(fs::read_to_string(&copied).unwrap(), "one\ntwo\n");
        assert_ne!(copy.due_in(), Some(ROOM));
    }
}
