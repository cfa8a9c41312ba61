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
    let mut script = String::from("out=$(mktemp)\n");
    let lines = lines(document);
    assert!(!lines.is_empty(), "{name} has no commands");
    for line in lines {
        let Line {
            number,
            command,
            status,
            prints,
        } = line;
        write!(
            script,
            "cat <<'DOCUMENT'\n{name}:{number}: {command}\nDOCUMENT\n\
             {{ {command}\n}} >\"$out\" 2>&1\n\
             status=$?\ncat \"$out\"\n\
             [ \"$status\" = {status} ] || {{ echo \"exit status $status, expected {status}\"; exit 99; }}\n"
        )
        .unwrap();
        if !prints.is_empty() {
            writeln!(
                script,
                "grep -qF -- '{prints}' \"$out\" || {{ echo 'that does not say: {prints}'; exit 99; }}"
            )
            .unwrap();
        }
    }
    script
}
