//! A disk that is full, or has no room for a merge: what frees space works all the same, a merge that does not
//! fit is skipped with a warning, nothing is lost and nothing left behind, and with room it is made.
//! (FORMAT.md P11)

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;

/// Bytes that can be written to the file system of a folder.
fn free_bytes(folder: &str) -> u64 {
    let stat = nix::sys::statvfs::statvfs(folder).unwrap();
    stat.blocks_available() * stat.fragment_size()
}

/// Leaves about that many bytes on a file system; gives the file that takes the rest.
pub fn fill(folder: &str, left: u64) -> String {
    let path = format!("{folder}/filler");
    let bytes = vec![1; usize::try_from(free_bytes(folder).saturating_sub(left)).unwrap()];
    let mut file = std::fs::File::create(&path).unwrap();
    match std::io::Write::write_all(&mut file, &bytes) {
        Err(e) if left == 0 => assert_eq!(e.kind(), std::io::ErrorKind::StorageFull),
        other => other.unwrap(),
    }
    // What a file system needs itself for such a file.
    while left == 0 && std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    path
}

/// Leaves nothing, also not what the next writer would free: manifests that do not rule any more.
fn fill_all(lab: &Lab) -> String {
    let mut manifests = lab.stored("vm");
    manifests.retain(|file| file.starts_with("manifest."));
    manifests.sort();
    manifests.pop();
    for file in manifests {
        std::fs::remove_file(format!("{}/vm/{file}", lab.repo)).unwrap();
    }
    fill(&lab.path("mnt"), 0)
}

/// A repository on a file system of 26 MiB, made by `mount`, with three snapshots of `vm.img`: the base has
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
    let mount = Mount::tmpfs(&lab.path("mnt"), "size=26m")?;
    Ok(Crowd { _mount: mount, _device: None })
}

