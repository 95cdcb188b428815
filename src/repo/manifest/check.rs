//! The rules that hold in every manifest (FORMAT.md J3, J4, J18 to J21). Whoever calculates with it relies on
//! them.

use crate::base::error::{Error, Result};
use crate::format::footer::{MAX_LABEL_BYTES, MAX_NUMBER};
use crate::format::part::MAX_PARTS;
use crate::image::ImageUri;
use crate::repo::manifest::files::{ImageFile, check_name};
use crate::repo::manifest::related::{Attachment, MAX_ATTACHMENT_BYTES};
use crate::repo::manifest::types::{Manifest, Snapshot};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use uuid::Uuid;

/// So many snapshots of an image may be unfinished.
const MAX_PENDING: usize = 1000;

/// Longest name of an attachment, in bytes: as of a file.
const MAX_NAME_BYTES: usize = 255;

impl Manifest {
    pub(crate) fn check(&self) -> Result<()> {
        self.find_wrong().map_or(Ok(()), |wrong| {
            Err(Error::corrupt(format!("the manifest is not valid: {wrong}")))
        })
    }

    fn find_wrong(&self) -> Option<String> {
        if let Err(e) = check_name(&self.name) {
            return Some(e.message().to_owned());
        }
        if let Some(wrong) = self.find_wrong_in_commit() {
            return Some(wrong.into());
        }
        if !self.dropped.is_sorted_by_key(|s| s.number)
            || self.dropped.iter().any(|s| s.label.is_some())
        {
            return Some("the dropped snapshots are out of order, or have labels".into());
        }
        if self.dropped.iter().any(|s| s.protected) {
            return Some("a dropped snapshot is protected".into());
        }
        if let Some(wrong) = self.find_wrong_in_relations() {
            return Some(wrong.into());
        }
        if !self.snapshots.is_sorted_by_key(|s| s.number) {
            return Some("the snapshots are out of order".into());
        }
        let base_images = self.stored().into_iter().filter_map(|s| s.base_image.as_deref());
        let source = self.source.as_ref().and_then(ImageUri::file);
        if let Some(path) = source.into_iter().chain(base_images).find(is_relative) {
            return Some(format!("{path:?} is not an absolute path"));
        }
        let (mut ids, mut labels, mut last) = (HashMap::new(), HashSet::new(), 0);
        let mut files = HashSet::new();
        for snapshot in self.stored() {
            let number = snapshot.number;
            if number <= last || number >= self.next_number || number >= MAX_NUMBER {
                let what = format!("number {number} occurs twice, or is not below the next one");
                return Some(what);
            }
            last = number;
            if snapshot.parent.is_some_and(|p| !ids.contains_key(&p)) {
                return Some(format!("the parent of {number} is missing or newer"));
            }
            if ids.insert(snapshot.id, number).is_some() {
                return Some(format!("the id of {number} occurs twice"));
            }
            if let Some(label) = &snapshot.label
                && !labels.insert(label)
            {
                return Some(format!("the label {label:?} occurs twice"));
            }
            if !snapshot.files().all(|file| files.insert(file)) {
                return Some(format!("the file of {number} occurs twice"));
            }
            if let Some(wrong) = wrong_in(snapshot) {
                return Some(format!("{wrong} of {number}"));
            }
        }
        self.sizes_add_up().is_none().then(|| "its sizes are impossibly large".into())
    }

