//! The verbs of a repository, as methods: what a program that uses the library calls.

mod keys;
mod owning;
mod taking;
mod working;

pub use owning::Confirmed;

use crate::base::error::Result;
use crate::base::events::Context;
use crate::chain::Chain;
use crate::image::{ImageFormat, ImageUri};
use crate::ops;
use crate::ops::config::types::Configuration;
use crate::ops::delete::types::Deleted;
use crate::ops::diff::engine::Difference;
use crate::ops::diff::types::DiffSide;
use crate::ops::export::types::{ExportOutcome, ExportRequest};
use crate::ops::flatten::types::Flattened;
use crate::ops::import::types::Imported;
use crate::ops::list::types::{DomainListing, Listing};
use crate::ops::protect::types::Protected;
use crate::ops::prune::types::{PruneRequest, Pruned};
use crate::ops::relink::types::{Relinked, RelinkedBase};
use crate::ops::remove::types::Removed;
use crate::ops::repair::types::{MendSource, Mended, Repaired, RestoredConfig};
use crate::ops::restore::types::{RestoreOutcome, RestoreRequest, RestoreTarget, RestoredGroup};
use crate::ops::stats::types::Stats;
use crate::ops::verify::types::{Verified, VerifyScope};
use crate::repo::config::Defaults;
use crate::repo::host::HostState;
use crate::repo::manifest::Snapshot;
use crate::repo::reference::At;
use crate::repo::session::Reader;
use crate::repo::{self, Repository};
use crate::store::{Above, Store, StoreOptions, locate};
use crate::tracking::{CloneUse, Clones};
use crate::view::SnapshotView;
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

fn store_of(place: &Path) -> Result<Arc<dyn Store>> {
    locate(place)?.store(&StoreOptions::default())
}

impl Repository {
    /// Opens a repository: `place` is a path, or a URL such as `file:///srv/backup` or
    /// `s3://bucket/backup`.
    ///
    /// # Errors
    /// `NotFound` if there is none, or if the one that this host has used there is missing; `Unsupported` if
    /// a later version made it, or for a URL of a kind that this build does not know.
    pub fn open(place: impl AsRef<Path>) -> Result<Self> {
        Self::open_in(store_of(place.as_ref())?, HostState::of_this_host())
    }

    /// Makes a repository, and the folder for it if it is missing. This host forgets which others it has used
    /// there.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one, or something else; `InvalidInput` within another repository;
    /// `NotFound` if the folder above it is missing.
    pub fn init(place: impl AsRef<Path>, defaults: Defaults) -> Result<Self> {
        let (store, host) = (store_of(place.as_ref())?, HostState::of_this_host());
        repo::first_use::init(store, defaults, Above::MustExist, &host)
    }

    /// Opens a repository to write to it, and makes it if this host has never used one there
    /// ([`Repository::is_new`]). Of several who do that at the same time one makes it, and all have it.
    ///
    /// # Errors
    /// `NotFound` if this host has used one there that is missing now: its disk may not be mounted;
    /// `Mismatch` if it has used others there; as of [`Repository::init`].
    pub fn open_or_init(place: impl AsRef<Path>, defaults: Defaults) -> Result<Self> {
        let (store, host) = (store_of(place.as_ref())?, HostState::of_this_host());
        repo::first_use::open_or_init(store, defaults, Above::MustExist, &host)
    }

