//! Each verb that uses a repository, with what is there before, for `each_request.rs`.

use crate::desk::{Desk, context, digest, keep, restored};
use imgsnap::base::events::{Event, Observer};
use imgsnap::image::Source;
use imgsnap::image::write::Medium;
use imgsnap::store::{Store, World};
use imgsnap::{
    At, Context, Defaults, DiffSide, Error, ErrorKind, ExportRequest, ParentChoice, PruneRequest,
    Reference, Repository, RestoreRequest, RestoreTarget, Result, RollbackRequest, SnapshotRequest,
    Track, VerifyScope, WatchRequest,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Verb {
    pub name: &'static str,
    pub setup: fn(&Desk),
    /// Gives what it tells, which is the same whenever it succeeds.
    pub act: fn(&Desk) -> Result<String>,
    pub effect: Effect,
}

/// What of it may be there after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// All of it, or nothing.
    Whole,
    /// There is more than one commit: also what the first ones did; and what the first one saved is saved again
    /// if the host does not know that it was.
    Saving,
    /// The same without that, and it succeeds although the last ones failed, which are left to the next prune.
    RestLater,
    /// What it could not read to its end is left out, until it runs again.
    LeftOut,
}

type Setup = fn(&Desk);
type Run = fn(&Desk) -> Result<String>;

const fn verb(name: &'static str, setup: Setup, act: Run) -> Verb {
    Verb { name, setup, act, effect: Effect::Whole }
}

