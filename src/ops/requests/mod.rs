//! The verb *requests*: what hosts without the owner key ask the owner to drop.
//!
//! To confirm one drops the exact snapshots that it names, and no others: rules that look at times would drop
//! what a thief wants to be gone, who needs only forge some.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::ops::requests::types::DropRequest;
use crate::repo::Repository;
use crate::repo::manifest::{Manifest, Snapshot};
use crate::repo::owner::refuse_others;
use crate::repo::requests::{all, find, withdraw};
use crate::repo::session::read;
use jiff::{SignedDuration, Timestamp};
use std::collections::HashSet;
use uuid::Uuid;

/// Clocks of hosts differ by no more.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

/// What is asked, the oldest first; each that cannot be read as an error.
pub(crate) fn list(repository: &Repository) -> Result<Vec<(Uuid, Result<DropRequest>)>> {
    all(repository)
}

/// What is asked, and may be done.
pub(crate) struct Examined {
    pub(crate) id: Uuid,
    pub(crate) request: DropRequest,
    /// What is still there of the snapshots; none for the whole image.
    pub(crate) there: Option<Vec<Uuid>>,
}

/// Looks at a request before it is confirmed.
///
/// # Errors
/// `Auth` without the owner key; `InvalidInput` for a whole image unless `may_remove`; `Mismatch` if times of
/// the image are wrong, or it is another one by now.
pub(crate) fn examine(
    repository: &Repository,
    id: &str,
    may_remove: bool,
    context: &Context,
) -> Result<Examined> {
    refuse_others(repository.store.as_ref(), "confirm a request")?;
    let (id, request) = find(repository, id)?;
    let request = request?;
    if request.snapshots.is_none() && !may_remove {
        let what = "the request is to remove an image with all its snapshots";
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .hint(message!["to confirm it, use ", Setting::Yes]));
    }
    let name = request.image.as_str();
    let reader = read(repository, name, context)?;
    let manifest = reader.manifest();
    if manifest.image_id != request.image_id {
        let what = format!("\"{name}\" is no longer the image of the request");
        return Err(Error::new(ErrorKind::Mismatch, what).hint(reject(id)));
    }
    if let Some((snapshot, why)) = wrong_time(manifest, Timestamp::now()) {
        let place = manifest.place_of(snapshot);
        let what = format!("{place} was taken at {}, {why}", snapshot.time);
        return Err(Error::new(ErrorKind::Mismatch, what).hint(message![
            "a clock was wrong, or the time was forged so that rules drop others: check ",
            Verb::List.of(name),
            ", delete what should be deleted with ",
            Verb::Delete.call(),
            ", and reject the request with ",
            reject(id),
        ]));
    }
    let Some(asked) = &request.snapshots else {
        return Ok(Examined { id, request, there: None });
    };
    // It is listed by its numbers.
    let is_other = |s: &Snapshot| asked.iter().any(|a| (a.number == s.number) != (a.id == s.id));
    if let Some(other) = manifest.snapshots.iter().find(|s| is_other(s)) {
        let what = format!(
            "the request gives {} with the id of another snapshot",
            manifest.place_of(other)
        );
        return Err(Error::new(ErrorKind::Mismatch, what).hint(reject(id)));
    }
    let asked: HashSet<Uuid> = asked.iter().map(|asked| asked.id).collect();
    let meant = manifest.snapshots.iter().filter(|s| asked.contains(&s.id));
    let there = Some(meant.map(|s| s.id).collect());
    Ok(Examined { id, request, there })
}

/// Takes a request away that was done.
pub(crate) fn is_done(repository: &Repository, id: Uuid) -> Result<()> {
    withdraw(repository, id)
}

fn reject(id: Uuid) -> crate::base::message::Call {
    Verb::Requests.of(format!("reject {id}"))
}

/// The first snapshot whose time cannot be right, and why.
fn wrong_time(manifest: &Manifest, now: Timestamp) -> Option<(&Snapshot, &'static str)> {
    let limit = now.saturating_add(CLOCKS_DIFFER).unwrap_or(Timestamp::MAX);
    let mut last = Timestamp::MIN;
    for snapshot in &manifest.snapshots {
        if snapshot.time > limit {
            return Some((snapshot, "which is in the future"));
        }
        if snapshot.time < last {
            return Some((snapshot, "before the snapshot with the previous number"));
        }
        last = snapshot.time;
    }
    None
}

/// Takes a request away.
pub(crate) fn reject_request(repository: &Repository, id: &str) -> Result<Uuid> {
    let (id, _) = find(repository, id)?;
    withdraw(repository, id)?;
    Ok(id)
}
