//! Two clones of one image on a file system with shared extents (XFS, btrfs): where they lie on the
//! device at the same place, they have the same bytes.
//!
//! ```text
//! older clone   [ 0..8 at 100 ][ 8..12 at 300 ][ hole ][ 20..24 at 500 ]
//! newer clone   [ 0..8 at 100 ][ 8..12 at 700 ][ hole ][ 20..22 at 500 ][ 22..24 at 900 ]
//! may differ                     8..12                                     22..24
//! ```
//!
//! Why that is so, and for how long, stands in DESIGN.md ("Change tracking"): both
//! clones must be there, written to by nobody, while their maps are read. A map that was kept proves
//! nothing.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::sys::{FileExtent, clone_file, count_file_extents, file_extents};
use crate::base::units::ByteRange;
use crate::tracking::{ChangeHints, TimeSpent};
use std::collections::VecDeque;
use std::fs::File;
use std::io;

const UNKNOWN: u32 = 0x2;
const DELAYED: u32 = 0x4;
const ENCODED: u32 = 0x8;
const ENCRYPTED: u32 = 0x80;
const NOT_ALIGNED: u32 = 0x100;
const INLINE: u32 = 0x200;
const TAIL: u32 = 0x400;
const UNWRITTEN: u32 = 0x800;
/// Extents with one of these have no place that says anything of their bytes.
const UNSURE: u32 = UNKNOWN | DELAYED | ENCODED | ENCRYPTED | NOT_ALIGNED | INLINE | TAIL;
/// Bits that change nothing: last, merged, shared. Any other is one of a later kernel.
const HARMLESS: u32 = LAST | 0x1000 | SHARED;
const LAST: u32 = 0x1;
const SHARED: u32 = 0x2000;
const PAGE_BYTES: u64 = 4096;

/// What they are called in messages.
const OLDER: &str = "the older clone of the image";
const NEWER: &str = "the newer clone of the image";

/// Where some bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nowhere: zeros.
    Zero,
    /// At this address, the first of them.
    At(u64),
    /// That cannot be told.
    Unsure,
}

/// A run of bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    place: Place,
}

impl Piece {
    /// Where its byte at `offset` is.
    fn place_at(&self, offset: u64) -> Place {
        match self.place {
            Place::At(address) => Place::At(address.saturating_add(offset - self.start)),
            other => other,
        }
    }
}

/// Some of the map of a file, without gaps.
struct Batch {
    pieces: Vec<Piece>,
    /// As far as it goes.
    end: u64,
}

/// One FIEMAP batch of a file from `start` on, up to `end`. Everything beyond the end of the file at `length`
/// is zeros.
fn batch(file: &File, start: u64, length: u64, end: u64, what: &str) -> Result<Batch> {
    let failed = |e| Error::os("read the extents of", what, e);
    let (extents, next) = extents_from(file, start).map_err(failed)?;
    let covered = next.unwrap_or(end).min(end);
    let mut pieces = Vec::with_capacity(2 * extents.len() + 2);
    let mut at = start;
    for extent in &extents {
        let first = extent.logical.max(at);
        let last = extent.logical.saturating_add(extent.bytes).min(length).min(covered);
        if last <= first {
            continue;
        }
        if first > at {
            pieces.push(Piece { start: at, end: first, place: Place::Zero });
        }
        pieces.push(Piece { start: first, end: last, place: place_of(extent, first) });
        at = last;
    }
    if at < covered {
        pieces.push(Piece { start: at, end: covered, place: Place::Zero });
    }
    Ok(Batch { pieces, end: covered })
}

/// The extents of a file from `start` on, as many as are told at a time; and where others may follow.
fn extents_from(file: &File, start: u64) -> io::Result<(Vec<FileExtent>, Option<u64>)> {
    let extents = file_extents(file, start)?;
    let last = extents.last().filter(|last| last.flags & LAST == 0);
    let next = last.map(|last| last.logical.saturating_add(last.bytes));
    Ok((extents, next))
}

fn place_of(extent: &FileExtent, offset: u64) -> Place {
    match extent.flags {
        flags if flags & UNSURE != 0 => Place::Unsure,
        flags if flags & !(UNSURE | UNWRITTEN | HARMLESS) != 0 => Place::Unsure,
        flags if flags & UNWRITTEN != 0 => Place::Zero,
        _ => Place::At(extent.physical.saturating_add(offset - extent.logical)),
    }
}

/// The ranges in which two clones may differ. Memory is bounded, whatever their maps are.
pub struct MapDifferences {
    older: File,
    newer: File,
    lengths: (u64, u64),
    /// The longer of the two.
    end: u64,
    /// The page in which the shorter one ends, if it ends within one: what stands behind its end there
    /// is nobody's promise.
    edge: Option<ByteRange>,
    position: u64,
    found: VecDeque<ByteRange>,
    time: TimeSpent,
}

