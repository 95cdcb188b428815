//! The verbs that end the life of snapshots: prune, delete; and flatten, which frees one from its
//! ancestors.

use super::compact::{Compaction, Worth, drop_from};
use super::session::Writer;
use super::{At, Repository, reference};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::free_space::check_room;
use crate::base::progress::Context;
use crate::head::Head;
use crate::manifest::{Manifest, Snapshot};
use crate::retention::{Decision, Rules, Times, decide};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::HashSet;
use uuid::Uuid;

/// What is to be kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PruneRequest {
    /// Otherwise those in `repository.toml`.
    pub rules: Option<Rules>,
    /// Merge even where it frees little.
    pub compact: bool,
    /// Change nothing, only tell.
    pub dry_run: bool,
}

/// What became of the snapshots of an image, or would.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruned {
    /// Name of the image.
    pub name: String,
    /// Each snapshot, ascending by number, and why it is kept; those without a reason were dropped.
    pub decisions: Vec<(Snapshot, Vec<String>)>,
    /// Snapshots whose time does not fit to the others: number, and the time that counted.
    pub corrected: Vec<(u64, Timestamp)>,
    /// It is in doubt whether the clock is wrong now, or was when snapshots were taken: rules by time dropped
    /// nothing.
    pub clock_in_doubt: bool,
    /// What became of their room.
    pub compaction: Compaction,
}

/// A snapshot that was made a base.
#[derive(Debug, Clone, PartialEq)]
pub struct Flattened {
    /// What it was.
    pub before: Snapshot,
    /// And is now: the same, if it was a base already.
    pub after: Snapshot,
    /// Bytes of dropped ancestors that nothing rests on any more.
    pub freed_bytes: u64,
}

impl Repository {
    /// Drops the snapshots of an image that no rule keeps.
    ///
    /// # Errors
    /// `InvalidInput` without any rule, or if the rules keep nothing.
    pub fn prune(&self, name: &str, request: &PruneRequest, context: &Context) -> Result<Pruned> {
        let policy = self.policy(name)?;
        let rules = request.rules.clone().or(policy.rules).ok_or_else(|| {
            let what = format!("nothing says which snapshots of \"{name}\" to keep");
            Error::new(ErrorKind::InvalidInput, what)
                .hint("give rules such as --keep-daily 7, or write them into repository.toml")
        })?;
        let worth = worth(request.compact, policy.garbage);
        if request.dry_run {
            let reader = self.read(name, context)?;
            Self::refuse_damaged_head(name, reader.head_was_damaged)?;
            let decided = decide_all(reader.manifest(), reader.head(), &rules)?;
            let mut next = reader.manifest().clone();
            let unneeded = drop_from(&mut next, &decided.dropped());
            let compaction = self.compaction_of(&next, &unneeded, worth, context)?;
            return Ok(decided.outcome(name, compaction));
        }
        let mut writer = self.write(name, context)?;
        Self::refuse_damaged_head(name, writer.head_was_damaged)?;
        let decided = decide_all(&writer.manifest, &writer.head, &rules)?;
        let ids = decided.dropped();
        self.check_kept(&writer.manifest, &ids, worth, context).map_err(|e| {
            if e.kind() == ErrorKind::Interrupted { e } else { e.at("nothing was dropped") }
        })?;
        let unneeded = self.drop_snapshots(&mut writer, &ids)?;
        let dropped = ids.len();
        let compaction = self.compact(&mut writer, &unneeded, worth, context).map_err(|e| {
            e.at(format!("{name}: {dropped} dropped, but getting their room back failed"))
                .or_hint("the next prune goes on with that")
        })?;
        Ok(decided.outcome(name, compaction))
    }

    /// Fails if a file is missing, or a table damaged, on which something rests that is to be kept: those
    /// that are to be dropped may be all that is left.
    fn check_kept(
        &self,
        manifest: &Manifest,
        dropped: &HashSet<Uuid>,
        worth: Worth,
        context: &Context,
    ) -> Result<()> {
        let mut next = manifest.clone();
        drop_from(&mut next, dropped);
        let parents: HashSet<Uuid> = next.stored().iter().filter_map(|s| s.parent).collect();
        for tip in next.snapshots.iter().filter(|s| !parents.contains(&s.id)) {
            self.open_chain(&next, tip.id)?;
        }
        self.compaction_of(&next, &[], worth, context).map(|_| ())
    }

    /// Deletes a snapshot. What rests on it stays as it is.
    pub fn delete(
        &self,
        name: &str,
        at: &At,
        compact: bool,
        context: &Context,
    ) -> Result<(Snapshot, Compaction)> {
        let mut writer = self.write(name, context)?;
        Self::refuse_damaged_head(name, writer.head_was_damaged)?;
        let snapshot = reference::find(&writer.manifest, &writer.head, at)?.clone();
        if writer.head.intent.is_some_and(|intent| intent.target == snapshot.id) {
            let place = format!("{name}@{}", snapshot.number);
            let what = format!("a rollback of \"{name}\" to {place} was interrupted");
            return Err(Error::new(ErrorKind::Mismatch, what).hint(format!(
                "finish it with \"imgsnap rollback {name} --to {place}\", or roll back to another \
                 snapshot, before this one is deleted"
            )));
        }
        // A policy that cannot be read is no reason to keep what somebody wants to be gone.
        let garbage = self.policy(name).unwrap_or_default().garbage;
        let unneeded = self.drop_snapshots(&mut writer, &HashSet::from([snapshot.id]))?;
        let compaction = self.settle(&mut writer, &unneeded, worth(compact, garbage), context)?;
        Ok((snapshot, compaction))
    }

