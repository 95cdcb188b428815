//! What a host works with, and what a user sees then, for `each_request.rs`; some of it for the schedules, too.

use crate::faulty::{Faulty, Plan, Wrong};
use imgsnap::image::write::Stream;
use imgsnap::repo::host::HostState;
use imgsnap::repo::manifest::Manifest;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::World;
use imgsnap::{
    At, Context, Error, ErrorKind, PruneRequest, Repository, RestoreRequest, RestoreTarget, Result,
};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Longer than a grace period, and than a marker lives.
const WEEKS: Duration = Duration::from_secs(20 * 24 * 3600);

/// What a host has before it: the folder of the live images, and the two stores.
pub struct Desk {
    pub folder: PathBuf,
    pub store: Arc<Faulty>,
    pub host: HostState,
    pub states: World,
}

impl Desk {
    pub fn new(folder: &Path, world: World, states: World, plan: &Arc<Plan>) -> Self {
        let kept = Faulty::new(states.clone(), plan.clone());
        let host = HostState::in_store(kept, "host");
        Self { folder: folder.into(), store: Faulty::new(world, plan.clone()), host, states }
    }

    /// Of a host to which nothing happens.
    pub fn sound(folder: &Path, world: &World, states: &World) -> Self {
        Self::new(folder, world.clone(), states.clone(), &Plan::new(0, Wrong::Nothing))
    }

    pub fn open(&self) -> Result<Repository> {
        Repository::open_in(self.store.clone(), self.host.clone())
    }

    /// Somebody collects what is garbage by now. What is damaged is left alone.
    pub fn collect(&self) {
        let repository = match self.open() {
            Err(e) if is_no_repository(&e) => return,
            other => other.unwrap(),
        };
        for name in repository.names().unwrap() {
            match repository.prune(&name, &keep(100), &context()) {
                Err(e) if e.kind() == ErrorKind::Corrupt => {}
                other => drop(other.unwrap()),
            }
        }
    }

    /// The same after the grace period, and when markers have expired.
    pub fn wait_and_collect(&self) {
        self.store.world.pass(WEEKS);
        self.collect();
    }

    /// All that a user sees; nothing where no repository can be opened.
    pub fn seen(&self) -> Result<Seen> {
        let repository = match self.open() {
            Err(e) if is_no_repository(&e) => return Ok(Seen::default()),
            other => other?,
        };
        let config = Repository::configuration(self.store.as_ref())?.text;
        // Each repository has an id of its own.
        let config = config.lines().filter(|line| !line.starts_with("id")).collect();
        let mut images = BTreeMap::new();
        for name in repository.names()? {
            let listing = match repository.list(&name, &context()) {
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    images.insert(name, None);
                    continue;
                }
                other => other?.manifest,
            };
            let mut snapshots = BTreeMap::new();
            for s in &listing.snapshots {
                let content = digest(&restored(&repository, &name, s.number)?);
                let kept = Kept { label: s.label.clone(), is_protected: s.protected, content };
                snapshots.insert(s.number, (kept, s.is_base()));
            }
            let file = listing.source.as_ref().and_then(|image| image.file()?.file_name());
            let source = file.map(|file| file.to_string_lossy().into_owned());
            let is_mixture = listing.rollback.is_some();
            // One without snapshots is what the next snapshot begins with.
            if !snapshots.is_empty() {
                images.insert(name, Some(SeenImage { snapshots, source, is_mixture }));
            }
        }
        Ok(Seen { config, images })
    }
}

/// What a user sees of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    label: Option<String>,
    is_protected: bool,
    content: u64,
}

/// What a user sees of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenImage {
    /// And whether they depend on nothing.
    snapshots: BTreeMap<u64, (Kept, bool)>,
    source: Option<String>,
    is_mixture: bool,
}

/// What a user sees of a repository; of an image that is damaged nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    config: String,
    images: BTreeMap<String, Option<SeenImage>>,
}

impl Seen {
    /// Without what a verb does in commits of their own: merging what it dropped, noting what it will write.
    pub fn contents(&self) -> BTreeMap<(&str, u64), &Kept> {
        let snapshots = self.images.iter().flat_map(|(name, image)| {
            let of = image.iter().flat_map(|image| &image.snapshots);
            of.map(move |(number, (kept, _))| ((name.as_str(), *number), kept))
        });
        snapshots.collect()
    }

    /// True if the other one has no snapshot that is not here, too.
    pub fn has_all_of(&self, other: &Self) -> bool {
        let here = self.contents();
        other.contents().iter().all(|(at, kept)| here.get(at) == Some(kept))
    }

    /// True if nothing more is there than a last snapshot that is the one before it.
    pub fn is_twice(&self, other: &Self) -> bool {
        let (mut once, image) = (self.clone(), |seen: &mut Self| seen.images.remove("a").flatten());
        let Some(mut of) = image(&mut once) else { return false };
        let last = of.snapshots.pop_last().map(|(_, (last, _))| last);
        let is_same = of.snapshots.values().next_back().map(|(before, _)| before) == last.as_ref();
        once.images.insert("a".into(), Some(of));
        is_same && once == *other
    }

    pub fn is_mixture(&self) -> bool {
        self.images.values().flatten().any(|image| image.is_mixture)
    }
}

/// Also of one whose configuration is lost.
fn is_no_repository(error: &Error) -> bool {
    [ErrorKind::NotFound, ErrorKind::Corrupt].contains(&error.kind())
}

/// To make one asks the system how many processors there are, which takes longer than most of what follows.
pub fn context() -> Context {
    static CONTEXT: LazyLock<Context> = LazyLock::new(|| Context::silent().with_threads(1));
    CONTEXT.clone()
}

pub fn keep(last: u64) -> PruneRequest {
    let rules = Rules { last: Some(Count::Most(last)), ..Rules::default() };
    PruneRequest::new().rules(Some(rules))
}

pub fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

pub fn restored(repository: &Repository, name: &str, number: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut stream = Stream::new(&mut bytes, "memory");
    let request = RestoreRequest::new(name).at(At::Number(number));
    repository.restore(&request, RestoreTarget::Target(&mut stream), &context())?;
    Ok(bytes)
}

/// The delta files that no manifest condemns.
pub fn held(world: &World) -> Vec<String> {
    let (mut held, mut condemned) = (Vec::new(), BTreeSet::new());
    for name in world.names() {
        if let Some((image, _)) = name.split_once("/manifest.") {
            let manifest = Manifest::decode(&world.bytes(&name).unwrap()).unwrap();
            condemned.extend(manifest.condemned.iter().map(|c| format!("{image}/{}", c.object)));
        } else if name.ends_with(".delta") {
            held.push(name);
        }
    }
    held.retain(|object| !condemned.contains(object));
    held
}
