//! What is in a repository, also where all is sealed: with `IMGSNAP_KEY_FILE` the programs that a test starts
//! make encrypted ones (`just sealed`).

#![allow(dead_code, clippy::unwrap_used)]

use imgsnap::base::error::Result;
use imgsnap::base::secret::Secret;
use imgsnap::store::sealed::{Credential, KeyRing, KeySource};
use imgsnap::store::{Store, store_at};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The key file of the environment.
pub struct KeyFile;

impl KeySource for KeyFile {
    fn given(&self) -> Result<Option<Credential>> {
        let file = std::env::var_os("IMGSNAP_KEY_FILE").filter(|file| !file.is_empty());
        file.map(|file| Secret::new(std::fs::read(file).unwrap()).map(Credential::KeyFile))
            .transpose()
    }
}

/// True if what is made is encrypted.
pub fn is_sealed() -> bool {
    KeyFile.given().unwrap().is_some()
}

/// A store as the programs see it.
///
/// # Errors
/// If it does not open.
pub fn opened(store: Arc<dyn Store>) -> Result<Arc<dyn Store>> {
    KeyRing::new(KeyFile).open(store)
}

/// A repository in a folder.
pub struct Inside(Arc<dyn Store>);

impl Inside {
    pub fn of(repo: &Path) -> Self {
        Self(opened(store_at(repo).unwrap()).unwrap())
    }

    /// The folder of an image.
    pub fn folder(&self, image: &str) -> PathBuf {
        let file = PathBuf::from(self.0.location(&format!("{image}/file")));
        file.parent().unwrap().to_owned()
    }

    /// The bytes of an object.
    pub fn read(&self, name: &str) -> Vec<u8> {
        self.0.read_whole(name, 1 << 30).unwrap()
    }

    /// The names at the top, or in the folder of an image.
    pub fn names(&self, folder: &str) -> Vec<String> {
        self.0.list(folder).unwrap()
    }

    /// Puts an object.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.0.put_if_absent(name, bytes).unwrap();
    }
}
