//! What a configuration says of the owner of a repository (FORMAT.md V1, V6). Whoever was told of an owner
//! believes it only if that one has signed it.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::signing::{OwnerKey, Signature};
use crate::repo::signature::Statement;
use crate::store::Owner;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `imgsnap key owner` alone writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OwnerTable {
    #[serde(with = "crate::base::text")]
    pub(super) key: OwnerKey,
    /// Each signed by the owner before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<OwnerChange>,
}

/// An owner named another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OwnerChange {
    #[serde(with = "crate::base::text")]
    from: OwnerKey,
    #[serde(with = "crate::base::text")]
    to: OwnerKey,
    #[serde(with = "crate::base::text")]
    signature: Signature,
}

impl OwnerChange {
    /// None where the private key is not.
    pub(crate) fn new(owner: &Owner, to: OwnerKey) -> Option<Self> {
        let signature = Self::statement(&to.to_string()).sign(owner)?;
        Some(Self { from: owner.key, to, signature })
    }

    fn statement(to: &str) -> Statement<'_> {
        Statement { kind: "owner", image: None, number: 0, previous: None, text: to }
    }

    fn is_signed(&self, repository: Uuid) -> bool {
        let to = self.to.to_string();
        Self::statement(&to).is_signed_by(repository, self.from, &self.signature)
    }
}

impl OwnerTable {
    pub(super) fn new(key: OwnerKey) -> Self {
        Self { key, changes: Vec::new() }
    }

    /// Who owns a repository now, if that one owned it once: each names the next one.
    pub(super) fn owner_after(&self, repository: Uuid, key: OwnerKey) -> OwnerKey {
        let signed = self.changes.iter().filter(|change| change.is_signed(repository));
        signed.fold(key, |key, change| if change.from == key { change.to } else { key })
    }
}

/// The id of the repository, and its owner, in a text that need make no sense otherwise.
pub(super) fn stated_in(text: &str) -> Option<(Uuid, OwnerTable)> {
    #[derive(Deserialize)]
    struct Stated {
        id: Uuid,
        owner: OwnerTable,
    }
    toml::from_str(text).ok().map(|Stated { id, owner }| (id, owner))
}

/// A text that names another owner, and who named it, and is the same otherwise.
///
/// # Errors
/// `Corrupt` for a text that makes no sense.
pub(crate) fn text_with_owner(
    text: &str,
    key: OwnerKey,
    change: Option<OwnerChange>,
) -> Result<String> {
    let wrong = || Error::corrupt("the configuration is invalid");
    let mut document: toml_edit::DocumentMut = text.parse().map_err(|_| wrong())?;
    let changes = stated_in(text).map(|(_, owner)| owner.changes).unwrap_or_default();
    // Whoever knows one that comes twice does not know where it is.
    if changes.iter().any(|before| before.from == key || before.to == key) {
        let what = "that key has been an owner of the repository before";
        return Err(Error::new(ErrorKind::InvalidInput, what).hint("use a new key"));
    }
    let owner = OwnerTable { key, changes: changes.into_iter().chain(change).collect() };
    let written = toml::to_string(&owner).map_err(|_| wrong())?;
    let table: toml_edit::DocumentMut = written.parse().map_err(|_| wrong())?;
    document.insert("owner", toml_edit::Item::Table(table.as_table().clone()));
    Ok(document.to_string())
}
