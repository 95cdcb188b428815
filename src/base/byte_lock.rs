//! Locks of single bytes of a file (open file description locks): they go with the descriptor, and conflict
//! between two descriptors of one process as between two processes.

use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::io;

/// Locks a byte, shared.
///
/// # Errors
/// `WouldBlock` if somebody holds it exclusively; others from a file system without such locks.
pub fn share_byte(file: &File, byte: i64) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock_of(byte, 1, libc::F_RDLCK)))?;
    Ok(())
}

/// How a byte is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// By any number of descriptors.
    Shared,
    /// By one.
    Exclusive,
}

/// How another descriptor has locked one of `count` bytes from `byte` on, if any has; 0 for all that follow.
///
/// # Errors
/// From a file system without such locks.
pub fn holder(file: &File, byte: i64, count: i64) -> io::Result<Option<Held>> {
    let mut lock = lock_of(byte, count, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(match libc::c_int::from(lock.l_type) {
        libc::F_UNLCK => None,
        libc::F_RDLCK => Some(Held::Shared),
        _ => Some(Held::Exclusive),
    })
}

/// Lets go of the own locks on `count` bytes from `byte` on.
pub fn unlock_bytes(file: &File, byte: i64, count: i64) {
    // Only our own locks: that cannot fail in a way that matters.
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock_of(byte, count, libc::F_UNLCK))).unwrap_or_default();
}

fn lock_of(byte: i64, count: i64, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: count,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_held_by_a_descriptor_and_goes_with_it() {
        let one = tempfile::NamedTempFile::new().unwrap();
        let other = File::open(one.path()).unwrap();
        share_byte(&other, 7).unwrap();
        assert_eq!(holder(&other, 7, 1).unwrap(), None, "one's own lock is in nobody's way");
        let is_locked = |byte, count| holder(one.as_file(), byte, count).unwrap().is_some();
        assert!(is_locked(7, 1) && is_locked(0, 0) && !is_locked(6, 1) && !is_locked(8, 0));
        share_byte(one.as_file(), 7).unwrap();
        drop(other);
        assert!(!is_locked(7, 1));
        // As flock is, where it is made of such locks.
        let whole = File::options().write(true).open(one.path()).unwrap();
        unlock_bytes(one.as_file(), 0, 0);
        fcntl(&whole, FcntlArg::F_OFD_SETLK(&lock_of(0, 0, libc::F_WRLCK))).unwrap();
        assert_eq!(holder(one.as_file(), 7, 1).unwrap(), Some(Held::Exclusive));
    }
}
