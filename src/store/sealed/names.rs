//! The names of images in a sealed store (FORMAT.md Z5): the same name is always sealed to the same text, so
//! that an image is found without a list. What it is called is not told, nor how long that is, but for how
//! many times 32 bytes it has. Ids, kinds and numbers of objects stay plain: they say nothing of an image.

use super::keys::{MasterKey, no_nonce};
use crate::base::error::Result;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey};
use data_encoding::{Encoding, Specification};
use std::sync::LazyLock;
use uuid::Uuid;

const PADDED_BYTES: usize = 32;
/// A sealed name is no longer: that of an image of 128 bytes.
pub(crate) const MAX_SEALED_NAME: usize = 231;

/// RFC 4648, in lower case and without padding: what every file system and every store tells apart.
static BASE32: LazyLock<Option<Encoding>> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().ok()
});

fn encode(bytes: &[u8]) -> String {
    BASE32.as_ref().map(|base32| base32.encode(bytes)).unwrap_or_default()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE32.as_ref()?.decode(text.as_bytes()).ok()
}

/// True for what may be the name of an image, sealed.
pub(crate) fn is_sealed_name(name: &str) -> bool {
    name.len() <= MAX_SEALED_NAME
        && decode(name).is_some_and(|b| b.len() >= 48 && b.len() % 32 == 16)
}

/// Seals names of one repository.
pub(super) struct NameKey(LessSafeKey);

impl NameKey {
    pub fn new(master: &MasterKey, repository: Uuid) -> Result<Self> {
        master.for_purpose("imgsnap names", repository, &AES_256_GCM_SIV).map(Self)
    }

    /// The name of the folder of an image.
    pub fn seal(&self, name: &str) -> String {
        let mut bytes = name.as_bytes().to_vec();
        // No name has a zero byte.
        bytes.resize(bytes.len().max(1).next_multiple_of(PADDED_BYTES), 0);
        match self.0.seal_in_place_append_tag(no_nonce(), Aad::empty(), &mut bytes) {
            Ok(()) => encode(&bytes),
            // Which is the name of nothing.
            Err(_) => "-".into(),
        }
    }

    /// The name of the image whose folder is called so; none if it is none of this repository.
    pub fn open(&self, sealed: &str) -> Option<String> {
        let mut bytes = is_sealed_name(sealed).then(|| decode(sealed)).flatten()?;
        let padded = self.0.open_in_place(no_nonce(), Aad::empty(), &mut bytes).ok()?;
        let end = padded.iter().position(|byte| *byte == 0).unwrap_or(padded.len());
        let (name, padding) = padded.split_at_checked(end)?;
        let is_padding = padding.iter().all(|byte| *byte == 0);
        let name = String::from_utf8(name.to_vec()).ok()?;
        // There is one way to seal a name.
        (is_padding && self.seal(&name) == sealed).then_some(name)
    }
}
