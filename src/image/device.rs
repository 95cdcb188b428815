//! Block devices: who else uses one, and whether anything was written to it.
//!
//! The kernel refuses an exclusive open (O_EXCL) only while somebody else has one: a file system, a volume, a
//! swap area. A process that simply opens the device and writes is not kept out. So open descriptors of the
//! device, and of whatever it is a part of, are checked before and after; and the kernel's write counters are
//! compared, which also reveals writers that came and went in between.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Action, message};
use crate::base::uri::Shown;
use crate::image::users::{Intent, process_with, status_of};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often and how long to wait for a short-lived opener, such as udev after a change, or losetup probing
/// for a free device.
const MAX_POLLS: usize = 20;
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A device that is open, and what it was when it was opened.
#[derive(Debug)]
pub struct DeviceWatch {
    place: PathBuf,
    /// Its own number, and those of what is the same disk: the whole of which it is a part, or its parts.
    numbers: Vec<u64>,
    /// Their folders in sysfs.
    folders: Vec<PathBuf>,
    /// The file under a loop device.
    backing: Option<PathBuf>,
    written: Written,
    /// Another loop device is of another part of that file, whose times tell nothing then.
    is_shared: bool,
    /// False if other processes may have it open unseen.
    pub sees_all: bool,
}

/// What tells that something was written; equal if nothing was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    /// Sectors written and discarded, if the kernel counts them.
    sectors: Option<(u64, u64)>,
    /// Length and times of the file under a loop device.
    backing: Option<(u64, i64, i64)>,
}

impl DeviceWatch {
    /// Looks at a device that is open.
    ///
    /// # Errors
    /// `Busy` if somebody else has it open in a way that does not go together with ours, with his name.
    pub fn begin(file: &File, path: &Path, intent: Intent) -> Result<Self> {
        let failed = |e| Error::os("access", path.shown(), e);
        let number = file.metadata().map_err(failed)?.rdev();
        let folders = related(number);
        let numbers = folders.iter().filter_map(|folder| number_in(folder)).chain([number]);
        let mut watch = Self {
            place: path.into(),
            numbers: numbers.collect(),
            backing: loop_file(number),
            folders,
            written: Written { sectors: None, backing: None },
            sees_all: true,
            is_shared: false,
        };
        watch.sees_all = watch.refuse_others(intent)?;
        watch.is_shared = watch.has_neighbour();
        watch.written = watch.written_now(file);
        Ok(watch)
    }

    /// Fails if somebody else has it open now, as [`DeviceWatch::begin`] does. True if all can be seen.
    pub fn refuse_others(&self, intent: Intent) -> Result<bool> {
        // Who only reads is in the way of a writer alone: of those there are more.
        let looks = if intent == Intent::Write { MAX_POLLS } else { MAX_POLLS / 4 };
        let mut found = self.others(intent);
        for _ in 1..looks {
            if found.0.is_none() {
                break;
            }
            std::thread::sleep(POLL_INTERVAL);
            found = self.others(intent);
        }
        let (user, sees_all) = found;
        let Some(user) = user else { return Ok(sees_all) };
        let how = match intent {
            Intent::Read => "open for writing by",
            Intent::Write => "in use by",
        };
        let what = format!("{} is {how} {user}", self.place.shown());
        Err(Error::new(ErrorKind::Busy, what).hint(message![
            "shut the virtual machine down, or close the device, and ",
            Action::Retry
        ]))
    }

    /// Fails if anything was written since it was opened, or somebody could be writing now.
    ///
    /// # Errors
    /// `Busy`.
    pub fn refuse_changes(&self, file: &File) -> Result<()> {
        self.refuse_others(Intent::Read)?;
        if self.written_now(file) != self.written {
            let what = format!("{} was written to while it was being read", self.place.shown());
            return Err(Error::new(ErrorKind::Busy, what)
                .hint(message![Action::Retry, " when nothing writes to it"]));
        }
        Ok(())
    }

