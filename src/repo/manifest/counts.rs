//! Which commits count where a repository has an owner (FORMAT.md V3 to V5): those that it signed, and
//! those that only add to the last one that counts. The others are skipped, as if they were not there; their
//! numbers stay taken.

use super::adds::check_unsigned;
use super::commit::{Standing, changed_meanwhile};
use super::files::{file_name, sequence_of};
use super::text::read_text;
use super::types::{MAX_MANIFEST_BYTES, Manifest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Verb, message};
use crate::store::{Counted, Owner, Store};
use std::collections::{BTreeSet, HashSet};

/// What is at a number.
enum At {
    /// The owner has signed it, or it is known that it counts, which the number of the last signed one says.
    Anchor(Box<Manifest>, u64),
    /// It counts if it adds to what counts before it.
    Unsigned(Box<Manifest>),
    /// What is no manifest, or of another program, and nobody has signed.
    Nothing,
}

/// Reads what is at a number; none if it is gone.
///
/// # Errors
/// `Corrupt` if it is damaged; of the store.
fn read(store: &dyn Store, owner: &Owner, name: &str, sequence: u64) -> Result<Option<At>> {
    let file = format!("{name}/{}", file_name(sequence));
    let bytes = match store.read_whole(&file, MAX_MANIFEST_BYTES) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let (manifest, is_signed) = match Manifest::decode_signed(&bytes, Some(owner)) {
        Err(_) if is_strange(&bytes, owner) => return Ok(Some(At::Nothing)),
        decoded => decoded.map_err(|e| e.at(store.location(&file)))?,
    };
    // That of another image, or with another number, is signed as that.
    if manifest.sequence != sequence || manifest.name != name {
        return Ok(Some(At::Nothing));
    }
    let digest = manifest.read.as_ref().map(|read| read.digest.bytes());
    let known = owner
        .counted(name)
        .filter(|known| known.sequence == sequence && Some(known.digest) == digest);
    let manifest = Box::new(manifest);
    Ok(Some(match known {
        _ if is_signed => At::Anchor(manifest, sequence),
        Some(known) => At::Anchor(manifest, known.signed),
        None => At::Unsigned(manifest),
    }))
}

/// True for a text that is as it was written, makes no sense, and does not say that the owner wrote it.
fn is_strange(bytes: &[u8], owner: &Owner) -> bool {
    match read_text(bytes) {
        Ok((_, Some((key, ..)), _)) => key != owner.key,
        Ok((_, None, _)) => true,
        Err(_) => false,
    }
}

/// What becomes of a manifest that is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damaged {
    /// It may count: an error.
    MayCount,
    /// It is about to be followed by one of the owner.
    Skipped,
}

/// The last one that counts of those with these names.
///
/// # Errors
/// `Mismatch` if none does; `Corrupt` if one may that cannot be read.
pub(super) fn ruling_of_owned(
    store: &dyn Store,
    owner: &Owner,
    name: &str,
    files: &[String],
    damaged: Damaged,
) -> Result<Manifest> {
    let numbers: BTreeSet<u64> = files.iter().filter_map(|file| sequence_of(file)).collect();
    // From the last one back to one of which it is known that it counts.
    let (mut last, mut later): (Option<Manifest>, Vec<u64>) = (None, Vec::new());
    for sequence in numbers.into_iter().rev() {
        match read(store, owner, name, sequence) {
            Ok(Some(At::Anchor(manifest, signed))) => {
                let standing = Some(Standing { signed, last: sequence });
                last = Some(Manifest { standing, ..*manifest });
                break;
            }
            Err(e) if e.is_unread() => return Err(e),
            _ => later.push(sequence),
        }
    }
    // And on from there, one at a time: numbers have no gaps.
    let mut number = last.as_ref().map_or(0, |last| last.sequence);
    for sequence in later.into_iter().rev() {
        if sequence != number + 1 {
            break;
        }
        let found = match read(store, owner, name, sequence) {
            Err(e) if e.is_damage() && damaged == Damaged::Skipped => Some(At::Nothing),
            // It is gone, since one that is signed has come: whoever looks again finds that.
            found => found?,
        };
        let Some(found) = found else { break };
        number = sequence;
        match found {
            At::Unsigned(other) if check_unsigned(last.as_ref(), &other).is_ok() => {
                let signed = last.as_ref().and_then(|last| last.standing).map_or(0, |s| s.signed);
                let standing = Some(Standing { signed, last: number });
                last = Some(Manifest { standing, ..*other });
            }
            _ => {
                let standing = last.as_mut().and_then(|last| last.standing.as_mut());
                standing.into_iter().for_each(|standing| standing.last = number);
            }
        }
    }
    let last = last.ok_or_else(|| none_counts(store, owner, name))?;
    remember(owner, &last);
    Ok(last)
}

