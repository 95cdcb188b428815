//! A table page: the entries of one segment, where its frames are, and the digest of each data
//! block (FORMAT.md section 3.3).

use super::{MAX_BLOCKS, take, take_one};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::units::BlockRange;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most runs, and the most data blocks, of a page.
pub const MAX_PAGE_ITEMS: u32 = 4096;
/// The most blocks of one run.
pub const MAX_RUN_BLOCKS: u64 = (1 << 30) - 1;

/// The head of a table page on the wire.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.3 documents each field")]
pub struct TableWire {
    pub first_block: U64,
    pub end_block: U64,
    pub run_count: U32,
    pub frame_count: U32,
    pub data_count: U32,
    pub reserved: U32,
}

/// A run on the wire.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.3 documents each field")]
pub struct RunWire {
    pub start: U32,
    pub kind_count: U32,
}

/// A frame entry on the wire.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.3 documents each field")]
pub struct FrameWire {
    pub offset: U64,
    pub record_bytes: U32,
    pub checksum: U32,
}

const _: () = assert!(size_of::<TableWire>() == 32);
const _: () = assert!(size_of::<RunWire>() == 8);
const _: () = assert!(size_of::<FrameWire>() == 16);

/// What the blocks of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Stored in frames.
    Data,
    /// All zeros.
    Zero,
    /// Could not be read.
    Unread,
}

/// A run of blocks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which blocks.
    pub blocks: BlockRange,
    /// What they are.
    pub kind: RunKind,
    /// Data: ordinal within the page of the first one. Otherwise the number of data blocks before.
    pub ordinal: u32,
}

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef {
    /// Offset of its record.
    pub offset: u64,
    /// Length of its record.
    pub record_bytes: u32,
    /// Checksum in its record header.
    pub checksum: u32,
}

/// A table page, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablePage {
    /// Ascending, not overlapping, at least one.
    pub runs: Vec<Run>,
    /// The frames that hold the data blocks.
    pub frames: Vec<FrameRef>,
    /// One for each data block, by ordinal.
    pub digests: Vec<Digest>,
}

impl TablePage {
    /// First block and end of what the page covers.
    pub fn bounds(&self) -> BlockRange {
        let first = self.runs.first().map_or(0, |r| r.blocks.first);
        BlockRange::between(first, self.runs.last().map_or(0, |r| r.blocks.end()))
    }

    /// How many blocks the frame with an index holds (FORMAT.md T3).
    pub fn blocks_in_frame(&self, index: u32, frame_blocks: u32) -> u32 {
        let before = u64::from(index) * u64::from(frame_blocks);
        (self.digests.len() as u64).saturating_sub(before).min(frame_blocks.into()) as u32
    }

