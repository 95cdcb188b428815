//! The names of what is in the folder of an image (FORMAT.md section 7). Whatever has another name there is
//! not ours: it is never read as one of these, and never removed.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::repo::top;
use uuid::Uuid;

/// What a file in the folder of an image is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFile {
    /// The manifest with that sequence number.
    Manifest(u64),
    /// A delta file.
    Delta,
    /// What belongs to a snapshot and is not of the image.
    Attachment,
    /// The head state.
    Head,
    /// Somebody read, or began to change, what the manifest with that number names.
    Marker(u64),
    /// What is locked.
    Lock,
    /// One of these that was being written.
    Temporary,
}

/// Random digits in a temporary name.
const RANDOM: usize = 12;

impl ImageFile {
    /// None for a name that imgsnap gives to nothing.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "head.json" => return Some(Self::Head),
            "write.lock" | "reap.lock" => return Some(Self::Lock),
            _ => {}
        }
        if let Some(sequence) = sequence_of(name) {
            return Some(Self::Manifest(sequence));
        }
        if let Some((sequence, random)) =
            name.strip_prefix("marker.").and_then(|rest| rest.split_once('.'))
        {
            let sequence = sequence_of(&format!("manifest.{sequence}"))?;
            return is_random(random).then_some(Self::Marker(sequence));
        }
        if let Some((id, kind)) = name.rsplit_once('.')
            && Uuid::parse_str(id).is_ok_and(|parsed| parsed.to_string() == id)
        {
            return match kind {
                "delta" => Some(Self::Delta),
                "attachment" => Some(Self::Attachment),
                _ => None,
            };
        }
        let of = temporary_of(name)?;
        (!matches!(Self::of(of)?, Self::Lock | Self::Temporary)).then_some(Self::Temporary)
    }

    /// True for a file that is garbage unless a manifest names it.
    pub(crate) fn is_object(&self) -> bool {
        matches!(self, Self::Delta | Self::Attachment)
    }

    /// True for a delta file.
    pub fn is_delta(name: &str) -> bool {
        Self::of(name) == Some(Self::Delta)
    }
}

/// The name that a file with this temporary one was to get: `.NAME.0123456789ab.tmp`.
pub fn temporary_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix('.')?.strip_suffix(".tmp")?;
    let (of, random) = rest.rsplit_once('.')?;
    is_random(random).then_some(of)
}

fn is_random(text: &str) -> bool {
    text.len() == RANDOM && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A name that was never given before, for a marker of the manifest with that number.
pub(crate) fn marker_name(sequence: u64) -> String {
    let random = Uuid::new_v4().simple().to_string();
    format!("marker.{sequence:06}.{}", random.get(..RANDOM).unwrap_or_default())
}

/// A name that was never given before, for one attempt to upload a delta file: whatever arrives late of
/// another attempt is not taken for it (C3).
pub(crate) fn object_name() -> String {
    format!("{}.delta", Uuid::new_v4())
}

/// A name for one attempt to make a part of a plan (C3): whoever knows the plan knows that it is of it.
pub(crate) fn part_object(plan: Uuid) -> Uuid {
    let mut bytes = *Uuid::new_v4().as_bytes();
    let (beginning, _) = bytes.split_at_mut(PLAN_BYTES);
    beginning.copy_from_slice(plan.as_bytes().get(..PLAN_BYTES).unwrap_or_default());
    Uuid::from_bytes(bytes)
}

/// So many bytes of the id of a plan are the first ones of the names of its parts.
const PLAN_BYTES: usize = 8;

/// True for the name of a part of a plan.
pub(crate) fn is_of_plan(file: &str, plan: Uuid) -> bool {
    let object = file.strip_suffix(".delta").and_then(|id| Uuid::parse_str(id).ok());
    let beginning = |id: Uuid| id.as_bytes().get(..PLAN_BYTES).map(<[u8]>::to_vec);
    object.is_some_and(|object| beginning(object) == beginning(plan))
}

/// The file name of a manifest.
pub fn file_name(sequence: u64) -> String {
    format!("manifest.{sequence:06}")
}

/// The sequence number in a file name.
pub fn sequence_of(file: &str) -> Option<u64> {
    let sequence = file.strip_prefix("manifest.")?.parse().ok()?;
    (file_name(sequence) == file).then_some(sequence)
}

/// Checks the name of an image (FORMAT.md P2).
pub fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c.is_control() || c.is_whitespace() || c == '/' || c == '@';
    let is_bad = name.len() > 128 || name.starts_with(['.', '-']) || name.contains(bad);
    if name.is_empty() || is_bad || top::is_of_repository(name) {
        let what = format!("invalid image name \"{}\"", name.escape_debug());
        return Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
            "choose one with ",
            Setting::Name,
            ": up to 128 letters, digits, '-', '_' or '.'",
        ]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_give_are_ours() {
        const ID: &str = "18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291";
        let delta = &format!("{ID}.delta");
        for (name, what) in [
            ("manifest.000042", ImageFile::Manifest(42)),
            (delta, ImageFile::Delta),
            (&format!("{ID}.attachment"), ImageFile::Attachment),
            ("head.json", ImageFile::Head),
            ("reap.lock", ImageFile::Lock),
            ("marker.000042.0123456789ab", ImageFile::Marker(42)),
            (".head.json.0123456789ab.tmp", ImageFile::Temporary),
            (".manifest.000042.0123456789ab.tmp", ImageFile::Temporary),
            (&format!(".{delta}.0123456789ab.tmp"), ImageFile::Temporary),
        ] {
            assert_eq!(ImageFile::of(name), Some(what), "{name}");
        }
        for name in [
            "",
            "vm.img",
            "manifest.42",
            "mine.delta",
            &delta.to_uppercase(),
            &format!("{}.delta", ID.replace('-', "")),
            ".delta",
            ".tmp",
            ".mine.tmp",
            ".vm.img.0123456789ab.tmp",
            ".head.json.0123456789a.tmp",
            ".head.json.0123456789ax.tmp",
            ".write.lock.0123456789ab.tmp",
            "..head.json.0123456789ab.tmp.0123456789ab.tmp",
            "head.json~",
            "marker.42.0123456789ab",
            "marker.000042",
        ] {
            assert_eq!(ImageFile::of(name), None, "{name}");
        }
    }
}
