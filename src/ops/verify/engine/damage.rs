//! Which blocks of a damaged file are lost: through its tree, past every page that cannot be read.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::pipeline::ordered_map;
use crate::base::units::{BlockRange, Geometry};
use crate::chain::{IndexChunk, Span, State};
use crate::delta::{Delta, TableCursor};
use crate::format::{Run, RunKind};
use crate::image::BaseImage;
use crate::view::{BATCH_BYTES, BatchBuilder, Order, decode_batch};
use std::sync::Arc;

/// The most findings reported for one file; a file with more is lost anyway.
const MAX_FINDINGS: usize = 1000;

/// Which part of a file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A page of the tree: what it says of these blocks is not known.
    Table,
    /// Stored blocks.
    Blocks,
    /// Blocks in a base image.
    BaseImage,
}

/// One thing that is damaged.
#[derive(Debug)]
pub struct Finding {
    /// What it is.
    pub part: Part,
    /// What is wrong, and where in the file.
    pub error: Error,
}

/// What is damaged in a file.
#[derive(Debug, Default)]
pub struct Damaged {
    /// Blocks that were examined.
    pub blocks: u64,
    /// What is wrong, as far as it is told.
    pub findings: Vec<Finding>,
    /// What could not be checked, and so may be sound: why, of the first of it.
    pub unchecked: Option<Error>,
    /// Blocks that cannot be restored from this file.
    pub lost: LostBlocks,
}

/// Blocks that cannot be restored; both lists ascending, neighbours merged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostBlocks {
    /// Stored blocks that are damaged.
    pub blocks: Vec<BlockRange>,
    /// Ranges covered by unreadable table pages. The cursor cannot get past such a page, so they are lost
    /// even where a newer file has the blocks.
    pub pages: Vec<BlockRange>,
}

impl LostBlocks {
    /// Both.
    pub fn all(&self) -> Vec<BlockRange> {
        joined(self.blocks.iter().chain(&self.pages).copied().collect())
    }
}

impl Damaged {
    fn find(&mut self, part: Part, error: Error) {
        // A damaged frame is one finding, not one for each of its blocks.
        let text = error.to_string();
        let is_told = self.findings.last().is_some_and(|last| last.error.to_string() == text);
        if !is_told && self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { part, error });
        }
    }
}

/// Checks every block of one file, through its tree, and names what is damaged.
///
/// # Errors
/// `Interrupted`; everything else is in the outcome.
pub fn find_damage(delta: &Arc<Delta>, context: &Context) -> Result<Damaged> {
    let geometry = delta.geometry()?;
    let (mut damaged, mut lost) = (Damaged::default(), LostBlocks::default());
    let mut runs = DataRuns::new(delta);
    ordered_map(
        context.threads(),
        context.in_flight(BATCH_BYTES),
        || {
            context.check()?;
            runs.next()
        },
        |(chunk, span)| {
            context.advance(geometry.bytes_in(span.blocks));
            let found = match delta.base_image() {
                Some(image) => changed_in(delta, image, geometry, &chunk, span),
                None => damage_in(geometry, &chunk, span),
            };
            Ok((span.blocks.count, found))
        },
        |(count, found)| {
            damaged.blocks += count;
            for (blocks, error) in found {
                if error.kind() == ErrorKind::Interrupted {
                    return Err(error);
                }
                if !error.is_damage() {
                    damaged.unchecked.get_or_insert(error);
                    continue;
                }
                let part =
                    if delta.base_image().is_some() { Part::BaseImage } else { Part::Blocks };
                damaged.find(part, error);
                lost.blocks.push(blocks);
            }
            Ok(())
        },
    )?;
    for (blocks, error) in runs.broken {
        if error.kind() == ErrorKind::Interrupted {
            return Err(error);
        }
        if !error.is_damage() {
            damaged.unchecked.get_or_insert(error);
            continue;
        }
        damaged.find(Part::Table, error);
        lost.pages.push(blocks);
    }
    let LostBlocks { blocks, pages } = lost;
    damaged.lost = LostBlocks { blocks: joined(blocks), pages: joined(pages) };
    Ok(damaged)
}

/// The data runs of a file, past the pages that cannot be read.
struct DataRuns {
    delta: Arc<Delta>,
    cursor: TableCursor,
    started: bool,
    /// What was passed, and why.
    broken: Vec<(BlockRange, Error)>,
}

impl DataRuns {
    fn new(delta: &Arc<Delta>) -> Self {
        let cursor = TableCursor::new(delta.clone());
        Self { delta: delta.clone(), cursor, started: false, broken: Vec::new() }
    }

