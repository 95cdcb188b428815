//! Tracking by clones that does not work as it should: a file system that lies, references that do not
//! serve, no room; and several repositories of one image.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use serde_json::Value;
use std::os::unix::fs::symlink;

const BLOCK: u64 = 4096;
const XFS: (&str, &[&str]) = ("mkfs.xfs", &["-q", "-m", "reflink=1"]);
const BTRFS: (&str, &[&str]) = ("mkfs.btrfs", &["-q"]);

pub type Guards = (Loop, Mount);

/// An image of 2 MiB, half of it a hole, on a file system that can clone.
fn lab_on((mkfs, args): (&str, &[&str])) -> Result<(Lab, Guards, String), String> {
    let lab = Lab::new();
    let guards = mounted(&lab, mkfs, args, 400)?;
    let image = lab.path("mnt/vm.img");
    make(&image, 2 * MIB);
    put(&image, MIB, &noise(1, MIB));
    lab.run(&["init"]).done();
    Ok((lab, guards, image))
}

pub fn xfs() -> Result<(Lab, Guards, String), String> {
    lab_on(XFS)
}

pub fn tracked<'a>(image: &'a str, recheck: &'a str) -> [&'a str; 7] {
    ["snapshot", image, "--track", "reflink", "--recheck", recheck, "--json"]
}

/// Takes a snapshot without a recheck, sees that it is the image, and gives what is told of it.
#[track_caller]
pub fn take(lab: &Lab, image: &str) -> (Value, String) {
    let run = lab.run(&tracked(image, "0")).done();
    let taken = run.json();
    same(image, &lab.restore(taken["ref"].as_str().unwrap()));
    (taken, run.err)
}

pub fn clones(lab: &Lab) -> Vec<String> {
    let folder = lab.path("mnt/.imgsnap");
    if std::fs::exists(&folder).unwrap() { names_in(&folder) } else { Vec::new() }
}

/// The path of the only clone.
#[track_caller]
pub fn clone_of(lab: &Lab) -> String {
    let names = clones(lab);
    assert_eq!(names.len(), 1, "{names:?}");
    lab.path(&format!("mnt/.imgsnap/{}", names[0]))
}

#[track_caller]
pub fn is_by_extents(taken: &Value) {
    assert_eq!(taken["hint"]["kind"], "extents", "{taken}");
    assert!(taken["full_scan_reason"].is_null(), "{taken}");
    assert!(taken["read_bytes"].as_u64().unwrap() <= MIB / 8, "{taken}");
}

#[track_caller]
pub fn is_whole(taken: &Value, reason: &str) {
    assert!(taken["hint"].is_null(), "{taken}");
    assert!(taken["full_scan_reason"].as_str().unwrap().contains(reason), "{taken}");
}

/// Three snapshots, of which the third proves that tracking works here.
#[track_caller]
pub fn track(lab: &Lab, image: &str) {
    for number in 1..=3 {
        put(image, MIB + number * 8 * BLOCK, &noise(number, BLOCK));
        let (taken, err) = take(lab, image);
        assert_eq!((taken["number"].as_u64(), err.as_str()), (Some(number), ""));
        if number > 1 {
            is_by_extents(&taken);
            assert_eq!(taken["changed_blocks"], 1, "{taken}");
        }
    }
}

/// Tells of every file that it has no extents.
const LIAR: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <stdarg.h>
    struct fiemap { unsigned long long start, length; unsigned flags, mapped, count, reserved; };
    int ioctl(int fd, unsigned long request, ...) {
        va_list list;
        va_start(list, request);
        void *argument = va_arg(list, void *);
        va_end(list);
        if ((unsigned) request == 0xC020660B) {
            ((struct fiemap *) argument)->mapped = 0;
            return 0;
        }
        int (*next)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
        return next(fd, request, argument);
    }
"#;

pub fn liar(lab: &Lab) -> Result<String, String> {
    let (source, library) = (lab.path("liar.c"), lab.path("liar.so"));
    std::fs::write(&source, LIAR).unwrap();
    try_tool("cc", &["-shared", "-fPIC", "-o", &library, &source, "-ldl"])?;
    Ok(library)
}

/// A snapshot that is told that nothing changed.
fn take_deceived(lab: &Lab, image: &str, liar: &str) -> Run {
    let mut command = lab.command(&tracked(image, "10%"));
    command.env("LD_PRELOAD", liar);
    Started::spawn(command).wait().done()
}

