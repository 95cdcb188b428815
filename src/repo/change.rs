//! Changes of an image: what a commit says anew, and what becomes of a file that it was to name.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Action, Setting, Verb, message};
use crate::repo::Repository;
use crate::repo::garbage::reader_lock;
use crate::repo::head::check_seen;
use crate::repo::manifest::{self, ImageFile, Manifest, Pin, Snapshot};
use crate::repo::names::is_guarded;
use crate::repo::reserve::{is_released, keep_reserve};
use crate::repo::session::Writer;
use crate::store::{LockKind, ReserveKept, Store};
use std::collections::HashSet;
use uuid::Uuid;

/// Removes files that were published, unless the ruling manifest names them: a full disk gets its space
/// back. Without locks that is left to who collects garbage.
pub(crate) fn discard_unless_named<'a>(
    repository: &Repository,
    name: &str,
    files: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let store = repository.store.as_ref();
    if !store.sharing()?.is_locked() {
        return Ok(());
    }
    match manifest::load(store, name) {
        Ok(ruling) => remove_unnamed(store, &ruling, files),
        Err(_) => Ok(()),
    }
}

/// How often a change is made anew on top of what others committed meanwhile.
const REBASE_TRIES: usize = 16;

/// Commits a change of what rules, which may name `files` that were uploaded since the writer was opened.
/// Where others may commit meanwhile, `change` is called again for what rules then.
///
/// # Errors
/// `Busy` if the change makes no sense any more; those of [`manifest::commit`] and of `change`.
pub(crate) fn commit_change<T>(
    repository: &Repository,
    writer: &mut Writer,
    files: &[&str],
    change: impl Fn(&mut Manifest) -> Result<T>,
) -> Result<T> {
    let store = repository.store.as_ref();
    let is_locked = store.sharing()?.is_locked();
    let mut next = writer.manifest.clone();
    let mut changed = change(&mut next)?;
    for _ in 0..REBASE_TRIES {
        let error = match commit(store, writer.frees, &mut next) {
            Ok(()) => {
                if !next.is_unused() {
                    // The next writer tries it again, and says why it cannot be.
                    best_effort(repository.settle());
                }
                // Without it, the one before is what has to be followed.
                best_effort(repository.seen().remember(&next));
                writer.began = next.sequence;
                writer.manifest = next;
                if !writer.frees {
                    keep_reserve(store, &writer.manifest, ReserveKept::OfPlenty);
                }
                return Ok(changed);
            }
            Err(error) => error,
        };
        if is_locked {
            // What failed first is what is told.
            best_effort(discard_after(store, &next, files));
            return Err(error);
        }
        if error.kind() != ErrorKind::Busy {
            return Err(error);
        }
        next = manifest::load(store, &writer.manifest.name)?;
        check_seen(repository, &next)?;
        // What was condemned is not named again (C5); what was swept may have been condemned (C6).
        let is_lost = |file: &&str| next.is_condemned(file) || next.swept > writer.began;
        if next.image_id != writer.manifest.image_id || files.iter().any(is_lost) {
            return Err(error);
        }
        writer.manifest = next.clone();
        let outcome = change(&mut next).and_then(|changed| next.check().map(|()| changed));
        changed = outcome.map_err(|e| match e.kind() {
            ErrorKind::Corrupt => manifest::changed_meanwhile(&next.name),
            _ => e,
        })?;
    }
    Err(manifest::changed_meanwhile(&writer.manifest.name))
}

/// Commits what rules next: on a full disk, for who frees space, with what is kept for that.
fn commit(store: &dyn Store, frees: bool, next: &mut Manifest) -> Result<()> {
    if !frees {
        return manifest::commit(store, next);
    }
    let again = next.clone();
    match manifest::commit(store, next) {
        Err(e) if e.is_storage_full() && is_released(store) => {}
        other => return other,
    }
    // It may be there: the last sync may be what failed.
    if manifest::is_won(store, next)? == Some(true) {
        return store.sync_dir(&next.name);
    }
    *next = again;
    manifest::commit(store, next)
}

