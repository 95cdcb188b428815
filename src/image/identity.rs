//! What tells the file or device of an image from others that its path may lead to.

use crate::base::uri::Shown;
use crate::image::device::{disk_of, is_part, line_in, loop_file, sysfs_of};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

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
    /// Of a loop device, or a part of one, the file under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loop_file: Option<LoopFile>,
}

/// The file under a loop device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopFile {
    /// What it was called, for people: a file that was renamed is the same.
    pub path: String,
    /// Its inode.
    pub inode: u64,
    /// When that was born, in nanoseconds since 1970, if the file system tells.
    pub born_ns: Option<u64>,
    /// Where in it the device begins, in bytes.
    pub offset: u64,
}

impl LoopFile {
    fn is_same(&self, other: &Self) -> bool {
        let is_born =
            self.born_ns.is_none() || other.born_ns.is_none() || self.born_ns == other.born_ns;
        self.inode == other.inode && self.offset == other.offset && is_born
    }
}

impl DeviceIdentity {
    /// Finds out which device is open.
    pub fn of(file: &File, bytes: u64) -> Self {
        let number = file.metadata().map_or(0, |meta| meta.rdev());
        let own = sysfs_of(number).unwrap_or_default();
        let disk = disk_of(number).unwrap_or_default();
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
                .filter(|_| is_part(&own)),
            partition_start: line_in(&own.join("start")).and_then(|start| start.parse().ok()),
            table: table_on(file),
            loop_file: loop_file(number).map(|path| {
                let meta = std::fs::metadata(&path).ok();
                let offset = line_in(&disk.join("loop/offset"));
                LoopFile {
                    inode: meta.as_ref().map_or(0, MetadataExt::ino),
                    born_ns: meta.as_ref().and_then(born_ns),
                    offset: offset.and_then(|offset| offset.parse().ok()).unwrap_or(0),
                    path: path.shown().to_string(),
                }
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
            ]
        };
        let mut is_known = false;
        for ((what, was), (_, is)) in names(self).into_iter().zip(names(now)) {
            if let (Some(was), Some(is)) = (was, is) {
                if was != is {
                    return Some(format!("its {what} was {was} and is now {is}"));
                }
                is_known = true;
            }
        }
        match (&self.loop_file, &now.loop_file) {
            (Some(was), Some(is)) if !was.is_same(is) => {
                let (was, is) = (&was.path, &is.path);
                return Some(format!("the file of its loop device was {was} and is now {is}"));
            }
            (Some(_), Some(_)) => is_known = true,
            (None, None) => {}
            _ => return Some("only one of them is a loop device".into()),
        }
        let is_same_part = self.partition.is_some() && self.partition == now.partition;
        if self.partition_start != now.partition_start && !is_same_part {
            return Some("it starts at a different position on its disk".into());
        }
        if is_known {
            return None;
        }
        if self.bytes != now.bytes {
            return Some(format!("its size was {} bytes and is now {}", self.bytes, now.bytes));
        }
        let id = |table: &Option<String>| table.clone().unwrap_or("none".into());
        (self.table != now.table).then(|| {
            let (was, is) = (id(&self.table), id(&now.table));
            format!("the id of its partition table was {was} and is now {is}")
        })
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

fn born_ns(meta: &Metadata) -> Option<u64> {
    let born = meta.created().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(born.as_nanos()).ok()
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
        const STABLE_INODE_FILESYSTEMS: [i64; 7] =
            [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x6969, 0x2fc1_2fc1];
        let meta = file.metadata().ok()?;
        if meta.file_type().is_block_device() {
            return Some(Self::Device(DeviceIdentity::of(file, bytes)));
        }
        let filesystem = nix::sys::statfs::fstatfs(file).ok()?.filesystem_type().0 as i64;
        let (inode, born_ns) = (meta.ino(), born_ns(&meta));
        STABLE_INODE_FILESYSTEMS.contains(&filesystem).then_some(Self::File { inode, born_ns })
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
            (Self::File { .. }, Self::Device(_)) => {
                Some("it was a file and is now a device".into())
            }
            (Self::Device(_), Self::File { .. }) => {
                Some("it was a device and is now a file".into())
            }
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
        let looped = |path: &str, inode| DeviceIdentity {
            loop_file: Some(LoopFile { path: path.into(), inode, ..LoopFile::default() }),
            ..DeviceIdentity::default()
        };
        for (was, is, want) in [
            (
                disk(Some("a"), 1, None),
                disk(Some("b"), 1, None),
                "its serial number was a and is now b",
            ),
            // A guest may do what it likes with its table, and a volume may grow.
            (disk(Some("a"), 1, Some("x")), disk(Some("a"), 2, Some("y")), ""),
            (disk(None, 1, Some("x")), disk(Some("a"), 1, Some("x")), ""),
            (disk(None, 1, Some("x")), disk(None, 1, Some("y")), "the id of its partition table"),
            (disk(None, 1, None), disk(None, 2, None), "its size was 1 bytes and is now 2"),
            (
                disk(None, 1, None),
                disk(None, 1, Some("y")),
                "the id of its partition table was none",
            ),
            (looped("/a", 1), looped("/a", 2), "the file of its loop device was /a"),
            (looped("/a", 1), looped("/b", 1), ""),
            (looped("/a", 1), disk(None, 0, None), "only one of them is a loop device"),
        ] {
            let found = was.difference(&is).unwrap_or_default();
            assert!(found.starts_with(want) && found.is_empty() == want.is_empty(), "{found}");
        }
        let file = |inode, born_ns| LiveIdentity::File { inode, born_ns };
        assert_eq!(file(1, None).difference(&file(1, Some(7))), None);
        assert!(file(1, Some(6)).difference(&file(1, Some(7))).is_some());
        assert!(file(1, None).difference(&file(2, None)).is_some());
        assert!(file(1, None).difference(&LiveIdentity::Device(looped("/a", 1))).is_some());
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
