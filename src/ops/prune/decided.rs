//! Which snapshots of an image go, and why the others stay.

use super::kept_with::KeptWith;
use super::types::Pruned;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, Verb, message};
use crate::repo::compaction::Compaction;
use crate::repo::head::Head;
use crate::repo::manifest::{Manifest, Snapshot};
use crate::repo::retention::{Decision, Rules, Times, decide};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::HashSet;
use uuid::Uuid;

/// Each snapshot with the reasons to keep it, and the time that counted.
pub(super) struct Decided {
    snapshots: Vec<(Snapshot, Decision)>,
    clock_in_doubt: bool,
}

impl Decided {
    pub fn dropped(&self) -> HashSet<Uuid> {
        let dropped = self.snapshots.iter().filter(|(_, decision)| decision.keep.is_empty());
        dropped.map(|(s, _)| s.id).collect()
    }

    /// Keeps what would go, if something keeps another one of its group.
    pub fn keep_groups(&mut self, manifest: &Manifest, others: &mut KeptWith<'_>) {
        for (snapshot, decision) in &mut self.snapshots {
            if decision.keep.is_empty() {
                decision.keep.extend(others.reason(manifest, snapshot));
            }
        }
    }

    pub fn outcome(self, name: &str, compaction: Compaction) -> Pruned {
        let (clock_in_doubt, snapshots) = (self.clock_in_doubt, self.snapshots);
        let wrong = snapshots.iter().filter(|(s, decision)| decision.time != s.time);
        let corrected = wrong.map(|(s, decision)| (s.number, decision.time)).collect();
        let decisions = snapshots.into_iter().map(|(s, decision)| (s, decision.keep)).collect();
        Pruned {
            name: name.into(),
            decisions,
            corrected,
            clock_in_doubt,
            compaction,
            requested: None,
        }
    }
}

/// Decides on all snapshots of an image by its own rules.
///
/// # Errors
/// `InvalidInput` if the rules keep nothing.
pub(super) fn decide_all(
    manifest: &Manifest,
    head: &Head,
    rules: &Rules,
    now: Timestamp,
) -> Result<Decided> {
    let times = Times::of(&manifest.snapshots, now);
    let decided = decide(rules, &manifest.snapshots, &times, &TimeZone::system());
    let keeps_some = decided.iter().any(|decision| !decision.keep.is_empty());
    if !keeps_some && !manifest.snapshots.is_empty() {
        let what = format!("these rules keep none of the snapshots of \"{}\"", manifest.name);
        return Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
            "add one such as ",
            Setting::KeepLast.to(1),
            ", or remove the image with ",
            Verb::Remove.of(&manifest.name),
        ]));
    }
    let intent = head.intent.map(|intent| (Some(intent.target), intent.saved));
    let reasons = |s: &Snapshot, mut keep: Vec<String>| {
        keep.extend(manifest.keeps(s));
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
    let clock_in_doubt = rules.use_time() && times.is_in_doubt;
    Ok(Decided { snapshots, clock_in_doubt })
}
