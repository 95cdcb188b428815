//! The commands in the README and in the guides: those in blocks called `console` are run, in their order, in a
//! folder with an image. What they print is an example. That the parser accepts all others is a test of
//! `src/cli/documented.rs`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{Lab, disk, noise, skipped, spawn};
use std::path::Path;
use std::process::{Command, Stdio};

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

/// A shell in the folder, with the program in its path.
fn shell(lab: &Lab, script: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_imgsnap")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", script]).current_dir(lab.path(""));
    shell.env("PATH", path).env("IMGSNAP_REPO", lab.path("repo"));
    shell.env("IMGSNAP_STATE", lab.path("state")).env("IMGSNAP_CACHE", lab.path("cache"));
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// Runs a script, which must succeed.
fn run(lab: &Lab, page: &str, script: &str) {
    let out = spawn(&mut shell(lab, script)).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{page}: {}\n{said}", String::from_utf8_lossy(&out.stdout));
}

/// Each command of a page succeeds, in a folder with `vm.img` and what `prepare` makes of it. `tools` are the
/// other programs that it uses.
fn each_command_succeeds(test: &str, page: &str, tools: &[&str], prepare: &str) {
    let found = |tool: &&&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(tool).exists())
    };
    if let Some(tool) = tools.iter().find(|tool| !found(tool)) {
        return skipped(&format!("documents::{test}"), &format!("{tool} is not installed"));
    }
    let lab = Lab::bare();
    // Half of it is data, so that a copy resembles it.
    let bytes = [disk(1, 8 << 20), noise(2, 8 << 20)].concat();
    lab.write("vm.img", &bytes);
    run(&lab, page, prepare);
    let commands = commands(page);
    assert!(
        commands.iter().filter(|line| line.contains("imgsnap")).count() >= 3,
        "{page}: {commands:?}"
    );
    run(&lab, page, &commands.join("\n"));
}

/// A test for each page: its name, the page, the other programs that the page uses, and a script that prepares the
/// folder.
macro_rules! pages {
    ($($test:ident: $page:literal, $tools:expr, $prepare:literal;)+) => {$(
        #[test]
        fn $test() {
            each_command_succeeds(stringify!($test), $page, &$tools, $prepare);
        }
    )+};
}

pages! {
    the_readme: "README.md", [], "";
    databases: "docs/databases.md", [], "cp vm.img data.img; cp vm.img wal.img";
    disks: "docs/disks.md", ["qemu-img", "qemu-io", "qemu-storage-daemon"],
        "qemu-img convert -O qcow2 vm.img vm.qcow2; mv vm.img other.img";
    fleets: "docs/fleets.md", ["jq"], "cp vm.img db.img";
    guarantees: "docs/guarantees.md", [], "";
    history: "docs/history.md", [], "";
    repair: "docs/repair.md", [], "";
    repositories: "docs/repositories.md", [], "";
    restore: "docs/restore.md", [], "";
    security: "docs/security.md", [], "";
    snapshots: "docs/snapshots.md", [], "";
}

/// The units are what systemd can read, and sandboxed (a score below 4.0).
#[test]
fn units() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/check.sh");
    let out = Command::new(script).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    if said.starts_with("skipped: ") {
        return skipped("documents::units", said.trim());
    }
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
}
