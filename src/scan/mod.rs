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
mod examine;
mod hinted;
mod job;
mod whole;

pub use hinted::Hinted;

use crate::base::digest::{Digest, Hasher, ImageDigest};
use crate::base::error::{Error, Result};
use crate::base::pipeline::{Allowance, growing_map};
use crate::base::progress::Context;
use crate::base::units::{BlockRange, BlockSize, Geometry};
use crate::chain::Chain;
use crate::image::Source;
use examine::Examiner;
use hinted::HintedPlan;
use std::sync::{Mutex, PoisonError};
use whole::WholePlan;

/// What is mapped at once, by all threads together. Each mapping that goes interrupts the other
/// cores, so few large windows are faster than many small ones.
const MAPPED_BYTES: u64 = 16 << 20;
/// What may be copied at once, by all that share.
const COPIED_BYTES: u64 = 24 << 20;
/// What an image is compared with.
pub enum Index<'a> {
    /// The snapshot at the tip of a chain.
    Parent(&'a Chain),
    /// Nothing: all zeros.
    Nothing(&'a Hasher, BlockSize),
}

impl Index<'_> {
    /// The keyed function of the chain.
    pub fn hasher(&self) -> &Hasher {
        match self {
            Self::Parent(chain) => chain.hasher(),
            Self::Nothing(hasher, _) => hasher,
        }
    }

    fn block_size(&self) -> BlockSize {
        match self {
            Self::Parent(chain) => chain.geometry().block_size,
            Self::Nothing(_, block_size) => *block_size,
        }
    }

    fn image_bytes(&self) -> u64 {
        match self {
            Self::Parent(chain) => chain.geometry().image_bytes,
            Self::Nothing(..) => 0,
        }
    }
}

/// What one block, or run of blocks, became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A block with other bytes; they are the next ones of [`Changes::bytes`].
    Data(u64, Digest),
    /// Blocks that became zero.
    Zero(BlockRange),
    /// Blocks that their medium does not give. They are among the changes of every scan, also if the index
    /// has none of them either: so each snapshot names its own.
    Unread(BlockRange),
}

impl Change {
    /// Which blocks.
    pub fn blocks(&self) -> BlockRange {
        match *self {
            Self::Data(block, _) => BlockRange { first: block, count: 1 },
            Self::Zero(blocks) | Self::Unread(blocks) => blocks,
        }
    }
}

/// The changes of one window, in ascending order.
#[derive(Default)]
pub struct Changes {
    /// What changed.
    pub list: Vec<Change>,
    /// The bytes of the changed blocks, whole blocks one after the other.
    pub bytes: Vec<u8>,
    new_terms: u128,
    old_terms: u128,
    read_bytes: u64,
    missed: Missed,
}

impl Changes {
    /// How many blocks changed.
    pub fn block_count(&self) -> u64 {
        self.list.iter().map(|change| change.blocks().count).sum()
    }
}

/// What of an image is looked at.
pub enum Scope {
    /// All of it. That proves the index, too.
    Whole,
    /// What may have changed since the tip of the index, and a share of the rest.
    Hinted(Box<Hinted>),
}

/// What becomes of blocks that the medium does not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BadMedium {
    /// The first one ends the scan.
    #[default]
    Fail,
    /// They are unread, and the rest is scanned.
    Skip,
}

/// What a scan found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Digest of the image as it is, as far as it was looked at.
    pub image_digest: ImageDigest,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes of the image that hints named; none if all of it was looked at.
    pub named_bytes: Option<u64>,
    /// What changed though no hint named it.
    pub missed: Missed,
}

/// Blocks that changed though no hint named them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Missed {
    /// How many were found.
    pub blocks: u64,
    /// The first of them; none if there are none.
    pub first: Option<u64>,
}

impl Missed {
    fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.first = self.first.or(other.first);
    }
}

