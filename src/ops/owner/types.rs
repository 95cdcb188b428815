//! The owner of a repository as it is told.

use crate::base::signing::OwnerKey;
use serde::Serialize;

/// Who owns a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OwnerStatus {
    /// The public key.
    #[serde(serialize_with = "crate::base::text::serialize")]
    pub key: OwnerKey,
    /// True if the private key is here.
    pub is_ours: bool,
}

/// An image whose newest commit is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SignedImage {
    /// Its name.
    pub name: String,
    /// The number of the commit.
    pub commit: u64,
    /// True if it was not signed before.
    pub is_new: bool,
}
