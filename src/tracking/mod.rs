//! What the system already knows of changes: ranges of an image that may differ from a snapshot.
//!
//! A hint may name too much, and must not name too little. It is relative to one snapshot; what is not
//! named is taken to be as it was there, without a look.

mod clones;
mod costs;
mod file;
mod given;
mod kept;
mod list;
mod recheck;
mod reflink;
mod tracker;

pub use clones::{
    CloneFolder, CloneStat, FoundClone, NewClone, Owner, has_physical_addresses, reopen,
};
pub use costs::{Costs, TimeSpent, for_each_extent};
pub use file::FileTracker;
pub use given::ListTracker;
pub use kept::{CloneUse, Clones, KeptClone, KeptClones};
pub use list::{ChangeList, MAX_LIST_BYTES};
pub use recheck::{Recheck, cycle};
pub use reflink::{MapDifferences, clone_into, extent_count};
pub use tracker::{
    ChangeTracker, Consistency, HintFactory, HintKind, KnownChanges, PointInTime, Recorded, Since,
    Track, TrackerRecord,
};

use crate::base::error::Result;
use crate::base::units::ByteRange;

/// Ranges of bytes, ascending and apart, that may have changed.
pub trait ChangeHints: Send {
    /// The next range. It may reach beyond the end of the image.
    fn next_range(&mut self) -> Result<Option<ByteRange>>;
}
