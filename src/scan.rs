//! Source and index in, changes out: the digest of each block against the one that the index has
//! for it.
//!
//! ```text
//! one at a time: the next window, and the index over it   (Plan)
//! many threads:  map, digest, compare, copy what differs  (examine)
//! in order:      the changes of each window               (the caller)
//! ```
//!
//! What is stored is decided on a copy: a mapped image can change underfoot, so a block that looks
//! changed is copied first, and whether it is zero, whether it is the parent's after all, and its
//! digest are found on the copy.

use crate::chain::{Chain, ChainCursor, Span, State, Stretch};
use crate::digest::{Digest, Hasher, ImageDigest, is_zero};
use crate::error::{Error, Result};
use crate::pipeline::{Allowance, growing_map};
use crate::progress::Context;
use crate::source::Source;
use crate::units::{BlockRange, BlockSize, ExtentKind, Geometry};
use std::sync::{Arc, Mutex, PoisonError};

/// What is mapped at once, by all threads together. Each mapping that goes interrupts the other
/// cores, so few large windows are faster than many small ones.
const MAPPED_BYTES: u64 = 16 << 20;
/// What may be copied at once, by all that share.
const COPIED_BYTES: u64 = 24 << 20;
/// Holes smaller than this within a window are read with it: a mapping costs more than zeros.
const SMALL_HOLE_BYTES: u64 = 64 << 10;
/// Windows over which the index is merged at once.
const WINDOWS_AHEAD: u64 = 8;
/// Spans of the index that one job takes, where there is nothing to read.
const SPANS_PER_JOB: usize = 256;
/// Windows between two looks at whether somebody else wants the image.
const CHECK_EVERY: u64 = 4;

/// What an image is compared with.
pub enum Index<'a> {
    /// The snapshot at the tip of a chain.
    Parent(&'a Chain),
    /// Nothing: all zeros.
    Nothing(&'a Hasher, BlockSize),
}

impl Index<'_> {
    /// The keyed function of the chain.
    pub fn hasher(&self) -> &Hasher {
        match self {
            Self::Parent(chain) => chain.hasher(),
            Self::Nothing(hasher, _) => hasher,
        }
    }

    fn block_size(&self) -> BlockSize {
        match self {
            Self::Parent(chain) => chain.geometry().block_size,
            Self::Nothing(_, block_size) => *block_size,
        }
    }

    fn image_bytes(&self) -> u64 {
        match self {
            Self::Parent(chain) => chain.geometry().image_bytes,
            Self::Nothing(..) => 0,
        }
    }
}

/// What one block, or run of blocks, became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A block with other bytes; they are the next ones of [`Changes::bytes`].
    Data(u64, Digest),
    /// Blocks that became zero.
    Zero(BlockRange),
}

/// The changes of one window, in ascending order.
#[derive(Default)]
pub struct Changes {
    /// What changed.
    pub list: Vec<Change>,
    /// The bytes of the changed blocks, whole blocks one after the other.
    pub bytes: Vec<u8>,
    new_terms: u128,
    old_terms: u128,
    read_bytes: u64,
}

impl Changes {
    /// How many blocks changed.
    pub fn block_count(&self) -> u64 {
        let blocks = self.list.iter().map(|change| match change {
            Change::Data(..) => 1,
            Change::Zero(range) => range.count,
        });
        blocks.sum()
    }
}

/// What a scan found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Digest of the image as it is.
    pub image_digest: ImageDigest,
    /// Bytes read from the source.
    pub read_bytes: u64,
}

/// How much a thread maps at a time: a power of two from 2 to 8 MiB.
pub fn window_bytes(threads: usize) -> u64 {
    (MAPPED_BYTES / threads.max(1).next_power_of_two() as u64).clamp(2 << 20, 8 << 20)
}

