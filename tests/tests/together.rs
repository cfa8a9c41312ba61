//! All scenarios but those that trace programs, in one executable: while some of
//! them wait (for deaths, a boot, the pauses of the original scripts), others work.
//! `cargo test -p scenarios --test together NAME` runs those of one file, or one test.

mod agent_forms;
mod bad_files;
mod bystanders;
mod debian_package;
mod foreground;
mod link_script;
mod logs;
mod migration;
mod mixed;
mod monitor_unit;
mod monitoring;
mod namespaces;
mod production_document;
mod quickstart_script;
mod races;
mod readme;
mod real_agents;
mod real_parts;
mod reference_document;
mod restart_from_inside;
mod settings;
mod start_outcomes;
mod stop_outcomes;
mod surroundings;
mod system_outcomes;
mod system_reports;
mod system_safety;
mod systemd;
mod terminal;
mod test_script;
mod voice_system;
mod worlds;

/// Neither here nor an executable of its own, a file would be run by nobody.
#[test]
fn every_file_of_scenarios_is_run() {
    let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(package.join("Cargo.toml")).expect("a manifest");
    for entry in std::fs::read_dir(package.join("tests")).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        let Some(name) = name
            .to_string_lossy()
            .strip_suffix(".rs")
            .map(str::to_owned)
        else {
            continue;
        };
        let is_here = include_str!("together.rs").contains(&format!("\nmod {name};\n"));
        let is_alone = manifest.contains(&format!("[[test]]\nname = \"{name}\"\n"));
        assert!(is_here != is_alone, "{name}.rs is run by nobody, or twice");
    }
}
