//! Block devices: who else uses one, whether anything was written to it, and which one it is.
//!
//! The kernel refuses an exclusive open (O_EXCL) only while somebody else has one: a file system, a volume, a
//! swap area. Who simply opens the device and writes is not kept off. So it is looked who has it open, or
//! anything that it is a part of, before and after; and what the kernel counts as written is compared, which
//! also tells of those who came and went in between.

use super::guard::{Intent, is_open_to_write};
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often, and how long each time, it is waited for somebody who only has a look, as udev does after each
/// change.
const LOOKS: usize = 20;
const LOOK_TIME: Duration = Duration::from_millis(100);
/// The namespace of process ids in which all processes are seen (PROC_PID_INIT_INO).
const ALL_PROCESSES: &str = "pid:[4026531836]";

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
        let failed = |e| Error::io(format!("cannot look at {}", path.display()), e);
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
        };
        watch.sees_all = watch.refuse_others(intent)?;
        watch.written = watch.written_now(file);
        Ok(watch)
    }

    /// Fails if somebody else has it open now, as [`DeviceWatch::begin`] does. True if all can be seen.
    pub fn refuse_others(&self, intent: Intent) -> Result<bool> {
        let looks = if intent == Intent::Write { LOOKS } else { 1 };
        let mut found = self.others(intent);
        for _ in 1..looks {
            if found.0.is_none() {
                break;
            }
            std::thread::sleep(LOOK_TIME);
            found = self.others(intent);
        }
        let (user, sees_all) = found;
        let Some(user) = user else { return Ok(sees_all) };
        let how = match intent {
            Intent::Read => "open for writing by",
            Intent::Write => "in use by",
        };
        let what = format!("{} is {how} {user}", self.place.display());
        Err(Error::new(ErrorKind::Busy, what)
            .hint("shut the virtual machine down, or close the device, and run the command again"))
    }

    /// Fails if anything was written since it was opened, or somebody could be writing now.
    ///
    /// # Errors
    /// `Busy`.
    pub fn refuse_changes(&self, file: &File) -> Result<()> {
        self.refuse_others(Intent::Read)?;
        if self.written_now(file) != self.written {
            let what = format!("{} was written to while it was read", self.place.display());
            return Err(Error::new(ErrorKind::Busy, what)
                .hint("run the command again when nobody writes to it"));
        }
        Ok(())
    }

    fn written_now(&self, file: &File) -> Written {
        if file.sync_all().is_err() {
            // What is dirty is written some time: then it counts as a change, which is the safe side.
        }
        let folder = self.folders.first();
        let times = |meta: Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
        Written {
            sectors: folder.and_then(|folder| sectors_written(folder)),
            backing: self.backing.as_ref().and_then(|file| std::fs::metadata(file).ok()).map(times),
        }
    }

    /// The first other user that is in the way, and whether all can be seen.
    fn others(&self, intent: Intent) -> (Option<String>, bool) {
        let holder = self.folders.iter().find_map(|folder| holder_in(folder));
        let looped = self.loops_on_it(intent);
        let backing = self.backing.as_ref().and_then(|file| std::fs::metadata(file).ok());
        let is_it = |other: &Metadata| {
            let is_device = other.file_type().is_block_device();
            let is_backing = |b: &Metadata| (b.dev(), b.ino()) == (other.dev(), other.ino());
            (is_device && self.numbers.contains(&other.rdev()))
                || backing.as_ref().is_some_and(is_backing)
        };
        let (process, sees_all) = process_with(&is_it, intent);
        (holder.or(looped).or(process), sees_all)
    }

    /// A loop device that is made of it.
    fn loops_on_it(&self, intent: Intent) -> Option<String> {
        for entry in std::fs::read_dir("/sys/block").ok()?.flatten() {
            let Some(file) = line_in(&entry.path().join("loop/backing_file")) else { continue };
            let is_it = std::fs::metadata(&file).is_ok_and(|meta| {
                meta.file_type().is_block_device() && self.numbers.contains(&meta.rdev())
            });
            let only_reads = line_in(&entry.path().join("ro")).as_deref() == Some("1");
            if is_it && (intent == Intent::Write || !only_reads) {
                return Some(format!("/dev/{}", entry.file_name().to_string_lossy()));
            }
        }
        None
    }
}

/// The first other process that has something open that `is_it`, and whether all of them can be looked at.
pub(super) fn process_with(
    is_it: &dyn Fn(&Metadata) -> bool,
    intent: Intent,
) -> (Option<String>, bool) {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let mut sees_all = namespace.as_os_str() == ALL_PROCESSES;
    let own_id = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return (None, false) };
    for process in processes.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if id == own_id {
            continue;
        }
        let descriptors = match std::fs::read_dir(process.path().join("fd")) {
            Ok(descriptors) => descriptors,
            Err(e) => {
                // It may just have ended.
                sees_all &= e.kind() != std::io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        for descriptor in descriptors.flatten() {
            let Ok(other) = std::fs::metadata(descriptor.path()) else { continue };
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            if is_it(&other) && (intent == Intent::Write || is_open_to_write(&info)) {
                let name = std::fs::read_to_string(process.path().join("comm"));
                let name = name.unwrap_or_default();
                return (Some(format!("{} (process {id})", name.trim_end())), sees_all);
            }
        }
    }
    (None, sees_all)
}

