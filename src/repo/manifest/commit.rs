//! Names of commits, and of what they condemn (FORMAT.md J10, J11).

use crate::base::error::{Error, ErrorKind};
use crate::base::message::Action;
use crate::repo::manifest::wire;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::fmt;
use uuid::Uuid;

/// Digest of a manifest file: BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ManifestDigest([u8; 32]);

impl ManifestDigest {
    /// Of the bytes of the file.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub(super) fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Debug for ManifestDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl Serialize for ManifestDigest {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl<'de> Deserialize<'de> for ManifestDigest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let hash = blake3::Hash::from_hex(&text).ok().filter(|hash| *hash.to_hex() == *text);
        let wrong = "invalid manifest digest: expected 64 lower-case hexadecimal digits";
        hash.map(|hash| Self(hash.into())).ok_or_else(|| serde::de::Error::custom(wrong))
    }
}

/// An earlier commit of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Number of its manifest.
    pub sequence: u64,
    /// Its id.
    #[serde(deserialize_with = "wire::id")]
    pub commit: Uuid,
}

/// An object that is named no more, and may be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// Its name in the folder of the image.
    pub object: String,
    /// Number of the first manifest that said so.
    pub sequence: u64,
}

/// The commit that a manifest was read from, or that it is since it was committed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Read {
    pub(super) digest: ManifestDigest,
    /// Its length.
    pub(in crate::repo) bytes: u64,
    pub(in crate::repo) objects: BTreeSet<String>,
}

/// What to say of an image that somebody else changes at the same time.
pub(crate) fn changed_meanwhile(name: &str) -> Error {
    let what = format!("another process changed \"{name}\" meanwhile");
    Error::new(ErrorKind::Busy, what).hint(Action::Retry)
}

/// By what a manifest counts in a repository that has an owner; nothing elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Number of the last one before it, or its own, that is signed: those since then are needed to see that
    /// it counts.
    pub(super) signed: u64,
    /// The last number up to which none is free: those after its own do not count.
    pub(super) last: u64,
}
