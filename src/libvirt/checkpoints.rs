//! Checkpoints: since which snapshot the bitmaps of a domain record.
//!
//! Each of ours has in its name the snapshot, or the group of snapshots, that was taken when it was made, and
//! the image of the first disk. libvirt keeps them apart from the bitmaps, which are in the qcow2 files: a
//! domain that was undefined and defined again has the bitmaps, and no checkpoint; then it is told of it
//! again. All bitmaps of a disk record until they are removed, so each tells what changed from its snapshot
//! until now, whatever became of the others.

use super::definition::{Definition, DomainDisk, child, escaped};
use super::domain::{Domain, DomainState};
use super::names;
use crate::base::error::{Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::image::qemu::PrivateFolder;
use roxmltree::Document;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// So many of the last snapshots are tried where libvirt has no checkpoint of ours.
const ADOPTED: usize = 3;

/// The snapshot since which a bitmap of a disk tells, and the checkpoint; otherwise why there is none, if
/// that is worth a word.
pub(super) type Since = Result<(Uuid, String), Option<String>>;

/// The snapshots of a disk that can be relied on.
#[derive(Debug, Clone)]
pub struct KnownSnapshot {
    /// The snapshot.
    pub snapshot: Uuid,
    /// What the checkpoint is called that was made with it.
    pub checkpoint: String,
}

impl KnownSnapshot {
    /// One that was taken with others or alone: `image` is that of the first disk, `id` of the group or of
    /// the snapshot itself.
    pub fn new(snapshot: Uuid, image: Uuid, id: Uuid) -> Self {
        Self { snapshot, checkpoint: names::checkpoint(image, id) }
    }
}

/// How the next snapshot of a disk will find what changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointState {
    /// Otherwise: its format has no checkpoints, it is shut off, or has no snapshots.
    NotNeeded,
    /// By a checkpoint.
    Sound,
    /// It will read all of it: why.
    Missing(String),
}

