//! The index of a snapshot by place, for reads anywhere: what a region needs of it is merged once, however
//! long the chain, and kept, without the pages that it comes from.

use super::decode::Piece;
use crate::base::digest::Digest;
use crate::base::error::{Error, Result};
use crate::base::units::BlockRange;
use crate::chain::{Chain, ChainCursor, IndexChunk, State};
use crate::delta::Part;
use crate::format::FrameRef;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// As many blocks as a table page of a base has: a region needs one or two pages of each layer.
const REGION_BLOCKS: u64 = 1024;
/// What regions may take.
const BUDGET_BYTES: u64 = 32 << 20;
/// What one takes besides its runs.
const ENTRY_BYTES: usize = 256;
/// About how many of them that is.
const USUAL_REGIONS: usize = 512;

/// Regions of the index of a chain.
pub(super) struct Regions {
    chain: Chain,
    /// Where the last region ended: whoever reads one after the other does not begin anew each time.
    cursor: Mutex<Option<ChainCursor>>,
    known: Cache<u64, Arc<Region>, Weigh>,
}

/// What decoding some blocks needs of the index.
struct Region {
    /// Ascending, without a gap.
    runs: Vec<Run>,
    /// Layer and file of stored blocks.
    files: Vec<(u32, Arc<Part>)>,
    /// Of stored blocks, run after run.
    digests: Vec<Digest>,
}

/// Blocks of one frame, or without any.
struct Run {
    blocks: BlockRange,
    from: From,
}

enum From {
    Zero,
    Unread,
    Stored {
        /// Index in the files of the region.
        file: u32,
        /// None in a base image.
        frame: Option<FrameRef>,
        frame_blocks: u32,
        /// Blocks of the frame before the first one.
        skipped: u32,
        /// Index of the first digest.
        digests: u32,
    },
}

/// What some blocks are.
pub(super) enum Found<'a> {
    Zero,
    Unread,
    Stored(Piece<'a>),
}

impl Region {
    fn of(chunk: &IndexChunk) -> Result<Self> {
        let missing = || Error::corrupt("a span without a page");
        let mut region = Self { runs: Vec::new(), files: Vec::new(), digests: Vec::new() };
        let mut known = HashMap::new();
        for span in &chunk.spans {
            let (page, mut ordinal) = match span.state {
                State::Data { page, ordinal } => (page, ordinal),
                State::Zero => {
                    region.runs.push(Run { blocks: span.blocks, from: From::Zero });
                    continue;
                }
                State::Unread => {
                    region.runs.push(Run { blocks: span.blocks, from: From::Unread });
                    continue;
                }
            };
            let of = chunk.page(page).ok_or_else(missing)?;
            let file = *known.entry(page).or_insert_with(|| {
                region.files.push((of.layer, of.part.clone()));
                region.files.len() as u32 - 1
            });
            let mut first = span.blocks.first;
            while first < span.blocks.end() {
                let (frame, ordinals) = of.page.frame_of(ordinal);
                let in_frame = u64::from(ordinals.end.saturating_sub(ordinal));
                let blocks = BlockRange::between(first, span.blocks.end().min(first + in_frame));
                let at = ordinal as usize;
                let digests = of.page.digests.get(at..at + blocks.count as usize);
                let digests = digests.filter(|digests| !digests.is_empty());
                let digests = digests.ok_or_else(|| Error::corrupt("a block without a digest"))?;
                let from = From::Stored {
                    file,
                    frame: of.page.frames.get(frame as usize).copied(),
                    frame_blocks: ordinals.len() as u32,
                    skipped: ordinal.saturating_sub(ordinals.start),
                    digests: region.digests.len() as u32,
                };
                region.digests.extend_from_slice(digests);
                region.runs.push(Run { blocks, from });
                ordinal += blocks.count as u32;
                first = blocks.end();
            }
        }
        // What is counted is what is there.
        region.runs.shrink_to_fit();
        region.files.shrink_to_fit();
        region.digests.shrink_to_fit();
        Ok(region)
    }

