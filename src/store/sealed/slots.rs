//! Key slots (FORMAT.md Z6): each is the master key, wrapped with what one passphrase or one key file gives,
//! in a small plain object of its own.

use super::keys::{KEY_BYTES, KeyId, MasterKey, SALT_BYTES, broken, expand_key, no_nonce};
use crate::base::checked_text::{read_checked, to_checked};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::secret::{Secret, fill_random};
use crate::store::Store;
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;
use zeroize::Zeroize;

const VERSION: u32 = 1;
/// A slot has a few hundred bytes.
const MAX_BYTES: u64 = 4 << 10;
/// More of them are not tried.
const MAX_SLOTS: usize = 64;

/// What a slot is called.
pub type SlotId = Uuid;

/// The name of a slot.
pub(super) fn slot_file(slot: SlotId) -> String {
    format!("key.{slot}")
}

/// True for the name of a slot.
pub(crate) fn is_slot(name: &str) -> bool {
    slot_of(name).is_some()
}

fn slot_of(name: &str) -> Option<SlotId> {
    let slot = Uuid::parse_str(name.strip_prefix("key.")?).ok()?;
    (slot_file(slot) == name).then_some(slot)
}

/// How a key is made of what somebody gives, and what that costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Derivation {
    /// Of a passphrase (RFC 9106).
    Argon2id {
        /// Memory in KiB.
        memory_kib: u32,
        /// How often all of it is gone over.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// Of a key file, whose 32 bytes are as good as any key.
    KeyFile,
}

impl Derivation {
    /// What new slots cost: that never comes from a store. RFC 9106 section 4, the second recommendation,
    /// with one lane, since the program has one thread for it.
    const NEW: Self = Self::Argon2id { memory_kib: 64 << 10, passes: 3, lanes: 1 };

    /// Whoever made a slot may have wanted to use up our memory, or our time.
    fn check(self) -> Result<()> {
        let Self::Argon2id { memory_kib, passes, lanes } = self else { return Ok(()) };
        let work = u64::from(memory_kib) * u64::from(passes);
        let is_sane = (8 << 10..=256 << 10).contains(&memory_kib)
            && (1..=64).contains(&passes)
            && (1..=16).contains(&lanes)
            && work <= 1 << 20;
        let what = || Error::corrupt(format!("the key slot needs too much memory or time: {self}"));
        if is_sane { Ok(()) } else { Err(what()) }
    }

    /// How much work it is.
    pub(super) fn work(self) -> u64 {
        match self {
            Self::Argon2id { memory_kib, passes, .. } => u64::from(memory_kib) * u64::from(passes),
            Self::KeyFile => 0,
        }
    }

    /// The fields of [`SlotText`] that the key depends on.
    fn fields(self) -> (&'static str, [u32; 3]) {
        match self {
            Self::Argon2id { memory_kib, passes, lanes } => {
                ("argon2id", [memory_kib, passes, lanes])
            }
            Self::KeyFile => ("key_file", [0; 3]),
        }
    }

    fn derive(self, given: &Secret, salt: &[u8]) -> Result<Secret> {
        self.check()?;
        let Self::Argon2id { memory_kib, passes, lanes } = self else {
            return Secret::copy(given.bytes());
        };
        let params = Params::new(memory_kib, passes, lanes, Some(KEY_BYTES)).map_err(broken)?;
        let mut key = vec![0; KEY_BYTES];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(given.bytes(), salt, &mut key)
            .map_err(|_| {
                Error::new(ErrorKind::LimitExceeded, "not enough memory to open a key slot")
            })?;
        Secret::new(key)
    }
}

impl fmt::Display for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argon2id { memory_kib, passes, lanes } => {
                write!(f, "Argon2id, {} MiB, {passes} times", memory_kib >> 10)?;
                if *lanes == 1 { Ok(()) } else { write!(f, ", {lanes} lanes") }
            }
            Self::KeyFile => f.write_str("key file"),
        }
    }
}

/// The text of a slot.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotText {
    repository: Uuid,
    key: String,
    derivation: Derivation,
    salt: String,
    wrapped: String,
}

/// What somebody gives to open a repository.
#[derive(Debug)]
pub enum Credential {
    /// What was typed, or stands in a file.
    Passphrase(Secret),
    /// 32 bytes, or a recovery text.
    KeyFile(Secret),
}

impl Credential {
    /// The same once more.
    ///
    /// # Errors
    /// `Io` if there is no memory for it.
    pub fn copy(&self) -> Result<Self> {
        Ok(match self {
            Self::Passphrase(secret) => Self::Passphrase(Secret::copy(secret.bytes())?),
            Self::KeyFile(secret) => Self::KeyFile(Secret::copy(secret.bytes())?),
        })
    }
}

/// A key slot, which was read.
pub(super) struct Slot {
    pub(super) id: SlotId,
    pub(super) repository: Uuid,
    pub(super) key: KeyId,
    pub(super) derivation: Derivation,
    salt: [u8; SALT_BYTES],
    wrapped: Vec<u8>,
}

