//! The newest-first merge of the tables of a chain: a k-way merge of sorted runs in which the
//! newest wins.
//!
//! ```text
//! upcoming   layers by the block at which they go on
//! taken      those of them that have something in the next 16384 blocks, newest first
//! canvas     what each of these blocks is; the newest layer paints first, none paints over another
//! ```
//!
//! A layer is examined once for each canvas in which it has runs, not once for each run, so a
//! thousand layers with scattered blocks cost little more than one. Once a canvas is full, older
//! layers are left where they are: what newer ones hide is not examined, and its pages are skipped.
//! A run that covers more than a canvas needs none.

use super::index_chunk::{IndexChunk, Span, State};
use crate::base::error::Result;
use crate::base::units::BlockRange;
use crate::delta::{Delta, TableCursor, TablePrefetcher};
use crate::format::{Run, RunKind};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

const CANVAS_BLOCKS: u64 = 16 << 10;
/// Codes of the canvas; others are `page << 32 | ordinal`.
const EMPTY: u64 = u64::MAX;
const ZERO: u64 = u64::MAX - 1;
const UNREAD: u64 = u64::MAX - 2;

/// A place in the index of a snapshot.
pub struct ChainCursor {
    layers: Arc<[Arc<Delta>]>,
    /// One for each layer, newest first.
    cursors: Vec<TableCursor>,
    position: u64,
    upcoming: BinaryHeap<Reverse<(u64, u32)>>,
    taken: Vec<u32>,
    canvas: Vec<u64>,
    /// For each layer, the number that its page had last in a chunk.
    page_numbers: Vec<u32>,
    /// What is in no layer is left out; otherwise it is zero.
    has_gaps: bool,
}

impl ChainCursor {
    pub(super) fn new(layers: &Arc<[Arc<Delta>]>) -> Self {
        let count = layers.len() as u32;
        Self {
            layers: layers.clone(),
            cursors: layers.iter().map(|delta| TableCursor::new(delta.clone())).collect(),
            position: 0,
            // Where they begin is found when they are taken.
            upcoming: (0..count).map(|layer| Reverse((0, layer))).collect(),
            taken: Vec::new(),
            canvas: Vec::new(),
            page_numbers: vec![0; layers.len()],
            has_gaps: false,
        }
    }

    /// The same for layers that do not end at a base: blocks in none of them are left out.
    pub fn with_gaps(layers: &Arc<[Arc<Delta>]>) -> Self {
        Self { has_gaps: true, ..Self::new(layers) }
    }

    /// The same for whoever goes by [`ChainCursor::index_chunk_over`] and asks for tables by
    /// [`TablePrefetchers`].
    #[must_use]
    pub fn scattered(self) -> Self {
        let cursors = self.cursors.into_iter().map(TableCursor::scattered).collect();
        Self { cursors, ..self }
    }

    /// Where it is.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at `block`, which is not before where it is.
    pub fn seek(&mut self, block: u64) {
        self.position = self.position.max(block);
    }

    /// The spans from the position on, up to `end`; fewer once there are about `most_spans`. In a whole
    /// chain they follow each other without a gap, and there are none only at `end`.
    pub fn chunk(&mut self, end: u64, most_spans: usize) -> Result<IndexChunk> {
        let mut out = IndexChunk::new(self.layers.clone());
        while self.position < end && out.spans.len() < most_spans {
            self.step(end, &mut out)?;
        }
        Ok(out)
    }

    /// The spans of some ranges, ascending and not before the position. What lies between them is not
    /// examined.
    pub fn index_chunk_over(
        &mut self,
        ranges: impl Iterator<Item = BlockRange>,
    ) -> Result<IndexChunk> {
        let mut out = IndexChunk::new(self.layers.clone());
        for range in ranges {
            self.seek(range.first);
            while self.position < range.end() {
                self.step(range.end(), &mut out)?;
            }
        }
        Ok(out)
    }

    /// Adds the spans of the next canvas, or one that is longer.
    fn step(&mut self, end: u64, out: &mut IndexChunk) -> Result<()> {
        let canvas_end = end.min(self.position + CANVAS_BLOCKS);
        self.take(canvas_end)?;
        // At or beyond the end of the canvas.
        let next = self.upcoming.peek().map_or(u64::MAX, |Reverse((first, _))| *first);
        match self.taken.as_slice() {
            [] => self.emit(out, end.min(next), None),
            &[layer] => {
                let (until, state) = self.rule_of(layer, end.min(next), out);
                self.emit(out, until, state);
                self.put_back();
            }
            &[newest, ..] => {
                let (until, state) = self.rule_of(newest, end.min(next), out);
                if until >= canvas_end && state.is_some() {
                    self.emit(out, until, state);
                    self.put_back();
                } else {
                    self.paint(canvas_end, out)?;
                }
            }
        }
        Ok(())
    }

    /// Takes the layers that have something before `canvas_end`, newest first.
    fn take(&mut self, canvas_end: u64) -> Result<()> {
        self.taken.clear();
        while let Some(&Reverse((first, layer))) = self.upcoming.peek()
            && first < canvas_end
        {
            self.upcoming.pop();
            let Some(cursor) = self.cursors.get_mut(layer as usize) else { continue };
            cursor.seek(self.position)?;
            match cursor.run() {
                Some((_, run)) if run.blocks.first < canvas_end => self.taken.push(layer),
                Some((_, run)) => self.upcoming.push(Reverse((run.blocks.first, layer))),
                None => {}
            }
        }
        self.taken.sort_unstable();
        Ok(())
    }

