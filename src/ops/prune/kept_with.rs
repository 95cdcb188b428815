//! What keeps one snapshot of a group keeps all of it.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::base::message::message;
use crate::repo::Repository;
use crate::repo::group::{Images, Member, MemberState};
use crate::repo::manifest::{Manifest, Snapshot};
use crate::repo::retention::{Rules, Times, decide};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// What keeps snapshots of other images, by the rules of the request, or those of each.
pub(super) struct KeptWith<'a> {
    repository: &'a Repository,
    context: &'a Context,
    rules: Option<&'a Rules>,
    now: Timestamp,
    images: Images<'a>,
    /// Of each image that was asked for, the snapshots that something keeps.
    kept: HashMap<Uuid, HashSet<Uuid>>,
}

impl<'a> KeptWith<'a> {
    pub fn of(
        repository: &'a Repository,
        rules: Option<&'a Rules>,
        now: Timestamp,
        context: &'a Context,
    ) -> Self {
        let images = Images::of(repository, context);
        Self { repository, context, rules, now, images, kept: HashMap::new() }
    }

    /// Why a snapshot stays that nothing else keeps; none if nothing keeps the others of its group either.
    pub fn reason(&mut self, own: &Manifest, snapshot: &Snapshot) -> Option<String> {
        let group = self.images.members_of(own, snapshot)?;
        let others = group.members.iter().filter(|member| member.image != own.image_id);
        let mut reasons = others.filter_map(|member| match member.state {
            MemberState::Listed(_) => self.is_kept(member).then(|| member.place()),
            // It may be protected. What was dropped does not come back.
            MemberState::Unreadable => Some(format!("{}, which cannot be read", member.name)),
            _ => None,
        });
        reasons.next().map(|what| format!("kept with {what}"))
    }

    fn is_kept(&mut self, member: &Member) -> bool {
        if let Some(kept) = self.kept.get(&member.image) {
            return kept.contains(&member.snapshot);
        }
        let Some(image) = self.images.known(member.image) else { return false };
        let kept = self.kept_in(image).unwrap_or_else(|e| {
            self.context
                .note(message![e, format!("; what is kept of \"{}\" is not known", image.name)]);
            image.snapshots.iter().map(|s| s.id).collect()
        });
        let is_kept = kept.contains(&member.snapshot);
        self.kept.insert(member.image, kept);
        is_kept
    }

    /// What something keeps in an image, but for groups.
    fn kept_in(&self, image: &Manifest) -> Result<HashSet<Uuid>> {
        let rules = match self.rules {
            Some(rules) => Some(rules.clone()),
            None => self.repository.policy(&image.name)?.rules,
        };
        let snapshots = &image.snapshots;
        let times = Times::of(snapshots, self.now);
        let by_rules = rules.map(|rules| decide(&rules, snapshots, &times, &TimeZone::system()));
        let by_rules = by_rules.unwrap_or_default().into_iter().zip(snapshots);
        let by_rules = by_rules.filter(|(of, _)| !of.keep.is_empty()).map(|(_, s)| s.id);
        let rollback = image.rollback.as_ref();
        let is_needed = |s: &&Snapshot| {
            s.label.is_some()
                || image.keeps(s).is_some()
                || rollback.is_some_and(|r| r.target == s.id || r.saved == Some(s.id))
        };
        Ok(snapshots.iter().filter(is_needed).map(|s| s.id).chain(by_rules).collect())
    }
}
