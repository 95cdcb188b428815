//! What we call what we make in QEMU: everything begins with `imgsnap-`, and leads back to its disk.

use uuid::Uuid;

/// How all of our names begin.
const PREFIX: &str = "imgsnap-";

/// The bitmap that records since a snapshot of an image.
pub fn bitmap(image: Uuid, snapshot: Uuid) -> String {
    format!("{PREFIX}{image}-{snapshot}")
}
