//! What a user opens: names to ids, locks, and the verbs wired to a store.
//!
//! ```text
//! Repository -> Reader (reap lock, shared)            -> Chain -> restore, diff, verify
//!            -> Writer (write lock, reap lock shared) -> publish a delta, commit a manifest, note the head
//! ```

mod admin;
mod base_image;
mod bring_back;
mod clones;
mod compact;
mod config;
mod inside;
mod live_file;
mod mend;
mod policy;
mod prepared;
mod prune;
mod rebuild;
mod reference;
mod repair;
mod restored_config;
mod rollback;
mod session;
mod several;
mod snapshot;
mod stats;
mod tracking;
mod travel;
mod verify;
mod watch;

pub use clones::{CloneUse, Clones};
pub use compact::{Compaction, Merging};
pub use config::Defaults;
pub use inside::refuse_inside_any;
pub use mend::{MendSource, Mended, MendedBy};
pub use policy::{Policy, SnapshotPolicy, Track};
pub use prune::{Flattened, PruneRequest, Pruned};
pub use reference::{At, Reference, check_label};
pub use repair::{Rebuilt, Repaired};
pub use rollback::{RollbackOutcome, RollbackRequest};
pub use session::Reader;
pub use several::check_distinct;
pub use snapshot::{
    ChangedSince, Outcome, ParentChoice, SnapshotOutcome, SnapshotRequest, name_of,
    warn_if_unguarded,
};
pub use stats::{CELLS, Cost, Day, Stats};
pub use travel::Imported;
pub use verify::{Damage, DamageKind, Loss, Unchecked, Verified, VerifyScope};
pub use watch::{WatchRequest, Watched};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::progress::Context;
use crate::delta::{Caches, Traffic};
use crate::head::Head;
use crate::manifest::{self, ImageFile, Manifest};
use crate::store::Store;
use config::Config;
use std::sync::Arc;
use uuid::Uuid;

/// An open repository.
pub struct Repository {
    store: Arc<dyn Store>,
    config: Config,
    caches: Caches,
}

/// An image and what is known of its live file.
pub struct Listing {
    /// Its snapshots.
    pub manifest: Manifest,
    /// The head state.
    pub head: Head,
    /// The clones beside its live file.
    pub clones: Clones,
}

impl Repository {
    /// Makes a repository.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one, or the folder holds something else.
    pub fn init(store: Arc<dyn Store>, defaults: Defaults) -> Result<Self> {
        let place = store.location("");
        if let Ok(there) = Self::open(store.clone()) {
            let what = format!("{place} is a repository already (new bases: {})", there.defaults());
            return Err(Error::new(ErrorKind::AlreadyExists, what)
                .hint("choose another folder with --repo"));
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
        store.flush("")?;
        let config = Config::new(defaults);
        let mut upload = store.create(config::FILE)?;
        upload.write(config.encode()?.as_bytes())?;
        upload.publish()?;
        Ok(Self { store, config, caches: Caches::default() })
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Unsupported` if a later version made it.
    pub fn open(store: Arc<dyn Store>) -> Result<Self> {
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
        self.config.policy(name).map_err(|e| e.at(self.store.location(config::FILE)))
    }

    /// How snapshots of an image are taken.
    ///
    /// # Errors
    /// `InvalidInput` if the tables for it in repository.toml are wrong.
    pub fn snapshot_policy(&self, name: &str) -> Result<SnapshotPolicy> {
        self.config.snapshot_policy(name).map_err(|e| e.at(self.store.location(config::FILE)))
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
    pub fn strangers_with_rules(&self) -> Result<Vec<String>> {
        let names = self.names()?;
        Ok(self.config.named_images().into_iter().filter(|name| !names.contains(name)).collect())
    }

    /// The names of its images, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        names_in(self.store.as_ref())
    }

    /// An image with its snapshots.
    pub fn list(&self, name: &str, context: &Context) -> Result<Listing> {
        let reader = self.read(name, context)?;
        let head = reader.head().clone();
        let clones = self.clones_or_warn(reader.manifest(), context);
        Ok(Listing { manifest: reader.manifest().clone(), head, clones })
    }

    /// The image whose live file is `path`.
    pub fn name_of_source(
        &self,
        path: &std::path::Path,
        context: &Context,
    ) -> Result<Option<String>> {
        for name in self.names()? {
            match self.read(&name, context) {
                Ok(reader) if reader.manifest().source.as_deref() == Some(path) => {
                    return Ok(Some(name));
                }
                // That another image is damaged, or just forgotten, is no reason to refuse this one.
                Err(e) if !matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                    return Err(e);
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

/// The names of the images in a store, sorted.
fn names_in(store: &dyn Store) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in store.list("")? {
        let known = || -> Result<bool> {
            let is_ours = |file: &String| {
                matches!(ImageFile::of(file), Some(ImageFile::Manifest(_) | ImageFile::Delta))
            };
            match store.list(&name) {
                // A link that leads to no image of its own is in nobody's way.
                Err(_) if is_idle_link(store, &name) => Ok(false),
                // That of the file system is root's alone.
                Err(_) if is_of_filesystem(&name) => Ok(false),
                other => Ok(other?.iter().any(is_ours)),
            }
        };
        if manifest::check_name(&name).is_ok() && name != config::FILE && known()? {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// True for a link that leads nowhere, or to what is in the repository anyway.
fn is_idle_link(store: &dyn Store, name: &str) -> bool {
    let Some(root) = store.local_path() else { return false };
    let link = root.join(name);
    let is_link = link.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    let inside = std::fs::canonicalize(root).ok();
    let leads_inside = |to: &std::path::PathBuf| inside.as_ref().is_some_and(|r| to.starts_with(r));
    let is_folder = link.is_dir();
    is_link && (!is_folder || std::fs::canonicalize(&link).ok().as_ref().is_some_and(leads_inside))
}

/// True for what an `init` that was killed leaves behind.
fn is_left_of_init(name: &str) -> bool {
    manifest::temporary_of(name) == Some(config::FILE)
}

/// True for what is in the root of a file system that is otherwise empty.
fn is_of_filesystem(name: &str) -> bool {
    name == "lost+found"
}
