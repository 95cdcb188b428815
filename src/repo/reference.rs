//! How a user names a snapshot: `NAME@N`, `NAME@latest`, `NAME@head`, `NAME@LABEL`, `NAME@TIME`, `NAME@1h`
//! (an hour ago), `NAME@ID`; and of each of these `~N`, so many before it.

use crate::base::duration::{Period, looks_like_duration};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Verb, message};
use crate::format::footer::MAX_LABEL_BYTES;
use crate::repo::head::Head;
use crate::repo::manifest::{Manifest, Snapshot};
use crate::repo::retention::Times;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use std::cmp::Reverse;
use std::str::FromStr;
use uuid::Uuid;

/// A snapshot, as a user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The image.
    pub name: String,
    /// Which of its snapshots.
    pub at: At,
}

/// Which snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum At {
    /// By number.
    Number(u64),
    /// By its identity.
    Id(Uuid),
    /// The one with the highest number.
    #[default]
    Latest,
    /// The one that the live image last equalled.
    Head,
    /// By label, or by the beginning of its identity.
    Label(String),
    /// So many snapshots before another one, by number.
    Before {
        /// That one.
        of: Box<At>,
        /// How many; at least 1.
        count: u64,
        /// What was written: it may be a label all the same.
        text: String,
    },
    /// The newest one at or before the time that lies so long ago.
    Ago {
        /// That time.
        time: Timestamp,
        /// What was written: it may be a label all the same.
        text: String,
    },
    /// The newest one at or before a time. A date means the end of that day, a minute the end of
    /// that minute: whoever types what `list` shows gets that snapshot.
    Time(Timestamp),
}

impl FromStr for At {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "" => {
                Err(Error::new(ErrorKind::InvalidInput, "missing snapshot after '@'").hint(USAGE))
            }
            "latest" => Ok(Self::Latest),
            "head" => Ok(Self::Head),
            _ if text.bytes().all(|b| b.is_ascii_digit()) => {
                let bad =
                    |_| Error::new(ErrorKind::InvalidInput, format!("number out of range: {text}"));
                text.parse().map(Self::Number).map_err(bad)
            }
            _ if looks_like_time(text) => Ok(Self::Time(parse_time(text)?)),
            _ if looks_like_duration(text) => {
                let time = text.parse::<Period>()?.before(Timestamp::now(), &TimeZone::system());
                Ok(Self::Ago { time, text: text.into() })
            }
            _ if let Some((of, count)) = before(text) => {
                Ok(Self::Before { of: Box::new(of.parse()?), count, text: text.into() })
            }
            _ => Ok(Self::Label(text.into())),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let shown = text.escape_debug();
        let Some((name, at)) = text.split_once('@') else {
            let what = format!("\"{shown}\" does not name a snapshot");
            let error = Error::new(ErrorKind::InvalidInput, what);
            return Err(match crate::repo::manifest::check_name(text) {
                Ok(()) => error.hint(format!(
                    "write {text}@latest, {text}@NUMBER, {text}@LABEL, {text}@2026-11-20 or {text}@1h (ago)"
                )),
                Err(_) => error.hint(USAGE),
            });
        };
        if name.is_empty() {
            let what = format!("missing image name before '@' in \"{shown}\"");
            let hint = format!("write NAME{shown}, e.g. vm{shown}");
            return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
        }
        crate::repo::manifest::check_name(name)?;
        Ok(Self { name: name.into(), at: at.parse()? })
    }
}

const USAGE: &str = "write NAME@NUMBER, NAME@latest, NAME@head, NAME@LABEL, NAME@2026-11-20, \
                     NAME@1h (ago) or NAME@ID";

/// The fewest digits of an identity that name a snapshot.
const FEWEST_DIGITS: usize = 4;

/// What stands before `~N`, and the number.
fn before(text: &str) -> Option<(&str, u64)> {
    let (of, count) = text.rsplit_once('~')?;
    let is_number = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
    let count = count.parse().ok().filter(|count| is_number && *count > 0)?;
    (!of.is_empty()).then_some((of, count))
}

/// True for what may be the beginning of an identity.
fn is_id_prefix(text: &str) -> bool {
    let digits = text.bytes().filter(|b| *b != b'-');
    digits.clone().count() >= FEWEST_DIGITS && digits.clone().all(|b| b.is_ascii_hexdigit())
}

/// Digits and a dash, as a year begins: `2026-`.
fn looks_like_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() > 4
        && bytes.iter().take(4).all(u8::is_ascii_digit)
        && bytes.get(4).is_some_and(|&b| b == b'-')
}

