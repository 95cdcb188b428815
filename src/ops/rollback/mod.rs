//! Rolling a live image back: save its present state, note the intent, write, note the new head.
//!
//! ```text
//! save the present state -> intent (durable) -> write what differs, fsync -> head = target, no intent
//! ```
//!
//! Interrupted before the intent, nothing has happened. Interrupted after it, the image is
//! half written, and the intent records that: the next rollback does not save it, and scans all of it to
//! find what differs. An intent may also land long after its rollback was told to have failed; so the host
//! notes of each, until the first byte, that nothing is written, and then the next rollback saves the present
//! state as ever.

mod live;
pub mod types;

use crate::base::error::{Error, Result};
use crate::base::events::{Context, WarningId};
use crate::base::free_space::free_space_at;
use crate::base::message::{Setting, Verb, message};
use crate::base::uri::Shown;
use crate::chain::Chain;
use crate::image::write::{Medium, OsMedium};
use crate::image::{Disk, Intent, LiveImage, Prefix, RawFile};
use crate::ops::rollback::live::{check_length, close, open_live, padding_bytes};
use crate::ops::rollback::types::{RollbackOutcome, RollbackRequest};
use crate::ops::snapshot::plan::{PlanInput, plan_scan};
use crate::ops::snapshot::snapshot_into;
use crate::ops::snapshot::take::{policy_for, warn_of_policy};
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::repo::change::commit_change;
use crate::repo::clones::{clones_beside, remove_all_clones};
use crate::repo::files::open_chain;
use crate::repo::garbage::collect_garbage;
use crate::repo::head::RollbackIntent;
use crate::repo::host::Unwritten;
use crate::repo::inside::{refuse_base_image, refuse_base_image_or_warn, refuse_inside};
use crate::repo::live_file::{
    is_unchanged_since, record_head, record_live_file, source_of, warn_if_not_durable,
    warn_if_unguarded,
};
use crate::repo::manifest::{Manifest, Rollback, Snapshot, changed_meanwhile};
use crate::repo::policy::SnapshotPolicy;
use crate::repo::session::{Writer, write};
use crate::repo::{Repository, reference};
use crate::scan::Scope;
use crate::tracking::{HintKind, Track};
use crate::view::update::{DiffSource, Updated, dry_run, execute, prove, whole};
use uuid::Uuid;

/// What should be left, besides what is written, when clones are kept during a rollback: file systems
/// allocate in larger pieces than they are asked for.
const SPARE_BYTES: u64 = 16 << 20;

/// Rolls a live image back.
pub fn run(
    repository: &Repository,
    request: &RollbackRequest,
    context: &Context,
) -> Result<RollbackOutcome> {
    run_through(repository, &OsMedium, request, context)
}

