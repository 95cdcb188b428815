//! The power goes on real file systems: XFS and ext4 are shut down in the middle of each verb, at a system
//! call or at any moment, and mounted again. What was reported as done is there; what was not has happened
//! or not; the next run clears up. `IMGSNAP_ROUNDS` says how often each verb is interrupted, `IMGSNAP_SEED`
//! where it begins.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const IMAGE_BYTES: u64 = MIB + 5000;
const VERBS: [&str; 12] = [
    "snapshot",
    "rollback",
    "delete",
    "flatten",
    "prune",
    "label",
    "base image",
    "import",
    "restore",
    "replace",
    "export",
    "apply",
];
/// At one of these the program is killed, and the power goes.
const CALLS: [&str; 12] = [
    "fsync",
    "fsync",
    "fsync",
    "renameat2",
    "rename",
    "linkat",
    "unlink",
    "write",
    "pwrite64",
    "fallocate",
    "ftruncate",
    "openat",
];

fn rounds() -> u64 {
    std::env::var("IMGSNAP_ROUNDS").map_or(2, |text| text.parse().unwrap())
}

/// A file system that loses its power.
struct Machine {
    // Undone in this order.
    mount: Option<Mount>,
    _device: Loop,
    device: String,
    lab: Lab,
    random: Random,
    image: String,
    /// What the live image is, unless it is a mixture.
    state: Vec<u8>,
    known: BTreeMap<u64, Vec<u8>>,
    slowest: BTreeMap<&'static str, Duration>,
    /// An image that begins elsewhere.
    delivery: String,
    losses: u64,
    done: u64,
    files: u64,
}

/// What became of a command.
enum Ended {
    Done,
    Lost,
}

impl Machine {
    fn new(mkfs: &str, args: &[&str], seed: u64) -> Result<Self, String> {
        tools(&["xfs_io", "strace"])?;
        let mut lab = Lab::new();
        let (loop_device, mount) = mounted(&lab, mkfs, args, 320)?;
        let (delivery, elsewhere) = (lab.path("delivery"), lab.path("guest.img"));
        make(&elsewhere, MIB);
        put(&elsewhere, 0, &noise(seed, 100_000));
        lab.snapshot(&elsewhere);
        lab.run(&["export", "guest@1", "-o", &delivery]).done();
        lab.repo = lab.path("mnt/repo");
        let image = lab.path("mnt/vm.img");
        make(&image, IMAGE_BYTES);
        put(&image, 0, &noise(seed, 400_000));
        tool("sync", &["-f", &image]);
        Ok(Self {
            mount: Some(mount),
            device: loop_device.device.clone(),
            _device: loop_device,
            state: get(&image, 0, IMAGE_BYTES),
            lab,
            random: Random(seed),
            image,
            known: BTreeMap::new(),
            slowest: BTreeMap::new(),
            delivery,
            losses: 0,
            done: 0,
            files: 0,
        })
    }

    /// Nothing that is not on the device is written any more; then it is mounted again.
    fn lose_power(&mut self, run: Option<Started>) -> Option<Run> {
        let folder = self.lab.path("mnt");
        // With -f what is in the journal's memory gets out before.
        let shutdown = if self.random.below(4) == 0 { "shutdown -f" } else { "shutdown" };
        tool("xfs_io", &["-x", "-c", shutdown, &folder]);
        let run = run.map(Started::wait);
        self.mount.take().unwrap().unmount();
        self.mount = Some(Mount::new(&[&self.device], &folder).unwrap());
        run
    }

    /// Runs a command, in the middle of which, or after the end of which, the power goes.
    fn run(&mut self, verb: &'static str, args: &[&str]) -> Ended {
        let (run, is_over_before) = if self.random.below(3) == 0 {
            self.run_for_a_while(verb, args)
        } else {
            (self.run_to_a_call(args), true)
        };
        match run.code() {
            Some(0) if is_over_before => {
                self.done += 1;
                Ended::Done
            }
            // XFS answers an fsync in the middle of a shutdown with success, and keeps nothing of it: a program
            // that does nothing but make, sync and rename files lost its last one in 8 of 100 shutdowns.
            // Where the power goes nobody is left to report it.
            Some(0) => {
                self.losses += 1;
                Ended::Lost
            }
            None => Ended::Lost,
            Some(code) => {
                self.losses += 1;
                // What cannot be looked at any more may seem to have changed.
                run.fails(if code == 4 { 4 } else { 1 });
                Ended::Lost
            }
        }
    }

