//! Which repository.

use super::args::{Args, Command, FirstUse};
use super::key::args::{KeyOptions, OwnerOptions};
use super::key::given::{Given, owner_key_in};
use super::printer::Printer;
use super::{exit, trust, words};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::message::{Message, Setting};
use imgsnap::base::signing::OwnerSigner;
use imgsnap::base::uri::Shown;
use imgsnap::image::{ImageFormat, ImageUri, RawFile, Source};
use imgsnap::repo::accepted::AcceptedState;
use imgsnap::repo::first_use;
use imgsnap::repo::host::{HostState, OwnerGiven};
use imgsnap::repo::owner::watched;
use imgsnap::store::sealed::{KeyRing, KeySource};
use imgsnap::store::{Above, CachePlace, Location, Store, StoreOptions, locate};
use imgsnap::tracking::clone_into;
use imgsnap::{At, Defaults, Reference, Repository, SnapshotRequest, Track};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which repository the arguments name, and how it is used.
#[derive(Clone)]
pub struct Where {
    /// `--repo`.
    repo: Option<PathBuf>,
    options: StoreOptions,
    accepted: Vec<AcceptedState>,
    owner: OwnerGiven,
    /// Nothing of it is remembered.
    only_looks: bool,
}

/// Where a repository is, or may be made.
struct Place {
    location: Location,
    above: Above,
}

impl Where {
    /// Another one, used in the same way.
    pub fn at(&self, repo: &Path) -> Self {
        // Its owner is another one.
        Self { repo: Some(repo.to_owned()), owner: OwnerGiven::default(), ..self.clone() }
    }

    /// What the arguments say.
    ///
    /// # Errors
    /// If the file of the owner key cannot be read.
    pub fn new(args: &Args, context: &Context) -> Result<Self> {
        let cache =
            (!args.no_cache).then(|| args.cache_dir.clone().or_else(usual_cache)).flatten().map(
                |folder| CachePlace { folder, most_bytes: args.cache_size.unwrap_or(CACHE_BYTES) },
            );
        let transfer = context.transfer().clone();
        let all_images = matches!(
            args.command,
            Command::List { name: None, .. } | Command::Stats { name: None, .. }
        );
        let seals = matches!(&args.command, Command::Init(init) if init.encrypt);
        let keys = Some(Arc::new(KeyRing::new(Given::new(args.keys.clone(), seals))));
        let options = StoreOptions { transfer, cache, all_images, keys, seals };
        let (accepted, owner) = (args.accept_older.clone(), owner_of(&args.owner)?);
        Ok(Self { repo: args.repo.clone(), options, accepted, owner, only_looks: false })
    }

    /// One that is only looked at, with keys that need nobody.
    pub fn to_look(repo: Option<PathBuf>, keys: impl KeySource + 'static) -> Self {
        let keys = Some(Arc::new(KeyRing::new(keys)));
        let options = StoreOptions { keys, ..StoreOptions::default() };
        let (accepted, owner) = (Vec::new(), OwnerGiven::default());
        Self { repo, options, accepted, owner, only_looks: true }
    }

    /// The same with one more state that is right.
    pub fn accepting(&self, state: AcceptedState) -> Self {
        let mut place = self.clone();
        place.accepted.push(state);
        place
    }

    /// The same opened with a key file.
    pub fn with_key_file(&self, file: &Path) -> Self {
        let options = KeyOptions { key_file: Some(file.to_owned()), ..KeyOptions::default() };
        let keys = Some(Arc::new(KeyRing::new(Given::new(options, false))));
        let options = StoreOptions { keys, ..self.options.clone() };
        Self { options, ..self.clone() }
    }

    /// `--repo`, else `IMGSNAP_REPO`, else the user's data folder, which is made whole.
    fn place(&self) -> Result<Place> {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        match self.repo.clone().or_else(|| variable("IMGSNAP_REPO")) {
            Some(path) => Ok(Place { location: locate(&path)?, above: Above::MustExist }),
            None => Ok(Place { location: Location::Folder(usual_place()?), above: Above::Make }),
        }
    }

    /// This host, which uses it.
    fn host(&self) -> HostState {
        let host = HostState::of_this_host().accepting(&self.accepted);
        let host = host.owned_by(self.owner.clone());
        if self.only_looks { host.only_looking() } else { host }
    }

    /// The store. It is looked at only if it is encrypted or has an owner.
    pub fn store(&self) -> Result<Arc<dyn Store>> {
        watched(self.place()?.location.store(&self.options)?, &self.host())
    }

