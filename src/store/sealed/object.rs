//! One sealed object (FORMAT.md Z2, Z3): a head, and chunks of 64 KiB by AES-256-GCM in the STREAM
//! construction (Hoang, Reyhanitabar, Rogaway and Vizár, 2015): a chunk cannot be moved, left out, or be the
//! last one where it is not.

use super::keys::{KeyId, MasterKey, SALT_BYTES, broken, expand, expand_key};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::secret::fill_random;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use uuid::Uuid;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first eight bytes.
pub(crate) const MAGIC: [u8; 8] = *b"IMGSEAL\n";
const VERSION: u32 = 1;
/// Bytes of an object in a chunk; the last one may have fewer.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// So many follow the bytes of each chunk.
pub(super) const TAG_BYTES: usize = 16;
pub(super) const SEALED_CHUNK_BYTES: usize = CHUNK_BYTES + TAG_BYTES;
/// Before the first chunk.
pub(super) const HEAD_BYTES: usize = size_of::<Head>();

/// What an object begins with.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    told: Told,
    commitment: [u8; 32],
}

/// What the keys depend on.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Told {
    magic: [u8; 8],
    version: U32,
    chunk_bytes: U32,
    key_id: [u8; 16],
    salt: [u8; SALT_BYTES],
}

const _: () = assert!(size_of::<Told>() == 64 && HEAD_BYTES == 96);

/// What an object is, which it cannot be taken for another of: its keys depend on it.
pub(super) struct Identity {
    kind: &'static str,
    bytes: Vec<u8>,
}

impl Identity {
    /// Of the object with a name. A delta file is the same wherever it lies; all else is of one path of one
    /// repository.
    pub fn of(repository: Uuid, name: &str) -> Self {
        let file = name.rsplit('/').next().unwrap_or_default();
        if let Some(id) = file.strip_suffix(".delta").and_then(|id| Uuid::parse_str(id).ok()) {
            return Self { kind: "delta", bytes: id.as_bytes().to_vec() };
        }
        let kind = match () {
            () if file.starts_with("manifest.") => "manifest",
            () if file.ends_with(".attachment") => "attachment",
            () if file.starts_with("marker.") => "marker",
            () if !name.contains('/') && file.starts_with("config.") => "config",
            () if !name.contains('/') && file.starts_with("plan.") => "plan",
            () => "other",
        };
        Self { kind, bytes: [repository.as_bytes(), name.as_bytes()].concat() }
    }
}

/// Why bytes are not those of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// They do not begin as one.
    NotSealed,
    /// A later program wrote it.
    Later,
    /// It is sealed with another key.
    OtherKey(KeyId),
    /// It is another object, or was changed.
    Changed,
    /// The cipher is broken.
    Internal,
}

impl Refusal {
    /// What to say of it.
    pub fn error(self) -> Error {
        match self {
            Self::NotSealed => {
                Error::corrupt("it is not encrypted, but everything else in the repository is")
            }
            Self::Later => Error::new(ErrorKind::Unsupported, "a later imgsnap encrypted it")
                .hint("use that version"),
            Self::OtherKey(id) => Error::corrupt(format!("it is encrypted with another key, {id}")),
            Self::Changed => Error::corrupt("it is not what was stored there"),
            Self::Internal => broken(()),
        }
    }
}

/// The key of one object, and its length.
pub(super) struct Object {
    key: LessSafeKey,
    /// Its length without head and tags.
    pub bytes: u64,
    chunks: u64,
}

fn keys_of(
    master: &MasterKey,
    told: &Told,
    identity: &Identity,
) -> Result<(LessSafeKey, [u8; 32])> {
    let prk = master.salted(&told.salt);
    let (told, kind) = (told.as_bytes(), identity.kind.as_bytes());
    let key = expand_key(&prk, &[b"imgsnap object", told, kind, &identity.bytes], &AES_256_GCM)?;
    let mut commitment = [0; 32];
    expand(&prk, &[b"imgsnap commitment", told, kind, &identity.bytes], &mut commitment)?;
    Ok((key, commitment))
}

/// The number of the chunk, and whether it is the last one.
fn nonce(chunk: u64, is_last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    let (number, rest) = bytes.split_at_mut(8);
    number.copy_from_slice(&chunk.to_le_bytes());
    if let Some(last) = rest.last_mut() {
        *last = is_last.into();
    }
    Nonce::assume_unique_for_key(bytes)
}

/// The length of an object that has so many bytes sealed; none if there is none.
pub(super) fn bytes_of(sealed: u64) -> Option<u64> {
    let body = sealed.checked_sub(HEAD_BYTES as u64)?;
    let chunks = body.div_ceil(SEALED_CHUNK_BYTES as u64);
    let bytes = body.checked_sub(chunks * TAG_BYTES as u64)?;
    // Only an empty object has a chunk without bytes.
    (sealed_bytes(bytes) == sealed).then_some(bytes)
}

/// The length of an object sealed.
pub(super) fn sealed_bytes(bytes: u64) -> u64 {
    let chunks = bytes.div_ceil(CHUNK_BYTES as u64).max(1);
    bytes.saturating_add(HEAD_BYTES as u64 + chunks * TAG_BYTES as u64)
}

/// Where a chunk is.
pub(super) fn chunk_offset(chunk: u64) -> u64 {
    HEAD_BYTES as u64 + chunk * SEALED_CHUNK_BYTES as u64
}

