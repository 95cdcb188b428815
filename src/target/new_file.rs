//! A new sparse file: written without a name, or under a temporary one where the file system wants
//! a name, and given its own when it is proved. Killed before, it leaves nothing behind, or, while it has
//! the temporary one, what the next one of that name clears away.

use super::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ImageGuard, Intent};
use crate::writeback::Writeback;
use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::unistd::linkat;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// How temporary names end, and how many random digits are before that.
const TEMPORARY: &str = ".tmp";
const RANDOM: usize = 12;

/// A file that does not exist under its name yet.
pub struct NewFile {
    file: File,
    path: PathBuf,
    /// Under which it can be found until then.
    temporary: PathBuf,
    has_temporary_name: bool,
    /// The file that will be replaced, held against other users.
    replaced: Option<(File, ImageGuard)>,
    finished: bool,
    writeback: Writeback,
}

impl NewFile {
    /// Makes a file of `bytes` zeros that will be called `path`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is such a file and `replace` is false; `Busy` if it is in use.
    pub fn create(path: &Path, bytes: u64, replace: bool) -> Result<Self> {
        let place = path.display();
        let failed = |what: &str, e| Error::io(format!("cannot {what} {place}"), e);
        // A link stays a link: what it points to is replaced.
        let path =
            if replace { std::fs::canonicalize(path).unwrap_or(path.into()) } else { path.into() };
        let replaced = match std::fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("look at", e)),
            Ok(_) if !replace => {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("{place} exists"))
                    .hint("choose another name, or --force to replace it"));
            }
            Ok(meta) if !meta.is_file() => {
                return Err(Error::new(ErrorKind::InvalidInput, format!("{place} is no file")));
            }
            Ok(_) => {
                let options = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path);
                let old = options.map_err(|e| match e.raw_os_error() {
                    Some(libc::EAGAIN | libc::ETXTBSY) => {
                        Error::new(ErrorKind::Busy, format!("{place} is in use"))
                            .hint("close it and run the command again")
                    }
                    _ => failed("replace", e),
                })?;
                let guard = ImageGuard::take(&old, &path, Intent::Write)?;
                Some((old, guard))
            }
        };
        let name = path.file_name().ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("{place} is no name of a file"))
        })?;
        clear_away(folder_of(&path), name);
        let random = uuid::Uuid::new_v4().simple().to_string();
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}{TEMPORARY}", random.get(..RANDOM).unwrap_or_default()));
        let temporary = path.with_file_name(hidden);
        let (file, has_temporary_name) = match open_nameless(folder_of(&path)) {
            Some(file) => (file, false),
            None => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create_new(true).mode(0o600);
                (options.open(&temporary).map_err(|e| failed("create", e))?, true)
            }
        };
        if file.try_lock().is_err() {
            // A file system without locks: nobody clears anything away there.
        }
        let (finished, writeback) = (false, Writeback::default());
        let target =
            Self { file, path, temporary, has_temporary_name, replaced, finished, writeback };
        target.file.set_len(bytes).map_err(|e| target.failed("set the length of", e))?;
        Ok(target)
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::io(format!("cannot {what} {}", self.path.display()), error)
    }

    /// The commit.
    fn give_name(&mut self) -> io::Result<()> {
        let is_new = self.replaced.is_none();
        if !self.has_temporary_name {
            let to = if is_new { &self.path } else { &self.temporary };
            let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(AT_FDCWD, link.as_str(), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW)?;
            self.has_temporary_name = !is_new;
            if is_new {
                return Ok(());
            }
        }
        if !is_new {
            return std::fs::rename(&self.temporary, &self.path);
        }
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(AT_FDCWD, &self.temporary, AT_FDCWD, &self.path, flags) {
            Err(nix::Error::EINVAL | nix::Error::ENOSYS) => {
                std::fs::hard_link(&self.temporary, &self.path)?;
                std::fs::remove_file(&self.temporary)
            }
            other => Ok(other?),
        }
    }

    /// A replaced file keeps its owner and mode; a new one gets what other programs give it.
    fn set_owner_and_mode(&self) -> io::Result<()> {
        match &self.replaced {
            Some((old, _)) => {
                let meta = old.metadata()?;
                fchown(&self.file, Some(meta.uid()), Some(meta.gid()))?;
                self.file.set_permissions(meta.permissions())
            }
            // Images are secrets: only the owner, whatever the umask would allow.
            None => self.file.set_permissions(PermissionsExt::from_mode(0o600)),
        }
    }
}

/// Removes what others that were killed have left of a file of this name. Who lives holds a lock.
fn clear_away(folder: &Path, name: &OsStr) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| is_temporary(&entry.file_name(), name)) {
        let path = entry.path();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let is_left = opened.is_ok_and(|file| file.try_lock().is_ok());
        if is_left && std::fs::remove_file(&path).is_err() {
            // It is in nobody's way.
        }
    }
}

/// True for a temporary name of a file: `.NAME.0123456789ab.tmp`.
fn is_temporary(found: &OsStr, name: &OsStr) -> bool {
    let random = |found: &[u8]| -> Option<Vec<u8>> {
        let rest = found.strip_prefix(b".")?.strip_prefix(name.as_bytes())?.strip_prefix(b".")?;
        Some(rest.strip_suffix(TEMPORARY.as_bytes())?.to_owned())
    };
    random(found.as_bytes())
        .is_some_and(|r| r.len() == RANDOM && r.iter().all(u8::is_ascii_hexdigit))
}

/// A file without a name (O_TMPFILE), where it can be given one later.
fn open_nameless(folder: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    let file = options.open(folder).ok()?;
    Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())).exists().then_some(file)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Target for NewFile {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| self.failed("write", e))
    }

    fn zero(&mut self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn settled(&mut self, offset: u64) -> Result<()> {
        let advanced = self.writeback.advance(&self.file, offset);
        advanced.map_err(|e| self.failed("write", e))
    }

    fn finish(&mut self) -> Result<()> {
        self.set_owner_and_mode().map_err(|e| self.failed("set the owner of", e))?;
        self.file.sync_all().map_err(|e| self.failed("sync", e))?;
        if let Some((old, guard)) = &self.replaced {
            guard.check(old, &self.path)?;
        }
        self.give_name().map_err(|e| self.failed("name", e))?;
        self.finished = true;
        let synced = File::open(folder_of(&self.path)).and_then(|folder| folder.sync_all());
        synced.map_err(|e| self.failed("sync the folder of", e))
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        let is_left = self.has_temporary_name && !self.finished;
        if is_left && std::fs::remove_file(&self.temporary).is_err() {
            // A hidden file stays behind; it is not the user's file, and nothing more can be done.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_one_left_is_cleared_away_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let left = ".a.img.0123456789ab.tmp";
        let held = ".a.img.ba9876543210.tmp";
        let others = [".b.img.0123456789ab.tmp", ".a.img.mine.tmp", ".a.img.0123456789ab", held];
        others.iter().chain([&left]).for_each(|name| std::fs::write(path(name), "x").unwrap());
        let holder = File::open(path(held)).unwrap();
        holder.lock().unwrap();
        drop(NewFile::create(&path("a.img"), 10, false).unwrap());
        assert!(!path(left).exists());
        assert!(others.iter().all(|name| path(name).exists()));
    }
}
