//! A table page: the entries of one segment, the locations of its frames, and the digest of each data block
//! (FORMAT.md section 3.3).

use super::{FrameLayout, MAX_BLOCKS, take, take_one};
use crate::base::digest::Digest;
use crate::base::error::{Error, Result};
use crate::base::units::BlockRange;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Maximum number of runs, and of data blocks, of a page.
pub const MAX_PAGE_ITEMS: u32 = 4096;
/// Number of blocks that are treated as one frame where there are no frames.
const PIECE_BLOCKS: u32 = 16;
/// Maximum number of blocks of a run.
pub const MAX_RUN_BLOCKS: u64 = (1 << 30) - 1;

/// The head of a table page as stored.
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

/// A run as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.3 documents each field")]
pub struct RunWire {
    pub start: U32,
    pub kind_count: U32,
}

/// A frame entry as stored.
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

/// The kind of the blocks of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Stored in frames.
    Data,
    /// All zeros.
    Zero,
    /// Could not be read when the snapshot was taken.
    Unread,
}

/// A run of blocks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The blocks of the run.
    pub blocks: BlockRange,
    /// Their kind.
    pub kind: RunKind,
    /// Ordinal of its first block among the data blocks of the page; for other kinds than data, the number of
    /// data blocks before it.
    pub ordinal: u32,
}

/// Location of a frame.
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
    /// In ascending order, not overlapping, at least one.
    pub runs: Vec<Run>,
    /// The frames that hold the data blocks; empty if these are in a base image.
    pub frames: Vec<FrameRef>,
    /// For each frame, one past the ordinal of its last block.
    pub ends: Vec<u32>,
    /// The digest of each data block, by ordinal.
    pub digests: Vec<Digest>,
}

impl TablePage {
    /// The range of blocks that the page covers.
    pub fn bounds(&self) -> BlockRange {
        let first = self.runs.first().map_or(0, |r| r.blocks.first);
        BlockRange::between(first, self.runs.last().map_or(0, |r| r.blocks.end()))
    }

    /// The frame that holds the data block with `ordinal`: its index, and the ordinals in it. If there are
    /// no frames, pieces of 16 blocks take their place.
    pub fn frame_of(&self, ordinal: u32) -> (u32, std::ops::Range<u32>) {
        if self.ends.is_empty() {
            let index = ordinal / PIECE_BLOCKS;
            let end = ((index + 1) * PIECE_BLOCKS).min(self.digests.len() as u32);
            return (index, index * PIECE_BLOCKS..end);
        }
        let index = self.ends.partition_point(|&end| end <= ordinal) as u32;
        (index, self.ordinals_of(index))
    }

    /// The ordinals of the blocks in a frame.
    pub fn ordinals_of(&self, frame: u32) -> std::ops::Range<u32> {
        let end_of = |index: Option<usize>| index.and_then(|i| self.ends.get(i)).copied();
        let index = frame as usize;
        end_of(index.checked_sub(1)).unwrap_or(0)..end_of(Some(index)).unwrap_or(0)
    }

    /// Approximate memory use in bytes.
    pub fn memory_bytes(&self) -> u64 {
        (self.runs.len() * size_of::<Run>()
            + self.frames.len() * (size_of::<FrameRef>() + size_of::<u32>())
            + self.digests.len() * size_of::<Digest>()) as u64
    }

    /// Encodes the payload of the page.
    pub fn encode(&self, layout: FrameLayout) -> Vec<u8> {
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
        if let FrameLayout::Counted(_) = layout {
            for index in 0..self.ends.len() as u32 {
                let count = self.ordinals_of(index).len() as u16;
                bytes.extend_from_slice(U16::new(count).as_bytes());
            }
        }
        bytes.extend_from_slice(self.digests.as_bytes());
        bytes
    }