/// Like [`run`], but writes to the image through `medium`; tests use it to simulate power loss.
pub fn run_through(
    repository: &Repository,
    medium: &dyn Medium,
    request: &RollbackRequest,
    context: &Context,
) -> Result<RollbackOutcome> {
    let mut writer = write(repository, &request.name, context)?;
    let target = reference::find(&writer.manifest, &writer.head, &request.to)?.clone();
    let place = source_of(&request.name, &writer.head)?.to_owned();
    warn_of_policy(repository, &request.name, context);
    let limit = rollback_policy(repository, &request.name).limit_read;
    let context = &context.clone().with_read_limit(limit);
    if let Some(path) = place.file() {
        refuse_inside(repository, path)?;
        match request.save {
            // What is saved first is lost to nobody.
            true => refuse_base_image_or_warn(repository, path, context)?,
            false => refuse_base_image(repository, path)?,
        }
    }
    let (manifest, head) = (writer.manifest.clone(), writer.head.clone());
    let open = || open_live(&manifest, &head, &place, request, &target, context);
    let mut disk = open()?;
    let resumed = writer.head.is_half_written(repository, writer.manifest.image_id)?;
    let suspicious = writer.head.intent.is_some() || writer.head_was_damaged;
    if suspicious {
        disk.container().into_iter().for_each(|file| forget_cached(file, medium, context));
        drop(disk);
        disk = open()?;
    }
    disk.raw().into_iter().for_each(|file| warn_if_unguarded(file, context));
    let live = LiveImage::held(disk);
    let disk = &live.disk;
    let chain = open_chain(repository, &writer.manifest, target.id)?;
    check_length(disk, medium, &chain)?;
    if writer.head_was_damaged {
        context
            .warn(WarningId::HeadDamaged, "the head state was damaged; the image will be scanned");
    }
    let trust_hints = !request.prove && !suspicious;
    let is_unchanged_since =
        trust_hints && is_unchanged_since(&writer.head, live.stable_stat().as_ref());
    let current = writer.head.snapshot.filter(|id| writer.manifest.by_id(*id).is_some());
    let mut known = if is_unchanged_since { current } else { None };
    // Of an interrupted one: what it had saved.
    let intended = writer.head.intent.filter(|_| resumed).and_then(|intent| intent.saved);
    let intended = intended.and_then(|id| writer.manifest.by_id(id));
    let mut outcome = RollbackOutcome {
        number: target.number,
        image: place.clone(),
        work: Updated::default(),
        scanned: false,
        hint: None,
        proved: false,
        saved: intended.map(|s| s.number),
        dry_run: request.dry_run,
        resumed,
    };
    if request.dry_run {
        let plan = plan_diff(repository, &writer, known, &live, &chain, trust_hints, context)?;
        let (plan, work) = dry_run_all(disk, &chain, plan, context)?;
        outcome.work = work;
        outcome.scanned = plan.is_scan();
        outcome.hint = plan.hint;
        return Ok(outcome);
    }
    if !resumed {
        // An intent that is there all the same landed late, or its host died before the first byte. It stays
        // in the manifest until this one takes its place: what is known here may be wrong.
        writer.head.intent = None;
    }
    if request.save && !resumed {
        if known.is_none() {
            let mut saved = save(repository, &mut writer, &live, trust_hints, context)?;
            outcome.work.read_bytes += saved.read_bytes;
            if saved.hint.is_some_and(|hint| hint.missed_blocks > 0) {
                // What was known is wrong: what is overwritten must be in a snapshot that read all.
                saved = save(repository, &mut writer, &live, false, context)?;
                outcome.work.read_bytes += saved.read_bytes;
            }
            outcome.scanned = saved.hint.is_none();
            outcome.hint = saved.hint.map(|hint| hint.kind);
            known = Some(saved.snapshot.id);
        }
        outcome.saved = known.and_then(|id| writer.manifest.by_id(id)).map(|s| s.number);
    }
    let mut plan = plan_diff(repository, &writer, known, &live, &chain, trust_hints, context)?;
    let mut needed_bytes = None;
    if !resumed {
        // Damage in the repository must show while the image is still whole.
        let (rehearsed, found) = dry_run_all(disk, &chain, plan, context)?;
        plan = rehearsed;
        outcome.work.read_bytes += found.read_bytes;
        needed_bytes = Some(found.written_bytes);
    }
    if !has_free_space(disk, needed_bytes) {
        context.note("little room: the clones of the image go first");
        remove_all_clones(repository, &writer.manifest, &writer.head, context);
        if plan.hint.is_some() {
            // There is one without a name, too, until nobody has it open.
            plan = DiffPlan::whole();
            let found = dry_run(disk.source(), &chain, &plan.source(), context)?;
            outcome.work.read_bytes += found.read_bytes;
        }
    }
    outcome.scanned |= plan.is_scan();
    outcome.hint = outcome.hint.or(plan.hint);
    let saved =
        outcome.saved.and_then(|n| writer.manifest.snapshots.iter().find(|s| s.number == n));
    let saved = saved.map(|s| s.id);
    let step = Step { disk, medium, target: &target, chain: &chain, plan: &plan, saved };
    let work = write_image(repository, &mut writer, &step, resumed, context)?;
    outcome.work.written_bytes = work.written_bytes;
    outcome.work.read_bytes += work.read_bytes;
    if request.prove {
        // What is read to prove it comes from the disk, not from memory.
        disk.container().into_iter().for_each(|file| medium.forget(file.file()));
        // The file may have another length than when it was opened.
        drop(plan);
        drop(live);
        let disk = open()?;
        let bytes = disk.source().image_bytes() - padding_bytes(&disk, &chain);
        prove(&Prefix::new(disk.source(), bytes), &chain, context)
            .map_err(|e| e.hint("all was written, but it is not proved; run the rollback again"))?;
        end_rollback(repository, &mut writer, target.id, &disk, context)?;
        close(disk, context);
    } else {
        end_rollback(repository, &mut writer, target.id, disk, context)?;
        drop(plan);
        close(live.disk, context);
    }
    // What one that was interrupted had saved may have left a clone that nobody needs.
    let is_tracked = rollback_policy(repository, &request.name).track != Track::None;
    let needed = writer.manifest.newest_clone().filter(|_| is_tracked).map(|(s, _)| s.id);
    clones_beside(repository, &writer.manifest, Some(&outcome.image)).tidy(needed, context);
    // It has committed twice and more.
    writer.release_reader_lock();
    if let Err(e) = collect_garbage(repository, &mut writer.manifest, context) {
        context.note(e);
    }
    outcome.proved = outcome.scanned || request.prove;
    Ok(outcome)
}

