//! Owner, mode and extended attributes of an image: remembered by a snapshot (FORMAT.md J14), given back by a
//! restore, as far as that harms nobody.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{KIB, Lab, Run, disk, forge, skipped};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::chown;

const LIST: &str = "system.posix_acl_access";
const DEFAULT_LIST: &str = "system.posix_acl_default";

/// Nobody has these numbers.
const USER: u32 = 54_321;
const COLLEAGUE: u32 = 54_322;
const GROUP: u32 = 54_323;

/// An access control list: `USER` may read and write, the group nothing, the others what the last digit of
/// the mode says.
fn access_list(others: u16) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    // The owner, a user, the group, the mask, others.
    let entries = [(1, 6, NO_ID), (2, 6, USER), (4, 0, NO_ID), (16, 6, NO_ID), (32, others, NO_ID)];
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(u16::to_le_bytes(tag));
        list.extend(u16::to_le_bytes(permissions));
        list.extend(u32::to_le_bytes(id));
    }
    list
}

/// A lab with an image of some KiB.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("disk.img", &disk(1, 64 * KIB));
    lab
}

#[test]
fn a_restore_gives_back_permissions_and_what_users_say_of_their_files() {
    const TEST: &str = "a_restore_gives_back_permissions_and_what_users_say_of_their_files";
    let list = access_list(4);
    // Mode of the image, an extended attribute of it, and what comes back.
    for (mode, xattr, restored_mode, is_restored) in [
        (0o600, None, 0o600, false),
        (0o640, None, 0o640, false),
        (0o444, None, 0o444, false),
        (0o777, None, 0o777, false),
        (0o4755, None, 0o755, false),
        (0o2770, None, 0o770, false),
        (0o1666, None, 0o666, false),
        (0o640, Some(("user.comment", &b"the mail server"[..])), 0o640, true),
        (0o444, Some(("user.empty", b"")), 0o444, true),
        (0o640, Some(("user.imgsnap.owner", b"a clone of mine")), 0o640, false),
        (0o640, Some(("trusted.x", b"for root alone")), 0o640, false),
        // cap_setuid, permitted.
        (
            0o755,
            Some(("security.capability", b"\x01\0\0\x02\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")),
            0o755,
            false,
        ),
        // The list sets the mode as well.
        (0o664, Some((LIST, &list)), 0o664, true),
    ] {
        let lab = lab();
        lab.set_mode("disk.img", mode);
        let what = format!("{mode:o} {:?}", xattr.map(|(name, _)| name));
        if let Some((name, value)) = xattr
            && !lab.set_xattr("disk.img", name, value)
        {
            skipped(TEST, &format!("the attribute {name} cannot be set here"));
            continue;
        }
        lab.done(&["snapshot", "disk.img"]);
        let run = lab.run(&["restore", "disk@1", "-o", "out.img"]).done();
        assert_eq!(run.err, "", "{what}");
        assert_eq!(
            format!("{:o}", lab.whose("out.img")[0]),
            format!("{restored_mode:o}"),
            "{what}"
        );
        assert_eq!(lab.whose("out.img")[1..], lab.whose("disk.img")[1..], "{what}");
        let wanted: BTreeMap<String, Vec<u8>> = xattr
            .filter(|_| is_restored)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        // What the system gives to every file is none of ours.
        let mut found = lab.xattrs("out.img");
        found.retain(|name, _| name != "security.selinux");
        assert_eq!(found, wanted, "{what}");
        assert_eq!(std::fs::read_dir(lab.path(".")).unwrap().count(), 4, "nothing stays behind");
    }
}

#[test]
fn what_is_remembered_of_a_file_is_shown() {
    let lab = lab();
    lab.set_mode("disk.img", 0o4640);
    let [_, uid, gid] = lab.whose("disk.img");
    lab.done(&["snapshot", "disk.img"]);
    let shown = lab.json(&["show", "disk@1"]);
    let wanted = json!({ "uid": uid, "gid": gid, "mode": "0640", "xattrs": [] });
    assert_eq!(shown["attributes"], wanted);
    let text = lab.done(&["show", "disk@1"]);
    let line = format!("\n  file mode  0640, user {uid}, group {gid}\n");
    assert!(text.contains(&line), "{text}");
    // A merge does not lose it; a repair without any manifest cannot know it.
    lab.write("disk.img", &disk(2, 64 * KIB));
    lab.done(&["snapshot", "disk.img"]);
    lab.done(&["delete", "disk@1"]);
    assert_eq!(lab.json(&["show", "disk@2"])["attributes"], wanted);
    lab.lose_manifests("disk");
    lab.done(&["repair", "disk"]);
    assert_eq!(lab.json(&["show", "disk@2"])["attributes"], Value::Null);
}

