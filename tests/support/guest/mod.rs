//! A real guest: QEMU with a small Linux in it (`tests/servers/tiny-guest.sh`), which writes what can be
//! computed, and the judges of disks that were restored.
//!
//! Used by `tests/interop` (one short test) and `tests/machines` (the rig). Both have a module `kit`.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

mod console;
pub mod judge;
mod machine;
mod qmp;
mod ticks;

#[allow(unused_imports, reason = "each test program uses a part")]
pub use console::Console;
#[allow(unused_imports, reason = "each test program uses a part")]
pub use machine::{Guest, Machine};

use crate::kit::{output, tools};
use std::process::Command;

/// What the judges and the builder need besides QEMU.
const TOOLS: [&str; 7] = ["bash", "cc", "dd", "debugfs", "dumpe2fs", "e2fsck", "setpriv"];

/// The folder with the guest's disk, which is built if it is not there.
///
/// # Errors
/// Why there can be none.
pub fn built() -> Result<String, String> {
    tools(&TOOLS)?;
    machine::Program::find()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/tiny-guest.sh");
    let folder = concat!(env!("CARGO_TARGET_TMPDIR"), "/tiny-guest");
    let built = output(Command::new("bash").args([script, folder])).map_err(|e| e.to_string())?;
    let why = String::from_utf8_lossy(&built.stderr);
    match built.status.success() {
        true => Ok(folder.to_owned()),
        false => Err(format!("no guest: {}", why.lines().last().unwrap_or_default())),
    }
}

/// What QEMU calls itself.
///
/// # Errors
/// Without one.
pub fn version() -> Result<String, String> {
    machine::Program::find().map(|program| program.version())
}
