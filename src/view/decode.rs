//! From a batch to checked blocks.

use super::batch::{Batch, Order, Part};
use super::seed::Seed;
use crate::base::digest::{Digest, is_zero};
use crate::base::error::{Error, Result};
use crate::base::units::{BlockRange, Geometry};
use crate::chain::PageOf;
use crate::delta::Delta;
use crate::format::FrameRef;
use std::sync::Arc;
use uuid::Uuid;

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

/// Blocks of one frame: where they are, and what they are to be.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    /// The layer that they are in.
    pub delta: &'a Delta,
    /// The file of it.
    pub part: &'a Arc<crate::delta::Part>,
    /// Which blocks.
    pub blocks: BlockRange,
    /// Their frame; none if they are in a base image.
    pub frame: Option<FrameRef>,
    /// How many blocks the frame has.
    pub frame_blocks: u32,
    /// How many of them come before.
    pub skipped: u32,
    /// One for each block.
    pub digests: &'a [Digest],
}

impl<'a> Piece<'a> {
    /// Blocks of a page, from an ordinal on.
    ///
    /// # Errors
    /// `Corrupt` if they are not all in that frame.
    pub fn of(
        delta: &'a Delta,
        of: &'a PageOf,
        frame: u32,
        ordinal: u32,
        blocks: BlockRange,
    ) -> Result<Self> {
        let ordinals = of.page.ordinals_of(frame);
        let first = ordinal as usize;
        let digests = of.page.digests.get(first..first + blocks.count as usize);
        let digests = digests.ok_or_else(|| Error::corrupt("a block without a digest"))?;
        Ok(Self {
            delta,
            part: &of.part,
            blocks,
            frame: of.page.frames.get(frame as usize).copied(),
            frame_blocks: ordinals.len() as u32,
            skipped: ordinal.saturating_sub(ordinals.start),
            digests,
        })
    }

    /// Some of them: `count` from the one with that index on.
    fn run(self, index: u64, count: u64) -> Self {
        let blocks = BlockRange { first: self.blocks.first + index, count };
        let digests = self.digests.get(index as usize..(index + count) as usize);
        let (skipped, digests) = (self.skipped + index as u32, digests.unwrap_or_default());
        Self { blocks, skipped, digests, ..self }
    }
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
        let piece = Piece::of(delta, of, place.frame, place.ordinal, part.blocks)?;
        match seed {
            None => decoder.piece(piece, batch.order)?,
            Some(seed) => decoder.seeded(seed, piece, batch.order)?,
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
    /// The frame that was decoded last: its file, where it is there, its blocks.
    frame: Option<(Uuid, u64, Arc<Vec<u8>>)>,
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

    /// Adds blocks that are zero.
    pub fn zeros(&mut self, blocks: u64) {
        let size = self.geometry.block_size.in_memory();
        self.bytes.resize(self.bytes.len() + blocks as usize * size, 0);
    }

    /// Adds blocks of a frame, as few bytes of it as need be.
    ///
    /// # Errors
    /// `Corrupt` if a block is not what its digest says.
    pub fn few(&mut self, piece: Piece<'_>) -> Result<()> {
        if piece.frame.is_some() && self.stored(piece)? {
            return Ok(());
        }
        self.piece(piece, Order::Ascending)
    }

    /// Adds blocks of a frame that is stored as it is, without the rest of it: the digest of each proves it.
    /// False if it is not stored so, or they are not what they should be.
    fn stored(&mut self, piece: Piece<'_>) -> Result<bool> {
        let size = self.geometry.block_size.in_memory();
        let Some(at) = piece.frame else { return Ok(false) };
        let (start, skipped) = (self.bytes.len(), piece.skipped as usize * size);
        self.bytes.resize(start + piece.blocks.count as usize * size, 0);
        let into = self.bytes.get_mut(start..).unwrap_or_default();
        let is_read =
            piece.part.stored_into(at, piece.frame_blocks as usize * size, skipped, into)?;
        if is_read && self.check(piece, start).is_ok() {
            return Ok(true);
        }
        self.bytes.truncate(start);
        Ok(false)
    }

    /// Adds blocks of a frame: those that the seed has, and the others from the frame. What is digested and
    /// given on is a copy: the seed may change meanwhile.
    fn seeded(&mut self, seed: &Seed<'_>, piece: Piece<'_>, order: Order) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let mut copied = std::mem::take(&mut self.seed);
        seed.copy(self.geometry, piece.blocks, &mut copied);
        let hasher = piece.delta.hasher();
        let is_there: Vec<bool> = copied
            .chunks(size)
            .zip(piece.digests)
            .map(|(content, digest)| hasher.digest(content) == *digest)
            .collect();
        // What it cannot give is not there.
        let is_there = |index: u64| is_there.get(index as usize).copied().unwrap_or(false);
        let mut at = 0;
        while at < piece.blocks.count {
            let (start, has) = (at, is_there(at));
            while at < piece.blocks.count && is_there(at) == has {
                at += 1;
            }
            let run = piece.run(start, at - start);
            if !has {
                self.piece(run, order)?;
                continue;
            }
            let content = copied.get(start as usize * size..at as usize * size);
            self.bytes.extend_from_slice(content.unwrap_or_default());
            self.seed_bytes += self.geometry.bytes_in(run.blocks);
            for (block, digest) in (run.blocks.first..).zip(run.digests) {
                self.terms = self.terms.wrapping_add(hasher.term(block, *digest));
            }
        }
        self.seed = copied;
        Ok(())
    }

