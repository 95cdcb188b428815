//! Where an image may differ from its parent: what hints name since an earlier snapshot, and where that
//! one differs from the parent.

use crate::base::error::Result;
use crate::base::units::{BlockRange, Geometry};
use crate::chain::Touched;
use crate::tracking::ChangeHints;

/// Whole blocks, ascending, with at least one block between two ranges.
pub(super) struct Candidates {
    hints: Option<Box<dyn ChangeHints>>,
    touched: Option<Touched>,
    geometry: Geometry,
    /// The next range of each, examined already.
    hinted: Option<BlockRange>,
    crossed: Option<BlockRange>,
}

impl Candidates {
    pub fn new(
        hints: Option<Box<dyn ChangeHints>>,
        touched: Option<Touched>,
        geometry: Geometry,
    ) -> Self {
        Self { hints, touched, geometry, hinted: None, crossed: None }
    }

    /// The next range within the image.
    pub fn next(&mut self) -> Result<Option<BlockRange>> {
        let mut range: Option<BlockRange> = None;
        loop {
            self.fill()?;
            let is_hint_first = match (self.hinted, self.crossed) {
                (Some(hinted), Some(crossed)) => hinted.first <= crossed.first,
                (hinted, _) => hinted.is_some(),
            };
            let next = if is_hint_first { &mut self.hinted } else { &mut self.crossed };
            match (&mut range, *next) {
                (None, Some(first)) => range = Some(first),
                (Some(range), Some(more)) if more.first <= range.end() => {
                    *range = BlockRange::between(range.first, range.end().max(more.end()));
                }
                _ => return Ok(range),
            }
            *next = None;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let count = self.geometry.block_count();
        while self.hinted.is_none()
            && let Some(hints) = &mut self.hints
        {
            match hints.next_range()? {
                None => self.hints = None,
                Some(range) => {
                    let blocks = range.blocks(self.geometry.block_size);
                    let blocks = BlockRange::between(blocks.first, blocks.end().min(count));
                    self.hinted = (blocks.count > 0).then_some(blocks);
                }
            }
        }
        while self.crossed.is_none()
            && let Some(touched) = &mut self.touched
        {
            match touched.next_range(count)? {
                None => self.touched = None,
                Some(blocks) => self.crossed = Some(blocks),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::{BlockSize, ByteRange};

    struct List(std::vec::IntoIter<ByteRange>);

    impl ChangeHints for List {
        fn next_range(&mut self) -> Result<Option<ByteRange>> {
            Ok(self.0.next())
        }
    }

    #[test]
    fn ranges_of_bytes_become_whole_blocks_within_the_image() {
        let geometry = Geometry::new(BlockSize::DEFAULT, 100 * 4096 - 1).unwrap();
        let list = [(0, 1), (4096, 4097), (5000, 8192), (20_480, 20_481), (98 * 4096, u64::MAX)];
        let list = list.map(|(start, end)| ByteRange::between(start, end)).to_vec();
        let hints: Box<dyn ChangeHints> = Box::new(List(list.into_iter()));
        let mut candidates = Candidates::new(Some(hints), None, geometry);
        let mut found = Vec::new();
        while let Some(range) = candidates.next().unwrap() {
            found.push((range.first, range.count));
        }
        assert_eq!(found, [(0, 2), (5, 1), (98, 2)]);
    }
}
