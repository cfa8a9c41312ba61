//! The env file: `NAME=value` lines for the agent, read as data.
//!
//! The original scripts `source`d it; here nothing in it is ever executed.
//! Comments, quotes, `export ` and `$NAME` are as `dotenvy` reads them.

use std::cell::Cell;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};

/// Why an env file could not be used. Values are never shown: they are keys.
#[derive(Debug)]
pub enum EnvFileError {
    /// It cannot be opened or read.
    Io(io::Error),
    /// A line, counted from 1, is no assignment.
    Line {
        /// Where.
        number: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl fmt::Display for EnvFileError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(formatter),
            Self::Line { number, reason } => write!(formatter, "line {number}: {reason}"),
        }
    }
}

/// Reads the assignments, in the order of the file; later ones win.
///
/// # Errors
/// When the file cannot be read, or a line is not `NAME=value`.
pub fn read(path: &Path) -> Result<Vec<(OsString, OsString)>, EnvFileError> {
    // Without waiting for somebody to write into a named pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
        .map_err(|errno| EnvFileError::Io(errno.into()))?;
    let file = File::from(file);
    if !file.metadata().map_err(EnvFileError::Io)?.is_file() {
        return Err(EnvFileError::Io(io::Error::other("it is no plain file")));
    }
    parse(file)
}

fn parse(source: impl Read) -> Result<Vec<(OsString, OsString)>, EnvFileError> {
    let line = Rc::new(Cell::new(0));
    let lines = LineByLine {
        source: BufReader::new(source),
        pending: Vec::new(),
        handed: 0,
        line: Rc::clone(&line),
    };
    let mut assignments = Vec::new();
    for assignment in dotenvy::from_read_iter(lines) {
        match assignment {
            Ok((name, value)) => {
                if name.contains('\0') || value.contains('\0') {
                    return Err(at(&line, "a NUL byte cannot stand in an environment"));
                }
                assignments.push((name.into(), value.into()));
            }
            Err(dotenvy::Error::LineParse(..)) => {
                return Err(at(
                    &line,
                    "expected NAME=value, with quotes around a value that holds spaces",
                ));
            }
            Err(dotenvy::Error::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(at(&line, "not UTF-8"));
            }
            Err(dotenvy::Error::Io(error)) => return Err(EnvFileError::Io(error)),
            Err(_) => return Err(at(&line, "cannot be understood")),
        }
    }
    Ok(assignments)
}

fn at(line: &Rc<Cell<usize>>, reason: &'static str) -> EnvFileError {
    EnvFileError::Line {
        number: line.get(),
        reason,
    }
}

/// What editors on Windows write before the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Hands out one line a read, so that the parser, which buffers what it reads
/// and does not count, is never ahead of the line it complains about.
struct LineByLine<R> {
    source: BufReader<R>,
    pending: Vec<u8>,
    handed: usize,
    line: Rc<Cell<usize>>,
}

impl<R: Read> Read for LineByLine<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.handed == self.pending.len() {
            self.pending.clear();
            self.handed = 0;
            if self.source.read_until(b'\n', &mut self.pending)? == 0 {
                return Ok(0);
            }
            if self.line.get() == 0 && self.pending.starts_with(BYTE_ORDER_MARK) {
                self.handed = BYTE_ORDER_MARK.len();
            }
            self.line.set(self.line.get() + 1);
        }
        let rest = &self.pending[self.handed..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.handed += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Vec<(String, String)>, String> {
        parse(text)
            .map(|assignments| {
                assignments
                    .into_iter()
                    .map(|(name, value)| {
                        (name.into_string().unwrap(), value.into_string().unwrap())
                    })
                    .collect()
            })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_people_write_is_read() {
        let text = b"# keys\n\nA=1\nexport B=two\nC=\"three and four\" # yes\nD='$A `x`'\nE=\nF=$A-$B\nG=\"l1\nl2\"\nURL=wss://x.example:7880/p?a=b#c\n";
        let pairs = read(text).unwrap();
        let expected = [
            ("A", "1"),
            ("B", "two"),
            ("C", "three and four"),
            ("D", "$A `x`"),
            ("E", ""),
            ("F", "1-two"),
            ("G", "l1\nl2"),
            ("URL", "wss://x.example:7880/p?a=b#c"),
        ];
        for ((name, value), (expected_name, expected_value)) in pairs.iter().zip(expected) {
            assert_eq!(
                (name.as_str(), value.as_str()),
                (expected_name, expected_value)
            );
        }
        assert_eq!(pairs.len(), expected.len());
    }

    #[test]
    fn nothing_is_executed() {
        let pairs = read(b"A='$(touch x)'\nB=`id`\n").unwrap();
        assert_eq!(pairs[0].1, "$(touch x)");
        assert_eq!(pairs[1].1, "`id`");
    }

    #[test]
    fn a_bad_line_is_named_by_number_and_its_secret_is_not_shown() {
        for (text, line) in [
            (&b"A=1\nB=2\nif true; then\n"[..], "line 3:"),
            (b"A=secret words here\n", "line 1:"),
            (b"A=1\n\n# c\nexport\n", "line 4:"),
            (b"A=1\nB=\xff\xfe\n", "line 2:"),
            (b"A=1\nB=x\0y\n", "line 2:"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(line), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