/// How much a thread maps at a time: a power of two from 2 to 8 MiB.
pub fn window_bytes(threads: usize) -> u64 {
    (MAPPED_BYTES / threads.max(1).next_power_of_two() as u64).clamp(2 << 20, 8 << 20)
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
    mut consume: impl FnMut(&Changes) -> Result<()>,
) -> Result<Scanned> {
    let geometry = Geometry::new(index.block_size(), source.image_bytes())?;
    let mut plan = match (scope, index) {
        (Scope::Whole, _) => {
            Plan::Whole(Box::new(WholePlan::new(source, index, geometry, context)))
        }
        (Scope::Hinted(hinted), Index::Parent(chain)) => {
            let plan = HintedPlan::new(source, chain, *hinted, geometry, context);
            Plan::Hinted(Box::new(plan))
        }
        (Scope::Hinted(_), Index::Nothing(..)) => {
            let what = "hints say nothing of an image without an earlier snapshot";
            return Err(Error::new(crate::base::error::ErrorKind::InvalidInput, what));
        }
    };
    let examiner = Examiner { source, hasher: index.hasher(), geometry, bad_medium };
    // Used again and again: fresh memory costs more than what is done with it.
    let pool = Mutex::new(Vec::<Changes>::new());
    let pool = || pool.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut new_terms, mut old_terms) = (0u128, 0u128);
    let (mut read_bytes, mut missed) = (0, Missed::default());
    let window = window_bytes(context.all_threads());
    growing_map(
        || Allowance {
            threads: context.threads(),
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
            context.progress().advance(covered);
            Ok(changes)
        },
        |changes| {
            new_terms = new_terms.wrapping_add(changes.new_terms);
            old_terms = old_terms.wrapping_add(changes.old_terms);
            read_bytes += changes.read_bytes;
            missed.add(changes.missed);
            if !changes.list.is_empty() {
                consume(&changes)?;
            }
            pool().push(changes.emptied());
            Ok(())
        },
    )?;
    source.check_at_end()?;
    let named_bytes = match &plan {
        Plan::Whole(_) => None,
        Plan::Hinted(plan) => Some(plan.named_bytes()),
    };
    let image_digest = match (index, named_bytes) {
        (Index::Parent(chain), Some(_)) => stepped(chain, geometry, new_terms, old_terms),
        _ => {
            prove(index, old_terms)?;
            index.hasher().empty_image(geometry.image_bytes).plus(new_terms)
        }
    };
    Ok(Scanned { image_digest, read_bytes, named_bytes, missed })
}

enum Plan<'a> {
    Whole(Box<WholePlan<'a>>),
    Hinted(Box<HintedPlan<'a>>),
}

/// The image digest that follows from the parent's and from what was looked at.
fn stepped(chain: &Chain, geometry: Geometry, new_terms: u128, old_terms: u128) -> ImageDigest {
    let hasher = chain.hasher();
    let sizes =
        (hasher.size_term(chain.geometry().image_bytes), hasher.size_term(geometry.image_bytes));
    chain.image_digest().minus(sizes.0).plus(sizes.1).minus(old_terms).plus(new_terms)
}

/// A full scan passes every digest of the index: their sum proves it (DESIGN.md, "Image digest").
fn prove(index: &Index<'_>, old_terms: u128) -> Result<()> {
    let Index::Parent(chain) = index else { return Ok(()) };
    let passed = chain.hasher().empty_image(chain.geometry().image_bytes).plus(old_terms);
    if passed != chain.image_digest() {
        let what = format!("{}: the index of its chain is damaged", chain.tip().location());
        return Err(Error::corrupt(what)
            .hint("run \"imgsnap verify\" to see where, and take a --full snapshot"));
    }
    Ok(())
}

impl Changes {
    /// The same memory with nothing in it.
    fn emptied(mut self) -> Self {
        self.list.clear();
        self.bytes.clear();
        Self { list: self.list, bytes: self.bytes, ..Self::default() }
    }

    fn unchanged(&mut self, term: u128) {
        self.old_terms = self.old_terms.wrapping_add(term);
        self.new_terms = self.new_terms.wrapping_add(term);
    }

    fn miss(&mut self, blocks: BlockRange) {
        self.missed.add(Missed { blocks: blocks.count, first: Some(blocks.first) });
    }

    fn zero(&mut self, blocks: BlockRange) {
        match self.list.last_mut() {
            Some(Change::Zero(last)) if last.end() == blocks.first => last.count += blocks.count,
            _ => self.list.push(Change::Zero(blocks)),
        }
    }

    fn unread(&mut self, blocks: BlockRange) {
        match self.list.last_mut() {
            Some(Change::Unread(last)) if last.end() == blocks.first => last.count += blocks.count,
            _ => self.list.push(Change::Unread(blocks)),
        }
    }
}
