//! Reads one delta file front to back and checks every stored byte, and on demand every block: the
//! path that `verify` takes, independent of the tree, which is read from the back.
//!
//! ```text
//! one at a time: a piece of the file, digested        (Feed)
//! many threads:  its records checked, frames decoded  (check)
//! in order:      records against pages and footer     (Walk)
//! ```

use super::caches::Page;
use super::layer::Delta;
use super::part::Part;
use crate::base::digest::{Digest, StreamHasher, is_zero};
use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::base::pipeline::ordered_map;
use crate::base::units::Geometry;
use crate::codec;
use crate::format::footer::FOOTER_BYTES;
use crate::format::header::HEADER_BYTES;
use crate::format::record::{MAX_PAYLOAD_BYTES, RECORD_HEAD_BYTES, RecordHead};
use crate::format::{ChildRef, Counts, FrameRef, RecordKind, RunKind, TablePage};

/// How far a scrub goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every stored byte: checksums, order, counts, and the digest of the whole.
    Stored,
    /// Also every block: frames are decoded, and each block is held against its digest.
    Blocks,
}

/// Pages of a level that may wait for their index page: many times more than one can name.
const MAX_ORPHANS: usize = 1 << 16;
/// The longest record fits.
const PIECE_BYTES: u64 = (RECORD_HEAD_BYTES as u64) + (MAX_PAYLOAD_BYTES as u64);

/// Checks the checksum of each record, that records follow each other and agree with the pages and
/// with the footer, the digest of the whole file, and the blocks if `depth` says so. Returns the number
/// of blocks that were held against their digest.
///
/// # Errors
/// `Corrupt` with the offset of the first record that is wrong.
pub fn scrub(delta: &Delta, depth: Depth, context: &Context) -> Result<u64> {
    let geometry = delta.geometry()?;
    // That a layer file is what it was is known since it was opened.
    (0..delta.part_count()).try_fold(0, |blocks, index| {
        Ok(blocks + scrub_part(delta.part(index)?, geometry, depth, context)?)
    })
}

/// The same of one file, of an image of that geometry.
///
/// # Errors
/// As of [`scrub`].
pub fn scrub_part(part: &Part, geometry: Geometry, depth: Depth, context: &Context) -> Result<u64> {
    let mut feed = Feed::new(part)?;
    let mut walk = Walk::new(part, geometry);
    let block_bytes = u64::from(part.header().block_size.bytes());
    let mut blocks = 0;
    ordered_map(
        context.threads(),
        context.in_flight(3 * PIECE_BYTES),
        || {
            context.check()?;
            feed.next()
        },
        |piece| check(part, depth, &piece),
        |records| {
            for record in records {
                let decoded = record.digests.len() as u64;
                blocks += decoded;
                context.advance(record.head.record_bytes().into());
                context.advance(decoded * block_bytes);
                let offset = record.offset;
                walk.record(record).map_err(|e| e.at(record_place(part, offset)))?;
            }
            Ok(())
        },
    )?;
    if feed.content.digest() != part.content().content_digest {
        return Err(Error::corrupt("file digest mismatch").at(part.location()));
    }
    walk.finish().map_err(|e| e.at(part.location()))?;
    Ok(blocks)
}

fn record_place(part: &Part, offset: u64) -> String {
    format!("{}: record at byte {offset}", part.location())
}

/// Some whole records of the file.
struct FilePiece {
    bytes: Vec<u8>,
    /// Offset in the file of each, its header, and where its payload begins in `bytes`.
    records: Vec<(u64, RecordHead, usize)>,
}

/// Reads the file front to back.
struct Feed<'a> {
    part: &'a Part,
    content: StreamHasher,
    offset: u64,
    end: u64,
}

impl<'a> Feed<'a> {
    fn new(part: &'a Part) -> Result<Self> {
        let mut header = [0; HEADER_BYTES];
        part.read_at(0, &mut header)?;
        let mut content = part.hasher().stream();
        content.update(&header);
        let end = part.content().file_bytes - FOOTER_BYTES as u64;
        Ok(Self { part, content, offset: HEADER_BYTES as u64, end })
    }

