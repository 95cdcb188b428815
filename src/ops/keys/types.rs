//! Key slots as they are told.

use crate::store::sealed::{Derivation, SlotId};
use serde::Serialize;

/// A key slot of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeySlot {
    /// What it is called.
    pub id: SlotId,
    /// What it is made of; none if it is missing or damaged.
    pub derivation: Option<Derivation>,
    /// True for the one that the repository was opened by.
    pub is_used: bool,
    /// False for what an interrupted change has left, or somebody brought back: it opens nothing.
    pub is_listed: bool,
}
