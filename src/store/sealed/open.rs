//! Opening a sealed store: what is there, who has a key, and which slot it opens.

use super::keys::{KeyId, MasterKey};
use super::names::is_sealed_name;
use super::object::key_of;
use super::slots::{Credential, Slot};
use super::{SealedStore, Sealing, key_error, recovery};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::secret::Secret;
use crate::store::{MARKER, Store};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Where a key comes from.
pub trait KeySource: Send + Sync {
    /// What is given; none if nothing is.
    ///
    /// # Errors
    /// If it cannot be read.
    fn given(&self) -> Result<Option<Credential>>;

    /// Asks somebody who is there for what opens `place`; none if nobody is.
    ///
    /// # Errors
    /// If there is no answer.
    fn ask(&self, _place: &str) -> Result<Option<Credential>> {
        Ok(None)
    }

    /// True if somebody is there to be asked.
    fn can_ask(&self) -> bool {
        false
    }
}

/// Opens sealed stores, each once, with what a source gives.
pub struct KeyRing {
    source: Box<dyn KeySource>,
    /// Those that are open: to open one again costs as much again.
    open: Mutex<HashMap<KeyId, Arc<Sealing>>>,
}

/// What a store has.
enum Found {
    /// No repository.
    Nothing,
    /// One that is not sealed.
    Plain,
    /// One that is sealed with a key, unless its configuration is lost.
    Sealed(Option<KeyId>),
}

impl KeyRing {
    /// With keys of a source.
    pub fn new(source: impl KeySource + 'static) -> Self {
        Self { source: Box::new(source), open: Mutex::default() }
    }

    /// A store as it is for those above it: opened, if it is sealed, or as it is. Where there is nothing yet,
    /// and a key is given, a repository that is made is sealed. A server is asked only if there is a key, or
    /// somebody who can be asked for one.
    ///
    /// # Errors
    /// `Key` for a key that does not open it, and for one that is given for what is not sealed; those of the
    /// store.
    pub fn open(&self, inner: Arc<dyn Store>) -> Result<Arc<dyn Store>> {
        let given = self.source.given()?;
        if given.is_none() && inner.url().is_some() && !self.source.can_ask() {
            return Ok(inner);
        }
        let place = inner.location("");
        let names = match inner.list("") {
            // Whoever uses it tells why it cannot be read.
            Err(_) if given.is_none() => return Ok(inner),
            names => names?,
        };
        let key = match (find(inner.as_ref(), &names)?, &given) {
            (Found::Sealed(key), _) => key,
            (_, None) => return Ok(inner),
            (Found::Nothing, Some(given)) => return self.create_with(inner, given),
            (Found::Plain, Some(_)) => {
                let what = format!("{place} is not encrypted, but a key was given for it");
                return Err(
                    key_error(what).hint("check that it is the right one, or use it without a key")
                );
            }
        };
        if let Some(open) = key.and_then(|key| self.remembered(key)) {
            return Ok(Arc::new(SealedStore::new(inner, open)));
        }
        let given = self.or_asked(given, &place)?.ok_or_else(|| is_sealed(&place))?;
        let sealing = Arc::new(unlock(inner.as_ref(), &names, key, &given)?);
        self.remember(&sealing);
        Ok(Arc::new(SealedStore::new(inner, sealing)))
    }

    /// A store in which a sealed repository is to be made, with a new key.
    ///
    /// # Errors
    /// `Key` if no key is given for its first slot.
    pub fn create(&self, inner: Arc<dyn Store>) -> Result<Arc<dyn Store>> {
        let place = inner.location("");
        let given = self.or_asked(self.source.given()?, &place)?.ok_or_else(|| {
            let what =
                format!("an encrypted repository in {place} needs a passphrase or a key file");
            key_error(what).hint(give_key())
        })?;
        self.create_with(inner, &given)
    }

    fn or_asked(&self, given: Option<Credential>, place: &str) -> Result<Option<Credential>> {
        match given {
            None => self.source.ask(place),
            given => Ok(given),
        }
    }

    fn create_with(&self, inner: Arc<dyn Store>, given: &Credential) -> Result<Arc<dyn Store>> {
        // All that tells what it was may be lost; and one that is made by a text has no slot.
        if let Credential::KeyFile(text) = given
            && recovery::is_recovery(text)
        {
            let sealing = Arc::new(of_recovery(text)?);
            return Ok(Arc::new(SealedStore::new(inner, sealing)));
        }
        let (master, repository) = (MasterKey::new()?, Uuid::new_v4());
        let slot = Slot::wrap(&master, repository, given)?;
        let mut sealing = Sealing::new(repository, master, Some(slot.id))?;
        sealing.new_slot = Some(slot);
        let sealing = Arc::new(sealing);
        self.remember(&sealing);
        Ok(Arc::new(SealedStore::new(inner, sealing)))
    }

