//! Walks the runs of one file in ascending order, reading only the pages on its way.

use super::caches::Page;
use super::part::Part;
use crate::base::error::Result;
use crate::base::units::BlockRange;
use crate::format::{IndexPage, Run, TablePage};
use std::sync::Arc;

/// Runs that are examined one after the other before a search.
const LINEAR_SEARCH_RUNS: usize = 4;
/// Tables that are asked for ahead.
const PREFETCH: usize = 32;

/// A place in the table of one file.
pub struct PartCursor {
    part: Arc<Part>,
    /// From the root down: a page, its level, and which of its children we are in.
    path: Vec<(Arc<IndexPage>, u32, usize)>,
    /// Up to which child of the lowest index page the tables were asked for ahead.
    prefetched: usize,
    leaf: Option<(Arc<TablePage>, usize)>,
    started: bool,
    /// Somebody else asks for the tables.
    is_asked_for: bool,
}

impl PartCursor {
    /// Before the first run.
    pub fn new(part: Arc<Part>, is_asked_for: bool) -> Self {
        let (path, prefetched, leaf) = (Vec::new(), 0, None);
        Self { part, path, prefetched, leaf, started: false, is_asked_for }
    }

    /// The file that it walks.
    pub fn part(&self) -> &Arc<Part> {
        &self.part
    }

    /// The run that it is at, in its page; none at the end.
    pub fn run(&self) -> Option<(&Arc<TablePage>, Run)> {
        let (page, index) = self.leaf.as_ref()?;
        Some((page, *page.runs.get(*index)?))
    }

    /// Goes to the first run that ends after `block`. Only forward.
    pub fn seek(&mut self, block: u64) -> Result<()> {
        if let Some((page, index)) = &mut self.leaf {
            let rest = page.runs.get(*index..).unwrap_or_default();
            // Mostly it is there already, or nearly: a search looks at places far apart.
            let near =
                rest.iter().take(LINEAR_SEARCH_RUNS).position(|run| run.blocks.end() > block);
            if let Some(near) = near {
                *index += near;
                return Ok(());
            }
            if page.bounds().end() > block {
                *index += rest.partition_point(|run| run.blocks.end() <= block);
                return Ok(());
            }
        } else if self.started {
            return Ok(());
        }
        self.descend(block)
    }

    /// Goes to the next run.
    pub fn advance(&mut self) -> Result<()> {
        let Some((page, index)) = &mut self.leaf else { return Ok(()) };
        *index += 1;
        if *index < page.runs.len() {
            return Ok(());
        }
        let end = page.bounds().end();
        self.descend(end)
    }

    /// After an error: the blocks of the page that could not be read; if it was the root, all.
    pub fn broken(&self) -> BlockRange {
        let child = self.path.last().and_then(|(page, _, at)| page.children.get(*at));
        child.map_or(BlockRange::between(0, u64::MAX), |child| child.blocks)
    }

    /// After an error: goes on behind the page that could not be read.
    pub fn pass(&mut self, block: u64) -> Result<()> {
        self.descend(block)
    }

    /// Finds the leaf in which the first run that ends after `block` is.
    fn descend(&mut self, block: u64) -> Result<()> {
        self.leaf = None;
        if !self.started {
            self.started = true;
            match self.part.root()? {
                None => return Ok(()),
                Some(Page::Table(page)) => {
                    return self.enter_leaf(page, block);
                }
                Some(Page::Index(page, level)) => self.path.push((page, level, 0)),
            }
        }
        // Up to the page that reaches far enough, then down again.
        while let Some((page, level, at)) = self.path.last_mut() {
            let rest = page.children.get(*at..).unwrap_or_default();
            *at += rest.partition_point(|child| child.blocks.end() <= block);
            let Some(child) = page.children.get(*at) else {
                self.path.pop();
                continue;
            };
            let is_walk = *at > 0 && !self.is_asked_for;
            if *level == 1 && is_walk && *at + PREFETCH / 2 >= self.prefetched {
                // The second table in a row: whoever walks needs the next ones, too, and they lie
                // apart, each behind its frames.
                let (from, to) = (self.prefetched.max(*at + 1), *at + 1 + PREFETCH);
                let ahead = page.children.iter().take(to).skip(from);
                ahead.for_each(|child| self.part.prefetch(child));
                self.prefetched = to;
            }
            match self.part.child(child, *level)? {
                Page::Table(page) => {
                    return self.enter_leaf(page, block);
                }
                Page::Index(page, level) => {
                    self.prefetched = 0;
                    self.path.push((page, level, 0));
                }
            }
        }
        Ok(())
    }

    fn enter_leaf(&mut self, page: Arc<TablePage>, block: u64) -> Result<()> {
        self.part.check_within(&page)?;
        let index = page.runs.partition_point(|run| run.blocks.end() <= block);
        self.leaf = (index < page.runs.len()).then_some((page, index));
        Ok(())
    }
}

/// Asks for the tables over some ranges before they are walked, so that the disk works on all of them at
/// once.
pub(super) struct PartPrefetcher {
    part: Arc<Part>,
    /// From the root down to the pages above the tables.
    path: Vec<(Arc<IndexPage>, u32, usize)>,
    started: bool,
    /// The end of the last table that was asked for.
    asked: u64,
}

impl PartPrefetcher {
    /// Before the first table.
    pub fn new(part: Arc<Part>) -> Self {
        Self { part, path: Vec::new(), started: false, asked: 0 }
    }

    /// Asks for the tables over a range that does not begin before the last one.
    ///
    /// # Errors
    /// `Corrupt` if an index page is damaged.
    pub fn prefetch(&mut self, range: BlockRange) -> Result<()> {
        if !self.started {
            self.started = true;
            if let Some(Page::Index(page, level)) = self.part.root()? {
                self.path.push((page, level, 0));
            }
        }
        while let Some((page, level, at)) = self.path.last_mut() {
            let from = range.first.max(self.asked);
            let rest = page.children.get(*at..).unwrap_or_default();
            *at += rest.partition_point(|child| child.blocks.end() <= from);
            let Some(child) = page.children.get(*at) else {
                self.path.pop();
                continue;
            };
            if child.blocks.first >= range.end() || from >= range.end() {
                return Ok(());
            }
            if *level == 1 {
                self.part.prefetch(child);
                self.asked = child.blocks.end();
            } else if let Page::Index(page, level) = self.part.child(child, *level)? {
                *at += 1;
                self.path.push((page, level, 0));
            }
        }
        Ok(())
    }
}
