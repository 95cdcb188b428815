//! Whether a file system that is mounted here lies on an image.

use super::mount_table::MountTable;
use crate::image::loop_file;
use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// How many devices may lie on each other.
const MOST_BELOW: usize = 64;

/// True if what is mounted at `place` lies on the image: on the device itself, a partition or a volume of
/// it, or a loop device whose file it is.
pub fn is_on_image(place: &Path, image: &Path) -> bool {
    let (Ok(mounted), Ok(image)) = (place.metadata(), image.metadata()) else { return false };
    // On a btrfs a path has a number of its own, which is none of a device.
    let (mut open, mut seen) = (vec![mounted.dev()], BTreeSet::new());
    open.extend(MountTable::read().device_of(place));
    while let Some(device) = open.pop().filter(|_| seen.len() < MOST_BELOW) {
        if !seen.insert(device) {
            continue;
        }
        let is_device = image.file_type().is_block_device() && image.rdev() == device;
        let is_file = loop_file(device)
            .and_then(|file| file.metadata().ok())
            .is_some_and(|file| (file.dev(), file.ino()) == (image.dev(), image.ino()));
        if is_device || is_file {
            return true;
        }
        let sys = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
        let sys = Path::new(&sys);
        if sys.join("partition").exists() {
            // The link leads into the folder of the whole device.
            let whole = sys.canonicalize().ok().and_then(|dir| Some(dir.parent()?.join("dev")));
            open.extend(whole.and_then(|file| number_in(&file)));
        }
        let slaves = std::fs::read_dir(sys.join("slaves")).into_iter().flatten().flatten();
        open.extend(slaves.filter_map(|slave| number_in(&slave.path().join("dev"))));
    }
    false
}

/// The number in a file that holds "8:1".
fn number_in(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}
