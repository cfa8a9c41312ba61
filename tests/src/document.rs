//! The commands of a document, as it stands there: each line of a ` ```sh `
//! block, with what its comment says of it, `# exit 1, prints: some words`.

use std::fmt::Write as _;

/// A command with what its comment says of it: `# exit 1, prints: some words`.
struct Line {
    number: usize,
    command: String,
    status: i32,
    prints: String,
}

fn lines(document: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut inside = false;
    for (index, line) in document.lines().enumerate() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside && !line.is_empty() => {
                let comment = line
                    .split_once(" # ")
                    .map_or("", |(_, comment)| comment.trim_start());
                let status = comment.strip_prefix("exit ").map_or(0, |rest| {
                    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
                    digits.parse().expect("a status after `# exit `")
                });
                let prints = comment
                    .split_once("prints: ")
                    .map_or("", |(_, words)| words);
                lines.push(Line {
                    number: index + 1,
                    command: line.to_owned(),
                    status,
                    prints: prints.to_owned(),
                });
            }
            _ => {}
        }
    }
    lines
}

/// All commands of a document as one bash script: a `cd` holds for what follows.
#[must_use]
pub fn script(name: &str, document: &str) -> String {
    written(name, document, |_| String::new())
}

/// The same, and after each command there are as many agents as there must be: one
/// after a start, also one that is refused; none after a stop; no more than before
/// after everything else, and as many after what only looks or removes files.
#[must_use]
pub fn script_that_counts_agents(name: &str, document: &str) -> String {
    const COUNT: &str = "agents() { pgrep -c -f 'letta_voice_agent\\.py (dev|start|connect)$'; }\n";
    let checked = |line: &Line| {
        let expected = match line.effect() {
            Effect::One => "-eq 1",
            Effect::None => "-eq 0",
            Effect::Same => "-eq \"$before\"",
            Effect::NotMore => "-le \"$before\"",
            Effect::Unchecked => return "before=$(agents)\n".to_owned(),
        };
        format!(
            "now=$(agents)\n[ \"$now\" {expected} ] || {{ echo \"$now agents, $before before, must be {}\"; exit 99; }}\n\
             before=$now\n",
            expected.replace('"', "")
        )
    };
    format!(
        "{COUNT}before=$(agents)\n{}",
        written(name, document, checked)
    )
}

/// What a command does to the number of agents.
enum Effect {
    One,
    None,
    Same,
    NotMore,
    Unchecked,
}

impl Line {
    fn effect(&self) -> Effect {
        let command = self.command.split(" # ").next().unwrap_or_default();
        let calls = |name: &str| {
            !command.starts_with("echo ")
                && self.status != 126
                && command.contains(&format!("/{name}.sh"))
        };
        if calls("start_voice_agent_safe")
            || calls("start_voice_system")
            || calls("restart_voice_system")
        {
            Effect::One
        } else if calls("stop_voice_agent_safe") || calls("stop_voice_system") {
            Effect::None
        } else if calls("check_agent_running") || command.starts_with("rm -f ") {
            Effect::Same
        } else if command.contains("letta_voice_agent.py dev") {
            // Somebody's own start, or the document's count.
            Effect::Unchecked
        } else {
            Effect::NotMore
        }
    }
}

fn written(name: &str, document: &str, after: impl Fn(&Line) -> String) -> String {
    let mut script = String::from("out=$(mktemp)\n");
    let lines = lines(document);
    assert!(!lines.is_empty(), "{name} has no commands");
    for line in lines {
        let Line {
            number,
            command,
            status,
            prints,
        } = &line;
        write!(
            script,
            "cat <<'DOCUMENT'\n{name}:{number}: {command}\nDOCUMENT\n\
             {{ {command}\n}} >\"$out\" 2>&1\n\
             status=$?\ncat \"$out\"\n\
             [ \"$status\" = {status} ] || {{ echo \"exit status $status, expected {status}\"; exit 99; }}\n"
        )
        .unwrap();
        if !prints.is_empty() {
            // A number is not the beginning of a longer one.
            let whole = if prints.bytes().all(|byte| byte.is_ascii_digit()) {
                "x"
            } else if prints.ends_with(|last: char| last.is_ascii_digit()) {
                "w"
            } else {
                ""
            };
            writeln!(
                script,
                "grep -qF{whole} -- '{prints}' \"$out\" || {{ echo 'that does not say: {prints}'; exit 99; }}"
            )
            .unwrap();
        }
        script.push_str(&after(&line));
    }
    script
}
