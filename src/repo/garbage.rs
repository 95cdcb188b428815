//! Removing what no manifest names (FORMAT.md P4; C4 to C7).

use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::repo::Repository;
use crate::repo::manifest::{self, Condemned, ImageFile, Manifest, temporary_of};
use crate::repo::marker::Marker;
use crate::repo::names::is_guarded;
use crate::store::{Listed, LockKind, Sharing};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

pub(crate) fn reader_lock(name: &str) -> String {
    format!("{name}/reap.lock")
}

pub(crate) fn write_lock(name: &str) -> String {
    format!("{name}/write.lock")
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reaped {
    /// False if some has to wait.
    pub(crate) is_all: bool,
    /// Bytes of the files that were removed, but for manifests, of which there is always one.
    pub(crate) freed_bytes: u64,
}

/// Removes what the ruling manifest does not name, and nobody reads. The caller holds the write lock.
pub(crate) fn collect_garbage(
    repository: &Repository,
    manifest: &mut Manifest,
    context: &Context,
) -> Result<Reaped> {
    match repository.sharing()? {
        Sharing::Locked => collect_locked(repository, manifest, context),
        Sharing::Shared { grace, marker_life } => {
            collect_shared(repository, manifest, grace, marker_life, context)
        }
    }
}

fn collect_locked(
    repository: &Repository,
    manifest: &mut Manifest,
    context: &Context,
) -> Result<Reaped> {
    let store = repository.store.as_ref();
    let name = &manifest.name.clone();
    let mut reaped = Reaped::default();
    let Some(_alone) = store.lock(&reader_lock(name), LockKind::Exclusive)? else {
        return Ok(reaped);
    };
    // The manifest that rules may not be durable yet: its writer may have died before the sync.
    store.sync_dir(name)?;
    let files = store.list(name)?;
    // A commit that was reported as failed may stand all the same: what it names is not ours to remove.
    if !manifest.is_last_of(files.iter().filter_map(|file| manifest::sequence_of(file))) {
        return Ok(reaped);
    }
    let present: HashSet<&str> = files.iter().map(String::as_str).collect();
    // What is not there now, after a sync, does not come back.
    manifest.sweep(&present);
    // What is expired since it was read is named in the store all the same.
    let read = manifest.read.as_ref().into_iter().flat_map(|read| &read.objects);
    let named: HashSet<&str> = manifest.objects().chain(read.map(String::as_str)).collect();
    let is_whole = is_whole(manifest, &present);
    let is_unneeded = |file: &String| match ImageFile::of(file) {
        // Workers hold no lock that we could ask; what they were making is removed when the plan is over.
        Some(ImageFile::Temporary) => !temporary_of(file).is_some_and(|of| manifest.is_planned(of)),
        Some(of) if of.is_object() => {
            is_whole && !named.contains(file.as_str()) && !manifest.is_planned(file)
        }
        Some(ImageFile::Manifest(sequence)) => sequence < manifest.oldest_needed(),
        Some(_) | None => false,
    };
    // Manifests go last: they tell a repair that what they name was dropped, and not forgotten to be
    // named.
    let is_manifest = |file: &&String| manifest::sequence_of(file).is_some();
    let (old, others): (Vec<&String>, Vec<&String>) =
        files.iter().filter(|file| is_unneeded(file)).partition(is_manifest);
    let lock = reader_lock(name);
    let (mut free, mut held) = (Vec::new(), Vec::new());
    for file in others {
        match is_object(file) && store.is_held(&lock, Some(file))? {
            true => held.push(file),
            false => free.push(file),
        }
    }
    reaped.is_all = held.is_empty();
    // With the next commit: what this one names stays.
    manifest.expire_pending(Timestamp::now());
    // What is held and was dropped under an earlier version only an older manifest knows to be dropped.
    let are_told = held.iter().all(|file| manifest.is_condemned(file));
    let old = if are_told { old } else { Vec::new() };
    let remove = |file: &String| remove(repository, name, file, context);
    for file in &free {
        // What cannot be asked for it is removed all the same.
        let bytes = store.size(&format!("{name}/{file}")).unwrap_or_default();
        match remove(file)? {
            true => reaped.freed_bytes += bytes,
            false => reaped.is_all = false,
        }
    }
    if free.iter().any(|file| is_object(file)) && !old.is_empty() {
        store.sync_dir(name)?;
    }
    for file in &old {
        reaped.is_all &= remove(file)?;
    }
    Ok(reaped)
}

/// The same without locks: only what a manifest has condemned, which is older than the grace period by the
/// store's clock, and not later than what somebody marked.
fn collect_shared(
    repository: &Repository,
    manifest: &mut Manifest,
    grace: Duration,
    marker_life: Duration,
    context: &Context,
) -> Result<Reaped> {
    // It tells what the store takes the time for.
    let clock = Marker::put(&repository.store, &manifest.name, manifest.sequence)?;
    let listed = repository.store.list_timed(&manifest.name)?;
    let life = (grace, marker_life);
    collect_shared_listed(repository, manifest, life, &clock, &listed, context)
}

/// The same where there are no locks, for who has listed the folder since a marker was put.
pub(crate) fn collect_listed(
    repository: &Repository,
    manifest: &mut Manifest,
    clock: &Marker,
    listed: &[Listed],
    context: &Context,
) -> Result<Reaped> {
    let Sharing::Shared { grace, marker_life } = repository.sharing()? else {
        return Ok(Reaped::default());
    };
    let life = (grace, marker_life);
    collect_shared_listed(repository, manifest, life, clock, listed, context)
}

fn collect_shared_listed(
    repository: &Repository,
    manifest: &mut Manifest,
    (grace, marker_life): (Duration, Duration),
    clock: &Marker,
    listed: &[Listed],
    context: &Context,
) -> Result<Reaped> {
    let name = &manifest.name.clone();
    let mut reaped = Reaped::default();
    let manifests: BTreeMap<u64, Timestamp> = listed
        .iter()
        .filter_map(|object| Some((manifest::sequence_of(&object.name)?, object.time)))
        .collect();
    if !manifest.is_last_of(manifests.keys().copied()) {
        return Ok(reaped);
    }
    let Some(now) = clock.time(listed) else { return Ok(reaped) };
    let is_past =
        |time: Timestamp, span: Duration| time.saturating_add(span).is_ok_and(|end| end < now);
    let is_old = |time: Timestamp| is_past(time, grace);
    let (expired, markers): (Vec<(u64, &Listed)>, Vec<_>) = listed
        .iter()
        .filter_map(|object| match ImageFile::of(&object.name) {
            Some(ImageFile::Marker(sequence)) => Some((sequence, object)),
            _ => None,
        })
        .partition(|(_, object)| is_past(object.time, marker_life));
    let marked = markers.iter().map(|(sequence, _)| *sequence).min().unwrap_or(u64::MAX);
    let sizes: HashMap<&str, u64> =
        listed.iter().map(|object| (object.name.as_str(), object.bytes)).collect();
    // Of a manifest that is gone, the one that follows tells.
    let is_since = |sequence: u64| manifests.range(sequence..).next().map(|(_, time)| *time);
    let is_free = |condemned: &Condemned| {
        condemned.sequence <= marked && is_since(condemned.sequence).is_some_and(is_old)
    };
    // There is no object of a pin; it is remembered as long as one would be.
    let is_pin = |condemned: &&Condemned| manifest::is_pin_object(&condemned.object);
    let pins = manifest.condemned.iter().filter(|c| is_pin(c) && !is_free(c));
    let pins: Vec<String> = pins.map(|condemned| condemned.object.clone()).collect();
    let mut present: HashSet<&str> = sizes.keys().copied().collect();
    present.extend(pins.iter().map(String::as_str));
    manifest.sweep(&present);
    let is_whole = is_whole(manifest, &present);
    let lock = reader_lock(name);
    reaped.is_all = true;
    for condemned in manifest.condemned.iter().filter(|condemned| !is_pin(condemned)) {
        let is_free = is_free(condemned);
        // Somebody on this host, who sees locks, may read it.
        let is_free = is_free && !repository.store.is_held(&lock, Some(&condemned.object))?;
        if !(is_whole && is_free) {
            reaped.is_all = false;
            continue;
        }
        let bytes = sizes.get(condemned.object.as_str()).copied().unwrap_or_default();
        match remove(repository, name, &condemned.object, context)? {
            true => reaped.freed_bytes += bytes,
            false => reaped.is_all = false,
        }
    }
    let named: HashSet<&str> = manifest.objects().collect();
    let mut disowned = Vec::new();
    for object in listed.iter().filter(|object| is_old(object.time)) {
        match ImageFile::of(&object.name) {
            Some(ImageFile::Temporary) => {
                let is_gone = remove(repository, name, &object.name, context)?;
                reaped.freed_bytes += if is_gone { object.bytes } else { 0 };
            }
            Some(ImageFile::Manifest(sequence)) if sequence < manifest.oldest_needed() => {
                remove(repository, name, &object.name, context)?;
            }
            // Its writer has died, or sleeps: it is condemned first, and then the writer finds it so.
            Some(of)
                if of.is_object()
                    && is_whole
                    && !named.contains(object.name.as_str())
                    && !manifest.is_planned(&object.name)
                    && !manifest.is_condemned(&object.name) =>
            {
                disowned.push(&object.name);
            }
            _ => {}
        }
    }
    for (_, object) in &expired {
        remove(repository, name, &object.name, context)?;
    }
    manifest.expire_pending(now);
    reaped.is_all &= disowned.is_empty();
    disowned.into_iter().for_each(|object| manifest.disown(object));
    Ok(reaped)
}

/// Removes what is left of images that were removed, where it has to wait for that (C10).
pub(crate) fn collect_removed(repository: &Repository, context: &Context) -> Result<()> {
    let store = repository.store.as_ref();
    let Sharing::Shared { grace, marker_life } = repository.sharing()? else {
        return match is_guarded(store) {
            true => collect_removed_locked(repository, context),
            false => Ok(()),
        };
    };
    for name in store.list("")?.into_iter().filter(|name| manifest::check_name(name).is_ok()) {
        match manifest::load_last(store, &name) {
            Ok(mut last) if last.forgotten => {
                repository.seen().check(&last, None)?;
                collect_shared(repository, &mut last, grace, marker_life, context)?;
                // Where the store keeps nobody apart, another program of this host goes first.
                let alone = repository.lock_single_writer(&name)?;
                let may_commit = repository.may_drop() && !matches!(alone, Some(None));
                if last.has_disowned() && may_commit {
                    manifest::commit(store, &mut last)?;
                }
            }
            // Whatever is wrong with another image is told by who asks for it.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// The same where there are locks, and the last manifest stays all the same: whoever removed it may have been
/// killed before its files were gone.
fn collect_removed_locked(repository: &Repository, context: &Context) -> Result<()> {
    let store = repository.store.as_ref();
    for name in store.list("")?.into_iter().filter(|name| manifest::check_name(name).is_ok()) {
        if !store.list(&name)?.iter().any(|file| is_object(file)) {
            continue;
        }
        match manifest::load_last(store, &name) {
            Ok(last) if last.forgotten => {}
            // Whatever is wrong with another image is told by who asks for it.
            Ok(_) | Err(_) => continue,
        }
        let Some(_write) = store.lock(&write_lock(&name), LockKind::Exclusive)? else { continue };
        match manifest::load_last(store, &name) {
            Ok(mut last) if last.forgotten => {
                repository.seen().check(&last, None)?;
                collect_locked(repository, &mut last, context)?;
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn is_object(file: &str) -> bool {
    ImageFile::of(file).is_some_and(|file| file.is_object())
}

/// If a file that is named is missing, another one may be it, under another name: nothing is removed.
fn is_whole(manifest: &Manifest, present: &HashSet<&str>) -> bool {
    manifest.stored().iter().all(|s| s.files().all(|file| present.contains(file.as_str())))
}

/// False if it is for others to remove it: this host may only add.
fn remove(repository: &Repository, name: &str, file: &str, context: &Context) -> Result<bool> {
    context.note(format!("removing {name}/{file}, which is not needed any more"));
    match repository.store.remove(&format!("{name}/{file}")) {
        Err(e) if e.kind() == ErrorKind::Auth => {
            context.note(e);
            Ok(false)
        }
        other => other.map(|()| true),
    }
}
