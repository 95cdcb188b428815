//! One repository and several hosts: whose a live image is, what a host remembers, and what it does not believe.

use crate::support::{FAILED, Lab, Run, integer, spawn};
use serde_json::json;
use std::process::Command;

/// The same repository from another host: `name` is its machine id.
fn on(lab: &Lab, name: &str, args: &[&str]) -> Run {
    let mut command: Command = lab.command(args);
    command.env("IMGSNAP_MACHINE_ID", name);
    command.env("IMGSNAP_STATE", lab.path(&format!("state-{name}")));
    Run::of(&mut command)
}

/// Rules J15, S1.
#[test]
fn a_live_image_belongs_to_the_host_that_made_it() {
    let (lab, states) = Lab::with_snapshots(3);
    // Of the same path and name, which is another image there.
    let line = on(&lab, "b", &["snapshot", "disk.img"]).failed(FAILED);
    assert!(
        line.contains("\"disk\" is already the name of") && line.contains("on another host"),
        "{line}"
    );
    assert!(line.contains("--name") && line.contains("imgsnap relink disk"), "{line}");
    let line = on(&lab, "b", &["rollback", "disk", "--to", "@1"]).failed(FAILED);
    assert!(line.contains("the live file of \"disk\" is on another host"), "{line}");
    assert_eq!(lab.read("disk.img"), states[2], "nobody has written to it");
    on(&lab, "b", &["snapshot", "disk.img", "--name", "of-b"]).done();
    // What needs no live image works anywhere, and leaves what the first host knows alone.
    on(&lab, "b", &["restore", "disk@1", "-o", "out.img"]).done();
    assert_eq!(lab.read("out.img"), states[0]);
    let listed = on(&lab, "b", &["list", "disk"]).done().text();
    assert!(listed.contains(":") && listed.contains("disk.img") && !listed.contains("(head)"));
    on(&lab, "b", &["prune", "disk", "--keep-last", "2"]).done();
    assert!(lab.done(&["list", "disk"]).contains("(head)"));
    let skipped = lab.json(&["snapshot", "disk.img", "--skip-unchanged"]);
    assert_eq!(skipped["skipped"], json!(true), "{skipped}");
    // The way out, and it is no longer the first one's.
    lab.write("moved.img", &states[2]);
    on(&lab, "b", &["relink", "disk", "moved.img"]).done();
    on(&lab, "b", &["rollback", "disk", "--to", "@2"]).done();
    assert_eq!(lab.read("moved.img"), states[1]);
}

/// Rule J15.
#[test]
fn a_rollback_that_was_interrupted_stops_every_host() {
    let (lab, states) = Lab::with_snapshots(3);
    let id = lab.json(&["show", "disk@1"])["id"].clone();
    crate::support::forge(&lab, "disk", |manifest| {
        let host = manifest["host"].clone();
        manifest["rollback"] = json!({"host": host, "target": id, "saved": null});
        manifest["needs"] = json!(["rollback"]);
    });
    for host in ["b", "c"] {
        on(&lab, host, &["snapshot", "disk.img"]).failed(FAILED);
    }
    let line = lab.fails(FAILED, &["snapshot", "disk.img"]);
    assert!(line.contains("a rollback of \"disk\" to disk@1 was interrupted"), "{line}");
    lab.done(&["rollback", "disk", "--to", "@1"]);
    assert_eq!(lab.read("disk.img"), states[0]);
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 4);
}

/// Rule S2.
#[test]
fn what_another_machine_has_written_down_is_not_believed() {
    let (lab, states) = Lab::with_snapshots(2);
    // A cloned /var: the record is there, but of another machine.
    lab.forge_known_of("disk", |known| {
        known["machine"] = "0123456789abcdef0123456789abcdef".into()
    });
    let run = lab.run(&["rollback", "disk", "--to", "@1", "--json"]).done();
    assert_eq!(run.json()["scanned"], json!(true), "its head is unknown");
    assert_eq!(lab.read("disk.img"), states[0]);
    // Nor one that is damaged, and that is said.
    lab.write(&lab.known_of("disk"), b"{ \"machine\": 7");
    let run = lab.run(&["snapshot", "disk.img"]).done();
    assert!(run.err.contains("imgsnap: warning:") && run.err.contains(".json"), "{}", run.err);
    assert!(lab.run(&["list"]).done().err.is_empty());
}

/// Rule S4.
#[test]
fn what_an_earlier_program_kept_in_the_repository_is_moved_by_who_has_the_live_file() {
    let (lab, states) = Lab::with_snapshots(2);
    let ids: Vec<_> =
        [1, 2].map(|n| lab.json(&["show", &format!("disk@{n}")])["id"].clone()).into();
    let head =
        json!({"snapshot": ids[0], "stat": null, "intent": {"target": ids[0], "saved": ids[1]}});
    lab.as_of_before("disk", head.to_string().as_bytes());
    // Not by who has not got it.
    let image = lab.read("disk.img");
    lab.remove("disk.img");
    lab.done(&["label", "disk@2", "x"]);
    assert!(lab.exists("repo/disk/head.json"));
    lab.write("disk.img", &image);
    crate::support::forge(&lab, "disk", |manifest| {
        manifest.as_object_mut().unwrap().remove("live");
    });
    lab.run(&["snapshot", "disk.img"]).failed(FAILED);
    assert!(!lab.exists("repo/disk/head.json"), "it is moved");
    assert!(lab.exists(&lab.known_of("disk")));
    let line = lab.fails(FAILED, &["snapshot", "disk.img"]);
    assert!(line.contains("a rollback of \"disk\" to disk@1 was interrupted"), "{line}");
    lab.done(&["rollback", "disk", "--to", "@1"]);
    assert_eq!(lab.read("disk.img"), states[0]);
    lab.done(&["snapshot", "disk.img", "--skip-unchanged"]);
}

/// Rule S3.
#[test]
fn a_repository_that_was_turned_back_is_told_of() {
    let (lab, _) = Lab::with_snapshots(2);
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(lab.path("repo")).arg(lab.path("copy"));
    assert!(spawn(&mut copy).wait().unwrap().success());
    let mut bytes = lab.read("disk.img");
    bytes[0] ^= 1;
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    std::fs::remove_dir_all(lab.path("repo")).unwrap();
    std::fs::rename(lab.path("copy"), lab.path("repo")).unwrap();
    let run = lab.run(&["list", "disk"]).done();
    assert!(run.err.contains("\"disk\" is in an older state"), "{}", run.err);
    // Once it is known that this is what rules now, it is not told again.
    lab.run(&["snapshot", "disk.img"]).done();
    assert!(lab.run(&["list", "disk"]).done().err.is_empty());
}
