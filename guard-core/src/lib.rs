//! All logic of the voice-guard programs.

pub mod agent;
#[expect(unsafe_code, reason = "fork to exec: no library runs our code there")]
pub mod birth;
pub mod check;
pub mod cli;
pub mod deadline;
pub mod detach;
pub mod env_file;
pub mod failure;
pub mod guard;
pub mod log_file;
pub mod outcome;
pub mod pid_file;
pub mod process_details;
pub mod process_table;
pub mod readiness;
pub mod report;
pub mod scene;
pub mod settings;
pub mod sighting;
pub mod signals;
pub mod start;
pub mod startup_lock;
pub mod stop;
pub mod system;
pub mod terminate;
pub mod tracking_file;
pub mod vigil;
