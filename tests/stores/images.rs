//! Images in stores: read by ranges, found by patterns, written whole.

use crate::kit::{Lab, MIB, noise, s3};
use std::process::Stdio;

#[test]
fn an_image_in_a_bucket_is_read_and_written() {
    let Some((_server, env)) = s3() else { return };
    let mut lab = Lab::new("", &env);
    lab.repo = lab.at("repo");
    let first = lab.read("disk.img");
    lab.done(&["snapshot", "disk.img"]);
    let second = lab.change(1);
    lab.done(&["snapshot", "disk.img"]);
    let image = "s3://imgsnap-test/images/vm.img";
    lab.done(&["restore", "disk@1", "-o", image]);
    let line = lab.fails(&["restore", "disk@2", "-o", image]);
    assert!(line.contains("exists") && line.contains("--force"), "{line}");
    // By its name, or by a pattern that no shell expands.
    let taken = lab.json(&["snapshot", "s3://imgsnap-test/images/*.img"]);
    assert_eq!((&taken["name"], &taken["number"]), (&"vm".into(), &1.into()), "{taken}");
    lab.ensure_is("vm@1", &first);
    // What the server calls the same content is not read again as a whole.
    let again = lab.json(&["snapshot", image, "--name", "vm"]);
    assert!(again["read_bytes"].as_u64() < Some(first.len() as u64), "{again}");
    lab.done(&["restore", "disk@2", "-o", image, "--force"]);
    lab.done(&["snapshot", image, "--name", "vm"]);
    lab.ensure_is("vm@latest", &second);
    let line = lab.fails(&["rollback", image, "--to", "vm@1"]);
    assert!(line.contains("cannot be changed in place"), "{line}");
    // Its ETag keeps it as it is for workers: nobody need say why nobody writes to it.
    let plan = lab.json(&["plan", image, "--name", "planned", "--part-size", "2M"]);
    let planned = plan.as_array().map_or(&plan, |all| &all[0]);
    let id = planned["plan"].as_str().unwrap_or_else(|| panic!("{plan}")).to_owned();
    lab.done(&["part", &id, "1"]);
    lab.done(&["part", &id, "2"]);
    lab.done(&["join", &id]);
    lab.ensure_is("planned@1", &second);
    let plan = lab.json(&["plan", image, "--name", "again", "--part-size", "2M"]);
    let planned = plan.as_array().map_or(&plan, |all| &all[0]);
    let id = planned["plan"].as_str().unwrap().to_owned();
    lab.done(&["restore", "disk@1", "-o", image, "--force"]);
    let line = lab.fails(&["part", &id, "1"]);
    assert!(line.contains("was modified since it was planned"), "{line}");
    let line = lab.fails(&["snapshot", "s3://imgsnap-test/images/none.img"]);
    assert!(line.contains("none.img"), "{line}");
}

/// W7: one upload, of which each worker sends some pieces.
#[test]
fn workers_restore_a_snapshot_to_one_object() {
    let Some((_server, env)) = s3() else { return };
    let mut lab = Lab::new("", &env);
    lab.repo = lab.at("repo");
    let mut bytes = noise(7, 18 * MIB + 300);
    bytes[7 * MIB..17 * MIB].fill(0);
    lab.write("vm.img", &bytes);
    lab.done(&["snapshot", "vm.img"]);
    let target = "s3://imgsnap-test/images/whole.img";
    let args = ["plan", "--restore", "vm@1", "-o", target, "--part-size", "8M"];
    let planned = |args: &[&str]| lab.json(args)["plan"].as_str().unwrap().to_owned();
    let plan = planned(&args);
    // What is a hole is sent as well.
    assert_eq!(lab.json(&["plan", "show", &plan])["tasks"].as_array().unwrap().len(), 3);
    let part = |task: &str| lab.command_as("other", &["part", &plan, task]);
    // Two do the same.
    let mut twins = [part("1"), part("1")].map(|mut c| c.stderr(Stdio::null()).spawn().unwrap());
    assert!(twins.iter_mut().all(|twin| twin.wait().unwrap().success()));
    let unfinished = lab.run(&["join", &plan]);
    assert!(unfinished.out.contains("2 tasks not done yet"), "{unfinished:?}");
    for task in ["2", "3", "3"] {
        assert!(part(task).output().unwrap().status.success());
    }
    // A report that leaves a piece out, or tells of other blocks, makes no image.
    let name_of = |task: u32| {
        let names = std::fs::read_dir(lab.path("repo")).unwrap();
        let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let name = names.find(|name| name.starts_with(&format!("plan.{plan}.{task}.")));
        format!("repo/{}", name.unwrap())
    };
    let report = name_of(3);
    let told = lab.read(&report);
    for (key, other) in [("pieces", "[]"), ("terms", "\"00000000000000000000000000000001\"")] {
        let (_, body) = std::str::from_utf8(&told).unwrap().split_once('\n').unwrap();
        let mut body: serde_json::Value = serde_json::from_str(body).unwrap();
        body["outcome"]["sent"][key] = serde_json::from_str(other).unwrap();
        let body = format!("{}\n", serde_json::to_string_pretty(&body).unwrap());
        let digest = xxhash_rust::xxh3::xxh3_128(body.as_bytes());
        lab.write(&report, format!("imgsnap-attempt 1 {digest:032x}\n{body}").as_bytes());
        assert_eq!(lab.run(&["join", &plan]).code, Some(3), "{key}");
    }
    lab.write(&report, &told);
    // A join is killed when all but the end of the plan is done.
    let kept: Vec<(String, Vec<u8>)> =
        [format!("repo/plan.{plan}"), name_of(1), name_of(2), report]
            .map(|name| (name.clone(), lab.read(&name)))
            .into();
    lab.done(&["join", &plan]);
    kept.iter().for_each(|(name, bytes)| lab.write(name, bytes));
    let line = lab.fails(&["join", &plan]);
    assert!(line.contains("is over"), "nobody told that it was to be named: {line}");
    lab.done(&["plan", "drop", &plan]);
    lab.done(&["snapshot", target, "--name", "back"]);
    lab.ensure_is("back@1", &bytes);
    let line = lab.fails(&args);
    assert!(line.contains("whole.img exists"), "{line}");
    // It appears meanwhile: then it stays what it is.
    let other = "s3://imgsnap-test/images/other.img";
    let plan = planned(&["plan", "--restore", "vm@1", "-o", other]);
    lab.done(&["part", &plan, "1"]);
    lab.write("disk.img", b"precious");
    lab.done(&["snapshot", "disk.img", "--name", "small"]);
    lab.done(&["restore", "small@1", "-o", other]);
    let line = lab.fails(&["join", &plan]);
    assert!(line.contains("other.img exists"), "{line}");
    lab.done(&["plan", "drop", &plan]);
    assert_eq!(lab.run(&["part", &plan, "1"]).code, Some(6));
    lab.done(&["snapshot", other, "--name", "kept"]);
    lab.ensure_is("kept@1", b"precious");
    let line = lab.fails(&["plan", "--restore", "vm@1", "-o", "nbd://127.0.0.1/x"]);
    assert!(line.contains("several workers cannot write to"), "{line}");
}
