//! Finds the image that a new one was made from: blocks of it are digested with the key of each other
//! chain, and looked up in its index.

use crate::base::digest::is_zero;
use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::message;
use crate::base::units::{BlockSize, ExtentKind, Geometry};
use crate::chain::Chain;
use crate::image::Source;
use crate::ops::snapshot::prepared::block_size_of;
use crate::ops::snapshot::types::{ParentChoice, SnapshotRequest};
use crate::repo::Repository;
use crate::repo::manifest::{self, Manifest, Snapshot};
use crate::repo::reference::{At, Reference};
use crate::repo::session::{Reader, read};

/// So many blocks are compared, out of so many that are looked at: some are zero.
const SAMPLES: usize = 64;
const LOOKED_AT: u64 = 1024;

/// So many extents are asked for: with more, the blocks are taken from the first ones.
const MAX_EXTENTS: usize = 1 << 16;

/// As many more or fewer tell nothing: a clone of a template has about as many of its blocks.
const NOISE: usize = 2;

/// A block, and what is in it.
type Sample = (u64, Vec<u8>);

/// A snapshot that an image may have been made from.
struct Candidate {
    /// How many of the blocks it has.
    equal: usize,
    /// Through how many images its chain leads.
    images: usize,
    is_pinned: bool,
    of: Reference,
}

