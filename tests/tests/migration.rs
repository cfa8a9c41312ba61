//! `scripts/migrate`: one script at a time, and back.
//!
//! The old scripts here are stand-ins (see `old-style/` and `migration/`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this crate is test code throughout: a panic is its verdict"
)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use scenarios::{Program, World, binary, left_out, text};

#[path = "migration/callers.rs"]
mod callers;
#[path = "migration/documents.rs"]
mod documents;
#[path = "migration/import.rs"]
mod import;
#[path = "migration/interrupted.rs"]
mod interrupted;
#[path = "migration/mixes.rs"]
mod mixes;
#[path = "migration/wrapper.rs"]
mod wrapper;

// ---- What all of them use.

fn clone() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the clone").to_owned()
}

fn folder_of_programs() -> PathBuf {
    binary(Program::Check).parent().unwrap().to_owned()
}

/// A world whose project folder has the old scripts, as they were left
/// two years ago, readable for the group only.
fn old_folder() -> World {
    old_folder_named("project")
}

fn old_folder_named(name: impl AsRef<OsStr>) -> World {
    let mut world = World::with_project(name);
    // The programs are to find the folder by how they are called.
    world.unset("VOICE_GUARD_PROJECT_DIR");
    world.migrate_all_but(&Program::ALL);
    for program in Program::ALL {
        age(&world.link(program));
    }
    world
}

fn age(script: &Path) {
    fs::set_permissions(script, fs::Permissions::from_mode(0o750)).unwrap();
    let file = fs::File::options().append(true).open(script).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_733_056_496, 123_456_789);
    file.set_modified(then).unwrap();
}

/// `scripts/migrate VERB DIR ...` for the world's project folder.
fn migrate<A: AsRef<OsStr>>(world: &World, verb: &str, arguments: &[A]) -> Command {
    let mut command = world.command(clone().join("scripts/migrate"));
    command
        .current_dir("/")
        .arg(verb)
        .arg(world.project())
        .args(arguments)
        .arg("--programs")
        .arg(folder_of_programs());
    command
}

/// Runs it and expects an exit code; gives what it said.
#[track_caller]
fn expect<A: AsRef<OsStr>>(world: &World, verb: &str, arguments: &[A], code: i32) -> String {
    expect_of(world, migrate(world, verb, arguments), code)
}

#[track_caller]
fn expect_of(world: &World, command: Command, code: i32) -> String {
    let shown = format!("{command:?}");
    let output = world.run_command(command);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{shown}\n{said}");
    said
}

/// For [`expect`] with nothing more.
const NOTHING: &[&str] = &[];

/// Everything about a file that going back has to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Original {
    content: Vec<u8>,
    mode: u32,
    modified: (i64, i64),
    owner: (u32, u32),
}

