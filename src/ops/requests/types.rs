//! What was asked of the owner.

pub use crate::repo::requests::{AskedSnapshot, DropRequest};
