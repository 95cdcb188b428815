//! Repositories of other hosts, by ssh: the operations of a store, one message each, over the standard input
//! and output of `imgsnap serve store --stdio` there.
//!
//! Locks are those of the process that serves: they end with the connection, as those of a local process end
//! with it. A connection that is lost is not made again while anything depends on it, because somebody else
//! may hold them by then.

mod client;
mod connection;
mod wire;

pub use client::SshStore;
pub(crate) use wire::{
    Answer, Ask, MAX_BODY_BYTES, Outgoing, PROTOCOL, Request, Told, WireListed, read_message,
    write_message,
};
