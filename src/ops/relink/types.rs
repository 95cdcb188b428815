//! What was linked anew.

use crate::base::uri::shown_path;
use crate::image::ImageUri;
use serde::Serialize;
use std::path::PathBuf;

/// A live file that an image has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Relinked {
    /// Where it is.
    pub image: ImageUri,
}

/// A base image that was found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RelinkedBase {
    /// Where it is.
    #[serde(serialize_with = "shown_path")]
    pub base_image: PathBuf,
    /// Numbers of the snapshots whose blocks it has.
    pub numbers: Vec<u64>,
}
