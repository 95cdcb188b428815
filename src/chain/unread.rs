//! Blocks that could not be read when their snapshot was taken (FORMAT.md M4).

use super::{Chain, State};
use crate::base::error::Result;
use crate::base::events::Context;
use crate::base::units::{BlockRange, NamedBlocks};

impl Chain {
    /// The blocks among `blocks` that are unread.
    ///
    /// # Errors
    /// `Corrupt` if a table is damaged.
    pub fn unread(&self, blocks: BlockRange, context: &Context) -> Result<NamedBlocks> {
        let mut unread = NamedBlocks::default();
        if self.layers().iter().all(|delta| delta.footer().counts.unread_blocks == 0) {
            return Ok(unread);
        }
        let mut walk = self.walk_to(blocks.end());
        walk.seek(blocks.first);
        while let Some(span) = walk.next(blocks.end())? {
            context.check()?;
            if span.state == State::Unread {
                unread.add(span.blocks);
            }
        }
        Ok(unread)
    }

    /// The same chain with unread blocks as zeros; by default reading one is an error.
    #[must_use]
    pub fn with_unread_as_zeros(self) -> Self {
        Self { unread_as_zeros: true, ..self }
    }

    /// True if unread blocks read as zeros.
    pub fn has_unread_as_zeros(&self) -> bool {
        self.unread_as_zeros
    }
}
