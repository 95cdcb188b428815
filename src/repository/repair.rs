//! Rebuilding a lost or damaged manifest: every delta file describes itself.

use super::Repository;
use super::check_label;
use super::compact::drop_from;
use crate::chain::Chain;
use crate::delta::Delta;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{self, Manifest, Snapshot};
use crate::progress::Context;
use crate::store::{Store, read_small};
use crate::units::{BlockRange, Geometry};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// The manifest was sound.
    Nothing,
    /// It was rebuilt.
    Rebuilt {
        /// How many snapshots it names.
        snapshots: u64,
        /// Files that could not be used, and why. They are kept.
        unused: Vec<(String, String)>,
        /// Where the live file is, if that was still to be found.
        source: Option<PathBuf>,
    },
}

impl Repository {
    /// Rebuilds the manifest of an image if it is lost or damaged, or was rebuilt before without files that
    /// can be used now.
    ///
    /// # Errors
    /// `NotFound` if there is nothing of that image at all; `Corrupt` if no delta file can be used.
    pub fn repair(&self, name: &str, context: &Context) -> Result<Repaired> {
        manifest::check_name(name)?;
        let store = self.store.as_ref();
        if store.list(name)?.is_empty() {
            manifest::load(store, name)?;
        }
        let _write = self.lock_to_write(name)?;
        // What is found may have a name that is not durable yet: whoever gave it died before the sync.
        store.flush(name)?;
        let ruling = match twice(|| manifest::load(store, name)) {
            Ok(manifest) if manifest.unused.is_empty() => return Ok(Repaired::Nothing),
            // What an earlier one could not use may have been put right.
            Ok(manifest) => Some(manifest),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                context.progress().note(&e.to_string());
                None
            }
            Err(e) => return Err(not_now(e)),
        };
        let mut unused = Vec::new();
        let mut deltas = self.open_all(name, &mut unused)?;
        let known = ruling.as_ref().map(|m| m.stored().len());
        let old = match ruling {
            Some(manifest) => {
                // The others were dropped, or are of nobody.
                let is_meant = |file: &String| {
                    manifest.unused.contains(file)
                        || manifest.stored().iter().any(|s| s.file == *file)
                };
                deltas.retain(|(file, _)| is_meant(file));
                unused.retain(|(file, _)| is_meant(file));
                Some(manifest)
            }
            None => older_manifest(store, name)?,
        };
        let mut manifest = Manifest::new(name, old.as_ref().and_then(|m| m.source.clone()));
        manifest.image_id =
            most_common_image(&deltas).or(old.as_ref().map(|m| m.image_id)).ok_or_else(|| {
                let what = format!("{name}: no delta file can be read");
                Error::corrupt(what).hint("put the files of the repository back from a copy")
            })?;
        manifest.sequence = manifest::ruling(store, name)?.unwrap_or(0);
        let numbers = deltas.iter().filter(|(_, d)| d.header().image_id == manifest.image_id);
        let highest = numbers.map(|(_, delta)| delta.footer().number).max().unwrap_or(0);
        collect(deltas, &mut manifest, &mut unused)?;
        if known.is_some_and(|known| manifest.snapshots.len() <= known) {
            return Ok(Repaired::Nothing);
        }
        // Numbers are never used twice, also those of files that cannot be used now.
        manifest.next_number = manifest.next_number.max(highest.saturating_add(1));
        let kept = old.as_ref().map_or(Vec::new(), |old| old.kept.clone());
        // What nothing rests on now may be what a file that cannot be used rests on: nothing is removed.
        let unneeded = old.as_ref().map_or(Vec::new(), |old| remember(&mut manifest, old));
        manifest.unused = unused.iter().map(|(file, _)| file.clone()).collect();
        manifest.kept = manifest.unused.clone();
        manifest.kept.extend(unneeded.into_iter().map(|s| s.file).chain(kept));
        manifest.kept.sort();
        manifest.kept.dedup();
        let named: Vec<String> = manifest.stored().iter().map(|s| s.file.clone()).collect();
        manifest.kept.retain(|file| !named.contains(file));
        manifest::commit(store, &mut manifest)?;
        Ok(Repaired::Rebuilt {
            snapshots: manifest.snapshots.len() as u64,
            unused,
            source: manifest.source,
        })
    }

    fn open_all(
        &self,
        name: &str,
        unused: &mut Vec<(String, String)>,
    ) -> Result<Vec<(String, Arc<Delta>)>> {
        let mut deltas = Vec::new();
        for file in self.store.list(name)?.into_iter().filter(|f| f.ends_with(".delta")) {
            let path = format!("{name}/{file}");
            match twice(|| Delta::open(self.store.clone(), &path, &self.caches)) {
                Ok(delta) => deltas.push((file, Arc::new(delta))),
                Err(e) if e.kind() == ErrorKind::Io => return Err(not_now(e)),
                Err(e) => unused.push((file, e.to_string())),
            }
        }
        // Parents have lower numbers; of two with one number the newer comes first.
        deltas.sort_by_key(|(file, delta)| {
            let footer = delta.footer();
            let time = (footer.time_seconds, footer.time_nanoseconds);
            (footer.number, std::cmp::Reverse(time), file.clone())
        });
        Ok(deltas)
    }
}

