//! Interruption of a start: INT, TERM and HUP, taken as events. A starter that
//! stays with its agent passes others on to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// A signal that asks a program to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// Ctrl-C.
    Interrupt,
    /// A polite `kill`.
    Terminate,
    /// The terminal is gone.
    HangUp,
}

const ALL: [(Signal, Interruption); 3] = [
    (Signal::SIGINT, Interruption::Interrupt),
    (Signal::SIGTERM, Interruption::Terminate),
    (Signal::SIGHUP, Interruption::HangUp),
];

impl Interruption {
    fn signal(self) -> Signal {
        match self {
            Self::Interrupt => Signal::SIGINT,
            Self::Terminate => Signal::SIGTERM,
            Self::HangUp => Signal::SIGHUP,
        }
    }

    /// The name that people know: `SIGINT`, …
    #[must_use]
    pub fn name(self) -> &'static str {
        self.signal().as_str()
    }

    /// The signal's number; a shell reports 128 more.
    #[must_use]
    pub fn number(self) -> u8 {
        u8::try_from(self.signal() as i32).unwrap_or(0)
    }

    /// Ends the program by this signal, as if it had not been caught, so that
    /// the caller sees what ended it. Returns only if that fails.
    pub fn die(self) {
        let mut unblocked = SigSet::empty();
        unblocked.add(self.signal());
        // Raised first: it is delivered at the moment it is unblocked.
        let _ = nix::sys::signal::raise(self.signal());
        let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&unblocked), None);
    }
}

/// The interrupting signals, held back and readable.
///
/// Ignored ones stay ignored: `nohup` and a shell's background jobs rely on it.
#[derive(Debug)]
pub struct Interruptions {
    events: SignalFd,
}

impl Interruptions {
    /// Holds the signals back from here on.
    ///
    /// # Errors
    /// When no signal descriptor can be had.
    pub fn hold() -> io::Result<Self> {
        let events = hold(ALL.map(|(signal, _)| signal))?;
        Ok(Self { events })
    }

    /// The same for a program that stays with its agent: a lost terminal is the
    /// agent's to hear of.
    ///
    /// # Errors
    /// As [`Self::hold`].
    pub fn hold_in_foreground() -> io::Result<Self> {
        let events = hold([Signal::SIGINT, Signal::SIGTERM])?;
        Ok(Self { events })
    }

    /// The interruption that has arrived, if one has.
    #[must_use]
    pub fn pending(&self) -> Option<Interruption> {
        loop {
            match self.events.read_signal() {
                Ok(Some(info)) => {
                    let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                    return ALL
                        .into_iter()
                        .find(|(signal, _)| *signal as i32 == number)
                        .map(|(_, interruption)| interruption);
                }
                Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl AsFd for Interruptions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Signals that are passed on to an agent by the starter that stays with it,
/// and the news that a child has died.
#[derive(Debug)]
pub struct PassedOn {
    events: SignalFd,
}

impl PassedOn {
    /// Holds them back from here on; ignored ones stay ignored.
    ///
    /// # Errors
    /// When no signal descriptor can be had.
    pub fn hold() -> io::Result<Self> {
        let events = hold([
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGCHLD,
        ])?;
        Ok(Self { events })
    }

    /// The next one that has arrived; the inner `None` is a child's death.
    #[must_use]
    pub fn next(&self) -> Option<Option<rustix::process::Signal>> {
        loop {
            match self.events.read_signal() {
                Ok(Some(info)) => {
                    let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                    let signal = rustix::process::Signal::from_named_raw(number)?;
                    let is_death = signal == rustix::process::Signal::CHILD;
                    return Some((!is_death).then_some(signal));
                }
                Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl AsFd for PassedOn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Blocks these signals, but for the ignored, and makes them readable.
fn hold(signals: impl IntoIterator<Item = Signal>) -> io::Result<SignalFd> {
    let ignored = ignored_signals()?;
    let mut held = SigSet::empty();
    for signal in signals {
        if ignored & (1 << (signal as i32 - 1)) == 0 {
            held.add(signal);
        }
    }
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let events = SignalFd::with_flags(&held, flags)?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held), None)?;
    Ok(events)
}

/// Ends the program by the signal that has ended its agent. Returns if that
/// cannot be: process 1 of a container is not ended by a signal of its own.
pub fn die_of(number: i32) {
    let Ok(signal) = Signal::try_from(number) else {
        return;
    };
    // One core is enough, and it is the agent's.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let mut unblocked = SigSet::empty();
    unblocked.add(signal);
    let _ = nix::sys::signal::raise(signal);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&unblocked), None);
}

/// The signals that the caller ignores, as `SigIgn` of `/proc/self/status`.
///
/// A blocked signal is queued even if it is ignored, so this must be known
/// before it is blocked (`signal(7)`).
///
/// # Errors
/// When the file cannot be read.
pub fn ignored_signals() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("/proc/self/status has no SigIgn line"))
}
