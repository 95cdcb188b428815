//! Requests of several images: each must be of one of its own.

use crate::base::error::{Error, ErrorKind, Result};
use crate::ops::snapshot::types::SnapshotRequest;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Refuses requests of which two are of the same image, or have the same name in the repository.
///
/// # Errors
/// `InvalidInput` that says which.
pub fn check_distinct(requests: &[SnapshotRequest]) -> Result<()> {
    // What cannot be found or named fails by itself later.
    let name = |request: &SnapshotRequest| request.image_name().ok();
    let known: Vec<_> =
        requests.iter().map(|r| (&r.image, r.image.file().and_then(identity), name(r))).collect();
    for (index, (image, identity, name)) in known.iter().enumerate() {
        for (other, other_identity, other_name) in known.iter().take(index) {
            let refuse = |what| Err(Error::new(ErrorKind::InvalidInput, what));
            let is_same_file = identity.is_some() && identity == other_identity;
            if is_same_file || (image == other && image.file().is_none()) {
                return refuse(if image.to_string() == other.to_string() {
                    format!("{image} is given twice")
                } else {
                    format!("{other} and {image} are the same image")
                });
            }
            if let Some(name) = name
                && Some(name) == other_name.as_ref()
            {
                return refuse(format!("the name of {other} and of {image} would be \"{name}\""));
            }
        }
    }
    Ok(())
}

/// The same for all paths that lead to a file or device.
fn identity(path: &Path) -> Option<(bool, u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    if is_device(&meta) {
        return Some((true, meta.rdev(), 0));
    }
    Some((false, meta.dev(), meta.ino()))
}

/// True for a block device.
pub(crate) fn is_device(meta: &Metadata) -> bool {
    meta.file_type().is_block_device()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(requests: &[SnapshotRequest]) -> String {
        check_distinct(requests).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn the_same_image_or_name_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let request = |name: &str| SnapshotRequest { image: at(name).into(), ..Default::default() };
        for name in ["a.img", "b.img"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::create_dir(at("more")).unwrap();
        std::fs::write(at("more/a.raw"), "another").unwrap();
        std::os::unix::fs::symlink(at("a.img"), at("symbolic")).unwrap();
        std::fs::hard_link(at("a.img"), at("hard")).unwrap();
        let three = |third| [request("b.img"), request("a.img"), request(third)];
        assert_eq!(refused(&three("a.img")), format!("{} is given twice", at("a.img").display()));
        for link in ["symbolic", "hard"] {
            assert!(refused(&three(link)).ends_with("are the same image"), "{link}");
        }
        assert!(refused(&three("more/a.raw")).ends_with("a.raw would be \"a\""));
        assert_eq!(refused(&three("missing")), "");
        let mut named = three("more/a.raw");
        named[2].name = Some("c".into());
        assert_eq!(refused(&named), "");
        named[2].name = Some("b".into());
        assert!(refused(&named).ends_with("would be \"b\""));
        // What has no name fails by itself.
        assert_eq!(refused(&[request(".x"), request(".y")]), "");
        assert!(!refused(&[request("gone"), request("gone")]).is_empty());
    }
}