/// The snapshot of another image of which the image has the most, if that is half of what was compared; none
/// where nothing begins. Of those that have about as many, one whose chain leads through the fewest images.
///
/// # Errors
/// Of the image. Other images that cannot be read are passed over.
pub(crate) fn find_base(
    repository: &Repository,
    name: &str,
    image: &dyn Source,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<Option<Reference>> {
    if !request.find_base || !begins(repository, name, request)? {
        return Ok(None);
    }
    let usual = repository.defaults()?.block_size;
    let known = manifest::load(repository.store.as_ref(), name).ok();
    let block_size = match &known {
        Some(manifest) => block_size_of(manifest, request, usual),
        None => request.block_size.unwrap_or(usual),
    };
    let samples = samples(image, block_size, context)?;
    let mut found: Vec<Candidate> = Vec::new();
    for other in repository.names()?.into_iter().filter(|other| other != name) {
        let compared = read(repository, &other, context).and_then(|reader| {
            let candidates = candidates(reader.manifest(), block_size, image.image_bytes());
            compare(repository, &reader, &candidates, &samples, context)
        });
        match compared {
            Ok(candidates) => found.extend(candidates),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            Err(e) => context.note(message![e, "; not compared"]),
        }
    }
    let count = samples.len();
    let best = best_of(found).filter(|best| best.equal > 0 && best.equal * 2 >= count);
    context.note(match &best {
        Some(best) => {
            format!("{name}: {} of {count} blocks are those of \"{}\"", best.equal, best.of.name)
        }
        None => format!("{name}: no other image has half of {count} blocks"),
    });
    Ok(best.map(|best| best.of))
}

/// Of several that are as good the first one.
fn best_of(mut found: Vec<Candidate>) -> Option<Candidate> {
    let most = found.iter().map(|candidate| candidate.equal).max()?;
    found.retain(|candidate| candidate.equal + NOISE >= most);
    found.into_iter().min_by_key(|c| (c.images, most - c.equal, !c.is_pinned))
}

/// True if a base would be made.
fn begins(repository: &Repository, name: &str, request: &SnapshotRequest) -> Result<bool> {
    if request.parent != ParentChoice::Incremental {
        return Ok(request.parent == ParentChoice::Full);
    }
    match manifest::load(repository.store.as_ref(), name) {
        Ok(manifest) => Ok(manifest.snapshots.is_empty()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

/// The newest snapshot, and those that others depend on.
fn candidates(manifest: &Manifest, block_size: BlockSize, image_bytes: u64) -> Vec<&Snapshot> {
    let last = manifest.latest().map(|s| s.id);
    let is_like = |s: &&Snapshot| {
        let (less, more) = (s.image_bytes.min(image_bytes), s.image_bytes.max(image_bytes));
        let is_long = less.saturating_mul(2) >= more;
        let is_meant = Some(s.id) == last || !s.pins.is_empty();
        is_meant && is_long && s.block_bytes == block_size.bytes()
    };
    // Of several that are as good the newest one.
    manifest.snapshots.iter().rev().filter(is_like).collect()
}

/// How many of the blocks each has.
fn compare(
    repository: &Repository,
    reader: &Reader,
    candidates: &[&Snapshot],
    samples: &[Sample],
    context: &Context,
) -> Result<Vec<Candidate>> {
    let compared = candidates.iter().map(|snapshot| {
        let chain = reader.chain(repository, snapshot.id)?;
        let name = reader.manifest().name.clone();
        Ok(Candidate {
            equal: equal_blocks(&chain, samples, context)?,
            images: chain.images(),
            is_pinned: !snapshot.pins.is_empty(),
            of: Reference { name, at: At::Number(snapshot.number) },
        })
    });
    compared.collect()
}

/// How many of the blocks, which ascend, a snapshot has at the same place.
fn equal_blocks(chain: &Chain, samples: &[Sample], context: &Context) -> Result<usize> {
    let mut walk = chain.walk();
    let mut equal = 0;
    for (block, bytes) in samples {
        context.check()?;
        walk.seek(*block);
        let Some(span) = walk.next(block.saturating_add(1))? else { continue };
        let digest = chain.hasher().digest(bytes);
        equal += usize::from(walk.chunk().digests(span).first() == Some(&digest));
    }
    Ok(equal)
}

/// Blocks that are not zero, spread evenly over what the image has, in ascending order.
fn samples(image: &dyn Source, block_size: BlockSize, context: &Context) -> Result<Vec<Sample>> {
    let geometry = Geometry::new(block_size, image.image_bytes())?;
    let extents = extents(image, geometry, context)?;
    let all: u64 = extents.iter().map(|(_, count)| count).sum();
    let tries = LOOKED_AT.min(all);
    let mut samples: Vec<Sample> = Vec::new();
    let mut buffer = Vec::new();
    for turn in 0..LOOKED_AT {
        if samples.len() == SAMPLES {
            break;
        }
        context.check()?;
        // Each turn halves the largest gaps that are left.
        let spread = turn.reverse_bits() >> (u64::BITS - LOOKED_AT.trailing_zeros());
        let index = (u128::from(spread) * u128::from(all) / u128::from(LOOKED_AT)) as u64;
        let Some(block) = nth_block(&extents, index) else { continue };
        if tries < LOOKED_AT && samples.iter().any(|(known, _)| *known == block) {
            continue;
        }
        let (offset, end) = (geometry.offset(block), geometry.offset(block + 1));
        let count = end.min(geometry.image_bytes).saturating_sub(offset) as usize;
        let mut bytes = match image.read(offset, count, &mut buffer) {
            Ok(window) => window.bytes().to_vec(),
            // What cannot be read is told by the snapshot.
            Err(e) if e.kind() == ErrorKind::Io => continue,
            Err(e) => return Err(e),
        };
        bytes.resize(block_size.in_memory(), 0);
        if !is_zero(&bytes) {
            samples.push((block, bytes));
        }
    }
    samples.sort_by_key(|(block, _)| *block);
    Ok(samples)
}

/// First block and number of blocks of each extent that may hold something.
fn extents(image: &dyn Source, geometry: Geometry, context: &Context) -> Result<Vec<(u64, u64)>> {
    let block_bytes = u64::from(geometry.block_size.bytes());
    let (mut extents, mut offset) = (Vec::new(), 0);
    while offset < geometry.image_bytes && extents.len() < MAX_EXTENTS {
        context.check()?;
        let extent = image.extent_at(offset)?;
        let end = offset.saturating_add(extent.bytes.max(1)).min(geometry.image_bytes);
        if extent.kind == ExtentKind::Data {
            let first = offset / block_bytes;
            extents.push((first, end.div_ceil(block_bytes).saturating_sub(first)));
        }
        offset = end;
    }
    Ok(extents)
}

fn nth_block(extents: &[(u64, u64)], mut index: u64) -> Option<u64> {
    for (first, count) in extents {
        if index < *count {
            return Some(first + index);
        }
        index -= count;
    }
    None
}
