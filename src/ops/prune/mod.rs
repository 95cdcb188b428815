//! The verb *prune*: drops the snapshots that no rule keeps.

pub mod types;

mod decided;
mod kept_with;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::ops::prune::types::{PruneRequest, Pruned};
use crate::repo::Repository;
use crate::repo::compact::{compact, compaction_of, drop_from_manifest, drop_snapshots, or_warn};
use crate::repo::compaction::{CompactWhen, Compaction};
use crate::repo::files::open_chain;
use crate::repo::garbage::collect_removed;
use crate::repo::head::Head;
use crate::repo::manifest::Manifest;
use crate::repo::pins::{Below, write_to_drop};
use crate::repo::requests::leave;
use crate::repo::session::{read, refuse_damaged_head};
use decided::decide_all;
use jiff::Timestamp;
use kept_with::KeptWith;
use std::cell::RefCell;
use std::collections::HashSet;
use uuid::Uuid;

/// Drops the snapshots of an image that no rule keeps.
///
/// # Errors
/// `InvalidInput` without any rule, or if the rules keep nothing.
pub fn run(
    repository: &Repository,
    name: &str,
    request: &PruneRequest,
    context: &Context,
) -> Result<Pruned> {
    let policy = repository.policy(name)?;
    let rules = request.rules.clone().or(policy.rules).ok_or_else(|| {
        let what = format!("there are no retention rules for \"{name}\"");
        Error::new(ErrorKind::InvalidInput, what).hint(message![
            "give rules such as ",
            Setting::KeepDaily.to(7),
            ", or set them in the configuration with ",
            Verb::Config.of("edit"),
        ])
    })?;
    let now = Timestamp::now();
    let others = RefCell::new(KeptWith::of(repository, request.rules.as_ref(), now, context));
    let decide = |manifest: &Manifest, head: &Head| {
        let mut decided = decide_all(manifest, head, &rules, now)?;
        decided.keep_groups(manifest, &mut others.borrow_mut());
        Ok::<_, Error>(decided)
    };
    let when = CompactWhen::of(request.compact, policy.garbage);
    let is_for_owner = !repository.may_drop();
    if request.dry_run || is_for_owner {
        let reader = read(repository, name, context)?;
        refuse_damaged_head(name, reader.head_was_damaged)?;
        let decided = decide(reader.manifest(), reader.head())?;
        let mut next = reader.manifest().clone();
        let unneeded = drop_from_manifest(&mut next, &decided.dropped());
        let compaction = compaction_of(repository, &next, &unneeded, when, context)?;
        refuse_for_nothing(&decided.dropped(), &compaction)
            .map_err(|e| e.at("nothing would be dropped"))?;
        let dropped = decided.dropped();
        let is_asked = is_for_owner && !request.dry_run && !dropped.is_empty();
        let requested =
            is_asked.then(|| leave(repository, reader.manifest(), Some(&dropped))).transpose()?;
        return Ok(Pruned { requested, ..decided.outcome(name, compaction) });
    }
    let mut writer = write_to_drop(repository, name, context)?;
    refuse_damaged_head(name, writer.head_was_damaged)?;
    let decided = decide(&writer.manifest, &writer.head)?;
    let ids = decided.dropped();
    let checked = plan_checked(repository, &writer.manifest, &ids, when, context);
    let refused = |plan| refuse_for_nothing(&ids, &plan);
    checked.and_then(refused).map_err(|e| {
        if e.kind() == ErrorKind::Interrupted { e } else { e.at("nothing was dropped") }
    })?;
    let (head, below) = (writer.head.clone(), Below::of(&writer.manifest));
    let unneeded = drop_snapshots(repository, &mut writer, &ids, |next| {
        Ok(decide(next, &head.in_view_of(next))?.dropped())
    })?;
    if let Err(e) = collect_removed(repository, context) {
        context.note(e);
    }
    let dropped = ids.len();
    let compaction = match compact(repository, &mut writer, &unneeded, when, context)? {
        // What is kept may be damaged as well.
        (_, Some(e)) if e.is_damage() => {
            let what = format!("{name}: {dropped} dropped, but freeing their space failed");
            return Err(e.at(what).or_hint("the next prune continues with that"));
        }
        compacted => or_warn(compacted, context),
    };
    let now = writer.manifest.clone();
    drop(writer);
    below.release(repository, Some(&now), context);
    Ok(decided.outcome(name, compaction))
}

/// What a compaction would do.
///
/// # Errors
/// If a kept snapshot depends on a missing file or a damaged table: the snapshots about to be dropped may be
/// the only restorable ones left.
fn plan_checked(
    repository: &Repository,
    manifest: &Manifest,
    dropped: &HashSet<Uuid>,
    when: CompactWhen,
    context: &Context,
) -> Result<Compaction> {
    let mut next = manifest.clone();
    let unneeded = drop_from_manifest(&mut next, dropped);
    let parents: HashSet<Uuid> = next.stored().iter().filter_map(|s| s.parent).collect();
    for tip in next.snapshots.iter().filter(|s| !parents.contains(&s.id)) {
        open_chain(repository, &next, tip.id)?;
    }
    compaction_of(repository, &next, &unneeded, when, context)
}

/// Fails if dropping them would free nothing, because what they depend on can only be merged, and there is no
/// space for that: they are worth more as snapshots.
fn refuse_for_nothing(dropped: &HashSet<Uuid>, plan: &Compaction) -> Result<()> {
    let is_nothing = plan.removed_files == 0 && plan.merged.is_empty();
    let Some(reason) = plan.no_space.first().filter(|_| is_nothing && !dropped.is_empty()) else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::LimitExceeded, reason.clone()).hint(
        "free some space there; without it, only snapshots that no other depends on, the newest of \
         a chain, can be freed",
    ))
}
