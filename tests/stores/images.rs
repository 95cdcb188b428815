//! Images in stores: read by ranges, found by patterns, written whole.

use crate::kit::{Lab, s3};

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
    assert!(line.contains("was written to since it was planned"), "{line}");
    let line = lab.fails(&["snapshot", "s3://imgsnap-test/images/none.img"]);
    assert!(line.contains("none.img"), "{line}");
}
