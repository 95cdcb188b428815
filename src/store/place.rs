//! Where a repository is, as a user names it: a path, or a URL.

use super::cached::{CachePlace, CachedStore};
use super::remote::RemoteStore;
use super::sealed::KeyRing;
use super::ssh::SshStore;
use super::url::{RemoteKind, RemoteUrl};
use super::{LocalStore, OsDisk, Store};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::folder::{Folder, resolve};
use crate::base::transfer::Transfer;
use crate::base::uri::Shown;
use crate::base::uri::Uri;
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Where a repository is, or is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a folder: an absolute path.
    Folder(PathBuf),
    /// On a server.
    Remote(RemoteUrl),
}

/// What a user names by a path, as `file:///PATH`, or by the URL of a server.
///
/// # Errors
/// `Unsupported` for a URL of another kind; `InvalidInput` for one that cannot be read.
pub fn locate(place: &Path) -> Result<Location> {
    if let Some(url) = place.to_str().map(RemoteUrl::parse).transpose()?.flatten() {
        return Ok(Location::Remote(url));
    }
    let path = match Uri::parse(place)? {
        Uri::Path(path) => path,
        Uri::Other { scheme } => {
            let what = format!("{scheme} repositories are not supported: {}", place.shown());
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint(format!("use a folder; for one of that name, write ./{}", place.shown())));
        }
    };
    let absolute = std::path::absolute(&path).map_err(|e| Error::os("use", path.shown(), e));
    absolute.map(Location::Folder)
}

/// How a store is used.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// How fast, and who is told.
    pub transfer: Transfer,
    /// Where the index of its objects is kept on this host; none if it is not.
    pub cache: Option<CachePlace>,
    /// All images will be looked at: their names are listed with the first request.
    pub all_images: bool,
    /// What opens it if it is sealed.
    pub keys: Option<Arc<KeyRing>>,
    /// It is to be made, sealed with a new key.
    pub seals: bool,
}

impl StoreOptions {
    /// The store as it is for those above it.
    fn opened(&self, store: Arc<dyn Store>) -> Result<Arc<dyn Store>> {
        match &self.keys {
            Some(keys) if self.seals => keys.create(store),
            Some(keys) => keys.open(store),
            None => Ok(store),
        }
    }
}

impl Location {
    /// The store that is there, opened if it is sealed. A folder need not exist, and a server is not asked
    /// yet unless there is a key.
    ///
    /// # Errors
    /// `InvalidInput` if another user's link leads to a folder; as of [`RemoteStore::open`] and
    /// [`KeyRing::open`].
    pub fn store(&self, options: &StoreOptions) -> Result<Arc<dyn Store>> {
        let url = match self {
            Self::Folder(path) => return options.opened(store_at(path)?),
            Self::Remote(url) => url,
        };
        let transfer = options.transfer.clone();
        let store: Arc<dyn Store> = match url.kind {
            RemoteKind::Ssh => Arc::new(SshStore::new(url, transfer)),
            _ => Arc::new(RemoteStore::open(url, transfer)?),
        };
        let has_numbers = url.kind != RemoteKind::Ssh;
        let cached = CachedStore::new(options.opened(store)?, options.cache.as_ref(), has_numbers);
        Ok(Arc::new(if options.all_images { cached.listing_all() } else { cached }))
    }

    /// How it is named in messages.
    pub fn shown(&self) -> Cow<'_, str> {
        match self {
            Self::Folder(path) => path.shown(),
            Self::Remote(url) => url.to_string().into(),
        }
    }
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
    let failed = |e| Error::os("create the repository", path.shown(), e);
    // From the first folder that is there on, each in the one before it: whoever may write to that one
    // cannot lead us elsewhere.
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let missing = path.strip_prefix(there).unwrap_or(Path::new(""));
    if missing.components().any(|part| part == Component::ParentDir) {
        let what = format!("cannot create the repository {}: it has \"..\" in it", path.shown());
        return Err(Error::new(ErrorKind::InvalidInput, what).hint("use a path without \"..\""));
    }
    if let (Above::MustExist, Some(parent)) = (above, path.parent())
        && missing.components().count() > 1
    {
        let what =
            format!("cannot create the repository {}: {} is missing", path.shown(), parent.shown());
        return Err(Error::new(ErrorKind::NotFound, what)
            .hint("check that the disk is mounted, or create that folder first"));
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
    fn a_repository_is_in_a_folder_or_on_a_server() {
        let located = |text: &str| locate(Path::new(text));
        let folder = |path: &str| Location::Folder(std::env::current_dir().unwrap().join(path));
        assert_eq!(located("file:///srv/r").unwrap(), folder("/srv/r"));
        assert_eq!(located("r").unwrap(), folder("r"));
        assert_eq!(located("./s3://bucket/r").unwrap(), folder("s3:/bucket/r"));
        assert!(matches!(located("s3://bucket/r").unwrap(), Location::Remote(_)));
        assert_eq!(located("sftp://host/r").unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