    /// What is wrong with what its snapshots have to do with others.
    fn find_wrong_in_relations(&self) -> Option<&'static str> {
        let is_bare = |s: &Snapshot| s.attachments.is_empty() && s.pins.is_empty();
        if !self.dropped.iter().all(is_bare) {
            return Some("a dropped snapshot has attachments, or something depends on it");
        }
        let is_wrong = |s: &&Snapshot| {
            let of = s.base_of.as_ref();
            of.is_some_and(|of| {
                let is_root = s.parent.is_none() && s.base_image.is_none();
                !is_root || of.image == self.image_id || check_name(&of.name).is_err()
            })
        };
        if self.stored().iter().any(is_wrong) {
            return Some("a chain that starts from another image does not start there");
        }
        let attachments = || self.snapshots.iter().flat_map(|s| &s.attachments);
        let is_attachment = |a: &Attachment| {
            let is_object = ImageFile::of(&a.object) == Some(ImageFile::Attachment);
            is_object && a.bytes <= MAX_ATTACHMENT_BYTES
        };
        let are_names = attachments().all(|a| is_name(&a.name) && is_attachment(a));
        let mut names: HashSet<(Uuid, &str)> = HashSet::new();
        let mut all = self.snapshots.iter().flat_map(|s| s.attachments.iter().map(|a| (s.id, a)));
        if !are_names || !all.all(|(id, a)| names.insert((id, &a.name))) {
            return Some("the name of an attachment occurs twice, or is invalid");
        }
        let mut ids: HashSet<Uuid> = self.stored().into_iter().map(|s| s.id).collect();
        let mut numbers: HashSet<u64> = self.stored().into_iter().map(|s| s.number).collect();
        if self.pending.len() > MAX_PENDING {
            return Some("too many snapshots are being taken at once");
        }
        let listed: HashSet<Uuid> = self.snapshots.iter().map(|s| s.id).collect();
        let are_pending = self.pending.iter().all(|pending| {
            let has_parent = pending.parent.is_none_or(|parent| listed.contains(&parent));
            let are_deltas = pending.objects.iter().all(|object| ImageFile::is_delta(object));
            let is_number = match pending.is_only_kept() {
                true => {
                    pending.parent.is_some() && pending.plan.is_some() && pending.objects.is_empty()
                }
                false => {
                    (1..self.next_number).contains(&pending.number)
                        && numbers.insert(pending.number)
                }
            };
            has_parent && are_deltas && ids.insert(pending.id) && is_number
        });
        if !are_pending {
            return Some("a snapshot that is being taken is there already, or its parent is not");
        }
        let mut files: HashSet<&str> =
            self.stored().into_iter().flat_map(Snapshot::files).map(String::as_str).collect();
        let attached = attachments().map(|attachment| &attachment.object);
        let mut objects = attached.chain(self.pending.iter().flat_map(|pending| &pending.objects));
        (!objects.all(|object| files.insert(object))).then_some("one object occurs twice")
    }

    /// What the files hold, packed and not: if that can be added up here, then everywhere.
    fn sizes_add_up(&self) -> Option<u64> {
        self.stored().into_iter().try_fold(0u64, |sum, s| {
            let raw = s.data_blocks.checked_mul(s.block_bytes.into())?;
            sum.checked_add(raw)?.checked_add(s.file_bytes)?.checked_add(s.frame_bytes)
        })
    }
}

fn is_name(name: &str) -> bool {
    let is_bad = name.is_empty() || name.len() > MAX_NAME_BYTES || name.starts_with('.');
    !is_bad && !name.contains(|c: char| c == '/' || c.is_control())
}

fn is_relative(path: &&Path) -> bool {
    !path.is_absolute()
}

fn wrong_in(snapshot: &Snapshot) -> Option<&'static str> {
    let file = &snapshot.file;
    if file.contains('/') || !file.ends_with(".delta") || file.contains(char::is_control) {
        return Some("the name of the delta file");
    }
    if snapshot.parts.len() > MAX_PARTS || !snapshot.parts.iter().all(|p| ImageFile::is_delta(p)) {
        return Some("the name of a part");
    }
    let label = snapshot.label.as_deref().unwrap_or("none");
    if label.is_empty() || label.len() > MAX_LABEL_BYTES || label.contains(char::is_control) {
        return Some("the label");
    }
    snapshot.geometry().is_err().then_some("the block size, or the length of the image,")
}
