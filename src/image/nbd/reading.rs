//! Reads and block status: what a connection is asked for, and what of the replies is believed.

use super::connection::{Connection, Head, IN_FLIGHT};
use super::pieces::{Coverage, Outcome, Piece};
use super::protocol::{Chunk, Command, Hole, MAX_EXTENTS, StatusExtent, chunk, errno};
use super::wire::Fault;
use std::ops::Range;
use zerocopy::big_endian::{U32, U64};

/// Extents that are kept of one reply; who wants more asks again.
const KEPT_EXTENTS: usize = 1 << 16;
const NOT_ASKED: &str = "bytes that were not asked for, or came before";

/// A read under way.
struct Flight {
    cookie: u64,
    piece: usize,
    covered: Coverage,
    error: Option<i32>,
}

impl Flight {
    /// Where bytes of a reply belong in `out`, whose first byte is that at `start`. None if they are not of
    /// the piece, or came before.
    fn claim<'a>(
        &mut self,
        piece: &Piece,
        bytes: Range<u64>,
        start: u64,
        out: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        let is_mine = piece.range.start <= bytes.start && bytes.end <= piece.range.end;
        let place =
            (bytes.start.checked_sub(start)? as usize)..(bytes.end.checked_sub(start)? as usize);
        (is_mine && self.covered.add(bytes)).then(|| out.get_mut(place)).flatten()
    }
}

/// What a server says of a range, from its start on.
pub enum Status {
    /// Lengths and flags.
    Extents(Vec<(u64, u32)>),
    /// The number of an error.
    Failed(i32),
}

impl Connection {
    /// Reads pieces into `out`, whose first byte is that at `start`. Those that are read already are left
    /// out; after an error nothing more is asked for, and what was not asked for stays unread.
    pub fn read(&mut self, start: u64, out: &mut [u8], pieces: &mut [Piece]) -> Result<(), Fault> {
        self.finish_writes()?;
        let mut flying: Vec<Flight> = Vec::new();
        let (mut next, mut is_failing) = (0, false);
        loop {
            while flying.len() < IN_FLIGHT && !is_failing {
                let Some(piece) = pieces.get(next) else { break };
                if piece.outcome == Outcome::Unread {
                    let bytes = (piece.range.end - piece.range.start) as u32;
                    let cookie = self.send(Command::Read, piece.range.start, bytes, &[])?;
                    let covered = Coverage::default();
                    flying.push(Flight { cookie, piece: next, covered, error: None });
                }
                next += 1;
            }
            if flying.is_empty() {
                return Ok(());
            }
            let head = self.head()?;
            let index = flying.iter().position(|flight| flight.cookie == head.cookie());
            let found = index.and_then(|index| flying.get_mut(index).map(|flight| (index, flight)));
            let Some((index, flight)) = found else {
                return Err(self.peer.violation("a reply without a request"));
            };
            let Some(piece) = pieces.get_mut(flight.piece) else { continue };
            self.take_bytes(&head, flight, piece, start, out)?;
            if head.is_last() {
                piece.outcome = match flight.error {
                    Some(error) => Outcome::Failed(error),
                    None if flight.covered.is(&piece.range) => Outcome::Read,
                    None => return Err(self.peer.violation("a reply without all of the bytes")),
                };
                is_failing |= flight.error.is_some();
                self.end_reply();
                flying.swap_remove(index);
            }
        }
    }

