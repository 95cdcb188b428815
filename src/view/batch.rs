//! What is to be decoded, cut into batches: the unit of work of one thread.
//!
//! ```text
//! spans -> BatchBuilder -> Batch (about 1 MiB of data) -> decode_batch -> checked blocks
//! ```
//!
//! In ascending order, for whoever can only write so, each batch is complete in itself, and a frame
//! that two of them need is kept in a cache. Otherwise spans are gathered, as many as memory allows,
//! and handed out frame by frame, the frames in the order of their first block: then each frame is
//! decoded once however its blocks are scattered, and what is written still moves forward.

use crate::base::error::{Error, Result};
use crate::base::units::{BlockRange, Geometry};
use crate::chain::{Chain, IndexChunk, PageOf, Span, State};
use crate::delta::Delta;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Data blocks of a batch, in bytes.
pub const BATCH_BYTES: u64 = 1 << 20;
/// Parts of a batch, so that zeros and scattered blocks do not fill the memory.
const BATCH_PARTS: usize = 512;
/// What is gathered at most: parts, and bytes of the pages that they are in.
const BATCH_PARTS_HELD: usize = 512 << 10;
const BATCH_PAGE_BYTES: u64 = 32 << 20;

/// In which order blocks are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By their place in the image.
    Ascending,
    /// Each frame once.
    ByFrame,
}

/// Blocks that come from one frame, or are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which blocks.
    pub blocks: BlockRange,
    /// Where they are; none for zeros.
    pub(super) from: Option<Place>,
}

impl Part {
    /// True if the blocks are stored; false if they are zero.
    pub fn is_data(&self) -> bool {
        self.from.is_some()
    }
}

/// A place in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the page.
    pub(super) page: u32,
    /// Index of the frame in the page.
    pub(super) frame: u32,
    /// Of the first block.
    pub(super) ordinal: u32,
}

/// The pages that parts are in.
pub(super) struct Pages {
    pub(super) layers: Arc<[Arc<Delta>]>,
    pub(super) pages: Vec<PageOf>,
}

/// Parts that are decoded in one go.
pub struct Batch {
    pub(super) pages: Arc<Pages>,
    pub(super) parts: Vec<Part>,
    pub(super) order: Order,
    /// The sum of the terms of unread blocks that are given as zeros.
    pub(super) unread_terms: u128,
    /// When this batch is written, everything before this block is.
    pub(super) watermark: u64,
}

/// Collects spans and cuts them into batches.
pub struct BatchBuilder {
    geometry: Geometry,
    order: Order,
    layers: Arc<[Arc<Delta>]>,
    unread_as_zeros: bool,
    unread_terms: u128,
    pages: Vec<PageOf>,
    /// Numbers of the pages, by address.
    known: HashMap<usize, u32>,
    page_bytes: u64,
    parts: Vec<Part>,
    data_blocks: u64,
    /// Where the last span ended.
    end: u64,
    ready: VecDeque<Batch>,
    is_finished: bool,
}

impl BatchBuilder {
    /// For spans of a chain with these layers.
    pub fn new(geometry: Geometry, layers: &Arc<[Arc<Delta>]>, order: Order) -> Self {
        Self {
            geometry,
            order,
            layers: layers.clone(),
            unread_as_zeros: false,
            unread_terms: 0,
            pages: Vec::new(),
            known: HashMap::new(),
            page_bytes: 0,
            parts: Vec::new(),
            data_blocks: 0,
            end: 0,
            ready: VecDeque::new(),
            is_finished: false,
        }
    }

    /// The same for spans of `chain`: if its unread blocks read as zeros, they do.
    pub fn of(chain: &Chain, order: Order) -> Self {
        Self::new(chain.geometry(), chain.layers(), order)
            .with_unread_as_zeros(chain.has_unread_as_zeros())
    }

    /// Whether blocks that were never read are zeros; otherwise they are an error.
    #[must_use]
    pub fn with_unread_as_zeros(self, unread_as_zeros: bool) -> Self {
        Self { unread_as_zeros, ..self }
    }

    /// Adds a span of a chunk, which is not before the last one.
    ///
    /// # Errors
    /// `Corrupt` if its blocks were never read from the image.
    pub fn add(&mut self, chunk: &IndexChunk, span: Span) -> Result<()> {
        let mut span = span;
        self.end = span.blocks.end();
        let (page, ordinal) = match span.state {
            State::Unread if !self.unread_as_zeros => {
                return Err(unread(self.geometry, span.blocks));
            }
            State::Zero | State::Unread => {
                if let Some(delta) = self.layers.first().filter(|_| span.state == State::Unread) {
                    let terms = chunk.terms(span, delta.hasher());
                    self.unread_terms = self.unread_terms.wrapping_add(terms);
                }
                self.parts.push(Part { blocks: span.blocks, from: None });
                self.cut();
                return Ok(());
            }
            State::Data { page, ordinal } => (page, ordinal),
        };
        let missing = || Error::corrupt("a span without a page");
        let of = chunk.page(page).ok_or_else(missing)?;
        let mut ordinal = ordinal;
        while span.blocks.count > 0 {
            let (frame, ordinals) = of.page.frame_of(ordinal);
            // Not beyond the frame, nor beyond a batch.
            let most = u64::from(ordinals.end.saturating_sub(ordinal)).min(self.remaining_blocks());
            if most == 0 {
                return Err(Error::corrupt("a block without a frame"));
            }
            let count = span.blocks.count.min(most);
            // A batch may have been cut since: it took the pages along.
            let page = self.number_of(of);
            let blocks = BlockRange { first: span.blocks.first, count };
            self.parts.push(Part { blocks, from: Some(Place { page, frame, ordinal }) });
            self.data_blocks += count;
            ordinal += count as u32;
            span.blocks = BlockRange::between(blocks.end(), span.blocks.end());
            self.cut();
        }
        Ok(())
    }

