//! What a worker does: reads a job's parts, digests their blocks and compares them with the index.

use super::changes::{BadMedium, Change, Changes};
use super::job::{Job, Part};
use crate::base::digest::{Digest, Hasher, is_zero};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::units::{BlockRange, Geometry};
use crate::chain::{IndexChunk, Span, State};
use crate::image::Source;
use std::sync::{Mutex, PoisonError};

pub(super) struct Examiner<'a> {
    pub source: &'a dyn Source,
    pub hasher: &'a Hasher,
    pub geometry: Geometry,
    pub bad_medium: BadMedium,
    /// Used again and again, by sources that copy.
    pub buffers: Mutex<Vec<Vec<u8>>>,
}

impl Examiner<'_> {
    /// Adds what differs to `changes`, which has nothing in it.
    pub fn examine(&self, job: &Job, changes: &mut Changes) -> Result<()> {
        match self.bad_medium {
            BadMedium::Fail => self.examine_by(job, false, changes),
            BadMedium::Skip => self.examine_by(job, true, changes),
            BadMedium::SkipIfAny => match self.examine_by(job, false, changes) {
                Err(e) if e.kind() != ErrorKind::Interrupted => {
                    *changes = std::mem::take(changes).emptied();
                    self.examine_by(job, true, changes)
                }
                other => other,
            },
        }
    }

    fn examine_by(&self, job: &Job, plainly: bool, changes: &mut Changes) -> Result<()> {
        let buffers = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = buffers().pop().unwrap_or_default();
        let index = job.index.as_deref();
        let joined =
            |a: &Part, b: &Part| !a.is_hole && !b.is_hole && a.blocks.end() == b.blocks.first;
        // Parts that follow each other are read at once, however they are examined.
        for parts in job.parts.chunk_by(joined) {
            match parts {
                [hole] if hole.is_hole => self.zeros(index, *hole, changes),
                parts if plainly => parts
                    .iter()
                    .try_for_each(|part| self.salvage(index, *part, &mut buffer, changes))?,
                parts => self.data(index, parts, &mut buffer, changes)?,
            }
        }
        buffers().push(buffer);
        Ok(())
    }

    /// Blocks that are zero without a look: what the index has for them is gone.
    fn zeros(&self, index: Option<&IndexChunk>, part: Part, changes: &mut Changes) {
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
        index: Option<&IndexChunk>,
        parts: &[Part],
        buffer: &mut Vec<u8>,
        changes: &mut Changes,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(()) };
        let all = BlockRange::between(first.blocks.first, last.blocks.end());
        let offset = self.geometry.offset(all.first);
        let bytes = self.geometry.bytes_in(all);
        let window = self.source.read(offset, bytes as usize, buffer).map_err(with_hint)?;
        changes.read_bytes += bytes;
        let mut blocks = window.bytes().chunks(self.geometry.block_size.in_memory());
        for part in parts {
            self.compare(index, *part, &mut blocks, changes);
        }
        window.check(self.source).map_err(|error| {
            // It may be a sector that went bad after the page cache had let go of it: which one?
            match self.source.read_until_bad(offset, bytes as usize, &mut Vec::new()) {
                Ok(Some(bad)) => with_hint(bad),
                _ => error,
            }
        })
    }

    /// Reads what the medium gives, by plain reads, which tell where it does not; what it does not give is
    /// unread.
    fn salvage(
        &self,
        index: Option<&IndexChunk>,
        part: Part,
        buffer: &mut Vec<u8>,
        changes: &mut Changes,
    ) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let mut rest = part.blocks;
        while rest.count > 0 {
            let (offset, bytes) = (self.geometry.offset(rest.first), self.geometry.bytes_in(rest));
            let bad = self.source.read_until_bad(offset, bytes as usize, buffer)?;
            let count = if bad.is_none() { rest.count } else { (buffer.len() / size) as u64 };
            let read = BlockRange { first: rest.first, count };
            changes.read_bytes += self.geometry.bytes_in(read);
            self.compare(index, Part { blocks: read, ..part }, &mut buffer.chunks(size), changes);
            rest = BlockRange::between(read.end(), rest.end());
            if bad.is_some() && rest.count > 0 {
                self.unread(index, BlockRange { first: rest.first, count: 1 }, changes);
                rest = BlockRange::between(rest.first + 1, rest.end());
            }
        }
        Ok(())
    }

    fn unread(&self, index: Option<&IndexChunk>, blocks: BlockRange, changes: &mut Changes) {
        for span in index.into_iter().flat_map(|index| spans_within(index, blocks)) {
            let terms = index.map_or(0, |index| index.terms(span, self.hasher));
            changes.old_terms = changes.old_terms.wrapping_add(terms);
        }
        for block in blocks.first..blocks.end() {
            let term = self.hasher.term(block, Digest::UNREAD);
            changes.new_terms = changes.new_terms.wrapping_add(term);
        }
        changes.unread(blocks);
    }

    /// Compares the blocks of a part, the next ones of `blocks`, with the index.
    fn compare<'b>(
        &self,
        index: Option<&IndexChunk>,
        part: Part,
        blocks: &mut impl Iterator<Item = &'b [u8]>,
        changes: &mut Changes,
    ) {
        let mut compare = |span: Span, digests: &[Digest]| {
            let mut digests = digests.iter();
            for block in span.blocks.first..span.blocks.end() {
                let bytes = blocks.next().unwrap_or_default();
                let was = match span.state {
                    State::Zero => Prior::Zero,
                    State::Unread => Prior::Unread,
                    State::Data { .. } => digests.next().map_or(Prior::Unread, |d| Prior::Data(*d)),
                };
                if self.differs(block, bytes, was, changes) && !part.may_differ {
                    changes.miss(BlockRange { first: block, count: 1 });
                }
            }
        };
        match index {
            None => compare(Span { blocks: part.blocks, state: State::Zero }, &[]),
            Some(index) => {
                spans_within(index, part.blocks).for_each(|span| compare(span, index.digests(span)))
            }
        }
    }

    /// True if a block is not what it was; then it is among the changes.
    fn differs(&self, block: u64, bytes: &[u8], was: Prior, changes: &mut Changes) -> bool {
        let size = self.geometry.block_size.in_memory();
        match was {
            Prior::Zero if is_zero(bytes) => return false,
            Prior::Data(digest) if bytes.len() == size && self.hasher.digest(bytes) == digest => {
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
            Prior::Zero => None,
            Prior::Unread => Some(Digest::UNREAD),
            Prior::Data(digest) => Some(digest),
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

/// Says what to do about a sector that cannot be read.
fn with_hint(error: Error) -> Error {
    match error.is_bad_medium() {
        true => error.or_hint(message![
            "check its disk; a snapshot with ",
            Setting::SkipBad,
            " stores what can be read",
        ]),
        false => error,
    }
}

/// The parts of the spans of a chunk that are in a range.
fn spans_within(index: &IndexChunk, range: BlockRange) -> impl Iterator<Item = Span> + '_ {
    let first = index.spans.partition_point(|span| span.blocks.end() <= range.first);
    let rest = index.spans.iter().skip(first);
    rest.map_while(move |span| span.within(range))
}

/// What the index has for a block.
#[derive(Clone, Copy)]
enum Prior {
    Zero,
    Unread,
    Data(Digest),
}
