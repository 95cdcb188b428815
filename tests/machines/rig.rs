//! What all scenarios have in common: a guest, a repository, and what holds after each run.

use crate::guest::{self, Guest, Machine};
use crate::kit::{Lab, MIB, Run, Started, names_in, output};
use crate::random::wait_until;
use serde_json::Value;
use std::time::Duration;

/// How long the machine may be stopped, or its unwritten data take: nothing is judged by time here.
pub const PATIENT: [&str; 2] = ["--max-stall", "30s"];

pub struct Rig {
    /// The folder of the guest's disk.
    pub guest: String,
    /// Which QEMU it is.
    pub qemu: String,
    pub seed: u64,
    /// How often something is killed.
    pub count: u64,
    /// How long the disk is that figures are taken of, in GiB.
    pub gib: u64,
}

impl Rig {
    /// # Errors
    /// Why no guest can be run here.
    pub fn new(seed: u64, count: u64, gib: u64) -> Result<Self, String> {
        Ok(Self { guest: guest::built()?, qemu: guest::version()?, seed, count, gib })
    }

    pub fn site(&self) -> Site {
        let lab = Lab::new();
        for folder in ["scratch", "tmp"] {
            std::fs::create_dir(lab.path(folder)).unwrap();
        }
        let folder = lab.path("machine");
        std::fs::create_dir(&folder).unwrap();
        let machine = Machine::of_guest(&folder, "vm", &self.guest);
        Site { lab, machine }
    }
}

/// A machine and a repository for it.
pub struct Site {
    pub lab: Lab,
    pub machine: Machine,
}

impl Site {
    /// With two more disks for the counter: a qcow2, and a raw one.
    pub fn with_counter(self) -> Self {
        let machine = self.machine.new_disk(64 * MIB, "qcow2").new_disk(64 * MIB, "raw");
        Self { machine, ..self }
    }

    /// The verb `snapshot` of the whole machine.
    pub fn snapshot_args(&self, more: &[&str]) -> Vec<String> {
        let (uri, scratch) = (self.machine.uri(), self.lab.path("scratch"));
        let all = [&["snapshot", &uri, "--json", "--scratch-dir", &scratch], &PATIENT[..], more];
        all.concat().into_iter().map(str::to_owned).collect()
    }

    fn command(&self, args: &[String]) -> std::process::Command {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = self.lab.command(&args);
        command.env("TMPDIR", self.lab.path("tmp")).env_remove("XDG_RUNTIME_DIR");
        command
    }

    pub fn start(&self, args: &[String]) -> Started {
        Started::spawn(self.command(args))
    }

    /// Runs imgsnap to its end.
    pub fn run(&self, args: &[String]) -> Run {
        Run::of(args.join(" "), output(&mut self.command(args)).unwrap())
    }

    /// Takes a snapshot of all disks: what is said of each.
    #[track_caller]
    pub fn snapshot(&self, more: &[&str]) -> Vec<Value> {
        let taken = members(&self.run(&self.snapshot_args(more)).done());
        assert_eq!(taken.len(), self.machine.disks.len());
        taken
    }

    /// Restores a disk, to a file that is the caller's.
    #[track_caller]
    pub fn restore(&self, disk: usize, number: u64) -> String {
        self.lab.restore(&format!("{}@{number}", self.machine.image(disk)))
    }

    /// Nothing is left of any run: in QEMU but the one bitmap of each disk that was begun with its newest
    /// snapshot, in no folder, and no scratch file that has no name.
    #[track_caller]
    pub fn is_tidy(&self, guest: &mut Guest, taken: &[Value]) {
        let mut left = guest.qmp.left_over();
        // A QEMU 7.2 closes what it was given only while the machine runs, and with a client that hangs up.
        let is_running = guest.qmp.status() == "running";
        left.retain(|left| is_running || !left.starts_with("fdset "));
        assert_eq!(left, Vec::<String>::new());
        let bitmaps = guest.qmp.bitmaps();
        let ours: Vec<_> =
            bitmaps.iter().filter(|(_, name)| name.starts_with("imgsnap-")).collect();
        for (disk, taken) in taken.iter().enumerate() {
            let node = format!("node{disk}");
            let of_disk: Vec<_> = ours.iter().filter(|(of, _)| *of == node).collect();
            let is_newest = |name: &str| name.ends_with(taken["id"].as_str().unwrap());
            assert!(of_disk.len() == 1 && is_newest(&of_disk[0].1), "{bitmaps:?}, {taken}");
        }
        assert_eq!(ours.len(), taken.len(), "{bitmaps:?}");
        for folder in ["scratch", "tmp"] {
            let names = names_in(&self.lab.path(folder));
            assert!(names.is_empty(), "{folder}: {names:?}");
        }
        // QEMU lets go of it when what was under way is done.
        let is_closed = || !is_running || scratch_files(guest).is_empty();
        assert!(wait_until(is_closed), "{:?}", scratch_files(guest));
    }
}

/// What QEMU has open of files that have no name any more.
fn scratch_files(guest: &Guest) -> Vec<String> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", guest.id())).unwrap();
    let leads_to = |entry: std::io::Result<std::fs::DirEntry>| {
        let to = std::fs::read_link(entry.ok()?.path()).ok()?;
        to.to_str().filter(|to| to.contains("/scratch/")).map(str::to_owned)
    };
    open.filter_map(leads_to).collect()
}

/// One object each line.
#[track_caller]
pub fn members(run: &Run) -> Vec<Value> {
    let text = std::str::from_utf8(&run.out).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// It failed, or not; in either case as it should: one clear line, and a code that is documented.
#[track_caller]
pub fn ended_well(run: &Run) {
    let errors = run.err.lines().filter(|line| line.starts_with("imgsnap: error: ")).count();
    let others = run.err.lines().filter(|line| !line.starts_with("imgsnap: ")).count();
    match run.code() {
        Some(0) => assert_eq!((errors, others), (0, 0), "{}", run.err),
        Some(1 | 4) => assert_eq!((errors, others), (1, 0), "{}", run.err),
        _ => panic!("{}: {}", run.status, run.err),
    }
}

/// The end of a process that may not hang.
#[track_caller]
pub fn end(mut started: Started) -> Run {
    assert!(wait_until(|| started.is_over()), "it hangs");
    started.wait()
}

pub fn number(taken: &Value) -> u64 {
    taken["number"].as_u64().unwrap()
}

/// Why a disk was read as a whole although it has a parent; none if a bitmap told what changed.
pub fn whole_because(taken: &Value) -> Option<&str> {
    match taken["hint"]["kind"].as_str() {
        Some("bitmap") => None,
        _ => Some(taken["full_scan_reason"].as_str().unwrap_or("not said")),
    }
}

pub fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}
