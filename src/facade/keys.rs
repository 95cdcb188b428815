//! Who can open a sealed repository.

use crate::base::error::Result;
use crate::ops;
use crate::ops::keys::types::KeySlot;
use crate::repo::Repository;
use crate::store::sealed::{Credential, SlotId};
use zeroize::Zeroizing;

impl Repository {
    /// What opens the repository.
    ///
    /// # Errors
    /// `InvalidInput` if it is not sealed.
    pub fn key_slots(&self) -> Result<Vec<KeySlot>> {
        ops::keys::list(self)
    }

    /// Lets something more open it.
    ///
    /// # Errors
    /// As of [`Repository::key_slots`]; `Busy` if somebody else changes the configuration.
    pub fn add_key(&self, given: &Credential) -> Result<SlotId> {
        ops::keys::add(self, given)
    }

    /// The same in the place of what opened it now.
    ///
    /// # Errors
    /// As of [`Repository::add_key`]; `InvalidInput` if that was the recovery text.
    pub fn change_key(&self, given: &Credential) -> Result<SlotId> {
        ops::keys::change(self, given)
    }

    /// Takes a slot away, by its id or the beginning of it: never the last one.
    ///
    /// # Errors
    /// As of [`Repository::add_key`]; `NotFound` if there is none, or there are several.
    pub fn remove_key(&self, slot: &str) -> Result<SlotId> {
        ops::keys::remove(self, slot)
    }

    /// What opens it without any slot: whoever has it has the master key.
    ///
    /// # Errors
    /// As of [`Repository::key_slots`].
    pub fn recovery_text(&self) -> Result<Zeroizing<String>> {
        ops::keys::recovery_text(self)
    }
}
