//! Telling a supervisor how it stands, as `sd_notify(3)` describes it: systemd,
//! and whoever else sets `NOTIFY_SOCKET`.
//!
//! The protocol is one datagram; the standard library has everything for it,
//! abstract addresses too.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where a supervisor listens; never handed on to an agent, whose words would
/// not be ours.
pub const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";

/// What a supervisor is asked for beyond what the settings say: the looks at
/// all processes, on a busy machine.
pub const MARGIN: Duration = Duration::from_secs(20);

/// A supervisor that does not read must not stop us for good.
const PATIENCE: Duration = Duration::from_secs(5);

/// The supervisor, if there is one that wants to know.
#[derive(Debug)]
pub struct Supervisor(Option<(UnixDatagram, SocketAddr)>);

impl Supervisor {
    /// The one that the environment names. A socket that cannot be used counts
    /// as none: the agent matters more than who hears of it.
    #[must_use]
    pub fn of_environment() -> Self {
        let named = env::var_os(NOTIFY_VARIABLE).filter(|name| !name.is_empty());
        Self(named.and_then(|name| open(&name).ok()))
    }

    /// The agent runs; how, in words.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// What goes on, for people.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={}", one_line(status)));
    }

    /// It ends, and all that was born of the agent with it, which has so long.
    pub fn stopping(&self, grace: Duration) {
        self.tell("STOPPING=1\nSTATUS=ending what was born of the agent");
        self.extend(grace * 2 + MARGIN);
    }

    /// What goes on now may take so long, whatever the supervisor has thought.
    pub fn extend(&self, limit: Duration) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros()));
    }

    fn tell(&self, message: &str) {
        if let Some((socket, address)) = &self.0 {
            // One who has gone away hears nothing, and that changes nothing.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok((socket, address))
}

/// A line's end would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(|letter: char| letter.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(name: &OsStr, listener: &UnixDatagram) -> String {
        let supervisor = Supervisor(open(name).ok());
        supervisor.ready("one\ntwo");
        let mut message = [0; 100];
        let length = listener.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    #[test]
    fn paths_and_abstract_names_are_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        assert_eq!(
            heard(path.as_os_str(), &listener),
            "READY=1\nSTATUS=one two"
        );
        let name = format!("voice-guard-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        let name = format!("@{name}");
        assert_eq!(
            heard(OsStr::new(&name), &listener),
            "READY=1\nSTATUS=one two"
        );
    }

    #[test]
    fn what_is_no_socket_changes_nothing() {
        for name in ["relative", "vsock:2:1234", "/nowhere/at/all", "@"] {
            let supervisor = Supervisor(open(OsStr::new(name)).ok());
            supervisor.ready("ready");
        }
    }
}