impl Original {
    fn read(path: &Path) -> Option<Self> {
        let metadata = path.symlink_metadata().ok()?;
        Some(Self {
            content: if metadata.is_symlink() {
                fs::read_link(path)
                    .ok()?
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(path).ok()?
            },
            mode: metadata.mode(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            owner: (metadata.uid(), metadata.gid()),
        })
    }

    fn all(world: &World) -> Vec<Self> {
        Program::ALL
            .map(|program| Self::read(&world.link(program)).expect("an old script"))
            .to_vec()
    }
}

fn kept(world: &World, program: Program) -> PathBuf {
    world.project().join(format!("{}.orig", program.script()))
}

fn is_link(world: &World, program: Program) -> bool {
    fs::read_link(world.link(program))
        .is_ok_and(|target| target == folder_of_programs().join(program.name()))
}

fn is_wrapper(world: &World, program: Program) -> bool {
    let path = world.link(program);
    let ours = format!("/{}' \"$@\"\n", program.name());
    path.symlink_metadata().is_ok_and(|metadata| {
        metadata.is_file() && fs::read_to_string(&path).is_ok_and(|text| text.ends_with(&ours))
    })
}

/// The names in a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

// ---- Switching and going back.

#[test]
fn one_script_is_switched_and_the_others_stay() {
    let world = old_folder();
    let before = Original::all(&world);
    let said = expect(&world, "switch", &["check_agent_running"], 0);
    assert!(said.contains("check_agent_running.sh"), "{said}");
    assert!(is_link(&world, Program::Check));
    assert_eq!(
        Original::read(&kept(&world, Program::Check)).unwrap(),
        before[0]
    );
    for (program, before) in Program::ALL.iter().zip(&before).skip(1) {
        assert_eq!(&Original::read(&world.link(*program)).unwrap(), before);
    }
}

#[test]
fn going_back_restores_every_script_byte_for_byte_with_mode_and_time() {
    for sort in [NOTHING, &["--wrapper"]] {
        let world = old_folder();
        let before = Original::all(&world);
        let files = names(world.project());
        expect(&world, "switch", &[&["--all"], sort].concat(), 0);
        for program in Program::ALL {
            assert_ne!(is_link(&world, program), is_wrapper(&world, program));
            assert_eq!(is_wrapper(&world, program), !sort.is_empty());
        }
        expect(&world, "back", &["--all"], 0);
        assert_eq!(Original::all(&world), before);
        assert_eq!(names(world.project()), files);
    }
}

#[test]
fn a_name_may_be_given_as_script_or_program() {
    let world = old_folder();
    for name in [
        "start_voice_system",
        "start_voice_system.sh",
        "start-voice-system",
    ] {
        expect(&world, "switch", &[name], 0);
        assert!(is_link(&world, Program::System));
        expect(&world, "back", &[name], 0);
        assert!(!is_link(&world, Program::System));
    }
}

#[test]
fn switching_and_going_back_again_changes_nothing() {
    let world = old_folder();
    let inodes = || {
        names(world.project())
            .into_iter()
            .map(|name| {
                let metadata = world.project().join(&name).symlink_metadata().unwrap();
                (name, metadata.ino())
            })
            .collect::<Vec<_>>()
    };
    expect(&world, "switch", &["--all"], 0);
    let switched = inodes();
    let said = expect(&world, "switch", &["--all"], 0);
    assert_eq!(
        said.matches("already").count(),
        Program::ALL.len(),
        "{said}"
    );
    assert_eq!(inodes(), switched);
    expect(&world, "back", &["--all"], 0);
    let back = inodes();
    let said = expect(&world, "back", &["--all"], 0);
    assert_eq!(
        said.matches("already").count(),
        Program::ALL.len(),
        "{said}"
    );
    assert_eq!(inodes(), back);
}

#[test]
fn a_dry_run_says_what_would_be_done_and_changes_nothing() {
    let world = old_folder();
    let before = Original::all(&world);
    let files = names(world.project());
    let said = expect(&world, "switch", &["--all", "--dry-run"], 0);
    assert_eq!(
        said.matches("would be a link").count(),
        Program::ALL.len(),
        "{said}"
    );
    assert_eq!(Original::all(&world), before);
    assert_eq!(names(world.project()), files);

    expect(&world, "switch", &["start_voice_system"], 0);
    let files = names(world.project());
    let said = expect(&world, "back", &["--all", "--dry-run"], 0);
    assert_eq!(said.matches("would be the original").count(), 1, "{said}");
    assert!(is_link(&world, Program::System));
    assert_eq!(names(world.project()), files);
}

#[test]
fn a_wrapper_stays_a_wrapper_when_switched_again() {
    let world = old_folder();
    expect(&world, "switch", &["start_voice_system", "--wrapper"], 0);
    expect(&world, "switch", &["--all"], 0);
    assert!(is_wrapper(&world, Program::System));
    assert!(is_link(&world, Program::Restart));
    // A link becomes one when it is asked for, and the original is still kept.
    expect(&world, "switch", &["--all", "--wrapper"], 0);
    assert!(is_wrapper(&world, Program::Restart));
    assert!(kept(&world, Program::Restart).exists());
}

#[test]
fn a_link_to_programs_elsewhere_is_led_to_these() {
    let world = old_folder();
    let other = world.path("another build");
    fs::create_dir(&other).unwrap();
    for program in Program::ALL {
        fs::hard_link(binary(program), other.join(program.name()))
            .or_else(|_| fs::copy(binary(program), other.join(program.name())).map(|_| ()))
            .unwrap();
    }
    let mut there = migrate(&world, "switch", &["--all"]);
    // The last one counts.
    there.arg("--programs").arg(&other);
    expect_of(&world, there, 0);
    assert_eq!(
        fs::read_link(world.link(Program::Stop)).unwrap(),
        other.join(Program::Stop.name())
    );
    expect(&world, "switch", &["--all"], 0);
    assert!(Program::ALL.iter().all(|program| is_link(&world, *program)));
    expect(&world, "back", &["--all"], 0);
}

#[test]
fn the_original_that_a_link_leads_to_is_kept_as_that_link() {
    let world = old_folder();
    let elsewhere = world.path("scripts of mine");
    fs::create_dir(&elsewhere).unwrap();
    let script = world.link(Program::Check);
    fs::rename(&script, elsewhere.join("check.sh")).unwrap();
    symlink("../scripts of mine/check.sh", &script).unwrap();
    let before = Original::read(&script).unwrap();
    expect(&world, "switch", &["check_agent_running"], 0);
    assert!(is_link(&world, Program::Check));
    expect(&world, "back", &["check_agent_running"], 0);
    assert_eq!(Original::read(&script).unwrap(), before);
}

#[test]
fn a_folder_of_any_name_is_migrated() {
    for name in [
        "-my agent's \"new\" $folder; *",
        "line\nbreak and at the end\n",
    ] {
        let world = old_folder_named(name);
        let before = Original::all(&world);
        expect(&world, "switch", &["--all", "--wrapper"], 0);
        world.expect(Program::Start, 0);
        let agent = world.assert_one_agent();
        assert_eq!(
            fs::read_link(format!("/proc/{agent}/cwd")).unwrap(),
            world.project().canonicalize().unwrap()
        );
        world.expect(Program::Stop, 0);
        expect(&world, "back", &["--all"], 0);
        assert_eq!(Original::all(&world), before);
    }
    // And named relatively.
    let world = old_folder_named("-relative");
    let mut command = world.command(clone().join("scripts/migrate"));
    command
        .current_dir(world.path(""))
        .arg("switch")
        .arg("--programs")
        .arg(folder_of_programs())
        .args(["--all", "--", "-relative"]);
    expect_of(&world, command, 0);
    assert!(is_link(&world, Program::Check));
}

/// `sudo scripts/migrate`, in somebody's folder, with root's umask.
#[test]
fn what_root_puts_there_belongs_to_whom_the_script_belongs_to() {
    if !nix::unistd::geteuid().is_root() {
        return left_out("migration by root for somebody", "this is not root");
    }
    let world = old_folder();
    let owner = Some(4321);
    for program in Program::ALL {
        let path = world.link(program);
        chown(&path, owner, owner).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    chown(world.project(), owner, owner).unwrap();
    fs::remove_file(world.link(Program::Restart)).unwrap();
    let umask = |verb, arguments: &[&str]| {
        let command = migrate(&world, verb, arguments);
        let mut shell = world.command("/bin/sh");
        shell
            .args(["-c", "umask 077; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args());
        expect_of(&world, shell, 0);
    };
    umask(
        "switch",
        &["--wrapper", "start_voice_system", "restart_voice_system"],
    );
    for (program, mode) in [(Program::System, 0o700), (Program::Restart, 0o755)] {
        let wrapper = world.link(program).metadata().unwrap();
        assert_eq!((wrapper.uid(), wrapper.gid()), (4321, 4321), "{program:?}");
        assert_eq!(wrapper.mode() & 0o7777, mode, "{program:?}");
    }
    umask("import", &[]);
    let file = world
        .project()
        .join("voice-system.toml")
        .metadata()
        .unwrap();
    assert_eq!((file.uid(), file.gid()), (4321, 4321));
    assert_eq!(file.mode() & 0o7777, 0o600);
    umask("back", &["start_voice_system"]);
    assert_eq!(world.link(Program::System).metadata().unwrap().uid(), 4321);
}

#[test]
fn at_no_moment_is_a_script_missing_or_half_written() {
    let world = old_folder();
    let whole = Original::read(&world.link(Program::Start)).unwrap().content;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let path = world.link(Program::Start);
            let mut seen = [0_u32; 3];
            loop {
                let last = done.load(Ordering::Relaxed);
                // One look: a second one may see the next thing already.
                if fs::read_link(&path).is_ok_and(|target| target.ends_with(Program::Start.name()))
                {
                    seen[0] += 1;
                } else {
                    match fs::read(&path) {
                        Ok(content) if content == whole => seen[1] += 1,
                        Ok(content)
                            if content.starts_with(b"#!/bin/sh\n")
                                && content.ends_with(b"\"$@\"\n") =>
                        {
                            seen[2] += 1;
                        }
                        // The link came back between the two looks.
                        Ok(content) if content.starts_with(b"\x7fELF") => {}
                        other => panic!("seen in its place: {other:?}"),
                    }
                }
                if last {
                    break seen;
                }
            }
        });
        for _ in 0..2 {
            expect(&world, "switch", &["start_voice_agent_safe"], 0);
            expect(
                &world,
                "switch",
                &["start_voice_agent_safe", "--wrapper"],
                0,
            );
            expect(&world, "back", &["start_voice_agent_safe"], 0);
        }
        done.store(true, Ordering::Relaxed);
        let seen = watcher.join().unwrap();
        assert!(seen.iter().all(|times| *times > 0), "{seen:?}");
    });
}