/// The last moment of what is written: of a day, a minute, a second; local time unless an offset is
/// written.
fn parse_time(text: &str) -> Result<Timestamp> {
    let bad = |_: jiff::Error| {
        Error::new(ErrorKind::InvalidInput, format!("invalid time \"{text}\""))
            .hint("write it like 2026-11-20, 2026-11-20T18:30 or 2026-11-20T18:30:00Z")
    };
    last_moment(text, &TimeZone::system()).map_err(bad)
}

/// A time of day that comes twice, when clocks are put back, means the second one, as a day means its end;
/// one that is left out means what it would be by the clock of before.
fn last_moment(text: &str, zone: &TimeZone) -> Result<Timestamp, jiff::Error> {
    let last = |begin: DateTime, length: Span| {
        let last = begin.checked_add(length)?.checked_sub(Span::new().nanoseconds(1))?;
        zone.to_ambiguous_timestamp(last).later()
    };
    if let Ok(date) = text.parse::<Date>()
        && text.len() == 10
    {
        return last(date.to_datetime(jiff::civil::Time::midnight()), Span::new().days(1));
    }
    let fraction = text.contains('.');
    let colons =
        text.get(10..).unwrap_or_default().split(['+', '-', 'Z']).next().unwrap_or_default();
    let seconds = colons.matches(':').count() >= 2;
    let length = match (fraction, seconds) {
        (true, _) => Span::new().nanoseconds(1),
        (_, true) => Span::new().seconds(1),
        _ => Span::new().minutes(1),
    };
    if let Ok(time) = text.parse::<Timestamp>() {
        return time.checked_add(length)?.checked_sub(Span::new().nanoseconds(1));
    }
    last(text.parse::<DateTime>()?, length)
}

/// Checks a label: it must not look like anything else that may stand after the @.
pub fn check_label(label: &str) -> Result<()> {
    let what = if label.is_empty() {
        "it is empty".to_owned()
    } else if label.len() > MAX_LABEL_BYTES {
        format!("it is longer than {MAX_LABEL_BYTES} bytes")
    } else if label.chars().any(|c| c.is_control() || c.is_whitespace() || c == '@') {
        "white space, control characters and @ are not allowed".to_owned()
    } else if !matches!(label.parse(), Ok(At::Label(_))) {
        "it would be read as a number, a time or a keyword".to_owned()
    } else {
        return Ok(());
    };
    let label = label.escape_debug();
    let what = format!("invalid label \"{label}\": {what}");
    Err(Error::new(ErrorKind::InvalidInput, what).hint("write it like before-upgrade"))
}

/// Finds the snapshot that is meant.
pub(crate) fn find<'a>(manifest: &'a Manifest, head: &Head, at: &At) -> Result<&'a Snapshot> {
    let name = &manifest.name;
    let snapshots = &manifest.snapshots;
    let (found, what) = match at {
        At::Number(number) => {
            let found = snapshots.iter().find(|s| s.number == *number);
            (found, format!("there is no snapshot {name}@{number}"))
        }
        At::Id(id) => (manifest.by_id(*id), format!("\"{name}\" has no snapshot {id}")),
        At::Latest => (manifest.latest(), format!("\"{name}\" has no snapshots")),
        At::Head => {
            let found = head.snapshot.and_then(|id| manifest.by_id(id));
            (found, format!("it is not known which snapshot the live image of \"{name}\" equals"))
        }
        At::Label(label) => match labelled(manifest, label) {
            Some(found) => (Some(found), String::new()),
            None => by_id_prefix(manifest, label)?,
        },
        At::Before { text, .. } | At::Ago { text, .. } if labelled(manifest, text).is_some() => {
            (labelled(manifest, text), String::new())
        }
        At::Before { of, count, .. } => {
            let last = find(manifest, head, of)?.number;
            let mut before: Vec<&Snapshot> = snapshots.iter().filter(|s| s.number < last).collect();
            before.sort_by_key(|s| Reverse(s.number));
            let index = usize::try_from(*count).unwrap_or(usize::MAX).saturating_sub(1);
            let what = format!("there are fewer snapshots than that before {name}@{last}");
            (before.get(index).copied(), what)
        }
        At::Time(time) | At::Ago { time, .. } => {
            let (found, is_sure) = Times::of(snapshots, Timestamp::now()).newest_at(*time);
            if !is_sure {
                let what = format!(
                    "cannot tell which snapshot of \"{name}\" is the newest at or before {}: the clock \
                     is or was wrong",
                    local(*time)
                );
                let list = Verb::List.of(name);
                let hint = message!["give a number; ", list, " lists them"];
                return Err(Error::new(ErrorKind::Mismatch, what).hint(hint));
            }
            let what = format!("\"{name}\" has no snapshot at or before {}", local(*time));
            (found.and_then(|at| snapshots.get(at)), what)
        }
    };
    found.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, what)
            .hint(message![Verb::List.of(name), " lists its snapshots"])
    })
}

