//! Dropping snapshots, and getting their space back: files that nobody needs go at once; those that
//! others depend on are merged into them as soon as that is worth its writes.
//!
//! ```text
//! @4 -> (@3) -> (@2) -> (@1) -> base      @4 kept, those in brackets dropped, each with one child
//! @4 --------------------------> base      after the merge: one new file, one manifest, then three unlinks
//! ```
//!
//! A dropped snapshot with several children stays until it has one: merged earlier, its blocks would
//! be on disk twice.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::free_space::check_free_space;
use crate::base::message::message;
use crate::base::units::PartSize;
use crate::chain::{Chain, Fork};
use crate::delta::{Delta, Identity};
use crate::merge::{KeptOf, LayerUse, Merged, Plan, grid_of, layer_use, merge, prove};
use crate::repo::Repository;
use crate::repo::change::{commit_change, discard_unless_named, refuse_kept};
use crate::repo::compaction::{CompactWhen, Compaction, Merging};
use crate::repo::entry::part_names;
use crate::repo::files::{open_chain, open_delta, open_parent};
use crate::repo::garbage::{Reaped, collect_garbage};
use crate::repo::manifest::{self, BaseOf, Manifest, Snapshot};
use crate::repo::reserve::{keep_reserve, with_reserve};
use crate::repo::session::Writer;
use crate::repo::uploads::Uploads;
use crate::store::ReserveKept;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// What a merge needs beside what lives, at most: header, footer, the ends of pages.
const SPARE_BYTES: u64 = 1 << 20;

/// A merge that is worth it.
struct Group {
    top: Snapshot,
    /// Newest first.
    absorbed: Vec<Snapshot>,
    before_bytes: u64,
    live_bytes: u64,
    /// In parts that stay as they are; counted nowhere else.
    kept_bytes: u64,
}

impl Group {
    fn merging(&self, after_bytes: u64) -> Merging {
        Merging {
            number: self.top.number,
            absorbed: self.absorbed.iter().map(|s| s.number).collect(),
            before_bytes: self.before_bytes,
            after_bytes,
            kept_bytes: self.kept_bytes,
        }
    }
}

/// Drops snapshots: commits a manifest without them. Files that nobody depends on are not named any
/// more; they are given.
///
/// `still` tells which of them are to go by what rules then, if others changed it meanwhile.
pub(crate) fn drop_snapshots(
    repository: &Repository,
    writer: &mut Writer,
    ids: &HashSet<Uuid>,
    still: impl Fn(&Manifest) -> Result<HashSet<Uuid>>,
) -> Result<Vec<Snapshot>> {
    let store = repository.store.as_ref();
    refuse_kept(store, &writer.manifest, |s| ids.contains(&s.id))?;
    let unneeded = drop_from_manifest(&mut writer.manifest.clone(), ids);
    if ids.is_empty() && unneeded.is_empty() && !writer.manifest.has_disowned() {
        return Ok(unneeded);
    }
    let unneeded = commit_change(repository, writer, &[], |next| {
        let still: HashSet<Uuid> = still(next)?.intersection(ids).copied().collect();
        refuse_kept(store, next, |s| still.contains(&s.id))?;
        Ok(drop_from_manifest(next, &still))
    })?;
    if writer.head.snapshot.is_some_and(|id| ids.contains(&id)) {
        // Where it is kept, it leads to nothing from now on.
        (writer.head.snapshot, writer.head.stat) = (None, None);
    }
    Ok(unneeded)
}

