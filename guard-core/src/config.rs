//! `voice-system.toml`: found, read and checked for form.
//!
//! What it says of the agent is a source of [`crate::settings`]; what it says
//! of the rest becomes a [`crate::plan`]. Every complaint names the file, the
//! line and the column, and what may have been meant.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use toml::Spanned;

use crate::failure::Failure;

/// The file's name, wherever it is looked for.
pub const FILE_NAME: &str = "voice-system.toml";

/// Above this it is no configuration.
const MOST_BYTES: u64 = 1024 * 1024;

/// A configuration file as it was read.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    text: String,
    tables: Tables,
}

/// The tables of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tables {
    #[serde(default)]
    pub(crate) agent: AgentTable,
    #[serde(default, rename = "companion")]
    pub(crate) companions: Vec<CompanionTable>,
    #[serde(default, rename = "step")]
    pub(crate) steps: Vec<StepTable>,
}

type Text = Spanned<String>;
type Texts = Vec<Text>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentTable {
    script: Option<Text>,
    mode: Option<Text>,
    python: Option<Text>,
    pub(crate) env_files: Option<Texts>,
    pid_file: Option<Text>,
    lock_file: Option<Text>,
    pub(crate) log: Option<Text>,
    ready_pattern: Option<Text>,
    verify_seconds: Option<Spanned<f64>>,
    grace_seconds: Option<Spanned<f64>>,
    keep_log_mb: Option<Spanned<f64>>,
    #[serde(default)]
    pub(crate) needs: Texts,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompanionTable {
    pub(crate) name: Text,
    pub(crate) command: Option<Texts>,
    pub(crate) check: Option<Texts>,
    pub(crate) start: Option<Texts>,
    pub(crate) remedy: Option<Text>,
    pub(crate) folder: Option<Text>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, Text>,
    pub(crate) log: Option<Text>,
    pub(crate) ready: Option<Spanned<ReadyTable>>,
    pub(crate) deadline_seconds: Option<Spanned<f64>>,
    pub(crate) grace_seconds: Option<Spanned<f64>>,
    pub(crate) on_start: Option<Spanned<OnStart>>,
    pub(crate) on_failure: Option<OnFailure>,
    pub(crate) restart: Option<Spanned<bool>>,
    #[serde(default)]
    pub(crate) needs: Texts,
    pub(crate) clean: Option<Spanned<CleanTable>>,
    pub(crate) ports: Option<Spanned<Vec<Spanned<u16>>>>,
    pub(crate) url: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadyTable {
    pub(crate) port: Option<Spanned<PortValue>>,
    pub(crate) http: Option<Text>,
    pub(crate) status: Option<Spanned<u16>>,
    pub(crate) log: Option<Text>,
    pub(crate) command: Option<Texts>,
    pub(crate) alive_seconds: Option<Spanned<f64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CleanTable {
    #[serde(default)]
    pub(crate) folders: Texts,
    #[serde(default)]
    pub(crate) log: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StepTable {
    pub(crate) name: Text,
    pub(crate) when: When,
    pub(crate) command: Texts,
    pub(crate) folder: Option<Text>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, Text>,
    pub(crate) on_failure: Option<OnFailure>,
    pub(crate) deadline_seconds: Option<Spanned<f64>>,
}

/// What a start does with a companion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStart {
    /// Keep it if it is ready, start it otherwise.
    Reuse,
    /// Always start a new one.
    Fresh,
    /// Only look whether it is ready.
    Manual,
}

/// What becomes of the start when a part fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The start ends there.
    Stop,
    /// The start goes on without it.
    Warn,
}

/// When a step is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// After what the agent needs is ready, before the agent.
    BeforeAgent,
    /// After everything is up.
    AfterAll,
    /// After everything is up, and only on a restart.
    Restart,
}

/// A port number, or the one that was chosen among `ports`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortValue {
    Number(u16),
    Chosen,
}

impl<'de> Deserialize<'de> for PortValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Port;
        impl Visitor<'_> for Port {
            type Value = PortValue;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a port from 1 to 65535, or \"{port}\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortValue, E> {
                u16::try_from(number)
                    .ok()
                    .filter(|&port| port > 0)
                    .map(PortValue::Number)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortValue, E> {
                if text == "{port}" {
                    Ok(PortValue::Chosen)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
        }
        deserializer.deserialize_any(Port)
    }
}

