//! imgsnap: block-level incremental snapshots of disk images. See README.md, DESIGN.md and
//! FORMAT.md.
pub mod apply;
pub mod bench;
pub mod chain;
pub mod codec;
pub mod delta;
pub mod diff;
pub mod digest;
pub mod error;
pub mod folder;
pub mod format;
pub mod head;
pub mod hints;
pub mod manifest;
pub mod mend;
pub mod merge;
pub mod pipeline;
pub mod progress;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod rollback;
pub mod room;
pub mod scan;
pub mod snapshot;
pub mod source;
pub mod stats;
pub mod store;
#[expect(unsafe_code, reason = "the one file; see its contract")]
mod sys;
pub mod target;
pub use sys::share_heaps;
pub mod units;
pub mod verify;
pub mod view;
mod writeback;