// ---- What is odd is refused, with a reason, and nothing is changed.

/// A folder in which one thing is odd: nothing may change, for no name.
#[track_caller]
fn refused(verb: &str, spoil: impl FnOnce(&World), reason: &str) {
    let world = old_folder();
    if verb == "back" {
        expect(&world, "switch", &["--all"], 0);
    }
    spoil(&world);
    let snapshot = || {
        names(world.project())
            .into_iter()
            .map(|name| {
                let metadata = world.project().join(&name).symlink_metadata().unwrap();
                (name, metadata.ino(), metadata.mode(), metadata.mtime_nsec())
            })
            .collect::<Vec<_>>()
    };
    let before = snapshot();
    for arguments in [NOTHING, &["--dry-run"]] {
        let said = expect(&world, verb, &[&["--all"], arguments].concat(), 1);
        assert!(said.contains(reason), "{reason} is not said:\n{said}");
        assert_eq!(snapshot(), before, "{said}");
    }
}

#[test]
fn an_existing_kept_file_is_never_overwritten() {
    refused(
        "switch",
        |world| fs::write(kept(world, Program::Stop), "#!/bin/sh\n# an older one\n").unwrap(),
        "stop_voice_agent_safe.sh.orig is there already",
    );
    refused(
        "switch",
        |world| fs::create_dir(kept(world, Program::Stop)).unwrap(),
        "a folder",
    );
    refused(
        "switch",
        |world| symlink("nowhere", kept(world, Program::Stop)).unwrap(),
        "a symlink to nowhere, which is not there",
    );
}

