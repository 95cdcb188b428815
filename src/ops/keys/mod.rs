//! The verb *key*: who can open a sealed repository.
//!
//! A slot is put before the configuration lists it, and removed after that has ceased to. A change that is
//! interrupted leaves a slot that opens nothing.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Verb, message};
use crate::ops::keys::types::KeySlot;
use crate::repo::Repository;
use crate::repo::config::{Config, object};
use crate::repo::owner::refuse_others;
use crate::store::sealed::{Credential, Sealing, SlotId, remove_slot, slots_in};
use std::sync::Arc;
use zeroize::Zeroizing;

fn sealing(repository: &Repository) -> Result<&Arc<Sealing>> {
    repository.store.sealing().ok_or_else(|| {
        let what = format!("{} is not encrypted, and has no keys", repository.location());
        Error::new(ErrorKind::InvalidInput, what)
    })
}

/// The slots: those that the configuration lists, and whatever else there is.
pub(crate) fn list(repository: &Repository) -> Result<Vec<KeySlot>> {
    let used = sealing(repository)?.slot();
    let listed = repository.config.slots();
    let mut there = slots_in(repository.store.as_ref())?;
    let missing = listed.iter().filter(|id| !there.iter().any(|(there, _)| there == *id));
    let missing: Vec<_> = missing.map(|id| (*id, None)).collect();
    there.extend(missing);
    let mut slots: Vec<KeySlot> = there
        .into_iter()
        .map(|(id, derivation)| KeySlot {
            id,
            derivation,
            is_used: used == Some(id),
            is_listed: listed.contains(&id),
        })
        .collect();
    slots.sort_by_key(|slot| listed.iter().position(|id| *id == slot.id).unwrap_or(usize::MAX));
    Ok(slots)
}

/// Adds a slot, which opens with what is given.
pub(crate) fn add(repository: &Repository, given: &Credential) -> Result<SlotId> {
    put(repository, given, |_| true)
}

/// Puts a slot in the place of the one that the repository was opened by.
pub(crate) fn change(repository: &Repository, given: &Credential) -> Result<SlotId> {
    let Some(old) = sealing(repository)?.slot() else {
        let what = "the repository was opened by its recovery text, which does not change";
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .hint(message!["add one with ", Verb::Key.of("add")]));
    };
    let new = put(repository, given, |id| id != old)?;
    // It opens nothing any more.
    best_effort(remove_slot(repository.store.as_ref(), old));
    Ok(new)
}

fn put(
    repository: &Repository,
    given: &Credential,
    stays: impl Fn(SlotId) -> bool,
) -> Result<SlotId> {
    let store = repository.store.as_ref();
    refuse_others(store, "change its key slots")?;
    let new = sealing(repository)?.add_slot(store, given)?;
    let committed = commit(repository, |slots| {
        slots.retain(|id| stays(*id));
        slots.push(new);
        Ok(())
    });
    if committed.as_ref().is_err_and(|e| e.kind() == ErrorKind::Busy) {
        // Somebody else changed them: this one is not listed.
        best_effort(remove_slot(store, new));
    }
    committed.map(|()| new)
}

/// Removes a slot: not the last one.
pub(crate) fn remove(repository: &Repository, slot: &str) -> Result<SlotId> {
    sealing(repository)?;
    refuse_others(repository.store.as_ref(), "change its key slots")?;
    let listed = repository.config.slots();
    let found: Vec<SlotId> =
        listed.iter().filter(|id| id.to_string().starts_with(slot)).copied().collect();
    let [id] = found.as_slice() else {
        let what = match found.len() {
            0 => format!("there is no key slot \"{}\"", slot.escape_debug()),
            count => format!("{count} key slots begin with \"{}\"", slot.escape_debug()),
        };
        return Err(Error::new(ErrorKind::NotFound, what)
            .hint(message![Verb::Key.of("list"), " lists them"]));
    };
    // Of those that are listed, only what can be read opens anything.
    let usable = slots_in(repository.store.as_ref())?;
    let is_usable = |other: &SlotId| usable.iter().any(|(id, of)| id == other && of.is_some());
    commit(repository, |slots| {
        slots.retain(|other| other != id);
        match slots.iter().any(is_usable) {
            false => {
                Err(Error::new(ErrorKind::InvalidInput, "the last key slot cannot be removed")
                    .hint("add another one first"))
            }
            true => Ok(()),
        }
    })?;
    remove_slot(repository.store.as_ref(), *id)?;
    Ok(*id)
}

/// The recovery text: the master key itself.
pub(crate) fn recovery_text(repository: &Repository) -> Result<Zeroizing<String>> {
    let owner = repository.store.owner().map(|owner| owner.key);
    Ok(sealing(repository)?.recovery_text(owner))
}

fn commit(
    repository: &Repository,
    change: impl FnOnce(&mut Vec<SlotId>) -> Result<()>,
) -> Result<()> {
    let store = repository.store.as_ref();
    let ruling = object::ruling(store)?;
    let mut slots = Config::decode(&ruling.text)?.slots().to_vec();
    change(&mut slots)?;
    let text = Config::text_with_slots(&ruling.text, &slots)?;
    object::commit(store, ruling.number, &text).map(drop)
}
