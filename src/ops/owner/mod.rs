//! The verb *key owner*: who owns a repository.
//!
//! Each image is signed before the configuration names the owner, and once more after that, since others may
//! have committed meanwhile: from then on, only what the owner signs may drop anything.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Verb, message};
use crate::base::signing::OwnerSigner;
use crate::ops::owner::types::{OwnerStatus, SignedImage};
use crate::repo::Repository;
use crate::repo::config::object;
use crate::repo::config::owner::{OwnerChange, text_with_owner};
use crate::repo::manifest::{self, Manifest};
use crate::repo::owner::{owned, refuse_others, remember};
use crate::repo::session::lock_to_write;
use crate::store::{Owner, Store};
use std::sync::Arc;

/// Who owns it.
pub(crate) fn status(repository: &Repository) -> Option<OwnerStatus> {
    let owner = repository.store.owner()?;
    Some(OwnerStatus { key: owner.key, is_ours: owner.signer.is_some() })
}

fn not_owned(repository: &Repository) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{} has no owner", repository.location()))
        .hint(message!["create one with ", Verb::Key.of("owner create")])
}

/// Makes a key the owner of a repository that has none, or in the place of the one that is.
///
/// # Errors
/// `AlreadyExists` if somebody else owns it; `Busy` if somebody else changes the configuration.
pub(crate) fn take(
    repository: &Repository,
    signer: &Arc<OwnerSigner>,
    context: &Context,
) -> Result<Vec<SignedImage>> {
    let store = &repository.store;
    let change = match store.owner() {
        None => None,
        Some(owner) if owner.key == signer.key() => return sign(repository, context),
        Some(owner) => match OwnerChange::new(owner, signer.key()) {
            Some(change) => Some(change),
            None => {
                let what = format!("{} is owned by {}", repository.location(), owner.key);
                return Err(Error::new(ErrorKind::AlreadyExists, what)
                    .hint("the present owner has to name the next one, with its own key"));
            }
        },
    };
    let ruling = object::ruling(store.as_ref())?;
    let text = text_with_owner(&ruling.text, signer.key(), change)?;
    let owner = Owner::new(repository.id(), signer.key(), Some(signer.clone()));
    let owned = owned(store.clone(), owner);
    sign_all(repository, owned.as_ref(), context)?;
    object::commit(owned.as_ref(), ruling.number, &text)?;
    remember(&repository.host, repository.id(), signer.key())?;
    // What others have committed meanwhile, who did not know the owner yet.
    sign_all(repository, owned.as_ref(), context)
}

/// Signs what counts of each image.
///
/// # Errors
/// `Auth` without the owner key.
pub(crate) fn sign(repository: &Repository, context: &Context) -> Result<Vec<SignedImage>> {
    if repository.store.owner().is_none() {
        return Err(not_owned(repository));
    }
    refuse_others(repository.store.as_ref(), "sign")?;
    sign_all(repository, repository.store.as_ref(), context)
}

/// Signs what rules of each image, as the repository was opened.
fn sign_all(
    repository: &Repository,
    owned: &dyn Store,
    context: &Context,
) -> Result<Vec<SignedImage>> {
    let store = repository.store.as_ref();
    let mut signed = Vec::new();
    for name in store.list("")?.into_iter().filter(|name| manifest::check_name(name).is_ok()) {
        if manifest::ruling(store, &name)?.is_none() {
            continue;
        }
        let _write = lock_to_write(repository, &name)?;
        let mut rules = match manifest::load_last(store, &name) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            // Nothing in it counts: it is not for a signature to make it.
            Err(e) if e.kind() == ErrorKind::Mismatch && store.owner().is_some() => {
                context.warn(WarningId::NotSigned, message!["not signed: ", e]);
                continue;
            }
            rules => rules?,
        };
        let counts = manifest::load_last(owned, &name);
        let is_signed =
            |m: &Manifest| m.is_signed() && m.sequence == rules.sequence && !m.is_followed();
        let is_new = !counts.is_ok_and(|counts| is_signed(&counts));
        if is_new {
            manifest::commit(owned, &mut rules)?;
        }
        signed.push(SignedImage { name, commit: rules.sequence, is_new });
    }
    Ok(signed)
}
