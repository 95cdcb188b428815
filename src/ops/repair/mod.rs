//! Rebuilding a lost or damaged manifest: every delta file describes itself.
//!
//! ```text
//! manifest damaged or gone       -> from all delta files that can be used
//! manifest sound, but not the last one that was committed
//!                                -> the same, as soon as more can be restored by that
//! manifest sound                 -> nothing; named files that are missing are reported
//! ```
//!
//! Only what was read and does not match is left out. Of a file that cannot be read now nobody knows, so
//! nothing is changed.

pub mod config;
pub(crate) mod elsewhere;
pub mod engine;
pub mod fetch_missing;
pub mod mend;
mod owned;
pub(crate) mod rebuild;
pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, Message, message};
use crate::chain::Fork;
use crate::delta::{Delta, DeltaFile};
use crate::format::footer::MAX_NUMBER;
use crate::merge;
use crate::ops::repair::elsewhere::base_elsewhere;
use crate::ops::repair::rebuild::{
    Candidate, assign_labels, collect, in_order, most_common_image, remember,
};
use crate::ops::repair::types::{Rebuilt, Repaired};
use crate::ops::verify::engine::{verify_all, verify_runs};
use crate::repo::Repository;
use crate::repo::compact::rewrite_as;
use crate::repo::entry::part_names;
use crate::repo::files::{open_chain, open_delta, open_parent};
use crate::repo::garbage::collect_garbage;
use crate::repo::head::{Head, check_seen, newest_known};
use crate::repo::manifest::{self, ImageFile, MAX_IMPORTED_NUMBER, Manifest, Snapshot};
use crate::repo::marker::Marker;
use crate::repo::owner::refuse_others;
use crate::repo::pins;
use crate::repo::session::{lock_to_write, writer};
use crate::store::Store;
use owned::{clear_endless, is_for_owner};
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// Rebuilds the manifest of an image if it is lost or damaged, or was rebuilt before without files that
/// can be used now, or is not the last one that was committed. Lowers numbers after which none is left.
///
/// # Errors
/// `NotFound` if there is nothing of that image at all; `Corrupt` if no delta file can be used; that of
/// the system if one cannot be read now.
pub fn run(repository: &Repository, name: &str, context: &Context) -> Result<Repaired> {
    repository.store.read_anew();
    manifest::check_name(name)?;
    let store = repository.store.as_ref();
    if store.list(name)?.is_empty() {
        manifest::load(store, name)?;
    }
    let write = lock_to_write(repository, name)?;
    // Without locks, what it reads must not be dropped by others meanwhile.
    let _marker = match store.sharing()?.is_locked() {
        true => None,
        false => {
            let ruling = manifest::ruling(store, name)?.unwrap_or(0);
            Some(Marker::put(&repository.store, name, ruling)?)
        }
    };
    // What is found may have a name that is not durable yet: whoever gave it died before the sync.
    store.sync_dir(name)?;
    let ruling = match twice(|| manifest::load(store, name)) {
        Ok(manifest) => Some(manifest),
        Err(e) if e.kind() == ErrorKind::Corrupt || is_for_owner(store, &e) => {
            refuse_others(store, "rebuild what is damaged").map_err(|denied| denied.at(&e))?;
            context.note(e);
            None
        }
        Err(e) => return Err(with_retry_hint(e)),
    };
    if let Some(ruling) = &ruling {
        check_seen(repository, ruling)?;
    }
    let rebuilt = rebuild(repository, name, ruling.as_ref(), context)?;
    let (mut manifest, mut rebuilt) = match (rebuilt, ruling) {
        (Some((manifest, rebuilt)), _) => (manifest, Some(rebuilt)),
        (None, Some(manifest)) => (manifest, None),
        (None, None) => return Err(Error::corrupt(format!("{name}: no manifest was made"))),
    };
    let are_pinned = pins::restore(repository, &mut manifest, context)?;
    let are_cleared = clear_endless(repository, &mut manifest);
    if rebuilt.is_some() || are_pinned || are_cleared {
        commit(repository, &mut manifest, context)?;
    }
    // What leads through this image again, by way of others, can be opened once it has a manifest.
    while let Some(first) = rebuilt.as_ref().filter(|rebuilt| !rebuilt.unused.is_empty())
        && let Some((more, again)) = rebuild(repository, name, Some(&manifest), context)?
    {
        let unlabelled = first.unlabelled.iter().chain(&again.unlabelled).cloned().collect();
        (manifest, rebuilt) = (more, Some(Rebuilt { unlabelled, ..again }));
        commit(repository, &mut manifest, context)?;
    }
    let missing = missing(repository, &manifest)?;
    let missing = missing.into_iter().map(|(s, why)| (format!("{name}@{}", s.number), why));
    let missing: Vec<(String, Message)> = missing.collect();
    let base_images = missing_base_images(repository, &manifest)?;
    let unused = if rebuilt.is_some() { Vec::new() } else { manifest.unused.clone() };
    let renumbered = match manifest.next_number > MAX_NUMBER / 2
        && missing.is_empty()
        && manifest.pending.is_empty()
    {
        true => renumber(repository, write, manifest, context)?,
        false => Vec::new(),
    };
    Ok(Repaired { rebuilt, renumbered, missing, base_images, unused })
}

