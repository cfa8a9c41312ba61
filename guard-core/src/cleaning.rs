//! Removing a companion's data before a fresh start, and nothing else.

use std::env;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where nothing may be removed, however deep.
const SYSTEM: [&str; 11] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
    "/lost+found",
];

/// Where folders of others are: nothing may be removed that is right below.
const SHARED: [&str; 8] = [
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/run",
    "/run/user",
    "/srv",
    "/var",
];

/// What must never be removed, nor anything that holds it.
#[derive(Debug, Clone)]
pub struct Places(Vec<PathBuf>);

impl Places {
    /// The home, and what the caller works with: the project folder, the
    /// configuration, the parts' programs, folders and files.
    #[must_use]
    pub fn of(needed: impl IntoIterator<Item = PathBuf>) -> Self {
        let home = env::var_os("HOME").map(PathBuf::from);
        let mut places: Vec<PathBuf> = needed
            .into_iter()
            .chain(home)
            .filter(|place| place.is_absolute())
            .collect();
        let resolved: Vec<PathBuf> = places
            .iter()
            .filter_map(|place| fs::canonicalize(place).ok())
            .collect();
        places.extend(resolved);
        Self(places)
    }
}

/// May this configured folder be removed? It need not exist.
///
/// # Errors
/// Why not.
pub fn may_remove(path: &Path, places: &Places) -> Result<(), String> {
    if !path.is_absolute() {
        return Err("it is no absolute path".to_owned());
    }
    if path
        .components()
        .any(|component| matches!(component, Component::ParentDir))
    {
        return Err("it has .. in it".to_owned());
    }
    refuse_precious(path, places)?;
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if metadata.is_symlink() {
        return Err("it is a symbolic link".to_owned());
    }
    if !metadata.is_dir() {
        return Err("it is no folder".to_owned());
    }
    // A link further up may lead anywhere.
    let real = fs::canonicalize(path).map_err(|error| error.to_string())?;
    refuse_precious(&real, places)
}

fn refuse_precious(path: &Path, places: &Places) -> Result<(), String> {
    let depth = path
        .components()
        .filter(|component| matches!(component, Component::Normal(_)))
        .count();
    if depth == 0 {
        return Err("it is the root of everything".to_owned());
    }
    let is_system = SYSTEM.iter().any(|folder| path.starts_with(folder));
    let is_shared = SHARED
        .iter()
        .any(|folder| path.parent() == Some(Path::new(folder)));
    if depth == 1 || is_system || is_shared {
        return Err("it is a folder of the system".to_owned());
    }
    if let Some(place) = places.0.iter().find(|place| place.starts_with(path)) {
        return Err(if place == path {
            "it is the project folder, the home folder or one that a part works in".to_owned()
        } else {
            format!("{} is inside it", place.display())
        });
    }
    Ok(())
}

/// Removes it with all that is in it; links in it are removed, not followed.
/// `false` if there was nothing.
///
/// # Errors
/// Why not, in words.
pub fn remove(path: &Path, places: &Places) -> Result<bool, String> {
    // Looked at again: it may have changed since the configuration was read.
    may_remove(path, places)?;
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn precious_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let project = root.join("a/project");
        fs::create_dir_all(project.join("data")).unwrap();
        symlink(root.join("a"), root.join("link")).unwrap();
        symlink(project.join("data"), root.join("to-data")).unwrap();
        fs::write(root.join("file"), "x").unwrap();
        let places = Places::of([project.clone()]);
        for bad in [
            PathBuf::from("/"),
            "/etc".into(),
            "/tmp".into(),
            "/etc/livekit/data".into(),
            "/usr/local/share/livekit".into(),
            "/home/somebody".into(),
            "/var/lib".into(),
            "data".into(),
            project.clone(),
            root.join("a"),
            root.clone(),
            root.join("a/project/data/.."),
            root.join("to-data"),
            root.join("file"),
            root.join("link/project"),
        ] {
            assert!(may_remove(&bad, &places).is_err(), "{}", bad.display());
        }
        assert_eq!(may_remove(&project.join("data"), &places), Ok(()));
        assert_eq!(may_remove(&root.join("absent"), &places), Ok(()));
    }

    #[test]
    fn links_inside_are_removed_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let places = Places::of([root.join("project")]);
        fs::create_dir_all(root.join("data/deep")).unwrap();
        fs::create_dir(root.join("precious")).unwrap();
        fs::write(root.join("precious/file"), "x").unwrap();
        symlink(root.join("precious"), root.join("data/deep/link")).unwrap();
        assert_eq!(remove(&root.join("data"), &places), Ok(true));
        assert_eq!(remove(&root.join("data"), &places), Ok(false));
        assert_eq!(fs::read(root.join("precious/file")).unwrap(), b"x");
    }
}
