//! Waiting for what the kernel announces by no event, with an end.

use std::time::{Duration, Instant};

/// An end to waiting, and short pauses until then that grow from 1 to 20 ms.
///
/// Only for what cannot be waited for: a `flock` with a time limit, a port, the
/// end of another process's `exec`. Deaths and log lines are events.
#[derive(Debug)]
pub struct Deadline {
    at: Instant,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Deadline {
    /// A deadline `span` from now.
    #[must_use]
    pub fn after(span: Duration) -> Self {
        let now = Instant::now();
        Self {
            at: now.checked_add(span).unwrap_or(now),
            pause: FIRST_PAUSE,
        }
    }

    /// What is left; zero when it has passed.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Has it passed?
    #[must_use]
    pub fn passed(&self) -> bool {
        self.left().is_zero()
    }

    /// The next pause to make before trying again; `None` once the deadline
    /// has passed.
    pub fn next_pause(&mut self) -> Option<Duration> {
        let left = self.left();
        if left.is_zero() {
            return None;
        }
        let pause = self.pause.min(left);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }

    /// Pauses before trying again; `false` once the deadline has passed.
    pub fn wait(&mut self) -> bool {
        let Some(pause) = self.next_pause() else {
            return false;
        };
        let pause = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        // Interrupted is as good as waited: the caller looks again.
        let _ = rustix::event::poll(&mut [], Some(&pause));
        true
    }
}