/// If a commit certainly does not stand, its files are garbage now, but for those that what rules names:
/// a full disk gets its space back.
fn discard_after(store: &dyn Store, next: &Manifest, files: &[&str]) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    match manifest::load(store, &next.name) {
        Ok(ruling) if ruling.sequence < next.sequence => {
            remove_unnamed(store, &ruling, files.iter().copied())
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn remove_unnamed<'a>(
    store: &dyn Store,
    ruling: &Manifest,
    files: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let named: HashSet<&str> = ruling.objects().collect();
    let is_unnamed = |file: &&str| !named.contains(file) && !ruling.is_planned(file);
    let mut unnamed = files.into_iter().filter(is_unnamed);
    unnamed.try_for_each(|file| store.remove(&format!("{}/{file}", ruling.name)))
}

/// Commits a change of what the manifest says of one snapshot. Gives what it says then.
pub(crate) fn change_snapshot(
    repository: &Repository,
    writer: &mut Writer,
    id: Uuid,
    change: impl Fn(&mut Snapshot),
) -> Result<Snapshot> {
    commit_change(repository, writer, &[], |next| {
        let gone = || Error::corrupt(format!("{}: the snapshot is gone", next.name));
        let snapshot = next.snapshots.iter_mut().find(|s| s.id == id).ok_or_else(gone)?;
        change(snapshot);
        Ok(snapshot.clone())
    })
}

/// Fails if a snapshot that is meant must not be dropped.
pub(crate) fn refuse_kept(
    store: &dyn Store,
    manifest: &Manifest,
    is_meant: impl Fn(&Snapshot) -> bool,
) -> Result<()> {
    let mut meant = manifest.snapshots.iter().filter(|s| is_meant(s));
    let kept = meant.find_map(|s| manifest.keeps(s).map(|why| (s, why)));
    let Some((snapshot, why)) = kept else { return Ok(()) };
    let place = manifest.place_of(snapshot);
    let error = Error::new(ErrorKind::Mismatch, format!("{place} is {why}"));
    if snapshot.protected {
        let off = Verb::Protect.of(&place).with(Setting::Off, "");
        return Err(error.hint(message![off, " removes the protection"]));
    }
    let is_absent = |pin: &Pin| {
        manifest::load(store, &pin.name).is_err_and(|e| e.kind() == ErrorKind::NotFound)
    };
    Err(match snapshot.pins.first() {
        Some(pin) if is_absent(pin) => error.hint(message![
            format!(
                "\"{}\" is missing: put its folder back, or, if it is gone for good, run ",
                pin.name
            ),
            Verb::Repair.of(&manifest.name),
        ]),
        Some(pin) => error.hint(message![
            "make what depends on it a base of its own with ",
            Verb::Flatten.of(format!("{}@NUMBER", pin.name)),
            ", or delete it; ",
            Verb::List.of(&pin.name),
            " lists it",
        ]),
        None => error,
    })
}

/// The last manifest of an image, which stays: who slept could otherwise put one of this image as that of its
/// successor (C10).
fn forget(manifest: &mut Manifest) {
    manifest.snapshots.clear();
    manifest.dropped.clear();
    manifest.pending.clear();
    manifest.kept.clear();
    manifest.unused.clear();
    manifest.forgotten = true;
}

/// Removes an image that was made for a snapshot that failed, unless somebody else has taken one of it since.
pub(crate) fn remove_unused_image(repository: &Repository, mut writer: Writer) -> Result<()> {
    // Nothing is in it, and it is not for this host to remove it.
    if !repository.may_drop() {
        return Ok(());
    }
    if repository.store.sharing()?.is_locked() {
        return remove_image(repository, writer, |_| (), |_| Ok(())).map(drop);
    }
    commit_change(repository, &mut writer, &[], |next| match next.is_unused() {
        true => {
            forget(next);
            Ok(())
        }
        false => Err(manifest::changed_meanwhile(&next.name)),
    })
}

/// Removes an image: all that we made in its folder, and the folder if nothing else is in it; false if
/// something is. `first` is done once nobody reads it any more, and before anything is removed; `emptied`,
/// where there are locks, once it names nothing any more, and before the manifest that says so is removed.
pub(crate) fn remove_image(
    repository: &Repository,
    mut writer: Writer,
    first: impl FnOnce(&Manifest),
    emptied: impl FnOnce(&Manifest) -> Result<()>,
) -> Result<bool> {
    let store = repository.store.as_ref();
    let name = writer.manifest.name.clone();
    writer.release_reader_lock();
    if !store.sharing()?.is_locked() {
        let known = writer.manifest.rollback.clone();
        commit_change(repository, &mut writer, &[], |next| {
            refuse_kept(store, next, |_| true)?;
            // One that has begun since would be left with half of a live image, and of nothing else.
            if next.rollback != known {
                return Err(manifest::changed_meanwhile(&next.name));
            }
            forget(next);
            Ok(())
        })?;
        first(&writer.manifest);
        return Ok(true);
    }
    let lock = reader_lock(&name);
    let alone = store.lock(&lock, LockKind::Exclusive)?;
    if alone.is_none() || store.is_held(&lock, None)? {
        return Err(Error::new(ErrorKind::Busy, format!("another process is reading \"{name}\""))
            .hint(message![Action::Retry, " when that is done"]));
    }
    first(&writer.manifest);
    // The commit comes first: from here on nothing of the image is listed, whatever is still
    // there.
    // Whoever has seen it could otherwise not tell that it was removed, and did not vanish.
    let stays = is_guarded(store);
    match stays {
        true => forget(&mut writer.manifest),
        false => {
            writer.manifest.snapshots.clear();
            writer.manifest.dropped.clear();
        }
    }
    commit(store, writer.frees, &mut writer.manifest)?;
    // Without it, the one before is what has to be followed.
    best_effort(repository.seen().remember(&writer.manifest));
    emptied(&writer.manifest)?;
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
    if stays {
        return Ok(true);
    }
    store.remove(&format!("{name}/{ruling}"))?;
    for file in &locks {
        store.remove(&format!("{name}/{file}"))?;
    }
    store.remove_folder(&name)
}