    /// Compacts after a commit that stands: what fails now only leaves something for the next writer.
    fn settle(
        &self,
        writer: &mut Writer,
        unneeded: &[Snapshot],
        worth: Worth,
        context: &Context,
    ) -> Result<Compaction> {
        match self.compact(writer, unneeded, worth, context) {
            Err(e) if e.kind() != ErrorKind::Interrupted => {
                context.progress().warn(&format!("{e}; the next prune tries again"));
                Ok(Compaction::default())
            }
            other => other,
        }
    }

    /// Makes a snapshot a base: a synthetic full, made from the repository without a look at the image.
    /// Its ancestors stay as they are.
    pub fn flatten(&self, name: &str, at: &At, context: &Context) -> Result<Flattened> {
        let mut writer = self.write(name, context)?;
        let before = reference::find(&writer.manifest, &writer.head, at)?.clone();
        if before.parent.is_none() && !before.is_by_reference() {
            return Ok(Flattened { after: before.clone(), before, freed_bytes: 0 });
        }
        let lineage = writer.manifest.lineage(before.id)?;
        // Not more than all that it rests on, and what is in a base image.
        let elsewhere = lineage.iter().filter(|s| s.is_by_reference());
        let elsewhere: u64 =
            elsewhere.map(|s| s.data_blocks.saturating_mul(s.block_bytes.into())).sum();
        let most = lineage.iter().map(|s| s.file_bytes).sum::<u64>() + elsewhere;
        if self.store.room().is_some_and(|room| room < most) {
            let layers = self.open_chain(&writer.manifest, before.id)?.layers().clone();
            let needed = crate::merge::layer_use(&layers, context)?;
            let needed = needed.iter().map(|of| of.live_bytes).sum::<u64>() + elsewhere + (1 << 20);
            check_room(self.store.room(), needed, &self.location(), "flattening")?;
        }
        let (after, unneeded) =
            self.rewrite(&mut writer, before.id, None, &HashSet::new(), context)?;
        writer.stop_reading();
        if let Err(error) = self.reap(&writer.manifest, context) {
            context.progress().warn(&format!("{error}; the next snapshot tries again"));
        }
        let freed_bytes = unneeded.iter().map(|s| s.file_bytes).sum::<u64>() + before.file_bytes;
        Ok(Flattened { before, after, freed_bytes })
    }
}

fn worth(compact: bool, garbage: f64) -> Worth {
    if compact { Worth::Always } else { Worth::Share(garbage) }
}

/// Each snapshot with the reasons to keep it, and the time that counted.
struct Decided {
    snapshots: Vec<(Snapshot, Decision)>,
    clock_in_doubt: bool,
}

impl Decided {
    fn dropped(&self) -> HashSet<Uuid> {
        let dropped = self.snapshots.iter().filter(|(_, decision)| decision.keep.is_empty());
        dropped.map(|(s, _)| s.id).collect()
    }

    fn outcome(self, name: &str, compaction: Compaction) -> Pruned {
        let (clock_in_doubt, snapshots) = (self.clock_in_doubt, self.snapshots);
        let wrong = snapshots.iter().filter(|(s, decision)| decision.time != s.time);
        let corrected = wrong.map(|(s, decision)| (s.number, decision.time)).collect();
        let decisions = snapshots.into_iter().map(|(s, decision)| (s, decision.keep)).collect();
        Pruned { name: name.into(), decisions, corrected, clock_in_doubt, compaction }
    }
}

fn decide_all(manifest: &Manifest, head: &Head, rules: &Rules) -> Result<Decided> {
    let times = Times::of(&manifest.snapshots, Timestamp::now());
    let decided = decide(rules, &manifest.snapshots, &times, &TimeZone::system());
    let keeps_some = decided.iter().any(|decision| !decision.keep.is_empty());
    if !keeps_some && !manifest.snapshots.is_empty() {
        let what = format!("these rules keep none of the snapshots of \"{}\"", manifest.name);
        return Err(Error::new(ErrorKind::InvalidInput, what).hint(format!(
            "add one such as --keep-last 1, or remove the image with \"imgsnap forget {}\"",
            manifest.name
        )));
    }
    let intent = head.intent.map(|intent| (Some(intent.target), intent.saved));
    let reasons = |s: &Snapshot, mut keep: Vec<String>| {
        // The next snapshot is taken against it, and is small because of that.
        keep.extend((head.snapshot == Some(s.id)).then(|| "head".to_owned()));
        let is_needed = intent.is_some_and(|(to, saved)| to == Some(s.id) || saved == Some(s.id));
        keep.extend(is_needed.then(|| "interrupted rollback".to_owned()));
        keep
    };
    let snapshots = manifest.snapshots.iter().cloned().zip(decided);
    let snapshots = snapshots
        .map(|(s, of)| {
            let keep = reasons(&s, of.keep);
            (s, Decision { keep, ..of })
        })
        .collect();
    let clock_in_doubt = rules.ask_for_time() && times.is_in_doubt;
    Ok(Decided { snapshots, clock_in_doubt })
}
