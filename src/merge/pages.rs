//! Cuts tokens into pages and frames: a function of the tables alone (FORMAT.md O5).
//!
//! ```text
//! tokens   loose loose Whole Whole loose Whole
//! frames   [ pack    ] copy  copy  [pack] copy
//! ```

use super::frames::{Token, WholeFrame};
use crate::base::units::BlockRange;
use crate::chain::{Difference, State};
use crate::delta::{PAGE_ITEMS, PAGE_SPAN, Part};
use crate::format::table::MAX_RUN_BLOCKS;
use crate::format::{FrameRef, Run, RunKind, TablePage};
use std::sync::Arc;

/// A frame of the merged file.
pub(super) enum FramePlan {
    /// One that is there already.
    Copy { part: Arc<Part>, place: FrameRef, block_count: u16 },
    /// So many of the loose blocks, in their order.
    Pack(u16),
}

/// A page of the merged file.
#[derive(Default)]
pub(super) struct PagePlan {
    /// Runs and digests; where its frames will be is not known yet.
    pub(super) table: TablePage,
    pub(super) frames: Vec<FramePlan>,
    /// The data blocks that are packed.
    pub(super) loose: Vec<Difference>,
}

/// Takes tokens in ascending order and gives pages.
pub(super) struct PagePlanner {
    /// Blocks of a frame that is packed.
    frame_blocks: u32,
    page: PagePlan,
    /// Blocks at the end of `loose` that are in no frame yet.
    pending: u32,
    out: Vec<PagePlan>,
}

impl PagePlanner {
    /// With frames of about `frame_blocks` blocks; up to half as many more.
    pub(super) fn new(frame_blocks: u32) -> Self {
        Self { frame_blocks, page: PagePlan::default(), pending: 0, out: Vec::new() }
    }

    /// The most blocks of a frame that is packed into frames of about `frame_blocks`.
    pub(super) fn most_blocks(frame_blocks: u32) -> u32 {
        frame_blocks + frame_blocks / 2
    }

    /// Takes the next token.
    pub(super) fn take(&mut self, token: Token) {
        match token {
            Token::Loose(difference) => self.loose(difference),
            Token::Whole(frame) => self.whole(frame),
        }
    }

    /// The pages that are complete.
    pub(super) fn pages(&mut self) -> std::vec::Drain<'_, PagePlan> {
        self.out.drain(..)
    }

    fn whole(&mut self, frame: WholeFrame) {
        // A short one is packed with what is beside it, and so is one behind a few blocks that would
        // be a short one otherwise.
        let is_short = frame.block_count * 2 < self.frame_blocks;
        let leaves_few = self.pending > 0 && self.pending * 4 < self.frame_blocks;
        if is_short || leaves_few {
            frame.entries.into_iter().for_each(|entry| self.loose(entry));
            return;
        }
        self.cut(self.pending);
        let first = frame.entries.first().map_or(0, |entry| entry.span.blocks.first);
        let last = frame.entries.last().map_or(first, |entry| entry.span.blocks.first);
        if self.page.table.digests.len() + frame.block_count as usize > PAGE_ITEMS {
            self.close_page();
        }
        self.close_unless_fits(RunKind::Data, first, last);
        for entry in &frame.entries {
            self.add_runs(entry);
        }
        let WholeFrame { part, place, block_count, .. } = frame;
        self.page.frames.push(FramePlan::Copy { part, place, block_count: block_count as u16 });
    }

    fn loose(&mut self, difference: Difference) {
        let kind = kind_of(difference.span.state);
        if kind != RunKind::Data {
            let first = difference.span.blocks.first;
            self.close_unless_fits(kind, first, first);
            self.add_runs(&difference);
            return;
        }
        let mut rest = difference.span.blocks;
        while rest.count > 0 {
            if self.page.table.digests.len() >= PAGE_ITEMS {
                self.close_page();
            }
            self.close_unless_fits(kind, rest.first, rest.first);
            let room = PAGE_ITEMS.saturating_sub(self.page.table.digests.len()).max(1) as u64;
            let part = BlockRange { first: rest.first, count: rest.count.min(room) };
            rest = BlockRange::between(part.end(), rest.end());
            let Some(span) = difference.span.within(part) else { return };
            let part = Difference { span, chunk: difference.chunk.clone() };
            self.add_runs(&part);
            self.pending += span.blocks.count as u32;
            self.page.loose.push(part);
            // So much stays open that the last frame before one that is copied is not a short one.
            while self.pending >= Self::most_blocks(self.frame_blocks) {
                self.cut(self.frame_blocks);
            }
        }
    }

    /// Makes a frame of the first `count` of the blocks that are in none.
    fn cut(&mut self, count: u32) {
        if count > 0 {
            self.page.frames.push(FramePlan::Pack(count as u16));
            self.pending -= count.min(self.pending);
        }
    }

    /// Closes the page if a run of this kind, up to one that begins at `last`, cannot be in it.
    fn close_unless_fits(&mut self, kind: RunKind, first: u64, last: u64) {
        let table = &self.page.table;
        let joins = table.runs.last().is_some_and(|run| {
            run.kind == kind && run.blocks.end() == first && run.blocks.count < MAX_RUN_BLOCKS
        });
        let is_far = last.saturating_sub(table.bounds().first) >= PAGE_SPAN;
        let is_full = table.runs.len() >= PAGE_ITEMS && !joins;
        if is_full || (!table.runs.is_empty() && is_far) {
            self.close_page();
        }
    }

    /// Adds the runs and digests of blocks, for which there is free space.
    fn add_runs(&mut self, difference: &Difference) {
        let mut rest = difference.span.blocks;
        let kind = kind_of(difference.span.state);
        while rest.count > 0 {
            let blocks = BlockRange { first: rest.first, count: rest.count.min(MAX_RUN_BLOCKS) };
            rest = BlockRange::between(blocks.end(), rest.end());
            self.add_run(kind, blocks);
        }
        let digests = difference.chunk.digests(difference.span);
        self.page.table.digests.extend_from_slice(digests);
    }

    fn add_run(&mut self, kind: RunKind, blocks: BlockRange) {
        if let Some(last) = self.page.table.runs.last_mut()
            && last.kind == kind
            && last.blocks.end() == blocks.first
            && last.blocks.count + blocks.count <= MAX_RUN_BLOCKS
        {
            last.blocks.count += blocks.count;
            return;
        }
        // Only pieces of one long run of zeros can be so far apart here.
        let first = self.page.table.bounds().first;
        if !self.page.table.runs.is_empty() && blocks.first.saturating_sub(first) >= PAGE_SPAN {
            self.close_page();
        }
        let ordinal = self.page.table.digests.len() as u32;
        self.page.table.runs.push(Run { blocks, kind, ordinal });
    }

    /// Ends the page.
    pub(super) fn close_page(&mut self) {
        self.cut(self.pending);
        if !self.page.table.runs.is_empty() {
            self.out.push(std::mem::take(&mut self.page));
        }
    }
}

fn kind_of(state: State) -> RunKind {
    match state {
        State::Zero => RunKind::Zero,
        State::Unread => RunKind::Unread,
        State::Data { .. } => RunKind::Data,
    }
}
