//! Removing a companion's data before a fresh start, and nothing else.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::process_details::user_name;

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
    find(path, places).map(drop)
}

/// The folder that is to be removed: where it is, and its name there.
struct Doomed {
    parent: OwnedFd,
    name: OsString,
}

/// Looks for it; `None` if there is nothing.
fn find(path: &Path, places: &Places) -> Result<Option<Doomed>, String> {
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
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err("it is the root of everything".to_owned());
    };
    let Some((parent, real)) = walk(above)? else {
        return Ok(None);
    };
    // A link further up may lead anywhere.
    refuse_precious(&real.join(name), places)?;
    let kind = match rustix::fs::statat(&parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(io::Error::from(errno).to_string()),
    };
    match kind {
        FileType::Symlink => Err("it is a symbolic link".to_owned()),
        FileType::Directory => Ok(Some(Doomed {
            parent,
            name: name.to_owned(),
        })),
        _ => Err("it is no folder".to_owned()),
    }
}

/// Opens an absolute path step by step; gives what is there, and its path without
/// links. `None` if there is nothing.
///
/// A link is followed if root or the caller has made it. Anybody else's may have
/// been put there (in `/tmp`, say) to have another folder removed.
fn walk(path: &Path) -> Result<Option<(OwnedFd, PathBuf)>, String> {
    const MOST_LINKS: usize = 40;
    const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    let words = |error: Errno| io::Error::from(error).to_string();
    let root = || rustix::fs::open("/", STEP, Mode::empty()).map_err(words);
    let names = |path: &Path| -> VecDeque<OsString> {
        path.components()
            .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
            .map(|component| component.as_os_str().to_owned())
            .collect()
    };
    let mut ahead = names(path);
    let mut at = root()?;
    let mut real = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        let next = match rustix::fs::openat(&at, &name, STEP, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(format!("{}: {}", real.join(&name).display(), words(errno))),
        };
        let stat = rustix::fs::fstat(&next).map_err(words)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let link = real.join(&name);
                let me = rustix::process::geteuid().as_raw();
                if stat.st_uid != 0 && stat.st_uid != me {
                    return Err(format!(
                        "{} is a symbolic link of user {}",
                        link.display(),
                        user_name(stat.st_uid)
                    ));
                }
                links += 1;
                if links > MOST_LINKS {
                    return Err(format!("{}: too many symbolic links", link.display()));
                }
                let target = rustix::fs::readlinkat(&next, OsStr::new(""), Vec::new())
                    .map_err(words)?
                    .into_bytes();
                let target = PathBuf::from(OsString::from_vec(target));
                if target.is_absolute() {
                    at = root()?;
                    real = PathBuf::from("/");
                }
                let mut first = names(&target);
                first.append(&mut ahead);
                ahead = first;
            }
            FileType::Directory => {
                at = next;
                if name == ".." {
                    real.pop();
                } else {
                    real.push(name);
                }
            }
            _ => return Err(format!("{} is no folder", real.join(&name).display())),
        }
    }
    Ok(Some((at, real)))
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
    // Looked at again: it may have changed since the configuration was read. From
    // the folder that was looked at, so that it does not change in between.
    let Some(Doomed { parent, name }) = find(path, places)? else {
        return Ok(false);
    };
    let folder = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string());
    match fs::remove_dir_all(folder.join(name)) {
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
