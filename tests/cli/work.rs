//! `imgsnap plan`, `part` and `join`: workers that know nothing but a repository and a plan.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::naive_reader;
use crate::support::{BLOCK, FAILED, KIB, Lab, integer, no_fork, noise, string};
use serde_json::Value;
use std::os::unix::fs::FileExt;

const CELL: usize = 64 * KIB;
const HELD: &str = "nobody has it open";

/// A plan of images in a lab.
struct Work {
    lab: Lab,
    plan: String,
    tasks: Vec<Value>,
}

/// Six cells and a bit, the third of which is zeros.
fn image(seed: u64) -> Vec<u8> {
    let mut image = noise(seed, 6 * CELL + 300);
    image[2 * CELL..3 * CELL].fill(0);
    image
}

impl Work {
    fn plan(lab: Lab, args: &[&str]) -> Self {
        let given = ["plan", "--source-held", HELD];
        let planned = lab.json(&[&given[..], args].concat());
        let plan = string(&planned, "plan").to_owned();
        Self { lab, plan, tasks: planned["tasks"].as_array().unwrap().clone() }
    }

    /// Of `vm.img`, in which the zeros are a hole.
    fn base() -> (Self, Vec<u8>) {
        let lab = Lab::new();
        let bytes = image(1);
        {
            let _calm = no_fork();
            let file = std::fs::File::create(lab.path("vm.img")).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            file.write_all_at(&bytes[..2 * CELL], 0).unwrap();
            file.write_all_at(&bytes[3 * CELL..], 3 * CELL as u64).unwrap();
        }
        (Self::plan(lab, &["vm.img", "--part-size", "64K", "--label", "first"]), bytes)
    }

    fn part(&self, task: u64) -> Value {
        self.lab.json(&["part", &self.plan, &task.to_string()])
    }

    fn make_all(&self) {
        self.tasks.iter().for_each(|task| drop(self.part(integer(task, "task"))));
    }

    fn make_all_of(&self, name: &str) {
        let of = self.tasks.iter().filter(|task| task["image"] == name);
        of.for_each(|task| drop(self.part(integer(task, "task"))));
    }

    fn join(&self) -> String {
        self.lab.done(&["join", &self.plan])
    }

    /// These snapshots, for both readers, and no plan any more.
    fn holds(&self, kept: &[(u64, &[u8])]) {
        self.lab.holds("vm", kept);
        for (number, bytes) in kept {
            let read = naive_reader::restore_from(&self.lab.path("repo/vm"), *number).unwrap();
            assert!(read == *bytes, "the second reader, {number}");
        }
        let left = std::fs::read_dir(self.lab.path("repo")).unwrap();
        let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let plans: Vec<String> = names.filter(|name| name.starts_with("plan.")).collect();
        assert!(plans.is_empty(), "{plans:?}");
    }
}

/// W1, W2, W3, W4, W5
#[test]
fn workers_make_a_base_and_then_what_has_changed() {
    let (work, first) = Work::base();
    // A cell without data needs nobody. The largest come first.
    assert_eq!(work.tasks.len(), 6);
    let sizes: Vec<u64> = work.tasks.iter().map(|task| integer(task, "data_bytes")).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    assert_eq!(integer(&work.tasks[0], "task"), 1);
    let unfinished = work.lab.run(&["join", &work.plan]);
    assert_eq!(unfinished.code, Some(FAILED));
    let told = unfinished.text();
    assert!(told.contains("vm: 6 tasks not done yet: 1, 2, 3"), "{told}");
    work.make_all();
    assert!(work.lab.done(&["plan", "list"]).contains("6 of 6 tasks done"));
    let joined = work.join();
    assert!(joined.contains("vm@1  joined: 6 parts"), "{joined}");
    work.holds(&[(1, &first)]);
    let shown = work.lab.json(&["list", "vm"]);
    assert_eq!((string(&shown[0], "label"), string(&shown[0], "held")), ("first", HELD));

    // A delta, by which the image shrinks.
    let mut second = first[..4 * CELL + 5].to_vec();
    second[CELL + 7..CELL + 9000].fill(7);
    work.lab.write("vm.img", &second);
    let work = Work::plan(work.lab, &["vm.img"]);
    work.make_all();
    work.join();
    work.holds(&[(1, &first), (2, &second)]);
    // Nothing has changed, and then it is a plain snapshot again.
    let work = Work::plan(work.lab, &["vm.img"]);
    work.make_all();
    work.join();
    work.lab.done(&["snapshot", "vm.img"]);
    work.holds(&[(1, &first), (2, &second), (3, &second), (4, &second)]);
}

