//! From a batch to checked blocks.

use super::batch::{Batch, Order, Part, Place, unread};
use super::seed::Seed;
use crate::base::digest::{Digest, is_zero};
use crate::base::error::{Error, Result};
use crate::base::units::{BlockRange, Geometry};
use crate::chain::{Chain, IndexChunk, PageOf, Span, State};
use crate::delta::Delta;
use std::sync::Arc;

/// A batch, decoded and checked.
pub struct Decoded {
    /// Its parts.
    pub parts: Vec<Part>,
    /// The whole blocks of its data parts, one after the other.
    pub bytes: Vec<u8>,
    /// The sum of the terms of these blocks, and of unread ones that are given as zeros.
    pub terms: u128,
    /// When it is written, everything before this block is.
    pub watermark: u64,
    /// How many of these bytes a seed had.
    pub seed_bytes: u64,
}

/// Decodes the data blocks of a batch and checks each against its digest. What a seed has at the same place
/// is taken from there.
///
/// # Errors
/// `Corrupt` if a block is not what its digest says.
pub fn decode_batch(geometry: Geometry, batch: Batch, seed: Option<&Seed<'_>>) -> Result<Decoded> {
    let size = geometry.block_size.in_memory();
    let data = batch.parts.iter().filter(|part| part.is_data());
    let blocks = data.map(|part| part.blocks.count as usize).sum::<usize>();
    let mut decoder = Decoder::new(geometry, Vec::with_capacity(blocks * size));
    decoder.terms = batch.unread_terms;
    for part in &batch.parts {
        let Some(place) = part.from else { continue };
        let missing = || Error::corrupt("a block without a page");
        let of = batch.pages.pages.get(place.page as usize).ok_or_else(missing)?;
        let delta = batch.pages.layers.get(of.layer as usize).ok_or_else(missing)?;
        match seed {
            None => decoder.part(delta, of, place, part.blocks, batch.order)?,
            Some(seed) => {
                decoder.seeded(seed, delta, of, place, part.blocks, batch.order)?;
            }
        }
    }
    let Decoder { bytes, terms, seed_bytes, .. } = decoder;
    let watermark = batch.watermark;
    Ok(Decoded { parts: batch.parts, bytes, terms, watermark, seed_bytes })
}

/// Decodes blocks, and checks each.
pub(super) struct Decoder {
    geometry: Geometry,
    bytes: Vec<u8>,
    terms: u128,
    /// The frame that was decoded last: its page, its index, its blocks.
    frame: Option<(u32, u32, Arc<Vec<u8>>)>,
    /// For records that are read.
    record: Vec<u8>,
    /// For blocks of a seed.
    seed: Vec<u8>,
    seed_bytes: u64,
}

impl Decoder {
    /// Puts what it decodes into `bytes`, from its beginning on.
    pub fn new(geometry: Geometry, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        let (record, seed) = (Vec::new(), Vec::new());
        Self { geometry, bytes, terms: 0, frame: None, record, seed, seed_bytes: 0 }
    }

