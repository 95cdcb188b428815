//! Readers and writers of one image, with the locks that they hold.
//!
//! | lock | held by | |
//! | --- | --- | --- |
//! | `write` | whoever commits, exclusively | exclusive: a second writer fails with `Busy` |
//! | `reap` | readers and writers, shared; exclusively to unlink | what is read stays |
//! | bytes of `reap` | chains, one for each of their files | these files stay when the reader is gone |

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Action, Setting, Verb, message};
use crate::chain::Chain;
use crate::delta::ReadGuard;
use crate::repo::files::open_guarded;
use crate::repo::head::Head;
use crate::repo::manifest::{self, ImageFile, Manifest, Snapshot};
use crate::repo::{Repository, reference};
use crate::store::{LockGuard, LockKind, Store};
use std::collections::HashSet;
use std::fmt;
use std::time::Duration;
use uuid::Uuid;

/// Reads an image: while it lives, no file that its manifest names is unlinked.
pub struct Reader {
    manifest: Manifest,
    head: Head,
    pub(crate) head_was_damaged: bool,
    /// None where nothing can be locked.
    reap: Option<LockGuard>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest { name, sequence, .. } = &self.manifest;
        let mut fields = f.debug_struct("Reader");
        fields.field("name", name).field("sequence", sequence).finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens the chain of a snapshot. It holds back its own files, and nothing else, for as long as it lives,
    /// also when the reader is gone.
    ///
    /// # Errors
    /// `Corrupt` if a file of it is missing or damaged.
    pub fn chain(&self, repository: &Repository, id: Uuid) -> Result<Chain> {
        let lineage = self.manifest.lineage(id)?;
        let files: Vec<&str> = lineage.iter().map(|s| s.file.as_str()).collect();
        let lock = match self.reap {
            Some(_) => repository.store.hold(&reader_lock(&self.manifest.name), &files)?,
            // Nothing can be locked here.
            None => None,
        };
        let files = files.into_iter().map(str::to_owned).collect();
        let Manifest { name, sequence, .. } = &self.manifest;
        let guard = lock.map(|lock| ReadGuard::new(name, *sequence, files, lock));
        open_guarded(repository, &self.manifest, id, guard)
    }

    /// The snapshots.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What is known of the live image.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The snapshot that is meant.
    pub fn find(&self, at: &reference::At) -> Result<&Snapshot> {
        reference::find(&self.manifest, &self.head, at)
    }
}

/// Changes an image: the only one to do so while it lives.
pub(crate) struct Writer {
    pub(crate) manifest: Manifest,
    pub(crate) head: Head,
    /// The head state was there but could not be read: it may have held the intent of a rollback.
    pub(crate) head_was_damaged: bool,
    _write: LockGuard,
    reap: Option<LockGuard>,
}

impl Writer {
    /// Lets go of what keeps files from being unlinked.
    pub(crate) fn release_reader_lock(&mut self) {
        self.reap = None;
    }
}

pub(crate) fn write_lock(name: &str) -> String {
    format!("{name}/write.lock")
}

fn reader_lock(name: &str) -> String {
    format!("{name}/reap.lock")
}

/// Opens an image for reading.
///
/// # Errors
/// `NotFound` if there is no such image, `Corrupt` if its manifest is damaged.
pub fn read(repository: &Repository, name: &str, context: &Context) -> Result<Reader> {
    manifest::check_name(name)?;
    let store = repository.store.as_ref();
    if store.list(name)?.is_empty() {
        // Say so before a lock file is made in a folder that does not exist.
        manifest::load(store, name)?;
    }
    let reap =
        share_reader_lock(store, name, context).map_err(|e| or_not_found(repository, name, e))?;
    let manifest = manifest::load(store, name)?;
    let (head, is_damaged) = Head::load(store, name)?;
    if is_damaged {
        context.warn(WarningId::HeadDamaged, damaged_head(name));
    }
    Ok(Reader { manifest, head, head_was_damaged: is_damaged, reap })
}

/// What cannot be locked because the image has just been forgotten is not there.
fn or_not_found(repository: &Repository, name: &str, error: Error) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    manifest::load(repository.store.as_ref(), name).err().unwrap_or(error)
}

