//! What we call what libvirt has of ours: everything begins with `imgsnap-`.

use crate::machine::{bitmap_name, snapshot_of_bitmap};
use uuid::Uuid;

/// The name of a checkpoint: the image of the first disk, and the snapshot, or group of snapshots, since
/// which its bitmaps record.
pub fn checkpoint(image: Uuid, id: Uuid) -> String {
    bitmap_name(image, id)
}

/// The snapshot, or group, of a checkpoint of ours: of one of these images.
pub fn id_of_checkpoint(name: &str, images: &[Uuid]) -> Option<Uuid> {
    images.iter().find_map(|image| snapshot_of_bitmap(name, *image))
}

/// The name by which a bitmap is exported.
pub const BITMAP: &str = "imgsnap";

/// How the folder begins in which a backup has its scratch files.
pub const FOLDER: &str = "imgsnap-backup-";