/// First the pins, then what depends on them (C9).
fn commit(repository: &Repository, manifest: &mut Manifest, context: &Context) -> Result<()> {
    pins::pin_again(repository, manifest, context)?;
    manifest::commit(repository.store.as_ref(), manifest)?;
    repository.seen().remember(manifest)?;
    note_repaired(repository, manifest, context)
}

/// What was repaired here is not told to be turned back.
fn note_repaired(repository: &Repository, manifest: &Manifest, context: &Context) -> Result<()> {
    let (head, _) = Head::load(repository, manifest, &Context::silent())?;
    if let Err(e) = head.save(repository, manifest) {
        context.note(e);
    }
    Ok(())
}

/// The manifest that should rule instead of `ruling`, not committed yet; none if that is as it should be.
fn rebuild(
    repository: &Repository,
    name: &str,
    ruling: Option<&Manifest>,
    context: &Context,
) -> Result<Option<(Manifest, Rebuilt)>> {
    let mut unused = Vec::new();
    let mut candidates = open_all(repository, name, &mut unused)?;
    let is_locked = repository.store.sharing()?.is_locked();
    let Some(ruling) = ruling else {
        let older = older_manifests(repository.store.as_ref(), name, u64::MAX)?.into_iter().next();
        let pending = older.iter().flat_map(|older| &older.pending).flat_map(|p| &p.objects);
        let pending: HashSet<&String> = pending.collect();
        candidates.retain(|(file, _)| !pending.contains(file));
        unused.retain(|(file, _)| !pending.contains(file));
        if let Some(older) = older.as_ref().filter(|_| !is_locked) {
            // Somebody may be about to remove it (C5).
            candidates.retain(|(file, _)| !older.is_condemned(file));
        }
        return rebuild_from(repository, name, candidates, unused, older.as_ref(), context)
            .map(Some);
    };
    // Without locks, what nobody names may be about to be named, or about to be removed.
    let strays = match is_locked {
        true => strays(repository, ruling, &candidates)?,
        false => HashSet::new(),
    };
    // The others were dropped, or are of nobody.
    let is_meant = |file: &String| {
        ruling.unused.contains(file)
            || strays.contains(file)
            || ruling.stored().iter().any(|s| s.files().any(|of| of == file))
    };
    candidates.retain(|(file, _)| is_meant(file));
    unused.retain(|(file, _)| is_meant(file));
    // A file of a snapshot that the manifest knows by another file: a later manifest named it.
    let is_later = |(file, delta): &Candidate| {
        let id = delta.footer().snapshot_id;
        strays.contains(file) && ruling.stored().iter().any(|s| s.id == id)
    };
    if ruling.unused.is_empty() && !candidates.iter().any(is_later) {
        return adopt(repository, ruling, candidates, &strays, context);
    }
    let (mut next, rebuilt) =
        rebuild_from(repository, name, candidates, unused, Some(ruling), context)?;
    next.image_id = ruling.image_id;
    Ok(is_gain(repository, ruling, &next)?.then_some((next, rebuilt)))
}

