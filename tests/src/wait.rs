//! The one place where tests wait: for a condition, with a deadline.

use std::time::{Duration, Instant};

/// Looks at `condition` until it holds or `deadline` has passed; says whether
/// it held. The pauses between looks grow from 0.2 ms to 10 ms.
#[must_use]
pub fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    eventually_some(deadline, || condition().then_some(())).is_some()
}

/// Like [`eventually`], for a condition that yields a value.
#[must_use]
pub fn eventually_some<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(value) = look() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        back_off(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Waits up to ten seconds for `condition`; panics naming `what` if it never held.
#[track_caller]
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    within(Duration::from_secs(10), what, condition);
}

/// Like [`until`], with a deadline of the caller's.
#[track_caller]
pub fn within(deadline: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(
        eventually(deadline, condition),
        "waited {deadline:?} in vain for: {what}"
    );
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one pause of the test-suite, between two looks at a condition with a deadline"
)]
fn back_off(pause: Duration) {
    std::thread::sleep(pause);
}
