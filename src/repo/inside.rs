//! What must not lie within a repository, and what must not be overwritten: a live image among our own files,
//! an export that would be taken for one of them, a base image that snapshots depend on.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::folder::{Folder, parent};
use crate::base::message::{Verb, message};
use crate::base::uri::Shown;
use crate::delta::DeltaFile;
use crate::repo::config::Config;
use crate::repo::manifest::{self, ImageFile};
use crate::repo::{Repository, names};
use crate::store::{LocalStore, OsDisk};
use crate::tracking::CloneFolder;
use std::collections::HashSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// How deep folders in a repository are looked into. There should be one level.
const DEPTH: usize = 8;

/// Fails if `file`, which need not exist, is within this repository or another one: by whatever path,
/// link or mount it is named, or if it is called otherwise there, too.
///
/// # Errors
/// `InvalidInput`.
pub(crate) fn refuse_inside(repository: &Repository, file: &Path) -> Result<()> {
    refuse_inside_any(file)?;
    let Some(root) = repository.store.local_path() else { return Ok(()) };
    // If the path cannot be resolved, opening it reports why.
    let (Ok(root), Ok(folder)) = (std::fs::canonicalize(root), std::fs::canonicalize(parent(file)))
    else {
        return Ok(());
    };
    let meta = std::fs::metadata(file).ok();
    let mut inside = RepositoryContents::default();
    let failed = |e| Error::os("access", root.shown(), e);
    let top = Folder::open(&root).map_err(failed)?;
    // Nothing is elsewhere as well that has one name.
    let linked = meta.as_ref().filter(|meta| meta.nlink() > 1);
    inside.search(&top, linked, DEPTH).map_err(failed)?;
    let is_of = |path: &Path| {
        let meta = std::fs::metadata(path).ok();
        meta.is_some_and(|meta| inside.folders.contains(&identity(&meta)))
    };
    // A link is followed when it is opened.
    let real = std::fs::canonicalize(file).ok();
    let above = real.as_deref().and_then(Path::parent).into_iter().flat_map(Path::ancestors);
    if inside.has_file || folder.ancestors().chain(above).any(is_of) {
        return Err(refused(file, &root));
    }
    Ok(())
}

/// Fails if `target` must not be overwritten: it is within a repository, or the base image of a snapshot.
///
/// # Errors
/// `InvalidInput`; `Corrupt` if that cannot be told.
pub fn refuse_target(repository: &Repository, target: &Path) -> Result<()> {
    refuse_inside(repository, target)?;
    if CloneFolder::holds(target) {
        let what = format!("{} is where clones are kept", target.shown());
        return Err(Error::new(ErrorKind::InvalidInput, what).hint("choose another folder"));
    }
    refuse_base_image(repository, target)
}

/// Fails if `target` is the base image of a snapshot, of whichever image.
///
/// # Errors
/// `InvalidInput`; `Corrupt` if that cannot be told because a manifest is damaged.
pub(crate) fn refuse_base_image(repository: &Repository, target: &Path) -> Result<()> {
    let Ok(meta) = std::fs::metadata(target) else { return Ok(()) };
    let place = target.shown();
    for name in repository.names()? {
        let manifest = match manifest::load(repository.store.as_ref(), &name) {
            Ok(manifest) => manifest,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) if e.is_damage() && !has_base_images(repository, &name)? => continue,
            Err(e) => {
                return Err(
                    e.at(format!("it is not known whether {place} is a base image of \"{name}\""))
                );
            }
        };
        for snapshot in manifest.stored() {
            let Some(base_image) = &snapshot.base_image else { continue };
            if std::fs::metadata(base_image).is_ok_and(|base| is_same(&base, &meta)) {
                let number = snapshot.number;
                let what = format!(
                    "{place} is the base image of {name}@{number} and has the only copy of its blocks"
                );
                return Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
                    "choose another file, or make what depends on ",
                    format!("{name}@{number} independent of it with "),
                    Verb::Flatten.call(),
                ]));
            }
        }
    }
    Ok(())
}

