//! Sectors that cannot be read. The medium is a btrfs whose backing file is changed underneath: its
//! checksums make real input errors of these 4 KiB, for plain reads and for mapped ones.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

const BYTES: u64 = 24 * MIB;
const SECTOR: u64 = 4096;

/// A file system with an image in it, some of whose sectors can be made bad.
struct BadDisk {
    lab: Lab,
    image: String,
    device: Option<Loop>,
    mount: Option<Mount>,
}

impl BadDisk {
    fn new() -> Result<Self, String> {
        let lab = Lab::new();
        let (device, mount) = mounted(&lab, "mkfs.btrfs", &["-q", "-m", "single"], 160)?;
        let image = lab.path("mnt/vm.img");
        make(&image, BYTES);
        put(&image, 0, &noise(3, BYTES));
        Ok(Self { lab, image, device: Some(device), mount: Some(mount) })
    }

    /// Makes the sectors at these offsets of the image unreadable.
    fn spoil(&mut self, offsets: &[u64]) -> Result<(), String> {
        let wanted: Vec<Vec<u8>> = offsets.iter().map(|at| get(&self.image, *at, SECTOR)).collect();
        self.offline();
        let backing =
            File::options().read(true).write(true).open(self.lab.path("filesystem")).unwrap();
        let mut found = 0;
        let mut sector = vec![0; SECTOR as usize];
        for at in (0..backing.metadata().unwrap().len()).step_by(SECTOR as usize) {
            backing.read_exact_at(&mut sector, at).unwrap();
            if wanted.contains(&sector) {
                sector[100] ^= 1;
                backing.write_all_at(&sector, at).unwrap();
                found += 1;
            }
        }
        assert_eq!(found, offsets.len(), "the sectors are not where they were looked for");
        drop(backing);
        self.online()
    }

    fn offline(&mut self) {
        self.mount.take().unwrap().unmount();
        self.device.take().unwrap().detach();
    }

    fn online(&mut self) -> Result<(), String> {
        let device = Loop::new(&[], &self.lab.path("filesystem"))?;
        self.mount = Some(Mount::new(&[&device.device], &self.lab.path("mnt"))?);
        self.device = Some(device);
        Ok(())
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        // The file system before its device.
        self.mount = None;
    }
}

/// What a restore that accepts it gives: zeros where nothing could be read.
fn with_zeros(bytes: &[u8], bad: &[u64]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in bad {
        bytes[*at as usize..][..SECTOR as usize].fill(0);
    }
    bytes
}

/// In the middle, two side by side, the last one.
const BAD: [u64; 4] = [5 * MIB + 8 * SECTOR, 9 * MIB, 9 * MIB + SECTOR, BYTES - SECTOR];

#[test]
fn bad_sectors_end_a_snapshot_unless_they_are_to_be_skipped() {
    let mut disk = need!(BadDisk::new());
    let original = get(&disk.image, 0, BYTES);
    need!(disk.spoil(&BAD));
    let (lab, image) = (&disk.lab, disk.image.as_str());

    let refused = lab.run(&["snapshot", image]).fails(1);
    refused.says(&format!("cannot read {image} at byte {}", BAD[0])).says("--skip-bad");
    assert!(!lab.has_repository());

    let taken = lab.run(&["snapshot", image, "--skip-bad", "--json"]).done();
    let ranges = serde_json::json!([
        {"offset": BAD[0], "bytes": SECTOR},
        {"offset": BAD[1], "bytes": 2 * SECTOR},
        {"offset": BAD[3], "bytes": SECTOR},
    ]);
    assert_eq!((&taken.json()["unread"], &taken.json()["unread_blocks"]), (&ranges, &4.into()));
    taken.says("vm@1 is incomplete").says(&format!("4 blocks: bytes {}+{SECTOR}, ", BAD[0]));
    let list = String::from_utf8(lab.run(&["list"]).done().out).unwrap();
    assert!(list.contains("incomplete: unread blocks"), "{list}");
    assert_eq!(lab.run(&["show", "vm@1", "--json"]).done().json()["unread"], ranges);
    let show = String::from_utf8(lab.run(&["show", "vm@1"]).done().out).unwrap();
    assert!(show.contains(&format!("{}+{}", BAD[1], 2 * SECTOR)), "{show}");
    lab.verify(1);

    let out = lab.path("out");
    let refused = lab.run(&["restore", "vm@1", "-o", &out]).fails(3);
    refused.says(&format!("{}+{}", BAD[1], 2 * SECTOR)).says("--accept-unread");
    assert!(!std::fs::exists(&out).unwrap());
    // What was read is to be had without consent.
    let range = format!("{}+{}", BAD[0] + SECTOR, BAD[1] - BAD[0] - SECTOR);
    let part = lab.run(&["restore", "vm@1", "--range", &range, "-o", "-"]).done();
    assert!(part.out == original[(BAD[0] + SECTOR) as usize..BAD[1] as usize]);
    let touching = format!("{}+2", BAD[0] + SECTOR - 1);
    lab.run(&["restore", "vm@1", "--range", &touching, "-o", "-"]).fails(3);
    let restored = lab.run(&["restore", "vm@1", "--accept-unread", "-o", &out, "--json"]).done();
    assert_eq!(restored.json()["unread"], ranges);
    restored.says("zeros were written where the image is unread");
    assert!(get(&out, 0, BYTES) == with_zeros(&original, &BAD));
    // By a pipe, which is written in another order.
    let piped =
        lab.run(&["restore", "vm@1", "--accept-unread", "-o", "-", "--threads", "1"]).done();
    assert!(piped.out == with_zeros(&original, &BAD));
    // Onto what is there: zeros that are there already are not written.
    put(&out, BAD[0], &noise(9, 2 * SECTOR));
    let update = ["restore", "vm@1", "-o", &out, "--update", "--json"];
    lab.run(&update).fails(3).says("--accept-unread");
    for written in [2 * SECTOR, 0] {
        let done = lab.run(&[&update[..], &["--accept-unread"]].concat()).done().json();
        assert_eq!(done["written_bytes"], written, "{done}");
        assert!(get(&out, 0, BYTES) == with_zeros(&original, &BAD));
    }
}

