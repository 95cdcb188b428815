//! Renaming without replacing, for which not every C library has a function that a static program can call.

use nix::NixPath;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// What a file may take the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onto {
    /// Of another one, or of none.
    Anything,
    /// Of none.
    Nothing,
}

/// Renames a file in a folder (`renameat2`).
///
/// # Errors
/// `EEXIST` if something is there that may not be replaced; `EINVAL` and `ENOSYS` where that cannot be
/// promised.
pub fn rename_in(folder: &impl AsFd, from: &Path, to: &Path, onto: Onto) -> nix::Result<()> {
    let at = libc::c_long::from(folder.as_fd().as_raw_fd());
    let flags = match onto {
        Onto::Anything => 0,
        Onto::Nothing => libc::c_long::from(libc::RENAME_NOREPLACE),
    };
    let result = from.with_nix_path(|from| {
        to.with_nix_path(|to| {
            // SAFETY: arguments of a register's width; both strings have their end, are only read, and live
            // through the call, in which the folder stays open.
            unsafe { libc::syscall(libc::SYS_renameat2, at, from.as_ptr(), at, to.as_ptr(), flags) }
        })
    })??;
    Errno::result(result).map(drop)
}
