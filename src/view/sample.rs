//! Whether a disk holds some state of the image of a snapshot: by a few of its blocks.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::base::units::BlockRange;
use crate::chain::{Chain, State};
use crate::image::{Limited, Source};
use serde::Serialize;

/// How many blocks are compared, about.
const SAMPLES: u64 = 64;

/// Blocks of a disk that were compared with those of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Samples {
    /// How many.
    pub compared: u64,
    /// How many of them are the same.
    pub matched: u64,
}

impl Samples {
    /// True if the disk seems to hold a state of the image: at least half of what was compared is the same.
    pub fn is_alike(&self) -> bool {
        self.compared > 0 && self.matched * 2 >= self.compared
    }
}

/// Compares some 64 data blocks of the snapshot at the tip of `chain`, spread over all that it has, with
/// those of `disk` at the same places. What the disk does not have, or does not give, differs.
///
/// # Errors
/// `Corrupt` if a table is damaged.
pub fn sample(disk: &dyn Source, chain: &Chain, context: &Context) -> Result<Samples> {
    let disk = Limited::new(disk, context);
    let geometry = chain.geometry();
    let size = geometry.block_size.in_memory();
    let mut samples = Samples { compared: 0, matched: 0 };
    let mut buffer = Vec::new();
    for block in data_blocks(chain)? {
        samples.compared += 1;
        let one = BlockRange { first: block, count: 1 };
        let (offset, bytes) = (geometry.offset(block), geometry.bytes_in(one));
        let is_inside = offset + bytes <= disk.image_bytes();
        if !is_inside
            || !matches!(disk.read_until_bad(offset, bytes as usize, &mut buffer), Ok(None))
        {
            continue;
        }
        buffer.resize(size, 0);
        let mut walk = chain.walk_to(one.end());
        walk.seek(block);
        if let Some(span) = walk.next(one.end())?
            && walk.chunk().digests(span).first() == Some(&chain.hasher().digest(&buffer))
        {
            samples.matched += 1;
        }
    }
    Ok(samples)
}

/// Some of the blocks that have data: of each piece of the image the first one, where the pieces that have
/// none are left out and the others cut until there are enough.
fn data_blocks(chain: &Chain) -> Result<Vec<u64>> {
    let count = chain.geometry().block_count();
    let mut pieces = vec![BlockRange::between(0, count)];
    loop {
        let parts = SAMPLES.div_ceil(pieces.len().max(1) as u64);
        let cut = pieces.iter().flat_map(|piece| {
            let length = piece.count.div_ceil(parts).max(1);
            (piece.first..piece.end())
                .step_by(length as usize)
                .map(move |first| BlockRange::between(first, piece.end().min(first + length)))
        });
        let mut walk = chain.walk();
        let mut found = Vec::new();
        for piece in cut {
            walk.seek(piece.first);
            while let Some(span) = walk.next(piece.end())? {
                if matches!(span.state, State::Data { .. }) {
                    found.push(BlockRange::between(span.blocks.first, piece.end()));
                    break;
                }
            }
        }
        let is_cut = found.iter().all(|piece| piece.count == 1);
        pieces = found;
        if is_cut || pieces.len() as u64 >= SAMPLES / 2 {
            return Ok(pieces.into_iter().map(|piece| piece.first).collect());
        }
    }
}
