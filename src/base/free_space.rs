//! Free space of a file system: checked before something large is begun.

use crate::base::error::{Error, ErrorKind, Result};
use std::io;
use std::path::Path;

/// How many bytes this user can still write to the file system on which `path` is.
pub fn free_space_in(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(io::Error::from)?;
    Ok((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
}

/// The same for a file that does not exist yet.
pub fn free_space_at(file: &Path) -> Option<u64> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    free_space_in(folder.unwrap_or(Path::new("."))).ok()
}

/// Lets this process have as many files open as it may (RLIMIT_NOFILE). For programs, at their start.
pub fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err()
    {
        // Then those that it may have now must do.
    }
}

/// Fails if this process may not make a file as long as that (RLIMIT_FSIZE): a write beyond it fails, and
/// what is being changed in place would stay half changed.
///
/// # Errors
/// `LimitExceeded`, with both numbers.
pub fn check_file_limit(bytes: u64, place: &str) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit};
    match getrlimit(Resource::RLIMIT_FSIZE) {
        Ok((soft, _)) if soft < bytes => {
            let what =
                format!("{place} needs {bytes} bytes, but files are limited to {soft} bytes");
            Err(Error::new(ErrorKind::LimitExceeded, what).hint("raise the limit (ulimit -f)"))
        }
        _ => Ok(()),
    }
}

/// Fails if there is less free space than `needed_bytes` in a place; `free_bytes` is none if it is not known.
/// `what` says who needs it: "the merge".
///
/// # Errors
/// `LimitExceeded`, with both numbers.
pub fn check_free_space(
    free_bytes: Option<u64>,
    needed_bytes: u64,
    place: &str,
    what: &str,
) -> Result<()> {
    let Some(free_bytes) = free_bytes.filter(|free_bytes| *free_bytes < needed_bytes) else {
        return Ok(());
    };
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let what = format!(
        "{place} has {} MiB of free space; {what} needs {} MiB ({needed_bytes} bytes)",
        mib(free_bytes),
        mib(needed_bytes)
    );
    Err(Error::new(ErrorKind::LimitExceeded, what).hint("free some space there"))
}

/// The type of the file system that a file or folder is on: of its longest mount point.
pub fn filesystem_type(path: &Path) -> Option<String> {
    let folder = std::fs::canonicalize(path).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of = fields.filter(|f| f.get(1).is_some_and(|point| folder.starts_with(point)));
    of.max_by_key(|f| f.get(1).map_or(0, |p| p.len())).and_then(|f| f.get(2).map(|t| (*t).into()))
}
