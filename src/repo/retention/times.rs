//! When snapshots were taken, as far as their clocks can be trusted. Their order is that of their numbers;
//! a time that does not fit into it was recorded by a clock that was wrong.

use crate::repo::manifest::Snapshot;
use jiff::Timestamp;

/// 2025-01-01: no snapshot is older than imgsnap. A clock without a battery begins before that.
const EARLIEST: Timestamp = Timestamp::constant(1_735_689_600, 0);

/// The effective times of the snapshots of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times {
    /// One for each, in their order: never later than that of a later one, nor than now, unless now is before
    /// the newest snapshot.
    pub effective: Vec<Timestamp>,
    /// Now is before the newest snapshot, or before more snapshots than fit before it: whether the clock is
    /// wrong now or was when they were taken, nobody can say.
    pub is_in_doubt: bool,
    /// The same by other readings: which of two clocks was wrong is a guess, so nothing is lost by it.
    pub others: Vec<Vec<Timestamp>>,
}

impl Times {
    /// Of snapshots that ascend by number.
    ///
    /// As many times as possible stay as they are: those of a longest run that never goes back in time, of
    /// two such runs the one that ends earlier. Each of the others becomes the nearest time that fits
    /// between its neighbours. Other readings are that clocks were only ever behind, so that each time that
    /// goes back is wrong, or only ever ahead, so that each is wrong that a later one is before: however many
    /// those are.
    pub fn of(snapshots: &[Snapshot], now: Timestamp) -> Self {
        let recorded: Vec<Timestamp> = snapshots.iter().map(|s| s.time).collect();
        let is_behind = now < EARLIEST || recorded.last().is_some_and(|newest| *newest > now);
        let fits = longest_run(&recorded, now);
        let ahead = recorded.iter().filter(|time| **time > now).count();
        let fitting = fits.iter().filter(|fits| **fits).count();
        let is_in_doubt = is_behind || ahead > fitting;
        let most = if is_behind { Timestamp::MAX } else { now };
        let longest = fitted(&recorded, &longest_run(&recorded, most), most);
        let behind = fitted(&recorded, &not_before_any_earlier(&recorded, most), most);
        let mut others =
            vec![behind, fitted(&recorded, &not_after_any_later(&recorded, most), most)];
        if is_in_doubt {
            others.push(fitted(&recorded, &longest_run(&recorded, Timestamp::MAX), Timestamp::MAX));
        }
        Self { effective: longest, is_in_doubt, others }
    }

    /// All readings; the likeliest is the first.
    pub fn readings(&self) -> impl Iterator<Item = &Vec<Timestamp>> {
        std::iter::once(&self.effective).chain(&self.others)
    }

    /// Which of them is the newest at or before a time; and whether that is so by all readings.
    pub fn newest_at(&self, time: Timestamp) -> (Option<usize>, bool) {
        let newest = |times: &Vec<Timestamp>| times.iter().rposition(|taken| *taken <= time);
        let found = newest(&self.effective);
        (found, self.readings().all(|times| newest(times) == found))
    }
}

/// Which times are not before any earlier one, nor beyond `most`.
fn not_before_any_earlier(times: &[Timestamp], most: Timestamp) -> Vec<bool> {
    let mut last = EARLIEST;
    let fits = |time: &Timestamp| {
        let fits = (last..=most).contains(time);
        last = if fits { *time } else { last };
        fits
    };
    times.iter().map(fits).collect()
}

/// Which times are not after any later one, nor beyond `most`.
fn not_after_any_later(times: &[Timestamp], most: Timestamp) -> Vec<bool> {
    let mut next = most;
    let fits = |time: &Timestamp| {
        let fits = (EARLIEST..=next).contains(time);
        next = if fits { *time } else { next };
        fits
    };
    let mut fits: Vec<bool> = times.iter().rev().map(fits).collect();
    fits.reverse();
    fits
}

/// Which times are of a longest run that never goes back, from [`EARLIEST`] to `most`.
fn longest_run(times: &[Timestamp], most: Timestamp) -> Vec<bool> {
    // For each length, the run that ends earliest: where it ends. For each time, the one before it.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; times.len()];
    for (index, (time, before)) in times.iter().zip(&mut before).enumerate() {
        if !(EARLIEST..=most).contains(time) {
            continue;
        }
        let length = ends.partition_point(|end| times.get(*end).is_some_and(|end| end <= time));
        *before = length.checked_sub(1).and_then(|shorter| ends.get(shorter).copied());
        match ends.get_mut(length) {
            Some(end) => *end = index,
            None => ends.push(index),
        }
    }
    let mut fits = vec![false; times.len()];
    let mut next = ends.last().copied();
    while let Some(index) = next {
        if let Some(fits) = fits.get_mut(index) {
            *fits = true;
        }
        next = before.get(index).copied().flatten();
    }
    fits
}