pub const VERBS: [Verb; 40] = [
    // What is dropped is merged afterwards, with a commit for each merge, or by the next prune.
    Verb {
        effect: Effect::RestLater,
        ..verb("prune, with merges", grown, |desk| prune(desk, &keep(2).compact(true)))
    },
    // A snapshot saves the present state, then the intent is noted, and taken back in the end.
    Verb { effect: Effect::Saving, ..verb("rollback", grown, |desk| roll(desk, true)) },
    Verb { effect: Effect::Saving, ..verb("rollback, not saved", grown, |desk| roll(desk, false)) },
    Verb { effect: Effect::Saving, ..verb("rollback, resumed", half_written, |d| roll(d, true)) },
    verb("watch, a turn", grown, watch),
    Verb { effect: Effect::LeftOut, ..verb("repair, lost manifest", without_manifests, repair) },
    verb("flatten", grown, |desk| {
        let after = desk.open()?.flatten("a", &At::Number(4), &context())?.after;
        Ok(format!("{} {:?}", after.number, after.parent))
    }),
    verb("delete, middle, merged", grown, |desk| delete(desk, 2, true)),
    Verb {
        effect: Effect::RestLater,
        ..verb("delete, base, merged", grown, |desk| delete(desk, 1, true))
    },
    verb("delete, middle", grown, |desk| delete(desk, 2, false)),
    verb("delete, head", grown, |desk| delete(desk, 4, false)),
    verb("prune, after the grace period", condemned, |desk| prune(desk, &keep(100))),
    verb(
        "init",
        |_| (),
        |desk| {
            Repository::init_in(desk.store.clone(), Defaults::default(), desk.host.clone())?;
            Ok(String::new())
        },
    ),
    verb("snapshot, the first", begun, |desk| take(desk, &request(desk))),
    verb("snapshot, the first after a remove", removed, |desk| take(desk, &request(desk))),
    verb("snapshot, full", grown, |desk| {
        take(desk, &request(desk).parent(ParentChoice::Full).label(Some("full".into())))
    }),
    verb("snapshot, on a base image", grown, |desk| {
        let base_image = desk.folder.join("moved");
        take(desk, &request(desk).parent(ParentChoice::Full).base_image(Some(base_image)))
    }),
    verb("snapshot, based on another image", grown, |desk| take(desk, &on_other(desk))),
    verb("delete, what is based on another image", based, |desk| delete(desk, 5, false)),
    verb("flatten, what is based on another image", based, |desk| {
        let after = desk.open()?.flatten("a", &At::Number(5), &context())?.after;
        Ok(format!("{} {:?}", after.number, after.base_of))
    }),
    verb("restore, based on another image", based, |desk| {
        Ok(digest(&restored(&desk.open()?, "a", 5)?).to_string())
    }),
    verb("snapshot, incremental", grown, |desk| take(desk, &request(desk))),
    verb("snapshot, unchanged", unchanged, |desk| take(desk, &request(desk).skip_unchanged(true))),
    verb("restore", grown, |desk| Ok(digest(&restored(&desk.open()?, "a", 4)?).to_string())),
    verb("restore, onto what is there", grown, update),
    verb("list", grown, |desk| {
        let listed = desk.open()?.list("a", &context())?.manifest.snapshots;
        let listed: Vec<_> = listed.into_iter().map(|s| (s.number, s.label)).collect();
        Ok(format!("{listed:?}"))
    }),
    verb("stats", grown, |desk| {
        let stats = desk.open()?.stats("a", &context())?;
        Ok(stats.costs.len().to_string())
    }),
    verb("verify", grown, verify),
    verb("label", grown, |desk| {
        let at = At::Number(3);
        Ok(format!("{:?}", desk.open()?.label("a", &at, Some("three"), &context())?.label))
    }),
    verb("protect", grown, |desk| {
        let at = At::Number(3);
        Ok(desk.open()?.protect("a", &at, true, &context())?.protected.to_string())
    }),
    verb("remove", grown, |desk| Ok(desk.open()?.remove("a", &context())?.snapshots.to_string())),
    Verb { effect: Effect::LeftOut, ..verb("repair, sound", grown, repair) },
    verb("import, another image", begun, import),
    // Its salt is another one each time.
    verb("export", grown, |desk| Ok(export(&desk.open()?, 4, Some(2))?.len().to_string())),
    verb("relink", grown, |desk| {
        let moved = desk.folder.join("moved");
        Ok(desk
            .open()?
            .relink("a", &moved, Some(imgsnap::image::ImageFormat::RAW), &context())?
            .image
            .to_string())
    }),
    verb("config", grown, |desk| {
        let was = Repository::configuration(desk.store.as_ref())?;
        let text =
            format!("{}\n[prune]\nkeep_last = 7\n", was.text.split("\n[prune]").next().unwrap());
        let now = Repository::replace_configuration(desk.store.as_ref(), &was, &text)?;
        Ok(format!("{:?}", now.number))
    }),
    verb("diff", grown, |desk| {
        let side =
            |number| DiffSide::Snapshot(Reference { name: "a".into(), at: At::Number(number) });
        Ok(format!("{:?}", desk.open()?.diff(&side(2), &side(4), &context())?))
    }),
    verb("view", grown, |desk| {
        let view = desk.open()?.view("a", &At::Number(3), &context())?;
        let mut buffer = Vec::new();
        let window = view.read(0, BLOCKS * BLOCK, &mut buffer)?;
        Ok(digest(window.bytes()).to_string())
    }),
    verb("repair, lost configuration", without_config, |desk| {
        let store: Arc<dyn Store> = desk.store.clone();
        Ok(format!("{}", Repository::restore_config(&store)?.is_some()))
    }),
    verb("untrack", grown, |desk| Ok(desk.open()?.untrack("a", &context())?.len().to_string())),
];

const BLOCK: usize = 4096;
const BLOCKS: usize = 5;

/// An image of a day: each day another block is another one.
fn write_image(path: &Path, day: usize) {
    let block = |index: usize| {
        let last = (0..=day).rev().find(|day| day % BLOCKS == index).unwrap_or(100);
        uuid::Uuid::from_u128((last * BLOCKS + index) as u128 * 0x1234_5678_9abc_def1).into_bytes()
    };
    let bytes: Vec<u8> = (0..BLOCKS).flat_map(|index| block(index).repeat(BLOCK / 16)).collect();
    std::fs::write(path, bytes).unwrap();
}

