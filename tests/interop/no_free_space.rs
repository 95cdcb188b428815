//! A disk that has no room for a merge: it is skipped with a warning, nothing is lost and nothing left
//! behind, and with room it is made.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;

/// Leaves about that many bytes on a file system; gives the file that takes the rest.
fn fill(folder: &str, left: u64) -> String {
    let path = format!("{folder}/filler");
    let stat = nix::sys::statvfs::statvfs(folder).unwrap();
    let free = stat.blocks_available() * stat.fragment_size();
    put_new(&path, free - left);
    path
}

fn put_new(path: &str, bytes: u64) {
    make(path, 0);
    put(path, 0, &vec![1; usize::try_from(bytes).unwrap()]);
}

/// A repository on a file system of 24 MiB, made by `mount`, with three snapshots of `vm.img`: the base has
/// 8 MiB, each delta 2 MiB in another place. Copies of the image are in `1`, `2` and `3`.
fn crowded(mount: fn(&Lab) -> Result<Crowd, String>) -> Result<(Lab, Crowd), String> {
    let mut lab = Lab::new();
    let crowd = mount(&lab)?;
    lab.repo = lab.path("mnt/repo");
    let image = lab.path("vm.img");
    make(&image, 16 * MIB);
    put(&image, 0, &noise(1, 8 * MIB));
    for number in 1..=3 {
        if number > 1 {
            put(&image, number * 3 * MIB, &noise(number, 2 * MIB));
        }
        assert_eq!(lab.snapshot(&image), number);
        keep(&image, &lab.path(&number.to_string()));
    }
    Ok((lab, crowd))
}

/// What is undone at the end, in this order.
struct Crowd {
    _mount: Mount,
    _device: Option<Loop>,
}

fn tmpfs(lab: &Lab) -> Result<Crowd, String> {
    let mount = Mount::tmpfs(&lab.path("mnt"), "size=24m")?;
    Ok(Crowd { _mount: mount, _device: None })
}

fn ext4(lab: &Lab) -> Result<Crowd, String> {
    root()?;
    tools(&["mkfs.ext4"])?;
    let file = lab.path("ext4");
    make(&file, 32 * MIB);
    tool("mkfs.ext4", &["-q", "-O", "^has_journal", "-m", "0", &file]);
    let device = Loop::new(&[], &file)?;
    let mount = Mount::new(&[&device.device], &lab.path("mnt"))?;
    Ok(Crowd { _mount: mount, _device: Some(device) })
}

#[track_caller]
fn holds(lab: &Lab, numbers: &[u64]) {
    assert_eq!(lab.numbers("vm"), numbers);
    for number in numbers {
        same(&lab.restore(&format!("vm@{number}")), &lab.path(&number.to_string()));
    }
    lab.is_tidy("vm");
    assert_eq!(lab.run(&["verify", "--json"]).done().json()["damaged"], serde_json::json!([]));
}

fn skips_what_does_not_fit(mount: fn(&Lab) -> Result<Crowd, String>) -> Result<(), String> {
    let (lab, _crowd) = crowded(mount)?;
    let filler = fill(&lab.path("mnt"), 2 * MIB);
    let files = lab.named("vm");
    let prune = ["prune", "vm", "--keep-last", "1", "--compact"];
    for round in 0..2 {
        let run = lab.run(&prune).done().says("MiB left; merging 3 files of \"vm\" needs ");
        let run = run.says("the next prune tries again");
        assert_eq!(run.err.lines().count(), 1, "{}", run.err);
        assert!(String::from_utf8_lossy(&run.out).contains("held     2 files"), "{round}");
        assert_eq!(lab.named("vm"), files);
        holds(&lab, &[3]);
    }
    // A flatten does not fit either, and that is what was asked for.
    lab.run(&["flatten", "vm@3"]).fails(1).says("flattening needs ");
    assert_eq!(lab.named("vm"), files);
    holds(&lab, &[3]);
    // With room it is done, and gives back more than it took.
    std::fs::remove_file(filler).unwrap();
    assert_eq!(lab.run(&prune).done().err, "");
    assert_eq!(lab.named("vm").len(), 1);
    holds(&lab, &[3]);
    Ok(())
}