/// The times, with those that do not fit put between the ones that do.
fn fitted(times: &[Timestamp], fits: &[bool], most: Timestamp) -> Vec<Timestamp> {
    let mut effective: Vec<Timestamp> = Vec::with_capacity(times.len());
    // The next one that fits, for each from the last on.
    let mut next = most;
    for (time, fits) in times.iter().zip(fits).rev() {
        if *fits {
            next = *time;
        }
        effective.push((*time).min(next));
    }
    effective.reverse();
    let mut last = Timestamp::MIN;
    for time in &mut effective {
        *time = (*time).max(last);
        last = *time;
    }
    effective
}

#[cfg(test)]
mod tests {
    use super::super::tests::snapshot;
    use super::*;

    fn of(recorded: &[&str], now: &str) -> (Vec<String>, bool) {
        let year = |text: &str| format!("{text}T00:00Z").parse::<Timestamp>().unwrap();
        let snapshots: Vec<Snapshot> =
            (1..).zip(recorded).map(|(number, text)| snapshot(number, year(text), None)).collect();
        let times = Times::of(&snapshots, year(now));
        let shown = |time: &Timestamp| time.strftime("%F").to_string();
        (times.effective.iter().map(shown).collect(), times.is_in_doubt)
    }

    #[test]
    fn the_order_of_the_numbers_puts_a_wrong_clock_right() {
        let cases: &[(&[&str], &str, &[&str], bool)] = &[
            (&[], "2026-11-20", &[], false),
            (&["2026-11-01", "2026-11-02"], "2026-11-20", &["2026-11-01", "2026-11-02"], false),
            // Ahead, and put right afterwards.
            (
                &["2026-11-01", "2035-01-01", "2026-11-03"],
                "2026-11-20",
                &["2026-11-01", "2026-11-03", "2026-11-03"],
                false,
            ),
            (
                &["2026-11-01", "2035-01-01", "2035-01-02", "2026-11-03"],
                "2026-11-20",
                &["2026-11-01", "2026-11-03", "2026-11-03", "2026-11-03"],
                false,
            ),
            (&["2035-01-01", "2026-11-03"], "2026-11-20", &["2026-11-03", "2026-11-03"], false),
            // Ahead until now: nobody can say which clock is wrong.
            (&["2026-11-01", "2035-01-01"], "2026-11-20", &["2026-11-01", "2035-01-01"], true),
            // A battery was empty once; it does not drag along those before it.
            (
                &["2026-11-01", "2026-11-02", "1970-01-01", "2026-11-04"],
                "2026-11-20",
                &["2026-11-01", "2026-11-02", "2026-11-02", "2026-11-04"],
                false,
            ),
            (
                &["2026-11-01", "2026-11-02", "1970-01-01"],
                "2026-11-20",
                &["2026-11-01", "2026-11-02", "2026-11-02"],
                false,
            ),
            // It is empty now, also if a snapshot was taken since.
            (&["2026-11-01"], "1970-01-01", &["2026-11-01"], true),
            (
                &["2026-11-01", "2026-11-02", "1970-01-01"],
                "1970-01-02",
                &["2026-11-01", "2026-11-02", "2026-11-02"],
                true,
            ),
            // More were taken ahead than since.
            (
                &["2035-01-01", "2035-01-02", "2026-11-03"],
                "2026-11-20",
                &["2026-11-03", "2026-11-03", "2026-11-03"],
                true,
            ),
        ];
        for (recorded, now, want, is_behind) in cases {
            let (effective, is_in_doubt) = of(recorded, now);
            assert_eq!(effective, *want, "{recorded:?} {now}");
            assert_eq!(is_in_doubt, *is_behind, "{recorded:?} {now}");
        }
    }

    #[test]
    fn effective_times_never_go_back_and_those_in_order_stay() {
        let second =
            |after: u64| EARLIEST + jiff::SignedDuration::from_secs(after.cast_signed() - 2);
        let mut seed = 7u64;
        for _ in 0..2000 {
            let mut next = |most: u64| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) % most
            };
            let count = next(12) as usize;
            let recorded: Vec<Timestamp> = (0..count).map(|_| second(next(20))).collect();
            let now = second(next(25));
            let snapshots: Vec<Snapshot> =
                (1..).zip(&recorded).map(|(number, time)| snapshot(number, *time, None)).collect();
            let times = Times::of(&snapshots, now);
            let is_possible = recorded.iter().chain([&now]).all(|time| *time >= EARLIEST);
            if is_possible
                && recorded.is_sorted()
                && recorded.last().is_none_or(|last| *last <= now)
            {
                assert!(times.readings().all(|t| *t == recorded) && !times.is_in_doubt);
            }
            assert!(
                times.readings().all(|t| t.len() == count && t.is_sorted()),
                "{recorded:?} {times:?}"
            );
            let is_bounded = times.effective.iter().all(|time| *time <= now);
            assert!(times.is_in_doubt || is_bounded, "{recorded:?} {now} {times:?}");
        }
    }
}
