//! The manual pages: synopsis and options from the definitions, and what a
//! `--help` is too short for.

use std::io;

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use guard_core::startup_lock::PROGRAMS;

/// What a page says beyond its program's `--help`.
struct Page {
    description: &'static [&'static str],
    exit_status: &'static [(&'static str, &'static str)],
    /// Environment variables that are no settings.
    environment: &'static [(&'static str, &'static str)],
    /// A sentence, and the command that does it.
    examples: &'static [(&'static str, &'static str)],
}

const USAGE: (&str, &str) = ("2", "wrong usage; nothing was done");
const SIGNALLED: (&str, &str) = (
    "128+N",
    "interrupted by signal N (INT, TERM or HUP), as a shell shows it",
);

const CHECK: Page = Page {
    description: &[
        "It looks for agents, for workers of a dead agent that still answer calls, and for \
         starts in progress, whoever started them. A PID file or startup lock that names nobody \
         is removed, unless it only looks.",
        "If the PID file proves that an agent runs, nothing more is looked at, and the answer \
         costs the same however many processes run. With --dry-run, --nagios or --metrics it \
         always looks at every process.",
    ],
    exit_status: &[
        ("0", "safe to start: no agent runs"),
        (
            "1",
            "not safe: an agent runs, a start is in progress, or it cannot be told",
        ),
        USAGE,
        (
            "0, 1, 2, 3",
            "with --nagios: one agent runs; something is not as it should be (it is being \
             started, it is not in the PID file, a stale file lies around); none or several run, \
             or workers of a dead one answer calls; it cannot be told",
        ),
    ],
    environment: &[(
        "JOURNAL_STREAM",
        "set by systemd: if standard output leads to the journal, --nagios puts the priority in \
         front of its line",
    )],
    examples: &[
        (
            "Before a command that must not meet an agent:",
            "check-agent-running || exit 1",
        ),
        (
            "For a program that reads it:",
            "check-agent-running --dry-run --json",
        ),
        (
            "For Nagios and for node_exporter's textfile collector, at once:",
            "check-agent-running --nagios --metrics /var/lib/voice-guard/voice_guard.prom",
        ),
    ],
};

const START: Page = Page {
    description: &[
        "The agent is started as PYTHON SCRIPT MODE in the project folder, detached from the \
         terminal, its output in the log. The program returns when the agent has said that it is \
         ready, has died, or when the verification window is over. At most one agent of a family \
         runs on a machine, however many starts there are at once; workers that a dead agent of \
         these programs left behind are ended first.",
        "With --foreground it stays with the agent, as systemd and other supervisors need it: the \
         agent's log is copied to standard output, TERM, INT and HUP stop the agent with all that \
         was born of it, and the agent's end is the program's end.",
    ],
    exit_status: &[
        ("0", "the agent was started and lives"),
        (
            "1",
            "it was refused, since one runs or is being started, or it died; or it could not be \
             started",
        ),
        USAGE,
        (
            "195",
            "with --foreground: refused, since another agent runs; trying again would not help",
        ),
        (
            "any",
            "with --foreground: the agent's own; it dies by the signal that the agent died by",
        ),
        SIGNALLED,
    ],
    environment: START_ENVIRONMENT,
    examples: &[
        (
            "In the project folder, without any setting:",
            "start-voice-agent-safe",
        ),
        (
            "From anywhere, an agent that takes its time:",
            "start-voice-agent-safe --project-dir ~/my-agent --verify-seconds 20",
        ),
        (
            "As the main process of a container or a unit:",
            "start-voice-agent-safe --foreground",
        ),
    ],
};

const STOP: Page = Page {
    description: &[
        "Every agent of the family is ended with all that was born of it: TERM first, KILL after \
         the grace period. It looks again until a look finds nothing. What has a terminal of its \
         own, or lives in a container, is named and left alone.",
    ],
    exit_status: &[
        ("0", "nothing is left running, also if nothing ran"),
        ("1", "something could not be stopped, and what"),
        USAGE,
        SIGNALLED,
    ],
    environment: &[],
    examples: &[
        ("Stop it:", "stop-voice-agent-safe"),
        (
            "An agent that needs a minute to say good-bye:",
            "stop-voice-agent-safe --grace-seconds 60",
        ),
    ],
};