    /// What the blocks of a run are that are `within` a range.
    fn found<'a>(&'a self, chain: &'a Chain, run: &Run, within: BlockRange) -> Result<Found<'a>> {
        let From::Stored { file, frame, frame_blocks, skipped, digests } = run.from else {
            let is_zero = matches!(run.from, From::Zero);
            return Ok(if is_zero { Found::Zero } else { Found::Unread });
        };
        let missing = || Error::corrupt("blocks of no file");
        let (layer, part) = self.files.get(file as usize).ok_or_else(missing)?;
        let delta = chain.layers().get(*layer as usize).ok_or_else(missing)?;
        let before = (within.first - run.blocks.first) as u32;
        let at = (digests + before) as usize;
        let digests = self.digests.get(at..at + within.count as usize).ok_or_else(missing)?;
        let skipped = skipped + before;
        Ok(Found::Stored(Piece {
            delta,
            part,
            blocks: within,
            frame,
            frame_blocks,
            skipped,
            digests,
        }))
    }
}

impl Regions {
    pub fn new(chain: Chain) -> Self {
        let known = Cache::with_weighter(USUAL_REGIONS, BUDGET_BYTES, Weigh);
        Self { chain, cursor: Mutex::new(None), known }
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Passes to `each` what some blocks are, ascending and without a gap.
    ///
    /// # Errors
    /// `Corrupt` if a page that is needed is damaged; of `each`.
    pub fn find(
        &self,
        blocks: BlockRange,
        mut each: impl FnMut(BlockRange, Found<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut at = blocks.first;
        while at < blocks.end() {
            let number = at / REGION_BLOCKS;
            let end = blocks.end().min((number + 1) * REGION_BLOCKS);
            let wanted = BlockRange::between(at, end);
            let region = match self.known.get_or_insert_with(&number, || self.merge(number)) {
                Ok(region) => region,
                // A damaged page may be one that only its neighbours need.
                Err(_) => Arc::new(Region::of(&self.merged(wanted, None)?.0)?),
            };
            let first = region.runs.partition_point(|run| run.blocks.end() <= at);
            let runs = region.runs.get(first..).unwrap_or_default();
            for run in runs.iter().take_while(|run| run.blocks.first < end) {
                let within =
                    BlockRange::between(run.blocks.first.max(at), run.blocks.end().min(end));
                each(within, region.found(&self.chain, run, within)?)?;
            }
            at = end;
        }
        Ok(())
    }

    fn merge(&self, number: u64) -> Result<Arc<Region>> {
        let first = number * REGION_BLOCKS;
        let end = (first + REGION_BLOCKS).min(self.chain.geometry().block_count());
        let kept = self.cursor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (chunk, cursor) = self.merged(BlockRange::between(first, end), kept)?;
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(cursor);
        Region::of(&chunk).map(Arc::new)
    }

    fn merged(
        &self,
        blocks: BlockRange,
        kept: Option<ChainCursor>,
    ) -> Result<(IndexChunk, ChainCursor)> {
        let usable = kept.filter(|cursor| cursor.position() <= blocks.first);
        let mut cursor = usable.unwrap_or_else(|| self.chain.cursor());
        cursor.seek(blocks.first);
        let chunk = cursor.chunk(blocks.end(), usize::MAX)?;
        Ok((chunk, cursor))
    }
}

#[derive(Clone)]
struct Weigh;

impl Weighter<u64, Arc<Region>> for Weigh {
    fn weight(&self, _: &u64, region: &Arc<Region>) -> u64 {
        let bytes = size_of_val(region.runs.as_slice())
            + size_of_val(region.files.as_slice())
            + size_of_val(region.digests.as_slice());
        (bytes + ENTRY_BYTES) as u64
    }
}
