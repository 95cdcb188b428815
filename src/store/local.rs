//! A store in an ordinary folder. Here stands the publish protocol (FORMAT.md P3): temporary name,
//! fsync, rename without replacing, fsync of the folder.

use super::{Disk, DiskFile, Listed, LockGuard, LockKind, ReserveKept, Sharing, Store, Upload};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What is put at the top where the folder is used from a file system on which locks do not keep all apart:
/// from then on nobody relies on them, nor who has it on a local one. No image can be called so.
pub(crate) const SHARED: &str = ".shared";

/// What takes the space that is kept for those who free space. No image can be called so.
pub(crate) const RESERVE: &str = ".reserve";

/// What is left beside a reserve, and less than which is none.
const LEFT_BYTES: u64 = 64 << 10;

/// Objects in a folder.
pub struct LocalStore {
    disk: Arc<dyn Disk>,
}

impl LocalStore {
    /// The store in the folder that `disk` stands for.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk }
    }

    fn error(&self, verb: &str, name: &str, error: io::Error) -> Error {
        let is_link = error.raw_os_error() == Some(libc::ELOOP);
        let error = Error::os(verb, self.disk.location(name), error);
        match is_link {
            true => error.hint("links are not followed in a repository: put the target there"),
            false => error,
        }
    }

    fn lock_error(&self, name: &str, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                let what = format!("cannot lock {}: {}", self.disk.location(name), error.kind());
                Error::new(ErrorKind::Unsupported, what)
            }
            _ if is_without_locks(&error) => {
                self.error("lock", name, error).of_kind(ErrorKind::Unsupported)
            }
            _ => self.error("lock", name, error),
        }
    }

    fn upload(&self, name: &str) -> Result<LocalUpload> {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let slash = if folder.is_empty() { "" } else { "/" };
        let random = uuid::Uuid::new_v4().simple().to_string();
        let short = random.get(..12).unwrap_or_default();
        let temporary = format!("{folder}{slash}.{file}.{short}.tmp");
        let out = self.disk.create(&temporary).map_err(|e| self.error("create", &temporary, e))?;
        Ok(LocalUpload {
            disk: self.disk.clone(),
            out: Some(out),
            name: name.into(),
            folder: folder.into(),
            temporary,
        })
    }
}

