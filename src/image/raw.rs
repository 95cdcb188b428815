//! Raw images: regular files and block devices, read through mapped windows.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::folder::{self, Folder};
use crate::base::message::{Action, message};
use crate::base::sys::{self, MappedWindow};
use crate::base::units::{Extent, ExtentKind};
use crate::base::uri::Shown;
use crate::image::device::DeviceWatch;
use crate::image::guard::find_user;
use crate::image::{FileStat, ImageGuard, Intent, LiveIdentity, Source, Window};
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek64};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Less than this is read plainly: to map it would cost more than to copy it.
const SMALL_BYTES: usize = 128 << 10;

/// A raw image, held against writers for as long as it is open.
pub struct RawFile {
    file: File,
    path: PathBuf,
    image_bytes: u64,
    /// Of a block device.
    watch: Option<DeviceWatch>,
    guard: ImageGuard,
    opened: (i64, i64, i64, i64),
    can_populate: AtomicBool,
    cold: UncachedParts,
    /// We wrote to it ourselves: its times say nothing about others any more.
    is_written: AtomicBool,
}

impl RawFile {
    /// Opens an image for reading.
    ///
    /// # Errors
    /// `NotFound`, `InvalidInput` for a folder, an empty file or anything else that is not an
    /// image, `Busy` if somebody has it open for writing, `Io` if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_for(path, Intent::Read, true)
    }

    /// The same of a path without links; should one be there by now, it is not followed.
    ///
    /// # Errors
    /// As [`RawFile::open`].
    pub fn open_real(path: &Path) -> Result<Self> {
        let is_file = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        Self::open_for(path, Intent::Read, !is_file)
    }

    /// Opens an image to change it in place. Links are followed only if they are no stranger's.
    pub fn open_to_write(path: &Path) -> Result<Self> {
        Self::open_for(&folder::resolve(path)?, Intent::Write, false)
            .map(|image| image.called(path))
    }

    /// The same under the name that a user gave it.
    fn called(self, path: &Path) -> Self {
        Self { path: path.into(), ..self }
    }

    /// Opens an image file that others write to, to be cloned, not to be read.
    ///
    /// # Errors
    /// `Unsupported` for anything but a regular file.
    pub fn open_in_use(path: &Path) -> Result<Self> {
        let opened = std::fs::canonicalize(path).and_then(|real| {
            let name = real.file_name().unwrap_or_default();
            Folder::of(&real)?.file(name, OFlag::O_RDONLY, 0)
        });
        let file = opened.map_err(|e| open_error(path, e))?;
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            let what = format!("{} is not a file", path.shown());
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Self::unguarded(file, path)
    }

    /// A file that nobody can write to: there is no other descriptor of it, and it has no name. It is
    /// called `path` in messages.
    pub fn unguarded(file: File, path: &Path) -> Result<Self> {
        let failed = |e| Error::os("access", path.shown(), e);
        Ok(Self {
            image_bytes: file.metadata().map_err(failed)?.len(),
            opened: times(&file, path)?,
            file,
            path: path.into(),
            watch: None,
            guard: ImageGuard::none(),
            can_populate: AtomicBool::new(true),
            cold: UncachedParts::default(),
            is_written: AtomicBool::new(false),
        })
    }

    /// The first other process that has the image open for writing, as far as we may see.
    pub fn user(&self) -> Option<String> {
        find_user(&self.file, Intent::Read)
    }

    fn open_for(path: &Path, intent: Intent, follows: bool) -> Result<Self> {
        let place = path.shown();
        let meta = std::fs::metadata(path).map_err(|e| Error::os("open image", &place, e))?;
        let is_device = meta.file_type().is_block_device();
        if !meta.is_file() && !is_device {
            let what = if meta.is_dir() { "a folder" } else { "neither a file nor a block device" };
            return Err(Error::new(ErrorKind::InvalidInput, format!("{place} is {what}"))
                .hint("name a raw disk image or a block device"));
        }
        let opened = if follows {
            let flags = if is_device { libc::O_EXCL } else { 0 };
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags | libc::O_NONBLOCK).open(path)
        } else {
            // What was resolved, and nothing that was put in its place since.
            let access = if intent == Intent::Read { OFlag::O_RDONLY } else { OFlag::O_RDWR };
            let flags = if is_device { access | OFlag::O_EXCL } else { access };
            let name = path.file_name().unwrap_or_default();
            Folder::of(path).and_then(|folder| folder.file(name, flags, 0))
        };
        let mut file = opened.map_err(|e| open_error(path, e))?;
        let is_device = file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        let image_bytes =
            file.seek(SeekFrom::End(0)).map_err(|e| Error::os("find the length of", &place, e))?;
        if image_bytes == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{place} is empty (0 bytes)"))
                .hint("name a raw disk image"));
        }
        let guard = ImageGuard::take(&file, path, intent)?;
        let watch = is_device.then(|| DeviceWatch::begin(&file, path, intent)).transpose()?;
        let opened = times(&file, path)?;
        let can_populate = AtomicBool::new(true);
        let path = path.into();
        let is_written = AtomicBool::new(false);
        let cold = UncachedParts::default();
        Ok(Self { file, path, image_bytes, watch, guard, opened, can_populate, cold, is_written })
    }

    /// The open file, for a target that writes the same image.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for a block device.
    pub fn is_device(&self) -> bool {
        self.watch.is_some()
    }

    /// True for a device of the device mapper whose id begins so: that of a volume manager.
    pub fn is_mapped_by(&self, prefix: &str) -> bool {
        let Some(LiveIdentity::Device(device)) = self.identity() else { return false };
        device.mapped.is_some_and(|id| id.starts_with(prefix))
    }

    /// True unless it is a device that other processes may have open unseen.
    pub fn sees_all_users(&self) -> bool {
        self.watch.as_ref().is_none_or(|watch| watch.sees_all)
    }

    /// What tells it from another file or device that has its path.
    pub fn identity(&self) -> Option<LiveIdentity> {
        LiveIdentity::of(&self.file, self.image_bytes)
    }

    /// Fails if it is a device that somebody else uses now in a way that does not go together with `intent`.
    ///
    /// # Errors
    /// `Busy`, with his name.
    pub fn check_alone(&self, intent: Intent) -> Result<()> {
        self.check()?;
        let watch = self.watch.as_ref();
        watch.map_or(Ok(()), |watch| watch.refuse_others(intent).map(drop))
    }

    /// What identifies its present content, if that can be trusted: only while the kernel keeps
    /// writers off. (One long write sets the times once, at its beginning.)
    pub fn stable_stat(&self) -> Option<FileStat> {
        let stat = FileStat::stable(&self.file)?;
        self.guard.is_held(&self.file).then_some(stat)
    }

    /// Lets go of what keeps others off: whoever waits for the image goes on. It cannot be relied on any
    /// more.
    pub fn release(&self) {
        self.guard.release(&self.file);
    }

    /// True if the system keeps writers off: then nobody can have changed it unnoticed.
    pub fn is_guarded(&self) -> bool {
        self.is_device() || self.guard.is_held(&self.file)
    }

    /// Leaves nothing of the file in the page cache.
    pub fn forget(&self) {
        advise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }

    /// To be called before the first write of our own.
    ///
    /// # Errors
    /// `Busy` if the image is no longer what it was when it was opened.
    pub fn begin_writing(&self) -> Result<()> {
        self.check_alone(Intent::Write)?;
        self.is_written.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads as much of it as can be read: how many bytes, and the error of the first one that the medium
    /// does not give.
    ///
    /// # Errors
    /// As of [`Source::read_until_bad`].
    pub fn read_into(&self, offset: u64, into: &mut [u8]) -> Result<(usize, Option<Error>)> {
        let mut have = 0;
        while let Some(rest) = into.get_mut(have..).filter(|rest| !rest.is_empty()) {
            let at = offset + have as u64;
            match self.file.read_at(rest, at) {
                Ok(0) => return Err(self.truncated(at)),
                Ok(n) => have += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let error = Error::os_at("read", self.path.shown(), at, e);
                    return if error.is_bad_medium() {
                        Ok((have, Some(error)))
                    } else {
                        Err(error)
                    };
                }
            }
        }
        Ok((have, None))
    }

    fn truncated(&self, at: u64) -> Error {
        let what = format!("{} became shorter while it was being read", self.path.shown());
        Error::new(ErrorKind::Busy, format!("{what} (no byte at {at})"))
            .hint(message![Action::Retry, " when nothing changes it"])
    }
}