/// From nothing but files, and what `old` knew.
fn rebuild_from(
    repository: &Repository,
    name: &str,
    candidates: Vec<Candidate>,
    mut unused: Vec<(String, Message)>,
    old: Option<&Manifest>,
    context: &Context,
) -> Result<(Manifest, Rebuilt)> {
    let mut manifest = Manifest::new(name, old.and_then(|m| m.source.clone()));
    manifest.format = old.and_then(|m| m.format()).map(str::to_owned);
    manifest.live = old.and_then(|m| m.live.clone());
    manifest.host = old.and_then(|m| m.host.clone());
    manifest.rollback = old.and_then(|m| m.rollback.clone());
    manifest.image_id =
        most_common_image(&candidates).or(old.map(|m| m.image_id)).ok_or_else(|| {
            let what = format!("{name}: no delta file can be read");
            Error::corrupt(what).hint("put the files of the repository back from a copy")
        })?;
    manifest.sequence = match (repository.store.owner(), old) {
        // Somebody may have put one far ahead.
        (Some(_), Some(old)) => old.sequence,
        _ => manifest::ruling(repository.store.as_ref(), name)?.unwrap_or(0),
    };
    manifest.follow(old);
    if let Some(newest) = newest_known(repository, name, manifest.image_id) {
        manifest.follow_seen(newest);
    }
    let numbers = candidates.iter().filter(|(_, d)| d.header().image_id == manifest.image_id);
    let highest = numbers.map(|(_, delta)| delta.footer().number).max().unwrap_or(0);
    let unnamed: HashSet<Uuid> = candidates
        .iter()
        .filter(|(file, _)| !old.is_some_and(|old| is_named(old, file)))
        .map(|(_, delta)| delta.footer().snapshot_id)
        .collect();
    let all_parts: Vec<String> =
        candidates.iter().flat_map(|(_, delta)| part_names(delta.table())).collect();
    let ordered = in_order(candidates, old, context).map_err(with_retry_hint)?;
    let elsewhere =
        |image: &Manifest, delta: &Delta| base_elsewhere(repository, old, image, delta, context);
    collect(ordered, &mut manifest, &elsewhere, &mut unused).map_err(with_retry_hint)?;
    // Numbers are never used twice, also those of files that cannot be used now.
    manifest.next_number = manifest.next_number.max(highest.saturating_add(1));
    let mut kept = old.map_or(Vec::new(), |old| old.kept.clone());
    let taken = assign_labels(&mut manifest, old);
    // What nothing depends on now may be what a file that cannot be used depends on: nothing is removed.
    let unneeded = old.map_or(Vec::new(), |old| remember(&mut manifest, old, &unnamed));
    manifest.unused = unused.iter().map(|(file, _)| file.clone()).collect();
    kept.extend(
        manifest.unused.iter().cloned().chain(unneeded.iter().flat_map(Snapshot::files).cloned()),
    );
    // Those of a layer that cannot be used wait for it.
    kept.extend(all_parts.into_iter().filter(|part| !manifest.is_condemned(part)));
    // Whose attachments they were may be told by what cannot be read now.
    kept.extend(repository.store.list(name)?.into_iter().filter(|file| {
        ImageFile::of(file) == Some(ImageFile::Attachment) && !manifest.is_condemned(file)
    }));
    let named: HashSet<&str> = manifest.objects().collect();
    kept.retain(|file| !named.contains(file.as_str()));
    kept.sort();
    kept.dedup();
    manifest.kept = kept;
    let rebuilt = Rebuilt::of(&manifest, unused, taken);
    Ok((manifest, rebuilt))
}

/// Takes in what is complete and no manifest names. What the ruling one names stays as it is.
fn adopt(
    repository: &Repository,
    ruling: &Manifest,
    candidates: Vec<Candidate>,
    strays: &HashSet<String>,
    context: &Context,
) -> Result<Option<(Manifest, Rebuilt)>> {
    if strays.is_empty() {
        return Ok(None);
    }
    let mut found = Manifest { image_id: ruling.image_id, ..Manifest::new(&ruling.name, None) };
    let ordered = in_order(candidates, Some(ruling), context).map_err(with_retry_hint)?;
    let elsewhere = |image: &Manifest, delta: &Delta| {
        base_elsewhere(repository, Some(ruling), image, delta, context)
    };
    collect(ordered, &mut found, &elsewhere, &mut Vec::new()).map_err(with_retry_hint)?;
    let mut next = ruling.clone();
    let stored = ruling.stored();
    // A base by reference was committed if the head is known to be on it: of one that was given up,
    // nobody knows where its blocks are.
    let head = Head::load(repository, ruling, context)?.0.snapshot;
    let of_head = head.and_then(|id| found.lineage(id).ok()).unwrap_or_default();
    for snapshot in found.snapshots.iter().filter(|s| strays.contains(&s.file)) {
        let is_free = stored.iter().all(|s| s.number != snapshot.number);
        let has_parent = snapshot.parent.is_none_or(|id| next.stored().iter().any(|s| s.id == id));
        let is_placed = !snapshot.is_by_reference() || of_head.iter().any(|s| s.id == snapshot.id);
        if !is_free || !has_parent || !is_placed {
            continue;
        }
        // It may be of a commit that was given up.
        match prove_stray(repository, &found, snapshot, context) {
            Ok(()) => {
                next.pending.retain(|p| p.id != snapshot.id && p.number != snapshot.number);
                next.snapshots.push(snapshot.clone());
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                context.note(message![format!("{}: not included: ", snapshot.file), e]);
            }
            Err(e) => return Err(with_retry_hint(e)),
        }
    }
    if next.snapshots.len() == ruling.snapshots.len() {
        return Ok(None);
    }
    next.snapshots.sort_by_key(|s| s.number);
    let last = next.snapshots.last().map_or(0, |s| s.number);
    next.next_number = next.next_number.max(last.saturating_add(1));
    let taken = assign_labels(&mut next, Some(ruling));
    let rebuilt = Rebuilt::of(&next, Vec::new(), taken);
    Ok(Some((next, rebuilt)))
}