    /// The same with another owner key.
    pub fn with_owner_key(&self, signer: &Arc<OwnerSigner>) -> Self {
        let owner = OwnerGiven { key: None, signer: Some(signer.clone()) };
        Self { owner, ..self.clone() }
    }
}

/// What the arguments and the environment say of the owner.
fn owner_of(options: &OwnerOptions) -> Result<OwnerGiven> {
    let named = std::env::var_os("IMGSNAP_OWNER_KEY_FILE").filter(|file| !file.is_empty());
    let file = options.owner_key_file.clone().or_else(|| named.map(PathBuf::from));
    let signer = file.map(|file| owner_key_in(&file).map(Arc::new)).transpose()?;
    let key = options.owner_key.as_deref().map(str::parse).transpose()?;
    Ok(OwnerGiven { key, signer })
}

/// How often a repository is opened that others are making.
const MADE_TRIES: usize = 3;

/// Of the cache, if nothing is said.
const CACHE_BYTES: u64 = 4 << 30;

/// Where the cache is, if nothing is said.
fn usual_cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable("IMGSNAP_CACHE") {
        return Some(folder);
    }
    if nix::unistd::geteuid().is_root() {
        return Some("/var/cache/imgsnap".into());
    }
    let cache = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| variable("HOME").map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("imgsnap"))
}

fn usual_place() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/imgsnap".into());
    }
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = variable("XDG_DATA_HOME").filter(|p| p.is_absolute());
    let data = data.or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("imgsnap")).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "no repository was given, and there is no home folder")
            .hint(Message::from("give one with ").then(Setting::Repo))
    })
}

/// Warns if others may change the repository.
pub fn warn_of_others(place: &Where, printer: &Printer) {
    if let Ok(Place { location: Location::Folder(path), .. }) = place.place() {
        trust::warn_of_others(&path, printer);
    }
}

/// Opens the repository.
pub fn open(place: &Where, context: &Context) -> Result<Repository> {
    let repository = open_at(place, context)?;
    // Also of one in which nothing is, so that no image is opened.
    repository.warn_of_place(context);
    Ok(repository)
}

/// Opens the repository if it is in a folder.
///
/// # Errors
/// `Unsupported` if it is on a server.
pub fn open_folder(place: &Where) -> Result<Repository> {
    match place.place()?.location {
        Location::Folder(_) => open_at(place, &Context::silent()),
        Location::Remote(_) => {
            Err(Error::new(ErrorKind::Unsupported, "the repository is on a server"))
        }
    }
}

fn open_at(place: &Where, context: &Context) -> Result<Repository> {
    let opened = Repository::open_in(place.store()?, place.host())?;
    Ok(opened.reading_within(context))
}

/// Opens the repository for a verb that changes it.
pub fn open_to_change(place: &Where, context: &Context) -> Result<Repository> {
    let repository = open_at(place, context)?;
    repository.check_place()?;
    Ok(repository)
}

/// Why there is no repository, if something failed because of that.
pub fn or_missing(store: &dyn Store, error: Error) -> Error {
    Repository::or_missing(store, &HostState::of_this_host(), error)
}

/// Opens the repository, and makes it if there is nothing yet and one of the images can be opened.
/// If none can, gives why, for each.
pub fn open_or_create(
    place: &Where,
    verb: &super::args::Snapshot,
    printer: &Printer,
    context: &Context,
) -> Result<Result<Repository, Vec<Error>>> {
    let host = place.host();
    if verb.dry_run {
        return open(place, context).map(Ok);
    }
    if let Location::Remote(_) = place.place()?.location {
        // For the most part there is one, and each look at a server takes its time.
        match open_to_change(place, context) {
            Err(e) if e.kind() == ErrorKind::NotFound && !verb.first_use.must_exist => {}
            other => return other.map(Ok),
        }
    }
    if !verb.first_use.must_exist && first_use::is_first(place.store()?.as_ref(), &host) {
        // Nothing is made for an image that cannot be taken.
        let why: Vec<Error> =
            verb.images.iter().map_while(|image| why_not(image, verb).err()).collect();
        if why.len() == verb.images.len() {
            return Ok(Err(why));
        }
    }
    open_or_make(place, verb.first_use, printer, context).map(Ok)
}

