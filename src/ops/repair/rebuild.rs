//! From delta files, and what an older manifest knew, to the snapshots of a manifest: the part of a repair
//! that changes nothing.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::base::message::Message;
use crate::chain::Chain;
use crate::delta::Delta;
use crate::ops::verify::engine::verify_all;
use crate::repo::compact::drop_from_manifest;
use crate::repo::entry::entry;
use crate::repo::manifest::{BaseOf, Manifest, Pending, Snapshot};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// A delta file that can be opened.
pub(crate) type Candidate = (String, Arc<Delta>);

pub(crate) fn most_common_image(candidates: &[Candidate]) -> Option<Uuid> {
    let mut counts: HashMap<Uuid, usize> = HashMap::new();
    for (_, delta) in candidates {
        *counts.entry(delta.header().image_id).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(id, count)| (*count, *id)).map(|(id, _)| id)
}

/// In the order in which they are tried: parents before children, and of several files with one number the
/// likeliest first. A merge that could not remove what it replaced leaves two files of one snapshot, of which
/// a sound one is wanted; a snapshot that was given up while somebody read leaves one of which nothing
/// descends.
pub(crate) fn in_order(
    mut candidates: Vec<Candidate>,
    old: Option<&Manifest>,
    context: &Context,
) -> Result<Vec<Candidate>> {
    let parents: HashSet<Uuid> =
        candidates.iter().filter_map(|(_, d)| d.footer().parent.map(|p| p.parent_id)).collect();
    let named: HashSet<&String> = old.iter().flat_map(|m| m.stored()).map(|s| &s.file).collect();
    let mut by_number: HashMap<u64, usize> = HashMap::new();
    for (_, delta) in &candidates {
        *by_number.entry(delta.footer().number).or_default() += 1;
    }
    let mut damaged: HashSet<String> = HashSet::new();
    for (file, delta) in &candidates {
        let is_one_of_many = by_number.get(&delta.footer().number).is_some_and(|n| *n > 1);
        if is_one_of_many && delta.base_image().is_none() {
            match verify_all(delta, context) {
                Ok(_) => {}
                Err(e) if e.is_damage() => drop(damaged.insert(file.clone())),
                Err(e) => return Err(e),
            }
        }
    }
    candidates.sort_by_key(|(file, delta)| {
        let footer = delta.footer();
        let time = (footer.time_seconds, footer.time_nanoseconds);
        let has_children = parents.contains(&footer.snapshot_id);
        let worse = (damaged.contains(file), !has_children, !named.contains(file));
        (footer.number, worse, Reverse(time), file.clone())
    });
    Ok(candidates)
}

/// Finds what a file begins from whose parent is none of the image.
pub(crate) type Elsewhere<'a> = &'a dyn Fn(&Manifest, &Delta) -> Result<Option<(BaseOf, Chain)>>;

/// Adds every snapshot whose chain is whole.
pub(crate) fn collect(
    candidates: Vec<Candidate>,
    manifest: &mut Manifest,
    elsewhere: Elsewhere<'_>,
    unused: &mut Vec<(String, Message)>,
) -> Result<()> {
    let mut chains: HashMap<Uuid, Chain> = HashMap::new();
    let mut left: Vec<(Candidate, Message)> = Vec::new();
    for (file, delta) in candidates {
        let footer = delta.footer().clone();
        let parent = footer.parent.map(|p| p.parent_id);
        let own = parent.and_then(|id| chains.get(&id));
        let is_own = delta.header().image_id == manifest.image_id;
        let other = match parent {
            Some(_) if own.is_none() && is_own => elsewhere(manifest, &delta)?,
            _ => None,
        };
        let below = own.or(other.as_ref().map(|(_, chain)| chain));
        let mut linked = None;
        let wrong = match below {
            _ if chains.contains_key(&footer.snapshot_id) => {
                Some("another file belongs to the same snapshot".into())
            }
            None if parent.is_some() => Some("its parent is missing".into()),
            _ if delta.header().image_id != manifest.image_id => {
                Some("it belongs to another image".into())
            }
            _ if footer.number < manifest.next_number => Some("another file has its number".into()),
            below => match Chain::link_onto(vec![delta.clone()], below) {
                Ok(chain) => {
                    linked = Some(chain);
                    None
                }
                Err(e) => Some(Message::from(e)),
            },
        };
        if let Some(wrong) = wrong {
            left.push(((file, delta), wrong));
            continue;
        }
        let Some(chain) = linked else { continue };
        let entry = entry(&delta, file, chain.layers())?;
        let base_of = other.map(|(of, _)| of);
        let parent = entry.parent.filter(|_| base_of.is_none());
        manifest.snapshots.push(Snapshot { parent, base_of, ..entry });
        manifest.next_number = footer.number.saturating_add(1);
        chains.insert(footer.snapshot_id, chain);
    }
    for ((file, delta), wrong) in left {
        let (id, digest) = (delta.footer().snapshot_id, delta.footer().image_digest);
        let taken = chains.get(&id);
        // The same snapshot in another file is not needed any more.
        if taken.is_none_or(|taken| taken.image_digest() != digest) {
            unused.push((file, wrong));
        }
    }
    Ok(())
}

