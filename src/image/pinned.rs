//! Whether a file stands still whatever anybody does: by its file system, and never by its name.

use nix::unistd::{AccessFlags, access};
use std::fs::File;
use std::path::Path;

/// File systems that other hosts, or the file system itself, make read-only snapshots of: a file in one of
/// them cannot be written (EROFS) although its file system can. From linux/magic.h.
const WITH_SNAPSHOTS: [i64; 4] = [0x6969, 0x00c3_6400, 0x2fc1_2fc1, 0x9123_683e];
/// File systems that no other host writes to: where they are mounted read-only as a whole, nobody does.
const LOCAL: [i64; 7] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x7371_7368, 0x9660, 0x2fc1_2fc1];

/// What keeps a file from being written by anybody, in a few words; none if nothing that is known does.
pub fn pinned_by(file: &File, path: &Path) -> Option<&'static str> {
    let filesystem = nix::sys::statfs::fstatfs(file).ok()?.filesystem_type().0 as i64;
    let is_refused = access(path, AccessFlags::W_OK) == Err(nix::errno::Errno::EROFS);
    if !is_refused {
        return None;
    }
    match is_mount_read_only(file)? {
        // The mount may be written to, and this file may not.
        Mounted::Writable if WITH_SNAPSHOTS.contains(&filesystem) => Some("a read-only snapshot"),
        Mounted::ReadOnlyAsAWhole if LOCAL.contains(&filesystem) => Some("a read-only file system"),
        _ => None,
    }
}

enum Mounted {
    Writable,
    /// Here; elsewhere it may be mounted to be written.
    ReadOnlyHere,
    ReadOnlyAsAWhole,
}

/// How the file system of a file is mounted.
fn is_mount_read_only(file: &File) -> Option<Mounted> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| line.split(' ').next() == Some(&id))?;
    let (here, whole) = mount.split_once(" - ")?;
    let has_ro = |options: &str| options.split(',').any(|option| option == "ro");
    let is_here = here.split(' ').nth(5).is_some_and(has_ro);
    let is_whole = whole.split(' ').nth(2).is_some_and(has_ro);
    Some(match (is_whole, is_here) {
        (true, _) => Mounted::ReadOnlyAsAWhole,
        (false, true) => Mounted::ReadOnlyHere,
        (false, false) => Mounted::Writable,
    })
}
