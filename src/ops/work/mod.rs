//! Snapshots that several workers take together, on one host or on many: a plan cuts images into ranges,
//! each worker makes a part of one range, and a join makes a snapshot of the parts.

pub mod join;
pub mod manage;
pub mod part;
pub mod plan;
mod source;
pub mod types;
