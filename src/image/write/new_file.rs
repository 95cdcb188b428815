//! A new sparse file: written without a name, or under a temporary one where the file system wants
//! a name, and given its own when it is proved. Killed before, it leaves nothing behind, or, while it has
//! the temporary one, what the next one of that name clears away.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::folder::{self, Folder};
use crate::base::message::{Action, Setting, message};
use crate::base::uri::Shown;
use crate::base::writeback::Writeback;
use crate::image::write::Target;
use crate::image::{FileAttributes, FileStat, ImageGuard, Intent, LiveIdentity, NotGiven};
use nix::fcntl::OFlag;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// How temporary names end, and how many random digits are before that.
const TEMPORARY: &str = ".tmp";
const RANDOM: usize = 12;

/// A file that does not exist under its name yet.
pub struct NewFile {
    file: File,
    path: PathBuf,
    /// What it will be in, whatever becomes of the path.
    folder: Folder,
    /// The same, to make its name durable; none if we may only pass through it.
    synced: Option<File>,
    name: OsString,
    /// Under which it can be found until then.
    temporary: OsString,
    has_temporary_name: bool,
    /// The file that will be replaced, held against other users.
    replaced: Option<(File, ImageGuard)>,
    /// To be held against other users from before it has its name on.
    is_held: bool,
    guard: ImageGuard,
    /// What it gets unless it replaces one.
    attributes: Option<FileAttributes>,
    not_given: NotGiven,
    finished: bool,
    writeback: Writeback,
}

impl NewFile {
    /// Makes a file of `bytes` zeros that will be called `path`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is such a file and `replace` is false; `Busy` if it is in use.
    pub fn create(path: &Path, bytes: u64, replace: bool) -> Result<Self> {
        let place = path.shown();
        let failed = |what: &str, e| Error::io(format!("cannot {what} {place}"), e);
        // A link stays a link: what it points to is replaced.
        let is_there = replace && path.exists();
        let path = if is_there { folder::resolve(path)? } else { folder::resolve_new(path)? };
        let name = path.file_name().unwrap_or_default().to_owned();
        let folder = Folder::of(&path).map_err(|e| failed("open the folder of", e))?;
        // Before anything has a name: what fails afterwards would leave it behind.
        let synced = match folder.readable() {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => None,
            other => Some(other.map_err(|e| failed("open the folder of", e))?),
        };
        let replaced = match folder.owned_in(&name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("access", e)),
            Ok(_) if !replace => {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("{place} exists")).hint(
                    message!["choose another name, or use ", Setting::Force, " to replace it"],
                ));
            }
            Ok(_) => {
                let old =
                    folder.file(&name, OFlag::O_RDWR, 0).map_err(|e| match e.raw_os_error() {
                        Some(libc::EAGAIN | libc::ETXTBSY) => {
                            Error::new(ErrorKind::Busy, format!("{place} is in use"))
                                .hint(message!["close it and ", Action::Retry])
                        }
                        Some(libc::ELOOP | libc::EISDIR | libc::ENXIO) => no_file(&path),
                        _ => failed("replace", e),
                    })?;
                if !old.metadata().is_ok_and(|meta| meta.is_file()) {
                    return Err(no_file(&path));
                }
                let guard = ImageGuard::take(&old, &path, Intent::Write)?;
                Some((old, guard))
            }
        };
        clear_away(&folder, &name);
        let random = uuid::Uuid::new_v4().simple().to_string();
        let mut temporary = OsString::from(".");
        temporary.push(shortened(&name));
        temporary.push(format!(".{}{TEMPORARY}", random.get(..RANDOM).unwrap_or_default()));
        let (file, has_temporary_name) = match open_nameless(&folder) {
            Some(file) => (file, false),
            None => {
                let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
                let made = folder.file(&temporary, flags, 0o600);
                (made.map_err(|e| failed("create", e))?, true)
            }
        };
        // A file system without locks: nobody clears anything away there.
        best_effort(file.try_lock());
        let (attributes, not_given) = (None, NotGiven::default());
        let (finished, writeback) = (false, Writeback::default());
        let mut target = Self {
            file,
            path,
            folder,
            synced,
            name,
            temporary,
            has_temporary_name,
            replaced,
            is_held: false,
            guard: ImageGuard::none(),
            attributes,
            not_given,
            finished,
            writeback,
        };
        target.set_length(bytes)?;
        Ok(target)
    }

    /// The same with owner, mode and extended attributes of another file, as far as the caller may give them,
    /// unless it replaces one: whose those are it gets.
    #[must_use]
    pub fn with_attributes(mut self, attributes: Option<FileAttributes>) -> Self {
        self.attributes = attributes;
        self
    }

    /// What of these it did not get, in words; none if nothing is missing that matters.
    pub fn not_given(&self) -> Option<String> {
        self.attributes.as_ref().and_then(|attributes| self.not_given.describe(attributes))
    }

    /// The file itself: what was written can be read.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it another length than that with which it was made; what is added reads as zeros.
    pub(super) fn set_length(&mut self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes).map_err(|e| self.failed("set the length of", e))
    }

    /// The same, held against other users from before it has its name until it is dropped: whoever opens it
    /// waits.
    #[must_use]
    pub fn held(mut self) -> Self {
        self.is_held = true;
        self
    }

    /// Which file it is, and what identifies its content, when it is finished; none unless it was held all
    /// the time, and if the file system does not tell.
    pub fn stable(&self) -> Option<(LiveIdentity, FileStat)> {
        let stat = FileStat::stable(&self.file).filter(|_| self.guard.is_held(&self.file))?;
        Some((LiveIdentity::of(&self.file, 0)?, stat))
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::os(what, self.path.shown(), error)
    }

    /// The commit.
    fn give_name(&mut self) -> io::Result<()> {
        let is_new = self.replaced.is_none();
        if !self.has_temporary_name {
            let to = if is_new { &self.name } else { &self.temporary };
            self.folder.link(&self.file, to)?;
            self.has_temporary_name = !is_new;
            if is_new {
                return Ok(());
            }
        }
        match is_new {
            true => self.folder.rename_new(&self.temporary, &self.name),
            false => self.folder.rename_over(&self.temporary, &self.name),
        }
    }

    /// Before it has its name: nobody ever finds it with more access than it will have.
    fn set_attributes(&mut self) -> io::Result<()> {
        if let Some((old, _)) = &self.replaced {
            let gone = || io::Error::other("it is no longer a file");
            let not_given = FileAttributes::of(old).ok_or_else(gone)?.give_to(&self.file)?;
            // What is replaced is not to become somebody else's.
            return match not_given.is_empty() {
                true => Ok(()),
                false => Err(io::ErrorKind::PermissionDenied.into()),
            };
        }
        match &self.attributes {
            Some(attributes) => self.not_given = attributes.give_to(&self.file)?,
            // Images are secrets: only the owner, whatever the umask would allow.
            None => self.file.set_permissions(PermissionsExt::from_mode(0o600))?,
        }
        Ok(())
    }
}