/// Removes what nobody needs, and merges what is worth it. What was dropped is gone for the user before this
/// begins; whatever ends it, the next writer goes on. Gives what kept it from doing all of that.
///
/// # Errors
/// `Interrupted`.
pub(crate) fn compact(
    repository: &Repository,
    writer: &mut Writer,
    unneeded: &[Snapshot],
    worth: CompactWhen,
    context: &Context,
) -> Result<(Compaction, Option<Error>)> {
    let mut compaction = Compaction::default();
    let mut reaped = Reaped::default();
    compaction.count_removed(unneeded);
    let done = compact_into(&mut compaction, &mut reaped, repository, writer, worth, context);
    let failed = match done {
        Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
        done => done.err(),
    };
    let sharing = repository.sharing().ok();
    compaction.grace_seconds = sharing.and_then(|s| s.grace()).map(|grace| grace.as_secs());
    compaction.held_files = writer.manifest.dropped.len() as u64;
    compaction.is_delayed = !reaped.is_all;
    compaction.count_freed(writer.freed_bytes, reaped.freed_bytes);
    // Others would take what it has given back.
    keep_reserve(repository.store.as_ref(), &writer.manifest, ReserveKept::OfTheRest);
    Ok((compaction, failed))
}

fn compact_into(
    compaction: &mut Compaction,
    reaped: &mut Reaped,
    repository: &Repository,
    writer: &mut Writer,
    worth: CompactWhen,
    context: &Context,
) -> Result<()> {
    // If somebody reads now, the next writer removes the files.
    writer.release_reader_lock();
    let store = repository.store.as_ref();
    *reaped = with_reserve(store, || collect_garbage(repository, &mut writer.manifest, context))?;
    let (groups, planned, mut failed) =
        plan_compaction(repository, &writer.manifest, worth, context)?;
    compaction.garbage_bytes = planned.garbage_bytes;
    for group in groups {
        if let Err(e) = check_space_for(repository, &writer.manifest, &group) {
            compaction.no_space.push(e.without_advice());
            continue;
        }
        let absorbed: HashSet<Uuid> = group.absorbed.iter().map(|s| s.id).collect();
        let onto = group.absorbed.last();
        match rewrite(repository, writer, group.top.id, onto, &absorbed, context) {
            Ok((merged, unneeded)) => {
                let written = merged.file_bytes.saturating_sub(group.kept_bytes);
                compaction.merged.push(group.merging(written));
                compaction.count_removed(&unneeded);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                failed.get_or_insert(e);
                continue;
            }
        }
        let more = collect_garbage(repository, &mut writer.manifest, context)?;
        reaped.is_all &= more.is_all;
        reaped.freed_bytes += more.freed_bytes;
    }
    failed.map_or(Ok(()), Err)
}

/// After a commit that stands: what fails now only leaves something for the next writer.
pub(crate) fn or_warn(compacted: (Compaction, Option<Error>), context: &Context) -> Compaction {
    let (compaction, failed) = compacted;
    if let Some(e) = failed {
        context.warn(WarningId::CleanupDelayed, message![e, "; the next prune tries again"]);
    }
    compaction
}

/// What a compaction would do if `manifest` ruled.
pub(crate) fn compaction_of(
    repository: &Repository,
    manifest: &Manifest,
    unneeded: &[Snapshot],
    worth: CompactWhen,
    context: &Context,
) -> Result<Compaction> {
    let (groups, mut compaction, failed) = plan_compaction(repository, manifest, worth, context)?;
    failed.map_or(Ok(()), Err)?;
    compaction.count_removed(unneeded);
    let groups: Vec<Group> = groups
        .into_iter()
        .filter(|group| {
            let space = check_space_for(repository, manifest, group);
            compaction.no_space.extend(space.as_ref().err().map(Error::without_advice));
            space.is_ok()
        })
        .collect();
    let absorbed: usize = groups.iter().map(|group| group.absorbed.len()).sum();
    compaction.held_files = manifest.dropped.len().saturating_sub(absorbed) as u64;
    compaction.merged = groups.iter().map(|group| group.merging(group.live_bytes)).collect();
    compaction.grace_seconds = repository.sharing()?.grace().map(|grace| grace.as_secs());
    let at_once = compaction.grace_seconds.map_or(compaction.unneeded_bytes(), |_| 0);
    compaction.count_freed(0, at_once);
    Ok(compaction)
}

