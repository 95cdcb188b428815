//! How fast may be read, by all threads together.
//!
//! Each read is granted a moment at which it may begin, and the next one as much later as its bytes take at
//! that rate. What was not used is not made up for: in any second there is never more than the rate and one
//! read.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::parse_bytes;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is asked, while a read waits, whether the user wants to stop.
const TICK: Duration = Duration::from_millis(20);

/// A number of bytes per second, at least 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReadRate(u64);

impl ReadRate {
    /// What is read at once: whoever waits for the image waits no longer than that takes.
    const PIECE_BYTES: u64 = 1 << 20;

    /// So many bytes per second.
    ///
    /// # Errors
    /// `InvalidInput` below 1 MiB.
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes < Self::PIECE_BYTES {
            let what = format!("a limit of {bytes} bytes per second is too low");
            return Err(Error::new(ErrorKind::InvalidInput, what).hint("use at least 1M"));
        }
        Ok(Self(bytes))
    }

    /// Bytes per second.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The most that is read at once: what a tenth of a second allows, or 1 MiB if that is more.
    pub fn piece_bytes(self) -> u64 {
        (self.0 / 10).max(Self::PIECE_BYTES)
    }
}

impl FromStr for ReadRate {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let number = text.strip_suffix("/s").unwrap_or(text);
        let bytes = parse_bytes(number).map_err(|_| {
            let what = format!("invalid rate \"{}\"", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, what).hint("write it like 100M or 1.5GiB/s")
        })?;
        Self::new(bytes)
    }
}

/// Grants moments, counted from any beginning.
struct Pace {
    rate: ReadRate,
    /// When the next read may begin.
    next: Duration,
}

impl Pace {
    fn grant(&mut self, now: Duration, bytes: u64) -> Duration {
        let begin = self.next.max(now);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.bytes());
        self.next = begin + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        begin
    }
}

struct Limit {
    rate: ReadRate,
    pace: Mutex<Pace>,
    begun: Instant,
    stop: Arc<AtomicBool>,
    granted: AtomicU64,
}

/// One thread reads and digests as much in a second on every machine.
const ONE_READER: u64 = 256 << 20;

/// The limits that hold for what is read; clones share them.
#[derive(Clone, Default)]
pub struct ReadLimits(Vec<Arc<Limit>>);

impl fmt::Debug for ReadLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|limit| limit.rate)).finish()
    }
}

impl ReadLimits {
    /// With one more. Once `stop` is set, whoever waits for it gets an error.
    #[must_use]
    pub fn and(mut self, rate: ReadRate, stop: Arc<AtomicBool>) -> Self {
        let pace = Mutex::new(Pace { rate, next: Duration::ZERO });
        let (begun, granted) = (Instant::now(), AtomicU64::new(0));
        self.0.push(Arc::new(Limit { rate, pace, begun, stop, granted }));
        self
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lowest rate, in bytes a second.
    pub fn rate(&self) -> Option<u64> {
        self.0.iter().map(|limit| limit.rate.bytes()).min()
    }

    /// How many of so many threads read: where they wait for the rate, one of them, so that whoever wants the
    /// image waits for one piece.
    pub fn readers(&self, threads: usize) -> usize {
        if self.rate().is_some_and(|rate| rate < ONE_READER) { 1 } else { threads }
    }

    /// Bytes that the first one has granted so far.
    pub fn granted(&self) -> u64 {
        self.0.first().map_or(0, |limit| limit.granted.load(Ordering::Relaxed))
    }

    /// As much of so many bytes as is read at once.
    pub fn most(&self, bytes: u64) -> u64 {
        self.0.iter().map(|limit| limit.rate.piece_bytes()).fold(bytes, u64::min)
    }

    /// Waits until the next piece of a read of which `left` bytes are left may be read, and gives its length.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn piece(&self, left: usize) -> Result<usize> {
        let bytes = self.most(left as u64);
        self.wait(bytes)?;
        Ok(bytes as usize)
    }

    /// Waits until so many bytes may be read.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn wait(&self, bytes: u64) -> Result<()> {
        // The first is the one that all share: nothing comes between it and the read.
        self.0.iter().rev().try_for_each(|limit| limit.wait(bytes))
    }
}

