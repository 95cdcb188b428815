//! `imgsnap plan`, `part` and `join`: workers that know nothing but a repository and a plan.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::naive_reader;
use crate::support::{
    BLOCK, BUSY, DAMAGE, FAILED, HOPELESS, KIB, Lab, Run, integer, no_fork, noise, string,
};
use crate::support::{INTERRUPTED, spawn, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

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
        Self::of(lab, &[&["plan", "--source-held", HELD], args].concat())
    }

    fn of(lab: Lab, args: &[&str]) -> Self {
        let planned = lab.json(args);
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

    /// Nothing of it is left at the top of the repository.
    fn is_over(&self) {
        let left = std::fs::read_dir(self.lab.path("repo")).unwrap();
        let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let plans: Vec<String> = names.filter(|name| name.starts_with("plan.")).collect();
        assert!(plans.is_empty(), "{plans:?}");
    }

    /// These snapshots, for both readers, and no plan any more.
    fn holds(&self, kept: &[(u64, &[u8])]) {
        self.lab.holds("vm", kept);
        for (number, bytes) in kept {
            let read = naive_reader::restore_from(&self.lab.path("repo/vm"), *number).unwrap();
            assert!(read == *bytes, "the second reader, {number}");
        }
        self.is_over();
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
    // What a worker is about to put is nobody's leftover as long as the plan is pending.
    let (folder, file) = twin.rsplit_once('/').unwrap();
    let being_put = format!("{folder}/.{file}.0123456789ab.tmp");
    work.lab.write(&being_put, b"IMG");
    work.lab.done(&["snapshot", "vm.img"]);
    assert!(work.lab.exists(&being_put));
    work.lab.done(&["delete", "vm@2"]);
    work.make_all();
    work.join();
    assert!(!work.lab.exists(&being_put));
    // A straggler ends after the join: its part is garbage.
    let late = work.lab.fails(HOPELESS, &["part", &work.plan, "1"]);
    assert!(late.contains("there is no plan"), "{late}");
    work.lab.write(&of_plan("000000000003"), &part);
    work.lab.done(&["snapshot", "vm.img"]);
    work.holds(&[(1, &bytes), (3, &bytes)]);
}

#[test]
fn an_image_that_nothing_pins_or_that_is_written_to_is_refused() {
    let (work, mut bytes) = Work::base();
    let refused = work.lab.run(&["plan", "vm.img"]).failed(FAILED);
    assert!(refused.contains("--source-held"), "{refused}");
    work.part(1);
    bytes[5] ^= 1;
    work.lab.write("vm.img", &bytes);
    let refused = work.lab.run(&["part", &work.plan, "2"]).failed(HOPELESS);
    assert!(refused.contains("was modified since it was planned"), "{refused}");
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
    assert!(again.contains("vm@2  already joined"), "{again}");
    work.make_all_of("b");
    work.join();
    work.holds(&[(1, &first), (2, &second)]);
    work.lab.done(&["prune", "vm", "--keep-last", "1", "--compact"]);
    work.holds(&[(2, &second)]);
}

/// A snapshot of `vm.img` in parts, and a plan to restore it in parts to `new.img`.
fn restore() -> (Work, Vec<u8>) {
    let lab = Lab::new();
    let bytes = image(1);
    lab.write("vm.img", &bytes);
    lab.done(&["snapshot", "vm.img", "--part-size", "64K"]);
    let args = ["plan", "--restore", "vm@1", "-o", "new.img", "--part-size", "128K"];
    (Work::of(lab, &args), bytes)
}

/// The file that is being restored, under its temporary name.
fn temporary(work: &Work) -> String {
    format!(".imgsnap-{}.restore", work.plan)
}

/// W7: ranges are written by whoever comes, and what they add up to is proved before the file has its name.
#[test]
fn workers_restore_a_snapshot_together() {
    let (work, bytes) = restore();
    assert_eq!(work.tasks.len(), 4);
    let exists = work.lab.fails(FAILED, &["plan", "--restore", "vm@1", "-o", "vm.img"]);
    assert!(exists.contains("vm.img exists"), "{exists}");
    work.part(2);
    assert_eq!(work.part(2)["made_before"], true);
    let unfinished = work.lab.run(&["join", &work.plan]);
    assert_eq!(unfinished.code, Some(FAILED));
    assert!(unfinished.text().contains("vm: 3 tasks not done yet: 1, 3, 4"), "{}", unfinished.err);
    // It is kept meanwhile, and listed, and is no snapshot more.
    work.lab.write("vm.img", b"other");
    work.lab.done(&["snapshot", "vm.img", "--full"]);
    let kept = work.lab.run(&["delete", "vm@1"]).failed(FAILED);
    assert!(kept.contains(&format!("needed by plan {}", work.plan)), "{kept}");
    work.lab.run(&["prune", "vm", "--keep-last", "1"]);
    assert!(work.lab.done(&["list", "vm"]).contains("1 is being restored by plan "));
    assert_eq!(work.lab.json(&["list", "vm"]).as_array().unwrap().len(), 2);
    let shown = work.lab.done(&["plan", "list"]);
    assert!(shown.contains("vm@1 -> ") && shown.contains("; 1 of 4 tasks done"), "{shown}");
    work.make_all();
    // While a worker writes, the file does not get its name.
    let held = std::fs::File::open(work.lab.path(&temporary(&work))).unwrap();
    held.lock_shared().unwrap();
    let busy = work.lab.run(&["join", &work.plan]).failed(BUSY);
    assert!(busy.contains("another process is still writing or joining"), "{busy}");
    assert!(!work.lab.exists("new.img"));
    held.unlock().unwrap();
    drop(held);
    work.join();
    assert!(work.lab.read("new.img") == bytes);
    assert!(!work.lab.exists(&temporary(&work)));
    work.is_over();
    // A straggler finds nothing that it could write to.
    let late = work.lab.fails(HOPELESS, &["part", &work.plan, "1"]);
    assert!(late.contains("there is no plan"), "{late}");
    work.lab.done(&["prune", "vm", "--keep-last", "1"]);
    assert_eq!(work.lab.numbers("vm"), [2]);
}

#[test]
fn a_restore_of_which_something_is_wrong_gets_no_name() {
    let (work, bytes) = restore();
    work.make_all();
    // Somebody else took the name.
    work.lab.write("new.img", b"precious");
    let taken = work.lab.run(&["join", &work.plan]).failed(FAILED);
    assert!(taken.contains("new.img"), "{taken}");
    assert_eq!(work.lab.read("new.img"), b"precious");
    work.lab.remove("new.img");
    // A report that tells of other blocks.
    let reports = std::fs::read_dir(work.lab.path("repo")).unwrap();
    let names = reports.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let report = names.filter(|name| name.starts_with(&format!("plan.{}.1.", work.plan)));
    let report = format!("repo/{}", report.collect::<Vec<_>>()[0]);
    let text = String::from_utf8(work.lab.read(&report)).unwrap();
    let body = text.split_once('\n').unwrap().1;
    let mut other: Value = serde_json::from_str(body).unwrap();
    other["outcome"]["restored"] = "00000000000000000000000000000001".into();
    let other = format!("{}\n", serde_json::to_string_pretty(&other).unwrap());
    let digest = xxhash_rust::xxh3::xxh3_128(other.as_bytes());
    work.lab.write(&report, format!("imgsnap-attempt 1 {digest:032x}\n{other}").as_bytes());
    let wrong = work.lab.run(&["join", &work.plan]).failed(DAMAGE);
    assert!(wrong.contains("image digest mismatch"), "{wrong}");
    // One that is damaged tells nothing.
    work.lab.write(&report, &text.as_bytes()[..40]);
    assert_eq!(work.lab.run(&["join", &work.plan]).code, Some(FAILED));
    work.part(1);
    work.join();
    assert!(work.lab.read("new.img") == bytes);
    // Somebody puts another file in the place of the one that was made.
    let args = ["plan", "--restore", "vm@1", "-o", "other.img"];
    let work = Work::of(work.lab, &args);
    let made = work.lab.read(&temporary(&work));
    work.lab.remove(&temporary(&work));
    work.lab.write(&temporary(&work), &made);
    let another = work.lab.run(&["part", &work.plan, "1"]).failed(HOPELESS);
    assert!(another.contains("not the file that was made for the plan"), "{another}");
    assert!(work.lab.read(&temporary(&work)) == made);
    let left = work.lab.run(&["plan", "drop", &work.plan]).done();
    assert!(left.err.contains("by hand"), "{}", left.err);
    work.lab.remove(&temporary(&work));
    // A join was killed when it had given the file to its owner: it is the same file.
    let work = Work::of(work.lab, &["plan", "--restore", "vm@1", "-o", "owned.img"]);
    work.make_all();
    if nix::unistd::geteuid().is_root() {
        let file = work.lab.path(&temporary(&work));
        std::os::unix::fs::chown(file, Some(1), Some(1)).unwrap();
    }
    work.join();
    assert!(work.lab.read("owned.img") == bytes);
    // A join was killed between the two names that a file may have where it can only be linked.
    let work = Work::of(work.lab, &args);
    work.make_all();
    std::fs::hard_link(work.lab.path(&temporary(&work)), work.lab.path("other.img")).unwrap();
    let late = work.lab.run(&["join", &work.plan]);
    assert_eq!(late.code, Some(FAILED), "nobody told that it was to be named");
    assert!(!work.lab.exists(&temporary(&work)));
    work.lab.run(&["plan", "drop", &work.plan]).done();
    work.lab.remove("other.img");
    // One that is damaged can be dropped all the same, by its whole id.
    let work = Work::of(work.lab, &args);
    work.lab.write(&format!("repo/plan.{}", work.plan), b"IMG");
    let listed = work.lab.run(&["plan", "list"]).done();
    assert!(listed.err.contains("warning"), "{}", listed.err);
    work.lab.run(&["plan", "drop", &work.plan]).done();
    work.lab.done(&["delete", "vm@1", "--compact"]);
    work.lab.write("vm.img", &bytes);
    work.lab.done(&["snapshot", "vm.img"]);
    work.lab.remove(&temporary(&work));
    // One that is given up leaves nothing.
    let args = ["plan", "--restore", "vm@latest", "-o", "other.img"];
    let work = Work::of(work.lab, &args);
    work.part(1);
    work.lab.done(&["plan", "drop", "latest"]);
    assert!(!work.lab.exists(&temporary(&work)) && !work.lab.exists("other.img"));
    work.is_over();
    work.lab.done(&["remove", "vm", "--yes"]);
}

/// W8: what workers found sound is not read again, and all else is.
#[test]
fn workers_verify_a_repository_together() {
    let lab = Lab::new();
    let mut bytes = image(1);
    lab.write("vm.img", &bytes);
    lab.done(&["snapshot", "vm.img", "--part-size", "64K"]);
    bytes[..100].fill(1);
    lab.write("vm.img", &bytes);
    lab.done(&["snapshot", "vm.img"]);
    lab.write("b.img", &noise(3, 3 * BLOCK));
    lab.done(&["snapshot", "b.img"]);
    let plain = lab.json(&["verify"]);
    let work = Work::of(lab, &["plan", "--verify", "--part-size", "128K"]);
    // Six parts, a delta, and another image.
    let files: usize = work.tasks.iter().map(|t| t["files"].as_array().unwrap().len()).sum();
    assert_eq!((work.tasks.len() > 2, files), (true, 8));
    assert_eq!(work.lab.run(&["join", &work.plan]).code, Some(FAILED));
    work.make_all();
    let joined = work.lab.json(&["join", &work.plan]);
    for what in ["snapshots", "blocks", "stored_bytes", "damaged", "unchecked", "lost"] {
        assert_eq!(joined[what], plain[what], "{what}");
    }
    work.is_over();
    // One image, with a part that is damaged: what that means is told as ever.
    let work = Work::of(work.lab, &["plan", "--verify", "--name", "vm"]);
    let part = work.lab.parts("vm")[&1][0].clone();
    let file = format!("repo/vm/{part}");
    let mut stored = work.lab.read(&file);
    stored[700] ^= 1;
    work.lab.write(&file, &stored);
    let done = work.part(1);
    assert_eq!((integer(&done, "files"), integer(&done, "sound")), (7, 6));
    let joined = work.lab.run(&["join", &work.plan]);
    let plain = work.lab.run(&["verify", "vm"]);
    assert_eq!((joined.code, plain.code), (Some(DAMAGE), Some(DAMAGE)));
    // But for the time that it took.
    let findings = |text: &str| text.rsplit_once(" in ").unwrap().0.to_owned();
    let (joined, plain) = (joined.text(), plain.text());
    let (first, joined) = joined.split_once('\n').unwrap();
    assert!(first.starts_with("what workers have verified since "), "{first}");
    assert_eq!(findings(joined), findings(&plain));
}

/// W6
#[test]
fn a_worker_that_fails_is_told_of_until_its_task_is_done() {
    let (work, mut bytes) = Work::base();
    bytes[5] ^= 1;
    work.lab.write("vm.img", &bytes);
    work.lab.run(&["part", &work.plan, "2"]).failed(HOPELESS);
    let shown = work.lab.done(&["plan", "list"]);
    assert!(shown.contains("task 2 FAILED on ") && shown.contains("was modified since"), "{shown}");
    let json = work.lab.json(&["plan", "show", &work.plan]);
    assert_eq!(integer(&json["failures"][0], "task"), 2, "{json}");
    work.lab.done(&["plan", "drop", &work.plan]);
    work.is_over();
}

/// Who starts it may tell it to end, or be gone: it ends soon, and nothing has its final name.
#[test]
fn a_worker_ends_with_whoever_started_it() {
    let (lab, bytes) = (Lab::new(), noise(3, 24 << 20));
    lab.write("vm.img", &bytes);
    let work = Work::plan(lab, &["vm.img", "--part-size", "32M"]);
    let slow = |command: &mut Command| {
        // So slow that it would take half a minute.
        command.args(["part", &work.plan, "1", "--limit-read", "1M"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    };
    for signal in ["TERM", "HUP"] {
        let mut command = work.lab.command(&[]);
        slow(&mut command);
        let child = spawn(&mut command);
        let pid = child.id().to_string();
        std::thread::sleep(Duration::from_millis(300));
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(INTERRUPTED), "{signal}: {out:?}");
    }
    // One that an engine has started, whose parent is killed.
    let mut parent = Command::new("sh");
    let program = work.lab.command(&[]);
    for (name, value) in program.get_envs() {
        value.map(|value| parent.env(name, value));
    }
    parent.current_dir(work.lab.path(""));
    let line = format!(
        "{} part {} 1 --limit-read 1M >/dev/null 2>&1 & echo $!; wait",
        program.get_program().to_str().unwrap(),
        work.plan
    );
    parent.args(["-c", &line]).env("IMGSNAP_ATTEMPT", "any name").stdout(Stdio::piped());
    let mut parent = spawn(&mut parent);
    let mut first = String::new();
    BufReader::new(parent.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    let status = format!("/proc/{}/status", first.trim());
    std::thread::sleep(Duration::from_millis(300));
    assert!(std::fs::exists(&status).unwrap(), "it works");
    parent.kill().unwrap();
    parent.wait().unwrap();
    let is_gone = || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        !text.lines().any(|l| l.starts_with("State:") && !l.contains('Z') && !l.contains('X'))
    };
    assert!(wait_until(is_gone), "it ends when its parent does");
    assert!(work.lab.deltas("vm").is_empty(), "nothing has its final name");
    work.make_all();
    work.join();
    work.holds(&[(1, &bytes)]);
}

/// As Hadoop streaming reads it.
#[test]
fn a_worker_of_hadoop_counts_what_it_did_and_says_which_failures_are_final() {
    let (work, _) = Work::base();
    let run = |plan: &str, task: &str| {
        let mut command = work.lab.command(&["part", plan, task, "--json"]);
        Run::of(command.env("mapreduce_task_attempt_id", "attempt_1_0001_m_000000_1000"))
    };
    let done = run(&work.plan, "1").done();
    let told: Value = serde_json::from_str(&done.text()).unwrap();
    for (name, key) in [
        ("bytes read", "read_bytes"),
        ("bytes changed", "changed_bytes"),
        ("bytes stored", "stored_bytes"),
    ] {
        let line = format!("reporter:counter:imgsnap,{name},{}\n", integer(&told, key));
        assert!(done.err.contains(&line), "{line}: {}", done.err);
    }
    assert_eq!(string(&told, "digest").len(), 32, "{told}");
    for (plan, task) in [(&*work.plan, "99"), ("00000000", "1")] {
        assert_eq!(run(plan, task).code, Some(HOPELESS));
    }
    // What another host may see is tried again.
    work.lab.rename("vm.img", "elsewhere.img");
    assert_eq!(run(&work.plan, "2").code, Some(FAILED));
}
