//! An index page: the bounds and locations of its children (FORMAT.md section 3.4).

use super::{MAX_BLOCKS, take, take_one};
use crate::base::error::{Error, Result};
use crate::base::units::BlockRange;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Maximum number of entries of a page.
pub const MAX_INDEX_ENTRIES: u32 = 4096;

/// The head of an index page as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.4 documents each field")]
pub struct IndexWire {
    pub entry_count: U32,
    pub reserved: U32,
}

/// An entry as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.4 documents each field")]
pub struct ChildWire {
    pub first_block: U64,
    pub end_block: U64,
    pub offset: U64,
    pub record_bytes: U32,
    pub checksum: U32,
}

const _: () = assert!(size_of::<IndexWire>() == 8);
const _: () = assert!(size_of::<ChildWire>() == 32);

/// Bounds and location of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildRef {
    /// The blocks that the page covers.
    pub blocks: BlockRange,
    /// Offset of its record.
    pub offset: u64,
    /// Length of its record.
    pub record_bytes: u32,
    /// Checksum in its record header.
    pub checksum: u32,
}

/// An index page, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexPage {
    /// In ascending order, not overlapping, at least one.
    pub children: Vec<ChildRef>,
}

impl IndexPage {
    /// The range of blocks that the page covers.
    pub fn bounds(&self) -> BlockRange {
        let first = self.children.first().map_or(0, |c| c.blocks.first);
        BlockRange::between(first, self.children.last().map_or(0, |c| c.blocks.end()))
    }

    /// Encodes the payload of the page.
    pub fn encode(&self) -> Vec<u8> {
        let count = U32::new(self.children.len() as u32);
        let mut bytes = IndexWire { entry_count: count, reserved: U32::ZERO }.as_bytes().to_vec();
        for child in &self.children {
            let wire = ChildWire {
                first_block: U64::new(child.blocks.first),
                end_block: U64::new(child.blocks.end()),
                offset: U64::new(child.offset),
                record_bytes: U32::new(child.record_bytes),
                checksum: U32::new(child.checksum),
            };
            bytes.extend_from_slice(wire.as_bytes());
        }
        bytes
    }

    /// Checks and decodes the payload of the page whose record is at `offset` in its file.
    pub fn decode(mut payload: &[u8], offset: u64) -> Result<Self> {
        let bytes = &mut payload;
        let head: &IndexWire = take_one(bytes, "head")?;
        let count = head.entry_count.get();
        if count == 0 || count > MAX_INDEX_ENTRIES || head.reserved.get() != 0 {
            return Err(Error::corrupt(format!("invalid index page of {count} entries")));
        }
        let wires: &[ChildWire] = take(bytes, count as usize, "entries")?;
        if !bytes.is_empty() {
            return Err(Error::corrupt("the page is longer than its entries"));
        }
        let mut children = Vec::with_capacity(wires.len());
        let mut last_end = 0;
        for wire in wires {
            let (first, end) = (wire.first_block.get(), wire.end_block.get());
            if first < last_end || end <= first || end > MAX_BLOCKS {
                return Err(Error::corrupt("entries are not in order"));
            }
            last_end = end;
            let child_end = wire.offset.get().checked_add(wire.record_bytes.get().into());
            let begins = wire.offset.get() >= super::header::HEADER_BYTES as u64;
            if !begins || child_end.is_none_or(|e| e > offset) {
                return Err(Error::corrupt("a child page does not precede its page"));
            }
            children.push(ChildRef {
                blocks: BlockRange::between(first, end),
                offset: wire.offset.get(),
                record_bytes: wire.record_bytes.get(),
                checksum: wire.checksum.get(),
            });
        }
        Ok(Self { children })
    }
}
