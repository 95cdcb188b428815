//! What the fuzz targets share. README.md of this folder says what they prove.
//!
//! ```text
//! bytes -> Parts -> mend (checksums, links, digests: as much as the first byte says) -> program
//!                                                                                    -> oracles
//! ```
//!
//! An oracle that fails panics, and so does a fault of the program: libFuzzer keeps the bytes.

pub mod chains;
pub mod mend;
pub mod meter;
pub mod parts;
pub mod seeds;

#[path = "../../tests/support/mod.rs"]
pub mod support;

use imgsnap::base::events::Context;

/// One thread, and nobody who is told.
pub fn context() -> Context {
    Context::silent().with_threads(1)
}
