//! Every verb, over each kind of store.

use crate::kit::{Lab, MIB, Server, is_near, is_thorough, noise, s3, skipped};
use crate::random::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Child;

/// A process, which does not outlive the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _was_there = self.0.kill();
        let _its_end = self.0.wait();
    }
}

/// Takes snapshots and does with them what can be done, twice: with what the first host knows, and from
/// another host that knows nothing.
fn every_verb(lab: &Lab) {
    let first = lab.read("disk.img");
    let base = lab.json(&["snapshot", "disk.img", "--label", "first"]);
    assert_eq!(base["number"], 1, "{base}");
    let second = lab.change(1);
    lab.done(&["snapshot", "disk.img"]);
    let third = lab.change(2);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!((&taken["number"], &taken["changed_blocks"]), (&3.into(), &3.into()), "{taken}");
    for (reference, bytes) in [("disk@first", &first), ("disk@2", &second), ("disk@3", &third)] {
        lab.ensure_is(reference, bytes);
    }
    assert!(lab.done(&["list"]).contains("3 snapshots"));
    lab.done(&["show", "disk@2"]);
    lab.done(&["stats"]);
    assert!(lab.done(&["diff", "disk@1", "disk@3"]).contains("disk@3"));
    assert!(lab.done(&["verify"]).contains("no damage found"));
    lab.done(&["verify", "--quick"]);
    lab.done(&["config", "show"]);
    lab.done(&["protect", "disk@2"]);
    lab.fails(&["delete", "disk@2"]);
    lab.done(&["protect", "disk@2", "--off"]);
    lab.done(&["label", "disk@3", "third"]);
    lab.done(&["export", "disk@1", "-o", "one.delta"]);
    let other = format!("{}2", lab.repo);
    lab.done(&["--repo", &other, "import", "one.delta", "--name", "copy"]);
    lab.done(&["--repo", &other, "verify"]);
    // Back to the first one, and forth again.
    lab.done(&["rollback", "disk.img", "--to", "disk@1"]);
    assert!(lab.read("disk.img") == first);
    lab.done(&["rollback", "disk.img", "--to", "disk@third"]);
    assert!(lab.read("disk.img") == third);
    // What is dropped in the middle is merged, or stays until it may go.
    lab.done(&["delete", "disk@2"]);
    lab.ensure_is("disk@3", &third);
    lab.done(&["flatten", "disk@3"]);
    lab.done(&["prune", "disk", "--keep-last", "1", "--compact"]);
    lab.ensure_is("disk@3", &third);
    // Workers.
    lab.write("other.img", &noise(9, 2 * MIB));
    let plan = lab.json(&["plan", "other.img", "--part-size", "1M", "--source-held", "a test"]);
    let planned = plan.as_array().map_or(&plan, |all| &all[0]);
    let id = planned["plan"].as_str().unwrap_or_else(|| panic!("{plan}")).to_owned();
    for task in ["1", "2"] {
        lab.done(&["part", &id, task]);
    }
    lab.done(&["join", &id]);
    lab.ensure_is("other@1", &noise(9, 2 * MIB));
    // Another host, which has neither a state nor a cache.
    let run = lab.run_as("two", &["restore", "disk@3", "-o", "elsewhere.img"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(lab.read("elsewhere.img") == third);
    assert_eq!(lab.run_as("two", &["verify"]).code, Some(0));
    lab.done(&["repair"]);
    lab.done(&["remove", "other", "--yes"]);
    lab.fails(&["show", "other@1"]);
    lab.ensure_is("disk@3", &third);
    // Again and again, until it is told to stop.
    let last = lab.change(3);
    let newest =
        || lab.json(&["list", "disk"]).as_array().unwrap().last().unwrap()["number"].as_u64();
    let before = newest();
    let watch = lab.command_as("one", &["-q", "watch", "--every", "1s", "disk.img"]).spawn();
    let mut watch = Ended(watch.unwrap());
    let is_taken = wait_until(|| newest() > before);
    kill(Pid::from_raw(i32::try_from(watch.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(is_taken && wait_until(|| watch.0.try_wait().unwrap().is_some()));
    assert_eq!(watch.0.wait().unwrap().code(), Some(0));
    lab.ensure_is("disk@latest", &last);
}

#[test]
fn over_ssh() {
    every_verb(&Lab::by_ssh(""));
}

#[test]
fn over_sshd() {
    if !(is_thorough() || is_near("sshd")) {
        return skipped("over_sshd", "no sshd here; another program stands in for it in over_ssh");
    }
    let Some(server) = Server::start("sshd", &[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = &server.env()["IMGSNAP_TEST_SSH_CONFIG"];
    let mut env = server.env().clone();
    env.insert("IMGSNAP_SSH".into(), format!("ssh -F {config}"));
    env.insert("IMGSNAP_SSH_PROGRAM".into(), env!("CARGO_BIN_EXE_imgsnap").into());
    let lab = Lab::new(&format!("ssh://test{}/r", folder.path().to_str().unwrap()), &env);
    every_verb(&lab);
}

#[test]
fn in_s3() {
    let Some((server, env)) = s3() else { return };
    every_verb(&server.lab("s3://imgsnap-test/some/where", &env));
}

#[test]
fn in_hdfs() {
    if !(is_thorough() || is_near("hadoop-3.4.2")) {
        return skipped(
            "in_hdfs",
            "no Hadoop in the cache of test servers: just servers fetches it",
        );
    }
    let Some(server) = Server::start("hdfs", &["1"]) else { return };
    let url = format!("{}/backup/r", server.env()["IMGSNAP_TEST_HDFS"]);
    server.tell("dfs", &["-mkdir", "-p", "/backup"]);
    every_verb(&Lab::new(&url, server.env()));
}

#[test]
fn in_azure() {
    if !is_thorough() {
        return skipped("in_azure", "only with all servers");
    }
    let Some(server) = Server::start("azurite", &[]) else { return };
    server.tell("bucket", &["imgsnap-test"]);
    every_verb(&Lab::new("az://imgsnap-test/r", server.env()));
}

#[test]
fn in_google_cloud_storage() {
    let Some(server) = Server::start("gcs", &[]) else { return };
    server.tell("bucket", &["imgsnap-test"]);
    every_verb(&Lab::new("gs://imgsnap-test/r", server.env()));
}