    fn run_to_a_call(&mut self, args: &[&str]) -> Run {
        let (call, when) = (pick(&mut self.random, &CALLS), 1 + self.random.below(8));
        let imgsnap = self.lab.command(args);
        let mut strace = tool_command("strace", &["-f", "-qq", "-o", "/dev/null"]).unwrap();
        let inject = format!("inject={call}:signal=KILL:when={when}");
        strace.args(["-e", &format!("trace={call}"), "-e", &inject]);
        strace.arg(imgsnap.get_program()).args(imgsnap.get_args());
        strace.env("IMGSNAP_REPO", &self.lab.repo);
        let run = Started::spawn(strace).wait();
        self.losses += u64::from(run.is_killed());
        self.lose_power(None);
        run
    }

    /// True if it was over before the power went.
    fn run_for_a_while(&mut self, verb: &'static str, args: &[&str]) -> (Run, bool) {
        let slowest = self.slowest.get(verb).copied().unwrap_or(Duration::from_millis(40));
        let micros = u64::try_from(slowest.as_micros()).unwrap();
        let moment = Duration::from_micros(self.random.below(micros * 5 / 4));
        let begun = Instant::now();
        let mut run = self.lab.start(args);
        while begun.elapsed() < moment && !run.is_over() {
            std::thread::sleep(Duration::from_micros(200));
        }
        let is_over = run.is_over();
        if is_over {
            self.slowest.insert(verb, begun.elapsed().min(slowest * 2));
        }
        (self.lose_power(Some(run)).unwrap(), is_over)
    }

    fn any_known(&mut self) -> u64 {
        let numbers: Vec<u64> = self.known.keys().copied().collect();
        pick(&mut self.random, &numbers)
    }

    fn change(&mut self) {
        for _ in 0..1 + self.random.below(6) {
            let offset = self.random.below(IMAGE_BYTES - 1);
            let bytes = 1 + self.random.below((IMAGE_BYTES - offset).min(60_000));
            put(&self.image, offset, &noise(self.random.next(), bytes));
        }
        self.state = get(&self.image, 0, IMAGE_BYTES);
    }

    /// Compares what is listed with what is known: `new` is what was added, or may have been, oldest first,
    /// all of it or nothing; `gone` may have been removed.
    #[track_caller]
    fn reconcile(&mut self, new: &[Vec<u8>], gone: &[u64]) {
        let listed = self.lab.numbers("vm");
        let lost = |n: &u64| !listed.contains(n) && !gone.contains(n);
        assert!(!self.known.keys().any(lost), "{:?}, {listed:?}", self.known.keys());
        self.known.retain(|number, _| listed.contains(number));
        let added: Vec<u64> = listed.into_iter().filter(|n| !self.known.contains_key(n)).collect();
        assert!(added.is_empty() || added.len() == new.len(), "nobody made {added:?}");
        self.known.extend(added.into_iter().zip(new.iter().cloned()));
        for (number, state) in &self.known {
            let restored = self.lab.run(&["restore", &format!("vm@{number}"), "-o", "-"]).done();
            assert!(restored.out == *state, "vm@{number} is not what it was");
        }
        let others = self.lab.numbers("guest").len();
        self.lab.verify(self.known.len() + others);
    }

    /// The next writer clears up.
    fn clear_up(&mut self) {
        if self.known.is_empty() {
            return;
        }
        let reference = format!("vm@{}", self.any_known());
        self.lab.run(&["label", &reference, "--remove"]).done();
        self.lab.is_tidy("vm");
        let top = names_in(&self.lab.repo);
        assert!(top.iter().all(|name| !name.ends_with(".tmp")), "{top:?}");
    }

    #[track_caller]
    fn image_is(&self, state: &[u8]) -> bool {
        length(&self.image) == IMAGE_BYTES && get(&self.image, 0, IMAGE_BYTES) == state
    }

    fn step(&mut self, verb: &'static str) {
        let changed = if verb == "rollback" { self.random.below(2) == 0 } else { true };
        if changed {
            self.change();
        }
        match verb {
            "snapshot" => self.snapshot(),
            "rollback" => return self.rollback(),
            "base image" => self.snapshot_on_base_image(),
            "import" => self.import(),
            "restore" | "replace" | "export" => self.write_file(verb),
            "apply" => self.apply(),
            _ => self.rewrite(verb),
        }
        assert!(self.image_is(&self.state), "{verb} changed the live image");
        self.clear_up();
    }

