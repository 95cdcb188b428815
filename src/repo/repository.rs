//! An open repository: a store, its configuration, what is cached of it.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::codec::Compression;
use crate::delta::{Caches, Traffic};
use crate::repo::config::{Config, Defaults, object};
use crate::repo::host::HostState;
use crate::repo::names::{
    Overview, is_guarded, is_of_filesystem, is_temporary, names_in, overview,
};
use crate::repo::owner;
use crate::repo::place::Place;
use crate::repo::policy::{Policy, SnapshotPolicy};
use crate::repo::probe;
use crate::repo::root::Root;
use crate::repo::seen::Seen;
use crate::repo::top::{MARKER, is_probe};
use crate::store::sealed::is_slot;
use crate::store::{LockGuard, Owner, Sharing, Store};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// An open repository.
pub struct Repository {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) host: HostState,
    pub(crate) config: Config,
    pub(crate) caches: Caches,
    /// How long another program that works on an image is waited for, and who may stop that.
    pub(crate) patience: Option<Context>,
    pub(crate) place: Place,
    overview: Mutex<Overview>,
    /// If it was opened where one may be made.
    pub(crate) first_use: Option<FirstUse>,
}

/// What keeps a repository there that others may take back (`first_use.rs`).
pub(crate) struct FirstUse {
    /// Locked, shared.
    pub(crate) root: Mutex<Option<Root>>,
    /// True if it was made by that.
    pub(crate) is_new: bool,
    /// True if its folder was, too.
    pub(crate) is_folder_new: bool,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("location", &self.location()).finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository in a store, which is used from `host`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one, or the folder holds something else.
    pub fn init_in(store: Arc<dyn Store>, defaults: Defaults, host: HostState) -> Result<Self> {
        if store.url().is_some() {
            store.create_folder("")?;
        }
        probe::ensure(store.as_ref(), &host)?;
        Self::init_as(store, Config::new(defaults), host)
    }

    /// The same to which this host alone will ever write, so that the store need not keep hosts apart.
    ///
    /// # Errors
    /// As of [`Repository::init_in`].
    pub fn init_single(store: Arc<dyn Store>, defaults: Defaults, host: HostState) -> Result<Self> {
        store.create_folder("")?;
        let config = Config::new(defaults).with_single_writer(&host.host().machine);
        Self::init_as(store, config, host)
    }

    fn init_as(store: Arc<dyn Store>, config: Config, host: HostState) -> Result<Self> {
        let place = store.location("");
        let why_not = match Self::open_in(store.clone(), host.clone()) {
            Err(e) => e,
            Ok(there) => {
                let new = there.defaults().map_or(String::new(), |d| format!(" (new bases: {d})"));
                let what = format!("{place} is already a repository{new}");
                return Err(Error::new(ErrorKind::AlreadyExists, what)
                    .hint(message!["choose another folder with ", Setting::Repo]));
            }
        };
        if !names_in(store.as_ref())?.is_empty() {
            return Err(why_not);
        }
        let (left, others): (Vec<String>, Vec<String>) =
            store.list("")?.into_iter().partition(|name| is_temporary(name));
        // What an init wrote that was interrupted, and perhaps not only now.
        let is_begun = is_begun(store.as_ref())?;
        let is_foreign = |name: &&String| {
            let is_left = is_begun && (*name == MARKER || is_slot(name));
            !(is_left || is_of_filesystem(name) || is_probe(name))
        };
        if let Some(name) = others.iter().find(is_foreign) {
            let what = format!("{place} is not empty (it holds \"{name}\")");
            return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose an empty folder"));
        }
        // Nobody else would remove it, so it must not come back either.
        for name in &left {
            store.remove(name)?;
        }
        store.sync_dir("")?;
        match is_begun {
            true => object::mark(store.as_ref())?,
            false => object::begin_marker(store.as_ref())?,
        }
        let config = match store.sealing() {
            None => config,
            Some(sealing) => {
                sealing.put_new_slot(store.as_ref())?;
                config.sealed_with(sealing, sealing.slot().into_iter().collect())
            }
        };
        let (store, config) = match &host.owner().signer {
            None => (store, config),
            Some(signer) => {
                let config = config.owned_by(signer.key());
                let owner = Owner::new(config.id, signer.key(), Some(signer.clone()));
                owner::remember(&host, config.id, signer.key())?;
                (owner::owned(store, owner), config)
            }
        };
        object::begin(store.as_ref(), &config.encode()?)?;
        Ok(Self::with(store, host, config))
    }

