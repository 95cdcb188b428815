//! The images that a store holds.

use crate::base::error::Result;
use crate::repo::manifest::{self, ImageFile};
use crate::repo::top::{self, MARKER, config_file};
use crate::store::{RESERVE, SHARED, Store};
use std::collections::BTreeMap;
use std::path::Path;

/// The files in the folders of images, by the name of the image, as one look at a server shows them.
pub(crate) type Overview = BTreeMap<String, Vec<String>>;

/// What there is on a server, in as few requests as possible.
pub(crate) fn overview(store: &dyn Store) -> Result<Overview> {
    let is_ours = |file: &String| {
        matches!(ImageFile::of(file), Some(ImageFile::Manifest(_) | ImageFile::Delta))
    };
    let mut all = Overview::new();
    for (name, listed) in store.list_all()? {
        let files: Vec<String> = listed.into_iter().map(|object| object.name).collect();
        if manifest::check_name(&name).is_ok() && files.iter().any(is_ours) {
            let last = manifest::load_listed(store, &name, &files);
            // One that is damaged is listed, so that somebody sees it.
            if !last.is_ok_and(|last| last.forgotten) {
                all.insert(name, files);
            }
        }
    }
    Ok(all)
}

/// The names of the images in a store, sorted.
pub(crate) fn names_in(store: &dyn Store) -> Result<Vec<String>> {
    if store.url().is_some() {
        return Ok(overview(store)?.into_keys().collect());
    }
    images_in(store)
}

/// The same of a folder of this host.
pub(crate) fn images_in(store: &dyn Store) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in store.list("")? {
        let known = || -> Result<bool> {
            let is_ours = |file: &String| {
                matches!(ImageFile::of(file), Some(ImageFile::Manifest(_) | ImageFile::Delta))
            };
            match store.list(&name) {
                // A link that leads to no image of its own is in nobody's way.
                Err(_) if is_ignorable_link(store, &name) => Ok(false),
                // That of the file system is root's alone.
                Err(_) if is_of_filesystem(&name) => Ok(false),
                other => {
                    let files = other?;
                    Ok(files.iter().any(is_ours) && !is_forgotten(store, &name, &files)?)
                }
            }
        };
        if manifest::check_name(&name).is_ok() && known()? {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// True for a repository that is sealed, or has an owner: whoever keeps it is not to turn it back. A host
/// remembers its newest states, and asks for them; the last manifest of an image that was removed stays, also
/// where there are locks: it tells that the image has not vanished, and that older ones do not count.
pub(crate) fn is_guarded(store: &dyn Store) -> bool {
    store.sealing().is_some() || store.owner().is_some()
}

/// True for an image that was removed where its last manifest has to stay.
fn is_forgotten(store: &dyn Store, name: &str, files: &[String]) -> Result<bool> {
    // Elsewhere one that is being removed has its last manifest before its files are gone.
    let goes_whole = store.sharing()?.is_locked() && !is_guarded(store);
    if goes_whole && files.iter().any(|file| ImageFile::is_delta(file)) {
        return Ok(false);
    }
    // One that is damaged is listed, so that somebody sees it.
    Ok(manifest::load_last(store, name).is_ok_and(|last| last.forgotten))
}

/// True for a dangling symlink, or one whose target is listed under its own name.
fn is_ignorable_link(store: &dyn Store, name: &str) -> bool {
    let Some(root) = store.local_path() else { return false };
    let link = root.join(name);
    let is_link = link.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    let inside = std::fs::canonicalize(root).ok();
    let leads_inside = |to: &std::path::PathBuf| inside.as_ref().is_some_and(|r| to.starts_with(r));
    let is_folder = link.is_dir();
    is_link && (!is_folder || std::fs::canonicalize(&link).ok().as_ref().is_some_and(leads_inside))
}

/// True for an object at the top that was being written.
pub(crate) fn is_temporary(name: &str) -> bool {
    manifest::temporary_of(name).is_some_and(|of| top::is_of_repository(of) || of == SHARED)
}

/// True if a folder has a file that only a repository has, by its name.
pub(crate) fn looks_like_repository(folder: &Path) -> bool {
    // The first configuration stays for ever.
    [MARKER, &config_file(1)].iter().any(|name| folder.join(name).is_file())
}

/// True for what is in a folder that is otherwise empty: of the file system, or of a repository that was
/// removed.
pub(crate) fn is_of_filesystem(name: &str) -> bool {
    [SHARED, RESERVE, "lost+found"].contains(&name)
}