#[test]
fn what_is_no_original_is_not_switched() {
    type Replacement = fn(&Path);
    let replace = |with: Replacement| {
        move |world: &World| {
            let path = world.link(Program::Stop);
            fs::remove_file(&path).unwrap();
            with(&path);
        }
    };
    let cases: [(Replacement, &str); 7] = [
        (|path| fs::create_dir(path).unwrap(), "a folder"),
        (
            |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            "no file but a fifo",
        ),
        (|path| symlink("nowhere", path).unwrap(), "not there"),
        (|path| symlink("/", path).unwrap(), "a symlink to /"),
        (|path| fs::write(path, "").unwrap(), "an empty file"),
        (
            |path| {
                fs::copy(binary(Program::Stop), path).unwrap();
            },
            "a binary file",
        ),
        (
            |path| fs::write(path, "#!/usr/bin/env python3\npass\n").unwrap(),
            "another interpreter",
        ),
    ];
    for (with, reason) in cases {
        refused("switch", replace(with), reason);
    }
}

/// It may hold settings that are nowhere else.
#[test]
fn a_wrapper_of_the_owners_is_an_original_and_is_kept() {
    let world = old_folder();
    let program = folder_of_programs().join(Program::Start.name());
    let program = program.display();
    let ours = {
        expect(
            &world,
            "switch",
            &["start_voice_agent_safe", "--wrapper"],
            0,
        );
        fs::read_to_string(world.link(Program::Start)).unwrap()
    };
    let (head, last) = ours.split_at(ours.find("export").unwrap());
    for (number, script) in [
        format!("#!/bin/sh\nexport VOICE_GUARD_ENV_FILE=/srv/keys.env\nexec '{program}' \"$@\"\n"),
        format!("#!/bin/bash\nexec {program} \"$@\"\n"),
        format!("#!/bin/sh\nVOICE_GUARD_ENV_FILE=/srv/keys.env exec '{program}' \"$@\"\n"),
        format!("{head}export VOICE_GUARD_ENV_FILE=/srv/keys.env\n{last}"),
        format!("{head}export VOICE_GUARD_ENV_FILE=/srv/keys.env; {last}"),
        format!("{ours}# mine\n"),
        ours.replace(" exec ", " VOICE_GUARD_ENV_FILE=/srv/keys.env exec "),
        ours.replace(" exec '", " exec nice '"),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(world.link(Program::Start), &script).unwrap();
        let _ = fs::remove_file(kept(&world, Program::Start));
        age(&world.link(Program::Start));
        let before = Original::read(&world.link(Program::Start));
        let sort: &[&str] = if number % 2 == 0 {
            NOTHING
        } else {
            &["--wrapper"]
        };
        let name = &["start_voice_agent_safe"];
        expect(&world, "switch", &[name, sort].concat(), 0);
        let kept = Original::read(&kept(&world, Program::Start));
        assert_eq!(kept, before, "{script}");
        expect(&world, "back", name, 0);
        assert_eq!(Original::read(&world.link(Program::Start)), before);
    }
    // Ours is ours, also for programs elsewhere.
    let elsewhere = ours.replace(
        &program.to_string(),
        "/else'\\''where/start-voice-agent-safe",
    );
    fs::write(world.link(Program::Start), elsewhere).unwrap();
    let said = expect(&world, "status", NOTHING, 1);
    assert!(said.contains("\\'where/start-voice-agent-safe"), "{said}");
    expect(&world, "switch", &["start_voice_agent_safe"], 0);
    assert_eq!(
        fs::read_to_string(world.link(Program::Start)).unwrap(),
        ours
    );
    assert!(!kept(&world, Program::Start).exists());
}