impl Domain {
    /// The state of the checkpoint of a disk of which there are snapshots.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn checkpoint_of(
        &self,
        disk: &DomainDisk,
        known: &[KnownSnapshot],
        context: &Context,
    ) -> Result<CheckpointState> {
        let present = self.checkpoints(context)?.into_iter().collect();
        let source_at = |_| disk.sources.first().cloned();
        let mut checked = BTreeMap::new();
        Ok(match self.newest_since(disk, known, &source_at, &present, &mut checked, context) {
            Ok(_) => CheckpointState::Sound,
            Err(why) => CheckpointState::Missing(why.unwrap_or_default()),
        })
    }

    /// The names of its checkpoints, whoever made them.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn checkpoints(&self, context: &Context) -> Result<Vec<String>> {
        let said = self.virsh.ask(&["checkpoint-list", &self.uuid, "--name"], context)?;
        Ok(said.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect())
    }

    /// The disks of which a checkpoint has a bitmap, and what each was read from then, as far as that is
    /// known.
    ///
    /// # Errors
    /// If a bitmap is missing, or not complete.
    fn disks_of(&self, checkpoint: &str, context: &Context) -> Result<Bitmaps> {
        // The sizes are told only if each bitmap is there, and records.
        let arguments = ["checkpoint-dumpxml", &self.uuid, checkpoint, "--size"];
        Ok(bitmaps(&self.virsh.ask(&arguments, context)?))
    }

    /// The newest snapshot of a disk since which a bitmap of it tells what changed, and the checkpoint.
    /// `present` are the checkpoints of the domain. `source_at` tells what the disk was read from at a
    /// snapshot, where libvirt does not know that any more: the bitmaps of all disks of a checkpoint have one
    /// name, and that of another disk says nothing of this one.
    pub(super) fn newest_since(
        &self,
        disk: &DomainDisk,
        known: &[KnownSnapshot],
        source_at: &dyn Fn(Uuid) -> Option<String>,
        present: &BTreeSet<String>,
        checked: &mut BTreeMap<String, Result<Bitmaps>>,
        context: &Context,
    ) -> Since {
        if known.is_empty() {
            return Err(None);
        }
        let mut why = None;
        for snapshot in known.iter().filter(|known| present.contains(&known.checkpoint)) {
            let name = &snapshot.checkpoint;
            let disks = checked.entry(name.clone()).or_insert_with(|| self.disks_of(name, context));
            match disks {
                Ok(disks) => {
                    let Some(source) = disks.get(&disk.target) else { continue };
                    let source = source.clone().or_else(|| source_at(snapshot.snapshot));
                    if source.is_some_and(|source| disk.sources.contains(&source)) {
                        return Ok((snapshot.snapshot, snapshot.checkpoint.clone()));
                    }
                    why.get_or_insert_with(|| "its checkpoint belongs to a different image".into());
                }
                Err(error) => {
                    why.get_or_insert_with(|| {
                        format!("its checkpoint is broken: {}", error.without_advice())
                    });
                }
            }
        }
        Err(Some(why.unwrap_or_else(|| "it has no checkpoint of a known snapshot".into())))
    }

    /// Tells libvirt again of the checkpoint of one of the last snapshots of a disk, if its bitmap is there:
    /// of all disks, or of this one alone.
    pub(super) fn adopt(
        &self,
        all: &[&str],
        target: &str,
        known: &[KnownSnapshot],
        folder: &PrivateFolder,
        context: &Context,
    ) -> Option<String> {
        for KnownSnapshot { checkpoint, .. } in known.iter().take(ADOPTED) {
            let alone = [target];
            let mut tries = vec![all];
            tries.extend((all != alone.as_slice()).then_some(alone.as_slice()));
            for targets in tries {
                let disks: String =
                    targets.iter().map(|target| adopted(target, checkpoint)).collect();
                let xml = format!(
                    "<domaincheckpoint><name>{checkpoint}</name><creationTime>0</creationTime>\
                     <disks>{disks}</disks></domaincheckpoint>"
                );
                let file = folder.file("adopted.xml", xml.as_bytes()).ok()?;
                let mut arguments = vec!["checkpoint-create", &self.uuid, file.to_str()?];
                arguments.extend(["--redefine", "--redefine-validate"]);
                if self.virsh.change(&arguments).is_ok() {
                    context.note(format!("{}: its checkpoint was found again", self.uri()));
                    return Some(checkpoint.clone());
                }
            }
        }
        None
    }

    /// Removes our checkpoints that are of no more use: all of these images but `kept`, as far as they have
    /// bitmaps of these disks alone. What cannot be removed is a warning; the next run does it.
    pub(super) fn prune_checkpoints(
        &self,
        images: &[Uuid],
        disks: &[String],
        kept: &str,
        context: &Context,
    ) {
        let pruned = self.checkpoints(&Context::silent()).map(|all| {
            let is_ours = |name: &String| names::id_of_checkpoint(name, images).is_some();
            for name in all.into_iter().filter(|name| is_ours(name) && name != kept) {
                let arguments = ["checkpoint-dumpxml", &self.uuid, &name, "--no-domain"];
                let others = self.virsh.change(&arguments).map(|xml| {
                    bitmaps(&xml).keys().any(|target| !disks.contains(target))
                });
                if !others.unwrap_or(false)
                    && let Err(error) = self.delete_checkpoint(&name)
                {
                    let what = format!(
                        "{}: an old checkpoint could not be removed: {}; the next snapshot tries again",
                        self.uri(),
                        error.without_advice()
                    );
                    context.warn(WarningId::MachineNotCleared, what);
                }
            }
        });
        best_effort(pruned);
    }

    /// Removes a checkpoint and its bitmaps; only the checkpoint if a bitmap is gone.
    pub(super) fn delete_checkpoint(&self, name: &str) -> Result<()> {
        let Err(error) = self.virsh.change(&["checkpoint-delete", &self.uuid, name]) else {
            return Ok(());
        };
        let silent = &Context::silent();
        if !self.checkpoints(silent)?.iter().any(|known| known == name) {
            return Ok(());
        }
        // Of a machine that is off libvirt removes none: the next run does that, while it runs.
        if self.state(silent)? == DomainState::Off {
            return Err(error);
        }
        self.virsh.change(&["checkpoint-delete", &self.uuid, name, "--metadata"]).map(drop)
    }
}

/// A disk in the definition of a checkpoint whose bitmap is there.
fn adopted(target: &str, checkpoint: &str) -> String {
    let target = escaped(target);
    format!("<disk name='{target}' checkpoint='bitmap' bitmap='{checkpoint}'/>")
}

/// The disks of a checkpoint that have a bitmap, by their targets, and what each was read from when it was
/// made, if libvirt knows that.
type Bitmaps = BTreeMap<String, Option<String>>;

fn bitmaps(xml: &str) -> Bitmaps {
    let Ok(document) = Document::parse(xml) else { return Bitmaps::new() };
    let root = document.root_element();
    let Some(disks) = child(root, "disks") else { return Bitmaps::new() };
    let then = child(root, "domain").and_then(|domain| Definition::of(domain).ok());
    let source_of = |target: &str| {
        let disks = &then.as_ref()?.disks;
        disks.iter().find(|disk| disk.target == target)?.sources.first().cloned()
    };
    let has_bitmap =
        |disk: &roxmltree::Node<'_, '_>| disk.attribute("checkpoint") == Some("bitmap");
    let with = disks.children().filter(has_bitmap);
    let names = with.filter_map(|disk| disk.attribute("name"));
    names.map(|target| (target.to_owned(), source_of(target))).collect()
}
