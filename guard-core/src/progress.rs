//! How the parts come up, as it happens: a live line each on a terminal, a
//! plain line per event otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::{Format, print};

/// How a part stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartState {
    /// For what it needs.
    Waiting,
    /// Is it ready as it is?
    Checking,
    /// On its way up.
    Starting,
    /// Up.
    Ready,
    /// On its way down.
    Stopping,
    /// Down, on purpose.
    Stopped,
    /// It did not come up, or did not stay up.
    Failed,
    /// Not begun.
    Skipped,
    /// Born and tracked, but not waited for.
    Left,
}

impl PartState {
    /// Its name in JSON and for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Checking => "checking",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Left => "still starting",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Ready => "\x1b[32m",
            Self::Failed => "\x1b[1;31m",
            Self::Starting | Self::Stopping | Self::Left => "\x1b[33m",
            _ => "",
        }
    }

    /// Between its name and more about it.
    fn before(self, detail: &str) -> &'static str {
        match self {
            _ if detail.is_empty() => "",
            Self::Failed => ": ",
            _ => " ",
        }
    }

    fn is_moving(self) -> bool {
        matches!(
            self,
            Self::Waiting | Self::Checking | Self::Starting | Self::Stopping
        )
    }
}

/// How often a live line counts on.
const TICK: Duration = Duration::from_millis(100);

/// Shows the parts.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    begun: Instant,
    ticked: Instant,
    coloured: bool,
    width: usize,
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Style {
    Live(MultiProgress),
    Plain,
    Silent,
}

#[derive(Debug)]
struct Line {
    name: String,
    state: PartState,
    detail: String,
    since: Instant,
    shown: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// For these parts, as the program's format and its standard output want.
    #[must_use]
    pub fn new(format: Format, coloured: bool, names: &[&str]) -> Self {
        let now = Instant::now();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let style = match format {
            Format::Text if std::io::stdout().is_terminal() && !dumb => {
                // Drawn by our own steps: no thread may run when we fork.
                Style::Live(MultiProgress::with_draw_target(
                    ProgressDrawTarget::stdout_with_hz(20),
                ))
            }
            Format::Text => Style::Plain,
            _ => Style::Silent,
        };
        Self {
            style,
            begun: now,
            ticked: now,
            coloured,
            width: names.iter().map(|name| name.len()).max().unwrap_or(0),
            lines: names
                .iter()
                .map(|name| Line {
                    name: (*name).to_owned(),
                    state: PartState::Waiting,
                    detail: String::new(),
                    since: now,
                    shown: String::new(),
                    bar: None,
                })
                .collect(),
        }
    }

    /// The live lines, if there are any, for others who print meanwhile.
    #[must_use]
    pub fn live(&self) -> Option<MultiProgress> {
        match &self.style {
            Style::Live(lines) => Some(lines.clone()),
            _ => None,
        }
    }

    /// The part `index` is in this state now.
    pub fn show(&mut self, index: usize, state: PartState, detail: &str) {
        let Some(line) = self.lines.get_mut(index) else {
            return;
        };
        if line.state == state && line.detail == detail && !line.shown.is_empty() {
            return;
        }
        if line.state != state {
            line.since = Instant::now();
        }
        let changed = line.state != state || line.shown.is_empty();
        line.state = state;
        detail.clone_into(&mut line.detail);
        match &self.style {
            Style::Live(_) => self.draw(index),
            Style::Plain if changed => {
                let line = &mut self.lines[index];
                line.shown = format!(
                    "[{:6.2} s] {}: {}{}{}",
                    self.begun.elapsed().as_secs_f64(),
                    line.name,
                    state.name(),
                    state.before(detail),
                    detail
                );
                // A start that finds everything as it was says so at its end.
                if !matches!(state, PartState::Waiting | PartState::Checking) {
                    print(&line.shown);
                }
            }
            _ => {}
        }
    }

    fn draw(&mut self, index: usize) {
        let Style::Live(lines) = &self.style else {
            return;
        };
        let line = &mut self.lines[index];
        let mut text = format!("  {:width$}  ", line.name, width = self.width);
        let colour = if self.coloured {
            line.state.colour()
        } else {
            ""
        };
        text.push_str(colour);
        text.push_str(line.state.name());
        if !colour.is_empty() {
            text.push_str("\x1b[0m");
        }
        text.push_str(line.state.before(&line.detail));
        text.push_str(&line.detail);
        if line.state.is_moving() {
            use std::fmt::Write as _;
            let _ = write!(text, " {:.1} s", line.since.elapsed().as_secs_f64());
        }
        if text == line.shown {
            return;
        }
        let bar = line.bar.get_or_insert_with(|| {
            let bar = lines.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        });
        bar.set_message(text.clone());
        bar.tick();
        line.shown = text;
    }

    /// When a live line counts on.
    #[must_use]
    pub fn due_in(&self) -> Option<Duration> {
        let moving = matches!(self.style, Style::Live(_))
            && self.lines.iter().any(|line| line.state.is_moving());
        moving.then(|| TICK.saturating_sub(self.ticked.elapsed()))
    }

    /// Lets the live lines count on.
    pub fn refresh(&mut self) {
        if !matches!(self.style, Style::Live(_)) || self.ticked.elapsed() < TICK {
            return;
        }
        self.ticked = Instant::now();
        for index in 0..self.lines.len() {
            if !self.lines[index].shown.is_empty() {
                self.draw(index);
            }
        }
    }

    /// The last word: live lines stay as they are.
    pub fn finish(&mut self) {
        for line in &mut self.lines {
            if let Some(bar) = line.bar.take() {
                bar.abandon();
            }
        }
        self.style = Style::Silent;
    }
}