fn sysfs_of(number: u64) -> Option<PathBuf> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// The folders in sysfs of a device, of the whole disk of which it is a part, or of its parts. Its own comes
/// first.
fn related(number: u64) -> Vec<PathBuf> {
    let Some(own) = sysfs_of(number) else { return Vec::new() };
    let is_part = |folder: &Path| folder.join("partition").exists();
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

fn loop_file(number: u64) -> Option<PathBuf> {
    line_in(&sysfs_of(number)?.join("loop/backing_file")).map(PathBuf::from)
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
fn line_in(file: &Path) -> Option<String> {
    let bytes = std::fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

/// What tells one device from another that has the same path. What is not known is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// Its length.
    pub bytes: u64,
    /// The serial number of its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The world wide name of its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// The id of a mapped device: a logical volume, an encrypted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<String>,
    /// The id of a partition, in its table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Where a partition begins on its disk, in sectors of 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_start: Option<u64>,
    /// The id of the partition table that is on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Of a loop device, the file: its path, its inode, and where in it the device begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loop_file: Option<String>,
}

impl DeviceIdentity {
    /// Finds out which device is open.
    pub fn of(file: &File, bytes: u64) -> Self {
        let number = file.metadata().map_or(0, |meta| meta.rdev());
        let own = sysfs_of(number).unwrap_or_default();
        let is_part = own.join("partition").exists();
        let disk = if is_part { own.parent().unwrap_or(&own) } else { &own };
        let first = |names: &[&str]| {
            names.iter().find_map(|name| line_in(&disk.join(name))).map(|text| printable(&text))
        };
        let (major, minor) = (libc::major(number), libc::minor(number));
        let known = line_in(Path::new(&format!("/run/udev/data/b{major}:{minor}")));
        let known = known.unwrap_or_default();
        let uevent = line_in(&own.join("uevent")).unwrap_or_default();
        let from = |text: &str, key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key));
            found.map(str::to_owned)
        };
        Self {
            bytes,
            serial: first(&["serial", "device/serial", "device/vpd_pg80"])
                .or_else(|| from(&known, "E:ID_SERIAL=")),
            wwn: first(&["wwid", "device/wwid"]).or_else(|| from(&known, "E:ID_WWN=")),
            mapped: first(&["dm/uuid"]),
            partition: from(&uevent, "PARTUUID=")
                .or_else(|| from(&known, "E:ID_PART_ENTRY_UUID="))
                .filter(|_| is_part),
            partition_start: line_in(&own.join("start")).and_then(|start| start.parse().ok()),
            table: table_on(file),
            loop_file: loop_file(number).map(|path| {
                let inode = std::fs::metadata(&path).map_or(0, |meta| meta.ino());
                let offset = line_in(&own.join("loop/offset")).unwrap_or_default();
                format!("{} inode {inode} offset {offset}", path.display())
            }),
        }
    }

    /// What tells that `now` is another device than this one was; none if nothing does.
    ///
    /// What the hardware, or the system, says of a device counts more than what is on it: a guest may write
    /// another partition table to its disk.
    pub fn difference(&self, now: &Self) -> Option<String> {
        let names = |d: &Self| {
            [
                ("serial number", d.serial.clone()),
                ("world wide name", d.wwn.clone()),
                ("id of the mapped device", d.mapped.clone()),
                ("id of the partition", d.partition.clone()),
                ("file of the loop device", d.loop_file.clone()),
            ]
        };
        let mut is_known = false;
        for ((what, was), (_, is)) in names(self).into_iter().zip(names(now)) {
            if let (Some(was), Some(is)) = (was, is) {
                if was != is {
                    return Some(format!("its {what} was {was} and is {is}"));
                }
                is_known = true;
            }
        }
        if self.loop_file.is_some() != now.loop_file.is_some() {
            return Some("one of them is a loop device".into());
        }
        if self.partition_start != now.partition_start && self.partition.is_none() {
            return Some("it begins at another place of its disk".into());
        }
        if is_known {
            return None;
        }
        if self.bytes != now.bytes {
            return Some(format!("it had {} bytes and has {}", self.bytes, now.bytes));
        }
        match (&self.table, &now.table) {
            (Some(was), Some(is)) if was != is => {
                Some(format!("the id of its partition table was {was} and is {is}"))
            }
            _ => None,
        }
    }
}

/// Letters and digits of what a disk says of itself, which may have a binary head.
fn printable(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect::<String>().trim().to_owned()
}

