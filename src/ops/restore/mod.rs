//! The verb *restore*.

pub mod engine;
pub mod types;