/// The same, where nothing is lost if another image is damaged, so that it cannot be told: then there is a
/// warning.
pub(crate) fn refuse_base_image_or_warn(
    repository: &Repository,
    target: &Path,
    context: &Context,
) -> Result<()> {
    match refuse_base_image(repository, target) {
        Err(e) if e.is_damage() => {
            context.warn(WarningId::BaseImagesUnknown, e);
            Ok(())
        }
        other => other,
    }
}

/// True if the blocks of a snapshot may be in a base image, by its files alone.
fn has_base_images(repository: &Repository, name: &str) -> Result<bool> {
    for file in repository.store.list(name)?.into_iter().filter(|file| ImageFile::is_delta(file)) {
        let file = format!("{name}/{file}");
        match DeltaFile::open(repository.store.clone(), &file, &repository.caches) {
            Ok(DeltaFile::Part(_)) => {}
            Ok(DeltaFile::Layer(delta)) if delta.base_image().is_none() => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// Fails if `file`, which need not exist, is within a repository, whichever that is.
///
/// # Errors
/// `InvalidInput`.
pub fn refuse_inside_any(file: &Path) -> Result<()> {
    let folders = [Some(parent(file).to_owned()), file.canonicalize().ok()];
    for folder in folders.into_iter().flatten().filter_map(|path| path.canonicalize().ok()) {
        let is_repository = |path: &&Path| {
            let is_root = names::looks_like_repository(path)
                && Config::load(&LocalStore::new(Arc::new(OsDisk::new((*path).into())))).is_ok();
            is_root || is_image_folder(path)
        };
        if let Some(repository) = folder.ancestors().find(is_repository) {
            return Err(refused(file, repository));
        }
    }
    Ok(())
}

/// True for a folder with the snapshots of an image, wherever it is mounted.
fn is_image_folder(folder: &Path) -> bool {
    let is_manifest = |name: std::ffi::OsString| {
        name.to_str().is_some_and(|name| manifest::sequence_of(name).is_some())
    };
    let names = || std::fs::read_dir(folder).into_iter().flatten().flatten();
    folder.join("write.lock").is_file() && names().any(|entry| is_manifest(entry.file_name()))
}

fn refused(file: &Path, repository: &Path) -> Error {
    let what = format!("{} is inside the repository {}", file.shown(), repository.shown());
    Error::new(ErrorKind::InvalidInput, what)
        .hint("keep images, and what is made of them, elsewhere")
}

/// What is in a repository.
#[derive(Default)]
struct RepositoryContents {
    folders: HashSet<(u64, u64)>,
    /// True if the file that is looked for has a name in it.
    has_file: bool,
}

impl RepositoryContents {
    fn search(&mut self, folder: &Folder, file: Option<&Metadata>, depth: usize) -> io::Result<()> {
        let here = folder.owned()?;
        self.folders.insert((here.device, here.inode));
        if file.is_none() && here.links == 2 {
            return Ok(());
        }
        let entries = match folder.entries() {
            // Nobody who may not look into it can put an image there.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let is_it = |file: &&Metadata| {
                file.ino() == entry.inode
                    && file.is_file()
                    && folder
                        .owned_in(&entry.name)
                        .is_ok_and(|o| (o.device, o.inode) == identity(file))
            };
            self.has_file |= file.filter(is_it).is_some();
            if depth == 0 || entry.is_folder == Some(false) {
                continue;
            }
            match folder.folder(&entry.name) {
                Ok(folder) => self.search(&folder, file, depth - 1)?,
                Err(e) if is_gone(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// True for what is no folder, or none any more.
fn is_gone(error: &io::Error) -> bool {
    const GONE: [i32; 4] = [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::EACCES];
    error.raw_os_error().is_some_and(|code| GONE.contains(&code))
}

fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// True for two paths of one file or device.
pub(crate) fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let is_device = |meta: &Metadata| meta.file_type().is_block_device();
    match (is_device(one), is_device(other)) {
        (true, true) => one.rdev() == other.rdev(),
        (false, false) => identity(one) == identity(other),
        _ => false,
    }
}
