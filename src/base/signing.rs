//! Signatures of an owner: Ed25519 (RFC 8032) over fields, each with its length before it.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Verb, message};
use crate::base::secret::{Secret, fill_random};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::HEXLOWER;
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// Bytes of a public key, and of the seed of a private one.
const KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;

/// The first line of a file with a private key.
const TITLE: &str = "imgsnap owner key 1";

/// Digits that tell a key from one that was mistyped, and from a private one: so many bytes of its digest.
const CHECK_BYTES: usize = 4;

/// Who owns a repository: a public key. It is written as 72 hexadecimal digits, of which the last eight are a
/// check.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerKey([u8; KEY_BYTES]);

impl OwnerKey {
    /// True if a signature of these fields is by the owner.
    pub(crate) fn verifies(&self, fields: &[&[u8]], signature: &Signature) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(&message(fields), &signature.0).is_ok()
    }
}

impl fmt::Display for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check = blake3::hash(&self.0);
        f.write_str(&HEXLOWER.encode(&self.0))?;
        f.write_str(check.to_hex().get(..2 * CHECK_BYTES).unwrap_or_default())
    }
}

impl fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OwnerKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // It may be the private one, by mistake: it is not said again.
        let wrong = || {
            Error::new(ErrorKind::InvalidInput, "invalid owner key")
                .hint("use the public key, which has 72 hexadecimal digits")
        };
        let key = text.get(..2 * KEY_BYTES).and_then(digits).map(Self).ok_or_else(wrong)?;
        if key.to_string() == text { Ok(key) } else { Err(wrong()) }
    }
}

/// A signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature([u8; SIGNATURE_BYTES]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl FromStr for Signature {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        digits(text).map(Self).ok_or_else(|| Error::corrupt("invalid signature"))
    }
}

/// The bytes in lower case digits.
fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// What is signed: fields that end where others begin could be others.
fn message(fields: &[&[u8]]) -> Vec<u8> {
    let mut message = Vec::new();
    for field in fields {
        message.extend((field.len() as u64).to_le_bytes());
        message.extend_from_slice(field);
    }
    message
}

/// The private key of an owner.
pub struct OwnerSigner {
    pair: Ed25519KeyPair,
    seed: Secret,
}

impl fmt::Debug for OwnerSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnerSigner").field(&self.key()).finish()
    }
}

impl OwnerSigner {
    /// A new one.
    ///
    /// # Errors
    /// `Io` without random numbers.
    pub fn new() -> Result<Self> {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        fill_random(seed.as_mut())?;
        Self::of_seed(Secret::copy(seed.as_ref())?)
    }

    fn of_seed(seed: Secret) -> Result<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.bytes());
        let pair = pair.map_err(|_| Error::new(ErrorKind::Key, "invalid owner key"))?;
        Ok(Self { pair, seed })
    }

    /// Reads what [`OwnerSigner::to_text`] gives.
    ///
    /// # Errors
    /// `Key` for another text.
    pub fn read(text: &Secret) -> Result<Self> {
        let wrong = || {
            Error::new(ErrorKind::Key, "the file does not contain an owner key").hint(message![
                "use the file that ",
                Verb::Key.of("owner create"),
                " wrote"
            ])
        };
        let text = std::str::from_utf8(text.bytes()).map_err(|_| wrong())?;
        if text.lines().next() != Some(TITLE) {
            return Err(wrong());
        }
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).ok_or_else(wrong)
        };
        let seed = Zeroizing::new(digits::<KEY_BYTES>(field("private:")?).ok_or_else(wrong)?);
        let signer = Self::of_seed(Secret::copy(seed.as_ref())?)?;
        // A digit that was lost would make it another one.
        if field("public:")? != signer.key().to_string() {
            return Err(wrong());
        }
        Ok(signer)
    }

    /// The text of its file.
    pub fn to_text(&self) -> Zeroizing<String> {
        // As long as it becomes: nothing of it is left where it was shorter.
        let mut text = Zeroizing::new(String::with_capacity(512));
        let seed = Zeroizing::new(HEXLOWER.encode(self.seed.bytes()));
        for part in [TITLE, "\nprivate: ", &seed, "\npublic:  ", &self.key().to_string(), "\n"] {
            text.push_str(part);
        }
        text
    }

    /// The public key.
    pub fn key(&self) -> OwnerKey {
        let public = self.pair.public_key().as_ref().try_into();
        OwnerKey(public.unwrap_or_default())
    }

    /// Signs fields.
    pub(crate) fn sign(&self, fields: &[&[u8]]) -> Signature {
        let signature = self.pair.sign(&message(fields));
        Signature(signature.as_ref().try_into().unwrap_or([0; SIGNATURE_BYTES]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_one_key_and_of_the_fields_as_they_are() {
        let signer = OwnerSigner::new().unwrap();
        let signature = signer.sign(&[b"ab", b"c"]);
        let again: Signature = signature.to_string().parse().unwrap();
        assert!(signer.key().verifies(&[b"ab", b"c"], &again));
        for other in [[b"a".as_slice(), b"bc"], [b"ab", b"d"]] {
            assert!(!signer.key().verifies(&other, &signature));
        }
        assert!(!OwnerSigner::new().unwrap().key().verifies(&[b"ab", b"c"], &signature));
    }

    #[test]
    fn the_file_of_a_key_is_read_as_it_was_written_or_not_at_all() {
        let signer = OwnerSigner::new().unwrap();
        let text = signer.to_text();
        let read = |text: &str| OwnerSigner::read(&Secret::copy(text.as_bytes()).unwrap());
        assert_eq!(read(&text).unwrap().key(), signer.key());
        let is_digit = |at: &usize| text.as_bytes()[*at].is_ascii_hexdigit();
        for at in (TITLE.len() + 11..text.len()).filter(is_digit) {
            let mut bad = text.as_bytes().to_vec();
            bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
            let bad = String::from_utf8(bad).unwrap();
            assert!(bad == *text || read(&bad).is_err(), "{at}");
        }
        assert!(read("").is_err() && read(&text[..text.len() / 2]).is_err());
    }

    /// RFC 8032, section 7.1, test 1, whose message is empty: as a message without fields is.
    #[test]
    fn keys_and_signatures_are_those_of_the_standard() {
        let text = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let seed = digits::<KEY_BYTES>(text).unwrap();
        let signer = OwnerSigner::of_seed(Secret::copy(&seed).unwrap()).unwrap();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let key = signer.key().to_string();
        assert!(key.starts_with(public) && key.parse::<OwnerKey>().unwrap() == signer.key());
        for wrong in [public, text, &key[..71], &key.replace("d75a", "d75b")] {
            assert!(wrong.parse::<OwnerKey>().is_err(), "{wrong}");
        }
        let signature = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155\
                         5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b";
        assert_eq!(signer.sign(&[]).to_string(), signature);
    }
}