impl Store for LocalStore {
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        match self.disk.list(folder) {
            Ok(names) => Ok(names),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(Vec::new())
            }
            Err(e) => Err(self.error("list", folder, e)),
        }
    }

    fn list_timed(&self, folder: &str) -> Result<Vec<Listed>> {
        self.disk.list_timed(folder).map_err(|e| self.error("list", folder, e))
    }

    fn sharing(&self) -> Result<Sharing> {
        let has_locks =
            self.disk.has_locks().map_err(|e| self.error("find the file system of", "", e))?;
        let is_known = match self.disk.size(SHARED) {
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(self.error("open", SHARED, e)),
        };
        if !has_locks && !is_known {
            match self.put_if_absent(SHARED, b"") {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                // Nobody who cannot write changes anything, and nothing is there to be read.
                Err(e) if e.is_read_only() || e.kind() == ErrorKind::NotFound => {}
                Err(e) if e.is_storage_full() => {}
                other => other?,
            }
        }
        Ok(if has_locks && !is_known { Sharing::Locked } else { Sharing::SHARED })
    }

    fn size(&self, name: &str) -> Result<u64> {
        self.disk.size(name).map_err(|e| self.error("open", name, e))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.disk.read_at(name, offset, buffer).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                let what = format!("{} ends before byte {}", self.disk.location(name), offset);
                return Error::corrupt(what);
            }
            let place = self.disk.location(name);
            Error::os_at("read", place, offset, e)
        })
    }

    fn prefetch(&self, name: &str, offset: u64, bytes: u64) {
        self.disk.prefetch(name, offset, bytes);
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(self.upload(name)?))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut upload = self.upload(name)?;
        upload.write(bytes)?;
        upload.finish(true)
    }

    fn remove(&self, name: &str) -> Result<()> {
        match self.disk.remove(name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error("remove", name, e)),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self, folder: &str) -> Result<()> {
        self.disk.sync_folder(folder).map_err(|e| self.error("sync", folder, e))
    }

    fn create_folder(&self, folder: &str) -> Result<()> {
        match self.disk.create_folder(folder) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(self.error("create folder", folder, e)),
            Ok(()) => {}
        }
        // Also where it existed: a crash may have come between the two.
        let (above, _) = folder.rsplit_once('/').unwrap_or(("", folder));
        self.disk.sync_folder(above).map_err(|e| self.error("sync", above, e))
    }

    fn remove_folder(&self, folder: &str) -> Result<bool> {
        match self.disk.remove_folder(folder) {
            // Somebody came meanwhile, and it is his now; or there is what was never ours.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
                ) =>
            {
                Ok(false)
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(self.error("remove folder", folder, e))
            }
            _ => self.disk.sync_folder("").map(|()| true).map_err(|e| self.error("sync", "", e)),
        }
    }

    fn lock(&self, name: &str, kind: LockKind) -> Result<Option<LockGuard>> {
        self.disk.lock(name, kind).map_err(|error| {
            let needs_locks = kind == LockKind::Exclusive && is_without_locks(&error);
            let error = self.lock_error(name, error);
            // It is not taken for a shared one because of that: others may have locks, and rely on them.
            let advice = "writing requires locks, unless an empty file .shared at the top of the \
                          repository states that none are relied on (docs/stores.md)";
            if needs_locks { error.hint(advice) } else { error }
        })
    }

    fn hold(&self, lock: &str, objects: &[&str]) -> Result<Option<LockGuard>> {
        let bytes: Vec<i64> = objects.iter().map(|object| byte_of(object)).collect();
        match self.disk.share_bytes(lock, &bytes).map_err(|e| self.lock_error(lock, e))? {
            // All of them.
            None => self.lock(lock, LockKind::Shared),
            guard => Ok(guard),
        }
    }

    fn is_held(&self, lock: &str, object: Option<&str>) -> Result<bool> {
        let (byte, count) = object.map_or((0, 0), |object| (byte_of(object), 1));
        self.disk.is_shared(lock, byte, count).map_err(|e| self.lock_error(lock, e))
    }

    fn free_space(&self) -> Option<u64> {
        self.disk.free_space()
    }

    fn keep_reserve(&self, mut bytes: u64, of: ReserveKept) -> Result<()> {
        let kept = match self.disk.size(RESERVE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(|e| self.error("open", RESERVE, e))?),
        };
        if kept.is_some_and(|kept| kept >= bytes) {
            return Ok(());
        }
        let free = self.free_space().unwrap_or_default();
        if free / 2 < bytes {
            // What takes more than half of the rest is of use only to those who have just used it.
            let rest = free.saturating_sub(LEFT_BYTES);
            if of == ReserveKept::OfPlenty || kept.is_some() || rest < LEFT_BYTES {
                return Ok(());
            }
            bytes = bytes.min(rest);
        }
        // One that is too short was interrupted, or is of a smaller repository.
        self.remove(RESERVE)?;
        let mut out = self.disk.create(RESERVE).map_err(|e| self.error("create", RESERVE, e))?;
        let written = write_noise(out.as_mut(), bytes).and_then(|()| out.sync());
        if written.is_err() {
            best_effort(self.disk.remove(RESERVE));
        }
        written.map_err(|e| self.error("write", RESERVE, e))
    }

    fn release_reserve(&self) -> Result<bool> {
        match self.disk.remove(RESERVE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(|e| self.error("remove", RESERVE, e))?,
        }
        // Only then is its space free on every file system.
        self.sync_dir("").map(|()| true)
    }

    fn location(&self, name: &str) -> String {
        self.disk.location(name)
    }

    fn local_path(&self) -> Option<&Path> {
        self.disk.local_path()
    }
}

/// Writes bytes that no file system can compress, or has already.
fn write_noise(out: &mut dyn DiskFile, bytes: u64) -> io::Result<()> {
    let mut noise = blake3::Hasher::new().update(uuid::Uuid::new_v4().as_bytes()).finalize_xof();
    let mut piece = vec![0; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(piece.len() as u64) as usize;
        noise.fill(&mut piece);
        out.write(piece.get(..now).unwrap_or_default())?;
        left -= now as u64;
    }
    Ok(())
}

/// True where a file system, or what stands before it, has no locks that work.
fn is_without_locks(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP))
}

/// The byte of a lock file that stands for an object. Two that share one hold each other back, which is no
/// harm.
fn byte_of(object: &str) -> i64 {
    (xxhash_rust::xxh3::xxh3_64(object.as_bytes()) >> 2) as i64
}

struct LocalUpload {
    disk: Arc<dyn Disk>,
    out: Option<Box<dyn DiskFile>>,
    name: String,
    folder: String,
    temporary: String,
}

impl LocalUpload {
    fn error(&self, verb: &str, error: io::Error) -> Error {
        Error::os(verb, self.disk.location(&self.name), error)
    }

    fn finish(mut self, replace: bool) -> Result<()> {
        if let Some(out) = &mut self.out {
            out.sync().map_err(|e| self.error("sync", e))?;
        }
        let renamed = if replace {
            self.disk.rename_over(&self.temporary, &self.name)
        } else {
            self.disk.rename_new(&self.temporary, &self.name)
        };
        renamed.map_err(|e| self.error("publish", e))?;
        self.out = None;
        self.disk.sync_folder(&self.folder).map_err(|e| self.error("sync the folder of", e))
    }
}

impl Upload for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let outcome = self.out.as_mut().map_or(Ok(()), |out| out.write(bytes));
        outcome.map_err(|e| self.error("write", e))
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.finish(false)
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        self.finish(true)
    }
}

impl Drop for LocalUpload {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            // It stays behind; the next writer removes it.
            best_effort(self.disk.remove(&self.temporary));
        }
    }
}
