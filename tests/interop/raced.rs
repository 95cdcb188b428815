//! Folders that another user can write to, and who exchanges what is in them, all the time, for what leads
//! elsewhere: nothing is made, replaced or written but where it belongs.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::unistd::fchownat;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// A user who is not we.
const OTHER: u32 = 54_321;
/// How often each verb is run while names are exchanged.
const ROUNDS: usize = 40;

/// Exchanges two names until it is dropped.
struct Exchange {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Exchange {
    fn of(one: String, other: String) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_over, counted) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let flags = RenameFlags::RENAME_EXCHANGE;
                let done = renameat2(AT_FDCWD, one.as_str(), AT_FDCWD, other.as_str(), flags);
                counted.fetch_add(u64::from(done.is_ok()), Ordering::Relaxed);
            }
        });
        Self { stop, count, thread: Some(thread) }
    }

    /// Ends it, and gives how often they were exchanged.
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Their folder, of another user, and ours, in which nothing may happen.
fn folders(below: &str) -> (String, String) {
    let (theirs, ours) = (format!("{below}/theirs"), format!("{below}/ours"));
    for folder in [&theirs, &ours] {
        std::fs::create_dir(folder).unwrap();
    }
    chown(&theirs, Some(OTHER), Some(OTHER)).unwrap();
    (theirs, ours)
}

/// A link that the other user made.
fn link_of_theirs(to: &str, link: &str) {
    symlink(to, link).unwrap();
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(AT_FDCWD, link, Some(OTHER.into()), None, flags).unwrap();
}

/// It may have worked, or been refused; it said so, and did not crash.
#[track_caller]
fn ended(run: &Run) -> bool {
    assert!(matches!(run.code(), Some(0 | 1 | 3 | 4)), "{:?}: {}", run.status, run.err);
    run.code() == Some(0)
}

#[test]
fn no_clone_is_made_where_an_exchanged_folder_leads() {
    need!(root());
    let lab = Lab::new();
    let (_device, mount) = need!(mounted(&lab, "mkfs.xfs", &["-m", "reflink=1"], 320));
    let (theirs, ours) = folders(&lab.path("mnt"));
    let image = format!("{theirs}/vm.img");
    make(&image, 4 * MIB);
    put(&image, 0, &noise(1, MIB));
    chown(&image, Some(OTHER), Some(OTHER)).unwrap();
    lab.run(&["snapshot", &image, "--track", "reflink"]).done();
    // What was made there is ours; a link to our folder takes its place again and again.
    let link = format!("{theirs}/link");
    symlink(&ours, &link).unwrap();
    let exchange = Exchange::of(format!("{theirs}/.imgsnap"), link);
    let mut worked = 0;
    for round in 0..ROUNDS {
        put(&image, 4096 * round as u64, &noise(round as u64, 4096));
        worked += u64::from(ended(&lab.run(&["snapshot", &image])));
        lab.run(&["list"]).done();
        if round % 8 == 7 {
            ended(&lab.run(&["untrack", "vm"]));
        }
    }
    assert!(exchange.end() > 100 && worked == ROUNDS as u64, "{worked}");
    assert_eq!(names_in(&ours), Vec::<String>::new(), "files in a folder that is not theirs");
    lab.verify(ROUNDS + 1);
    drop(mount);
}

#[test]
fn no_clone_is_kept_in_a_folder_of_a_third_user() {
    need!(root());
    let lab = Lab::new();
    let (_device, mount) = need!(mounted(&lab, "mkfs.xfs", &["-m", "reflink=1"], 320));
    let (theirs, _) = folders(&lab.path("mnt"));
    let image = format!("{theirs}/vm.img");
    make(&image, MIB);
    put(&image, 0, &noise(1, MIB));
    let clones = format!("{theirs}/.imgsnap");
    for (owner, mode) in [(12_345, 0o700), (OTHER, 0o770), (0, 0o777)] {
        std::fs::create_dir(&clones).unwrap();
        chown(&clones, Some(owner), Some(owner)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&clones, mode).unwrap();
        let run = lab.run(&["snapshot", &image, "--full", "--track", "reflink"]).done();
        assert!(
            run.err.contains("belongs to another user, or others can change it"),
            "{}",
            run.err
        );
        assert_eq!(names_in(&clones), Vec::<String>::new());
        std::fs::remove_dir(&clones).unwrap();
    }
    // Of whoever has the folder of the image it is.
    std::fs::create_dir(&clones).unwrap();
    chown(&clones, Some(OTHER), Some(OTHER)).unwrap();
    lab.run(&["snapshot", &image, "--full", "--track", "reflink"]).done();
    assert_eq!(names_in(&clones).len(), 1);
    drop(mount);
}

