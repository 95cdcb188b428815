//! The rules themselves: counts, periods, patterns for labels, and how they are written.

use crate::base::duration::Period;
use crate::base::error::{Error, ErrorKind, Result};
use glob::Pattern;
use std::fmt;
use std::str::FromStr;

/// How many: a number from 1, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// At most so many.
    Most(u64),
    /// All of them.
    Unlimited,
}

impl FromStr for Count {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str, hint: &str| {
            let what = format!("\"{}\" {what}", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, what).hint(hint)
        };
        match text {
            "unlimited" | "-1" => Ok(Self::Unlimited),
            _ => match number(text) {
                Some(0) => Err(bad("keeps nothing", "leave the rule out")),
                Some(number) => Ok(Self::Most(number)),
                None => Err(bad("is not a count", "write a number from 1, or \"unlimited\"")),
            },
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Most(number) => write!(f, "{number}"),
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}

/// Digits and nothing else: `u64::from_str` takes a sign, too.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A pattern for labels: `*`, `?` and `[...]` as in a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelGlob(Pattern);

impl LabelGlob {
    /// True if the pattern fits the whole label.
    pub fn matches(&self, label: &str) -> bool {
        self.0.matches(label)
    }
}

impl FromStr for LabelGlob {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            let what = format!("invalid label pattern \"{}\": {why}", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, what).hint("write it like pre-* or v[0-9]")
        };
        if text.is_empty() {
            return Err(bad("it matches no label"));
        }
        Pattern::new(text).map(Self).map_err(|e| bad(e.msg))
    }
}

impl fmt::Display for LabelGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// So many of the newest.
    pub last: Option<Count>,
    /// The newest of each of so many hours that have any; hours to years are those of local time.
    pub hourly: Option<Count>,
    /// The same for days.
    pub daily: Option<Count>,
    /// The same for weeks, which begin on Monday.
    pub weekly: Option<Count>,
    /// The same for months.
    pub monthly: Option<Count>,
    /// The same for years.
    pub yearly: Option<Count>,
    /// All that are not older than this before the newest one.
    pub within: Option<Period>,
    /// All with a label that one of these fits.
    pub labels: Vec<LabelGlob>,
}

impl Rules {
    /// True if a rule goes by the time, not by number or label.
    pub fn use_time(&self) -> bool {
        let by_time = Self { last: None, labels: Vec::new(), ..self.clone() };
        !by_time.is_empty()
    }

    /// True if there is no rule.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_periods_and_patterns_are_read_and_written() {
        for (text, want) in [("7", "7"), ("unlimited", "unlimited"), ("-1", "unlimited")] {
            assert_eq!(text.parse::<Count>().unwrap().to_string(), want);
        }
        for text in ["", "0", "00", "+7", "-2", "7.5", "all", " 7", "99999999999999999999"] {
            let error = text.parse::<Count>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
        let zero = "0".parse::<Count>().unwrap_err().to_string();
        assert_eq!(zero, "\"0\" keeps nothing; leave the rule out");
        for (text, want) in [
            ("30d", "30d"),
            ("6mo1y", "1y6mo"),
            ("2w", "2w"),
            ("36h", "36h"),
            ("5h4d3w2mo1y", "1y2mo3w4d5h"),
            ("0y07d", "7d"),
            ("0d", "0s"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.to_string(), want);
            assert_eq!(want.parse::<Period>().unwrap(), period);
        }
        let bad = ["", "d", "30", "30x", "1d1d", "0d0d", "-1d", "+1d", "1 d", "1D", "1d ", "1.5d"];
        for text in bad.into_iter().chain(["20000y", "99999999999999999999h", "1ü"]) {
            let error = text.parse::<Period>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
        assert_eq!("pre-*".parse::<LabelGlob>().unwrap().to_string(), "pre-*");
        for text in ["", "[", "a**"] {
            let error = text.parse::<LabelGlob>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }
}