/// FORMAT.md M4: it is tried again each time, and never taken from the parent.
#[test]
fn what_could_not_be_read_is_read_again_and_never_taken_from_the_parent() {
    let mut disk = need!(BadDisk::new());
    let original = get(&disk.image, 0, BYTES);
    disk.lab.snapshot(&disk.image);
    need!(disk.spoil(&BAD));
    let (lab, image) = (&disk.lab, disk.image.as_str());
    for track in ["none", "auto"] {
        let args = ["snapshot", image, "--skip-bad", "--full-scan", "--track", track, "--json"];
        let taken = lab.run(&args).done();
        assert_eq!(taken.json()["unread_blocks"], 4, "{track}");
        // Nothing but that has changed, and the parent's blocks are not it.
        assert_eq!(taken.json()["changed_bytes"], 4 * SECTOR, "{track}");
    }
    lab.run(&["restore", "vm@2", "-o", "-"]).fails(3);
    lab.run(&["restore", "vm@3", "-o", "-"]).fails(3);
    same_bytes(&lab.run(&["restore", "vm@1", "-o", "-"]).done().out, &original);
    // Without a word, as the file is what it was: it is not believed.
    lab.run(&["snapshot", image]).fails(1).says("cannot read");
    // Merged, flattened, exported: as it is.
    lab.run(&["delete", "vm@2", "--compact"]).done();
    lab.run(&["flatten", "vm@3"]).done();
    lab.verify(2);
    let kept = lab.run(&["restore", "vm@3", "--accept-unread", "-o", "-"]).done();
    same_bytes(&kept.out, &with_zeros(&original, &BAD));
    // Written anew, they can be read.
    for at in BAD {
        put(image, at, &original[at as usize..][..SECTOR as usize]);
    }
    let taken = lab.run(&["snapshot", image, "--json"]).done().json();
    assert_eq!((&taken["unread_blocks"], &taken["data_blocks"]), (&0.into(), &4.into()));
    same(&lab.restore("vm@latest"), image);
    lab.verify(3);
}

/// A rollback writes what it cannot read: that is what makes a bad sector good again.
#[test]
fn a_rollback_writes_over_bad_sectors() {
    let mut disk = need!(BadDisk::new());
    let original = get(&disk.image, 0, BYTES);
    // With a clone to compare with, it would not have to read what did not change.
    disk.lab.run(&["snapshot", &disk.image, "--track", "none"]).done();
    put(&disk.image, MIB, &noise(9, MIB));
    need!(disk.spoil(&BAD));
    let (lab, image) = (&disk.lab, disk.image.as_str());
    lab.run(&["rollback", "vm", "--to", "@1"])
        .fails(1)
        .says("cannot read")
        .says("--skip-bad")
        .says("--no-save");
    lab.run(&["rollback", "vm", "--to", "@1", "--no-save", "--prove"]).done();
    same_bytes(&get(image, 0, BYTES), &original);
    assert_eq!(lab.run(&["list"]).done().err, "");
}

#[test]
fn a_disk_that_gives_nothing_makes_no_snapshot() {
    let mut disk = need!(BadDisk::new());
    std::fs::File::options().write(true).open(&disk.image).unwrap().set_len(2 * SECTOR).unwrap();
    need!(disk.spoil(&[0, SECTOR]));
    let refused = disk.lab.run(&["snapshot", &disk.image, "--skip-bad"]).fails(1);
    refused.says("no block of").says("that was tried can be read");
    assert!(!disk.lab.has_repository());
}

#[track_caller]
fn same_bytes(one: &[u8], other: &[u8]) {
    assert!(one == other, "the bytes differ");
}
