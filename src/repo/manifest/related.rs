//! What a snapshot has to do with others: its group, what depends on it, what belongs to it, and snapshots
//! that are not finished (FORMAT.md J18 to J21).

use crate::base::error::{Error, Result};
use crate::repo::manifest::commit::ManifestDigest;
use crate::repo::manifest::wire;
use crate::store::Store;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Largest attachment: it is read whole.
pub const MAX_ATTACHMENT_BYTES: u64 = 64 << 20;

/// Snapshots of several images at one point in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its identity.
    #[serde(deserialize_with = "wire::id")]
    pub id: Uuid,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All of them, this one included, whether or not they came about.
    pub members: Vec<SnapshotPlace>,
    /// They were taken one after the other, and not at one point in time.
    #[serde(default, rename = "apart", skip_serializing_if = "std::ops::Not::not")]
    pub is_apart: bool,
}

impl Group {
    /// What it is called, and what is in it, in a line.
    pub fn describe(&self) -> String {
        let member = |member: &SnapshotPlace| member.name.escape_debug().to_string();
        let members: Vec<String> = self.members.iter().map(member).collect();
        let name = self.name.as_ref();
        let name = name.map_or(String::new(), |name| format!("{}: ", name.escape_debug()));
        let apart = if self.is_apart { ", one after the other" } else { "" };
        format!("{name}{}{apart}", members.join(", "))
    }
}

/// A snapshot of an image in the same repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPlace {
    /// Identity of the image.
    #[serde(deserialize_with = "wire::id")]
    pub image: Uuid,
    /// What the image was called then, for people.
    pub name: String,
    /// Identity of the snapshot.
    #[serde(deserialize_with = "wire::id")]
    pub snapshot: Uuid,
}

/// Bytes that belong to a snapshot, and are not of the image: the definition of a machine, say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What it is called: the name of a file.
    pub name: String,
    /// Name of its object in the folder of the image.
    pub object: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of it.
    pub digest: ManifestDigest,
}

impl Attachment {
    /// Reads it from the folder of an image.
    ///
    /// # Errors
    /// `Corrupt` if it is not what was attached; what the store fails with.
    pub fn read(&self, store: &dyn Store, image: &str) -> Result<Vec<u8>> {
        let object = format!("{image}/{}", self.object);
        let bytes = store.read_whole(&object, MAX_ATTACHMENT_BYTES)?;
        match bytes.len() as u64 == self.bytes && ManifestDigest::of(&bytes) == self.digest {
            true => Ok(bytes),
            false => {
                let what = format!("the attachment \"{}\" is damaged", self.name.escape_debug());
                Err(Error::corrupt(what).at(store.location(&object)))
            }
        }
    }
}

/// Something that depends on a snapshot from elsewhere in the repository, while which it is not dropped (C9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Its identity: made for this one dependence.
    #[serde(deserialize_with = "wire::id")]
    pub id: Uuid,
    /// Identity of the image that depends on it.
    #[serde(deserialize_with = "wire::id")]
    pub image: Uuid,
    /// Name of that image.
    pub name: String,
    /// Number of the manifest that named it first; 0 if that is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub since: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The snapshot of another image in the repository that a chain begins from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseOf {
    /// Identity of that image.
    #[serde(deserialize_with = "wire::id")]
    pub image: Uuid,
    /// Name of that image.
    pub name: String,
    /// Identity of the snapshot: the parent in the footer.
    #[serde(deserialize_with = "wire::id")]
    pub snapshot: Uuid,
    /// Number of the snapshot, for people.
    pub number: u64,
    /// Identity of the pin that keeps it ([`Pin`]).
    #[serde(deserialize_with = "wire::id")]
    pub pin: Uuid,
}

impl BaseOf {
    /// What to call the snapshot: `NAME@N`.
    pub fn place(&self) -> String {
        format!("{}@{}", self.name, self.number)
    }
}

/// What a pin is called where objects are condemned: by the image that it was made for.
pub(crate) fn pin_object(pin: Uuid) -> String {
    format!("{pin}{PIN_SUFFIX}")
}

/// True for the name of a pin among what is condemned: there is no such file.
pub(crate) fn is_pin_object(object: &str) -> bool {
    object.ends_with(PIN_SUFFIX)
}

const PIN_SUFFIX: &str = ".pin";

/// A snapshot that is being taken in parts, by others perhaps, or that was interrupted and can be resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// Its identity, which the snapshot will have.
    #[serde(deserialize_with = "wire::id")]
    pub id: Uuid,
    /// Its number, which no other one gets; 0 if there will be none, and its parent is only kept for a plan.
    pub number: u64,
    /// Its parent, which is not dropped meanwhile; none of a base.
    #[serde(deserialize_with = "wire::id_or_null")]
    pub parent: Option<Uuid>,
    /// Names of what is finished: no garbage.
    pub objects: Vec<String>,
    /// When it is given up, by the clock of the store.
    pub expires: Timestamp,
    /// The plan by which workers make its parts, which are named by that.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "wire::some_id")]
    pub plan: Option<Uuid>,
}

impl Pending {
    /// True if no snapshot is made: a plan needs the parent, which is kept meanwhile.
    pub fn is_only_kept(&self) -> bool {
        self.number == 0
    }
}
