//! Companions that are no stand-ins: `PostgreSQL` of Debian's package, reused and
//! started through its own commands; Python's web server; and the reference
//! file of the Letta stack, which must stay a configuration that can be used.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use scenarios::{Program, World, binary, left_out, python, text, until};

const REFERENCE: &str = include_str!("../../examples/letta/voice-system.toml");

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn run(world: &World, program: PathBuf, arguments: &[&str], code: i32) -> String {
    let mut command = world.command(program);
    command.args(arguments);
    let output = world.run_command(command);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

fn world_with_runtime() -> World {
    let mut world = World::new();
    let runtime = world.path("run");
    std::fs::create_dir(&runtime).unwrap();
    world.set("XDG_RUNTIME_DIR", runtime);
    world
}

fn postgresql_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions
        .filter_map(Result::ok)
        .map(|version| version.path().join("bin"))
        .find(|folder| folder.join("pg_ctl").is_file())
}

#[test]
fn postgresql_is_started_through_its_manager_and_reused() {
    let what = "PostgreSQL as a companion";
    let Some(programs) = postgresql_programs() else {
        return left_out(what, "Debian's package postgresql is not installed");
    };
    let is_root = rustix::process::geteuid().is_root();
    let runuser = Path::new("/usr/sbin/runuser");
    if !is_root || !runuser.is_file() {
        return left_out(what, "it needs root, to become the user postgres");
    }
    let mut world = world_with_runtime();
    // The user postgres must be able to enter it.
    let folder = tempfile::Builder::new()
        .prefix("voice-postgresql-")
        .tempdir()
        .unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let owned = Command::new("chown").arg("postgres").arg(&data).status();
    if !owned.is_ok_and(|status| status.success()) {
        return left_out(what, "there is no user postgres");
    }
    let port = free_port();
    let mut initdb = world.command(runuser);
    initdb
        .args(["-u", "postgres", "--"])
        .arg(programs.join("initdb"))
        .args(["-A", "trust", "--no-sync", "-D"])
        .arg(&data);
    let made = world.run_command(initdb);
    assert!(made.status.success(), "{}", text(&made));
    let web = free_port();
    world.set("PG", &programs);
    world.set("DATA", &data);
    std::fs::write(
        world.project().join("voice-system.toml"),
        format!(
            "[agent]\nneeds = [\"postgresql\", \"web\"]\n\
             [[companion]]\nname = \"postgresql\"\n\
             check = [\"$PG/pg_isready\", \"-q\", \"-h\", \"127.0.0.1\", \"-p\", \"{port}\"]\n\
             start = [\"runuser\", \"-u\", \"postgres\", \"--\", \"$PG/pg_ctl\", \"-D\", \"$DATA\", \"-l\", \"$DATA/log\", \"-W\", \"-o\", \"-p {port} -k $DATA -F\", \"start\"]\n\
             [[companion]]\nname = \"web\"\ncommand = [\"{}\", \"-m\", \"http.server\", \"--bind\", \"127.0.0.1\", \"{{port}}\"]\n\
             ports = [{web}]\nready = {{ http = \"http://127.0.0.1:{{port}}/\" }}\nneeds = [\"postgresql\"]\n",
            python().display()
        ),
    )
    .unwrap();
    let said = run(&world, world.link(Program::System), &[], 0);
    assert!(said.contains("postgresql: starting"), "{said}");
    let said = run(&world, world.link(Program::System), &[], 0);
    assert!(!said.contains("postgresql: starting"), "{said}");
    run(&world, world.link(Program::System), &["--status"], 0);
    let stop = binary(Program::System).with_file_name("stop-voice-system");
    run(&world, stop, &[], 0);
    // PostgreSQL is its manager's, and goes on.
    let mut ready = world.command(programs.join("pg_isready"));
    ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
    assert!(world.run_command(ready).status.success());
    let mut down = world.command(runuser);
    down.args(["-u", "postgres", "--"])
        .arg(programs.join("pg_ctl"))
        .arg("-D")
        .arg(&data)
        .args(["-m", "immediate", "stop"]);
    assert!(world.run_command(down).status.success());
    until("PostgreSQL to end", || world.processes().is_empty());
}

#[test]
fn the_reference_file_of_the_letta_stack_can_be_used() {
    let mut world = world_with_runtime();
    let project = world.project().to_owned();
    let bin = world.path("bin");
    let executable = |path: &Path| {
        std::fs::write(path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(project.join("livekit")).unwrap();
    for path in [
        bin.join("pg_isready"),
        bin.join("sudo"),
        bin.join("letta"),
        project.join("livekit/livekit-server"),
        project.join("make_livekit_token.sh"),
        project.join("update_pages.sh"),
    ] {
        executable(&path);
    }
    std::fs::write(project.join(".env"), "LIVEKIT_URL=ws://localhost:7880\n").unwrap();
    std::fs::write(project.join("voice-system.toml"), REFERENCE).unwrap();
    world.set("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    let said = run(&world, world.link(Program::System), &["--check-config"], 0);
    for part in [
        "postgresql",
        "letta",
        "livekit",
        "room-health-monitor",
        "cors-proxy",
        "demo",
        "agent",
        "step token",
        "step pages",
    ] {
        assert!(said.contains(&format!("  {part}: ")), "{part}\n{said}");
    }
    for fact in [
        "removes /tmp/livekit before it starts",
        "ready when http://localhost:8283/ answers 200",
        "ready when port 7880 is open",
        "first free port of 8888, 8899",
    ] {
        assert!(said.contains(fact), "{fact}\n{said}");
    }
    assert!(!REFERENCE.contains("/home/"), "no fixed home");
}