/// `writes`: is the image written to between snapshots? Otherwise its times say, from the second one on,
/// that it is unchanged, which is as wrong.
fn finds_what_was_missed(writes: bool) -> Result<(), String> {
    let (lab, _guards, image) = xfs()?;
    tools(&["cc"])?;
    let liar = liar(&lab)?;
    track(&lab, &image);
    let at = MIB + 100 * BLOCK;
    put(&image, at, &noise(77, BLOCK));
    let (mut taken, mut cycle, mut rounds) = (Value::Null, 1, 0);
    while rounds < cycle {
        rounds += 1;
        let run = take_deceived(&lab, &image, &liar);
        taken = run.json();
        cycle = taken["hint"]["recheck_cycle"].as_u64().unwrap();
        assert_eq!(cycle, 10);
        assert_eq!(taken["hint"]["named_bytes"], 0, "the liar was not asked: {taken}");
        let kind = if writes || rounds == 1 { "extents" } else { "times" };
        assert_eq!(taken["hint"]["kind"], kind, "{taken}");
        if taken["hint"]["missed_blocks"] != 0 {
            run.says("that should have been unchanged had changed")
                .says("the next snapshot reads the whole image");
            break;
        }
        assert_eq!((taken["changed_blocks"].as_u64(), run.err.as_str()), (Some(0), ""));
        if writes {
            // The same block, and nobody sees it.
            put(&image, at, &noise(100 + rounds, BLOCK));
        }
    }
    assert_eq!(taken["hint"]["missed_blocks"], 1, "not found in {rounds} snapshots: {taken}");
    assert!(rounds > 1, "the first snapshot looked at it: this test shows too little");
    assert_eq!(taken["changed_blocks"], 1);
    same(&image, &lab.restore(taken["ref"].as_str().unwrap()));

    // From now on nothing is believed, until all was read once.
    put(&image, 7 * BLOCK, &noise(78, BLOCK));
    let run = take_deceived(&lab, &image, &liar);
    let next = run.json();
    is_whole(&next, "had missed changes");
    assert_eq!((next["changed_blocks"].as_u64(), run.err.as_str()), (Some(1), ""));
    same(&image, &lab.restore(next["ref"].as_str().unwrap()));

    put(&image, 9 * BLOCK, &noise(79, BLOCK));
    let (after, err) = take(&lab, &image);
    is_by_extents(&after);
    assert_eq!((after["changed_blocks"].as_u64(), err.as_str()), (Some(1), ""));
    lab.verify(usize::try_from(after["number"].as_u64().unwrap()).unwrap());
    Ok(())
}

#[test]
fn what_extents_hide_is_found_by_the_recheck_within_a_cycle() {
    need!(finds_what_was_missed(true));
}

#[test]
fn what_was_hidden_once_is_found_by_the_recheck_though_the_times_say_unchanged() {
    need!(finds_what_was_missed(false));
}

/// After `harm` the image changes; the next snapshot reads all of it, for `reason`, and tracking goes on.
/// `foreign`: so many files in the folder of clones are not ours.
fn does_not_serve(harm: fn(&Lab, &str), reason: &str, foreign: usize) -> Result<(), String> {
    for system in [XFS, BTRFS] {
        let (lab, _guards, image) = lab_on(system)?;
        track(&lab, &image);
        harm(&lab, &image);
        put(&image, MIB + 64 * BLOCK, &noise(5, 3 * BLOCK));
        let (taken, err) = take(&lab, &image);
        is_whole(&taken, reason);
        assert!(taken["changed_blocks"].as_u64() >= Some(3), "{taken}");
        // One that somebody else put there has no mark of ours, and stays.
        let kept = clones(&lab).len();
        assert_eq!((err.as_str(), kept), ("", 1 + foreign), "{taken}");
        put(&image, MIB + 65 * BLOCK, &noise(6, BLOCK));
        let (taken, _) = take(&lab, &image);
        is_by_extents(&taken);
        assert_eq!(taken["changed_blocks"], 1, "{taken}");
    }
    Ok(())
}

#[test]
fn a_clone_that_was_deleted_leads_to_a_full_scan() {
    let harm = |lab: &Lab, _: &str| std::fs::remove_file(clone_of(lab)).unwrap();
    need!(does_not_serve(harm, "the clone of vm@3 is missing", 0));
}

