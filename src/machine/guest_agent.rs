//! Who freezes the file systems in a machine, from inside: over a socket of QEMU's, or through libvirt.

use super::guard::Undo;
use crate::base::error::Result;
use std::time::Duration;

/// Who freezes the file systems in a machine.
pub trait GuestAgent: Send {
    /// What it is called in messages.
    fn name(&self) -> &str;

    /// What thaws them when we cannot.
    ///
    /// # Errors
    /// Of the operating system.
    fn undo(&self) -> Result<Undo>;

    /// True if they are frozen, by whomever, as far as that can be told.
    ///
    /// # Errors
    /// `Unavailable` if it does not answer; what it refuses.
    fn is_frozen(&mut self) -> Result<bool>;

    /// Freezes all that can be frozen, and gives their number.
    ///
    /// # Errors
    /// `Unavailable` if there is no answer within `limit`: then they may be frozen, or will be. Otherwise
    /// they are not: `Busy` if they were already, what the agent refuses.
    fn freeze(&mut self, limit: Duration) -> Result<u64>;

    /// Thaws all of them. True if they were frozen until now. `has_guard_acted`: something else may have
    /// asked for that.
    ///
    /// # Errors
    /// `Unavailable` if there is no answer: then they may still be frozen. What the agent refuses.
    fn thaw(&mut self, has_guard_acted: bool) -> Result<bool>;
}
