//! Before a lost manifest is rebuilt: files that are lost as well come back from other repositories.

use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::message;
use crate::delta::{Delta, DeltaFile};
use crate::ops::repair::mend::{copy_file, is_final};
use crate::ops::repair::types::MendSource;
use crate::repo::Repository;
use crate::repo::manifest::{ImageFile, Manifest, Snapshot};
use crate::repo::session::{lock_to_write, readers};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// The delta files in the folder of an image.
struct Found {
    /// Each, and whether it can be opened and is of that image.
    files: HashMap<String, bool>,
    /// The snapshots that they are of, each with its number.
    numbers: HashMap<Uuid, u64>,
    /// Those that they depend on.
    parents: HashSet<Uuid>,
}

/// Brings back, from other repositories, what a repair of a lost manifest would have to leave out: files
/// that cannot be opened, and parents that are missing. Returns the names of the files.
///
/// # Errors
/// If a copy cannot be written.
pub fn fetch_missing(
    repository: &Repository,
    name: &str,
    sources: &[MendSource],
    context: &Context,
) -> Result<Vec<String>> {
    let store = repository.store.as_ref();
    let mut brought = Vec::new();
    let is_lost = match crate::repo::manifest::load(store, name) {
        Ok(manifest) if manifest.unused.is_empty() => return Ok(brought),
        Err(e) if e.kind() != ErrorKind::Corrupt => return Err(e),
        other => other.is_err(),
    };
    let _write = lock_to_write(repository, name)?;
    for source in sources {
        let MendSource::Repository(other) = source else { continue };
        for reader in readers(other, context)? {
            let found = files_of(repository, name, reader.manifest().image_id)?;
            let Found { files: mut here, numbers, mut parents } = found;
            let listed = reader.manifest();
            let theirs_only = other_history(listed, &numbers);
            // Nobody knows what a lost manifest named, but for what the other one does.
            let is_wanted = |snapshot: &Snapshot, parents: &HashSet<Uuid>| {
                let is_listed = listed.by_id(snapshot.id).is_some();
                let is_ours = is_listed && !theirs_only.contains(&snapshot.id);
                let is_leaf = is_lost && !numbers.is_empty() && is_ours;
                (parents.contains(&snapshot.id) || is_leaf) && !numbers.contains_key(&snapshot.id)
            };
            // The newest first: what it depends on is wanted then, too.
            for theirs in reader.manifest().stored().iter().rev() {
                let is_broken = here.get(&theirs.file) == Some(&false);
                let is_missing = !here.contains_key(&theirs.file) && is_wanted(theirs, &parents);
                if !is_broken && !is_missing {
                    continue;
                }
                let file = format!("{}/{}", reader.manifest().name, theirs.file);
                match copy_file(repository, name, theirs, other, &file, context) {
                    Ok(()) => {
                        brought.push(theirs.file.clone());
                        here.insert(theirs.file.clone(), true);
                        parents.extend(theirs.parent);
                    }
                    Err(e) if is_final(&e) => return Err(e),
                    Err(e) => context.note(message![format!("{file}: not used: "), e]),
                }
            }
        }
    }
    Ok(brought)
}

/// What is in the folder of an image.
fn files_of(repository: &Repository, name: &str, image_id: Uuid) -> Result<Found> {
    let (mut files, mut numbers) = (HashMap::new(), HashMap::new());
    let mut parents = HashSet::new();
    for file in repository.store.list(name)?.into_iter().filter(|file| ImageFile::is_delta(file)) {
        let path = format!("{name}/{file}");
        let opened = DeltaFile::open(repository.store.clone(), &path, &repository.caches);
        let opened = match opened {
            // It is of use only to the file that names it.
            Ok(DeltaFile::Part(_)) => continue,
            Ok(DeltaFile::Layer(delta)) if !has_parts(&delta) => None,
            Err(e) if e.is_unread() => return Err(e),
            Err(_) => None,
            Ok(DeltaFile::Layer(delta)) => {
                Some(delta).filter(|delta| delta.header().image_id == image_id)
            }
        };
        let parent = opened.as_ref().and_then(|delta| delta.footer().parent);
        parents.extend(parent.map(|p| p.parent_id));
        let footer = opened.as_ref().map(|delta| delta.footer());
        numbers.extend(footer.map(|footer| (footer.snapshot_id, footer.number)));
        files.insert(file, opened.is_some());
    }
    Ok(Found { files, numbers, parents })
}

/// True if all parts are there.
fn has_parts(delta: &Delta) -> bool {
    (0..delta.part_count()).all(|index| delta.part(index).is_ok())
}

/// Snapshots that another repository took after the two went apart: those whose numbers are others here, and
/// what depends on them.
fn other_history(theirs: &Manifest, numbers: &HashMap<Uuid, u64>) -> HashSet<Uuid> {
    let taken: HashSet<u64> = numbers.values().copied().collect();
    let mut apart = HashSet::new();
    for snapshot in theirs.stored() {
        let is_taken = taken.contains(&snapshot.number) && !numbers.contains_key(&snapshot.id);
        if is_taken || snapshot.parent.is_some_and(|parent| apart.contains(&parent)) {
            apart.insert(snapshot.id);
        }
    }
    apart
}