/// Fails if what is known of the live image is damaged: it may have said that a snapshot is all that
/// is left of it.
pub(crate) fn refuse_damaged_head(name: &str, is_damaged: bool) -> Result<()> {
    if !is_damaged {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Mismatch, damaged_head(name)).hint(message![
        "run ",
        Verb::Rollback.of(name).asking(Setting::To),
        ", or, if you know that the image is sound, ",
        Verb::Relink.of(name).asking(Setting::Image),
    ]))
}

/// Takes the write lock of an image, whose folder exists.
pub(crate) fn lock_to_write(repository: &Repository, name: &str) -> Result<LockGuard> {
    let file = write_lock(name);
    for _ in 0..100 {
        if let Some(lock) = repository.store.lock(&file, LockKind::Exclusive)? {
            return Ok(lock);
        }
        // Who looks for clones that nobody needs holds it shared, for a moment; a writer does not.
        if repository.store.lock(&file, LockKind::Shared)?.is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let what = format!("another imgsnap is working on \"{name}\"");
    Err(Error::new(ErrorKind::Busy, what).hint(message![Action::Retry, " when it is done"]))
}

/// The same of one that may not exist yet. Whoever forgets it meanwhile takes the folder along.
fn lock_to_create(repository: &Repository, name: &str) -> Result<LockGuard> {
    for _ in 0..20 {
        repository.store.create_folder(name)?;
        match lock_to_write(repository, name) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("\"{name}\" is made and forgotten all the time")))
}

/// Opens an image for changing it, and removes what earlier writers left behind.
pub(crate) fn write(repository: &Repository, name: &str, context: &Context) -> Result<Writer> {
    manifest::check_name(name)?;
    let store = repository.store.as_ref();
    if store.list(name)?.is_empty() {
        manifest::load(store, name)?;
    }
    let write = lock_to_write(repository, name).map_err(|e| or_not_found(repository, name, e))?;
    let manifest = manifest::load(store, name)?;
    writer(repository, write, manifest, context)
}

/// The same for an image that may not exist yet. True if this made it.
pub(crate) fn write_or_create(
    repository: &Repository,
    name: &str,
    source: &std::path::Path,
    context: &Context,
) -> Result<(Writer, bool)> {
    let store = repository.store.as_ref();
    manifest::check_name(name)?;
    let write = lock_to_create(repository, name)?;
    let mut is_new = false;
    let manifest = match manifest::load(store, name) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            // An empty manifest before the first delta: deltas without one are then a loss, not
            // a beginning.
            let mut manifest = Manifest::new(name, Some(source.into()));
            manifest::commit(store, &mut manifest)?;
            is_new = true;
            manifest
        }
        other => other?,
    };
    Ok((writer(repository, write, manifest, context)?, is_new))
}

/// Opens an image that does not exist yet, of an identity that comes from elsewhere.
pub(crate) fn write_new(
    repository: &Repository,
    name: &str,
    image_id: Uuid,
    context: &Context,
) -> Result<Writer> {
    let store = repository.store.as_ref();
    let write = lock_to_create(repository, name)?;
    if manifest::ruling(store, name)?.is_some() {
        let what = format!("somebody else made \"{name}\" at the same time");
        return Err(Error::new(ErrorKind::Busy, what).hint(Action::Retry));
    }
    let mut manifest = Manifest { image_id, ..Manifest::new(name, None) };
    manifest::commit(store, &mut manifest)?;
    writer(repository, write, manifest, context)
}

pub(crate) fn writer(
    repository: &Repository,
    write: LockGuard,
    mut manifest: Manifest,
    context: &Context,
) -> Result<Writer> {
    let store = repository.store.as_ref();
    collect_garbage(repository, &mut manifest, context)?;
    let reap = share_reader_lock(store, &manifest.name, context)?;
    let (head, head_was_damaged) = Head::load(store, &manifest.name)?;
    Ok(Writer { manifest, head, head_was_damaged, _write: write, reap })
}

/// Removes a file that was published, unless the ruling manifest names it: a full disk gets its space
/// back.
pub(crate) fn discard_unless_named(repository: &Repository, name: &str, file: &str) -> Result<()> {
    let store = repository.store.as_ref();
    let ruling = manifest::load(store, name);
    let is_unnamed = ruling.is_ok_and(|m| m.stored().iter().all(|s| s.file != file));
    if is_unnamed { store.remove(&format!("{name}/{file}")) } else { Ok(()) }
}

