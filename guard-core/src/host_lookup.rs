//! The addresses of a host name, asked for without waiting.
//!
//! The C library's `getaddrinfo` waits for name servers, several times five
//! seconds if none answers, and this program has one thread. So `getent`, which
//! comes with the C library, asks it in a process of its own.

use std::env;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::birth::Ending;
use crate::errand::{Errand, Surroundings};
use crate::plan::CommandLine;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// So many addresses of one name are tried.
const MOST: usize = 32;

/// One question for the addresses of a name.
#[derive(Debug)]
pub struct HostLookup {
    host: String,
    port: u16,
    errand: Errand,
}

impl HostLookup {
    /// Asks.
    ///
    /// # Errors
    /// Why nobody can be asked, in words.
    pub fn begin(host: &str, port: u16, surroundings: &Surroundings) -> Result<Self, String> {
        let program = env::var_os("PATH")
            .and_then(|path| {
                env::split_paths(&path)
                    .filter(|folder| folder.is_absolute())
                    .map(|folder| folder.join("getent"))
                    .find(|file| file.is_file())
            })
            .unwrap_or_else(|| PathBuf::from("/usr/bin/getent"));
        let words = ["getent", "ahosts", host].map(str::to_owned).to_vec();
        let command = CommandLine { program, words };
        Ok(Self {
            host: host.to_owned(),
            port,
            errand: Errand::begin(&command, Path::new("/"), surroundings, LIMIT)?,
        })
    }

    /// Readable once there is an answer.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.errand.event()
    }

    /// How long the answer may still take.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.errand.left()
    }

    /// The answer, or why there is none; `None` while it is waited for.
    pub fn answer(&mut self) -> Option<Result<Vec<SocketAddr>, String>> {
        let why = match self.errand.ended()? {
            Ok(Ending::Exited(0)) => {
                let mut addresses = Vec::new();
                // "192.0.2.1  STREAM letta.example", and again for other kinds.
                for line in self.errand.last_lines(3 * MOST) {
                    let address = line.split_ascii_whitespace().next().unwrap_or_default();
                    if let Ok(address) = address.parse::<IpAddr>() {
                        let address = SocketAddr::new(address, self.port);
                        if !addresses.contains(&address) {
                            addresses.push(address);
                        }
                    }
                }
                addresses.truncate(MOST);
                if !addresses.is_empty() {
                    return Some(Ok(addresses));
                }
                "no address in the answer".to_owned()
            }
            // getent's way to say that there is none.
            Ok(Ending::Exited(2)) => "not found".to_owned(),
            Ok(ending) => ending.to_string(),
            Err(overdue) => overdue.to_string(),
        };
        Some(Err(format!("the host name {}: {why}", self.host)))
    }

    /// Asks no longer.
    pub fn give_up(&mut self) {
        self.errand.kill();
    }
}
