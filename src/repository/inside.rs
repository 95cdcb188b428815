//! What must not lie within a repository, and what must not be overwritten: a live image among our own files,
//! an export that would be taken for one of them, a base image that snapshots rest on.

use super::Repository;
use super::config::{self, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::folder::{Folder, parent};
use crate::progress::Context;
use crate::store::{LocalStore, OsDisk};
use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// How deep folders in a repository are looked into. There should be one level.
const DEPTH: usize = 8;

impl Repository {
    /// Fails if `file`, which need not exist, is within this repository or another one: by whatever path,
    /// link or mount it is named, or if it is called otherwise there, too.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn refuse_inside(&self, file: &Path) -> Result<()> {
        refuse_inside_any(file)?;
        let Some(root) = self.store.local_path() else { return Ok(()) };
        // What cannot be looked at is told by whoever opens it.
        let (Ok(root), Ok(folder)) =
            (std::fs::canonicalize(root), std::fs::canonicalize(parent(file)))
        else {
            return Ok(());
        };
        let meta = std::fs::metadata(file).ok();
        let mut inside = Inside::default();
        if let Ok(folder) = Folder::open(&root) {
            inside.look_into(&folder, meta.as_ref(), DEPTH);
        }
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
    /// `InvalidInput`.
    pub fn refuse_target(&self, target: &Path, context: &Context) -> Result<()> {
        self.refuse_inside(target)?;
        let Ok(meta) = std::fs::metadata(target) else { return Ok(()) };
        for name in self.names()? {
            let reader = match self.read(&name, context) {
                Ok(reader) => reader,
                // That another image is damaged, or just forgotten, says nothing of this file.
                Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => continue,
                Err(e) => return Err(e),
            };
            for snapshot in reader.manifest().stored() {
                let Some(base_image) = &snapshot.base_image else { continue };
                let is_it = std::fs::metadata(base_image).is_ok_and(|base| is_same(&base, &meta));
                if is_it {
                    let what = format!(
                        "{} is the base image of {name}@{}, whose blocks are nowhere else",
                        target.display(),
                        snapshot.number
                    );
                    return Err(Error::new(ErrorKind::InvalidInput, what).hint(format!(
                        "choose another name, or make \"{name}\" independent of it with \"imgsnap flatten\""
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Fails if `file`, which need not exist, is within a repository, whichever that is.
///
/// # Errors
/// `InvalidInput`.
pub fn refuse_inside_any(file: &Path) -> Result<()> {
    let folders = [Some(parent(file).to_owned()), file.canonicalize().ok()];
    for folder in folders.into_iter().flatten().filter_map(|path| path.canonicalize().ok()) {
        let is_repository = |path: &&Path| {
            path.join(config::FILE).is_file()
                && Config::load(&LocalStore::new(Arc::new(OsDisk::new((*path).into())))).is_ok()
        };
        if let Some(repository) = folder.ancestors().find(is_repository) {
            return Err(refused(file, repository));
        }
    }
    Ok(())
}

fn refused(file: &Path, repository: &Path) -> Error {
    let what = format!("{} is within the repository {}", file.display(), repository.display());
    Error::new(ErrorKind::InvalidInput, what)
        .hint("keep images, and what is made of them, elsewhere")
}

/// What is in a repository.
#[derive(Default)]
struct Inside {
    folders: HashSet<(u64, u64)>,
    /// True if the file that is looked for has a name in it.
    has_file: bool,
}

impl Inside {
    fn look_into(&mut self, folder: &Folder, file: Option<&Metadata>, depth: usize) {
        let (Ok(here), Ok(entries)) = (folder.owned(), folder.entries()) else { return };
        self.folders.insert((here.device, here.inode));
        for entry in entries {
            let is_it = |file: &&Metadata| {
                file.ino() == entry.inode
                    && file.is_file()
                    && folder
                        .owned_in(&entry.name)
                        .is_ok_and(|o| (o.device, o.inode) == identity(file))
            };
            self.has_file |= file.filter(is_it).is_some();
            if depth > 0
                && entry.is_folder != Some(false)
                && let Ok(folder) = folder.folder(&entry.name)
            {
                self.look_into(&folder, file, depth - 1);
            }
        }
    }
}

fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// True for two paths of one file or device.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let is_device = |meta: &Metadata| meta.file_type().is_block_device();
    match (is_device(one), is_device(other)) {
        (true, true) => one.rdev() == other.rdev(),
        (false, false) => identity(one) == identity(other),
        _ => false,
    }
}
