//! Whether a store keeps its promises (docs/stores.md): tried on the very place, before a host first writes
//! there, and again from time to time. What another store of the same kind does says nothing: one with
//! versions, say, lets several writers win.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Setting, Verb, message};
use crate::repo::host::HostState;
use crate::repo::top::{is_probe, probe_name};
use crate::store::Store;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Barrier;

/// The folder of the host state that the records are in; no repository can be called so.
const FOLDER: &str = "probes";
/// How many put at the same time, and how often.
const RACERS: usize = 8;
const ROUNDS: usize = 3;
/// After so long it is tried again: a bucket may have got versions meanwhile.
const LIFE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What is older is nobody's any more.
const LEFT: SignedDuration = SignedDuration::from_hours(24);

/// What a host remembers of a place that has kept its promises.
#[derive(Serialize, Deserialize)]
struct Record {
    machine: String,
    url: String,
    time: Timestamp,
}

/// Probes a store on a server, unless this host has done so lately.
///
/// # Errors
/// `Unsupported` if it does not keep its promises.
pub(crate) fn ensure(store: &dyn Store, host: &HostState) -> Result<()> {
    // On a file system with locks, which is known.
    let Some(url) = store.url().filter(|_| !store.sharing().is_ok_and(|s| s.is_locked())) else {
        return Ok(());
    };
    let digest = blake3::hash(url.as_bytes()).to_hex();
    let file = format!("{FOLDER}/{}.json", digest.get(..32).unwrap_or_default());
    let now = Timestamp::now();
    let record: Option<Record> = host.load_file(&file).unwrap_or_default();
    let is_known = record.is_some_and(|record| {
        let age = now.duration_since(record.time);
        record.machine == host.host().machine && (SignedDuration::ZERO..LIFE).contains(&age)
    });
    if is_known {
        return Ok(());
    }
    probe(store)?;
    let (machine, url) = (host.host().machine.clone(), url.to_owned());
    // Otherwise it is tried again the next time.
    best_effort(host.save_file(&file, &Record { machine, url, time: now }));
    Ok(())
}

/// Tries what a repository relies on.
///
/// # Errors
/// `Unsupported` if a promise is not kept.
pub(crate) fn probe(store: &dyn Store) -> Result<()> {
    let broken = |what: &str| {
        let place = store.location("");
        let what = format!("{place}: the store cannot exclude concurrent writers: {what}");
        Error::new(ErrorKind::Unsupported, what).hint(message![
            "use a bucket without versioning and object lock; if only one host writes to it, run ",
            Verb::Init.call().with(Setting::SingleWriter, ""),
            " (docs/stores.md)",
        ])
    };
    sweep(store);
    let mut made = Vec::new();
    let outcome = in_sequence(store, &mut made)
        .and_then(|outcome| outcome.map_or_else(|| in_races(store, &mut made), |w| Ok(Some(w))));
    for name in &made {
        // Whoever may only add leaves them; they are small, and whoever may remove them does.
        best_effort(store.remove(name));
    }
    match outcome? {
        Some(what) => Err(broken(&what)),
        None => Ok(()),
    }
}

/// Removes what probes have left that were killed.
fn sweep(store: &dyn Store) {
    let Ok(listed) = store.list_timed("") else { return };
    let old = Timestamp::now().saturating_sub(LEFT).unwrap_or_default();
    for object in listed.iter().filter(|object| is_probe(&object.name) && object.time < old) {
        best_effort(store.remove(&object.name));
    }
}

/// What is wrong, if anything is, with puts one after the other.
fn in_sequence(store: &dyn Store, made: &mut Vec<String>) -> Result<Option<String>> {
    let name = probe_name();
    made.push(name.clone());
    store.put_if_absent(&name, b"first")?;
    match store.put_if_absent(&name, b"second") {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
        Ok(()) => return Ok(Some("a second put replaces the first one".into())),
    }
    if store.read_whole(&name, 16)? != b"first" {
        return Ok(Some("what was put is not what is read".into()));
    }
    Ok((!store.list("")?.contains(&name)).then(|| "what was put is not listed at once".into()))
}

/// What is wrong with puts at the same time.
fn in_races(store: &dyn Store, made: &mut Vec<String>) -> Result<Option<String>> {
    for _ in 0..ROUNDS {
        let name = probe_name();
        made.push(name.clone());
        let start = Barrier::new(RACERS);
        let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    let (name, start) = (&name, &start);
                    scope.spawn(move || {
                        start.wait();
                        store.put_if_absent(name, format!("racer {racer}").as_bytes())
                    })
                })
                .collect();
            let failed = || Error::new(ErrorKind::Internal, "a probe has failed");
            racers.into_iter().map(|racer| racer.join().map_err(|_| failed())?).collect()
        });
        let winners: Vec<usize> =
            outcomes.iter().enumerate().filter(|(_, o)| o.is_ok()).map(|(i, _)| i).collect();
        if let [_, _, ..] = winners.as_slice() {
            let what = format!("{} of {RACERS} puts at once succeed", winners.len());
            return Ok(Some(what));
        }
        // One whose answer was lost may have won.
        let there = store.read_whole(&name, 16)?;
        match winners.first() {
            Some(winner) if there != format!("racer {winner}").as_bytes() => {
                return Ok(Some("a put that succeeded was replaced".into()));
            }
            _ => {}
        }
        if let Some(Err(e)) = outcomes.into_iter().find(|outcome| {
            let is_beaten = |e: &Error| e.kind() == ErrorKind::AlreadyExists;
            outcome.as_ref().is_err_and(|e| !is_beaten(e) && e.kind() != ErrorKind::Unavailable)
        }) {
            return Err(e);
        }
    }
    Ok(None)
}

/// What to say of a repository that another host alone writes to.
pub(crate) fn refuse_other_writer(place: &str, writer: &str) -> Error {
    let what = format!("{place}: only the host {writer} writes to it (single_writer)");
    Error::new(ErrorKind::Mismatch, what).hint("use that host, or another repository")
}
