//! The catalogue of an image: which snapshots live, and in which files (FORMAT.md section 8).
//!
//! A manifest is the only thing that is ever replaced, by publishing one with the next sequence
//! number: that is the commit. The highest number rules; if it is damaged, that is an error, never
//! a silent step back.

mod adds;
mod check;
mod commit;
mod counts;
mod files;
mod related;
mod succession;
mod text;
mod types;
pub(crate) mod wire;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Verb, message};
use crate::store::{Owner, Store};
use std::time::{Duration, Instant};

pub(crate) use adds::check_adds_only;
use commit::Standing;
pub(crate) use commit::changed_meanwhile;
pub use commit::{Ancestor, Condemned, ManifestDigest};
use counts::{Damaged, ruling_of_owned};
pub use files::{ImageFile, check_name, file_name, sequence_of, temporary_of};
pub(crate) use files::{is_of_plan, marker_name, object_name, part_object};
pub use related::{Attachment, BaseOf, Group, MAX_ATTACHMENT_BYTES, Pending, Pin, SnapshotPlace};
pub(crate) use related::{is_pin_object, pin_object};
pub(crate) use types::MAX_IMPORTED_NUMBER;
pub use types::{HintUse, MAX_MANIFEST_BYTES, Manifest, Rollback, Snapshot, Timings};
pub(crate) use wire::{image as image_uri, path};

/// The sequence number of the ruling manifest of an image; none if the image has none.
pub fn ruling(store: &dyn Store, name: &str) -> Result<Option<u64>> {
    Ok(store.list(name)?.iter().filter_map(|file| sequence_of(file)).max())
}

/// The same where one with that number was there: as little is listed as can be.
pub(crate) fn ruling_since(store: &dyn Store, name: &str, known: u64) -> Result<Option<u64>> {
    // Names sort as numbers do as long as those have six digits, or the first one is a zero.
    let first = if known < 100_000 { file_name(known) } else { file_name(0) };
    let first = first.strip_suffix("000000").unwrap_or(&first);
    let names = store.list_from(name, first).unwrap_or_default();
    match names.iter().filter_map(|file| sequence_of(file)).max() {
        // It is gone, or the server lists from a name in a way of its own.
        None => ruling(store, name),
        last => Ok(last),
    }
}

/// True if nothing has come after a manifest in the store.
///
/// # Errors
/// Of the store.
pub(crate) fn is_last(store: &dyn Store, manifest: &Manifest) -> Result<bool> {
    let (name, sequence) = (&manifest.name, manifest.sequence);
    if store.owner().is_none() {
        return Ok(ruling_since(store, name, sequence)? == Some(sequence));
    }
    let names = store.list(name)?;
    Ok(manifest.is_last_of(names.iter().filter_map(|file| sequence_of(file))))
}

/// Reads the ruling manifest of an image.
///
/// # Errors
/// `NotFound` if there is no such image; `Corrupt` if the manifest is damaged, or gone though there
/// are deltas.
pub fn load(store: &dyn Store, name: &str) -> Result<Manifest> {
    match load_last(store, name)? {
        last if last.forgotten => Err(no_image(name)),
        last => Ok(last),
    }
}

/// The same, also of an image that was removed.
pub(crate) fn load_last(store: &dyn Store, name: &str) -> Result<Manifest> {
    let mut tries = LOAD_TRIES;
    loop {
        let files = store.list(name)?;
        let listed = files.iter().filter_map(|file| sequence_of(file)).max();
        let loaded = load_ruling(store, name, listed, &files);
        let is_sure = loaded.is_ok() && store.sharing()?.is_locked();
        if is_sure || listed.is_none() || tries == 0 {
            return loaded;
        }
        // Somebody may have committed since it was listed, and have removed it; and without locks a manifest
        // that was on its way for long may have come into its place.
        if ruling_since(store, name, listed.unwrap_or(0))? == listed {
            return loaded;
        }
        tries -= 1;
    }
}

/// The same for whoever looks afterwards whether it still rules.
///
/// # Errors
/// As of [`load`].
pub(crate) fn load_unconfirmed(store: &dyn Store, name: &str) -> Result<Manifest> {
    let files = store.list(name)?;
    let listed = files.iter().filter_map(|file| sequence_of(file)).max();
    match load_ruling(store, name, listed, &files) {
        Ok(last) if !last.forgotten => Ok(last),
        // Somebody may have committed meanwhile.
        _ => load(store, name),
    }
}

/// The same of an image whose folder was listed, also of one that was removed.
///
/// # Errors
/// As of [`load`].
pub(crate) fn load_listed(store: &dyn Store, name: &str, files: &[String]) -> Result<Manifest> {
    let listed = files.iter().filter_map(|file| sequence_of(file)).max();
    // Somebody may have committed since, and have removed it.
    load_ruling(store, name, listed, files).or_else(|_| load_last(store, name))
}

