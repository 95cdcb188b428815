//! A new file that several processes write, each a range of it, and to which one of them gives its name. Who
//! writes holds a shared lock: nobody writes to a file that has its name already.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::folder::{Folder, resolve_new};
use crate::base::message::{Action, message};
use crate::base::uri::Shown;
use crate::base::writeback::Writeback;
use crate::image::write::Target;
use crate::image::{FileAttributes, LiveIdentity};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where it is, and what it is called meanwhile.
pub struct Place<'a> {
    /// What it will be called.
    pub target: &'a Path,
    /// Its name in the same folder until then.
    pub temporary: &'a str,
    /// Its length.
    pub bytes: u64,
    /// Which file it is; not known before it is made.
    pub made: Option<&'a MadeFile>,
}

/// By what the file that was made is recognised: whoever has the folder can put another one in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFile {
    /// Which file it is, if its file system tells.
    pub file: Option<LiveIdentity>,
    /// Who owned it.
    pub owner: u32,
}

impl MadeFile {
    fn of(file: &File) -> io::Result<Self> {
        Ok(Self { file: LiveIdentity::of(file, 0), owner: file.metadata()?.uid() })
    }

    /// True if a file that was found is this one.
    pub fn is(&self, found: &Self) -> bool {
        let is_owner = self.owner == found.owner;
        match (&self.file, &found.file) {
            (Some(made), Some(found)) => {
                // Two files may have had one inode, and not one birth. Its owner may be another one by now:
                // whoever gives it its name gives it that before.
                let is_certain = matches!(made, LiveIdentity::File { born_ns: Some(_), .. });
                made.difference(found).is_none() && (is_certain || is_owner)
            }
            (made, found) => made == found && is_owner,
        }
    }
}

/// A file that has not got its name yet.
pub struct SharedFile {
    file: File,
    folder: Folder,
    target: PathBuf,
    temporary: String,
    /// Where the range that is written begins.
    offset: u64,
    writeback: Writeback,
}

impl Place<'_> {
    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::os(what, self.target.with_file_name(self.temporary).shown(), error)
    }

    fn folder(&self) -> Result<Folder> {
        Folder::of(self.target).map_err(|e| self.failed("open the folder of", e))
    }

    /// Makes the file, all zeros, durably.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a file called as it will be; `Unsupported` where files cannot be locked.
    pub fn create(&self) -> Result<MadeFile> {
        let (target, folder) = (resolve_new(self.target)?, self.folder()?);
        if folder.owned_in(target.file_name().unwrap_or_default()).is_ok() {
            let what = format!("{} exists", self.target.shown());
            return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose another name"));
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let made = folder.file(self.temporary, flags, 0o600);
        let file = made.map_err(|e| self.failed("create", e))?;
        let prepare = || -> Result<()> {
            file.try_lock().map_err(|e| match e {
                TryLockError::WouldBlock => self.failed("lock", io::ErrorKind::WouldBlock.into()),
                TryLockError::Error(e) => {
                    self.failed("lock", e).of_kind(ErrorKind::Unsupported).hint(
                        "several workers can write a file only if it can be locked; restore it on one host",
                    )
                }
            })?;
            file.set_len(self.bytes).map_err(|e| self.failed("set the length of", e))?;
            file.sync_all().map_err(|e| self.failed("sync", e))?;
            folder.sync().map_err(|e| self.failed("sync the folder of", e))
        };
        let made =
            prepare().and_then(|()| MadeFile::of(&file).map_err(|e| self.failed("access", e)));
        made.inspect_err(|_| best_effort(folder.remove(self.temporary)))
    }

    /// Opens it to write to it from `offset` on.
    ///
    /// # Errors
    /// `NotFound` if it has its name already, or is gone.
    pub fn open_range(&self, offset: u64) -> Result<SharedFile> {
        let open = self.open(offset)?;
        open.file.lock_shared().map_err(|e| self.failed("lock", e))?;
        // It may have got its name while we waited.
        match open.is_unnamed() {
            true => Ok(open),
            false => Err(self.gone()),
        }
    }

    /// Opens it to give it its name.
    ///
    /// # Errors
    /// `NotFound` as of [`Self::open_range`]; `Busy` while somebody writes to it.
    pub fn open_whole(&self) -> Result<SharedFile> {
        let open = self.open(0)?;
        match open.file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let what =
                    format!("another process is still writing or joining {}", self.target.shown());
                Err(Error::new(ErrorKind::Busy, what)
                    .hint(message!["wait until it has ended, and ", Action::Retry]))
            }
            Err(TryLockError::Error(e)) => Err(self.failed("lock", e)),
            Ok(()) if open.is_unnamed() => Ok(open),
            Ok(()) => {
                // Where a file can only be renamed by a link, whoever did that may have been killed.
                let this = MadeFile::of(&open.file).map_err(|e| self.failed("access", e))?;
                if self.named().is_some_and(|named| this.is(&named)) {
                    let removed = open.folder.remove(self.temporary);
                    let removed = removed.and_then(|()| open.folder.sync());
                    removed.map_err(|e| self.failed("remove", e))?;
                }
                Err(self.gone())
            }
        }
    }

    fn open(&self, offset: u64) -> Result<SharedFile> {
        let folder = self.folder()?;
        let file = match folder.regular_file(self.temporary, OFlag::O_RDWR, 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(self.gone()),
            other => other.map_err(|e| self.failed("open", e))?,
        };
        let meta = file.metadata().map_err(|e| self.failed("access", e))?;
        let found = MadeFile::of(&file).map_err(|e| self.failed("access", e))?;
        let is_it = self.made.is_some_and(|made| made.is(&found));
        if meta.len() != self.bytes || !is_it {
            let what =
                format!("{} is not the file that was made for the plan", self.path().shown());
            return Err(Error::new(ErrorKind::Mismatch, what).hint("make a new plan"));
        }
        let (target, temporary) = (self.target.to_owned(), self.temporary.to_owned());
        Ok(SharedFile {
            file,
            folder,
            target,
            temporary,
            offset,
            writeback: Writeback::beginning_at(offset),
        })
    }

    fn gone(&self) -> Error {
        let place = self.target.with_file_name(self.temporary);
        let what = format!("{} does not exist: it was already renamed, or removed", place.shown());
        Error::new(ErrorKind::NotFound, what)
    }

    /// Where it is until it has its name.
    pub fn path(&self) -> PathBuf {
        self.target.with_file_name(self.temporary)
    }

    /// Removes it.
    ///
    /// # Errors
    /// `Busy` while somebody writes to it; `NotFound` if it is not there.
    pub fn remove(&self) -> Result<()> {
        let open = self.open_whole()?;
        open.folder.remove(self.temporary).map_err(|e| self.failed("remove", e))
    }

    /// Which file has the name that it will have, if there is one.
    pub fn named(&self) -> Option<MadeFile> {
        let flags = OFlag::O_RDONLY;
        let file = self.folder().ok()?.regular_file(self.target.file_name()?, flags, 0).ok()?;
        MadeFile::of(&file).ok()
    }
}

