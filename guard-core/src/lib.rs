//! All logic of the voice-guard programs. The map, from the top down; imports
//! go down only:
//!
//! - [`command_line`] of each program; [`cli`] runs one verb and turns its
//!   outcome into words and an exit code; [`settings`] is the one home of names
//!   and defaults (`wrapper` of what a wrapper tells); [`report`] of every
//!   sentence; [`monitor`] of those that monitors read; [`outcome`] of exit
//!   codes; [`failure`] says what went wrong.
//! - The verbs: [`check`], [`start`], [`stop`], [`system`] (start and restart
//!   of the whole), in the [`scene`] that they share, out of the agent that
//!   called them by [`detach`].
//! - [`foreground`] is the start that stays: [`attendant`] copies the log, passes
//!   signals on and reaps; [`notify`] tells the supervisor.
//! - The three files that programs know each other by: [`guard`], [`pid_file`],
//!   [`startup_lock`], on [`tracking_file`].
//! - The rest of the voice system: [`voice_system`] (the verbs over all parts, each
//!   a `system_run` under a `system_guard`), [`survey`] (how it is), [`outline`]
//!   (what would be done), [`troop`] of [`member`]s (the companions on their way up
//!   and down, in one loop), [`plan`] out of [`config`] (`voice-system.toml`),
//!   [`probe`], [`http`] and [`host_lookup`] (is it ready?), [`errand`] (a command that is waited
//!   for), [`port_owner`], [`cleaning`], [`runtime`] (where their PID files are),
//!   [`progress`], [`part_facts`].
//! - What happens: [`birth`] (fork to exec), [`readiness`] and [`log_file`],
//!   [`terminate`], and waiting: [`vigil`], [`signals`], [`deadline`].
//! - Who is who: [`sighting`] of the [`agent`]s and companions ([`own_program`]) in the [`process_table`], out of one [`reading`] for all companions;
//!   [`process_details`] for people; [`env_file`] for the agent.

pub mod agent;
pub mod attendant;
#[expect(unsafe_code, reason = "fork to exec: no library runs our code there")]
pub mod birth;
pub mod check;
pub mod cleaning;
pub mod cli;
pub mod command_line;
pub mod config;
pub mod deadline;
pub mod detach;
pub mod env_file;
pub mod errand;
pub mod failure;
pub mod foreground;
pub mod guard;
mod hand_over;
pub mod host_lookup;
pub mod http;
pub mod log_file;
pub mod member;
pub mod monitor;
pub mod notify;
pub mod outcome;
pub mod outline;
pub mod own_program;
pub mod part_facts;
pub mod pid_file;
pub mod plan;
pub mod port_owner;
pub mod probe;
pub mod process_details;
pub mod process_table;
pub mod progress;
pub mod readiness;
pub mod reading;
pub mod report;
pub mod runtime;
pub mod scene;
pub mod settings;
pub mod sighting;
pub mod signals;
mod snapshot;
pub mod start;
pub mod startup_lock;
pub mod stop;
pub mod supervision;
pub mod survey;
pub mod system;
mod system_guard;
mod system_run;
pub mod terminate;
pub mod tracking_file;
pub mod troop;
pub mod vigil;
pub mod voice_system;
mod wrapper;
