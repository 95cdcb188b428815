//! The tables of a qcow2 file: which of its clusters has what of the disk.

use super::header::Header;
use crate::base::error::{Error, Result};
use crate::image::{RawFile, Source};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::sync::Arc;
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::U64;

/// The mapping of one file.
pub(super) struct Tables {
    cluster_bits: u32,
    /// One of a cluster, or two with subclusters.
    words_per_entry: u64,
    /// What an entry tells apart: a cluster, or a subcluster.
    unit_bytes: u64,
    l1_offset: u64,
    l1_entries: u64,
    has_data_file: bool,
    /// Pieces of tables, by offset in the file and length.
    pieces: Cache<(u64, u64), Arc<[U64]>, Bytes>,
}

/// What a file has of a run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// Nothing: what is below counts.
    Below,
    Zeros,
    /// The bytes, from that byte of the file of the data on.
    Stored(u64),
    /// A cluster, in at most so many bytes from that byte of the file on.
    Compressed(u64, u64),
}

/// The offset in an entry of an L1 or L2 table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZEROS: u64 = 1;
const SUBCLUSTERS: u64 = 32;

/// As much of a table is read at a time, and as much of all of them is kept, of all files of a disk together.
const PIECE_BYTES: u64 = 4 << 10;
const CACHE_BYTES: u64 = 16 << 20;

#[derive(Clone)]
struct Bytes;

impl Weighter<(u64, u64), Arc<[U64]>> for Bytes {
    fn weight(&self, _: &(u64, u64), words: &Arc<[U64]>) -> u64 {
        size_of_val(&**words) as u64
    }
}

impl Tables {
    /// The tables of one of `files` files.
    ///
    /// # Errors
    /// `Corrupt` if they are not all in the file: they would be read as zeros.
    pub fn read(file: &RawFile, header: &Header, files: usize) -> Result<Self> {
        let (words_per_entry, units) =
            if header.has_subclusters { (2, SUBCLUSTERS) } else { (1, 1) };
        let cache_bytes = CACHE_BYTES / files.max(1) as u64;
        let tables = Self {
            cluster_bits: header.cluster_bits,
            words_per_entry,
            unit_bytes: header.cluster_bytes() / units,
            l1_offset: header.l1_offset,
            l1_entries: header.l1_entries,
            has_data_file: header.data_file.is_some(),
            pieces: Cache::with_weighter((cache_bytes / PIECE_BYTES) as usize, cache_bytes, Bytes),
        };
        let per_piece = PIECE_BYTES / 8;
        for first in (0..header.l1_entries).step_by(per_piece as usize) {
            let piece = tables.l1_piece(file, first)?;
            piece.iter().try_for_each(|entry| tables.check_l1_entry(file, entry.get() & OFFSET))?;
        }
        Ok(tables)
    }

    fn check_l1_entry(&self, file: &RawFile, at: u64) -> Result<()> {
        if !at.is_multiple_of(self.cluster_bytes()) {
            return Err(damaged(file, format!("an L2 table at byte {at}")));
        }
        if at > 0 && at + self.cluster_bytes() > file.image_bytes() {
            return Err(cut_off(file, format!("its L2 table at byte {at}")));
        }
        Ok(())
    }

    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// What there is at `offset`, for at most `most` bytes, and for how many, at least one.
    pub fn run_at(&self, file: &RawFile, offset: u64, most: u64) -> Result<(Run, u64)> {
        let cluster = offset >> self.cluster_bits;
        let entries = self.cluster_bytes() / 8 / self.words_per_entry;
        let (table, entry) = (cluster / entries, cluster % entries);
        let at = self.l2_table(file, table)?;
        if at == 0 {
            let end = (table + 1) * entries * self.cluster_bytes();
            return Ok((Run::Below, most.min(end - offset)));
        }
        let piece_bytes = PIECE_BYTES.min(self.cluster_bytes());
        let piece_entries = piece_bytes / 8 / self.words_per_entry;
        let words = self.piece(file, at + entry / piece_entries * piece_bytes, piece_bytes)?;
        let mut rest = words.chunks_exact(self.words_per_entry as usize);
        let entry = entry % piece_entries;
        let mut words = rest.nth(entry as usize);
        // Unit by unit, as long as one follows the other.
        let mut unit = offset % self.cluster_bytes() / self.unit_bytes;
        let units = self.cluster_bytes() / self.unit_bytes;
        let (mut run, mut length) = (None, 0);
        while let Some(entry) = words.filter(|_| length < most) {
            let next = self.unit(file, entry, unit)?;
            match run {
                None => {
                    if let Run::Compressed(..) = next {
                        let rest = self.cluster_bytes() - offset % self.cluster_bytes();
                        return Ok((next, rest.min(most)));
                    }
                    let within = offset % self.unit_bytes;
                    (run, length) = (Some(next.and(within)), self.unit_bytes - within);
                }
                Some(first) if first.and(length) == next => length += self.unit_bytes,
                Some(_) => break,
            }
            unit += 1;
            if unit == units {
                (unit, words) = (0, rest.next());
            }
        }
        Ok((run.unwrap_or(Run::Below), length.clamp(1, most)))
    }