fn check_space_for(repository: &Repository, manifest: &Manifest, group: &Group) -> Result<()> {
    let what = format!("merging {} files of \"{}\"", group.absorbed.len() + 1, manifest.name);
    let needed_bytes = group.live_bytes + SPARE_BYTES;
    check_free_space(repository.store.free_space(), needed_bytes, &repository.location(), &what)
}

/// The merges that are worth it, the garbage that would be left, and what damage was met first.
fn plan_compaction(
    repository: &Repository,
    manifest: &Manifest,
    worth: CompactWhen,
    context: &Context,
) -> Result<(Vec<Group>, Compaction, Option<Error>)> {
    let (mut groups, mut compaction, mut failed) = (Vec::new(), Compaction::default(), None);
    for path in paths(manifest) {
        // No more of the chain than that: it may be long, and there may be many of them.
        let layers = path.iter().map(|s| open_delta(repository, manifest, s).map(Arc::new));
        let layers: Result<Vec<Arc<Delta>>> = layers.collect();
        let uses = layers.and_then(|layers| uses_of(&path, &layers, context));
        let sizes = match uses {
            Ok(uses) => uses,
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            // Damage of one file is no reason not to merge others.
            Err(e) => {
                failed.get_or_insert(e);
                continue;
            }
        };
        let (sizes, kept): (Vec<(u64, u64)>, Vec<u64>) = sizes.into_iter().unzip();
        let count = worth.count(&sizes, path.last().is_some_and(|s| s.is_base()));
        let (taken, left) = sizes.split_at(if count == 0 { 0 } else { count + 1 });
        let garbage = left.iter().map(|(bytes, live)| bytes.saturating_sub(*live));
        compaction.garbage_bytes += garbage.sum::<u64>();
        let mut snapshots = path.into_iter().take(taken.len());
        let Some(top) = snapshots.next().cloned() else { continue };
        let absorbed: Vec<Snapshot> = snapshots.cloned().collect();
        groups.push(Group {
            before_bytes: taken.iter().map(|(bytes, _)| bytes).sum(),
            live_bytes: taken.iter().map(|(_, live)| live).sum(),
            kept_bytes: kept.iter().take(taken.len()).sum(),
            top,
            absorbed,
        });
    }
    Ok((groups, compaction, failed))
}

/// Of the files of each of some snapshots that are merged, the newest first: their bytes and what of them
/// lives, but for the parts that would stay as they are, and the bytes of those.
fn uses_of(
    path: &[&Snapshot],
    layers: &[Arc<Delta>],
    context: &Context,
) -> Result<Vec<((u64, u64), u64)>> {
    let uses = layer_use(layers, context)?;
    let mut kept = vec![0; layers.len()];
    let tip = layers.first().map(|tip| tip.geometry()).transpose()?;
    let becomes_base = path.last().is_some_and(|s| s.is_base());
    let block_count = tip.map_or(0, |geometry| geometry.block_count());
    let kept_of = KeptOf { layers, becomes_base, block_count };
    for (index, part) in kept_of.parts(|_| true, context)? {
        if let Some(kept) = kept.get_mut(index) {
            *kept += part.file_bytes;
        }
    }
    let each = path.iter().zip(&uses).zip(kept);
    let of = |((s, of), kept): ((&&Snapshot, &LayerUse), u64)| {
        ((s.file_bytes.saturating_sub(kept), of.live_bytes.saturating_sub(kept)), kept)
    };
    Ok(each.map(of).collect())
}

/// Puts another file in the place of a snapshot's, against what `onto` was taken against (nothing if there
/// is none), and commits that. `absorbed` snapshots, which are dropped, are removed. Returns the new
/// manifest entry, and the snapshots that nothing depends on any more.
pub(crate) fn rewrite(
    repository: &Repository,
    writer: &mut Writer,
    id: Uuid,
    onto: Option<&Snapshot>,
    absorbed: &HashSet<Uuid>,
    context: &Context,
) -> Result<(Snapshot, Vec<Snapshot>)> {
    rewrite_as(repository, writer, id, None, onto, absorbed, context)
}

