//! The delta files and chains that a manifest names.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::chain::Chain;
use crate::delta::{Delta, ReadGuard};
use crate::repo::Repository;
use crate::repo::entry::part_names;
use crate::repo::hold::{HeldImage, hold};
use crate::repo::manifest::{self, BaseOf, Manifest, Snapshot};
use crate::store::Store;
use std::sync::Arc;
use uuid::Uuid;

/// Opens the chain of a snapshot and checks its links (FORMAT.md section 5). What it has of other images is
/// held back as long as one of these files is open.
///
/// # Errors
/// `Corrupt` if a file is damaged, missing, or not the one that the manifest or its child
/// names.
pub(crate) fn open_chain(repository: &Repository, manifest: &Manifest, id: Uuid) -> Result<Chain> {
    Opening { repository, others: &[], images: 1 }.open(manifest, id, None)
}

/// The same with all of it held back, by what was read of the image and of `others`.
pub(crate) fn open_held(
    repository: &Repository,
    image: &HeldImage,
    others: &[HeldImage],
    id: Uuid,
) -> Result<Chain> {
    Opening { repository, others, images: 1 }.open_held(image, id)
}

/// Opens what a snapshot was taken against; none of a base.
///
/// # Errors
/// As of [`open_chain`].
pub(crate) fn open_parent(
    repository: &Repository,
    manifest: &Manifest,
    snapshot: &Snapshot,
) -> Result<Option<Chain>> {
    match (snapshot.parent, &snapshot.base_of) {
        (Some(id), _) => open_chain(repository, manifest, id).map(Some),
        (None, Some(of)) => {
            let opening = Opening { repository, others: &[], images: 1 };
            opening.open_root(manifest, snapshot, of).map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// Opens the snapshot of another image that a chain is to begin from, as what rules there has it now.
///
/// # Errors
/// As of [`open_chain`].
pub(crate) fn open_base(repository: &Repository, of: &BaseOf) -> Result<Chain> {
    Opening { repository, others: &[], images: 1 }.open_below(of)
}

/// Through so many images a chain may lead: none of them is the first where there is a circle.
pub(crate) const MAX_IMAGES: usize = 100;

#[derive(Clone, Copy)]
struct Opening<'a> {
    repository: &'a Repository,
    others: &'a [HeldImage],
    /// How many images deep.
    images: usize,
}

impl Opening<'_> {
    fn open(self, manifest: &Manifest, id: Uuid, guard: Option<ReadGuard>) -> Result<Chain> {
        let guard = guard.map(Arc::new);
        let lineage = manifest.lineage(id)?;
        let mut layers = Vec::new();
        let files: Vec<String> =
            lineage.iter().map(|s| format!("{}/{}", manifest.name, s.file)).collect();
        self.repository.store.expect(&files);
        for snapshot in &lineage {
            let mut delta = open_delta(self.repository, manifest, snapshot)?;
            if let Some(guard) = &guard {
                delta.set_guard(guard.clone());
            }
            layers.push(Arc::new(delta));
        }
        let Some((root, of)) = lineage.last().and_then(|s| s.base_of.as_ref().map(|of| (s, of)))
        else {
            return Chain::link(layers);
        };
        Chain::link_onto(layers, Some(&self.open_root(manifest, root, of)?))
    }

    /// Opens what `root` was taken against, which is where a chain of the image begins.
    fn open_root(self, manifest: &Manifest, root: &Snapshot, of: &BaseOf) -> Result<Chain> {
        let images = self.images + 1;
        if images > MAX_IMAGES {
            let place = manifest.place_of(root);
            let what = format!("{place}: its chain leads through more than {MAX_IMAGES} images");
            return Err(Error::corrupt(what));
        }
        let below = Self { images, ..self }.open_below(of);
        below.map_err(|e| self.gone_below(manifest, root, of, e))
    }

    fn open_held(self, image: &HeldImage, id: Uuid) -> Result<Chain> {
        let lineage = image.manifest.lineage(id)?;
        let files: Vec<&str> = lineage.iter().flat_map(|s| s.files()).map(String::as_str).collect();
        let guard = image.guard(self.repository, &files)?;
        self.open(&image.manifest, id, guard)
    }

    fn open_below(self, of: &BaseOf) -> Result<Chain> {
        let is_it = |image: &&HeldImage| image.manifest.image_id == of.image;
        let missing = || Error::new(ErrorKind::NotFound, format!("{} does not exist", of.place()));
        let is_there = |image: &HeldImage| {
            is_it(&image) && image.manifest.stored().iter().any(|s| s.id == of.snapshot)
        };
        if let Some(image) = self.others.iter().find(is_it).filter(|image| is_there(image)) {
            return self.open_held(image, of.snapshot);
        }
        let image = hold(self.repository, &of.name, &Context::silent())?;
        match is_there(&image) {
            true => self.open_held(&image, of.snapshot),
            false => Err(missing()),
        }
    }

    /// What a chain begins from cannot be missing while it is named (C9): who reads without a lock may be
    /// late.
    fn gone_below(self, manifest: &Manifest, root: &Snapshot, of: &BaseOf, error: Error) -> Error {
        let place = manifest.place_of(root);
        if error.kind() != ErrorKind::NotFound {
            // The first and the last one of many are enough.
            return match self.images {
                1 => error.at(format!("{place} depends on {}", of.place())),
                _ => error,
            };
        }
        let store = self.repository.store.as_ref();
        let is_there = |other: Manifest| {
            other.image_id == of.image && other.stored().iter().any(|s| s.id == of.snapshot)
        };
        match manifest::load_last(store, &manifest.name) {
            Ok(now) if now.stored().iter().all(|s| s.base_of != root.base_of) => {
                let what = format!("{place} was dropped or merged while it was being read");
                Error::new(ErrorKind::NotFound, what).hint(Action::Retry)
            }
            // It is what some of its files were replaced by, or removed, while they were read.
            _ if manifest::load(store, &of.name).is_ok_and(is_there) => error,
            _ => {
                let what = format!("{place}: {}, which it depends on, is missing", of.place());
                Error::corrupt(what)
                    .hint(message![format!("put the files of \"{}\" back from a copy", of.name)])
            }
        }
    }
}

/// False if an object is named no more: who reads without a lock may be late (C8).
pub(crate) fn is_named_now(repository: &Repository, manifest: &Manifest, object: &str) -> bool {
    let now = manifest::load_last(repository.store.as_ref(), &manifest.name);
    now.is_ok_and(|now| !is_dropped_by(&now, manifest, object))
}

/// True if a manifest came after another one, and names an object no more.
fn is_dropped_by(now: &Manifest, manifest: &Manifest, object: &str) -> bool {
    now.sequence > manifest.sequence && now.objects().all(|named| named != object)
}

/// What to say of a missing file: it is damage only if what rules now names it. Who reads without a lock may
/// be late (C8).
fn missing_object(
    store: &dyn Store,
    image: &str,
    sequence: u64,
    place: &str,
    object: &str,
) -> Error {
    let dropped =
        |now: &Manifest| now.sequence > sequence && now.objects().all(|named| named != object);
    match manifest::load_last(store, image) {
        Ok(now) if dropped(&now) => {
            let what = format!("{place} was dropped or merged while it was being read");
            Error::new(ErrorKind::NotFound, what).hint(Action::Retry)
        }
        Err(e) if !e.is_damage() && e.kind() != ErrorKind::NotFound => e.at(place),
        _ => {
            let file = store.location(&format!("{image}/{object}"));
            let what = format!("{place}: its file {file} is missing");
            Error::corrupt(what).hint("put the file back, or restore another snapshot")
        }
    }
}

/// Opens the delta file of a snapshot and checks that it is the one that the manifest names.
pub(crate) fn open_delta(
    repository: &Repository,
    manifest: &Manifest,
    snapshot: &Snapshot,
) -> Result<Delta> {
    let place = manifest.place_of(snapshot);
    let file = format!("{}/{}", manifest.name, snapshot.file);
    let store = &repository.store;
    let mut delta =
        Delta::open(store.clone(), &file, &repository.caches).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                let (image, sequence) = (&manifest.name, manifest.sequence);
                missing_object(store.as_ref(), image, sequence, &place, &snapshot.file)
            }
            _ => e.at(&place),
        })?;
    delta.set_base_image(&place, snapshot.base_image.clone());
    if !snapshot.parts.is_empty() {
        let (store, of) = (repository.store.clone(), place.clone());
        let (image, sequence) = (manifest.name.clone(), manifest.sequence);
        delta.set_missing(Arc::new(move |part| {
            missing_object(store.as_ref(), &image, sequence, &of, part)
        }));
    }
    let footer = delta.footer();
    let same = delta.footer_digest() == snapshot.footer_digest
        && delta.stored_bytes() == snapshot.file_bytes
        && part_names(delta.table()) == snapshot.parts
        && footer.snapshot_id == snapshot.id
        && footer.parent.map(|p| p.parent_id) == snapshot.parent_in_footer()
        && footer.image_digest == snapshot.image_digest
        && delta.header().image_id == manifest.image_id;
    if !same {
        let what = format!("{place}: {} is not the file of this snapshot", delta.location());
        return Err(
            Error::corrupt(what).hint("the file was renamed or replaced; put the right one back")
        );
    }
    Ok(delta)
}
