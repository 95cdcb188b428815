//! The checkpoints of libvirt that were made with the snapshots of an image.

use crate::libvirt::KnownSnapshot;
use crate::repo::manifest::{Manifest, Snapshot};

/// The snapshots of an image, the newest first, and the checkpoint of each.
pub fn known(manifest: &Manifest) -> Vec<KnownSnapshot> {
    let of = |snapshot: &Snapshot| {
        let first = snapshot.group.as_ref().and_then(|g| Some((g.members.first()?.image, g.id)));
        let (image, id) = first.unwrap_or((manifest.image_id, snapshot.id));
        KnownSnapshot::new(snapshot.id, image, id)
    };
    manifest.stored().into_iter().rev().map(of).collect()
}
