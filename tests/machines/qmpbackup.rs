//! Side by side with qmpbackup, on the same guest and the same changes: time, bytes, and what is lost when
//! each is killed.
//!
//! `IMGSNAP_QMPBACKUP` is its program; otherwise pip is asked for it.

use crate::Played;
use crate::guest::{Guest, judge};
use crate::killed::guard_of;
use crate::kit::{Lab, MIB, Random, Started, output, tool, tools};
use crate::rig::{PATIENT, Rig, Site};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How much of the disk is data.
const BYTES: u64 = 512 * MIB;
const ROUNDS: u64 = 3;
const KILLS: u64 = 8;
/// Within that a guest that was frozen should go on.
const PATIENCE: Duration = Duration::from_secs(15);
const KEEP: u64 = 400;

/// One of the two, of the second disk of the machine.
trait Tool {
    fn name(&self) -> &'static str;
    fn command(&self, site: &Site, is_first: bool) -> Command;
    /// It freezes at the moment, as far as that can be told; waits for it.
    fn freezes(&self, started: &mut Started);
    /// The newest state, as a raw file.
    fn restore(&self, site: &Site, to: &str);
    fn place(&self, site: &Site) -> String;

    /// Runs it to its end: how long it took, or what it said last.
    fn run(&self, site: &Site, is_first: bool) -> Result<Duration, String> {
        let begun = Instant::now();
        let done = output(&mut self.command(site, is_first)).map_err(|e| e.to_string())?;
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let last = || said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        if done.status.success() { Ok(begun.elapsed()) } else { Err(last().to_owned()) }
    }

    fn stored(&self, site: &Site) -> u64 {
        let said = tool("du", &["-s", "--block-size=1", &self.place(site)]);
        said.split_whitespace().next().unwrap().parse().unwrap()
    }
}

struct Ours;

impl Tool for Ours {
    fn name(&self) -> &'static str {
        "imgsnap"
    }

    fn command(&self, site: &Site, _: bool) -> Command {
        let uri = format!("{}/vd1", site.machine.uri());
        let args = [&["snapshot", &uri, "--freeze", "agent", "--quiet"], &PATIENT[..]].concat();
        site.lab.command(&args)
    }

    fn freezes(&self, started: &mut Started) {
        while guard_of(started).is_none() && !started.is_over() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn restore(&self, site: &Site, to: &str) {
        site.lab.run(&["restore", "vm-vd1@latest", "-o", to]).done();
    }

    fn place(&self, site: &Site) -> String {
        site.lab.repo.clone()
    }
}

struct Theirs {
    python: String,
    program: String,
}

impl Theirs {
    fn find(lab: &Lab) -> Result<Self, String> {
        tools(&["python3"])?;
        if let Ok(program) = std::env::var("IMGSNAP_QMPBACKUP") {
            let python = std::env::var("IMGSNAP_PYTHON").unwrap_or("python3".to_owned());
            return Ok(Self { python, program });
        }
        let place = lab.path("venv");
        let (python, program) = (format!("{place}/bin/python"), format!("{place}/bin/qmpbackup"));
        let commands: [&[&str]; 2] = [
            &["python3", "-m", "venv", &place],
            &[&python, "-m", "pip", "install", "--quiet", "qmpbackup"],
        ];
        for command in commands {
            let done = output(Command::new(command[0]).args(&command[1..]));
            let done = done.map_err(|e| e.to_string())?;
            if !done.status.success() {
                let why = String::from_utf8_lossy(&done.stderr);
                let why = why.lines().last().unwrap_or_default();
                return Err(format!("pip gives no qmpbackup (see IMGSNAP_QMPBACKUP): {why}"));
            }
        }
        Ok(Self { python, program })
    }
}

impl Tool for Theirs {
    fn name(&self) -> &'static str {
        "qmpbackup"
    }

    fn command(&self, site: &Site, is_first: bool) -> Command {
        let mut command = Command::new(&self.python);
        let (socket, agent) = (site.machine.socket(), site.machine.agent());
        let level = if is_first { "full" } else { "inc" };
        command.args([&self.program, "--socket", &socket, "--agent-socket", &agent, "backup"]);
        command.args(["--level", level, "--target", &self.place(site), "--include", "node1"]);
        // Where it works it makes its scratch files.
        command.arg("--quiesce").current_dir(site.lab.path("tmp"));
        command
    }

    fn freezes(&self, started: &mut Started) {
        started.waits_for("freeze:");
    }

    fn restore(&self, site: &Site, to: &str) {
        let program = Path::new(&self.program).with_file_name("qmprestore");
        let merged = site.lab.path("merged.qcow2");
        std::fs::remove_file(&merged).ok();
        let folder = format!("{}/{}", self.place(site), "vm.vd1");
        let mut command = Command::new(&self.python);
        command.arg(program).args(["merge", "--dir", &folder, "--targetfile", &merged]);
        let done = output(&mut command).unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        tool("qemu-img", &["convert", "-O", "raw", &merged, to]);
    }

    fn place(&self, site: &Site) -> String {
        site.lab.path("qmpbackup")
    }
}

