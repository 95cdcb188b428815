//! Disks behind a network block device server (NBD), spoken to by a client of our own.
//!
//! ```text
//! NbdDisk -> Pool -> Connection -> Wire
//!            |       |             bytes; waits that end
//!            |       requests under way, and their replies
//!            several, and lost ones made again
//! ```

mod connection;
mod disk;
mod extents;
mod handshake;
mod pieces;
mod pool;
mod protocol;
mod reading;
mod uri;
mod wire;
mod writing;

pub use disk::{NbdDisk, NbdOptions};
pub use uri::{NbdPlace, NbdUri};
