//! What the two lines of shell that stand where a script was (`scripts/migrate`
//! writes them) tell the program that they become.
//!
//! It is told in a variable of our own that nobody inherits: not the agent, not a
//! companion. A project folder that was handed on in a setting would reach the
//! agent's tools, and one that calls another project's script would act on ours.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::startup_lock::PROGRAMS;

/// The path by which the *wrapper* was called, which no plain shell can hand down
/// as the program's own name.
pub(crate) const CALLED_AS_VARIABLE: &str = "VOICE_GUARD_CALLED_AS";

/// A wrapper is much shorter.
const LONGEST_WRAPPER: u64 = 16_384;

/// The path by which the wrapper was called that has become this program, if one has.
pub(crate) fn called_as() -> Option<PathBuf> {
    let path = env::var_os(CALLED_AS_VARIABLE).filter(|path| !path.is_empty())?;
    let path = PathBuf::from(path);
    Some(match path.parent() {
        // Without a folder it is `bash x.sh`, in the current one.
        Some(folder) if folder.as_os_str().is_empty() => Path::new(".").join(path),
        _ => path,
    })
}

/// The folder of the wrapper that is called `named`, whatever links lead to it.
///
/// # Errors
/// When `named` is no wrapper. A shell other than bash that sources a file gives
/// its own name, or that of *its* script, for the file's.
pub(crate) fn folder_of(named: &Path) -> Result<PathBuf, Failure> {
    let real = fs::canonicalize(named);
    if let Ok(real) = &real
        && is_wrapper(real)
        && let Some(folder) = real.parent()
    {
        return Ok(folder.to_owned());
    }
    if let Some(folder) = folder_of_script(named) {
        return Ok(folder);
    }
    Err(Failure::new(format!(
        "cannot tell the project folder: this was called by a wrapper that goes by the name of {}, \
         which is none",
        named.display()
    ))
    .help(
        "run the wrapper (./x.sh, sh x.sh) or source it with bash; another shell that sources it \
         does not tell where it is. Or set VOICE_GUARD_PROJECT_DIR",
    ))
}

fn is_wrapper(path: &Path) -> bool {
    // A FIFO would be waited for.
    if !path.is_file() {
        return false;
    }
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| Read::take(file, LONGEST_WRAPPER).read_to_end(&mut text))
        .is_ok()
        && memchr::memmem::find(&text, CALLED_AS_VARIABLE.as_bytes()).is_some()
}

/// The folder in which `named`, or what it leads to, has the name of a script of
/// ours: somebody may have put a link or the original in the wrapper's place just now.
fn folder_of_script(named: &Path) -> Option<PathBuf> {
    const MOST_LINKS: usize = 40;
    let mut path = named.to_owned();
    for _ in 0..MOST_LINKS {
        let folder = path.parent()?;
        let name = path.file_name()?.to_str().unwrap_or_default();
        let is_ours = |program: &&str| name == format!("{}.sh", program.replace('-', "_"));
        if PROGRAMS.iter().any(is_ours) && fs::symlink_metadata(&path).is_ok() {
            return fs::canonicalize(folder).ok();
        }
        path = folder.join(fs::read_link(&path).ok()?);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const WRAPPER: &str = "#!/bin/sh\nexport VOICE_GUARD_CALLED_AS=$0; exec x\n";

    #[test]
    fn a_wrapper_is_in_its_own_folder_whatever_leads_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let project = root.join("project");
        fs::create_dir(&project).unwrap();
        symlink("project/renamed", root.join("link")).unwrap();
        fs::write(project.join("renamed"), WRAPPER).unwrap();
        assert_eq!(folder_of(&project.join("renamed")).unwrap(), project);
        assert_eq!(folder_of(&root.join("link")).unwrap(), project);
    }

    #[test]
    fn a_shell_that_gives_its_own_name_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let menu = folder.path().join("menu.sh");
        fs::write(&menu, "#!/bin/sh\n. /b/start_voice_system.sh\n").unwrap();
        for named in [&menu, Path::new("./dash"), Path::new("/"), folder.path()] {
            let failure = folder_of(named).unwrap_err().to_string();
            assert!(
                failure.contains("cannot tell the project folder"),
                "{failure}"
            );
        }
    }

    #[test]
    fn what_has_just_taken_the_wrappers_place_is_in_the_same_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let project = root.join("project");
        fs::create_dir(&project).unwrap();
        let script = project.join("start_voice_system.sh");
        symlink(&script, root.join("link")).unwrap();
        // Back to the original, and on to a link.
        fs::write(&script, "#!/bin/bash\necho original\n").unwrap();
        assert_eq!(folder_of(&script).unwrap(), project);
        assert_eq!(folder_of(&root.join("link")).unwrap(), project);
        fs::remove_file(&script).unwrap();
        symlink("/nowhere/start-voice-system", &script).unwrap();
        assert_eq!(folder_of(&script).unwrap(), project);
        assert_eq!(folder_of(&root.join("link")).unwrap(), project);
    }
}
