//! Host state (FORMAT.md section 9): what a host knows of the live images of repositories, apart from the
//! repositories, which others may use, and may be copies.
//!
//! ```text
//! STATE/REPOSITORY-ID/IMAGE-ID.json
//! STATE/REPOSITORY-ID/IMAGE-ID.ROLLBACK-ID.unwritten
//! STATE/REPOSITORY-ID/DIGEST-OF-PATH.restored    (src/repo/restored.rs)
//! STATE/places/DIGEST-OF-PATH.json    (src/repo/place.rs)
//! ```

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::signing::{OwnerKey, OwnerSigner};
use crate::repo::accepted::AcceptedState;
use crate::repo::manifest::temporary_of;
use crate::store::{Above, LocalStore, LockGuard, LockKind, OsDisk, Store, make_folder};
use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Nobody writes one for so long.
const OLD: SignedDuration = SignedDuration::from_mins(10);

/// A record larger than that cannot be right.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Which host something is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostName {
    /// Its identity: 32 lower case hexadecimal digits.
    pub machine: String,
    /// What it is called, for people.
    pub name: String,
}

/// This host, and where it keeps what it knows.
#[derive(Clone)]
pub struct HostState {
    host: HostName,
    /// None if there is no place for it.
    store: Option<Arc<dyn Store>>,
    /// A folder that is made when something is kept first.
    folder: Option<PathBuf>,
    /// Images of which it was told that they have been turned back.
    told: Arc<Mutex<HashSet<Uuid>>>,
    /// States of repositories that are used though they are not what was seen.
    accepted: Arc<[AcceptedState]>,
    /// What was said of the owner of the repository.
    owner: OwnerGiven,
    /// Nothing is kept.
    only_looks: bool,
}

/// What is said of the owner of a repository, by who uses it.
#[derive(Debug, Clone, Default)]
pub struct OwnerGiven {
    /// Whose signatures count.
    pub key: Option<OwnerKey>,
    /// The private key.
    pub signer: Option<Arc<OwnerSigner>>,
}

impl fmt::Debug for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostState").field("host", &self.host).finish_non_exhaustive()
    }
}

fn nowhere() -> Error {
    let what = "no place to keep the state of the live image: there is no home folder";
    Error::new(ErrorKind::Unsupported, what).hint("set IMGSNAP_STATE to a folder")
}

impl HostState {
    /// Of this host: in the folder `IMGSNAP_STATE`, else in `/var/lib/imgsnap-state` for root, and in
    /// `imgsnap` in the state folder of others (`XDG_STATE_HOME`, `~/.local/state`).
    pub fn of_this_host() -> Self {
        let host = this_host();
        match usual_folder() {
            Some(folder) => Self { host, ..Self::in_folder(&folder) },
            None => Self { host, ..Self::in_store_of(None, None) },
        }
    }

    /// The same in a folder, which need not exist.
    pub fn in_folder(folder: &Path) -> Self {
        let store = LocalStore::new(Arc::new(OsDisk::new(folder.into())));
        let folder = Some(folder.into());
        Self::in_store_of(Some(Arc::new(store)), folder)
    }

    /// What a host keeps elsewhere: for tests.
    pub fn in_store(store: Arc<dyn Store>, machine: &str) -> Self {
        let host = HostName { machine: machine.into(), name: machine.into() };
        Self { host, ..Self::in_store_of(Some(store), None) }
    }

    fn in_store_of(store: Option<Arc<dyn Store>>, folder: Option<PathBuf>) -> Self {
        let (told, accepted) = (Arc::default(), Arc::default());
        let (owner, only_looks) = (OwnerGiven::default(), false);
        Self { host: this_host(), store, folder, told, accepted, owner, only_looks }
    }

    /// The same for which these states of repositories are right.
    #[must_use]
    pub fn accepting(self, accepted: &[AcceptedState]) -> Self {
        Self { accepted: accepted.into(), ..self }
    }

    /// The same for which that is the owner of the repository.
    #[must_use]
    pub fn owned_by(self, owner: OwnerGiven) -> Self {
        Self { owner, ..self }
    }

    /// The same that remembers nothing of what it sees: who only completes a word has used nothing.
    #[must_use]
    pub fn only_looking(self) -> Self {
        Self { only_looks: true, ..self }
    }

    pub(crate) fn owner(&self) -> &OwnerGiven {
        &self.owner
    }

    pub(crate) fn accepted(&self) -> &[AcceptedState] {
        &self.accepted
    }

    /// Names of the files in a folder that end so.
    pub(crate) fn files(&self, folder: &str, ending: &str) -> Result<Vec<String>> {
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        match store.list(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            files => Ok(files?.into_iter().filter(|file| file.ends_with(ending)).collect()),
        }
    }

