//! The keys of one repository that is open, and the slots of its store.

use super::keys::{CacheKey, KeyId, MasterKey};
use super::names::NameKey;
use super::object::Identity;
use super::recovery;
use super::slots::{Credential, Derivation, Slot, SlotId, slot_file};
use crate::base::error::{ErrorKind, Result};
use crate::base::signing::OwnerKey;
use crate::store::Store;
use uuid::Uuid;
use zeroize::Zeroizing;

/// The keys of one repository.
pub struct Sealing {
    pub(super) repository: Uuid,
    pub(super) master: MasterKey,
    pub(super) key_id: KeyId,
    pub(super) names: NameKey,
    /// The slot that it was opened by; none if that was the master key itself.
    slot: Option<SlotId>,
    /// That slot, of a repository that is to be made.
    pub(super) new_slot: Option<Slot>,
    /// Who owns it, as a recovery text says.
    pub(super) owner: Option<OwnerKey>,
}

impl Sealing {
    pub(super) fn new(repository: Uuid, master: MasterKey, slot: Option<SlotId>) -> Result<Self> {
        let (key_id, names) = (master.id()?, NameKey::new(&master, repository)?);
        Ok(Self { repository, master, key_id, names, slot, new_slot: None, owner: None })
    }

    /// Puts the first slot of a repository that is to be made. Nothing is sealed before.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) fn put_new_slot(&self, store: &dyn Store) -> Result<()> {
        match self.new_slot.as_ref().map(|slot| slot.put(store)) {
            Some(Err(e)) if e.kind() != ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    /// Which repository they are of.
    pub fn repository(&self) -> Uuid {
        self.repository
    }

    /// What the master key is called.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// The slot that the repository was opened by, or made with; none if the master key itself was given.
    pub fn slot(&self) -> Option<SlotId> {
        self.slot
    }

    /// Seals what this host keeps of the index.
    ///
    /// # Errors
    /// `Internal` if the cipher is broken.
    pub(in crate::store) fn cache_key(&self) -> Result<CacheKey> {
        CacheKey::new(&self.master, self.repository)
    }

    /// Who owns the repository, if a recovery text opened it that says so.
    pub fn owner(&self) -> Option<OwnerKey> {
        self.owner
    }

    /// The recovery text: whoever has it has the master key.
    pub fn recovery_text(&self, owner: Option<OwnerKey>) -> Zeroizing<String> {
        recovery::to_text(self.repository, &self.master, owner)
    }

    /// Wraps the master key with something more that opens it, in a slot that is put into a store.
    ///
    /// # Errors
    /// `Key` for what is no key; those of the store.
    pub fn add_slot(&self, store: &dyn Store, given: &Credential) -> Result<SlotId> {
        let slot = Slot::wrap(&self.master, self.repository, given)?;
        slot.put(store)?;
        Ok(slot.id)
    }

    /// What an object is.
    pub(super) fn identity(&self, name: &str) -> Identity {
        Identity::of(self.repository, name)
    }
}

/// Removes a key slot.
///
/// # Errors
/// Those of the store.
pub(crate) fn remove_slot(store: &dyn Store, slot: SlotId) -> Result<()> {
    store.remove(&slot_file(slot))?;
    store.sync_dir("")
}

/// The key slots in a store with what each is made of; none of one that is damaged, or of another key.
///
/// # Errors
/// Those of the store.
pub(crate) fn slots_in(store: &dyn Store) -> Result<Vec<(SlotId, Option<Derivation>)>> {
    let slots = Slot::all(store, &store.list("")?)?;
    let is_of = |slot: &Slot| store.sealing().is_none_or(|sealing| sealing.key_id == slot.key);
    let derivation = |slot: Result<Slot>| Some(slot.ok().filter(is_of)?.derivation);
    Ok(slots.into_iter().map(|(id, slot)| (id, derivation(slot))).collect())
}