fn open_all(
    repository: &Repository,
    name: &str,
    unused: &mut Vec<(String, Message)>,
) -> Result<Vec<Candidate>> {
    let (mut candidates, mut parts): (Vec<Candidate>, HashSet<String>) = Default::default();
    for file in repository.store.list(name)?.into_iter().filter(|file| ImageFile::is_delta(file)) {
        let path = format!("{name}/{file}");
        match twice(|| DeltaFile::open(repository.store.clone(), &path, &repository.caches)) {
            Ok(DeltaFile::Layer(delta)) => candidates.push((file, Arc::from(delta))),
            Ok(DeltaFile::Part(_)) => drop(parts.insert(file)),
            Err(e) if e.is_unread() => return Err(with_retry_hint(e)),
            Err(e) => unused.push((file, e.into())),
        }
    }
    for (_, delta) in &candidates {
        part_names(delta.table()).iter().for_each(|part| {
            parts.remove(part);
        });
    }
    // Which snapshot they are of is written nowhere, and is not guessed.
    let alone = "a part of a snapshot that no file refers to";
    unused.extend(parts.into_iter().map(|file| (file, alone.into())));
    unused.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(candidates)
}

/// Files that no manifest names which is there: of a commit whose manifest is lost, or that was never
/// made. What an older one names, and the ruling one does not, was dropped.
fn strays(
    repository: &Repository,
    ruling: &Manifest,
    candidates: &[Candidate],
) -> Result<HashSet<String>> {
    let older = older_manifests(repository.store.as_ref(), &ruling.name, ruling.sequence)?;
    let is_stray = |(file, delta): &&Candidate| {
        delta.header().image_id == ruling.image_id
            && !is_named(ruling, file)
            && !ruling.is_condemned(file)
            && older.iter().all(|m| !is_named(m, file))
    };
    Ok(candidates.iter().filter(is_stray).map(|(file, _)| file.clone()).collect())
}

fn prove_stray(
    repository: &Repository,
    manifest: &Manifest,
    snapshot: &Snapshot,
    context: &Context,
) -> Result<()> {
    let chain = open_chain(repository, manifest, snapshot.id)?;
    let parent = open_parent(repository, manifest, snapshot)?;
    let end = parent.as_ref().map(|parent| parent.geometry().block_count());
    if chain.tip().base_image().is_none() {
        verify_all(chain.tip(), context)?;
    }
    verify_runs(chain.tip(), end, context)?;
    merge::prove(&Fork::new(chain, parent)?, context)
}

/// True if `next` lists all that `ruling` lists and that can be restored, and more.
fn is_gain(repository: &Repository, ruling: &Manifest, next: &Manifest) -> Result<bool> {
    let broken: HashSet<Uuid> = missing(repository, ruling)?.iter().map(|(s, _)| s.id).collect();
    let is_whole = |s: &&Snapshot| {
        ruling.lineage(s.id).is_ok_and(|line| line.iter().all(|s| !broken.contains(&s.id)))
    };
    let before: HashSet<Uuid> = ruling.snapshots.iter().filter(is_whole).map(|s| s.id).collect();
    let after: HashSet<Uuid> = next.snapshots.iter().map(|s| s.id).collect();
    Ok(after.is_superset(&before) && after.len() > before.len())
}

/// Snapshots, dropped or not, whose files are not there, or are not theirs, and why.
fn missing<'a>(
    repository: &Repository,
    manifest: &'a Manifest,
) -> Result<Vec<(&'a Snapshot, Message)>> {
    let mut missing = Vec::new();
    for snapshot in manifest.stored() {
        match twice(|| open_delta(repository, manifest, snapshot)) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => missing.push((snapshot, e.into())),
            Err(e) => return Err(with_retry_hint(e)),
        }
    }
    Ok(missing)
}