/// The same, perhaps with another number.
pub(crate) fn rewrite_as(
    repository: &Repository,
    writer: &mut Writer,
    id: Uuid,
    number: Option<u64>,
    onto: Option<&Snapshot>,
    absorbed: &HashSet<Uuid>,
    context: &Context,
) -> Result<(Snapshot, Vec<Snapshot>)> {
    let name = writer.manifest.name.clone();
    // What it was planned by may not rule any more.
    let is_there = |id: &Uuid| writer.manifest.stored().iter().any(|s| s.id == *id);
    if !is_there(&id) || !onto.is_none_or(|onto| is_there(&onto.id)) {
        return Err(manifest::changed_meanwhile(&name));
    }
    let tip = open_chain(repository, &writer.manifest, id)?;
    let parent = onto.map(|onto| open_parent(repository, &writer.manifest, onto)).transpose()?;
    let (parent, base_of) = (parent.flatten(), onto.and_then(|onto| onto.base_of.clone()));
    let footer = tip.tip().footer().clone();
    let fork = Fork::new(tip, parent.clone())?;
    let may_move = |delta: &Delta| {
        let of = delta.footer().snapshot_id;
        of == id || absorbed.contains(&of)
    };
    let kept_of = KeptOf {
        layers: fork.own(),
        becomes_base: parent.is_none(),
        block_count: fork.tip().geometry().block_count(),
    };
    let kept = kept_of.parts(may_move, context)?.into_iter().map(|(_, part)| part).collect();
    let plan = Plan {
        identity: Identity { number: number.unwrap_or(footer.number), ..Identity::of(&footer) },
        file_id: Uuid::new_v4(),
        compression: repository.compression(),
        cell_blocks: grid_of(fork.own()),
        kept,
        fork,
    };
    let mut uploads = Uploads::new(repository, &name);
    let merged = merge(&plan, context, &mut uploads).and_then(|merged| {
        context.check()?;
        Ok(merged)
    });
    let merged = match merged {
        Ok(merged) => merged,
        Err(error) => {
            best_effort(uploads.discard());
            return Err(error);
        }
    };
    let file = uploads.object();
    let files = uploads.publish()?;
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let before = writer.manifest.lineage(id)?.into_iter().cloned().collect::<Vec<_>>();
    let change = |next: &mut Manifest| {
        let is_same = next.lineage(id).is_ok_and(|now| before.iter().eq(now));
        if !is_same {
            return Err(manifest::changed_meanwhile(&next.name));
        }
        let format = next.format().map(str::to_owned);
        let part_size = next.part_size_of(id);
        next.dropped.retain(|s| !absorbed.contains(&s.id));
        let mut entry = None;
        for snapshot in next.snapshots.iter_mut().chain(&mut next.dropped).filter(|s| s.id == id) {
            *snapshot =
                with_file(snapshot, &file, &merged, base_of.as_ref(), format.as_deref(), part_size);
            entry = Some(snapshot.clone());
        }
        next.snapshots.sort_by_key(|s| s.number);
        next.dropped.sort_by_key(|s| s.number);
        let unneeded = drop_from_manifest(next, &HashSet::new());
        let gone = || Error::corrupt(format!("{}: the snapshot is gone", next.name));
        Ok((entry.ok_or_else(gone)?, unneeded))
    };
    let mut next = writer.manifest.clone();
    change(&mut next)?;
    let proved = prove_merged(repository, &next, id, parent, context);
    let committed = proved.and_then(|()| commit_change(repository, writer, &files, change));
    if committed.is_err() {
        discard_unless_named(repository, &name, files)?;
    }
    committed
}

