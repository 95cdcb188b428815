//! imgsnap: block-level incremental snapshots of disk images. See README.md, DESIGN.md and
//! FORMAT.md.
pub mod apply;
pub mod base;
pub mod bench;
pub mod chain;
pub mod codec;
pub mod delta;
pub mod diff;
pub mod format;
pub mod head;
pub mod image;
pub mod manifest;
pub mod mend;
pub mod merge;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod rollback;
pub mod scan;
pub mod snapshot;
pub mod stats;
pub mod store;
pub mod tracking;
pub use base::sys::share_heaps;
pub mod verify;
pub mod view;
