//! Disks behind a network block device server (NBD), spoken to by a client of our own.

mod uri;

pub use uri::{NbdPlace, NbdUri};
