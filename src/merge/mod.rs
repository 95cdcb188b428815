//! The verb *merge*: from the files of a chain to one file that gives the same snapshot.
//!
//! ```text
//! Fork -> Differences -> FrameFinder -> PagePlanner -> Window -> channel -> encode (threads) -> DeltaWriter
//!         tables alone   whole frames   pages, frames  decode    pieces     or copy
//! ```
//!
//! Superseded blocks are never read, frames that live on as a whole are copied as they are, and the
//! others are packed again. Nothing that grows with the image is held in memory.

mod frames;
mod garbage;
mod kept;
mod pages;
mod window;

pub use garbage::{LayerUse, layer_use};
pub use kept::{KeptOf, grid_of};

use crate::base::error::{Error, Result};
use crate::base::events::{Context, Phase};
use crate::base::message::{Verb, message};
use crate::base::units::BlockRange;
use crate::chain::{Chain, Fork, State};
use crate::codec::Compression;
use crate::delta::{
    BASE_FRAME_BYTES, DELTA_FRAME_BYTES, Identity, LayerOutput, Piece, PieceSender, TableCursor,
    Written, write_produced,
};
use crate::format::header::FRAME_COUNTS;
use crate::format::{Counts, Features, Header, MAX_BLOCKS, PartEntry, PartTerms};
use frames::{FrameFinder, Token};
use pages::PagePlanner;
use uuid::Uuid;
use window::Window;

/// Decoded blocks that are held at a time: enough that the frames of many files, which overlap, are
/// not decoded again for each window.
const MIN_WINDOW_BYTES: u64 = 4 << 20;
const MAX_WINDOW_BYTES: u64 = 32 << 20;
const WINDOW_BYTES_PER_FILE: u64 = 1 << 20;

/// A file that is to be made.
pub struct Plan {
    /// The snapshot, and what the file is against.
    pub fork: Fork,
    /// Its name, number and time.
    pub identity: Identity,
    /// Identity of the file.
    pub file_id: Uuid,
    /// How to compress what is packed again.
    pub compression: Compression,
    /// On which grid, in blocks, it may be cut into parts; none if it is one file.
    pub cell_blocks: Option<u64>,
    /// Parts of the files that it replaces, which go on as they are ([`KeptOf`]); ascending. There are
    /// none without a grid.
    pub kept: Vec<PartEntry>,
}

/// A file that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// Footer of the file, and its digest.
    pub written: Written,
    /// Blocks of the image that have a run in the file.
    pub changed_blocks: u64,
    /// Bytes of the image in them.
    pub changed_bytes: u64,
}

impl Plan {
    /// Of one file, whatever it is merged from.
    pub fn of_one_file(
        fork: Fork,
        identity: Identity,
        file_id: Uuid,
        compression: Compression,
    ) -> Self {
        Self { fork, identity, file_id, compression, cell_blocks: None, kept: Vec::new() }
    }

    fn frame_blocks(&self) -> u32 {
        let is_base = self.fork.parent().is_none();
        let frame_bytes = if is_base { BASE_FRAME_BYTES } else { DELTA_FRAME_BYTES };
        Header::frame_blocks_for(self.fork.tip().geometry().block_size, frame_bytes)
    }

    fn header(&self) -> Header {
        let tip = self.fork.tip();
        let packed = PagePlanner::most_blocks(self.frame_blocks());
        let copied = self.fork.sources().iter().map(|delta| delta.header().frame_blocks);
        Header {
            features: Features::incompatible(FRAME_COUNTS),
            file_id: self.file_id,
            image_id: tip.tip().header().image_id,
            block_size: tip.geometry().block_size,
            frame_blocks: copied.max().unwrap_or(1).max(packed),
            algorithm: tip.hasher().algorithm(),
            key: tip.hasher().key(),
        }
    }

    fn window_bytes(&self) -> u64 {
        let files = self.fork.sources().len() as u64;
        (files * WINDOW_BYTES_PER_FILE).clamp(MIN_WINDOW_BYTES, MAX_WINDOW_BYTES)
    }
}