fn request_of(path: &Path) -> SnapshotRequest {
    SnapshotRequest::new(path)
        .track(Some(Track::None))
        .format(Some(imgsnap::image::ImageFormat::RAW))
        .full_scan(true)
}

fn request(desk: &Desk) -> SnapshotRequest {
    request_of(&desk.folder.join("a"))
}

/// A chain that begins anew from the other image.
fn on_other(desk: &Desk) -> SnapshotRequest {
    let other = Reference { name: "other".into(), at: At::Number(1) };
    request(desk).parent(ParentChoice::Full).base_of(Some(other))
}

fn based(desk: &Desk) {
    grown(desk);
    take(desk, &on_other(desk)).unwrap();
}

fn take(desk: &Desk, request: &SnapshotRequest) -> Result<String> {
    let taken = desk.open()?.snapshot(request, &context())?;
    Ok(format!("{} {:?}", taken.snapshot.number, taken.outcome))
}

/// A repository with another image, and a live image of which there is no snapshot.
fn begun(desk: &Desk) {
    let (store, host) = (desk.store.clone(), desk.host.clone());
    let repository = Repository::init_in(store, Defaults::default(), host).unwrap();
    let other = desk.folder.join("other");
    write_image(&other, 7);
    repository.snapshot(&request_of(&other), &context()).unwrap();
    write_image(&desk.folder.join("a"), 0);
    write_image(&desk.folder.join("moved"), 9);
    deliver(&desk.folder);
}

/// Four snapshots, and a live image that has changed since.
fn grown(desk: &Desk) {
    begun(desk);
    for day in 0..4 {
        write_image(&desk.folder.join("a"), day);
        take(desk, &request(desk)).unwrap();
    }
    let repository = desk.open().unwrap();
    repository.label("a", &At::Number(2), Some("two"), &context()).unwrap();
    write_image(&desk.folder.join("a"), 4);
}

fn unchanged(desk: &Desk) {
    grown(desk);
    write_image(&desk.folder.join("a"), 3);
}

/// What was dropped, and what a writer that died has uploaded, is condemned, and its time is over.
fn condemned(desk: &Desk) {
    grown(desk);
    delete(desk, 2, true).unwrap();
    let orphan = format!("other/{}.delta", uuid::Uuid::from_u128(7));
    desk.store.put_if_absent(&orphan, b"").unwrap();
    desk.store.world.pass(Duration::from_secs(20 * 24 * 3600));
}

/// Writes a part, and no more.
struct Failing;

impl Medium for Failing {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
        Err(std::io::ErrorKind::StorageFull.into())
    }
}

fn half_written(desk: &Desk) {
    grown(desk);
    let request = RollbackRequest::new("a", At::Number(1));
    let failed = desk.open().unwrap().rollback_through(&Failing, &request, &context());
    assert!(failed.unwrap_err().is_storage_full());
}

fn removed(desk: &Desk) {
    grown(desk);
    desk.open().unwrap().remove("a", &context()).unwrap();
}

fn without_manifests(desk: &Desk) {
    grown(desk);
    let names = desk.store.world.names();
    let lost = names.iter().filter(|name| name.starts_with("a/manifest."));
    lost.for_each(|name| desk.store.remove(name).unwrap());
}

fn without_config(desk: &Desk) {
    grown(desk);
    desk.store.remove("config.000001").unwrap();
}

/// Puts a snapshot of another repository into the folder.
fn deliver(folder: &Path) {
    let desk = Desk::sound(folder, &World::default(), &World::default());
    let (store, host) = (desk.store.clone(), desk.host.clone());
    let repository = Repository::init_in(store, Defaults::default(), host).unwrap();
    take(&desk, &request(&desk)).unwrap();
    std::fs::write(folder.join("delivery"), export(&repository, 1, None).unwrap()).unwrap();
}

