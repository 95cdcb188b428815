//! The header of a qcow2 file (QEMU's docs/interop/qcow2.rst), checked as if an enemy had written it.

use super::extensions::{BitmapDirectory, Extensions};
use crate::base::error::{Error, ErrorKind, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// As much of a file is read for its header. The format allows a whole cluster, and no writer needs that.
pub const HEAD_BYTES: usize = 64 << 10;
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// QEMU reads no longer L1 table.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_NAME_BYTES: usize = 1023;
const SECTOR_BYTES: u64 = 512;

/// As all versions have it.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fields {
    magic: [u8; 4],
    version: U32,
    backing_offset: U64,
    backing_bytes: U32,
    cluster_bits: U32,
    disk_bytes: U64,
    crypt_method: U32,
    l1_entries: U32,
    l1_offset: U64,
    refcount_offset: U64,
    refcount_clusters: U32,
    snapshots: U32,
    snapshots_offset: U64,
}

/// What follows from version 3 on.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MoreFields {
    incompatible: U64,
    compatible: U64,
    autoclear: U64,
    refcount_order: U32,
    header_bytes: U32,
}

const FIELDS_BYTES: usize = size_of::<Fields>();
const ALL_BYTES: usize = FIELDS_BYTES + size_of::<MoreFields>();

/// Bits of the incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
/// Of the autoclear features: the bitmaps are those of what the file holds.
const BITMAPS: u64 = 1;

/// What a qcow2 file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Log2 of the cluster size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// Length of the guest's disk: whole sectors.
    pub disk_bytes: u64,
    /// Where the L1 table is, which lies in the file and covers the disk.
    pub l1_offset: u64,
    /// Entries of it that cover the disk.
    pub l1_entries: u64,
    /// The file that has what this one does not.
    pub backing: Option<Backing>,
    /// Its data is in another file: the name of that one.
    pub data_file: Option<PathBuf>,
    /// The directory of persistent bitmaps; none if there are none, or they are not those of what the file
    /// holds.
    pub bitmaps: Option<BitmapDirectory>,
    /// Clusters are in 32 parts, each of which is there or not (extended L2 entries).
    pub has_subclusters: bool,
    /// Of its compressed clusters.
    pub compression: Compression,
}

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Deflate, which QEMU calls zlib.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// A backing file, as the header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its name: a path, or, for QEMU, a URI or a description in JSON.
    pub name: PathBuf,
    /// Its format, as QEMU names formats.
    pub format: Option<String>,
}

impl Header {
    /// Decodes the header of a file of `file_bytes` bytes; `head` is its first [`HEAD_BYTES`], or all of it.
    ///
    /// # Errors
    /// `InvalidInput` if it is no qcow2 file, `Corrupt` for what no writer writes and for an image that is
    /// marked as corrupt, `Unsupported` for an encrypted one and for features that are not known. The message
    /// is to be put behind the name of the file.
    pub fn decode(head: &[u8], file_bytes: u64) -> Result<Self> {
        let not_qcow2 = || Error::new(ErrorKind::InvalidInput, "it is not a qcow2 image");
        if !head.starts_with(&MAGIC) {
            return Err(not_qcow2());
        }
        let (fields, _) =
            Fields::ref_from_prefix(head).map_err(|_| malformed("it is truncated"))?;
        let header_bytes = match fields.version.get() {
            2 => FIELDS_BYTES,
            3 => ALL_BYTES,
            version => {
                let what = format!("unsupported qcow2 version {version} (2 and 3 are supported)");
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
        };
        let cluster_bits = fields.cluster_bits.get();
        if !(9..=21).contains(&cluster_bits) {
            return Err(malformed(format!("clusters of 2^{cluster_bits} bytes")));
        }
        let cluster_bytes = 1 << cluster_bits;
        // Nothing of the header lies beyond its cluster.
        let head = head.get(..cluster_bytes).unwrap_or(head);
        let (mut features, mut autoclear, mut extensions_at) = (0, 0, header_bytes);
        let mut compression = 0;
        if header_bytes == ALL_BYTES {
            let more = head.get(FIELDS_BYTES..ALL_BYTES);
            let more = more.and_then(|bytes| MoreFields::ref_from_bytes(bytes).ok());
            let more = more.ok_or_else(|| malformed("it is truncated"))?;
            (features, autoclear) = (more.incompatible.get(), more.autoclear.get());
            extensions_at = more.header_bytes.get() as usize;
            if !(ALL_BYTES..=head.len()).contains(&extensions_at)
                || !extensions_at.is_multiple_of(8)
            {
                return Err(malformed(format!("it is {extensions_at} bytes long")));
            }
            if more.refcount_order.get() > 6 {
                return Err(malformed(format!("refcounts of 2^{} bits", more.refcount_order)));
            }
            compression =
                head.get(ALL_BYTES..extensions_at).and_then(<[u8]>::first).map_or(0, |b| *b);
        }
        let backing_name = backing_name(fields, head)?;
        // Before the name of the backing file, if there is one.
        let extensions_end = match fields.backing_offset.get() {
            0 => head.len(),
            offset => head.len().min(offset as usize),
        };
        let area = head.get(extensions_at..extensions_end).unwrap_or_default();
        let extensions = Extensions::decode(area).map_err(malformed)?;
        refuse_features(features, &extensions)?;
        refuse_encrypted(fields.crypt_method.get())?;
        if (features & COMPRESSION != 0) != (compression != 0) {
            return Err(malformed("inconsistent compression fields"));
        }
        let compression = match compression {
            0 => Compression::Deflate,
            1 => Compression::Zstd,
            other => {
                let what = format!("its compression type {other} is unknown");
                return Err(Error::new(ErrorKind::Unsupported, what).hint(CONVERT));
            }
        };
        let has_subclusters = features & EXTENDED_L2 != 0;
        // As QEMU has it.
        let disk_bytes = fields.disk_bytes.get() / SECTOR_BYTES * SECTOR_BYTES;
        let l1_entries = l1_entries(fields, file_bytes, has_subclusters)?;
        let name = |name: &[u8]| PathBuf::from(OsStr::from_bytes(name));
        let data_file = match (features & DATA_FILE != 0, extensions.data_file) {
            (true, None) => {
                let what = "its data is in another file, which it does not name";
                return Err(Error::new(ErrorKind::Unsupported, what).hint(CONVERT));
            }
            (true, Some(file)) => Some(name(file)),
            (false, _) => None,
        };
        let format = extensions.backing_format.map(|f| String::from_utf8_lossy(f).into_owned());
        let is_closed = features & DIRTY == 0 && autoclear & BITMAPS != 0;
        Ok(Self {
            cluster_bits,
            disk_bytes,
            l1_offset: fields.l1_offset.get(),
            l1_entries,
            backing: backing_name.map(|bytes| Backing { name: name(bytes), format }),
            data_file,
            bitmaps: extensions.bitmaps.filter(|_| is_closed),
            has_subclusters,
            compression,
        })
    }

    /// Cluster size in bytes.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// A file that the header names, which anybody who had the disk can have written there: what it is of
    /// this one, and its name.
    pub fn named_file(&self) -> Option<(&'static str, &Path)> {
        let backing = self.backing.as_ref().map(|backing| ("backing file", backing.name.as_path()));
        backing.or_else(|| self.data_file.as_deref().map(|name| ("data file", name)))
    }
}

const CONVERT: &str = "convert it with \"qemu-img convert -O qcow2\"";

/// What no program writes that keeps to the format.
pub(super) fn malformed(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("its header is malformed: {what}"))
        .hint("check it with \"qemu-img check\", or use a copy of it")
}

