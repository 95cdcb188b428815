//! The verb *diff*.

pub mod engine;