    fn remembered(&self, key: KeyId) -> Option<Arc<Sealing>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    fn remember(&self, sealing: &Arc<Sealing>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(sealing.key_id, sealing.clone());
    }
}

fn give_key() -> crate::base::message::Message {
    message!["give it with ", Setting::PasswordFile, ", ", Setting::KeyFile, " or IMGSNAP_PASSWORD"]
}

/// What to say to who has no key.
pub(crate) fn is_sealed(place: &str) -> Error {
    let what = format!("{place} is encrypted, but no key was given for it");
    key_error(what).hint(give_key())
}

fn find(store: &dyn Store, names: &[String]) -> Result<Found> {
    let number = |name: &&String| {
        let number = name.strip_prefix("config.")?.parse::<u64>().ok()?;
        (format!("config.{number:06}") == **name).then_some(number)
    };
    let config = names.iter().filter(|name| number(name).is_some()).max_by_key(number);
    if let Some(config) = config {
        // Whole: to ask for its length takes a request on a server.
        match store.read_whole(config, MAX_CONFIG_BYTES) {
            Err(e) if e.is_damage() => {}
            bytes => {
                if let Some(key) = key_of(&bytes?) {
                    return Ok(Found::Sealed(Some(key)));
                }
            }
        }
    }
    // Its configuration may be lost, or damaged; or whoever began to make it was killed.
    let has_slots = names.iter().any(|name| super::is_slot(name));
    let has_images = names.iter().any(|name| is_sealed_name(name));
    let is_marked = || is_marked_sealed(store);
    Ok(match config {
        Some(_) if has_slots => Found::Sealed(None),
        Some(_) => Found::Plain,
        None if has_images && (has_slots || is_marked()?) => Found::Sealed(None),
        None if has_slots || is_marked()? => Found::Nothing,
        None if names.iter().any(|name| name == MARKER) => Found::Plain,
        None => Found::Nothing,
    })
}

/// True if the marker says that the repository is sealed.
fn is_marked_sealed(store: &dyn Store) -> Result<bool> {
    match store.read_whole(MARKER, MAX_CONFIG_BYTES) {
        Ok(text) => Ok(text.windows(SAID.len()).any(|window| window == SAID)),
        Err(e) if e.kind() == ErrorKind::NotFound || e.is_damage() => Ok(false),
        Err(e) => Err(e),
    }
}

/// No configuration is longer, nor a marker.
const MAX_CONFIG_BYTES: u64 = 2 << 20;
const SAID: &[u8] = b"version = 3";

fn of_recovery(text: &Secret) -> Result<Sealing> {
    let recovery::Recovery { repository, master, owner } = recovery::read(text)?;
    let mut sealing = Sealing::new(repository, master, None)?;
    sealing.owner = owner;
    Ok(sealing)
}

/// The keys of a repository, by what is given. All slots are tried before anything is said.
fn unlock(
    store: &dyn Store,
    names: &[String],
    key: Option<KeyId>,
    given: &Credential,
) -> Result<Sealing> {
    let place = store.location("");
    if let Credential::KeyFile(text) = given
        && recovery::is_recovery(text)
    {
        let sealing = of_recovery(text)?;
        return match key {
            Some(key) if key != sealing.key_id => Err(key_error(format!(
                "the recovery text has the key {}, but {place} is encrypted with {key}",
                sealing.key_id
            ))),
            _ => Ok(sealing),
        };
    }
    let (mut tried, mut damaged) = (0_usize, 0_usize);
    let mut slots = Vec::new();
    for (_, slot) in Slot::all(store, names)? {
        match slot {
            // What an init has left that was interrupted.
            Ok(slot) if key.is_some_and(|key| key != slot.key) => {}
            Ok(slot) => slots.push(slot),
            Err(_) => damaged += 1,
        }
    }
    // One that somebody made to cost much does not keep the others from being tried.
    slots.sort_by_key(|slot| slot.derivation.work());
    let mut failed = None;
    for slot in slots {
        tried += 1;
        match slot.unwrap(given) {
            Ok(Some(master)) => return Sealing::new(slot.repository, master, Some(slot.id)),
            Ok(None) => {}
            Err(e) => failed = Some(e),
        }
    }
    // Without memory, or with what is no key, it is not known whether one opens.
    if let Some(e) = failed {
        return Err(e);
    }
    let what = match given {
        Credential::Passphrase(_) => "the passphrase",
        Credential::KeyFile(_) => "the key file",
    };
    let damaged = match damaged {
        0 => String::new(),
        count => format!(", and {count} cannot be read"),
    };
    let what = format!("{what} does not open any key slot of {place} ({tried} tried{damaged})");
    Err(key_error(what).hint("a recovery text, given as the key file, opens it without any slot"))
}