/// Opens the new file as `next` names it, and proves that it gives its snapshot.
fn prove_merged(
    repository: &Repository,
    next: &Manifest,
    id: Uuid,
    parent: Option<Chain>,
    context: &Context,
) -> Result<()> {
    let chain = open_chain(repository, next, id)?;
    prove(&Fork::new(chain, parent)?, context)
}

/// Drops snapshots from a manifest. Returns those that are named no more, because nothing depends on them.
pub(crate) fn drop_from_manifest(manifest: &mut Manifest, ids: &HashSet<Uuid>) -> Vec<Snapshot> {
    let (dropped, kept): (Vec<_>, Vec<_>) =
        std::mem::take(&mut manifest.snapshots).into_iter().partition(|s| ids.contains(&s.id));
    manifest.snapshots = kept;
    let bare = |s| Snapshot { label: None, attachments: Vec::new(), ..s };
    manifest.dropped.extend(dropped.into_iter().map(bare));
    manifest.dropped.sort_by_key(|s| s.number);
    let mut needed: HashSet<Uuid> = manifest.snapshots.iter().filter_map(|s| s.parent).collect();
    let mut unneeded = Vec::new();
    // Children have higher numbers than their parents.
    for snapshot in manifest.dropped.iter().rev() {
        if needed.contains(&snapshot.id) {
            needed.extend(snapshot.parent);
        } else {
            unneeded.push(snapshot.clone());
        }
    }
    manifest.dropped.retain(|s| needed.contains(&s.id));
    unneeded
}

/// Each snapshot that stays on disk with the dropped ones below it that have no other child, newest
/// first; only where there are any.
fn paths(manifest: &Manifest) -> Vec<Vec<&Snapshot>> {
    let stored = manifest.stored();
    let mut children: HashMap<Uuid, usize> = HashMap::new();
    for parent in stored.iter().filter_map(|s| s.parent) {
        *children.entry(parent).or_default() += 1;
    }
    let dropped: HashMap<Uuid, &Snapshot> = manifest.dropped.iter().map(|s| (s.id, s)).collect();
    // The blocks of a base image stay in it.
    let can_go = |id: &Uuid| {
        let only_child = children.get(id) == Some(&1);
        dropped.get(id).copied().filter(|s| only_child && !s.is_by_reference())
    };
    let mut paths = Vec::new();
    for top in stored.iter().filter(|s| can_go(&s.id).is_none()) {
        let mut path = vec![*top];
        let mut next = top.parent;
        while let Some(below) = next.as_ref().and_then(can_go) {
            path.push(below);
            next = below.parent;
        }
        if path.len() > 1 {
            paths.push(path);
        }
    }
    paths
}

/// A snapshot whose file is written anew, perhaps against a snapshot of another image. `format` is how its
/// image file is read.
pub(crate) fn with_file(
    snapshot: &Snapshot,
    file: &str,
    merged: &Merged,
    base_of: Option<&BaseOf>,
    format: Option<&str>,
    part_size: Option<PartSize>,
) -> Snapshot {
    let footer = &merged.written.footer;
    let against = footer.parent.map(|p| p.parent_id);
    let base_of = base_of.filter(|of| against == Some(of.snapshot)).cloned();
    let parent = against.filter(|_| base_of.is_none());
    Snapshot {
        number: footer.number,
        parent,
        base_of,
        file: file.into(),
        parts: part_names(merged.written.table.as_ref()),
        part_size: snapshot.part_size.or(part_size).filter(|_| parent.is_none()),
        file_bytes: merged.written.stored_bytes(),
        footer_digest: merged.written.footer_digest,
        data_blocks: footer.counts.data_blocks,
        zero_blocks: footer.counts.zero_blocks,
        unread_blocks: footer.counts.unread_blocks,
        changed_blocks: merged.changed_blocks,
        changed_bytes: merged.changed_bytes,
        frame_bytes: footer.counts.frame_bytes,
        base_image: None,
        format: format.filter(|_| parent.is_none()).map(str::to_owned),
        ..snapshot.clone()
    }
}
