//! What is seen of a repository, to be held against what must be there.

use crate::power_loss::world::{Bytes, context, folder_on, repository_on};
use crate::support::crash_disk::CrashDisk;
use crate::support::inside::is_sealed;
use imgsnap::VerifyScope;
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::{Context, Event, Observer};
use imgsnap::image::write::Stream;
use imgsnap::view::restore;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A snapshot as a user sees it.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    pub label: Option<String>,
    pub bytes: Bytes,
}

/// The snapshots of each image that has any.
pub type Visible = BTreeMap<String, BTreeMap<u64, Kept>>;

/// An interrupted rollback, by numbers; none if such a snapshot is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    pub target: Option<u64>,
    pub saved: Option<u64>,
}

#[derive(Clone, Default)]
pub struct Seen {
    /// There is no repository.
    pub is_void: bool,
    pub visible: Visible,
    pub next_numbers: BTreeMap<String, u64>,
    /// Images that a repair has to look at first.
    pub damaged: BTreeSet<String>,
    /// Of the image "vm".
    pub intent: Option<Intent>,
    pub source: Option<PathBuf>,
    /// Images of which a base is in a base image.
    pub by_reference: BTreeSet<String>,
}

impl Seen {
    pub fn numbers(&self, name: &str) -> Vec<u64> {
        self.visible.get(name).map_or(Vec::new(), |of| of.keys().copied().collect())
    }

    pub fn bytes(&self, name: &str, number: u64) -> Bytes {
        self.visible[name][&number].bytes.clone()
    }

    pub fn names(&self) -> Vec<String> {
        self.visible.keys().cloned().collect()
    }
}

/// Nothing is to be warned of where only the power was lost.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Observer for Warnings {
    fn observe(&self, event: Event) {
        if let Event::Warning { message, .. } = event {
            self.0.lock().unwrap().push(message.to_string());
        }
    }
}

/// All that is listed, restored. `is_quick`: only listed, with the bytes that `known` has.
///
/// # Errors
/// If anything that is listed is damaged.
pub fn look(disk: &CrashDisk, known: Option<&Visible>) -> Result<Seen> {
    let repository = match repository_on(disk) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Ok(Seen { is_void: true, ..Seen::default() });
        }
        other => other?,
    };
    // The configuration is committed on top of what makes older programs refuse.
    let marker = disk.get("repository.toml").unwrap_or_default();
    let says = |version: &[u8]| marker.ends_with(version);
    let is_marked = says(b"version = 2\n") || says(b"version = 3\n");
    assert!(is_marked, "{:?}", String::from_utf8_lossy(&marker));
    let warnings = Arc::new(Warnings::default());
    let context = Context::new(warnings.clone(), Arc::default()).with_threads(1);
    let mut seen = Seen::default();
    let mut count = 0;
    for name in repository.names()? {
        let reader = match repository.read(&name, &context) {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                assert!(e.to_string().contains("repair"), "{e}");
                seen.damaged.insert(name);
                continue;
            }
            other => other?,
        };
        let manifest = reader.manifest();
        let mut kept = BTreeMap::new();
        for s in &manifest.snapshots {
            let known = known.and_then(|known| known.get(&name)?.get(&s.number));
            let bytes = match known {
                Some(known) => known.bytes.clone(),
                None => {
                    let chain = repository.chain(&reader, s.id)?;
                    let mut bytes = Vec::new();
                    restore(&chain, None, &mut Stream::new(&mut bytes, "memory"), &context)?;
                    Arc::new(bytes)
                }
            };
            kept.insert(s.number, Kept { label: s.label.clone(), bytes });
        }
        count += kept.len() as u64;
        if name == "vm" {
            let number = |id| manifest.by_id(id).map(|s| s.number);
            seen.intent = reader.head().intent.map(|intent| Intent {
                target: number(intent.target),
                saved: intent.saved.and_then(number),
            });
            // After a relink that was killed halfway the manifest says another.
            seen.source =
                reader.head().source.as_ref().and_then(|image| image.file().map(Into::into));
        }
        if manifest.stored().iter().any(|s| s.is_by_reference()) {
            seen.by_reference.insert(name.clone());
        }
        seen.next_numbers.insert(name.clone(), manifest.next_number);
        if !kept.is_empty() {
            seen.visible.insert(name, kept);
        }
    }
    if known.is_none() && seen.damaged.is_empty() {
        let verified = repository.verify(&VerifyScope::All, false, &context)?;
        assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
        assert_eq!(verified.snapshots, count);
    }
    let warned = warnings.0.lock().unwrap();
    assert!(warned.is_empty(), "{warned:?}");
    Ok(seen)
}

/// Nothing is there but what is needed, after a writer has opened the image `name`.
pub fn assert_tidy(disk: &CrashDisk, name: &str) {
    let files = disk.files();
    let is_at_top = |file: &&String| !file.contains('/') && !file.starts_with("key.");
    let at_top = files.iter().filter(is_at_top).collect::<Vec<_>>();
    assert_eq!(at_top, ["config.000001", "repository.toml"]);
    let folder = folder_on(disk, name);
    let here = files.iter().filter_map(|file| file.strip_prefix(&format!("{folder}/")));
    let here: Vec<&str> = here.filter(|file| !file.ends_with(".lock")).collect();
    let listing = match repository_on(disk).unwrap().list(name, &context()) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            // Where all is sealed, the last manifest of an image that was removed stays.
            let is_last = |file: &&str| is_sealed() && file.starts_with("manifest.");
            let left = here.iter().filter(|file| !is_last(file)).count();
            return assert!(left == 0 && here.len() <= 4, "{here:?}");
        }
        other => other.unwrap(),
    };
    let manifest = &listing.manifest;
    let named = manifest.stored().into_iter().flat_map(|s| s.files().cloned().collect::<Vec<_>>());
    let pending = manifest.pending.iter().flat_map(|pending| &pending.objects);
    let others = manifest.kept.iter().chain(pending).cloned();
    let mut wanted: BTreeSet<String> = named.chain(others).collect();
    let mut manifests = 0;
    for file in here {
        match file {
            _ if file.starts_with("manifest.") => manifests += 1,
            _ => assert!(wanted.remove(file), "left behind: {name}/{file}"),
        }
    }
    // One that a repair kept may have been garbage that the power took.
    wanted.retain(|file| !manifest.kept.contains(file));
    assert!(wanted.is_empty(), "missing: {wanted:?}");
    // Those before go with the next writer: a rollback commits what it saves, that it begins, and that it ends.
    assert!(manifests <= 4, "{manifests} manifests");
}

/// Fails unless both show the same.
#[track_caller]
pub fn assert_same(now: &Visible, wanted: &[&Visible], what: &str) {
    if wanted.contains(&now) {
        return;
    }
    let shape = |visible: &Visible| {
        let of = |(name, kept): (&String, &BTreeMap<u64, Kept>)| {
            let digest = |kept: &Kept| {
                (kept.label.clone(), kept.bytes.len(), xxhash_rust::xxh3::xxh3_64(&kept.bytes))
            };
            (name.clone(), kept.iter().map(|(n, k)| (*n, digest(k))).collect::<Vec<_>>())
        };
        visible.iter().map(of).collect::<Vec<_>>()
    };
    let wanted: Vec<_> = wanted.iter().map(|visible| shape(visible)).collect();
    panic!("{what}: there is\n{:?}\nand not one of\n{wanted:?}", shape(now));
}
