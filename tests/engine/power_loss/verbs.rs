//! What may be done to a repository, and what must be there afterwards.

use crate::power_loss::model::{Kept, Seen, Visible};
use crate::power_loss::world::{World, context, init, repository_on};
use crate::support::Random;
use crate::support::crash_disk::CrashDisk;
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::codec::Compression;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::{At, Outcome, ParentChoice, PruneRequest, RollbackRequest, SnapshotRequest};

#[derive(Debug, Clone)]
pub enum Verb {
    /// With the images in one file, or cut into parts.
    Init {
        in_parts: bool,
    },
    Snapshot {
        how: u64,
        parent: Option<u64>,
        label: Option<String>,
    },
    OnBaseImage {
        template: usize,
        label: Option<String>,
    },
    Delete {
        name: String,
        number: u64,
        compact: bool,
    },
    Prune {
        name: String,
        last: u64,
        compact: bool,
    },
    Flatten {
        name: String,
        number: u64,
    },
    Label {
        name: String,
        number: u64,
        label: Option<String>,
    },
    Remove {
        name: String,
    },
    Rollback {
        number: u64,
        save: bool,
        prove: bool,
    },
    Relink {
        image: usize,
    },
    RelinkBaseImage {
        template: usize,
    },
    Repair {
        name: String,
    },
    Import {
        delivery: usize,
    },
}

/// More snapshots of an image make a history slow, and no more of a history.
const MANY: usize = 5;

impl Verb {
    /// One that can be done to what is there.
    pub fn choose(seen: &Seen, random: &mut Random) -> Self {
        if seen.is_void {
            return Self::Init { in_parts: random.below(2) == 0 };
        }
        if let Some(name) = seen.damaged.first() {
            return Self::Repair { name: name.clone() };
        }
        let label = |random: &mut Random| {
            (random.below(3) == 0).then(|| format!("label-{}", random.below(1 << 40)))
        };
        let numbers = seen.numbers("vm");
        let is_known = seen.next_numbers.contains_key("vm");
        if is_known && seen.source.is_none() {
            return Self::Relink { image: random.below(2) as usize };
        }
        if seen.intent.is_some() && !numbers.is_empty() && random.below(3) > 0 {
            return Self::rollback(&numbers, random);
        }
        let names = seen.names();
        let choice = random.below(32);
        if names.is_empty() || choice < 8 && seen.intent.is_none() {
            if seen.intent.is_some() {
                return Self::Relink { image: 0 };
            }
            return Self::snapshot(&numbers, label(random), random);
        }
        let name = names[random.below(names.len() as u64) as usize].clone();
        let of_name = seen.numbers(&name);
        let number = any(&of_name, random);
        let is_intended = name == "vm" && seen.intent.is_some_and(|i| i.target == Some(number));
        let compact = random.below(2) == 0;
        match choice {
            _ if of_name.len() > MANY => Self::Prune { name, last: 1 + random.below(3), compact },
            8..10 if seen.intent.is_none() => {
                Self::OnBaseImage { template: random.below(2) as usize, label: label(random) }
            }
            10..15 if !numbers.is_empty() => Self::rollback(&numbers, random),
            15..19 if !is_intended => Self::Delete { name, number, compact },
            19..22 => Self::Prune { name, last: 1 + random.below(3), compact },
            22..24 => Self::Flatten { name, number },
            24 if seen.intent.is_none() => Self::Remove { name },
            25 if is_known => Self::Relink { image: random.below(2) as usize },
            26 if seen.by_reference.contains("vm") => {
                Self::RelinkBaseImage { template: random.below(2) as usize }
            }
            27 if !seen.by_reference.contains(&name) => Self::Repair { name },
            28..31 => Self::Import { delivery: random.below(3) as usize },
            _ => Self::Label { name, number, label: label(random) },
        }
    }

    pub fn rollback(numbers: &[u64], random: &mut Random) -> Self {
        let (save, prove) = (random.below(3) > 0, random.below(4) == 0);
        Self::Rollback { number: any(numbers, random), save, prove }
    }

    fn snapshot(numbers: &[u64], label: Option<String>, random: &mut Random) -> Self {
        let parent = (!numbers.is_empty()).then(|| any(numbers, random));
        Self::Snapshot { how: random.below(24), parent, label }
    }