/// Bases whose image is not there or not of its length, or is not known, and why.
fn missing_base_images(
    repository: &Repository,
    manifest: &Manifest,
) -> Result<Vec<(String, Message)>> {
    let mut missing = Vec::new();
    for snapshot in manifest.stored().into_iter().filter(|s| s.is_by_reference()) {
        let Ok(delta) = open_delta(repository, manifest, snapshot) else {
            continue;
        };
        let Some(base_image) = delta.base_image() else { continue };
        match twice(|| base_image.check_size(delta.footer().image_bytes)) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                missing.push((manifest.place_of(snapshot), e.into()));
            }
            Err(e) => return Err(with_retry_hint(e)),
        }
    }
    Ok(missing)
}

/// Gives snapshots with numbers after which none is left the next ones that are: what an earlier program
/// took in by `import`.
fn renumber(
    repository: &Repository,
    write: Option<crate::store::LockGuard>,
    manifest: Manifest,
    context: &Context,
) -> Result<Vec<(u64, u64)>> {
    let mut writer = writer(repository, write, manifest, context)?;
    let stored = writer.manifest.stored();
    let last =
        stored.iter().map(|s| s.number).filter(|n| *n <= MAX_IMPORTED_NUMBER).max().unwrap_or(0);
    let high: Vec<(Uuid, u64)> = stored
        .iter()
        .filter(|s| s.number > MAX_IMPORTED_NUMBER)
        .map(|s| (s.id, s.number))
        .collect();
    let mut renumbered = Vec::new();
    for ((id, old), new) in high.into_iter().zip(last + 1..).filter(|((_, old), new)| old != new) {
        let own = writer.manifest.stored().into_iter().find(|s| s.id == id).cloned();
        let onto = own.as_ref();
        rewrite_as(repository, &mut writer, id, Some(new), onto, &HashSet::new(), context)
            .map_err(|e| {
                e.at(format!("{}@{old} cannot be given a lower number", writer.manifest.name))
            })?;
        renumbered.push((old, new));
    }
    let next_number = writer.manifest.stored().last().map_or(0, |s| s.number) + 1;
    let mut next = Manifest { next_number, ..writer.manifest.clone() };
    manifest::commit(repository.store.as_ref(), &mut next)?;
    writer.manifest = next;
    writer.release_reader_lock();
    collect_garbage(repository, &mut writer.manifest, context)?;
    Ok(renumbered)
}

/// Tries once more on error: a file reported as damaged is left out for good.
fn twice<T>(look: impl Fn() -> Result<T>) -> Result<T> {
    look().or_else(|_| look())
}

/// An I/O error is not damage: rebuilding the manifest without the file would lose it for good.
fn with_retry_hint(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Io => error.or_hint(message![
            Action::Retry,
            "; if that file is lost for good, move it out of the folder first"
        ]),
        _ => error,
    }
}

/// The manifests before `sequence` that can be read, the newest first: they may know labels, the place of
/// the live image, and what was dropped.
fn older_manifests(store: &dyn Store, name: &str, sequence: u64) -> Result<Vec<Manifest>> {
    // Of what does not count nothing is believed.
    if let Some(owner) = store.owner() {
        return match twice(|| manifest::load_undamaged(store, owner, name)) {
            Ok(older) if older.sequence < sequence => Ok(vec![older]),
            Err(e) if e.is_unread() => Err(with_retry_hint(e)),
            Ok(_) | Err(_) => Ok(Vec::new()),
        };
    }
    let files = store.list(name)?;
    let mut sequences: Vec<u64> = files.iter().filter_map(|f| manifest::sequence_of(f)).collect();
    sequences.retain(|older| *older < sequence);
    sequences.sort_unstable_by(|a, b| b.cmp(a));
    let mut older = Vec::new();
    for sequence in sequences {
        let file = format!("{name}/{}", manifest::file_name(sequence));
        let read = || Manifest::decode(&store.read_whole(&file, manifest::MAX_MANIFEST_BYTES)?);
        match twice(read) {
            Ok(manifest) if manifest.name == name => older.push(manifest),
            Err(e) if e.is_unread() => return Err(with_retry_hint(e)),
            _ => {}
        }
    }
    Ok(older)
}

/// True for a file that a manifest names, whatever for.
fn is_named(manifest: &Manifest, file: &String) -> bool {
    manifest.objects().any(|object| object == file)
}