impl SharedFile {
    /// The name that is meant is still this file, and the only one that it has.
    fn is_unnamed(&self) -> bool {
        if !self.file.metadata().is_ok_and(|meta| meta.nlink() == 1) {
            return false;
        }
        let found = self.folder.regular_file(&self.temporary, OFlag::O_RDONLY, 0);
        let place = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        found.is_ok_and(|found| place(&found).is_some() && place(&found) == place(&self.file))
    }

    /// Gives it its name, durably. Returns what of the owner, mode and so on it did not get.
    ///
    /// # Errors
    /// `AlreadyExists` if another file has that name by now.
    pub fn give_name(self, attributes: Option<&FileAttributes>) -> Result<Option<String>> {
        let not_given = match attributes {
            Some(wanted) => {
                let given = wanted.give_to(&self.file);
                given.map_err(|e| self.failed("set the owner and mode of", e))?.describe(wanted)
            }
            // Images are secrets.
            None => {
                let only_ours = self.file.set_permissions(PermissionsExt::from_mode(0o600));
                only_ours.map(|()| None).map_err(|e| self.failed("set the mode of", e))?
            }
        };
        self.file.sync_all().map_err(|e| self.failed("sync", e))?;
        let name = self.target.file_name().unwrap_or_default();
        self.folder.rename_new(&self.temporary, name).map_err(|e| self.failed("name", e))?;
        self.folder.sync().map_err(|e| self.failed("sync the folder of", e))?;
        Ok(not_given)
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::os(what, self.target.shown(), error)
    }
}

impl Target for SharedFile {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let offset = self.offset + offset;
        self.file.write_all_at(bytes, offset).map_err(|e| self.failed("write", e))
    }

    /// It was zeros when it was made, and whoever writes writes the same.
    fn zero(&mut self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn advance_watermark(&mut self, offset: u64) -> Result<()> {
        let advanced = self.writeback.advance(&self.file, self.offset + offset);
        advanced.map_err(|e| self.failed("write", e))
    }

    fn finish(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| self.failed("sync", e))
    }

    fn name(&self) -> String {
        self.target.shown().to_string()
    }
}
