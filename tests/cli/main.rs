//! The command line, verb by verb: the real binary on small images, what it prints, what it exits
//! with, and that a command that fails leaves everything as it was.
//!
//! What needs other programs and real devices is in `tests/interop`.

#![allow(missing_docs)]

mod admin;
mod attributes;
mod bad_input;
mod base_image;
mod base_of;
mod bench;
mod changed;
#[path = "../support/config.rs"]
mod config;
mod configuration;
mod delete;
mod diff;
mod documents;
mod encryption;
mod everyday;
mod flatten;
mod format;
mod golden;
mod group;
mod honest;
mod hostile;
mod hosts;
mod init;
mod inside;
#[path = "../support/json_lines.rs"]
mod json_lines;
mod list;
mod mend;
#[path = "../support/naive_reader.rs"]
mod naive_reader;
mod of;
mod owned;
mod owners;
mod parts;
mod paths;
mod place;
mod portable;
mod prune;
#[path = "../support/random.rs"]
mod random;
mod remove;
mod repairable;
mod restore;
mod rollback;
mod several;
mod shared;
mod snapshot;
mod stats;
mod support;
mod tracking;
mod unchecked;
mod update;
mod usage;
mod verify;
mod watch;
mod watcher;
mod without_locks;
mod work;