    fn with(store: Arc<dyn Store>, host: HostState, config: Config) -> Self {
        let place = Place::of(store.as_ref(), &host);
        Self {
            store,
            host,
            config,
            caches: Caches::default(),
            patience: None,
            place,
            overview: Mutex::default(),
            first_use: None,
        }
    }

    /// Opens the repository in a store, which is used from `host`.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Unsupported` if a later version made it.
    pub fn open_in(store: Arc<dyn Store>, host: HostState) -> Result<Self> {
        let repository = Self::open_unchecked(store, host)?;
        repository.place.check_sealed(repository.id())?;
        Ok(repository)
    }

    /// The same, whatever this host has used there.
    pub(crate) fn open_unchecked(store: Arc<dyn Store>, host: HostState) -> Result<Self> {
        let store = owner::watched(store, &host)?;
        let config = load_checked(store.as_ref(), &host);
        let config = config.map_err(|e| Self::or_missing(store.as_ref(), &host, e))?;
        let watched = owner::watched_as(store.clone(), &host, Some(config.id))?;
        let config = match (store.owner(), watched.owner()) {
            (None, Some(_)) => load_checked(watched.as_ref(), &host)?,
            _ => config,
        };
        owner::check_told(&config, watched.as_ref())?;
        Ok(Self::with(watched, host, config))
    }

    /// Why it cannot be opened: where there is nothing, the host may have used one that is missing now.
    pub fn or_missing(store: &dyn Store, host: &HostState, error: Error) -> Error {
        match error.kind() {
            ErrorKind::NotFound => Place::of(store, host).missing().unwrap_or(error),
            _ => error,
        }
    }

    /// Fails if this host has used others at this place, and not this one, or if the store does not keep
    /// hosts apart: so does every verb that writes.
    ///
    /// # Errors
    /// `Mismatch`, also if another host alone may write; `Unsupported` for what the store does.
    pub fn check_place(&self) -> Result<()> {
        self.place.check(self.id())?;
        match (self.store.url(), self.config.single_writer()?) {
            (Some(_), Some(machine)) if machine == self.host.host().machine => Ok(()),
            (Some(_), Some(machine)) => Err(probe::refuse_other_writer(&self.location(), &machine)),
            (Some(_), None) => probe::ensure(self.store.as_ref(), &self.host),
            (None, _) => Ok(()),
        }
    }