    fn written_now(&self, file: &File) -> Written {
        // What is dirty is written some time: then it counts as a change, which is the safe side.
        best_effort(file.sync_all());
        let folder = self.folders.first();
        let times = |meta: Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
        Written {
            sectors: folder.and_then(|folder| sectors_written(folder)),
            backing: self.backing_file().filter(|_| !self.is_shared).map(times),
        }
    }

    /// The first other user that is in the way, and whether all can be seen.
    fn others(&self, intent: Intent) -> (Option<String>, bool) {
        let holder = self.folders.iter().find_map(|folder| holder_in(folder));
        if self.folders.is_empty() {
            // Without sysfs nothing is known of what is made of it.
            return (None, false);
        }
        let backing = self.backing_file();
        let looped = self.loops_on_it(backing.as_ref(), intent);
        // One that was removed is known by what its descriptors are called.
        let removed = self.backing.as_ref().filter(|_| backing.is_none());
        let is_it = |other: &Metadata, link: &Path| {
            let is_device = other.file_type().is_block_device();
            let is_backing = |b: &Metadata| (b.dev(), b.ino()) == (other.dev(), other.ino());
            let is_called = |path: &PathBuf| std::fs::read_link(link).is_ok_and(|l| l == *path);
            (is_device && self.numbers.contains(&other.rdev()))
                || backing.as_ref().is_some_and(is_backing)
                || removed.is_some_and(is_called)
        };
        let server = self.folders.iter().find_map(|folder| server_in(folder));
        let (process, sees_all) = process_with(&is_it, intent, server);
        (holder.or(looped).or(process), sees_all)
    }

    fn backing_file(&self) -> Option<Metadata> {
        self.backing.as_ref().and_then(|file| std::fs::metadata(file).ok())
    }

    /// The bytes of the file under it that it is.
    fn extent(&self) -> Option<Range<u64>> {
        self.folders.iter().find_map(|folder| extent_in(folder))
    }

    /// True if another loop device is of another part of the same file.
    fn has_neighbour(&self) -> bool {
        let Some(backing) = self.backing_file() else { return false };
        let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).any(|folder| {
            let file = line_in(&folder.join("loop/backing_file"));
            let is_self = number_in(&folder).is_some_and(|n| self.numbers.contains(&n));
            let is_it = |meta: Metadata| (meta.dev(), meta.ino()) == (backing.dev(), backing.ino());
            !is_self && file.and_then(|file| std::fs::metadata(file).ok()).is_some_and(is_it)
        })
    }

    /// A loop device that is made of it, or another one of the same part of the same file.
    fn loops_on_it(&self, backing: Option<&Metadata>, intent: Intent) -> Option<String> {
        let own = self.extent();
        for entry in std::fs::read_dir("/sys/block").ok()?.flatten() {
            let Some(file) = line_in(&entry.path().join("loop/backing_file")) else { continue };
            let is_self = number_in(&entry.path()).is_some_and(|n| self.numbers.contains(&n));
            let is_apart = own
                .as_ref()
                .zip(extent_in(&entry.path()))
                .is_some_and(|(own, other)| own.end <= other.start || other.end <= own.start);
            let is_it = std::fs::metadata(&file).is_ok_and(|meta| {
                let is_backing = |b: &Metadata| (b.dev(), b.ino()) == (meta.dev(), meta.ino());
                match meta.file_type().is_block_device() {
                    true => self.numbers.contains(&meta.rdev()),
                    false => !is_self && !is_apart && backing.is_some_and(is_backing),
                }
            });
            let only_reads = line_in(&entry.path().join("ro")).as_deref() == Some("1");
            if is_it && (intent == Intent::Write || !only_reads) {
                return Some(format!("/dev/{}", entry.file_name().to_string_lossy()));
            }
        }
        None
    }
}

