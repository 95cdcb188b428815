//! A read in pieces, one request each, and which of their bytes have come: each exactly once.

use std::ops::Range;

/// More gaps than this between the bytes that came no server leaves.
const MAX_RANGES: usize = 4096;

/// Which bytes of a request have come.
#[derive(Debug, Default)]
pub struct Coverage {
    /// Ascending and apart.
    ranges: Vec<Range<u64>>,
}

impl Coverage {
    /// Adds bytes; false if some of them had come before, or there are too many gaps.
    #[must_use]
    pub fn add(&mut self, new: Range<u64>) -> bool {
        let at = self.ranges.partition_point(|range| range.end < new.start);
        let is_taken = self.ranges.iter().skip(at).take(2).any(|range| {
            // What only touches it does not overlap.
            range.start < new.end && new.start < range.end
        });
        if new.is_empty() || is_taken {
            return false;
        }
        let joins = |range: Option<&Range<u64>>, at: u64, end: fn(&Range<u64>) -> u64| {
            range.is_some_and(|range| end(range) == at)
        };
        let before = joins(self.ranges.get(at), new.start, |range| range.end);
        let next = at + usize::from(before);
        let after = joins(self.ranges.get(next), new.end, |range| range.start);
        let start = self.ranges.get(at).filter(|_| before).map_or(new.start, |range| range.start);
        let end = self.ranges.get(next).filter(|_| after).map_or(new.end, |range| range.end);
        self.ranges.splice(at..next + usize::from(after), std::iter::once(start..end));
        self.ranges.len() <= MAX_RANGES
    }

    /// True if these bytes have come, and no others.
    pub fn is(&self, all: &Range<u64>) -> bool {
        self.ranges.as_slice() == std::slice::from_ref(all)
    }
}

/// What became of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Unread,
    /// Its bytes are there.
    Read,
    /// The server reported an error, by its number.
    Failed(i32),
}

/// What one request reads.
#[derive(Debug)]
pub struct Piece {
    /// Which bytes of the export.
    pub range: Range<u64>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Cuts a range into pieces that end at multiples of `most`.
pub fn cut(range: Range<u64>, most: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let end = ((start / most + 1) * most).min(range.end);
        pieces.push(Piece { range: start..end, outcome: Outcome::Unread });
        start = end;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_comes_exactly_once() {
        // Every order of four neighbours, with one of them left out or sent twice.
        for order in 0..24u64 {
            let mut left = vec![0, 1, 2, 3];
            let mut coverage = Coverage::default();
            let mut number = order;
            for place in (1..=4).rev() {
                let quarter = left.remove((number % place) as usize);
                number /= place;
                assert!(!coverage.is(&(100..140)), "{order}");
                assert!(coverage.add(100 + quarter * 10..110 + quarter * 10), "{order}");
                for (start, end) in [(0, 10), (0, 1), (9, 10), (4, 5)] {
                    let again = 100 + quarter * 10 + start..100 + quarter * 10 + end;
                    assert!(!coverage.add(again), "{order} {quarter}");
                }
            }
            assert!(coverage.is(&(100..140)), "{order}: {coverage:?}");
        }
    }

    #[test]
    fn gaps_are_bounded_and_overlaps_found() {
        let mut coverage = Coverage::default();
        assert!(coverage.add(10..20) && coverage.add(30..40) && coverage.add(0..5));
        for wrong in [9..11, 19..21, 15..35, 5..11, 25..31, 0..100, 4..6, 12..12] {
            assert!(!coverage.add(wrong.clone()), "{wrong:?}");
        }
        assert!(coverage.add(20..30) && coverage.add(5..10) && coverage.is(&(0..40)));
        let mut coverage = Coverage::default();
        let added = (0..1 << 16u64).take_while(|n| coverage.add(n * 2..n * 2 + 1)).count();
        assert_eq!(added, MAX_RANGES);
    }

    #[test]
    fn a_range_is_cut_at_multiples() {
        let cut: Vec<_> = cut(5..26, 10).into_iter().map(|piece| piece.range).collect();
        assert_eq!(cut, [5..10, 10..20, 20..26]);
    }
}
