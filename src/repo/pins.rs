//! Pins: what an image needs of another one (C9). A pin is committed before what depends on it, and goes
//! after that is gone:
//!
//! ```text
//! template   pin P of @3 ----------------------------------------------> without P
//! clone7                   @1, a base of template@3 by P -> without it: condemns P
//! ```
//!
//! A pin that nobody names, because its writer died or is slow, is condemned by the image that it was made
//! for before it goes: who is about to name it loses that race (C5, C6). While that image is not there, or
//! has files that a repair could not use, nobody knows, and the pin stays.

use crate::base::error::{ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::message;
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::manifest::{self, BaseOf, Manifest, Pin, Snapshot, pin_object};
use crate::repo::pin_fate::{Fate, fate_now, is_dead};
use crate::repo::reference::{self, Reference};
use crate::repo::session::{Writer, read, write, write_to_free};
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often it is tried to open an image that somebody else changes: for a minute and more, of a tenth of a
/// second each.
const BUSY_TRIES: usize = 600;

/// When it is said what is waited for.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// What a chain would begin from, if a pin were there.
///
/// # Errors
/// `NotFound` if there is no such snapshot.
pub(crate) fn unpinned(
    repository: &Repository,
    at: &Reference,
    context: &Context,
) -> Result<BaseOf> {
    let reader = read(repository, &at.name, context)?;
    Ok(base_of(reader.manifest(), reader.find(&at.at)?, Uuid::nil()))
}

fn base_of(manifest: &Manifest, snapshot: &Snapshot, pin: Uuid) -> BaseOf {
    BaseOf {
        image: manifest.image_id,
        name: manifest.name.clone(),
        snapshot: snapshot.id,
        number: snapshot.number,
        pin,
    }
}

/// Pins a snapshot for an image that is to depend on it.
///
/// # Errors
/// `NotFound` if there is no such snapshot; `Busy` if somebody else changes its image.
pub(crate) fn pin(
    repository: &Repository,
    at: &Reference,
    dependent: &Manifest,
    context: &Context,
) -> Result<BaseOf> {
    let mut writer = write_patiently(repository, &at.name, context)?;
    let id = reference::find(&writer.manifest, &writer.head, &at.at)?.id;
    add_pin(repository, &mut writer, id, dependent, context)
}

fn add_pin(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: Uuid,
    dependent: &Manifest,
    context: &Context,
) -> Result<BaseOf> {
    let pin = Uuid::new_v4();
    let of = commit_change(repository, writer, &[], |next| {
        let gone = manifest::changed_meanwhile(&next.name);
        // It is named by the manifest that is about to be committed.
        let since = next.sequence.saturating_add(1);
        let pinned = next.snapshots.iter_mut().find(|s| s.id == snapshot).ok_or(gone)?;
        let name = dependent.name.clone();
        pinned.pins.push(Pin { id: pin, image: dependent.image_id, name, since });
        let pinned = pinned.clone();
        Ok(base_of(next, &pinned, pin))
    })?;
    note_newest(repository, writer, context);
    Ok(of)
}

/// So that this host notices if the image is turned back to before that: the pins are gone then.
fn note_newest(repository: &Repository, writer: &Writer, context: &Context) {
    if writer.head_was_damaged || writer.head.is_to_be_moved() {
        return;
    }
    if let Err(e) = writer.head.save(repository, &writer.manifest) {
        context.note(e);
    }
}

/// Lists a snapshot again that was dropped: nothing pins what is dropped (J18).
fn list_again(manifest: &mut Manifest, id: Uuid) -> Option<&mut Snapshot> {
    if let Some(at) = manifest.dropped.iter().position(|s| s.id == id) {
        let snapshot = manifest.dropped.remove(at);
        manifest.snapshots.push(snapshot);
        manifest.snapshots.sort_by_key(|s| s.number);
    }
    manifest.snapshots.iter_mut().find(|s| s.id == id)
}

/// Pins what a manifest that was rebuilt names, where no pin is: also when that of the other image was lost.
///
/// # Errors
/// `Busy` if somebody else changes the other image; `Corrupt` if it cannot be read.
pub(crate) fn pin_again(
    repository: &Repository,
    dependent: &mut Manifest,
    context: &Context,
) -> Result<()> {
    let own = dependent.image_id;
    for name in names_below(dependent) {
        let mut writer: Option<Writer> = None;
        let other = manifest::load(repository.store.as_ref(), &name)?;
        let known = dependent.clone();
        for snapshot in dependent.snapshots.iter_mut().chain(&mut dependent.dropped) {
            let Some(of) = snapshot.base_of.as_mut().filter(|of| of.name == name) else { continue };
            let pinned = other.by_id(of.snapshot).map_or(&[][..], |s| s.pins.as_slice());
            // What this image has condemned somebody may be about to take away.
            let is_good = |pin: &Pin| !known.is_condemned(&pin_object(pin.id));
            if pinned.iter().any(|pin| pin.id == of.pin && is_good(pin)) {
                continue;
            }
            let is_own = |pin: &&Pin| pin.image == own && is_good(pin);
            if let Some(pin) = pinned.iter().find(is_own).filter(|_| of.pin.is_nil()) {
                of.pin = pin.id;
                continue;
            }
            if writer.is_none() {
                writer = Some(write_patiently(repository, &name, context)?);
            }
            if let Some(writer) = &mut writer {
                if writer.manifest.is_dropped(of.snapshot) {
                    commit_change(repository, writer, &[], |next| {
                        let _listed = list_again(next, of.snapshot);
                        Ok(())
                    })?;
                }
                *of = add_pin(repository, writer, of.snapshot, &known, context)?;
            }
        }
    }
    Ok(())
}

/// What other images name of one that is not pinned there: a manifest that had the pins was lost.
///
/// # Errors
/// If it cannot be known now what other images name.
fn unpinned_here(
    repository: &Repository,
    image: &Manifest,
    context: &Context,
) -> Result<Vec<(Uuid, Pin)>> {
    let mut unpinned = Vec::new();
    for name in repository.names()?.into_iter().filter(|name| *name != image.name) {
        let other = match manifest::load(repository.store.as_ref(), &name) {
            Ok(other) => other,
            Err(e) if e.is_unread() => return Err(e),
            Err(e) => {
                context.note(message![e, "; what it depends on is not known"]);
                continue;
            }
        };
        let since = image.sequence.saturating_add(1);
        for of in other.bases_elsewhere().filter(|of| of.image == image.image_id) {
            let stored = image.stored().into_iter().find(|s| s.id == of.snapshot);
            if stored.is_some_and(|s| s.pins.iter().all(|pin| pin.id != of.pin)) {
                let pin = Pin { id: of.pin, image: other.image_id, name: name.clone(), since };
                unpinned.push((of.snapshot, pin));
            }
        }
    }
    Ok(unpinned)
}

/// True if that changes anything.
fn add_all(manifest: &mut Manifest, unpinned: &[(Uuid, Pin)]) -> bool {
    let mut is_changed = false;
    for (id, pin) in unpinned {
        if let Some(snapshot) = list_again(manifest, *id)
            && snapshot.pins.iter().all(|known| known.id != pin.id)
        {
            snapshot.pins.push(pin.clone());
            is_changed = true;
        }
    }
    is_changed
}

/// Pins again what other images name, where a manifest that was lost had the pins; and lets go of what is
/// pinned for images that are not there, which nothing else does. True if there were any.
///
/// # Errors
/// If it cannot be known now what other images name.
pub(crate) fn restore(
    repository: &Repository,
    image: &mut Manifest,
    context: &Context,
) -> Result<bool> {
    let unpinned = unpinned_here(repository, image, context)?;
    let is_changed = add_all(image, &unpinned);
    let mut absent = HashSet::new();
    for snapshot in &image.snapshots {
        let place = image.place_of(snapshot);
        for pin in &snapshot.pins {
            let name = &pin.name;
            if fate_now(repository, pin)?.0 == Fate::Absent {
                absent.insert(pin.id);
                let what =
                    format!("{place} is no longer kept for \"{name}\", which does not exist");
                context.warn(WarningId::PinReleased, what);
            }
        }
    }
    retain(image, |pin| !absent.contains(&pin.id));
    Ok(is_changed || !absent.is_empty())
}

fn retain(manifest: &mut Manifest, is_kept: impl Fn(&Pin) -> bool) {
    for snapshot in &mut manifest.snapshots {
        snapshot.pins.retain(&is_kept);
    }
}

/// Opens an image from which something is to be dropped: what others name is pinned then, also if its
/// manifest is an old copy; and what nobody needs any more is not.
pub(crate) fn write_to_drop(
    repository: &Repository,
    name: &str,
    context: &Context,
) -> Result<Writer> {
    let mut writer = write_to_free(repository, name, context)?;
    let unpinned = match unpinned_here(repository, &writer.manifest, context) {
        Err(e) if e.kind() != ErrorKind::Interrupted => {
            context.note(message![e, "; what it depends on is not known"]);
            Vec::new()
        }
        unpinned => unpinned?,
    };
    if !unpinned.is_empty() {
        commit_change(repository, &mut writer, &[], |next| {
            add_all(next, &unpinned);
            Ok(())
        })?;
        note_newest(repository, &writer, context);
    }
    unpin_or_note(repository, &mut writer, context);
    Ok(writer)
}

fn unpin_or_note(repository: &Repository, writer: &mut Writer, context: &Context) {
    if let Err(e) = unpin(repository, writer, context) {
        context.note(message![e, "; the next writer tries again"]);
    }
}

/// What is pinned for an image, held by whoever has its write lock; nothing where there are no locks: what
/// was forgotten tells of itself there.
pub(crate) struct PinnedFor {
    image: Uuid,
    writers: Vec<Writer>,
}

impl PinnedFor {
    /// Opens the images that have pins for it.
    ///
    /// # Errors
    /// `Busy` if somebody else changes one of them.
    pub fn of(repository: &Repository, manifest: &Manifest, context: &Context) -> Result<Self> {
        let mut pinned = Self { image: manifest.image_id, writers: Vec::new() };
        if !repository.sharing()?.is_locked() {
            return Ok(pinned);
        }
        for name in repository.names()?.into_iter().filter(|name| *name != manifest.name) {
            let other = match manifest::load(repository.store.as_ref(), &name) {
                Ok(other) => other,
                Err(e) => {
                    context.note(message![e, "; what is pinned there stays pinned"]);
                    continue;
                }
            };
            if other.snapshots.iter().flat_map(|s| &s.pins).any(|pin| pin.image == pinned.image) {
                let open = || write_to_free(repository, &name, context);
                pinned.writers.push(patiently(repository, &name, context, open)?);
            }
        }
        Ok(pinned)
    }

    /// Takes the pins away that the image does not name any more.
    pub fn release(self, repository: &Repository, now: &Manifest, context: &Context) -> Result<()> {
        let is_named = |pin: &Pin| now.bases_elsewhere().any(|of| of.pin == pin.id);
        let is_kept = |pin: &Pin| pin.image != self.image || is_named(pin);
        for mut writer in self.writers {
            if writer.manifest.snapshots.iter().flat_map(|s| &s.pins).all(is_kept) {
                continue;
            }
            commit_change(repository, &mut writer, &[], |next| {
                retain(next, is_kept);
                Ok(())
            })?;
            note_newest(repository, &writer, context);
        }
        Ok(())
    }
}

/// Where the chains of an image begin that a verb may end.
pub(crate) struct Below(Vec<BaseOf>);

impl Below {
    /// As it is before.
    pub fn of(manifest: &Manifest) -> Self {
        Self(manifest.bases_elsewhere().cloned().collect())
    }

    /// Lets go of what the manifest does not need any more that rules now; none if the image is gone. The
    /// caller has let go of the image.
    pub fn release(self, repository: &Repository, now: Option<&Manifest>, context: &Context) {
        let is_named = |of: &BaseOf| {
            now.is_some_and(|now| now.bases_elsewhere().any(|named| named.pin == of.pin))
        };
        let gone = self.0.iter().filter(|of| !is_named(of)).map(|of| &of.name);
        for name in gone.collect::<BTreeSet<_>>() {
            release(repository, name, context);
        }
    }
}

/// After something that depended on an image is gone: what nobody needs is not pinned there any more. What
/// fails is done by the next who drops something there.
pub(crate) fn release(repository: &Repository, name: &str, context: &Context) {
    match write_to_free(repository, name, context) {
        Ok(mut writer) => unpin_or_note(repository, &mut writer, context),
        Err(e) => {
            context.note(message![format!("{name}: what was pinned stays pinned for now: "), e])
        }
    }
}

/// The names of the images that the chains of one begin from.
fn names_below(manifest: &Manifest) -> BTreeSet<String> {
    manifest.bases_elsewhere().map(|of| of.name.clone()).collect()
}

/// Takes pins away that nobody depends on, nor will.
fn unpin(repository: &Repository, writer: &mut Writer, context: &Context) -> Result<()> {
    let pins: Vec<Pin> =
        writer.manifest.snapshots.iter().flat_map(|s| s.pins.iter().cloned()).collect();
    let mut ages = None;
    let mut dead: HashSet<Uuid> = HashSet::new();
    for pin in pins {
        match is_dead(repository, &writer.manifest, &pin, &mut ages) {
            Ok(true) => drop(dead.insert(pin.id)),
            Ok(false) => {}
            // That says nothing of what was pinned for others.
            Err(e) => {
                context.note(message![e, format!("; what \"{}\" needs is not known", pin.name)])
            }
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    commit_change(repository, writer, &[], |next| {
        retain(next, |pin| !dead.contains(&pin.id));
        Ok(())
    })?;
    note_newest(repository, writer, context);
    Ok(())
}

fn write_patiently(repository: &Repository, name: &str, context: &Context) -> Result<Writer> {
    patiently(repository, name, context, || write(repository, name, context))
}

/// Several that are to depend on an image may be taken at once, and it may be worked on.
fn patiently(
    repository: &Repository,
    name: &str,
    context: &Context,
    open: impl Fn() -> Result<Writer>,
) -> Result<Writer> {
    let (began, mut is_told) = (Instant::now(), false);
    for _ in 0..BUSY_TRIES {
        match open() {
            Err(e) if e.kind() == ErrorKind::Busy => {}
            other => return other,
        }
        context.check()?;
        if !is_told && began.elapsed() > TELL_AFTER {
            context.note(format!("waiting for another imgsnap that is working on \"{name}\""));
            is_told = true;
        }
        // Not all of them at the same time.
        let [random, ..] = Uuid::new_v4().into_bytes();
        repository.store.pause(u32::from(random % 3));
    }
    open()
}
