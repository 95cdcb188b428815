//! Which repositories a host has used at a place (FORMAT.md S6): so that a disk that is not mounted, or
//! another one in its place, is noticed before anything is written.
//!
//! | there is | this host has used there | then |
//! | --- | --- | --- |
//! | nothing | nothing | a repository is made at first use |
//! | nothing | a repository | it is missing: every verb refuses |
//! | a repository | nothing, or this one among others | it is used, and remembered by who writes |
//! | a repository | others | who writes refuses, who reads warns |

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, Verb, message};
use crate::base::uri::Shown;
use crate::repo::host::HostState;
use crate::store::Store;
use crate::store::sealed::KeyId;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// The folder of the host state that the records are in; no repository can be called so.
const FOLDER: &str = "places";

/// Links that are followed in a path of which the end is missing.
const MAX_LINKS: usize = 40;

/// A place, and what this host knows of it.
pub(crate) struct Place {
    host: HostState,
    /// As users name it: a path or a URL; none where nobody names one.
    name: Option<PathBuf>,
    is_folder: bool,
    /// With which the repository that is there is sealed.
    key: Option<KeyId>,
    known: OnceLock<Known>,
    is_told: AtomicBool,
    is_kept: AtomicBool,
}

/// What was used there; an error counts as nothing.
type Known = Result<Used>;

#[derive(Default)]
struct Used {
    /// The repositories, the last one first.
    repositories: Vec<Uuid>,
    /// With which the last one was sealed, if it was.
    key: Option<KeyId>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    /// The host that wrote it.
    machine: String,
    /// For people.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::repo::manifest::path"
    )]
    path: Option<PathBuf>,
    /// The same of one on a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    repositories: Vec<Uuid>,
    /// The id of the key with which the first of them is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Used {
    fn last(&self) -> Option<Uuid> {
        self.repositories.first().copied()
    }
}

impl Place {
    /// That of a store. Nothing is read yet.
    pub(crate) fn of(store: &dyn Store, host: &HostState) -> Self {
        Self {
            host: host.clone(),
            name: store.local_path().or_else(|| store.url().map(Path::new)).map(Path::to_owned),
            is_folder: store.local_path().is_some(),
            key: store.sealing().map(|sealing| sealing.key_id()),
            known: OnceLock::new(),
            is_told: AtomicBool::default(),
            is_kept: AtomicBool::default(),
        }
    }

    fn known(&self) -> &Known {
        self.known.get_or_init(|| {
            let Some(name) = self.real() else { return Ok(Used::default()) };
            let record: Option<Record> = self.host.load_file(&file_of(&name))?;
            // That of a host that was copied is none.
            let own = record.filter(|record| record.machine == self.host.host().machine);
            let Some(Record { repositories, key, .. }) = own else { return Ok(Used::default()) };
            let key = key.map(|key| key.parse()).transpose()?;
            Ok(Used { repositories, key })
        })
    }

    /// The one that was used there last.
    pub(crate) fn last(&self) -> Option<Uuid> {
        self.known().as_ref().ok()?.repositories.first().copied()
    }

    /// The others, if `id` was never used there.
    fn other(&self, id: Uuid) -> Option<Uuid> {
        let known = &self.known().as_ref().ok()?.repositories;
        if known.contains(&id) { None } else { known.first().copied() }
    }

    fn shown(&self) -> String {
        self.name.as_deref().unwrap_or(Path::new("")).shown().to_string()
    }

    /// Under which name it is remembered.
    fn real(&self) -> Option<PathBuf> {
        let name = self.name.as_deref()?;
        Some(if self.is_folder { real(name) } else { name.to_owned() })
    }

    /// What to say where there is no repository; none if this host has never used one there.
    pub(crate) fn missing(&self) -> Option<Error> {
        let (id, place) = (self.last()?, self.shown());
        let what = format!("{place}: the repository {id} that this host has used there is missing");
        Some(Error::new(ErrorKind::NotFound, what).hint(message![
            self.doubt(true),
            " to create a new repository there, run ",
            Verb::Init.call(),
        ]))
    }

