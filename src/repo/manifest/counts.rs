//! Which commits count where a repository has an owner (FORMAT.md V3 to V5): those that it signed, and
//! those that only add to the last one that counts. The others are skipped, as if they were not there; their
//! numbers stay taken.

use super::adds::check_unsigned;
use super::commit::{Standing, changed_meanwhile};
use super::files::{file_name, sequence_of};
use super::types::{MAX_MANIFEST_BYTES, Manifest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, Verb, message};
use crate::store::{Counted, Owner, Store};
use std::collections::BTreeSet;

/// A manifest that was read, and whether the owner signed it.
fn read(store: &dyn Store, owner: &Owner, name: &str, sequence: u64) -> Result<(Manifest, bool)> {
    let file = format!("{name}/{}", file_name(sequence));
    let bytes = store.read_whole(&file, MAX_MANIFEST_BYTES)?;
    let (manifest, is_signed) =
        Manifest::decode_signed(&bytes, Some(owner)).map_err(|e| e.at(store.location(&file)))?;
    // That of another image, or with another number, is signed as that.
    let is_itself = manifest.sequence == sequence && manifest.name == name;
    Ok((manifest, is_signed && is_itself))
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
) -> Result<Manifest> {
    let numbers: BTreeSet<u64> = files.iter().filter_map(|file| sequence_of(file)).collect();
    // From the last one back to one of which it is known that it counts.
    let (mut found, mut others) = (None, Vec::new());
    for sequence in numbers.into_iter().rev() {
        let known = owner.counted(name).filter(|known| known.sequence == sequence);
        match read(store, owner, name, sequence) {
            Ok((manifest, true)) => {
                let standing = Standing { signed: sequence, last: sequence };
                found = Some(Manifest { standing: Some(standing), ..manifest });
                break;
            }
            Ok((manifest, false)) => {
                let digest = manifest.read.as_ref().map(|read| read.digest.bytes());
                if let Some(known) = known.filter(|known| Some(known.digest) == digest) {
                    let standing = Standing { signed: known.signed, last: sequence };
                    found = Some(Manifest { standing: Some(standing), ..manifest });
                    break;
                }
                others.push((sequence, Ok(manifest)));
            }
            // It is collected since it was listed.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => others.push((sequence, Err(e))),
        }
    }
    let mut last = found;
    let mut number = last.as_ref().map_or(0, |last| last.sequence);
    // And on from there: numbers have no gaps.
    for (sequence, other) in others.into_iter().rev() {
        if sequence != number + 1 {
            break;
        }
        number = sequence;
        let other = other?;
        let is_itself = other.sequence == sequence && other.name == name;
        if is_itself && check_unsigned(last.as_ref(), &other).is_ok() {
            let signed = last.as_ref().and_then(|last| last.standing).map_or(0, |s| s.signed);
            let standing = Some(Standing { signed, last: number });
            last = Some(Manifest { standing, ..other });
        } else if let Some(Standing { last, .. }) =
            last.as_mut().and_then(|last| last.standing.as_mut())
        {
            *last = number;
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
    Error::new(ErrorKind::Mismatch, what).hint(message![
        "the owner signs what is there with ",
        Verb::Key.of("owner sign"),
        "; if it is another owner, name it with ",
        Setting::OwnerKey,
    ])
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
    pub(crate) fn is_last_of(&self, mut numbers: impl Iterator<Item = u64>) -> bool {
        match self.standing {
            // Those beyond a gap were put by somebody who wants numbers to come to an end.
            Some(standing) => !numbers.any(|number| number == standing.last + 1),
            None => numbers.max() == Some(self.sequence),
        }
    }

    /// True if the owner has signed it.
    pub(crate) fn is_signed(&self) -> bool {
        self.standing.is_some_and(|standing| standing.signed == self.sequence)
    }

    /// The number after which the next one comes.
    pub(super) fn last_number(&self) -> u64 {
        self.standing.map_or(self.sequence, |standing| standing.last.max(self.sequence))
    }
}
