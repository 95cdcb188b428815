//! Which repository.

use super::args::FirstUse;
use super::printer::Printer;
use super::{exit, trust, words};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::message::{Message, Setting};
use imgsnap::base::uri::Shown;
use imgsnap::image::{ImageFormat, ImageUri, RawFile, Source};
use imgsnap::repo::first_use;
use imgsnap::repo::host::HostState;
use imgsnap::store::{Above, Store, locate, store_at};
use imgsnap::tracking::clone_into;
use imgsnap::{At, Defaults, Reference, Repository, SnapshotRequest, Track};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a repository is, or may be made.
struct Place {
    path: PathBuf,
    above: Above,
}

/// `--repo`, else `IMGSNAP_REPO`, else the user's data folder, which is made whole.
fn place(repo: Option<&Path>) -> Result<Place> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    match repo.map(Path::to_owned).or_else(|| variable("IMGSNAP_REPO")) {
        Some(path) => Ok(Place { path: locate(&path)?, above: Above::MustExist }),
        None => Ok(Place { path: usual_place()?, above: Above::Make }),
    }
}

fn usual_place() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/imgsnap".into());
    }
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = variable("XDG_DATA_HOME").filter(|p| p.is_absolute());
    let data = data.or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("imgsnap")).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "no repository is named, and there is no home folder")
            .hint(Message::from("name one with ").then(Setting::Repo))
    })
}

/// Warns if others may change the repository.
pub fn warn_of_others(repo: Option<&Path>, printer: &Printer) {
    if let Ok(place) = place(repo) {
        trust::warn_of_others(&place.path, printer);
    }
}

/// Opens the repository.
pub fn open(repo: Option<&Path>, context: &Context) -> Result<Repository> {
    let repository = open_at(repo, context)?;
    // Also of one in which nothing is, so that no image is opened.
    repository.warn_of_place(context);
    Ok(repository)
}

fn open_at(repo: Option<&Path>, context: &Context) -> Result<Repository> {
    Ok(Repository::open(place(repo)?.path)?.reading_within(context))
}

/// Where it is, without a look at it.
pub fn store(repo: Option<&Path>) -> Result<Arc<dyn Store>> {
    store_at(&place(repo)?.path)
}

/// Opens the repository for a verb that changes it.
pub fn open_to_change(repo: Option<&Path>, context: &Context) -> Result<Repository> {
    let repository = open_at(repo, context)?;
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
    repo: Option<&Path>,
    verb: &super::args::Snapshot,
    printer: &Printer,
    context: &Context,
) -> Result<Result<Repository, Vec<Error>>> {
    let host = HostState::of_this_host();
    if verb.dry_run {
        return open(repo, context).map(Ok);
    }
    if !verb.first_use.must_exist && first_use::is_first(&place(repo)?.path, &host) {
        // Nothing is made for an image that cannot be taken.
        let why: Vec<Error> =
            verb.images.iter().map_while(|image| why_not(image, verb).err()).collect();
        if why.len() == verb.images.len() {
            return Ok(Err(why));
        }
    }
    open_or_make(repo, verb.first_use, printer, context).map(Ok)
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
    repo: Option<&Path>,
    first_use: FirstUse,
    printer: &Printer,
    context: &Context,
) -> Result<Repository> {
    if first_use.must_exist {
        return open_to_change(repo, context);
    }
    let Place { path, above } = place(repo)?;
    let (host, defaults) = (HostState::of_this_host(), Defaults::default());
    let repository = first_use::open_or_init(&path, defaults, above, &host)?;
    if repository.is_new() {
        // Also where it is to be quiet: it may not be where it was meant to be.
        let defaults = repository.defaults();
        printer.tell(&format!("made a repository in {} ({defaults})", path.shown()));
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
            Err(e) => printer.warn(&format!("an empty repository stays: {}", words::error(&e))),
        }
    }
    outcome
}

/// Makes the repository.
pub fn create(repo: Option<&Path>, defaults: Defaults) -> Result<Repository> {
    let Place { path, above } = place(repo)?;
    first_use::init(&path, defaults, above, &HostState::of_this_host())
}

/// Uses the repository that is there, whatever was used there before.
pub fn accept(repo: Option<&Path>) -> Result<Repository> {
    Repository::accept(place(repo)?.path)
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
