//! One of us at a time works on a machine, also where it has several monitors: what the others have made in
//! it would be taken for what a killed run has left.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use std::fs::{File, TryLockError};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// Locks the process at the other end of a socket, if it is a QEMU that can be seen from here: its folder in
/// /proc, which is the same for all users of this host, and is no other process's as long as it is open.
/// None for anything else, such as a service manager that listens for several machines.
///
/// # Errors
/// `Busy` if somebody else has locked it.
pub fn lock_peer(socket: BorrowedFd<'_>) -> Result<Option<File>> {
    let Some(place) = qemu_at(socket) else { return Ok(None) };
    let Ok(folder) = File::open(place) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => {
            let what = "another imgsnap works on the machine, through another of its QMP sockets";
            Err(Error::new(ErrorKind::Busy, what)
                .hint(message!["wait until that has ended, and ", Action::Retry]))
        }
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

fn qemu_at(socket: BorrowedFd<'_>) -> Option<PathBuf> {
    let id = getsockopt(&socket, PeerCredentials).ok()?.pid();
    let place = PathBuf::from(format!("/proc/{id}"));
    // Names are cut: "qemu-storage-da".
    let name = std::fs::read_to_string(place.join("comm")).ok()?;
    (name.starts_with("qemu") || name.trim_end() == "kvm").then_some(place)
}
