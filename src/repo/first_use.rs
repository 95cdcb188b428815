//! Making a repository where none is yet. Of several who come at the same time one makes it, and the others
//! open what he made; one that nothing came into is taken back.
//!
//! Who makes one, or takes it back, holds a lock on its folder exclusively; who has opened it to put a first
//! image into it, shared. Where there is no such lock, the put-if-absent of the configuration decides, and
//! nothing is taken back.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::folder::parent;
use crate::base::message::Action;
use crate::base::uri::Shown;
use crate::repo::config::Defaults;
use crate::repo::host::HostState;
use crate::repo::inside::refuse_inside_any;
use crate::repo::names::{is_of_filesystem, is_temporary, looks_like_repository};
use crate::repo::place::Place;
use crate::repo::repository::{FirstUse, Repository};
use crate::repo::root::{Lock, Root};
use crate::repo::top::{MARKER, config_file};
use crate::store::sealed::is_slot;
use crate::store::{Above, Store, make_folder};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often it is tried, and what is waited between: it takes some syncs of a disk that may be busy.
const TRIES: usize = 6000;
const PAUSE: Duration = Duration::from_millis(10);
const TRIES_ELSEWHERE: u32 = 8;

/// The first configuration of a repository has a few hundred bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// True if a repository can be made in a store: nothing is there, nor has this host ever used one there.
pub fn is_first(store: &dyn Store, host: &HostState) -> bool {
    if store.local_path().is_some_and(looks_like_repository) {
        return false;
    }
    Repository::is_vacant(store) && Place::of(store, host).missing().is_none()
}

/// Opens the repository in a store, to write to it. At the first use of a place it is made.
///
/// # Errors
/// `NotFound` if this host has used one there that is missing now, or for a folder above that is;
/// `Mismatch` if it has used others there; those of [`Repository::open_in`] and [`Repository::init_in`].
pub fn open_or_init(
    store: Arc<dyn Store>,
    defaults: Defaults,
    above: Above,
    host: &HostState,
) -> Result<Repository> {
    begin(store, defaults, above, host, false)
}

/// Makes a repository in a store, whatever this host has used there.
///
/// # Errors
/// As of [`Repository::init_in`]; `NotFound` for a folder above that is missing.
pub fn init(
    store: Arc<dyn Store>,
    defaults: Defaults,
    above: Above,
    host: &HostState,
) -> Result<Repository> {
    let repository = begin(store, defaults, above, host, true)?;
    // Without it, all goes on as on a host that has never used one there.
    best_effort(repository.place.replace(repository.id()));
    Ok(repository)
}

fn begin(
    store: Arc<dyn Store>,
    defaults: Defaults,
    above: Above,
    host: &HostState,
    must_be_new: bool,
) -> Result<Repository> {
    let Some(path) = store.local_path().map(Path::to_owned) else {
        return begin_elsewhere(&store, defaults, host, must_be_new);
    };
    let path = path.as_path();
    let mut place = At { path, store, host, is_folder_made: false };
    for _ in 0..TRIES {
        match place.attempt(defaults, above, must_be_new) {
            Ok(Attempt::Done(repository)) => return Ok(*repository),
            Ok(_) => std::thread::sleep(PAUSE),
            Err(error) => {
                // Unless others make something in it.
                let root = Root::open(path);
                if place.is_folder_made && root.take() == Lock::Held {
                    root.remove();
                }
                return Err(error);
            }
        }
    }
    let what = format!("another process is creating the repository {}", path.shown());
    Err(Error::new(ErrorKind::Busy, what).hint(Action::Retry))
}

/// The same on a server: there is no folder to be locked, and nothing is taken back.
fn begin_elsewhere(
    store: &Arc<dyn Store>,
    defaults: Defaults,
    host: &HostState,
    must_be_new: bool,
) -> Result<Repository> {
    for attempt in 0..TRIES_ELSEWHERE {
        let missing = match Repository::open_in(store.clone(), host.clone()) {
            Ok(repository) if !must_be_new => {
                repository.check_place()?;
                return Ok(repository);
            }
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ if must_be_new => None,
            _ => Place::of(store.as_ref(), host).missing(),
        };
        if let Some(missing) = missing {
            return Err(missing);
        }
        match Repository::init_in(store.clone(), defaults, host.clone()) {
            Ok(mut repository) => {
                repository.first_use =
                    Some(FirstUse { root: Mutex::default(), is_new: true, is_folder_new: false });
                return Ok(repository);
            }
            // Somebody else has begun to make one in this moment, or somebody who was killed.
            Err(e) if e.kind() == ErrorKind::AlreadyExists && !must_be_new => {
                store.pause(attempt);
            }
            Err(e) => return Err(e),
        }
    }
    let what = format!("another process is creating the repository {}", store.location(""));
    Err(Error::new(ErrorKind::Busy, what).hint(Action::Retry))
}

/// What became of one attempt.
enum Attempt {
    Done(Box<Repository>),
    /// Somebody else is at work.
    Busy,
    /// There is nothing, and it may be made.
    Nothing,
}

/// A place where a repository is, or is to be made.
struct At<'a> {
    path: &'a Path,
    store: Arc<dyn Store>,
    host: &'a HostState,
    /// True if its folder was made here.
    is_folder_made: bool,
}

