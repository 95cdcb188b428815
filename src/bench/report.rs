//! What a benchmark found: plain values, for whoever prints them.

use crate::base::units::BlockSize;
use crate::codec::Compression;
use std::fmt;

/// A piece of work that is measured, whole verbs unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The first snapshot of the image.
    Base,
    /// A snapshot of the unchanged image, by a scan.
    Unchanged,
    /// The scan alone of the changed image: digests compared, changed blocks copied, nothing kept.
    Scan,
    /// The snapshot of the changed image.
    Incremental,
    /// A restore of the changed image to a new file.
    Restore,
    /// A rollback to the state before the change, the head trusted.
    Rollback,
    /// A verification of the repository, every block decoded.
    Verify,
    /// Reads of 64 KiB at scattered places of the newest snapshot, one after the other.
    Range,
}

impl Work {
    /// In the order in which they are run.
    pub const ALL: [Self; 8] = [
        Self::Base,
        Self::Unchanged,
        Self::Scan,
        Self::Incremental,
        Self::Restore,
        Self::Verify,
        Self::Range,
        Self::Rollback,
    ];

    /// What it is held against: the same bytes through the same threads, with nothing else done.
    pub fn ceiling(self) -> &'static str {
        match self {
            Self::Base => "the same frames compressed, nothing read or written",
            Self::Unchanged | Self::Scan => "the image read",
            Self::Incremental => "the image read, then the delta's bytes written and synced",
            Self::Restore => "the same bytes written to a new file and synced",
            Self::Rollback => "the same bytes written in place and synced",
            Self::Verify => "the same frames decoded and their blocks digested",
            Self::Range => "the same ranges read from the image file",
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base snapshot",
            Self::Unchanged => "unchanged snapshot",
            Self::Scan => "scan of changes",
            Self::Incremental => "incremental snapshot",
            Self::Restore => "restore",
            Self::Rollback => "rollback",
            Self::Verify => "verify",
            Self::Range => "scattered reads",
        })
    }
}

/// Where the bytes are when the work begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// In the page cache.
    Warm,
    /// On the device.
    Cold,
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Warm { "warm" } else { "cold" })
    }
}

/// One run of the work, and of its ceiling directly before or after it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// How long the work took.
    pub seconds: f64,
    /// How long the ceiling took.
    pub ceiling_seconds: f64,
}

/// A piece of work with all its runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was done.
    pub work: Work,
    /// From where.
    pub cache: Cache,
    /// Bytes of the image that it was about.
    pub covered_bytes: u64,
    /// Bytes read, from the image or from delta files.
    pub read_bytes: u64,
    /// Bytes written, to delta files or to an image.
    pub written_bytes: u64,
    /// Bytes of frames that were decoded.
    pub decoded_bytes: u64,
    /// The most memory that the process had resident, everything counted; none if the system does
    /// not tell.
    pub peak_bytes: Option<u64>,
    /// At least one.
    pub samples: Vec<Sample>,
}

impl Row {
    /// Median time of the work.
    pub fn seconds(&self) -> f64 {
        median(self.samples.iter().map(|s| s.seconds))
    }

    /// Median time of the ceiling.
    pub fn ceiling_seconds(&self) -> f64 {
        median(self.samples.iter().map(|s| s.ceiling_seconds))
    }

    /// The fraction of the ceiling that was reached: the median of the runs' own fractions, because a
    /// run and its ceiling saw the same machine.
    pub fn fraction(&self) -> f64 {
        median(self.samples.iter().map(|s| s.ceiling_seconds / s.seconds.max(1e-9)))
    }

    /// Bytes of the image covered in a second.
    pub fn covered_rate(&self) -> f64 {
        self.covered_bytes as f64 / self.seconds().max(1e-9)
    }

    /// Bytes written in a second.
    pub fn written_rate(&self) -> f64 {
        self.written_bytes as f64 / self.seconds().max(1e-9)
    }
}

/// The middle of some values, or between the two in the middle; 0 of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    (at(low) + at(high)) / 2.0
}

/// What varies between the points of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// 4K, 16K, 64K, 256K, 1M.
    BlockSize,
    /// 0.1, 1, 10 and 100 %.
    Change,
    /// 1, 2, 4 ... up to what was asked for.
    Threads,
    /// Chains of 1, 10, 100 and 1000 deltas.
    Chain,
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlockSize => "block size",
            Self::Change => "change",
            Self::Threads => "threads",
            Self::Chain => "deltas in the chain",
        })
    }
}

/// With what one point was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Unit of comparison.
    pub block_size: BlockSize,
    /// Share of the image's 4 KiB blocks that change between two snapshots, 0 to 1.
    pub change: f64,
    /// Threads that work.
    pub threads: usize,
    /// Deltas between the base and the incremental snapshot, that one included; at least 1.
    pub chain: usize,
}

impl Setting {
    /// The value that a sweep varies, as text (`64K`, `1 %`, `2`).
    pub fn label(&self, sweep: Sweep) -> String {
        match sweep {
            Sweep::BlockSize => self.block_size.to_string(),
            Sweep::Change => {
                // No digits that only the binary form of the number has.
                format!("{} %", (self.change * 1e7).round() / 1e5)
            }
            Sweep::Threads => self.threads.to_string(),
            Sweep::Chain => self.chain.to_string(),
        }
    }
}

/// One setting, measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// With what.
    pub setting: Setting,
    /// Bytes of the image that differ at the incremental snapshot, in whole blocks.
    pub changed_bytes: u64,
    /// Length of the base's file.
    pub base_bytes: u64,
    /// Length of the incremental snapshot's file.
    pub delta_bytes: u64,
    /// In the order of [`Work::ALL`], warm before cold.
    pub rows: Vec<Row>,
}

/// On what it was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Model of the processor.
    pub processor: String,
    /// How many of them.
    pub cores: usize,
    /// Of memory.
    pub memory_bytes: u64,
    /// Name and release of the kernel.
    pub kernel: String,
    /// On which the scratch folder lies, as the kernel calls it.
    pub filesystem: String,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// On what.
    pub machine: Machine,
    /// Length of the image.
    pub image_bytes: u64,
    /// Whose image: a path, or how it was made.
    pub image: String,
    /// How frames were compressed.
    pub compression: Compression,
    /// What varies, if there is more than one point.
    pub sweep: Option<Sweep>,
    /// At least one.
    pub points: Vec<Point>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_fractions_are_paired() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
        let sample = |seconds, ceiling_seconds| Sample { seconds, ceiling_seconds };
        let row = Row {
            work: Work::Scan,
            cache: Cache::Warm,
            covered_bytes: 1000,
            read_bytes: 1000,
            written_bytes: 10,
            decoded_bytes: 0,
            peak_bytes: None,
            samples: vec![sample(2.0, 1.0), sample(10.0, 5.0), sample(4.0, 3.0)],
        };
        assert_eq!((row.seconds(), row.ceiling_seconds(), row.fraction()), (4.0, 3.0, 0.5));
        assert_eq!((row.covered_rate(), row.written_rate()), (250.0, 2.5));
    }
}
