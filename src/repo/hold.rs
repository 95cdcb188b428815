//! What keeps the files of an image from being removed while somebody reads them: a lock, or a marker where
//! there are none; and the same of the images that its chains begin from.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Action, message};
use crate::delta::ReadGuard;
use crate::repo::Repository;
use crate::repo::garbage::reader_lock;
use crate::repo::manifest::{self, Manifest, changed_meanwhile};
use crate::repo::marker::{Marked, Marker, load_marked};
use crate::store::{LockGuard, LockKind, Sharing, Store};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// What keeps files from being removed.
pub(crate) enum Held {
    Lock { _guard: LockGuard },
    Marker(Arc<Marker>),
}

/// What a manifest names, which stays as long as this lives.
pub(crate) struct HeldImage {
    pub(crate) manifest: Manifest,
    /// None where nothing can be written.
    held: Option<Held>,
}

impl HeldImage {
    /// What holds some of its files back, also when this is gone.
    pub fn guard(&self, repository: &Repository, files: &[&str]) -> Result<Option<ReadGuard>> {
        let Manifest { name, sequence, .. } = &self.manifest;
        let lock = match &self.held {
            Some(Held::Lock { .. }) => repository.store.hold(&reader_lock(name), files)?,
            Some(Held::Marker(marker)) => Some(Box::new(marker.clone()) as LockGuard),
            None => None,
        };
        let files = files.iter().map(|file| (*file).to_owned()).collect();
        Ok(lock.map(|lock| ReadGuard::new(name, *sequence, files, lock)))
    }
}

/// Holds what rules of an image.
///
/// # Errors
/// As of [`manifest::load`].
pub(crate) fn hold(repository: &Repository, name: &str, context: &Context) -> Result<HeldImage> {
    manifest::check_name(name)?;
    let store = repository.store.as_ref();
    let (manifest, held) = match store.sharing()? {
        Sharing::Locked => {
            if store.list(name)?.is_empty() {
                // Say so before a lock file is made in a folder that does not exist.
                manifest::load(store, name)?;
            }
            let lock = share_reader_lock(store, name, context)
                .map_err(|e| or_not_found(repository, name, e))?;
            (manifest::load(store, name)?, lock)
        }
        Sharing::Shared { .. } => {
            let Marked { manifest, marker, .. } = load_marked(&repository.store, name, false)?;
            (manifest, held_by(marker, context)?)
        }
    };
    Ok(HeldImage { manifest, held })
}

/// How often an image is read whose chains are moved to other images meanwhile.
const HOLD_TRIES: usize = 16;

/// The same with the images that its chains begin from, and those that these begin from, as far as they can
/// be read: what cannot is told by who needs it.
///
/// # Errors
/// As of [`manifest::load`].
pub(crate) fn hold_all(
    repository: &Repository,
    name: &str,
    context: &Context,
) -> Result<(HeldImage, Vec<HeldImage>)> {
    for _ in 0..HOLD_TRIES {
        let image = hold(repository, name, context)?;
        let mut others: Vec<HeldImage> = Vec::new();
        let mut wanted = names_below(&image.manifest);
        while let Some((id, name)) = wanted.pop() {
            if others.iter().any(|other| other.manifest.image_id == id) {
                continue;
            }
            match hold(repository, &name, context) {
                Ok(other) if other.manifest.image_id == id => {
                    wanted.extend(names_below(&other.manifest));
                    others.push(other);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
                Ok(_) | Err(_) => {}
            }
        }
        // A snapshot stays while what depends on it rules (C9); if that was so when all was held, it is held.
        let mut are_last = true;
        for held in others.iter().chain([&image]).filter(|held| is_based(&held.manifest)) {
            are_last &= manifest::is_last(repository.store.as_ref(), &held.manifest)?;
        }
        if are_last {
            return Ok((image, others));
        }
    }
    Err(changed_meanwhile(name))
}

fn is_based(manifest: &Manifest) -> bool {
    manifest.bases_elsewhere().next().is_some()
}

fn names_below(manifest: &Manifest) -> Vec<(Uuid, String)> {
    let mut below: Vec<_> =
        manifest.bases_elsewhere().map(|of| (of.image, of.name.clone())).collect();
    below.sort();
    below.dedup();
    below
}

/// Who may not write relies on the grace period (C8).
fn held_by(marker: Result<Marker>, context: &Context) -> Result<Option<Held>> {
    match marker {
        Ok(marker) => Ok(Some(Held::Marker(Arc::new(marker)))),
        Err(e) if e.is_read_only() || e.is_storage_full() => {
            context.note(message!["reading without a marker: ", e]);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// What cannot be locked because the image has just been removed is not there.
pub(crate) fn or_not_found(repository: &Repository, name: &str, error: Error) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    manifest::load(repository.store.as_ref(), name).err().unwrap_or(error)
}

pub(crate) fn share_reader_lock(
    store: &dyn Store,
    name: &str,
    context: &Context,
) -> Result<Option<Held>> {
    // It is held exclusively only while files are unlinked: a moment.
    for _ in 0..500 {
        match store.lock(&reader_lock(name), LockKind::Shared) {
            Ok(Some(guard)) => return Ok(Some(Held::Lock { _guard: guard })),
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                context.warn(WarningId::NoLock, message![e, "; reading without a lock"]);
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        context.check()?;
    }
    Err(Error::new(ErrorKind::Busy, format!("another imgsnap is removing files of \"{name}\""))
        .hint(message![Action::Retry, " when it is done"]))
}
