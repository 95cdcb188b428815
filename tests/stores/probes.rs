//! Stores that do not keep two hosts apart are found out before anything is written (FORMAT.md S8).

use crate::kit::{Lab, Server, is_thorough, skipped};

#[test]
fn a_bucket_with_versions_is_refused() {
    if !is_thorough() {
        return skipped("a_bucket_with_versions_is_refused", "only with all servers");
    }
    let Some(server) = Server::start("radosgw", &[]) else { return };
    server.tell("bucket", &["with-versions", "--versioned"]);
    let lab = Lab::new("s3://with-versions/r", server.env());
    let line = lab.fails(&["snapshot", "disk.img"]);
    assert!(line.contains("cannot exclude concurrent writers"), "{line}");
    assert!(line.contains("init --single-writer"), "{line}");
    // One host alone may use it, and no other.
    lab.done(&["init", "--single-writer"]);
    let first = lab.read("disk.img");
    lab.done(&["snapshot", "disk.img"]);
    lab.ensure_is("disk@1", &first);
    let other = lab.run_as("one", &["config", "show"]);
    assert!(other.out.contains("single_writer"), "{other:?}");
}
