//! Lengths of time as people write them, the same everywhere: `90s`, `5min`, `36h`, `30d`, `2w`, `6mo`,
//! `1y6mo`.

use crate::base::error::{Error, ErrorKind, Result};
use jiff::tz::TimeZone;
use jiff::{Span, SpanFieldwise, Timestamp};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How it is to be written.
const USAGE: &str = "write it like 500ms, 30s, 5min, 36h, 30d, 2w, 6mo or 1y6mo";
const DAY: u64 = 24 * 3600;

/// A unit of time, the longest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Years,
    Months,
    Weeks,
    Days,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

impl Unit {
    const ALL: [(&'static str, Self); 8] = [
        ("y", Self::Years),
        ("mo", Self::Months),
        ("w", Self::Weeks),
        ("d", Self::Days),
        ("h", Self::Hours),
        ("min", Self::Minutes),
        ("s", Self::Seconds),
        ("ms", Self::Milliseconds),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(of, _)| *of == name).map(|(_, unit)| *unit)
    }
}

/// A length of time by the calendar: a month before 31 March is the end of February.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(SpanFieldwise);

impl Period {
    fn span(&self) -> Span {
        self.0.0
    }

    /// The time that lies so long before another one.
    pub(crate) fn before(&self, time: Timestamp, zone: &TimeZone) -> Timestamp {
        let start = time.to_zoned(zone.clone()).checked_sub(self.span());
        // What lies before all times is longer ago than any snapshot.
        start.map_or(Timestamp::MIN, |start| start.timestamp())
    }

    /// Reads what a configuration has: earlier programs wrote `m` for months there.
    pub(crate) fn from_configuration(text: &str) -> Result<Self> {
        of_units(text, &units(text, Some(Unit::Months))?)
    }
}

impl FromStr for Period {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        of_units(text, &units(text, None)?)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = self.span();
        let parts = [
            (i64::from(span.get_years()), "y"),
            (i64::from(span.get_months()), "mo"),
            (i64::from(span.get_weeks()), "w"),
            (i64::from(span.get_days()), "d"),
            (i64::from(span.get_hours()), "h"),
            (span.get_minutes(), "min"),
            (span.get_seconds(), "s"),
            (span.get_milliseconds(), "ms"),
        ];
        if span.is_zero() {
            return f.write_str("0s");
        }
        parts.iter().filter(|(n, _)| *n != 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

/// Parses a length of time. A day has 24 hours here, a month 30 days and a year 365.
///
/// # Errors
/// `InvalidInput`, with the grammar.
pub fn parse_duration(text: &str) -> Result<Duration> {
    of_length(text, &units(text, None)?)
}

/// The same of what a configuration has: earlier programs took `m` for minutes there.
pub(crate) fn duration_from_configuration(text: &str) -> Result<Duration> {
    of_length(text, &units(text, Some(Unit::Minutes))?)
}

/// True if a text has the form of a length of time.
pub(crate) fn looks_like_duration(text: &str) -> bool {
    units(text, Some(Unit::Minutes)).is_ok()
}

fn invalid(text: &str) -> Error {
    let what = format!("invalid duration \"{}\"", text.escape_debug());
    Error::new(ErrorKind::InvalidInput, what).hint(USAGE)
}

/// Numbers with their units, each unit once.
fn units(text: &str, bare_m: Option<Unit>) -> Result<Vec<(u64, Unit)>> {
    let mut units: Vec<(u64, Unit)> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() || units.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(|| invalid(text))?;
        let (digits, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (name, tail) = tail.split_at(end);
        let number = digits.parse().map_err(|_| invalid(text))?;
        let unit = match (Unit::named(name), name, bare_m) {
            (None, "m", Some(meant)) => meant,
            (None, "m", None) => {
                let what = format!("ambiguous duration \"{}\"", text.escape_debug());
                let hint = format!("write {digits}min for minutes, or {digits}mo for months");
                return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
            }
            (unit, _, _) => unit.ok_or_else(|| invalid(text))?,
        };
        if units.iter().any(|(_, other)| *other == unit) {
            return Err(invalid(text));
        }
        units.push((number, unit));
        rest = tail;
    }
    Ok(units)
}

fn of_units(text: &str, units: &[(u64, Unit)]) -> Result<Period> {
    let mut span = Span::new();
    for (number, unit) in units {
        let number = i64::try_from(*number).map_err(|_| invalid(text))?;
        let next = match unit {
            Unit::Years => span.try_years(number),
            Unit::Months => span.try_months(number),
            Unit::Weeks => span.try_weeks(number),
            Unit::Days => span.try_days(number),
            Unit::Hours => span.try_hours(number),
            Unit::Minutes => span.try_minutes(number),
            Unit::Seconds => span.try_seconds(number),
            Unit::Milliseconds => span.try_milliseconds(number),
        };
        span = next.map_err(|_| invalid(text))?;
    }
    Ok(Period(span.fieldwise()))
}

fn of_length(text: &str, units: &[(u64, Unit)]) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for (number, unit) in units {
        let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
        let next = match unit {
            Unit::Years => seconds(365 * DAY),
            Unit::Months => seconds(30 * DAY),
            Unit::Weeks => seconds(7 * DAY),
            Unit::Days => seconds(DAY),
            Unit::Hours => seconds(3600),
            Unit::Minutes => seconds(60),
            Unit::Seconds => seconds(1),
            Unit::Milliseconds => Some(Duration::from_millis(*number)),
        };
        all = next.and_then(|next| all.checked_add(next)).ok_or_else(|| invalid(text))?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_grammar_for_all() {
        for (text, ms) in [
            ("500ms", 500),
            ("1s", 1000),
            ("5min", 300_000),
            ("1h30min", 5_400_000),
            ("1d", 86_400_000),
            ("2w", 14 * 86_400_000),
            ("1mo", 30 * 86_400_000),
            ("1y", 365 * 86_400_000),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms), "{text}");
            assert_eq!(text.parse::<Period>().unwrap().to_string(), text);
        }
        for text in ["", "5", "-5min", "1 fortnight", "5x", "1h1h", "h", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err() && text.parse::<Period>().is_err(), "{text}");
        }
        let bare = parse_duration("1h5m").unwrap_err().to_string();
        assert_eq!(bare, "ambiguous duration \"1h5m\"; write 5min for minutes, or 5mo for months");
        // What earlier programs wrote.
        assert_eq!(duration_from_configuration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(Period::from_configuration("1y6m").unwrap().to_string(), "1y6mo");
    }
}