/// Commits `next`, which names a new file.
pub(crate) fn commit_file(
    repository: &Repository,
    writer: &mut Writer,
    mut next: Manifest,
    file: &str,
) -> Result<()> {
    let store = repository.store.as_ref();
    if let Err(error) = manifest::commit(store, &mut next) {
        // If it certainly does not stand, its file is garbage now: a full disk gets its space back.
        let ruling = manifest::ruling(store, &next.name);
        if ruling.is_ok_and(|n| n.is_some_and(|n| n < next.sequence)) {
            store.remove(&format!("{}/{file}", next.name))?;
        }
        return Err(error);
    }
    writer.manifest = next;
    Ok(())
}

/// Commits a change of what the manifest says of one snapshot. Gives what it says then.
pub(crate) fn change_snapshot(
    repository: &Repository,
    writer: &Writer,
    id: Uuid,
    change: impl FnOnce(&mut Snapshot),
) -> Result<Snapshot> {
    let mut next = writer.manifest.clone();
    let gone = || Error::corrupt(format!("{}: the snapshot is gone", writer.manifest.name));
    let snapshot = next.snapshots.iter_mut().find(|s| s.id == id).ok_or_else(gone)?;
    change(snapshot);
    let changed = snapshot.clone();
    manifest::commit(repository.store.as_ref(), &mut next)?;
    Ok(changed)
}

/// Removes what the ruling manifest does not name, unless somebody reads: then false. The caller holds
/// the write lock.
pub(crate) fn collect_garbage(
    repository: &Repository,
    manifest: &mut Manifest,
    context: &Context,
) -> Result<bool> {
    let store = repository.store.as_ref();
    let name = &manifest.name.clone();
    let Some(_alone) = store.lock(&reader_lock(name), LockKind::Exclusive)? else {
        return Ok(false);
    };
    // The manifest that rules may not be durable yet: its writer may have died before the sync.
    store.sync_dir(name)?;
    let files = store.list(name)?;
    // A commit that was reported as failed may stand all the same: what it names is not ours to remove.
    if files.iter().filter_map(|file| manifest::sequence_of(file)).max() > Some(manifest.sequence) {
        return Ok(false);
    }
    let present: HashSet<&str> = files.iter().map(String::as_str).collect();
    // What is not there now, after a sync, does not come back.
    manifest.sweep(&present);
    let named: HashSet<&str> = manifest.objects().collect();
    // If a file that is named is missing, another one may be it, under another name: keep all.
    let is_whole = manifest.stored().iter().all(|s| present.contains(s.file.as_str()));
    let is_unneeded = |file: &String| match ImageFile::of(file) {
        Some(ImageFile::Temporary) => true,
        Some(ImageFile::Delta) => is_whole && !named.contains(file.as_str()),
        Some(ImageFile::Manifest(sequence)) => sequence < manifest.sequence,
        Some(ImageFile::Head | ImageFile::Lock) | None => false,
    };
    // Manifests go last: they tell a repair that what they name was dropped, and not forgotten to be
    // named.
    let is_manifest = |file: &&String| manifest::sequence_of(file).is_some();
    let (old, others): (Vec<&String>, Vec<&String>) =
        files.iter().filter(|file| is_unneeded(file)).partition(is_manifest);
    let lock = reader_lock(name);
    let (mut free, mut held) = (Vec::new(), Vec::new());
    for file in others {
        match ImageFile::is_delta(file) && store.is_held(&lock, Some(file))? {
            true => held.push(file),
            false => free.push(file),
        }
    }
    let is_all = held.is_empty();
    // What is held and was dropped under an earlier version only an older manifest knows to be dropped.
    let are_told = held.iter().all(|file| manifest.is_condemned(file));
    let old = if are_told { old } else { Vec::new() };
    let remove = |file: &String| {
        context.note(format!("removing {name}/{file}, which is not needed any more"));
        store.remove(&format!("{name}/{file}"))
    };
    free.iter().try_for_each(|file| remove(file))?;
    if free.iter().any(|file| ImageFile::is_delta(file)) && !old.is_empty() {
        store.sync_dir(name)?;
    }
    old.iter().try_for_each(|file| remove(file))?;
    Ok(is_all)
}