/// Gives each snapshot the label that it had last, as far as that is known, and each label to one snapshot:
/// to that which had it in the old manifest, else to the newest, which took it from the others. Returns what
/// was left out.
pub(crate) fn assign_labels(manifest: &mut Manifest, old: Option<&Manifest>) -> Vec<(u64, String)> {
    let known =
        |id: Uuid| old.and_then(|old| old.stored().into_iter().find(|s| s.id == id).cloned());
    let mut taken: HashSet<String> = HashSet::new();
    for snapshot in &mut manifest.snapshots {
        if let Some(known) = known(snapshot.id) {
            snapshot.label = known.label;
            taken.extend(snapshot.label.clone());
        }
    }
    let mut left_out = Vec::new();
    for snapshot in manifest.snapshots.iter_mut().rev().filter(|s| known(s.id).is_none()) {
        if let Some(label) = snapshot.label.take() {
            match taken.insert(label.clone()) {
                true => snapshot.label = Some(label),
                false => left_out.push((snapshot.number, label)),
            }
        }
    }
    left_out
}

/// Copies what only the old manifest records. Returns dropped snapshots that nothing depends on any more.
///
/// What was dropped stays so, unless there is a file of it that the manifest did not name: it may have been
/// taken in again since.
pub(crate) fn remember(
    manifest: &mut Manifest,
    old: &Manifest,
    unnamed: &HashSet<Uuid>,
) -> Vec<Snapshot> {
    manifest.next_number = manifest.next_number.max(old.next_number);
    let stored = old.stored();
    for snapshot in &mut manifest.snapshots {
        if let Some(known) = stored.iter().find(|s| s.id == snapshot.id) {
            snapshot.read_bytes = known.read_bytes;
            snapshot.seconds = known.seconds;
            snapshot.base_image = known.base_image.clone();
            snapshot.format = known.format.clone();
            snapshot.part_size = known.part_size;
            snapshot.held = known.held.clone();
            snapshot.before_rollback = known.before_rollback;
            snapshot.protected = known.protected;
            snapshot.pins = known.pins.clone();
            snapshot.group = known.group.clone();
            snapshot.attachments = known.attachments.clone();
            snapshot.consistency = known.consistency;
            snapshot.attributes = known.attributes.clone();
            snapshot.hint = known.hint;
            snapshot.tracker = known.tracker.clone();
            snapshot.timings = known.timings;
        }
    }
    let (dropped, listed) = std::mem::take(&mut manifest.snapshots)
        .into_iter()
        .partition(|s| old.is_dropped(s.id) && !unnamed.contains(&s.id));
    (manifest.dropped, manifest.snapshots) = (dropped, listed);
    for snapshot in &mut manifest.dropped {
        snapshot.label = None;
        snapshot.pins.clear();
        snapshot.attachments.clear();
    }
    let numbers: HashSet<u64> = manifest.stored().into_iter().map(|s| s.number).collect();
    let ids: HashSet<Uuid> = manifest.stored().into_iter().map(|s| s.id).collect();
    let listed: HashSet<Uuid> = manifest.snapshots.iter().map(|s| s.id).collect();
    let is_possible = |pending: &&Pending| {
        let has_parent = pending.parent.is_none_or(|parent| listed.contains(&parent));
        let is_taken = numbers.contains(&pending.number) || ids.contains(&pending.id);
        has_parent && !is_taken
    };
    manifest.pending = old.pending.iter().filter(is_possible).cloned().collect();
    drop_from_manifest(manifest, &HashSet::new())
}
