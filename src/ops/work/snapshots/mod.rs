//! Snapshots of which several workers make a part each.

pub mod join;
pub mod part;
pub mod plan;
pub(super) mod source;