#[test]
fn a_file_of_which_nothing_is_remembered_is_its_owners_alone() {
    type Change = fn(&mut Value);
    let set = |attributes: Value| move |m: &mut Value| m["snapshots"][0]["attributes"] = attributes;
    let given = |uid: u32, mode: &str, xattr: &str| json!({ "uid": uid, "gid": 0, "mode": mode, "xattrs": { (xattr): "01" } });
    let of_before: Change =
        |m| drop(m["snapshots"][0].as_object_mut().unwrap().remove("attributes"));
    let lab = lab();
    lab.set_mode("disk.img", 0o644);
    lab.done(&["snapshot", "disk.img"]);
    let good = lab.read(&lab.manifest("disk"));
    let lies = [
        given(0, "4777", "user.x"),
        given(0, "0777", "security.capability"),
        given(0, "0777", "trusted.x"),
        given(0, "0777", "user.imgsnap.owner"),
        given(u32::MAX, "0777", "user.x"),
        json!({ "mode": "0777" }),
        json!("0777"),
        Value::Null,
    ];
    let check = |what: &str, args: &[&str]| {
        let restore = ["restore", "disk@1", "-o", "out.img"];
        let run = lab.run(&[&restore[..], args].concat()).done();
        assert_eq!((lab.whose("out.img")[0], run.err.as_str()), (0o600, ""), "{what}");
        assert!(lab.xattrs("out.img").keys().all(|name| name == "security.selinux"), "{what}");
        lab.remove("out.img");
    };
    check("a part", &["--range", "0+4K"]);
    forge(&lab, "disk", of_before);
    check("an earlier manifest", &[]);
    for lie in lies {
        lab.write(&lab.manifest("disk"), &good);
        let what = lie.to_string();
        forge(&lab, "disk", set(lie));
        check(&what, &[]);
        assert_eq!(lab.json(&["show", "disk@1"])["attributes"], Value::Null, "{what}");
    }
    // Nor does a list that the folder gives to its files let anybody in, whatever the mode says.
    lab.write(&lab.manifest("disk"), &good);
    std::fs::create_dir(lab.path("out")).unwrap();
    if !lab.set_xattr("out", DEFAULT_LIST, &access_list(7)) {
        return skipped("a_file_of_which_nothing_is_remembered", "no access control lists here");
    }
    lab.done(&["restore", "disk@1", "-o", "out/disk.img"]);
    assert_eq!(lab.whose("out/disk.img")[0], 0o644);
    assert!(!lab.xattrs("out/disk.img").contains_key(LIST));
}

#[test]
fn what_is_replaced_or_rolled_back_keeps_its_own() {
    const TEST: &str = "what_is_replaced_or_rolled_back_keeps_its_own";
    for (mode, xattr) in [
        (0o600, None),
        (0o640, None),
        (0o640, Some(("user.comment", b"mine".to_vec()))),
        (0o660, Some((LIST, access_list(0)))),
    ] {
        let lab = lab();
        lab.set_mode("disk.img", 0o606);
        let has_xattrs = lab.set_xattr("disk.img", "user.image", b"");
        lab.done(&["snapshot", "disk.img"]);
        lab.write("disk.img", &disk(2, 64 * KIB));
        lab.write("out.img", b"old");
        for target in ["out.img", "disk.img"] {
            lab.set_mode(target, mode);
            // Only root can tell here that an owner is kept.
            let is_given = chown(lab.path(target), Some(USER), Some(GROUP)).is_ok();
            if let Some((name, value)) = &xattr
                && !(has_xattrs && lab.set_xattr(target, name, value))
            {
                skipped(TEST, &format!("the attribute {name} cannot be set here"));
                continue;
            }
            let before = (lab.whose(target), lab.xattrs(target));
            assert!(!is_given || before.0 == [mode, USER, GROUP]);
            match target {
                "out.img" => lab.done(&["restore", "disk@1", "-o", target, "--force"]),
                _ => lab.done(&["rollback", "disk", "--to", "@1"]),
            };
            assert_eq!((lab.whose(target), lab.xattrs(target)), before, "{mode:o} {xattr:?}");
            assert_eq!(lab.read(target), disk(1, 64 * KIB));
        }
    }
}

#[test]
fn a_file_is_given_to_its_owner_and_group_as_far_as_the_caller_may() {
    const TEST: &str = "a_file_is_given_to_its_owner_and_group_as_far_as_the_caller_may";
    let has_lists = lab().set_xattr("disk.img", LIST, &access_list(0));
    // Mode of the image, and what is left of it without the group.
    for (mode, has_list, mode_left) in
        [(0o664, false, 0o604), (0o640, false, 0o600), (0o606, false, 0o600), (0o664, true, 0o600)]
    {
        let lab = lab();
        lab.set_mode("disk.img", mode);
        if chown(lab.path("disk.img"), Some(USER), Some(GROUP)).is_err() {
            return skipped(TEST, "a file can only be given away by root");
        }
        let list = access_list(4);
        if has_list && !(has_lists && lab.set_xattr("disk.img", LIST, &list)) {
            return skipped(TEST, "no access control lists here");
        }
        lab.done(&["snapshot", "disk.img", "--track", "none"]);
        for folder in ["repo", "repo/disk", "out"] {
            std::fs::create_dir_all(lab.path(folder)).unwrap();
            lab.set_mode(folder, 0o755);
        }
        for file in lab.stored("disk") {
            lab.set_mode(&format!("repo/disk/{file}"), 0o666);
        }
        lab.set_mode("repo/repository.toml", 0o644);
        lab.set_mode("repo/config.000001", 0o644);
        lab.set_mode("out", 0o777);
        // Who restores it, and whose it is then.
        for (user, group, whose, is_whole) in [
            (0, 0, [mode, USER, GROUP], true),
            (USER, GROUP, [mode, USER, GROUP], true),
            (COLLEAGUE, GROUP, [mode, COLLEAGUE, GROUP], true),
            (COLLEAGUE, COLLEAGUE, [mode_left, COLLEAGUE, COLLEAGUE], false),
        ] {
            let what = format!("{mode:o}: {user}:{group}, with a list: {has_list}");
            let args = ["restore", "disk@1", "-o", "out/disk.img"];
            let run = Run::of(&mut lab.command_as(user, group, &args)).done();
            assert_eq!(lab.whose("out/disk.img"), whose, "{what}");
            let found = lab.xattrs("out/disk.img").remove(LIST);
            assert_eq!(found, (has_list && is_whole).then(|| list.clone()), "{what}");
            let told = run.err.lines().any(|line| line.contains("could not be given the group"));
            assert_eq!(told, !is_whole, "{what}: {}", run.err);
            lab.remove("out/disk.img");
        }
    }
}
