//! What becomes of a pin: the image that it was made for tells, and nothing else (C9).

use crate::base::error::{ErrorKind, Result};
use crate::repo::Repository;
use crate::repo::garbage::write_lock;
use crate::repo::manifest::{self, Manifest, Pin, pin_object};
use crate::repo::marker::Marker;
use crate::store::{LockKind, Sharing};
use jiff::Timestamp;
use std::time::Duration;

/// What the image says of a pin now that it was made for; and its manifest. What cannot be read may name it.
pub(crate) fn fate_now(repository: &Repository, pin: &Pin) -> Result<(Fate, Option<Manifest>)> {
    match manifest::load_last(repository.store.as_ref(), &pin.name) {
        Ok(manifest) => Ok((fate(&manifest, pin), Some(manifest))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok((Fate::Absent, None)),
        Err(e) if e.is_damage() => Ok((Fate::Needed, None)),
        Err(e) => Err(e),
    }
}

/// True if the image that a pin was made for does not name it, and never will.
pub(crate) fn is_dead(
    repository: &Repository,
    own: &Manifest,
    pin: &Pin,
    ages: &mut Option<Ages>,
) -> Result<bool> {
    let store = repository.store.as_ref();
    let fate_now = || fate_now(repository, pin);
    if matches!(fate_now()?.0, Fate::Needed | Fate::Absent) {
        return Ok(false);
    }
    // What rules may not be durable yet: its writer may have died before the sync.
    match store.sync_dir(&pin.name) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match fate_now()?.0 {
        Fate::Dead => return Ok(true),
        Fate::Needed | Fate::Absent => return Ok(false),
        Fate::Unnamed => {}
    }
    let Sharing::Shared { grace, .. } = repository.sharing()? else {
        // While nobody else holds it, nobody is between the pin and what is to name it.
        let lock = store.lock(&write_lock(&pin.name), LockKind::Shared)?;
        return Ok(lock.is_some() && matches!(fate_now()?.0, Fate::Dead | Fate::Unnamed));
    };
    if ages.is_none() {
        *ages = Some(Ages::of(repository, own)?);
    }
    if !ages.as_ref().is_some_and(|ages| ages.is_past(pin.since, grace)) {
        return Ok(false);
    }
    // Where the store keeps nobody apart, a program of this host that is working on it goes first.
    let alone = repository.lock_single_writer(&pin.name)?;
    if matches!(alone, Some(None)) {
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
pub(crate) enum Fate {
    /// A snapshot depends on it.
    Needed,
    /// None does, and none will.
    Dead,
    /// None does.
    Unnamed,
    /// It is not there, and nothing tells that it was removed: it may be back in a moment.
    Absent,
}

fn fate(manifest: &Manifest, pin: &Pin) -> Fate {
    let is_it = manifest.image_id == pin.image;
    if is_it && manifest.forgotten {
        return Fate::Dead;
    }
    // What files depend on that a repair could not use it did not see.
    if is_it && !manifest.unused.is_empty() || manifest.bases_elsewhere().any(|of| of.pin == pin.id)
    {
        return Fate::Needed;
    }
    match manifest.is_condemned(&pin_object(pin.id)) {
        true => Fate::Dead,
        false if is_it => Fate::Unnamed,
        false => Fate::Absent,
    }
}

/// How old the manifests of an image are, by the clock of the store.
pub(crate) struct Ages {
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
