//! What is known of the live image: where it is, which file or device, which snapshot it last equalled, and
//! whether a rollback was begun and not ended. Most of it is of this host alone, and a hint: nothing is lost
//! without it. That a rollback has begun stands in the manifest, for every host.
//!
//! Earlier programs kept it in the repository (`head.json`). It is moved by the first writer that finds the
//! live file.

use crate::base::error::{ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Call, Setting, Verb, message};
use crate::image::{FileStat, ImageUri, LiveIdentity};
use crate::repo::Repository;
use crate::repo::host::HostName;
use crate::repo::manifest::{Ancestor, Manifest};
use crate::repo::names::is_guarded;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use uuid::Uuid;

/// What is known of the live image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Head {
    /// The snapshot that the live image last equalled.
    pub snapshot: Option<Uuid>,
    /// What the image file looked like then; none if that is not to be trusted.
    pub stat: Option<FileStat>,
    /// A rollback has begun: until it ends, the image is half written.
    pub intent: Option<RollbackIntent>,
    /// How often the image was found unchanged and no snapshot was made: each time another part of it was
    /// read again (FORMAT.md J6).
    pub skipped: u64,
    /// Where the live image is on this host.
    pub source: Option<ImageUri>,
    /// Which file or device that was when last seen. A rollback writes to nothing else.
    pub live: Option<LiveIdentity>,
    /// The host that it is of, if that is not this one.
    pub elsewhere: Option<HostName>,
    #[serde(skip)]
    origin: Origin,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Origin {
    /// Of this host.
    #[default]
    Here,
    /// Of the repository, by an earlier program; and whether the live file is there.
    Repository { is_found: bool },
}

/// A rollback that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackIntent {
    /// Where to.
    pub target: Uuid,
    /// The snapshot that holds the state before, if one was taken.
    pub saved: Option<Uuid>,
    /// Its identity, if it has one.
    #[serde(skip)]
    pub id: Option<Uuid>,
}

/// What a host keeps.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The host that wrote it: one that was copied, or is on a shared disk, is of another.
    machine: String,
    /// For people.
    repository: String,
    image: String,
    #[serde(with = "crate::repo::manifest::image_uri")]
    source: Option<ImageUri>,
    live: Option<LiveIdentity>,
    snapshot: Option<Uuid>,
    stat: Option<FileStat>,
    #[serde(default)]
    skipped: u64,
    /// The newest commit that was seen.
    newest: Option<Ancestor>,
}

/// `head.json` of earlier programs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InRepository {
    snapshot: Option<Uuid>,
    stat: Option<FileStat>,
    intent: Option<RollbackIntent>,
    #[serde(default)]
    skipped: u64,
}

fn file(name: &str) -> String {
    format!("{name}/head.json")
}

impl Head {
    /// What completes a rollback of the image to `place` (`NAME@N`) that was interrupted.
    pub fn finishing(&self, name: &str, place: &str) -> Call {
        let call = Verb::Rollback.of(name).with(Setting::To, place);
        // A disk that a machine has open is given back by the machine only.
        match self.source.as_ref().is_some_and(|source| source.machine().is_some()) {
            true => call.with(Setting::Reset, ""),
            false => call,
        }
    }

    /// What is known of the live image of `manifest`. What is damaged counts as not known, but for `true`: it
    /// might have held the intent of a rollback.
    ///
    /// # Errors
    /// If something is there but cannot be read.
    pub(crate) fn load(
        repository: &Repository,
        manifest: &Manifest,
        context: &Context,
    ) -> Result<(Self, bool)> {
        if let Some(head) = of_host(repository, manifest, context)? {
            return Ok((head.in_view_of(manifest), false));
        }
        let (mut head, is_damaged) = without_record(repository, manifest)?;
        let in_repository = head.intent;
        head = head.in_view_of(manifest);
        head.intent = head.intent.or(in_repository);
        Ok((head, is_damaged))
    }

    /// The same by what a manifest says now: another host may have dropped its snapshot, or begun a rollback.
    pub(crate) fn in_view_of(&self, manifest: &Manifest) -> Self {
        let mut head = self.clone();
        if head.snapshot.is_some_and(|id| manifest.by_id(id).is_none()) {
            (head.snapshot, head.stat) = (None, None);
        }
        head.intent = manifest.rollback.as_ref().map(|rollback| RollbackIntent {
            target: rollback.target,
            saved: rollback.saved,
            id: rollback.id,
        });
        head
    }

