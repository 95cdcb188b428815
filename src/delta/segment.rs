//! Cuts a stream of entries into frames and pages: a function of the entries alone (FORMAT.md
//! section 6).

use super::part::Part;
use crate::base::digest::Digest;
use crate::base::units::{BlockRange, BlockSize};
use crate::format::table::MAX_RUN_BLOCKS;
use crate::format::{FrameRef, PartEntry, PartTerms, Run, RunKind, TablePage};
use std::sync::Arc;

/// The most data blocks, and the most runs, of a page that is written.
pub const PAGE_ITEMS: usize = 1024;
/// The most blocks from the first one of a page to the first one of its last run.
pub const PAGE_SPAN: u64 = 1 << 32;

/// What comes out, in the order of the file.
pub enum Piece {
    /// Blocks that become one frame.
    Frame {
        /// The blocks, one after the other.
        raw: Vec<u8>,
        /// How many.
        block_count: u16,
    },
    /// Blocks that are a frame of another file already, and become one as they are.
    Copy {
        /// The file.
        part: Arc<Part>,
        /// Where the frame is in it.
        place: FrameRef,
        /// How many blocks.
        block_count: u16,
    },
    /// The page over the frames since the last page; where they are is not known yet.
    Table(TablePage),
    /// What came before is a part, over these blocks; what follows is another.
    Cut(BlockRange, PartTerms),
    /// A part of another layer, which becomes one of this as it is.
    Keep(PartEntry),
}

impl Piece {
    /// Bytes that it takes until it is written.
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Frame { raw, .. } => raw.len() as u64,
            Self::Copy { place, .. } => place.record_bytes.into(),
            Self::Table(page) => page.memory_bytes(),
            Self::Cut(..) | Self::Keep(_) => 0,
        }
    }
}

/// Takes entries in ascending order and gives pieces.
pub struct Segmenter {
    block_size: BlockSize,
    /// None if the blocks stay where they are.
    frame_blocks: Option<u32>,
    page: TablePage,
    raw: Vec<u8>,
    out: Vec<Piece>,
}

impl Segmenter {
    /// For a file of this geometry.
    pub fn new(block_size: BlockSize, frame_blocks: u32) -> Self {
        Self {
            block_size,
            frame_blocks: Some(frame_blocks),
            page: TablePage::default(),
            raw: Vec::new(),
            out: Vec::new(),
        }
    }

    /// For a file whose blocks are in a base image.
    pub fn of_tables(block_size: BlockSize) -> Self {
        Self { frame_blocks: None, ..Self::new(block_size, 1) }
    }

    /// Adds a data block: its whole bytes, padded.
    pub fn data(&mut self, block: u64, digest: Digest, bytes: &[u8]) {
        self.add_run(RunKind::Data, BlockRange { first: block, count: 1 });
        self.page.digests.push(digest);
        if let Some(frame_blocks) = self.frame_blocks {
            if self.raw.capacity() == 0 {
                self.raw.reserve_exact(frame_blocks as usize * self.block_size.in_memory());
            }
            self.raw.extend_from_slice(bytes);
            if self.raw_blocks() == frame_blocks as usize {
                self.close_frame();
            }
        }
        if self.page.digests.len() == PAGE_ITEMS {
            self.close_page();
        }
    }

    /// Adds a run of zero or unread blocks.
    pub fn run(&mut self, kind: RunKind, blocks: BlockRange) {
        let mut first = blocks.first;
        while first < blocks.end() {
            let count = (blocks.end() - first).min(MAX_RUN_BLOCKS);
            self.add_run(kind, BlockRange { first, count });
            first += count;
        }
    }

    /// Takes the pieces that are complete.
    pub fn pieces(&mut self) -> std::vec::Drain<'_, Piece> {
        self.out.drain(..)
    }

    /// Ends a part.
    pub fn cut(&mut self, blocks: BlockRange, terms: PartTerms) {
        self.close_page();
        self.out.push(Piece::Cut(blocks, terms));
    }

    /// The last pieces.
    pub fn finish(mut self) -> Vec<Piece> {
        self.close_page();
        self.out
    }

    fn raw_blocks(&self) -> usize {
        self.raw.len() / self.block_size.in_memory()
    }

    fn add_run(&mut self, kind: RunKind, blocks: BlockRange) {
        if let Some(last) = self.page.runs.last_mut()
            && last.kind == kind
            && last.blocks.end() == blocks.first
            && last.blocks.count + blocks.count <= MAX_RUN_BLOCKS
        {
            last.blocks.count += blocks.count;
            return;
        }
        let too_far = blocks.first - self.page.bounds().first >= PAGE_SPAN;
        if self.page.runs.len() == PAGE_ITEMS || (!self.page.runs.is_empty() && too_far) {
            self.close_page();
        }
        let ordinal = self.page.digests.len() as u32;
        self.page.runs.push(Run { blocks, kind, ordinal });
    }

    fn close_frame(&mut self) {
        if !self.raw.is_empty() {
            let block_count = self.raw_blocks() as u16;
            let raw = std::mem::take(&mut self.raw);
            self.out.push(Piece::Frame { raw, block_count });
        }
    }

    fn close_page(&mut self) {
        self.close_frame();
        if !self.page.runs.is_empty() {
            self.out.push(Piece::Table(std::mem::take(&mut self.page)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(pieces: &[Piece]) -> Vec<String> {
        let shape = |p: &Piece| match p {
            Piece::Frame { block_count, .. } => format!("f{block_count}"),
            Piece::Copy { block_count, .. } => format!("c{block_count}"),
            Piece::Cut(..) | Piece::Keep(_) => "cut".into(),
            Piece::Table(t) => format!("t{}/{}", t.runs.len(), t.digests.len()),
        };
        pieces.iter().map(shape).collect()
    }

    #[test]
    fn frames_are_cut_by_ordinal_and_pages_at_their_limits() {
        let mut segmenter = Segmenter::new(BlockSize::DEFAULT, 400);
        for block in 0..1030 {
            segmenter.data(block, Digest([1; 16]), &[1; 4096]);
        }
        let pieces = segmenter.finish();
        assert_eq!(shapes(&pieces), ["f400", "f400", "f224", "t1/1024", "f6", "t1/6"]);
    }

    #[test]
    fn neighbours_are_joined_and_distant_runs_open_a_page() {
        let mut segmenter = Segmenter::new(BlockSize::DEFAULT, 32);
        segmenter.run(RunKind::Zero, BlockRange { first: 5, count: 3 });
        segmenter.run(RunKind::Zero, BlockRange { first: 8, count: 2 });
        segmenter.run(RunKind::Zero, BlockRange { first: 5 + PAGE_SPAN, count: 1 << 31 });
        let pieces = segmenter.finish();
        assert_eq!(shapes(&pieces), ["t1/0", "t3/0"]);
        for block in 0..1025 {
            segmenter = Segmenter::new(BlockSize::DEFAULT, 32);
            (0..=block)
                .for_each(|i| segmenter.run(RunKind::Zero, BlockRange { first: 2 * i, count: 1 }));
            if block >= 1023 {
                assert_eq!(segmenter.finish().len(), if block == 1023 { 1 } else { 2 });
            }
        }
    }
}
