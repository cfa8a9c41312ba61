//! A companion on its way down: round by round, until a look finds nothing.

use std::time::Instant;

use super::{Context, Member, Problem, State, Then};
use crate::birth::Newborn;
use crate::failure::Failure;
use crate::scene::{Scene, proc_failure};
use crate::sighting::Strangers;
use crate::stop::{Clearing, Round, remove_tracking_files, tracked};
use crate::terminate::Farewell;

impl Member {
    pub(super) fn end_processes(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        let State::Ending {
            clearance,
            farewell,
            then,
        } = &mut self.state
        else {
            return Ok(());
        };
        if farewell.is_some() {
            return Ok(());
        }
        let then = *then;
        let reading = context
            .readings
            .since(context.now.max(self.changed))
            .map_err(|error| proc_failure(&error))?;
        let scene = Scene::of(&self.settings, reading)?;
        let mut strangers = Strangers::default();
        let tracked = tracked(&scene)?;
        let round = clearance.round(&scene, tracked, &mut strangers, &mut self.notes)?;
        let clearing = match round {
            Round::End(relatives, grace) => {
                *farewell = Some(
                    Farewell::begin(&scene.table, relatives, grace)
                        .map_err(|error| proc_failure(&error))?,
                );
                return Ok(());
            }
            Round::Empty(sighting) => {
                let settled = clearance.settle(
                    &scene,
                    tracked,
                    &sighting,
                    &mut strangers,
                    &mut self.notes,
                )?;
                let Some(clearing) = settled else {
                    // Look again.
                    self.changed = Instant::now();
                    return Ok(());
                };
                clearing
            }
            Round::Endless => Clearing::Incomplete,
        };
        if let Some(process) = self.process.take().filter(|process| process.newborn) {
            // Reaped, so that it does not stay behind as a zombie; not waited for if
            // it could not be ended.
            let newborn = Newborn {
                pid: process.pid,
                pidfd: process.pidfd,
            };
            let _ = match clearing {
                Clearing::Done(_) => newborn.kill_and_reap(),
                _ => newborn.reap_if_dead(),
            };
        }
        if !matches!(clearing, Clearing::Done(_)) {
            let why = self
                .notes
                .last_note()
                .unwrap_or("not everything of it could be stopped")
                .to_owned();
            self.fail(Problem {
                why,
                ..Problem::default()
            });
            return Ok(());
        }
        self.forget_ready();
        match then {
            Then::Start => {
                self.state = State::Waiting;
                self.give_birth(context)
            }
            Then::Fail => {
                remove_tracking_files(&scene, &mut self.notes)?;
                self.state = State::Failed;
                Ok(())
            }
            Then::Undo => {
                remove_tracking_files(&scene, &mut self.notes)?;
                self.state = State::Skipped;
                Ok(())
            }
            Then::Stop => {
                remove_tracking_files(&scene, &mut self.notes)?;
                self.took = Some(self.begun.elapsed());
                self.state = State::Stopped;
                Ok(())
            }
        }
    }
}
