//! A part of the index as it is handed on: spans, and the pages in which their digests are.

use crate::base::digest::{Digest, Hasher};
use crate::base::units::BlockRange;
use crate::delta::{Delta, Part, TableCursor};
use crate::format::TablePage;
use std::sync::Arc;

/// A run of blocks that come from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which blocks.
    pub blocks: BlockRange,
    /// What they are.
    pub state: State,
}

/// What the blocks of a span are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All zeros.
    Zero,
    /// Could not be read when the snapshot was taken.
    Unread,
    /// Stored in a delta file.
    Data {
        /// Which of the pages of the [`IndexChunk`].
        page: u32,
        /// Ordinal within the page of the first block of the span.
        ordinal: u32,
    },
}

impl Span {
    /// The part of the span within `range`, if any.
    pub fn within(mut self, range: BlockRange) -> Option<Self> {
        let first = self.blocks.first.max(range.first);
        let end = self.blocks.end().min(range.end());
        if first >= end {
            return None;
        }
        if let State::Data { ordinal, .. } = &mut self.state {
            *ordinal += (first - self.blocks.first) as u32;
        }
        self.blocks = BlockRange::between(first, end);
        Some(self)
    }
}

/// A page and the file that it is in.
#[derive(Clone)]
pub struct PageOf {
    /// Which layer of the chain.
    pub layer: u32,
    /// Which file of it.
    pub part: Arc<Part>,
    /// The page.
    pub page: Arc<TablePage>,
}

/// Spans in ascending order, and the pages in which they are. Pages are counted once for all of
/// their spans: in a long chain there is a span for almost every block.
#[derive(Clone)]
pub struct IndexChunk {
    layers: Arc<[Arc<Delta>]>,
    pages: Vec<PageOf>,
    /// As the cursor gives them they follow each other without a gap.
    pub spans: Vec<Span>,
}

impl IndexChunk {
    /// Without spans, of a chain with these layers.
    pub fn new(layers: Arc<[Arc<Delta>]>) -> Self {
        Self { layers, pages: Vec::new(), spans: Vec::new() }
    }

    /// The files of the chain.
    pub fn layers(&self) -> &Arc<[Arc<Delta>]> {
        &self.layers
    }

    /// All pages.
    pub fn pages(&self) -> &[PageOf] {
        &self.pages
    }

    /// A page.
    pub fn page(&self, index: u32) -> Option<&PageOf> {
        self.pages.get(index as usize)
    }

    /// Adds a page and gives its number.
    fn add_page(&mut self, of: PageOf) -> u32 {
        self.pages.push(of);
        self.pages.len() as u32 - 1
    }

    /// Adds the page that a cursor of a layer is at; at the end there is none.
    pub fn add_page_at(&mut self, layer: u32, cursor: &TableCursor) -> u32 {
        let Some((part, page)) = cursor.page() else { return u32::MAX };
        self.add_page(PageOf { layer, part: part.clone(), page: page.clone() })
    }

    /// Adds a span; zeros are joined.
    pub fn push(&mut self, span: Span) {
        match self.spans.last_mut() {
            Some(last)
                if (last.state, span.state) == (State::Zero, State::Zero)
                    && last.blocks.end() == span.blocks.first =>
            {
                last.blocks.count += span.blocks.count;
            }
            _ => self.spans.push(span),
        }
    }

    /// One digest for each block of a data span; otherwise none.
    pub fn digests(&self, span: Span) -> &[Digest] {
        let State::Data { page, ordinal } = span.state else { return &[] };
        let first = ordinal as usize;
        let digests = self.page(page).map_or(&[][..], |of| of.page.digests.as_slice());
        digests.get(first..first + span.blocks.count as usize).unwrap_or_default()
    }

    /// The sum of the terms of the blocks of a span (FORMAT.md D2, D4).
    pub fn terms(&self, span: Span, hasher: &Hasher) -> u128 {
        let blocks = span.blocks.first..span.blocks.end();
        let add = |sum: u128, (block, digest)| sum.wrapping_add(hasher.term(block, digest));
        match span.state {
            State::Zero => 0,
            State::Unread => blocks.map(|block| (block, Digest::UNREAD)).fold(0, add),
            State::Data { .. } => blocks.zip(self.digests(span).iter().copied()).fold(0, add),
        }
    }
}