fn none_counts(store: &dyn Store, owner: &Owner, name: &str) -> Error {
    let place = store.location(name);
    let what =
        format!("{place}: nothing in it is signed by the owner of the repository, {}", owner.key);
    Error::new(ErrorKind::Mismatch, what)
        .hint(message!["the owner rebuilds it from what is there with ", Verb::Repair.of(name),])
}

/// Remembers that a manifest counts.
fn remember(owner: &Owner, manifest: &Manifest) {
    if let (Some(read), Some(standing)) = (&manifest.read, manifest.standing) {
        let (sequence, digest) = (manifest.sequence, read.digest.bytes());
        let counted = Counted { sequence, digest, signed: standing.signed };
        owner.has_counted(&manifest.name, counted);
    }
}

impl Manifest {
    /// Makes it one that may be committed without the owner key after the one that rules: what is named no
    /// more stays until the owner condemns it.
    ///
    /// # Errors
    /// `Auth` if it does more than add; `Busy` if something else rules by now.
    pub(super) fn leave_to_owner(&mut self, ruling: Option<&Self>) -> Result<Standing> {
        let digest = ruling.and_then(|ruling| ruling.read.as_ref()).map(|r| r.digest);
        if digest != self.previous {
            return Err(changed_meanwhile(&self.name));
        }
        self.condemned = ruling.map(|ruling| ruling.condemned.clone()).unwrap_or_default();
        self.swept = ruling.map_or(0, |ruling| ruling.swept);
        self.check()?;
        check_unsigned(ruling, self)?;
        let signed = ruling.and_then(|ruling| ruling.standing).map_or(0, |s| s.signed);
        Ok(Standing { signed, last: self.sequence })
    }

    /// The lowest number of the manifests that are needed to see that it rules.
    pub(crate) fn oldest_needed(&self) -> u64 {
        self.standing.map_or(self.sequence, |standing| standing.signed.min(self.sequence))
    }

    /// True if no manifest with one of these numbers may have come after it.
    pub(crate) fn is_last_of(&self, numbers: impl Iterator<Item = u64>) -> bool {
        let Some(standing) = self.standing else { return numbers.max() == Some(self.sequence) };
        // Those beyond a gap were put by somebody who wants numbers to come to an end; without its own, one
        // that is signed has come.
        let numbers: HashSet<u64> = numbers.collect();
        numbers.contains(&self.sequence) && !numbers.contains(&(standing.last + 1))
    }

    /// True if the owner has signed it.
    pub(crate) fn is_signed(&self) -> bool {
        self.standing.is_some_and(|standing| standing.signed == self.sequence)
    }

    /// True if others have taken numbers after it, with what does not count.
    pub(crate) fn is_followed(&self) -> bool {
        self.standing.is_some_and(|standing| standing.last > self.sequence)
    }

    /// The number after which the next one comes.
    pub(super) fn last_number(&self) -> u64 {
        self.standing.map_or(self.sequence, |standing| standing.last.max(self.sequence))
    }
}
