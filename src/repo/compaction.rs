//! When dropped snapshots are merged, and what that frees.

use crate::repo::manifest::Snapshot;
use serde::Serialize;

/// So many dropped snapshots in a row are merged though they hold little garbage: each is one more file
/// to look into.
const MAX_DROPPED_IN_A_ROW: usize = 64;

/// When files are merged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum CompactWhen {
    /// Whenever there is something to merge.
    Always,
    /// When so large a share of the files would be freed.
    Share(f64),
    /// Not at all: only to know the garbage.
    Never,
}

/// Dropped snapshots that were, or would be, merged into the one that depends on them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Merging {
    /// The snapshot that stays.
    pub number: u64,
    /// Dropped ones that go, newest first.
    pub absorbed: Vec<u64>,
    /// Bytes of all these files, but for parts that are kept.
    pub before_bytes: u64,
    /// Bytes that were written in their place; in a plan, about.
    pub after_bytes: u64,
    /// Bytes of parts that stay as they are.
    pub kept_bytes: u64,
}

/// What became of the space that dropped snapshots took, or would.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Compaction {
    /// Files that nobody needed any more.
    pub removed_files: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// What was merged.
    pub merged: Vec<Merging>,
    /// Bytes in files of dropped snapshots, and of those on them, that nobody needs but that are not
    /// freed yet; about.
    pub garbage_bytes: u64,
    /// Files of dropped snapshots that others depend on.
    pub held_files: u64,
    /// Merges that did not happen for want of free space: why.
    pub no_space: Vec<String>,
    /// Somebody reads: files are removed by the next writer, not yet.
    pub is_delayed: bool,
    /// Bytes of all files that were removed, those that were dropped earlier included, less those that were
    /// written for it; in a plan, about.
    pub freed_bytes: u64,
    /// Bytes of what was dropped and is not freed yet, but will be.
    pub to_free_bytes: u64,
    /// How long what is dropped stays at least, in seconds, where other hosts may read it: nothing is freed
    /// before.
    pub grace_seconds: Option<u64>,
}

impl Compaction {
    pub(super) fn count_removed(&mut self, unneeded: &[Snapshot]) {
        self.removed_files += unneeded.len() as u64;
        self.removed_bytes += unneeded.iter().map(|s| s.file_bytes).sum::<u64>();
    }

    /// Bytes of all files that nobody needs any more.
    pub(super) fn unneeded_bytes(&self) -> u64 {
        self.removed_bytes + self.merged.iter().map(|m| m.before_bytes).sum::<u64>()
    }

    /// Of what was removed: `earlier`, what had been left before, and what has not to wait.
    pub(super) fn count_freed(&mut self, earlier: u64, removed: u64) {
        let written: u64 = self.merged.iter().map(|m| m.after_bytes).sum();
        let waiting = self.unneeded_bytes().saturating_sub(removed);
        self.freed_bytes = (earlier + removed).saturating_sub(written);
        self.to_free_bytes = waiting.saturating_sub(written.saturating_sub(earlier + removed));
    }
}

impl CompactWhen {
    /// As a caller asks: always, or when a share of the files is garbage.
    pub(crate) fn of(always: bool, garbage: f64) -> Self {
        if always { Self::Always } else { Self::Share(garbage) }
    }

    /// How many of the files below the first one are worth to be merged into it. `sizes` are the bytes
    /// of each file and what of them lives, the newest first; the last one may be a base.
    pub(super) fn count(self, sizes: &[(u64, u64)], ends_at_base: bool) -> usize {
        let below = sizes.len().saturating_sub(1);
        let share = match self {
            Self::Always => return below,
            Self::Never => return 0,
            Self::Share(share) => share,
        };
        let (mut best, mut total, mut garbage) = (0, 0u64, 0u64);
        for (index, (bytes, live)) in sizes.iter().enumerate() {
            total += bytes;
            garbage += bytes.saturating_sub(*live);
            if index > 0 && garbage as f64 >= share * total as f64 {
                best = index;
            }
        }
        if best == 0 && below > MAX_DROPPED_IN_A_ROW {
            // A large base is not rewritten to save descriptors.
            let (last, others) = sizes.split_last().map_or((0, 0), |((last, _), others)| {
                (*last, others.iter().map(|(bytes, _)| bytes).sum())
            });
            best = if ends_at_base && last > others { below - 1 } else { below };
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_not_rewritten_for_little() {
        let share = CompactWhen::Share(0.05);
        // A large base of which one percent is superseded.
        assert_eq!(share.count(&[(10, 10), (1000, 990)], true), 0);
        assert_eq!(share.count(&[(10, 10), (1000, 900)], true), 1);
        assert_eq!(CompactWhen::Always.count(&[(10, 10), (1000, 1000)], true), 1);
        // The deltas are merged without the base below them.
        assert_eq!(share.count(&[(10, 10), (10, 5), (10, 6), (1000, 990)], true), 2);
        assert_eq!(share.count(&[(10, 10)], true), 0);
    }

    #[test]
    fn many_files_are_merged_though_they_hold_no_garbage() {
        let mut sizes = vec![(10, 10); MAX_DROPPED_IN_A_ROW + 1];
        assert_eq!(CompactWhen::Share(0.05).count(&sizes, false), 0);
        sizes.push((10, 10));
        assert_eq!(CompactWhen::Share(0.05).count(&sizes, true), MAX_DROPPED_IN_A_ROW + 1);
        sizes.pop();
        sizes.push((100_000, 100_000));
        assert_eq!(CompactWhen::Share(0.05).count(&sizes, true), MAX_DROPPED_IN_A_ROW);
    }
}
