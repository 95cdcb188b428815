//! What the machine overwrites while its disks are read is kept in files that have no name, so none is ever
//! left, and of which QEMU gets descriptors, so it need not be allowed where they lie.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::folder::{Folder, resolve};
use crate::base::free_space::free_space_in;
use crate::base::uri::Shown;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// With less free space nothing is begun.
const LEAST_FREE: u64 = 16 << 20;
/// With less than such a part of the disks free a warning is given.
const SCARCE: u64 = 20;
/// What a full file system does not give.
const PROBE: i64 = 1 << 20;

/// Where scratch files are made.
pub struct ScratchFolder {
    folder: Folder,
    path: PathBuf,
}

impl ScratchFolder {
    /// Opens it, and looks at its free space. `bytes` are those of all disks.
    ///
    /// # Errors
    /// Of the operating system; one that says that the storage is full.
    pub fn open(path: &Path, bytes: u64, context: &Context) -> Result<Self> {
        let failed = |e| Error::os("open the folder for scratch files", path.shown(), e);
        let real = resolve(path)?;
        let folder = Folder::open(&real).map_err(failed)?;
        let free = free_space_in(&real).map_err(failed)?;
        let place = path.shown();
        if free < LEAST_FREE {
            let full = io::ErrorKind::StorageFull.into();
            let mib = LEAST_FREE >> 20;
            let what = format!("a scratch file in {place} needs at least {mib} MiB");
            return Err(Error::io(what, full).of_kind(ErrorKind::LimitExceeded));
        }
        if free < bytes / SCARCE {
            let (free, all) = (free >> 20, bytes >> 20);
            context.warn(
                WarningId::ScratchScarce,
                format!(
                    "{place} has {free} MiB of free space for data overwritten on {all} MiB of disks: if \
                     that is too little, the snapshot fails"
                ),
            );
        }
        Ok(Self { folder, path: path.to_owned() })
    }

    /// Makes a file as long as a disk.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn file(&self, bytes: u64) -> Result<Scratch> {
        let place = self.path.shown().to_string();
        let failed = |e| Error::os("create a scratch file in", &place, e);
        let file = self.folder.nameless().or_else(|_| self.unlinked()).map_err(failed)?;
        file.set_len(bytes).map_err(failed)?;
        Ok(Scratch { file, bytes, place })
    }

    /// Where the file system has no files without names.
    fn unlinked(&self) -> io::Result<File> {
        let name = format!(".imgsnap-scratch-{}", uuid::Uuid::new_v4().simple());
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = self.folder.file(&name, flags, 0o600)?;
        self.folder.remove(&name)?;
        Ok(file)
    }
}

/// A scratch file.
pub struct Scratch {
    file: File,
    bytes: u64,
    /// Its folder, as it is shown.
    place: String,
}

impl Scratch {
    /// Its descriptor.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Why nothing can be read that needs it, when that is so.
    pub fn error(&self, timeout: u64) -> Error {
        let place = &self.place;
        if self.is_full() {
            let what = format!("the scratch file in {place} is full: the snapshot failed");
            let full = io::ErrorKind::StorageFull.into();
            return Error::io(what, full).hint("free some space there, or use another folder");
        }
        let what = format!(
            "a write to the scratch file in {place} failed, or took longer than {timeout} s: the \
             snapshot failed"
        );
        Error::new(ErrorKind::Unavailable, what).hint("use a folder on another disk")
    }

    /// True if the file system, or a quota, gives it no more.
    fn is_full(&self) -> bool {
        let end = self.bytes as i64;
        // Behind its end nothing is read, and nothing else is looked for there.
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, end, PROBE) {
            Ok(()) => {
                best_effort(self.file.set_len(self.bytes));
                false
            }
            Err(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => true,
            Err(_) => nix::sys::statvfs::fstatvfs(&self.file).is_ok_and(|stat| {
                stat.blocks_available().saturating_mul(stat.fragment_size()) < PROBE as u64
            }),
        }
    }
}
