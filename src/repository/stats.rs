//! What an image takes in the repository, snapshot by snapshot, and where it changes.

use super::compact::Worth;
use super::{Clones, Repository};
use crate::base::error::Result;
use crate::base::progress::Context;
use crate::chain::open_delta;
use crate::manifest::{Manifest, Snapshot};
use crate::stats::{add_heat, superseded_bytes};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Parts of an image whose changes are counted.
pub const CELLS: u64 = 256;

/// What is known of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Its snapshots.
    pub manifest: Manifest,
    /// What each of them costs, ascending by number.
    pub costs: Vec<Cost>,
    /// What was added on each day that has snapshots, in local time.
    pub days: Vec<Day>,
    /// Bytes of files of dropped snapshots.
    pub dropped_bytes: u64,
    /// Bytes that nobody needs but that are not freed yet; about.
    pub garbage_bytes: u64,
    /// Bytes that the deltas changed in each part of the image.
    pub heat: Vec<u64>,
    /// Length of a part.
    pub cell_bytes: u64,
    /// The clones beside its live file.
    pub clones: Clones,
}

/// What one snapshot costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Bytes that would be free without it; about. Nothing if several snapshots rest on it.
    pub frees_bytes: u64,
}

/// What was added on a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day {
    /// Which.
    pub date: Date,
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes of the image that they changed.
    pub changed_bytes: u64,
    /// Bytes of their files.
    pub stored_bytes: u64,
}

impl Stats {
    /// Bytes of all files.
    pub fn stored_bytes(&self) -> u64 {
        self.manifest.stored().iter().map(|s| s.file_bytes).sum()
    }

    /// Bytes of the blocks in them before compression.
    pub fn raw_bytes(&self) -> u64 {
        let stored = self.manifest.stored();
        let here = stored.iter().filter(|s| !s.is_by_reference());
        here.map(|s| s.data_blocks * u64::from(s.block_bytes)).sum()
    }

    /// Bytes of the frames with these blocks.
    pub fn frame_bytes(&self) -> u64 {
        self.manifest.stored().iter().map(|s| s.frame_bytes).sum()
    }
}

impl Repository {
    /// Looks at all tables of an image.
    pub fn stats(&self, name: &str, context: &Context) -> Result<Stats> {
        let reader = self.read(name, context)?;
        let manifest = reader.manifest();
        let longest = manifest.snapshots.iter().map(|s| s.image_bytes).max().unwrap_or(0);
        let cell_bytes = longest.div_ceil(CELLS).next_multiple_of(4096).max(4096);
        let mut heat = vec![0; longest.div_ceil(cell_bytes) as usize];
        let mut done = HashSet::new();
        for snapshot in manifest.snapshots.iter().rev() {
            let chain = self.open_chain(manifest, snapshot.id)?;
            add_heat(&chain, &mut heat, cell_bytes, &mut done, context)?;
        }
        let costs: Result<Vec<Cost>> =
            manifest.snapshots.iter().map(|s| self.cost(manifest, s, context)).collect();
        let compaction = self.compaction_of(manifest, &[], Worth::Never, context)?;
        Ok(Stats {
            costs: costs?,
            days: days(&manifest.snapshots),
            dropped_bytes: manifest.dropped.iter().map(|s| s.file_bytes).sum(),
            garbage_bytes: compaction.garbage_bytes,
            heat,
            cell_bytes,
            clones: self.clones_or_warn(reader.manifest(), context),
            manifest: manifest.clone(),
        })
    }

    fn cost(&self, manifest: &Manifest, snapshot: &Snapshot, context: &Context) -> Result<Cost> {
        let stored = manifest.stored();
        let children: Vec<&&Snapshot> =
            stored.iter().filter(|s| s.parent == Some(snapshot.id)).collect();
        let open = |s: &Snapshot| open_delta(&self.store, manifest, s, &self.caches).map(Arc::new);
        let frees_bytes = match children.as_slice() {
            [] => {
                // With what nobody else rests on.
                let mut next = manifest.clone();
                let ids = HashSet::from([snapshot.id]);
                let unneeded = super::compact::drop_from(&mut next, &ids);
                unneeded.iter().map(|s| s.file_bytes).sum()
            }
            [child] if !snapshot.is_by_reference() => {
                superseded_bytes(&open(child)?, &open(snapshot)?, context)?
            }
            _ => 0,
        };
        Ok(Cost { snapshot: snapshot.clone(), frees_bytes })
    }
}

fn days(snapshots: &[Snapshot]) -> Vec<Day> {
    let mut days: BTreeMap<Date, Day> = BTreeMap::new();
    for snapshot in snapshots {
        let date = snapshot.time.to_zoned(TimeZone::system()).date();
        let none = Day { date, snapshots: 0, changed_bytes: 0, stored_bytes: 0 };
        let day = days.entry(date).or_insert(none);
        day.snapshots += 1;
        day.changed_bytes = day.changed_bytes.saturating_add(snapshot.changed_bytes);
        day.stored_bytes += snapshot.file_bytes;
    }
    days.into_values().collect()
}