    fn snapshot(&mut self) {
        let (image, state) = (self.image.clone(), self.state.clone());
        let mut args = vec!["snapshot", &image, "--json"];
        if self.random.below(2) == 0 && self.device_clones() {
            args.extend(["--track", "reflink"]);
        }
        let ended = self.run("snapshot", &args);
        if self.known.is_empty() && !self.lab.has_repository() {
            assert!(matches!(ended, Ended::Lost), "the repository is lost");
            return;
        }
        let before = self.known.len();
        self.reconcile(&[state], &[]);
        assert!(matches!(ended, Ended::Lost) || self.known.len() == before + 1, "it is lost");
    }

    fn device_clones(&self) -> bool {
        tool("stat", &["-f", "-c", "%T", &self.lab.path("mnt")]).trim() == "xfs"
    }

    /// The base image was copied there a moment ago, by somebody who has no time to wait for the disk.
    fn snapshot_on_base_image(&mut self) {
        let (image, state) = (self.image.clone(), self.state.clone());
        self.files += 1;
        let template = self.lab.path(&format!("mnt/template-{}.img", self.files));
        let bytes = noise(self.files, 200_000);
        std::fs::write(&template, &bytes).unwrap();
        let args = ["snapshot", &image, "--full", "--base-image", &template, "--json"];
        let ended = self.run("base image", &args);
        let before = self.known.len();
        self.reconcile(&[bytes, state], &[]);
        assert!(matches!(ended, Ended::Lost) || self.known.len() == before + 2, "it is lost");
    }

    fn rewrite(&mut self, verb: &'static str) {
        let number = self.any_known();
        let reference = format!("vm@{number}");
        let label = format!("label-{}", self.random.below(1 << 30));
        let (args, gone) = match verb {
            "delete" => (vec!["delete", &reference, "--compact"], vec![number]),
            "flatten" => (vec!["flatten", &reference], vec![]),
            "label" => (vec!["label", &reference, &label], vec![]),
            _ => {
                let gone = self.known.keys().rev().skip(2).copied().collect();
                (vec!["prune", "vm", "--keep-last", "2", "--compact"], gone)
            }
        };
        let ended = self.run(verb, &args);
        self.reconcile(&[], &gone);
        if matches!(ended, Ended::Done) {
            let left = self.known.keys().filter(|n| gone.contains(n)).count();
            // Of those that a prune may drop it keeps the head.
            assert!(left <= usize::from(verb == "prune"), "{verb}: what was dropped is back");
            let shown = self.lab.run(&["list", "vm", "--json"]).done();
            let text = String::from_utf8(shown.out).unwrap();
            assert!(verb != "label" || text.contains(&label), "the label is lost");
        }
    }

    /// Taken in if it is not there, otherwise removed.
    fn import(&mut self) {
        let delivery = self.delivery.clone();
        let is_there = !self.lab.numbers("guest").is_empty();
        let args = match is_there {
            true => vec!["remove", "guest", "--yes"],
            false => vec!["import", &delivery, "--name", "guest"],
        };
        let ended = self.run("import", &args);
        let is_there_now = !self.lab.numbers("guest").is_empty();
        assert!(matches!(ended, Ended::Lost) || is_there != is_there_now);
        self.reconcile(&[], &[]);
        if is_there_now {
            let restored = self.lab.run(&["restore", "guest@1", "-o", "-"]).done();
            assert!(restored.out == get(&self.lab.path("guest.img"), 0, MIB));
        } else {
            // Whatever was left of it, it can be taken in again.
            self.lab.run(&["import", &delivery, "--name", "guest"]).done();
        }
        self.lab.run(&["label", "guest@1", "--remove"]).done();
        self.lab.is_tidy("guest");
    }

