//! What is served, and to whom.

use crate::base::setters::setters;
use std::path::PathBuf;

/// How a folder is served.
#[derive(Debug, Clone, Default)]
pub struct ServeRequest {
    pub(crate) path: Option<PathBuf>,
    pub(crate) append_only: bool,
}

impl ServeRequest {
    /// Whatever folder the host names, which may do with it what the user may who serves it.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Only this folder.
        path: Option<PathBuf>,
        /// What is there is neither removed nor changed: the host may only add to it.
        append_only: bool,
    }
}