impl Limit {
    fn wait(&self, bytes: u64) -> Result<()> {
        self.granted.fetch_add(bytes, Ordering::Relaxed);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = pace.grant(self.begun.elapsed(), bytes);
        drop(pace);
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
            }
            let left = begin.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_in_the_usual_units_and_absurd_ones_are_refused() {
        for (text, bytes) in [
            ("100M", 100 << 20),
            ("100MiB/s", 100 << 20),
            ("1.5G/s", 3 << 29),
            ("1048576", 1 << 20),
            ("1m", 1 << 20),
        ] {
            assert_eq!(text.parse::<ReadRate>().unwrap().bytes(), bytes, "{text}");
        }
        for (text, why) in [
            ("0", "a limit of 0 bytes per second is too low; use at least 1M"),
            ("1023K/s", "a limit of 1047552 bytes per second is too low"),
            ("fast", "invalid rate \"fast\"; write it like"),
            ("100M/min", "invalid rate \"100M/min\""),
            ("", "invalid rate \"\""),
        ] {
            let error = text.parse::<ReadRate>().unwrap_err();
            assert!(error.to_string().starts_with(why), "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(ReadRate(20 << 20).piece_bytes(), 2 << 20);
        assert_eq!(ReadRate(1 << 20).piece_bytes(), 1 << 20);
    }

    /// A clock that stands: so many threads ask when they want to, sleep as they are told, and are late.
    #[test]
    fn no_second_has_more_than_the_rate_and_one_piece_however_many_threads_read() {
        for (rate, threads) in [(1u64 << 20, 1), (1 << 20, 8), (100 << 20, 8), (7 << 20, 3)] {
            let rate = ReadRate::new(rate).unwrap();
            let mut pace = Pace { rate, next: Duration::ZERO };
            // When each thread asks next.
            let mut asks = vec![Duration::ZERO; threads];
            let mut grants: Vec<(Duration, u64)> = Vec::new();
            let mut random = 1u64;
            let mut below = |most: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 33) % most
            };
            for _ in 0..2000 {
                let thread = (0..threads).min_by_key(|thread| asks[*thread]).unwrap();
                let bytes = 1 + below(rate.piece_bytes());
                let begin = pace.grant(asks[thread], bytes);
                assert!(begin >= asks[thread]);
                grants.push((begin, bytes));
                // Now and then nobody reads for seconds: that is not saved up.
                let pause = if below(100) == 0 { 5000 } else { below(30) };
                asks[thread] = begin + Duration::from_millis(pause);
            }
            assert!(grants.is_sorted_by_key(|(begin, _)| *begin));
            for (index, (from, _)) in grants.iter().enumerate() {
                let end = *from + Duration::from_secs(1);
                let within = grants[index..].iter().take_while(|(begin, _)| *begin < end);
                let sum: u64 = within.map(|(_, bytes)| bytes).sum();
                assert!(sum <= rate.bytes() + rate.piece_bytes(), "{sum} at {from:?}");
            }
            // Who always wants to read gets the rate.
            let mut pace = Pace { rate, next: Duration::ZERO };
            let last = (0..101).map(|_| pace.grant(Duration::ZERO, rate.bytes() / 10)).last();
            assert!(last.unwrap().abs_diff(Duration::from_secs(10)) < Duration::from_millis(1));
        }
    }

    #[test]
    fn a_piece_is_what_each_limit_grants_and_a_stop_ends_the_wait() {
        let stop = Arc::new(AtomicBool::new(false));
        let fast = ReadRate::new(1 << 40).unwrap();
        let limits = ReadLimits::default().and(fast, stop.clone());
        let both = limits.clone().and(ReadRate::new(1 << 20).unwrap(), stop.clone());
        assert_eq!(ReadLimits::default().piece(5 << 20).unwrap(), 5 << 20);
        assert_eq!(both.piece(5 << 20).unwrap(), 1 << 20);
        assert_eq!((limits.granted(), limits.most(7), both.most(1 << 30)), (1 << 20, 7, 1 << 20));
        stop.store(true, Ordering::Relaxed);
        // The second piece would have to wait for a second.
        let failed = both.piece(1 << 20).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Interrupted);
    }
}