/// What is called damaged is left out for good: it is looked at twice.
fn twice<T>(look: impl Fn() -> Result<T>) -> Result<T> {
    look().or_else(|_| look())
}

/// What cannot be read now is no damage yet: a manifest without it would be a loss for good.
fn not_now(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Io => error.or_hint(
            "run the command again; if the disk has lost that file for good, move it out of the folder first",
        ),
        _ => error,
    }
}

/// The newest manifest that can still be read: it may know labels and the place of the live image.
fn older_manifest(store: &dyn Store, name: &str) -> Result<Option<Manifest>> {
    let mut sequences: Vec<u64> =
        store.list(name)?.iter().filter_map(|file| manifest::sequence_of(file)).collect();
    sequences.sort_unstable_by(|a, b| b.cmp(a));
    for sequence in sequences {
        let file = format!("{name}/{}", manifest::file_name(sequence));
        let read = || Manifest::decode(&read_small(store, &file, manifest::MAX_MANIFEST_BYTES)?);
        match twice(read) {
            Ok(manifest) if manifest.name == name => return Ok(Some(manifest)),
            Err(e) if e.kind() == ErrorKind::Io => return Err(not_now(e)),
            _ => {}
        }
    }
    Ok(None)
}

fn most_common_image(deltas: &[(String, Arc<Delta>)]) -> Option<Uuid> {
    let mut counts: HashMap<Uuid, usize> = HashMap::new();
    for (_, delta) in deltas {
        *counts.entry(delta.header().image_id).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(id, count)| (*count, *id)).map(|(id, _)| id)
}

/// Adds every snapshot whose chain is whole.
fn collect(
    deltas: Vec<(String, Arc<Delta>)>,
    manifest: &mut Manifest,
    unused: &mut Vec<(String, String)>,
) -> Result<()> {
    let mut chains: HashMap<Uuid, Vec<Arc<Delta>>> = HashMap::new();
    for (file, delta) in deltas {
        let footer = delta.footer().clone();
        let mut layers = vec![delta.clone()];
        let parent = footer.parent.map(|p| p.parent_id);
        let ancestors = parent.map_or(Some(Vec::new()), |id| chains.get(&id).cloned());
        let wrong = match ancestors {
            None => Some("its parent is missing".to_owned()),
            Some(_) if delta.header().image_id != manifest.image_id => {
                Some("it is of another image".to_owned())
            }
            Some(_) if footer.number < manifest.next_number => {
                Some("another file has its number".to_owned())
            }
            Some(ancestors) => {
                layers.extend(ancestors);
                Chain::link(layers.clone()).err().map(|e| e.to_string())
            }
        };
        if let Some(wrong) = wrong {
            unused.push((file, wrong));
            continue;
        }
        manifest.snapshots.push(entry(&delta, file, &layers)?);
        manifest.next_number = footer.number.saturating_add(1);
        chains.insert(footer.snapshot_id, layers);
    }
    Ok(())
}

