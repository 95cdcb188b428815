//! Which snapshot a restored file is (FORMAT.md S7): noted by the host that wrote it, so that the next update
//! of the file need not read it.

use crate::base::error::{Error, Result};
use crate::base::message::Message;
use crate::base::uri::Shown;
use crate::image::{FileStat, LiveIdentity, RawFile};
use crate::repo::Repository;
use crate::repo::host::HostState;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// How names of notes end.
const NOTE: &str = ".restored";

/// So many notes of a repository are kept, the newest ones.
const MAX_NOTES: usize = 100;

/// The note of a file.
pub(crate) struct RestoredNote {
    host: HostState,
    repository: Uuid,
    /// The real one.
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record {
    /// The host that wrote it.
    machine: String,
    #[serde(with = "crate::repo::manifest::path")]
    path: Option<PathBuf>,
    image: Uuid,
    snapshot: Uuid,
    /// Which file it was.
    file: LiveIdentity,
    stat: FileStat,
}

impl RestoredNote {
    /// Of a file that is there, in a repository. Nothing is read yet.
    ///
    /// # Errors
    /// If there is no real path to it.
    pub(crate) fn of(repository: &Repository, file: &Path) -> Result<Self> {
        let path = std::fs::canonicalize(file).map_err(|e| Error::os("find", file.shown(), e))?;
        Ok(Self { host: repository.host.clone(), repository: repository.id(), path })
    }

    fn folder(&self) -> String {
        self.repository.to_string()
    }

    fn name(&self) -> String {
        let digest = blake3::hash(self.path.as_os_str().as_bytes()).to_hex();
        format!("{}/{}{NOTE}", self.folder(), digest.get(..32).unwrap_or_default())
    }

    /// The snapshot of `image_id` that the file still is, byte for byte.
    ///
    /// # Errors
    /// Why that is not known, for people.
    pub(crate) fn snapshot(
        &self,
        file: &RawFile,
        image_id: Uuid,
    ) -> std::result::Result<Uuid, Message> {
        let record: Option<Record> = self.host.load_file(&self.name()).map_err(Message::from)?;
        let machine = &self.host.host().machine;
        let is_ours = |r: &Record| &r.machine == machine && r.path.as_ref() == Some(&self.path);
        let Some(record) = record.filter(is_ours) else {
            return Err("this host has no record of restoring it".into());
        };
        if record.image != image_id {
            return Err("it was restored from another image".into());
        }
        let is_same = file.identity().is_some_and(|now| record.file.difference(&now).is_none());
        // Only while others are kept off.
        if !is_same || file.stable_stat().as_ref() != Some(&record.stat) {
            return Err("it may have changed since it was restored".into());
        }
        Ok(record.snapshot)
    }

    /// Notes, durably, that the file is a snapshot of `image_id`, as long as it has this stat; and lets go of
    /// the oldest notes.
    pub(crate) fn put(
        &self,
        image_id: Uuid,
        snapshot: Uuid,
        file: LiveIdentity,
        stat: FileStat,
    ) -> Result<()> {
        let (machine, path) = (self.host.host().machine.clone(), Some(self.path.clone()));
        let record = Record { machine, path, image: image_id, snapshot, file, stat };
        self.host.save_file(&self.name(), &record)?;
        self.host.keep_newest(&self.folder(), NOTE, MAX_NOTES);
        self.host.tidy_folder(&self.folder());
        Ok(())
    }

    /// Takes it back, durably: the file is about to be written to.
    pub(crate) fn remove(&self) -> Result<()> {
        self.host.remove_file(&self.folder(), &self.name())
    }
}
