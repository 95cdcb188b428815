//! The configuration: identity, the defaults for new bases, and the tables of the policies (FORMAT.md P1).

mod defaults;
pub(crate) mod object;
pub(crate) mod owner;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Message, Verb, message};
use crate::base::signing::OwnerKey;
use crate::codec::Compression;
use crate::repo::manifest::check_name;
use crate::repo::policy::{Policy, PruneTable, SnapshotPolicy, SnapshotTable, invalid, table_at};
use crate::store::Store;
use crate::store::sealed::{Sealing, SlotId};
pub use defaults::Defaults;
use owner::OwnerTable;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use toml::{Table, Value};
use uuid::Uuid;

/// What the text of older programs begins with, and may stay when it is taken over.
const VERSION: u32 = 1;

pub(crate) struct Config {
    /// The object that it stands in; none if that is what an older program wrote.
    number: Option<u64>,
    pub(crate) id: Uuid,
    /// `[new]`, `[prune]`, `[snapshot]` and `[images]` as they stand: a mistake in them concerns the verbs
    /// alone that use them, so they are examined only when they are asked for.
    new: Option<Value>,
    prune: Option<Value>,
    snapshot: Option<Value>,
    images: Option<Value>,
    store: Option<Value>,
    /// The key slots that count, if the repository is sealed.
    slots: Vec<SlotId>,
    /// Who owns the repository, and who did.
    owner: Option<OwnerTable>,
    /// As it was read.
    text: String,
    /// A name that is none of a table or key here.
    stranger: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(skip_serializing)]
    version: Option<u32>,
    id: Option<Uuid>,
    new: Option<Value>,
    #[serde(skip_serializing)]
    prune: Option<Value>,
    #[serde(skip_serializing)]
    snapshot: Option<Value>,
    #[serde(skip_serializing)]
    images: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<WireKeys>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerTable>,
    /// Tables that nobody reads: perhaps a slip of the pen.
    #[serde(flatten, skip_serializing)]
    others: Table,
}

/// `imgsnap key` alone writes it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireKeys {
    slots: Vec<SlotId>,
}

/// The key in `[store]` that names the host that alone writes.
const SINGLE_WRITER: &str = "single_writer";

fn read_single_writer(table: &Table) -> Result<Option<String>> {
    let wrong = || invalid("it is not the id of a host").at(SINGLE_WRITER).at("[store]");
    let Some(value) = table.get(SINGLE_WRITER) else { return Ok(None) };
    value.as_str().map(|id| Some(id.to_owned())).ok_or_else(wrong)
}

fn correct() -> Message {
    message!["correct it with ", Verb::Config.of("edit")]
}

/// What is wrong with a text, and where.
fn invalid_toml(text: &str, error: &toml::de::Error) -> Error {
    let what = error.message().lines().next().unwrap_or_default();
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            Error::corrupt(what).at(format!("line {line}"))
        }
        None => Error::corrupt(what),
    }
}

impl Config {
    /// That of a new repository.
    pub(crate) fn new(defaults: Defaults) -> Self {
        Self::with_id(Uuid::new_v4(), defaults)
    }

    pub(crate) fn with_id(id: Uuid, defaults: Defaults) -> Self {
        let (prune, snapshot, images, store) = (None, None, None, None);
        Self {
            number: Some(1),
            id,
            new: Some(Value::Table(defaults.table())),
            prune,
            snapshot,
            images,
            store,
            slots: Vec::new(),
            owner: None,
            text: String::new(),
            stranger: None,
        }
    }

    /// The same of the repository that keys are of.
    #[must_use]
    pub(crate) fn sealed_with(self, sealing: &Sealing, slots: Vec<SlotId>) -> Self {
        Self { id: sealing.repository(), slots, ..self }
    }

    /// The same of a repository that has an owner.
    #[must_use]
    pub(crate) fn owned_by(self, key: OwnerKey) -> Self {
        Self { owner: Some(OwnerTable::new(key)), ..self }
    }

    /// Who owns the repository, as it says.
    pub(crate) fn owner(&self) -> Option<OwnerKey> {
        self.owner.as_ref().map(|owner| owner.key)
    }

    /// Its number, and its text as it was read.
    pub(crate) fn state(&self) -> (u64, &str) {
        (self.number.unwrap_or(0), &self.text)
    }

    /// The key slots that count.
    pub(crate) fn slots(&self) -> &[SlotId] {
        &self.slots
    }

    /// The key slots in a text that need make no sense otherwise; none if it cannot be read at all.
    pub(crate) fn slots_in(text: &str) -> Option<Vec<SlotId>> {
        let table: Table = text.parse().ok()?;
        let slots = table.get("keys").and_then(|keys| keys.get("slots")).and_then(Value::as_array);
        let slot = |value: &Value| value.as_str()?.parse().ok();
        slots.map_or(Some(Vec::new()), |slots| slots.iter().map(slot).collect())
    }