#[test]
fn a_clone_that_was_written_to_leads_to_a_full_scan() {
    let harm = |lab: &Lab, image: &str| {
        let clone = clone_of(lab);
        // What the image will get: to believe the clone would be wrong.
        let times = std::fs::metadata(&clone).unwrap().modified().unwrap();
        put(&clone, MIB + 64 * BLOCK, &noise(5, BLOCK));
        {
            let _calm = no_fork();
            std::fs::File::options().write(true).open(&clone).unwrap().set_modified(times).unwrap();
        }
        assert_ne!(get(image, MIB + 64 * BLOCK, BLOCK), noise(5, BLOCK));
    };
    need!(does_not_serve(harm, "the clone of vm@3 has changed", 0));
}

/// The worst: the map of the new one is the map of the live image, so nothing seems to have changed.
fn replace_by_clone(lab: &Lab, image: &str, is_other_file: bool) {
    let clone = clone_of(lab);
    let times = std::fs::metadata(&clone).unwrap().modified().unwrap();
    put(image, MIB + 30 * BLOCK, &noise(9, BLOCK));
    if is_other_file {
        std::fs::remove_file(&clone).unwrap();
    }
    tool("cp", &["--reflink=always", image, &clone]);
    let _calm = no_fork();
    std::fs::File::options().write(true).open(&clone).unwrap().set_modified(times).unwrap();
}

#[test]
fn a_clone_that_was_replaced_by_a_clone_of_the_changed_image_leads_to_a_full_scan() {
    let harm = |lab: &Lab, image: &str| replace_by_clone(lab, image, true);
    need!(does_not_serve(harm, "the clone of vm@3 has changed", 1));
}

#[test]
fn a_clone_into_which_the_changed_image_was_cloned_leads_to_a_full_scan() {
    let harm = |lab: &Lab, image: &str| replace_by_clone(lab, image, false);
    need!(does_not_serve(harm, "the clone of vm@3 has changed", 0));
}

#[test]
fn a_clone_that_became_a_link_to_the_image_leads_to_a_full_scan() {
    let harm = |lab: &Lab, image: &str| {
        let clone = clone_of(lab);
        std::fs::remove_file(&clone).unwrap();
        symlink(image, &clone).unwrap();
    };
    // The link has the name of a clone, and is not ours: it stays.
    let (lab, _guards, image) = need!(xfs());
    track(&lab, &image);
    harm(&lab, &image);
    put(&image, MIB + 64 * BLOCK, &noise(5, BLOCK));
    is_whole(&take(&lab, &image).0, "the clone of vm@3 cannot be opened");
    put(&image, MIB + 65 * BLOCK, &noise(6, BLOCK));
    is_by_extents(&take(&lab, &image).0);
    assert_eq!(clones(&lab).len(), 2);
}

/// Without a folder for the clone the snapshot is made all the same, with a warning.
fn no_folder(harm: fn(&Lab)) -> Result<(), String> {
    let (lab, _guards, image) = xfs()?;
    track(&lab, &image);
    std::fs::rename(lab.path("mnt/.imgsnap"), lab.path("mnt/away")).unwrap();
    harm(&lab);
    let before = names_in(&lab.path("mnt/away"));
    for round in 1..=2 {
        put(&image, MIB + round * BLOCK, &noise(round, BLOCK));
        let (taken, err) = take(&lab, &image);
        assert!(err.contains("mnt/.imgsnap is not a folder"), "{err}");
        assert_eq!(taken["changed_blocks"], 1, "{taken}");
    }
    let kind = lab.path("mnt/.imgsnap");
    assert!(!std::fs::symlink_metadata(&kind).unwrap().is_dir(), "it was replaced");
    assert_eq!(names_in(&lab.path("mnt/away")), before);
    std::fs::remove_file(&kind).unwrap();
    take(&lab, &image);
    put(&image, MIB + 9 * BLOCK, &noise(10, BLOCK));
    is_by_extents(&take(&lab, &image).0);
    Ok(())
}

#[test]
fn a_folder_of_clones_that_is_a_file_is_left_alone_and_warned_of() {
    need!(no_folder(|lab| make(&lab.path("mnt/.imgsnap"), 100)));
}

#[test]
fn a_folder_of_clones_that_is_a_link_to_an_empty_one_is_left_alone_and_warned_of() {
    need!(no_folder(|lab| {
        std::fs::create_dir(lab.path("mnt/empty")).unwrap();
        symlink(lab.path("mnt/empty"), lab.path("mnt/.imgsnap")).unwrap();
    }));
}

