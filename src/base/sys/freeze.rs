//! File systems that are held still.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOWR('X', 119, int)` of linux/fs.h.
const FIFREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
/// `_IOWR('X', 120, int)`.
const FITHAW: libc::Ioctl = 0xC004_5878_u32 as libc::Ioctl;

/// Writes out what is dirty in the file system of an open file, and holds back every write to it until it is
/// thawed. However long that takes: the kernel waits for writers and for the device.
///
/// # Errors
/// `EBUSY` if it is frozen already; `EOPNOTSUPP` if it cannot be frozen; `EPERM`.
pub fn freeze_file_system(file: BorrowedFd<'_>) -> io::Result<()> {
    request(file.as_raw_fd(), FIFREEZE)
}

/// Thaws it, whoever froze it. While somebody freezes it, the kernel may wait until that is done.
///
/// # Errors
/// `EINVAL` if it is not frozen; `EPERM`.
pub fn thaw_file_system(file: BorrowedFd<'_>) -> io::Result<()> {
    request(file.as_raw_fd(), FITHAW)
}

fn request(file: libc::c_int, request: libc::Ioctl) -> io::Result<()> {
    // SAFETY: these requests take no argument that the kernel looks at.
    let result = unsafe { libc::ioctl(file, request, 0 as libc::c_ulong) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