    /// What to look at first.
    fn doubt(&self, is_missing: bool) -> &'static str {
        match (self.is_folder, is_missing) {
            (true, true) => "check that the disk is mounted;",
            (true, false) => "check that the right disk is mounted;",
            (false, _) => "check that server and credentials are right;",
        }
    }

    /// Fails if this host has used others there, and not the one that is there now.
    ///
    /// # Errors
    /// `Mismatch`.
    pub(crate) fn check(&self, id: Uuid) -> Result<()> {
        self.other(id).map_or(Ok(()), |other| Err(self.another(id, other)))
    }

    fn another(&self, id: Uuid, other: Uuid) -> Error {
        let place = self.shown();
        let what =
            format!("{place}: this host has used the repository {other} there, and not {id}");
        Error::new(ErrorKind::Mismatch, what).hint(message![
            self.doubt(false),
            " to use this one as well, run ",
            Verb::Init.call().with(Setting::Accept, ""),
        ])
    }

    /// Fails if this host has used a sealed repository there, and what is there is not sealed, or with
    /// another key. One that it has not seen sealed yet is remembered.
    ///
    /// # Errors
    /// `Key`.
    pub(crate) fn check_sealed(&self, id: Uuid) -> Result<()> {
        let known = self.known().as_ref().ok().and_then(|used| Some((used.last()?, used.key?)));
        let place = self.shown();
        let what = match (known, self.key) {
            (Some((last, _)), None) => {
                format!(
                    "{place}: this host has used the encrypted repository {last} there, and {id} is not"
                )
            }
            (Some((last, _)), Some(_)) if self.other(id).is_some() => {
                format!(
                    "{place}: this host has used the encrypted repository {last} there, and not {id}"
                )
            }
            (Some((last, was)), Some(key)) if last == id && was != key => {
                format!(
                    "{place}: the repository {id} was sealed with the key {was}, and is now with {key}"
                )
            }
            (_, None) => return Ok(()),
            (_, Some(_)) => {
                // Without it, it is as on a host that sees it first.
                if self.other(id).is_none() {
                    best_effort(self.remember(id));
                }
                return Ok(());
            }
        };
        Err(Error::new(ErrorKind::Key, what).hint(message![
            "check that it is the right one; to use it anyway, run ",
            Verb::Init.call().with(Setting::Accept, ""),
        ]))
    }

    /// Warns, once, of what keeps a writer away, or cannot be known.
    pub(crate) fn tell(&self, id: Uuid, context: &Context) {
        let warning = match (self.known(), self.other(id)) {
            (Err(e), _) => {
                let known = "; it is unknown which repositories this host has used there";
                (WarningId::PlaceUnknown, message![e, known])
            }
            (Ok(_), Some(other)) => (WarningId::OtherRepository, self.another(id, other).into()),
            (Ok(_), None) => return,
        };
        if !self.is_told.swap(true, Ordering::Relaxed) {
            context.warn(warning.0, warning.1);
        }
    }

    /// Remembers that `id` is used there, besides those that were.
    ///
    /// # Errors
    /// If that cannot be written.
    pub(crate) fn remember(&self, id: Uuid) -> Result<()> {
        let is_known = |used: &Used| used.repositories.first() == Some(&id) && used.key == self.key;
        if self.known().as_ref().is_ok_and(is_known) || self.is_kept.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let known = self.known().as_ref().map(|used| used.repositories.as_slice());
        let others = known.unwrap_or_default().iter().filter(|other| **other != id);
        self.save([id].into_iter().chain(others.copied()).collect())
    }

    /// Remembers `id` besides those that were, whatever is known of it.
    ///
    /// # Errors
    /// If that cannot be written.
    pub(crate) fn accept(&self, id: Uuid) -> Result<()> {
        self.is_kept.store(false, Ordering::Relaxed);
        self.remember(id)
    }

    /// Remembers `id` alone.
    ///
    /// # Errors
    /// If that cannot be written.
    pub(crate) fn replace(&self, id: Uuid) -> Result<()> {
        self.is_kept.store(true, Ordering::Relaxed);
        self.save(vec![id])
    }

    fn save(&self, repositories: Vec<Uuid>) -> Result<()> {
        let Some(path) = self.real() else { return Ok(()) };
        let machine = self.host.host().machine.clone();
        let file = file_of(&path);
        self.host.tidy_folder(FOLDER);
        let url = (!self.is_folder).then(|| path.shown().into_owned());
        let path = Some(path).filter(|_| self.is_folder);
        let key = self.key.map(|key| key.to_string());
        self.host.save_file(&file, &Record { machine, path, url, repositories, key })
    }
}

/// The name of the record of a path.
fn file_of(path: &Path) -> String {
    let digest = blake3::hash(path.as_os_str().as_bytes()).to_hex();
    format!("{FOLDER}/{}.json", digest.get(..32).unwrap_or_default())
}

/// The path without links, as far as it is there: the same whether the disk at its end is mounted or not.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    real_of(&path, MAX_LINKS)
}

fn real_of(path: &Path, links: usize) -> PathBuf {
    if let Ok(real) = std::fs::canonicalize(path) {
        return real;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return path.into() };
    match std::fs::read_link(path) {
        Ok(target) if links > 0 => real_of(&folder.join(target), links - 1),
        _ => real_of(folder, links).join(name),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_path_is_the_same_with_and_without_what_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        std::os::unix::fs::symlink("media/disk", at("backup")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        let paths = ["backup/vm", "backup", "media/disk/vm", "loop/vm", "plain/a/b"];
        let real = || paths.map(|path| super::real(&at(path)));
        let before = real();
        assert_eq!(before[0], at("media/disk/vm"));
        assert_eq!(before[1], at("media/disk"));
        for there in ["media/disk/vm", "plain/a/b"] {
            std::fs::create_dir_all(at(there)).unwrap();
        }
        assert_eq!(real(), before);
    }
}