#[test]
fn a_folder_of_clones_that_is_a_link_to_where_they_are_is_left_alone_and_warned_of() {
    need!(no_folder(|lab| symlink(lab.path("mnt/away"), lab.path("mnt/.imgsnap")).unwrap()));
}

/// A list may be older than the image: what it leaves out must not be taken for known later.
#[test]
fn what_a_list_left_out_is_found_by_the_extents_of_the_next_snapshot() {
    let (lab, _guards, image) = need!(xfs());
    track(&lab, &image);
    let (listed, left_out) = (MIB + 50 * BLOCK, MIB + 90 * BLOCK);
    put(&image, listed, &noise(20, BLOCK));
    put(&image, left_out, &noise(21, BLOCK));
    let list = lab.path("list");
    std::fs::write(&list, format!("{listed} {BLOCK}\n")).unwrap();
    let args = [&tracked(&image, "0")[..], &["--changed", &list, "--since", "@3"]].concat();
    let taken = lab.run(&args).done().json();
    assert_eq!((&taken["hint"]["kind"], &taken["changed_blocks"]), (&"list".into(), &1.into()));
    put(&image, listed, &noise(22, BLOCK));
    let (taken, _) = take(&lab, &image);
    is_by_extents(&taken);
    assert_eq!(taken["changed_blocks"], 2, "{taken}");
}

/// Where others than XFS and btrfs clone, nobody knows what addresses mean that they tell (those of SMB are
/// the offsets in the file).
#[test]
fn an_image_on_another_file_system_that_clones_is_not_tracked() {
    let (lab, _guards, _) = need!(xfs());
    for folder in ["mnt/lower", "mnt/upper", "mnt/work"] {
        std::fs::create_dir(lab.path(folder)).unwrap();
    }
    let [lower, upper, work] =
        ["lower", "upper", "work"].map(|name| lab.path(&format!("mnt/{name}")));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let _overlay =
        need!(Mount::new(&["-t", "overlay", "-o", &options, "overlay"], &lab.path("over")));
    let image = lab.path("over/vm.img");
    make(&image, MIB);
    put(&image, 0, &noise(1, BLOCK));
    lab.run(&tracked(&image, "0")).fails(1).says("keep the image on XFS or btrfs");
    for number in 1..=2 {
        put(&image, 0, &noise(number, BLOCK));
        let run = lab.run(&["snapshot", &image, "--json"]).done();
        assert_eq!((&run.json()["hint"], run.err.as_str()), (&Value::Null, ""));
        same(&image, &lab.restore(&format!("vm@{number}")));
    }
    assert_eq!(names_in(&lab.path("over")), ["vm.img"]);
}

/// Takes all room of a file system, down to the last inode.
fn fill(lab: &Lab) {
    let _calm = no_fork();
    let file = std::fs::File::create(lab.path("mnt/filler")).unwrap();
    let (mut at, mut piece) = (0, MIB as usize);
    let bytes = noise(3, MIB);
    while piece > 0 {
        match std::os::unix::fs::FileExt::write_at(&file, &bytes[..piece], at) {
            Ok(written) => at += written as u64,
            Err(_) => piece /= 2,
        }
    }
    file.sync_all().ok();
    let mut names = 0;
    while std::fs::create_dir(lab.path(&format!("mnt/filler-{names}-{}", "x".repeat(200)))).is_ok()
    {
        names += 1;
    }
}

fn without_room(system: (&str, &[&str])) -> Result<(), String> {
    let (lab, _guards, image) = lab_on(system)?;
    fill(&lab);
    assert!(std::fs::create_dir(lab.path("mnt/.imgsnap")).is_err(), "there is room");
    for _ in 0..2 {
        let taken = lab.run(&["snapshot", &image, "--json"]).done().json();
        same(&image, &lab.restore(taken["ref"].as_str().unwrap()));
        assert_eq!(clones(&lab), [""; 0]);
    }
    // Who insists on it gets it or an error: that depends on what it is that has no room.
    let insisted = lab.run(&tracked(&image, "0")).says("No space left on device");
    let numbers: &[u64] = if insisted.code() == Some(0) { &[1, 2, 3] } else { &[1, 2] };
    assert_eq!(lab.numbers("vm"), numbers);
    for number in numbers {
        same(&image, &lab.restore(&format!("vm@{number}")));
    }
    lab.is_tidy("vm");
    Ok(())
}