const START_SYSTEM: Page = Page {
    description: &[
        "No agent: one is started. One: it is kept. One in another mode, or several: they are \
         replaced by one. With a voice-system.toml, everything around the agent is brought up as \
         well, each part as soon as what it needs is ready.",
    ],
    exit_status: &[
        ("0", "everything runs, also if it already ran"),
        ("1", "a part failed; with --status: something is not well"),
        USAGE,
        SIGNALLED,
    ],
    environment: SYSTEM,
    examples: &[
        (
            "See what it would do, then do it:",
            "start-voice-system --check-config && start-voice-system",
        ),
        ("For a monitor:", "start-voice-system --status --json"),
    ],
};

const RESTART_SYSTEM: Page = Page {
    description: &[
        "The agent and the parts that are always started fresh are stopped, everything is \
         brought up, and at the end exactly one agent runs. How many duplicates there were is \
         said.",
    ],
    exit_status: &[
        ("0", "restarted, exactly one agent runs"),
        ("1", "a part failed"),
        USAGE,
        SIGNALLED,
    ],
    environment: SYSTEM,
    examples: &[("Restart everything:", "restart-voice-system")],
};

const STOP_SYSTEM: Page = Page {
    description: &[
        "The agent is stopped as by stop-voice-agent-safe(1), then every part that these programs \
         started, in reverse order.",
    ],
    exit_status: &[
        ("0", "nothing of it is left running, also if nothing ran"),
        ("1", "something could not be stopped, and what"),
        USAGE,
        SIGNALLED,
    ],
    environment: SYSTEM,
    examples: &[
        ("Stop what was started from here:", "stop-voice-system"),
        (
            "Stop also what was found running:",
            "stop-voice-system --all",
        ),
    ],
};

const START_ENVIRONMENT: &[(&str, &str)] = &[
    (
        "NOTIFY_SOCKET",
        "set by systemd: with --foreground, it is told when the agent is ready",
    ),
    (
        "VIRTUAL_ENV, CONDA_PREFIX, PATH",
        "where the Python interpreter is looked for, if the project has none of its own",
    ),
    (
        "all others",
        "are handed to the agent; what the env file says goes over them",
    ),
];

const SYSTEM: &[(&str, &str)] = &[
    (
        "VIRTUAL_ENV, CONDA_PREFIX, PATH",
        "where programs and the Python interpreter are looked for",
    ),
    (
        "XDG_RUNTIME_DIR",
        "where the other parts' PID files and logs are; without it /run/user/UID or, without that, /tmp/voice-guard-UID",
    ),
    (
        "all others",
        "are handed to the agent and the other parts; voice-system.toml may name them",
    ),
];

const FILES: &[(&str, &str)] = &[
    (
        "/tmp/letta_voice_agent.pid",
        "the agent's process number, locked by the agent as long as it lives",
    ),
    (
        "/tmp/letta_voice_agent.lock",
        "the starter's process number; there only during a start",
    ),
    (
        "/tmp/.letta_voice_agent.guard",
        "empty; its lock is what these programs exclude each other by. It is never removed",
    ),
    (
        "/tmp/.voice-system-PROJECT.guard",
        "the same for the whole system of a project that has a voice-system.toml",
    ),
    (
        "/tmp/voice_agent.log",
        "what the agent says; emptied at each start, the ends of the five logs before it are \
         kept as .1 to .5",
    ),
    (".env", "in the project folder: the agent's environment"),
    (
        "voice-system.toml",
        "in the project folder, in $XDG_CONFIG_HOME/voice-guard or in /etc/voice-guard: settings, \
         and what else belongs to the voice system",
    ),
];

fn page_of(program: &str) -> Option<&'static Page> {
    Some(match program {
        "check-agent-running" => &CHECK,
        "start-voice-agent-safe" => &START,
        "stop-voice-agent-safe" => &STOP,
        "start-voice-system" => &START_SYSTEM,
        "restart-voice-system" => &RESTART_SYSTEM,
        "stop-voice-system" => &STOP_SYSTEM,
        _ => return None,
    })
}

