//! Looks for blocks by their digest: in the tables of delta files with the same key, otherwise in the
//! blocks themselves.

use crate::base::digest::{Digest, Hasher, is_zero};
use crate::base::error::{Error, Result};
use crate::base::events::{Context, Phase};
use crate::base::message::Action;
use crate::base::pipeline::ordered_map;
use crate::base::read_limit::ReadLimits;
use crate::base::units::{BlockRange, BlockSize, ExtentKind, Geometry};
use crate::chain::{IndexChunk, Span, State};
use crate::delta::{Delta, TableCursor};
use crate::format::{Run, RunKind};
use crate::image::{Limited, Source};
use crate::ops::repair::engine::stored;
use std::collections::HashMap;
use std::sync::Arc;

/// What is read at a time of an image.
const WINDOW_BYTES: u64 = 4 << 20;

/// Digests of blocks that are damaged, and whether they were found.
pub struct Wanted {
    hasher: Hasher,
    block_size: BlockSize,
    places: HashMap<Digest, Option<Place>>,
    missing: u64,
}

/// Where a block is.
#[derive(Clone)]
enum Place {
    /// In a delta file.
    Stored(Arc<Delta>, u64),
    /// In an image.
    Image(Arc<dyn Source + Send>, u64),
}

/// Where blocks are.
pub struct Found {
    block_size: BlockSize,
    places: HashMap<Digest, Option<Place>>,
    limits: ReadLimits,
}

impl Wanted {
    /// The blocks in `lost` of a file whose table is sound.
    ///
    /// # Errors
    /// `Corrupt` if it is not.
    pub fn of(delta: &Arc<Delta>, lost: &[BlockRange]) -> Result<Self> {
        let mut places = HashMap::new();
        let mut cursor = TableCursor::new(delta.clone());
        for range in lost {
            cursor.seek(range.first)?;
            while let Some((page, run)) = cursor.run()
                && run.blocks.first < range.end()
            {
                let from = run.blocks.first.max(range.first);
                let to = run.blocks.end().min(range.end());
                if run.kind == RunKind::Data {
                    let skip = u64::from(run.ordinal) + (from - run.blocks.first);
                    let digests =
                        page.digests.iter().skip(skip as usize).take((to - from) as usize);
                    places.extend(digests.map(|digest| (*digest, None)));
                }
                if run.blocks.end() > range.end() {
                    break;
                }
                cursor.advance()?;
            }
        }
        let missing = places.len() as u64;
        let (hasher, block_size) = (delta.hasher().clone(), delta.header().block_size);
        Ok(Self { hasher, block_size, places, missing })
    }

    /// Blocks of different content that were not found yet.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Where the blocks are that were found.
    pub fn found(self, context: &Context) -> Found {
        let limits = context.read_limits().clone();
        Found { block_size: self.block_size, places: self.places, limits }
    }

    fn is_missing(&self, digest: &Digest) -> bool {
        matches!(self.places.get(digest), Some(None))
    }

    fn find(&mut self, digest: Digest, place: Place) {
        if let Some(entry @ None) = self.places.get_mut(&digest) {
            *entry = Some(place);
            self.missing -= 1;
        }
    }

