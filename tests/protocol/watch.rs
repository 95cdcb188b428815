//! What must hold at every moment, whoever sleeps: it is looked at after each request that may change something.

use imgsnap::repo::manifest::{BaseOf, Manifest, ManifestDigest};
use imgsnap::store::World;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The manifest that rules an image.
struct Ruling {
    object: String,
    manifest: Manifest,
    digest: ManifestDigest,
    /// What it condemns, and the hour since when that is so.
    condemned: HashMap<String, u64>,
}

pub struct Watch {
    grace_hours: u64,
    ruling: BTreeMap<String, Ruling>,
    deltas: HashSet<String>,
    /// Removed once: a copy of its upload, and of its removal, may land later.
    gone: HashSet<String>,
    /// What a manifest that ruled named, at any time.
    pub named: HashSet<String>,
    /// What was wrong first.
    pub wrong: Option<String>,
}

impl Watch {
    pub fn new(grace_hours: u64) -> Self {
        let (ruling, deltas, gone, named) = Default::default();
        Self { grace_hours, ruling, deltas, gone, named, wrong: None }
    }

    pub fn look(&mut self, world: &World, hours: u64) {
        let names = world.names();
        let deltas: HashSet<String> =
            names.iter().filter(|name| name.ends_with(".delta")).cloned().collect();
        // By what ruled when they were removed.
        let removed: Vec<String> = self.deltas.difference(&deltas).cloned().collect();
        for object in removed {
            self.check_removed(&object, hours);
            self.gone.insert(object);
        }
        self.deltas = deltas;
        let manifest =
            |name: &String| Some((name.split_once("/manifest.")?.0.to_owned(), name.clone()));
        // In the order of their numbers: the last one stays.
        let last: BTreeMap<String, String> = names.iter().filter_map(manifest).collect();
        for (image, object) in last {
            if self.ruling.get(&image).is_none_or(|ruling| ruling.object != object) {
                self.follow(world, image, object, hours);
            }
        }
        self.check_named();
    }

    fn note(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }

    /// Nothing is removed but what is condemned for as long as the grace period (C4).
    fn check_removed(&mut self, object: &str, hours: u64) {
        let Some((image, file)) = object.split_once('/') else { return };
        let since = self.ruling.get(image).and_then(|ruling| ruling.condemned.get(file));
        let is_due = since.is_some_and(|since| hours - since >= self.grace_hours);
        if !is_due && !self.gone.contains(object) {
            self.note(format!("{object} is removed, condemned in hour {since:?}, now is {hours}"));
        }
    }

    /// Each manifest that rules follows the one that ruled before (C1, C10).
    fn follow(&mut self, world: &World, image: String, object: String, hours: u64) {
        let Some(bytes) = world.bytes(&object) else { return };
        let manifest = match Manifest::decode(&bytes) {
            Ok(manifest) => manifest,
            Err(e) => return self.note(format!("{object}: {e}")),
        };
        let mut since = HashMap::new();
        if let Some(before) = self.ruling.remove(&image) {
            let is_next = manifest.sequence == before.manifest.sequence + 1
                && manifest.previous == Some(before.digest);
            // Another image of that name begins where the one before ended.
            let is_same = manifest.image_id == before.manifest.image_id;
            if !is_next || !(is_same || before.manifest.forgotten) {
                self.note(format!("{object} does not follow {}", before.object));
            }
            // Nothing is dropped by the commit that takes its protection back.
            let before_it = before.manifest.snapshots.iter().filter(|s| s.protected);
            let is_kept = |id| manifest.snapshots.iter().any(|s| s.id == id);
            if let Some(lost) = before_it.map(|s| s.id).find(|id| !is_kept(*id)) {
                self.note(format!("{object} drops {lost}, which was protected"));
            }
            since = before.condemned;
        }
        let condemned = manifest.condemned.iter().map(|condemned| {
            let hour = since.get(&condemned.object).copied().unwrap_or(hours);
            (condemned.object.clone(), hour)
        });
        self.named.extend(manifest.snapshots.iter().flat_map(|s| s.files()).cloned());
        let (condemned, digest) = (condemned.collect(), ManifestDigest::of(&bytes));
        self.ruling.insert(image, Ruling { object, manifest, digest, condemned });
    }

    /// What a manifest that rules names is there.
    fn check_named(&mut self) {
        let missing = self.ruling.iter().find_map(|(image, ruling)| {
            let Manifest { snapshots, dropped, pending, .. } = &ruling.manifest;
            let stored = snapshots.iter().chain(dropped).flat_map(|s| s.files());
            let files = stored.chain(pending.iter().flat_map(|pending| &pending.objects));
            let mut files = files.map(|file| format!("{image}/{file}"));
            let file = files.find(|file| !self.deltas.contains(file))?;
            Some(format!("{} names {file}, which is not there", ruling.object))
        });
        if let Some(missing) = missing {
            self.note(missing);
        }
        // C9.
        let unpinned = self.ruling.values().find_map(|ruling| {
            let is_pinned = |of: &&BaseOf| {
                let other = self.ruling.get(&of.name).and_then(|o| o.manifest.by_id(of.snapshot));
                other.is_some_and(|s| s.pins.iter().any(|pin| pin.id == of.pin))
            };
            let of = ruling.manifest.bases_elsewhere().find(|of| !is_pinned(of))?;
            Some(format!("{} depends on {}, which is not pinned", ruling.object, of.place()))
        });
        if let Some(unpinned) = unpinned {
            self.note(unpinned);
        }
    }
}