/// Removes what others that were killed have left of a file of this name. Who lives holds a lock.
fn clear_away(folder: &Folder, name: &OsStr) {
    let Ok(entries) = folder.entries() else { return };
    for entry in entries.into_iter().filter(|entry| is_temporary(&entry.name, name)) {
        let opened = folder.regular_file(&entry.name, OFlag::O_RDONLY, 0);
        let is_left = opened.is_ok_and(|file| file.try_lock().is_ok());
        if is_left {
            // It is in nobody's way.
            best_effort(folder.remove(&entry.name));
        }
    }
}

/// What of a long name goes into a temporary one, which must not be too long, either, also where a name may
/// have 143 bytes only (eCryptfs).
fn shortened(name: &OsStr) -> &OsStr {
    OsStr::from_bytes(name.as_bytes().get(..100).unwrap_or(name.as_bytes()))
}

fn no_file(path: &Path) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{} is not a file", path.shown()))
}

/// True for a temporary name of a file: `.NAME.0123456789ab.tmp`.
fn is_temporary(found: &OsStr, name: &OsStr) -> bool {
    let random = |found: &[u8]| -> Option<Vec<u8>> {
        let name = shortened(name).as_bytes();
        let rest = found.strip_prefix(b".")?.strip_prefix(name)?.strip_prefix(b".")?;
        Some(rest.strip_suffix(TEMPORARY.as_bytes())?.to_owned())
    };
    random(found.as_bytes())
        .is_some_and(|r| r.len() == RANDOM && r.iter().all(u8::is_ascii_hexdigit))
}

/// A file without a name (O_TMPFILE), where it can be given one later.
fn open_nameless(folder: &Folder) -> Option<File> {
    let file = folder.nameless().ok()?;
    Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())).exists().then_some(file)
}

impl Target for NewFile {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| self.failed("write", e))
    }

    fn zero(&mut self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn advance_watermark(&mut self, offset: u64) -> Result<()> {
        let advanced = self.writeback.advance(&self.file, offset);
        advanced.map_err(|e| self.failed("write", e))
    }

    fn finish(&mut self) -> Result<()> {
        self.set_attributes().map_err(|e| self.failed("set the owner and mode of", e))?;
        self.file.sync_all().map_err(|e| self.failed("sync", e))?;
        if let Some((old, guard)) = &self.replaced {
            guard.check(old, &self.path)?;
        }
        if self.is_held {
            // Without it, it is not known what the file is a moment later: no reason to fail.
            let guard = ImageGuard::take(&self.file, &self.path, Intent::Write);
            self.guard = guard.unwrap_or_else(|_| ImageGuard::none());
        }
        self.give_name().map_err(|e| self.failed("name", e))?;
        self.finished = true;
        let synced = self.synced.as_ref().map_or(Ok(()), File::sync_all);
        synced.map_err(|e| self.failed("sync the folder of", e))
    }

    fn name(&self) -> String {
        self.path.shown().to_string()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        let is_left = self.has_temporary_name && !self.finished;
        if is_left {
            // A hidden file stays behind; it is not the user's file, and nothing more can be done.
            best_effort(self.folder.remove(&self.temporary));
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
