//! What somebody may commit who may only add: nothing that others rely on is dropped, changed, or let go.
//! That is a host whose key of ssh allows no more, and in a repository that has an owner everybody else.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::repo::manifest::commit::{ManifestDigest, changed_meanwhile};
use crate::repo::manifest::related::Pin;
use crate::repo::manifest::types::{MAX_IMPORTED_NUMBER, Manifest, Snapshot};
use std::collections::HashMap;
use uuid::Uuid;

/// Fails unless `next` follows `ruling`, whose bytes have that digest, and only adds to it.
///
/// # Errors
/// `Busy` if it follows another one; `Auth` if it does more than add.
pub(crate) fn check_adds_only(
    ruling: Option<(&Manifest, ManifestDigest)>,
    next: &Manifest,
) -> Result<()> {
    let digest = ruling.map(|(_, digest)| digest);
    let ruling = ruling.map(|(ruling, _)| ruling);
    let more = match more_than_adds(ruling, digest, next)? {
        None => ruling.and_then(|ruling| more_than_a_host_may(ruling, next)),
        more => more,
    };
    match more {
        None if next.rollback.is_none() => Ok(()),
        more => {
            let more = more.unwrap_or_else(|| "roll an image back".into());
            let what = format!(
                "\"{}\": with append-only access, a host must not {more}",
                next.name.escape_debug()
            );
            Err(Error::new(ErrorKind::Auth, what))
        }
    }
}

/// Fails unless `next` follows the last commit that counts, and counts though the owner has not signed it
/// (FORMAT.md V4).
///
/// # Errors
/// As of [`check_adds_only`].
pub(super) fn check_unsigned(ruling: Option<&Manifest>, next: &Manifest) -> Result<()> {
    let digest = ruling.and_then(|ruling| ruling.read.as_ref()).map(|read| read.digest);
    let more = match (more_than_adds(ruling, digest, next)?, ruling) {
        (None, Some(ruling)) => more_than_without_owner(ruling, next),
        (more, _) => more,
    };
    let Some(more) = more else { return Ok(()) };
    let what = format!("\"{}\": only the owner may {more}", next.name.escape_debug());
    Err(Error::new(ErrorKind::Auth, what).hint(message![
        "give the owner key with ",
        Setting::OwnerKeyFile,
        ", or do it on the owner's host",
    ]))
}

/// What it does more than add, for whoever it is; none if it does not.
///
/// # Errors
/// `Busy` if it follows another one.
fn more_than_adds(
    ruling: Option<&Manifest>,
    digest: Option<ManifestDigest>,
    next: &Manifest,
) -> Result<Option<String>> {
    let is_empty = next.snapshots.is_empty() && next.dropped.is_empty();
    let more = |what: &str| Ok(Some(what.to_owned()));
    if next.forgotten {
        return more("remove an image");
    }
    let Some(ruling) = ruling else {
        let is_first = next.sequence == 1 && next.swept == 0 && next.condemned.is_empty();
        let is_first = is_first && is_empty;
        return if is_first { Ok(None) } else { more("start an image at a later commit") };
    };
    let mut expected = ruling.clone();
    expected.succeed()?;
    if next.sequence != expected.sequence || next.previous != digest {
        return Err(changed_meanwhile(&next.name));
    }
    if next.ancestors != expected.ancestors {
        return more("change the ancestors of an image");
    }
    // Of what is condemned already, some may be gone.
    if next.condemned.iter().any(|object| !ruling.condemned.contains(object)) {
        return more("condemn objects");
    }
    // After an image that was removed another one of its name begins.
    if ruling.forgotten {
        return if is_empty { Ok(None) } else { more("bring back an image that was removed") };
    }
    if next.image_id != ruling.image_id || next.name != ruling.name {
        return more("replace an image with another one");
    }
    let numbers = next.snapshots.iter().map(|s| s.number);
    let numbers = numbers.chain(next.pending.iter().map(|pending| pending.number));
    let used = numbers.max().unwrap_or(0).saturating_add(1);
    if !(ruling.next_number..=used.max(ruling.next_number)).contains(&next.next_number) {
        return more("choose arbitrary snapshot numbers");
    }
    if next.dropped != ruling.dropped || next.kept != ruling.kept || next.unused != ruling.unused {
        return more("drop or merge snapshots");
    }
    let kept: HashMap<Uuid, &Snapshot> = next.snapshots.iter().map(|s| (s.id, s)).collect();
    for snapshot in &ruling.snapshots {
        match kept.get(&snapshot.id) {
            Some(now) if only_adds(snapshot, now) => {}
            _ => return more(&format!("drop or change {}", ruling.place_of(snapshot))),
        }
    }
    // Whoever may leap may use the numbers up. An import leaps, so far.
    let added = next.snapshots.len().saturating_sub(ruling.snapshots.len()) + next.pending.len();
    let most = ruling.next_number.saturating_add(added as u64).max(MAX_IMPORTED_NUMBER);
    if next.next_number > most {
        return more("choose arbitrary snapshot numbers");
    }
    let is_reserved = |s: &Snapshot| ruling.pending.iter().any(|p| p.number == s.number);
    let is_new = |s: &&Snapshot| ruling.by_id(s.id).is_none();
    let is_free = |s: &Snapshot| s.number >= ruling.next_number || is_reserved(s);
    match next.snapshots.iter().filter(is_new).all(is_free) {
        true => Ok(None),
        false => more("reuse a snapshot number"),
    }
}

