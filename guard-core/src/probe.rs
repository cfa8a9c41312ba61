//! Is a part ready? Asked again and again without waiting, with short pauses
//! that grow; a death is an event.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::birth::Ending;
use crate::errand::{Errand, Surroundings};
use crate::host_lookup::HostLookup;
use crate::http::{Exchange, HttpUrl, Progress, Target, local};
use crate::log_file::AgentLog;
use crate::plan::{CommandLine, Ready, put_in};
use crate::readiness::LogWatch;

/// How long a server may take to answer one question; then it is asked again.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long a command that asks may take; then it is asked again.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// A command costs more than a connection: one that takes longer than this is
/// not running more than half of the time.
const FIRST_COMMAND_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_COMMAND_PAUSE: Duration = Duration::from_millis(40);
/// Between two looks whose an open port is: each reads all processes.
const STRANGER_PAUSE: Duration = Duration::from_millis(100);
/// How often a log is looked at (`readiness.rs` says why no watch is used).
const LOG_GLANCE: Duration = Duration::from_millis(10);

/// Asks one part whether it is ready.
#[derive(Debug)]
pub struct Probe {
    question: Question,
    pause: Duration,
    next: Instant,
    why_not: String,
    asked: bool,
}

/// A host whose addresses are not known yet.
#[derive(Debug)]
struct Host {
    name: String,
    port: u16,
    surroundings: Surroundings,
    lookup: Option<HostLookup>,
}

#[derive(Debug)]
enum Question {
    /// The addresses first, then the connection.
    Host(Host, Vec<u8>, Option<u16>),
    /// A connection, or a GET, to the first of these that accepts.
    Net {
        addresses: Vec<SocketAddr>,
        request: Vec<u8>,
        status: Option<u16>,
        at: usize,
        exchange: Option<(Exchange, Instant)>,
    },
    Log(Option<LogWatch>),
    Command {
        command: CommandLine,
        folder: PathBuf,
        surroundings: Surroundings,
        errand: Option<Errand>,
    },
    Alive(Instant),
}

impl Probe {
    /// Asks as `ready` says. `since` is when the part was started; `log` is
    /// where it writes.
    ///
    /// # Errors
    /// When the log cannot be watched.
    pub fn new(
        ready: &Ready,
        port: Option<u16>,
        folder: &std::path::Path,
        surroundings: &Surroundings,
        since: Instant,
        log: Option<&AgentLog>,
    ) -> Result<Self, String> {
        let question = match ready {
            Ready::Port(fixed) => net(
                fixed.or(port).map(local).unwrap_or_default(),
                Vec::new(),
                None,
            ),
            Ready::Http { url, status } => {
                let url = HttpUrl::parse(&put_in(url, port))?;
                match url.target() {
                    Target::Addresses(addresses) => net(addresses, url.request(), Some(*status)),
                    Target::Name(name, port) => {
                        let host = Host {
                            name,
                            port,
                            surroundings: surroundings.clone(),
                            lookup: None,
                        };
                        Question::Host(host, url.request(), Some(*status))
                    }
                }
            }
            Ready::Log(pattern) => Question::Log(
                log.map(|log| LogWatch::of(log, pattern.clone()))
                    .transpose()
                    .map_err(|error| format!("cannot read its log: {error}"))?,
            ),
            Ready::Command(command) => Question::Command {
                command: command.at(port),
                folder: folder.to_owned(),
                surroundings: surroundings.clone(),
                errand: None,
            },
            Ready::Alive(span) => Question::Alive(since.checked_add(*span).unwrap_or(since)),
        };
        let pause = match question {
            Question::Command { .. } | Question::Host(..) => FIRST_COMMAND_PAUSE,
            _ => FIRST_PAUSE,
        };
        Ok(Self {
            question,
            pause,
            next: Instant::now(),
            why_not: "not asked yet".to_owned(),
            asked: false,
        })
    }

    /// Why it was not ready when it was asked last.
    #[must_use]
    pub fn why_not(&self) -> &str {
        &self.why_not
    }

    /// It was answered, but by somebody else: asks again, a little later.
    pub fn is_not_it(&mut self, why: String) {
        self.why_not = why;
        self.asked = true;
        self.next = Instant::now() + STRANGER_PAUSE;
        if let Question::Net { at, exchange, .. } = &mut self.question {
            *exchange = None;
            *at = 0;
        }
    }

