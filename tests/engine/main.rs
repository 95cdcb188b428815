//! The engine, without the command line: the format by a second reader, golden files, damage, faults and power
//! loss on disks in memory, histories against a model.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod base_of;
mod compatibility;
mod configuration;
mod corruption;
mod damaged;
mod faults;
mod first_use;
mod format_spec;
mod held;
mod losses;
mod mended;
mod model;
mod parts;
mod power_loss;
mod read_limit;
mod related;
#[path = "../support/mod.rs"]
mod support;
