//! A manifest as the bytes of its file (FORMAT.md J1, J2, V2).

use crate::base::checked_text::{read_checked, to_checked};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::signing::{OwnerKey, Signature};
use crate::repo::manifest::commit::ManifestDigest;
use crate::repo::manifest::types::Manifest;
use crate::repo::signature::{Statement, read_signed};
use crate::store::Owner;

/// What is written. Versions 1, and 2 with snapshots that are dropped, are read.
const VERSION: u32 = 3;
/// The same of one that the owner has signed.
const SIGNED_VERSION: u32 = 4;

impl Manifest {
    fn body(&self) -> Result<String> {
        let mut body = serde_json::to_string_pretty(self).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot write the manifest: {e}"))
        })?;
        body.push('\n');
        Ok(body)
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Result<Vec<u8>> {
        // One that was read, and is not committed, is of the version that it was.
        let version = match (self.commit, self.dropped.is_empty()) {
            (Some(_), _) => VERSION,
            (None, true) => 1,
            (None, false) => 2,
        };
        Ok(to_checked("manifest", version, &self.body()?))
    }

    /// The same of one that is committed, signed where the owner's private key is.
    pub(super) fn encode_for(&self, owner: Option<&Owner>) -> Result<Vec<u8>> {
        let body = self.body()?;
        let signed = owner.and_then(|owner| self.statement(&body).signed_text(owner));
        match signed {
            Some(text) => Ok(to_checked("manifest", SIGNED_VERSION, &text)),
            None => self.encode(),
        }
    }

    /// What the owner signs of it.
    fn statement<'a>(&self, body: &'a str) -> Statement<'a> {
        Statement {
            kind: "manifest",
            image: Some(self.image_id),
            number: self.sequence,
            previous: self.previous.map(ManifestDigest::bytes),
            text: body,
        }
    }

    /// Checks and decodes the bytes of a file.
    ///
    /// # Errors
    /// `Corrupt`, or `Unsupported` if a later version wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::decode_signed(bytes, None).map(|(manifest, _)| manifest)
    }

    /// The same, and whether the owner has signed it.
    ///
    /// # Errors
    /// As of [`Manifest::decode`].
    pub(super) fn decode_signed(bytes: &[u8], owner: Option<&Owner>) -> Result<(Self, bool)> {
        let (version, signed, text) = read_text(bytes)?;
        let mut manifest: Self = serde_json::from_str(text)
            .map_err(|e| Error::corrupt(format!("the manifest is not valid: {e}")))?;
        if version < VERSION {
            manifest.forget_commit();
        }
        manifest.check_needs()?;
        // What tells an older program that it must not read on.
        let is_of_version = match version {
            1 => manifest.dropped.is_empty(),
            2 => !manifest.dropped.is_empty(),
            _ => manifest.commit.is_some(),
        };
        if !is_of_version {
            return Err(Error::corrupt("the manifest is damaged"));
        }
        manifest.check()?;
        manifest.is_read_from(bytes);
        let is_signed = owner.zip(signed).is_some_and(|(owner, (key, signature))| {
            let statement = manifest.statement(text);
            key == owner.key && statement.is_signed_by(owner.repository, key, &signature)
        });
        Ok((manifest, is_signed))
    }
}

/// Who says to have signed a file.
pub(super) type Signed = (OwnerKey, Signature);

/// The version of a file that is as it was written, who says to have signed it, and what it says.
///
/// # Errors
/// `Corrupt`, or `Unsupported` if a later version wrote it.
pub(super) fn read_text(bytes: &[u8]) -> Result<(u32, Option<Signed>, &str)> {
    // All of it, not only what is examined: JSON is text.
    match read_checked("manifest", SIGNED_VERSION, bytes)? {
        (SIGNED_VERSION, text) => {
            let (key, signature, text) = read_signed(text)?;
            Ok((SIGNED_VERSION, Some((key, signature)), text))
        }
        (version, text) => Ok((version, None, text)),
    }
}