/// The id of the partition table on a disk: that of a GPT, else that of an MBR.
fn table_on(file: &File) -> Option<String> {
    let mut head = [0; 512 + 92];
    file.read_exact_at(&mut head, 0).ok()?;
    let part = |from: usize, bytes: usize| head.get(from..from + bytes).unwrap_or_default();
    if part(512, 8) == b"EFI PART" {
        let id = uuid::Uuid::from_slice_le(part(512 + 56, 16)).ok()?;
        return Some(id.to_string());
    }
    let id: [u8; 4] = part(440, 4).try_into().ok()?;
    let is_mbr = part(510, 2) == [0x55, 0xaa] && id != [0; 4];
    is_mbr.then(|| format!("{:08x}", u32::from_le_bytes(id)))
}

/// What tells the file or device of an image from others that its path may lead to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum LiveIdentity {
    /// A regular file.
    File {
        /// Its inode.
        inode: u64,
        /// When that was born, in nanoseconds since 1970, if the file system tells.
        born_ns: Option<u64>,
    },
    /// A block device.
    Device(DeviceIdentity),
}

impl LiveIdentity {
    /// That of an open image; none where inodes come and go (network file systems but NFS, FUSE, overlays).
    pub fn of(file: &File, bytes: u64) -> Option<Self> {
        /// From linux/magic.h: ext, XFS, btrfs, F2FS, tmpfs, NFS, ZFS.
        const STEADY: [i64; 7] =
            [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x6969, 0x2fc1_2fc1];
        let meta = file.metadata().ok()?;
        if meta.file_type().is_block_device() {
            return Some(Self::Device(DeviceIdentity::of(file, bytes)));
        }
        let filesystem = nix::sys::statfs::fstatfs(file).ok()?.filesystem_type().0 as i64;
        let born = meta.created().ok();
        let born = born.and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
        let born_ns = born.and_then(|born| u64::try_from(born.as_nanos()).ok());
        STEADY.contains(&filesystem).then_some(Self::File { inode: meta.ino(), born_ns })
    }

    /// What tells that `now` is not what this was; none if nothing does.
    pub fn difference(&self, now: &Self) -> Option<String> {
        match (self, now) {
            (Self::File { inode, born_ns }, Self::File { inode: now, born_ns: born_now }) => {
                let is_same = inode == now
                    && (born_ns == born_now || born_ns.is_none() || born_now.is_none());
                (!is_same).then(|| "it was replaced by another file".to_owned())
            }
            (Self::Device(was), Self::Device(is)) => was.difference(is),
            (Self::File { .. }, Self::Device(_)) => Some("it was a file, and is a device".into()),
            (Self::Device(_), Self::File { .. }) => Some("it was a device, and is a file".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_disk_is_told_by_the_strongest_thing_that_is_known_of_both() {
        let disk = |serial: Option<&str>, bytes, table: Option<&str>| DeviceIdentity {
            bytes,
            serial: serial.map(str::to_owned),
            table: table.map(str::to_owned),
            ..DeviceIdentity::default()
        };
        let looped = |file: &str| DeviceIdentity {
            loop_file: Some(file.to_owned()),
            ..DeviceIdentity::default()
        };
        for (was, is, want) in [
            (
                disk(Some("a"), 1, None),
                disk(Some("b"), 1, None),
                "its serial number was a and is b",
            ),
            // A guest may do what it likes with its table, and a volume may grow.
            (disk(Some("a"), 1, Some("x")), disk(Some("a"), 2, Some("y")), ""),
            (disk(None, 1, Some("x")), disk(Some("a"), 1, Some("x")), ""),
            (disk(None, 1, Some("x")), disk(None, 1, Some("y")), "the id of its partition table"),
            (disk(None, 1, None), disk(None, 2, None), "it had 1 bytes and has 2"),
            (disk(None, 1, None), disk(None, 1, Some("y")), ""),
            (looped("/a inode 1"), looped("/a inode 2"), "its file of the loop device was"),
            (looped("/a inode 1"), disk(None, 0, None), "one of them is a loop device"),
        ] {
            let found = was.difference(&is).unwrap_or_default();
            assert!(found.starts_with(want) && found.is_empty() == want.is_empty(), "{found}");
        }
        let file = |inode, born_ns| LiveIdentity::File { inode, born_ns };
        assert_eq!(file(1, None).difference(&file(1, Some(7))), None);
        assert!(file(1, Some(6)).difference(&file(1, Some(7))).is_some());
        assert!(file(1, None).difference(&file(2, None)).is_some());
        assert!(file(1, None).difference(&LiveIdentity::Device(looped("/a"))).is_some());
    }

    #[test]
    fn the_id_of_a_partition_table_is_read_from_the_disk() {
        let on = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            table_on(&file)
        };
        let mut disk = vec![0; 4096];
        assert_eq!((on(&disk), on(&[0; 100])), (None, None));
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(on(&disk), None, "an MBR without an id");
        disk[440..444].copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
        assert_eq!(on(&disk).as_deref(), Some("12345678"));
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[568] = 1;
        assert_eq!(on(&disk).as_deref(), Some("00000001-0000-0000-0000-000000000000"));
    }
}