    /// Checks and decodes the payload of the page whose record is at `offset` in its file.
    pub fn decode(mut payload: &[u8], offset: u64, layout: FrameLayout) -> Result<Self> {
        let bytes = &mut payload;
        let head: &TableWire = take_one(bytes, "head")?;
        let (run_count, data_count) = (head.run_count.get(), head.data_count.get());
        if run_count == 0 || run_count > MAX_PAGE_ITEMS || data_count > MAX_PAGE_ITEMS {
            return Err(Error::corrupt(format!(
                "invalid page of {run_count} runs, {data_count} blocks"
            )));
        }
        let frame_count = head.frame_count.get();
        let fits = match layout {
            FrameLayout::Even(blocks) => frame_count == data_count.div_ceil(blocks.max(1)),
            FrameLayout::Counted(_) => frame_count <= data_count,
            FrameLayout::Absent => frame_count == 0,
        };
        if !fits {
            return Err(Error::corrupt("the number of frames does not fit the number of blocks"));
        }
        if head.reserved.get() != 0 {
            return Err(Error::corrupt("reserved bytes are not zero"));
        }
        let runs: &[RunWire] = take(bytes, run_count as usize, "runs")?;
        let frames: &[FrameWire] = take(bytes, frame_count as usize, "frame entries")?;
        let ends = match layout {
            FrameLayout::Counted(most) => {
                decode_counts(take(bytes, frame_count as usize, "frame counts")?, most, data_count)?
            }
            FrameLayout::Even(blocks) => {
                (1..=frame_count).map(|i| i.saturating_mul(blocks).min(data_count)).collect()
            }
            FrameLayout::Absent => Vec::new(),
        };
        let digests: &[Digest] = take(bytes, data_count as usize, "digests")?;
        if !bytes.is_empty() {
            return Err(Error::corrupt("the page is longer than its entries"));
        }
        Ok(Self {
            runs: decode_runs(head, runs)?,
            frames: decode_frames(frames, offset)?,
            ends,
            digests: digests.to_vec(),
        })
    }
}

fn decode_runs(head: &TableWire, wires: &[RunWire]) -> Result<Vec<Run>> {
    let base = head.first_block.get();
    if base >= MAX_BLOCKS {
        return Err(Error::corrupt("the page is beyond the end of any image"));
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
            _ => return Err(Error::corrupt("unknown kind of run")),
        };
        let first = base + u64::from(wire.start.get());
        if count == 0 || first < end || (index == 0 && first != base) {
            return Err(Error::corrupt("runs are not in order"));
        }
        runs.push(Run { blocks: BlockRange { first, count: count.into() }, kind, ordinal });
        end = first + u64::from(count);
        if kind == RunKind::Data {
            // A sum of 4096 counts below 2^30 would overflow, so the limit is checked for each run.
            ordinal = ordinal.saturating_add(count);
            if ordinal > head.data_count.get() {
                return Err(Error::corrupt("there are more blocks in runs than digests"));
            }
        }
    }
    if ordinal != head.data_count.get() || end != head.end_block.get() || end > MAX_BLOCKS {
        return Err(Error::corrupt("runs do not add up to the page"));
    }
    Ok(runs)
}

/// Converts the number of blocks in each frame to the ordinal at which it ends.
fn decode_counts(counts: &[U16], most: u32, data_count: u32) -> Result<Vec<u32>> {
    let mut end = 0;
    let mut ends = Vec::with_capacity(counts.len());
    for count in counts {
        let count = u32::from(count.get());
        if count == 0 || count > most {
            return Err(Error::corrupt(format!("invalid frame of {count} blocks")));
        }
        end += count;
        ends.push(end);
    }
    if end != data_count {
        return Err(Error::corrupt("the frames do not match the blocks of the runs"));
    }
    Ok(ends)
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
            return Err(Error::corrupt("the frames do not directly precede their page"));
        }
        end = frame.offset;
    }
    if end < super::header::HEADER_BYTES as u64 {
        return Err(Error::corrupt("a frame overlaps the header"));
    }
    Ok(frames)
}
