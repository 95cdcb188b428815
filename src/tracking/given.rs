//! Changes that somebody else knows: a list that was handed over with the snapshot.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::tracking::{
    ChangeHints, ChangeList, ChangeTracker, Consistency, FileTracker, HintKind, KnownChanges,
    PointInTime, Since, TimeSpent, TrackerRecord,
};
use uuid::Uuid;

/// Tracks changes by a list that the caller supplied.
pub struct ListTracker<'a> {
    list: ChangeList,
    kind: HintKind,
    since: Uuid,
    before_bytes: u64,
    file: FileTracker<'a>,
}

impl<'a> ListTracker<'a> {
    /// Of changes since a snapshot of an image that had `before_bytes` then. `file` knows its clones: the one
    /// that is there serves the next snapshot.
    pub fn new(
        list: ChangeList,
        kind: HintKind,
        since: Uuid,
        before_bytes: u64,
        file: FileTracker<'a>,
    ) -> Self {
        Self { list, kind, since, before_bytes, file }
    }
}

impl ChangeTracker for ListTracker<'_> {
    fn begin(&mut self, _: Since, _: &Context) -> Result<PointInTime> {
        let (list, before) = (self.list.clone(), self.before_bytes);
        let hints = move |image_bytes: u64| {
            let list = list.clone();
            // What was not there then, or only in part, is in no list.
            let list = match before == image_bytes {
                true => list,
                false => list.and_from(before.min(image_bytes)),
            };
            Ok(Box::new(list) as Box<dyn ChangeHints>)
        };
        let (since, kind) = (self.since, self.kind);
        let changes = KnownChanges::Hinted { since, kind, hints: Box::new(hints) };
        // Of an image in use no list is taken.
        let consistency = Consistency::Stopped;
        let maps_time = TimeSpent::default();
        Ok(PointInTime { source: None, stall_seconds: None, consistency, changes, maps_time })
    }

    /// Nothing is kept: the list may have left something out, which would be in a clone and not in the
    /// snapshot, and be taken for known from then on.
    fn prepare(&mut self, _: Uuid, _: &Context) -> Option<TrackerRecord> {
        None
    }

    fn recover(&mut self, recorded: Option<Uuid>, context: &Context) {
        self.file.recover(recorded, context);
    }
}