/// The process that serves a network block device: it has the device open as long as that is one.
fn server_in(folder: &Path) -> Option<u32> {
    let name = folder.file_name()?.to_str()?;
    let is_served =
        name.strip_prefix("nbd").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    // It is the id of a thread.
    let thread = line_in(&folder.join("pid")).filter(|_| is_served)?.parse().ok()?;
    status_of(thread, "Tgid:")
}

pub(super) fn sysfs_of(number: u64) -> Option<PathBuf> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// The folders in sysfs of a device, of the whole disk of which it is a part, or of its parts. Its own comes
/// first.
fn related(number: u64) -> Vec<PathBuf> {
    let Some(own) = sysfs_of(number) else { return Vec::new() };
    let others: Vec<PathBuf> = match own.parent().filter(|_| is_part(&own)) {
        Some(whole) => vec![whole.to_owned()],
        None => {
            let entries = std::fs::read_dir(&own).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| is_part(path)).collect()
        }
    };
    [own].into_iter().chain(others).collect()
}

/// The number that a device has, in its folder.
fn number_in(folder: &Path) -> Option<u64> {
    let text = line_in(&folder.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// What is made of a device: a volume, an array.
fn holder_in(folder: &Path) -> Option<String> {
    let entry = std::fs::read_dir(folder.join("holders")).ok()?.flatten().next()?;
    Some(format!("/dev/{}", entry.file_name().to_string_lossy()))
}

pub(super) fn is_part(folder: &Path) -> bool {
    folder.join("partition").exists()
}

/// The folder in sysfs of the disk that a device is, or is a part of.
pub(super) fn disk_of(number: u64) -> Option<PathBuf> {
    let own = sysfs_of(number)?;
    if is_part(&own) { own.parent().map(Path::to_owned) } else { Some(own) }
}

/// The file under a loop device, or under that of which it is a part.
pub(crate) fn loop_file(number: u64) -> Option<PathBuf> {
    let mut path = std::fs::read(disk_of(number)?.join("loop/backing_file")).ok()?;
    path.pop_if(|byte| *byte == b'\n');
    (!path.is_empty()).then(|| PathBuf::from(OsString::from_vec(path)))
}

/// The bytes of its file that a loop device is, in its folder.
fn extent_in(folder: &Path) -> Option<Range<u64>> {
    let number = |name: &str| line_in(&folder.join("loop").join(name))?.parse::<u64>().ok();
    let (first, most) = (number("offset")?, number("sizelimit")?);
    let end = if most == 0 { u64::MAX } else { first.saturating_add(most) };
    Some(first..end)
}

/// Sectors written and discarded so far (the kernel's Documentation/block/stat.rst); none if nobody counts.
fn sectors_written(folder: &Path) -> Option<(u64, u64)> {
    let queue = [folder.join("queue/iostats"), folder.join("../queue/iostats")];
    if queue.iter().find_map(|file| line_in(file)).as_deref() != Some("1") {
        return None;
    }
    let text = line_in(&folder.join("stat"))?;
    let numbers: Vec<u64> = text.split_whitespace().map_while(|n| n.parse().ok()).collect();
    Some((*numbers.get(6)?, numbers.get(13).copied().unwrap_or(0)))
}

/// A small file of the kernel's, without its line feed; none if it is not there or empty.
pub(super) fn line_in(file: &Path) -> Option<String> {
    let bytes = std::fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_serves_a_network_block_device_is_known_by_any_of_its_threads() {
        let place = tempfile::tempdir().unwrap();
        let own = std::process::id();
        // The thread of this test is another one than the first.
        let thread = nix::unistd::gettid().to_string();
        for (name, served) in [("nbd0", Some(own)), ("nbd12", Some(own)), ("sda", None)] {
            let folder = place.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            assert_eq!(server_in(&folder), None, "{name}: it has no server");
            std::fs::write(folder.join("pid"), format!("{thread}\n")).unwrap();
            assert_eq!(server_in(&folder), served, "{name}");
        }
    }
}
