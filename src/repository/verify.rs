//! Verifying a repository: each file, each block, each image; and what damage means for which
//! snapshots.

use super::{At, Repository};
use crate::chain::{Chain, open_delta};
use crate::delta::Delta;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Manifest, Snapshot};
use crate::progress::Context;
use crate::verify::{find_damage, verify_all, verify_digests, verify_runs, verify_stored};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// What is to be verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyScope {
    /// All images.
    All,
    /// One image.
    Image(String),
    /// One snapshot, with all that it rests on.
    Snapshot(String, At),
}

/// Something that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The snapshot whose file it is: `NAME@N`.
    pub snapshot: String,
    /// What is wrong, and where.
    pub message: String,
    /// The snapshots that may need it: `NAME@N`, this one first.
    pub affects: Vec<String>,
}

/// The outcome of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Blocks decoded and compared with their digest; none in a quick verification.
    pub blocks: u64,
    /// Bytes of delta files read.
    pub stored_bytes: u64,
    /// What is damaged.
    pub damaged: Vec<Damage>,
}

impl Repository {
    /// Verifies stored bytes and, unless `quick`, every block and every image digest.
    ///
    /// # Errors
    /// Damage is no error here: it is in the outcome.
    pub fn verify(&self, scope: &VerifyScope, quick: bool, context: &Context) -> Result<Verified> {
        let mut verified = Verified::default();
        let names = match scope {
            VerifyScope::All => self.names()?,
            VerifyScope::Image(name) | VerifyScope::Snapshot(name, _) => vec![name.clone()],
        };
        for name in names {
            let reader = match self.read(&name, context) {
                Ok(reader) => reader,
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    let message = e.to_string();
                    let damage = Damage { snapshot: name, message, affects: Vec::new() };
                    verified.damaged.push(damage);
                    continue;
                }
                Err(e) => return Err(e),
            };
            let manifest = reader.manifest();
            let mut snapshots: Vec<&Snapshot> = match scope {
                VerifyScope::Snapshot(_, at) => manifest.lineage(reader.find(at)?.id)?,
                _ => manifest.stored(),
            };
            snapshots.sort_by_key(|s| s.number);
            let mut image = ImageCheck {
                repository: self,
                manifest,
                open: HashMap::new(),
                damaged: HashSet::new(),
            };
            let work = |s: &&Snapshot| {
                s.file_bytes + if quick { 0 } else { s.data_blocks * u64::from(s.block_bytes) }
            };
            context.progress().begin("verify", snapshots.iter().map(work).sum());
            let mut files = snapshots.iter();
            let outcome = files
                .try_for_each(|snapshot| image.check(snapshot, quick, &mut verified, context))
                .and_then(|()| match quick {
                    true => Ok(()),
                    false => image.check_digests(&snapshots, &mut verified, context),
                });
            context.progress().end();
            outcome?;
        }
        Ok(verified)
    }
}

struct ImageCheck<'a> {
    repository: &'a Repository,
    manifest: &'a Manifest,
    /// Files that could be opened.
    open: HashMap<Uuid, Arc<Delta>>,
    /// Snapshots whose own file is damaged.
    damaged: HashSet<Uuid>,
}

