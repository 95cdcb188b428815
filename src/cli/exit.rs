//! Exit codes: all of them stand here, and in docs/reference.md.

use imgsnap::base::error::{Error, ErrorKind};
use std::process::ExitCode;

/// Done.
pub const DONE: ExitCode = ExitCode::SUCCESS;
/// Failed; nothing is lost.
pub const FAILED: ExitCode = ExitCode::FAILURE;

/// Wrong usage.
pub const USAGE: u8 = 2;
/// A task that no other attempt would do either.
pub const HOPELESS: u8 = 6;

/// Damage found.
pub fn damaged() -> ExitCode {
    ExitCode::from(3)
}

/// The code for a kind of error.
pub fn number(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Corrupt => 3,
        ErrorKind::Busy => 4,
        ErrorKind::Key => 5,
        ErrorKind::Interrupted => 130,
        _ => 1,
    }
}

/// The same for the end of the process.
pub fn code(kind: ErrorKind) -> ExitCode {
    ExitCode::from(number(kind))
}

/// For arguments that clap cannot judge.
pub fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