    /// True if there is enough for a batch.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next batch, if there is enough for one.
    pub fn next_batch(&mut self) -> Option<Batch> {
        self.ready.pop_front()
    }

    /// The next batch; none at the end. `feed` is called until there is enough for one: it adds what comes
    /// next, or gives false when there is no more.
    ///
    /// # Errors
    /// Of `feed`.
    pub fn next_fed(
        &mut self,
        mut feed: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<Option<Batch>> {
        loop {
            let ready = self.next_batch();
            if ready.is_some() || self.is_finished {
                return Ok(ready);
            }
            if !feed(self)? {
                self.finish();
            }
        }
    }

    /// Cuts what is left: there are no more spans.
    pub fn finish(&mut self) {
        self.is_finished = true;
        match self.order {
            Order::Ascending => self.close_batch(),
            Order::ByFrame => self.close_frames(),
        }
    }

    /// Data blocks that fit the batch; for frames there is no such limit yet.
    fn remaining_blocks(&self) -> u64 {
        match self.order {
            Order::Ascending => self.batch_blocks().saturating_sub(self.data_blocks).max(1),
            Order::ByFrame => u64::MAX,
        }
    }

    fn batch_blocks(&self) -> u64 {
        (BATCH_BYTES / u64::from(self.geometry.block_size.bytes())).max(1)
    }

    fn cut(&mut self) {
        match self.order {
            Order::Ascending => {
                if self.parts.len() >= BATCH_PARTS || self.data_blocks >= self.batch_blocks() {
                    self.close_batch();
                }
            }
            Order::ByFrame => {
                if self.parts.len() >= BATCH_PARTS_HELD || self.page_bytes >= BATCH_PAGE_BYTES {
                    self.close_frames();
                }
            }
        }
    }

    fn number_of(&mut self, of: &PageOf) -> u32 {
        let address = Arc::as_ptr(&of.page) as usize;
        *self.known.entry(address).or_insert_with(|| {
            self.page_bytes += of.page.memory_bytes();
            self.pages.push(of.clone());
            self.pages.len() as u32 - 1
        })
    }

    fn take(&mut self) -> (Arc<Pages>, Vec<Part>) {
        self.known.clear();
        (self.page_bytes, self.data_blocks) = (0, 0);
        let pages = std::mem::take(&mut self.pages);
        (Arc::new(Pages { layers: self.layers.clone(), pages }), std::mem::take(&mut self.parts))
    }

    /// All parts as one batch.
    fn close_batch(&mut self) {
        let (pages, parts) = self.take();
        if !parts.is_empty() {
            self.push(pages, parts, self.end);
        }
    }

    /// All parts as batches of whole frames; zeros first.
    fn close_frames(&mut self) {
        let (pages, mut parts) = self.take();
        let frame_of = |part: &Part| part.from.map(|place| (place.page, place.frame));
        parts.sort_unstable_by_key(|part| (frame_of(part), part.blocks.first));
        let groups = parts.chunk_by(|a, b| frame_of(a) == frame_of(b));
        let mut groups: Vec<(u64, &[Part])> = groups
            .filter_map(|group| {
                let first = group.first()?;
                Some((if first.is_data() { first.blocks.first } else { 0 }, group))
            })
            .collect();
        groups.sort_unstable_by_key(|(first, group)| (*first, group.first().map(Part::is_data)));
        let most = self.batch_blocks();
        let mut batch = Vec::new();
        let mut blocks = 0;
        for (first, group) in groups {
            if blocks >= most || batch.len() >= BATCH_PARTS {
                let parts = std::mem::take(&mut batch);
                self.push(pages.clone(), parts, first);
                blocks = 0;
            }
            batch.extend_from_slice(group);
            let data = group.iter().filter(|part| part.is_data());
            blocks += data.map(|part| part.blocks.count).sum::<u64>();
        }
        if !batch.is_empty() {
            self.push(pages, batch, self.end);
        }
    }

    fn push(&mut self, pages: Arc<Pages>, parts: Vec<Part>, watermark: u64) {
        // With whichever batch: they are added up.
        let unread_terms = std::mem::take(&mut self.unread_terms);
        self.ready.push_back(Batch { pages, parts, order: self.order, unread_terms, watermark });
    }
}

pub(super) fn unread(geometry: Geometry, blocks: BlockRange) -> Error {
    let (offset, bytes) = (geometry.offset(blocks.first), geometry.bytes_in(blocks));
    let what = format!("{bytes} bytes at {offset} could not be read when the snapshot was taken");
    Error::corrupt(what)
}
