//! Where a repository is, as a user names it: a path, or a URL.

use super::{LocalStore, OsDisk, Store};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::folder::{Folder, resolve};
use crate::base::uri::Shown;
use crate::base::uri::Uri;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// The absolute path of a repository in a folder, which is named by a path or as `file:///PATH`.
///
/// # Errors
/// `Unsupported` for a URL of another kind; `InvalidInput` for one that cannot be read.
pub fn locate(place: &Path) -> Result<PathBuf> {
    let path = match Uri::parse(place)? {
        Uri::Path(path) => path,
        Uri::Other { scheme } => {
            let what = format!("this build has no {scheme} repositories: {}", place.shown());
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint(format!("name a folder; one that is called so is ./{}", place.shown())));
        }
    };
    std::path::absolute(&path).map_err(|e| Error::os("use", path.shown(), e))
}

/// The store in a folder, which need not exist. Nobody else's link leads to it.
///
/// # Errors
/// `InvalidInput` if another user's link does.
pub fn store_at(path: &Path) -> Result<Arc<dyn Store>> {
    if path.exists() {
        resolve(path)?;
    }
    Ok(Arc::new(LocalStore::new(Arc::new(OsDisk::new(path.into())))))
}

/// What becomes of missing folders above one that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Above {
    /// They are made, too.
    Make,
    /// Nothing is made: a disk may not be mounted, or the path be mistyped.
    MustExist,
}

/// Makes a folder for a repository, durably. True if it was not there.
///
/// # Errors
/// `Io` if it cannot be made; `NotFound` if the folder above it is missing, and must exist; `InvalidInput`
/// for a path with `..` that leads through what is not there.
pub fn make_folder(path: &Path, above: Above) -> Result<bool> {
    let failed = |e| Error::os("make the repository", path.shown(), e);
    // From the first folder that is there on, each in the one before it: whoever may write to that one
    // cannot lead us elsewhere.
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let missing = path.strip_prefix(there).unwrap_or(Path::new(""));
    if missing.components().any(|part| part == Component::ParentDir) {
        let what = format!("cannot make the repository {}: it has \"..\" in it", path.shown());
        return Err(Error::new(ErrorKind::InvalidInput, what).hint("name it without"));
    }
    if let (Above::MustExist, Some(parent)) = (above, path.parent())
        && missing.components().count() > 1
    {
        let what =
            format!("cannot make the repository {}: {} is missing", path.shown(), parent.shown());
        return Err(Error::new(ErrorKind::NotFound, what)
            .hint("is the disk mounted? Otherwise make that folder first"));
    }
    // Whoever may make a folder in one that he may not read cannot sync that one, either.
    let synced = |synced: io::Result<()>| match synced {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(failed),
    };
    let mut folder = Folder::open(&resolve(there)?).map_err(failed)?;
    let mut is_made = false;
    for name in missing {
        is_made = match folder.make_folder(name, 0o700) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            made => made.is_ok(),
        };
        synced(folder.sync())?;
        folder = folder.folder(name).map_err(failed)?;
    }
    // Of one that was there: its name may not be durable yet.
    match path.parent() {
        Some(above) if missing.as_os_str().is_empty() => {
            synced(File::open(above).and_then(|above| above.sync_all()))?;
        }
        _ => {}
    }
    Ok(is_made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_in_a_folder() {
        let located = |text: &str| locate(Path::new(text));
        assert_eq!(located("file:///srv/r").unwrap(), Path::new("/srv/r"));
        assert_eq!(located("r").unwrap(), std::env::current_dir().unwrap().join("r"));
        assert_eq!(located("s3://bucket/r").unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
