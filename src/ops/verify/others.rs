//! What is wrong with the images on which others depend.

use crate::base::error::Error;
use crate::base::message::{Verb, message};
use crate::ops::verify::types::{Damage, DamageKind, Verified};
use crate::repo::manifest::{Manifest, Snapshot};
use crate::repo::session::Reader;

/// True for what is wrong with an image as a whole.
pub(super) fn is_of_image(damage: &Damage, name: &str) -> bool {
    damage.kind == DamageKind::Manifest && damage.snapshot == name
}

/// Tells once what is wrong with an image as a whole.
pub(super) fn tell_image(name: &str, error: Error, verified: &mut Verified) {
    if verified.damaged.iter().any(|damage| is_of_image(damage, name)) {
        return;
    }
    let (kind, snapshot) = (DamageKind::Manifest, name.to_owned());
    let damage = Damage { kind, snapshot, message: error.into(), affects: Vec::new() };
    verified.damaged.push(damage);
}

/// Tells of a snapshot of another image that a chain begins from, and that may be dropped there all the same
/// (C9): its manifest is an old copy.
pub(super) fn tell_unpinned(reader: &Reader, snapshot: &Snapshot, verified: &mut Verified) {
    let Some(of) = &snapshot.base_of else { return };
    let stored = reader.other(of.image).map(Manifest::stored).unwrap_or_default();
    let Some(pinned) = stored.into_iter().find(|s| s.id == of.snapshot) else { return };
    if pinned.pins.iter().any(|pin| pin.id == of.pin) {
        return;
    }
    let place = reader.manifest().place_of(snapshot);
    verified.damaged.push(Damage {
        kind: DamageKind::Manifest,
        snapshot: of.place(),
        message: message![
            format!(
                "{}: {place} depends on it, but the manifest does not keep it; run ",
                of.place()
            ),
            Verb::Repair.of(&of.name)
        ],
        affects: vec![place],
    });
}