    /// A text that lists other key slots, and is the same otherwise.
    ///
    /// # Errors
    /// `Corrupt` for a text that makes no sense.
    pub(crate) fn text_with_slots(text: &str, slots: &[SlotId]) -> Result<String> {
        let mut document: toml_edit::DocumentMut =
            text.parse().map_err(|_| Error::corrupt("the configuration is invalid"))?;
        let slots: toml_edit::Array = slots.iter().map(SlotId::to_string).collect();
        let keys = document.entry("keys").or_insert_with(toml_edit::table);
        keys["slots"] = toml_edit::value(slots);
        Ok(document.to_string())
    }

    /// Fails unless it is of the repository that was opened.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_repository(&self, store: &dyn Store) -> Result<()> {
        match store.sealing() {
            Some(sealing) if sealing.repository() != self.id => {
                let what = format!("it is of the repository {}", self.id);
                Err(Error::corrupt(what).at(store.location(&self.file())))
            }
            _ => Ok(()),
        }
    }

    /// Fails unless the slot that it was opened by counts.
    ///
    /// # Errors
    /// `Key`.
    pub(crate) fn check_slot(&self, store: &dyn Store) -> Result<()> {
        let Some(sealing) = store.sealing() else { return Ok(()) };
        match sealing.slot().filter(|slot| !self.slots.contains(slot)) {
            None => Ok(()),
            Some(slot) => {
                let what = format!("the key slot {slot} was removed from {}", store.location(""));
                Err(Error::new(ErrorKind::Key, what).hint("use another passphrase or key file"))
            }
        }
    }

    /// With what a new base is made.
    ///
    /// # Errors
    /// `InvalidInput` if `[new]` is wrong.
    pub(crate) fn defaults(&self) -> Result<Defaults> {
        let read = || match table_at(self.new.as_ref(), "[new]")? {
            Some(table) => Defaults::read(table).map_err(|e| e.at("[new]")),
            None => Ok(Defaults::default()),
        };
        read().map_err(|e: Error| e.or_hint(correct()))
    }

    /// With what files are compressed that are no new base: as new bases, or in the usual way.
    pub(crate) fn compression(&self) -> Compression {
        let table = self.new.as_ref().and_then(Value::as_table);
        table.and_then(Defaults::compression_in).unwrap_or_default()
    }

    pub(crate) fn encode(&self) -> Result<String> {
        let wire = Wire {
            version: None,
            id: Some(self.id),
            new: self.new.clone(),
            prune: None,
            snapshot: None,
            images: None,
            store: self.store.clone(),
            keys: Some(WireKeys { slots: self.slots.clone() })
                .filter(|keys| !keys.slots.is_empty()),
            owner: self.owner.clone(),
            others: Table::new(),
        };
        let body = toml::to_string(&wire).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot write the configuration: {e}"))
        })?;
        Ok(format!("# [new] is for new bases; [prune] and [snapshot] can be added.\n\n{body}"))
    }

    /// Reads the one that rules.
    ///
    /// # Errors
    /// `NotFound` if there is no repository; `Corrupt` if the configuration is lost, damaged, or makes no
    /// sense.
    pub(crate) fn load(store: &dyn Store) -> Result<Self> {
        let ruling = object::ruling(store)?;
        let read = || {
            let config = Self::decode(&ruling.text)?;
            // Any folder may have a file of that name.
            if ruling.number.is_none() && object::version_in(&ruling.text).is_none() {
                return Err(Error::corrupt("it does not have a version").hint(correct()));
            }
            Ok(Self { number: ruling.number, ..config })
        };
        read().map_err(|e: Error| e.at(store.location(&ruling.file())))
    }

    /// Reads a text, and fails if anything in it is wrong, whoever reads it one day.
    ///
    /// # Errors
    /// `InvalidInput`, with the line or the key.
    pub(crate) fn checked(text: &str) -> Result<Self> {
        let check = || {
            let config = Self::decode(text)?;
            config.defaults()?;
            let names = config.named_images();
            names.iter().try_for_each(|name| check_name(name).map_err(|e| e.at("[images]")))?;
            for name in names.iter().map(String::as_str).chain([""]) {
                config.policy(name)?;
                config.snapshot_policy(name)?;
            }
            config.grace()?;
            Ok(config)
        };
        check().map_err(|e: Error| Error::new(ErrorKind::InvalidInput, e.message()))
    }

    /// Reads a text. A mistake in the tables of settings is found by whoever asks for them.
    ///
    /// # Errors
    /// `Corrupt`, with the line or the key.
    pub(crate) fn decode(text: &str) -> Result<Self> {
        let wire: Wire =
            toml::from_str(text).map_err(|e| invalid_toml(text, &e).hint(correct()))?;
        if wire.version.is_some_and(|version| version != VERSION) {
            let what = format!("expected {VERSION}");
            return Err(Error::corrupt(what).at("version").hint(correct()));
        }
        let Wire { new, prune, snapshot, images, store, keys, owner, others, .. } = wire;
        Ok(Self {
            number: None,
            id: wire.id.unwrap_or_default(),
            new,
            prune,
            snapshot,
            images,
            store,
            slots: keys.map(|keys| keys.slots).unwrap_or_default(),
            owner,
            text: text.to_owned(),
            stranger: others.keys().next().cloned(),
        })
    }

    /// The name of the object that it stands in.
    pub(crate) fn file(&self) -> String {
        object::file_of(self.number)
    }

    /// The images that have a table of their own.
    pub(crate) fn named_images(&self) -> Vec<String> {
        let images = self.images.as_ref().and_then(Value::as_table);
        images.map_or(Vec::new(), |images| images.keys().cloned().collect())
    }

    /// What `prune` keeps of an image.
    ///
    /// # Errors
    /// `InvalidInput` if `[prune]` or the table of this image is wrong.
    pub(crate) fn policy(&self, name: &str) -> Result<Policy> {
        let (own, common) = self.tables(name, "prune", self.prune.as_ref(), PruneTable::read)?;
        Ok(PruneTable::policy(own, common))
    }

    /// How snapshots of an image are taken.
    ///
    /// # Errors
    /// `InvalidInput` if `[snapshot]` or the table of this image is wrong.
    pub(crate) fn snapshot_policy(&self, name: &str) -> Result<SnapshotPolicy> {
        let read = SnapshotTable::read;
        let (own, common) = self.tables(name, "snapshot", self.snapshot.as_ref(), read)?;
        Ok(SnapshotTable::policy(own, common))
    }

    /// How long what is dropped stays where other hosts may read it; none if nothing is said.
    ///
    /// # Errors
    /// `InvalidInput` if `[store]` is wrong, or it is less than a day or more than a year.
    pub(crate) fn grace(&self) -> Result<Option<Duration>> {
        let read = |table: &Table| {
            let wrong = || invalid("expected a duration from 1d to 365d").at("grace");
            if let Some(key) =
                table.keys().find(|key| !["grace", SINGLE_WRITER].contains(&key.as_str()))
            {
                return Err(invalid("unknown key").at(key.escape_debug()));
            }
            read_single_writer(table)?;
            let Some(value) = table.get("grace") else { return Ok(None) };
            let days = value.as_str().and_then(|text| text.strip_suffix('d')?.parse::<u64>().ok());
            let days = days.filter(|days| (1..=365).contains(days)).ok_or_else(wrong)?;
            Ok(Some(Duration::from_secs(days * 24 * 3600)))
        };
        let grace = table_at(self.store.as_ref(), "[store]").and_then(|table| {
            table.map_or(Ok(None), |table| read(table).map_err(|e| e.at("[store]")))
        });
        grace.map_err(|e: Error| e.hint(correct()))
    }

    /// The same to which the host with that id alone writes.
    #[must_use]
    pub(crate) fn with_single_writer(mut self, machine: &str) -> Self {
        let entry = (SINGLE_WRITER.to_owned(), Value::String(machine.to_owned()));
        self.store = Some(Value::Table(Table::from_iter([entry])));
        self
    }

    /// The id of the host that alone writes to the repository, if there is one.
    ///
    /// # Errors
    /// `InvalidInput` if it is none.
    pub(crate) fn single_writer(&self) -> Result<Option<String>> {
        let read = table_at(self.store.as_ref(), "[store]")
            .and_then(|table| table.map_or(Ok(None), read_single_writer));
        read.map_err(|e: Error| e.hint(correct()))
    }

    /// The table `key` of an image, and the one for all.
    fn tables<T>(
        &self,
        name: &str,
        key: &str,
        common: Option<&Value>,
        read: fn(&Table) -> Result<T>,
    ) -> Result<(Option<T>, Option<T>)> {
        let both = || {
            // A setting in a table that nobody reads would be one that is missing.
            if let Some(stranger) = &self.stranger {
                return Err(invalid("unknown table or key").at(stranger.escape_debug()));
            }
            let read = |value: Option<&Value>, place: &str| {
                let table = table_at(value, place)?;
                table.map(|table| read(table).map_err(|e| e.at(place))).transpose()
            };
            let common = read(common, &format!("[{key}]"))?;
            let images = table_at(self.images.as_ref(), "[images]")?;
            let place = format!("images.\"{name}\"");
            let image = table_at(images.and_then(|t| t.get(name)), &format!("[{place}]"))?;
            let is_known = |key: &str| matches!(key, "prune" | "snapshot");
            if let Some(key) = image.and_then(|table| table.keys().find(|key| !is_known(key))) {
                return Err(invalid("unknown key").at(key.escape_debug()).at(&place));
            }
            let own = read(image.and_then(|t| t.get(key)), &format!("[{place}.{key}]"))?;
            Ok((own, common))
        };
        both().map_err(|e: Error| e.hint(correct()))
    }
}

#[cfg(test)]
mod tests;
