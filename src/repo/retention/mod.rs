//! Which snapshots of an image are kept, and why: the rules of `prune`, without I/O.
//!
//! The rules unite: a snapshot goes only if none of them keeps it.

mod rules;
mod times;

pub use crate::base::duration::Period;
pub use rules::{Count, LabelGlob, Rules};
pub use times::Times;

use crate::repo::manifest::Snapshot;
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

/// What becomes of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Why it is kept. Without a reason it may go.
    pub keep: Vec<String>,
    /// When it was taken, as far as clocks can be trusted.
    pub time: Timestamp,
}

/// Decides on all snapshots of an image: one decision for each, in their order. Without any rule
/// all are kept: nobody who wrote none wanted to lose everything.
///
/// Their order is that of their numbers, and their time the effective one; what a rule keeps by another
/// reading of the times is kept, too. While they are in doubt, rules by time keep everything.
pub fn decide(
    rules: &Rules,
    snapshots: &[Snapshot],
    times: &Times,
    zone: &TimeZone,
) -> Vec<Decision> {
    if rules.is_empty() {
        let keep = |s: &Snapshot| Decision { keep: vec!["no rules".into()], time: s.time };
        return snapshots.iter().map(keep).collect();
    }
    let mut decisions: Vec<Decision> =
        times.effective.iter().map(|time| Decision { keep: Vec::new(), time: *time }).collect();
    for reading in times.readings() {
        for (decision, reasons) in decisions.iter_mut().zip(reasons(rules, reading, zone)) {
            let more: Vec<String> =
                reasons.into_iter().filter(|reason| !decision.keep.contains(reason)).collect();
            decision.keep.extend(more);
        }
    }
    for (snapshot, decision) in snapshots.iter().zip(&mut decisions) {
        if times.is_in_doubt && rules.use_time() {
            decision.keep.push("clock in doubt".into());
        }
        let label = snapshot.label.as_deref();
        let fitting = rules.labels.iter().filter(|glob| label.is_some_and(|l| glob.matches(l)));
        decision.keep.extend(fitting.map(|glob| format!("label {glob}")));
    }
    decisions
}

/// Why snapshots of these times are kept: for each, the rules that say so.
fn reasons(rules: &Rules, times: &[Timestamp], zone: &TimeZone) -> Vec<Vec<String>> {
    let mut reasons = vec![Vec::new(); times.len()];
    // Not before now: an image that is no longer backed up does not lose its last snapshots.
    let newest = times.last();
    let within = rules.within.zip(newest).map(|(period, t)| (period, period.before(*t, zone)));
    let mut counters = [
        Counter::new("last", Unit::Each, rules.last),
        Counter::new("hourly", Unit::Hour, rules.hourly),
        Counter::new("daily", Unit::Day, rules.daily),
        Counter::new("weekly", Unit::Week, rules.weekly),
        Counter::new("monthly", Unit::Month, rules.monthly),
        Counter::new("yearly", Unit::Year, rules.yearly),
    ];
    let mut walk = times.iter().zip(&mut reasons).rev().peekable();
    while let Some((time, reasons)) = walk.next() {
        let is_oldest = walk.peek().is_none();
        let local = time.to_zoned(zone.clone());
        reasons.extend(counters.iter_mut().filter_map(|c| c.reason(&local, is_oldest)));
        if let Some((period, start)) = within
            && *time >= start
        {
            reasons.push(format!("within {period}"));
        }
    }
    reasons
}

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    /// Each snapshot is a period of its own.
    Each,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

/// Goes from the newest snapshot to the oldest, and counts the periods.
struct Counter {
    name: &'static str,
    unit: Unit,
    left: Option<Count>,
    /// The period of the last one that it kept.
    period: Option<(String, i32)>,
}

impl Counter {
    fn new(name: &'static str, unit: Unit, left: Option<Count>) -> Self {
        Self { name, unit, left, period: None }
    }