impl At<'_> {
    fn attempt(&mut self, defaults: Defaults, above: Above, must_be_new: bool) -> Result<Attempt> {
        match if must_be_new { Attempt::Nothing } else { self.open()? } {
            Attempt::Nothing => self.make(defaults, above, must_be_new),
            found => Ok(found),
        }
    }

    fn open(&self) -> Result<Attempt> {
        let root = Root::open(self.path);
        if root.share() == Lock::Busy {
            return Ok(Attempt::Busy);
        }
        match self.open_in() {
            Ok(repository) => opened(repository, root),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let missing = Place::of(self.store.as_ref(), self.host).missing();
                missing.map_or(Ok(Attempt::Nothing), Err)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes it, unless somebody else did so meanwhile.
    fn make(&mut self, defaults: Defaults, above: Above, must_be_new: bool) -> Result<Attempt> {
        // That there is one already is told below.
        if !looks_like_repository(self.path)
            && let Err(e) = refuse_inside_any(self.path)
        {
            // Within itself: it has just been made.
            return if looks_like_repository(self.path) { Ok(Attempt::Busy) } else { Err(e) };
        }
        self.is_folder_made |= match make_folder(self.path, above) {
            // Somebody takes the one back in this moment that he made.
            Err(e) if e.kind() == ErrorKind::NotFound && parent(self.path).is_dir() => {
                return Ok(Attempt::Busy);
            }
            made => made?,
        };
        let root = Root::open(self.path);
        let lock = take(&root, self.store.as_ref())?;
        let there = self.open_in();
        if lock == Lock::Busy && !(must_be_new && there.is_ok()) {
            return Ok(Attempt::Busy);
        }
        let is_vacant = Repository::is_vacant(self.store.as_ref());
        match there {
            // Why none can be made is told below.
            _ if must_be_new => {}
            Ok(repository) => {
                root.share();
                return opened(repository, root);
            }
            Err(_) if is_vacant => {}
            // Without a lock it may have been made in this moment.
            Err(_) if lock == Lock::None && looks_like_repository(self.path) => {
                return Ok(Attempt::Busy);
            }
            Err(e) => return Err(e),
        }
        let made = Repository::init_in(self.store.clone(), defaults, self.host.clone());
        let is_late =
            |e: &Error| matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound);
        let mut repository = match made {
            Err(e) if lock == Lock::None && !must_be_new && is_late(&e) => {
                return Ok(Attempt::Busy);
            }
            Err(e) => {
                if lock == Lock::Held && is_vacant {
                    best_effort(take_back(self.store.as_ref()));
                }
                return Err(e);
            }
            Ok(repository) => repository,
        };
        root.share();
        let is_folder_new = self.is_folder_made;
        let root = Mutex::new(Some(root));
        repository.first_use = Some(FirstUse { root, is_new: true, is_folder_new });
        Ok(Attempt::Done(Box::new(repository)))
    }

    fn open_in(&self) -> Result<Repository> {
        Repository::open_in(self.store.clone(), self.host.clone())
    }
}

fn opened(mut repository: Repository, root: Root) -> Result<Attempt> {
    repository.check_place()?;
    let root = Mutex::new(Some(root));
    repository.first_use = Some(FirstUse { root, is_new: false, is_folder_new: false });
    Ok(Attempt::Done(Box::new(repository)))
}

/// Locks it exclusively. A lock that keeps apart those of this host alone is none.
fn take(root: &Root, store: &dyn Store) -> Result<Lock> {
    Ok(match root.take() {
        Lock::Held if !store.sharing()?.is_locked() => Lock::None,
        lock => lock,
    })
}

/// Takes a repository back that was made here, with its folder if that was, too: if nothing came into it, and
/// nobody else has opened it to put something there. True if it is gone.
///
/// # Errors
/// If it cannot be removed.
pub(crate) fn take_back_unused(repository: Repository) -> Result<bool> {
    repository.release_root();
    let id = repository.id();
    let Repository { store, host, first_use, .. } = repository;
    let (Some(FirstUse { is_new: true, is_folder_new, .. }), Some(path)) =
        (first_use, store.local_path())
    else {
        return Ok(false);
    };
    let root = Root::open(path);
    if take(&root, store.as_ref())? != Lock::Held {
        return Ok(false);
    }
    let is_gone = take_back(store.as_ref())?;
    if is_gone {
        // What is known of images that nobody has any more is in nobody's way.
        best_effort(host.forget_repository(id));
        if is_folder_new {
            root.remove();
        }
    }
    Ok(is_gone)
}

/// Removes what an init has written, if there is nothing else. Whatever is left when it is killed, an init
/// goes on with.
fn take_back(store: &dyn Store) -> Result<bool> {
    let first = config_file(1);
    let (ours, others): (Vec<String>, Vec<String>) =
        store.list("")?.into_iter().filter(|name| !is_of_filesystem(name)).partition(|name| {
            *name == MARKER || *name == first || is_temporary(name) || is_slot(name)
        });
    if !others.is_empty() {
        return Ok(false);
    }
    let config = store.read_whole(&first, MAX_CONFIG_BYTES);
    store.remove(&first)?;
    // Who opened it without the lock knows nothing of this.
    let is_used =
        store.list("")?.iter().any(|name| !ours.contains(name) && !is_of_filesystem(name));
    if is_used && let Ok(config) = config {
        return store.put_if_absent(&first, &config).map(|()| false);
    }
    store.sync_dir("")?;
    ours.iter().try_for_each(|name| store.remove(name))?;
    store.sync_dir("").map(|()| true)
}
