//! A part file and the table of parts in a layer file (FORMAT.md sections 2.3 and 3.5).
//!
//! ```text
//! part file    header | FRAM FRAM .. TABL | .. INDX .. | part footer   a range of blocks
//! layer file   header | PART | footer                                  the parts of a snapshot
//! ```

use super::footer::{Counts, FOOTER_BYTES, RootRef, check_counts, decode_root_of};
use super::{MAX_BLOCKS, crc32, take, take_one};
use crate::base::digest::Digest;
use crate::base::error::{Error, Result};
use crate::base::units::BlockRange;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first eight bytes of the footer of a part file.
pub const PART_MAGIC: [u8; 8] = *b"TRAPGMI\n";
/// Maximum number of parts of a layer.
pub const MAX_PARTS: usize = 8192;
/// Maximum length of a part file in bytes, so that sums of lengths cannot overflow.
const MAX_PART_BYTES: u64 = 1 << 50;

/// [`Counts`] as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 2.3 documents each field")]
pub struct CountsWire {
    pub data_blocks: U64,
    pub zero_blocks: U64,
    pub unread_blocks: U64,
    pub frame_count: U64,
    pub frame_bytes: U64,
    pub table_count: U64,
    pub index_count: U64,
}

impl CountsWire {
    fn of(counts: &Counts) -> Self {
        Self {
            data_blocks: U64::new(counts.data_blocks),
            zero_blocks: U64::new(counts.zero_blocks),
            unread_blocks: U64::new(counts.unread_blocks),
            frame_count: U64::new(counts.frames),
            frame_bytes: U64::new(counts.frame_bytes),
            table_count: U64::new(counts.tables),
            index_count: U64::new(counts.indexes),
        }
    }

    /// Decodes the counts, and refuses those that exceed what a file of `file_bytes` bytes can hold.
    fn decode(&self, file_bytes: u64) -> Result<Counts> {
        let counts = Counts {
            data_blocks: self.data_blocks.get(),
            zero_blocks: self.zero_blocks.get(),
            unread_blocks: self.unread_blocks.get(),
            frames: self.frame_count.get(),
            frame_bytes: self.frame_bytes.get(),
            tables: self.table_count.get(),
            indexes: self.index_count.get(),
        };
        check_counts(counts, file_bytes)
    }
}

/// The footer of a part file as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 2.3 documents each field")]
pub struct PartFooterWire {
    pub magic: [u8; 8],
    pub file_bytes: U64,
    pub first_block: U64,
    pub end_block: U64,
    pub term_difference: [u8; 16],
    pub before_terms: [u8; 16],
    pub content_digest: Digest,
    pub counts: CountsWire,
    pub root_offset: U64,
    pub root_bytes: U32,
    pub root_checksum: U32,
    pub has_before: U32,
    pub reserved: [u8; 352],
    pub checksum: U32,
}

const _: () = assert!(size_of::<PartFooterWire>() == FOOTER_BYTES);
const _: () = assert!(std::mem::offset_of!(PartFooterWire, checksum) == FOOTER_BYTES - 4);

/// The effect of a part on the sum of the terms of its range (FORMAT.md D2, G3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartTerms {
    /// The sum with the part minus the sum at the parent.
    pub difference: u128,
    /// The sum at the parent, if all of the range was compared. It verifies the index of the parent.
    pub before: Option<u128>,
}

/// The footer of a part file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartFooter {
    /// Length of the whole file.
    pub file_bytes: u64,
    /// The range of the part, beyond which none of its runs extends.
    pub blocks: BlockRange,
    /// Its effect on the sum of the terms.
    pub terms: PartTerms,
    /// Digest of the file before the footer.
    pub content_digest: Digest,
    /// What the file holds.
    pub counts: Counts,
    /// The root page; `None` if nothing has changed in its range.
    pub root: Option<RootRef>,
}