/// True if a note is there that was told to have failed. Without one a rollback that has not begun to write
/// counts as half done.
fn may_be_there(note: &Unwritten, error: &Error, context: &Context) -> Result<bool> {
    context.note(error);
    note.is_there()
}

/// From the intent to the last byte.
fn write_image(
    repository: &Repository,
    writer: &mut Writer,
    step: &Step<'_>,
    is_resumed: bool,
    context: &Context,
) -> Result<Updated> {
    let Step { disk: live, medium, target, chain, plan, saved } = *step;
    let is_first = writer.manifest.rollback.is_none();
    let saved = saved.or(writer.head.intent.and_then(|intent| intent.saved));
    let id = Uuid::new_v4();
    let (host, target_id) = (repository.host.host().clone(), target.id);
    let rollback = Rollback { id: Some(id), host, target: target_id, saved, live: live.identity() };
    let note = repository.host.unwritten(repository.id(), writer.manifest.image_id, id);
    // Before the intent, which may land long after this was told to have failed.
    let is_noted = match is_resumed {
        true => false,
        false => note.put().map_or_else(|e| may_be_there(&note, &e, context), |()| Ok(true))?,
    };
    record_intent(repository, writer, Some(rollback))?;
    if is_noted {
        // Otherwise the next one would save a mixture.
        if let Err(e) = note.remove() {
            if is_first {
                record_intent(repository, writer, None)?;
            }
            return Err(e.hint("nothing was written"));
        }
    }
    context.note("the intent is noted; from here on the image is a mixture");
    let mut disk = live.in_place(medium)?;
    let padding = padding_bytes(live, chain);
    let padded = match padding {
        0 => Ok(()),
        bytes => disk.zero(chain.geometry().image_bytes, bytes),
    };
    let disk_of = Prefix::new(live.source(), live.source().image_bytes() - padding);
    let execute = |()| execute(&disk_of, disk.as_mut(), chain, &plan.source(), context);
    let work = padded.and_then(execute);
    let error = match work {
        Ok(work) => return Ok(work),
        Err(error) => error,
    };
    let name = &writer.manifest.name;
    if !disk.is_begun() && is_first {
        // Nothing was written: nothing happened.
        record_intent(repository, writer, None)?;
        return Err(error);
    }
    let saved = saved.and_then(|id| writer.manifest.by_id(id));
    let saved =
        saved.map_or(String::new(), |s| format!(" (the state before is {name}@{})", s.number));
    let again = Verb::Rollback.of(name).with(Setting::To, format!("{name}@{}", target.number));
    Err(error.hint(message![format!("the image is a mixture now{saved}: run "), again, " again"]))
}