    /// Why this rule keeps the snapshot of this time, if it does.
    fn reason(&mut self, local: &Zoned, is_oldest: bool) -> Option<String> {
        let left = self.left.filter(|left| *left != Count::Most(0))?;
        let name = self.name;
        let period = self.unit.period(local);
        let is_new = self.unit == Unit::Each || self.period.as_ref() != Some(&period);
        // The oldest one fills a count that would be left over: history reaches back as far as it
        // can while the periods of the rule are not yet used up.
        if !is_new && !is_oldest {
            return None;
        }
        if let Count::Most(number) = left {
            self.left = Some(Count::Most(number - 1));
        }
        let reason = match self.unit {
            Unit::Each => name.to_owned(),
            _ if !is_new => format!("oldest {name}"),
            Unit::Hour => {
                let offset = offset_if_twice(local).map(|o| o.to_string()).unwrap_or_default();
                format!("{name} {}{offset}", period.0)
            }
            _ => format!("{name} {}", period.0),
        };
        self.period = Some(period);
        Some(reason)
    }
}

impl Unit {
    /// The period of a time, and its offset if that tells it from another period of this name: two
    /// hours have the same one when clocks are put back.
    fn period(self, local: &Zoned) -> (String, i32) {
        let (format, offset) = match self {
            Self::Each => return (String::new(), 0),
            Self::Hour => ("%Y-%m-%d %Hh", local.offset().seconds()),
            Self::Day => ("%Y-%m-%d", 0),
            Self::Week => ("%G-W%V", 0),
            Self::Month => ("%Y-%m", 0),
            Self::Year => ("%Y", 0),
        };
        (local.strftime(format).to_string(), offset)
    }
}