    /// Looks into a delta file. Damage in it is passed.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn search(&mut self, delta: &Arc<Delta>, context: &Context) -> Result<()> {
        let theirs = delta.header();
        if self.missing == 0 || theirs.block_size != self.block_size {
            return Ok(());
        }
        let is_comparable =
            (theirs.algorithm, theirs.key) == (self.hasher.algorithm(), self.hasher.key());
        let geometry = Geometry::new(theirs.block_size, delta.footer().image_bytes)?;
        let mut cursor = TableCursor::new(delta.clone());
        let mut moved = cursor.seek(0);
        loop {
            context.check()?;
            while moved.is_err() {
                moved = cursor.pass(cursor.broken().end());
            }
            let Some((_, run)) = cursor.run() else { return Ok(()) };
            let Run { blocks, kind, ordinal } = run;
            if kind == RunKind::Data {
                let mut chunk = IndexChunk::new(Arc::new([delta.clone()]));
                let page = chunk.add_page_at(0, &cursor);
                let span = Span { blocks, state: State::Data { page, ordinal } };
                self.search_span(delta, geometry, &chunk, span, is_comparable);
            }
            moved = cursor.advance();
        }
    }

    fn search_span(
        &mut self,
        delta: &Arc<Delta>,
        geometry: Geometry,
        chunk: &IndexChunk,
        span: Span,
        is_comparable: bool,
    ) {
        for (first, digest) in (span.blocks.first..).zip(chunk.digests(span)) {
            if self.missing == 0 || (is_comparable && !self.is_missing(digest)) {
                continue;
            }
            let one = span.within(BlockRange { first, count: 1 });
            // Not readable here; another source may have the block.
            let Some(Ok(bytes)) = one.map(|one| stored(geometry, chunk, one)) else { continue };
            let digest = self.hasher.digest(&bytes);
            if self.is_missing(&digest) {
                self.find(digest, Place::Stored(delta.clone(), first));
            }
        }
    }

    /// Looks into an image. What its medium does not give is passed, and so is what changes meanwhile: each
    /// block is proved when it is taken.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn search_image(
        &mut self,
        image: &Arc<dyn Source + Send>,
        context: &Context,
    ) -> Result<()> {
        if self.missing == 0 {
            return Ok(());
        }
        let limited = &Limited::new(image.as_ref(), context);
        let geometry = Geometry::new(self.block_size, image.image_bytes())?;
        let size = u64::from(self.block_size.bytes());
        let phase = context.begin(Phase::Search, geometry.image_bytes);
        let mut position = 0;
        let wanted = std::sync::Mutex::new(self);
        let lock = || wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let outcome = ordered_map(
            context.threads(),
            context.in_flight(WINDOW_BYTES),
            || {
                while position < geometry.image_bytes {
                    context.check()?;
                    let extent = image.extent_at(position)?;
                    let end = (extent.offset + extent.bytes).min(geometry.image_bytes);
                    if extent.kind == ExtentKind::Hole && end - position >= size {
                        // The block in which a hole ends is read.
                        position = end / size * size;
                        continue;
                    }
                    let first = position;
                    position = (first + WINDOW_BYTES).min(geometry.image_bytes);
                    if lock().missing == 0 {
                        return Ok(None);
                    }
                    return Ok(Some((first, position - first)));
                }
                Ok(None)
            },
            |(offset, bytes)| {
                let mut buffer = Vec::new();
                let mut hits = Vec::new();
                let hasher = lock().hasher.clone();
                let mut at = offset;
                while at < offset + bytes {
                    let rest = offset + bytes - at;
                    let bad = limited.read_until_bad(at, rest as usize, &mut buffer)?;
                    for (number, content) in (0..).zip(buffer.chunks_mut(size as usize)) {
                        let place = at + number * size;
                        let is_whole =
                            content.len() as u64 == size.min(geometry.image_bytes - place);
                        if !is_whole || is_zero(content) {
                            continue;
                        }
                        let mut padded = content.to_vec();
                        padded.resize(size as usize, 0);
                        hits.push((hasher.digest(&padded), place));
                    }
                    let read = buffer.len() as u64 / size * size;
                    at = if bad.is_some() { at + read + size } else { offset + bytes };
                }
                context.advance(bytes);
                Ok(hits)
            },
            |hits| {
                let mut wanted = lock();
                for (digest, place) in hits {
                    if wanted.is_missing(&digest) {
                        wanted.find(digest, Place::Image(image.clone(), place));
                    }
                }
                Ok(())
            },
        );
        drop(phase);
        outcome
    }
}

impl Found {
    /// A block by its digest, proved.
    ///
    /// # Errors
    /// `Corrupt` if it was not found, or is not what it was any more.
    pub fn block(&self, digest: &Digest, hasher: &Hasher) -> Result<Vec<u8>> {
        let gone = || Error::corrupt("a damaged block could not be found");
        let place = self.places.get(digest).and_then(Option::as_ref).ok_or_else(gone)?;
        let bytes = match place {
            Place::Stored(delta, block) => {
                let geometry = Geometry::new(self.block_size, delta.footer().image_bytes)?;
                let mut cursor = TableCursor::new(delta.clone());
                cursor.seek(*block)?;
                let (_, run) = cursor.run().ok_or_else(gone)?;
                let mut chunk = IndexChunk::new(Arc::new([delta.clone()]));
                let page = chunk.add_page_at(0, &cursor);
                let span =
                    Span { blocks: run.blocks, state: State::Data { page, ordinal: run.ordinal } };
                let one = span.within(BlockRange { first: *block, count: 1 }).ok_or_else(gone)?;
                stored(geometry, &chunk, one)?
            }
            Place::Image(image, offset) => {
                let geometry = Geometry::new(self.block_size, image.image_bytes())?;
                let mut bytes = Vec::new();
                let rest = geometry.image_bytes.saturating_sub(*offset);
                let length = rest.min(self.block_size.bytes().into()) as usize;
                self.limits.wait(length as u64)?;
                if let Some(bad) = image.read_until_bad(*offset, length, &mut bytes)? {
                    return Err(bad);
                }
                bytes.resize(self.block_size.in_memory(), 0);
                bytes
            }
        };
        if hasher.digest(&bytes) != *digest {
            return Err(Error::corrupt("a block changed after it was found").hint(Action::Retry));
        }
        Ok(bytes)
    }
}
