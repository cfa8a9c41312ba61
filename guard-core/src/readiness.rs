//! Is the agent ready? Its log says so, by a line that matches a pattern.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anstream::adapter::StripBytes;
use regex_lite::{Regex, RegexBuilder};

use crate::log_file::AgentLog;

/// How much of the output so far a match may reach back into.
const REACH: usize = 4096;

/// Looks for the readiness line in output that comes in pieces.
///
/// Agents colour their output and wrap it at 80 columns, so ANSI codes are
/// taken out, and the pattern may match a line as it stands or the text in
/// which every run of white space, line ends too, is one space.
#[derive(Debug)]
pub struct ReadinessLine {
    pattern: Regex,
    colours: StripBytes,
    /// The end of the output so far, without colours.
    lines: Vec<u8>,
    /// The same, joined.
    joined: Vec<u8>,
}

/// Compiles a readiness pattern, in which `^` and `$` mean a line's ends.
///
/// # Errors
/// When it is no regular expression.
pub fn compile(pattern: &str) -> Result<Regex, regex_lite::Error> {
    RegexBuilder::new(pattern).multi_line(true).build()
}

impl ReadinessLine {
    /// Looks for `pattern`.
    #[must_use]
    pub fn new(pattern: Regex) -> Self {
        Self {
            pattern,
            colours: StripBytes::new(),
            lines: Vec::new(),
            joined: Vec::new(),
        }
    }

    /// Takes the next piece of output; `true` as soon as the line is there.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        for plain in self.colours.strip_next(piece) {
            self.lines
                .extend(plain.iter().filter(|&&byte| byte != b'\r'));
            for &byte in plain {
                if !byte.is_ascii_whitespace() {
                    self.joined.push(byte);
                } else if self.joined.last() != Some(&b' ') {
                    self.joined.push(b' ');
                }
            }
        }
        let found = self
            .pattern
            .is_match(&String::from_utf8_lossy(&self.joined))
            || self.pattern.is_match(&String::from_utf8_lossy(&self.lines));
        for text in [&mut self.lines, &mut self.joined] {
            let surplus = text.len().saturating_sub(REACH);
            text.drain(..surplus);
        }
        found
    }
}

/// Reads what an agent writes into its log from the beginning of its start.
///
/// The log is glanced at, at the price of an `fstat` a few hundred times a
/// second at most. An inotify watch would be the event for it, but the kernel
/// takes 11 to 23 ms to close one (it waits for an SRCU grace period in
/// `inotify_release`), which is longer than everything else that follows the
/// readiness line.
#[derive(Debug)]
pub struct LogWatch {
    file: File,
    position: u64,
    line: ReadinessLine,
}

impl LogWatch {
    /// Watches `log`; to be called before the agent can write.
    ///
    /// # Errors
    /// When no descriptor is to be had.
    pub fn of(log: &AgentLog, pattern: Regex) -> io::Result<Self> {
        Ok(Self {
            file: log.output().try_clone()?.into(),
            position: log.start(),
            line: ReadinessLine::new(pattern),
        })
    }

    /// Reads on; `true` once the readiness line is there.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn is_ready(&mut self) -> io::Result<bool> {
        let length = self.file.metadata()?.len();
        if length < self.position {
            // Somebody has emptied it meanwhile.
            self.position = 0;
        }
        let mut piece = [0; 8192];
        while self.position < length {
            let count = match self.file.read_at(&mut piece, self.position) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.position += count as u64;
            if self.line.feed(&piece[..count]) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_found(pieces: &[&str]) -> bool {
        let mut line = ReadinessLine::new(compile("registered worker").unwrap());
        pieces.iter().any(|piece| line.feed(piece.as_bytes()))
    }

    fn is_match(pattern: &str, text: &str) -> bool {
        ReadinessLine::new(compile(pattern).unwrap()).feed(text.as_bytes())
    }

    #[test]
    fn the_line_is_found_however_it_is_dressed() {
        assert!(is_found(&[
            "x INFO livekit.agents - registered worker {\"id\": 1}\n"
        ]));
        assert!(is_found(&[
            "{\"message\": \"registered worker\", \"level\": \"INFO\"}\n"
        ]));
        assert!(is_found(&[
            "\x1b[32mINFO\x1b[0m - \x1b[1mregistered\x1b[0m worker"
        ]));
        assert!(is_found(&[
            "06:24:44 INFO   livekit.agents     registered\n          worker\n"
        ]));
        assert!(is_match("^registered$", "starting\r\nregistered\r\n"));
        assert!(!is_match("^registered$", "not registered\n"));
        assert!(is_found(&["noise\nregis", "tered wor", "ker"]));
        assert!(is_found(&["\x1b[3", "2mregistered\x1b", "[0m worker"]));
        assert!(is_found(&[
            &"x".repeat(100_000),
            " registered",
            "\n\t worker"
        ]));
    }

    #[test]
    fn other_lines_are_not() {
        assert!(!is_found(&[
            "starting worker\n",
            "registered\n",
            "the worker\n"
        ]));
        assert!(!is_found(&[""]));
    }
}