/// How often a manifest is read that others replace meanwhile.
const LOAD_TRIES: usize = 16;

fn no_image(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no image \"{name}\" in the repository"))
        .hint(message![Verb::List.call(), " lists the images"])
}

/// Reads the last manifest that counts, whatever is damaged after it, where there is an owner.
///
/// # Errors
/// As of [`load`].
pub(crate) fn load_undamaged(store: &dyn Store, owner: &Owner, name: &str) -> Result<Manifest> {
    ruling_of_owned(store, owner, name, &store.list(name)?, Damaged::Skipped)
}

fn load_ruling(
    store: &dyn Store,
    name: &str,
    ruling: Option<u64>,
    files: &[String],
) -> Result<Manifest> {
    let repair = Verb::Repair.of(name);
    let hint = message!["run ", repair, " to rebuild it from the delta files"];
    let Some(sequence) = ruling else {
        if files.iter().any(|file| ImageFile::is_delta(file)) {
            let what = format!("{name}: the manifest is missing");
            return Err(Error::corrupt(what).hint(hint));
        }
        return Err(no_image(name));
    };
    let read = match store.owner() {
        Some(owner) => ruling_of_owned(store, owner, name, files, Damaged::MayCount),
        None => read_numbered(store, name, sequence),
    };
    read.map_err(|e| if e.is_damage() { e.or_hint(hint) } else { e })
}

fn read_numbered(store: &dyn Store, name: &str, sequence: u64) -> Result<Manifest> {
    let file = format!("{name}/{}", file_name(sequence));
    let bytes = store.read_whole(&file, MAX_MANIFEST_BYTES)?;
    let manifest = Manifest::decode(&bytes).map_err(|e| e.at(store.location(&file)))?;
    if manifest.sequence != sequence || manifest.name != name {
        let what = format!("{}: this manifest belongs to another image", store.location(&file));
        return Err(
            Error::corrupt(what).hint("the file was renamed or copied; put the right one back")
        );
    }
    Ok(manifest)
}

/// Commits `next` as the successor of the ruling manifest, which it was read from, with sequence number
/// `next.sequence`.
///
/// # Errors
/// `Busy` if somebody else committed in the meantime; `Auth` if it is for the owner to commit that. After any
/// other error the caller must take the commit as undecided: if the last sync failed, it may stand.
pub fn commit(store: &dyn Store, next: &mut Manifest) -> Result<()> {
    next.succeed()?;
    let owner = store.owner();
    next.standing = match owner {
        Some(owner) if owner.signer.is_none() => {
            let ruling = match load_last(store, &next.name) {
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                ruling => Some(ruling?),
            };
            Some(next.leave_to_owner(ruling.as_ref())?)
        }
        _ => {
            next.check()?;
            owner.map(|_| Standing { signed: next.sequence, last: next.sequence })
        }
    };
    let bytes = next.encode_for(owner)?;
    next.is_read_from(&bytes);
    let file = format!("{}/{}", next.name, file_name(next.sequence));
    if !store.sharing()?.is_locked() {
        return put_until_decided(store, next, &file, &bytes);
    }
    store.put_if_absent(&file, &bytes).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => changed_meanwhile(&next.name),
        _ => e,
    })
}

/// How often a manifest is put until it is known what became of it, and until when that is begun again: each
/// request to a server that is gone takes a minute.
const PUT_TRIES: u32 = 8;
const PUT_PATIENCE: Duration = Duration::from_secs(120);

/// Puts a manifest and looks who rules then (C1, C2). An answer proves nothing: of a number that is below
/// the highest one the manifest may have been collected, and a put without an answer may stand.
fn put_until_decided(store: &dyn Store, next: &Manifest, file: &str, bytes: &[u8]) -> Result<()> {
    let (mut error, begun) = (None, Instant::now());
    for attempt in 0..PUT_TRIES {
        if begun.elapsed() > PUT_PATIENCE {
            break;
        }
        let answer = store.put_if_absent(file, bytes);
        // What was put is not removed before a higher number is there.
        let is_highest = || {
            let highest = ruling_since(store, &next.name, next.sequence);
            highest.is_ok_and(|highest| highest == Some(next.sequence))
        };
        if answer.is_ok() && is_highest() {
            return Ok(());
        }
        match is_won(store, next) {
            Ok(Some(true)) => {
                // It may be there, and not be durable: that may be what failed.
                return answer.or_else(|_| store.sync_dir(&next.name));
            }
            Ok(Some(false)) => return Err(changed_meanwhile(&next.name)),
            Ok(None) => match answer {
                // It was refused, not lost.
                Err(e) if error.is_none() && is_refusal(&e) => return Err(e),
                answer => error = answer.err().or(error),
            },
            Err(e) => error = Some(e),
        }
        store.pause(attempt);
    }
    let what = format!("it is not known whether \"{}\" was changed", next.name);
    let error = error.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "no answer"));
    let error = Error::new(ErrorKind::Unavailable, format!("{what}: {}", error.without_advice()));
    Err(error
        .hint(message![Verb::List.of(&next.name), " shows it when the store can be reached again"]))
}

