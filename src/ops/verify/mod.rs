//! Verifying a repository: each file, each block, each image; and what damage means for which
//! snapshots.

pub mod engine;
mod known;
mod others;
pub mod proved;
mod second_look;
pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::units::{BlockRange, NamedBlocks};
use crate::delta::Delta;
use crate::ops::verify::engine::{
    LostBlocks, Part, find_damage, losses_with, verify_all, verify_digests, verify_runs,
    verify_stored,
};
use crate::ops::verify::known::{Known, Lost, linked};
use crate::ops::verify::others::{is_of_image, tell_image, tell_unpinned};
use crate::ops::verify::proved::Proved;
use crate::ops::verify::types::{Damage, DamageKind, Loss, Unchecked, Verified, VerifyScope};
use crate::repo::Repository;
use crate::repo::files::{is_named_now, open_delta, open_parent};
use crate::repo::manifest::{Manifest, Snapshot};
use crate::repo::reference::At;
use crate::repo::session::read;
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// Verifies stored bytes and, unless `quick`, every block and every image digest.
///
/// # Errors
/// Damage is no error here: it is in the outcome.
pub fn run(
    repository: &Repository,
    scope: &VerifyScope,
    quick: bool,
    context: &Context,
) -> Result<Verified> {
    verify(repository, scope, quick, &Proved::default(), context)
}

/// Verifies all of it but for the blocks of files that are proved already.
///
/// # Errors
/// As of [`run`].
pub(crate) fn run_beyond(
    repository: &Repository,
    scope: &VerifyScope,
    proved: &Proved,
    context: &Context,
) -> Result<Verified> {
    verify(repository, scope, false, proved, context)
}

fn verify(
    repository: &Repository,
    scope: &VerifyScope,
    quick: bool,
    proved: &Proved,
    context: &Context,
) -> Result<Verified> {
    // What is proved is what is stored, and not what this host has kept of it.
    repository.store.read_anew();
    let mut verified = Verified::default();
    let names = match scope {
        VerifyScope::All => repository.names()?,
        VerifyScope::Image(name) | VerifyScope::Snapshot(name, _) => vec![name.clone()],
    };
    let mut known = Known::default();
    for name in names {
        let wanted = match scope {
            VerifyScope::Snapshot(_, at) => Wanted::At(at),
            _ => Wanted::All,
        };
        let is_one_of_all = *scope == VerifyScope::All;
        let verify = |known: &mut Known, verified: &mut Verified| {
            let mut run = Run { repository, quick, is_one_of_all, known, proved, context };
            run.verify_image(&name, wanted, verified)
        };
        second_look::verified(repository, &name, &mut known, &mut verified, verify, context)?;
    }
    Ok(verified)
}

/// Which snapshots of an image are to be verified.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    All,
    /// With what it depends on.
    At(&'a At),
    Id(Uuid),
}

struct Run<'a> {
    repository: &'a Repository,
    quick: bool,
    is_one_of_all: bool,
    known: &'a mut Known,
    proved: &'a Proved,
    context: &'a Context,
}

