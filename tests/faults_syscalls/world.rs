//! What can be seen of a folder: the repositories in it, by way of the library, and its files.

use crate::inside::opened;
use crate::lab::{Lab, no_fork};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::image::RawFile;
use imgsnap::image::write::{NewFile, Stream};
use imgsnap::ops::apply::engine::Patch;
use imgsnap::repo::host::HostState;
use imgsnap::repo::manifest::Snapshot;
use imgsnap::store::store_at;
use imgsnap::view::restore;
use imgsnap::{Repository, VerifyScope};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub type Bytes = Arc<Vec<u8>>;

/// All that a user has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// The images of each repository by name; one whose manifest cannot be read is none.
    pub repositories: BTreeMap<String, BTreeMap<String, Option<Image>>>,
    /// What lies beside them.
    pub files: BTreeMap<String, Bytes>,
}

/// An image in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Label and bytes of each snapshot.
    pub snapshots: BTreeMap<u64, (Option<String>, Bytes)>,
    /// Where the live file is.
    pub source: Option<PathBuf>,
    /// Where base images are.
    pub base_images: Vec<PathBuf>,
    /// A rollback is said to be unfinished.
    pub has_intent: bool,
}

pub const REPOSITORIES: [&str; 3] = ["repo", "other", "fresh"];

fn context() -> Context {
    Context::silent().with_threads(1)
}

fn open(path: &Path) -> Result<Repository> {
    let store = opened(store_at(path)?)?;
    Repository::open_in(store, HostState::in_folder(&path.with_file_name("state")))
}

/// Everything, every block of every snapshot proved.
pub fn look(lab: &Lab) -> Result<World> {
    let mut world = World::default();
    for name in REPOSITORIES {
        match open(&lab.path(name)) {
            Ok(repository) => {
                world.repositories.insert(name.into(), images(&repository)?);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    gather(lab, &lab.run(), &mut world.files);
    Ok(world)
}

fn images(repository: &Repository) -> Result<BTreeMap<String, Option<Image>>> {
    let mut images = BTreeMap::new();
    for name in repository.names()? {
        let image = match repository.read(&name, &context()) {
            Ok(_) => Some(image(repository, &name)?),
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => None,
            Err(e) => return Err(e),
        };
        images.insert(name, image);
    }
    Ok(images)
}

fn image(repository: &Repository, name: &str) -> Result<Image> {
    let reader = repository.read(name, &context())?;
    let mut snapshots = BTreeMap::new();
    for s in &reader.manifest().snapshots {
        let chain = repository.chain(&reader, s.id)?;
        let mut bytes = Vec::new();
        restore(&chain, None, &mut Stream::new(&mut bytes, "memory"), &context())?;
        snapshots.insert(s.number, (s.label.clone(), Arc::new(bytes)));
    }
    let verified = repository.verify(&VerifyScope::Image(name.into()), false, &context())?;
    if let Some(damage) = verified.damaged.first() {
        return Err(Error::corrupt(damage.message.to_string()));
    }
    let source = reader.head().source.as_ref().and_then(|image| image.file().map(Into::into));
    let base_images =
        reader.manifest().stored().into_iter().filter_map(|s| s.base_image.clone()).collect();
    Ok(Image { snapshots, source, base_images, has_intent: reader.head().intent.is_some() })
}

/// The files of a folder, but not those of repositories, not clones, and not what a host remembers.
fn gather(lab: &Lab, folder: &Path, files: &mut BTreeMap<String, Bytes>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap_entry) {
        let (path, name) = entry;
        // What a plan restores has another name each time, until it is whole.
        let is_planned = name.starts_with(".imgsnap-") && name.ends_with(".restore");
        let is_skipped = [".imgsnap", "state"].contains(&name.as_str()) || is_planned;
        if REPOSITORIES.contains(&name.as_str()) || is_skipped {
            continue;
        }
        if path.is_dir() {
            gather(lab, &path, files);
        } else {
            let bytes = if name == "out.delta" { meaning(lab, &path) } else { None };
            let bytes = bytes.unwrap_or_else(|| std::fs::read(&path).unwrap());
            let name = path.strip_prefix(lab.run()).unwrap().to_str().unwrap().to_owned();
            files.insert(name, Arc::new(bytes));
        }
    }
}

trait Entry {
    fn unwrap_entry(self) -> (PathBuf, String);
}

impl Entry for std::io::Result<std::fs::DirEntry> {
    fn unwrap_entry(self) -> (PathBuf, String) {
        let entry = self.unwrap();
        (entry.path(), entry.file_name().into_string().unwrap())
    }
}

/// The image that a delta file gives: no two of them have the same bytes.
pub fn meaning(lab: &Lab, path: &Path) -> Option<Vec<u8>> {
    let _calm = no_fork();
    let patch = Patch::open(&[path.to_owned()], &Context::silent()).ok()?;
    let out = lab.aside("meaning");
    let base = (!patch.is_full()).then(|| RawFile::open(&lab.path("state1.img")).unwrap());
    let mut target = NewFile::create(&out, patch.image_bytes(), true).unwrap();
    patch.write(base.as_ref(), &mut target, &context()).ok()?;
    std::fs::read(&out).ok()
}

/// What should not be in the repositories: what was being written, and files that nothing names.
pub fn litter(lab: &Lab) -> Vec<String> {
    let mut litter = Vec::new();
    for folder in REPOSITORIES {
        let Ok(repository) = open(&lab.path(folder)) else { continue };
        let is_temporary = |name: &&String| name.starts_with('.') && name.ends_with(".tmp");
        // Of plans nobody can tell for some minutes whether somebody is still putting them.
        let is_left = |name: &&String| is_temporary(name) && !name.starts_with(".plan.");
        let top = names_in(&lab.path(folder));
        litter.extend(top.iter().filter(is_left).map(|name| format!("{folder}/{name}")));
        for image in repository.names().unwrap_or_default() {
            let place = lab.path(folder).join(&image);
            let mut plans = Vec::new();
            let named: Vec<String> = match repository.list(&image, &context()) {
                Ok(listing) => {
                    let pending = listing.manifest.pending.iter();
                    plans
                        .extend(pending.filter_map(|p| Some(p.plan?.to_string()[..18].to_owned())));
                    let stored = listing.manifest.stored();
                    let stored = stored.into_iter().flat_map(Snapshot::files).cloned();
                    stored.chain(listing.manifest.kept.clone()).collect()
                }
                Err(_) => continue,
            };
            let names = names_in(&place);
            // A part of a plan is named by that.
            let is_planned = |name: &String| {
                plans.iter().any(|plan| name.trim_start_matches('.').starts_with(plan))
            };
            let is_unnamed = |name: &&String| {
                name.ends_with(".delta") && !named.contains(name) && !is_planned(name)
            };
            let is_left = |name: &&String| is_temporary(name) && !is_planned(name);
            let unneeded = names.iter().filter(|name| is_left(name) || is_unnamed(name));
            litter.extend(unneeded.map(|name| format!("{folder}/{image}/{name}")));
            if names.iter().filter(|name| name.starts_with("manifest.")).count() > 2 {
                litter.push(format!("{folder}/{image}: more than two manifests"));
            }
        }
    }
    litter
}

/// The clones beside the images.
pub fn clones(lab: &Lab) -> Vec<String> {
    names_in(&lab.path(".imgsnap"))
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap_entry().1).collect()
}
