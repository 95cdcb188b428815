//! Markers (C7): where there are no locks, who reads what a manifest names, or is about to name more, says
//! so in the store. What later manifests condemn waits until the marker is gone, or has expired.

use crate::base::error::{ErrorKind, Result, best_effort};
use crate::repo::manifest::{self, Manifest};
use crate::store::{Listed, Store};
use jiff::Timestamp;
use std::sync::Arc;

/// How often a marker is put to which there is no answer.
const TRIES: u32 = 5;

/// A marker, as long as it lives.
pub(crate) struct Marker {
    store: Arc<dyn Store>,
    object: String,
}

impl Marker {
    /// Puts one for the manifest with that number.
    pub fn put(store: &Arc<dyn Store>, name: &str, sequence: u64) -> Result<Self> {
        let mut attempt = 0;
        loop {
            // A name for each attempt: one without an answer expires.
            let object = format!("{name}/{}", manifest::marker_name(sequence));
            match store.put_if_absent(&object, b"") {
                Ok(()) => return Ok(Self { store: store.clone(), object }),
                Err(e) if e.kind() == ErrorKind::Unavailable && attempt < TRIES => {
                    store.pause(attempt);
                    attempt += 1;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl Marker {
    /// When it was put, by the store's clock, among what is listed; none if it is not there any more.
    pub fn time(&self, listed: &[Listed]) -> Option<Timestamp> {
        let name = self.object.rsplit('/').next();
        listed.iter().find(|object| Some(object.name.as_str()) == name).map(|object| object.time)
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        // Otherwise it expires.
        best_effort(self.store.remove(&self.object));
    }
}

/// What rules, and a marker for it or for one before it.
pub(crate) struct Marked {
    pub(crate) manifest: Manifest,
    /// An error if it cannot be put.
    pub(crate) marker: Result<Marker>,
    /// What was in the folder of the image after the marker was put; none if the manifest came later, or it
    /// was not asked for.
    pub(crate) listed: Option<Vec<Listed>>,
}

/// Reads what rules of an image, and marks it. Who asks for it is told all that is in its folder.
///
/// # Errors
/// As of [`manifest::load`].
pub(crate) fn load_marked(
    store: &Arc<dyn Store>,
    name: &str,
    with_listing: bool,
) -> Result<Marked> {
    let manifest = manifest::load_unconfirmed(store.as_ref(), name)?;
    let marker = Marker::put(store, name, manifest.sequence);
    // What was condemned before the marker was there does not wait for it.
    let listed = with_listing.then(|| store.list_timed(name)).transpose()?;
    let is_last = match &listed {
        Some(listed) => manifest
            .is_last_of(listed.iter().filter_map(|object| manifest::sequence_of(&object.name))),
        None => manifest::is_last(store.as_ref(), &manifest)?,
    };
    match is_last {
        true => Ok(Marked { manifest, marker, listed }),
        false => {
            let manifest = manifest::load(store.as_ref(), name)?;
            Ok(Marked { manifest, marker, listed: None })
        }
    }
}
