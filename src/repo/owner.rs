//! Who owns a repository, as far as this host knows (FORMAT.md V1, S10): whose signatures count is said by
//! its user, once, or by the recovery text, and never by the store.
//!
//! ```text
//! STATE/REPOSITORY-ID/DIGEST.owner     the key that was said
//! ```

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Setting, message};
use crate::base::signing::OwnerKey;
use crate::repo::config::owner::id_in;
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
    if store.owner().is_some() {
        return Ok(store);
    }
    let said = said(host.owner(), store.as_ref())?;
    let used = Place::of(store.as_ref(), host).last();
    let (place, mut known_key) = (store.location(""), None);
    if let Some(id) = used {
        known_key = known(host, id)?;
    } else if let Ok(ruling) = object::ruling(store.as_ref())
        && let Some(id) = id_in(&ruling.text)
    {
        // By another path, or another name of the server.
        known_key = known(host, id)?;
    }
    let Some(key) = known_key.or(said) else { return Ok(store) };
    // One that is to be made.
    match object::numbers(store.as_ref()) {
        Ok(numbers) if numbers.is_empty() => return Ok(store),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(store),
        numbers => numbers?,
    };
    let Some(signed) = object::newest_signed(store.as_ref(), key)? else {
        let what = format!("{place}: nothing there is signed by the owner {key}");
        return Err(Error::new(ErrorKind::Mismatch, what).hint(match known_key {
            Some(_) => "this host knows that owner: is it the right repository?",
            None => "is it the right key?",
        }));
    };
    if let Some(said) = said.filter(|said| ![key, signed.owner].contains(said)) {
        return Err(two_owners(said, "is given", key, "is who this host knows"));
    }
    if known_key != Some(signed.owner) {
        // Without it, it has to be said again.
        best_effort(remember(host, signed.repository, signed.owner));
    }
    let signer = host.owner().signer.clone();
    Ok(owned(store, Owner::new(signed.repository, signed.owner, signer)))
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
    let what = format!("{} has an owner, whom this host does not know", store.location(""));
    Err(Error::new(ErrorKind::Key, what).hint(message![
        "ask the owner for the key, compare it with the one that stands there, and give it once: ",
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
