//! What an image takes in the repository, snapshot by snapshot, and where it changes.

pub mod types;

pub mod engine;

use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::ops::stats::engine::{add_heat, superseded_bytes};
use crate::ops::stats::types::{Cost, Day, Stats};
use crate::repo::Repository;
use crate::repo::clones::clones_or_warn;
use crate::repo::compact::compaction_of;
use crate::repo::compaction::CompactWhen;
use crate::repo::files::open_delta;
use crate::repo::manifest::{Manifest, Snapshot};
use crate::repo::session::read;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// Parts of an image whose changes are counted.
pub const CELLS: u64 = 256;

/// Looks at all tables of an image.
pub fn run(repository: &Repository, name: &str, context: &Context) -> Result<Stats> {
    let reader = read(repository, name, context)?;
    let manifest = reader.manifest();
    let longest = manifest.snapshots.iter().map(|s| s.image_bytes).max().unwrap_or(0);
    let cell_bytes = longest.div_ceil(CELLS).next_multiple_of(4096).max(4096);
    let mut heat = vec![0; longest.div_ceil(cell_bytes) as usize];
    let stored = manifest.stored();
    for snapshot in &stored {
        let delta = Arc::new(open_delta(repository, manifest, snapshot)?);
        add_heat(&delta, &mut heat, cell_bytes, context)?;
    }
    let mut children: HashMap<Uuid, Vec<&Snapshot>> = HashMap::new();
    for (parent, child) in stored.iter().filter_map(|s| Some((s.parent?, s))) {
        children.entry(parent).or_default().push(child);
    }
    let cost = |snapshot: &Snapshot| {
        let children = children.get(&snapshot.id).map_or(&[][..], Vec::as_slice);
        cost(repository, manifest, snapshot, children, context)
    };
    let costs: Result<Vec<Cost>> = manifest.snapshots.iter().map(cost).collect();
    let compaction = compaction_of(repository, manifest, &[], CompactWhen::Never, context)?;
    Ok(Stats {
        costs: costs?,
        days: days(&manifest.snapshots),
        dropped_bytes: manifest.dropped.iter().map(|s| s.file_bytes).sum(),
        garbage_bytes: compaction.garbage_bytes,
        condemned_bytes: condemned_bytes(repository, manifest)?,
        heat,
        cell_bytes,
        clones: clones_or_warn(repository, reader.manifest(), reader.head(), context),
        manifest: manifest.clone(),
    })
}

/// Bytes of files that are dropped, and still there: somebody reads them, or other hosts may.
fn condemned_bytes(repository: &Repository, manifest: &Manifest) -> Result<u64> {
    let mut bytes = 0;
    for condemned in &manifest.condemned {
        match repository.store.size(&format!("{}/{}", manifest.name, condemned.object)) {
            Ok(size) => bytes += size,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
}

fn cost(
    repository: &Repository,
    manifest: &Manifest,
    snapshot: &Snapshot,
    children: &[&Snapshot],
    context: &Context,
) -> Result<Cost> {
    let open = |s: &Snapshot| open_delta(repository, manifest, s).map(Arc::new);
    let frees_bytes = match children {
        [] => {
            // With what nobody else depends on.
            let mut next = manifest.clone();
            let ids = HashSet::from([snapshot.id]);
            let unneeded = crate::repo::compact::drop_from_manifest(&mut next, &ids);
            unneeded.iter().map(|s| s.file_bytes).sum()
        }
        [child] if !snapshot.is_by_reference() => {
            superseded_bytes(&open(child)?, &open(snapshot)?, context)?
        }
        _ => 0,
    };
    Ok(Cost { snapshot: snapshot.clone(), frees_bytes })
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