    /// Lets go of what keeps others from taking it back: its folder is not held open any more, and its disk
    /// may go and come back.
    pub(crate) fn release_root(&self) {
        if let Some(first) = &self.first_use {
            first.root.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// True if one host alone writes to it, since the store keeps nobody apart.
    pub(crate) fn has_single_writer(&self) -> bool {
        self.store.url().is_some() && !matches!(self.config.single_writer(), Ok(None))
    }

    /// Where one host alone writes, what keeps its programs apart: the store does not.
    ///
    /// # Errors
    /// If it cannot be locked.
    pub(crate) fn lock_single_writer(&self, image: &str) -> Result<Option<Option<LockGuard>>> {
        match (self.store.url(), self.config.single_writer()?) {
            (Some(_), Some(_)) => self.host.lock(self.id(), image).map(Some),
            _ => Ok(None),
        }
    }

    /// Something is in it: nobody takes it back any more, and this host remembers it.
    ///
    /// # Errors
    /// If it cannot be remembered.
    pub(crate) fn settle(&self) -> Result<()> {
        self.release_root();
        self.place.remember(self.id())
    }

    /// Warns, once, if this host has used other repositories where it is.
    pub fn warn_of_place(&self, context: &Context) {
        self.place.tell(self.id(), context);
    }

    /// True if it was made when it was opened.
    pub fn is_new(&self) -> bool {
        self.first_use.as_ref().is_some_and(|first| first.is_new)
    }

    /// The same whose snapshots are read no faster than a context allows, and whose locks are waited for as
    /// long.
    #[must_use]
    pub fn reading_within(mut self, context: &Context) -> Self {
        self.caches = self.caches.reading_within(context.read_limits().clone());
        self.patience = Some(context.clone()).filter(|context| !context.lock_wait().is_zero());
        self
    }

    /// True if there is nothing at all where `store` is: a repository can be made there.
    pub fn is_vacant(store: &dyn Store) -> bool {
        let is_begun = is_begun(store).unwrap_or_default();
        store.list("").is_ok_and(|names| {
            let is_left = |name: &str| {
                is_temporary(name)
                    || is_probe(name)
                    || is_begun && (name == MARKER || is_slot(name))
            };
            names.iter().all(|name| is_left(name) || is_of_filesystem(name))
        })
    }

    /// Its identity.
    pub fn id(&self) -> Uuid {
        self.config.id
    }

    /// With what new bases are made.
    ///
    /// # Errors
    /// `InvalidInput` if the table for it in the configuration is wrong. Nothing else fails then.
    pub fn defaults(&self) -> Result<Defaults> {
        self.config.defaults().map_err(|e| e.at(self.place_of_config()))
    }

    /// With what files are compressed that are no new base: as new bases, or in the usual way.
    pub(crate) fn compression(&self) -> Compression {
        self.config.compression()
    }

    /// What `prune` keeps of an image.
    ///
    /// # Errors
    /// `InvalidInput` if the tables for it in the configuration are wrong. Nothing else fails then.
    pub fn policy(&self, name: &str) -> Result<Policy> {
        self.config.policy(name).map_err(|e| e.at(self.place_of_config()))
    }

    /// How snapshots of an image are taken.
    ///
    /// # Errors
    /// `InvalidInput` if the tables for it in the configuration are wrong.
    pub fn snapshot_policy(&self, name: &str) -> Result<SnapshotPolicy> {
        self.config.snapshot_policy(name).map_err(|e| e.at(self.place_of_config()))
    }

    /// What keeps those apart who use it, and how long what is dropped stays.
    pub(crate) fn sharing(&self) -> Result<Sharing> {
        // With a slip in the configuration nothing is removed earlier.
        let configured = self.config.grace().unwrap_or_default();
        Ok(match (self.store.sharing()?, configured) {
            (Sharing::Shared { marker_life, .. }, Some(grace)) => {
                Sharing::Shared { grace, marker_life }
            }
            (sharing, _) => sharing,
        })
    }

    /// False if the owner alone may drop anything, and the owner key is not here.
    pub(crate) fn may_drop(&self) -> bool {
        self.store.owner().is_none_or(|owner| owner.signer.is_some())
    }

    /// True if all in it is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.store.sealing().is_some()
    }

    /// What this host has seen of it.
    pub(crate) fn seen(&self) -> Seen<'_> {
        Seen { store: self.store.as_ref(), host: &self.host, repository: self.id() }
    }

    /// What was read and decoded through it so far.
    pub fn traffic(&self) -> Traffic {
        self.caches.traffic()
    }

    /// Where it is.
    pub fn location(&self) -> String {
        self.store.location("")
    }

    fn place_of_config(&self) -> String {
        self.store.location(&self.config.file())
    }

    /// Images that have rules in the configuration and do not exist, sorted.
    pub fn unknown_images_in_config(&self) -> Result<Vec<String>> {
        let names = self.names()?;
        Ok(self.config.named_images().into_iter().filter(|name| !names.contains(name)).collect())
    }

    /// The names of its images, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        if self.store.url().is_none() {
            let names = names_in(self.store.as_ref())?;
            self.seen().check_names(&names)?;
            return Ok(names);
        }
        let all = overview(self.store.as_ref())?;
        let names: Vec<String> = all.keys().cloned().collect();
        self.seen().check_names(&names)?;
        *self.overview.lock().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(names)
    }

    /// What was in the folder of an image when the names on a server were listed last. It is told once: an
    /// image that is looked at again may have changed.
    pub(crate) fn listed(&self, name: &str) -> Option<Vec<String>> {
        self.overview.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }
}

/// Reads the configuration. Fails unless a sealed repository is the one that was opened, no older than what
/// this host has seen, and by a slot that counts.
fn load_checked(store: &dyn Store, host: &HostState) -> Result<Config> {
    let mut config = Config::load(store)?;
    if !is_guarded(store) {
        return Ok(config);
    }
    let seen = |config: &Config| {
        let (number, text) = config.state();
        Seen { store, host, repository: config.id }.check_config(number, text)
    };
    config.check_repository(store)?;
    if seen(&config).is_err_and(|e| e.kind() == ErrorKind::Mismatch) {
        // Somebody else of this host may have changed it since it was read.
        config = Config::load(store)?;
        config.check_repository(store)?;
    }
    seen(&config)?;
    config.check_slot(store)?;
    Ok(config)
}

/// True if an init was interrupted between the marker and the first configuration.
fn is_begun(store: &dyn Store) -> Result<bool> {
    Ok(object::numbers(store)?.is_empty() && object::is_marked(store)?)
}