    /// What is known of a live image that is seen first.
    pub(crate) fn at(source: ImageUri) -> Self {
        Self { source: Some(source), ..Self::default() }
    }

    /// The snapshot that the image equals now, and what its file looks like.
    pub(crate) fn equal_to(&self, id: Uuid, stat: Option<FileStat>) -> Self {
        Self { snapshot: Some(id), stat, ..self.clone() }
    }

    /// True if the image may be a mixture: a rollback has begun, and perhaps written something. An intent may
    /// land long after its rollback was told to have failed.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub(crate) fn is_half_written(&self, repository: &Repository, image: Uuid) -> Result<bool> {
        let Some(intent) = self.intent else { return Ok(false) };
        let Some(id) = intent.id else { return Ok(true) };
        let note = repository.host.unwritten(repository.id(), image, id);
        Ok(!note.is_there()?)
    }

    /// True if an earlier program keeps it in the repository, and this host has the live file.
    pub(crate) fn is_to_be_moved(&self) -> bool {
        self.origin == Origin::Repository { is_found: true }
    }

    /// Keeps what this host knows, durably. What is in the repository of an image that is not here is left
    /// alone.
    pub(crate) fn save(&self, repository: &Repository, manifest: &Manifest) -> Result<()> {
        if self.origin == (Origin::Repository { is_found: false }) || self.source.is_none() {
            return Ok(());
        }
        let commit = manifest.commit;
        let record = Record {
            machine: repository.host.host().machine.clone(),
            repository: repository.location(),
            image: manifest.name.clone(),
            source: self.source.clone(),
            live: self.live.clone(),
            snapshot: self.snapshot,
            stat: self.stat.clone(),
            skipped: self.skipped,
            newest: commit.map(|commit| Ancestor { sequence: manifest.sequence, commit }),
        };
        repository.host.save(repository.id(), manifest.image_id, &record)
    }

    /// Moves to this host what an earlier program kept in the repository. An intent must stand in the
    /// manifest by then.
    pub(crate) fn move_here(&mut self, repository: &Repository, manifest: &Manifest) -> Result<()> {
        self.save(repository, manifest)?;
        self.origin = Origin::Here;
        let store = repository.store.as_ref();
        store.remove(&file(&manifest.name))?;
        store.sync_dir(&manifest.name)
    }
}

/// What this host has kept.
fn of_host(
    repository: &Repository,
    manifest: &Manifest,
    context: &Context,
) -> Result<Option<Head>> {
    let loaded = repository.host.load::<Record>(repository.id(), manifest.image_id);
    let record = match loaded {
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            context.warn(WarningId::HeadDamaged, e);
            return Ok(None);
        }
        other => other?,
    };
    let machine = &repository.host.host().machine;
    // Who linked the image elsewhere since has taken it from this host.
    let is_elsewhere = manifest.host.as_ref().is_some_and(|host| host.machine != *machine);
    let is_ours = |record: &Record| record.machine == *machine && !is_elsewhere;
    let record = record.filter(is_ours);
    let known = record.as_ref().and_then(|record| record.newest.as_ref());
    if let Some(e) = repository.seen().check(manifest, known)? {
        let what = "; a return to an older state would not be noticed";
        context.warn(
            WarningId::PlaceUnknown,
            message!["this host cannot remember the repository: ", e, what],
        );
    }
    let Some(record) = record else { return Ok(None) };
    let is_lost = |newest: &Ancestor| {
        let is_lost = !manifest.is_or_follows(newest);
        is_lost && context.is_heard() && repository.host.is_news(manifest.image_id)
    };
    if let Some(newest) = record.newest.filter(is_lost) {
        let (name, seen, now) = (&manifest.name, newest.sequence, manifest.sequence);
        let what = match seen > now {
            true => format!(
                "\"{name}\" is in an older state: this host has seen commit {seen}, but it is now at \
                 {now}; if this is an old copy of the repository, snapshots are missing"
            ),
            false => format!(
                "\"{name}\" is not what this host has seen: commit {seen} is not in its history; if this \
                 is another copy of the repository, the two have different snapshots"
            ),
        };
        context.warn(WarningId::TurnedBack, what);
    }
    Ok(Some(Head {
        snapshot: record.snapshot,
        stat: record.stat,
        intent: None,
        skipped: record.skipped,
        source: record.source,
        live: record.live,
        elsewhere: None,
        origin: Origin::Here,
    }))
}

