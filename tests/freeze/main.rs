//! What is frozen is thawed, and what is stopped goes on. A process of its own: guards are forked here, and for a
//! moment hold whatever other tests have open.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../interop/bytes.rs"]
#[allow(dead_code, reason = "for another test program")]
mod bytes;
mod freeze;
#[macro_use]
#[path = "../interop/kit.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "for another test program")]
mod kit;
#[path = "../support/json_lines.rs"]
#[allow(dead_code, reason = "for another test program")]
mod json_lines;
#[path = "../support/random.rs"]
mod random;
