//! Walks the runs of a layer in ascending order, part by part; a part is opened when a block of its range is
//! first asked for.

use super::layer::Delta;
use super::part::Part;
use super::walk::{PartCursor, PartPrefetcher};
use crate::base::error::Result;
use crate::base::units::BlockRange;
use crate::format::{Run, TablePage};
use std::sync::Arc;

/// A place in the tables of a layer.
pub struct TableCursor {
    delta: Arc<Delta>,
    /// In which of its parts it is; one past the last one at the end.
    index: usize,
    /// None before the part is open.
    inner: Option<PartCursor>,
    /// Somebody else asks for the tables.
    is_asked_for: bool,
}

impl TableCursor {
    /// Before the first run.
    pub fn new(delta: Arc<Delta>) -> Self {
        Self { delta, index: 0, inner: None, is_asked_for: false }
    }

    /// The same for whoever asks for the tables by a [`TablePrefetcher`]: none is asked for on the way.
    #[must_use]
    pub fn scattered(self) -> Self {
        Self { is_asked_for: true, ..self }
    }

    /// The run that it is at, in its page; none at the end.
    pub fn run(&self) -> Option<(&Arc<TablePage>, Run)> {
        self.inner.as_ref()?.run()
    }

    /// The file that the run is in, and its page.
    pub fn page(&self) -> Option<(&Arc<Part>, &Arc<TablePage>)> {
        let inner = self.inner.as_ref()?;
        Some((inner.part(), inner.run()?.0))
    }

    /// Goes to the first run that ends after `block`. Only forward.
    pub fn seek(&mut self, block: u64) -> Result<()> {
        if let Some(inner) = &mut self.inner {
            inner.seek(block)?;
            if inner.run().is_some() {
                return Ok(());
            }
        }
        self.enter(block)
    }

    /// Goes to the next run.
    pub fn advance(&mut self) -> Result<()> {
        let Some(inner) = &mut self.inner else { return Ok(()) };
        inner.advance()?;
        if inner.run().is_some() { Ok(()) } else { self.enter(0) }
    }

    /// After an error: the blocks of the page or part that could not be read; if it was all of the layer,
    /// all.
    pub fn broken(&self) -> BlockRange {
        let all = BlockRange::between(0, u64::MAX);
        let part = self.delta.range_of(self.index).filter(|_| self.delta.part_count() > 1);
        let part = part.unwrap_or(all);
        let page = self.inner.as_ref().map_or(part, PartCursor::broken);
        BlockRange::between(page.first.max(part.first), page.end().min(part.end()))
    }

    /// After an error: goes on behind the page that could not be read.
    pub fn pass(&mut self, block: u64) -> Result<()> {
        let is_inside = self.delta.range_of(self.index).is_some_and(|part| part.end() > block);
        if let Some(inner) = self.inner.as_mut().filter(|_| is_inside) {
            inner.pass(block)?;
            if inner.run().is_some() {
                return Ok(());
            }
        }
        self.enter(block)
    }

    /// Goes to the next part that has a run which ends after `block`: the one that it is in, if that is not
    /// open.
    fn enter(&mut self, block: u64) -> Result<()> {
        loop {
            self.index += usize::from(self.inner.take().is_some());
            self.index = self.delta.part_at(self.index, block);
            if self.index >= self.delta.part_count() {
                return Ok(());
            }
            let part = self.delta.part(self.index)?.clone();
            let inner = self.inner.insert(PartCursor::new(part, self.is_asked_for));
            inner.seek(block)?;
            if inner.run().is_some() {
                return Ok(());
            }
        }
    }
}

/// Asks for the tables over some ranges before they are walked, so that the disk works on all of them at
/// once.
pub struct TablePrefetcher {
    delta: Arc<Delta>,
    index: usize,
    inner: Option<PartPrefetcher>,
}

impl TablePrefetcher {
    /// Before the first table.
    pub fn new(delta: Arc<Delta>) -> Self {
        Self { delta, index: 0, inner: None }
    }

    /// Asks for the tables over a range that does not begin before the last one.
    ///
    /// # Errors
    /// `Corrupt` if an index page is damaged.
    pub fn prefetch(&mut self, range: BlockRange) -> Result<()> {
        let mut index = self.delta.part_at(self.index, range.first);
        while let Some(part) = self.delta.range_of(index).filter(|p| p.first < range.end()) {
            if self.index != index || self.inner.is_none() {
                self.index = index;
                self.inner = Some(PartPrefetcher::new(self.delta.part(index)?.clone()));
            }
            if let Some(inner) = &mut self.inner {
                inner.prefetch(range)?;
            }
            if part.end() >= range.end() {
                break;
            }
            index += 1;
        }
        Ok(())
    }
}