/// Writes the delta file of the snapshot at the tip of a fork, against its parent, to `out`.
///
/// # Errors
/// `Corrupt` if a table or a block that is needed is damaged, or the tables do not give the image
/// digest of the snapshot. Then `out` holds no snapshot.
pub fn merge(plan: &Plan, context: &Context, out: &mut dyn LayerOutput) -> Result<Merged> {
    let tip = plan.fork.tip();
    tip.check_extendable()?;
    let header = plan.header();
    let block_bytes = u64::from(header.block_size.bytes());
    let sources = plan.fork.sources().iter();
    let most_blocks: u64 = sources.map(|delta| delta.footer().counts.data_blocks).sum();
    let phase = context.begin(Phase::Merge, most_blocks * block_bytes);
    let mut advance = |blocks| context.advance(blocks * block_bytes);
    let produce = |pieces: &mut PieceSender| plan_into(plan, context, pieces);
    let outcome = write_produced(&header, plan.compression, context, out, &mut advance, produce);
    drop(phase);
    let (writer, (changed_blocks, changed_bytes)) = outcome?;
    let writer = writer.on_grid(plan.cell_blocks.unwrap_or(0));
    let lineage = plan.fork.parent().map(Chain::as_parent);
    let image_bytes = tip.geometry().image_bytes;
    let written = writer.finish(&plan.identity, lineage, image_bytes, tip.image_digest())?;
    Ok(Merged { written, changed_blocks, changed_bytes })
}

/// Plans, and sends the pieces. Returns the blocks of the image that have a run, and their bytes.
fn plan_into(plan: &Plan, context: &Context, pieces: &mut PieceSender) -> Result<(u64, u64)> {
    let mut merging = Merging::new(plan);
    for kept in &plan.kept {
        merging.gap(BlockRange::between(merging.at, kept.blocks.first), context, pieces)?;
        merging.keep(kept.clone());
    }
    merging.gap(BlockRange::between(merging.at, MAX_BLOCKS), context, pieces)?;
    merging.finish(context, pieces)
}

/// The files of a chain as they become those of one layer.
struct Merging<'a> {
    plan: &'a Plan,
    finder: FrameFinder,
    planner: PagePlanner,
    window: Window,
    tokens: Vec<Token>,
    changed_blocks: u64,
    changed_bytes: u64,
    /// As far as it got.
    at: u64,
    /// What the sum of the terms changes by.
    difference: u128,
    has_cut: bool,
}

impl<'a> Merging<'a> {
    fn new(plan: &'a Plan) -> Self {
        let geometry = plan.fork.tip().geometry();
        Self {
            plan,
            finder: FrameFinder::default(),
            planner: PagePlanner::new(plan.frame_blocks()),
            window: Window::new(geometry, plan.window_bytes()),
            tokens: Vec::new(),
            changed_blocks: 0,
            changed_bytes: 0,
            at: 0,
            difference: 0,
            has_cut: false,
        }
    }

    /// Merges what lies between two parts that are kept, and cuts it where there is enough for a part.
    fn gap(&mut self, gap: BlockRange, context: &Context, pieces: &mut PieceSender) -> Result<()> {
        let geometry = self.plan.fork.tip().geometry();
        let cell_blocks = self.plan.cell_blocks.unwrap_or(u64::MAX);
        let line_after = |at: u64| (at / cell_blocks).saturating_add(1).saturating_mul(cell_blocks);
        let mut differences = self.plan.fork.differences_in(gap);
        let (mut first, mut data_blocks, mut before) = (gap.first, 0, 0);
        let mut line = line_after(first);
        loop {
            while let Some(difference) = differences.next_before(line)? {
                context.check()?;
                let range = difference.span.blocks;
                self.changed_blocks +=
                    range.end().min(geometry.block_count()).saturating_sub(range.first);
                self.changed_bytes += geometry.bytes_in(range);
                if let State::Data { .. } = difference.span.state {
                    data_blocks += range.count;
                }
                self.finder.take(difference, &mut self.tokens);
                self.tokens.drain(..).for_each(|token| self.planner.take(token));
                for page in self.planner.pages() {
                    self.window.add(page, context, pieces)?;
                }
            }
            let Some(next) = differences.next_place()? else { break };
            if data_blocks >= cell_blocks / 2 {
                let terms = differences.step().wrapping_sub(before);
                self.cut(BlockRange::between(first, line), terms, context, pieces)?;
                (first, data_blocks, before) = (line, 0, differences.step());
            }
            line = line_after(next.max(line));
        }
        self.difference = self.difference.wrapping_add(differences.step());
        self.at = gap.end();
        let is_whole = !self.has_cut && self.plan.kept.is_empty();
        if gap.count > 0 && !is_whole {
            let terms = differences.step().wrapping_sub(before);
            self.cut(BlockRange::between(first, gap.end()), terms, context, pieces)?;
        }
        Ok(())
    }

