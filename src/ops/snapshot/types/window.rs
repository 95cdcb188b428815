//! What happens around the point in time of a snapshot.

use crate::base::setters::setters;
use crate::machine::{Freeze, Hooks};
use std::path::PathBuf;
use std::time::Duration;

/// What happens around the point in time of a snapshot.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Window {
    /// What is frozen for it.
    pub freeze: Vec<Freeze>,
    /// How long that may be frozen at the most; otherwise 10 seconds.
    pub freeze_limit: Option<Duration>,
    /// What is run before and after.
    pub hooks: Hooks,
    /// Of a machine with several disks: take one after the other, and never stop it.
    pub one_by_one: bool,
    /// Where what a machine overwrites is kept while its disks are read: a folder; otherwise `/var/tmp`.
    pub scratch_dir: Option<PathBuf>,
}

impl Window {
    setters! {
        /// What is frozen for it.
        freeze: Vec<Freeze>,
        /// How long that may be frozen at the most; otherwise 10 seconds.
        freeze_limit: Option<Duration>,
        /// What is run before and after.
        hooks: Hooks,
        /// Of a machine with several disks: take one after the other, and never stop it.
        one_by_one: bool,
        /// Where what a machine overwrites is kept while its disks are read: a folder; otherwise `/var/tmp`.
        scratch_dir: Option<PathBuf>,
    }
}
