//! Readers and writers of one image, with the locks that they hold.
//!
//! | lock | held by | |
//! | --- | --- | --- |
//! | `write` | whoever commits, exclusively | exclusive: a second writer fails with `Busy` |
//! | `reap` | readers and writers, shared; exclusively to unlink | what is read stays |
//! | bytes of `reap` | chains, one for each of their files | these files stay when the reader is gone |
//!
//! Where a store has no locks, markers and the grace period take their place ([`Sharing::Shared`]), and who
//! commits second does so on top of what was committed first.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Action, Setting, Verb, message};
use crate::chain::Chain;
use crate::image::ImageUri;
use crate::repo::config::Config;
use crate::repo::files::open_held;
use crate::repo::garbage::{collect_garbage, collect_listed, write_lock};
use crate::repo::head::{Head, check_seen};
use crate::repo::hold::{Held, HeldImage, hold_all, or_not_found, share_reader_lock};
use crate::repo::manifest::{self, Manifest, Rollback, Snapshot};
use crate::repo::marker::{Marked, load_marked};
use crate::repo::names::is_guarded;
use crate::repo::reserve::with_reserve;
use crate::repo::root::{Lock, Root};
use crate::repo::{Repository, reference};
use crate::store::{LockGuard, LockKind, Sharing, Store};
use jiff::Timestamp;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Reads an image: while it lives, no file that its manifest names is unlinked.
pub struct Reader {
    image: HeldImage,
    /// Those that its chains begin from.
    others: Vec<HeldImage>,
    head: Head,
    pub(crate) head_was_damaged: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest { name, sequence, .. } = self.manifest();
        let mut fields = f.debug_struct("Reader");
        fields.field("name", name).field("sequence", sequence).finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens the chain of a snapshot. It holds back its own files, and nothing else, for as long as it lives,
    /// also when the reader is gone.
    ///
    /// # Errors
    /// `Corrupt` if a file of it is missing or damaged.
    pub fn chain(&self, repository: &Repository, id: Uuid) -> Result<Chain> {
        open_held(repository, &self.image, &self.others, id)
    }

    /// The snapshots.
    pub fn manifest(&self) -> &Manifest {
        &self.image.manifest
    }

    /// What is known of the live image.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// What was held of another image that the chains begin from.
    pub(crate) fn other(&self, image: Uuid) -> Option<&Manifest> {
        self.others.iter().map(|other| &other.manifest).find(|other| other.image_id == image)
    }

    /// The snapshot that is meant.
    pub fn find(&self, at: &reference::At) -> Result<&Snapshot> {
        reference::find(self.manifest(), &self.head, at)
    }
}

/// Changes an image: the only one to do so while it lives.
pub(crate) struct Writer {
    pub(crate) manifest: Manifest,
    pub(crate) head: Head,
    /// The head state was there but could not be read: it may have held the intent of a rollback.
    pub(crate) head_was_damaged: bool,
    /// None where there are no locks, or they do not work.
    _write: Option<LockGuard>,
    held: Option<Held>,
    /// What ruled when it was opened, or committed last: what it uploads since then no manifest before has
    /// condemned.
    pub(crate) began: u64,
    /// Bytes of what others had left, which were freed when it was opened.
    pub(crate) freed_bytes: u64,
    /// True if it frees space, for which the reserve is there.
    pub(crate) frees: bool,
}

impl Writer {
    /// Lets go of what keeps files from being unlinked. Only a lock does that to our own files.
    pub(crate) fn release_reader_lock(&mut self) {
        if matches!(self.held, Some(Held::Lock { .. })) {
            self.held = None;
        }
    }
}

/// Opens an image for reading.
///
/// # Errors
/// `NotFound` if there is no such image, `Corrupt` if its manifest is damaged.
pub fn read(repository: &Repository, name: &str, context: &Context) -> Result<Reader> {
    manifest::check_name(name)?;
    repository.place.tell(repository.id(), context);
    while_seen(repository, || read_once(repository, name, context))
}

/// How often an image is read that others of this host change all the time.
const SEEN_TRIES: usize = 16;

