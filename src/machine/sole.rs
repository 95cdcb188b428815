//! One of us at a time works on a machine, also where it has several monitors: what the others have made in
//! it would be taken for what a killed run has left.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use std::fs::{File, TryLockError};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// How the names of programs begin that open sockets for the machines which they start.
const MANAGERS: [&str; 3] = ["systemd", "libvirt", "virtqemud"];

/// Locks the process at the other end of a socket, if it can be seen from here: its folder in /proc, which is
/// the same for all users of this host, and is no other process's as long as it is open. None if it is one
/// that listens for several machines.
///
/// # Errors
/// `Busy` if somebody else has locked it.
pub fn lock_peer(socket: BorrowedFd<'_>) -> Result<Option<File>> {
    let Some(place) = machine_at(socket) else { return Ok(None) };
    let Ok(folder) = File::open(place) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => {
            let what = "another imgsnap is using the machine through another QMP socket";
            Err(Error::new(ErrorKind::Busy, what)
                .hint(message!["wait until that has ended, and ", Action::Retry]))
        }
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// By the name of the process, which QEMU lets its user choose.
fn machine_at(socket: BorrowedFd<'_>) -> Option<PathBuf> {
    let id = getsockopt(&socket, PeerCredentials).ok()?.pid();
    let place = PathBuf::from(format!("/proc/{id}"));
    let name = std::fs::read_to_string(place.join("comm")).ok()?;
    let is_service = id <= 1 || MANAGERS.iter().any(|manager| name.starts_with(manager));
    (!is_service).then_some(place)
}
