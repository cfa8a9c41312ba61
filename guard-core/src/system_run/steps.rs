//! The owner's own commands, at their moments.

use std::ffi::OsString;
use std::time::Instant;

use super::{Stopped, SystemRun, cannot_wait};
use crate::birth::Ending;
use crate::config::{OnFailure, When};
use crate::errand::{Errand, Surroundings};
use crate::failure::Failure;
use crate::outcome::Outcome;
use crate::part_facts::PartFacts;
use crate::plan::Step;
use crate::progress::PartState;
use crate::report::Report;
use crate::signals::Interruption;
use crate::start::LAST_LINES;
use crate::vigil::Woken;

impl SystemRun<'_> {
    /// Runs the steps of this moment, one after the other.
    pub(super) fn steps(
        &mut self,
        when: When,
        report: &mut Report,
    ) -> Result<Option<Stopped>, Failure> {
        let (steps, first): (Vec<(usize, Step)>, usize) = {
            let troop = self.troop.borrow();
            let plan = troop.plan();
            let steps = plan.steps.iter().cloned().enumerate();
            (
                steps.filter(|(_, step)| step.when == when).collect(),
                plan.companions.len() + 1,
            )
        };
        for (index, step) in steps {
            let line = first + index;
            let since = Instant::now();
            self.show(line, PartState::Starting, "");
            let ended = match self.run_step(&step, report)? {
                Ok(ended) => ended,
                Err(interruption) => {
                    self.show(line, PartState::Failed, "interrupted");
                    return Ok(Some(Stopped::Interrupted(interruption)));
                }
            };
            let mut facts = PartFacts {
                name: step.name.clone(),
                kind: "step",
                state: PartState::Ready.name(),
                seconds: Some(since.elapsed().as_secs_f64()),
                ..PartFacts::default()
            };
            let Err((why, last_lines)) = ended else {
                self.show(
                    line,
                    PartState::Ready,
                    &format!("done in {:.1} s", since.elapsed().as_secs_f64()),
                );
                self.steps.push(facts);
                continue;
            };
            self.show(line, PartState::Failed, &why);
            facts.state = PartState::Failed.name();
            facts.error = Some(why.clone());
            facts.last_lines.clone_from(&last_lines);
            self.steps.push(facts);
            let missed = step.on_failure == OnFailure::Stop;
            report.part_failed(
                &format!("the step {}", step.name),
                &why,
                &last_lines,
                None,
                missed,
            );
            if missed {
                return Ok(Some(Stopped::Failed(Outcome::Failed)));
            }
        }
        Ok(None)
    }

    /// The inner result is the step's, or what interrupted it.
    #[expect(
        clippy::type_complexity,
        reason = "three ways to end, each told apart once"
    )]
    fn run_step(
        &mut self,
        step: &Step,
        report: &mut Report,
    ) -> Result<Result<Result<(), (String, Vec<String>)>, Interruption>, Failure> {
        let surroundings = {
            let troop = self.troop.borrow();
            let mut surroundings: Surroundings = troop.surroundings().clone();
            for (name, value) in &step.env {
                let name: OsString = name.into();
                surroundings.environment.retain(|(known, _)| *known != name);
                surroundings.environment.push((name, value.into()));
            }
            // So that a page can be written for the port that was chosen.
            for member in troop.members() {
                if let Some(port) = member.port() {
                    let name = format!("VOICE_SYSTEM_PORT_{}", variable(&member.companion().name));
                    surroundings
                        .environment
                        .push((name.into(), port.to_string().into()));
                }
            }
            surroundings
        };
        let mut errand =
            match Errand::begin(&step.command, &step.folder, &surroundings, step.deadline) {
                Ok(errand) => errand,
                Err(why) => return Ok(Ok(Err((why, Vec::new())))),
            };
        loop {
            if let Some(ended) = errand.ended() {
                let why = match ended {
                    Ok(Ending::Exited(0)) => return Ok(Ok(Ok(()))),
                    Ok(ending) => ending.to_string(),
                    Err(overdue) => overdue.to_string(),
                };
                return Ok(Ok(Err((why, errand.last_lines(LAST_LINES)))));
            }
            match self.vigil.wait(&[errand.event()], errand.left()) {
                Ok(Woken::ByInterruption(interruption)) => {
                    if let Some(pid) = errand.kill() {
                        let name = &step.name;
                        report.note(format!(
                            "the step {name} goes on as PID {pid}, which this user may not end"
                        ));
                    }
                    return Ok(Err(interruption));
                }
                Ok(_) => {}
                Err(error) => {
                    errand.kill();
                    return Err(cannot_wait(&error));
                }
            }
        }
    }
}

/// A companion's name as a part of a variable's name.
fn variable(name: &str) -> String {
    name.chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}