/// Compares all of `source` with `index` and gives the changes to `consume`, window by window, in
/// order.
///
/// If the image is shorter than the index, the zero run that FORMAT.md M5 asks for is among them.
///
/// # Errors
/// Of the source, of `consume`; `Corrupt` if the index is not what its image digest says.
pub fn scan(
    source: &dyn Source,
    index: &Index<'_>,
    context: &Context,
    mut consume: impl FnMut(&Changes) -> Result<()>,
) -> Result<Scanned> {
    let geometry = Geometry::new(index.block_size(), source.image_bytes())?;
    let mut plan = Plan::new(source, index, geometry, context)?;
    let examiner = Examiner { source, hasher: index.hasher(), geometry };
    // Used again and again: fresh memory costs more than what is done with it.
    let pool = Mutex::new(Vec::<Changes>::new());
    let pool = || pool.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut new_terms, mut old_terms, mut read_bytes) = (0u128, 0u128, 0);
    let window = window_bytes(context.all_threads());
    growing_map(
        || Allowance {
            threads: context.threads(),
            in_flight: context.in_flight_of(COPIED_BYTES, window),
        },
        || plan.next(),
        |job| {
            let covered = geometry.bytes_in(job.blocks);
            let mut changes = pool().pop().unwrap_or_default();
            examiner.examine(&job, &mut changes)?;
            context.progress().advance(covered);
            Ok(changes)
        },
        |changes| {
            new_terms = new_terms.wrapping_add(changes.new_terms);
            old_terms = old_terms.wrapping_add(changes.old_terms);
            read_bytes += changes.read_bytes;
            if !changes.list.is_empty() {
                consume(&changes)?;
            }
            pool().push(changes.emptied());
            Ok(())
        },
    )?;
    source.check()?;
    prove(index, old_terms)?;
    let image_digest = index.hasher().empty_image(geometry.image_bytes).plus(new_terms);
    Ok(Scanned { image_digest, read_bytes })
}

/// A full scan passes every digest of the index: their sum proves it (DESIGN.md, "Image digest").
fn prove(index: &Index<'_>, old_terms: u128) -> Result<()> {
    let Index::Parent(chain) = index else { return Ok(()) };
    let passed = chain.hasher().empty_image(chain.geometry().image_bytes).plus(old_terms);
    if passed != chain.image_digest() {
        let what = format!("{}: the index of its chain is damaged", chain.tip().location());
        return Err(Error::corrupt(what)
            .hint("run \"imgsnap verify\" to see where, and take a --full snapshot"));
    }
    Ok(())
}

/// What one worker does at a time.
struct Job {
    blocks: BlockRange,
    /// What to read of it, ascending.
    read: Vec<BlockRange>,
    /// The index over all of it, if there is one.
    index: Option<Arc<Stretch>>,
}

/// Cuts the image into jobs, in order.
struct Plan<'a> {
    source: &'a dyn Source,
    context: &'a Context,
    geometry: Geometry,
    cursor: Option<ChainCursor>,
    /// The index as far as it was merged ahead, and where that ends: a long chain is not looked
    /// through for each window.
    ahead: Option<Arc<Stretch>>,
    ahead_end: u64,
    /// The longer of image and index, in blocks.
    end: u64,
    position: u64,
    /// The last extent that was asked for, in blocks.
    extent: Option<(BlockRange, ExtentKind)>,
    jobs: u64,
}

impl<'a> Plan<'a> {
    fn new(
        source: &'a dyn Source,
        index: &Index<'_>,
        geometry: Geometry,
        context: &'a Context,
    ) -> Result<Self> {
        let cursor = match index {
            Index::Parent(chain) => Some(chain.cursor()),
            Index::Nothing(..) => None,
        };
        let old_count = geometry.block_size.count(index.image_bytes());
        let end = geometry.block_count().max(old_count);
        Ok(Self {
            source,
            context,
            geometry,
            cursor,
            ahead: None,
            ahead_end: 0,
            end,
            position: 0,
            extent: None,
            jobs: 0,
        })
    }

    fn next(&mut self) -> Result<Option<Job>> {
        if self.position >= self.end {
            return Ok(None);
        }
        self.context.check()?;
        if self.jobs.is_multiple_of(CHECK_EVERY) {
            self.source.check()?;
        }
        self.jobs += 1;
        let first = self.position;
        if first >= self.geometry.block_count() {
            return self.idle_job(self.end).map(Some);
        }
        let (extent, kind) = self.extent_at(first)?;
        if kind == ExtentKind::Hole {
            return self.idle_job(extent.end()).map(Some);
        }
        let window =
            window_bytes(self.context.all_threads()) / u64::from(self.geometry.block_size.bytes());
        let end = ((first / window + 1) * window).min(self.geometry.block_count());
        let read = self.data_until(end)?;
        let index = self.index_over(window)?;
        self.position = end;
        Ok(Some(Job { blocks: BlockRange::between(first, end), read, index }))
    }

