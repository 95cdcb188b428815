//! What an image is compared with, and what comes out of that.

use crate::base::digest::{Digest, Hasher, ImageDigest};
use crate::base::units::{BlockRange, BlockSize};
use crate::chain::Chain;
use crate::format::PartTerms;
use serde::Serialize;

/// What is mapped at once, by all threads together. Each mapping that goes interrupts the other
/// cores, so few large windows are faster than many small ones.
const MAPPED_BYTES: u64 = 16 << 20;

/// What an image is compared with.
pub enum Index<'a> {
    /// The snapshot at the tip of a chain.
    Parent(&'a Chain),
    /// Nothing: all zeros.
    Nothing(&'a Hasher, BlockSize),
}

impl Index<'_> {
    /// The keyed function of the chain.
    pub fn hasher(&self) -> &Hasher {
        match self {
            Self::Parent(chain) => chain.hasher(),
            Self::Nothing(hasher, _) => hasher,
        }
    }

    pub(super) fn block_size(&self) -> BlockSize {
        match self {
            Self::Parent(chain) => chain.geometry().block_size,
            Self::Nothing(_, block_size) => *block_size,
        }
    }

    pub(super) fn image_bytes(&self) -> u64 {
        match self {
            Self::Parent(chain) => chain.geometry().image_bytes,
            Self::Nothing(..) => 0,
        }
    }
}

/// What one block, or run of blocks, became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A block with other bytes; they are the next ones of [`Changes::bytes`].
    Data(u64, Digest),
    /// Blocks that became zero.
    Zero(BlockRange),
    /// Blocks that their medium does not give. They are among the changes of every scan, also if the index
    /// has none of them either: so each snapshot names its own.
    Unread(BlockRange),
}

impl Change {
    /// Which blocks.
    pub fn blocks(&self) -> BlockRange {
        match *self {
            Self::Data(block, _) => BlockRange { first: block, count: 1 },
            Self::Zero(blocks) | Self::Unread(blocks) => blocks,
        }
    }
}

/// The changes of one window, in ascending order.
#[derive(Default)]
pub struct Changes {
    /// What was examined.
    pub blocks: BlockRange,
    /// What changed.
    pub list: Vec<Change>,
    /// The bytes of the changed blocks, whole blocks one after the other.
    pub bytes: Vec<u8>,
    pub(super) new_terms: u128,
    pub(super) old_terms: u128,
    pub(super) read_bytes: u64,
    pub(super) missed: Missed,
}

impl Changes {
    /// The sum of the terms of the window after the changes, and before them.
    pub fn terms(&self) -> (u128, u128) {
        (self.new_terms, self.old_terms)
    }

    /// How many blocks changed.
    pub fn block_count(&self) -> u64 {
        self.list.iter().map(|change| change.blocks().count).sum()
    }
}

/// What becomes of blocks that the medium does not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BadMedium {
    /// The first one ends the scan.
    #[default]
    Fail,
    /// They are unread, and the rest is scanned: by plain reads, which tell where they are.
    Skip,
    /// The same of a disk that is expected to be sound: read as fast as with `Fail`, and plainly only where
    /// that fails.
    SkipIfAny,
}

/// What a scan found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Digest of the image as it is, as far as it was examined.
    pub image_digest: ImageDigest,
    /// What that adds to the sum of the terms.
    pub terms: PartTerms,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes of the image that hints named; none if all of it was examined.
    pub named_bytes: Option<u64>,
    /// What changed though no hint named it.
    pub missed: Missed,
}

/// Blocks that changed though no hint named them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Missed {
    /// How many were found.
    pub blocks: u64,
    /// The first of them; none if there are none.
    pub first: Option<u64>,
}

impl Missed {
    pub(super) fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.first = self.first.or(other.first);
    }
}

/// How much a thread maps at a time: a power of two from 2 to 8 MiB.
pub fn window_bytes(threads: usize) -> u64 {
    (MAPPED_BYTES / threads.max(1).next_power_of_two() as u64).clamp(2 << 20, 8 << 20)
}

impl Changes {
    /// The same memory with nothing in it.
    pub(super) fn emptied(mut self) -> Self {
        self.list.clear();
        self.bytes.clear();
        Self { list: self.list, bytes: self.bytes, ..Self::default() }
    }

    pub(super) fn unchanged(&mut self, term: u128) {
        self.old_terms = self.old_terms.wrapping_add(term);
        self.new_terms = self.new_terms.wrapping_add(term);
    }

    pub(super) fn miss(&mut self, blocks: BlockRange) {
        self.missed.add(Missed { blocks: blocks.count, first: Some(blocks.first) });
    }

    pub(super) fn zero(&mut self, blocks: BlockRange) {
        match self.list.last_mut() {
            Some(Change::Zero(last)) if last.end() == blocks.first => last.count += blocks.count,
            _ => self.list.push(Change::Zero(blocks)),
        }
    }

    pub(super) fn unread(&mut self, blocks: BlockRange) {
        match self.list.last_mut() {
            Some(Change::Unread(last)) if last.end() == blocks.first => last.count += blocks.count,
            _ => self.list.push(Change::Unread(blocks)),
        }
    }
}
