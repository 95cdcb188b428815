//! Who owns a repository, as far as this host knows (FORMAT.md V1, S10): whose signatures count is said by
//! its user, once, or by the recovery text, and never by the store.
//!
//! ```text
//! STATE/REPOSITORY-ID/DIGEST.owner     the key that was said
//! ```

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Setting, message};
use crate::base::signing::OwnerKey;
use crate::repo::config::object::Damaged;
use crate::repo::config::{Config, object};
use crate::repo::host::{HostState, OwnerGiven};
use crate::repo::place::Place;
use crate::repo::signature::only_owner;
use crate::store::{OwnedStore, Owner, Store};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

#[derive(Serialize, Deserialize)]
struct Record {
    /// The host that wrote it.
    machine: String,
    key: String,
}

fn file_of(host: &HostState, repository: Uuid) -> String {
    // Hosts that share a folder have files of their own.
    let digest = blake3::hash(host.host().machine.as_bytes()).to_hex();
    format!("{repository}/{}.owner", digest.get(..32).unwrap_or_default())
}

/// The owner of a repository whom this host has been told.
fn known(host: &HostState, repository: Uuid) -> Result<Option<OwnerKey>> {
    let record: Option<Record> = host.load_file(&file_of(host, repository))?;
    let own = record.filter(|record| record.machine == host.host().machine);
    own.map(|record| record.key.parse()).transpose()
}

/// Remembers the owner of a repository.
///
/// # Errors
/// If that cannot be written.
pub(crate) fn remember(host: &HostState, repository: Uuid, key: OwnerKey) -> Result<()> {
    let machine = host.host().machine.clone();
    host.save_file(&file_of(host, repository), &Record { machine, key: key.to_string() })
}

/// What the user says, in one key.
fn said(given: &OwnerGiven, store: &dyn Store) -> Result<Option<OwnerKey>> {
    let of_text = store.sealing().and_then(|sealing| sealing.owner());
    let said = [given.signer.as_ref().map(|signer| signer.key()), given.key, of_text];
    let mut keys = said.into_iter().flatten();
    let Some(first) = keys.next() else { return Ok(None) };
    match keys.find(|other| *other != first) {
        None => Ok(Some(first)),
        Some(other) => Err(two_owners(first, "is given", other, "is given as well")),
    }
}

fn two_owners(one: OwnerKey, how: &str, other: OwnerKey, other_how: &str) -> Error {
    let what = format!("the owner {one} {how}, and {other} {other_how}");
    Error::new(ErrorKind::Key, what).hint("ask the owner which one is right")
}

/// A store in which what the owner of its repository has signed counts, if this host knows of one. What is
/// there already of a repository without an owner stays as it is.
///
/// # Errors
/// `Key` if two owners are named; `Mismatch` if nothing there is signed by the one that is; of the store.
pub fn watched(store: Arc<dyn Store>, host: &HostState) -> Result<Arc<dyn Store>> {
    let used = Place::of(store.as_ref(), host).last();
    watched_as(store, host, used)
}

/// The same of a repository with that id, by another path or another name of its server, if this host knows
/// an owner of it.
///
/// # Errors
/// As of [`watched`].
pub(crate) fn watched_as(
    store: Arc<dyn Store>,
    host: &HostState,
    used: Option<Uuid>,
) -> Result<Arc<dyn Store>> {
    if store.owner().is_some() {
        return Ok(store);
    }
    let said = said(host.owner(), store.as_ref())?;
    let known = used.map(|id| known(host, id)).transpose()?.flatten();
    let Some(key) = known.or(said) else { return Ok(store) };
    let signer = host.owner().signer.clone();
    match object::newest_signed(store.as_ref(), key, Damaged::MayCount) {
        Ok(Some(signed)) => {
            if let Some(said) = said.filter(|said| ![key, signed.owner].contains(said)) {
                return Err(two_owners(said, "is given", key, "is who this host knows"));
            }
            // Without that, it has to be said again.
            if known != Some(signed.owner) {
                best_effort(remember(host, signed.repository, signed.owner));
            }
            let place = Place::of(store.as_ref(), host);
            if place.last() != Some(signed.repository) {
                best_effort(place.remember(signed.repository));
            }
            Ok(owned(store, Owner::new(signed.repository, signed.owner, signer)))
        }
        // One that is to be made, or is missing.
        Ok(None) if is_missing(store.as_ref()) => Ok(store),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(store),
        // Whoever is about to repair it does so by the rules.
        Err(e) if e.is_damage() => {
            let sound = object::newest_signed(store.as_ref(), key, Damaged::Skipped)?;
            let sound = sound.map(|signed| (signed.repository, signed.owner));
            match sound.or(used.filter(|_| known.is_some()).map(|id| (id, key))) {
                Some((id, owner)) => Ok(owned(store, Owner::new(id, owner, signer))),
                None => Err(e),
            }
        }
        Err(e) => Err(e),
        Ok(None) => {
            let what =
                format!("{}: nothing there is signed by the owner {key}", store.location(""));
            Err(Error::new(ErrorKind::Mismatch, what).hint(match known {
                Some(_) => "check that it is the right repository: this host knows its owner",
                None => "check that it is the right key",
            }))
        }
    }
}

/// True if there is no repository, of whatever kind.
fn is_missing(store: &dyn Store) -> bool {
    object::ruling(store).is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

/// The same store with an owner.
pub(crate) fn owned(store: Arc<dyn Store>, owner: Owner) -> Arc<dyn Store> {
    Arc::new(OwnedStore::new(store, owner))
}

/// Fails if a repository says that it has an owner, and this host was told of none.
///
/// # Errors
/// `Key`.
pub(crate) fn check_told(config: &Config, store: &dyn Store) -> Result<()> {
    let (Some(key), None) = (config.owner(), store.owner()) else { return Ok(()) };
    let what = format!("{} has an owner that this host does not know", store.location(""));
    Err(Error::new(ErrorKind::Key, what).hint(message![
        "ask the owner for the key, compare it with the one shown here, and give it once: ",
        Setting::OwnerKey.to(key),
    ]))
}

/// Fails unless this host may do what is the owner's.
///
/// # Errors
/// `Auth`.
pub(crate) fn refuse_others(store: &dyn Store, what: &str) -> Result<()> {
    match store.owner() {
        Some(owner) if owner.signer.is_none() => Err(only_owner(what)),
        _ => Ok(()),
    }
}
