//! One byte for each write that a guest has done, by the clock of the host, which goes on while the machine
//! is stopped.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Seen {
    /// When the last one came.
    last: Option<Instant>,
    slowest: Duration,
    writes: u64,
}

pub struct Ticks(Arc<Mutex<Seen>>);

impl Ticks {
    pub fn new(mut from: UnixStream) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let now = Instant::now();
                let mut seen = shared.lock().unwrap();
                let gap = seen.last.map_or(Duration::ZERO, |last| now - last);
                seen.slowest = seen.slowest.max(gap);
                seen.writes += count as u64;
                seen.last = Some(now);
            }
        });
        Self(seen)
    }

    /// Begins anew.
    pub fn reset(&self) {
        let mut seen = self.0.lock().unwrap();
        (seen.slowest, seen.writes) = (Duration::ZERO, 0);
    }

    /// The longest time from one write to the next since then, the one under way included, and how many
    /// there were.
    pub fn slowest(&self) -> (Duration, u64) {
        let seen = self.0.lock().unwrap();
        let under_way = seen.last.map_or(Duration::ZERO, |last| last.elapsed());
        (seen.slowest.max(under_way), seen.writes)
    }
}