#[test]
fn what_stands_where_ours_was_is_not_replaced_by_the_original() {
    refused(
        "back",
        |world| {
            let path = world.link(Program::Stop);
            fs::remove_file(&path).unwrap();
            fs::write(path, "#!/bin/sh\n# written meanwhile\n").unwrap();
        },
        "decide which one to keep",
    );
    refused(
        "back",
        |world| {
            let path = world.link(Program::Stop);
            fs::remove_file(&path).unwrap();
            fs::create_dir(path).unwrap();
        },
        "stop_voice_agent_safe.sh is a folder",
    );
    refused(
        "back",
        |world| fs::remove_file(kept(world, Program::Stop)).unwrap(),
        "there is no stop_voice_agent_safe.sh.orig",
    );
    refused(
        "back",
        |world| {
            let path = kept(world, Program::Stop);
            fs::remove_file(&path).unwrap();
            symlink("nowhere", path).unwrap();
        },
        "stop_voice_agent_safe.sh.orig is no original",
    );
}

#[test]
fn a_program_that_does_not_run_here_takes_no_scripts_place() {
    let world = old_folder();
    let before = Original::all(&world);
    let other = world.path("for another machine");
    fs::create_dir(&other).unwrap();
    for program in Program::ALL {
        let path = other.join(program.name());
        fs::write(&path, "\x7fELF").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (folder, reason) in [
        (other, "does not run here"),
        (world.scratch(), "Build them"),
        (world.path("nowhere"), "there is no folder"),
    ] {
        let mut command = migrate(&world, "switch", &["--all"]);
        command.arg("--programs").arg(folder);
        let said = expect_of(&world, command, 1);
        assert!(said.contains(reason), "{said}");
        assert_eq!(Original::all(&world), before);
    }
}

#[test]
fn programs_are_found_in_path() {
    let world = old_folder();
    let mut path = folder_of_programs().into_os_string();
    path.push(":/usr/bin:/bin");
    // A clone that was not built.
    let mut copy = world.command("cp");
    copy.arg("-R")
        .arg(clone().join("scripts"))
        .arg(world.scratch());
    expect_of(&world, copy, 0);
    let mut command = world.command(world.scratch().join("scripts/migrate"));
    command
        .env("PATH", path)
        .args(["switch", ".", "--all"])
        .current_dir(world.project());
    expect_of(&world, command, 0);
    assert!(is_link(&world, Program::Check));
}

#[test]
fn a_missing_script_is_put_there_when_it_is_named() {
    let world = old_folder();
    fs::remove_file(world.link(Program::Restart)).unwrap();
    let said = expect(&world, "switch", &["--all"], 0);
    assert!(said.contains("nothing to replace"), "{said}");
    assert!(!world.link(Program::Restart).exists());
    // So that --all goes back to what there was.
    expect(&world, "back", &["--all"], 0);
    expect(&world, "switch", &["restart_voice_system"], 0);
    assert!(is_link(&world, Program::Restart));

    for program in Program::ALL {
        fs::remove_file(world.link(program)).unwrap();
    }
    let said = expect(&world, "switch", &["--all"], 1);
    assert!(said.contains("scripts/link"), "{said}");
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    let world = old_folder();
    for wrong in [
        &["switch"] as &[&str],
        &["switch", "/"],
        &["switch", "/", "letta_voice_agent"],
        &["switch", "/", "--all", "check_agent_running"],
        &["switch", "/", "--all", "--no-such-option"],
        &["switch", "/", "--all", "--programs"],
        &["status", "/", "check_agent_running"],
        &["forward", "/"],
        &[],
    ] {
        let mut command = world.command(clone().join("scripts/migrate"));
        command.args(wrong);
        let said = expect_of(&world, command, 2);
        assert!(said.contains("usage:"), "{said}");
    }
    let mut command = world.command(clone().join("scripts/migrate"));
    command.arg("--help");
    let said = expect_of(&world, command, 0);
    for word in [
        "status",
        "switch",
        "back",
        "import",
        "--dry-run",
        "--callers",
        "--wrapper",
    ] {
        assert!(said.contains(word), "{word} is not explained:\n{said}");
    }
}

// ---- Status.

#[track_caller]
fn status_line(said: &str, program: Program) -> &str {
    said.lines()
        .find(|line| line.starts_with(program.script()))
        .unwrap_or_else(|| panic!("{} is not shown:\n{said}", program.script()))
}

#[test]
fn status_tells_the_original_ours_and_something_else_apart() {
    let world = old_folder();
    let said = expect(&world, "status", NOTHING, 0);
    for program in Program::ALL {
        assert!(status_line(&said, program).contains("original"), "{said}");
    }
    expect(&world, "switch", &["check_agent_running"], 0);
    expect(&world, "switch", &["start_voice_system", "--wrapper"], 0);
    let said = expect(&world, "status", NOTHING, 0);
    assert!(
        status_line(&said, Program::Check).contains("ours (symlink"),
        "{said}"
    );
    assert!(
        status_line(&said, Program::System).contains("ours (wrapper"),
        "{said}"
    );
    assert!(
        status_line(&said, Program::System).contains("start_voice_system.sh.orig"),
        "{said}"
    );
    assert!(
        status_line(&said, Program::Stop).contains(" original"),
        "{said}"
    );

    fs::remove_file(world.link(Program::Restart)).unwrap();
    fs::remove_file(world.link(Program::Stop)).unwrap();
    fs::create_dir(world.link(Program::Stop)).unwrap();
    let said = expect(&world, "status", NOTHING, 1);
    assert!(
        status_line(&said, Program::Restart).contains("not there"),
        "{said}"
    );
    assert!(
        status_line(&said, Program::Stop).contains("something else: a folder"),
        "{said}"
    );

    // The clone has moved.
    fs::remove_file(world.link(Program::Check)).unwrap();
    symlink("/nowhere/check-agent-running", world.link(Program::Check)).unwrap();
    let said = expect(&world, "status", NOTHING, 1);
    assert!(
        status_line(&said, Program::Check).contains("NOT THERE"),
        "{said}"
    );
}

/// Scripts that name their files and their agent as the original ones do.
fn files_world(pid_file: &str, lock_file: &str, agent: &str) -> World {
    let mut world = old_folder();
    for name in ["PID_FILE", "LOCK_FILE", "LOG_FILE", "AGENT_SCRIPT"] {
        world.unset(format!("VOICE_GUARD_{name}"));
    }
    let start = format!(
        "#!/bin/bash\nRUN_DIR=/tmp\nPID_FILE=\"{pid_file}\"\nLOCK={lock_file}\n\
         nohup python {agent} dev > /tmp/voice_agent.log 2>&1 &\necho $! > $PID_FILE\n"
    );
    fs::write(world.link(Program::Start), start).unwrap();
    world
}

#[test]
fn status_sees_whether_both_sides_use_the_same_files() {
    let world = files_world(
        "${RUN_DIR}/letta_voice_agent.pid",
        "$RUN_DIR/letta_voice_agent.lock",
        "letta_voice_agent.py",
    );
    // The stand-ins of the others have them from the environment.
    let said = expect(&world, "status", NOTHING, 0);
    assert!(said.contains("What could be read agrees."), "{said}");
    for program in [Program::Check, Program::Stop] {
        let files = "/tmp/letta_voice_agent.pid /tmp/letta_voice_agent.lock";
        fs::write(world.link(program), format!("#!/bin/bash\ncat {files}\n")).unwrap();
    }
    let said = expect(&world, "status", NOTHING, 0);
    assert!(said.contains("The two sides agree."), "{said}");

    for (pid, lock, agent, told) in [
        (
            "$RUN_DIR/agent.pid",
            "/tmp/letta_voice_agent.lock",
            "letta_voice_agent.py",
            "VOICE_GUARD_PID_FILE=/tmp/agent.pid",
        ),
        (
            "/tmp/letta_voice_agent.pid",
            "/run/agent.lock",
            "letta_voice_agent.py",
            "VOICE_GUARD_LOCK_FILE=/run/agent.lock",
        ),
        (
            "/tmp/letta_voice_agent.pid",
            "/tmp/letta_voice_agent.lock",
            "letta_voice_agent_optimized.py",
            "VOICE_GUARD_AGENT_SCRIPT=letta_voice_agent_optimized.py",
        ),
        (
            "/tmp/letta_voice_agent.pid",
            "/tmp/letta_voice_agent.lock",
            "my_agent.py",
            "neither sees the other's",
        ),
    ] {
        let mut world = files_world(pid, lock, agent);
        let said = expect(&world, "status", NOTHING, 1);
        assert!(said.contains("DO NOT AGREE"), "{said}");
        assert!(said.contains(told), "{told} is not said:\n{said}");
        // The switch says it as well, though by then it is only kept.
        let said = expect(&world, "switch", &["start_voice_agent_safe"], 0);
        assert!(said.contains(told), "{told} is not said:\n{said}");
        expect(&world, "back", &["start_voice_agent_safe"], 0);
        // Doing as told makes them agree.
        if let Some((name, value)) = told.split_once('=') {
            world.set(name, value);
            expect(&world, "status", NOTHING, 0);
        }
    }
}

#[test]
fn status_reads_what_the_programs_use_from_the_configuration() {
    let world = files_world(
        "/tmp/agent.pid",
        "/tmp/letta_voice_agent.lock",
        "letta_voice_agent.py",
    );
    expect(&world, "status", NOTHING, 1);
    fs::write(
        world.project().join("voice-system.toml"),
        "[[companion]]\npid_file = \"/not/this\"\n[agent]  # ours\npid_file = \"/tmp/agent.pid\"\n",
    )
    .unwrap();
    expect(&world, "status", NOTHING, 0);
}

/// Never by half a word: what a script does not say cannot agree.
#[test]
fn status_says_what_it_could_not_read() {
    let status = |script: &str, configuration: &str| {
        let world = files_world("", "", "");
        for program in Program::ALL {
            let _ = fs::remove_file(world.link(program));
        }
        fs::write(world.link(Program::Start), script).unwrap();
        fs::write(world.project().join("voice-system.toml"), configuration).unwrap();
        let output = world.run_command(migrate(&world, "status", NOTHING));
        assert!(output.stderr.is_empty(), "{}", text(&output));
        (text(&output), output.status.code() == Some(0))
    };
    let agent = "python letta_voice_agent.py dev > /tmp/voice_agent.log 2>&1 &";
    for (script, told) in [
        (
            format!("PID_FILE=\"$(run_dir)/agent.pid\"\nLOCK=/tmp/letta_voice_agent.lock\n{agent}"),
            "its PID file cannot be read out of it (the output of a command (run_dir))",
        ),
        (
            format!(
                "echo $! > \"$(run_dir)/agent.pid\"\nLOCK=/tmp/letta_voice_agent.lock\n{agent}"
            ),
            "What could be read agrees; no original says: PID file.",
        ),
        (
            format!("echo $! > \"$DIR\"/agent.pid\n{agent}"),
            "What could be read agrees; no original says: PID file, startup lock.",
        ),
        (
            format!("PID_FILE=$NOT_SET/agent.pid\n{agent}"),
            "its PID file cannot be read out of it (NOT_SET is not set here)",
        ),
        (
            "echo > /tmp/voice_agent.log".to_owned(),
            "What the originals use cannot be read out of them.",
        ),
    ] {
        let (said, agrees) = status(&format!("#!/bin/bash\n{script}\n"), "");
        assert!(agrees && said.contains(told), "{told}\n{said}");
        assert!(!said.contains("The two sides agree"), "{said}");
        assert!(!said.contains("/agent.pid"), "{said}");
    }

    // The last line counts, on either side.
    let script =
        format!("#!/bin/bash\n{agent}\nLOCK=/tmp/letta_voice_agent.lock\necho $! > /tmp/agent.pid");
    let (said, agrees) = status(&script, "[agent]\npid_file = \"/tmp/agent.pid\"");
    assert!(agrees && said.contains("The two sides agree."), "{said}");
    let (said, agrees) = status(&script, "");
    assert!(
        !agrees && said.contains("VOICE_GUARD_PID_FILE=/tmp/agent.pid"),
        "{said}"
    );

    let (said, agrees) = status(&script, "[agent]\npid_file = \"${NOT_SET}/a\"\n");
    assert!(
        !agrees && said.contains("The programs use: ${NOT_SET}/a,"),
        "{said}"
    );
    assert!(said.contains("the programs stop at such a line"), "{said}");
}

#[test]
fn status_looks_where_the_callers_project_folder_is() {
    let mut world = files_world(
        "/tmp/agent.pid",
        "/tmp/letta_voice_agent.lock",
        "letta_voice_agent.py",
    );
    let other = world.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(
        other.join("voice-system.toml"),
        "[agent]\npid_file = \"/tmp/agent.pid\"\nlog = \"logs/x.log\"\n",
    )
    .unwrap();
    expect(&world, "status", NOTHING, 1);
    world.set("VOICE_GUARD_PROJECT_DIR", &other);
    world.set("VOICE_GUARD_LOG_FILE", "/tmp/voice_agent.log");
    let said = expect(&world, "status", NOTHING, 0);
    assert!(
        said.contains(&format!("project in {}", other.display())),
        "{said}"
    );
    world.unset("VOICE_GUARD_LOG_FILE");
    let said = expect(&world, "status", NOTHING, 1);
    let log = other.join("logs/x.log").display().to_string();
    assert!(said.contains(&log), "{said}");
    world.set("VOICE_GUARD_PROJECT_DIR", world.path("nowhere"));
    let said = expect(&world, "status", NOTHING, 1);
    assert!(said.contains("which is no folder"), "{said}");
}

#[test]
fn status_runs_nothing_of_the_scripts() {
    let world = old_folder();
    let trap = world.path("was run");
    fs::write(
        world.link(Program::Start),
        format!(
            "#!/bin/bash\nPID_FILE=$(touch '{0}')/x.pid\nLOCK_FILE=`touch '{0}'`/x.lock\n\
             A=${{B:-$(touch '{0}')}}\nC=$((D[$(touch '{0}')]))\ntouch '{0}'\n",
            trap.display()
        ),
    )
    .unwrap();
    let _ = world.run_command(migrate(&world, "status", NOTHING));
    let _ = world.run_command(migrate(&world, "import", NOTHING));
    expect(&world, "switch", &["--all"], 0);
    assert!(!trap.exists());
}

/// The kinds of file that a test leaves in a folder by mistake.
#[test]
fn nothing_but_scripts_and_kept_originals_is_left_in_the_folder() {
    let world = old_folder();
    let before = names(world.project());
    expect(&world, "switch", &["--all"], 0);
    expect(&world, "switch", &["--all", "--wrapper"], 0);
    let mut after: Vec<_> = before.clone();
    after.extend(Program::ALL.map(|program| format!("{}.orig", program.script())));
    after.sort();
    assert_eq!(names(world.project()), after);
    assert!(after.iter().all(|name| {
        let kind = world
            .project()
            .join(name)
            .symlink_metadata()
            .unwrap()
            .file_type();
        !kind.is_fifo() && !kind.is_socket()
    }));
}
