//! Files that were proved already, by others perhaps.

use crate::repo::manifest::Snapshot;
use std::collections::HashMap;

/// Files all of whose stored bytes and blocks are what was written, and how many blocks are in each.
#[derive(Debug, Default)]
pub struct Proved(HashMap<(String, String), u64>);

impl Proved {
    /// That is one of them.
    pub fn add(&mut self, image: String, file: String, blocks: u64) {
        self.0.insert((image, file), blocks);
    }

    /// The blocks of a snapshot's own files, if all of these are proved. What refers to a base image is not.
    pub(super) fn blocks_of(&self, image: &str, snapshot: &Snapshot) -> Option<u64> {
        let files = match snapshot.parts.as_slice() {
            [] if snapshot.is_by_reference() => return None,
            [] => std::slice::from_ref(&snapshot.file),
            parts => parts,
        };
        let of = |file: &String| self.0.get(&(image.to_owned(), file.clone()));
        files.iter().map(of).try_fold(0u64, |sum, blocks| Some(sum.saturating_add(*blocks?)))
    }
}