/// Fails if an image that is sealed, or has an owner, is older than what this host has seen of it, before
/// anything is done that relies on its manifest.
///
/// # Errors
/// As of [`crate::repo::seen::Seen::check`].
pub(crate) fn check_seen(repository: &Repository, manifest: &Manifest) -> Result<()> {
    if !is_guarded(repository.store.as_ref()) {
        return Ok(());
    }
    let known = newest_kept(repository, manifest.image_id);
    repository.seen().check(manifest, known.as_ref()).map(drop)
}

/// The newest commit of an image in what this host keeps of its live file.
fn newest_kept(repository: &Repository, image: Uuid) -> Option<Ancestor> {
    let record = repository.host.load::<Record>(repository.id(), image).ok().flatten();
    record.filter(|record| record.machine == repository.host.host().machine)?.newest
}

/// The newest commit that this host has seen of such an image: what is rebuilt follows it.
pub(crate) fn newest_known(repository: &Repository, name: &str, image: Uuid) -> Option<Ancestor> {
    if !is_guarded(repository.store.as_ref()) {
        return None;
    }
    let seen = repository.seen().newest(name);
    newest_kept(repository, image).into_iter().chain(seen).max_by_key(|n| n.sequence)
}

/// Where the live image of a name is on this host, by what it has kept: that needs no manifest.
pub(crate) fn sources_without_manifest(
    repository: &Repository,
    name: &str,
) -> Result<Vec<ImageUri>> {
    let mut sources = Vec::new();
    for image in repository.host.images(repository.id())? {
        let record: Record = match repository.host.load(repository.id(), image) {
            Ok(Some(record)) => record,
            Err(e) if e.kind() != ErrorKind::Corrupt => return Err(e),
            _ => continue,
        };
        if record.image == name && record.machine == repository.host.host().machine {
            sources.extend(record.source);
        }
    }
    Ok(sources)
}

/// What the manifest tells, or what an earlier program left beside it.
fn without_record(repository: &Repository, manifest: &Manifest) -> Result<(Head, bool)> {
    let source = manifest.source.clone();
    match &manifest.host {
        Some(host) if host.machine == repository.host.host().machine => {
            return Ok((Head { source, ..Head::default() }, false));
        }
        Some(host) => {
            return Ok((Head { elsewhere: Some(host.clone()), ..Head::default() }, false));
        }
        // In a store that was not there for earlier programs, who is of no host is of nobody.
        None if repository.store.local_path().is_none() => return Ok((Head::default(), false)),
        None => {}
    }
    let store = repository.store.as_ref();
    let (kept, is_damaged) = match store.read_whole(&file(&manifest.name), 1 << 20) {
        Ok(bytes) => {
            let kept = serde_json::from_slice::<InRepository>(&bytes);
            kept.map_or((None, true), |kept| (Some(kept), false))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => (None, false),
        Err(e) if e.kind() == ErrorKind::Corrupt => (None, true),
        Err(e) => return Err(e),
    };
    let origin = Origin::Repository { is_found: is_found(manifest) };
    let live = manifest.live.clone();
    let mut head = Head { source, live, origin, ..Head::default() };
    if let Some(kept) = kept {
        (head.snapshot, head.stat) = (kept.snapshot, kept.stat);
        (head.intent, head.skipped) = (kept.intent, kept.skipped);
    }
    Ok((head, is_damaged))
}

/// True if the live file that an earlier program recorded is on this host.
fn is_found(manifest: &Manifest) -> bool {
    let Some(source) = manifest.source.as_ref().and_then(ImageUri::file) else { return false };
    let is_image = std::fs::metadata(source)
        .is_ok_and(|meta| meta.is_file() || meta.file_type().is_block_device());
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(source);
    let Some(file) = opened.ok().filter(|_| is_image) else { return false };
    match (&manifest.live, LiveIdentity::of(&file, device_bytes(&file))) {
        (Some(was), Some(is)) => was.difference(&is).is_none(),
        _ => true,
    }
}

/// The length of a device; of a file it tells nothing.
fn device_bytes(file: &File) -> u64 {
    use std::io::{Seek, SeekFrom};
    (&*file).seek(SeekFrom::End(0)).unwrap_or(0)
}