impl PartFooter {
    /// Encodes the footer.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let root = self.root.unwrap_or(RootRef { offset: 0, record_bytes: 0, checksum: 0 });
        let mut wire = PartFooterWire {
            magic: PART_MAGIC,
            file_bytes: U64::new(self.file_bytes),
            first_block: U64::new(self.blocks.first),
            end_block: U64::new(self.blocks.end()),
            term_difference: self.terms.difference.to_le_bytes(),
            before_terms: self.terms.before.unwrap_or(0).to_le_bytes(),
            content_digest: self.content_digest,
            counts: CountsWire::of(&self.counts),
            root_offset: U64::new(root.offset),
            root_bytes: U32::new(root.record_bytes),
            root_checksum: U32::new(root.checksum),
            has_before: U32::new(self.terms.before.is_some().into()),
            reserved: [0; 352],
            checksum: U32::ZERO,
        };
        let (covered, _) = wire.as_bytes().split_at(FOOTER_BYTES - 4);
        wire.checksum = U32::new(crc32(covered));
        zerocopy::transmute!(wire)
    }

    /// Checks and decodes the footer of a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// `Corrupt` if the bytes are not a part footer of such a file.
    pub fn decode(bytes: &[u8; FOOTER_BYTES], file_bytes: u64) -> Result<Self> {
        let wire: &PartFooterWire = zerocopy::transmute_ref!(bytes);
        let (covered, _) = bytes.split_at(FOOTER_BYTES - 4);
        if wire.magic != PART_MAGIC || wire.checksum.get() != crc32(covered) {
            return Err(Error::corrupt("no valid part footer: the file is truncated or damaged"));
        }
        if wire.file_bytes.get() != file_bytes || file_bytes > MAX_PART_BYTES {
            let what = format!("the part footer belongs to a file of {} bytes", wire.file_bytes);
            return Err(Error::corrupt(what));
        }
        let before = u128::from_le_bytes(wire.before_terms);
        let before = match wire.has_before.get() {
            0 if before == 0 => None,
            1 => Some(before),
            _ => return Err(Error::corrupt("part footer: the terms before it are not valid")),
        };
        if wire.reserved.iter().any(|&b| b != 0) {
            return Err(Error::corrupt("part footer: reserved bytes are not zero"));
        }
        let root = RootRef {
            offset: wire.root_offset.get(),
            record_bytes: wire.root_bytes.get(),
            checksum: wire.root_checksum.get(),
        };
        let counts = wire.counts.decode(file_bytes)?;
        Ok(Self {
            file_bytes,
            blocks: range_of(wire.first_block.get(), wire.end_block.get())?,
            terms: PartTerms { difference: u128::from_le_bytes(wire.term_difference), before },
            content_digest: wire.content_digest,
            counts,
            root: decode_root_of(root, counts.tables == 0, file_bytes)?,
        })
    }
}

fn range_of(first: u64, end: u64) -> Result<BlockRange> {
    if first >= end || end > MAX_BLOCKS {
        return Err(Error::corrupt(format!("invalid part from block {first} to {end}")));
    }
    Ok(BlockRange::between(first, end))
}

/// The head of a table of parts as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.5 documents each field")]
pub struct PartsWire {
    pub part_count: U32,
    pub reserved: U32,
    pub cell_blocks: U64,
}

/// An entry of a table of parts as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.5 documents each field")]
pub struct PartWire {
    pub object: [u8; 16],
    pub first_block: U64,
    pub end_block: U64,
    pub file_bytes: U64,
    pub footer_digest: Digest,
    pub term_difference: [u8; 16],
    pub counts: CountsWire,
}

const _: () = assert!(size_of::<PartsWire>() == 16);
const _: () = assert!(size_of::<PartWire>() == 128);

/// A part of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartEntry {
    /// The UUID in the name of its object, `UUID.delta`.
    pub object: Uuid,
    /// Its range of blocks.
    pub blocks: BlockRange,
    /// Length of its file.
    pub file_bytes: u64,
    /// Digest of its footer.
    pub footer_digest: Digest,
    /// What it adds to the sum of the terms.
    pub term_difference: u128,
    /// What it holds.
    pub counts: Counts,
}

