//! What several workers do together, on one host or on many: a plan cuts it into tasks, each worker does one,
//! and a join makes a whole of them. Each kind of work has these three.

pub mod manage;
pub mod restore;
pub mod snapshots;
mod tasks;
pub mod types;
pub mod verify;
