//! What stands beside an image and in the manifest after a tracked snapshot (FORMAT.md J6, K1 to K3).

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use serde_json::Value;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// The ruling manifest of an image, and the id of the repository.
fn manifest(lab: &Lab, name: &str) -> (Value, String) {
    let files = lab.stored(name);
    let ruling = files.iter().rfind(|f| f.starts_with("manifest.")).unwrap();
    let text = std::fs::read_to_string(format!("{}/{name}/{ruling}", lab.repo)).unwrap();
    let toml = crate::config::text_in(&lab.repo);
    let id = toml.lines().find_map(|line| line.strip_prefix("id = ")).unwrap();
    let manifest = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    (manifest, id.trim_matches('"').to_owned())
}

/// The mark of a clone, in hexadecimal.
fn mark(path: &str) -> String {
    let script = "import os,sys; print(os.getxattr(sys.argv[1], 'user.imgsnap.owner').hex())";
    tool("python3", &["-c", script, path]).trim().to_owned()
}

fn tracked(mkfs: &str, args: &[&str]) -> Result<(), String> {
    tools(&["python3"])?;
    let lab = Lab::new();
    let (_device, _mount) = mounted(&lab, mkfs, args, 400)?;
    let image = lab.path("mnt/vm.img");
    std::fs::write(&image, noise(1, 3 * MIB + 5)).unwrap();
    lab.snapshot(&image);
    put(&image, 2 * MIB + 100, &noise(2, 10));
    lab.snapshot(&image);
    let (manifest, repository) = manifest(&lab, "vm");
    let snapshots = manifest["snapshots"].as_array().unwrap();
    // J6: two clones told, since the first one; of 769 blocks 8 are looked at each time.
    assert_eq!(snapshots[0].get("hint"), None);
    let hint = &snapshots[1]["hint"];
    assert_eq!(hint["kind"], "extents");
    assert_eq!(hint["since"], snapshots[0]["id"]);
    assert_eq!(hint["recheck_blocks"], 8);
    assert_eq!(hint["missed_blocks"], 0);
    let named = hint["named_bytes"].as_u64().unwrap();
    assert!((4096..3 * MIB).contains(&named), "{named}");
    assert_eq!(snapshots[1].get("consistency"), None);
    // K1 and K3: the clone of the newest is there, and no other.
    let id = snapshots[1]["id"].as_str().unwrap();
    let folder = lab.path("mnt/.imgsnap");
    assert_eq!(names_in(&folder), [id]);
    let clone = format!("{folder}/{id}");
    assert_eq!(std::fs::read(&clone).unwrap(), std::fs::read(&image).unwrap());
    let owner = format!("{repository}{}", manifest["image_id"].as_str().unwrap());
    assert_eq!(mark(&clone), owner.replace('-', ""));
    // K2: by what it is recognised.
    let meta = std::fs::metadata(&clone).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let stat = &snapshots[1]["tracker"]["stat"];
    let ns = |s: i64, ns: i64| s * 1_000_000_000 + ns;
    assert_eq!(stat["inode"], meta.ino());
    assert_eq!(stat["bytes"], meta.len());
    assert_eq!(stat["mtime_ns"], ns(meta.mtime(), meta.mtime_nsec()));
    assert_eq!(stat["ctime_ns"], ns(meta.ctime(), meta.ctime_nsec()));
    let born = meta.created().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(stat["born_ns"], u64::try_from(born.as_nanos()).unwrap());
    assert!(snapshots[1]["tracker"]["seconds"].is_f64());
    assert!(snapshots[1]["tracker"]["extents"].is_u64());
    Ok(())
}

#[test]
fn a_tracked_snapshot_on_xfs_leaves_what_the_specification_says() {
    need!(tracked("mkfs.xfs", &["-q", "-m", "reflink=1"]));
}

#[test]
fn a_tracked_snapshot_on_btrfs_leaves_what_the_specification_says() {
    need!(tracked("mkfs.btrfs", &["-q"]));
}