/// Reads again what somebody else of this host has followed by another commit meanwhile: what is older than
/// what was seen is not used.
fn while_seen<T>(repository: &Repository, read: impl Fn() -> Result<T>) -> Result<T> {
    let is_late = |read: &Result<T>| read.as_ref().is_err_and(|e| e.kind() == ErrorKind::Busy);
    let mut outcome = read();
    for _ in 0..SEEN_TRIES {
        if !is_guarded(repository.store.as_ref()) || !is_late(&outcome) {
            break;
        }
        outcome = read();
    }
    outcome
}

fn read_once(repository: &Repository, name: &str, context: &Context) -> Result<Reader> {
    let (image, others) =
        hold_all(repository, name, context).map_err(|e| repository.seen().or_vanished(name, e))?;
    let (head, is_damaged) = Head::load(repository, &image.manifest, context)?;
    if is_damaged {
        context.warn(WarningId::HeadDamaged, damaged_head(name));
    }
    Ok(Reader { image, others, head, head_was_damaged: is_damaged })
}

/// What rules of an image, and what is known of its live file, for whoever reads nothing else. Of a server
/// that is asked once, and what was listed of all images is believed.
///
/// # Errors
/// As of [`read`].
pub(crate) fn look(
    repository: &Repository,
    name: &str,
    context: &Context,
) -> Result<(Manifest, Head)> {
    if repository.store.url().is_none() {
        let reader = read(repository, name, context)?;
        return Ok((reader.image.manifest, reader.head));
    }
    manifest::check_name(name)?;
    repository.place.tell(repository.id(), context);
    let store = repository.store.as_ref();
    let (manifest, head, is_damaged) = while_seen(repository, || {
        let manifest = match repository.listed(name) {
            Some(files) => manifest::load_listed(store, name, &files)?,
            None => manifest::load_unconfirmed(store, name)
                .map_err(|e| repository.seen().or_vanished(name, e))?,
        };
        let (head, is_damaged) = Head::load(repository, &manifest, context)?;
        Ok((manifest, head, is_damaged))
    })?;
    if is_damaged {
        context.warn(WarningId::HeadDamaged, damaged_head(name));
    }
    Ok((manifest, head))
}

/// Fails if what is known of the live image is damaged: it may have said that a snapshot is all that
/// is left of it.
pub(crate) fn refuse_damaged_head(name: &str, is_damaged: bool) -> Result<()> {
    if !is_damaged {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Mismatch, damaged_head(name)).hint(message![
        "run ",
        Verb::Rollback.of(name).asking(Setting::To),
        ", or, if you know that the image is intact, ",
        Verb::Relink.of(name).asking(Setting::Image),
    ]))
}