    /// Until where one layer alone says what is at the position, at most `end`; and what that is if a
    /// run of it is there.
    fn rule_of(&mut self, layer: u32, end: u64, out: &mut IndexChunk) -> (u64, Option<State>) {
        let Some(cursor) = self.cursors.get(layer as usize) else { return (end, None) };
        let Some((_, run)) = cursor.run() else { return (end, None) };
        if run.blocks.first > self.position {
            return (end.min(run.blocks.first), None);
        }
        let number = number_of(&mut self.page_numbers, layer, cursor, out);
        (end.min(run.blocks.end()), state_of(code_of(run, number, self.position)))
    }

    /// Puts back what was taken, each where it is.
    fn put_back(&mut self) {
        for layer in self.taken.drain(..) {
            if let Some((_, run)) = self.cursors.get(layer as usize).and_then(TableCursor::run) {
                self.upcoming.push(Reverse((run.blocks.first, layer)));
            }
        }
    }

    /// Goes on to `end`; `state` is what is there if any layer has it.
    fn emit(&mut self, out: &mut IndexChunk, end: u64, state: Option<State>) {
        self.push(out, BlockRange::between(self.position, end), state);
        self.position = end;
    }

    fn push(&self, out: &mut IndexChunk, blocks: BlockRange, state: Option<State>) {
        if let Some(state) = state.or((!self.has_gaps).then_some(State::Zero)) {
            out.push(Span { blocks, state });
        }
    }

    fn paint(&mut self, end: u64, out: &mut IndexChunk) -> Result<()> {
        let first = self.position;
        let mut bare = (end - first) as usize;
        self.canvas.clear();
        self.canvas.resize(bare, EMPTY);
        for &layer in &self.taken {
            let Some(cursor) = self.cursors.get_mut(layer as usize) else { continue };
            while bare > 0
                && let Some((_, run)) = cursor.run()
                && run.blocks.first < end
            {
                let from = run.blocks.first.max(first);
                let to = run.blocks.end().min(end);
                let number = number_of(&mut self.page_numbers, layer, cursor, out);
                let code = code_of(run, number, from);
                let step = u64::from(run.kind == RunKind::Data);
                let part = self.canvas.get_mut((from - first) as usize..(to - first) as usize);
                for (index, place) in (0..).zip(part.unwrap_or_default()) {
                    if *place == EMPTY {
                        *place = code + index * step;
                        bare -= 1;
                    }
                }
                if run.blocks.end() > end {
                    break;
                }
                cursor.advance()?;
            }
        }
        self.put_back();
        self.read_canvas(out);
        self.position = end;
        Ok(())
    }

    /// The canvas as spans.
    fn read_canvas(&self, out: &mut IndexChunk) {
        let mut at = 0;
        while let Some(&code) = self.canvas.get(at) {
            let rest = self.canvas.get(at..).unwrap_or_default();
            let step = u64::from(code < UNREAD);
            let same = (0..).zip(rest).take_while(|(i, c)| **c == code + i * step);
            let count = same.count();
            let blocks = BlockRange { first: self.position + at as u64, count: count as u64 };
            self.push(out, blocks, state_of(code));
            at += count;
        }
    }
}

/// A file with fewer blocks has so few tables that they need not be asked for.
const MANY_BLOCKS: u64 = 64 << 10;

/// Ask for the tables of a chain ahead of who needs them.
pub struct TablePrefetchers(Vec<TablePrefetcher>);

impl TablePrefetchers {
    pub(super) fn new(layers: &[Arc<Delta>]) -> Self {
        let large = layers.iter().filter(|delta| delta.footer().counts.data_blocks >= MANY_BLOCKS);
        Self(large.cloned().map(TablePrefetcher::new).collect())
    }

    /// Asks for the tables over a range that does not begin before the last one.
    ///
    /// # Errors
    /// `Corrupt` if an index page is damaged.
    pub fn prefetch(&mut self, range: BlockRange) -> Result<()> {
        self.0.iter_mut().try_for_each(|prefetcher| prefetcher.prefetch(range))
    }
}

/// What a run has for `block`, which is in it.
fn code_of(run: Run, page: u32, block: u64) -> u64 {
    match run.kind {
        RunKind::Zero => ZERO,
        RunKind::Unread => UNREAD,
        RunKind::Data => {
            let ordinal = run.ordinal + (block - run.blocks.first) as u32;
            u64::from(page) << 32 | u64::from(ordinal)
        }
    }
}

fn state_of(code: u64) -> Option<State> {
    Some(match code {
        EMPTY => return None,
        ZERO => State::Zero,
        UNREAD => State::Unread,
        data => State::Data { page: (data >> 32) as u32, ordinal: data as u32 },
    })
}

/// The number of the page that a cursor is at in a chunk, to which it is added if it is not there yet.
fn number_of(numbers: &mut [u32], layer: u32, at: &TableCursor, out: &mut IndexChunk) -> u32 {
    let (Some(number), Some((_, page))) = (numbers.get_mut(layer as usize), at.page()) else {
        return 0;
    };
    let is_it =
        out.page(*number).is_some_and(|of| of.layer == layer && Arc::ptr_eq(&of.page, page));
    if !is_it {
        *number = out.add_page_at(layer, at);
    }
    *number
}
