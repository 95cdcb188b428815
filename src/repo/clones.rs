//! The clones of an image of the repository.

use crate::base::error::Result;
use crate::base::events::{Context, WarningId};
use crate::base::message::message;
use crate::image::ImageUri;
use crate::repo::Repository;
use crate::repo::garbage::write_lock;
use crate::repo::head::Head;
use crate::repo::manifest::{self, Manifest};
use crate::store::LockKind;
use crate::tracking::{Clones, KeptClones, Owner};

/// The clones of an image beside a file, its live one for the most part; none of what is no file.
pub(crate) fn clones_beside<'a>(
    repository: &'a Repository,
    manifest: &Manifest,
    image: Option<&ImageUri>,
) -> KeptClones<'a> {
    let owner = Owner { repository: repository.id(), image: manifest.image_id };
    let planned = manifest.pending.iter().filter(|pending| pending.plan.is_some());
    let clones = KeptClones::beside(image.and_then(ImageUri::file), owner, || {
        let store = repository.store.as_ref();
        let names = repository.names().ok()?;
        names.iter().map(|name| manifest::load(store, name).map(|m| m.image_id).ok()).collect()
    });
    clones.with_planned(planned.map(|pending| pending.id).collect())
}

/// The clones beside the live file of an image.
pub fn clones(repository: &Repository, manifest: &Manifest, head: &Head) -> Result<Clones> {
    let mut clones = list_clones(repository, manifest, head)?;
    if !clones.orphans.is_empty() {
        // One that a snapshot is just about to name is none.
        let lock = repository.store.lock(&write_lock(&manifest.name), LockKind::Shared);
        match lock {
            Ok(None) => clones.orphans.clear(),
            Ok(Some(_alone)) => {
                let manifest = manifest::load(repository.store.as_ref(), &manifest.name)?;
                clones = list_clones(repository, &manifest, head)?;
            }
            // Where nothing can be locked nobody writes.
            Err(_) => {}
        }
    }
    Ok(clones)
}

pub(crate) fn list_clones(
    repository: &Repository,
    manifest: &Manifest,
    head: &Head,
) -> Result<Clones> {
    let Some(source) = &head.source else { return Ok(Clones::default()) };
    let newest = manifest.newest_clone().map(|(s, _)| (s.id, s.number));
    clones_beside(repository, manifest, Some(source)).list(newest)
}

/// Like [`clones`]; a failure is reported as a warning, so that the rest can still be listed.
pub(crate) fn clones_or_warn(
    repository: &Repository,
    manifest: &Manifest,
    head: &Head,
    context: &Context,
) -> Clones {
    clones(repository, manifest, head).unwrap_or_else(|e| {
        let what = message![format!("{}: cannot list its clones: ", manifest.name), e];
        context.warn(WarningId::ClonesUnknown, what);
        Clones::default()
    })
}

/// Removes all clones of an image that is not there, or not where it was, any more.
pub(crate) fn remove_all_clones(
    repository: &Repository,
    manifest: &Manifest,
    head: &Head,
    context: &Context,
) {
    let Some(source) = &head.source else { return };
    if let Err(e) = clones_beside(repository, manifest, Some(source)).remove_but(None, context) {
        context.warn(WarningId::CloneStays, message![e, "; remove it by hand"]);
    }
}