fn open_error(path: &Path, error: std::io::Error) -> Error {
    if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::ETXTBSY)) {
        let what = format!("{} is mounted or in use", path.shown());
        return Error::new(ErrorKind::Busy, what)
            .hint(message!["unmount it, or wait for its user, and ", Action::Retry]);
    }
    Error::os("open image", path.shown(), error)
}

fn times(file: &File, path: &Path) -> Result<(i64, i64, i64, i64)> {
    let meta = file.metadata().map_err(|e| Error::os("stat", path.shown(), e))?;
    Ok((meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

impl Source for RawFile {
    fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let rest = self.image_bytes - offset;
        let all = |kind| Ok(Extent { offset, bytes: rest, kind });
        if self.is_device() {
            return all(ExtentKind::Data);
        }
        let until = |end: i64, kind| {
            let end = (end as u64).clamp(offset + 1, self.image_bytes);
            Ok(Extent { offset, bytes: end - offset, kind })
        };
        match lseek64(&self.file, offset as i64, Whence::SeekData) {
            Ok(data) if data as u64 > offset => until(data, ExtentKind::Hole),
            Ok(_) => match lseek64(&self.file, offset as i64, Whence::SeekHole) {
                Ok(hole) => until(hole, ExtentKind::Data),
                // No SEEK_DATA here: treat everything as data.
                Err(_) => all(ExtentKind::Data),
            },
            // No data from here on; or the file was truncated, which `check` finds.
            Err(nix::Error::ENXIO) => all(ExtentKind::Hole),
            Err(_) => all(ExtentKind::Data),
        }
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        if bytes > SMALL_BYTES && self.can_populate.load(Ordering::Relaxed) {
            let cold = self.cold.is_cold(&self.file, offset, self.image_bytes);
            let forget =
                cold.then(|| DropFromCache { file: &self.file, offset, bytes: bytes as u64 });
            match MappedWindow::new(&self.file, offset, bytes) {
                Ok(window) => return Ok(Window::Mapped(window, forget)),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                    self.can_populate.store(false, Ordering::Relaxed);
                }
                Err(_) => {}
            }
        }
        // Plain reads tell which byte fails.
        self.read_copied(offset, bytes, buffer)
    }

    fn read_until_bad(
        &self,
        offset: u64,
        bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Error>> {
        buffer.resize(bytes, 0);
        let (have, bad) = self.read_into(offset, buffer)?;
        buffer.truncate(have);
        Ok(bad)
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        advise(&self.file, offset, bytes, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }

    fn check(&self) -> Result<()> {
        self.guard.check(&self.file, &self.path)?;
        if self.is_device() || self.is_written.load(Ordering::Relaxed) {
            return Ok(());
        }
        let failed = |e| Error::os("stat", self.path.shown(), e);
        let bytes = self.file.metadata().map_err(failed)?.len();
        if bytes != self.image_bytes || times(&self.file, &self.path)? != self.opened {
            let what = format!("{} changed while it was being read", self.path.shown());
            return Err(Error::new(ErrorKind::Busy, what)
                .hint(message![Action::Retry, " when nothing writes to it"]));
        }
        Ok(())
    }

    fn check_at_end(&self) -> Result<()> {
        self.check()?;
        match &self.watch {
            Some(watch) if !self.is_written.load(Ordering::Relaxed) => {
                watch.refuse_changes(&self.file)
            }
            _ => Ok(()),
        }
    }

    fn name(&self) -> String {
        self.path.shown().to_string()
    }
}

/// The page cache is left as it was found: what others had cached stays, what only we read goes. A
/// backup that throws the working set of the host out of memory is a bad guest.
///
/// Drops a range from the cache when it is dropped itself, which must be after the range was unmapped.
pub struct DropFromCache<'a> {
    file: &'a File,
    offset: u64,
    bytes: u64,
}

/// In which parts of the file nothing was cached before we came. It is decided once for each part,
/// when its first byte is read, by a look at places that readahead for what we read before (some
/// megabytes) does not reach; looking everywhere would cost more than reading.
#[derive(Default)]
struct UncachedParts(Mutex<Vec<(u64, bool)>>);

impl UncachedParts {
    const PART_BYTES: u64 = 128 << 20;
    const LOOK_BYTES: u64 = 64 << 10;

    fn is_cold(&self, file: &File, offset: u64, image_bytes: u64) -> bool {
        let part = offset / Self::PART_BYTES;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cold)) = known.iter().find(|(number, _)| *number == part) {
            return *cold;
        }
        let start = part * Self::PART_BYTES;
        let bytes = Self::PART_BYTES.min(image_bytes - start);
        let looks =
            [bytes / 2, bytes / 8 * 5, bytes / 4 * 3, bytes.saturating_sub(Self::LOOK_BYTES)];
        let is_empty = |at: &u64| sys::cached_pages(file, start + at, Self::LOOK_BYTES) == Some(0);
        let cold = looks.iter().all(is_empty);
        // The threads are never far apart.
        known.truncate(3);
        known.insert(0, (part, cold));
        cold
    }
}