    /// The next one, as a chunk of this file alone.
    fn next(&mut self) -> Result<Option<(IndexChunk, Span)>> {
        if !std::mem::replace(&mut self.started, true) {
            let moved = self.cursor.seek(0);
            self.skip_broken_pages(moved)?;
        }
        while let Some((_, run)) = self.cursor.run() {
            let Run { blocks, kind, ordinal } = run;
            let mut chunk = IndexChunk::new(Arc::new([self.delta.clone()]));
            let page = chunk.add_page_at(0, &self.cursor);
            let moved = self.cursor.advance();
            self.skip_broken_pages(moved)?;
            if kind == RunKind::Data {
                return Ok(Some((chunk, Span { blocks, state: State::Data { page, ordinal } })));
            }
        }
        Ok(None)
    }

    fn skip_broken_pages(&mut self, mut moved: Result<()>) -> Result<()> {
        while let Err(error) = moved {
            if error.kind() == ErrorKind::Interrupted {
                return Err(error);
            }
            let blocks = self.cursor.broken();
            self.broken.push((blocks, error));
            moved = self.cursor.pass(blocks.end());
        }
        Ok(())
    }
}

/// The blocks of a run that are not to be had, and why. If the run fails, its blocks are tried one by one.
fn damage_in(geometry: Geometry, chunk: &IndexChunk, span: Span) -> Vec<(BlockRange, Error)> {
    let decode = |span: Span| -> Result<()> {
        let mut builder = BatchBuilder::new(geometry, chunk.layers(), Order::Ascending);
        builder.add(chunk, span)?;
        builder.finish();
        while let Some(batch) = builder.next_batch() {
            decode_batch(geometry, batch, None)?;
        }
        Ok(())
    };
    if decode(span).is_ok() {
        return Vec::new();
    }
    let blocks = (span.blocks.first..span.blocks.end()).map(|first| BlockRange { first, count: 1 });
    let failed = |one: BlockRange| Some((one, decode(span.within(one)?).err()?));
    blocks.filter_map(failed).collect()
}

/// The same where the blocks are in a base image: those that are not what they were.
fn changed_in(
    delta: &Delta,
    image: &BaseImage,
    geometry: Geometry,
    chunk: &IndexChunk,
    span: Span,
) -> Vec<(BlockRange, Error)> {
    let size = geometry.block_size.in_memory();
    let (mut changed, mut buffer) = (Vec::<BlockRange>::new(), Vec::new());
    let mut found = Vec::new();
    let mut block = span.blocks.first;
    // By the megabyte: a run may have a gigabyte.
    for digests in chunk.digests(span).chunks((BATCH_BYTES as usize / size).max(1)) {
        buffer.resize(digests.len() * size, 0);
        let piece = BlockRange { first: block, count: digests.len() as u64 };
        block = piece.end();
        if let Err(error) = image.read_at(geometry.offset(piece.first), &mut buffer) {
            found.push((piece, error));
            continue;
        }
        for ((one, content), digest) in (piece.first..).zip(buffer.chunks(size)).zip(digests) {
            if delta.hasher().digest(content) != *digest {
                changed.push(BlockRange { first: one, count: 1 });
            }
        }
    }
    let error = |range: BlockRange| (range, image.changed(range, geometry.offset(range.first)));
    found.extend(joined(changed).into_iter().map(error));
    found.sort_by_key(|(blocks, _)| blocks.first);
    found
}

/// Ascending, with neighbours, and what overlaps, joined.
fn joined(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.sort_unstable_by_key(|range| range.first);
    let mut joined: Vec<BlockRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.first <= last.end() => {
                *last = BlockRange::between(last.first, last.end().max(range.end()));
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// What is lost to the snapshot of `delta`: of what its parent has lost, that for which it has no run of
/// its own; and what it has lost itself.
///
/// # Errors
/// `Interrupted`.
pub fn losses_with(
    delta: &Arc<Delta>,
    inherited: &LostBlocks,
    own: &LostBlocks,
    context: &Context,
) -> Result<LostBlocks> {
    let mut cursor = TableCursor::new(delta.clone());
    let mut lost = own.blocks.clone();
    for range in &inherited.blocks {
        context.check()?;
        let mut rest = *range;
        let mut moved = cursor.seek(rest.first);
        loop {
            // What a page that cannot be read covers is lost anyway.
            while moved.is_err() {
                let end = cursor.broken().end();
                rest = BlockRange::between(rest.first.max(end), rest.end());
                moved = cursor.pass(end);
            }
            let run = cursor.run().map(|(_, run)| run.blocks);
            let until = run.map_or(rest.end(), |run| run.first.clamp(rest.first, rest.end()));
            let gap = BlockRange::between(rest.first, until);
            lost.extend((gap.count > 0).then_some(gap));
            match run {
                Some(run) if run.end() < rest.end() => {
                    rest = BlockRange::between(run.end().max(rest.first), rest.end());
                    moved = cursor.advance();
                }
                _ => break,
            }
        }
    }
    let pages = inherited.pages.iter().chain(&own.pages).copied().collect();
    Ok(LostBlocks { blocks: joined(lost), pages: joined(pages) })
}