/// Fails if a snapshot that is meant is protected.
pub(crate) fn refuse_protected(
    manifest: &Manifest,
    is_meant: impl Fn(&Snapshot) -> bool,
) -> Result<()> {
    let mut protected = manifest.snapshots.iter().filter(|s| s.protected);
    let Some(snapshot) = protected.find(|s| is_meant(s)) else { return Ok(()) };
    let place = manifest.place_of(snapshot);
    let hint = message![Verb::Protect.of(&place).with(Setting::Off, ""), " takes that back"];
    Err(Error::new(ErrorKind::Mismatch, format!("{place} is protected")).hint(hint))
}

/// Removes an image: all that we made in its folder, and the folder if nothing else is in it; false if
/// something is. `first` is done once nobody reads it any more, and before anything is removed.
pub(crate) fn remove_image(
    repository: &Repository,
    mut writer: Writer,
    first: impl FnOnce(&Manifest),
) -> Result<bool> {
    let store = repository.store.as_ref();
    let name = writer.manifest.name.clone();
    writer.release_reader_lock();
    let lock = reader_lock(&name);
    let alone = store.lock(&lock, LockKind::Exclusive)?;
    if alone.is_none() || store.is_held(&lock, None)? {
        return Err(Error::new(ErrorKind::Busy, format!("somebody is reading \"{name}\""))
            .hint(message![Action::Retry, " when that is done"]));
    }
    first(&writer.manifest);
    // The commit comes first: from here on nothing of the image is listed, whatever is still
    // there.
    writer.manifest.snapshots.clear();
    writer.manifest.dropped.clear();
    manifest::commit(store, &mut writer.manifest)?;
    // The ruling manifest goes last: without it an older one would rule, or deltas look like a
    // loss.
    let ruling = manifest::file_name(writer.manifest.sequence);
    let (locks, files): (Vec<String>, Vec<String>) = store
        .list(&name)?
        .into_iter()
        .filter(|file| *file != ruling && ImageFile::of(file).is_some())
        .partition(|file| ImageFile::of(file) == Some(ImageFile::Lock));
    for file in &files {
        store.remove(&format!("{name}/{file}"))?;
    }
    store.sync_dir(&name)?;
    store.remove(&format!("{name}/{ruling}"))?;
    for file in &locks {
        store.remove(&format!("{name}/{file}"))?;
    }
    store.remove_folder(&name)
}

/// What to say of a head state that cannot be read.
pub(crate) fn damaged_head(name: &str) -> String {
    format!(
        "the head state of \"{name}\" is damaged: if a rollback was interrupted, its live image is a \
         mixture"
    )
}

fn share_reader_lock(
    store: &dyn Store,
    name: &str,
    context: &Context,
) -> Result<Option<LockGuard>> {
    // It is held exclusively only while files are unlinked: a moment.
    for _ in 0..500 {
        match store.lock(&reader_lock(name), LockKind::Shared) {
            Ok(Some(guard)) => return Ok(Some(guard)),
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                context.warn(WarningId::NoLock, message![e, "; reading without a lock"]);
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        context.check()?;
    }
    Err(Error::new(ErrorKind::Busy, format!("another imgsnap is removing files of \"{name}\""))
        .hint(message![Action::Retry, " when it is done"]))
}

/// Every image of a repository that can be read.
pub(crate) fn readers(repository: &Repository, context: &Context) -> Result<Vec<Reader>> {
    let mut readers = Vec::new();
    // Another source may do where one fails.
    let failed = |e: Error| match e.kind() {
        ErrorKind::Interrupted => Err(e),
        _ => {
            context.warn(WarningId::SourceUnusable, message![e, "; not used"]);
            Ok(())
        }
    };
    let names = match repository.names() {
        Ok(names) => names,
        Err(e) => return failed(e).map(|()| readers),
    };
    for name in names {
        match read(repository, &name, context) {
            Ok(reader) => readers.push(reader),
            Err(e) => failed(e)?,
        }
    }
    Ok(readers)
}