impl PartEntry {
    /// The entry for a part file.
    pub fn of(object: Uuid, footer: &PartFooter, footer_digest: Digest) -> Self {
        Self {
            object,
            blocks: footer.blocks,
            file_bytes: footer.file_bytes,
            footer_digest,
            term_difference: footer.terms.difference,
            counts: footer.counts,
        }
    }

    /// The name of its object in the folder of its image.
    pub fn object_name(&self) -> String {
        part_name(self.object)
    }
}

/// The name of the object of a part.
pub fn part_name(object: Uuid) -> String {
    format!("{object}.delta")
}

/// The parts of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartTable {
    /// Ranges begin and end at multiples of this; the last one may end at [`MAX_BLOCKS`].
    pub cell_blocks: u64,
    /// In ascending order, not overlapping, at least one.
    pub parts: Vec<PartEntry>,
}

impl PartTable {
    /// The sums of the counts of all parts.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        self.parts.iter().for_each(|part| sum.add(&part.counts));
        sum
    }

    /// Total length of all part files in bytes.
    pub fn part_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.file_bytes).sum()
    }

    /// What all parts together add to the sum of the terms.
    pub fn term_difference(&self) -> u128 {
        self.parts.iter().fold(0u128, |sum, part| sum.wrapping_add(part.term_difference))
    }

    /// Encodes the payload of the PART record.
    pub fn encode(&self) -> Vec<u8> {
        let head = PartsWire {
            part_count: U32::new(self.parts.len() as u32),
            reserved: U32::ZERO,
            cell_blocks: U64::new(self.cell_blocks),
        };
        let mut bytes = head.as_bytes().to_vec();
        for part in &self.parts {
            let wire = PartWire {
                object: part.object.into_bytes(),
                first_block: U64::new(part.blocks.first),
                end_block: U64::new(part.blocks.end()),
                file_bytes: U64::new(part.file_bytes),
                footer_digest: part.footer_digest,
                term_difference: part.term_difference.to_le_bytes(),
                counts: CountsWire::of(&part.counts),
            };
            bytes.extend_from_slice(wire.as_bytes());
        }
        bytes
    }

    /// Checks and decodes the payload of a PART record.
    ///
    /// # Errors
    /// `Corrupt` if it is not a valid table of parts.
    pub fn decode(mut payload: &[u8]) -> Result<Self> {
        let bytes = &mut payload;
        let head: &PartsWire = take_one(bytes, "head")?;
        let (count, cell_blocks) = (head.part_count.get() as usize, head.cell_blocks.get());
        if count == 0 || count > MAX_PARTS || head.reserved.get() != 0 {
            return Err(Error::corrupt(format!("invalid table of {count} parts")));
        }
        if cell_blocks == 0 || cell_blocks > MAX_BLOCKS {
            return Err(Error::corrupt(format!("invalid part grid of {cell_blocks} blocks")));
        }
        let wires: &[PartWire] = take(bytes, count, "parts")?;
        if !bytes.is_empty() {
            return Err(Error::corrupt("the table is longer than its parts"));
        }
        let (mut parts, mut last_end) = (Vec::with_capacity(count), 0);
        for wire in wires {
            let blocks = range_of(wire.first_block.get(), wire.end_block.get())?;
            let is_on_grid = |block: u64| block.is_multiple_of(cell_blocks);
            let ends = is_on_grid(blocks.end()) || blocks.end() == MAX_BLOCKS;
            if blocks.first < last_end || !is_on_grid(blocks.first) || !ends {
                return Err(Error::corrupt("parts are not in order, or not on their grid"));
            }
            last_end = blocks.end();
            let file_bytes = wire.file_bytes.get();
            if file_bytes > MAX_PART_BYTES || wire.counts.table_count.get() == 0 {
                return Err(Error::corrupt(format!("invalid part size of {file_bytes} bytes")));
            }
            parts.push(PartEntry {
                object: Uuid::from_bytes(wire.object),
                blocks,
                file_bytes,
                footer_digest: wire.footer_digest,
                term_difference: u128::from_le_bytes(wire.term_difference),
                counts: wire.counts.decode(file_bytes)?,
            });
        }
        Ok(Self { cell_blocks, parts })
    }
}