    /// Takes a repository back that [`Repository::open_or_init`] made, if nothing came into it and nobody
    /// else has opened it in that way. True if it is gone, and its folder, if that was made as well.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn take_back(self) -> Result<bool> {
        repo::first_use::take_back_unused(self)
    }

    /// Opens a repository, and remembers that this host uses it at this place, besides those that it has used
    /// there.
    ///
    /// # Errors
    /// As of [`Repository::open`]; `Io` if that cannot be remembered.
    pub fn accept(place: impl AsRef<Path>) -> Result<Self> {
        Self::accept_in(store_of(place.as_ref())?, HostState::of_this_host())
    }

    /// The same of the repository in a store, which is used from `host`.
    ///
    /// # Errors
    /// As of [`Repository::accept`].
    pub fn accept_in(store: Arc<dyn Store>, host: HostState) -> Result<Self> {
        let repository = Self::open_unchecked(store, host)?;
        repository.place.accept(repository.id())?;
        Ok(repository)
    }

    /// Opens an image for reading: while the reader lives, no file that its manifest names is unlinked.
    ///
    /// # Errors
    /// `NotFound` if there is no such image, `Corrupt` if its manifest is damaged.
    pub fn read(&self, name: &str, context: &Context) -> Result<Reader> {
        repo::session::read(self, name, context)
    }

    /// Opens the chain of a snapshot that a reader found. Its files stay for as long as the chain lives, also
    /// when the reader is gone, and nothing else is kept from being removed.
    ///
    /// # Errors
    /// `Corrupt` if a file of it is missing or damaged.
    pub fn chain(&self, reader: &Reader, id: Uuid) -> Result<Chain> {
        reader.chain(self, id)
    }

    /// An image with its snapshots.
    ///
    /// # Errors
    /// As of [`Repository::read`].
    pub fn list(&self, name: &str, context: &Context) -> Result<Listing> {
        ops::list::run(self, name, context)
    }

    /// The domains of libvirt that a pattern matches, against the snapshots here.
    ///
    /// # Errors
    /// `NotFound` if none does; of libvirt.
    pub fn list_domains(
        &self,
        pattern: &str,
        connect: Option<&str>,
        context: &Context,
    ) -> Result<Vec<DomainListing>> {
        ops::list::domains::run(self, pattern, connect, context)
    }

    /// The clones beside the live file of an image.
    ///
    /// # Errors
    /// `Io` if they cannot be listed.
    pub fn clones(&self, reader: &Reader) -> Result<Clones> {
        repo::clones::clones(self, reader.manifest(), reader.head())
    }

    /// The image that a user means: by name, or by the path of its live file.
    ///
    /// # Errors
    /// `NotFound` if it is neither.
    pub fn image_named(&self, image: impl AsRef<OsStr>, context: &Context) -> Result<String> {
        repo::live_file::image_named(self, image.as_ref(), context)
    }

    /// The image whose live file, device or export that is.
    ///
    /// # Errors
    /// `Io` if an image cannot be read; damaged ones are passed over.
    pub fn name_of_source(
        &self,
        image: impl Into<ImageUri>,
        context: &Context,
    ) -> Result<Option<String>> {
        repo::live_file::name_of_source(self, &image.into(), context)
    }

    /// Restores a snapshot, or a part of it. Every block is checked before it is written, and a whole image
    /// before it appears.
    ///
    /// # Errors
    /// `Corrupt` if a block or the image is not what its digest says, or was never read; then a new file does
    /// not appear, and a device holds a part.
    pub fn restore(
        &self,
        request: &RestoreRequest,
        target: RestoreTarget<'_>,
        context: &Context,
    ) -> Result<RestoreOutcome> {
        ops::restore::run(self, request, target, context)
    }

    /// Restores a snapshot and the others of its group into a folder, each to a file that is called as its
    /// image. Nothing is written unless all can be.
    ///
    /// # Errors
    /// As of [`Repository::restore`]; `AlreadyExists` if one of the files is there.
    pub fn restore_group(
        &self,
        request: &RestoreRequest,
        folder: &Path,
        context: &Context,
    ) -> Result<RestoredGroup> {
        ops::restore::group::run(self, request, folder, context)
    }

    /// Verifies stored bytes and, unless `quick`, every block and every image digest.
    ///
    /// # Errors
    /// Damage is no error here: it is in the outcome.
    pub fn verify(&self, scope: &VerifyScope, quick: bool, context: &Context) -> Result<Verified> {
        ops::verify::run(self, scope, quick, context)
    }

    /// Looks at all tables of an image.
    ///
    /// # Errors
    /// `Corrupt` if one is damaged.
    pub fn stats(&self, name: &str, context: &Context) -> Result<Stats> {
        ops::stats::run(self, name, context)
    }

    /// Drops the snapshots of an image that no rule keeps.
    ///
    /// # Errors
    /// `InvalidInput` without any rule, or if the rules keep nothing.
    pub fn prune(&self, name: &str, request: &PruneRequest, context: &Context) -> Result<Pruned> {
        ops::prune::run(self, name, request, context)
    }

    /// Deletes a snapshot, whatever was taken with it. What depends on it stays as it is.
    ///
    /// # Errors
    /// `Mismatch` if it is protected, or the target of a rollback that was interrupted.
    pub fn delete(&self, name: &str, at: &At, compact: bool, context: &Context) -> Result<Deleted> {
        ops::delete::run(self, name, at, compact, context)
    }

    /// Deletes a snapshot and the others of its group, the one that is named last. Nothing is deleted unless
    /// all may be.
    ///
    /// # Errors
    /// As of [`Repository::delete`]; `Corrupt` if the image of another one cannot be read.
    pub fn delete_group(
        &self,
        name: &str,
        at: &At,
        compact: bool,
        context: &Context,
    ) -> Result<Vec<Deleted>> {
        ops::delete::run_group(self, name, at, compact, context)
    }

    /// How many bytes can still be written to it, if that is known.
    pub fn free_space(&self) -> Option<u64> {
        self.store.free_space()
    }

    /// Makes a snapshot a base: a synthetic full, made from the repository without a look at the image.
    /// Its ancestors stay as they are.
    ///
    /// # Errors
    /// `LimitExceeded` if there is too little free space.
    pub fn flatten(&self, name: &str, at: &At, context: &Context) -> Result<Flattened> {
        ops::flatten::run(self, name, at, context)
    }

    /// Gives a snapshot a label, or takes it away.
    ///
    /// # Errors
    /// `AlreadyExists` if another snapshot of the image has it.
    pub fn label(
        &self,
        name: &str,
        at: &At,
        label: Option<&str>,
        context: &Context,
    ) -> Result<Snapshot> {
        ops::label::run(self, name, at, label, context)
    }

    /// Protects a snapshot, or takes that back: while it is protected, nothing drops it.
    ///
    /// # Errors
    /// `NotFound` if there is no such snapshot.
    pub fn protect(
        &self,
        name: &str,
        at: &At,
        protect: bool,
        context: &Context,
    ) -> Result<Snapshot> {
        ops::protect::run(self, name, at, protect, context)
    }

    /// The same of a snapshot and the others of its group.
    ///
    /// # Errors
    /// As of [`Repository::protect`]; `Corrupt` if the image of another one cannot be read.
    pub fn protect_group(
        &self,
        name: &str,
        at: &At,
        protect: bool,
        context: &Context,
    ) -> Result<Vec<Protected>> {
        ops::protect::run_group(self, name, at, protect, context)
    }

    /// Removes an image with all its snapshots.
    ///
    /// # Errors
    /// `Busy` while somebody reads it; `Mismatch` if a snapshot of it is protected.
    pub fn remove(&self, name: &str, context: &Context) -> Result<Removed> {
        ops::remove::run(self, name, context)
    }

    /// Removes all clones of an image: its next snapshot reads all of it. Returns what was removed.
    ///
    /// # Errors
    /// `Busy` if somebody works on the image.
    pub fn untrack(&self, name: &str, context: &Context) -> Result<Vec<CloneUse>> {
        ops::untrack::run(self, name, context)
    }

    /// Says where the live file of an image is now. What was known of it is forgotten, an
    /// interrupted rollback included.
    ///
    /// # Errors
    /// `Unsupported` if it looks like another format than the recorded one, and none is given.
    pub fn relink(
        &self,
        name: &str,
        image: impl Into<ImageUri>,
        format: Option<ImageFormat>,
        context: &Context,
    ) -> Result<Relinked> {
        ops::relink::run(self, name, &image.into(), format, context)
    }

    /// Says where the base image of an image is now, after a proof that the file is what it was.
    ///
    /// # Errors
    /// `Mismatch` if the file is the base image of none of its snapshots, with how much of it differs.
    pub fn relink_base_image(
        &self,
        name: &str,
        base_image: &Path,
        context: &Context,
    ) -> Result<RelinkedBase> {
        ops::relink::base_image(self, name, base_image, context)
    }

    /// Fails if `target` must not be overwritten: it is within a repository, or the base image of a snapshot.
    ///
    /// # Errors
    /// `InvalidInput`; `Corrupt` if that cannot be told.
    pub fn refuse_target(&self, target: &Path) -> Result<()> {
        repo::inside::refuse_target(self, target)
    }

    /// A snapshot as a disk that can be read anywhere, for as long as it is wanted: its files stay, and
    /// nothing else is kept from being removed.
    ///
    /// # Errors
    /// `NotFound` if there is no such snapshot; `Corrupt` if a file of it is missing or damaged.
    pub fn view(&self, name: &str, at: &At, context: &Context) -> Result<SnapshotView> {
        let reader = self.read(name, context)?;
        Ok(SnapshotView::new(reader.chain(self, reader.find(at)?.id)?))
    }

    /// Compares two disks, and tells where they differ.
    ///
    /// # Errors
    /// `NotFound` if there is no such snapshot; `Corrupt` if one is damaged.
    pub fn diff(
        &self,
        before: &DiffSide,
        after: &DiffSide,
        context: &Context,
    ) -> Result<Difference> {
        ops::diff::run(Some(self), before, after, context)
    }

    /// Fails if a result that is written to `target` would take the place of a live image.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn refuse_live_file(&self, target: &Path, context: &Context) -> Result<()> {
        repo::live_file::refuse_live_file(self, target, context)
    }

    /// Writes one delta file of a snapshot to `out`, front to back: against another one, which may be a later
    /// one, or a full one.
    ///
    /// # Errors
    /// `Corrupt` if something that is needed is damaged. Then `out` holds no whole file.
    pub fn export(
        &self,
        request: &ExportRequest,
        context: &Context,
        out: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<ExportOutcome> {
        ops::export::run(self, request, context, out)
    }

    /// Takes in a delta file that is read front to back from `input`, which `place` names. An image that
    /// is not here yet is made, with the name `name`.
    ///
    /// # Errors
    /// `Mismatch` if it does not fit onto what is here; `Corrupt` if it is damaged. Then nothing is
    /// changed.
    pub fn import(
        &self,
        input: &mut dyn Read,
        place: &str,
        name: Option<&str>,
        context: &Context,
    ) -> Result<Imported> {
        ops::import::run(self, input, place, name, context)
    }

    /// Rebuilds the manifest of an image if it is lost, damaged, or not the last one that was committed.
    ///
    /// # Errors
    /// `Io` if something cannot be read now; then nothing is changed.
    pub fn repair(&self, name: &str, context: &Context) -> Result<Repaired> {
        ops::repair::run(self, name, context)
    }

    /// Brings back, from other repositories, what a repair of a lost manifest would have to leave out.
    /// Returns the names of the files.
    ///
    /// # Errors
    /// If a copy cannot be written.
    pub fn fetch_missing(
        &self,
        name: &str,
        sources: &[MendSource],
        context: &Context,
    ) -> Result<Vec<String>> {
        ops::repair::fetch_missing::fetch_missing(self, name, sources, context)
    }

    /// Replaces what is damaged in the files of an image by the same blocks from elsewhere.
    ///
    /// # Errors
    /// If a file cannot be written. What no source has is in the outcome.
    pub fn mend(
        &self,
        name: &str,
        sources: &[MendSource],
        context: &Context,
    ) -> Result<Vec<Mended>> {
        ops::repair::mend::run(self, name, sources, context)
    }

    /// Rebuilds a configuration that is lost or damaged. None if it is sound.
    ///
    /// # Errors
    /// `NotFound` if there is no repository.
    pub fn restore_config(store: &Arc<dyn Store>) -> Result<Option<RestoredConfig>> {
        ops::repair::config::restore_config(store)
    }

    /// Reads the configuration of the repository in a store, whatever it says.
    ///
    /// # Errors
    /// `NotFound` if there is no repository; `Corrupt` if the configuration is lost or damaged.
    pub fn configuration(store: &dyn Store) -> Result<Configuration> {
        ops::config::read(store)
    }

    /// Puts `text` in the place of a configuration that was read, and gives what holds then. A repository
    /// that is open goes on with the one that it was opened with; older programs refuse the repository from
    /// then on.
    ///
    /// # Errors
    /// `InvalidInput` if anything in it is wrong, or the id is another one; `Busy` if somebody else changed
    /// the configuration since it was read. Then nothing is written.
    pub fn replace_configuration(
        store: &dyn Store,
        was: &Configuration,
        text: &str,
    ) -> Result<Configuration> {
        ops::config::replace(store, was, text)
    }
}
