//! The policies in the configuration: what `prune` keeps, and how snapshots are taken.

use crate::base::duration::{Period, duration_from_configuration};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::read_limit::ReadRate;
use crate::repo::retention::{Count, LabelGlob, Rules};
use crate::tracking::{Recheck, Track};
use std::time::Duration;
use toml::{Table, Value};

const DEFAULT_GARBAGE: f64 = 0.05;

/// What `prune` keeps of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The rules; none if the configuration has none for it.
    pub rules: Option<Rules>,
    /// The share of garbage that is left where it is, 0 to 1.
    pub garbage: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { rules: None, garbage: DEFAULT_GARBAGE }
    }
}

/// How snapshots of an image are taken, unless the request says otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SnapshotPolicy {
    /// How changes are found.
    pub track: Track,
    /// How much of what is assumed to be unchanged is rechecked.
    pub recheck: Recheck,
    /// How long whoever writes to the image may be held up.
    pub max_stall: Duration,
    /// How fast the image is read at most, besides what the context allows.
    pub limit_read: Option<ReadRate>,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        let (track, recheck) = (Track::default(), Recheck::default());
        Self { track, recheck, max_stall: Duration::from_secs(1), limit_read: None }
    }
}

/// One `prune` table.
#[derive(Default)]
pub(crate) struct PruneTable {
    rules: Rules,
    garbage: Option<f64>,
}

impl PruneTable {
    pub fn read(table: &Table) -> Result<Self> {
        let mut read = Self::default();
        let rules = &mut read.rules;
        for (key, value) in table {
            let done = match key.as_str() {
                "keep_last" => count(value).map(|n| rules.last = Some(n)),
                "keep_hourly" => count(value).map(|n| rules.hourly = Some(n)),
                "keep_daily" => count(value).map(|n| rules.daily = Some(n)),
                "keep_weekly" => count(value).map(|n| rules.weekly = Some(n)),
                "keep_monthly" => count(value).map(|n| rules.monthly = Some(n)),
                "keep_yearly" => count(value).map(|n| rules.yearly = Some(n)),
                "keep_within" => {
                    let period = text(value).and_then(Period::from_configuration);
                    period.map(|period| rules.within = Some(period))
                }
                "keep_label" => labels(value).map(|labels| rules.labels = labels),
                "garbage" => share(value).map(|share| read.garbage = Some(share)),
                // A misspelt rule would be one that is missing, and what it should keep would go.
                _ => Err(invalid("unknown key")),
            };
            done.map_err(|e| e.at(key.escape_debug()))?;
        }
        Ok(read)
    }

    /// What an image's own table and that for all say together.
    pub fn policy(own: Option<Self>, common: Option<Self>) -> Policy {
        let garbage = [&own, &common].into_iter().flatten().find_map(|table| table.garbage);
        // The rules of an image stand alone: nobody has to add up two tables to see what goes.
        let tables = [own, common].into_iter().flatten();
        let rules = tables.map(|table| table.rules).find(|rules| !rules.is_empty());
        Policy { rules, garbage: garbage.unwrap_or(DEFAULT_GARBAGE) }
    }
}

/// One `snapshot` table.
#[derive(Default)]
pub(crate) struct SnapshotTable {
    track: Option<Track>,
    recheck: Option<Recheck>,
    max_stall: Option<Duration>,
    limit_read: Option<ReadRate>,
}

impl SnapshotTable {
    pub fn read(table: &Table) -> Result<Self> {
        let mut read = Self::default();
        for (key, value) in table {
            let done = match key.as_str() {
                "track" => text(value).and_then(str::parse).map(|way| read.track = Some(way)),
                "recheck" => share(value).map(|share| read.recheck = Some(Recheck::Share(share))),
                "max_stall" => {
                    let most = text(value).and_then(duration_from_configuration);
                    most.map(|most| read.max_stall = Some(most))
                }
                "limit_read" => {
                    text(value).and_then(str::parse).map(|rate| read.limit_read = Some(rate))
                }
                _ => Err(invalid("unknown key")),
            };
            done.map_err(|e| e.at(key.escape_debug()))?;
        }
        Ok(read)
    }

    /// What an image's own table and that for all say together, key by key.
    pub fn policy(own: Option<Self>, common: Option<Self>) -> SnapshotPolicy {
        let (own, common) = (own.unwrap_or_default(), common.unwrap_or_default());
        let usual = SnapshotPolicy::default();
        SnapshotPolicy {
            track: own.track.or(common.track).unwrap_or(usual.track),
            recheck: own.recheck.or(common.recheck).unwrap_or(usual.recheck),
            max_stall: own.max_stall.or(common.max_stall).unwrap_or(usual.max_stall),
            limit_read: own.limit_read.or(common.limit_read),
        }
    }
}

pub(crate) fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

pub(crate) fn table_at<'a>(value: Option<&'a Value>, place: &str) -> Result<Option<&'a Table>> {
    let table = |value: &'a Value| value.as_table().ok_or_else(|| invalid("expected a table"));
    value.map(table).transpose().map_err(|e| e.at(place))
}

pub(crate) fn text(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| invalid("expected a string"))
}

fn count(value: &Value) -> Result<Count> {
    match value {
        Value::Integer(number @ 1..) => Ok(Count::Most(number.unsigned_abs())),
        Value::String(text) if text == "unlimited" => Ok(Count::Unlimited),
        _ => Err(invalid("expected a positive integer or \"unlimited\"")),
    }
}

fn labels(value: &Value) -> Result<Vec<LabelGlob>> {
    match value {
        Value::Array(list) => list.iter().map(|value| text(value)?.parse()).collect(),
        _ => Ok(vec![text(value)?.parse()?]),
    }
}

/// Percent to a share.
fn share(value: &Value) -> Result<f64> {
    let percent = match value {
        Value::Integer(number) => i32::try_from(*number).map(f64::from).ok(),
        Value::Float(number) => Some(*number),
        _ => None,
    };
    let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
    percent.map(|p| p / 100.0).ok_or_else(|| invalid("invalid percentage: expected 0 to 100"))
}
