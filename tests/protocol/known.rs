//! What the hosts of a schedule were told, together, and what must hold therefore.

use imgsnap::ErrorKind;
use std::collections::{BTreeSet, HashMap, HashSet};
use uuid::Uuid;

/// What is known of the snapshots, by id, and of the live files.
#[derive(Default)]
pub struct Known {
    /// What they hold.
    pub contents: HashMap<Uuid, Vec<u8>>,
    /// All that a live file has ever been, but for the mixture that it is during a rollback.
    pub whole: HashSet<Vec<u8>>,
    /// Those that must be there at the end, with their image; none of an image that somebody removed.
    pub kept: HashMap<Uuid, &'static str>,
    pub removed: BTreeSet<&'static str>,
    /// Files of snapshots of which somebody was told that they are taken, or taken in.
    pub told: Vec<String>,
    /// Of which image each is.
    pub images: HashMap<Uuid, &'static str>,
    /// Somebody asked for them to be deleted, and was told that they are.
    pub to_delete: HashSet<Uuid>,
    pub gone: HashSet<Uuid>,
    /// Some of them came back.
    pub imported: HashSet<Uuid>,
    pub protected: HashSet<Uuid>,
    /// Somebody asked for their protection to be taken back.
    pub unprotected: HashSet<Uuid>,
    /// Labels of which somebody was told that they are not given, because others were faster, and lines of which
    /// he was told that they are not in the configuration.
    pub refused: HashSet<String>,
    /// Lines that are in the configuration.
    pub configured: Vec<String>,
    pub exported: Vec<Exported>,
    /// By machine and image.
    pub live: [[Live; 2]; 2],
    /// By image: so many say at the moment where its live file is, and so many did.
    pub relinks: [usize; 2],
    pub relinked: [u64; 2],
}

/// A file that somebody exported.
#[derive(Clone)]
pub struct Exported {
    pub id: Uuid,
    pub image: usize,
    pub bytes: Vec<u8>,
    /// What the snapshot holds, if that is known.
    pub content: Option<Vec<u8>>,
}

/// What is known of a live file.
#[derive(Clone, Copy, Default)]
pub struct Live {
    /// Who takes a snapshot of it, rolls it back, or says where it is.
    pub users: usize,
    /// So many rollbacks are under way, and so many were begun.
    pub rollbacks: usize,
    pub begun: u64,
    /// It may be a mixture, which only a rollback ends: nobody writes to it.
    pub is_doubtful: bool,
    /// Its machine was told that it is the live file.
    pub is_linked: bool,
}

impl Live {
    /// Since there were `begun` rollbacks none has begun, and none is under way.
    pub fn is_quiet_since(&self, begun: u64) -> bool {
        self.begun == begun && self.rollbacks == 0
    }
}

impl Known {
    /// Who was told that others were faster has changed nothing, and will not (C2).
    pub fn refuse(&mut self, what: Option<String>, error: &imgsnap::Error) {
        if error.kind() == ErrorKind::Busy {
            self.refused.extend(what);
        }
    }

    /// False if it was something else before.
    #[must_use]
    pub fn is_what_it_was(&mut self, id: Uuid, content: &[u8]) -> bool {
        let before = self.contents.insert(id, content.to_vec());
        before.is_none_or(|before| before == content)
    }
}