impl Object {
    /// Reads the head of an object of `sealed` bytes.
    pub fn open(
        master: &MasterKey,
        key_id: KeyId,
        identity: &Identity,
        head: &[u8],
        sealed: u64,
    ) -> Result<Self, Refusal> {
        let (head, _) = Head::read_from_prefix(head).map_err(|_| Refusal::NotSealed)?;
        let told = &head.told;
        if told.magic != MAGIC {
            return Err(Refusal::NotSealed);
        }
        if told.key_id != key_id.0 {
            return Err(Refusal::OtherKey(KeyId(told.key_id)));
        }
        let (key, commitment) = keys_of(master, told, identity).map_err(|_| Refusal::Internal)?;
        verify_slices_are_equal(&commitment, &head.commitment).map_err(|_| Refusal::Changed)?;
        // Every version has such a head: one that somebody changed is told from a later one.
        if told.version.get() != VERSION || told.chunk_bytes.get() as usize != CHUNK_BYTES {
            return Err(Refusal::Later);
        }
        let bytes = bytes_of(sealed).ok_or(Refusal::Changed)?;
        let chunks = bytes.div_ceil(CHUNK_BYTES as u64).max(1);
        Ok(Self { key, bytes, chunks })
    }

    /// Opens a chunk, which has as many bytes as `out` and a tag.
    pub fn open_chunk(&self, chunk: u64, sealed: &[u8], out: &mut [u8]) -> Result<(), Refusal> {
        let (bytes, tag) = sealed.split_at_checked(out.len()).ok_or(Refusal::Changed)?;
        let nonce = nonce(chunk, chunk + 1 == self.chunks);
        self.key
            .open_separate_gather(nonce, Aad::empty(), bytes, tag, out)
            .map_err(|_| Refusal::Changed)
    }

    /// How many bytes a chunk has.
    pub fn chunk_bytes(&self, chunk: u64) -> usize {
        let begin = chunk.saturating_mul(CHUNK_BYTES as u64);
        self.bytes.saturating_sub(begin).min(CHUNK_BYTES as u64) as usize
    }
}

/// Seals an object, front to back.
pub(super) struct Sealer {
    key: LessSafeKey,
    chunk: u64,
    /// The chunk that is not full, or may be the last one.
    buffer: Vec<u8>,
}

impl Sealer {
    /// With a new salt; the head comes first.
    ///
    /// # Errors
    /// `Io` without random numbers.
    pub fn new(master: &MasterKey, key_id: KeyId, identity: &Identity) -> Result<(Self, Head)> {
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt)?;
        Self::with_salt(master, key_id, identity, salt)
    }

    pub(super) fn with_salt(
        master: &MasterKey,
        key_id: KeyId,
        identity: &Identity,
        salt: [u8; SALT_BYTES],
    ) -> Result<(Self, Head)> {
        let (magic, key_id) = (MAGIC, key_id.0);
        let (version, chunk_bytes) = (VERSION.into(), (CHUNK_BYTES as u32).into());
        let told = Told { magic, version, chunk_bytes, key_id, salt };
        let (key, commitment) = keys_of(master, &told, identity)?;
        let buffer = Vec::with_capacity(SEALED_CHUNK_BYTES);
        Ok((Self { key, chunk: 0, buffer }, Head { told, commitment }))
    }

    /// Adds bytes. Each chunk of which it is known that it is not the last one is given to `put`.
    ///
    /// # Errors
    /// Those of `put`.
    pub fn add(
        &mut self,
        mut bytes: &[u8],
        mut put: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.buffer.len() == CHUNK_BYTES {
                self.seal(false, &mut put)?;
            }
            let free = CHUNK_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(free.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Seals the last chunk.
    ///
    /// # Errors
    /// Those of `put`.
    pub fn end(mut self, mut put: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.seal(true, &mut put)
    }

    fn seal(&mut self, is_last: bool, put: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let nonce = nonce(self.chunk, is_last);
        self.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut self.buffer).map_err(broken)?;
        self.chunk += 1;
        let put = put(&self.buffer);
        self.buffer.clear();
        put
    }
}

/// Seals a small object.
///
/// # Errors
/// `Io` without random numbers.
pub(super) fn seal_whole(
    master: &MasterKey,
    key_id: KeyId,
    identity: &Identity,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    let (mut sealer, head) = Sealer::new(master, key_id, identity)?;
    let mut sealed = Vec::with_capacity(sealed_bytes(bytes.len() as u64) as usize);
    sealed.extend_from_slice(head.as_bytes());
    let mut put = |chunk: &[u8]| {
        sealed.extend_from_slice(chunk);
        Ok(())
    };
    sealer.add(bytes, &mut put)?;
    sealer.end(&mut put)?;
    Ok(sealed)
}

/// Opens one.
pub(super) fn open_whole(
    master: &MasterKey,
    key_id: KeyId,
    identity: &Identity,
    sealed: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let object = Object::open(master, key_id, identity, sealed, sealed.len() as u64)?;
    let mut bytes = vec![0; object.bytes as usize];
    let body = sealed.get(HEAD_BYTES..).unwrap_or_default().chunks(SEALED_CHUNK_BYTES);
    // An empty object has one chunk, without bytes.
    if bytes.is_empty() {
        let chunk = body.clone().next().unwrap_or_default();
        object.open_chunk(0, chunk, &mut [])?;
    }
    for ((number, chunk), out) in (0..).zip(body).zip(bytes.chunks_mut(CHUNK_BYTES)) {
        object.open_chunk(number, chunk, out)?;
    }
    Ok(bytes)
}

/// The key that an object is sealed with; none if it does not begin as one.
pub(crate) fn key_of(head: &[u8]) -> Option<KeyId> {
    let (told, _) = Told::read_from_prefix(head).ok()?;
    (told.magic == MAGIC).then_some(KeyId(told.key_id))
}