    /// The next records; none at the end.
    fn next(&mut self) -> Result<Option<FilePiece>> {
        if self.offset >= self.end {
            return Ok(None);
        }
        let mut bytes = vec![0; PIECE_BYTES.min(self.end - self.offset) as usize];
        self.part.read_at(self.offset, &mut bytes)?;
        let (mut records, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let offset = self.offset + at as u64;
            let place = |what: &str| Error::corrupt(what).at(record_place(self.part, offset));
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(head) = rest.first_chunk() else {
                // Cut by the end of the piece, or by that of the file.
                if offset + rest.len() as u64 == self.end {
                    return Err(place("the records do not end at the footer"));
                }
                break;
            };
            let head =
                RecordHead::decode(head).map_err(|e| e.at(record_place(self.part, offset)))?;
            if u64::from(head.record_bytes()) > self.end - offset {
                return Err(place("the record is longer than the file"));
            }
            if head.record_bytes() as usize > rest.len() {
                break;
            }
            records.push((offset, head, at + RECORD_HEAD_BYTES));
            at += head.record_bytes() as usize;
        }
        bytes.truncate(at);
        self.content.update(&bytes);
        self.offset += at as u64;
        Ok(Some(FilePiece { bytes, records }))
    }
}

/// A record whose bytes are what was written.
struct Checked {
    offset: u64,
    head: RecordHead,
    page: Option<Page>,
    /// Of the blocks of a frame that was decoded.
    digests: Vec<Digest>,
    /// How many zeros its last block ends with.
    zeros_at_end: usize,
}

fn check(part: &Part, depth: Depth, piece: &FilePiece) -> Result<Vec<Checked>> {
    let mut raw = Vec::new();
    let mut records = Vec::with_capacity(piece.records.len());
    for &(offset, head, start) in &piece.records {
        let payload = piece.bytes.get(start..start + head.payload_bytes as usize);
        let payload = payload.unwrap_or_default();
        let place = |e: Error| e.at(record_place(part, offset));
        head.verify(part.header().file_id, offset, payload).map_err(place)?;
        let mut record = Checked { offset, head, page: None, digests: Vec::new(), zeros_at_end: 0 };
        match head.kind {
            // FORMAT.md R2. What it says is trusted only within that: it is memory.
            RecordKind::Frame { block_count, .. }
                if u32::from(block_count) > part.header().frame_blocks =>
            {
                return Err(place(Error::corrupt(format!(
                    "invalid frame of {block_count} blocks"
                ))));
            }
            RecordKind::Frame { codec, block_count } if depth == Depth::Blocks => {
                let size = part.header().block_size.in_memory();
                raw.resize(usize::from(block_count) * size, 0);
                part.count_decoded(raw.len());
                codec::decode(codec, payload, &mut raw).map_err(place)?;
                // FORMAT.md R6: an image digest knows nothing of zeros that are stored.
                if raw.chunks(size).any(is_zero) {
                    return Err(place(Error::corrupt("a block of zeros is stored")));
                }
                record.digests.extend(raw.chunks(size).map(|b| part.hasher().digest(b)));
                let zeros = raw.iter().rev().take(size).take_while(|&&b| b == 0);
                record.zeros_at_end = zeros.count();
            }
            RecordKind::Frame { .. } => {}
            kind => record.page = Some(part.decode_page(kind, payload, offset).map_err(place)?),
        }
        records.push(record);
    }
    Ok(records)
}

/// Records in the order of the file, held against each other.
struct Walk<'a> {
    part: &'a Part,
    geometry: Geometry,
    counts: Counts,
    /// Frames since the last page, and how many blocks each holds.
    frames: Vec<(FrameRef, u32)>,
    /// Of the blocks in them, if they were decoded.
    digests: Vec<Digest>,
    zeros_at_end: usize,
    /// Pages that no index page names yet, by level.
    orphans: Vec<Vec<ChildRef>>,
    end_block: u64,
}

impl<'a> Walk<'a> {
    fn new(part: &'a Part, geometry: Geometry) -> Self {
        Self {
            part,
            geometry,
            counts: Counts::default(),
            frames: Vec::new(),
            digests: Vec::new(),
            zeros_at_end: 0,
            orphans: Vec::new(),
            end_block: 0,
        }
    }