#[test]
fn a_full_xfs_does_not_stop_snapshots_of_an_image_that_nobody_uses() {
    need!(without_room(XFS));
}

#[test]
fn a_full_btrfs_does_not_stop_snapshots_of_an_image_that_nobody_uses() {
    need!(without_room(BTRFS));
}

/// Where the image shares its extents with a clone, writing in place takes room. `is_saved`: there is a
/// snapshot of the present state; `reflink`: clones are not just made where they can be.
fn rolls_back_without_room(is_saved: bool, reflink: bool) -> Result<(), String> {
    for (number, system) in [XFS, BTRFS].into_iter().enumerate() {
        let (lab, _guards, image) = lab_on(system)?;
        if reflink {
            crate::config::add(&lab.repo, "[snapshot]\ntrack = \"reflink\"\n");
        }
        take(&lab, &image);
        let first = lab.path("first");
        keep(&image, &first);
        put(&image, MIB / 2, &noise(2, MIB));
        if is_saved {
            take(&lab, &image);
        }
        fill(&lab);
        let mut done = lab.run(&["rollback", "vm", "--to", "@1"]);
        // A full btrfs may have no room for anything, with clones or without.
        if number == 1 && done.code() != Some(0) {
            done.fails(1).says("No space left on device");
            std::fs::remove_file(lab.path("mnt/filler")).unwrap();
            done = lab.run(&["rollback", "vm", "--to", "@1"]);
        }
        done.done();
        same(&image, &first);
        assert_eq!(lab.numbers("vm"), [1, 2]);
    }
    Ok(())
}

#[test]
fn a_rollback_finds_room_by_letting_go_of_the_clones() {
    need!(rolls_back_without_room(true, false));
    need!(rolls_back_without_room(false, true));
}

#[test]
fn two_repositories_of_one_image_leave_each_others_clones_alone() {
    let (mut lab, _guards, image) = need!(xfs());
    let repos = [lab.path("repo"), lab.path("other")];
    lab.run(&["--repo", &repos[1], "init"]).done();
    for round in 0..4 {
        for repo in &repos {
            lab.repo.clone_from(repo);
            put(&image, MIB + round * BLOCK, &noise(round, BLOCK));
            let (taken, err) = take(&lab, &image);
            assert_eq!(err, "");
            if round > 0 {
                is_by_extents(&taken);
            }
        }
        assert_eq!(clones(&lab).len(), 2);
    }
    // What one gives up is its own.
    let untracked = lab.run(&["untrack", "vm", "--json"]).done().json();
    assert_eq!(untracked["clones"], 1);
    lab.repo.clone_from(&repos[0]);
    put(&image, MIB, &noise(9, BLOCK));
    is_by_extents(&take(&lab, &image).0);
    lab.run(&["remove", "vm", "--yes"]).done();
    assert_eq!(clones(&lab), [""; 0]);
    assert!(!std::fs::exists(lab.path("mnt/.imgsnap")).unwrap());
}

#[test]
fn an_image_that_is_removed_takes_its_clones_along_and_no_others() {
    let (lab, _guards, image) = need!(xfs());
    let second = lab.path("mnt/second.img");
    keep(&image, &second);
    take(&lab, &image);
    take(&lab, &second);
    assert_eq!(clones(&lab).len(), 2);
    lab.run(&["remove", "vm", "--yes"]).done();
    assert_eq!(clones(&lab).len(), 1);
    put(&second, 0, &noise(4, BLOCK));
    is_by_extents(&take(&lab, &second).0);
}

#[test]
fn an_image_that_is_relinked_to_another_folder_takes_its_clones_along() {
    let (lab, _guards, image) = need!(xfs());
    track(&lab, &image);
    std::fs::create_dir(lab.path("mnt/folder")).unwrap();
    let moved = lab.path("mnt/folder/vm.img");
    std::fs::rename(&image, &moved).unwrap();
    lab.run(&["relink", "vm", &moved]).done();
    assert_eq!(clones(&lab), [""; 0]);
    put(&moved, 0, &noise(4, BLOCK));
    is_whole(&take(&lab, &moved).0, "is missing");
    put(&moved, 0, &noise(5, BLOCK));
    is_by_extents(&take(&lab, &moved).0);
    assert_eq!(clones(&lab), [""; 0]);
    assert_eq!(names_in(&lab.path("mnt/folder/.imgsnap")).len(), 1);
}
