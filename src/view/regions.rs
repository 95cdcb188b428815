//! The index of a snapshot by place, for reads anywhere: the spans of a region are merged once, however long
//! the chain, and kept.

use crate::base::error::Result;
use crate::base::units::BlockRange;
use crate::chain::{Chain, ChainCursor, IndexChunk, Span};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::sync::{Arc, Mutex, PoisonError};

/// As many blocks as a table page of a base has: a region needs one or two pages of each layer.
const REGION_BLOCKS: u64 = 1024;
/// What regions and their pages may take.
const BUDGET_BYTES: u64 = 16 << 20;
/// What an entry takes besides.
const ENTRY_BYTES: usize = 256;
/// About how many of them that is.
const USUAL_REGIONS: usize = 512;

/// Regions of the index of a chain.
pub(super) struct Regions {
    chain: Chain,
    /// Where the last region ended: whoever reads one after the other does not begin anew each time.
    cursor: Mutex<Option<ChainCursor>>,
    known: Cache<u64, Arc<IndexChunk>, Weigh>,
}

impl Regions {
    pub fn new(chain: Chain) -> Self {
        let known = Cache::with_weighter(USUAL_REGIONS, BUDGET_BYTES, Weigh);
        Self { chain, cursor: Mutex::new(None), known }
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Passes to `each` the spans of some blocks, ascending and without a gap, each with its chunk.
    ///
    /// # Errors
    /// `Corrupt` if a page that is needed is damaged; of `each`.
    pub fn spans(
        &self,
        blocks: BlockRange,
        mut each: impl FnMut(&IndexChunk, Span) -> Result<()>,
    ) -> Result<()> {
        let mut at = blocks.first;
        while at < blocks.end() {
            let region = at / REGION_BLOCKS;
            let end = blocks.end().min((region + 1) * REGION_BLOCKS);
            let wanted = BlockRange::between(at, end);
            let chunk = match self.known.get_or_insert_with(&region, || self.merge(region)) {
                Ok(chunk) => chunk,
                // A damaged page may be one that only its neighbours need.
                Err(_) => Arc::new(self.merged(wanted, None)?.0),
            };
            let first = chunk.spans.partition_point(|span| span.blocks.end() <= at);
            let mut spans = chunk.spans.iter().skip(first).map_while(|span| span.within(wanted));
            spans.try_for_each(|span| each(&chunk, span))?;
            at = end;
        }
        Ok(())
    }

    fn merge(&self, region: u64) -> Result<Arc<IndexChunk>> {
        let first = region * REGION_BLOCKS;
        let end = (first + REGION_BLOCKS).min(self.chain.geometry().block_count());
        let kept = self.cursor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (chunk, cursor) = self.merged(BlockRange::between(first, end), kept)?;
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(cursor);
        Ok(Arc::new(chunk))
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

impl Weighter<u64, Arc<IndexChunk>> for Weigh {
    fn weight(&self, _: &u64, chunk: &Arc<IndexChunk>) -> u64 {
        // A page of a delta reaches over many regions, which may share it, or not.
        let pages: u64 = chunk.pages().iter().map(|of| of.page.memory_bytes()).sum();
        let own = size_of_val(chunk.pages()) + chunk.spans.len() * size_of::<Span>();
        pages + (own + ENTRY_BYTES) as u64
    }
}
