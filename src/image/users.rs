//! Who else has a file or device open, as far as the processes that can be seen tell.

use std::fs::Metadata;
use std::path::Path;

/// What we are going to do with the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Read it: others may read too.
    Read,
    /// Write it: nobody else may use it.
    Write,
}

/// The namespace of process ids in which all processes are seen (PROC_PID_INIT_INO).
const ALL_PROCESSES: &str = "pid:[4026531836]";

/// The first other process that has something open, or mapped, that `is_it`, and whether all of them can be
/// examined. `is_it` is asked of a file, and of the link in `/proc` that leads to it.
///
/// Not in the way are the process that serves the device, and those that we are started by and that hold it
/// to read, as `flock` and `udevadm lock` do.
pub(super) fn process_with(
    is_it: &dyn Fn(&Metadata, &Path) -> bool,
    intent: Intent,
    server: Option<u32>,
) -> (Option<String>, bool) {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let mut sees_all = namespace.as_os_str() == ALL_PROCESSES;
    let own_id = std::process::id();
    let ancestors = ancestors();
    let Ok(processes) = std::fs::read_dir("/proc") else { return (None, false) };
    for process in processes.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if id == own_id || server == Some(id) {
            continue;
        }
        let descriptors = match std::fs::read_dir(process.path().join("fd")) {
            Ok(descriptors) => descriptors,
            Err(e) => {
                // It may just have ended.
                sees_all &= e.kind() != std::io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        let may_read = intent == Intent::Read || ancestors.contains(&id);
        let has_it_open = descriptors.flatten().any(|descriptor| {
            let link = descriptor.path();
            let Ok(other) = std::fs::metadata(&link) else { return false };
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            is_it(&other, &link) && (!may_read || is_open_to_write(&info))
        });
        if has_it_open || maps_it(&process.path(), is_it) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return (Some(format!("{} (process {id})", name.trim_end())), sees_all);
        }
    }
    (None, sees_all)
}

/// The processes that we are started by.
fn ancestors() -> Vec<u32> {
    let parent = |id: &u32| status_of(*id, "PPid:").filter(|id| *id != 0);
    std::iter::successors(Some(std::process::id()), parent).skip(1).collect()
}

/// True if a process has it mapped for writing, perhaps without a descriptor any more.
fn maps_it(process: &Path, is_it: &dyn Fn(&Metadata, &Path) -> bool) -> bool {
    let maps = std::fs::read(process.join("maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    // "ADDRESSES rw-s OFFSET DEVICE INODE   PATH"
    let shared = maps.lines().filter(|line| line.split(' ').nth(1) == Some("rw-s"));
    let mut links = shared.filter_map(|line| line.split(' ').next()).map(|of| {
        // In the form that the folder has: without zeros before it.
        let short = |part: &str| part.trim_start_matches('0').to_owned();
        let (from, to) = of.split_once('-').unwrap_or_default();
        process.join("map_files").join(format!("{}-{}", short(from), short(to)))
    });
    links.any(|link| std::fs::metadata(&link).is_ok_and(|other| is_it(&other, &link)))
}

/// From `/proc/PID/fdinfo/N`: the flags that the file was opened with, in octal.
pub(super) fn is_open_to_write(info: &Path) -> bool {
    let text = std::fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// What `/proc/ID/status` tells of a process or thread: the number after `name`.
pub(super) fn status_of(id: u32, name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}