/// True if there is free space to write so much anew: what the image shares with a clone is not overwritten.
/// How much is needed is not known of an interrupted rollback, perhaps interrupted by just that.
fn has_free_space(disk: &Disk, needed_bytes: Option<u64>) -> bool {
    let file = disk.raw().filter(|image| !image.is_device());
    let free_bytes = file.and_then(|image| free_space_at(image.path()));
    free_bytes.is_none_or(|free_bytes| {
        needed_bytes.is_some_and(|needed| free_bytes / 2 >= needed.saturating_add(SPARE_BYTES))
    })
}

/// Records that the image equals the snapshot now. An intent left behind would mark the image as half
/// written, and changes made later would not be saved.
fn end_rollback(
    repository: &Repository,
    writer: &mut Writer,
    id: Uuid,
    disk: &Disk,
    context: &Context,
) -> Result<()> {
    // What others write through is not seen in the times of a file.
    let stat = disk.raw().and_then(RawFile::stable_stat);
    disk.raw().map_or(Ok(()), |image| image.check_alone(Intent::Read))?;
    record_live_file(writer, disk, context);
    record_head(repository, writer, id, stat, context);
    record_intent(repository, writer, None).map_err(|e| {
        let what = format!("{}: all was written, but not that the rollback is done", disk.name());
        let again = Verb::Rollback.of(&writer.manifest.name).asking(Setting::To);
        e.at(what).or_hint(message!["run ", again, " again"])
    })?;
    warn_if_not_durable(disk, context);
    Ok(())
}

/// The image's tracking policy, except that a rollback does not fail because no clone can be made.
fn rollback_policy(repository: &Repository, name: &str) -> SnapshotPolicy {
    let policy = policy_for(repository, name, &SnapshotRequest::default());
    match policy.track {
        Track::Reflink => SnapshotPolicy { track: Track::Auto, ..policy },
        Track::Auto | Track::None => policy,
    }
}

/// Saves the present state.
fn save(
    repository: &Repository,
    writer: &mut Writer,
    live: &LiveImage,
    trust_hints: bool,
    context: &Context,
) -> Result<SnapshotOutcome> {
    let request = SnapshotRequest {
        full_scan: !trust_hints,
        skip_unchanged: true,
        track: Some(rollback_policy(repository, &writer.manifest.name).track),
        ..SnapshotRequest::default()
    };
    let place = live.disk.name();
    snapshot_into(repository, writer, live, &request, true, context).map_err(|e| {
        let is_image = e.is_bad_medium() && e.message().contains(&place);
        let hint = message![
            "take a snapshot with ",
            Setting::SkipBad,
            ", then roll back with ",
            Setting::NoSave,
            ", which writes over bad sectors",
        ];
        if is_image { e.hint(hint) } else { e }
    })
}

/// From what the differences to `target` are found, if the image is known to equal `known`.
fn plan_diff<'a>(
    repository: &Repository,
    writer: &Writer,
    known: Option<Uuid>,
    live: &LiveImage,
    target: &'a Chain,
    trust_hints: bool,
    context: &Context,
) -> Result<DiffPlan<'a>> {
    let manifest = &writer.manifest;
    if let Some(id) = known {
        let chain = open_chain(repository, manifest, id)?;
        if chain.is_comparable(target) {
            return Ok(DiffPlan { hint: None, source: OwnedDiffSource::Tables(chain) });
        }
    }
    if !trust_hints {
        return Ok(DiffPlan::whole());
    }
    let request = &SnapshotRequest::default();
    let policy = rollback_policy(repository, &manifest.name);
    let head = &writer.head;
    // What its times tell has been asked already.
    let search = PlanInput { manifest, head, stat: None, request, policy };
    let (scan_plan, _tracker) = plan_scan(repository, live, Some(target), &search, context)?;
    let bytes = live.disk.source().image_bytes();
    let turn = manifest.next_number.wrapping_add(head.skipped);
    // A clone that tells nothing would only hold the space of what is overwritten.
    let Some(hint) = scan_plan.kind() else { return Ok(DiffPlan::whole()) };
    let scope = move || scan_plan.scope(Some(target), bytes, turn);
    Ok(DiffPlan { hint: Some(hint), source: OwnedDiffSource::Scan(Box::new(scope)) })
}

