//! What hosts without the owner key ask the owner to drop (FORMAT.md V7): small objects at the top of the
//! repository, each with the exact snapshots.

use crate::base::checked_text::{read_checked, to_checked};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Verb, message};
use crate::repo::Repository;
use crate::repo::host::HostName;
use crate::repo::manifest::{Manifest, check_name};
use crate::repo::top::{request_file, request_id};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use uuid::Uuid;

const VERSION: u32 = 1;
/// So much of an id must be named.
const SHORTEST: usize = 8;
/// A request longer than that is none.
const MAX_BYTES: u64 = 1 << 20;

/// What a host asks the owner to drop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DropRequest {
    /// Of which image.
    pub image: String,
    /// Its identity.
    pub image_id: Uuid,
    /// Who asks, as it says.
    pub host: HostName,
    /// When, by its clock.
    pub time: Timestamp,
    /// The snapshots; none for the whole image.
    pub snapshots: Option<Vec<AskedSnapshot>>,
}

/// A snapshot that is to be dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AskedSnapshot {
    /// Its number.
    pub number: u64,
    /// Its identity.
    pub id: Uuid,
}

/// Leaves a request: to drop snapshots of an image, or all of it. Where the same host has asked for just that
/// already, that request stays. Returns which one it is.
///
/// # Errors
/// Of the store.
pub(crate) fn leave(
    repository: &Repository,
    manifest: &Manifest,
    ids: Option<&HashSet<Uuid>>,
) -> Result<Uuid> {
    let asked = |ids: &HashSet<Uuid>| {
        let meant = manifest.snapshots.iter().filter(|s| ids.contains(&s.id));
        meant.map(|s| AskedSnapshot { number: s.number, id: s.id }).collect()
    };
    let request = DropRequest {
        image: manifest.name.clone(),
        image_id: manifest.image_id,
        host: repository.host.host().clone(),
        time: Timestamp::now(),
        snapshots: ids.map(asked),
    };
    let own: Vec<(Uuid, DropRequest)> = all(repository)?
        .into_iter()
        .filter_map(|(id, there)| Some((id, there.ok()?)))
        .filter(|(_, there)| (&there.host, there.image_id) == (&request.host, request.image_id))
        .collect();
    if let Some((id, _)) = own.iter().find(|(_, there)| there.snapshots == request.snapshots) {
        return Ok(*id);
    }
    let failed = |e| Error::new(ErrorKind::InvalidInput, format!("cannot write the request: {e}"));
    let body = serde_json::to_string_pretty(&request).map_err(failed)?;
    let bytes = to_checked("request", VERSION, &format!("{body}\n"));
    if bytes.len() as u64 > MAX_BYTES {
        let what = format!("a request for {} snapshots is too long", manifest.snapshots.len());
        return Err(Error::new(ErrorKind::LimitExceeded, what).hint("ask for fewer at once"));
    }
    let id = id_of(&bytes);
    repository.store.put_if_absent(&request_file(id), &bytes)?;
    // What asks for less stands in nobody's way, where it may not be removed.
    for (before, _) in own.iter().filter(|(_, there)| is_covered(&request, there)) {
        best_effort(withdraw(repository, *before));
    }
    Ok(id)
}

/// True if one request asks for all that another one asks for.
fn is_covered(by: &DropRequest, asked: &DropRequest) -> bool {
    match (&by.snapshots, &asked.snapshots) {
        (Some(by), Some(asked)) => asked.iter().all(|snapshot| by.contains(snapshot)),
        (by, asked) => by.is_none() && asked.is_none(),
    }
}

/// What a request is called: by what it says, so that the one that was looked at is the one that is meant.
fn id_of(bytes: &[u8]) -> Uuid {
    let digest = blake3::hash(bytes);
    let (id, _) = digest.as_bytes().split_first_chunk().unwrap_or((&[0; 16], &[]));
    uuid::Builder::from_custom_bytes(*id).into_uuid()
}

/// All requests; each that cannot be read as an error.
///
/// # Errors
/// Of the store.
pub(crate) fn all(repository: &Repository) -> Result<Vec<(Uuid, Result<DropRequest>)>> {
    let store = repository.store.as_ref();
    let mut requests = Vec::new();
    for id in store.list("")?.iter().filter_map(|name| request_id(name)) {
        let file = request_file(id);
        let read = || {
            let bytes = store.read_whole(&file, MAX_BYTES)?;
            let (_, text) = read_checked("request", VERSION, &bytes)?;
            let request: DropRequest = serde_json::from_str(text)
                .map_err(|e| Error::corrupt(format!("the request is not valid: {e}")))?;
            if id_of(&bytes) != id {
                return Err(Error::corrupt("the request has changed"));
            }
            check_name(&request.image).map(|()| request)
        };
        match read() {
            // It was withdrawn in this moment.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            read => requests.push((id, read.map_err(|e| e.at(store.location(&file))))),
        }
    }
    let time = |read: &Result<DropRequest>| read.as_ref().map(|r| r.time).unwrap_or(Timestamp::MAX);
    requests.sort_by_key(|(id, read)| (time(read), *id));
    Ok(requests)
}

/// The request with an id, or a beginning of one.
///
/// # Errors
/// `NotFound` if there is none, or there are several.
pub(crate) fn find(repository: &Repository, id: &str) -> Result<(Uuid, Result<DropRequest>)> {
    if id.len() < SHORTEST {
        let what = format!("give at least {SHORTEST} digits of the id of a request");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let mut found = all(repository)?;
    found.retain(|(known, _)| known.to_string().starts_with(id));
    match (found.len(), found.pop()) {
        (1, Some(found)) => Ok(found),
        (count, _) => {
            let id = id.escape_debug();
            let what = match count {
                0 => format!("there is no request \"{id}\""),
                count => format!("{count} requests begin with \"{id}\""),
            };
            Err(Error::new(ErrorKind::NotFound, what)
                .hint(message![Verb::Requests.of("list"), " lists them"]))
        }
    }
}

/// Takes a request away.
///
/// # Errors
/// Of the store.
pub(crate) fn withdraw(repository: &Repository, id: Uuid) -> Result<()> {
    repository.store.remove(&request_file(id))?;
    repository.store.sync_dir("")
}
