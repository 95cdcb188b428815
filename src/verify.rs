//! The verb *verify*: is every stored byte what was written, and does it give the images that were
//! taken?

use crate::chain::{Chain, Span, State};
use crate::delta::{Delta, TableCursor, scrub};
use crate::digest::{Digest, ImageDigest};
use crate::error::{Error, Result};
use crate::format::{Run, RunKind};
use crate::pipeline::ordered_map;
use crate::progress::Context;
use crate::units::{BlockRange, Geometry};
use crate::view::{BATCH_BYTES, Batch, decode_batch};
use std::sync::Arc;

/// Findings of one file, at most; a file with more is lost anyway.
const MAX_FINDINGS: usize = 1000;

/// Checks the stored bytes of one file: checksums, order, counts, and the digest of the whole.
///
/// # Errors
/// `Corrupt` with what is wrong first; others if the file cannot be read.
pub fn verify_stored(delta: &Delta, context: &Context) -> Result<()> {
    scrub(delta, context)
}

/// Decodes every block of one file and checks it against its digest. Gives the number of blocks,
/// and what is damaged.
pub fn verify_blocks(delta: &Arc<Delta>, context: &Context) -> Result<(u64, Vec<Error>)> {
    let geometry = Geometry::new(delta.header().block_size, delta.footer().image_bytes)?;
    let mut cursor = TableCursor::new(delta.clone());
    cursor.seek(0)?;
    let mut rest: Option<Span> = None;
    let (mut blocks, mut findings) = (0, Vec::new());
    ordered_map(
        context.threads(),
        context.in_flight(BATCH_BYTES),
        || {
            context.check()?;
            next_spans(delta, &mut cursor, &mut rest, geometry)
        },
        |batch| {
            let count: u64 = batch.spans.iter().map(|s| s.blocks.count).sum();
            let bytes: u64 = batch.spans.iter().map(|s| geometry.bytes_in(s.blocks)).sum();
            context.progress().advance(bytes);
            Ok((count, verify_batch(geometry, batch)))
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

/// The data runs of one file, as batches.
fn next_spans(
    delta: &Arc<Delta>,
    cursor: &mut TableCursor,
    rest: &mut Option<Span>,
    geometry: Geometry,
) -> Result<Option<Batch>> {
    let mut batch = Batch::default();
    while !batch.is_full(geometry) {
        let Some(span) = (match rest.take() {
            Some(span) => Some(span),
            None => next_data_run(delta, cursor)?,
        }) else {
            break;
        };
        *rest = batch.push_fitting(span, geometry);
    }
    Ok((!batch.is_empty()).then_some(batch))
}

fn next_data_run(delta: &Arc<Delta>, cursor: &mut TableCursor) -> Result<Option<Span>> {
    while let Some((page, run)) = cursor.run() {
        let Run { blocks, kind, ordinal } = run;
        let state = State::Data { delta: delta.clone(), page: page.clone(), ordinal };
        cursor.advance()?;
        if kind == RunKind::Data {
            return Ok(Some(Span { blocks, state }));
        }
    }
    Ok(None)
}

/// If the batch fails, its blocks are tried one by one, so that each damaged one is named.
fn verify_batch(geometry: Geometry, batch: Batch) -> Vec<Error> {
    let spans = batch.spans.clone();
    if decode_batch(geometry, batch).is_ok() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for span in &spans {
        for block in span.blocks.first..span.blocks.end() {
            let mut one = Batch::default();
            let range = BlockRange { first: block, count: 1 };
            span.within(range).into_iter().for_each(|part| one.push(part));
            if let Err(error) = decode_batch(geometry, one) {
                // A damaged frame is one finding, not one for each of its blocks.
                if found.last().map(Error::to_string) != Some(error.to_string()) {
                    found.push(error);
                }
            }
        }
    }
    found
}

/// Computes the image digest of a snapshot from that of its parent and the entries of its file, and
/// checks the rules about runs beyond the end (FORMAT.md M5).
///
/// # Errors
/// `Corrupt` if it is not the one in the footer.
pub fn verify_image(delta: &Arc<Delta>, parent: Option<&Chain>, context: &Context) -> Result<()> {
    let footer = delta.footer();
    let hasher = delta.hasher();
    let end = delta.header().block_size.count(footer.image_bytes);
    let mut before = parent.map(Chain::cursor).transpose()?;
    let mut digest = match parent {
        None => ImageDigest(0),
        Some(chain) => chain.image_digest().minus(hasher.size_term(chain.geometry().image_bytes)),
    };
    let wrong = |what: &str| Err(Error::corrupt(what).at(delta.location()));
    let parent_end = parent.map_or(0, |chain| chain.geometry().block_count());
    let (mut cursor, mut zeroed_from) = (TableCursor::new(delta.clone()), None);
    cursor.seek(0)?;
    while let Some((page, run)) = cursor.run() {
        context.check()?;
        let Run { blocks, kind, ordinal } = run;
        match kind {
            RunKind::Zero if parent.is_none() => return wrong("a base with a zero run"),
            RunKind::Zero if blocks.end() > end.max(parent_end) => {
                return wrong("a run beyond the end");
            }
            RunKind::Zero => {
                // The last stretch of zeros, which must reach the parent's end if the image is
                // shorter.
                zeroed_from = match zeroed_from {
                    Some((from, until)) if until == blocks.first => Some((from, blocks.end())),
                    _ => Some((blocks.first, blocks.end())),
                };
            }
            _ if blocks.end() > end => return wrong("a run beyond the end"),
            RunKind::Unread => {
                for block in blocks.first..blocks.end() {
                    digest = digest.plus(hasher.term(block, Digest::UNREAD));
                }
            }
            RunKind::Data => {
                let digests = page.digests.iter().skip(ordinal as usize);
                for (block, of_block) in (blocks.first..blocks.end()).zip(digests) {
                    digest = digest.plus(hasher.term(block, *of_block));
                }
            }
        }
        if let Some(before) = &mut before {
            before.seek(blocks.first);
            while let Some(span) = before.next(blocks.end())? {
                digest = digest.minus(span.terms(hasher));
            }
        }
        cursor.advance()?;
    }
    if parent_end > end && zeroed_from.is_none_or(|(from, until)| from > end || until != parent_end)
    {
        return wrong("blocks beyond the end of the image are not zeroed");
    }
    if digest.plus(hasher.size_term(footer.image_bytes)) != footer.image_digest {
        return wrong("the image digest differs");
    }
    Ok(())
}