fn import(desk: &Desk) -> Result<String> {
    let bytes = std::fs::read(desk.folder.join("delivery")).unwrap();
    let imported = desk.open()?.import(&mut &bytes[..], "a file", Some("a"), &context())?;
    Ok(imported.snapshot.number.to_string())
}

fn export(repository: &Repository, number: u64, since: Option<u64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let request = ExportRequest::new("a", At::Number(number)).since(since.map(At::Number));
    let mut out = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    repository.export(&request, &context(), &mut out)?;
    Ok(bytes)
}

fn delete(desk: &Desk, number: u64, compact: bool) -> Result<String> {
    let deleted = desk.open()?.delete("a", &At::Number(number), compact, &context())?;
    Ok(deleted.snapshot.number.to_string())
}

fn prune(desk: &Desk, request: &PruneRequest) -> Result<String> {
    let pruned = desk.open()?.prune("a", request, &context())?;
    let kept = pruned.decisions.iter().filter(|(_, reasons)| !reasons.is_empty());
    Ok(format!("{:?}", kept.map(|(s, _)| s.number).collect::<Vec<_>>()))
}

fn roll(desk: &Desk, save: bool) -> Result<String> {
    let request = RollbackRequest::new("a", At::Number(1)).save(save);
    let rolled = desk.open()?.rollback(&request, &context())?;
    let live = digest(&std::fs::read(desk.folder.join("a")).unwrap());
    Ok(format!("{:?} {live}", rolled.saved))
}

/// Onto a file that holds another state.
fn update(desk: &Desk) -> Result<String> {
    let target = desk.folder.join("target");
    write_image(&target, 2);
    let request = RestoreRequest::new("a").at(At::Number(4)).update(true).trust_target(true);
    desk.open()?.restore(&request.force(true), RestoreTarget::Path(&target), &context())?;
    Ok(digest(&std::fs::read(&target).unwrap()).to_string())
}

/// What it could not use is in the outcome: here it is an error.
fn repair(desk: &Desk) -> Result<String> {
    let repaired = desk.open()?.repair("a", &context())?;
    let unused = repaired.rebuilt.iter().flat_map(|rebuilt| &rebuilt.unused);
    match repaired.missing.iter().chain(unused).next() {
        Some((file, why)) => Err(Error::corrupt(format!("{file}: {why}"))),
        None => Ok(String::new()),
    }
}

/// What is damaged, and what could not be checked, is in the outcome: here it is an error.
fn verify(desk: &Desk) -> Result<String> {
    let verified = desk.open()?.verify(&VerifyScope::All, false, &context())?;
    if let Some(damage) = verified.damaged.first() {
        return Err(Error::corrupt(damage.message.to_string()));
    }
    if let Some(unchecked) = verified.unchecked.first() {
        return Err(Error::new(ErrorKind::Unavailable, unchecked.message.to_string()));
    }
    Ok(format!("{} {}", verified.snapshots, verified.blocks))
}

struct Silent;

impl Observer for Silent {
    fn observe(&self, _event: Event) {}
}

/// One turn, a snapshot and a prune, and then it is told to stop.
fn watch(desk: &Desk) -> Result<String> {
    let stop = Arc::new(AtomicBool::new(false));
    let context = Context::new(Arc::new(Silent), stop.clone()).with_threads(1);
    let outcome = Mutex::new(None);
    let request = WatchRequest::new(vec![request(desk)], Duration::from_secs(3600));
    desk.open()?.watch(&request.rules(keep(100).rules), &context, |watched| {
        stop.store(true, Relaxed);
        *outcome.lock().unwrap() = Some((watched.result, watched.pruned));
    })?;
    let (taken, pruned) = outcome.into_inner().unwrap().unwrap();
    let taken = taken?;
    pruned.transpose()?;
    Ok(format!("{} {:?}", taken.snapshot.number, taken.outcome))
}
