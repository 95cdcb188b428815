//! What the owner of a repository signs, and how that stands in a text that is committed (FORMAT.md V2).

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::signing::{OwnerKey, Signature};
use crate::store::Owner;
use uuid::Uuid;

/// What every signature begins with, so that it is none of another program.
const DOMAIN: &[u8] = b"imgsnap owner";
const SIGNED: &str = "signed ";

/// What is signed.
pub(crate) struct Statement<'a> {
    /// `manifest`, `config` or `owner`.
    pub kind: &'a str,
    /// Of a manifest.
    pub image: Option<Uuid>,
    pub number: u64,
    /// Digest of the manifest that it follows.
    pub previous: Option<[u8; 32]>,
    pub text: &'a str,
}

impl Statement<'_> {
    fn with_fields<T>(&self, repository: Uuid, then: impl FnOnce(&[&[u8]]) -> T) -> T {
        let number = self.number.to_le_bytes();
        let image = self.image.map(Uuid::into_bytes);
        let [image, previous] = [
            image.as_ref().map_or(&[][..], |id| id.as_slice()),
            self.previous.as_ref().map_or(&[][..], |digest| digest.as_slice()),
        ];
        let (repository, kind) = (repository.as_bytes(), self.kind.as_bytes());
        then(&[DOMAIN, repository, kind, image, &number, previous, self.text.as_bytes()])
    }

    /// Signs it; none where the private key is not.
    pub(crate) fn sign(&self, owner: &Owner) -> Option<Signature> {
        self.with_fields(owner.repository, |fields| owner.sign(fields))
    }

    /// True if it is signed with a key.
    pub(crate) fn is_signed_by(
        &self,
        repository: Uuid,
        key: OwnerKey,
        signature: &Signature,
    ) -> bool {
        self.with_fields(repository, |fields| key.verifies(fields, signature))
    }

    /// The text with the line before it that says who signed it; none where the private key is not.
    pub(crate) fn signed_text(&self, owner: &Owner) -> Option<String> {
        let signature = self.sign(owner)?;
        Some(format!("{SIGNED}{} {signature}\n{}", owner.key, self.text))
    }
}

/// Who signed a text, and the text without the line that says so.
///
/// # Errors
/// `Corrupt` without such a line.
pub(crate) fn read_signed(text: &str) -> Result<(OwnerKey, Signature, &str)> {
    let wrong = || Error::corrupt("the signature is missing or damaged");
    let (line, rest) = text.split_once('\n').ok_or_else(wrong)?;
    let (key, signature) =
        line.strip_prefix(SIGNED).and_then(|l| l.split_once(' ')).ok_or_else(wrong)?;
    Ok((key.parse().map_err(|_| wrong())?, signature.parse().map_err(|_| wrong())?, rest))
}

/// What to say to who is not the owner.
pub(crate) fn only_owner(what: &str) -> Error {
    Error::new(ErrorKind::Auth, format!("only the owner of the repository may {what}"))
        .hint(message!["give the owner key with ", Setting::OwnerKeyFile])
}
