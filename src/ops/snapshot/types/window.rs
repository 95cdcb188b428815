//! What happens around the point in time of a snapshot.

use crate::base::setters::setters;
use std::path::PathBuf;

/// What happens around the point in time of a snapshot.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Window {
    /// Of a machine with several disks: take one after the other, and never stop it.
    pub one_by_one: bool,
    /// Where what a machine overwrites is kept while its disks are read: a folder; otherwise `/var/tmp`.
    pub scratch_dir: Option<PathBuf>,
}

impl Window {
    setters! {
        /// Of a machine with several disks: take one after the other, and never stop it.
        one_by_one: bool,
        /// Where what a machine overwrites is kept while its disks are read: a folder; otherwise `/var/tmp`.
        scratch_dir: Option<PathBuf>,
    }
}
