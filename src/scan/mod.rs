//! Source and index in, changes out: the digest of each block against the one that the index has
//! for it.
//!
//! ```text
//! one at a time: the next window, and the index over it   (whole, hinted)
//! many threads:  map, digest, compare, copy what differs  (examine)
//! in order:      the changes of each window               (the caller)
//! ```
//!
//! What is stored is decided on a copy: a mapped image can change underfoot, so a block that looks
//! changed is copied first, and whether it is zero, whether it is the parent's after all, and its
//! digest are found on the copy.

mod candidates;
mod changes;
mod examine;
mod hinted;
mod job;
mod whole;

pub use changes::{BadMedium, Change, Changes, Index, Missed, Scanned, window_bytes};
pub use hinted::Hinted;
pub(crate) use job::Extents;

use crate::base::digest::ImageDigest;
use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::base::pipeline::{Allowance, growing_map};
use crate::base::units::{BlockRange, Geometry};
use crate::format::PartTerms;
use crate::image::{Limited, Source};
use examine::Examiner;
use hinted::HintedPlan;
use std::sync::{Mutex, PoisonError};
use whole::WholePlan;

/// What may be copied at once, by all that share.
const COPIED_BYTES: u64 = 24 << 20;

/// What of an image is examined.
pub enum Scope {
    /// All of it. That proves the index, too.
    Whole,
    /// All of these blocks, and nothing of the others.
    Range(BlockRange),
    /// What may have changed since the tip of the index, and a share of the rest.
    Hinted(Box<Hinted>),
}

/// Compares `source` with `index`, as much of it as `scope` says, and gives the changes to `consume`,
/// window by window, in order.
///
/// If the image is shorter than the index, the zero run that FORMAT.md M5 asks for is among them.
///
/// # Errors
/// Of the source, of `consume`; `Corrupt` if the index is not what its image digest says;
/// `InvalidInput` for hints without an index.
pub fn scan(
    source: &dyn Source,
    index: &Index<'_>,
    scope: Scope,
    bad_medium: BadMedium,
    context: &Context,
    consume: impl FnMut(&Changes) -> Result<()>,
) -> Result<Scanned> {
    scan_on_grid(source, index, scope, None, bad_medium, context, consume)
}

/// The same on a grid of so many blocks: no window with data in it has a line of the grid within it.
///
/// # Errors
/// As of [`scan`].
pub fn scan_on_grid(
    source: &dyn Source,
    index: &Index<'_>,
    scope: Scope,
    cell_blocks: Option<u64>,
    bad_medium: BadMedium,
    context: &Context,
    mut consume: impl FnMut(&Changes) -> Result<()>,
) -> Result<Scanned> {
    let source = &Limited::new(source, context);
    let geometry = Geometry::new(index.block_size(), source.image_bytes())?;
    let range = match &scope {
        Scope::Range(range) => Some(*range),
        Scope::Whole | Scope::Hinted(_) => None,
    };
    let mut plan = match (scope, index) {
        (Scope::Whole | Scope::Range(_), _) => {
            let plan = WholePlan::new(source, index, geometry, range, cell_blocks, context);
            Plan::Whole(Box::new(plan))
        }
        (Scope::Hinted(hinted), Index::Parent(chain)) => {
            let plan = HintedPlan::new(source, chain, *hinted, geometry, cell_blocks, context);
            Plan::Hinted(Box::new(plan))
        }
        (Scope::Hinted(_), Index::Nothing(..)) => {
            let what = "hints say nothing of an image without an earlier snapshot";
            return Err(Error::new(crate::base::error::ErrorKind::InvalidInput, what));
        }
    };
    let (hasher, buffers) = (index.hasher(), Mutex::default());
    let examiner = Examiner { source, hasher, geometry, bad_medium, buffers };
    // Used again and again: fresh memory costs more than what is done with it.
    let pool = Mutex::new(Vec::<Changes>::new());
    let pool = || pool.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut new_terms, mut old_terms) = (0u128, 0u128);
    let (mut read_bytes, mut missed) = (0, Missed::default());
    let window = window_bytes(context.all_threads());
    growing_map(
        || Allowance {
            threads: context.read_limits().readers(context.threads()),
            in_flight: context.in_flight_of(COPIED_BYTES, window),
        },
        || {
            context.check()?;
            match &mut plan {
                Plan::Whole(plan) => plan.next(),
                Plan::Hinted(plan) => plan.next(),
            }
        },
        |job| {
            let covered = geometry.bytes_in(job.blocks);
            let mut changes = pool().pop().unwrap_or_default();
            examiner.examine(&job, &mut changes)?;
            changes.blocks = job.blocks;
            context.advance(covered);
            Ok(changes)
        },
        |changes| {
            new_terms = new_terms.wrapping_add(changes.new_terms);
            old_terms = old_terms.wrapping_add(changes.old_terms);
            read_bytes += changes.read_bytes;
            missed.add(changes.missed);
            consume(&changes)?;
            pool().push(changes.emptied());
            Ok(())
        },
    )?;
    source.check_at_end()?;
    let named_bytes = match &plan {
        Plan::Whole(_) => None,
        Plan::Hinted(plan) => Some(plan.named_bytes()),
    };
    let terms = PartTerms {
        difference: new_terms.wrapping_sub(old_terms),
        before: named_bytes.is_none().then_some(old_terms),
    };
    if range.is_none() && named_bytes.is_none() {
        prove(index, old_terms)?;
    }
    let image_digest = digest_after(index, geometry, terms.difference);
    Ok(Scanned { image_digest, terms, read_bytes, named_bytes, missed })
}

enum Plan<'a> {
    Whole(Box<WholePlan<'a>>),
    Hinted(Box<HintedPlan<'a>>),
}

/// The image digest that follows from that of the index, and from what the terms of all blocks differ by.
pub fn digest_after(index: &Index<'_>, geometry: Geometry, difference: u128) -> ImageDigest {
    let before = match index {
        Index::Nothing(..) => ImageDigest(0),
        Index::Parent(chain) => {
            chain.image_digest().minus(chain.hasher().size_term(chain.geometry().image_bytes))
        }
    };
    before.plus(difference).plus(index.hasher().size_term(geometry.image_bytes))
}

/// A full scan passes every digest of the index: their sum proves it (DESIGN.md, "Image digest").
pub fn prove(index: &Index<'_>, old_terms: u128) -> Result<()> {
    let Index::Parent(chain) = index else { return Ok(()) };
    let passed = chain.hasher().empty_image(chain.geometry().image_bytes).plus(old_terms);
    if passed != chain.image_digest() {
        let what = format!("{}: the index of its chain is damaged", chain.tip().location());
        return Err(Error::corrupt(what).hint(message![
            "run ",
            Verb::Verify.call(),
            " to see where, and take a ",
            Setting::Full,
            " snapshot",
        ]));
    }
    Ok(())
}