impl Slot {
    /// Wraps a master key with what is given.
    ///
    /// # Errors
    /// `Io` without random numbers; `InvalidInput` for what is no key.
    pub fn wrap(master: &MasterKey, repository: Uuid, given: &Credential) -> Result<Self> {
        let (derivation, given) = match given {
            Credential::Passphrase(given) => (Derivation::NEW, Secret::copy(given.bytes())?),
            Credential::KeyFile(given) => (Derivation::KeyFile, new_file_key(given)?),
        };
        let (id, key) = (Uuid::new_v4(), master.id()?);
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt)?;
        let mut slot = Self { id, repository, key, derivation, salt, wrapped: Vec::new() };
        let wrapping = slot.wrapping_key(&given)?;
        let mut wrapped = master.bytes().to_vec();
        let sealed = wrapping.seal_in_place_append_tag(no_nonce(), Aad::empty(), &mut wrapped);
        sealed.map_err(broken)?;
        slot.wrapped = wrapped;
        Ok(slot)
    }

    /// Everything that the slot says goes into it, so that nothing of that can be changed. Each slot has a
    /// salt, and so a key, of its own, which is used once.
    fn wrapping_key(&self, given: &Secret) -> Result<LessSafeKey> {
        let given = self.derivation.derive(given, &self.salt)?;
        let prk = Salt::new(HKDF_SHA256, &self.salt).extract(given.bytes());
        let (kind, costs) = self.derivation.fields();
        let costs = costs.map(u32::to_le_bytes).concat();
        let (repository, id) = (self.repository.as_bytes(), self.id.as_bytes());
        let fields: [&[u8]; 6] =
            [b"imgsnap key slot", repository, id, &self.key.0, kind.as_bytes(), &costs];
        expand_key(&prk, &fields, &AES_256_GCM)
    }

    /// The master key; none if something else is needed.
    ///
    /// # Errors
    /// `Corrupt` for a slot that costs too much.
    pub fn unwrap(&self, given: &Credential) -> Result<Option<MasterKey>> {
        let given = match (given, self.derivation) {
            (Credential::Passphrase(given), Derivation::Argon2id { .. }) => {
                Secret::copy(given.bytes())?
            }
            (Credential::KeyFile(given), Derivation::KeyFile) => file_key(given)?,
            _ => return Ok(None),
        };
        let key = self.wrapping_key(&given)?;
        let mut bytes = self.wrapped.clone();
        let opened = key.open_in_place(no_nonce(), Aad::empty(), &mut bytes);
        let master = match opened {
            Ok(master) => Some(MasterKey::of(Secret::copy(master)?)?),
            Err(_) => None,
        };
        bytes.zeroize();
        // A key that the slot does not say it has is of another repository.
        match &master {
            Some(master) if master.id()? != self.key => Ok(None),
            _ => Ok(master),
        }
    }

    /// Puts it, durably.
    ///
    /// # Errors
    /// Those of the store.
    pub fn put(&self, store: &dyn Store) -> Result<()> {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let text = SlotText {
            repository: self.repository,
            key: self.key.to_string(),
            derivation: self.derivation,
            salt: hex(&self.salt),
            wrapped: hex(&self.wrapped),
        };
        let body = serde_json::to_string_pretty(&text).map_err(broken)?;
        store.put_if_absent(&slot_file(self.id), &to_checked("key", VERSION, &format!("{body}\n")))
    }

    fn read(store: &dyn Store, id: SlotId) -> Result<Self> {
        let file = slot_file(id);
        let bytes = store.read_whole(&file, MAX_BYTES)?;
        let decode = || {
            let (_, text) = read_checked("key", VERSION, &bytes)?;
            let invalid = |e| Error::corrupt(format!("the key slot is not valid: {e}"));
            let text: SlotText = serde_json::from_str(text).map_err(invalid)?;
            let wrong = || Error::corrupt("the key slot is not valid");
            let bytes =
                |hex: &str| data_encoding::HEXLOWER.decode(hex.as_bytes()).map_err(|_| wrong());
            let salt = bytes(&text.salt)?.try_into().map_err(|_| wrong())?;
            let wrapped = bytes(&text.wrapped)?;
            if wrapped.len() != KEY_BYTES + super::object::TAG_BYTES {
                return Err(wrong());
            }
            text.derivation.check()?;
            let SlotText { repository, derivation, .. } = text;
            Ok(Self { id, repository, key: text.key.parse()?, derivation, salt, wrapped })
        };
        decode().map_err(|e: Error| e.at(store.location(&file)))
    }

    /// Those in a store, of which there are `names` at the top; each with its id.
    ///
    /// # Errors
    /// If one cannot be read now. One that is damaged is an error beside the others.
    pub fn all(store: &dyn Store, names: &[String]) -> Result<Vec<(SlotId, Result<Self>)>> {
        let mut slots = Vec::new();
        for id in names.iter().filter_map(|name| slot_of(name)).take(MAX_SLOTS) {
            match Self::read(store, id) {
                // It was removed in this moment.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) if e.is_unread() => return Err(e),
                read => slots.push((id, read)),
            }
        }
        Ok(slots)
    }
}

/// The same of a new one, which must not be a passphrase: nothing makes that dear to guess.
fn new_file_key(given: &Secret) -> Result<Secret> {
    let is_typed = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    if given.bytes().len() == KEY_BYTES && given.bytes().iter().all(is_typed) {
        let what = "the key file has a text of 32 characters instead of random bytes";
        return Err(Error::new(ErrorKind::Key, what).hint("use it as a passphrase instead"));
    }
    file_key(given)
}

/// The 32 bytes of a key file: as they are, or as 64 hexadecimal digits.
fn file_key(given: &Secret) -> Result<Secret> {
    let bytes = given.bytes();
    if bytes.len() == KEY_BYTES {
        return Secret::copy(bytes);
    }
    let digits = data_encoding::HEXLOWER_PERMISSIVE.decode(bytes.trim_ascii());
    match digits {
        Ok(bytes) if bytes.len() == KEY_BYTES => Secret::new(bytes),
        _ => Err(Error::new(ErrorKind::Key, "invalid key file")
            .hint("it must have 32 random bytes or 64 hexadecimal digits")),
    }
}
