//! Waiting for events while a startup lock stays young and an interruption is
//! heard.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::deadline::Deadline;
use crate::signals::{Interruption, Interruptions};
use crate::startup_lock::HeldStartupLock;

/// What a program holds while it waits.
#[derive(Debug, Default)]
pub struct Vigil {
    /// Signals that ask it to give up, if it hears them.
    pub interruptions: Option<Interruptions>,
    /// The startup lock to keep young, if it has one.
    pub startup_lock: Option<HeldStartupLock>,
    /// What goes on while it waits: the companions' start.
    pub meanwhile: Option<Rc<RefCell<dyn Meanwhile>>>,
}

/// Something that goes on, step by step, whenever this program waits.
pub trait Meanwhile: fmt::Debug {
    /// What it waits for itself.
    fn events(&self) -> Vec<(BorrowedFd<'_>, PollFlags)>;

    /// When it has something to do without any event.
    fn due_in(&self) -> Option<Duration>;

    /// Does what is to be done now.
    fn step(&mut self);
}

/// Why a wait has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// At least one of the descriptors is readable.
    ByEvent,
    /// The time is over.
    ByTime,
    /// An interruption has arrived.
    ByInterruption(Interruption),
}

impl Vigil {
    /// Waits until one of `descriptors` is readable, or `span` has passed. A
    /// program that waits for no descriptor is woken by each step of what goes
    /// on meanwhile.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub fn wait(&mut self, descriptors: &[BorrowedFd<'_>], span: Duration) -> io::Result<Woken> {
        let deadline = Deadline::after(span);
        loop {
            if let Some(lock) = &mut self.startup_lock {
                lock.renew_if_due();
            }
            let pause = match &self.startup_lock {
                Some(lock) => deadline.left().min(lock.renewal_in()),
                None => deadline.left(),
            };
            let heard = self.interruptions.as_ref().map(AsFd::as_fd);
            let meanwhile = self.meanwhile.as_ref().map(|meanwhile| meanwhile.borrow());
            let due = meanwhile.as_ref().and_then(|meanwhile| meanwhile.due_in());
            let pause = due.map_or(pause, |due| pause.min(due));
            let mut polled: Vec<PollFd<'_>> = descriptors
                .iter()
                .copied()
                .chain(heard)
                .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
                .collect();
            if let Some(meanwhile) = &meanwhile {
                let events = meanwhile.events().into_iter();
                polled.extend(
                    events.map(|(descriptor, flags)| PollFd::from_borrowed_fd(descriptor, flags)),
                );
            }
            match poll(&mut polled, Some(&timespec(pause))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let has_event = polled[..descriptors.len()]
                .iter()
                .any(|polled| !polled.revents().is_empty());
            drop(polled);
            drop(meanwhile);
            let interruption = self.interruption();
            if let Some(interruption) = interruption {
                return Ok(Woken::ByInterruption(interruption));
            }
            if let Some(meanwhile) = &self.meanwhile {
                meanwhile.borrow_mut().step();
            }
            if has_event || (descriptors.is_empty() && self.meanwhile.is_some()) {
                return Ok(Woken::ByEvent);
            }
            if deadline.passed() {
                return Ok(Woken::ByTime);
            }
        }
    }

    /// The interruption that has arrived, if one has.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        self.interruptions.as_ref().and_then(Interruptions::pending)
    }
}

fn timespec(span: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(span.subsec_nanos()),
    }
}
