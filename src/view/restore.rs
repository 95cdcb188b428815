//! Copies a snapshot, or a part of it, to a target. Every block is checked against its digest before it is
//! written, and the whole against the image digest before the target is made visible.

use super::{BATCH_BYTES, Batches, Order, Seed, decode_batch, write_decoded};
use crate::base::digest::ImageDigest;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::free_space::check_free_space;
use crate::base::message::{Verb, message};
use crate::base::pipeline::ordered_map;
use crate::base::units::{BlockRange, ByteRange};
use crate::chain::{Chain, State};
use crate::image::write::Target;
use serde::Serialize;

/// What a restore copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Restored {
    /// Length of what was restored.
    pub bytes: u64,
    /// Bytes of it that were data.
    pub data_bytes: u64,
    /// True if the image digest was compared: for a whole image, not for a part.
    pub proved: bool,
    /// Bytes of the data that were taken from a seed.
    pub seed_bytes: u64,
}

/// Restores the snapshot at the tip of `chain`, or the part `range` of it, to `target`, which it
/// finishes.
///
/// # Errors
/// `Corrupt` if a block or the image is not what its digest says; then the target is not finished.
pub fn restore(
    chain: &Chain,
    range: Option<ByteRange>,
    target: &mut dyn Target,
    context: &Context,
) -> Result<Restored> {
    restore_seeded(chain, range, None, target, context)
}

/// The same, with what a seed has taken from there.
///
/// # Errors
/// As of [`restore`].
pub fn restore_seeded(
    chain: &Chain,
    range: Option<ByteRange>,
    seed: Option<&Seed<'_>>,
    target: &mut dyn Target,
    context: &Context,
) -> Result<Restored> {
    let part = check_range(range, chain.geometry().image_bytes)?;
    let Copied { terms, data_bytes, seed_bytes } = copy(chain, part, seed, target, context)?;
    let whole = part.offset == 0 && part.bytes == chain.geometry().image_bytes;
    if whole {
        prove(chain, terms)?;
    }
    target.finish()?;
    Ok(Restored { bytes: part.bytes, data_bytes, proved: whole, seed_bytes })
}

/// Restores a range of blocks, and finishes the target, which begins where the range does. Returns what the
/// blocks in it add to the image digest, and how many of its bytes were data.
///
/// # Errors
/// As of [`restore`]; that it is the image is for the caller to prove ([`prove`]).
pub fn restore_blocks(
    chain: &Chain,
    blocks: BlockRange,
    target: &mut dyn Target,
    context: &Context,
) -> Result<(ImageDigest, u64)> {
    let geometry = chain.geometry();
    let offset = geometry.offset(blocks.first).min(geometry.image_bytes);
    let part = ByteRange { offset, bytes: geometry.bytes_in(blocks) };
    let Copied { terms, data_bytes, .. } = copy(chain, part, None, target, context)?;
    target.finish()?;
    Ok((ImageDigest(terms), data_bytes))
}

/// What was copied of a part of an image.
struct Copied {
    /// What its blocks add to the image digest.
    terms: u128,
    data_bytes: u64,
    seed_bytes: u64,
}

fn copy(
    chain: &Chain,
    part: ByteRange,
    seed: Option<&Seed<'_>>,
    target: &mut dyn Target,
    context: &Context,
) -> Result<Copied> {
    let geometry = chain.geometry();
    let blocks = part.blocks(geometry.block_size);
    let order = if target.is_sequential() { Order::Ascending } else { Order::ByFrame };
    let mut batches = Batches::new(chain, blocks.first, blocks.end(), order);
    let _phase = context.begin(Phase::Restore, part.bytes);
    let mut copied = Copied { terms: 0, data_bytes: 0, seed_bytes: 0 };
    ordered_map(
        context.threads(),
        context.in_flight(BATCH_BYTES),
        || {
            context.check()?;
            batches.next_batch()
        },
        |batch| decode_batch(geometry, batch, seed),
        |decoded| {
            copied.terms = copied.terms.wrapping_add(decoded.terms);
            copied.seed_bytes += decoded.seed_bytes;
            copied.data_bytes += write_decoded(&decoded, geometry, part, target)?;
            for of in &decoded.parts {
                context.advance(geometry.bytes_in(of.blocks));
            }
            target.advance_watermark(geometry.offset(decoded.watermark).saturating_sub(part.offset))
        },
    )?;
    Ok(copied)
}

