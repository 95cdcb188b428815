//! What a worker does: reads a job's parts, digests their blocks and compares them with the index.

use super::job::{Job, Part};
use super::{Change, Changes};
use crate::chain::{Span, State, Stretch};
use crate::digest::{Digest, Hasher, is_zero};
use crate::error::Result;
use crate::source::Source;
use crate::units::{BlockRange, Geometry};

pub(super) struct Examiner<'a> {
    pub source: &'a dyn Source,
    pub hasher: &'a Hasher,
    pub geometry: Geometry,
}

impl Examiner<'_> {
    pub fn examine(&self, job: &Job, changes: &mut Changes) -> Result<()> {
        let mut buffer = Vec::new();
        let index = job.index.as_deref();
        let joined =
            |a: &Part, b: &Part| !a.is_hole && !b.is_hole && a.blocks.end() == b.blocks.first;
        // Parts that follow each other are read at once, however they are looked at.
        for parts in job.parts.chunk_by(joined) {
            match parts {
                [hole] if hole.is_hole => self.zeros(index, *hole, changes),
                parts => self.data(index, parts, &mut buffer, changes)?,
            }
        }
        Ok(())
    }

    /// Blocks that are zero without a look: what the index has for them is gone.
    fn zeros(&self, index: Option<&Stretch>, part: Part, changes: &mut Changes) {
        let image_end = self.geometry.block_count();
        let Some(index) = index else { return };
        for span in spans_within(index, part.blocks) {
            changes.old_terms = changes.old_terms.wrapping_add(index.terms(span, self.hasher));
            if !matches!(span.state, State::Zero) || span.blocks.first >= image_end {
                changes.zero(span.blocks);
                if !part.may_differ {
                    changes.miss(span.blocks);
                }
            }
        }
    }

    fn data(
        &self,
        index: Option<&Stretch>,
        parts: &[Part],
        buffer: &mut Vec<u8>,
        changes: &mut Changes,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(()) };
        let all = BlockRange::between(first.blocks.first, last.blocks.end());
        let size = self.geometry.block_size.in_memory();
        let bytes = self.geometry.bytes_in(all);
        let window = self.source.read(self.geometry.offset(all.first), bytes as usize, buffer)?;
        changes.read_bytes += bytes;
        let mut blocks = window.bytes().chunks(size);
        for part in parts {
            let mut compare = |span: Span, digests: &[Digest]| {
                let mut digests = digests.iter();
                for block in span.blocks.first..span.blocks.end() {
                    let bytes = blocks.next().unwrap_or_default();
                    let was = match span.state {
                        State::Zero => Was::Zero,
                        State::Unread => Was::Unread,
                        State::Data { .. } => digests.next().map_or(Was::Unread, |d| Was::Data(*d)),
                    };
                    if self.differs(block, bytes, was, changes) && !part.may_differ {
                        changes.miss(BlockRange { first: block, count: 1 });
                    }
                }
            };
            match index {
                None => compare(Span { blocks: part.blocks, state: State::Zero }, &[]),
                Some(index) => spans_within(index, part.blocks)
                    .for_each(|span| compare(span, index.digests(span))),
            }
        }
        window.check(self.source)
    }

    /// True if a block is not what it was; then it is among the changes.
    fn differs(&self, block: u64, bytes: &[u8], was: Was, changes: &mut Changes) -> bool {
        let size = self.geometry.block_size.in_memory();
        match was {
            Was::Zero if is_zero(bytes) => return false,
            Was::Data(digest) if bytes.len() == size && self.hasher.digest(bytes) == digest => {
                changes.unchanged(self.hasher.term(block, digest));
                return false;
            }
            _ => {}
        }
        // From here on only the copy counts.
        let start = changes.bytes.len();
        changes.bytes.extend_from_slice(bytes);
        changes.bytes.resize(start + size, 0);
        let copy = changes.bytes.get(start..).unwrap_or_default();
        let is = (!is_zero(copy)).then(|| self.hasher.digest(copy));
        let old = match was {
            Was::Zero => None,
            Was::Unread => Some(Digest::UNREAD),
            Was::Data(digest) => Some(digest),
        };
        if is == old {
            changes.bytes.truncate(start);
            if let Some(digest) = is {
                changes.unchanged(self.hasher.term(block, digest));
            }
            return false;
        }
        if let Some(digest) = old {
            changes.old_terms = changes.old_terms.wrapping_add(self.hasher.term(block, digest));
        }
        match is {
            None => {
                changes.bytes.truncate(start);
                changes.zero(BlockRange { first: block, count: 1 });
            }
            Some(digest) => {
                changes.new_terms = changes.new_terms.wrapping_add(self.hasher.term(block, digest));
                changes.list.push(Change::Data(block, digest));
            }
        }
        true
    }
}

/// The parts of the spans of a stretch that are in a range.
fn spans_within(index: &Stretch, range: BlockRange) -> impl Iterator<Item = Span> + '_ {
    let first = index.spans.partition_point(|span| span.blocks.end() <= range.first);
    let rest = index.spans.iter().skip(first);
    rest.map_while(move |span| span.within(range))
}

/// What the index has for a block.
#[derive(Clone, Copy)]
enum Was {
    Zero,
    Unread,
    Data(Digest),
}