impl ImageCheck<'_> {
    fn check(
        &mut self,
        snapshot: &Snapshot,
        quick: bool,
        verified: &mut Verified,
        context: &Context,
    ) -> Result<()> {
        // A dropped one is looked at for those that rest on it.
        verified.snapshots += u64::from(!self.manifest.is_dropped(snapshot.id));
        let store = &self.repository.store;
        let delta = match open_delta(store, self.manifest, snapshot, &self.repository.caches) {
            Ok(delta) => Arc::new(delta),
            Err(e) => return self.found(snapshot, e, verified),
        };
        self.open.insert(snapshot.id, delta.clone());
        verified.stored_bytes += snapshot.file_bytes;
        let (mut is_sound, mut named) = (true, 0);
        let whole = if quick {
            verify_stored(&delta, context).map(|()| 0)
        } else {
            verify_all(&delta, context)
        };
        match whole {
            Ok(blocks) => verified.blocks += blocks,
            Err(e) if quick => self.found(snapshot, e, verified)?,
            Err(e) => {
                self.only_damage(e)?;
                (is_sound, named) = self.name_damage(snapshot, &delta, verified, context)?;
            }
        }
        if quick {
            return Ok(());
        }
        let end_of =
            |delta: &Arc<Delta>| delta.header().block_size.count(delta.footer().image_bytes);
        let parent_end = match snapshot.parent {
            None => None,
            Some(id) => match self.open.get(&id) {
                Some(parent) => Some(end_of(parent)),
                // That was reported with the parent.
                None => return Ok(()),
            },
        };
        match verify_runs(&delta, parent_end, context) {
            Err(e) if is_sound && named == 0 => self.found(snapshot, e, verified),
            Err(e) => self.only_damage(e),
            Ok(()) => Ok(()),
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
            let lineage = self.manifest.lineage(tip.id)?;
            let is_damaged = lineage.iter().any(|ancestor| self.damaged.contains(&ancestor.id));
            // What it lacks was reported, and nothing more can be said; but its sound ancestors are
            // looked at when it is their turn.
            if is_damaged || done.contains(&tip.id) {
                continue;
            }
            done.extend(lineage.iter().map(|s| s.id));
            let layers: Vec<_> = lineage.iter().filter_map(|s| self.open.get(&s.id)).collect();
            let sound = Chain::link(layers.into_iter().cloned().collect())
                .and_then(|chain| verify_digests(&chain, context));
            match sound {
                Err(e) => self.found(tip, e, verified)?,
                Ok(sound) => {
                    for (snapshot, _) in lineage.iter().zip(sound).filter(|(_, sound)| !sound) {
                        let place = self.open.get(&snapshot.id).map(|delta| delta.location());
                        let error = Error::corrupt("the image digest differs");
                        self.found(snapshot, error.at(place.unwrap_or_default()), verified)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells everything that is damaged in a file. Gives whether its stored bytes are sound, and how
    /// many blocks were named.
    fn name_damage(
        &mut self,
        snapshot: &Snapshot,
        delta: &Arc<Delta>,
        verified: &mut Verified,
        context: &Context,
    ) -> Result<(bool, usize)> {
        let stored = verify_stored(delta, context);
        let is_sound = stored.is_ok();
        if let Err(e) = stored {
            self.found(snapshot, e, verified)?;
        }
        let mut named = 0;
        match find_damage(delta, context) {
            Ok((blocks, findings)) => {
                verified.blocks += blocks;
                named = findings.len();
                findings.into_iter().try_for_each(|e| self.found(snapshot, e, verified))?;
            }
            Err(e) if is_sound => self.found(snapshot, e, verified)?,
            Err(e) => self.only_damage(e)?,
        }
        Ok((is_sound, named))
    }

    /// Passes on what is no damage: a stop, a device that fails.
    fn only_damage(&self, error: Error) -> Result<()> {
        match error.kind() {
            ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn found(&mut self, snapshot: &Snapshot, error: Error, verified: &mut Verified) -> Result<()> {
        if error.kind() == ErrorKind::Interrupted {
            return Err(error);
        }
        self.damaged.insert(snapshot.id);
        let mut affected = vec![snapshot.id];
        // Parents come before children in a manifest.
        for other in self.manifest.stored() {
            if other.parent.is_some_and(|parent| affected.contains(&parent)) {
                affected.push(other.id);
            }
        }
        // Those that are dropped affect nobody.
        let name = |id: &Uuid| {
            self.manifest.by_id(*id).map(|s| format!("{}@{}", self.manifest.name, s.number))
        };
        verified.damaged.push(Damage {
            snapshot: format!(
                "{}@{}{}",
                self.manifest.name,
                snapshot.number,
                if self.manifest.is_dropped(snapshot.id) { " (dropped)" } else { "" }
            ),
            message: error.to_string(),
            affects: affected.iter().filter_map(name).collect(),
        });
        Ok(())
    }
}
