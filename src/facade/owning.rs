//! Who owns a repository, and what others ask of the owner.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::base::signing::OwnerSigner;
use crate::ops;
use crate::ops::delete::types::Deleted;
use crate::ops::owner::types::{OwnerStatus, SignedImage};
use crate::ops::remove::types::Removed;
use crate::ops::requests::Examined;
use crate::ops::requests::types::DropRequest;
use crate::repo::Repository;
use crate::repo::reference::At;
use serde::Serialize;
use std::sync::Arc;
use uuid::Uuid;

/// What became of a request that was confirmed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Confirmed {
    /// These snapshots were dropped; others of it were gone already.
    Snapshots(Vec<Deleted>),
    /// The image was removed.
    Image(Removed),
}

impl Repository {
    /// Who owns it; none if nobody does.
    pub fn owner(&self) -> Option<OwnerStatus> {
        ops::owner::status(self)
    }

    /// Makes a key its owner: of one that has none, or, with the key of the owner before, in its place. What
    /// is open goes on as before: open it again.
    ///
    /// # Errors
    /// `AlreadyExists` if somebody else owns it; `Busy` if somebody else changes the configuration.
    pub fn take_ownership(
        &self,
        signer: &Arc<OwnerSigner>,
        context: &Context,
    ) -> Result<Vec<SignedImage>> {
        ops::owner::take(self, signer, context)
    }

    /// Signs what hosts without the owner key have added.
    ///
    /// # Errors
    /// `Auth` without the owner key; `InvalidInput` if it has no owner.
    pub fn sign(&self, context: &Context) -> Result<Vec<SignedImage>> {
        ops::owner::sign(self, context)
    }

    /// What hosts without the owner key ask to be dropped, the oldest first; each that cannot be read as an
    /// error.
    ///
    /// # Errors
    /// Of the store.
    pub fn requests(&self) -> Result<Vec<(Uuid, Result<DropRequest>)>> {
        ops::requests::list(self)
    }

    /// Does what a request asks; it is named by its id or a beginning of it. With `may_remove` also one to
    /// remove an image with all its snapshots.
    ///
    /// # Errors
    /// `Auth` without the owner key; `InvalidInput` for a whole image without `may_remove`; `Mismatch` if the
    /// image is another one by now, or a time in it is wrong; as of [`Repository::delete`] and
    /// [`Repository::remove`].
    pub fn confirm_request(
        &self,
        id: &str,
        may_remove: bool,
        context: &Context,
    ) -> Result<(DropRequest, Confirmed)> {
        let Examined { id, request, there } =
            ops::requests::examine(self, id, may_remove, context)?;
        let name = request.image.as_str();
        let confirmed = match there {
            None => Confirmed::Image(ops::remove::run(self, name, context)?),
            Some(there) => {
                let delete = |id| ops::delete::run(self, name, &At::Id(id), false, context);
                Confirmed::Snapshots(there.into_iter().map(delete).collect::<Result<_>>()?)
            }
        };
        ops::requests::is_done(self, id)?;
        Ok((request, confirmed))
    }

    /// Takes a request away.
    ///
    /// # Errors
    /// `NotFound` if there is none, or there are several.
    pub fn reject_request(&self, id: &str) -> Result<Uuid> {
        ops::requests::reject_request(self, id)
    }
}
