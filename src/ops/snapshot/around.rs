//! What surrounds a point in time: commands before and after it, and file systems that are frozen.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::uri::Shown;
use crate::image::ImageUri;
use crate::machine::{
    FREEZE_LIMIT, Freeze, FreezeOutcome, GuardState, GuestAgent, Window, is_on_image,
};
use crate::ops::snapshot::types;
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::repo::Repository;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where what a machine overwrites is kept, if nothing else is said.
pub(super) const SCRATCH_DIR: &str = "/var/tmp";

/// Runs the commands of a request around `work`.
///
/// # Errors
/// Of `work`; of the command before it. Of that after it only the outcome tells: the snapshots stand.
pub(super) fn hooked(
    request: &SnapshotRequest,
    names: &[String],
    group: Option<&str>,
    context: &Context,
    work: impl FnOnce() -> Result<Vec<SnapshotOutcome>>,
) -> Result<Vec<SnapshotOutcome>> {
    // What changes nothing starts nothing.
    if request.dry_run {
        return work();
    }
    let begun = request.window.hooks.begin(names, group, context)?;
    let taken = work();
    let place = |done: &SnapshotOutcome| format!("{}@{}", done.name, done.snapshot.number);
    let places: Vec<String> = taken.iter().flatten().map(place).collect();
    let ended = begun.end(&places, taken.is_ok());
    match (taken, ended) {
        (Ok(mut taken), ended) => {
            if let (Some(first), Err(error)) = (taken.first_mut(), ended) {
                first.post_error = Some(error.to_string());
            }
            Ok(taken)
        }
        (Err(error), ended) => {
            if let Err(also) = ended {
                context.warn(WarningId::HookFailed, also);
            }
            Err(error)
        }
    }
}

/// Who freezes the file systems in a machine, if that is wanted and known.
pub(super) enum AgentOf {
    /// It is not known.
    Nobody,
    /// Who listens on this socket.
    Socket(PathBuf),
    /// Somebody who needs none.
    Own(Box<dyn GuestAgent>),
}

/// Makes ready what is to be frozen. `agent` is who freezes the machine; `machine` a
/// descriptor of the connection to its monitor, if it may be stopped.
///
/// # Errors
/// As of [`Window::open`]; `InvalidInput` for a file system that lies on none of the images.
pub(super) fn open_window(
    repository: &Repository,
    window: &types::Window,
    images: &[&ImageUri],
    agent: AgentOf,
    machine: Option<OwnedFd>,
    context: &Context,
) -> Result<Window> {
    let mut freezes = window.freeze.clone();
    let (socket_of, own) = match agent {
        AgentOf::Nobody => (None, None),
        AgentOf::Socket(socket) => (Some(socket), None),
        AgentOf::Own(own) => (None, Some(own)),
    };
    for freeze in &mut freezes {
        match freeze {
            Freeze::Agent(socket) if socket.is_none() => socket.clone_from(&socket_of),
            Freeze::Mount(place) if !images.iter().any(|image| is_on(place, image)) => {
                let what = format!("{} is not on any of the images", place.shown());
                return Err(Error::new(ErrorKind::InvalidInput, what)
                    .hint("freeze only a file system that is on an image"));
            }
            Freeze::Agent(_) | Freeze::Mount(_) => {}
        }
    }
    let limit = window.freeze_limit.unwrap_or(FREEZE_LIMIT);
    let places = [repository.store.local_path(), repository.host.folder()];
    let places = places.into_iter().flatten().map(Path::to_owned);
    let images = images.iter().filter_map(|image| image.file()).map(Path::to_owned);
    let scratch = window.scratch_dir.clone().unwrap_or_else(|| SCRATCH_DIR.into());
    let forbidden: Vec<PathBuf> = places.chain(images).chain([scratch]).collect();
    Window::open(&freezes, own, machine, limit, &forbidden, context)
}

fn is_on(place: &Path, image: &ImageUri) -> bool {
    image.file().is_some_and(|image| is_on_image(place, image))
}

/// Ends the time in which file systems are frozen. True for each image that something on it was frozen for,
/// and still was after the point in time.
pub(super) fn thaw(
    window: Window,
    request: &types::Window,
    images: &[&ImageUri],
    context: &Context,
) -> Vec<bool> {
    let FreezeOutcome { frozen, why_not, stuck, guard } = window.thaw();
    if guard == GuardState::Lost {
        let what = "the process that thaws if imgsnap cannot was killed; it was not needed";
        context.warn(WarningId::GuardLost, what);
    }
    if let Some(why) = why_not {
        context.warn(WarningId::NotFrozen, why);
    }
    if let Some(stuck) = stuck {
        context.warn(WarningId::StillFrozen, stuck);
    }
    let is_of = |image: &&ImageUri| {
        request.freeze.iter().any(|freeze| match freeze {
            Freeze::Agent(_) => true,
            Freeze::Mount(place) => is_on(place, image),
        })
    };
    images.iter().map(|image| frozen && is_of(image)).collect()
}