    /// The index over the window at the position, and some more.
    fn index_over(&mut self, window: u64) -> Result<Option<Arc<Stretch>>> {
        if self.position >= self.ahead_end
            && let Some(cursor) = &mut self.cursor
        {
            // Ends where a window does.
            let ahead = window * WINDOWS_AHEAD;
            self.ahead_end = ((self.position / ahead + 1) * ahead).min(self.end);
            self.ahead = Some(Arc::new(cursor.stretch(self.ahead_end, usize::MAX)?));
        }
        Ok(self.ahead.clone())
    }

    /// A job with nothing to read, up to `end` or until it has enough spans.
    fn idle_job(&mut self, end: u64) -> Result<Job> {
        let first = self.position;
        let (end, index) = if first < self.ahead_end {
            (end.min(self.ahead_end), self.ahead.clone())
        } else if let Some(cursor) = &mut self.cursor {
            let index = cursor.stretch(end, SPANS_PER_JOB)?;
            (cursor.position(), Some(Arc::new(index)))
        } else {
            (end, None)
        };
        self.position = end;
        Ok(Job { blocks: BlockRange::between(first, self.position), read: Vec::new(), index })
    }

    /// What is data from the position up to `end`; small holes are taken along.
    fn data_until(&mut self, end: u64) -> Result<Vec<BlockRange>> {
        let small = SMALL_HOLE_BYTES / u64::from(self.geometry.block_size.bytes());
        let mut ranges: Vec<BlockRange> = Vec::new();
        let mut at = self.position;
        while at < end {
            let (extent, kind) = self.extent_at(at)?;
            let part = BlockRange::between(at, extent.end().min(end));
            at = part.end();
            if kind == ExtentKind::Hole {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if part.first - last.end() <= small => {
                    last.count = part.end() - last.first
                }
                _ => ranges.push(part),
            }
        }
        Ok(ranges)
    }

    /// The extent in which a block is, in whole blocks: a block with any data is data.
    fn extent_at(&mut self, block: u64) -> Result<(BlockRange, ExtentKind)> {
        if let Some((range, kind)) = self.extent
            && (range.first..range.end()).contains(&block)
        {
            return Ok((range, kind));
        }
        let size = u64::from(self.geometry.block_size.bytes());
        let count = self.geometry.block_count();
        let extent = self.source.extent_at(self.geometry.offset(block))?;
        let extent_end = extent.offset + extent.bytes;
        let is_last = extent_end >= self.geometry.image_bytes;
        let whole = if is_last { count } else { extent_end / size };
        let (end, kind) = match extent.kind {
            ExtentKind::Hole if whole > block => (whole, ExtentKind::Hole),
            // The hole ends within its first block: there is data in it.
            ExtentKind::Hole => (block + 1, ExtentKind::Data),
            ExtentKind::Data => (extent_end.div_ceil(size).min(count), ExtentKind::Data),
        };
        let range = BlockRange::between(block, end);
        self.extent = Some((range, kind));
        Ok((range, kind))
    }
}

struct Examiner<'a> {
    source: &'a dyn Source,
    hasher: &'a Hasher,
    geometry: Geometry,
}