/// What it does more than a host may that is trusted with nothing but its own snapshots.
fn more_than_a_host_may(ruling: &Manifest, next: &Manifest) -> Option<String> {
    if ruling.forgotten {
        return None;
    }
    if ruling.rollback.is_some() {
        return Some("end a rollback".into());
    }
    // Where the image is, and how it is read, is not said anew.
    let are_same = is_same_or_new(ruling.host.as_ref(), next.host.as_ref())
        && is_same_or_new(ruling.source.as_ref(), next.source.as_ref())
        && is_same_or_new(ruling.format.as_ref(), next.format.as_ref())
        && ruling.live == next.live;
    if !are_same {
        return Some("change where an image is or how it is read".into());
    }
    let gone = ruling.condemned.iter().filter(|object| !next.condemned.contains(object));
    let most = gone.map(|object| object.sequence).fold(ruling.swept, u64::max);
    if !(ruling.swept..=most).contains(&next.swept) {
        return Some("change the record of deleted objects".into());
    }
    let is_kept = |pending| next.pending.contains(pending) || next.by_id(pending.id).is_some();
    let now = jiff::Timestamp::now();
    let are_kept = ruling.pending.iter().all(|pending| pending.expires <= now || is_kept(pending));
    (!are_kept).then(|| "discard what others have begun".into())
}

/// What it does more than add where the owner has not signed it: what was condemned, and what is protected,
/// stays as it is.
fn more_than_without_owner(ruling: &Manifest, next: &Manifest) -> Option<String> {
    if next.condemned != ruling.condemned || next.swept != ruling.swept {
        return Some("change what is condemned".into());
    }
    if ruling.forgotten {
        return None;
    }
    let has_new_base = next.snapshots.iter().any(|s| s.is_base() && ruling.by_id(s.id).is_none());
    if next.format != ruling.format && ruling.format().is_some() && !has_new_base {
        return Some("change how an image is read".into());
    }
    let is_changed =
        |was: &&Snapshot| next.by_id(was.id).is_some_and(|s| s.protected != was.protected);
    let changed = ruling.snapshots.iter().find(is_changed);
    changed.map(|snapshot| format!("protect {}", ruling.place_of(snapshot)))
}

/// True if something is as it was, or was not known.
fn is_same_or_new<T: PartialEq>(was: Option<&T>, now: Option<&T>) -> bool {
    was.is_none_or(|was| Some(was) == now)
}

/// True if a snapshot is what it was, protected or needed by others perhaps, which it was not.
fn only_adds(was: &Snapshot, now: &Snapshot) -> bool {
    let is_protected = now.protected || !was.protected;
    let is_pin = |pin: &Pin, now: &Pin| {
        // When it was named first is found out later.
        (now.id, now.image, &now.name) == (pin.id, pin.image, &pin.name)
    };
    let are_pinned = was.pins.iter().all(|pin| now.pins.iter().any(|now| is_pin(pin, now)));
    let as_before = Snapshot {
        protected: was.protected,
        pins: was.pins.clone(),
        // The clones of a host are its own affair.
        tracker: was.tracker.clone(),
        ..now.clone()
    };
    is_protected && are_pinned && as_before == *was
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::manifest::Condemned;

    fn ruling() -> Manifest {
        let mut manifest = Manifest::new("vm", None);
        manifest.succeed().unwrap();
        manifest.is_read_from(b"bytes");
        manifest
    }

    #[test]
    fn who_only_adds_may_add() {
        let first = ruling();
        check_adds_only(None, &first).unwrap();
        let mut next = first.clone();
        next.succeed().unwrap();
        let digest = ManifestDigest::of(b"bytes");
        check_adds_only(Some((&first, digest)), &next).unwrap();
        // Another one came before it.
        let other = ManifestDigest::of(b"other");
        let late = check_adds_only(Some((&first, other)), &next).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Busy);
        let condemned = Condemned { object: "x".into(), sequence: 2 };
        for bad in [
            Manifest { forgotten: true, ..next.clone() },
            Manifest { image_id: Uuid::new_v4(), ..next.clone() },
            Manifest { next_number: 0, ..next.clone() },
            Manifest { next_number: u64::MAX, ..next.clone() },
            Manifest { swept: 7, ..next.clone() },
            Manifest { ancestors: Vec::new(), ..next.clone() },
            Manifest { condemned: vec![condemned], ..next.clone() },
            Manifest { kept: vec!["x".into()], ..next.clone() },
        ] {
            let denied = check_adds_only(Some((&first, digest)), &bad).unwrap_err();
            assert_eq!(denied.kind(), ErrorKind::Auth, "{denied}");
        }
    }
}