/// Says in the manifest, to every host, that a rollback has begun, or that none is under way.
fn record_intent(
    repository: &Repository,
    writer: &mut Writer,
    rollback: Option<Rollback>,
) -> Result<()> {
    let Manifest { rollback: before, host, source, .. } = writer.manifest.clone();
    let is_listed = |id: &Uuid| writer.manifest.by_id(*id).is_some();
    let saved = rollback.as_ref().and_then(|r| r.saved).filter(is_listed);
    commit_change(repository, writer, None, |next| {
        // Others may have linked the image elsewhere, begun a rollback, or dropped either end of this one.
        let is_the_same = next.rollback == before && next.host == host && next.source == source;
        let has_target = rollback.as_ref().is_none_or(|r| next.by_id(r.target).is_some());
        let has_saved = saved.is_none_or(|id| next.by_id(id).is_some());
        if !is_the_same || !has_target || !has_saved {
            return Err(changed_meanwhile(&next.name));
        }
        next.rollback.clone_from(&rollback);
        Ok(())
    })?;
    writer.head.intent =
        rollback.map(|r| RollbackIntent { target: r.target, saved: r.saved, id: r.id });
    Ok(())
}

/// What is to be written, and where.
struct Step<'a> {
    disk: &'a Disk,
    medium: &'a dyn Medium,
    target: &'a Snapshot,
    chain: &'a Chain,
    plan: &'a DiffPlan<'a>,
    saved: Option<Uuid>,
}

struct DiffPlan<'a> {
    /// Who tells where the image may differ; none if all is read, or nothing.
    hint: Option<HintKind>,
    source: OwnedDiffSource<'a>,
}

enum OwnedDiffSource<'a> {
    Tables(Chain),
    Scan(Box<dyn Fn() -> Result<Scope> + 'a>),
}

impl DiffPlan<'_> {
    /// All is read.
    fn whole() -> Self {
        Self { hint: None, source: OwnedDiffSource::Scan(Box::new(whole)) }
    }

    fn source(&self) -> DiffSource<'_> {
        match &self.source {
            OwnedDiffSource::Tables(chain) => DiffSource::Tables(chain),
            OwnedDiffSource::Scan(scope) => DiffSource::Scan(scope.as_ref()),
        }
    }

    /// True if all of the image is read.
    fn is_scan(&self) -> bool {
        matches!(self.source, OwnedDiffSource::Scan(_)) && self.hint.is_none()
    }
}

/// Performs a dry run. If the hints turn out to have missed a change, repeats it as a full scan.
fn dry_run_all<'a>(
    disk: &Disk,
    target: &Chain,
    plan: DiffPlan<'a>,
    context: &Context,
) -> Result<(DiffPlan<'a>, Updated)> {
    let found = dry_run(disk.source(), target, &plan.source(), context)?;
    if found.missed.blocks == 0 {
        return Ok((plan, found));
    }
    let (place, blocks) = (disk.name(), found.missed.blocks);
    context.warn(
        WarningId::MissedChanges,
        format!(
            "{place}: {blocks} blocks that should have been unchanged had changed; all of it is read"
        ),
    );
    let plan = DiffPlan::whole();
    let mut again = dry_run(disk.source(), target, &plan.source(), context)?;
    again.read_bytes += found.read_bytes;
    Ok((plan, again))
}

/// A sync that failed has lost what it had to write, and memory still has it: nothing would seem to differ.
/// What the device has is what counts.
fn forget_cached(image: &RawFile, medium: &dyn Medium, context: &Context) {
    if let Err(e) = medium.sync(image.file()) {
        context.note(format!("cannot sync {}: {e}", image.path().shown()));
    }
    medium.forget(image.file());
}
