//! What everything else is made of: nouns, the one shape of concurrency, folders by descriptor, the one
//! module with `unsafe`.

pub(crate) mod byte_lock;
pub(crate) mod checked_text;
pub mod digest;
pub mod duration;
pub mod error;
pub mod events;
pub mod folder;
pub mod free_space;
pub mod message;
pub(crate) mod named;
pub(crate) mod ownership;
pub mod pipeline;
pub mod read_limit;
pub mod secret;
pub(crate) mod setters;
pub mod signing;
#[expect(unsafe_code, reason = "the one module; see its contract")]
pub(crate) mod sys;
pub(crate) mod text;
pub mod transfer;
pub mod units;
pub mod uri;
pub(crate) mod writeback;