impl Examiner<'_> {
    fn examine(&self, job: &Job, changes: &mut Changes) -> Result<()> {
        let mut buffer = Vec::new();
        let mut at = job.blocks.first;
        for &range in &job.read {
            self.zeros(job, BlockRange::between(at, range.first), changes);
            self.data(job, range, &mut buffer, changes)?;
            at = range.end();
        }
        self.zeros(job, BlockRange::between(at, job.blocks.end()), changes);
        Ok(())
    }

    /// Blocks that are zero without a look: what the index has for them is gone.
    fn zeros(&self, job: &Job, range: BlockRange, changes: &mut Changes) {
        let image_end = self.geometry.block_count();
        let Some(index) = &job.index else { return };
        for span in spans_within(index, range) {
            changes.old_terms = changes.old_terms.wrapping_add(index.terms(span, self.hasher));
            if !matches!(span.state, State::Zero) || span.blocks.first >= image_end {
                changes.zero(span.blocks);
            }
        }
    }

    fn data(
        &self,
        job: &Job,
        range: BlockRange,
        buffer: &mut Vec<u8>,
        changes: &mut Changes,
    ) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let bytes = self.geometry.bytes_in(range);
        let window = self.source.read(self.geometry.offset(range.first), bytes as usize, buffer)?;
        changes.read_bytes += bytes;
        let mut blocks = window.bytes().chunks(size);
        let mut compare = |span: Span, digests: &[Digest]| {
            let mut digests = digests.iter();
            for block in span.blocks.first..span.blocks.end() {
                let bytes = blocks.next().unwrap_or_default();
                let was = match span.state {
                    State::Zero => Was::Zero,
                    State::Unread => Was::Unread,
                    State::Data { .. } => digests.next().map_or(Was::Unread, |d| Was::Data(*d)),
                };
                self.block(block, bytes, was, changes);
            }
        };
        match &job.index {
            None => compare(Span { blocks: range, state: State::Zero }, &[]),
            Some(index) => {
                spans_within(index, range).for_each(|span| compare(span, index.digests(span)));
            }
        }
        window.check(self.source)
    }

    fn block(&self, block: u64, bytes: &[u8], was: Was, changes: &mut Changes) {
        let size = self.geometry.block_size.in_memory();
        match was {
            Was::Zero if is_zero(bytes) => return,
            Was::Data(digest) if bytes.len() == size && self.hasher.digest(bytes) == digest => {
                changes.unchanged(self.hasher.term(block, digest));
                return;
            }
            _ => {}
        }
        // From here on only the copy counts.
        let start = changes.bytes.len();
        changes.bytes.extend_from_slice(bytes);
        changes.bytes.resize(start + size, 0);
        let copy = changes.bytes.get(start..).unwrap_or_default();
        let is = (!is_zero(copy)).then(|| self.hasher.digest(copy));
        let old = match was {
            Was::Zero => None,
            Was::Unread => Some(Digest::UNREAD),
            Was::Data(digest) => Some(digest),
        };
        if is == old {
            changes.bytes.truncate(start);
            if let Some(digest) = is {
                changes.unchanged(self.hasher.term(block, digest));
            }
            return;
        }
        if let Some(digest) = old {
            changes.old_terms = changes.old_terms.wrapping_add(self.hasher.term(block, digest));
        }
        match is {
            None => {
                changes.bytes.truncate(start);
                changes.zero(BlockRange { first: block, count: 1 });
            }
            Some(digest) => {
                changes.new_terms = changes.new_terms.wrapping_add(self.hasher.term(block, digest));
                changes.list.push(Change::Data(block, digest));
            }
        }
    }
}

/// The parts of the spans of a stretch that are in a range.
fn spans_within(index: &Stretch, range: BlockRange) -> impl Iterator<Item = Span> + '_ {
    let first = index.spans.partition_point(|span| span.blocks.end() <= range.first);
    let rest = index.spans.iter().skip(first);
    rest.map_while(move |span| span.within(range))
}

/// What the index has for a block.
#[derive(Clone, Copy)]
enum Was {
    Zero,
    Unread,
    Data(Digest),
}

impl Changes {
    /// The same memory with nothing in it.
    fn emptied(mut self) -> Self {
        self.list.clear();
        self.bytes.clear();
        Self { list: self.list, bytes: self.bytes, ..Self::default() }
    }

    fn unchanged(&mut self, term: u128) {
        self.old_terms = self.old_terms.wrapping_add(term);
        self.new_terms = self.new_terms.wrapping_add(term);
    }

    fn zero(&mut self, blocks: BlockRange) {
        match self.list.last_mut() {
            Some(Change::Zero(last)) if last.end() == blocks.first => last.count += blocks.count,
            _ => self.list.push(Change::Zero(blocks)),
        }
    }
}