    /// Where it keeps that, if it is a folder.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Which host it is.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// What is kept of an image; none if nothing is.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged.
    pub(crate) fn load<T: DeserializeOwned>(
        &self,
        repository: Uuid,
        image: Uuid,
    ) -> Result<Option<T>> {
        self.load_file(&record_name(repository, image))
    }

    /// Reads a record; none if there is none.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged.
    pub(crate) fn load_file<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(store) = &self.store else { return Ok(None) };
        let bytes = match store.read_whole(name, MAX_RECORD_BYTES) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let damaged = |e| Error::corrupt(format!("{}: {e}", store.location(name)));
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// Keeps other programs of this host from changing an image of a repository; none if one does.
    ///
    /// # Errors
    /// If it cannot be locked.
    pub(crate) fn lock(&self, repository: Uuid, image: &str) -> Result<Option<LockGuard>> {
        let store = self.store.as_ref().ok_or_else(nowhere)?;
        self.make_folder_of(store.as_ref(), &repository.to_string())?;
        let digest = blake3::hash(image.as_bytes()).to_hex();
        let name = digest.get(..32).unwrap_or_default();
        store.lock(&format!("{repository}/{name}.lock"), LockKind::Exclusive)
    }

    /// The images of a repository of which something is kept.
    pub(crate) fn images(&self, repository: Uuid) -> Result<Vec<Uuid>> {
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        let files = match store.list(&repository.to_string()) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            files => files?,
        };
        let image = |file: &String| file.strip_suffix(".json")?.parse().ok();
        Ok(files.iter().filter_map(image).collect())
    }

    /// Keeps what is known of an image, durably.
    pub(crate) fn save(
        &self,
        repository: Uuid,
        image: Uuid,
        record: &impl Serialize,
    ) -> Result<()> {
        let name = record_name(repository, image);
        match self.save_file(&name, record) {
            // The one that is there is wrong by now, and takes the space that this one needs.
            Err(e) if e.is_storage_full() => {
                self.store.as_ref().map_or(Ok(()), |store| store.remove(&name))?;
                self.save_file(&name, record)
            }
            other => other,
        }
    }

    /// Writes a record in a folder, durably, in the place of the one that is there.
    pub(crate) fn save_file(&self, name: &str, record: &impl Serialize) -> Result<()> {
        if self.only_looks {
            return Ok(());
        }
        let store = self.store.as_ref().ok_or_else(nowhere)?;
        let bytes = serde_json::to_vec_pretty(record).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot write the host state: {e}"))
        })?;
        let folder = name.split_once('/').map_or("", |(folder, _)| folder);
        match store.replace(name, &bytes) {
            // The first record.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.make_folder_of(store.as_ref(), folder)?;
                store.replace(name, &bytes)
            }
            other => other,
        }
    }

    /// Removes a record from a folder, durably, if it is there.
    pub(crate) fn remove_file(&self, folder: &str, name: &str) -> Result<()> {
        let Some(store) = self.store.as_ref().filter(|_| !self.only_looks) else { return Ok(()) };
        let removed = store.remove(name).and_then(|()| store.sync_dir(folder));
        match removed {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes all but the newest `count` files of a folder whose names end so, as far as that goes.
    pub(crate) fn keep_newest(&self, folder: &str, ending: &str, count: usize) {
        let Some(store) = &self.store else { return };
        let mut files = store.list_timed(folder).unwrap_or_default();
        files.retain(|file| file.name.ends_with(ending));
        files.sort_by_key(|file| file.time);
        let old = files.iter().rev().skip(count);
        old.for_each(|file| best_effort(store.remove(&format!("{folder}/{}", file.name))));
    }

    /// The note that nothing is written for a rollback of an image.
    pub(crate) fn unwritten(&self, repository: Uuid, image: Uuid, rollback: Uuid) -> Unwritten {
        Unwritten { host: self.clone(), folder: repository.to_string(), image, rollback }
    }

    /// Removes what saves that were killed have left in a folder, unless somebody may still be at it.
    pub(crate) fn tidy_folder(&self, folder: &str) {
        let Some(store) = self.store.as_ref().filter(|_| !self.only_looks) else { return };
        let old = Timestamp::now().saturating_sub(OLD).unwrap_or_default();
        let listed = store.list_timed(folder).unwrap_or_default();
        let left = listed.iter().filter(|l| temporary_of(&l.name).is_some() && l.time < old);
        left.for_each(|l| best_effort(store.remove(&format!("{folder}/{}", l.name))));
    }

    /// Makes the folder of a repository.
    fn make_folder_of(&self, store: &dyn Store, repository: &str) -> Result<()> {
        self.folder.as_deref().map_or(Ok(()), |f| make_folder(f, Above::Make).map(drop))?;
        store.create_folder(repository)
    }

    /// Removes what a save that was killed has left. Nobody else may be saving what is known of the image.
    pub(crate) fn tidy(&self, repository: Uuid, image: Uuid) -> Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let (folder, image) = (repository.to_string(), image.to_string());
        let files = store.list(&folder)?;
        let left = files.iter().filter(|file| {
            temporary_of(file).is_some_and(|of| of.split('.').next() == Some(image.as_str()))
        });
        left.map(|file| format!("{folder}/{file}")).try_for_each(|file| store.remove(&file))
    }

    /// True the first time that something is told of an image.
    pub(crate) fn is_news(&self, image: Uuid) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(image)
    }

    /// Forgets all images of a repository.
    pub(crate) fn forget_repository(&self, repository: Uuid) -> Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let folder = repository.to_string();
        let files = store.list(&folder)?;
        files.iter().try_for_each(|file| store.remove(&format!("{folder}/{file}")))?;
        store.remove_folder(&folder).map(drop)
    }

    /// Forgets an image.
    pub(crate) fn forget(&self, repository: Uuid, image: Uuid) -> Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let (folder, name) = (repository.to_string(), image.to_string());
        for note in notes_of(store.as_ref(), &folder, &name)? {
            store.remove(&format!("{folder}/{note}"))?;
        }
        match store.remove(&record_name(repository, image)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// The note that nothing is written for a rollback: an object of its own, so that no other process, which
/// keeps what it knows of the image, brings it back.
pub(crate) struct Unwritten {
    host: HostState,
    folder: String,
    image: Uuid,
    rollback: Uuid,
}

/// So many notes of an image are kept: the rollbacks of older ones do not land any more.
const MAX_NOTES: usize = 16;
const NOTE: &str = ".unwritten";

impl Unwritten {
    fn name(&self) -> String {
        format!("{}/{}.{}{NOTE}", self.folder, self.image, self.rollback)
    }

    /// Puts it, durably. After an error it may be there.
    pub(crate) fn put(&self) -> Result<()> {
        let Some(store) = &self.host.store else { return Ok(()) };
        let machine = self.host.host.machine.as_bytes();
        match store.put_if_absent(&self.name(), machine) {
            // The first thing that is known of the repository.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.host.make_folder_of(store.as_ref(), &self.folder)?;
                store.put_if_absent(&self.name(), machine)?;
            }
            other => other?,
        }
        let old = notes_of(store.as_ref(), &self.folder, &self.image.to_string())?;
        let own = self.name();
        let old = old.iter().rev().skip(MAX_NOTES).map(|note| format!("{}/{note}", self.folder));
        old.filter(|note| *note != own).try_for_each(|note| store.remove(&note))
    }

    /// True if it is there, and of this host: not of one that was copied.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub(crate) fn is_there(&self) -> Result<bool> {
        let Some(store) = &self.host.store else { return Ok(false) };
        match store.read_whole(&self.name(), MAX_RECORD_BYTES) {
            Ok(machine) => Ok(machine == self.host.host.machine.as_bytes()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes it, durably.
    pub(crate) fn remove(&self) -> Result<()> {
        let Some(store) = &self.host.store else { return Ok(()) };
        store.remove(&self.name())?;
        store.sync_dir(&self.folder)
    }
}

/// The notes of an image, oldest first.
fn notes_of(store: &dyn Store, folder: &str, image: &str) -> Result<Vec<String>> {
    let is_note = |name: &str| name.ends_with(NOTE) && name.split('.').next() == Some(image);
    let mut notes = store.list_timed(folder)?;
    notes.retain(|note| is_note(&note.name));
    notes.sort_by_key(|note| note.time);
    Ok(notes.into_iter().map(|note| note.name).collect())
}

fn record_name(repository: Uuid, image: Uuid) -> String {
    format!("{repository}/{image}.json")
}

fn usual_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable("IMGSNAP_STATE") {
        return std::path::absolute(folder).ok();
    }
    if nix::unistd::geteuid().is_root() {
        return Some("/var/lib/imgsnap-state".into());
    }
    let state = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
    let state = state.or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    state.map(|state| state.join("imgsnap"))
}

/// The machine id is for this host alone (machine-id(5)): what is made of it tells nobody what it is.
fn this_host() -> HostName {
    let line = |path: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|line| !line.is_empty())
    };
    let name = line("/proc/sys/kernel/hostname").unwrap_or_else(|| "localhost".into());
    let known = std::env::var("IMGSNAP_MACHINE_ID").ok().filter(|id| !id.is_empty());
    let id = known
        .or_else(|| line("/etc/machine-id"))
        .or_else(|| line("/var/lib/dbus/machine-id"))
        .unwrap_or_else(|| name.clone());
    let digest = blake3::derive_key("imgsnap machine identity", id.as_bytes());
    let machine = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    HostName { machine, name }
}