#[test]
fn a_merge_that_does_not_fit_is_skipped_and_made_when_there_is_room() {
    need!(skips_what_does_not_fit(tmpfs));
}

#[test]
fn a_merge_that_does_not_fit_on_ext4_is_skipped_and_made_when_there_is_room() {
    need!(skips_what_does_not_fit(ext4));
}

/// Whatever is left, from nothing to more than enough: the manifest, the merged file and the head state
/// do not fit in turn.
#[test]
fn with_little_room_a_prune_ends_in_order_and_can_be_run_again() {
    let mut merged = 0;
    for kib in [0, 4, 8, 12, 16, 24, 64, 1000, 11_000, 11_900, 12_500, 13_300, 13_400, 14_000] {
        let (lab, _crowd) = need!(crowded(tmpfs));
        let stat = nix::sys::statvfs::statvfs(lab.path("mnt").as_str()).unwrap();
        let free = stat.blocks_available() * stat.fragment_size();
        let filler = fill(&lab.path("mnt"), (kib << 10).min(free));
        let run = lab.run(&["prune", "vm", "--keep-last", "1", "--compact"]);
        let numbers = lab.numbers("vm");
        match run.code() {
            Some(0) => assert_eq!(numbers, [3], "{kib} KiB"),
            _ => {
                run.fails(1).says("No space left on device");
                assert!([&[1, 2, 3][..], &[3]].contains(&&numbers[..]), "{kib} KiB: {numbers:?}");
            }
        }
        for number in &numbers {
            same(&lab.restore(&format!("vm@{number}")), &lab.path(&number.to_string()));
        }
        merged += u64::from(lab.named("vm").len() == 1);
        std::fs::remove_file(filler).unwrap();
        lab.run(&["prune", "vm", "--keep-last", "1", "--compact"]).done();
        assert_eq!(lab.named("vm").len(), 1);
        holds(&lab, &[3]);
    }
    assert!((1..14).contains(&merged), "{merged} of 14 fitted at once");
}

#[test]
fn a_delete_works_on_a_disk_that_is_full_but_for_the_manifest() {
    let (lab, _crowd) = need!(crowded(tmpfs));
    // To get room back is what it is for.
    let filler = fill(&lab.path("mnt"), 8 << 10);
    lab.run(&["delete", "vm@3"]).done();
    holds(&lab, &[1, 2]);
    lab.run(&["delete", "vm@1", "--compact"]).done().says("MiB left; merging 2 files");
    holds(&lab, &[2]);
    std::fs::remove_file(filler).unwrap();
    lab.run(&["prune", "vm", "--keep-last", "1", "--compact"]).done();
    assert_eq!(lab.named("vm").len(), 1);
    holds(&lab, &[2]);
}

#[test]
fn exports_and_applies_onto_a_full_disk_leave_nothing_behind() {
    let (lab, _crowd) = need!(crowded(tmpfs));
    let filler = fill(&lab.path("mnt"), MIB);
    let before = names_in(&lab.path("mnt"));
    let out = lab.path("mnt/out");
    lab.run(&["export", "vm@3", "-o", &out]).fails(1).says("No space left on device");
    let full = lab.path("full.delta");
    lab.run(&["export", "vm@1", "-o", &full]).done();
    lab.run(&["apply", &full, "-o", &out]).fails(1).says("has 1 MiB left; the image needs 8 MiB");
    assert_eq!(names_in(&lab.path("mnt")), before);
    // An import that does not fit leaves no image.
    lab.run(&["export", "vm@3", "-o", &lab.path("3.delta")]).done();
    let other = lab.path("mnt/other");
    lab.run(&["--repo", &other, "init"]).done();
    let import = ["--repo", &other, "import", &full, "--name", "vm"];
    lab.run(&import).fails(1).says("No space left on device");
    let list = lab.run(&["--repo", &other, "list", "--json"]).done().json();
    assert_eq!(list, serde_json::json!([]));
    assert!(!names_in(&other).contains(&"vm".into()), "{:?}", names_in(&other));
    std::fs::remove_file(filler).unwrap();
    lab.run(&["--repo", &other, "import", &full, "--name", "vm"]).done();
}
