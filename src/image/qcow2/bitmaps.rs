//! Persistent dirty bitmaps: what QEMU recorded as written to, in a file that was closed cleanly.

use super::extensions::BitmapDirectory;
use super::header::Header;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::ByteRange;
use crate::image::{RawFile, Source};
use std::collections::BTreeSet;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// A persistent bitmap of a qcow2 file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Bytes of the disk that one bit stands for, a power of two.
    pub granularity: u64,
    /// It records writes. Otherwise it was disabled, and says nothing of what was written since.
    pub is_enabled: bool,
    /// It was saved. Otherwise the machine that had it ended without.
    pub is_saved: bool,
}

/// The bitmaps of a file.
pub(super) struct Bitmaps<'a> {
    file: &'a RawFile,
    header: &'a Header,
    entries: Vec<Entry>,
}

struct Entry {
    bitmap: Bitmap,
    table_offset: u64,
    table_entries: u64,
}

/// An entry of the directory; its extra data and its name follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fields {
    table_offset: U64,
    table_entries: U32,
    flags: U32,
    kind: u8,
    granularity_bits: u8,
    name_bytes: U16,
    extra_bytes: U32,
}

const IN_USE: u32 = 1;
const AUTO: u32 = 2;
const EXTRA_COMPATIBLE: u32 = 4;
const DIRTY_TRACKING: u8 = 1;

/// The limits of QEMU.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
const MAX_BITMAP_BYTES: u64 = 512 << 20;
/// Of an entry of the table of a bitmap.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const ALL_ONES: u64 = 1;

/// More ranges are joined over the smallest gaps: what names too much costs a look.
const MAX_RANGES: usize = 1 << 20;

impl<'a> Bitmaps<'a> {
    /// Reads the directory.
    pub fn read(file: &'a RawFile, header: &'a Header) -> Result<Self> {
        let entries = match header.bitmaps {
            Some(directory) => {
                let bytes = read_directory(file, directory)?;
                decode(&bytes, directory.count).map_err(|what| malformed(file, what))?
            }
            None => Vec::new(),
        };
        Ok(Self { file, header, entries })
    }

    pub fn list(self) -> Vec<Bitmap> {
        self.entries.into_iter().map(|entry| entry.bitmap).collect()
    }

    pub fn dirty_ranges(&self, name: &str) -> Result<Vec<ByteRange>> {
        let refused = |kind, what: &str| {
            let name = name.escape_debug();
            Error::new(kind, format!("{}: bitmap \"{name}\" {what}", self.file.name()))
        };
        let found = self.entries.iter().find(|entry| entry.bitmap.name == name);
        let entry = found.ok_or_else(|| {
            refused(ErrorKind::NotFound, "does not exist, or the file was not closed cleanly")
                .hint("list the bitmaps with \"qemu-img info\"")
        })?;
        if !entry.bitmap.is_saved {
            return Err(refused(
                ErrorKind::Unsupported,
                "was in use when its machine ended, and is incomplete",
            )
            .hint("remove it with \"qemu-img bitmap --remove\", and add a new one"));
        }
        if !entry.bitmap.is_enabled {
            return Err(refused(
                ErrorKind::Unsupported,
                "is disabled: it does not record what is written",
            )
            .hint("enable it with \"qemu-img bitmap --enable\" before the next changes"));
        }
        self.ranges_of(entry)
    }

    /// Cluster by cluster of the bitmap, so that no more of it is in memory.
    fn ranges_of(&self, entry: &Entry) -> Result<Vec<ByteRange>> {
        let malformed = |what| malformed(self.file, what);
        let (cluster, disk_bytes) = (self.header.cluster_bytes(), self.header.disk_bytes);
        let granularity = entry.bitmap.granularity;
        let bits = disk_bytes.div_ceil(granularity);
        let bytes = bits.div_ceil(8);
        if bytes > MAX_BITMAP_BYTES || entry.table_entries != bytes.div_ceil(cluster) {
            return Err(malformed("the table does not match the length of the disk"));
        }
        let table = self.read_at(entry.table_offset, 8 * entry.table_entries)?;
        let table = <[U64]>::ref_from_bytes(&table).unwrap_or_default();
        let mut ranges = Ranges { found: Vec::new(), granularity, disk_bytes, join_bits: 0 };
        for (index, table_entry) in (0..).zip(table) {
            let first_bit = index * cluster * 8;
            let bits_here = (bits - first_bit).min(cluster * 8);
            match (table_entry.get() & OFFSET, table_entry.get() & !OFFSET) {
                (0, 0) => {}
                (0, ALL_ONES) => ranges.add(first_bit, bits_here),
                (offset, 0) if offset.is_multiple_of(cluster) => {
                    let bitmap = self.read_at(offset, bits_here.div_ceil(8))?;
                    ranges.add_set_bits(first_bit, bits_here, &bitmap);
                }
                _ => return Err(malformed("an entry of a table")),
            }
        }
        Ok(ranges.found)
    }