/// Fails unless what a restore will write fits into `free_bytes` bytes, if that is known; holes take none.
///
/// # Errors
/// `LimitExceeded` if not, with `place`.
pub fn check_free_space_for(
    chain: &Chain,
    range: Option<ByteRange>,
    free_bytes: Option<u64>,
    place: &str,
) -> Result<()> {
    let part = check_range(range, chain.geometry().image_bytes)?;
    // Only who may have too little has to look into the tables.
    let Some(free_bytes) = free_bytes.filter(|free_bytes| *free_bytes < part.bytes) else {
        return Ok(());
    };
    check_free_space(Some(free_bytes), written_bytes(chain, part)?, place, "the restore")
}

/// Fails unless what a restore of all of several images will write fits into `free_bytes` bytes.
///
/// # Errors
/// `LimitExceeded` if not, with `place`.
pub fn check_free_space_for_all(
    chains: &[&Chain],
    free_bytes: Option<u64>,
    place: &str,
) -> Result<()> {
    let image_bytes = |chain: &&Chain| chain.geometry().image_bytes;
    let all: u64 = chains.iter().map(image_bytes).fold(0, u64::saturating_add);
    let Some(free_bytes) = free_bytes.filter(|free_bytes| *free_bytes < all) else {
        return Ok(());
    };
    let mut needed: u64 = 0;
    for chain in chains {
        let all = check_range(None, chain.geometry().image_bytes)?;
        needed = needed.saturating_add(written_bytes(chain, all)?);
    }
    check_free_space(Some(free_bytes), needed, place, "the restore")
}

/// Bytes of a part of an image that are no zeros.
fn written_bytes(chain: &Chain, part: ByteRange) -> Result<u64> {
    let geometry = chain.geometry();
    let blocks = part.blocks(geometry.block_size);
    let mut walk = chain.walk_to(blocks.end());
    walk.seek(blocks.first);
    let mut needed = 0;
    while let Some(span) = walk.next(blocks.end())? {
        if span.state != State::Zero {
            needed += geometry.bytes_in(span.blocks);
        }
    }
    Ok(needed.min(part.bytes))
}

/// The part of an image of `image_bytes` bytes that is meant: all of it if none is named.
///
/// # Errors
/// `InvalidInput` if it is empty or not within the image.
pub fn check_range(range: Option<ByteRange>, image_bytes: u64) -> Result<ByteRange> {
    let Some(range) = range else { return Ok(ByteRange { offset: 0, bytes: image_bytes }) };
    let end = range.offset.checked_add(range.bytes);
    if range.bytes == 0 || end.is_none_or(|end| end > image_bytes) {
        let what = format!("the range {}+{} is not within the image", range.offset, range.bytes);
        return Err(
            Error::new(ErrorKind::InvalidInput, what).hint(format!("it has {image_bytes} bytes"))
        );
    }
    Ok(range)
}

/// Fails unless all blocks, which add that to the image digest, are those of the image.
///
/// # Errors
/// `Corrupt` if they are not.
pub fn prove(chain: &Chain, terms: u128) -> Result<()> {
    let hasher = chain.hasher();
    let digest: ImageDigest = hasher.empty_image(chain.geometry().image_bytes).plus(terms);
    if digest != chain.image_digest() {
        let what = format!("{}: image digest mismatch", chain.tip().location());
        return Err(Error::corrupt(what).hint(message![
            "run ",
            Verb::Verify.call(),
            " to see what is damaged"
        ]));
    }
    Ok(())
}