#[test]
fn a_rollback_writes_to_the_file_that_was_recorded_and_to_no_other() {
    need!(root());
    let lab = Lab::new();
    let (theirs, ours) = folders(&lab.path("."));
    let (image, victim) = (format!("{theirs}/vm.img"), format!("{ours}/victim"));
    for file in [&image, &victim] {
        make(file, MIB);
        put(file, 0, &noise(1, MIB));
    }
    let real = lab.path("theirs/real");
    lab.snapshot(&image);
    put(&image, 0, &noise(2, MIB));
    lab.snapshot(&image);
    let kept = lab.path("kept");
    keep(&victim, &kept);
    let is_whole = || same(&victim, &kept);
    // Another one is in its place: a link, a hard link, another file, and it again.
    std::fs::rename(&image, &real).unwrap();
    symlink(&victim, &image).unwrap();
    let rollback = &["rollback", "vm", "--to", "@1"];
    lab.run(rollback).fails(1).says("now leads to");
    std::fs::remove_file(&image).unwrap();
    std::fs::hard_link(&victim, &image).unwrap();
    lab.run(rollback).fails(1).says("it was replaced by another file");
    lab.run(&["rollback", "vm", "--to", "@1", "--no-save"]).fails(1).says("relink vm");
    lab.run(&["rollback", "vm", "--to", "@1", "--dry-run"]).fails(1);
    std::fs::remove_file(&image).unwrap();
    std::fs::rename(&real, &image).unwrap();
    is_whole();
    lab.run(rollback).done();
    is_whole();
    // And while they are exchanged all the time.
    for (other, is_link) in [("link", true), ("hard", false)] {
        let other = format!("{theirs}/{other}");
        match is_link {
            true => symlink(&victim, &other).unwrap(),
            false => std::fs::hard_link(&victim, &other).unwrap(),
        }
        let exchange = Exchange::of(image.clone(), other.clone());
        // Each change of a name is one of the file's times, too: a rollback waits for them to settle.
        for round in 0..ROUNDS / 8 {
            let to = format!("@{}", 1 + round % 2);
            ended(&lab.run(&["rollback", "vm", "--to", &to]));
        }
        let count = exchange.end();
        assert!(count > 100, "{count}");
        is_whole();
        if std::fs::symlink_metadata(&image).unwrap().is_symlink()
            || std::fs::metadata(&image).unwrap().ino() == std::fs::metadata(&victim).unwrap().ino()
        {
            std::fs::rename(&other, &image).unwrap();
        }
    }
}

#[test]
fn a_restore_replaces_nothing_that_a_link_of_another_user_leads_to() {
    need!(root());
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, MIB);
    put(&image, 0, &noise(1, MIB));
    lab.snapshot(&image);
    let (theirs, ours) = folders(&lab.path("."));
    let victim = format!("{ours}/victim");
    std::fs::write(&victim, "precious").unwrap();
    let target = format!("{theirs}/out.img");
    // Their links are not followed, ours are.
    link_of_theirs(&victim, &target);
    let restore = &["restore", "vm@1", "-o", &target, "--force"];
    lab.run(restore).fails(1).says("is a symbolic link of another user");
    symlink(format!("{theirs}/real.img"), format!("{ours}/link.img")).unwrap();
    make(&format!("{theirs}/real.img"), 1);
    lab.run(&["restore", "vm@1", "-o", &format!("{ours}/link.img"), "--force"]).done();
    same(&image, &format!("{theirs}/real.img"));
    // A link that takes the place of the folder, and of the file.
    std::fs::remove_file(&target).unwrap();
    std::fs::write(&target, "old").unwrap();
    let before = names_in(&ours);
    for (one, other, leads_to) in
        [(&target, format!("{theirs}/x"), victim.clone()), (&theirs, lab.path("y"), ours.clone())]
    {
        link_of_theirs(&leads_to, &other);
        let exchange = Exchange::of(one.clone(), other);
        for _ in 0..ROUNDS {
            ended(&lab.run(restore));
            ended(&lab.run(&["export", "vm@1", "-o", &format!("{theirs}/a.delta"), "--force"]));
        }
        assert!(exchange.end() > 100);
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(names_in(&ours), before, "files in a folder that is not theirs");
    }
}

#[test]
fn nothing_of_a_repository_is_read_or_made_through_a_link_in_it() {
    need!(root());
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, MIB);
    put(&image, 0, &noise(1, MIB));
    lab.snapshot(&image);
    let (_, ours) = folders(&lab.path("."));
    // The folder of an image is exchanged for ours, in a repository that is another user's.
    chown(&lab.repo, Some(OTHER), Some(OTHER)).unwrap();
    let link = format!("{}/link", lab.repo);
    symlink(&ours, &link).unwrap();
    let exchange = Exchange::of(format!("{}/vm", lab.repo), link.clone());
    for round in 0..ROUNDS {
        put(&image, 0, &noise(round as u64, 4096));
        ended(&lab.run(&["snapshot", &image]));
        ended(&lab.run(&["prune", "vm", "--keep-last", "2"]));
        ended(&lab.run(&["label", "vm@latest", &format!("l{round}")]));
    }
    assert!(exchange.end() > 100);
    assert_eq!(names_in(&ours), Vec::<String>::new());
    if std::fs::symlink_metadata(&link).unwrap().is_dir() {
        renameat2(
            AT_FDCWD,
            link.as_str(),
            AT_FDCWD,
            format!("{}/vm", lab.repo).as_str(),
            RenameFlags::RENAME_EXCHANGE,
        )
        .unwrap();
    }
    // A link where a folder should be is told, and does not look like an image that is gone.
    lab.run(&["list"]).fails(1).says("links are not followed in a repository");
    std::fs::remove_file(&link).unwrap();
    let verified = lab.run(&["verify", "--json"]).done().json();
    assert_eq!(verified["damaged"], serde_json::json!([]));
}