/// True for an answer that says that nothing was put, and nothing will be.
fn is_refusal(error: &Error) -> bool {
    error.is_storage_full() || error.is_read_only()
}

/// Whether a commit that was put is the one that rules, or one that it follows; none if that is not known.
pub(crate) fn is_won(store: &dyn Store, next: &Manifest) -> Result<Option<bool>> {
    let last = match load_last(store, &next.name) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if last.sequence < next.sequence {
        // What does not count may have taken the number.
        return Ok((last.last_number() >= next.sequence).then_some(false));
    }
    let mut commits = last.all_ancestors().into_iter();
    let at_number = commits.find(|commit| commit.sequence == next.sequence);
    Ok(at_number.map(|commit| Some(commit.commit) == next.commit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use uuid::Uuid;

    #[test]
    fn names_are_checked() {
        for name in ["vm", "web-01", "a.b", "größe", "config", "config.1"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            ".x",
            "-x",
            "a/b",
            "a@b",
            "a b",
            "a\nb",
            &"x".repeat(129),
            "repository.toml",
            "config.000001",
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn each_changed_byte_of_a_manifest_is_found() {
        let manifest = committed("vm", Some("/x/vm.img".into()));
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap().encode().unwrap(), bytes);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x04;
            assert!(Manifest::decode(&bad).is_err(), "byte {at}");
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    fn committed(name: &str, source: Option<PathBuf>) -> Manifest {
        let commit = Some(Uuid::new_v4());
        Manifest { sequence: 1, commit, ..Manifest::new(name, source.map(Into::into)) }
    }

    #[test]
    fn a_number_is_written_as_it_was_read() {
        let read = |digits: &str| serde_json::from_str::<f64>(digits).unwrap().to_string();
        // Digits that a reader who only comes near them turns into others, with each reading anew.
        assert_eq!(read("0.04701644444444445"), "0.04701644444444445");
    }

    #[test]
    fn only_canonical_versions_are_read() {
        let kind = |manifest: &Manifest, version: &str| {
            let text = String::from_utf8(manifest.encode().unwrap()).unwrap();
            let (_, rest) = text.split_once(' ').unwrap().1.split_once(' ').unwrap();
            let text = format!("imgsnap-manifest {version} {rest}");
            Manifest::decode(text.as_bytes()).err().map(|e| e.kind())
        };
        let (new, committed) = (Manifest::new("vm", None), committed("vm", None));
        assert_eq!((kind(&new, "1"), kind(&committed, "3")), (None, None));
        // Two means that there are dropped ones, three that it is a commit with an id.
        assert_eq!(kind(&new, "3"), Some(ErrorKind::Corrupt));
        for damaged in ["", "0", "01", "+3", "-3", "3x", "2", "4"] {
            assert_eq!(kind(&committed, damaged), Some(ErrorKind::Corrupt), "{damaged}");
        }
        for later in ["5", "10", "99999999999999999999"] {
            assert_eq!(kind(&committed, later), Some(ErrorKind::Unsupported), "{later}");
        }
        let needy = Manifest { needs: vec!["tomorrow".into()], ..committed };
        assert_eq!(kind(&needy, "3"), Some(ErrorKind::Unsupported));
    }

    #[test]
    fn the_last_number_is_found_from_any_that_was_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("vm")).unwrap();
        let store = crate::store::store_at(folder.path()).unwrap();
        let mut numbers = Vec::new();
        for number in [1, 9, 99_999, 100_000, 999_999, 1_000_000, 10_000_001] {
            std::fs::write(folder.path().join("vm").join(file_name(number)), "").unwrap();
            numbers.push(number);
            for known in &numbers {
                let last = ruling_since(store.as_ref(), "vm", *known).unwrap();
                assert_eq!(last, Some(number), "since {known}");
            }
        }
    }

    #[test]
    fn only_canonical_file_names_are_manifests() {
        assert_eq!(sequence_of("manifest.000042"), Some(42));
        assert_eq!(sequence_of("manifest.1234567"), Some(1_234_567));
        for name in ["manifest.42", "manifest.+00042", "manifest.", "manifest.000042.tmp"] {
            assert_eq!(sequence_of(name), None, "{name}");
        }
    }
}
