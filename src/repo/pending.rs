//! Snapshots that are not finished: which of their parts are (FORMAT.md J21).

use crate::base::error::Result;
use crate::delta::Identity;
use crate::repo::Repository;
use crate::repo::change::{commit_change, discard_unless_named};
use crate::repo::manifest::{self, Manifest, Pending};
use crate::repo::session::Writer;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

/// So long the parts of an interrupted snapshot stay after the last one was finished.
const LIFE: SignedDuration = SignedDuration::from_hours(24);

/// Commits that a part of a base is finished: it is no garbage for a day.
///
/// # Errors
/// `Busy` if its number is taken meanwhile; of the store.
pub(crate) fn note_part(
    repository: &Repository,
    writer: &mut Writer,
    identity: &Identity,
    object: &str,
) -> Result<()> {
    let expires = expiry(repository, &writer.manifest.name, object)?;
    commit_change(repository, writer, &[object], |next| {
        if let Some(known) = next.pending.iter_mut().find(|p| p.id == identity.snapshot_id) {
            known.objects.push(object.to_owned());
            (known.number, known.expires) = (identity.number, expires);
            next.next_number = next.next_number.max(identity.number.saturating_add(1));
            return Ok(());
        }
        if next.next_number > identity.number {
            return Err(manifest::changed_meanwhile(&next.name));
        }
        next.next_number = identity.number.saturating_add(1);
        next.pending.push(Pending {
            id: identity.snapshot_id,
            number: identity.number,
            parent: None,
            objects: vec![object.to_owned()],
            expires,
            plan: None,
        });
        Ok(())
    })
}

/// A day after an object was put: by the clock of the store, and where there are locks by that of the host.
fn expiry(repository: &Repository, name: &str, object: &str) -> Result<Timestamp> {
    let mut put = Timestamp::now();
    if !repository.sharing()?.is_locked() {
        let listed = repository.store.list_timed(name)?;
        let found = listed.iter().find(|listed| listed.name == object);
        put = found.map_or(put, |listed| listed.time);
    }
    Ok(put.saturating_add(LIFE).unwrap_or(Timestamp::MAX))
}

/// Gives a pending snapshot up, and its space back.
///
/// # Errors
/// Of the store.
pub(crate) fn give_up_pending(
    repository: &Repository,
    writer: &mut Writer,
    id: Uuid,
) -> Result<()> {
    let Some(pending) = writer.manifest.pending.iter().find(|p| p.id == id).cloned() else {
        return Ok(());
    };
    writer.frees = true;
    commit_change(repository, writer, &[], |next| {
        next.pending.retain(|pending| pending.id != id);
        Ok(())
    })?;
    let objects = pending.objects.iter().map(String::as_str);
    discard_unless_named(repository, &writer.manifest.name, objects)
}

/// Keeps a listed snapshot while a plan needs it. Returns what it is kept by.
///
/// # Errors
/// `Busy` if it is gone meanwhile; of the store.
pub(crate) fn keep_for_plan(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: Uuid,
    plan: Uuid,
    expires: Timestamp,
) -> Result<Uuid> {
    let pin = Uuid::new_v4();
    commit_change(repository, writer, &[], |next| {
        if next.by_id(snapshot).is_none() {
            return Err(manifest::changed_meanwhile(&next.name));
        }
        next.pending.push(Pending {
            id: pin,
            number: 0,
            parent: Some(snapshot),
            objects: Vec::new(),
            expires,
            plan: Some(plan),
        });
        Ok(())
    })?;
    Ok(pin)
}

/// Commits that nothing is pending any more for a plan. Nothing is done if that is so.
///
/// # Errors
/// Of the store.
pub(crate) fn let_go_of_plan(
    repository: &Repository,
    writer: &mut Writer,
    plan: Uuid,
) -> Result<()> {
    let is_of_it = |pending: &Pending| pending.plan == Some(plan);
    if !writer.manifest.pending.iter().any(is_of_it) {
        return Ok(());
    }
    writer.frees = true;
    commit_change(repository, writer, &[], |next| {
        next.pending.retain(|pending| !is_of_it(pending));
        Ok(())
    })
}

/// The interrupted base that the next one goes on with; the newest if there are several.
pub(crate) fn interrupted_base(manifest: &Manifest) -> Option<&Pending> {
    let now = Timestamp::now();
    let is_base = |pending: &&Pending| {
        pending.parent.is_none() && pending.plan.is_none() && pending.expires > now
    };
    manifest.pending.iter().rev().find(is_base)
}
