//! The stand-ins for the old bash scripts (see `old-style/README.md`).

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Program, World, binary};

const fn source(program: Program) -> &'static str {
    match program {
        Program::Check => include_str!("../old-style/check_agent_running.sh"),
        Program::Start => include_str!("../old-style/start_voice_agent_safe.sh"),
        Program::Stop => include_str!("../old-style/stop_voice_agent_safe.sh"),
        Program::System => include_str!("../old-style/start_voice_system.sh"),
        Program::Restart => include_str!("../old-style/restart_voice_system.sh"),
        Program::StopSystem => include_str!("../old-style/stop_voice_system.sh"),
    }
}

impl World {
    /// Puts stand-ins for the given old scripts into the project folder, and
    /// links to the programs for the others: a migration that has come so far.
    pub fn migrate_all_but(&self, old: &[Program]) {
        for program in Program::ALL {
            let path = self.link(program);
            let _ = std::fs::remove_file(&path);
            if old.contains(&program) {
                install(program, &path);
            } else {
                symlink(binary(program), &path).expect("a link to a program");
            }
        }
    }

    /// An old script that has only old ones beside it.
    #[must_use]
    pub fn old_style(&self, program: Program) -> Command {
        self.command(self.old_style_script(program))
    }

    /// Where [`World::old_style`] finds it.
    #[must_use]
    pub fn old_style_script(&self, program: Program) -> PathBuf {
        let folder = self.path("old");
        if std::fs::create_dir(&folder).is_ok() {
            for each in Program::ALL {
                install(each, &folder.join(each.script()));
            }
        }
        folder.join(program.script())
    }
}

fn install(program: Program, path: &Path) {
    std::fs::write(path, source(program)).expect("an old-style script");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .expect("an old-style script can be run");
}
