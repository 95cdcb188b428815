//! Which repository.

use super::printer::Printer;
use super::{exit, trust};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::message::{Message, Setting};
use imgsnap::base::uri::Shown;
use imgsnap::image::{ImageUri, RawFile, Source, refuse_foreign};
use imgsnap::repo::host::HostState;
use imgsnap::store::{Store, locate, store_at};
use imgsnap::tracking::clone_into;
use imgsnap::{At, Defaults, Reference, Repository, SnapshotRequest, Track};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `--repo`, else `IMGSNAP_REPO`, else the user's data folder.
fn place(repo: Option<&Path>) -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = repo.map(Path::to_owned).or_else(|| variable("IMGSNAP_REPO")) {
        return locate(&path);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/imgsnap".into());
    }
    let data = variable("XDG_DATA_HOME").filter(|p| p.is_absolute());
    let data = data.or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("imgsnap")).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "no repository is named, and there is no home folder")
            .hint(Message::from("name one with ").then(Setting::Repo))
    })
}

/// Warns if others may change the repository.
pub fn warn_of_others(repo: Option<&Path>, printer: &Printer) {
    if let Ok(path) = place(repo) {
        trust::warn_of_others(&path, printer);
    }
}

/// Opens the repository.
pub fn open(repo: Option<&Path>, context: &Context) -> Result<Repository> {
    Ok(Repository::open(place(repo)?)?.reading_within(context))
}

/// Where it is, without a look at it.
pub fn store(repo: Option<&Path>) -> Result<Arc<dyn Store>> {
    store_at(&place(repo)?)
}

/// Opens the repository, and makes it if there is nothing yet and one of the images can be opened.
/// If none can, gives why, for each.
pub fn open_or_create(
    repo: Option<&Path>,
    verb: &super::args::Snapshot,
    printer: &Printer,
    context: &Context,
) -> Result<Result<Repository, Vec<Error>>> {
    let path = place(repo)?;
    let store = store_at(&path)?;
    match Repository::open_in(store.clone(), HostState::of_this_host()) {
        Err(e) if e.kind() == ErrorKind::NotFound && Repository::is_vacant(store.as_ref()) => {
            if verb.dry_run {
                return Err(e);
            }
            // Nothing is made for an image that cannot be taken.
            let why: Vec<Error> =
                verb.images.iter().map_while(|image| why_not(image, verb).err()).collect();
            if why.len() == verb.images.len() {
                return Ok(Err(why));
            }
            open_or_make(repo, printer, context).map(Ok)
        }
        other => other.map(|opened| Ok(opened.reading_within(context))),
    }
}

/// Fails if an image cannot be taken: one that is in use can, where it can be cloned.
fn why_not(image: &ImageUri, verb: &super::args::Snapshot) -> Result<()> {
    SnapshotRequest::new(image.clone()).name(verb.name.clone()).image_name()?;
    let image = image.path();
    match RawFile::open(image) {
        Err(e) if e.kind() == ErrorKind::Busy => {
            let may_clone = verb.tracking.track != Some(Track::None) && can_clone_beside(image);
            if may_clone { Ok(()) } else { Err(e) }
        }
        Ok(raw) if !verb.format.is_raw() => refuse_foreign(raw.file(), image, raw.image_bytes()),
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

/// Opens the repository, and makes it if there is nothing yet.
pub fn open_or_make(
    repo: Option<&Path>,
    printer: &Printer,
    context: &Context,
) -> Result<Repository> {
    let path = place(repo)?;
    let store = store_at(&path)?;
    let mut tries = MAKE_TRIES;
    loop {
        match Repository::open_in(store.clone(), HostState::of_this_host()) {
            Err(e) if e.kind() == ErrorKind::NotFound && Repository::is_vacant(store.as_ref()) => {}
            other => return other.map(|opened| opened.reading_within(context)),
        }
        tries -= 1;
        match create(repo, Defaults::default()) {
            Ok(repository) => {
                let defaults = repository.defaults();
                printer.say(&format!("made a repository in {} ({defaults})", path.shown()));
                return Ok(repository.reading_within(context));
            }
            // Somebody else makes it at the same time.
            Err(e)
                if tries > 0
                    && matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) =>
            {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(e) => return Err(e),
        }
    }
}

/// How often it is tried to make a repository that others make at the same time.
const MAKE_TRIES: usize = 50;

/// Makes the repository.
pub fn create(repo: Option<&Path>, defaults: Defaults) -> Result<Repository> {
    Repository::init(place(repo)?, defaults)
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