/// Takes the write lock of an image, whose folder exists.
pub(crate) fn lock_to_write(repository: &Repository, name: &str) -> Result<Option<LockGuard>> {
    repository.check_place()?;
    match wait_for_writers(repository, name) {
        // They are but speed then, unless nothing else keeps programs of the one host apart.
        Err(e)
            if e.kind() != ErrorKind::Busy
                && !repository.has_single_writer()
                && !repository.store.sharing()?.is_locked() =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The same as often as somebody else has it, and there is time to wait.
fn wait_for_writers(repository: &Repository, name: &str) -> Result<LockGuard> {
    let begun = Instant::now();
    loop {
        let locked = lock_writers_out(repository, name);
        let is_busy = locked.as_ref().is_err_and(|e| e.kind() == ErrorKind::Busy);
        let Some(patience) = repository.patience.as_ref().filter(|_| is_busy) else {
            return locked;
        };
        if begun.elapsed() >= patience.lock_wait() {
            return locked;
        }
        patience.check()?;
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// How long it takes until a lock that somebody has is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

fn lock_writers_out(repository: &Repository, name: &str) -> Result<LockGuard> {
    let busy = || {
        let what = format!("another imgsnap is working on \"{name}\"");
        Error::new(ErrorKind::Busy, what).hint(message![Action::Retry, " when it is done"])
    };
    if let Some(lock) = repository.lock_single_writer(name)? {
        return lock.ok_or_else(busy);
    }
    let file = write_lock(name);
    for _ in 0..100 {
        if let Some(lock) = repository.store.lock(&file, LockKind::Exclusive)? {
            return Ok(lock);
        }
        // Who looks for clones that nobody needs holds it shared, for a moment; a writer does not.
        if repository.store.lock(&file, LockKind::Shared)?.is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(busy())
}

/// Makes the folder of an image, unless whoever made the repository takes it back in this moment
/// ([`crate::repo::first_use`]): who has opened it without its lock would put the image into none.
fn create_image_folder(repository: &Repository, name: &str) -> Result<()> {
    let store = repository.store.as_ref();
    let Some(path) = store.local_path() else { return store.create_folder(name) };
    let mut root = Root::open(path);
    for _ in 0..ROOT_TRIES {
        if root.share() != Lock::Busy {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        root = Root::open(path);
    }
    Config::load(store)?;
    store.create_folder(name)
}

/// How often it is tried to lock the folder of a repository: nobody has it for long.
const ROOT_TRIES: usize = 500;

/// The same of one that may not exist yet. Whoever removes it meanwhile takes the folder along.
fn lock_to_create(repository: &Repository, name: &str) -> Result<Option<LockGuard>> {
    repository.check_place()?;
    for _ in 0..20 {
        create_image_folder(repository, name)?;
        match lock_to_write(repository, name) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("\"{name}\" keeps being created and removed")))
}

/// Opens an image for changing it, and removes what earlier writers left behind.
pub(crate) fn write(repository: &Repository, name: &str, context: &Context) -> Result<Writer> {
    manifest::check_name(name)?;
    let store = repository.store.as_ref();
    if store.list(name)?.is_empty() {
        manifest::load(store, name).map_err(|e| repository.seen().or_vanished(name, e))?;
    }
    let write = lock_to_write(repository, name).map_err(|e| or_not_found(repository, name, e))?;
    let manifest = manifest::load(store, name)?;
    writer(repository, write, manifest, context)
}

/// The same for who frees space, which must be possible on a full disk.
pub(crate) fn write_to_free(
    repository: &Repository,
    name: &str,
    context: &Context,
) -> Result<Writer> {
    let store = repository.store.as_ref();
    let writer = with_reserve(store, || write(repository, name, context))?;
    if let Sharing::Shared { grace, .. } = repository.sharing()? {
        let before = Timestamp::now().saturating_sub(grace).unwrap_or_default();
        match store.abort_uploads(name, before) {
            Ok(0) => {}
            Ok(count) => context.note(format!("aborted {count} incomplete uploads")),
            // They take space, and nothing else is wrong with them.
            Err(e) => context.note(e),
        }
    }
    Ok(Writer { frees: true, ..writer })
}

/// The same for an image that may not exist yet. True if this made it.
pub(crate) fn write_or_create(
    repository: &Repository,
    name: &str,
    source: &ImageUri,
    context: &Context,
) -> Result<(Writer, bool)> {
    let store = repository.store.as_ref();
    manifest::check_name(name)?;
    let write = lock_to_create(repository, name)?;
    let mut is_new = false;
    let manifest = match manifest::load_unconfirmed(store, name) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            repository.seen().check_gone(name)?;
            // An empty manifest before the first delta: deltas without one are then a loss, not
            // a beginning.
            let mut manifest = first(
                store,
                Manifest {
                    host: Some(repository.host.host().clone()),
                    ..Manifest::new(name, Some(source.clone()))
                },
            )?;
            manifest::commit(store, &mut manifest)?;
            is_new = true;
            manifest
        }
        other => other?,
    };
    Ok((writer(repository, write, manifest, context)?, is_new))
}

/// The first manifest of an image, after that of one that was removed (C10).
fn first(store: &dyn Store, manifest: Manifest) -> Result<Manifest> {
    match manifest::load_last(store, &manifest.name) {
        Ok(last) if last.forgotten => Ok(manifest.succeeding(&last)),
        Ok(_) => Err(manifest::changed_meanwhile(&manifest.name)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(manifest),
        Err(e) => Err(e),
    }
}

/// Opens an image that does not exist yet, of an identity that comes from elsewhere.
pub(crate) fn write_new(
    repository: &Repository,
    name: &str,
    image_id: Uuid,
    context: &Context,
) -> Result<Writer> {
    let store = repository.store.as_ref();
    let write = lock_to_create(repository, name)?;
    if manifest::load(store, name).is_ok() {
        let what = format!("another process created \"{name}\" meanwhile");
        return Err(Error::new(ErrorKind::Busy, what).hint(Action::Retry));
    }
    let mut manifest = first(store, Manifest { image_id, ..Manifest::new(name, None) })?;
    manifest::commit(store, &mut manifest)?;
    writer(repository, write, manifest, context)
}

pub(crate) fn writer(
    repository: &Repository,
    write: Option<LockGuard>,
    mut manifest: Manifest,
    context: &Context,
) -> Result<Writer> {
    let store = repository.store.as_ref();
    let name = manifest.name.clone();
    repository.place.tell(repository.id(), context);
    // What nothing came into may be taken back.
    if !manifest.is_unused()
        && let Err(e) = repository.settle()
    {
        let what = "; an unmounted disk would not be noticed";
        context.warn(
            WarningId::PlaceUnknown,
            message!["this host cannot remember the repository: ", e, what],
        );
    }
    // Nothing is removed by what an older state says.
    check_seen(repository, &manifest)?;
    let (held, reaped) = match store.sharing()? {
        Sharing::Locked => {
            let reaped = collect_garbage(repository, &mut manifest, context)?;
            if let Err(e) = repository.host.tidy(repository.id(), manifest.image_id) {
                context.note(e);
            }
            (share_reader_lock(store, &name, context)?, reaped)
        }
        Sharing::Shared { .. } => {
            let Marked { manifest: marked, marker, listed } =
                load_marked(&repository.store, &name, true)?;
            manifest = marked;
            check_seen(repository, &manifest)?;
            let marker = Arc::new(marker?);
            let reaped = match listed {
                Some(listed) => {
                    collect_listed(repository, &mut manifest, &marker, &listed, context)?
                }
                None => collect_garbage(repository, &mut manifest, context)?,
            };
            (Some(Held::Marker(marker)), reaped)
        }
    };
    let (head, head_was_damaged) = Head::load(repository, &manifest, context)?;
    let began = manifest.sequence;
    let mut writer = Writer {
        manifest,
        head,
        head_was_damaged,
        _write: write,
        held,
        began,
        freed_bytes: reaped.freed_bytes,
        frees: false,
    };
    if writer.head.is_to_be_moved() && !head_was_damaged {
        move_head(repository, &mut writer, context)?;
    }
    Ok(writer)
}

/// Moves to this host what an earlier program kept of it in the repository.
fn move_head(repository: &Repository, writer: &mut Writer, context: &Context) -> Result<()> {
    if let Some(intent) = writer.head.intent.filter(|_| writer.manifest.rollback.is_none()) {
        let rollback = Rollback {
            id: None,
            host: repository.host.host().clone(),
            target: intent.target,
            saved: intent.saved,
            live: writer.head.live.clone(),
        };
        let mut next = Manifest { rollback: Some(rollback), ..writer.manifest.clone() };
        manifest::commit(repository.store.as_ref(), &mut next)?;
        writer.manifest = next;
    }
    if let Err(e) = writer.head.move_here(repository, &writer.manifest) {
        // It stays where it is.
        context.note(message!["what is known of the live image stays in the repository: ", e]);
    }
    Ok(())
}

/// What to say of a head state that cannot be read.
pub(crate) fn damaged_head(name: &str) -> String {
    format!(
        "the head state of \"{name}\" is damaged: if a rollback was interrupted, its live image is \
         only partly rolled back"
    )
}

/// Every image of a repository that can be read.
pub(crate) fn readers(repository: &Repository, context: &Context) -> Result<Vec<Reader>> {
    let mut readers = Vec::new();
    // Another source may do where one fails.
    let failed = |e: Error| match e.kind() {
        ErrorKind::Interrupted => Err(e),
        _ => {
            context.warn(WarningId::SourceUnusable, message![e, "; not used"]);
            Ok(())
        }
    };
    let names = match repository.names() {
        Ok(names) => names,
        Err(e) => return failed(e).map(|()| readers),
    };
    for name in names {
        match read(repository, &name, context) {
            Ok(reader) => readers.push(reader),
            Err(e) => failed(e)?,
        }
    }
    Ok(readers)
}
