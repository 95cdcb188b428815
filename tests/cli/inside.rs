//! What is not ours stays: files of others in a repository, and images, targets and exports that somebody wants
//! to keep there.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BUSY, DAMAGE, FAILED, KIB, Lab, disk, noise, same};
use std::fs::{File, hard_link};
use std::os::unix::fs::symlink;

/// An image in the folder that its snapshots would get.
fn lab() -> (Lab, Vec<u8>) {
    let lab = Lab::new();
    let bytes = disk(1, 64 * KIB);
    std::fs::create_dir_all(lab.path("repo/vm/deep/er")).unwrap();
    lab.write("repo/vm/vm.img", &bytes);
    lab.write("repo/vm/deep/er/vm.img", &bytes);
    lab.write("web.img", &noise(2, 64 * KIB));
    lab.done(&["snapshot", "web.img"]);
    (lab, bytes)
}

#[test]
fn an_image_in_the_repository_is_refused_by_every_verb_through_whatever_it_is_called() {
    let (lab, bytes) = lab();
    symlink(lab.path("repo/vm/vm.img"), lab.path("link.img")).unwrap();
    symlink(lab.path("repo/vm"), lab.path("folder")).unwrap();
    hard_link(lab.path("repo/vm/vm.img"), lab.path("hard.img")).unwrap();
    let names =
        ["repo/vm/vm.img", "repo/vm/deep/er/vm.img", "link.img", "folder/vm.img", "hard.img"];
    for image in names {
        for args in [
            &["snapshot", image][..],
            &["snapshot", image, "--name", "other", "--dry-run"],
            &["snapshot", "web.img", "--full", "--base-image", image],
            &["relink", "web", image],
            &["relink", "web", "--base-image", image],
        ] {
            let line = lab.fails(FAILED, args);
            assert!(line.contains("is inside the repository"), "{args:?}: {line}");
        }
    }
    let inside = ["repo/new.img", "repo/vm/new.img", "repo/web/new.img", "folder/new.img"];
    for target in inside.into_iter().chain(names) {
        for args in [
            &["restore", "web@1", "-o", target, "--force"][..],
            &["export", "web@1", "-o", target, "--force"],
        ] {
            let line = lab.fails(FAILED, args);
            assert!(line.contains("is inside the repository"), "{args:?}: {line}");
        }
    }
    // One that an earlier program let in.
    lab.forge_known_of("web", |known| known["source"] = lab.at("repo/vm/vm.img").into());
    let line = lab.fails(FAILED, &["rollback", "web", "--to", "@1"]);
    assert!(line.contains("is inside the repository"), "{line}");
    same(&lab.read("repo/vm/vm.img"), &bytes, "the image");
}

#[test]
fn no_file_is_made_in_any_repository_by_those_that_need_none() {
    let (lab, _) = lab();
    lab.done(&["export", "web@1", "-o", "web.delta"]);
    lab.done(&["restore", "web@1", "-o", "old.img"]);
    lab.write("web.img", &noise(3, 64 * KIB));
    lab.done(&["snapshot", "web.img"]);
    lab.done(&["export", "web@2", "--since", "@1", "-o", "two.delta"]);
    lab.write("repo/vm/old.img", &lab.read("old.img"));
    lab.done(&["--repo", "other", "init"]);
    for args in [
        &["apply", "web.delta", "-o", "repo/vm/new.img"][..],
        &["apply", "two.delta", "--base", "repo/vm/old.img", "--in-place"],
        // Another repository than that which is used.
        &["restore", "web@1", "-o", "other/new.img"],
        &["export", "web@1", "-o", "other/new.delta"],
        &["man", "repo/vm"],
        &["man", "other"],
        &["--repo", "repo/vm/sub", "init"],
    ] {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("is inside the repository"), "{args:?}: {line}");
    }
}

