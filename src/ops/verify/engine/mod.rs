//! The verb *verify*: is every stored byte what was written, and does it give the images that were
//! taken?

mod damage;

pub use damage::{Damaged, Finding, LostBlocks, Part, find_damage, losses_with};

use crate::base::digest::ImageDigest;
use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::chain::{Chain, digest_steps};
use crate::delta::{Delta, Depth, TableCursor, scrub};
use crate::format::RunKind;
use std::sync::Arc;

/// Checks the stored bytes of one file: checksums, order, counts, and the digest of the whole.
///
/// # Errors
/// `Corrupt` with what is wrong first; others if the file cannot be read.
pub fn verify_stored(delta: &Delta, context: &Context) -> Result<()> {
    scrub(delta, Depth::Stored, context)?;
    let image_bytes = delta.footer().image_bytes;
    delta.base_image().map_or(Ok(()), |image| image.check_size(image_bytes))
}

/// Checks the stored bytes of one file and every block in it, in one walk from front to back. Returns
/// the number of blocks.
///
/// # Errors
/// `Corrupt` if anything is wrong; [`verify_stored`] and [`find_damage`] tell what.
pub fn verify_all(delta: &Arc<Delta>, context: &Context) -> Result<u64> {
    let blocks = scrub(delta, Depth::Blocks, context)?;
    let Some(image) = delta.base_image() else { return Ok(blocks) };
    image.check_size(delta.footer().image_bytes)?;
    let damage = find_damage(delta, context)?;
    damage.findings.into_iter().next().map_or(Ok(damage.blocks), |finding| Err(finding.error))
}

/// Checks the rules for the runs of one file, whose parent has `parent_end` blocks if there is one:
/// none beyond the end, and zeros where the parent was longer (FORMAT.md M5).
///
/// # Errors
/// `Corrupt` if they are broken.
pub fn verify_runs(delta: &Arc<Delta>, parent_end: Option<u64>, context: &Context) -> Result<()> {
    let end = delta.header().block_size.count(delta.footer().image_bytes);
    let wrong = |what: &str| Err(Error::corrupt(what).at(delta.location()));
    let before = parent_end.unwrap_or(0);
    let (mut cursor, mut zeroed) = (TableCursor::new(delta.clone()), None);
    cursor.seek(0)?;
    while let Some((_, run)) = cursor.run() {
        context.check()?;
        match run.kind {
            RunKind::Zero if parent_end.is_none() => return wrong("a base with a zero run"),
            RunKind::Zero if run.blocks.end() > end.max(before) => {
                return wrong("a run beyond the end");
            }
            RunKind::Zero => {
                // The last run of zeros, which must reach the parent's end if the image is
                // shorter.
                zeroed = match zeroed {
                    Some((from, until)) if until == run.blocks.first => {
                        Some((from, run.blocks.end()))
                    }
                    _ => Some((run.blocks.first, run.blocks.end())),
                };
            }
            _ if run.blocks.end() > end => return wrong("a run beyond the end"),
            _ => {}
        }
        cursor.advance()?;
    }
    if before > end && zeroed.is_none_or(|(from, until)| from > end || until != before) {
        return wrong("blocks beyond the end of the image are not zeroed");
    }
    Ok(())
}

/// Computes the image digest of each snapshot of a chain from its parent's and the entries of its
/// file. Returns, newest first, whether it is the one in the footer.
///
/// # Errors
/// `Corrupt` if a table cannot be read.
pub fn verify_digests(chain: &Chain, context: &Context) -> Result<Vec<bool>> {
    let steps = digest_steps(chain, context)?;
    let hasher = chain.hasher();
    let mut parent = ImageDigest(0);
    let mut sound = Vec::with_capacity(steps.len());
    for (delta, step) in chain.layers().iter().zip(steps).rev() {
        let footer = delta.footer();
        // Without what the length of the image adds to it.
        let digest = footer.image_digest.minus(hasher.size_term(footer.image_bytes));
        sound.push(parent.plus(step) == digest);
        parent = digest;
    }
    sound.reverse();
    Ok(sound)
}
