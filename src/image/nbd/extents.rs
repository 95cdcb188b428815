//! What a server said of zeros and data, and of what changed.

use crate::base::units::{ByteRange, Extent, ExtentKind};

/// As many ranges are kept; of more, those that are close to each other become one.
const MAX_RANGES: usize = 1 << 20;
/// What is close, at first.
const CLOSE_BYTES: u64 = 64 << 10;

/// Extents that are known, one after the other.
#[derive(Debug, Default)]
pub struct Extents {
    start: u64,
    /// Where each ends, and whether it is zeros.
    ends: Vec<(u64, bool)>,
}

impl Extents {
    /// Forgets them.
    pub fn clear(&mut self) {
        self.begin(0);
    }

    /// Forgets them, for others from `start` on.
    pub fn begin(&mut self, start: u64) {
        (self.start, self.ends) = (start, Vec::new());
    }

    /// Adds the next extent, as far as it is in an image of `image_bytes`.
    pub fn push(&mut self, bytes: u64, is_zero: bool, image_bytes: u64) {
        let last = self.ends.last().map_or(self.start, |(end, _)| *end);
        let end = last.saturating_add(bytes).min(image_bytes);
        if end == last {
            return;
        }
        match self.ends.last_mut() {
            Some(last) if last.1 == is_zero => last.0 = end,
            _ => self.ends.push((end, is_zero)),
        }
    }

    /// The rest, from `offset` on, of the extent that it is in, if that is known.
    pub fn at(&self, offset: u64) -> Option<Extent> {
        if offset < self.start {
            return None;
        }
        let index = self.ends.partition_point(|(end, _)| *end <= offset);
        let (end, is_zero) = self.ends.get(index)?;
        let kind = if *is_zero { ExtentKind::Hole } else { ExtentKind::Data };
        Some(Extent { offset, bytes: end - offset, kind })
    }
}

/// Makes one of neighbours, and, if there are too many, of those with a small gap: what changed may be
/// called more than it is. `gap` is what counts as small, and grows.
pub fn merged(ranges: &mut Vec<ByteRange>, gap: &mut u64) {
    loop {
        ranges.dedup_by(|next, last| {
            let is_close = next.offset - last.end() <= *gap;
            if is_close {
                last.bytes = next.end() - last.offset;
            }
            is_close
        });
        if ranges.len() <= MAX_RANGES {
            return;
        }
        *gap = (*gap * 2).max(CLOSE_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_contiguous_and_within_the_image() {
        let mut extents = Extents::default();
        assert_eq!(extents.at(0), None);
        extents.begin(4096);
        for (bytes, is_zero) in
            [(4096, true), (4096, true), (100, false), (u64::MAX, true), (1, false)]
        {
            extents.push(bytes, is_zero, 20_000);
        }
        let at = |offset| extents.at(offset).map(|extent| (extent.bytes, extent.kind));
        assert_eq!(at(4095), None);
        assert_eq!(at(4096), Some((8192, ExtentKind::Hole)));
        assert_eq!(at(12_287), Some((1, ExtentKind::Hole)));
        assert_eq!(at(12_288), Some((100, ExtentKind::Data)));
        assert_eq!(at(12_388), Some((20_000 - 12_388, ExtentKind::Hole)));
        assert_eq!(at(20_000), None);
        extents.clear();
        assert_eq!(extents.at(4096), None);
    }

    #[test]
    fn too_many_ranges_become_fewer_and_leave_nothing_out() {
        let range = |number: u64| ByteRange { offset: number * 131_072, bytes: 65_536 };
        let mut few = vec![range(0), ByteRange { offset: 65_536, bytes: 4096 }, range(1), range(2)];
        let mut gap = 0;
        merged(&mut few, &mut gap);
        assert_eq!(few, [ByteRange { offset: 0, bytes: 69_632 }, range(1), range(2)]);
        let count = MAX_RANGES as u64 + 1;
        let mut many: Vec<_> = (0..count).map(range).collect();
        merged(&mut many, &mut gap);
        assert_eq!(many, [ByteRange::between(0, range(count - 1).end())]);
        assert_eq!(gap, CLOSE_BYTES);
    }
}