    /// What was decoded.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Adds the blocks of a span of a chunk of `chain`, whatever they are.
    ///
    /// # Errors
    /// `Corrupt` if a block is not what its digest says, or was never read.
    pub fn span(&mut self, chain: &Chain, chunk: &IndexChunk, span: Span) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let (page, mut ordinal) = match span.state {
            State::Unread if !chain.has_unread_as_zeros() => {
                return Err(unread(self.geometry, span.blocks));
            }
            State::Zero | State::Unread => {
                self.bytes.resize(self.bytes.len() + span.blocks.count as usize * size, 0);
                return Ok(());
            }
            State::Data { page, ordinal } => (page, ordinal),
        };
        let missing = || Error::corrupt("a span without a page");
        let of = chunk.page(page).ok_or_else(missing)?;
        let delta = chain.layers().get(of.layer as usize).ok_or_else(missing)?;
        let mut first = span.blocks.first;
        while first < span.blocks.end() {
            let (frame, ordinals) = of.page.frame_of(ordinal);
            let in_frame = u64::from(ordinals.end.saturating_sub(ordinal));
            let blocks = BlockRange::between(first, span.blocks.end().min(first + in_frame));
            if blocks.count == 0 {
                return Err(Error::corrupt("a block without a frame"));
            }
            let place = Place { page, frame, ordinal };
            if !self.stored(delta, of, place, blocks)? {
                self.part(delta, of, place, blocks, Order::Ascending)?;
            }
            ordinal += blocks.count as u32;
            first = blocks.end();
        }
        // The next span may be of another chunk, whose pages have other numbers.
        self.frame = None;
        Ok(())
    }

    /// Adds blocks of a frame that is stored as it is, without the rest of it: the digest of each proves it.
    /// False if it is not stored so, or they are not what they should be.
    fn stored(
        &mut self,
        delta: &Delta,
        of: &PageOf,
        place: Place,
        blocks: BlockRange,
    ) -> Result<bool> {
        let size = self.geometry.block_size.in_memory();
        let (start, ordinals) = (self.bytes.len(), of.page.ordinals_of(place.frame));
        let Some(at) = of.page.frames.get(place.frame as usize).copied() else { return Ok(false) };
        let skipped = place.ordinal.saturating_sub(ordinals.start) as usize * size;
        self.bytes.resize(start + blocks.count as usize * size, 0);
        let into = self.bytes.get_mut(start..).unwrap_or_default();
        let is_read = of.part.stored_into(at, ordinals.len() * size, skipped, into)?;
        if is_read && self.check_against(delta, of, place.ordinal, blocks, start).is_ok() {
            return Ok(true);
        }
        self.bytes.truncate(start);
        Ok(false)
    }

    /// Adds blocks of a frame: those that the seed has, and the others from the frame. What is digested and
    /// given on is a copy: the seed may change meanwhile.
    fn seeded(
        &mut self,
        seed: &Seed<'_>,
        delta: &Delta,
        of: &PageOf,
        place: Place,
        blocks: BlockRange,
        order: Order,
    ) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let mut copied = std::mem::take(&mut self.seed);
        seed.copy(self.geometry, blocks, &mut copied);
        let first = place.ordinal as usize;
        let digests = of.page.digests.get(first..first + blocks.count as usize);
        let digests = digests.ok_or_else(|| Error::corrupt("a block without a digest"))?;
        let is_there: Vec<bool> = copied
            .chunks(size)
            .zip(digests)
            .map(|(content, digest)| delta.hasher().digest(content) == *digest)
            .collect();
        // What it cannot give is not there.
        let is_there = |index: u64| is_there.get(index as usize).copied().unwrap_or(false);
        let mut at = 0;
        while at < blocks.count {
            let (start, has) = (at, is_there(at));
            while at < blocks.count && is_there(at) == has {
                at += 1;
            }
            let run = BlockRange { first: blocks.first + start, count: at - start };
            if !has {
                let ordinal = place.ordinal + start as u32;
                self.part(delta, of, Place { ordinal, ..place }, run, order)?;
                continue;
            }
            let content = copied.get(start as usize * size..at as usize * size);
            self.bytes.extend_from_slice(content.unwrap_or_default());
            self.seed_bytes += self.geometry.bytes_in(run);
            for (block, digest) in (run.first..run.end()).zip(digests.iter().skip(start as usize)) {
                self.terms = self.terms.wrapping_add(delta.hasher().term(block, *digest));
            }
        }
        self.seed = copied;
        Ok(())
    }

    fn part(
        &mut self,
        delta: &Delta,
        of: &PageOf,
        place: Place,
        blocks: BlockRange,
        order: Order,
    ) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let index = place.frame;
        if let Some(image) = delta.base_image() {
            let (start, length) = (self.bytes.len(), blocks.count as usize * size);
            self.bytes.resize(start + length, 0);
            let into = self.bytes.get_mut(start..).unwrap_or_default();
            image.read_at(self.geometry.offset(blocks.first), into)?;
            return self.check_against(delta, of, place.ordinal, blocks, start);
        }
        let ordinals = of.page.ordinals_of(index);
        let (start, length) = (self.bytes.len(), blocks.count as usize * size);
        let count = ordinals.len() as u32;
        let at = of.page.frames.get(index as usize).copied();
        let at = at.ok_or_else(|| Error::corrupt("a block without a frame"))?;
        if order == Order::ByFrame && blocks.count == u64::from(count) {
            // All of it: where it will stay.
            self.bytes.resize(start + length, 0);
            let raw = self.bytes.get_mut(start..).unwrap_or_default();
            of.part.frame_into(at, raw, &mut self.record)?;
        } else {
            let frame = match self.frame.take() {
                Some((page, same, frame)) if (page, same) == (place.page, index) => frame,
                _ if order == Order::ByFrame => {
                    let mut raw = vec![0; count as usize * size];
                    of.part.frame_into(at, &mut raw, &mut self.record)?;
                    Arc::new(raw)
                }
                _ => of.part.frame(at, count)?,
            };
            let first = place.ordinal.saturating_sub(ordinals.start) as usize * size;
            let content = frame.get(first..first + length);
            let content = content.ok_or_else(|| Error::corrupt("a frame without its block"))?;
            self.bytes.extend_from_slice(content);
            self.frame = Some((place.page, index, frame));
        }
        self.check_against(delta, of, place.ordinal, blocks, start)
    }

    /// Checks the blocks that were put at `start` against the digests in the page.
    fn check_against(
        &mut self,
        delta: &Delta,
        of: &PageOf,
        ordinal: u32,
        blocks: BlockRange,
        start: usize,
    ) -> Result<()> {
        let first = ordinal as usize;
        let digests = of.page.digests.get(first..first + blocks.count as usize);
        let digests = digests.ok_or_else(|| Error::corrupt("a block without a digest"))?;
        self.check(delta, of, blocks, digests, start)
    }

    /// Checks the blocks that were put at `start`.
    fn check(
        &mut self,
        delta: &Delta,
        of: &PageOf,
        blocks: BlockRange,
        digests: &[Digest],
        start: usize,
    ) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let content = self.bytes.get(start..).unwrap_or_default();
        for ((block, content), digest) in (blocks.first..).zip(content.chunks(size)).zip(digests) {
            // The one place where a stored block is proved before anybody uses it.
            if delta.hasher().digest(content) != *digest {
                let offset = self.geometry.offset(block);
                let what = format!("block {block} (byte {offset} of the image) is damaged");
                let one = BlockRange { first: block, count: 1 };
                return Err(match delta.base_image() {
                    None => Error::corrupt(what).at(of.part.location()),
                    Some(image) => image.changed(one, offset),
                });
            }
            // FORMAT.md C4: what lies beyond the end of the image must not come back when it grows.
            let inside = self.geometry.bytes_in(BlockRange { first: block, count: 1 }) as usize;
            if !content.get(inside..).is_none_or(is_zero) {
                let what = format!("block {block} has bytes beyond the end of the image");
                return Err(Error::corrupt(what).at(of.part.location()));
            }
            self.terms = self.terms.wrapping_add(delta.hasher().term(block, *digest));
        }
        Ok(())
    }
}