    fn keep(&mut self, part: PartEntry) {
        self.at = part.blocks.end();
        self.difference = self.difference.wrapping_add(part.term_difference);
        let Counts { data_blocks, zero_blocks, unread_blocks, .. } = part.counts;
        let geometry = self.plan.fork.tip().geometry();
        let blocks = data_blocks + zero_blocks + unread_blocks;
        self.changed_blocks += blocks;
        self.changed_bytes += blocks.saturating_mul(geometry.block_size.bytes().into());
        self.window.piece(Piece::Keep(part));
    }

    /// Ends a part.
    fn cut(
        &mut self,
        blocks: BlockRange,
        difference: u128,
        context: &Context,
        pieces: &mut PieceSender,
    ) -> Result<()> {
        self.has_cut = true;
        self.close(context, pieces)?;
        self.window.piece(Piece::Cut(blocks, PartTerms { difference, before: None }));
        Ok(())
    }

    /// Ends the page that is open.
    fn close(&mut self, context: &Context, pieces: &mut PieceSender) -> Result<()> {
        self.finder.finish(&mut self.tokens);
        self.tokens.drain(..).for_each(|token| self.planner.take(token));
        self.planner.close_page();
        for page in self.planner.pages() {
            self.window.add(page, context, pieces)?;
        }
        Ok(())
    }

    fn finish(mut self, context: &Context, pieces: &mut PieceSender) -> Result<(u64, u64)> {
        let fork = &self.plan.fork;
        // Before anything gets a footer: do the tables that were passed give this snapshot?
        if fork.digest_after(self.difference) != fork.tip().image_digest() {
            let what = "the tables do not match the image digest of the snapshot";
            return Err(Error::corrupt(what).at(fork.tip().tip().location()).hint(message![
                "run ",
                Verb::Verify.call(),
                " to see what is damaged"
            ]));
        }
        self.close(context, pieces)?;
        self.window.flush(context, pieces)?;
        Ok((self.changed_blocks, self.changed_bytes.saturating_sub(self.beyond_the_end()?)))
    }

    /// What the last block of the image has beyond its end, if that block is in a part that is kept and has
    /// a run: there it counted as a whole one.
    fn beyond_the_end(&self) -> Result<u64> {
        let geometry = self.plan.fork.tip().geometry();
        let last = geometry.block_count().saturating_sub(1);
        let one = BlockRange { first: last, count: 1 };
        let holds_last = |part: &PartEntry| (part.blocks.first..part.blocks.end()).contains(&last);
        if !self.plan.kept.iter().any(holds_last) {
            return Ok(0);
        }
        for layer in self.plan.fork.own().iter() {
            let mut cursor = TableCursor::new(layer.clone());
            cursor.seek(last)?;
            if cursor.run().is_some_and(|(_, run)| run.blocks.first <= last) {
                return Ok(u64::from(geometry.block_size.bytes()) - geometry.bytes_in(one));
            }
        }
        Ok(0)
    }
}

/// Proves that a file, read back, gives its snapshot on top of its parent: `fork` is of the new file's
/// chain against its parent's.
///
/// # Errors
/// `Corrupt` if it does not.
pub fn prove(fork: &Fork, context: &Context) -> Result<()> {
    let mut differences = fork.differences();
    while differences.next_difference()?.is_some() {
        context.check()?;
    }
    if differences.image_digest() != fork.tip().image_digest() {
        let what = "the written data does not match the image digest of the snapshot";
        return Err(Error::corrupt(what).at(fork.tip().tip().location()));
    }
    Ok(())
}