fn backing_name<'a>(fields: &Fields, head: &'a [u8]) -> Result<Option<&'a [u8]>> {
    let (offset, bytes) = (fields.backing_offset.get(), fields.backing_bytes.get() as usize);
    if offset == 0 || bytes == 0 {
        return Ok(None);
    }
    let rest = usize::try_from(offset).ok().and_then(|offset| head.get(offset..));
    let name = rest.and_then(|rest| rest.get(..bytes)).filter(|_| bytes <= MAX_NAME_BYTES);
    let name = name.filter(|name| !name.contains(&0) && offset >= FIELDS_BYTES as u64);
    name.map(Some).ok_or_else(|| malformed("the name of its backing file"))
}

fn refuse_encrypted(method: u32) -> Result<()> {
    let how = match method {
        0 => return Ok(()),
        1 => "AES",
        2 => "LUKS",
        _ => return Err(malformed(format!("encryption of type {method}"))),
    };
    Err(Error::new(ErrorKind::Unsupported, format!("it is encrypted ({how})"))
        .hint("export it with qemu-nbd, which needs the key, and use that export"))
}

fn refuse_features(features: u64, extensions: &Extensions<'_>) -> Result<()> {
    if features & CORRUPT != 0 {
        return Err(Error::corrupt("it is marked as corrupt")
            .hint("repair it with \"qemu-img check -r all\", on a copy first"));
    }
    let unknown = features & !KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let bit = unknown.trailing_zeros();
    let called = match extensions.feature_name(bit) {
        Some(name) => format!(" ({})", name.escape_debug()),
        None => String::new(),
    };
    let what = format!("it needs an unknown feature: bit {bit}{called}");
    Err(Error::new(ErrorKind::Unsupported, what)
        .hint("convert it with the \"qemu-img convert\" of the version that made it"))
}

/// Entries of the L1 table that cover the disk.
fn l1_entries(fields: &Fields, file_bytes: u64, is_extended: bool) -> Result<u64> {
    let (bits, disk_bytes) = (fields.cluster_bits.get(), fields.disk_bytes.get());
    if is_extended && bits < 14 {
        return Err(malformed(format!("subclusters of clusters of 2^{bits} bytes")));
    }
    let covered_bits = 2 * bits - if is_extended { 4 } else { 3 };
    let needed = disk_bytes.div_ceil(1 << covered_bits);
    let (offset, entries) = (fields.l1_offset.get(), u64::from(fields.l1_entries.get()));
    if needed > entries || entries * 8 > MAX_L1_BYTES {
        return Err(malformed(format!("an L1 table of {entries} entries for {disk_bytes} bytes")));
    }
    let is_inside = offset.checked_add(entries * 8).is_some_and(|end| end <= file_bytes);
    if entries > 0 && (!is_inside || !offset.is_multiple_of(1 << bits)) {
        return Err(malformed(format!("an L1 table at byte {offset} of {file_bytes}")));
    }
    Ok(needed)
}
