//! Interruption of a start: INT, TERM and HUP, taken as events.

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
        let ignored = ignored_signals()?;
        let mut held = SigSet::empty();
        for (signal, _) in ALL {
            if ignored & (1 << (signal as i32 - 1)) == 0 {
                held.add(signal);
            }
        }
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let events = SignalFd::with_flags(&held, flags)?;
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held), None)?;
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