impl Run<'_> {
    /// Verifies snapshots of an image, and those of other images that they depend on first.
    fn verify_image(
        &mut self,
        name: &str,
        wanted: Wanted<'_>,
        verified: &mut Verified,
    ) -> Result<()> {
        let (repository, quick, context) = (self.repository, self.quick, self.context);
        let is_asked_for = !self.is_one_of_all && !matches!(wanted, Wanted::Id(_));
        let reader = match read(repository, name, context) {
            Ok(reader) => reader,
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tell_image(name, e, verified);
                return Ok(());
            }
            // What depends on it was read before, and keeps it.
            Err(e) if matches!(wanted, Wanted::Id(_)) && e.kind() == ErrorKind::NotFound => {
                let what = format!("the image \"{name}\", on which others depend, is missing");
                let hint = "put its folder back from a copy";
                tell_image(name, Error::corrupt(what).hint(hint), verified);
                return Ok(());
            }
            // It has just been removed.
            Err(e) if !is_asked_for && e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            // The others can be checked all the same.
            Err(e) if !is_asked_for && e.is_unread() => {
                let snapshot = name.to_owned();
                verified.unchecked.push(Unchecked { snapshot, message: e.into() });
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let manifest = reader.manifest();
        let mut snapshots: Vec<&Snapshot> = match wanted {
            Wanted::All => manifest.stored(),
            Wanted::At(at) => manifest.lineage(reader.find(at)?.id)?,
            Wanted::Id(id) if manifest.stored().iter().any(|s| s.id == id) => {
                manifest.lineage(id)?
            }
            Wanted::Id(_) => Vec::new(),
        };
        snapshots.retain(|s| !self.known.parents.contains_key(&s.id));
        snapshots.sort_by_key(|s| s.number);
        self.known.parents.extend(snapshots.iter().map(|s| (s.id, s.parent_in_footer())));
        for of in snapshots.iter().filter_map(|s| s.base_of.as_ref()) {
            if !self.known.parents.contains_key(&of.snapshot) {
                self.verify_image(&of.name, Wanted::Id(of.snapshot), verified)?;
            }
        }
        for snapshot in &snapshots {
            tell_unpinned(&reader, snapshot, verified);
        }
        let work = |s: &&Snapshot| {
            s.file_bytes + if quick { 0 } else { s.data_blocks * u64::from(s.block_bytes) }
        };
        let proved = self.proved;
        let mut image = ImageCheck { repository, manifest, known: self.known, proved };
        let phase = context.begin(Phase::Verify, snapshots.iter().map(work).sum());
        let mut files = snapshots.iter();
        let outcome = files
            .try_for_each(|snapshot| image.check(snapshot, quick, verified, context))
            .and_then(|()| match quick {
                true => Ok(()),
                false => image.check_digests(&snapshots, verified, context),
            })
            .and_then(|()| match quick {
                true => Ok(()),
                false => image.report_losses(&snapshots, verified, context),
            });
        drop(phase);
        outcome?;
        match matches!(wanted, Wanted::Id(_))
            || manifest.snapshots.iter().any(|s| !s.pins.is_empty())
        {
            true => self.known.readers.push(Arc::new(reader)),
            false => self.known.forget(manifest),
        }
        Ok(())
    }
}

struct ImageCheck<'a> {
    repository: &'a Repository,
    manifest: &'a Manifest,
    known: &'a mut Known,
    proved: &'a Proved,
}