/// Rule P0.
#[test]
fn what_imgsnap_has_not_put_there_is_never_removed() {
    let (lab, bytes) = lab();
    let theirs = [
        "repo/vm/vm.img",
        "repo/vm/deep/er/vm.img",
        "repo/vm/notes.tmp",
        "repo/vm/.mine.tmp",
        "repo/vm/mine.delta",
        "repo/vm/manifest.old",
        "repo/.mine.tmp",
    ];
    theirs.iter().for_each(|file| lab.write(file, &bytes));
    let are_there = |when: &str| {
        for file in theirs {
            same(&lab.read(file), &bytes, &format!("{file} after {when}"));
        }
    };
    lab.write("vm.img", &bytes);
    // A first snapshot that fails takes nothing along but what it made.
    {
        let writer = File::options().append(true).open(lab.path("vm.img")).unwrap();
        lab.run(&["snapshot", "vm.img", "--track", "none"]).failed(BUSY);
        drop(writer);
    }
    are_there("a snapshot of an image in use");
    lab.write("bad.delta", &{
        lab.done(&["export", "web@1", "-o", "web.delta"]);
        let mut bad = lab.read("web.delta");
        bad[300] ^= 1;
        bad
    });
    lab.done(&["--repo", "other", "init"]);
    std::fs::create_dir(lab.path("other/vm")).unwrap();
    lab.write("other/vm/vm.img", &bytes);
    lab.run(&["--repo", "other", "import", "bad.delta", "--name", "vm"]).failed(DAMAGE);
    same(&lab.read("other/vm/vm.img"), &bytes, "after an import");
    // A good one, and all that ends it.
    for _ in 0..2 {
        lab.done(&["snapshot", "vm.img"]);
        are_there("a snapshot");
        lab.done(&["snapshot", "vm.img", "--full"]);
        lab.done(&["prune", "vm", "--keep-last", "1"]);
        are_there("a prune");
        let run = lab.run(&["remove", "vm", "--yes"]).done();
        assert!(
            run.err.contains("repo/vm is kept: something not created by imgsnap is in it"),
            "{}",
            run.err
        );
        are_there("remove");
        let mut left = lab.stored("vm");
        left.retain(|name| !theirs.contains(&format!("repo/vm/{name}").as_str()));
        assert_eq!(left, ["deep"]);
    }
    // Nothing of that is an image.
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_base_image_is_overwritten_by_nobody() {
    let lab = Lab::new();
    lab.write("golden.img", &disk(1, 64 * KIB));
    lab.write("clone.img", &disk(1, 64 * KIB));
    lab.write("web.img", &disk(2, 64 * KIB));
    lab.done(&["snapshot", "clone.img", "--base-image", "golden.img"]);
    lab.done(&["snapshot", "web.img"]);
    symlink(lab.path("golden.img"), lab.path("link.img")).unwrap();
    hard_link(lab.path("golden.img"), lab.path("hard.img")).unwrap();
    for reference in ["web@1", "clone@1"] {
        for target in ["golden.img", "link.img", "hard.img"] {
            for verb in ["restore", "export"] {
                let line = lab.fails(FAILED, &[verb, reference, "-o", target, "--force"]);
                assert!(line.contains("is the base image of clone@1"), "{line}");
            }
        }
    }
    // Nor by a rollback of what it is the live file of, nor while it cannot be told what needs it.
    let line = lab.fails(FAILED, &["relink", "web", "golden.img"]);
    assert!(line.contains("is the base image of clone@1"), "{line}");
    let (manifest, web) = (lab.manifest("clone"), lab.manifest("web"));
    let (good, of_web) = (lab.read(&manifest), lab.read(&web));
    let known = lab.read(&lab.known_of("web"));
    lab.forge_known_of("web", |known| {
        known["source"] = lab.at("golden.img").into();
        known["live"] = serde_json::Value::Null;
    });
    let line = lab.fails(FAILED, &["rollback", "web", "--to", "@1"]);
    assert!(line.contains("is the base image of clone@1"), "{line}");
    lab.write(&web, &of_web);
    lab.write(&lab.known_of("web"), &known);
    lab.write(&manifest, b"damaged");
    let line = lab.fails(DAMAGE, &["restore", "web@1", "-o", "golden.img", "--force"]);
    assert!(line.contains("it is not known whether"), "{line}");
    // What is saved first is lost to nobody.
    let line = lab.fails(DAMAGE, &["rollback", "web", "--to", "@1", "--no-save"]);
    assert!(line.contains("it is not known whether"), "{line}");
    for args in [&["rollback", "web", "--to", "@1"][..], &["relink", "web", "web.img"]] {
        let run = lab.run(args).done();
        assert!(run.err.contains("it is not known whether"), "{args:?}: {}", run.err);
    }
    lab.write(&manifest, &good);
    lab.restores("clone@2", &disk(1, 64 * KIB));
    lab.done(&["flatten", "clone@2"]);
    lab.done(&["delete", "clone@1"]);
    lab.done(&["restore", "web@1", "-o", "golden.img", "--force"]);
    lab.restores("clone@2", &disk(1, 64 * KIB));
}
