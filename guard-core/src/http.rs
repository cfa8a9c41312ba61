//! One GET without waiting: is a web server ready?
//!
//! Written by hand, since all that is needed is a status line from `http://`:
//! the HTTP crates that do not block bring an async runtime with threads, and
//! this program must have one thread when it forks.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// An `http://` address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    host: String,
    port: u16,
    path: String,
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// There, in this order.
    Addresses(Vec<SocketAddr>),
    /// A name whose addresses have to be asked for, and the port.
    Name(String, u16),
}

enum Host<'a> {
    Here,
    At(IpAddr),
    Named(&'a str),
}

impl HttpUrl {
    /// Reads `http://HOST[:PORT][/PATH]`.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.starts_with("https://") {
            return Err("https is not spoken here".to_owned());
        }
        let rest = url
            .strip_prefix("http://")
            .ok_or("it does not begin with http://")?;
        if rest.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err("it has a space or a control character in it".to_owned());
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("a user name and password cannot be given".to_owned());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (
                host,
                port.parse()
                    .ok()
                    .filter(|&port| port > 0)
                    .ok_or_else(|| format!("{port:?} is no port"))?,
            ),
            _ => (authority, 80),
        };
        if host.is_empty() {
            return Err("it names no host".to_owned());
        }
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            path,
        })
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Does it name this machine, as can be told without asking a name server?
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self.host() {
            Host::Here => true,
            Host::At(address) => address.is_loopback() || address.is_unspecified(),
            Host::Named(name) => rustix::system::uname()
                .nodename()
                .to_str()
                .is_ok_and(|own| own.eq_ignore_ascii_case(name)),
        }
    }

    /// Where to connect.
    #[must_use]
    pub fn target(&self) -> Target {
        match self.host() {
            Host::Here => Target::Addresses(local(self.port)),
            Host::At(address) => Target::Addresses(vec![SocketAddr::new(address, self.port)]),
            Host::Named(name) => Target::Name(name.to_owned(), self.port),
        }
    }

    fn host(&self) -> Host<'_> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        if host.eq_ignore_ascii_case("localhost") {
            return Host::Here;
        }
        host.parse().map_or(Host::Named(host), Host::At)
    }

    /// The request for it.
    #[must_use]
    pub fn request(&self) -> Vec<u8> {
        let Self { host, port, path } = self;
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: voice-guard\r\n\
             Accept: */*\r\nConnection: close\r\n\r\n"
        )
        .into_bytes()
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// A port of this machine, by both families.
#[must_use]
pub fn local(port: u16) -> Vec<SocketAddr> {
    vec![
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
    ]
}

/// A connection on its way, and the exchange over it.
#[derive(Debug)]
pub struct Exchange {
    stream: TcpStream,
    connected: bool,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

/// How far an exchange is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Wait for its event.
    Pending,
    /// Connected, and there was nothing to send.
    Connected,
    /// The server has answered with this status.
    Answered(u16),
}

impl Exchange {
    /// Begins to connect; an empty `request` only connects.
    ///
    /// # Errors
    /// Those of `socket(2)` and `connect(2)`.
    pub fn begin(address: SocketAddr, request: Vec<u8>) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = rustix::net::socket_with(
            family,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self {
            stream: TcpStream::from(socket),
            connected: false,
            request,
            sent: 0,
            answer: Vec::new(),
        })
    }

    /// What it waits for.
    #[must_use]
    pub fn event(&self) -> (BorrowedFd<'_>, PollFlags) {
        let writing = !self.connected || self.sent < self.request.len();
        let flags = if writing {
            PollFlags::OUT
        } else {
            PollFlags::IN
        };
        (self.stream.as_fd(), flags)
    }

    /// Goes on as far as it can without waiting.
    ///
    /// # Errors
    /// Refused, reset, or no HTTP.
    pub fn step(&mut self) -> io::Result<Progress> {
        if !self.connected {
            let mut polled = [rustix::event::PollFd::new(&self.stream, PollFlags::OUT)];
            let now = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now)))? == 0 {
                return Ok(Progress::Pending);
            }
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            self.connected = true;
        }
        if self.request.is_empty() {
            return Ok(Progress::Connected);
        }
        while self.sent < self.request.len() {
            match self.stream.write(&self.request[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Pending);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut piece = [0; 512];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::Error::other("it closed the connection")),
                Ok(count) => self.answer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Pending);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some(status) = status_of(&self.answer)? {
                return Ok(Progress::Answered(status));
            }
        }
    }
}

/// The status in `HTTP/1.1 200 OK`, once there is enough of it.
fn status_of(answer: &[u8]) -> io::Result<Option<u16>> {
    let no_http = || io::Error::other("it does not speak HTTP");
    let name = b"HTTP/";
    let begun = answer.len().min(name.len());
    if answer[..begun] != name[..begun] {
        return Err(no_http());
    }
    let Some(space) = answer.iter().position(|&byte| byte == b' ') else {
        return if answer.len() > 16 {
            Err(no_http())
        } else {
            Ok(None)
        };
    };
    let Some(digits) = answer.get(space + 1..space + 4) else {
        return Ok(None);
    };
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .map(Some)
        .ok_or_else(no_http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let url = |host: &str, port, path: &str| {
            Ok(HttpUrl {
                host: host.to_owned(),
                port,
                path: path.to_owned(),
            })
        };
        assert_eq!(
            HttpUrl::parse("http://localhost:8283/"),
            url("localhost", 8283, "/")
        );
        assert_eq!(HttpUrl::parse("http://h"), url("h", 80, "/"));
        assert_eq!(HttpUrl::parse("http://h?x=1#y"), url("h", 80, "/?x=1"));
        assert_eq!(
            HttpUrl::parse("http://[::1]:90/a/b"),
            url("[::1]", 90, "/a/b")
        );
        assert_eq!(HttpUrl::parse("http://[::1]/"), url("[::1]", 80, "/"));
        for bad in [
            "https://h/",
            "h:80",
            "http://",
            "http://:80/",
            "http://h:0/",
            "http://h:x/",
            "http://u:p@h/",
            "http://h/a b",
        ] {
            assert!(HttpUrl::parse(bad).is_err(), "{bad}");
        }
        let target = |url| HttpUrl::parse(url).unwrap().target();
        assert_eq!(
            target("http://[::1]:90/"),
            Target::Addresses(vec!["[::1]:90".parse().unwrap()])
        );
        assert_eq!(
            target("http://letta.example/"),
            Target::Name("letta.example".to_owned(), 80)
        );
        let is_local = |url| HttpUrl::parse(url).unwrap().is_local();
        assert!(is_local("http://LocalHost/") && is_local("http://127.1.2.3/"));
        assert!(!is_local("http://letta.example/") && !is_local("http://192.0.2.1/"));
    }

    #[test]
    fn a_status_is_read_as_soon_as_it_is_there() {
        assert_eq!(status_of(b"").unwrap(), None);
        assert_eq!(status_of(b"HT").unwrap(), None);
        assert_eq!(status_of(b"HTTP/1.1 20").unwrap(), None);
        assert_eq!(status_of(b"HTTP/1.1 200").unwrap(), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 404 Not Found\r\n").unwrap(), Some(404));
        assert!(status_of(b"SSH-2.0").is_err());
        assert!(status_of(b"HTTP/1.1 abc").is_err());
        assert!(status_of(b"HTTP/11111111111111").is_err());
    }
}