impl ImageCheck<'_> {
    fn check(
        &mut self,
        snapshot: &Snapshot,
        quick: bool,
        verified: &mut Verified,
        context: &Context,
    ) -> Result<()> {
        self.check_attachments(snapshot, verified);
        // A dropped one is examined for those that depend on it.
        verified.snapshots += u64::from(!self.manifest.is_dropped(snapshot.id));
        if let Some(of) = snapshot.base_of.as_ref().filter(|of| !self.is_open(of.snapshot))
            && let Err(e) = open_parent(self.repository, self.manifest, snapshot)
        {
            // What is wrong with the other image as a whole was told.
            match verified.damaged.iter_mut().find(|d| is_of_image(d, &of.name)) {
                Some(told) if e.is_damage() => {
                    self.known.damaged.insert(snapshot.id, Lost::All);
                    if !told.affects.contains(&self.manifest.name) {
                        told.affects.push(self.manifest.name.clone());
                    }
                }
                _ => self.found(snapshot, DamageKind::File, e, Lost::All, verified)?,
            }
        }
        let delta = match open_delta(self.repository, self.manifest, snapshot) {
            Ok(delta) => Arc::new(delta),
            Err(e) => return self.found(snapshot, DamageKind::File, e, Lost::All, verified),
        };
        self.known.open.insert(snapshot.id, delta.clone());
        verified.stored_bytes += snapshot.file_bytes;
        let whole = match self.proved.blocks_of(&self.manifest.name, snapshot) {
            Some(blocks) => Ok(blocks),
            None if quick => verify_stored(&delta, context).map(|()| 0),
            None => verify_all(&delta, context),
        };
        match whole {
            Ok(blocks) => verified.blocks = verified.blocks.saturating_add(blocks),
            // What that means is only known when all blocks are examined.
            Err(e) if quick => {
                return self.found(snapshot, DamageKind::Record, e, Lost::All, verified);
            }
            Err(e) => self.name_damage(snapshot, &delta, e, verified, context)?,
        }
        if quick
            || self.known.damaged.contains_key(&snapshot.id)
            || self.known.unchecked.contains(&snapshot.id)
        {
            return Ok(());
        }
        let end_of =
            |delta: &Arc<Delta>| delta.header().block_size.count(delta.footer().image_bytes);
        let parent_end = match snapshot.parent_in_footer() {
            None => None,
            Some(id) => match self.known.open.get(&id) {
                Some(parent) => Some(end_of(parent)),
                // That was reported with the parent.
                None => return Ok(()),
            },
        };
        match verify_runs(&delta, parent_end, context) {
            Err(e) => self.found(snapshot, DamageKind::ImageDigest, e, Lost::All, verified),
            Ok(()) => Ok(()),
        }
    }

    fn is_open(&self, id: Uuid) -> bool {
        self.known.open.contains_key(&id)
    }

    fn check_attachments(&self, snapshot: &Snapshot, verified: &mut Verified) {
        let place = self.manifest.place_of(snapshot);
        for attachment in &snapshot.attachments {
            let read = attachment.read(self.repository.store.as_ref(), &self.manifest.name);
            let Err(error) = read else {
                verified.stored_bytes += attachment.bytes;
                continue;
            };
            let is_missing = error.kind() == ErrorKind::NotFound;
            let is_named = || is_named_now(self.repository, self.manifest, &attachment.object);
            let snapshot = place.clone();
            match is_missing && is_named() || error.is_damage() {
                true => verified.damaged.push(Damage {
                    kind: DamageKind::Attachment,
                    snapshot,
                    message: error.into(),
                    affects: vec![place.clone()],
                }),
                false => {
                    verified.unchecked.push(Unchecked { snapshot, message: error.into() });
                }
            }
        }
    }

    /// Checks the image digest of each snapshot, chain by chain, the longest first.
    fn check_digests(
        &mut self,
        snapshots: &[&Snapshot],
        verified: &mut Verified,
        context: &Context,
    ) -> Result<()> {
        let mut done: HashSet<Uuid> = HashSet::new();
        // Parents come before children.
        for tip in snapshots.iter().rev() {
            if done.contains(&tip.id) {
                continue;
            }
            let own = self.manifest.lineage(tip.id)?;
            let lineage = self.known.lineage(tip.id);
            // Damaged blocks are no matter: their digests are in the tables.
            let is_damaged = lineage.iter().any(|id| match self.known.damaged.get(id) {
                Some(Lost::Some(lost)) => !lost.pages.is_empty(),
                Some(Lost::All) => true,
                None => self.known.unchecked.contains(id) || !self.is_open(*id),
            });
            // What it lacks was reported, and nothing more can be said; but its sound ancestors are
            // checked when it is their turn.
            if is_damaged {
                continue;
            }
            done.extend(own.iter().map(|s| s.id));
            let layers = lineage.iter().filter_map(|id| self.known.open.get(id).cloned());
            let sound = linked(layers.collect()).and_then(|chain| verify_digests(&chain, context));
            match sound {
                Err(e) => {
                    self.found(tip, DamageKind::ImageDigest, e, Lost::All, verified)?;
                }
                Ok(sound) => {
                    for (snapshot, _) in own.iter().zip(sound).filter(|(_, sound)| !sound) {
                        let place = self.known.open.get(&snapshot.id).map(|delta| delta.location());
                        let error = Error::corrupt("image digest mismatch");
                        let error = error.at(place.unwrap_or_default());
                        let kind = DamageKind::ImageDigest;
                        self.found(snapshot, kind, error, Lost::All, verified)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells everything that is damaged in a file in which something is: `first`.
    fn name_damage(
        &mut self,
        snapshot: &Snapshot,
        delta: &Arc<Delta>,
        first: Error,
        verified: &mut Verified,
        context: &Context,
    ) -> Result<()> {
        if first.kind() == ErrorKind::Interrupted {
            return Err(first);
        }
        let damaged = find_damage(delta, context)?;
        verified.blocks += damaged.blocks;
        if let Some(error) = damaged.unchecked {
            self.pass(snapshot, &error, verified);
        } else if !first.is_damage() && damaged.findings.is_empty() {
            self.pass(snapshot, &first, verified);
            return Ok(());
        }
        let lost = Lost::Some(damaged.lost);
        let size = delta.base_image().map(|image| image.check_size(delta.footer().image_bytes));
        if let Some(Err(error)) = size
            && error.is_damage()
        {
            self.found(snapshot, DamageKind::BaseImage, error, lost.clone(), verified)?;
        }
        if damaged.findings.is_empty() {
            if self.known.unchecked.contains(&snapshot.id) {
                return Ok(());
            }
            // Every block can be restored, but other stored bytes are damaged.
            let first = verify_stored(delta, context).err().unwrap_or(first);
            return self.found(snapshot, DamageKind::Record, first, lost, verified);
        }
        damaged.findings.into_iter().try_for_each(|finding| {
            let kind = match finding.part {
                Part::Table => DamageKind::Table,
                Part::Blocks => DamageKind::Blocks,
                Part::BaseImage => DamageKind::BaseImage,
            };
            self.found(snapshot, kind, finding.error, lost.clone(), verified)
        })
    }

    /// What the damage that was found means for each snapshot: a block is lost if its newest owner has
    /// lost it.
    fn report_losses(
        &mut self,
        snapshots: &[&Snapshot],
        verified: &mut Verified,
        context: &Context,
    ) -> Result<()> {
        if self.known.damaged.is_empty() {
            return Ok(());
        }
        // Of these nothing can be said.
        let Known { unchecked, unknown, losses, damaged, open, .. } = &mut *self.known;
        unknown.extend(unchecked.iter());
        // Parents come before children.
        for snapshot in snapshots {
            let parent = snapshot.parent_in_footer();
            if parent.is_some_and(|parent| unknown.contains(&parent)) {
                unknown.insert(snapshot.id);
            }
            let inherited = parent.and_then(|id| losses.get(&id));
            let own = damaged.get(&snapshot.id);
            let lost = match (inherited, own, open.get(&snapshot.id)) {
                (None, None, _) => Lost::Some(LostBlocks::default()),
                (Some(Lost::All), ..) | (_, Some(Lost::All), _) => Lost::All,
                (.., None) if unknown.contains(&snapshot.id) => Lost::Some(LostBlocks::default()),
                (.., None) => Lost::All,
                (inherited, own, Some(delta)) => {
                    let of = |lost: Option<&Lost>| match lost {
                        Some(Lost::Some(blocks)) => blocks.clone(),
                        _ => LostBlocks::default(),
                    };
                    Lost::Some(losses_with(delta, &of(inherited), &of(own), context)?)
                }
            };
            losses.insert(snapshot.id, lost.clone());
            if self.manifest.is_dropped(snapshot.id) {
                continue;
            }
            let name = self.manifest.place_of(snapshot);
            let geometry = snapshot.geometry()?;
            let blocks = match lost {
                Lost::All => None,
                Lost::Some(lost) => {
                    // A table that is lost may reach beyond the end.
                    let inside = |range: BlockRange| {
                        BlockRange::between(range.first, range.end().min(geometry.block_count()))
                    };
                    let mut named = NamedBlocks::default();
                    lost.all().into_iter().map(inside).for_each(|range| named.add(range));
                    Some(named)
                }
            };
            if blocks.as_ref().is_some_and(NamedBlocks::is_empty) {
                verified.whole.extend((!unknown.contains(&snapshot.id)).then_some(name));
            } else {
                verified.lost.push(Loss { snapshot: name, geometry, blocks });
            }
        }
        Ok(())
    }

    /// Not all of the file of a snapshot could be checked.
    fn pass(&mut self, snapshot: &Snapshot, error: &Error, verified: &mut Verified) {
        if self.known.unchecked.insert(snapshot.id) {
            let name = self.manifest.place_of(snapshot);
            verified.unchecked.push(Unchecked { snapshot: name, message: error.into() });
        }
    }

    fn found(
        &mut self,
        snapshot: &Snapshot,
        kind: DamageKind,
        error: Error,
        lost: Lost,
        verified: &mut Verified,
    ) -> Result<()> {
        if error.kind() == ErrorKind::Interrupted {
            return Err(error);
        }
        if !error.is_damage() {
            self.pass(snapshot, &error, verified);
            return Ok(());
        }
        let known = self.known.damaged.entry(snapshot.id).or_insert(lost.clone());
        if !matches!(known, Lost::All) {
            *known = lost;
        }
        let mut affected = vec![snapshot.id];
        // Parents come before children in a manifest.
        for other in self.manifest.stored() {
            if other.parent.is_some_and(|parent| affected.contains(&parent)) {
                affected.push(other.id);
            }
        }
        // Those that are dropped affect nobody.
        let name = |id: &Uuid| self.manifest.by_id(*id).map(|s| self.manifest.place_of(s));
        let pinned = affected.iter().filter_map(|id| self.manifest.by_id(*id));
        let mut others: Vec<String> =
            pinned.flat_map(|s| &s.pins).map(|pin| pin.name.clone()).collect();
        others.dedup();
        verified.damaged.push(Damage {
            kind,
            snapshot: format!(
                "{}@{}{}",
                self.manifest.name,
                snapshot.number,
                if self.manifest.is_dropped(snapshot.id) { " (dropped)" } else { "" }
            ),
            message: error.into(),
            affects: affected.iter().filter_map(name).chain(others).collect(),
        });
        Ok(())
    }
}