impl Drop for DropFromCache<'_> {
    fn drop(&mut self) {
        advise(self.file, self.offset, self.bytes, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// Only advice: a file system that does not take it does as it likes.
fn advise(file: &File, offset: u64, bytes: u64, advice: PosixFadviseAdvice) {
    posix_fadvise(file, offset as i64, bytes as i64, advice).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_page_cache_is_left_as_it_was_found() {
        const BYTES: u64 = 4 << 20;
        let mut named = tempfile::NamedTempFile::new().unwrap();
        named.write_all(&vec![7; BYTES as usize]).unwrap();
        named.as_file().sync_all().unwrap();
        let path = named.into_temp_path();
        let cached = || sys::cached_pages(&File::open(&path).unwrap(), 0, BYTES);
        let Some(1..) = cached() else {
            println!("skipped: this kernel does not tell what is cached");
            return;
        };
        let warm = cached();
        let source = RawFile::open(&path).unwrap();
        let mut buffer = Vec::new();
        let window = source.read(0, BYTES as usize / 2, &mut buffer).unwrap();
        assert_eq!(cached(), warm, "what was cached stays, already before it is read");
        drop(window);
        assert_eq!(cached(), warm, "and after it was read");
        let drop_all = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        // What the kernel reclaims or moves in that moment stays, whatever is advised.
        let attempts = [(); 5].map(|()| {
            let source = RawFile::open(&path).unwrap();
            posix_fadvise(&source.file, 0, 0, drop_all).unwrap();
            let before = cached().unwrap();
            for offset in [0, BYTES / 2] {
                let window = source.read(offset, BYTES as usize / 2, &mut buffer).unwrap();
                assert!(window.bytes().iter().all(|&b| b == 7));
            }
            (before, cached().unwrap())
        });
        if attempts.iter().all(|(before, _)| *before > 0) {
            println!("skipped: this file system keeps its pages");
            return;
        }
        let mut dropped = attempts.iter().filter(|(before, _)| *before == 0);
        assert!(dropped.any(|(_, left)| *left < BYTES / 4096 / 2), "left behind: {attempts:?}");
    }
}