/// The page of one program.
///
/// # Errors
/// When it has none.
pub(crate) fn of(program: Command, date: &str) -> io::Result<Vec<u8>> {
    let name = program.get_name().to_owned();
    let page = page_of(&name).ok_or_else(|| io::Error::other(format!("no page of {name}")))?;
    let version = program.get_version().unwrap_or_default().to_owned();
    let settings = environment_of(&program);
    let manual = Man::new(program)
        .title(name.to_uppercase())
        .section("1")
        .date(date)
        .source(format!("voice-guard {version}"))
        .manual("Voice guard");
    let mut text = Vec::new();
    manual.render_title(&mut text)?;
    manual.render_name_section(&mut text)?;
    manual.render_synopsis_section(&mut text)?;
    description(page.description).to_writer(&mut text)?;
    manual.render_options_section(&mut text)?;
    list("EXIT STATUS", page.exit_status).to_writer(&mut text)?;
    environment(&settings, page).to_writer(&mut text)?;
    let mut files = list("FILES", FILES);
    files.control("PP", []);
    files.text([roman(
        "The names are those of the agent letta_voice_agent.py. A script of another name is another \
         family, with files of its own name.",
    )]);
    files.to_writer(&mut text)?;
    examples(page.examples).to_writer(&mut text)?;
    see_also(&name).to_writer(&mut text)?;
    Ok(text)
}

fn description(paragraphs: &[&str]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["DESCRIPTION"]);
    for (number, paragraph) in paragraphs.iter().enumerate() {
        if number > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*paragraph)]);
    }
    roff
}

fn list(title: &str, entries: &[(&str, &str)]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (term, meaning) in entries {
        entry(&mut roff, term, roman(*meaning));
    }
    roff
}

fn entry(roff: &mut Roff, term: &str, meaning: Inline) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([meaning]);
}

/// Each setting's variable and option, as the option's help names them.
fn environment_of(program: &Command) -> Vec<(String, String)> {
    let variable = |argument: &Arg| {
        let help = argument.get_help()?.to_string();
        let (_, rest) = help.split_once("[env: ")?;
        let (name, _) = rest.split_once(']')?;
        Some((name.to_owned(), argument.get_long()?.to_owned()))
    };
    program.get_arguments().filter_map(variable).collect()
}

fn environment(settings: &[(String, String)], page: &Page) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, option) in settings {
        entry(&mut roff, name, roman(format!("the same as --{option}")));
    }
    let colours = ("NO_COLOR", "no colours, even on a terminal");
    for (name, meaning) in page.environment.iter().chain([&colours]) {
        entry(&mut roff, name, roman(*meaning));
    }
    roff.control("PP", []);
    roff.text([roman(
        "An option wins over the environment, the environment over voice-system.toml. A variable \
         that is empty counts as not set.",
    )]);
    roff
}

fn examples(examples: &[(&str, &str)]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    for (number, (sentence, command)) in examples.iter().enumerate() {
        if number > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*sentence)]);
        roff.control("PP", []);
        // As it stands: neither filled nor stretched.
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        roff.text([bold(*command)]);
        roff.control("fi", []);
        roff.control("RE", []);
    }
    roff
}

fn see_also(own: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for other in PROGRAMS.into_iter().filter(|other| *other != own) {
        line.extend([bold(other), roman("(1), ")]);
    }
    line.push(italic("/usr/share/doc/voice-guard"));
    roff.text(line);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_a_command_line_that_is_understood() {
        for program in crate::programs() {
            let name = program.get_name().to_owned();
            let page = page_of(&name).unwrap_or_else(|| unreachable!("no page of {name}"));
            for (_, example) in page.examples {
                let commands = example.split(" && ").flat_map(|part| part.split(" || "));
                for command in commands.filter(|command| *command != "exit 1") {
                    assert!(command.starts_with(&name), "{command}");
                    let words = command.split(' ');
                    let understood = program.clone().try_get_matches_from(words);
                    assert!(understood.is_ok(), "{command}: {understood:?}");
                }
            }
        }
    }
}
