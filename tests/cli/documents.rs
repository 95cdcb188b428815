//! The commands in the README and in the guides: those in blocks called `console` are run, in their order, in a
//! folder with an image. What they print is an example.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{Lab, disk, noise};
use std::path::Path;
use std::process::Command;

/// The commands of a page: lines that begin with a prompt.
fn commands(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let (mut commands, mut is_console) = (Vec::new(), false);
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(kind) => is_console = kind == "console" && !is_console,
            None if is_console => commands.extend(line.strip_prefix("$ ").map(str::to_owned)),
            None => {}
        }
    }
    commands
}

fn each_command_succeeds(page: &str) {
    let lab = Lab::bare();
    // Half of it is data, so that a copy resembles it.
    let bytes = [disk(1, 8 << 20), noise(2, 8 << 20)].concat();
    lab.write("vm.img", &bytes);
    let program = Path::new(env!("CARGO_BIN_EXE_imgsnap")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let commands = commands(page);
    assert!(commands.len() >= 5, "{page}: {commands:?}");
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", &commands.join("\n")]).current_dir(lab.path(""));
    shell.env("PATH", path).env("IMGSNAP_REPO", lab.path("repo"));
    shell.env("IMGSNAP_STATE", lab.path("state")).env("IMGSNAP_CACHE", lab.path("cache"));
    let out = shell.stdin(std::process::Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{page}: {}\n{said}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn the_readme() {
    each_command_succeeds("README.md");
}

#[test]
fn snapshots() {
    each_command_succeeds("docs/snapshots.md");
}

#[test]
fn restore() {
    each_command_succeeds("docs/restore.md");
}

#[test]
fn history() {
    each_command_succeeds("docs/history.md");
}

#[test]
fn repair() {
    each_command_succeeds("docs/repair.md");
}

#[test]
fn repositories() {
    each_command_succeeds("docs/repositories.md");
}

/// The units are what systemd can read, and sandboxed (a score below 4.0).
#[test]
fn units() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/check.sh");
    let out = Command::new(script).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    if said.starts_with("skipped: ") {
        return crate::support::skipped("documents::units", said.trim());
    }
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
}
