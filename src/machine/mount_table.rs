//! Which file system a path is on, and what that one lies on.
//!
//! The device number of a file (stat(2)) does not tell: each subvolume of a btrfs has its own, and to freeze
//! one is to freeze all. Mounts have the number of the file system.

use crate::image::loop_file;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How many file systems may lie on each other.
const MOST_BELOW: usize = 32;

/// A file system, by the number of its device, which may be one that has no device.
pub type FileSystem = u64;

/// The mounts that this process sees, as they were at one moment.
#[derive(Debug, Default)]
pub struct MountTable {
    mounts: Vec<Mounted>,
}

#[derive(Debug, PartialEq)]
struct Mounted {
    id: u64,
    number: FileSystem,
    /// What is mounted, if that is a path.
    source: PathBuf,
    /// Where an overlay keeps what is written to it.
    upper: Option<PathBuf>,
}

impl MountTable {
    /// Reads it; it is empty where the kernel does not tell.
    pub fn read() -> Self {
        let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        Self { mounts: text.split(|byte| *byte == b'\n').filter_map(parsed).collect() }
    }

    /// The file system of an open file; none if it cannot be told.
    pub fn file_system_of(&self, file: BorrowedFd<'_>) -> Option<FileSystem> {
        Some(self.mount_of(file)?.number)
    }

    /// The device on which the file system of a path lies, or one of them; none if it lies on none.
    pub fn device_of(&self, path: &Path) -> Option<u64> {
        self.mount_of(opened(path)?.as_fd())?.device()
    }

    /// All file systems to which something is written when something is written to `path`, or to the nearest
    /// folder above it that is there: its own, and those below it.
    pub fn reached(&self, path: &Path) -> BTreeSet<FileSystem> {
        let mut reached = BTreeSet::new();
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.pop() {
            let file = std::path::absolute(&path).ok().and_then(|path| nearest(&path));
            let Some(file) = file else { continue };
            let mount = self.mount_of(file.as_fd());
            let by_stat = file.metadata().map(|meta| meta.dev()).ok();
            let number = mount.map(|mount| mount.number).or(by_stat);
            let Some(number) = number.filter(|number| reached.insert(*number)) else { continue };
            if reached.len() > MOST_BELOW {
                break;
            }
            open.extend(files_below(number));
            if let Some(mount) = mount {
                open.extend(mount.upper.clone());
                open.extend(mount.device().into_iter().flat_map(files_below));
            }
        }
        reached
    }

    fn mount_of(&self, file: BorrowedFd<'_>) -> Option<&Mounted> {
        let id = mount_id(file)?;
        self.mounts.iter().find(|mount| mount.id == id)
    }
}

impl Mounted {
    /// The device that is mounted, or one of them. Where there can be several, the number of the file system
    /// is none of a device.
    fn device(&self) -> Option<u64> {
        let device = std::fs::metadata(&self.source).ok()?;
        device.file_type().is_block_device().then(|| device.rdev())
    }
}

/// The mount that an open file is in; none where the kernel does not tell.
pub fn mount_id(file: BorrowedFd<'_>) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// What is there of a path.
fn nearest(path: &Path) -> Option<File> {
    path.ancestors().find_map(opened)
}

/// A path as a place alone (O_PATH).
fn opened(path: &Path) -> Option<File> {
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    File::options().read(true).custom_flags(flags).open(path).ok()
}

/// Files that are the disk under a block device: of a loop device, or of loop devices below a volume.
fn files_below(number: u64) -> Vec<PathBuf> {
    let (mut files, mut open, mut seen) = (Vec::new(), vec![number], BTreeSet::new());
    while let Some(number) = open.pop().filter(|_| seen.len() < MOST_BELOW) {
        if !seen.insert(number) {
            continue;
        }
        files.extend(loop_file(number));
        let (major, minor) = (libc::major(number), libc::minor(number));
        let slaves = std::fs::read_dir(format!("/sys/dev/block/{major}:{minor}/slaves"));
        for slave in slaves.into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(slave.path().join("dev")).unwrap_or_default();
            open.extend(device_number(text.trim()));
        }
    }
    files
}

/// "8:1"
fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
fn parsed(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let number = |at: usize| str::from_utf8(fields.get(at)?).ok();
    let (id, device) = (number(0)?.parse().ok()?, device_number(number(2)?)?);
    // Any number of optional fields stand before the hyphen, and three behind it.
    let hyphen = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let source = unescaped(fields.get(hyphen + 2)?);
    let options = fields.get(hyphen + 3).copied().unwrap_or_default();
    let upper = options.split(|byte| *byte == b',').find_map(|o| o.strip_prefix(b"upperdir="));
    Some(Mounted { id, number: device, source, upper: upper.map(unescaped) })
}

/// "\040" is a space.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = tail.get(if octal.is_some() { 3 } else { 0 }..).unwrap_or_default();
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line =
            b"36 35 98:1 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/my\\040root rw";
        let wanted = Mounted {
            id: 36,
            number: libc::makedev(98, 1),
            source: "/dev/my root".into(),
            upper: None,
        };
        assert_eq!(parsed(line), Some(wanted));
        let line =
            b"40 35 0:50 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u\\134x,workdir=/w";
        assert_eq!(parsed(line).unwrap().upper, Some("/u\\x".into()));
        for line in [&b""[..], b"36", b"36 35 98 / / rw - ext3 x", b"36 35 98:1 / / rw ext3 x rw"] {
            assert_eq!(parsed(line), None);
        }
        assert_eq!(unescaped(b"a\\04"), PathBuf::from("a\\04"));
        assert_eq!(unescaped(b"\\777\\"), PathBuf::from("\\777\\"));
    }

    #[test]
    fn what_is_not_there_is_where_it_would_be() {
        let table = MountTable::read();
        let place = tempfile::tempdir().unwrap();
        let there = table.reached(place.path());
        assert!(!there.is_empty());
        assert_eq!(table.reached(&place.path().join("not/there")), there);
        let file = File::open(place.path()).unwrap();
        assert!(there.contains(&table.file_system_of(file.as_fd()).unwrap()));
        assert!(!table.reached(Path::new("/proc/self")).is_subset(&there));
    }
}