/// Fails if an image cannot be taken: one that is in use can, where it can be cloned.
fn why_not(image: &ImageUri, verb: &super::args::Snapshot) -> Result<()> {
    SnapshotRequest::new(image.clone()).of(verb.of.clone()).name(verb.name.clone()).image_name()?;
    // Of what is not here it turns out when it is read.
    let Some(image) = image.file() else { return Ok(()) };
    match RawFile::open(image) {
        Err(e) if e.kind() == ErrorKind::Busy => {
            let may_clone = verb.tracking.track != Some(Track::None) && can_clone_beside(image);
            if may_clone { Ok(()) } else { Err(e) }
        }
        Ok(raw) if verb.format.format.is_none() => {
            let format = ImageFormat::of(raw.file(), raw.image_bytes());
            let is_read = format.is_raw() || format == ImageFormat::QCOW2 || verb.format.via_qemu;
            if is_read { Ok(()) } else { Err(format.refusal(&image.shown())) }
        }
        other => other.map(drop),
    }
}

/// True if the file system of a file clones files.
fn can_clone_beside(file: &Path) -> bool {
    let Ok(file) = std::fs::canonicalize(file) else { return false };
    let Some(folder) = file.parent() else { return false };
    let mut nameless = OpenOptions::new();
    nameless.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    match (nameless.open(folder), nameless.open(folder)) {
        (Ok(one), Ok(other)) => clone_into(&one, &other).is_ok(),
        _ => false,
    }
}

/// Opens the repository to write to it, and makes it if there is nothing yet.
pub fn open_or_make(
    place: &Where,
    first_use: FirstUse,
    printer: &Printer,
    context: &Context,
) -> Result<Repository> {
    if first_use.must_exist {
        return open_to_change(place, context);
    }
    let Place { location, above } = place.place()?;
    let (host, defaults) = (place.host(), Defaults::default());
    let open = || {
        let store = location.store(&place.options)?;
        first_use::open_or_init(store, defaults, above, &host)
    };
    let mut opened = open();
    // Of several who make an encrypted one at the same time, one key is that of the repository.
    for _ in 0..MADE_TRIES {
        match &opened {
            Err(e) if e.kind() == ErrorKind::Busy => opened = open(),
            _ => break,
        }
    }
    let repository = opened?;
    if repository.is_new() {
        // Also where it is to be quiet: it may not be where it was meant to be.
        let defaults = repository.defaults()?;
        let what = if repository.is_sealed() { "an encrypted repository" } else { "a repository" };
        printer.tell(&format!("created {what} in {} ({defaults})", location.shown()));
    }
    Ok(repository.reading_within(context))
}

/// Works with a repository that may just have been made, which is taken back if nothing came into it.
pub fn or_take_back<T>(
    repository: Repository,
    printer: &Printer,
    work: impl FnOnce(&Repository) -> Result<T>,
) -> Result<T> {
    let outcome = work(&repository);
    if repository.is_new() {
        let place = repository.location();
        match repository.take_back() {
            Ok(true) => printer.tell(&format!("removed the repository in {place} again")),
            Ok(false) => {}
            Err(e) => {
                printer.warn(&format!("an empty repository was left behind: {}", words::error(&e)))
            }
        }
    }
    outcome
}

/// Makes the repository.
pub fn create(place: &Where, defaults: Defaults) -> Result<Repository> {
    let above = place.place()?.above;
    first_use::init(place.store()?, defaults, above, &place.host())
}

/// The same, on a server, to which this host alone will write.
pub fn create_single(place: &Where, defaults: Defaults) -> Result<Repository> {
    match place.place()?.location {
        Location::Remote(_) => Repository::init_single(place.store()?, defaults, place.host()),
        Location::Folder(path) => {
            let what = format!("{}: a folder always excludes concurrent writers", path.shown());
            Err(Error::new(ErrorKind::InvalidInput, what)
                .hint(Message::from("create it without ").then(Setting::SingleWriter)))
        }
    }
}

/// Uses the repository that is there, whatever was used there before.
pub fn accept(place: &Where) -> Result<Repository> {
    Repository::accept_in(place.store()?, place.host())
}

/// `NAME@WHICH`, or `@WHICH`: of the image `name`, in either case.
pub fn at_of(name: &str, text: &str) -> Result<At> {
    if let Some(at) = text.strip_prefix('@') {
        return at.parse();
    }
    let reference: Reference = text.parse()?;
    if reference.name != name {
        return Err(exit::usage(format!("{text} is a snapshot of another image than \"{name}\"")));
    }
    Ok(reference.at)
}

/// The image that is named, or all of them.
pub fn names(repository: &Repository, name: Option<&str>) -> Result<Vec<String>> {
    match name {
        Some(name) => Ok(vec![name.to_owned()]),
        None => repository.names(),
    }
}