impl MapDifferences {
    /// Of two clones that nobody writes to. What it takes is added to `time`.
    pub fn new(older: File, newer: File, time: TimeSpent) -> Result<Self> {
        let length = |file: &File, which: &str| {
            let meta = file.metadata();
            meta.map(|meta| meta.len()).map_err(|e| Error::os("access", which, e))
        };
        let lengths = (length(&older, OLDER)?, length(&newer, NEWER)?);
        let end = lengths.0.max(lengths.1);
        let shorter = lengths.0.min(lengths.1);
        let page = shorter / PAGE_BYTES * PAGE_BYTES;
        let edge = (shorter < end && page < shorter)
            .then(|| ByteRange::between(page, (page + PAGE_BYTES).min(end)));
        let found = VecDeque::new();
        Ok(Self { older, newer, lengths, end, edge, position: 0, found, time })
    }

    /// Compares as much of the two maps as is told at a time.
    fn step(&mut self) -> Result<()> {
        let start = self.position;
        let older = batch(&self.older, start, self.lengths.0, self.end, OLDER)?;
        let newer = batch(&self.newer, start, self.lengths.1, self.end, NEWER)?;
        // Between the two looks the file system may have moved extents (a balance, a defragmentation),
        // and put those of the newer clone where those of the older were.
        let again = batch(&self.older, start, self.lengths.0, self.end, OLDER)?;
        let end = older.end.min(newer.end).min(again.end);
        if end <= start {
            // A map that does not go on says nothing.
            self.position = self.end;
            self.add(start, self.end);
            return Ok(());
        }
        self.position = end;
        if clipped(&older, end) != clipped(&again, end) {
            self.add(start, end);
            return Ok(());
        }
        let mut others = newer.pieces.iter().peekable();
        for old in clipped(&older, end) {
            let mut at = old.start;
            while at < old.end {
                while others.next_if(|new| new.end <= at).is_some() {}
                let Some(new) = others.peek() else { break };
                let (until, is_edge) = match self.edge {
                    Some(edge) if at < edge.offset => {
                        (old.end.min(new.end).min(edge.offset), false)
                    }
                    Some(edge) if at < edge.end() => (old.end.min(new.end).min(edge.end()), true),
                    _ => (old.end.min(new.end), false),
                };
                let same = !is_edge
                    && match (old.place_at(at), new.place_at(at)) {
                        (Place::Zero, Place::Zero) => true,
                        (Place::At(one), Place::At(other)) => one == other,
                        _ => false,
                    };
                if !same {
                    self.add(at, until);
                }
                at = until;
            }
        }
        Ok(())
    }

    fn add(&mut self, start: u64, end: u64) {
        match self.found.back_mut() {
            Some(last) if last.end() >= start => {
                *last = ByteRange::between(last.offset, last.end().max(end));
            }
            _ => self.found.push_back(ByteRange::between(start, end)),
        }
    }
}

fn clipped(batch: &Batch, end: u64) -> Vec<Piece> {
    let before = batch.pieces.iter().take_while(|piece| piece.start < end);
    before.map(|piece| Piece { end: piece.end.min(end), ..*piece }).collect()
}

impl ChangeHints for MapDifferences {
    fn next_range(&mut self) -> Result<Option<ByteRange>> {
        while self.found.len() < 2 && self.position < self.end {
            self.time.clone().on(|| self.step())?;
        }
        Ok(self.found.pop_front())
    }
}

/// Makes `to`, an empty file, a clone of `from`: one moment of it, even while somebody writes.
///
/// # Errors
/// `Unsupported` if the file system shares no extents, or not between these two.
pub fn clone_into(from: &File, to: &File) -> Result<()> {
    clone_file(from, to).map_err(|e| match e.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EXDEV | libc::ENOTTY | libc::EPERM) => {
            Error::new(ErrorKind::Unsupported, "the file system cannot clone this file")
        }
        _ => Error::io("cannot clone the image", e),
    })
}

/// How many extents a file has: what a clone of it costs, and how long its writers wait meanwhile.
///
/// # Errors
/// `Unsupported` if its file system does not tell; then it cannot clone either.
pub fn extent_count(file: &File) -> Result<u64> {
    count_file_extents(file).map_err(|e| match e.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY) => {
            Error::new(ErrorKind::Unsupported, "the file system cannot list extents")
        }
        _ => Error::io("cannot count the extents", e),
    })
}

/// Bytes of a file that lie in no other one: what would be free without it.
pub fn own_bytes(file: &File) -> Result<u64> {
    let (mut start, mut own) = (0, 0);
    loop {
        let failed = |e| Error::io("cannot read the extents", e);
        let (extents, next) = extents_from(file, start).map_err(failed)?;
        let of_it = extents.iter().filter(|extent| extent.flags & SHARED == 0);
        own += of_it.map(|extent| extent.bytes).sum::<u64>();
        match next.filter(|next| *next > start) {
            Some(next) => start = next,
            None => return Ok(own),
        }
    }
}