    fn piece(&mut self, piece: Piece<'_>, order: Order) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let (start, length) = (self.bytes.len(), piece.blocks.count as usize * size);
        if let Some(image) = piece.delta.base_image() {
            self.bytes.resize(start + length, 0);
            let into = self.bytes.get_mut(start..).unwrap_or_default();
            image.read_at(self.geometry.offset(piece.blocks.first), into)?;
            return self.check(piece, start);
        }
        let at = piece.frame.ok_or_else(|| Error::corrupt("a block without a frame"))?;
        let count = piece.frame_blocks;
        if order == Order::ByFrame && piece.blocks.count == u64::from(count) {
            // All of it: where it will stay.
            self.bytes.resize(start + length, 0);
            let raw = self.bytes.get_mut(start..).unwrap_or_default();
            piece.part.frame_into(at, raw, &mut self.record)?;
        } else {
            let file = piece.part.header().file_id;
            let frame = match self.frame.take() {
                Some((same, offset, frame)) if (same, offset) == (file, at.offset) => frame,
                _ if order == Order::ByFrame => {
                    let mut raw = vec![0; count as usize * size];
                    piece.part.frame_into(at, &mut raw, &mut self.record)?;
                    Arc::new(raw)
                }
                _ => piece.part.frame(at, count)?,
            };
            let first = piece.skipped as usize * size;
            let content = frame.get(first..first + length);
            let content = content.ok_or_else(|| Error::corrupt("a frame without its block"))?;
            self.bytes.extend_from_slice(content);
            self.frame = Some((file, at.offset, frame));
        }
        self.check(piece, start)
    }

    /// Checks the blocks that were put at `start`.
    fn check(&mut self, piece: Piece<'_>, start: usize) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let (delta, first) = (piece.delta, piece.blocks.first);
        let content = self.bytes.get(start..).unwrap_or_default();
        for ((block, content), digest) in (first..).zip(content.chunks(size)).zip(piece.digests) {
            // The one place where a stored block is proved before anybody uses it.
            if delta.hasher().digest(content) != *digest {
                let offset = self.geometry.offset(block);
                let what = format!("block {block} (byte {offset} of the image) is damaged");
                let one = BlockRange { first: block, count: 1 };
                return Err(match delta.base_image() {
                    None => Error::corrupt(what).at(piece.part.location()),
                    Some(image) => image.changed(one, offset),
                });
            }
            // FORMAT.md C4: what lies beyond the end of the image must not come back when it grows.
            let inside = self.geometry.bytes_in(BlockRange { first: block, count: 1 }) as usize;
            if !content.get(inside..).is_none_or(is_zero) {
                let what = format!("block {block} has bytes beyond the end of the image");
                return Err(Error::corrupt(what).at(piece.part.location()));
            }
            self.terms = self.terms.wrapping_add(delta.hasher().term(block, *digest));
        }
        Ok(())
    }
}