    fn record(&mut self, record: Checked) -> Result<()> {
        let (record_bytes, checksum) = (record.head.record_bytes(), record.head.checksum);
        let place = FrameRef { offset: record.offset, record_bytes, checksum };
        let (level, bounds) = match (record.head.kind, &record.page) {
            (RecordKind::Frame { block_count, .. }, _) => {
                self.counts.frames += 1;
                self.counts.frame_bytes += u64::from(record_bytes);
                self.frames.push((place, block_count.into()));
                self.digests.extend(record.digests);
                self.zeros_at_end = record.zeros_at_end;
                return Ok(());
            }
            (_, Some(Page::Table(page))) => {
                self.table(page)?;
                (0, page.bounds())
            }
            (_, Some(Page::Index(page, level))) => {
                self.counts.indexes += 1;
                // FORMAT.md I2: each page has one parent, and comes before it; in order, so these are
                // the first ones that have none yet.
                let count = page.children.len();
                let below = self.orphans.get_mut((*level as usize).saturating_sub(1));
                let is_below = below.is_some_and(|below| {
                    let are_first = below.get(..count) == Some(page.children.as_slice());
                    below.drain(..count.min(below.len()));
                    are_first
                });
                if !is_below {
                    return Err(Error::corrupt("the page does not match the pages before it"));
                }
                (*level, page.bounds())
            }
            _ => return Err(Error::corrupt("a page that was not decoded")),
        };
        let level = level as usize;
        if self.orphans.len() <= level {
            self.orphans.resize_with(level + 1, Vec::new);
        }
        if let Some(orphans) = self.orphans.get_mut(level) {
            if orphans.len() >= MAX_ORPHANS {
                return Err(Error::corrupt("too many pages are not in any index page"));
            }
            orphans.push(ChildRef {
                blocks: bounds,
                offset: record.offset,
                record_bytes,
                checksum,
            });
        }
        Ok(())
    }

    fn table(&mut self, page: &TablePage) -> Result<()> {
        let frames = std::mem::take(&mut self.frames);
        if !page.frames.iter().eq(frames.iter().map(|(place, _)| place)) {
            return Err(Error::corrupt("the page does not match the frames before it"));
        }
        let want = (0..).map(|index| page.ordinals_of(index).len() as u32);
        if frames.iter().zip(want).any(|((_, have), want)| *have != want) {
            return Err(Error::corrupt("the frames do not match the blocks of their page"));
        }
        self.part.check_within(page)?;
        if page.bounds().first < self.end_block {
            return Err(Error::corrupt("pages are not in order"));
        }
        let digests = std::mem::take(&mut self.digests);
        if !digests.is_empty() {
            if digests != page.digests {
                return Err(Error::corrupt("block digest mismatch"));
            }
            self.check_end(page)?;
        }
        self.end_block = page.bounds().end();
        self.counts.tables += 1;
        page.runs.iter().for_each(|run| self.counts.add_run(run));
        Ok(())
    }

    /// FORMAT.md C4: what lies beyond the end of the image must not come back when it grows. Only the
    /// last data block of a page can reach beyond it.
    fn check_end(&self, page: &TablePage) -> Result<()> {
        let last = page.runs.iter().rev().find(|run| run.kind == RunKind::Data);
        let Some(last) = last else { return Ok(()) };
        let block = crate::base::units::BlockRange { first: last.blocks.end() - 1, count: 1 };
        let beyond = u64::from(self.geometry.block_size.bytes())
            .saturating_sub(self.geometry.bytes_in(block));
        if (self.zeros_at_end as u64) < beyond {
            return Err(Error::corrupt("a block has bytes beyond the end of the image"));
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if !self.frames.is_empty() || self.counts != self.part.content().counts {
            return Err(Error::corrupt("the records do not match the counts in the footer"));
        }
        let roots: Vec<ChildRef> = self.orphans.into_iter().flatten().collect();
        let named = self.part.content().root.map(|r| (r.offset, r.record_bytes, r.checksum));
        let last = roots.last().map(|r| (r.offset, r.record_bytes, r.checksum));
        if roots.len() > 1 || last != named {
            return Err(Error::corrupt("the footer does not match the root page"));
        }
        Ok(())
    }
}