pub fn run(rig: &Rig) -> Played {
    let mut site = rig.site();
    let theirs = Theirs::find(&site.lab)?;
    site.machine = site.machine.new_disk(2 * BYTES, "qcow2");
    let mut guest = site.machine.boot();
    guest.console.run(&format!("work fill /dev/vdb {BYTES} 7"));
    guest.console.waits_for("FILLED", 0);
    guest.writes_files(KEEP, Duration::from_millis(20));
    let both: [&dyn Tool; 2] = [&Ours, &theirs];

    println!("  {} MiB of data on a qcow2 disk; 1 % of it written between two runs", BYTES >> 20);
    println!("  program      what          seconds     stored");
    for tool in both {
        line(tool, &site, "the first", 0, tool.run(&site, true)?);
    }
    let mut seed = rig.seed;
    for _ in 0..ROUNDS {
        seed += 1;
        change(&mut guest, seed);
        for tool in both {
            let before = tool.stored(&site);
            let took = tool.run(&site, false)?;
            line(tool, &site, "an increment", before, took);
        }
    }
    both.iter().for_each(|tool| assert!(is_right(*tool, &site, &mut guest), "{}", tool.name()));

    println!("  killed {KILLS} times each, every other time while it freezes:");
    println!("  program      guest held up   next run fails   wrong afterwards   left in QEMU");
    for tool in both {
        let mut tally = [0; 4];
        for round in 0..KILLS {
            seed += 1;
            guest = killed(tool, &site, guest, seed, round, &mut tally);
        }
        let [held, fails, wrong, left] = tally;
        println!("  {:<12} {held:>13} {fails:>16} {wrong:>18} {left:>14}", tool.name());
    }
    Ok(())
}

fn line(tool: &dyn Tool, site: &Site, what: &str, before: u64, took: Duration) {
    let kib = tool.stored(site).saturating_sub(before) >> 10;
    println!("  {:<12} {what:<13} {:>7.2} {kib:>8} K", tool.name(), took.as_secs_f64());
}

fn change(guest: &mut Guest, seed: u64) {
    let from = guest.console.count();
    let count = BYTES / 100 / 65536;
    guest.console.run(&format!("work scatter /dev/vdb 65536 {count} {seed}"));
    guest.console.waits_for("SCATTERED", from);
}

/// The newest state that it gives back is what the disk holds, which it has just taken.
fn is_right(tool: &dyn Tool, site: &Site, guest: &mut Guest) -> bool {
    guest.qmp.execute("stop", json!({}));
    let (now, restored) = (site.lab.path("now"), site.lab.path("restored"));
    std::fs::remove_file(&restored).ok();
    site.machine.read_disk(1, &now);
    guest.qmp.execute("cont", json!({}));
    tool.restore(site, &restored);
    judge::is_same(&now, &restored)
}

/// One kill, and what came of it.
fn killed(
    tool: &dyn Tool,
    site: &Site,
    mut guest: Guest,
    seed: u64,
    round: u64,
    tally: &mut [u64; 4],
) -> Guest {
    change(&mut guest, seed);
    let nodes = |guest: &mut Guest| {
        let nodes = guest.qmp.execute("query-named-block-nodes", json!({ "flat": true }));
        nodes.as_array().unwrap().len()
    };
    let before = nodes(&mut guest);
    let mut started = Started::spawn(tool.command(site, false));
    if round.is_multiple_of(2) {
        tool.freezes(&mut started);
    } else {
        std::thread::sleep(Duration::from_millis(Random(seed).below(1500)));
    }
    kill(Pid::from_raw(i32::try_from(started.id()).unwrap()), Signal::SIGKILL).unwrap();
    started.wait();
    if guest.goes_on(PATIENCE).is_err() {
        tally[0] += 1;
        thaw(&site.machine.agent());
        guest.goes_on(PATIENCE).unwrap();
    }
    let next = tool.run(site, false);
    let is_right = next.is_ok() && is_right(tool, site, &mut guest);
    let is_left = nodes(&mut guest) > before;
    tally[1] += u64::from(next.is_err());
    tally[2] += u64::from(next.is_ok() && !is_right);
    tally[3] += u64::from(is_left);
    guest.is_well();
    if next.is_ok() && is_right && !is_left {
        return guest;
    }
    // Nothing helps but to begin anew.
    guest.kill();
    std::fs::remove_dir_all(tool.place(site)).unwrap();
    let mut guest = site.machine.boot();
    guest.writes_files(KEEP, Duration::from_millis(20));
    tool.run(site, true).unwrap();
    guest
}

/// What an administrator would do.
fn thaw(agent: &str) {
    let mut agent = UnixStream::connect(agent).unwrap();
    agent.set_read_timeout(Some(PATIENCE)).unwrap();
    agent.write_all(b"\xff{\"execute\": \"guest-fsfreeze-thaw\"}\n").unwrap();
    let mut said = [0; 512];
    assert!(agent.read(&mut said).unwrap() > 0);
}
