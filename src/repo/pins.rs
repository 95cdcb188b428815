//! Pins: what an image needs of another one (C9). A pin is committed before what depends on it, and goes
//! after that is gone:
//!
//! ```text
//! template   pin P of @3 ----------------------------------------------> without P
//! clone7                   @1, a base of template@3 by P -> without it: condemns P
//! ```
//!
//! A pin that nobody names, because its writer died or is slow, is condemned by the image that it was made
//! for before it goes: who is about to name it loses that race (C5, C6).

use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::message;
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::manifest::{self, BaseOf, Manifest, Pin, Snapshot, pin_object};
use crate::repo::marker::Marker;
use crate::repo::reference::{self, Reference};
use crate::repo::session::{Writer, read, write, write_lock, write_to_free};
use crate::store::{LockKind, Sharing};
use jiff::Timestamp;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;
use uuid::Uuid;

/// How often it is tried to open an image that somebody else changes: several that are to depend on it may be
/// taken at once.
const BUSY_TRIES: u32 = 6;

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
    add_pin(repository, &mut writer, id, Uuid::new_v4(), dependent)
}

fn add_pin(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: Uuid,
    pin: Uuid,
    dependent: &Manifest,
) -> Result<BaseOf> {
    commit_change(repository, writer, None, |next| {
        let gone = manifest::changed_meanwhile(&next.name);
        // It is named by the manifest that is about to be committed.
        let since = next.sequence.saturating_add(1);
        let pinned = next.snapshots.iter_mut().find(|s| s.id == snapshot).ok_or(gone)?;
        let name = dependent.name.clone();
        pinned.pins.push(Pin { id: pin, image: dependent.image_id, name, since });
        let pinned = pinned.clone();
        Ok(base_of(next, &pinned, pin))
    })
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
            if pinned.iter().any(|pin| pin.id == of.pin) {
                continue;
            }
            if let Some(pin) = pinned.iter().find(|pin| pin.image == own && of.pin.is_nil()) {
                of.pin = pin.id;
                continue;
            }
            if writer.is_none() {
                writer = Some(write_patiently(repository, &name, context)?);
            }
            if let Some(writer) = &mut writer {
                *of = add_pin(repository, writer, of.snapshot, Uuid::new_v4(), &known)?;
            }
        }
    }
    Ok(())
}

/// Pins again what other images name, where a manifest that was lost had the pins. True if there were any.
///
/// # Errors
/// If it cannot be known now what other images name.
pub(crate) fn restore(
    repository: &Repository,
    image: &mut Manifest,
    context: &Context,
) -> Result<bool> {
    let mut is_changed = false;
    for name in repository.names()?.into_iter().filter(|name| *name != image.name) {
        let other = match manifest::load(repository.store.as_ref(), &name) {
            Ok(other) => other,
            Err(e) if e.is_unread() => return Err(e),
            Err(e) => {
                context.note(message![e, "; what it depends on is not known"]);
                continue;
            }
        };
        for of in other.bases_elsewhere().filter(|of| of.image == image.image_id) {
            let since = image.sequence.saturating_add(1);
            let Some(snapshot) = image.snapshots.iter_mut().find(|s| s.id == of.snapshot) else {
                continue;
            };
            if snapshot.pins.iter().all(|pin| pin.id != of.pin) {
                let name = other.name.clone();
                snapshot.pins.push(Pin { id: of.pin, image: other.image_id, name, since });
                is_changed = true;
            }
        }
    }
    Ok(is_changed)
}

/// Opens an image from which something is to be dropped: what nobody needs any more is not pinned then.
pub(crate) fn write_to_drop(
    repository: &Repository,
    name: &str,
    context: &Context,
) -> Result<Writer> {
    let mut writer = write_to_free(repository, name, context)?;
    if let Err(e) = unpin(repository, &mut writer) {
        context.note(message![e, "; the next writer tries again"]);
    }
    Ok(writer)
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
    if let Err(e) = write_to_drop(repository, name, context) {
        context.note(message![format!("{name}: what was pinned stays so for now: "), e]);
    }
}

/// The names of the images that the chains of one begin from.
fn names_below(manifest: &Manifest) -> BTreeSet<String> {
    manifest.bases_elsewhere().map(|of| of.name.clone()).collect()
}

