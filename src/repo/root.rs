//! The folder of a repository, locked (`flock`): shared by those who may make its first image, exclusively by
//! who makes the repository, or takes it back because nothing came into it.

use crate::base::folder::{Folder, parent, resolve};
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder, and the lock on it, for as long as it lives.
pub(crate) struct Root {
    path: PathBuf,
    /// None where it cannot be opened.
    folder: Option<File>,
}

/// Whether a lock was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// It is held.
    Held,
    /// Somebody else has one, or the folder was another one by then.
    Busy,
    /// The folder is not there, or its file system has no such locks: only what is put in it decides.
    None,
}

impl Root {
    /// Opens it; nothing is locked yet.
    pub(crate) fn open(path: &Path) -> Self {
        let real = resolve(path).ok();
        let folder = real.and_then(|real| Folder::open(&real).ok()?.readable().ok());
        Self { path: path.into(), folder }
    }

    /// Locks it, shared: nobody takes the repository back.
    pub(crate) fn share(&self) -> Lock {
        self.lock(File::try_lock_shared)
    }

    /// Locks it exclusively, instead of what was held.
    pub(crate) fn take(&self) -> Lock {
        self.lock(File::try_lock)
    }

    fn lock(&self, lock: impl Fn(&File) -> Result<(), TryLockError>) -> Lock {
        let Some(folder) = &self.folder else { return Lock::None };
        match lock(folder) {
            Ok(()) if self.is_there(folder) => Lock::Held,
            Ok(()) | Err(TryLockError::WouldBlock) => Lock::Busy,
            Err(TryLockError::Error(_)) => Lock::None,
        }
    }

    /// True if it is still the one at its path: the lock on one that was removed is worth nothing.
    fn is_there(&self, folder: &File) -> bool {
        let (Ok(held), Ok(there)) = (folder.metadata(), std::fs::metadata(&self.path)) else {
            return false;
        };
        (held.dev(), held.ino()) == (there.dev(), there.ino())
    }

    /// Removes the folder, if nothing is in it.
    pub(crate) fn remove(&self) -> bool {
        let (Ok(real), Some(name)) = (resolve(parent(&self.path)), self.path.file_name()) else {
            return false;
        };
        Folder::open(&real).is_ok_and(|above| {
            let is_removed = above.remove_folder(name).is_ok();
            // That it may come back empty after a crash is no harm.
            is_removed && above.sync().map_or(true, |()| true)
        })
    }
}