    /// Takes what a reply to a read brings; the first byte of `out` is that at `start`.
    fn take_bytes(
        &mut self,
        head: &Head,
        flight: &mut Flight,
        piece: &Piece,
        start: u64,
        out: &mut [u8],
    ) -> Result<(), Fault> {
        let chunk = match head {
            Head::Simple(reply) if reply.error.get() != 0 => {
                flight.error = Some(self.checked(errno(reply.error.get()))?);
                return Ok(());
            }
            Head::Simple(_) if self.export.is_structured => {
                return Err(self.peer.violation("a simple reply to a read"));
            }
            Head::Simple(_) => {
                let place = flight.claim(piece, piece.range.clone(), start, out);
                return self.take_data(place);
            }
            Head::Chunk(chunk) => chunk,
        };
        let bytes = chunk.bytes.get();
        match chunk.kind.get() {
            chunk::NONE if bytes == 0 && head.is_last() => Ok(()),
            chunk::DATA if bytes > 8 => {
                let offset: U64 = self.wire.read_message(&self.peer)?;
                let end = offset.get().saturating_add(u64::from(bytes) - 8);
                self.take_data(flight.claim(piece, offset.get()..end, start, out))
            }
            chunk::HOLE if bytes == 12 => {
                let hole: Hole = self.wire.read_message(&self.peer)?;
                let end = hole.offset.get().saturating_add(hole.bytes.get().into());
                let place = flight.claim(piece, hole.offset.get()..end, start, out);
                place.ok_or_else(|| self.peer.violation(NOT_ASKED))?.fill(0);
                Ok(())
            }
            kind if kind & chunk::ERROR != 0 => {
                let error = self.error_in(chunk)?;
                flight.error.get_or_insert(error);
                Ok(())
            }
            kind => Err(self.peer.violation(format!("a chunk of kind {kind} and {bytes} bytes"))),
        }
    }

    fn take_data(&mut self, place: Option<&mut [u8]>) -> Result<(), Fault> {
        let place = place.ok_or_else(|| self.peer.violation(NOT_ASKED))?;
        self.wire.read(&self.peer, place)
    }

    /// What a metadata context says of a range.
    pub fn block_status(&mut self, offset: u64, bytes: u32, context: u32) -> Result<Status, Fault> {
        self.finish_writes()?;
        let cookie = self.send(Command::BlockStatus, offset, bytes, &[])?;
        let (mut extents, mut error, mut others) = (None, None, 0);
        loop {
            let head = self.head()?;
            if head.cookie() != cookie {
                return Err(self.peer.violation("a reply without a request"));
            }
            match &head {
                Head::Simple(reply) => error = Some(self.checked(errno(reply.error.get()))?),
                Head::Chunk(chunk) => match chunk.kind.get() {
                    chunk::NONE if chunk.bytes.get() == 0 && head.is_last() => {}
                    chunk::STATUS => {
                        let found = self.status_in(chunk, context)?;
                        others += u32::from(found.is_none());
                        if others > 1 || (found.is_some() && extents.is_some()) {
                            return Err(self.peer.violation("a metadata context reported twice"));
                        }
                        extents = extents.or(found);
                    }
                    kind if kind & chunk::ERROR != 0 => error = Some(self.error_in(chunk)?),
                    kind => return Err(self.peer.violation(format!("a chunk of kind {kind}"))),
                },
            }
            if head.is_last() {
                self.end_reply();
                return match (error, extents) {
                    (Some(error), _) => Ok(Status::Failed(error)),
                    (None, Some(extents)) => Ok(Status::Extents(extents)),
                    (None, None) => Err(self.peer.violation("a block status without extents")),
                };
            }
        }
    }

    /// The extents in a chunk, neighbours joined, if they are of the context that is meant.
    fn status_in(&mut self, chunk: &Chunk, context: u32) -> Result<Option<Vec<(u64, u32)>>, Fault> {
        let bytes = chunk.bytes.get();
        let count = bytes.saturating_sub(4) / 8;
        if bytes != 4 + count * 8 || count == 0 || count > MAX_EXTENTS {
            return Err(self.peer.violation(format!("a block status of {bytes} bytes")));
        }
        let id: U32 = self.wire.read_message(&self.peer)?;
        let ids = [self.export.allocation, self.export.bitmap];
        if !ids.contains(&Some(id.get())) {
            return Err(self.peer.violation("a metadata context that was not negotiated"));
        }
        let (mut extents, mut is_full) = (Vec::<(u64, u32)>::new(), false);
        for _ in 0..count {
            let extent: StatusExtent = self.wire.read_message(&self.peer)?;
            let (bytes, flags) = (u64::from(extent.bytes.get()), extent.flags.get());
            if bytes == 0 {
                return Err(self.peer.violation("an extent of 0 bytes"));
            }
            let kept = extents.len();
            match extents.last_mut() {
                _ if is_full => {}
                Some(last) if last.1 == flags => last.0 += bytes,
                // What follows one that is left out would be at the wrong place.
                _ if kept == KEPT_EXTENTS => is_full = true,
                _ => extents.push((bytes, flags)),
            }
        }
        Ok((id.get() == context).then_some(extents))
    }
}
