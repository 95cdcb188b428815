//! The rules that hold in every manifest (FORMAT.md J3, J4). Whoever calculates with it relies on them.

use crate::base::error::{Error, Result};
use crate::format::footer::{MAX_LABEL_BYTES, MAX_NUMBER};
use crate::repo::manifest::files::check_name;
use crate::repo::manifest::types::{Manifest, Snapshot};
use std::collections::{HashMap, HashSet};
use std::path::Path;

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
        if !self.snapshots.is_sorted_by_key(|s| s.number) {
            return Some("the snapshots are out of order".into());
        }
        let base_images = self.stored().into_iter().filter_map(|s| s.base_image.as_deref());
        if let Some(path) = self.source.as_deref().into_iter().chain(base_images).find(is_relative)
        {
            return Some(format!("{path:?} is no absolute path"));
        }
        let (mut ids, mut labels, mut last) = (HashMap::new(), HashSet::new(), 0);
        let mut files = HashSet::new();
        for snapshot in self.stored() {
            let number = snapshot.number;
            if number <= last || number >= self.next_number || number >= MAX_NUMBER {
                let what = format!("number {number} stands twice, or is not below the next one");
                return Some(what);
            }
            last = number;
            if snapshot.parent.is_some_and(|p| !ids.contains_key(&p)) {
                return Some(format!("the parent of {number} is missing or newer"));
            }
            if ids.insert(snapshot.id, number).is_some() {
                return Some(format!("the id of {number} stands twice"));
            }
            if let Some(label) = &snapshot.label
                && !labels.insert(label)
            {
                return Some(format!("the label {label:?} stands twice"));
            }
            if !files.insert(&snapshot.file) {
                return Some(format!("the file of {number} stands twice"));
            }
            if let Some(wrong) = wrong_in(snapshot) {
                return Some(format!("{wrong} of {number}"));
            }
        }
        self.sizes_add_up().is_none().then(|| "its sizes are beyond all disks".into())
    }

    /// What the files hold, packed and not: if that can be added up here, then everywhere.
    fn sizes_add_up(&self) -> Option<u64> {
        self.stored().into_iter().try_fold(0u64, |sum, s| {
            let raw = s.data_blocks.checked_mul(s.block_bytes.into())?;
            sum.checked_add(raw)?.checked_add(s.file_bytes)?.checked_add(s.frame_bytes)
        })
    }
}

fn is_relative(path: &&Path) -> bool {
    !path.is_absolute()
}

fn wrong_in(snapshot: &Snapshot) -> Option<&'static str> {
    let file = &snapshot.file;
    if file.contains('/') || !file.ends_with(".delta") || file.contains(char::is_control) {
        return Some("the name of the delta file");
    }
    let label = snapshot.label.as_deref().unwrap_or("none");
    if label.is_empty() || label.len() > MAX_LABEL_BYTES || label.contains(char::is_control) {
        return Some("the label");
    }
    snapshot.geometry().is_err().then_some("the block size, or the length of the image,")
}
