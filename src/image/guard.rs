//! Nobody else writes: what is done so that an image does not change while it is read or written,
//! and how a file is recognised as unchanged.
//!
//! Three mechanisms, each used where available: a lease (the kernel refuses it if somebody has the
//! file open for writing, and tells us when somebody wants to), the lock bytes of QEMU (held for as
//! long as we work, so that a virtual machine refuses to start), and the file's size and times
//! before and after.

use crate::base::byte_lock::{holder, share_byte, unlock_bytes};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use crate::base::sys::{self, Lease};
use crate::base::uri::Shown;
use crate::image::users::{Intent, process_with};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// Holds others off an image for as long as it lives; it goes with the file's descriptor.
#[derive(Debug, Clone, Copy)]
pub struct ImageGuard {
    lease: Option<Lease>,
}

/// QEMU's permissions (its block/file-posix.c): one byte each, from 100 for "I use it", from 200
/// for "others must not".
const USED: i64 = 100;
const UNSHARED: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const WRITE_UNCHANGED: i64 = 2;
const RESIZE: i64 = 3;

impl ImageGuard {
    /// Takes every lock that the file system offers on `file`.
    ///
    /// # Errors
    /// `Busy` if somebody uses the image in a way that does not go together with ours.
    pub fn take(file: &File, path: &Path, intent: Intent) -> Result<Self> {
        let lease = match intent {
            Intent::Read => Lease::Read,
            Intent::Write => Lease::Write,
        };
        let lease = match sys::take_lease(file, lease) {
            Ok(()) => Some(lease),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {
                return Err(in_use(file, path, intent));
            }
            // Not our file, or a file system without leases: the other two means have to do.
            Err(_) => None,
        };
        qemu_locks(file, path, intent)?;
        Ok(Self { lease })
    }

    /// Nothing: nobody is held off.
    pub fn none() -> Self {
        Self { lease: None }
    }

    /// True if the kernel keeps others off, and still does.
    pub fn is_held(&self, file: &File) -> bool {
        self.lease.is_some_and(|lease| sys::holds_lease(file, lease))
    }

    /// Releases all locks, as closing the descriptor would.
    pub fn release(&self, file: &File) {
        if self.lease.is_some() {
            sys::release_lease(file);
        }
        unlock_bytes(file, USED, 2 * (UNSHARED - USED));
    }

    /// Fails once somebody has asked for the image.
    pub fn check(&self, file: &File, path: &Path) -> Result<()> {
        match self.lease {
            Some(lease) if !sys::holds_lease(file, lease) => {
                let what = format!("{} was opened by another program meanwhile", path.shown());
                Err(Error::new(ErrorKind::Busy, what)
                    .hint(message![Action::Retry, " when that program is done"]))
            }
            _ => Ok(()),
        }
    }
}

fn in_use(file: &File, path: &Path, intent: Intent) -> Error {
    let how = match intent {
        Intent::Read => "open for writing by",
        Intent::Write => "in use by",
    };
    let who = find_user(file, intent).unwrap_or_else(|| "another program".into());
    Error::new(ErrorKind::Busy, format!("{} is {how} {who}", path.shown()))
        .hint(message!["shut the virtual machine down, or close the file, and ", Action::Retry])
}

fn qemu_locks(file: &File, path: &Path, intent: Intent) -> Result<()> {
    let (conflicts, held): (&[i64], &[i64]) = match intent {
        Intent::Read => (
            &[USED + WRITE, USED + RESIZE, UNSHARED + CONSISTENT_READ],
            &[USED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE],
        ),
        Intent::Write => (
            &[
                USED + CONSISTENT_READ,
                USED + WRITE,
                USED + WRITE_UNCHANGED,
                USED + RESIZE,
                UNSHARED + CONSISTENT_READ,
                UNSHARED + WRITE,
                UNSHARED + RESIZE,
            ],
            &[
                USED + CONSISTENT_READ,
                USED + WRITE,
                USED + RESIZE,
                UNSHARED + CONSISTENT_READ,
                UNSHARED + WRITE,
                UNSHARED + WRITE_UNCHANGED,
                UNSHARED + RESIZE,
            ],
        ),
    };
    // First held, then looked: two that do this at the same time both see the other.
    for &byte in held {
        match share_byte(file, byte) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(in_use(file, path, intent));
            }
            // A file system without such locks: QEMU goes without them there, too.
            Err(_) => return Ok(()),
        }
    }
    let is_taken = |byte: &&i64| holder(file, **byte, 1).is_ok_and(|held| held.is_some());
    match conflicts.iter().find(is_taken) {
        Some(_) => Err(in_use(file, path, intent)),
        None => Ok(()),
    }
}

