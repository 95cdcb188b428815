//! The newest-first merge of the tables of a chain: a k-way merge of sorted runs in which the
//! newest wins.
//!
//! Each layer is in exactly one of three places: *upcoming* (its run begins later), *active* (its
//! run began) or at its end. Only the newest active layer matters; the others are brought up to
//! date when they become the newest, so a run that is hidden by newer ones is never looked at, and
//! its pages are skipped.

use crate::delta::{Delta, TableCursor};
use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::format::{RunKind, TablePage};
use crate::units::BlockRange;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// A run of blocks that come from one place.
#[derive(Clone)]
pub struct Span {
    /// Which blocks.
    pub blocks: BlockRange,
    /// What they are.
    pub state: State,
}

/// What the blocks of a span are.
#[derive(Clone)]
pub enum State {
    /// All zeros.
    Zero,
    /// Could not be read when the snapshot was taken.
    Unread,
    /// Stored in a delta file.
    Data {
        /// In which.
        delta: Arc<Delta>,
        /// In which page of it.
        page: Arc<TablePage>,
        /// Ordinal within the page of the first block of the span.
        ordinal: u32,
    },
}

impl Span {
    /// One digest for each block of a data span; otherwise none.
    pub fn digests(&self) -> &[Digest] {
        match &self.state {
            State::Data { page, ordinal, .. } => {
                let first = *ordinal as usize;
                page.digests.get(first..first + self.blocks.count as usize).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// The sum of the terms of its blocks (FORMAT.md D2, D4).
    pub fn terms(&self, hasher: &Hasher) -> u128 {
        let blocks = self.blocks.first..self.blocks.end();
        let add = |sum: u128, (block, digest)| sum.wrapping_add(hasher.term(block, digest));
        match &self.state {
            State::Zero => 0,
            State::Unread => blocks.map(|block| (block, Digest::UNREAD)).fold(0, add),
            State::Data { .. } => blocks.zip(self.digests().iter().copied()).fold(0, add),
        }
    }

    /// The part of the span within `range`, if any.
    pub fn within(&self, range: BlockRange) -> Option<Self> {
        let first = self.blocks.first.max(range.first);
        let end = self.blocks.end().min(range.end());
        (first < end).then(|| {
            let mut span = self.clone();
            if let State::Data { ordinal, .. } = &mut span.state {
                *ordinal += (first - self.blocks.first) as u32;
            }
            span.blocks = BlockRange::between(first, end);
            span
        })
    }
}

/// A place in the index of a snapshot.
pub struct ChainCursor {
    /// Newest first.
    layers: Vec<TableCursor>,
    position: u64,
    upcoming: BinaryHeap<Reverse<(u64, usize)>>,
    active: BinaryHeap<Reverse<usize>>,
}

impl ChainCursor {
    pub(super) fn new(layers: &[Arc<Delta>]) -> Result<Self> {
        let mut cursor = Self {
            layers: layers.iter().map(|delta| TableCursor::new(delta.clone())).collect(),
            position: 0,
            upcoming: BinaryHeap::new(),
            active: BinaryHeap::new(),
        };
        for layer in 0..layers.len() {
            cursor.renew(layer)?;
        }
        Ok(cursor)
    }

    /// Where it is.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at `block`, which is not before where it is.
    pub fn seek(&mut self, block: u64) {
        self.position = self.position.max(block);
    }

    /// Goes back to `block`, which is in the span that was given last, or its end.
    pub fn rewind(&mut self, block: u64) {
        // The owner of that span is still the newest active layer: nothing was brought up to date
        // since.
        self.position = self.position.min(block);
    }

    /// The next span, cut at `end`; none if it is there already. Spans follow each other without a
    /// gap.
    pub fn next(&mut self, end: u64) -> Result<Option<Span>> {
        if self.position >= end {
            return Ok(None);
        }
        loop {
            self.activate_up_to(self.position);
            let Some(&Reverse(layer)) = self.active.peek() else {
                let next = self.upcoming.peek().map_or(end, |Reverse((first, _))| *first);
                return Ok(Some(self.take(next.min(end), State::Zero)));
            };
            let found = self.layers.get(layer).and_then(|cursor| {
                let (page, run) = cursor.run()?;
                Some((cursor.delta().clone(), page.clone(), run))
            });
            let Some((delta, page, run)) = found.filter(|f| f.2.blocks.end() > self.position)
            else {
                self.active.pop();
                self.renew(layer)?;
                continue;
            };
            let span_end = self.end_of_rule(layer, run.blocks.end().min(end));
            let state = match run.kind {
                RunKind::Zero => State::Zero,
                RunKind::Unread => State::Unread,
                RunKind::Data => {
                    let ordinal = run.ordinal + (self.position - run.blocks.first) as u32;
                    State::Data { delta, page, ordinal }
                }
            };
            return Ok(Some(self.take(span_end, state)));
        }
    }

    fn take(&mut self, end: u64, state: State) -> Span {
        let blocks = BlockRange::between(self.position, end);
        self.position = end;
        Span { blocks, state }
    }

    /// Where a newer layer than `layer` takes over, at most `end`. Older ones that begin before
    /// join the active.
    fn end_of_rule(&mut self, layer: usize, end: u64) -> u64 {
        while let Some(&Reverse((first, other))) = self.upcoming.peek() {
            if first >= end {
                break;
            }
            if other < layer {
                return first;
            }
            self.upcoming.pop();
            self.active.push(Reverse(other));
        }
        end
    }

    fn activate_up_to(&mut self, block: u64) {
        while let Some(&Reverse((first, layer))) = self.upcoming.peek()
            && first <= block
        {
            self.upcoming.pop();
            self.active.push(Reverse(layer));
        }
    }

    /// Brings a layer to the position and puts it among the upcoming, unless it is at its end.
    fn renew(&mut self, layer: usize) -> Result<()> {
        let Some(cursor) = self.layers.get_mut(layer) else { return Ok(()) };
        cursor.seek(self.position)?;
        if let Some((_, run)) = cursor.run() {
            self.upcoming.push(Reverse((run.blocks.first, layer)));
        }
        Ok(())
    }
}
