//! Extended attributes of an open file. What the kernel tells is at most 64 KiB, of a value and of all names.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of linux/limits.h.
const MAX_BYTES: usize = 1 << 16;

/// Writes an extended attribute of a file.
///
/// # Errors
/// `EOPNOTSUPP` where the file system has none.
pub fn set_attribute(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: a string with its end, and a buffer that is as long as is said; the kernel only reads them.
    let result =
        unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Removes an extended attribute of a file.
///
/// # Errors
/// `ENODATA` if it has none.
pub fn remove_attribute(file: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: a string with its end, which the kernel only reads.
    let result = unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an extended attribute of a file.
///
/// # Errors
/// `ENODATA` if it has none.
pub fn attribute(file: &File, name: &CStr) -> io::Result<Vec<u8>> {
    let (fd, mut value) = (file.as_raw_fd(), vec![0; MAX_BYTES]);
    // SAFETY: a string with its end, and a buffer that is as long as is said.
    let length =
        unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// Names of the extended attributes of a file that the caller may see.
///
/// # Errors
/// `EOPNOTSUPP` where the file system has none; `E2BIG` if there are too many.
pub fn attribute_names(file: &File) -> io::Result<Vec<CString>> {
    let (fd, mut names) = (file.as_raw_fd(), vec![0; MAX_BYTES]);
    // SAFETY: a buffer that is as long as is said.
    let length = unsafe { libc::flistxattr(fd, names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    let names = names.split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| Some(CStr::from_bytes_with_nul(name).ok()?.to_owned())).collect())
}
