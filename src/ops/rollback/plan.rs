//! Where the live image may differ from what it is rolled back to.

use crate::base::error::Result;
use crate::base::events::{Context, WarningId};
use crate::chain::Chain;
use crate::image::{Disk, LiveImage};
use crate::ops::snapshot::plan::{PlanInput, plan_scan};
use crate::ops::snapshot::take::policy_for;
use crate::ops::snapshot::types::SnapshotRequest;
use crate::repo::Repository;
use crate::repo::files::open_chain;
use crate::repo::policy::SnapshotPolicy;
use crate::repo::session::Writer;
use crate::scan::Scope;
use crate::tracking::{HintKind, Track};
use crate::view::update::{DiffSource, Updated, dry_run, whole};
use uuid::Uuid;

/// The image's tracking policy, except that a rollback does not fail because no clone can be made.
pub(super) fn rollback_policy(repository: &Repository, name: &str) -> SnapshotPolicy {
    let policy = policy_for(repository, name, &SnapshotRequest::default());
    match policy.track {
        Track::Reflink => SnapshotPolicy { track: Track::Auto, ..policy },
        Track::Auto | Track::None => policy,
    }
}

/// From what the differences to `target` are found, if the image is known to equal `known`.
pub(super) fn plan_diff(
    repository: &Repository,
    writer: &Writer,
    known: Option<Uuid>,
    live: &LiveImage,
    target: &Chain,
    trust_hints: bool,
    context: &Context,
) -> Result<DiffPlan> {
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
    let target = target.clone();
    let scope = move || scan_plan.scope(Some(&target), bytes, turn);
    Ok(DiffPlan { hint: Some(hint), source: OwnedDiffSource::Scan(Box::new(scope)) })
}

/// How the differences are found.
pub(super) struct DiffPlan {
    /// Who tells where the image may differ; none if all is read, or nothing.
    pub(super) hint: Option<HintKind>,
    source: OwnedDiffSource,
}

enum OwnedDiffSource {
    Tables(Chain),
    Scan(Box<dyn Fn() -> Result<Scope>>),
}

impl DiffPlan {
    /// All is read.
    pub(super) fn whole() -> Self {
        Self { hint: None, source: OwnedDiffSource::Scan(Box::new(whole)) }
    }

    pub(super) fn source(&self) -> DiffSource<'_> {
        match &self.source {
            OwnedDiffSource::Tables(chain) => DiffSource::Tables(chain),
            OwnedDiffSource::Scan(scope) => DiffSource::Scan(scope.as_ref()),
        }
    }

    /// True if all of the image is read.
    pub(super) fn is_scan(&self) -> bool {
        matches!(self.source, OwnedDiffSource::Scan(_)) && self.hint.is_none()
    }
}

/// Performs a dry run. If the hints turn out to have missed a change, repeats it as a full scan.
pub(super) fn dry_run_all(
    disk: &Disk,
    target: &Chain,
    plan: DiffPlan,
    context: &Context,
) -> Result<(DiffPlan, Updated)> {
    let found = dry_run(disk.source(), target, &plan.source(), context)?;
    if found.missed.blocks == 0 {
        return Ok((plan, found));
    }
    let (place, blocks) = (disk.name(), found.missed.blocks);
    context.warn(
        WarningId::MissedChanges,
        format!(
            "{place}: {blocks} blocks that should have been unchanged had changed; reading the whole image"
        ),
    );
    let plan = DiffPlan::whole();
    let mut again = dry_run(disk.source(), target, &plan.source(), context)?;
    again.read_bytes += found.read_bytes;
    Ok((plan, again))
}
