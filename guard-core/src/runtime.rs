//! Where the companions' PID files, locks and default logs are: a folder that
//! only its user can enter. And the guard of the system, which is everybody's.
//!
//! A login session, cron and `sudo` may each have another such folder. So nothing
//! depends on it but speed: a companion is known by its mark and its program, in
//! whichever folder its PID file is, and the guard is the same for all.

use std::env;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// `$XDG_RUNTIME_DIR/voice-guard`, if that folder is the caller's own, which is `/run/user/UID/voice-guard` also where
/// the variable is not set, as in cron, or `/tmp/voice-guard-UID`; and in it a
/// folder for each project.
#[must_use]
pub fn folder_of(project_dir: &Path) -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let is_ours = |metadata: fs::Metadata| metadata.is_dir() && metadata.uid() == user;
    let session = || {
        let folder = PathBuf::from(format!("/run/user/{user}"));
        let metadata = fs::symlink_metadata(&folder);
        metadata.is_ok_and(is_ours).then_some(folder)
    };
    // `sudo -E` hands on the user's: what root makes there, he could not use.
    env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute() && fs::metadata(folder).is_ok_and(is_ours))
        .or_else(session)
        .map_or_else(
            || PathBuf::from(format!("/tmp/voice-guard-{user}")),
            |folder| folder.join("voice-guard"),
        )
        .join(key_of(project_dir))
}

/// The file whose lock keeps the programs of one system apart, whichever user
/// calls them and whatever runtime folder he has. Like the agent's guard it is
/// never removed, and is missed by `rm` of what the scripts have left in `/tmp`.
#[must_use]
pub fn guard_file(project_dir: &Path) -> PathBuf {
    PathBuf::from(format!("/tmp/.voice-system-{}.guard", key_of(project_dir)))
}

/// A project's name among others: its folder's name, for people, and a number
/// of the whole path, since many are called `project`.
#[must_use]
pub fn key_of(project_dir: &Path) -> String {
    let name: String = project_dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || "-_".contains(letter) {
                letter
            } else {
                '_'
            }
        })
        .take(40)
        .collect();
    // FNV-1a, 64 bits: the same in every build of this program.
    let hash = project_dir
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{name}-{hash:016x}")
}

/// Makes the folder, or makes sure that it is ours alone.
///
/// # Errors
/// When it cannot be made, or is a link, another user's, or open to others.
pub fn prepare(folder: &Path) -> Result<(), Failure> {
    for level in folder.parent().into_iter().chain([folder]) {
        let made = fs::DirBuilder::new().mode(0o700).create(level);
        match made {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Failure::new(format!(
                    "cannot make the folder {}: {error}",
                    level.display()
                ))
                .help("make its parent writable, or set XDG_RUNTIME_DIR"));
            }
        }
        let metadata = fs::symlink_metadata(level).map_err(|error| {
            Failure::new(format!(
                "cannot use the folder {}: {error}",
                level.display()
            ))
        })?;
        let me = rustix::process::geteuid().as_raw();
        let why = if !metadata.is_dir() {
            "it is no folder"
        } else if metadata.uid() != me {
            "it is another user's"
        } else if metadata.mode() & 0o077 != 0 {
            "others may enter it"
        } else {
            continue;
        };
        return Err(Failure::new(format!(
            "will not use {} for the companions' PID files: {why}",
            level.display()
        ))
        .help("look at it and remove it (or chmod 700), or set XDG_RUNTIME_DIR"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_private_folder_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("voice-guard/p-1");
        prepare(&good).unwrap();
        prepare(&good).unwrap();
        let mode = fs::metadata(&good).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        let open = folder.path().join("open/p");
        fs::DirBuilder::new()
            .mode(0o755)
            .create(folder.path().join("open"))
            .unwrap();
        assert!(prepare(&open).is_err());
        std::os::unix::fs::symlink(
            folder.path().join("voice-guard"),
            folder.path().join("link"),
        )
        .unwrap();
        assert!(prepare(&folder.path().join("link/p")).is_err());
    }

    #[test]
    fn projects_of_one_name_are_told_apart() {
        assert_ne!(
            key_of(Path::new("/a/project")),
            key_of(Path::new("/b/project"))
        );
        assert!(key_of(Path::new("/a/my project")).starts_with("my_project-"));
    }
}
