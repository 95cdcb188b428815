//! Where QEMU keeps what a machine overwrites while its disks are read.
//!
//! In libvirt's backups a write of the machine fails when its scratch file cannot grow. So the space that it
//! may need is given to the file before: all of it if the file system has twice as much, otherwise half of
//! what is free. In the second case somebody looks at how much of it is used, and ends the backup before the
//! last part is: what is left is for what the machine writes meanwhile.

use super::names;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::free_space::free_space_in;
use crate::base::uri::Shown;
use crate::image::qemu::PrivateFolder;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// With less free space nothing is begun.
const LEAST_FREE: u64 = 64 << 20;
/// The part of what is reserved for a file that is left when the backup is ended: one of so many.
const LAST_PART: u64 = 4;
/// As much of it at the most.
const MOST_LEFT: u64 = 1 << 30;
/// QEMU passes through it, and nobody else finds the names in it.
const MODE: u32 = 0o711;

/// The scratch files of a backup.
pub struct Scratch {
    /// Dropped, it is removed with all that is in it.
    folder: PrivateFolder,
    files: Vec<ScratchFile>,
}

/// One of them.
pub struct ScratchFile {
    path: PathBuf,
    file: File,
    /// It may become so long; none if no space could be reserved.
    reserved: Option<u64>,
    /// It never becomes longer.
    worst: u64,
}

impl Scratch {
    /// Makes one file for each disk of so many bytes.
    ///
    /// # Errors
    /// `LimitExceeded` without free space; `Unsupported` without `qemu-img`; of the operating system.
    pub fn create(place: &Path, disks: &[u64], context: &Context) -> Result<Self> {
        let failed = |e| Error::os("use the folder for scratch files", place.shown(), e);
        let folder = PrivateFolder::create_as(place, names::FOLDER, MODE)?;
        // Whatever the umask is.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(MODE)).map_err(failed)?;
        let free = free_space_in(folder.path()).map_err(failed)?;
        if free < LEAST_FREE {
            let full = io::ErrorKind::StorageFull.into();
            let mib = LEAST_FREE >> 20;
            let what = format!("the scratch files in {} need at least {mib} MiB", place.shown());
            return Err(Error::io(what, full).of_kind(ErrorKind::LimitExceeded));
        }
        let all: u64 = disks.iter().map(|bytes| worst_case(*bytes)).sum();
        let budget = all.min(free / 2);
        if budget < all {
            let (has, needs) = (budget >> 20, all >> 20);
            let what = format!(
                "{} has {has} MiB for data overwritten on {needs} MiB of disks: if that is too \
                 little, the snapshot fails",
                place.shown()
            );
            context.warn(WarningId::ScratchScarce, what);
        }
        let mut files = Vec::new();
        for (index, bytes) in disks.iter().enumerate() {
            let path = folder.path().join(format!("{index}.qcow2"));
            create_qcow2(&path, *bytes)?;
            // libvirt gives it to the user of QEMU.
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
            let file = File::options().write(true).open(&path).map_err(failed)?;
            let worst = worst_case(*bytes);
            // In the proportion of the disks.
            let share = u128::from(worst) * u128::from(budget) / u128::from(all.max(1));
            let reserved = reserve(&file, share as u64).map_err(failed)?;
            files.push(ScratchFile { path, file, reserved, worst });
        }
        Ok(Self { folder, files })
    }

    /// The folder.
    pub fn folder(&self) -> &PrivateFolder {
        &self.folder
    }

    /// Where the file of a disk is.
    pub fn path(&self, index: usize) -> Option<&Path> {
        self.files.get(index).map(|file| file.path.as_path())
    }

    /// True if somebody has to look whether they become too long.
    pub fn is_to_watch(&self) -> bool {
        self.files.iter().any(|file| file.reserved.is_none_or(|reserved| reserved < file.worst))
    }

    /// True if one of them has used up its space, but for the last of it.
    pub fn is_short(&self) -> bool {
        self.files.iter().any(|file| match file.reserved {
            Some(reserved) if reserved >= file.worst => false,
            Some(reserved) => {
                let left = (reserved / LAST_PART).min(MOST_LEFT);
                file.file.metadata().is_ok_and(|meta| meta.len() > reserved.saturating_sub(left))
            }
            None => {
                free_space_in(self.folder.path()).is_ok_and(|free| free < MOST_LEFT / LAST_PART)
            }
        })
    }

    /// How much of them is used, in bytes.
    pub fn used(&self) -> u64 {
        self.files.iter().filter_map(|file| Some(file.file.metadata().ok()?.len())).sum()
    }

    /// Why there is no snapshot, when they were too short.
    pub fn error(&self) -> Error {
        let place = self.folder.path().parent().unwrap_or(Path::new("/")).shown().into_owned();
        let mib = self.used() >> 20;
        let what = format!(
            "the scratch space in {place} is used up: the machine overwrote {mib} MiB, and the \
             backup was ended before a write of the machine could fail"
        );
        Error::io(what, io::ErrorKind::StorageFull.into())
            .hint("free some space there, or use another folder")
    }
}

/// The most that a qcow2 file takes over a disk: its clusters, and the tables that lead to them.
fn worst_case(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 4096).saturating_add(1 << 20)
}

/// Reserves space behind what a file has; none where the file system cannot.
fn reserve(file: &File, bytes: u64) -> io::Result<Option<u64>> {
    let bytes = bytes.max(file.metadata()?.size());
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        Ok(()) => Ok(Some(bytes)),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn create_qcow2(path: &Path, bytes: u64) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(bytes.to_string());
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    let ended = command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::Unsupported,
            "qemu-img, which creates scratch files, is not installed",
        )
        .hint("install it (qemu-utils)"),
        _ => Error::io("cannot start qemu-img", e),
    })?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().escape_debug().to_string();
    let what = format!("cannot create the scratch file {}: {said}", path.shown());
    Err(Error::new(ErrorKind::Io, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_a_machine_may_overwrite_is_reserved_and_the_end_of_it_is_seen() {
        if !Command::new("qemu-img").arg("--version").output().is_ok_and(|o| o.status.success()) {
            return eprintln!("skipped: there is no qemu-img");
        }
        let place = tempfile::tempdir().unwrap();
        let mut scratch =
            Scratch::create(place.path(), &[8 << 20, 1 << 20], &Context::silent()).unwrap();
        let path = scratch.path(0).unwrap().to_owned();
        let meta = path.metadata().unwrap();
        let Some(reserved) = scratch.files[0].reserved else {
            return eprintln!("skipped: no space can be reserved in {}", path.display());
        };
        assert_eq!(reserved, worst_case(8 << 20));
        assert!(meta.blocks() * 512 >= 8 << 20 && meta.len() < 1 << 20, "{meta:?}");
        assert!(!scratch.is_to_watch() && !scratch.is_short());
        // As where there is less.
        scratch.files[0].reserved = Some(4 << 20);
        assert!(scratch.is_to_watch() && !scratch.is_short());
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(&vec![1; 3 << 20]).unwrap();
        assert!(scratch.is_short());
        let error = scratch.error().to_string();
        assert!(error.contains("is used up: the machine overwrote 3 MiB"), "{error}");
        drop(scratch);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