#[test]
fn whatever_workers_do_twice_or_late_does_no_harm() {
    let (work, bytes) = Work::base();
    let made = work.part(1);
    let again = work.part(1);
    assert_eq!((&made["object"], &again["made_before"]), (&again["object"], &true.into()));
    // Two at once: both parts are whole, and one is taken.
    let object = string(&made, "object");
    let of_plan = |end: &str| format!("repo/vm/{}-0000-{end}.delta", &object[..18]);
    let twin = of_plan("000000000001");
    work.lab.copy(&format!("repo/vm/{object}"), &twin);
    // One that is damaged counts for nothing.
    work.lab.write(&of_plan("000000000002"), b"IMGSNAP");
    let part = work.lab.read(&twin);
    work.make_all();
    work.join();
    // A straggler ends after the join: its part is garbage.
    let late = work.lab.fails(FAILED, &["part", &work.plan, "1"]);
    assert!(late.contains("there is no plan"), "{late}");
    work.lab.write(&of_plan("000000000003"), &part);
    work.lab.done(&["snapshot", "vm.img"]);
    work.holds(&[(1, &bytes), (2, &bytes)]);
}

#[test]
fn an_image_that_nothing_pins_or_that_is_written_to_is_refused() {
    let (work, mut bytes) = Work::base();
    let refused = work.lab.run(&["plan", "vm.img"]).failed(FAILED);
    assert!(refused.contains("--source-held"), "{refused}");
    work.part(1);
    bytes[5] ^= 1;
    work.lab.write("vm.img", &bytes);
    let refused = work.lab.run(&["part", &work.plan, "2"]).failed(FAILED);
    assert!(refused.contains("was written to since it was planned"), "{refused}");
    assert_eq!(work.lab.run(&["join", &work.plan]).code, Some(FAILED), "not all is done");
    work.lab.done(&["plan", "drop", &work.plan[..8]]);
    assert_eq!(work.lab.done(&["plan", "list"]), "no plans\n");
    assert!(work.lab.deltas("vm").is_empty());
    // The next one begins anew, with another number.
    work.lab.done(&["snapshot", "vm.img"]);
    work.holds(&[(2, &bytes)]);
}

#[test]
fn a_plan_keeps_its_parent_and_holds_up_no_other_image() {
    let lab = Lab::new();
    let first = image(1);
    lab.write("vm.img", &first);
    lab.done(&["snapshot", "vm.img", "--part-size", "64K"]);
    lab.write("b.img", &noise(3, 3 * BLOCK));
    let mut second = first.clone();
    second[..100].fill(1);
    lab.write("vm.img", &second);
    let work = Work::plan(lab, &["vm.img", "b.img"]);
    let kept = work.lab.run(&["delete", "vm@1"]).failed(FAILED);
    assert!(kept.contains("needed by number 2, which is being taken"), "{kept}");
    // Of b nothing is done.
    work.make_all_of("vm");
    let joined = work.lab.run(&["join", &work.plan]);
    assert_eq!(joined.code, Some(FAILED));
    let told = joined.text();
    assert!(told.contains("vm@2  joined") && told.contains("b: 1 task not done"), "{told}");
    work.lab.restores("vm@2", &second);
    // It is not taken twice.
    let again = work.lab.run(&["join", &work.plan]).text();
    assert!(again.contains("vm@2  was joined before"), "{again}");
    work.make_all_of("b");
    work.join();
    work.holds(&[(1, &first), (2, &second)]);
    work.lab.done(&["prune", "vm", "--keep-last", "1", "--compact"]);
    work.holds(&[(2, &second)]);
}