    /// A new file: it is there, whole, or there is none.
    fn write_file(&mut self, verb: &'static str) {
        let number = self.any_known();
        let reference = format!("vm@{number}");
        self.files += 1;
        let out = self.lab.path(&format!("mnt/out-{}", self.files));
        let old = b"what it was before".to_vec();
        let mut args = match verb {
            "export" => vec!["export", &reference, "-o", &out],
            _ => vec!["restore", &reference, "-o", &out],
        };
        if verb == "replace" {
            std::fs::write(&out, &old).unwrap();
            tool("sync", &["-f", &out]);
            args.push("--force");
        }
        let is_done = matches!(self.run(verb, &args), Ended::Done);
        match std::fs::read(&out) {
            Err(_) => assert!(!is_done && verb != "replace", "{verb}: {out} is lost"),
            Ok(bytes) if bytes == old => assert!(!is_done && verb == "replace"),
            Ok(bytes) if verb != "export" => assert!(bytes == self.known[&number], "a part of it"),
            Ok(_) => {
                let image = format!("{out}.img");
                self.lab.run(&["apply", &out, "-o", &image]).done();
                assert!(std::fs::read(&image).unwrap() == self.known[&number], "a part of it");
            }
        }
    }

    /// In place: run again, it completes the image.
    fn apply(&mut self) {
        let (first, last) = (*self.known.keys().next().unwrap(), self.any_known());
        let (delta, base) = (self.lab.path("delta"), self.lab.path("mnt/base.img"));
        std::fs::remove_file(&delta).ok();
        std::fs::write(&base, &self.known[&first]).unwrap();
        let since = format!("vm@{first}");
        let export = ["export", &format!("vm@{last}"), "--since", &since, "-o", &delta];
        if first == last || self.lab.run(&export).code() != Some(0) {
            return;
        }
        tool("sync", &["-f", &base]);
        let args = ["apply", &delta, "--base", &base, "--in-place"];
        if let Ended::Lost = self.run("apply", &args) {
            self.lab.run(&args).done();
        }
        assert!(std::fs::read(&base).unwrap() == self.known[&last], "applied, and something else");
    }

    fn rollback(&mut self) {
        let before = self.state.clone();
        let mut is_begun = false;
        for attempt in 0.. {
            let number = self.any_known();
            let target = self.known[&number].clone();
            if target.len() as u64 != IMAGE_BYTES {
                continue;
            }
            let to = format!("vm@{number}");
            let mut args = vec!["rollback", "vm", "--to", &to, "--json"];
            let save = self.random.below(3) > 0;
            args.extend((!save).then_some("--no-save"));
            let ended = match attempt < 3 {
                true => self.run("rollback", &args),
                false => {
                    self.lab.run(&args).done();
                    Ended::Done
                }
            };
            let is_new = save && !is_begun;
            self.reconcile(if is_new { std::slice::from_ref(&before) } else { &[] }, &[]);
            let is_mixture = self.lab.run(&["list"]).done().err.contains("was interrupted");
            if matches!(ended, Ended::Done) {
                assert!(!is_mixture, "done, and a mixture");
                assert!(self.image_is(&target), "the image is not {to}");
                self.state = target;
                break;
            }
            if is_mixture {
                is_begun = true;
                self.lab.run(&["snapshot", &self.image]).fails(1).says("was interrupted");
            } else if self.image_is(&target) {
                self.state = target;
                break;
            } else {
                assert!(self.image_is(&before) && !is_begun, "a mixture that nobody knows of");
            }
        }
        self.clear_up();
    }
}

fn goes_on(mkfs: &str, args: &[&str]) -> Result<String, String> {
    let seed = std::env::var("IMGSNAP_SEED").map_or(20_261_121, |text| text.parse().unwrap());
    let mut machine = Machine::new(mkfs, args, seed)?;
    // The very first snapshot makes the repository, too.
    while machine.known.is_empty() {
        machine.snapshot();
    }
    let rounds = rounds();
    for _ in 0..rounds {
        for verb in VERBS {
            while machine.known.len() < 3 {
                machine.change();
                let number = machine.lab.snapshot(&machine.image);
                machine.known.insert(number, machine.state.clone());
            }
            machine.step(verb);
        }
    }
    let (losses, done) = (machine.losses, machine.done);
    assert!(losses >= rounds * 3, "only {losses} were interrupted");
    Ok(format!("{mkfs}: {losses} verbs were interrupted, {done} had ended when the power went"))
}

#[test]
fn power_that_goes_on_xfs_takes_nothing_that_was_done() {
    println!("{}", need!(goes_on("mkfs.xfs", &["-q", "-m", "reflink=1"])));
}

#[test]
fn power_that_goes_on_ext4_takes_nothing_that_was_done() {
    println!("{}", need!(goes_on("mkfs.ext4", &["-q"])));
}
