//! What is to be kept, and what became of the rest.

use crate::base::setters::setters;
use crate::repo::compaction::Compaction;
use crate::repo::manifest::Snapshot;
use crate::repo::retention::Rules;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// What is to be kept.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct PruneRequest {
    /// Otherwise those in the configuration.
    pub rules: Option<Rules>,
    /// Merge even where it frees little.
    pub compact: bool,
    /// Change nothing, only tell.
    pub dry_run: bool,
}

impl PruneRequest {
    /// By the rules in the configuration.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Otherwise those in the configuration.
        rules: Option<Rules>,
        /// Merge even where it frees little.
        compact: bool,
        /// Change nothing, only tell.
        dry_run: bool,
    }
}

/// What became of the snapshots of an image, or would.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Name of the image.
    pub name: String,
    /// Each snapshot, ascending by number, and why it is kept; those without a reason were dropped.
    pub decisions: Vec<(Snapshot, Vec<String>)>,
    /// Snapshots whose time does not fit to the others: number, and the time that counted.
    pub corrected: Vec<(u64, Timestamp)>,
    /// It is in doubt whether the clock is wrong now, or was when snapshots were taken: rules by time dropped
    /// nothing.
    pub clock_in_doubt: bool,
    /// What became of their space.
    pub compaction: Compaction,
    /// Nothing was dropped: the owner was asked, with that request.
    pub requested: Option<Uuid>,
}