/// The first other process that is in the way, as far as we may see: "qemu-system-x86 (process 42)".
pub(super) fn find_user(file: &File, intent: Intent) -> Option<String> {
    let ours = file.metadata().ok()?;
    let is_it = |other: &Metadata, _: &Path| (other.dev(), other.ino()) == (ours.dev(), ours.ino());
    process_with(&is_it, intent, None).0
}

/// By what a regular file is recognised as unchanged (DESIGN.md, "When the head is trusted").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length.
    pub bytes: u64,
    /// Time of the last modification, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Time of the last change of the inode, in nanoseconds since 1970.
    pub ctime_ns: i64,
    /// The kernel's id of this boot: times from before a crash prove nothing.
    pub boot_id: Uuid,
    /// The file system's magic number.
    pub filesystem: i64,
}

impl FileStat {
    /// Reads it from a file; none if the file is not a regular one on a local file system whose
    /// times can be trusted (ext2/3/4, XFS, btrfs, F2FS), or the system does not tell.
    pub fn of(file: &File) -> Option<Self> {
        /// From linux/magic.h.
        const TRUSTED_FILESYSTEMS: [i64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
        let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let filesystem = nix::sys::statfs::fstatfs(file).ok()?.filesystem_type().0 as i64;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let time = |s: i64, ns: i64| s.checked_mul(1_000_000_000)?.checked_add(ns);
        TRUSTED_FILESYSTEMS.contains(&filesystem).then_some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            mtime_ns: time(meta.mtime(), meta.mtime_nsec())?,
            ctime_ns: time(meta.ctime(), meta.ctime_nsec())?,
            boot_id: Uuid::parse_str(boot.trim()).ok()?,
            filesystem,
        })
    }

    /// Within how long two changes can have the same time. ext2, ext3 and ext4 with small inodes keep
    /// whole seconds, and nothing but such times tells.
    fn granularity_ns(&self) -> i64 {
        let is_whole = |time: i64| time % SECOND_NS == 0;
        let seconds = is_whole(self.mtime_ns) && is_whole(self.ctime_ns);
        if seconds { SECOND_NS + TICK_NS } else { TICK_NS }
    }

    /// The stat of a file whose content is stable: it is on disk, and any later write will change
    /// the times.
    ///
    /// Dirty pages are flushed first (a page that is mapped and already dirty is written to without
    /// a new time), and then the clock must have moved on since the last change, by more than
    /// its granularity.
    pub fn stable(file: &File) -> Option<Self> {
        file.sync_all().ok()?;
        for _ in 0..150 {
            let stat = Self::of(file)?;
            // Its times are far in the future: to wait for them is in vain.
            if stat.mtime_ns.max(stat.ctime_ns) - clock_ns()? > 2 * SECOND_NS {
                return None;
            }
            if clock_ns()? - stat.mtime_ns.max(stat.ctime_ns) > stat.granularity_ns() {
                return Some(stat);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // Somebody writes all the time, or the times lie in the future.
        None
    }
}

/// Kernels keep file times by a clock that ticks every 1 to 10 ms.
const TICK_NS: i64 = 25_000_000;
const SECOND_NS: i64 = 1_000_000_000;

fn clock_ns() -> Option<i64> {
    use nix::time::{ClockId, clock_gettime};
    let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).ok()?;
    now.tv_sec().checked_mul(1_000_000_000)?.checked_add(now.tv_nsec())
}
