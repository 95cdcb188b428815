//! What a repository is: its images by name, who may read and write them, what is known of their live files.
//!
//! ```text
//! Repository -> Reader (reap lock, shared)            -> Chain -> restore, diff, verify
//!            -> Writer (write lock, reap lock shared) -> publish a delta, commit a manifest, note the head
//! ```

pub mod accepted;
pub mod attempts;
pub(crate) mod change;
pub(crate) mod checkpoints;
pub mod clones;
pub mod compact;
pub mod compaction;
pub mod config;
pub(crate) mod entry;
pub(crate) mod files;
pub mod first_use;
pub(crate) mod garbage;
pub mod group;
pub mod head;
pub(crate) mod hold;
pub mod host;
pub mod inside;
pub mod live_file;
pub(crate) mod live_format;
pub mod manifest;
pub(crate) mod marker;
pub(crate) mod names;
pub mod owner;
pub(crate) mod pending;
pub(crate) mod pin_fate;
pub(crate) mod pins;
pub(crate) mod place;
pub mod policy;
pub(crate) mod probe;
pub mod reference;
mod repository;
pub mod requests;
pub(crate) mod reserve;
pub(crate) mod restored;
pub mod retention;
pub(crate) mod root;
mod seen;
pub mod session;
pub(crate) mod signature;
pub(crate) mod top;
pub(crate) mod uploads;
pub mod work;

pub use repository::Repository;
