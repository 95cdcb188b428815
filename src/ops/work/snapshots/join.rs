//! Makes one snapshot of the parts that workers have made, and commits it.

use crate::base::digest::{Hasher, ImageDigest};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, Verb, message};
use crate::chain::Chain;
use crate::delta::{BASE_FRAME_BYTES, Delta, DeltaWriter, write_layer_file};
use crate::format::header::PARTS;
use crate::format::{Features, Header, PartEntry, PartTable};
use crate::ops::work::snapshots::part::{FoundPart, identity, is_it, parts_of, refuse_over};
use crate::ops::work::snapshots::source::{open_planned, remove_clone};
use crate::ops::work::types::Joined;
use crate::repo::Repository;
use crate::repo::change::{commit_change, discard_unless_named};
use crate::repo::entry::entry;
use crate::repo::files::open_chain;
use crate::repo::garbage::collect_garbage;
use crate::repo::live_file::keep_head;
use crate::repo::manifest::{self, Manifest, Snapshot};
use crate::repo::session::{Writer, write};
use crate::repo::uploads::Uploads;
use crate::repo::work::{PlannedImage, PlannedTask, WorkPlan};
use crate::tracking::Consistency;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Joins each image whose parts are all there. Of each, in the order of the plan, what became of it: one
/// that is bad holds up no other. When all are joined the plan is over.
///
/// # Errors
/// `Interrupted`.
pub fn run(
    repository: &Repository,
    plan: &WorkPlan,
    only: Option<&str>,
    context: &Context,
) -> Result<Vec<(String, Joined)>> {
    let mut all = Vec::new();
    for planned in plan.images().iter().filter(|image| only.is_none_or(|only| only == image.name)) {
        context.check()?;
        let joined = match join_image(repository, planned, plan, context) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            Err(e) => Joined::Failed(e),
            Ok(joined) => joined,
        };
        all.push((planned.name.clone(), joined));
    }
    let is_over = |(_, joined): &(String, Joined)| {
        matches!(joined, Joined::Committed(_) | Joined::AlreadyThere(_))
    };
    if all.len() == plan.images().len() && all.iter().all(is_over) {
        WorkPlan::remove(repository.store.as_ref(), plan.plan)?;
    }
    Ok(all)
}

fn join_image(
    repository: &Repository,
    planned: &PlannedImage,
    plan: &WorkPlan,
    context: &Context,
) -> Result<Joined> {
    let mut writer = write(repository, &planned.name, context)?;
    if let Some(known) = writer.manifest.stored().into_iter().find(|s| s.id == planned.snapshot) {
        // Whoever joined it may have been killed before it was removed.
        remove_clone(planned);
        return Ok(Joined::AlreadyThere(Box::new(known.clone())));
    }
    refuse_over(&writer.manifest, planned, plan.plan)?;
    let mut found = parts_of(repository, planned, plan.plan, context)?;
    let is_missing =
        |task: &&PlannedTask| found.get(&task.first_block).is_none_or(|part| !is_it(part, **task));
    let missing: Vec<PlannedTask> = planned.tasks.iter().filter(is_missing).copied().collect();
    if !missing.is_empty() {
        return Ok(Joined::Unfinished(missing));
    }
    let wanted = |first: &u64| planned.tasks.iter().any(|task| task.first_block == *first);
    found.retain(|first, _| wanted(first));
    // Each part was proved when it was read; that nobody wrote in between is proved now.
    drop(open_planned(planned, context)?);
    let parent =
        planned.parent.map(|id| open_chain(repository, &writer.manifest, id)).transpose()?;
    let (difference, parts) = sums(&found, parent.as_ref(), planned)?;
    let mut uploads = Uploads::new(repository, &planned.name);
    write_layer(planned, plan, parent.as_ref(), difference, parts, &found, &mut uploads)?;
    let file = uploads.object();
    uploads.publish()?;
    let committed = commit(repository, &mut writer, planned, plan.plan, parent.as_ref(), &file);
    if committed.is_err() {
        best_effort(discard_unless_named(repository, &planned.name, [file.as_str()]));
    }
    let snapshot = committed?;
    remove_clone(planned);
    // The image has a newer snapshot than the one that it was known to equal.
    (writer.head.snapshot, writer.head.stat) = (None, None);
    keep_head(repository, &mut writer, context);
    // Parts without entries, and those that were made twice.
    writer.release_reader_lock();
    if let Err(error) = collect_garbage(repository, &mut writer.manifest, context) {
        context.warn(WarningId::CleanupDelayed, message![error, "; the next writer tries again"]);
    }
    Ok(Joined::Committed(Box::new(snapshot)))
}

