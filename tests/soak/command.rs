//! One run of the real binary, and what holds of every run: a code that is documented, one line that says
//! what is wrong, no panic.

use crate::fault::Fault;
use crate::random::Random;
use crate::world::World;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::HashMap;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

/// How long verbs take, to choose the moment of a signal by.
#[derive(Default)]
pub struct Pace(HashMap<String, Duration>);

pub struct Ended {
    pub what: String,
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
    pub fault: Fault,
}

/// What is to be run, by whom, and under which fault.
pub struct Order<'a> {
    pub worker: u64,
    pub repo: &'a Path,
    pub args: Vec<String>,
    pub fault: Fault,
}

impl Order<'_> {
    /// Starts it, to run beside another one.
    pub fn start(self, world: &World) -> Running {
        let program = Path::new(env!("CARGO_BIN_EXE_imgsnap"));
        let mut command = self.fault.command(program);
        command.args(&self.args).env("IMGSNAP_REPO", self.repo).env("HOME", &world.place);
        command.env("IMGSNAP_STATE", world.place.join("state"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Not with us, if somebody types Ctrl-C.
        command.process_group(0).current_dir(&world.place);
        let started = {
            let _alone = world.forking();
            command.spawn().unwrap()
        };
        world.begins(i32::try_from(started.id()).unwrap());
        let place = world.place.to_str().unwrap();
        let args = self.args.join(" ").replace(&format!("{place}/"), "");
        let what = format!("w{} imgsnap {args}{}", self.worker, self.fault.describe());
        // Of several images each may have a line of its own.
        let is_of_all = self.args[1].starts_with("--")
            || (self.args[0] == "snapshot" && self.args[2].ends_with(".img"));
        let verb = match is_of_all {
            true => format!("{}-all", self.args[0]),
            false => self.args[0].clone(),
        };
        Running { child: started, what, verb, fault: self.fault, begun: Instant::now() }
    }
}

pub struct Running {
    child: Child,
    what: String,
    verb: String,
    fault: Fault,
    begun: Instant,
}

impl Running {
    /// Waits for its end; sends the signal that it is to get.
    pub fn end(mut self, world: &World, pace: &mut Pace) -> Ended {
        let slowest = pace.0.get(&self.verb).copied().unwrap_or(Duration::from_millis(40));
        let mut was_sent = false;
        if let Fault::Signal(signal, part) = self.fault {
            let moment = slowest * u32::try_from(part).unwrap() / 1000;
            while self.begun.elapsed() < moment && self.child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            if self.child.try_wait().unwrap().is_none() {
                was_sent = true;
                self.send(signal);
            }
        }
        let took = self.begun;
        let group = i32::try_from(self.child.id()).unwrap();
        let output = self.child.wait_with_output().unwrap();
        assert!(world.ends(group), "it hangs: {}", self.what);
        let is_free = matches!(self.fault, Fault::None);
        if is_free {
            // A slow moment of the machine is forgotten again.
            let now = (slowest * 7 + took.elapsed()) / 8;
            pace.0.insert(self.verb.clone(), now.max(took.elapsed().min(slowest * 2)));
        }
        judge(world, self.what, &self.verb, self.fault, was_sent, output)
    }

    pub fn send(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(id, signal).unwrap();
    }
}

/// What holds of every run.
fn judge(
    world: &World,
    what: String,
    verb: &str,
    fault: Fault,
    was_sent: bool,
    output: Output,
) -> Ended {
    let Output { status, stdout: out, stderr } = output;
    let err = String::from_utf8_lossy(&stderr).into_owned();
    let told = format!("{what}: {status}: {err}");
    world.note(told.trim_end());
    world.count(&format!("commands {verb}"), 1);
    assert!(!err.contains("panicked") && !err.contains("RUST_BACKTRACE"), "{told}");
    let of_loader = status.code() == Some(127) && err.contains("error while loading");
    match (status.code(), status.signal()) {
        _ if of_loader => {}
        (Some(0 | 1 | 3 | 4 | 130), _) => {}
        (None, Some(signal)) => assert!(fault.may_end_by(signal), "{told}"),
        _ => panic!("a code that is not documented: {told}"),
    }
    assert!(status.code() != Some(130) || was_sent, "{told}");
    let errors = err.lines().filter(|line| line.starts_with("imgsnap: error: ")).count();
    let others = err.lines().filter(|line| !line.starts_with("imgsnap: ")).count();
    let is_error = matches!(status.code(), Some(1 | 4 | 130));
    if !fault.may_silence() && !of_loader {
        assert_eq!(others, 0, "not its own words: {told}");
        let is_one = errors == 1 || (errors > 1 && verb.ends_with("-all"));
        let is_told = is_one || (errors == 0 && err.contains("warning: "));
        assert!(!is_error || is_told, "not one error: {told}");
        assert!(status.code() != Some(0) || errors == 0, "an error, and all is well? {told}");
    }
    assert!(!err.contains("(os error"), "{told}");
    let kind = match (&fault, status.code()) {
        (Fault::None, _) => None,
        (Fault::Signal(signal, _), code) if was_sent && code != Some(0) => {
            Some(format!("kills {signal}"))
        }
        (Fault::Signal(..), _) => None,
        (Fault::Inject { how, call }, None) if how.starts_with("signal") => {
            Some(format!("kills in-{call}"))
        }
        (Fault::Inject { call, .. }, Some(1..)) => Some(format!("faults {call}")),
        (Fault::Inject { .. }, _) => Some("harmless injected".into()),
        (Fault::FileSize(..), Some(0)) | (Fault::Descriptors(_), Some(0)) => {
            Some("harmless limits".into())
        }
        (Fault::FileSize(..), _) => Some("faults file-size".into()),
        (Fault::Descriptors(_), _) => Some("faults descriptors".into()),
    };
    kind.into_iter().for_each(|kind| world.count(&kind, 1));
    Ended { what, code: status.code(), out, err, fault }
}

impl Ended {
    pub fn is_done(&self) -> bool {
        self.code == Some(0)
    }

    /// True if nothing was done to it, so that it must be done.
    pub fn had_no_fault(&self) -> bool {
        self.fault == Fault::None
    }

    #[track_caller]
    pub fn done(self) -> Self {
        assert!(self.is_done(), "{}: {:?}: {}", self.what, self.code, self.err);
        self
    }

    /// Done, or something was done to it.
    #[track_caller]
    pub fn done_unless_faulted(&self) -> bool {
        assert!(
            self.is_done() || !self.had_no_fault(),
            "without a fault: {}: {:?}: {}",
            self.what,
            self.code,
            self.err
        );
        self.is_done()
    }

    #[track_caller]
    pub fn fails(self, code: i32, says: &str) {
        let told = format!("{}: {:?}: {}", self.what, self.code, self.err);
        assert!(self.code == Some(code) && self.err.contains(says), "{told}: not \"{says}\"");
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        crate::json_lines::parsed(&self.what, &self.out)
    }
}

/// One of them.
pub fn pick<T: Clone>(random: &mut Random, of: &[T]) -> T {
    of[usize::try_from(random.below(of.len() as u64)).unwrap()].clone()
}
