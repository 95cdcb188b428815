//! What the owner of a repository puts right besides: what others may say, and only the owner takes back.

use crate::base::error::{Error, ErrorKind};
use crate::repo::Repository;
use crate::repo::manifest::Manifest;
use crate::store::Store;
use jiff::{SignedDuration, Timestamp};

/// Nothing is pending for so long.
const MOST_PENDING: SignedDuration = SignedDuration::from_hours(24 * 60);

/// Gives up, for the owner, what is said to be pending for ever: it would hold its parents for ever as well.
pub(super) fn clear_endless(repository: &Repository, manifest: &mut Manifest) -> bool {
    let is_ours = repository.store.owner().is_some_and(|owner| owner.signer.is_some());
    let most = Timestamp::now().saturating_add(MOST_PENDING).unwrap_or(Timestamp::MAX);
    let before = manifest.pending.len();
    manifest.pending.retain(|pending| !is_ours || pending.expires <= most);
    manifest.pending.len() < before
}

/// True for what nobody has signed, or no program knows, which its owner puts right.
pub(super) fn is_for_owner(store: &dyn Store, error: &Error) -> bool {
    let is_ours = store.owner().is_some_and(|owner| owner.signer.is_some());
    is_ours && matches!(error.kind(), ErrorKind::Mismatch | ErrorKind::Unsupported)
}
