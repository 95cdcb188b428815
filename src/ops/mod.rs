//! The verbs, one folder each: `mod` finds names, takes locks and commits; `engine` does the work on bytes
//! and tables, and knows of no repository; `types` are what a caller asks for and gets.

pub mod apply;
pub mod config;
pub mod define;
pub mod delete;
pub mod diff;
pub mod export;
pub mod flatten;
pub mod import;
pub mod keys;
pub mod label;
pub mod list;
pub mod owner;
pub mod protect;
pub mod prune;
pub mod relink;
pub mod remove;
pub mod repair;
pub mod requests;
pub mod restore;
pub mod rollback;
pub mod serve;
pub mod snapshot;
pub mod stats;
pub mod untrack;
pub mod verify;
pub mod watch;
pub mod work;