    /// About how much memory it takes, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        (self.runs.len() * size_of::<Run>()
            + self.frames.len() * size_of::<FrameRef>()
            + self.digests.len() * size_of::<Digest>()) as u64
    }

    /// The payload of the page.
    pub fn encode(&self) -> Vec<u8> {
        let bounds = self.bounds();
        let head = TableWire {
            first_block: U64::new(bounds.first),
            end_block: U64::new(bounds.end()),
            run_count: U32::new(self.runs.len() as u32),
            frame_count: U32::new(self.frames.len() as u32),
            data_count: U32::new(self.digests.len() as u32),
            reserved: U32::ZERO,
        };
        let mut bytes = head.as_bytes().to_vec();
        for run in &self.runs {
            let kind = match run.kind {
                RunKind::Data => 0,
                RunKind::Zero => 1,
                RunKind::Unread => 2,
            };
            let wire = RunWire {
                start: U32::new((run.blocks.first - bounds.first) as u32),
                kind_count: U32::new(kind << 30 | run.blocks.count as u32),
            };
            bytes.extend_from_slice(wire.as_bytes());
        }
        for frame in &self.frames {
            let wire = FrameWire {
                offset: U64::new(frame.offset),
                record_bytes: U32::new(frame.record_bytes),
                checksum: U32::new(frame.checksum),
            };
            bytes.extend_from_slice(wire.as_bytes());
        }
        bytes.extend_from_slice(self.digests.as_bytes());
        bytes
    }

    /// Checks and decodes the payload of the page whose record is at `offset` of its file.
    pub fn decode(mut payload: &[u8], offset: u64, frame_blocks: u32) -> Result<Self> {
        let bytes = &mut payload;
        let head: &TableWire = take_one(bytes, "head")?;
        let (run_count, data_count) = (head.run_count.get(), head.data_count.get());
        if run_count == 0 || run_count > MAX_PAGE_ITEMS || data_count > MAX_PAGE_ITEMS {
            return Err(Error::corrupt(format!("a page of {run_count} runs, {data_count} blocks")));
        }
        if head.frame_count.get() != data_count.div_ceil(frame_blocks.max(1)) {
            return Err(Error::corrupt("the number of frames does not fit that of blocks"));
        }
        if head.reserved.get() != 0 {
            return Err(Error::corrupt("reserved bytes are not zero"));
        }
        let runs: &[RunWire] = take(bytes, run_count as usize, "runs")?;
        let frames: &[FrameWire] = take(bytes, head.frame_count.get() as usize, "frame entries")?;
        let digests: &[Digest] = take(bytes, data_count as usize, "digests")?;
        if !bytes.is_empty() {
            return Err(Error::corrupt("the page is longer than its entries"));
        }
        Ok(Self {
            runs: decode_runs(head, runs)?,
            frames: decode_frames(frames, offset)?,
            digests: digests.to_vec(),
        })
    }
}

fn decode_runs(head: &TableWire, wires: &[RunWire]) -> Result<Vec<Run>> {
    let base = head.first_block.get();
    if base >= MAX_BLOCKS {
        return Err(Error::corrupt("a page beyond the end of any image"));
    }
    let mut runs = Vec::with_capacity(wires.len());
    let (mut end, mut ordinal) = (base, 0u32);
    for (index, wire) in wires.iter().enumerate() {
        let kind_count = wire.kind_count.get();
        let count = kind_count & MAX_RUN_BLOCKS as u32;
        let kind = match kind_count >> 30 {
            0 => RunKind::Data,
            1 => RunKind::Zero,
            2 => RunKind::Unread,
            _ => return Err(Error::corrupt("a run of unknown kind")),
        };
        let first = base + u64::from(wire.start.get());
        if count == 0 || first < end || (index == 0 && first != base) {
            return Err(Error::corrupt("runs are not in order"));
        }
        runs.push(Run { blocks: BlockRange { first, count: count.into() }, kind, ordinal });
        end = first + u64::from(count);
        if kind == RunKind::Data {
            // No overflow: a sum of at most 4096 counts below 2^30 could; so compare each time.
            ordinal = ordinal.saturating_add(count);
            if ordinal > head.data_count.get() {
                return Err(Error::corrupt("more blocks in runs than digests"));
            }
        }
    }
    if ordinal != head.data_count.get() || end != head.end_block.get() || end > MAX_BLOCKS {
        return Err(Error::corrupt("runs do not add up to the page"));
    }
    Ok(runs)
}

fn decode_frames(wires: &[FrameWire], table_offset: u64) -> Result<Vec<FrameRef>> {
    let frames: Vec<FrameRef> = wires
        .iter()
        .map(|wire| FrameRef {
            offset: wire.offset.get(),
            record_bytes: wire.record_bytes.get(),
            checksum: wire.checksum.get(),
        })
        .collect();
    let mut end = table_offset;
    for frame in frames.iter().rev() {
        let (bytes, head) = (frame.record_bytes, super::record::RECORD_HEAD_BYTES as u32);
        let fits = bytes > head && bytes <= head + super::record::MAX_PAYLOAD_BYTES;
        if !fits || frame.offset.checked_add(bytes.into()) != Some(end) {
            return Err(Error::corrupt("frames do not stand directly before their page"));
        }
        end = frame.offset;
    }
    if end < super::header::HEADER_BYTES as u64 {
        return Err(Error::corrupt("a frame within the header"));
    }
    Ok(frames)
}
