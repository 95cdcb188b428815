//! What somebody may commit who may only add: nothing that others rely on is dropped, changed, or let go.

use crate::base::error::{Error, ErrorKind, Result};
use crate::repo::manifest::commit::ManifestDigest;
use crate::repo::manifest::related::Pin;
use crate::repo::manifest::types::{Manifest, Snapshot};
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
    let denied = |what: &str| {
        let what = format!("\"{}\": who may only add must not {what}", next.name.escape_debug());
        Err(Error::new(ErrorKind::Auth, what))
    };
    if next.forgotten || next.rollback.is_some() {
        return denied("remove or roll back an image");
    }
    let Some((ruling, digest)) = ruling else {
        let is_first = next.sequence == 1 && next.snapshots.is_empty() && next.dropped.is_empty();
        return if is_first { Ok(()) } else { denied("begin an image in its middle") };
    };
    if Some(next.sequence) != ruling.sequence.checked_add(1) || next.previous != Some(digest) {
        return Err(super::changed_meanwhile(&next.name));
    }
    // After an image that was removed another one of its name begins.
    if ruling.forgotten {
        let is_new = next.snapshots.is_empty() && next.dropped.is_empty();
        return if is_new { Ok(()) } else { denied("bring an image back that was removed") };
    }
    if next.image_id != ruling.image_id || next.name != ruling.name {
        return denied("put another image in the place of one");
    }
    let numbers = next.snapshots.iter().map(|s| s.number);
    let numbers = numbers.chain(next.pending.iter().map(|pending| pending.number));
    let used = numbers.max().unwrap_or(0).saturating_add(1);
    let is_next = (ruling.next_number..=used.max(ruling.next_number)).contains(&next.next_number);
    if ruling.rollback.is_some() || !is_next {
        return denied("end a rollback, or give numbers as it likes");
    }
    // Where the image is, and how it is read, is not said anew.
    let are_same = is_same_or_new(ruling.host.as_ref(), next.host.as_ref())
        && is_same_or_new(ruling.source.as_ref(), next.source.as_ref())
        && is_same_or_new(ruling.format.as_ref(), next.format.as_ref())
        && ruling.live == next.live;
    let mut expected = ruling.clone();
    expected.succeed()?;
    if !are_same || next.ancestors != expected.ancestors {
        return denied("say otherwise what an image is, or comes from");
    }
    let gone = ruling.condemned.iter().filter(|object| !next.condemned.contains(object));
    let most = gone.map(|object| object.sequence).fold(ruling.swept, u64::max);
    if !(ruling.swept..=most).contains(&next.swept) {
        return denied("say what others have deleted");
    }
    if next.dropped != ruling.dropped || next.kept != ruling.kept || next.unused != ruling.unused {
        return denied("drop snapshots");
    }
    let kept: HashMap<Uuid, &Snapshot> = next.snapshots.iter().map(|s| (s.id, s)).collect();
    for snapshot in &ruling.snapshots {
        match kept.get(&snapshot.id) {
            Some(now) if only_adds(snapshot, now) => {}
            _ => return denied(&format!("drop or change {}", ruling.place_of(snapshot))),
        }
    }
    // What is gone already is forgotten to have been condemned; nothing else is condemned.
    if next.condemned.iter().any(|object| !ruling.condemned.contains(object)) {
        return denied("condemn objects");
    }
    let is_kept = |pending| next.pending.contains(pending) || next.by_id(pending.id).is_some();
    let now = jiff::Timestamp::now();
    if !ruling.pending.iter().all(|pending| pending.expires <= now || is_kept(pending)) {
        return denied("give up what others have begun");
    }
    Ok(())
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