pub(super) fn entry(delta: &Arc<Delta>, file: String, layers: &[Arc<Delta>]) -> Result<Snapshot> {
    let footer = delta.footer();
    let geometry = Geometry::new(delta.header().block_size, footer.image_bytes)?;
    let (changed_blocks, changed_bytes) = changed(delta, geometry)?;
    let nanoseconds = i32::try_from(footer.time_nanoseconds).unwrap_or(0);
    Ok(Snapshot {
        number: footer.number,
        id: footer.snapshot_id,
        parent: layers.get(1).map(|parent| parent.footer().snapshot_id),
        // One that a user could not type is of another program.
        label: footer.label.clone().filter(|label| check_label(label).is_ok()),
        time: Timestamp::new(footer.time_seconds, nanoseconds).unwrap_or_default(),
        file,
        file_bytes: footer.file_bytes,
        footer_digest: delta.footer_digest(),
        block_bytes: geometry.block_size.bytes(),
        image_bytes: footer.image_bytes,
        image_digest: footer.image_digest,
        data_blocks: footer.counts.data_blocks,
        zero_blocks: footer.counts.zero_blocks,
        unread_blocks: footer.counts.unread_blocks,
        changed_blocks,
        changed_bytes,
        frame_bytes: footer.counts.frame_bytes,
        read_bytes: None,
        seconds: None,
        base_image: None,
        in_use: false,
        hint: None,
        kept_clone: None,
    })
}

/// Blocks within the image that have a run, and their bytes. A damaged table is found by `verify`.
fn changed(delta: &Arc<Delta>, geometry: Geometry) -> Result<(u64, u64)> {
    let mut cursor = crate::delta::TableCursor::new(delta.clone());
    let (mut blocks, mut bytes) = (0, 0);
    let inside = BlockRange::between(0, geometry.block_count());
    if cursor.seek(0).is_err() {
        return Ok((0, 0));
    }
    while let Some((_, run)) = cursor.run() {
        let end = run.blocks.end().min(inside.end());
        blocks += end.saturating_sub(run.blocks.first);
        bytes += geometry.bytes_in(run.blocks);
        if cursor.advance().is_err() {
            break;
        }
    }
    Ok((blocks, bytes))
}

/// Takes over what only a manifest knows.
/// Gives dropped snapshots on which nothing rests any more.
fn remember(manifest: &mut Manifest, old: &Manifest) -> Vec<Snapshot> {
    manifest.next_number = manifest.next_number.max(old.next_number);
    for snapshot in &mut manifest.snapshots {
        if let Some(known) = old.by_id(snapshot.id) {
            snapshot.label = known.label.clone();
            snapshot.read_bytes = known.read_bytes;
            snapshot.seconds = known.seconds;
        }
        let stored = old.stored();
        if let Some(known) = stored.iter().find(|s| s.id == snapshot.id) {
            snapshot.base_image = known.base_image.clone();
            snapshot.in_use = known.in_use;
            snapshot.hint = known.hint;
            snapshot.kept_clone = known.kept_clone.clone();
        }
    }
    let (dropped, listed) = std::mem::take(&mut manifest.snapshots)
        .into_iter()
        .partition(|snapshot| old.is_dropped(snapshot.id));
    (manifest.dropped, manifest.snapshots) = (dropped, listed);
    manifest.dropped.iter_mut().for_each(|snapshot| snapshot.label = None);
    let unneeded = drop_from(manifest, &HashSet::new());
    // Labels moved since then could stand twice.
    let mut seen = HashSet::new();
    for snapshot in &mut manifest.snapshots {
        if snapshot.label.as_ref().is_some_and(|label| !seen.insert(label.clone())) {
            snapshot.label = None;
        }
    }
    unneeded
}