fn labelled<'a>(manifest: &'a Manifest, label: &str) -> Option<&'a Snapshot> {
    manifest.snapshots.iter().find(|s| s.label.as_deref() == Some(label))
}

/// A time as people read it here.
fn local(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The one whose identity begins so; none, and why.
fn by_id_prefix<'a>(manifest: &'a Manifest, text: &str) -> Result<(Option<&'a Snapshot>, String)> {
    let name = &manifest.name;
    let prefix = text.to_ascii_lowercase();
    let begins = |s: &&Snapshot| {
        let id = s.id.to_string();
        id.starts_with(&prefix) || id.replace('-', "").starts_with(&prefix)
    };
    let shown = text.escape_debug();
    let mut found = manifest.snapshots.iter().filter(|s| is_id_prefix(text) && begins(s));
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => {
            let what =
                format!("several snapshots of \"{name}\" have an id that begins with {shown}");
            Err(Error::new(ErrorKind::InvalidInput, what).hint("give more digits of it"))
        }
        (found, _) => Ok((found, format!("no snapshot of \"{name}\" has the label \"{shown}\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_after_the_at_is_told_apart() {
        assert_eq!("7".parse::<At>().unwrap(), At::Number(7));
        assert_eq!("latest".parse::<At>().unwrap(), At::Latest);
        assert_eq!("head".parse::<At>().unwrap(), At::Head);
        assert_eq!("pre-upgrade".parse::<At>().unwrap(), At::Label("pre-upgrade".into()));
        for ago in ["1h", "1y6mo", "90s"] {
            assert!(matches!(ago.parse::<At>().unwrap(), At::Ago { .. }), "{ago}");
        }
        assert!(matches!("latest~1".parse::<At>().unwrap(), At::Before { count: 1, .. }));
        for label in ["v~x", "~1", "v~0"] {
            assert_eq!(label.parse::<At>().unwrap(), At::Label(label.into()));
        }
        for time in ["2026-11-20", "2026-11-20T10:30", "2026-11-20 10:30:01", "2026-11-20T10:30Z"] {
            assert!(matches!(time.parse::<At>().unwrap(), At::Time(_)), "{time}");
        }
        for bad in ["", "5m", "2026-99-01", "2026-11-20T99", "99999999999999999999999"] {
            assert!(bad.parse::<At>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_means_its_last_moment() {
        let time = |text: &str| match text.parse().unwrap() {
            At::Time(time) => time,
            other => panic!("{other:?}"),
        };
        let want = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(time("2026-11-20T10:30Z"), want("2026-11-20T10:30:59.999999999Z"));
        assert_eq!(time("2026-11-20T10:30:15Z"), want("2026-11-20T10:30:15.999999999Z"));
        assert_eq!(time("2026-11-20T10:30:15+02:00"), want("2026-11-20T08:30:15.999999999Z"));
        assert_eq!(time("2026-11-20T10:30:15.5Z"), want("2026-11-20T10:30:15.5Z"));
        let (day, hour) = (time("2026-11-20"), time("2026-11-20T23:59"));
        assert_eq!(day, hour);
    }

    #[test]
    fn a_time_of_day_that_comes_twice_means_the_second_one() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        for (text, want) in [
            // From two to three comes twice.
            ("2026-10-25T01:59", "2026-10-24T23:59:59.999999999Z"),
            ("2026-10-25T02:30", "2026-10-25T01:30:59.999999999Z"),
            ("2026-10-25T02:59:59", "2026-10-25T01:59:59.999999999Z"),
            ("2026-10-25 02:30:15+02", "2026-10-25T00:30:15.999999999Z"),
            ("2026-10-25T03:00", "2026-10-25T02:00:59.999999999Z"),
            ("2026-10-25", "2026-10-25T22:59:59.999999999Z"),
            // From two to three does not come at all.
            ("2026-03-29T01:59", "2026-03-29T00:59:59.999999999Z"),
            ("2026-03-29T02:30", "2026-03-29T01:30:59.999999999Z"),
            // West of Greenwich.
            ("2026-11-20T10:30-05:00", "2026-11-20T15:30:59.999999999Z"),
        ] {
            let want: Timestamp = want.parse().unwrap();
            assert_eq!(last_moment(text, &zone).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn labels_cannot_be_taken_for_something_else() {
        for label in ["pre-upgrade", "v1.2", "ü", "20x"] {
            assert!(check_label(label).is_ok(), "{label}");
        }
        let long = "x".repeat(129);
        for label in [
            "",
            "12",
            "latest",
            "head",
            "2026-11-20",
            "2026-xx",
            "1h",
            "x~1",
            "a b",
            "a@b",
            "a\tb",
            &long,
        ] {
            assert!(check_label(label).is_err(), "{label}");
        }
    }
}