/// A value of the agent's table, as the settings take it.
#[derive(Debug)]
pub(crate) struct AgentValue {
    pub(crate) value: OsString,
    /// Where it stands, for messages.
    pub(crate) shown: String,
}

impl Config {
    /// Finds and reads the configuration: the one that is named, or the first
    /// that exists. `None` if there is none.
    ///
    /// # Errors
    /// When the named one is missing, or one cannot be used.
    pub(crate) fn find(named: Option<&Path>, project_dir: &Path) -> Result<Option<Self>, Failure> {
        if let Some(path) = named {
            return Self::open(path)?.map(Some).ok_or_else(|| {
                Failure::new(format!("cannot find the configuration {}", path.display()))
                    .help("correct --config or VOICE_GUARD_CONFIG, or leave it out")
            });
        }
        let user = env::var_os("XDG_CONFIG_HOME")
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".config")));
        let places = [
            Some(project_dir.join(FILE_NAME)),
            user.filter(|folder| folder.is_absolute())
                .map(|folder| folder.join("voice-guard").join(FILE_NAME)),
            Some(Path::new("/etc/voice-guard").join(FILE_NAME)),
        ];
        for place in places.into_iter().flatten() {
            if let Some(config) = Self::open(&place)? {
                return Ok(Some(config));
            }
        }
        Ok(None)
    }

    fn open(path: &Path) -> Result<Option<Self>, Failure> {
        let cannot = |error: &io::Error| {
            Failure::new(format!(
                "cannot read the configuration {}: {error}",
                path.display()
            ))
            .help("make it a readable file, or remove it")
        };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::PermissionDenied
                ) && fs::symlink_metadata(path).is_err() =>
            {
                return Ok(None);
            }
            Err(error) => return Err(cannot(&error)),
        };
        if !metadata.is_file() {
            return Err(cannot(&io::Error::other("it is no plain file")));
        }
        if metadata.len() > MOST_BYTES {
            return Err(cannot(&io::Error::other("it is larger than 1 MiB")));
        }
        if metadata.mode() & 0o002 != 0 {
            return Err(Failure::new(format!(
                "will not use the configuration {}: everybody may write it, and it names commands to run",
                path.display()
            ))
            .help(format!("chmod o-w {}", path.display())));
        }
        let text = fs::read_to_string(path).map_err(|error| cannot(&error))?;
        Self::parse(path, text).map(Some)
    }

    /// Reads `text`, which stands in the file `path`.
    ///
    /// # Errors
    /// When it is no TOML, or has an unknown key or a value of a wrong type.
    pub(crate) fn parse(path: &Path, text: String) -> Result<Self, Failure> {
        match toml::from_str::<Tables>(&text) {
            Ok(tables) => Ok(Self {
                path: path.to_owned(),
                text,
                tables,
            }),
            Err(error) => {
                let message = error.message().trim().to_owned();
                let failure = complaint(path, &text, error.span(), &message);
                let written = error.span().and_then(|span| text.get(span));
                Err(match suggestion(&message, written.unwrap_or_default()) {
                    Some(suggestion) => failure.help(suggestion),
                    None => failure.help(format!(
                        "see docs/voice-system.md, and check again with: start-voice-system --check-config --config {}",
                        path.display()
                    )),
                })
            }
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Something is wrong with what stands at `span`.
    pub(crate) fn wrong(&self, span: Range<usize>, message: &str) -> Failure {
        complaint(&self.path, &self.text, Some(span), message)
    }

    /// Replaces `~` and `$NAME` from the environment.
    ///
    /// # Errors
    /// When a name is not set.
    pub(crate) fn substitute(&self, text: &Text) -> Result<String, Failure> {
        substitute(text.get_ref(), |name| env::var(name).ok()).map_err(|name| {
            self.wrong(
                text.span(),
                &format!("the environment has no {name} (or not in UTF-8)"),
            )
            .help(format!(
                "set {name}, write the value itself, or write $$ for a dollar sign"
            ))
        })
    }

    /// What the file says of the agent, by the name that the setting has in the
    /// environment.
    ///
    /// # Errors
    /// When a name in the value is not set in the environment.
    pub(crate) fn agent(&self, setting: &str) -> Result<Option<AgentValue>, Failure> {
        let agent = &self.tables.agent;
        let (key, text) = match setting {
            "AGENT_SCRIPT" => ("script", &agent.script),
            "AGENT_MODE" => ("mode", &agent.mode),
            "PYTHON" => ("python", &agent.python),
            "PID_FILE" => ("pid_file", &agent.pid_file),
            "LOCK_FILE" => ("lock_file", &agent.lock_file),
            "LOG_FILE" => ("log", &agent.log),
            // A dollar sign means the end of the line there.
            "READY_PATTERN" => {
                return Ok(agent.ready_pattern.as_ref().map(|pattern| {
                    self.value("ready_pattern", pattern.span(), pattern.get_ref())
                }));
            }
            "VERIFY_SECONDS" | "GRACE_SECONDS" | "KEEP_LOG_MB" => {
                let (key, number) = match setting {
                    "VERIFY_SECONDS" => ("verify_seconds", &agent.verify_seconds),
                    "GRACE_SECONDS" => ("grace_seconds", &agent.grace_seconds),
                    _ => ("keep_log_mb", &agent.keep_log_mb),
                };
                return Ok(number
                    .as_ref()
                    .map(|number| self.value(key, number.span(), &number.get_ref().to_string())));
            }
            _ => return Ok(None),
        };
        text.as_ref()
            .map(|text| Ok(self.value(key, text.span(), &self.substitute(text)?)))
            .transpose()
    }

    fn value(&self, key: &str, span: Range<usize>, value: &str) -> AgentValue {
        let (line, column) = position(&self.text, span.start);
        AgentValue {
            value: value.into(),
            shown: format!("{}:{line}:{column}: agent.{key}", self.path.display()),
        }
    }
}

fn complaint(path: &Path, text: &str, span: Option<Range<usize>>, message: &str) -> Failure {
    let (line, column) = position(text, span.map_or(0, |span| span.start));
    Failure::new(format!("{}:{line}:{column}: {message}", path.display()))
}

/// Line and column, both counted from 1, of a byte.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.bytes().filter(|&byte| byte == b'\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// What was probably meant, from a message of the parser and what is `written`
/// there.
fn suggestion(message: &str, written: &str) -> Option<String> {
    if let Some(expected) = message.strip_prefix("invalid type: ") {
        return right_type(expected, written);
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return Some(format!("add {} = …", field.trim_matches('`')));
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    if !message.starts_with("unknown ") {
        return None;
    }
    let known: Vec<&str> = quoted.collect();
    Some(closest(unknown, known.iter().copied()).map_or_else(
        || format!("known here: {}", known.join(", ")),
        |meant| format!("did you mean `{meant}`?"),
    ))
}

/// The name that was probably meant.
pub(crate) fn closest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (distance(unknown, name), name))
        .filter(|(distance, name)| *distance * 2 <= name.len())
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's, over characters.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, here) in one.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, &there) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(here != there);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

/// Replaces a leading `~`, `$NAME`, `${NAME}`, and `$$` by a dollar sign.
///
/// # Errors
/// The name that `lookup` does not know.
pub(crate) fn substitute(
    text: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    if text == "~" || text.starts_with("~/") {
        result.push_str(&lookup("HOME").ok_or("HOME")?);
        rest = &text[1..];
    }
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
            continue;
        }
        let braced = rest
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'));
        let (name, after) = braced.unwrap_or_else(|| {
            let end = rest
                .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .unwrap_or(rest.len());
            rest.split_at(end)
        });
        if name.is_empty() {
            result.push('$');
            continue;
        }
        result.push_str(&lookup(name).ok_or(name)?);
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

/// The same value in the type that is wanted.
fn right_type(message: &str, written: &str) -> Option<String> {
    let (found, expected) = message.split_once(", expected ")?;
    let written = written.trim();
    let bare = written.trim_matches(['"', '\'']);
    if expected.starts_with("a sequence") && found == "map" {
        let name = bare.trim_matches(['[', ']']);
        let name = if name.is_empty() || name.contains('\n') {
            "companion"
        } else {
            name
        };
        return Some(format!(
            "there may be several: write [[{name}]], with two pairs of brackets"
        ));
    }
    if expected.starts_with("a sequence") {
        let words: Vec<String> = bare
            .split_whitespace()
            .map(|word| format!("{word:?}"))
            .collect();
        return Some(format!("write a list: [{}]", words.join(", ")));
    }
    if expected.starts_with("a string") && !written.starts_with(['[', '{']) {
        return Some(format!("write it in quotes: {bare:?}"));
    }
    if found.starts_with("string") && !expected.starts_with("struct") {
        return Some(format!("write it without quotes: {bare}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_type_is_answered_with_the_right_one() {
        let command = "[[companion]]\nname = \"a\"\ncommand = [\"a\"]\n";
        for (text, expected) in [
            (
                "[companion]\nname = \"a\"\n".to_owned(),
                "write [[companion]]",
            ),
            (
                "[[companion]]\nname = \"a\"\ncommand = \"python3 x.py\"\n".to_owned(),
                "write a list: [\"python3\", \"x.py\"]",
            ),
            (format!("{command}needs = \"b\"\n"), "write a list: [\"b\"]"),
            (
                format!("{command}restart = \"true\"\n"),
                "without quotes: true",
            ),
            ("[agent]\nmode = 3\n".to_owned(), "in quotes: \"3\""),
            (
                "[[companion]]\ncommand = [\"a\"]\n".to_owned(),
                "add name = ",
            ),
        ] {
            let (message, help) = complaint_of(&text);
            assert!(help.contains(expected), "{message}: {help}");
        }
    }

    fn complaint_of(text: &str) -> (String, String) {
        let failure = Config::parse(Path::new("v.toml"), text.to_owned()).unwrap_err();
        (
            failure.to_string(),
            failure.remedy().unwrap_or_default().to_owned(),
        )
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_a_suggestion() {
        let (message, help) = complaint_of("[agent]\nmode = \"dev\"\nscritp = \"x.py\"\n");
        assert!(
            message.starts_with("v.toml:3:1: unknown field `scritp`"),
            "{message}"
        );
        assert_eq!(help, "did you mean `script`?");
        let (message, help) =
            complaint_of("[[companion]]\nname = \"a\"\ncommand = [\"a\"]\nready = { prot = 1 }\n");
        assert!(
            message.starts_with("v.toml:4:11: unknown field `prot`"),
            "{message}"
        );
        assert_eq!(help, "did you mean `port`?");
        let (message, help) = complaint_of("[[companions]]\nname = \"a\"\n");
        assert!(
            message.starts_with("v.toml:1:3: unknown field"),
            "{message}"
        );
        assert_eq!(help, "did you mean `companion`?");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        for (text, place, word) in [
            ("[agent]\nmode = 3\n", "v.toml:2:8:", "expected a string"),
            (
                "[[companion]]\nname = \"a\"\non_start = \"frsh\"\n",
                "v.toml:3:12:",
                "frsh",
            ),
            (
                "[[companion]]\nname = \"a\"\nready = { port = 70000 }\n",
                "v.toml:3:18:",
                "a port from 1 to 65535",
            ),
            ("[agent]\nverify_seconds = \"3\"\n", "v.toml:2:18:", "f64"),
            ("[agent\n", "v.toml:1:", ""),
            (
                "[agent]\nmode = \"a\"\nmode = \"b\"\n",
                "v.toml:3:1:",
                "duplicate",
            ),
            (
                "[[step]]\nname = \"a\"\ncommand = [\"x\"]\n",
                "v.toml:1:1:",
                "when",
            ),
        ] {
            let (message, _) = complaint_of(text);
            assert!(message.starts_with(place), "{text}: {message}");
            assert!(message.contains(word), "{text}: {message}");
        }
        let (_, help) = complaint_of("[[companion]]\nname = \"a\"\non_start = \"frsh\"\n");
        assert_eq!(help, "did you mean `fresh`?");
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(position("é = 1\nä = x", "é = 1\nä = ".len()), (2, 5));
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("ab", 99), (1, 3));
    }

    #[test]
    fn the_environment_is_put_in() {
        let lookup = |name: &str| match name {
            "HOME" => Some("/h".to_owned()),
            "A" => Some("1".to_owned()),
            "A_B" => Some("2".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("~", "/h"),
            ("~/x", "/h/x"),
            ("~x", "~x"),
            ("a~", "a~"),
            ("$A", "1"),
            ("${A}B", "1B"),
            ("$A_B/$A", "2/1"),
            ("$$A", "$A"),
            ("cost: $", "cost: $"),
            ("$-", "$-"),
            ("{port}", "{port}"),
        ] {
            assert_eq!(substitute(text, lookup).as_deref(), Ok(expected), "{text}");
        }
        assert_eq!(substitute("x/$NOPE/y", lookup), Err("NOPE".to_owned()));
        assert_eq!(substitute("${NOPE}", lookup), Err("NOPE".to_owned()));
    }

    #[test]
    fn what_was_probably_meant_is_close() {
        assert_eq!(
            closest("livekt", ["letta", "livekit"].into_iter()),
            Some("livekit")
        );
        assert_eq!(closest("postgres", ["letta", "livekit"].into_iter()), None);
    }
}
