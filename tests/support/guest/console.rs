//! The serial console of a guest: what it has printed, and when; what it is told to do.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// As long as a very busy machine may take to boot.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Default)]
struct Printed {
    lines: Vec<String>,
    is_over: bool,
}

type Shared = Arc<(Mutex<Printed>, Condvar)>;

pub struct Console {
    printed: Shared,
    to: File,
}

impl Console {
    /// By a socket, or a terminal.
    pub fn new(to: impl Into<OwnedFd>) -> Self {
        let to = File::from(to.into());
        let mut from = BufReader::new(to.try_clone().unwrap());
        let printed = Shared::default();
        let shared = printed.clone();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                shared.0.lock().unwrap().lines.push(text);
                shared.1.notify_all();
                line.clear();
            }
            shared.0.lock().unwrap().is_over = true;
            shared.1.notify_all();
        });
        Self { printed, to }
    }

    /// Runs a command in the guest, beside all others.
    pub fn run(&mut self, command: &str) {
        self.to.write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    /// How many lines there are.
    pub fn count(&self) -> usize {
        self.printed.0.lock().unwrap().lines.len()
    }

    pub fn lines(&self) -> Vec<String> {
        self.printed.0.lock().unwrap().lines.clone()
    }

    /// Waits for a line with that text, the first of those from `from` on, and gives its number.
    ///
    /// # Errors
    /// Without one within that time: what was printed last.
    pub fn find(&self, text: &str, from: usize, patience: Duration) -> Result<usize, String> {
        let deadline = Instant::now() + patience;
        let mut printed = self.printed.0.lock().unwrap();
        let mut next = from;
        loop {
            let new = printed.lines.iter().skip(next);
            if let Some(found) = new.clone().position(|line| line.contains(text)) {
                return Ok(next + found);
            }
            next += new.count();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || printed.is_over {
                let last = printed.lines.len().saturating_sub(8);
                return Err(format!("no \"{text}\" after {:?}", &printed.lines[last..]));
            }
            printed = self.printed.1.wait_timeout(printed, left).unwrap().0;
        }
    }

    #[track_caller]
    pub fn waits_for(&self, text: &str, from: usize) -> usize {
        self.find(text, from, PATIENCE).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The number in the last line that begins with that word; 0 without one.
    pub fn last(&self, word: &str) -> u64 {
        let printed = self.printed.0.lock().unwrap();
        let number = |line: &String| line.strip_prefix(word)?.trim().parse().ok();
        printed.lines.iter().rev().find_map(number).unwrap_or_default()
    }

    /// Lines that no guest prints whose disks are well.
    pub fn complaints(&self) -> Vec<String> {
        const BAD: [&str; 6] = [
            "FAILED ",
            "I/O error",
            "EXT4-fs error",
            "EXT4-fs warning",
            "read-only",
            "blocked for more than",
        ];
        let is_bad = |line: &String| BAD.iter().any(|bad| line.contains(bad));
        self.lines().into_iter().filter(is_bad).collect()
    }
}
