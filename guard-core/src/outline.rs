//! The plan in words: what would be done, and nothing is.

use crate::config::{OnFailure, OnStart, When};
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::part_facts::PartFacts;
use crate::plan::{AGENT, CommandLine, Companion, Demand, Job, Need, Plan, Ready};
use crate::report::Report;
use crate::settings::Settings;
use crate::start::find_script;

/// Checks the configuration and says what would be done.
///
/// # Errors
/// What is wrong with it, and where.
pub fn check_config(settings: &Settings, report: &mut Report) -> Result<Outcome, Failure> {
    let Some(config) = &settings.config else {
        report.system_is("no voice-system.toml: only the agent is managed");
        return Ok(Outcome::Valid);
    };
    let plan = Plan::resolve(config, settings, Demand::Start)?;
    find_script(settings)?;
    settings.interpreter()?;
    report.system_is(&format!("{} can be used", plan.file.display()));
    describe_plan(&plan, settings, report);
    Ok(Outcome::Valid)
}

fn describe_plan(plan: &Plan, settings: &Settings, report: &mut Report) {
    let mut facts = Vec::new();
    for part in plan.order() {
        let (name, mut words, needs) = match part {
            Need::Agent => (
                AGENT,
                vec![format!(
                    "{} {}",
                    settings.script.display(),
                    settings.mode.to_string_lossy()
                )],
                plan.needs_of(part),
            ),
            Need::Companion(index) => {
                let companion = &plan.companions[index];
                (
                    companion.name.as_str(),
                    describe_companion(companion),
                    companion.needs.clone(),
                )
            }
        };
        if !needs.is_empty() {
            let names: Vec<&str> = needs.iter().map(|&need| plan.name_of(need)).collect();
            words.push(format!("needs {}", names.join(", ")));
        }
        report.line(&format!("  {name}: {}", words.join("; ")));
        facts.push(PartFacts {
            name: name.to_owned(),
            kind: if part == Need::Agent {
                "agent"
            } else {
                "companion"
            },
            state: "planned",
            ..PartFacts::default()
        });
    }
    for step in &plan.steps {
        let when = match step.when {
            When::BeforeAgent => "before the agent",
            When::AfterAll => "after all is up",
            When::Restart => "after all is up, on a restart",
        };
        report.line(&format!(
            "  step {}: {when}: {}",
            step.name,
            shown(&step.command)
        ));
        facts.push(PartFacts {
            name: step.name.clone(),
            kind: "step",
            state: "planned",
            ..PartFacts::default()
        });
    }
    report.line(&format!("  PID files in {}", plan.runtime.display()));
    report.parts(facts);
}

fn describe_companion(companion: &Companion) -> Vec<String> {
    let mut words = Vec::new();
    match &companion.job {
        Job::Own(command) => words.push(format!(
            "{} in {}",
            shown(command),
            companion.folder.display()
        )),
        Job::Managed { check, start, .. } => {
            words.push(format!("checked by {}", shown(check)));
            if let Some(start) = start {
                words.push(format!("started by {}", shown(start)));
            }
        }
        Job::Foreign { .. } => words.push("only looked at".to_owned()),
    }
    if !matches!(companion.job, Job::Managed { .. }) {
        words.push(match &companion.ready {
            Ready::Port(Some(port)) => format!("ready when port {port} is open"),
            Ready::Port(None) => "ready when its port is open".to_owned(),
            Ready::Http { url, status } => format!("ready when {url} answers {status}"),
            Ready::Log(pattern) => format!("ready when its log has {:?}", pattern.as_str()),
            Ready::Command(command) => format!("ready when {} succeeds", shown(command)),
            Ready::Alive(span) => format!("ready when it has lived {} s", span.as_secs_f64()),
        });
    }
    if companion.ports.len() > 1 {
        let ports: Vec<String> = companion.ports.iter().map(u16::to_string).collect();
        words.push(format!("first free port of {}", ports.join(", ")));
    }
    words.push(format!("within {} s", companion.deadline.as_secs_f64()));
    words.push(
        match companion.on_start {
            OnStart::Reuse => "kept if it is ready",
            OnStart::Fresh => "always started fresh",
            OnStart::Manual => "never started from here",
        }
        .to_owned(),
    );
    if companion.on_failure == OnFailure::Warn {
        words.push("not missed if it fails".to_owned());
    }
    for folder in &companion.clean_folders {
        words.push(format!("removes {} before it starts", folder.display()));
    }
    if matches!(companion.job, Job::Own(_)) {
        words.push(format!("log {}", companion.log.display()));
    }
    words
}

fn shown(command: &CommandLine) -> String {
    command.words.join(" ")
}
