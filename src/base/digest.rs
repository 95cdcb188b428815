//! Digests of content: of a block, and of a whole image (FORMAT.md section 1.1).
//!
//! The image digest is a sum over blocks, so that threads add up their own parts and it can be
//! updated in time proportional to a change.

use crate::base::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use twox_hash::XxHash3_128;
use xxhash_rust::xxh3;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Digest of one block (FORMAT.md D1): sixteen bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Stands for a block that could not be read (FORMAT.md D4).
    pub const UNREAD: Self = Self([0xff; 16]);

    /// As 32 hexadecimal digits, in the order of the bytes.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// From 32 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        // Not all that an integer is parsed from: that may begin with a sign.
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// Digest of an image (FORMAT.md D3): a sum modulo 2^128.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ImageDigest(pub u128);

impl ImageDigest {
    /// Adds a term, or a sum of terms.
    #[must_use]
    pub fn plus(self, terms: u128) -> Self {
        Self(self.0.wrapping_add(terms))
    }

    /// Takes a term, or a sum of terms, away.
    #[must_use]
    pub fn minus(self, terms: u128) -> Self {
        Self(self.0.wrapping_sub(terms))
    }

    /// As 32 hexadecimal digits, in the order of the bytes on disk.
    pub fn to_hex(self) -> String {
        Digest(self.0.to_le_bytes()).to_hex()
    }

    /// From 32 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        Digest::from_hex(text).map(|d| Self(u128::from_le_bytes(d.0)))
    }
}

impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// Which keyed function digests the blocks of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DigestAlgorithm {
    /// XXH3-128 with a secret: as fast as memory; guards against accident.
    #[default]
    Xxh3,
    /// BLAKE3, keyed, cut to 128 bits: collision resistant.
    Blake3,
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xxh3 => "xxh3",
            Self::Blake3 => "blake3",
        })
    }
}

impl FromStr for DigestAlgorithm {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "xxh3" => Ok(Self::Xxh3),
            "blake3" => Ok(Self::Blake3),
            _ => {
                let what = format!("unknown digest \"{text}\"; use xxh3 or blake3");
                Err(Error::new(ErrorKind::InvalidInput, what))
            }
        }
    }
}

/// In texts a digest is 32 hexadecimal digits.
macro_rules! as_hex {
    ($digest:ty) => {
        impl Serialize for $digest {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.to_hex())
            }
        }

        impl<'de> Deserialize<'de> for $digest {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                let wrong = || de::Error::custom("invalid digest: expected 32 hexadecimal digits");
                Self::from_hex(&text).ok_or_else(wrong)
            }
        }
    };
}
as_hex!(Digest);
as_hex!(ImageDigest);

/// The random key of a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DigestKey(pub [u8; 32]);

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(..)")
    }
}

impl DigestKey {
    /// Draws a key from the system's random source.
    pub fn random() -> Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| {
            Error::new(ErrorKind::Io, format!("cannot get random bytes from the system: {e}"))
        })?;
        Ok(Self(key))
    }
}

/// The keyed function of a chain (FORMAT.md section 1.1, `H`).
#[derive(Clone)]
pub struct Hasher {
    algorithm: DigestAlgorithm,
    key: DigestKey,
    secret: Box<[u8; 192]>,
}

impl Hasher {
    /// The function for an algorithm and a key.
    pub fn new(algorithm: DigestAlgorithm, key: DigestKey) -> Self {
        let mut secret = Box::new([0; 192]);
        blake3::Hasher::new_derive_key("imgsnap format 1 xxh3 secret")
            .update(&key.0)
            .finalize_xof()
            .fill(secret.as_mut_slice());
        Self { algorithm, key, secret }
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> DigestAlgorithm {
        self.algorithm
    }

    /// Its key.
    pub fn key(&self) -> DigestKey {
        self.key
    }

    /// `H(bytes)`. For a block: all of it, the last one padded with zeros.
    pub fn digest(&self, bytes: &[u8]) -> Digest {
        Digest(match self.algorithm {
            DigestAlgorithm::Xxh3 => xxh3_128(bytes, &self.secret).to_le_bytes(),
            DigestAlgorithm::Blake3 => first_half(&blake3::keyed_hash(&self.key.0, bytes)),
        })
    }

    /// What a block contributes to the image digest (FORMAT.md D2).
    pub fn term(&self, block: u64, digest: Digest) -> u128 {
        let mut input = [0; 24];
        let (index, rest) = input.split_at_mut(8);
        index.copy_from_slice(&block.to_le_bytes());
        rest.copy_from_slice(&digest.0);
        u128::from_le_bytes(self.digest(&input).0)
    }

    /// What the image's length contributes (FORMAT.md D3).
    pub fn size_term(&self, image_bytes: u64) -> u128 {
        self.term(u64::MAX, Digest(u128::from(image_bytes).to_le_bytes()))
    }

    /// The digest of an image that is all zeros.
    pub fn empty_image(&self, image_bytes: u64) -> ImageDigest {
        ImageDigest(self.size_term(image_bytes))
    }

    /// `H` of bytes that come in pieces.
    pub fn stream(&self) -> StreamHasher {
        match self.algorithm {
            DigestAlgorithm::Xxh3 => StreamHasher::Xxh3(Box::new(
                xxh3::Xxh3Builder::new().with_secret(*self.secret).build(),
            )),
            DigestAlgorithm::Blake3 => {
                StreamHasher::Blake3(Box::new(blake3::Hasher::new_keyed(&self.key.0)))
            }
        }
    }
}

/// `H` of bytes that come in pieces; more than 240 bytes in all, where the two ways of XXH3 agree.
pub enum StreamHasher {
    /// XXH3-128.
    Xxh3(Box<xxh3::Xxh3>),
    /// Keyed BLAKE3.
    Blake3(Box<blake3::Hasher>),
}

impl StreamHasher {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Xxh3(state) => state.update(bytes),
            Self::Blake3(state) => {
                state.update(bytes);
            }
        }
    }

    /// The digest of all pieces so far.
    pub fn digest(&self) -> Digest {
        Digest(match self {
            Self::Xxh3(state) => state.digest128().to_le_bytes(),
            Self::Blake3(state) => first_half(&state.finalize()),
        })
    }
}