    /// The image that it is about; all of them if that is not said.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Init { .. } => None,
            Self::Delete { name, .. }
            | Self::Prune { name, .. }
            | Self::Flatten { name, .. }
            | Self::Label { name, .. }
            | Self::Remove { name }
            | Self::Repair { name } => Some(name),
            Self::Import { .. } => Some("guest"),
            _ => Some("vm"),
        }
    }

    /// Does it, and gives what must be seen then.
    pub fn run(&self, world: &World, disk: &CrashDisk, seen: &Seen) -> Result<Visible> {
        let mut after = seen.visible.clone();
        if let Self::Init { in_parts } = self {
            init(disk, *in_parts)?;
            return Ok(after);
        }
        let repository = repository_on(disk)?;
        let context = context();
        let live = disk.image();
        let image_now = || seen.source.clone().unwrap_or_else(|| world.image(0));
        match self {
            Self::Init { .. } => {}
            Self::Snapshot { how, parent, label } => {
                let request = SnapshotRequest::new(image_now())
                    .name(Some("vm".into()))
                    .label(label.clone())
                    .parent(match (how % 6, parent) {
                        (0, _) => ParentChoice::Full,
                        (1, _) => ParentChoice::Differential,
                        (2, Some(number)) => ParentChoice::Of(At::Number(*number)),
                        _ => ParentChoice::Incremental,
                    })
                    .skip_unchanged(how / 6 == 0)
                    .compression((how / 6 == 1).then_some(Compression::None));
                let taken = repository.snapshot(&request, &context)?;
                let of = after.entry("vm".into()).or_default();
                let number = taken.snapshot.number;
                if taken.outcome == Outcome::Skipped {
                    assert!(of[&number].bytes == live, "skipped though it changed");
                } else {
                    let kept = Kept { label: label.clone(), bytes: live };
                    assert!(of.insert(number, kept).is_none(), "{number} is used twice");
                }
            }
            Self::OnBaseImage { template, label } => {
                let request = SnapshotRequest::new(image_now())
                    .name(Some("vm".into()))
                    .label(label.clone())
                    .parent(ParentChoice::Full)
                    .base_image(Some(world.template(*template)));
                let taken = repository.snapshot(&request, &context)?;
                let number = taken.snapshot.number;
                let of = after.entry("vm".into()).or_default();
                let base = Kept { label: None, bytes: world.templates[*template].clone() };
                assert!(of.insert(number - 1, base).is_none());
                assert!(of.insert(number, Kept { label: label.clone(), bytes: live }).is_none());
            }
            Self::Delete { name, number, compact } => {
                repository.delete(name, &At::Number(*number), *compact, &context)?;
                after.get_mut(name).unwrap().remove(number).unwrap();
            }
            Self::Prune { name, last, compact } => {
                let rules = Rules { last: Some(Count::Most(*last)), ..Rules::default() };
                let request = PruneRequest::new().rules(Some(rules)).compact(*compact);
                let pruned = repository.prune(name, &request, &context)?;
                let of = after.get_mut(name).unwrap();
                let newest: Vec<u64> = of.keys().rev().take(*last as usize).copied().collect();
                for (snapshot, reasons) in &pruned.decisions {
                    if reasons.is_empty() {
                        assert!(!newest.contains(&snapshot.number), "one of the newest is gone");
                        of.remove(&snapshot.number).unwrap();
                    }
                }
            }
            Self::Flatten { name, number } => {
                repository.flatten(name, &At::Number(*number), &context)?;
            }
            Self::Label { name, number, label } => {
                repository.label(name, &At::Number(*number), label.as_deref(), &context)?;
                let of = after.get_mut(name).unwrap();
                of.get_mut(number).unwrap().label = label.clone();
            }
            Self::Remove { name } => {
                repository.remove(name, &context)?;
                after.remove(name);
            }
            Self::Rollback { number, save, prove } => {
                let to = At::Number(*number);
                let (save, prove, name) = (*save, *prove, "vm");
                let request = RollbackRequest::new(name, to).save(save).prove(prove);
                let done = repository.rollback_through(disk, &request, &context)?;
                let of = after.get_mut("vm").unwrap();
                assert!(!done.resumed || seen.intent.is_some());
                if let Some(saved) = done.saved.filter(|_| !done.resumed) {
                    let kept = of.entry(saved).or_insert(Kept { label: None, bytes: live.clone() });
                    assert!(kept.bytes == live, "the state before is not {saved}");
                }
                assert!(done.resumed || done.saved.is_some() == save);
                assert!(disk.image() == of[number].bytes, "rolled back to something else");
            }
            Self::Relink { image } => {
                repository.relink("vm", world.image(*image), None, &context)?;
            }
            Self::RelinkBaseImage { template } => {
                let path = world.template(*template);
                match repository.relink_base_image("vm", &path, &context) {
                    // The other one is it.
                    Err(e) if e.kind() == ErrorKind::Mismatch => {}
                    other => drop(other?),
                }
            }
            Self::Repair { name } => {
                let repaired = repository.repair(name, &context)?;
                let is_damaged = seen.damaged.contains(name);
                assert!(!is_damaged || repaired.rebuilt.is_some());
            }
            Self::Import { delivery } => {
                let delivery = &world.deliveries[*delivery];
                let input = &mut &delivery.file[..];
                match repository.import(input, "a file", Some("guest"), &context) {
                    // What it follows is not there, or was dropped, or it is there under another base.
                    Err(e) if e.kind() == ErrorKind::Mismatch => {}
                    other => {
                        let imported = other?;
                        assert_eq!(imported.snapshot.number, delivery.number);
                        let of = after.entry("guest".into()).or_default();
                        let kept = Kept { label: None, bytes: delivery.content.clone() };
                        of.entry(delivery.number).or_insert(kept);
                    }
                }
            }
        }
        after.retain(|_, of| !of.is_empty());
        Ok(after)
    }
}

pub fn any(numbers: &[u64], random: &mut Random) -> u64 {
    numbers[random.below(numbers.len() as u64) as usize]
}
