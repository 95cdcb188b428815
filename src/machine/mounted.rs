//! A file system of this host that is frozen for a moment: one that lies on the image.

use super::mount_table::{FileSystem, MountTable, mount_id};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use crate::base::sys::{freeze_file_system, thaw_file_system};
use crate::base::uri::Shown;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A mounted file system.
#[derive(Debug)]
pub struct MountedFileSystem {
    /// Its mount point, open.
    folder: File,
    place: PathBuf,
    number: FileSystem,
    /// What is written to when something is written to it.
    reached: BTreeSet<FileSystem>,
}

impl MountedFileSystem {
    /// Opens the file system that is mounted at `place`.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if nothing is mounted there.
    pub fn open(place: &Path) -> Result<Self> {
        let failed = |e| Error::os("open", place.shown(), e);
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        let open = |path: &Path| File::options().read(true).custom_flags(flags).open(path);
        let folder = open(place).map_err(failed)?;
        let above = open(&place.join("..")).map_err(failed)?;
        let meta = (folder.metadata().map_err(failed)?, above.metadata().map_err(failed)?);
        let is_root = (meta.0.dev(), meta.0.ino()) == (meta.1.dev(), meta.1.ino());
        let is_mounted = match (mount_id(folder.as_fd()), mount_id(above.as_fd())) {
            (Some(own), Some(above)) => own != above,
            _ => meta.0.dev() != meta.1.dev(),
        };
        if !is_mounted && !is_root {
            let what = format!("{} is not a mount point", place.shown());
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .hint("use the folder on which the file system is mounted"));
        }
        // It may have been mounted when it was opened.
        let table = MountTable::read();
        let number = table.file_system_of(folder.as_fd()).unwrap_or(meta.0.dev());
        let reached = table.reached(place);
        Ok(Self { folder, place: place.to_owned(), number, reached })
    }

    /// A descriptor of it.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Its mount point.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// True if both are the same file system, mounted twice.
    pub fn is_same(&self, other: &Self) -> bool {
        self.number == other.number
    }

    /// True if it lies on the other one: that has to be frozen after it, and thawed before it.
    pub fn lies_on(&self, other: &Self) -> bool {
        !self.is_same(other) && self.reached.contains(&other.number)
    }

    /// Fails if something that is written to while it is frozen lies on it: `what` says what it is.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn refuse_if_reached(&self, reached: &BTreeSet<FileSystem>, what: &str) -> Result<()> {
        if !reached.contains(&self.number) {
            return Ok(());
        }
        let what = format!("{} cannot be frozen: {what} is on it", self.place.shown());
        Err(Error::new(ErrorKind::InvalidInput, what)
            .hint("freeze only a file system that lies on the image"))
    }

    /// Freezes it. That takes as long as its device takes for what is dirty.
    ///
    /// # Errors
    /// `Busy` if it is frozen; `Unsupported` if it cannot be frozen; what the system refuses. Then it is not
    /// frozen by us.
    pub fn freeze(&self) -> Result<()> {
        freeze_file_system(self.file()).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => {
                let what = format!("{} is already frozen by another program", self.place.shown());
                Error::new(ErrorKind::Busy, what)
                    .hint(message![Action::Retry, " when it is thawed"])
            }
            Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS) => {
                let what =
                    format!("{}: file systems of this type cannot be frozen", self.place.shown());
                Error::new(ErrorKind::Unsupported, what)
            }
            Some(libc::EPERM | libc::EACCES) => {
                self.failed("freeze", e).hint("only root may freeze a file system")
            }
            _ => self.failed("freeze", e),
        })
    }

    /// Thaws it. False if it was not frozen any more.
    ///
    /// # Errors
    /// What the system refuses: it may still be frozen.
    pub fn thaw(&self) -> Result<bool> {
        match thaw_file_system(self.file()) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(e) => Err(self
                .failed("thaw", e)
                .hint(format!("thaw it: fsfreeze -u {}", self.place.shown()))),
        }
    }

    fn failed(&self, operation: &str, e: io::Error) -> Error {
        Error::os(operation, self.place.shown(), e)
    }
}