/// Takes pins away that nobody depends on, nor will.
fn unpin(repository: &Repository, writer: &mut Writer) -> Result<()> {
    let pins: Vec<Pin> =
        writer.manifest.snapshots.iter().flat_map(|s| s.pins.iter().cloned()).collect();
    let mut ages = None;
    let mut dead: HashSet<Uuid> = HashSet::new();
    for pin in pins {
        if is_dead(repository, &writer.manifest, &pin, &mut ages)? {
            dead.insert(pin.id);
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    commit_change(repository, writer, None, |next| {
        for snapshot in &mut next.snapshots {
            snapshot.pins.retain(|pin| !dead.contains(&pin.id));
        }
        Ok(())
    })
}

/// True if the image that a pin was made for does not name it, and never will. What cannot be read may name
/// it.
fn is_dead(
    repository: &Repository,
    own: &Manifest,
    pin: &Pin,
    ages: &mut Option<Ages>,
) -> Result<bool> {
    let store = repository.store.as_ref();
    let sees = |manifest: &Manifest| fate(manifest, pin);
    let fate_now = || match manifest::load_last(store, &pin.name) {
        Ok(manifest) => Ok((sees(&manifest), Some(manifest))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok((Fate::Dead, None)),
        Err(e) if e.is_damage() => Ok((Fate::Needed, None)),
        Err(e) => Err(e),
    };
    if fate_now()?.0 == Fate::Needed {
        return Ok(false);
    }
    // What rules may not be durable yet: its writer may have died before the sync.
    match store.sync_dir(&pin.name) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match fate_now()?.0 {
        Fate::Dead => return Ok(true),
        Fate::Needed => return Ok(false),
        Fate::Unnamed => {}
    }
    let Sharing::Shared { grace, .. } = repository.sharing()? else {
        // While nobody else holds it, nobody is between the pin and what is to name it.
        let lock = store.lock(&write_lock(&pin.name), LockKind::Shared)?;
        return Ok(lock.is_some() && !matches!(fate_now()?.0, Fate::Needed));
    };
    if ages.is_none() {
        *ages = Some(Ages::of(repository, own)?);
    }
    if !ages.as_ref().is_some_and(|ages| ages.is_past(pin.since, grace)) {
        return Ok(false);
    }
    for _ in 0..CONDEMN_TRIES {
        let (fate, manifest) = fate_now()?;
        let Some(mut next) = manifest.filter(|_| fate == Fate::Unnamed) else {
            return Ok(fate == Fate::Dead);
        };
        next.disown(&pin_object(pin.id));
        match manifest::commit(store, &mut next) {
            Err(e) if e.kind() == ErrorKind::Busy => {}
            other => return other.map(|()| true),
        }
    }
    Ok(false)
}

/// How often it is tried to condemn a pin while others commit.
const CONDEMN_TRIES: usize = 8;

/// What an image says of a pin that was made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// A snapshot depends on it.
    Needed,
    /// None does, and none will.
    Dead,
    /// None does.
    Unnamed,
}

fn fate(manifest: &Manifest, pin: &Pin) -> Fate {
    if manifest.image_id != pin.image || manifest.forgotten {
        return Fate::Dead;
    }
    if manifest.bases_elsewhere().any(|of| of.pin == pin.id) {
        return Fate::Needed;
    }
    match manifest.is_condemned(&pin_object(pin.id)) {
        true => Fate::Dead,
        false => Fate::Unnamed,
    }
}

/// How old the manifests of an image are, by the clock of the store.
struct Ages {
    now: Option<Timestamp>,
    manifests: Vec<(u64, Timestamp)>,
}

impl Ages {
    fn of(repository: &Repository, manifest: &Manifest) -> Result<Self> {
        let clock = Marker::put(&repository.store, &manifest.name, manifest.sequence)?;
        let listed = repository.store.list_timed(&manifest.name)?;
        let sequence = |name: &str| manifest::sequence_of(name);
        let mut manifests: Vec<_> =
            listed.iter().filter_map(|of| Some((sequence(&of.name)?, of.time))).collect();
        manifests.sort_unstable();
        Ok(Self { now: clock.time(&listed), manifests })
    }

    /// True if a manifest was put longer ago than that; of one that is gone, the one that follows tells.
    fn is_past(&self, sequence: u64, span: Duration) -> bool {
        let put = self.manifests.iter().find(|(number, _)| *number >= sequence);
        let end = put.and_then(|(_, time)| time.saturating_add(span).ok());
        self.now.zip(end).is_some_and(|(now, end)| end < now)
    }
}

fn write_patiently(repository: &Repository, name: &str, context: &Context) -> Result<Writer> {
    for attempt in 0..BUSY_TRIES {
        match write(repository, name, context) {
            Err(e) if e.kind() == ErrorKind::Busy => repository.store.pause(attempt),
            other => return other,
        }
        context.check()?;
    }
    write(repository, name, context)
}
