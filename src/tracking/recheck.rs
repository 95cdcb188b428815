//! Which share of what is assumed to be unchanged is rechecked.
//!
//! The image is cut into equal parts, and each snapshot rechecks the one that its number says: after as
//! many snapshots as there are parts all of it was examined. What is found unchanged and makes no
//! snapshot counts as well.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::{BlockRange, Geometry};
use std::fmt;
use std::str::FromStr;

/// Of the image, if nothing else is said.
const USUAL_SHARE: f64 = 0.01;
/// But not more than this.
const USUAL_BYTES: u64 = 64 << 20;

/// How much is examined in each snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Recheck {
    /// 1 % of the image or 64 MiB, whichever is less.
    #[default]
    Usual,
    /// This share of it, 0 to 1.
    Share(f64),
}

impl Recheck {
    /// From a percentage.
    ///
    /// # Errors
    /// `InvalidInput` if it is not from 0 to 100.
    pub fn percent(percent: f64) -> Result<Self> {
        if !(0.0..=100.0).contains(&percent) {
            let what = "invalid percentage: expected 0 to 100";
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(Self::Share(percent / 100.0))
    }

    /// How many blocks of an image are examined in each snapshot; none only if that is asked for.
    pub fn block_count(self, geometry: Geometry) -> u64 {
        let count = geometry.block_count();
        let share = |share: f64| ((count as f64 * share).ceil() as u64).min(count);
        match self {
            Self::Usual => {
                let most = USUAL_BYTES / u64::from(geometry.block_size.bytes());
                share(USUAL_SHARE).min(most).max(1)
            }
            Self::Share(of) => share(of),
        }
    }

    /// The blocks that are examined in a turn; the next turn examines those behind them.
    pub fn blocks(self, geometry: Geometry, turn: u64) -> BlockRange {
        let at_once = self.block_count(geometry);
        let Some(cycle) = cycle(geometry.block_count(), at_once) else {
            return BlockRange::between(0, 0);
        };
        let first = turn % cycle * at_once;
        BlockRange::between(first, (first + at_once).min(geometry.block_count()))
    }
}

/// After how many snapshots all `block_count` blocks were examined, `at_once` in each; none if never.
pub fn cycle(block_count: u64, at_once: u64) -> Option<u64> {
    (at_once > 0).then(|| block_count.div_ceil(at_once))
}

impl FromStr for Recheck {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let what = format!("invalid percentage \"{}\": expected 0 to 100", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, what).hint("write it like 1% or 0.5%")
        };
        let digits = text.strip_suffix('%').unwrap_or(text).trim_end();
        let is_number = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let percent = digits.parse().ok().filter(|_| is_number).ok_or_else(bad)?;
        Self::percent(percent).map_err(|_| bad())
    }
}

impl fmt::Display for Recheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usual => f.write_str("1% or 64 MiB"),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BlockSize;

    #[test]
    fn all_of_an_image_is_looked_at_in_one_cycle() {
        for (bytes, recheck) in [
            (1, Recheck::Usual),
            (10_000_000, Recheck::Usual),
            (100 << 30, Recheck::Usual),
            (10_000_000, Recheck::Share(0.3)),
            (10_000_000, Recheck::Share(1.0)),
            (10_000_000, Recheck::Share(1e-9)),
        ] {
            let geometry = Geometry::new(BlockSize::DEFAULT, bytes).unwrap();
            let (count, at_once) = (geometry.block_count(), recheck.block_count(geometry));
            let cycle = cycle(count, at_once).unwrap();
            let mut parts: Vec<_> =
                (1000..1000 + cycle).map(|number| recheck.blocks(geometry, number)).collect();
            parts.sort_by_key(|part| part.first);
            let mut at = 0;
            for part in parts {
                assert_eq!(part.first, at);
                assert!(part.count > 0 && part.count <= at_once);
                at = part.end();
            }
            assert_eq!(at, count, "{bytes} {recheck}");
        }
    }

    #[test]
    fn usually_one_percent_and_at_most_64_mib() {
        let blocks = |bytes| {
            let geometry = Geometry::new(BlockSize::DEFAULT, bytes).unwrap();
            Recheck::Usual.block_count(geometry)
        };
        assert_eq!((blocks(4096 * 1000), blocks(100 << 30), blocks(5)), (10, 16_384, 1));
        let geometry = Geometry::new(BlockSize::DEFAULT, 1 << 30).unwrap();
        assert_eq!(Recheck::Share(0.0).blocks(geometry, 7).count, 0);
        assert_eq!(cycle(10, 0), None);
    }

    #[test]
    fn shares_are_written_in_percent() {
        let share = |text: &str| text.parse::<Recheck>().unwrap();
        assert_eq!(share("1%"), Recheck::Share(0.01));
        assert_eq!(share("0.5 %"), Recheck::Share(0.005));
        assert_eq!((share("0"), share("100%")), (Recheck::Share(0.0), Recheck::Share(1.0)));
        for bad in ["", "%", "-1%", "101%", "nan", "inf", "1e1", "1%%", "one"] {
            assert!(bad.parse::<Recheck>().is_err(), "{bad}");
        }
    }
}
