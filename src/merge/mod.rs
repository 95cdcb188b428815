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
mod pages;
mod window;

pub use garbage::{LayerUse, layer_use};

use crate::base::error::{Error, Result};
use crate::base::events::{Context, Phase};
use crate::base::message::{Verb, message};
use crate::chain::{Chain, Fork};
use crate::codec::Compression;
use crate::delta::{
    BASE_FRAME_BYTES, DELTA_FRAME_BYTES, Identity, PieceSender, Written, write_produced,
};
use crate::format::header::FRAME_COUNTS;
use crate::format::{Features, Header};
use frames::FrameFinder;
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
pub fn merge(
    plan: &Plan,
    context: &Context,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Merged> {
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
    let lineage = plan.fork.parent().map(Chain::as_parent);
    let image_bytes = tip.geometry().image_bytes;
    let written = writer.finish(&plan.identity, lineage, image_bytes, tip.image_digest())?;
    Ok(Merged { written, changed_blocks, changed_bytes })
}

/// Plans, and sends the pieces. Returns the blocks of the image that have a run, and their bytes.
fn plan_into(plan: &Plan, context: &Context, pieces: &mut PieceSender) -> Result<(u64, u64)> {
    let geometry = plan.fork.tip().geometry();
    let mut differences = plan.fork.differences();
    let mut finder = FrameFinder::default();
    let mut planner = PagePlanner::new(plan.frame_blocks());
    let mut window = Window::new(geometry, plan.window_bytes());
    let (mut blocks, mut bytes, mut tokens) = (0, 0, Vec::new());
    while let Some(difference) = differences.next_difference()? {
        context.check()?;
        let range = difference.span.blocks;
        blocks += range.end().min(geometry.block_count()).saturating_sub(range.first);
        bytes += geometry.bytes_in(range);
        finder.take(difference, &mut tokens);
        tokens.drain(..).for_each(|token| planner.take(token));
        for page in planner.pages() {
            window.add(page, context, pieces)?;
        }
    }
    // Before anything gets a footer: do the tables that were passed give this snapshot?
    if differences.image_digest() != plan.fork.tip().image_digest() {
        let what = "the tables do not give the image digest of the snapshot";
        return Err(Error::corrupt(what).at(plan.fork.tip().tip().location()).hint(message![
            "run ",
            Verb::Verify.call(),
            " to see what is damaged"
        ]));
    }
    finder.finish(&mut tokens);
    tokens.drain(..).for_each(|token| planner.take(token));
    for page in planner.finish() {
        window.add(page, context, pieces)?;
    }
    window.flush(context, pieces)?;
    Ok((blocks, bytes))
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
        let what = "what was written does not give the image digest of the snapshot";
        return Err(Error::corrupt(what).at(fork.tip().tip().location()));
    }
    Ok(())
}
