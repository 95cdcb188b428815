//! What everything else is made of: nouns, the one shape of concurrency, folders by descriptor, the one file
//! with `unsafe`.

pub mod digest;
pub mod error;
pub mod folder;
pub mod free_space;
pub mod pipeline;
pub mod progress;
pub(crate) mod setters;
#[expect(unsafe_code, reason = "the one file; see its contract")]
pub(crate) mod sys;
pub mod units;
pub mod uri;
pub(crate) mod writeback;
