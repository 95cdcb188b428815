//! The image digests of all snapshots of a chain, in one walk over all of its tables.
//!
//! Block by block from the oldest layer to the newest: what a layer puts in the place of what was
//! there before is its step from the image digest of its parent to its own. To merge the tables for
//! each snapshot anew would take the square of the time.

use super::Chain;
use crate::base::digest::Digest;
use crate::base::error::Result;
use crate::base::events::Context;
use crate::delta::TableCursor;
use crate::format::{Run, RunKind, TablePage};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

const CANVAS_BLOCKS: u64 = 4096;

/// For each layer, newest first: the sum of the terms of its image less that of its parent's
/// (FORMAT.md D2), as its entries give it.
pub fn digest_steps(chain: &Chain, context: &Context) -> Result<Vec<u128>> {
    let mut history = History::new(chain)?;
    while history.step()? {
        context.check()?;
    }
    Ok(history.steps)
}

struct History<'a> {
    chain: &'a Chain,
    cursors: Vec<TableCursor>,
    upcoming: BinaryHeap<Reverse<(u64, usize)>>,
    position: u64,
    /// The term of each block as it is so far; zero for zeros.
    canvas: Vec<u128>,
    steps: Vec<u128>,
}

impl<'a> History<'a> {
    fn new(chain: &'a Chain) -> Result<Self> {
        let cursors = chain.layers().iter().map(|delta| TableCursor::new(delta.clone()));
        let mut history = Self {
            chain,
            cursors: cursors.collect(),
            upcoming: BinaryHeap::new(),
            position: 0,
            canvas: Vec::new(),
            steps: vec![0; chain.layers().len()],
        };
        for (layer, cursor) in history.cursors.iter_mut().enumerate() {
            cursor.seek(0)?;
            if let Some((_, run)) = cursor.run() {
                history.upcoming.push(Reverse((run.blocks.first, layer)));
            }
        }
        Ok(history)
    }

    /// Goes over the next canvas; false at the end.
    fn step(&mut self) -> Result<bool> {
        let Some(&Reverse((first, _))) = self.upcoming.peek() else { return Ok(false) };
        self.position = self.position.max(first);
        let mut end = self.position.saturating_add(CANVAS_BLOCKS);
        let mut taken = Vec::new();
        while let Some(&Reverse((first, layer))) = self.upcoming.peek()
            && first < end
        {
            self.upcoming.pop();
            taken.push(layer);
        }
        // The oldest first.
        taken.sort_unstable_by_key(|layer| Reverse(*layer));
        let is_zeroed = self.zeros_until(&taken).filter(|zeroed| *zeroed > end);
        if let Some(zeroed) = is_zeroed {
            end = zeroed;
        } else {
            self.canvas.clear();
            self.canvas.resize((end - self.position) as usize, 0);
        }
        for layer in taken {
            self.paint(layer, end, is_zeroed.is_some())?;
        }
        self.position = end;
        Ok(true)
    }

    /// As far as there are nothing but runs of zeros, one in each of these layers.
    fn zeros_until(&self, taken: &[usize]) -> Option<u64> {
        let mut until = self.upcoming.peek().map_or(u64::MAX, |Reverse((first, _))| *first);
        for layer in taken {
            let (_, run) = self.cursors.get(*layer)?.run()?;
            if run.kind != RunKind::Zero || run.blocks.first > self.position {
                return None;
            }
            until = until.min(run.blocks.end());
        }
        Some(until)
    }

    /// Lets a layer put its blocks before `end` in the place of what is there.
    fn paint(&mut self, layer: usize, end: u64, is_zeroed: bool) -> Result<()> {
        let hasher = self.chain.hasher();
        let (Some(cursor), Some(step)) = (self.cursors.get_mut(layer), self.steps.get_mut(layer))
        else {
            return Ok(());
        };
        while let Some((page, run)) = cursor.run()
            && run.blocks.first < end
        {
            if !is_zeroed {
                let from = run.blocks.first.max(self.position);
                let to = run.blocks.end().min(end);
                let places = (from - self.position) as usize..(to - self.position) as usize;
                let places = self.canvas.get_mut(places).unwrap_or_default();
                for (block, place) in (from..).zip(places) {
                    let term =
                        digest_of(page, run, block).map_or(0, |digest| hasher.term(block, digest));
                    *step = step.wrapping_add(term).wrapping_sub(*place);
                    *place = term;
                }
            }
            if run.blocks.end() > end {
                break;
            }
            cursor.advance()?;
        }
        if let Some((_, run)) = cursor.run() {
            self.upcoming.push(Reverse((run.blocks.first, layer)));
        }
        Ok(())
    }
}

/// The digest of a block that is in a run; none if it is zero.
fn digest_of(page: &Arc<TablePage>, run: Run, block: u64) -> Option<Digest> {
    match run.kind {
        RunKind::Zero => None,
        RunKind::Unread => Some(Digest::UNREAD),
        RunKind::Data => {
            let ordinal = u64::from(run.ordinal) + (block - run.blocks.first);
            page.digests.get(ordinal as usize).copied()
        }
    }
}