/// Up to so many bytes XXH3 has a way of its own, in which wider registers are of no use.
const SHORT_BYTES: usize = 240;

/// XXH3-128 with a secret: of blocks by what this processor has (AVX2), which is found out when it runs.
fn xxh3_128(bytes: &[u8], secret: &[u8; 192]) -> u128 {
    let reference = || xxh3::xxh3_128_with_secret(bytes, secret);
    match bytes.len() > SHORT_BYTES {
        // It refuses nothing but a short secret.
        true => XxHash3_128::oneshot_with_secret(secret, bytes).unwrap_or_else(|_| reference()),
        false => reference(),
    }
}

fn first_half(hash: &blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
    half
}

/// True if every byte is zero. As fast as memory: whole words, a cache line at a time.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut lines = bytes.chunks_exact(128);
    let all = lines.by_ref().all(|line| {
        let mut any = 0u128;
        for word in line.as_chunks::<16>().0 {
            any |= u128::from_le_bytes(*word);
        }
        any == 0
    });
    all && lines.remainder().iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_digest_equals_digest_in_one_piece() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
        for algorithm in [DigestAlgorithm::Xxh3, DigestAlgorithm::Blake3] {
            let hasher = Hasher::new(algorithm, DigestKey([7; 32]));
            let mut stream = hasher.stream();
            bytes.chunks(333).for_each(|piece| stream.update(piece));
            assert_eq!(stream.digest(), hasher.digest(&bytes));
        }
    }

    #[test]
    fn digest_of_any_length_is_that_of_the_reference() {
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        let hasher = Hasher::new(DigestAlgorithm::Xxh3, DigestKey([5; 32]));
        let lengths = (0..=2100).chain([4096, 65_536, 1 << 18, 299_999]);
        for length in lengths {
            // At places that are aligned in each way.
            let piece = bytes.get(length % 64..).and_then(|rest| rest.get(..length.min(299_900)));
            let piece = piece.unwrap_or_default();
            let reference = xxh3::xxh3_128_with_secret(piece, hasher.secret.as_slice());
            assert_eq!(hasher.digest(piece), Digest(reference.to_le_bytes()), "{length}");
        }
    }

    #[test]
    fn key_changes_every_digest() {
        for algorithm in [DigestAlgorithm::Xxh3, DigestAlgorithm::Blake3] {
            let one = Hasher::new(algorithm, DigestKey([1; 32]));
            let two = Hasher::new(algorithm, DigestKey([2; 32]));
            for length in [24, 4096] {
                assert_ne!(one.digest(&vec![9; length]), two.digest(&vec![9; length]));
            }
        }
    }

    #[test]
    fn image_digest_can_be_updated_and_depends_on_the_place_of_a_block() {
        let hasher = Hasher::new(DigestAlgorithm::Xxh3, DigestKey([3; 32]));
        let (a, b) = (hasher.digest(&[1; 4096]), hasher.digest(&[2; 4096]));
        let one = hasher.empty_image(8192).plus(hasher.term(0, a)).plus(hasher.term(1, b));
        let other = hasher.empty_image(8192).plus(hasher.term(1, a)).plus(hasher.term(0, b));
        assert_ne!(one, other);
        let back = other.minus(hasher.term(1, a)).plus(hasher.term(0, a));
        assert_eq!(back.minus(hasher.term(0, b)).plus(hasher.term(1, b)), one);
        assert_eq!(ImageDigest::from_hex(&one.to_hex()), Some(one));
    }

    #[test]
    fn only_32_hexadecimal_digits_are_a_digest() {
        let good = "000102030405060708090a0b0c0d0eff";
        assert_eq!(Digest::from_hex(good).map(Digest::to_hex).as_deref(), Some(good));
        for bad in [good.replace("0b", "+b"), good.replace("ff", "f"), good.replace("ff", "fg")] {
            assert_eq!(Digest::from_hex(&bad), None, "{bad}");
        }
    }

    #[test]
    fn zeros_are_seen_at_every_place_and_length() {
        for length in [0, 1, 127, 128, 129, 4096] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for place in [0, length / 2, length.saturating_sub(1)] {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = 1;
                    assert!(!is_zero(&bytes), "{length} {place}");
                    bytes[place] = 0;
                }
            }
        }
    }
}
