//! Repositories on servers: every verb of the real binary over each kind of store, real servers where they
//! can be had, and what becomes of it when requests go wrong.
//!
//! By default those run that start in seconds; `IMGSNAP_SERVERS=all` (`just servers`) takes all of them, and
//! more faults. A server that is not there, and cannot be installed, is told as skipped.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![allow(clippy::print_stderr, reason = "who looks at a failure sees how it came to it")]
#![allow(clippy::big_endian_bytes, reason = "so messages are written")]

mod append_only;
mod engines;
mod every_verb;
mod faults;
mod images;
#[path = "../support/json_lines.rs"]
#[allow(dead_code, reason = "for another test program")]
mod json_lines;
mod killed;
mod kit;
mod probes;
mod proxy;
mod racing;
#[path = "../support/random.rs"]
mod random;
mod requests;
mod rights;
#[path = "../support/server.rs"]
mod server;
mod world;