    fn read_at(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        read_at(self.file, offset, bytes)
    }
}

/// Dirty ranges of the disk, as they are found, ascending.
struct Ranges {
    found: Vec<ByteRange>,
    granularity: u64,
    disk_bytes: u64,
    /// Ranges that are no more than so many bits apart are one.
    join_bits: u64,
}

impl Ranges {
    fn add(&mut self, first_bit: u64, bits: u64) {
        let offset = first_bit * self.granularity;
        let end = offset.saturating_add(bits.saturating_mul(self.granularity)).min(self.disk_bytes);
        let range = ByteRange::between(offset, end);
        match self.found.last_mut() {
            Some(last) if offset - last.end() <= self.join_bits * self.granularity => {
                *last = ByteRange::between(last.offset, end);
            }
            _ => self.found.push(range),
        }
        while self.found.len() > MAX_RANGES {
            self.join_bits = self.join_bits * 2 + 1;
            let gap = self.join_bits * self.granularity;
            self.found.dedup_by(|next, last| {
                let is_near = next.offset - last.end() <= gap;
                if is_near {
                    *last = ByteRange::between(last.offset, next.end());
                }
                is_near
            });
        }
    }

    /// The lowest bit of a byte is the first one.
    fn add_set_bits(&mut self, first_bit: u64, bits: u64, bitmap: &[u8]) {
        for (index, byte) in (0..).zip(bitmap).filter(|(_, byte)| **byte != 0) {
            let (mut at, mut rest) = (8 * index, u32::from(*byte));
            while rest != 0 && at < bits {
                let clear = u64::from(rest.trailing_zeros());
                let set = u64::from((rest >> clear).trailing_ones());
                at += clear;
                self.add(first_bit + at, set.min(bits.saturating_sub(at)));
                (at, rest) = (at + set, rest >> (clear + set));
            }
        }
    }
}

fn read_directory(file: &RawFile, directory: BitmapDirectory) -> Result<Vec<u8>> {
    match directory.bytes <= MAX_DIRECTORY_BYTES {
        true => read_at(file, directory.offset, directory.bytes),
        false => Err(malformed(file, "the directory is too long")),
    }
}

/// A part of the file, all of which has to be there.
fn read_at(file: &RawFile, offset: u64, bytes: u64) -> Result<Vec<u8>> {
    let is_inside = offset.checked_add(bytes).is_some_and(|end| end <= file.image_bytes());
    let mut buffer = Vec::new();
    match is_inside {
        true => match file.read_until_bad(offset, bytes as usize, &mut buffer)? {
            Some(bad) => Err(bad),
            None => Ok(buffer),
        },
        false => Err(malformed(file, "they extend beyond the end of the file")),
    }
}

fn decode(mut rest: &[u8], count: u32) -> Result<Vec<Entry>, &'static str> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..count {
        let (fields, after) =
            Fields::ref_from_prefix(rest).map_err(|_| "the directory is truncated")?;
        let name_bytes = usize::from(fields.name_bytes.get());
        let extra_bytes = fields.extra_bytes.get() as usize;
        let name_end = extra_bytes.saturating_add(name_bytes);
        let name = after.get(extra_bytes..name_end).ok_or("the directory is truncated")?;
        let whole = size_of::<Fields>().saturating_add(name_end).next_multiple_of(8);
        rest = rest.get(whole..).unwrap_or_default();
        let flags = fields.flags.get();
        // What others defined, and allow to be passed over only if they say so.
        let is_known = fields.kind == DIRTY_TRACKING
            && flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) == 0
            && (extra_bytes == 0 || flags & EXTRA_COMPATIBLE != 0);
        if !is_known {
            continue;
        }
        if !(9..=31).contains(&fields.granularity_bits) || name.is_empty() {
            return Err("an entry of the directory");
        }
        if !names.insert(name) {
            return Err("duplicate name");
        }
        let bitmap = Bitmap {
            name: String::from_utf8_lossy(name).into_owned(),
            granularity: 1 << fields.granularity_bits,
            is_enabled: flags & AUTO != 0,
            is_saved: flags & IN_USE == 0,
        };
        let table_entries = u64::from(fields.table_entries.get());
        entries.push(Entry { bitmap, table_offset: fields.table_offset.get(), table_entries });
    }
    Ok(entries)
}

fn malformed(file: &RawFile, what: &str) -> Error {
    Error::corrupt(format!("{}: its bitmaps are malformed: {what}", file.name()))
        .hint("remove them with \"qemu-img bitmap --remove\"")
}
