//! A watch that runs, and what it says.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{Lab, Started, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

type Lines = Arc<Mutex<Vec<String>>>;

/// A watch that runs, and what it has said so far.
pub struct Watcher {
    started: Started,
    out: Lines,
    err: Lines,
    readers: Vec<JoinHandle<()>>,
}

/// A watch that has ended.
pub struct Ended {
    pub code: Option<i32>,
    pub out: Vec<String>,
    pub err: Vec<String>,
}

fn collect(from: impl Read + Send + 'static, lines: &Lines) -> JoinHandle<()> {
    let lines = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            lines.lock().unwrap().push(line.unwrap());
        }
    })
}

impl Watcher {
    pub fn start(lab: &Lab, args: &[&str]) -> Self {
        let mut command = lab.command(&[&["watch"], args].concat());
        let mut started = Started::new(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let (out, err) = (Lines::default(), Lines::default());
        let readers = vec![
            collect(started.child.stdout.take().unwrap(), &out),
            collect(started.child.stderr.take().unwrap(), &err),
        ];
        Self { started, out, err, readers }
    }

    fn out(&self) -> Vec<String> {
        self.out.lock().unwrap().clone()
    }

    fn err(&self) -> Vec<String> {
        self.err.lock().unwrap().clone()
    }

    /// What it printed with `--json`.
    pub fn events(&self) -> Vec<Value> {
        self.out().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until it has printed a line that is as wanted, and gives it. What it printed before, from
    /// `from` on, is looked at, too.
    #[track_caller]
    pub fn line(&self, from: usize, is_wanted: impl Fn(&str) -> bool) -> String {
        let find = || self.out().into_iter().skip(from).find(|line| is_wanted(line));
        assert!(
            wait_until(|| find().is_some()),
            "no such line in {:?} {:?}",
            self.out(),
            self.err()
        );
        find().unwrap()
    }

    /// The same of its events; gives how many there are up to it, too.
    #[track_caller]
    pub fn event(&self, from: usize, is_wanted: impl Fn(&Value) -> bool) -> (usize, Value) {
        let find = || {
            let mut events = self.events().into_iter().enumerate().skip(from);
            events.find(|(_, event)| is_wanted(event))
        };
        assert!(
            wait_until(|| find().is_some()),
            "no such event in {:?} {:?}",
            self.out(),
            self.err()
        );
        let (index, event) = find().unwrap();
        (index + 1, event)
    }

    /// Waits for what it must say on stderr.
    #[track_caller]
    pub fn complaint(&self, is_wanted: impl Fn(&str) -> bool) -> String {
        let find = || self.err().into_iter().find(|line| is_wanted(line));
        assert!(wait_until(|| find().is_some()), "no such line in {:?}", self.err());
        find().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.started.child.id() as i32), signal).unwrap();
    }

    /// Tells it to stop, and waits until it has.
    #[track_caller]
    pub fn stop(mut self, signal: Signal) -> Ended {
        self.signal(signal);
        let has_ended = || self.started.child.try_wait().unwrap().is_some();
        assert!(wait_until(has_ended), "it goes on");
        let code = self.started.child.wait().unwrap().code();
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        Ended { code, out: self.out(), err: self.err() }
    }
}

pub fn is_of(event: &Value, name: &str, kind: &str) -> bool {
    event["name"] == name && event["event"] == kind
}

/// The line without its time: what stands after `2026-11-21 12:00:00  `.
#[track_caller]
pub fn after_time(line: &str) -> &str {
    let (time, rest) = line.split_at(21);
    let is_time = time.bytes().all(|b| b.is_ascii_digit() || b"-: ".contains(&b));
    assert!(is_time && time.ends_with("  "), "{line}");
    rest
}
