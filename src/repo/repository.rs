//! An open repository: a store, its configuration, what is cached of it.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::delta::{Caches, Traffic};
use crate::repo::config::{Config, Defaults};
use crate::repo::names::{self, is_left_of_init, is_of_filesystem, names_in};
use crate::repo::policy::{Policy, SnapshotPolicy};
use crate::store::Store;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// An open repository.
pub struct Repository {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) config: Config,
    pub(crate) caches: Caches,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("location", &self.location()).finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository in a store.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one, or the folder holds something else.
    pub fn init_in(store: Arc<dyn Store>, defaults: Defaults) -> Result<Self> {
        let place = store.location("");
        if let Ok(there) = Self::open_in(store.clone()) {
            let what = format!("{place} is a repository already (new bases: {})", there.defaults());
            return Err(Error::new(ErrorKind::AlreadyExists, what)
                .hint(message!["choose another folder with ", Setting::Repo]));
        }
        let (left, foreign): (Vec<String>, Vec<String>) =
            store.list("")?.into_iter().partition(|name| is_left_of_init(name));
        let foreign: Vec<String> =
            foreign.into_iter().filter(|name| !is_of_filesystem(name)).collect();
        if !names_in(store.as_ref())?.is_empty() {
            return Err(Config::missing(store.as_ref()));
        }
        if let Some(name) = foreign.first() {
            let what = format!("{place} is not empty (it holds \"{name}\")");
            return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose an empty folder"));
        }
        // Of one that was interrupted. Nobody else would remove it, so it must not come back either.
        for name in &left {
            store.remove(name)?;
        }
        store.sync_dir("")?;
        let config = Config::new(defaults);
        let mut upload = store.create(names::FILE)?;
        upload.write(config.encode()?.as_bytes())?;
        upload.publish()?;
        Ok(Self { store, config, caches: Caches::default() })
    }

    /// Opens the repository in a store.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Unsupported` if a later version made it.
    pub fn open_in(store: Arc<dyn Store>) -> Result<Self> {
        let config = Config::load(store.as_ref())?;
        Ok(Self { store, config, caches: Caches::default() })
    }

    /// True if there is nothing at all where `store` is: a repository can be made there.
    pub fn is_vacant(store: &dyn Store) -> bool {
        store.list("").is_ok_and(|names| {
            names.iter().all(|name| is_left_of_init(name) || is_of_filesystem(name))
        })
    }

    /// Its identity.
    pub fn id(&self) -> Uuid {
        self.config.id
    }

    /// With what new bases are made.
    pub fn defaults(&self) -> Defaults {
        self.config.defaults()
    }

    /// What `prune` keeps of an image.
    ///
    /// # Errors
    /// `InvalidInput` if the tables for it in repository.toml are wrong. Nothing else fails then.
    pub fn policy(&self, name: &str) -> Result<Policy> {
        self.config.policy(name).map_err(|e| e.at(self.store.location(names::FILE)))
    }

    /// How snapshots of an image are taken.
    ///
    /// # Errors
    /// `InvalidInput` if the tables for it in repository.toml are wrong.
    pub fn snapshot_policy(&self, name: &str) -> Result<SnapshotPolicy> {
        self.config.snapshot_policy(name).map_err(|e| e.at(self.store.location(names::FILE)))
    }

    /// What was read and decoded through it so far.
    pub fn traffic(&self) -> Traffic {
        self.caches.traffic()
    }

    /// Where it is.
    pub fn location(&self) -> String {
        self.store.location("")
    }

    /// Images that have rules in repository.toml and do not exist, sorted.
    pub fn unknown_images_in_config(&self) -> Result<Vec<String>> {
        let names = self.names()?;
        Ok(self.config.named_images().into_iter().filter(|name| !names.contains(name)).collect())
    }

    /// The names of its images, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        names_in(self.store.as_ref())
    }
}