/// The offset, if this time of day comes twice.
fn offset_if_twice(local: &Zoned) -> Option<Offset> {
    let twice = local.time_zone().to_ambiguous_timestamp(local.datetime());
    twice.is_ambiguous().then(|| local.offset())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::digest::{Digest, ImageDigest};
    use jiff::Span;
    use uuid::Uuid;

    /// Rules as these tests write them: "daily=7 within=1mo label=pre-*".
    fn rules(text: &str) -> Rules {
        let mut rules = Rules::default();
        for (name, value) in text.split(' ').map(|rule| rule.split_once('=').unwrap()) {
            match name {
                "last" => rules.last = Some(value.parse().unwrap()),
                "hourly" => rules.hourly = Some(value.parse().unwrap()),
                "daily" => rules.daily = Some(value.parse().unwrap()),
                "weekly" => rules.weekly = Some(value.parse().unwrap()),
                "monthly" => rules.monthly = Some(value.parse().unwrap()),
                "yearly" => rules.yearly = Some(value.parse().unwrap()),
                "within" => rules.within = Some(value.parse().unwrap()),
                "label" => rules.labels.push(value.parse().unwrap()),
                _ => panic!("{name}"),
            }
        }
        rules
    }

    pub(crate) fn snapshot(number: u64, time: Timestamp, label: Option<&str>) -> Snapshot {
        let snapshot = serde_json::json!({
            "number": number,
            "id": Uuid::from_u128(number.into()),
            "parent": null,
            "label": label,
            "time": time,
            "file": "",
            "file_bytes": 0,
            "footer_digest": Digest([0; 16]).to_hex(),
            "block_bytes": 4096,
            "image_bytes": 0,
            "image_digest": ImageDigest::default().to_hex(),
            "data_blocks": 0,
            "zero_blocks": 0,
            "unread_blocks": 0,
            "changed_blocks": 0,
            "changed_bytes": 0,
            "frame_bytes": 0,
            "read_bytes": null,
            "seconds": null,
        });
        serde_json::from_value(snapshot).unwrap()
    }

    /// Written out: not every machine that runs tests has a data base of time zones.
    const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";
    const LORD_HOWE: &str = "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0";

    fn decide_at(
        rules: &Rules,
        snapshots: &[Snapshot],
        now: Timestamp,
        zone: &TimeZone,
    ) -> Vec<Decision> {
        decide(rules, snapshots, &Times::of(snapshots, now), zone)
    }

    /// The reasons for each snapshot, written as "TIME" or "TIME LABEL", numbered from 1.
    fn reasons(zone: &str, rules: &Rules, snapshots: &[&str]) -> Vec<String> {
        let numbered = (1..).zip(snapshots);
        let snapshots: Vec<Snapshot> = numbered
            .map(|(number, text)| {
                let (time, label) =
                    text.split_once(' ').map_or((*text, None), |(t, l)| (t, Some(l)));
                snapshot(number, time.parse().unwrap(), label)
            })
            .collect();
        let decisions =
            decide_at(rules, &snapshots, Timestamp::MAX, &TimeZone::posix(zone).unwrap());
        decisions.into_iter().map(|decision| decision.keep.join(", ")).collect()
    }

    #[test]
    fn a_year_of_days_is_thinned_out() {
        let zone = TimeZone::posix(BERLIN).unwrap();
        let first: jiff::civil::DateTime = "2025-11-21T22:30".parse().unwrap();
        let snapshots: Vec<Snapshot> = (0_i64..365)
            .map(|day| {
                let local = first.checked_add(Span::new().days(day)).unwrap();
                snapshot(day.unsigned_abs() + 1, zone.to_timestamp(local).unwrap(), None)
            })
            .collect();
        let rules = rules("daily=7 weekly=4 monthly=12");
        let kept = |snapshots: &[Snapshot]| -> Vec<(Snapshot, String)> {
            let decisions =
                decide_at(&rules, snapshots, Timestamp::MAX, &zone).into_iter().zip(snapshots);
            let kept = decisions.filter(|(decision, _)| !decision.keep.is_empty());
            kept.map(|(decision, snapshot)| (snapshot.clone(), decision.keep.join(", "))).collect()
        };
        let once = kept(&snapshots);
        let shown: Vec<String> = once
            .iter()
            .map(|(s, why)| format!("{}: {why}", s.time.to_zoned(zone.clone()).date()))
            .collect();
        let want = [
            "2025-12-31: monthly 2025-12",
            "2026-01-31: monthly 2026-01",
            "2026-02-28: monthly 2026-02",
            "2026-03-31: monthly 2026-03",
            "2026-04-30: monthly 2026-04",
            "2026-05-31: monthly 2026-05",
            "2026-06-30: monthly 2026-06",
            "2026-07-31: monthly 2026-07",
            "2026-08-31: monthly 2026-08",
            "2026-09-30: monthly 2026-09",
            "2026-10-31: monthly 2026-10",
            "2026-11-01: weekly 2026-W44",
            "2026-11-08: weekly 2026-W45",
            "2026-11-14: daily 2026-11-14",
            "2026-11-15: daily 2026-11-15, weekly 2026-W46",
            "2026-11-16: daily 2026-11-16",
            "2026-11-17: daily 2026-11-17",
            "2026-11-18: daily 2026-11-18",
            "2026-11-19: daily 2026-11-19",
            "2026-11-20: daily 2026-11-20, weekly 2026-W47, monthly 2026-11",
        ];
        assert_eq!(shown, want);
        let left: Vec<Snapshot> = once.iter().map(|(snapshot, _)| snapshot.clone()).collect();
        assert_eq!(kept(&left), once, "a second run finds nothing to do");
    }

    #[test]
    fn whichever_clock_was_wrong_no_true_snapshot_is_dropped() {
        let days = |from: i8, to: i8| (from..=to).map(|day| format!("2026-11-{day:02}T12:00Z"));
        let wrong = |day: &'static str| (0..12).map(move |m| format!("{day}T00:{m:02}Z"));
        // Each with the numbers that the rules keep by their true times, and the newest up to the 20th, if
        // that is beyond doubt.
        let cases: [(Vec<String>, &[u64], Option<usize>); 3] = [
            // More with an empty battery than without.
            (
                days(16, 23).chain(wrong("1970-01-01")).chain(days(27, 27)).collect(),
                &[3, 4, 5, 6, 7, 8, 21],
                Some(4),
            ),
            // A year behind.
            (
                days(16, 23).chain(wrong("2025-11-01")).chain(days(27, 27)).collect(),
                &[3, 4, 5, 6, 7, 8, 21],
                None,
            ),
            // Ahead, but not of now.
            (
                days(1, 3).chain(wrong("2026-11-25")).chain(days(4, 7)).collect(),
                &[1, 2, 3, 16, 17, 18, 19],
                None,
            ),
        ];
        let rules = rules("daily=7 within=30d");
        for (told, want, newest) in cases {
            let snapshots: Vec<Snapshot> = (1..)
                .zip(&told)
                .map(|(number, time)| snapshot(number, time.parse().unwrap(), None))
                .collect();
            let now = "2026-11-27T13:00Z".parse().unwrap();
            let decisions = decide_at(&rules, &snapshots, now, &TimeZone::UTC);
            for number in want {
                assert!(!decisions[*number as usize - 1].keep.is_empty(), "{told:?}: {number}");
            }
            let (at, is_sure) =
                Times::of(&snapshots, now).newest_at("2026-11-20T13:00Z".parse().unwrap());
            assert_eq!(at.filter(|_| is_sure), newest, "{told:?}");
        }
    }

    #[test]
    fn each_rule_keeps_what_it_says() {
        let autumn = &[
            "2026-10-24T23:30Z",
            "2026-10-25T00:10Z",
            "2026-10-25T00:40Z",
            "2026-10-25T01:10Z",
            "2026-10-25T02:30Z",
        ][..];
        let three_of_a_day = &["2026-11-20T08:00Z", "2026-11-20T09:00Z", "2026-11-20T10:00Z"][..];
        let month = &["2026-02-28T10:59:59Z", "2026-02-28T11:00Z", "2026-03-31T10:00Z"][..];
        let labelled = &[
            "2026-11-18T08:00Z pre-1",
            "2026-11-19T08:00Z v1",
            "2026-11-20T08:00Z xpre-2",
            "2026-11-20T09:00Z",
        ][..];
        let cases: &[(&str, &str, &[&str], &[&str])] = &[
            // The hour from two to three comes twice, and in spring not at all.
            (
                BERLIN,
                "hourly=unlimited",
                autumn,
                &[
                    "hourly 2026-10-25 01h",
                    "",
                    "hourly 2026-10-25 02h+02",
                    "hourly 2026-10-25 02h+01",
                    "hourly 2026-10-25 03h",
                ],
            ),
            (
                BERLIN,
                "hourly=2",
                autumn,
                &["", "", "", "hourly 2026-10-25 02h+01", "hourly 2026-10-25 03h"],
            ),
            (
                BERLIN,
                "hourly=2",
                &["2026-03-29T00:59Z", "2026-03-29T01:00Z"],
                &["hourly 2026-03-29 01h", "hourly 2026-03-29 03h"],
            ),
            (BERLIN, "daily=9", autumn, &["oldest daily", "", "", "", "daily 2026-10-25"]),
            // Half an hour is put back: the first two lie in one hour, although only the second of
            // them comes twice.
            (
                LORD_HOWE,
                "hourly=2",
                &["2026-04-04T14:10Z", "2026-04-04T14:40Z", "2026-04-04T15:10Z"],
                &["", "hourly 2026-04-05 01h+11", "hourly 2026-04-05 01h+10:30"],
            ),
            // Local time, and weeks that belong to the year before.
            (
                BERLIN,
                "daily=1 weekly=1 monthly=1 yearly=1",
                &["2026-12-31T22:59Z", "2026-12-31T23:00Z"],
                &["", "daily 2027-01-01, weekly 2026-W53, monthly 2027-01, yearly 2027"],
            ),
            // Days without snapshots do not count.
            (
                BERLIN,
                "daily=2",
                &["2026-01-01T08:00Z", "2026-05-01T08:00Z", "2026-11-20T08:00Z"],
                &["", "daily 2026-05-01", "daily 2026-11-20"],
            ),
            (BERLIN, "last=2", three_of_a_day, &["", "last", "last"]),
            (BERLIN, "last=7", three_of_a_day, &["last", "last", "last"]),
            (BERLIN, "last=unlimited", three_of_a_day, &["last", "last", "last"]),
            // The oldest one fills a count that is left.
            (BERLIN, "daily=1", three_of_a_day, &["", "", "daily 2026-11-20"]),
            (BERLIN, "daily=2", three_of_a_day, &["oldest daily", "", "daily 2026-11-20"]),
            (
                BERLIN,
                "monthly=unlimited yearly=2",
                three_of_a_day,
                &["oldest monthly, oldest yearly", "", "monthly 2026-11, yearly 2026"],
            ),
            // Before the newest, the moment itself included; by the calendar and the clock here.
            (BERLIN, "within=1mo", month, &["", "within 1mo", "within 1mo"]),
            (BERLIN, "within=0d", month, &["", "", "within 0s"]),
            (BERLIN, "within=9999y", month, &["within 9999y"; 3]),
            (
                BERLIN,
                "within=1d",
                &["2026-10-24T10:59Z", "2026-10-24T11:00Z", "2026-10-25T12:00Z"],
                &["", "within 1d", "within 1d"],
            ),
            (
                BERLIN,
                "within=24h",
                &["2026-10-24T11:59Z", "2026-10-24T12:00Z", "2026-10-25T12:00Z"],
                &["", "within 24h", "within 24h"],
            ),
            (BERLIN, "label=pre-*", labelled, &["label pre-*", "", "", ""]),
            (BERLIN, "label=v[0-9] label=?1", labelled, &["", "label v[0-9], label ?1", "", ""]),
            // The rules unite.
            (
                BERLIN,
                "last=1 daily=2 within=25h label=pre-*",
                labelled,
                &[
                    "label pre-*",
                    "daily 2026-11-19, within 25h",
                    "within 25h",
                    "last, daily 2026-11-20, within 25h",
                ],
            ),
            // The highest number is the newest, whatever the clock said.
            (BERLIN, "last=1", &["2026-11-20T08:00Z"; 3], &["", "", "last"]),
            (
                BERLIN,
                "last=1 daily=1",
                &["2026-11-20T09:00Z", "2026-11-20T08:00Z"],
                &["", "last, daily 2026-11-20"],
            ),
            (BERLIN, "last=1", &[], &[]),
        ];
        for (zone, text, snapshots, want) in cases {
            let found = reasons(zone, &rules(text), snapshots);
            assert_eq!(found, *want, "{zone} {text}");
        }
    }

    #[test]
    fn without_rules_all_are_kept() {
        assert!(Rules::default().is_empty() && !rules("label=x").is_empty());
        assert_eq!(reasons(BERLIN, &Rules::default(), &["2026-11-20T08:00Z"]), ["no rules"]);
    }

    /// A clock that is or was wrong must not cost the last month.
    #[test]
    fn a_clock_that_was_wrong_drops_nothing_that_is_true() {
        let kept = |text: &str, times: &[&str], now: &str| -> Vec<bool> {
            let snapshots: Vec<Snapshot> = (1..)
                .zip(times)
                .map(|(number, day)| {
                    let time = format!("{day}T00:00Z").parse().unwrap();
                    snapshot(number, time, None)
                })
                .collect();
            let now = format!("{now}T00:00Z").parse().unwrap();
            let decisions = decide_at(&rules(text), &snapshots, now, &TimeZone::UTC);
            decisions.iter().map(|decision| !decision.keep.is_empty()).collect()
        };
        let ahead = ["2026-01-01", "2026-11-01", "2035-01-01", "2026-11-20"];
        assert_eq!(kept("within=30d", &ahead, "2026-11-21"), [false, true, true, true]);
        assert_eq!(kept("last=1", &ahead, "2026-11-21"), [false, false, false, true]);
        assert_eq!(kept("daily=1", &ahead, "2026-11-21"), [false, false, false, true]);
        // While nobody knows which clock is wrong, what goes by number still goes.
        let until_now = ["2026-01-01", "2026-11-01", "2026-11-20", "2035-01-01"];
        assert_eq!(kept("within=30d", &until_now, "2026-11-21"), [true; 4]);
        assert_eq!(kept("last=1", &until_now, "2026-11-21"), [false, false, false, true]);
        let good = ["2026-11-18", "2026-11-19", "2026-11-20"];
        assert_eq!(kept("daily=1", &good, "1970-01-02"), [true; 3]);
        assert_eq!(kept("daily=1 last=1", &good, "1970-01-02"), [true; 3]);
        let since = ["2026-11-18", "2026-11-19", "2026-11-20", "1970-01-01"];
        assert_eq!(kept("daily=1", &since, "1970-01-02"), [true; 4]);
    }
}
