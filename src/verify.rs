//! The verb *verify*: is every stored byte what was written, and does it give the images that were
//! taken?

use crate::chain::{Chain, Span, State, Stretch, digest_steps};
use crate::delta::{Delta, Depth, TableCursor, scrub};
use crate::digest::ImageDigest;
use crate::error::{Error, Result};
use crate::format::{Run, RunKind};
use crate::pipeline::ordered_map;
use crate::progress::Context;
use crate::source::BaseImage;
use crate::units::{BlockRange, Geometry};
use crate::view::{BATCH_BYTES, Gather, Order, decode_batch};
use std::sync::Arc;

/// Findings of one file, at most; a file with more is lost anyway.
const MAX_FINDINGS: usize = 1000;

/// Checks the stored bytes of one file: checksums, order, counts, and the digest of the whole.
///
/// # Errors
/// `Corrupt` with what is wrong first; others if the file cannot be read.
pub fn verify_stored(delta: &Delta, context: &Context) -> Result<()> {
    scrub(delta, Depth::Stored, context)?;
    let image_bytes = delta.footer().image_bytes;
    delta.base_image().map_or(Ok(()), |image| image.check_size(image_bytes))
}

/// Checks the stored bytes of one file and every block in it, in one walk from front to back. Gives
/// the number of blocks.
///
/// # Errors
/// `Corrupt` if anything is wrong; [`verify_stored`] and [`find_damage`] tell what.
pub fn verify_all(delta: &Arc<Delta>, context: &Context) -> Result<u64> {
    let blocks = scrub(delta, Depth::Blocks, context)?;
    let Some(image) = delta.base_image() else { return Ok(blocks) };
    image.check_size(delta.footer().image_bytes)?;
    let (blocks, findings) = find_changed(delta, image, context)?;
    findings.into_iter().next().map_or(Ok(blocks), Err)
}

/// Holds the blocks of a base image against their digests. Gives the number of blocks, and the runs of
/// those that are not what they were.
fn find_changed(
    delta: &Arc<Delta>,
    image: &BaseImage,
    context: &Context,
) -> Result<(u64, Vec<Error>)> {
    let geometry = Geometry::new(delta.header().block_size, delta.footer().image_bytes)?;
    let size = geometry.block_size.in_memory();
    let mut cursor = TableCursor::new(delta.clone());
    cursor.seek(0)?;
    let (mut blocks, mut changed) = (0, Vec::<BlockRange>::new());
    ordered_map(
        context.threads(),
        context.in_flight(BATCH_BYTES),
        || {
            context.check()?;
            next_data_run(delta, &mut cursor)
        },
        |(stretch, span)| {
            let (mut found, mut buffer) = (Vec::new(), Vec::new());
            let mut block = span.blocks.first;
            // By the megabyte: a run may have a gigabyte.
            for digests in stretch.digests(span).chunks((BATCH_BYTES as usize / size).max(1)) {
                buffer.resize(digests.len() * size, 0);
                image.read_at(geometry.offset(block), &mut buffer)?;
                for (content, digest) in buffer.chunks(size).zip(digests) {
                    if delta.hasher().digest(content) != *digest {
                        found.push(block);
                    }
                    block += 1;
                }
            }
            context.progress().advance(geometry.bytes_in(span.blocks));
            Ok((span.blocks.count, found))
        },
        |(count, found)| {
            blocks += count;
            for block in found {
                let one = BlockRange { first: block, count: 1 };
                match changed.last_mut() {
                    Some(last) if last.end() == block => last.count += 1,
                    _ => changed.push(one),
                }
                changed.truncate(MAX_FINDINGS);
            }
            Ok(())
        },
    )?;
    let finding = |range: BlockRange| image.changed(range, geometry.offset(range.first));
    Ok((blocks, changed.into_iter().map(finding).collect()))
}

/// Decodes every block of one file through its tree and checks it against its digest. Gives the
/// number of blocks, and each of those that are damaged.
pub fn find_damage(delta: &Arc<Delta>, context: &Context) -> Result<(u64, Vec<Error>)> {
    if let Some(image) = delta.base_image() {
        return find_changed(delta, image, context);
    }
    let geometry = Geometry::new(delta.header().block_size, delta.footer().image_bytes)?;
    let mut cursor = TableCursor::new(delta.clone());
    cursor.seek(0)?;
    let (mut blocks, mut findings) = (0, Vec::new());
    ordered_map(
        context.threads(),
        context.in_flight(BATCH_BYTES),
        || {
            context.check()?;
            next_data_run(delta, &mut cursor)
        },
        |(stretch, span)| {
            let bytes = geometry.bytes_in(span.blocks);
            context.progress().advance(bytes);
            Ok((span.blocks.count, damage_in(geometry, &stretch, span)))
        },
        |(count, found)| {
            blocks += count;
            findings.extend(found);
            findings.truncate(MAX_FINDINGS);
            Ok(())
        },
    )?;
    Ok((blocks, findings))
}

/// The next data run of one file, as a stretch of it alone.
fn next_data_run(delta: &Arc<Delta>, cursor: &mut TableCursor) -> Result<Option<(Stretch, Span)>> {
    while let Some((page, run)) = cursor.run() {
        let Run { blocks, kind, ordinal } = run;
        let mut stretch = Stretch::new(Arc::new([delta.clone()]));
        let page = stretch.add_page(0, page.clone());
        cursor.advance()?;
        if kind == RunKind::Data {
            return Ok(Some((stretch, Span { blocks, state: State::Data { page, ordinal } })));
        }
    }
    Ok(None)
}

/// If a run fails, its blocks are tried one by one, so that each damaged one is named.
fn damage_in(geometry: Geometry, stretch: &Stretch, span: Span) -> Vec<Error> {
    let decode = |span: Span| -> Result<()> {
        let mut gather = Gather::new(geometry, stretch.layers(), Order::Ascending);
        gather.add(stretch, span)?;
        gather.finish();
        while let Some(batch) = gather.next_batch() {
            decode_batch(geometry, batch)?;
        }
        Ok(())
    };
    if decode(span).is_ok() {
        return Vec::new();
    }
    let mut found: Vec<Error> = Vec::new();
    for block in span.blocks.first..span.blocks.end() {
        let one = span.within(BlockRange { first: block, count: 1 });
        if let Some(Err(error)) = one.map(decode) {
            // A damaged frame is one finding, not one for each of its blocks.
            if found.last().map(Error::to_string) != Some(error.to_string()) {
                found.push(error);
            }
        }
    }
    found
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
                // The last stretch of zeros, which must reach the parent's end if the image is
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
/// file. Gives, newest first, whether it is the one in the footer.
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