/// What the parts change together, and those that have something. Where all of them say what there was
/// before, it is proved that this is the parent.
fn sums(
    found: &BTreeMap<u64, FoundPart>,
    parent: Option<&Chain>,
    planned: &PlannedImage,
) -> Result<(u128, Vec<PartEntry>)> {
    let (mut difference, mut before) = (0u128, Some(0u128));
    let mut parts = Vec::new();
    for part in found.values() {
        let terms = part.footer.terms;
        difference = difference.wrapping_add(terms.difference);
        before = before.zip(terms.before).map(|(sum, before)| sum.wrapping_add(before));
        if part.footer.counts.tables > 0 {
            parts.push(PartEntry::of(part.object, &part.footer, part.footer_digest));
        }
    }
    let wanted = parent.map_or(0, |parent| terms_of(parent).0);
    if before.is_some_and(|before| before != wanted) {
        let name = &planned.name;
        let what =
            format!("{name}: the index of the parent of number {} is damaged", planned.number);
        return Err(Error::corrupt(what).hint(message![
            "run ",
            Verb::Verify.of(name),
            " to see where, and plan a ",
            Setting::Full,
            " snapshot",
        ]));
    }
    Ok((difference, parts))
}

/// The sum of the terms of all blocks.
fn terms_of(chain: &Chain) -> ImageDigest {
    chain.image_digest().minus(chain.hasher().size_term(chain.geometry().image_bytes))
}

/// Writes the file that names the parts; of a snapshot in which nothing has changed a delta file without
/// entries.
fn write_layer(
    planned: &PlannedImage,
    plan: &WorkPlan,
    parent: Option<&Chain>,
    difference: u128,
    parts: Vec<PartEntry>,
    found: &BTreeMap<u64, FoundPart>,
    uploads: &mut Uploads<'_>,
) -> Result<()> {
    let (block_size, algorithm, key, _) = planned.parameters()?;
    let hasher = Hasher::new(algorithm, key);
    let image_bytes = planned.fingerprint.bytes;
    let before = parent.map_or(ImageDigest(0), terms_of);
    let image_digest = before.plus(difference).plus(hasher.size_term(image_bytes));
    let own = Header::frame_blocks_for(block_size, BASE_FRAME_BYTES);
    let frame_blocks = found.values().map(|part| part.part.header().frame_blocks).max();
    let header = Header {
        features: Features::incompatible(if parts.is_empty() { 0 } else { PARTS }),
        file_id: Uuid::new_v4(),
        image_id: planned.image_id,
        block_size,
        frame_blocks: frame_blocks.unwrap_or(own),
        algorithm,
        key,
    };
    let time = plan.time;
    let identity = crate::delta::Identity {
        time_seconds: time.as_second(),
        time_nanoseconds: u32::try_from(time.subsec_nanosecond()).unwrap_or(0),
        ..identity(planned)
    };
    let lineage = parent.map(Chain::as_parent);
    match parts.is_empty() {
        true => {
            let writer = DeltaWriter::new(&header, uploads);
            writer.finish(&identity, lineage, image_bytes, image_digest)?;
        }
        false => {
            let cell_blocks = planned.part_bytes.blocks(block_size);
            let table = PartTable { cell_blocks, parts };
            let digest = image_digest;
            write_layer_file(&header, table, &identity, lineage, image_bytes, digest, uploads)?;
        }
    }
    Ok(())
}

/// Names the layer and its parts in the place of what was pending.
fn commit(
    repository: &Repository,
    writer: &mut Writer,
    planned: &PlannedImage,
    plan: Uuid,
    parent: Option<&Chain>,
    file: &str,
) -> Result<Snapshot> {
    let path = format!("{}/{file}", planned.name);
    let delta = Arc::new(Delta::open(repository.store.clone(), &path, &repository.caches)?);
    let below = parent.into_iter().flat_map(|chain| chain.layers().iter().cloned());
    let layers: Vec<Arc<Delta>> = std::iter::once(delta.clone()).chain(below).collect();
    let snapshot = Snapshot {
        parent: planned.parent,
        label: planned.label.clone(),
        format: planned.parent.is_none().then(|| planned.format.clone()),
        part_size: Some(planned.part_bytes).filter(|size| {
            planned.parent.is_none() && *size != crate::base::units::PartSize::USUAL
        }),
        consistency: match (&planned.pinned, planned.in_use) {
            (Some(_), false) => Consistency::Stopped,
            (Some(_), true) => Consistency::Crash,
            (None, _) => Consistency::Unknown,
        },
        held: planned.held.clone(),
        source_version: planned.source_version.clone(),
        ..entry(&delta, file.to_owned(), &layers)?
    };
    let files: Vec<String> = snapshot.files().cloned().collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let host = repository.host.host().clone();
    commit_change(repository, writer, &files, |next: &mut Manifest| {
        refuse_over(next, planned, plan)?;
        let is_taken = |s: &Snapshot| s.label.is_some() && s.label == snapshot.label;
        if next.snapshots.iter().any(is_taken) {
            let what = format!("\"{}\" now has a snapshot with that label", next.name);
            return Err(Error::new(ErrorKind::AlreadyExists, what));
        }
        if next.rollback.is_some() {
            return Err(manifest::changed_meanwhile(&next.name));
        }
        next.pending.retain(|pending| pending.id != planned.snapshot);
        if next.host.is_none() {
            next.host = Some(host.clone());
            next.source.clone_from(&planned.source);
        }
        next.live = None;
        next.format = Some(planned.format.clone());
        next.snapshots.push(snapshot.clone());
        next.snapshots.sort_by_key(|s| s.number);
        Ok(snapshot.clone())
    })
}