fn ext4(lab: &Lab) -> Result<Crowd, String> {
    root()?;
    tools(&["mkfs.ext4"])?;
    let file = lab.path("ext4");
    make(&file, 34 * MIB);
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

/// A snapshot of the same image against its first one, which is the head then: the chain forks.
fn fork(lab: &Lab) {
    let image = lab.path("vm.img");
    put(&image, 0, &noise(4, MIB));
    lab.run(&["snapshot", &image, "--parent", "vm@1"]).done();
    keep(&image, &lab.path("4"));
}

/// What frees space, what is left then, and whether some of it is freed at once.
const FREEING: [(&[&str], &[u64], bool); 6] = [
    (&["delete", "vm@4"], &[1, 2, 3], true),
    (&["delete", "vm@3"], &[1, 2, 4], true),
    (&["delete", "vm@1"], &[2, 3, 4], false),
    (&["prune", "vm", "--keep-last", "1"], &[4], true),
    (&["protect", "vm@2", "--off"], &[1, 2, 3, 4], false),
    (&["remove", "vm", "--yes"], &[], true),
];

fn frees_on_a_full_disk(mount: fn(&Lab) -> Result<Crowd, String>) -> Result<(), String> {
    for (args, left, is_freed) in FREEING {
        let (lab, _crowd) = crowded(mount)?;
        fork(&lab);
        if args[0] == "protect" {
            lab.run(&["protect", "vm@2"]).done();
        }
        let filler = fill_all(&lab);
        let before = free_bytes(&lab.path("mnt"));
        let run = lab.run(&[args, &["--json"]].concat()).done();
        assert_eq!(run.err, "", "{args:?}");
        let done = run.json();
        let done = done.as_array().map_or(&done, |all| &all[0]);
        let freed = done["freed_bytes"].as_u64().unwrap_or_default();
        assert_eq!(freed > 0, is_freed, "{args:?}");
        let gained = free_bytes(&lab.path("mnt")) - before;
        assert!(gained + (64 << 10) >= freed, "{args:?}: {gained} of {freed}");
        if !left.is_empty() {
            // Nobody else gets what was used.
            let kept = length(&lab.path("mnt/repo/.reserve"));
            assert!(kept > MIB / 2, "{args:?}: {kept}");
            holds(&lab, left);
        }
        // Once there is space again, as much is kept as before.
        std::fs::remove_file(filler).unwrap();
        lab.snapshot(&lab.path("vm.img"));
        assert_eq!(length(&lab.path("mnt/repo/.reserve")), MIB, "{args:?}");
    }
    Ok(())
}

#[test]
fn whatever_frees_space_works_on_a_full_disk() {
    need!(frees_on_a_full_disk(tmpfs));
}

#[test]
fn whatever_frees_space_works_on_a_full_ext4() {
    need!(frees_on_a_full_disk(ext4));
}

#[test]
fn whatever_frees_space_works_on_a_full_disk_that_others_share() {
    let (lab, _crowd) = need!(crowded(tmpfs));
    fork(&lab);
    std::fs::write(lab.path("mnt/repo/.shared"), "").unwrap();
    fill_all(&lab);
    let deleted = lab.run(&["delete", "vm@3", "--json"]).done().json();
    assert_eq!(deleted["freed_bytes"], 0);
    assert!(deleted["to_free_bytes"].as_u64().unwrap() > MIB, "{deleted}");
    assert_eq!(lab.numbers("vm"), [1, 2, 4]);
}

/// The record of before would be wrong.
#[test]
fn what_a_host_knows_is_right_though_its_disk_is_full() {
    let (lab, _crowd) = need!(crowded(tmpfs));
    let (image, state) = (lab.path("vm.img"), lab.path("state-of-host"));
    let _mount = need!(Mount::tmpfs(&state, "size=64k"));
    let run = |args: &[&str]| {
        let mut command = lab.command(args);
        command.env("IMGSNAP_STATE", &state);
        Started::spawn(command).wait()
    };
    put(&image, 0, &noise(4, MIB));
    run(&["snapshot", &image]).done();
    fill(&state, 0);
    run(&["rollback", "vm", "--to", "@1", "--no-save"]).done();
    same(&image, &lab.path("1"));
    let list = run(&["list", "vm", "--json"]).done();
    let list = crate::json_lines::parsed("list", &list.out);
    let head: Vec<bool> = (0..4).map(|at| list[at]["head"].as_bool().unwrap()).collect();
    assert_eq!(head, [true, false, false, false], "{list}");
    // Nor is a change stored again and again.
    put(&image, 0, &noise(5, MIB));
    for _ in 0..2 {
        run(&["snapshot", &image, "--skip-unchanged"]).done();
    }
    assert_eq!(lab.numbers("vm"), [1, 2, 3, 4, 5]);
}

/// Somebody removed it, or an earlier program has filled the disk.
#[test]
fn without_a_reserve_a_full_disk_is_told_and_nothing_is_lost() {
    let (lab, _crowd) = need!(crowded(tmpfs));
    fork(&lab);
    std::fs::remove_file(lab.path("mnt/repo/.reserve")).unwrap();
    fill_all(&lab);
    for (args, _, _) in FREEING.iter().filter(|(args, _, _)| args[0] != "protect") {
        lab.run(args).fails(1).says("No space left on device").says("free some space");
        assert_eq!(lab.numbers("vm"), [1, 2, 3, 4], "{args:?}");
    }
    lab.verify(4);
}

#[test]
fn a_snapshot_does_not_use_what_is_kept_for_freeing_space() {
    let (lab, _crowd) = need!(crowded(tmpfs));
    let filler = fill_all(&lab);
    put(&lab.path("vm.img"), 0, &noise(9, 4096));
    for args in [&["snapshot", &lab.path("vm.img")][..], &["label", "vm@1", "first"]] {
        lab.run(args).fails(1).says("No space left on device");
        assert_eq!(length(&lab.path("mnt/repo/.reserve")), MIB);
    }
    lab.run(&["delete", "vm@3"]).done();
    std::fs::remove_file(filler).unwrap();
    holds(&lab, &[1, 2]);
}

#[test]
fn a_watch_prunes_a_full_disk_and_takes_its_snapshot() {
    let (lab, _crowd) = need!(crowded(tmpfs));
    fork(&lab);
    let image = lab.path("vm.img");
    put(&image, 0, &noise(5, MIB));
    keep(&image, &lab.path("5"));
    fill_all(&lab);
    let every = ["watch", &image, "--every", "1h", "--keep-last", "1", "--json"];
    let watch = lab.start(&every);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while lab.numbers("vm") != [4, 5] && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    watch.signal(nix::sys::signal::Signal::SIGTERM);
    // While somebody lists it, nothing can be removed: then the next turn takes it.
    let told = watch.wait().done().out;
    let turns: Vec<serde_json::Value> = String::from_utf8_lossy(&told)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(turns.last().unwrap()["event"], "snapshot", "{turns:?}");
    assert!(turns.iter().any(|turn| turn["dropped"] == 3), "{turns:?}");
    assert!(lab.numbers("vm").ends_with(&[4, 5]));
    holds(&lab, &[4, 5]);
}

fn skips_what_does_not_fit(mount: fn(&Lab) -> Result<Crowd, String>) -> Result<(), String> {
    let (lab, _crowd) = crowded(mount)?;
    let filler = fill(&lab.path("mnt"), 2 * MIB);
    let files = lab.named("vm");
    let prune = ["prune", "vm", "--keep-last", "1", "--compact"];
    // Nothing is dropped for nothing.
    let refused = lab.run(&prune).fails(1).says("nothing was dropped: ");
    refused
        .says("MiB of free space; merging 3 files of \"vm\" needs ")
        .says("the newest of a chain");
    let dry = [&prune[..], &["--dry-run"]].concat();
    lab.run(&dry).fails(1).says("nothing would be dropped: ");
    holds(&lab, &[1, 2, 3]);
    for number in 1..=2 {
        lab.run(&["delete", &format!("vm@{number}")]).done();
    }
    for round in 0..2 {
        let run =
            lab.run(&prune).done().says("MiB of free space; merging 3 files of \"vm\" needs ");
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
            // It would free nothing.
            _ => {
                run.fails(1).says("nothing was dropped: ").says("merging 3 files");
                assert_eq!(numbers, [1, 2, 3], "{kib} KiB");
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
    lab.run(&["delete", "vm@1", "--compact"]).done().says("MiB of free space; merging 2 files");
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
    lab.run(&["apply", &full, "-o", &out])
        .fails(1)
        .says("has 1 MiB of free space; the image needs 8 MiB");
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
