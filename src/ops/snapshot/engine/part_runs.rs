//! Holds changes against the runs of a part.

use crate::base::error::Result;
use crate::base::units::BlockRange;
use crate::delta::{Part, PartCursor};
use crate::format::RunKind;
use crate::scan::Change;
use std::sync::Arc;

/// The runs of a part, against which changes are held in their order.
pub(super) struct PartRuns {
    cursor: PartCursor,
    /// As far as the run that it is at was passed.
    position: u64,
}

impl PartRuns {
    pub(super) fn new(part: Arc<Part>) -> Result<Self> {
        let mut cursor = PartCursor::new(part, false);
        cursor.seek(0)?;
        Ok(Self { cursor, position: 0 })
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.cursor.run().is_none()
    }

    /// Passes a change. False if it is not what comes next.
    pub(super) fn take(&mut self, change: &Change) -> Result<bool> {
        let mut rest = change.blocks();
        while rest.count > 0 {
            let Some((page, run)) = self.cursor.run() else { return Ok(false) };
            let at = self.position.max(run.blocks.first);
            let is_same = match change {
                Change::Data(block, digest) => {
                    let ordinal = u64::from(run.ordinal) + block.saturating_sub(run.blocks.first);
                    run.kind == RunKind::Data && page.digests.get(ordinal as usize) == Some(digest)
                }
                Change::Zero(_) => run.kind == RunKind::Zero,
                Change::Unread(_) => run.kind == RunKind::Unread,
            };
            if at != rest.first || !is_same {
                return Ok(false);
            }
            self.position = run.blocks.end().min(rest.end());
            rest = BlockRange::between(self.position, rest.end());
            if self.position == run.blocks.end() {
                self.cursor.advance()?;
            }
        }
        Ok(true)
    }
}
