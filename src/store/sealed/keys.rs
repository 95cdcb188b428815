//! The master key of a repository, and the keys that are made of it (FORMAT.md Z3, Z4).
//!
//! ```text
//! master key (32 random bytes)
//!   Expand ─ "imgsnap key id"                              the id, which is no secret
//!   Expand ─ "imgsnap names", repository                   names of images (names.rs)
//!   Expand ─ "imgsnap cache", repository                   what a host keeps of its index
//!   Extract(salt) ─ Expand "imgsnap object", …             one object (object.rs)
//!                 ─ Expand "imgsnap commitment", …
//! ```

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::secret::Secret;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use std::fmt;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Length of a key in bytes.
pub(super) const KEY_BYTES: usize = 32;
/// Length of a salt in bytes.
pub(super) const SALT_BYTES: usize = 32;

/// Which master key something is sealed with: told to everybody.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub(super) [u8; 16]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for KeyId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        let id = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        id.ok_or_else(|| {
            Error::corrupt("invalid key id: expected 32 lower-case hexadecimal digits")
        })
    }
}

/// What must not happen with keys and buffers of the right length.
pub(super) fn broken<E>(_: E) -> Error {
    Error::new(ErrorKind::Internal, "the cipher refuses what it is given")
}

/// What is derived: its length, and nothing else.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Expands a key: `fields` say for what, each with its length before it.
pub(super) fn expand(prk: &Prk, fields: &[&[u8]], out: &mut [u8]) -> Result<()> {
    let mut info = Vec::new();
    for field in fields {
        info.extend_from_slice(&(field.len() as u32).to_le_bytes());
        info.extend_from_slice(field);
    }
    let info = [info.as_slice()];
    prk.expand(&info, Length(out.len())).and_then(|okm| okm.fill(out)).map_err(broken)
}

/// The same as a key.
pub(super) fn expand_key(
    prk: &Prk,
    fields: &[&[u8]],
    algorithm: &'static Algorithm,
) -> Result<LessSafeKey> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    expand(prk, fields, bytes.as_mut())?;
    Ok(LessSafeKey::new(UnboundKey::new(algorithm, bytes.as_ref()).map_err(broken)?))
}

/// The nonce of a key that is used once, or whose cipher needs none.
pub(super) fn no_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// The key of a repository. Whoever has it reads all, and seals.
#[derive(Debug)]
pub struct MasterKey(Secret);

impl MasterKey {
    /// A new one.
    ///
    /// # Errors
    /// `Io` without random numbers.
    pub fn new() -> Result<Self> {
        Secret::random(KEY_BYTES).map(Self)
    }

    /// That of 32 bytes.
    ///
    /// # Errors
    /// `InvalidInput` for another number of them.
    pub(super) fn of(secret: Secret) -> Result<Self> {
        match secret.bytes().len() {
            KEY_BYTES => Ok(Self(secret)),
            _ => Err(Error::new(ErrorKind::InvalidInput, "a master key must have 32 bytes")),
        }
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn prk(&self) -> Prk {
        Prk::new_less_safe(HKDF_SHA256, self.bytes())
    }

    /// What it is called.
    ///
    /// # Errors
    /// `Internal` if the cipher is broken.
    pub fn id(&self) -> Result<KeyId> {
        let mut id = [0; 16];
        expand(&self.prk(), &[b"imgsnap key id"], &mut id)?;
        Ok(KeyId(id))
    }

    /// The key of a purpose, in one repository.
    pub(super) fn for_purpose(
        &self,
        purpose: &str,
        repository: Uuid,
        algorithm: &'static Algorithm,
    ) -> Result<LessSafeKey> {
        expand_key(&self.prk(), &[purpose.as_bytes(), repository.as_bytes()], algorithm)
    }

    /// What the keys of objects with a salt are expanded from.
    pub(super) fn salted(&self, salt: &[u8]) -> Prk {
        Salt::new(HKDF_SHA256, salt).extract(self.bytes())
    }
}

/// Seals what a host keeps of the index, each record with a key of its own (FORMAT.md Z9).
pub struct CacheKey(Secret);

impl CacheKey {
    pub(super) fn new(master: &MasterKey, repository: Uuid) -> Result<Self> {
        let mut bytes = vec![0; KEY_BYTES];
        expand(&master.prk(), &[b"imgsnap cache", repository.as_bytes()], &mut bytes)?;
        Secret::new(bytes).map(Self)
    }

    /// Seals a record with a key of its own, by a salt that was never used before. `about` is what it is of.
    ///
    /// # Errors
    /// `Internal` if the cipher is broken.
    pub(in crate::store) fn seal_record(
        &self,
        salt: &[u8],
        about: &[&[u8]],
        bytes: &[u8],
    ) -> Result<Vec<u8>> {
        let mut sealed = bytes.to_vec();
        let key = self.record_key(salt, about)?;
        key.seal_in_place_append_tag(no_nonce(), Aad::empty(), &mut sealed).map_err(broken)?;
        Ok(sealed)
    }

    /// Opens one; none if it is not what was sealed.
    pub(in crate::store) fn open_record(
        &self,
        salt: &[u8],
        about: &[&[u8]],
        mut sealed: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let key = self.record_key(salt, about).ok()?;
        let bytes = key.open_in_place(no_nonce(), Aad::empty(), &mut sealed).ok()?.len();
        sealed.truncate(bytes);
        Some(sealed)
    }

    fn record_key(&self, salt: &[u8], about: &[&[u8]]) -> Result<LessSafeKey> {
        let prk = Salt::new(HKDF_SHA256, salt).extract(self.0.bytes());
        let purpose: &[u8] = b"imgsnap cache record";
        expand_key(&prk, &[&[purpose], about].concat(), &AES_256_GCM)
    }
}