    /// Where an L2 table is; 0 if it is not there.
    fn l2_table(&self, file: &RawFile, table: u64) -> Result<u64> {
        if table >= self.l1_entries {
            return Ok(0);
        }
        let per_piece = PIECE_BYTES / 8;
        let piece = self.l1_piece(file, table - table % per_piece)?;
        let at = piece.get((table % per_piece) as usize).map_or(0, |entry| entry.get() & OFFSET);
        // It was checked, but may have changed since.
        self.check_l1_entry(file, at)?;
        Ok(at)
    }

    /// The piece of the L1 table that begins with that entry.
    fn l1_piece(&self, file: &RawFile, first: u64) -> Result<Arc<[U64]>> {
        let bytes = (8 * (self.l1_entries - first)).min(PIECE_BYTES);
        self.piece(file, self.l1_offset + 8 * first, bytes)
    }

    fn piece(&self, file: &RawFile, at: u64, bytes: u64) -> Result<Arc<[U64]>> {
        self.pieces.get_or_insert_with(&(at, bytes), || {
            let mut buffer = Vec::new();
            match file.read_until_bad(at, bytes as usize, &mut buffer)? {
                Some(bad) => Err(bad),
                None => Ok(<[U64]>::ref_from_bytes(&buffer).unwrap_or_default().into()),
            }
        })
    }

    /// What a unit of a cluster is.
    fn unit(&self, file: &RawFile, entry: &[U64], unit: u64) -> Result<Run> {
        let word = entry.first().map_or(0, |word| word.get());
        if word & COMPRESSED != 0 {
            // The offset, and as many more sectors as the rest of its bits say.
            let bits = 70 - self.cluster_bits;
            let at = word & ((1 << bits) - 1) & (OFFSET | 0x1ff);
            let sectors = (word & (COMPRESSED - 1)) >> bits;
            return Ok(Run::Compressed(at, (sectors + 1) * 512 - at % 512));
        }
        let at = word & OFFSET;
        if !at.is_multiple_of(self.cluster_bytes()) {
            return Err(damaged(file, format!("a cluster at byte {at}")));
        }
        let (is_zeros, is_stored) = match entry.get(1).map(|bitmap| bitmap.get() >> unit) {
            Some(bits) => (bits >> SUBCLUSTERS & 1 == 1, bits & 1 == 1),
            // The first cluster is one of the disk only where the header is in another file.
            None => (word & ZEROS != 0, at > 0 || self.has_data_file && word & COPIED != 0),
        };
        Ok(match (is_zeros, is_stored) {
            (true, _) => Run::Zeros,
            (false, true) => Run::Stored(at + unit * self.unit_bytes),
            (false, false) => Run::Below,
        })
    }
}

impl Run {
    /// The same, that many bytes on.
    fn and(self, bytes: u64) -> Self {
        match self {
            Self::Stored(at) => Self::Stored(at + bytes),
            other => other,
        }
    }
}

/// What was there once is not any more.
pub(super) fn cut_off(file: &RawFile, what: String) -> Error {
    Error::corrupt(format!("{what} lies beyond its end: it is truncated"))
        .hint("use a copy of it")
        .at(file.name())
}

/// What no program writes that keeps to the format.
pub(super) fn damaged(file: &RawFile, what: String) -> Error {
    Error::corrupt(format!("its tables are damaged: {what}"))
        .hint("check it with \"qemu-img check\"")
        .at(file.name())
}