    /// Has one question been answered, if only by no?
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.asked
    }

    /// What it waits for.
    #[must_use]
    pub fn events(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        match &self.question {
            Question::Net {
                exchange: Some((exchange, _)),
                ..
            } => vec![exchange.event()],
            Question::Host(
                Host {
                    lookup: Some(lookup),
                    ..
                },
                ..,
            ) => vec![(lookup.event(), PollFlags::IN)],
            Question::Command {
                errand: Some(errand),
                ..
            } => vec![(errand.event(), PollFlags::IN)],
            _ => Vec::new(),
        }
    }

    /// When it has something to do without an event.
    #[must_use]
    pub fn due_in(&self) -> Option<Duration> {
        let until = |at: Instant| Some(at.saturating_duration_since(Instant::now()));
        match &self.question {
            Question::Net {
                exchange: Some((_, since)),
                ..
            } => until(*since + ANSWER_LIMIT),
            Question::Log(Some(_)) => Some(LOG_GLANCE),
            Question::Log(None) => None,
            Question::Command {
                errand: Some(errand),
                ..
            } => Some(errand.left()),
            Question::Alive(at) => until(*at),
            Question::Host(
                Host {
                    lookup: Some(lookup),
                    ..
                },
                ..,
            ) => Some(lookup.left()),
            Question::Host(..) | Question::Net { .. } | Question::Command { .. } => {
                until(self.next)
            }
        }
    }

    /// Asks on, as far as that is possible without waiting; `true` once ready.
    pub fn step(&mut self) -> bool {
        let now = Instant::now();
        match &mut self.question {
            Question::Alive(at) => {
                self.asked = true;
                "it has not lived long enough".clone_into(&mut self.why_not);
                now >= *at
            }
            Question::Log(watch) => {
                self.asked = true;
                "its log does not have the line".clone_into(&mut self.why_not);
                match watch.as_mut().map(LogWatch::is_ready) {
                    Some(Ok(ready)) => ready,
                    Some(Err(error)) => {
                        self.why_not = format!("its log cannot be read: {error}");
                        false
                    }
                    None => false,
                }
            }
            Question::Host(..) => self.step_host(now),
            Question::Net { .. } => self.step_net(now),
            Question::Command { .. } => self.step_command(now),
        }
    }

    fn step_host(&mut self, now: Instant) -> bool {
        let Question::Host(host, request, status) = &mut self.question else {
            return false;
        };
        let Some(lookup) = &mut host.lookup else {
            if now >= self.next {
                match HostLookup::begin(&host.name, host.port, &host.surroundings) {
                    Ok(lookup) => {
                        host.lookup = Some(lookup);
                        self.why_not = format!("no answer yet where {} is", host.name);
                    }
                    Err(why) => {
                        self.why_not = why;
                        self.asked = true;
                        self.next = now + LONGEST_COMMAND_PAUSE;
                    }
                }
            }
            return false;
        };
        match lookup.answer() {
            None => false,
            Some(Ok(addresses)) => {
                self.question = net(addresses, std::mem::take(request), *status);
                self.pause = FIRST_PAUSE;
                self.step_net(now)
            }
            Some(Err(why)) => {
                self.why_not = why;
                self.asked = true;
                host.lookup = None;
                self.next = now + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_COMMAND_PAUSE);
                false
            }
        }
    }

    fn step_net(&mut self, now: Instant) -> bool {
        let Question::Net {
            addresses,
            request,
            status,
            at,
            exchange,
        } = &mut self.question
        else {
            return false;
        };
        loop {
            let Some((running, since)) = exchange else {
                if now < self.next {
                    return false;
                }
                let Some(&address) = addresses.get(*at) else {
                    *at = 0;
                    self.asked = true;
                    self.next = now + self.pause;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    return false;
                };
                match Exchange::begin(address, request.clone()) {
                    Ok(begun) => *exchange = Some((begun, now)),
                    Err(error) => {
                        if *at == 0 {
                            self.why_not = format!("{address}: {error}");
                        }
                        *at += 1;
                    }
                }
                continue;
            };
            match running.step() {
                Ok(Progress::Pending) if now < *since + ANSWER_LIMIT => return false,
                Ok(Progress::Connected) => return true,
                Ok(Progress::Answered(answered)) if Some(answered) == *status => return true,
                Ok(Progress::Answered(answered)) => {
                    self.why_not = format!("it answers with status {answered}");
                    *at = addresses.len();
                }
                Ok(Progress::Pending) => {
                    "it does not answer".clone_into(&mut self.why_not);
                    *at = addresses.len();
                }
                Err(error) => {
                    // The first address is the one that people look at.
                    if *at == 0 {
                        self.why_not = format!("{}: {error}", addresses[0]);
                    }
                    *at += 1;
                }
            }
            *exchange = None;
        }
    }

    fn step_command(&mut self, now: Instant) -> bool {
        let Question::Command {
            command,
            folder,
            surroundings,
            errand,
        } = &mut self.question
        else {
            return false;
        };
        let Some(running) = errand else {
            if now < self.next {
                return false;
            }
            match Errand::begin(command, folder, surroundings, COMMAND_LIMIT) {
                Ok(begun) => *errand = Some(begun),
                Err(why) => {
                    self.why_not = why;
                    self.asked = true;
                    self.next = now + LONGEST_COMMAND_PAUSE;
                }
            }
            return false;
        };
        let Some(ended) = running.ended() else {
            return false;
        };
        let name = command.words.first().map_or("it", String::as_str);
        match ended {
            Ok(Ending::Exited(0)) => {
                // Ended: nothing of it is to be killed when we are dropped.
                *errand = None;
                return true;
            }
            Ok(ending) => self.why_not = format!("{name}: {ending}"),
            Err(overdue) => self.why_not = format!("{name}: {overdue}"),
        }
        if let Some(line) = running.last_lines(1).first() {
            self.why_not.push_str(": ");
            self.why_not.push_str(line);
        }
        let took = COMMAND_LIMIT.saturating_sub(running.left());
        *errand = None;
        self.asked = true;
        self.next = now + self.pause.max(took);
        self.pause = (self.pause * 2).min(LONGEST_COMMAND_PAUSE);
        false
    }
}

fn net(addresses: Vec<SocketAddr>, request: Vec<u8>, status: Option<u16>) -> Question {
    Question::Net {
        addresses,
        request,
        status,
        at: 0,
        exchange: None,
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        match &mut self.question {
            Question::Command {
                errand: Some(errand),
                ..
            } => {
                errand.kill();
            }
            Question::Host(
                Host {
                    lookup: Some(lookup),
                    ..
                },
                ..,
            ) => lookup.give_up(),
            _ => {}
        }
    }
}
