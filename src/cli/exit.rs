//! Exit codes: all of them stand here, and in docs/reference.md.

use imgsnap::base::error::{Error, ErrorKind};
use std::process::ExitCode;

/// Done.
pub const DONE: ExitCode = ExitCode::SUCCESS;
/// Failed; nothing is lost.
pub const FAILED: ExitCode = ExitCode::FAILURE;

/// Damage found.
pub fn damaged() -> ExitCode {
    ExitCode::from(3)
}

/// A task that no other try would do either.
pub fn hopeless() -> ExitCode {
    ExitCode::from(6)
}

/// The code for a kind of error. 2, wrong usage, is clap's.
pub fn code(kind: ErrorKind) -> ExitCode {
    match kind {
        ErrorKind::Corrupt => damaged(),
        ErrorKind::Busy => ExitCode::from(4),
        ErrorKind::Key => ExitCode::from(5),
        ErrorKind::Interrupted => ExitCode::from(130),
        _ => FAILED,
    }
}

/// For arguments that clap cannot judge.
pub fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
