//! One connection, and the requests that are under way on it. Whoever has it sends requests, as many as may be
//! under way, and takes the replies in the order in which they come.

use super::handshake::{Export, agree};
use super::pieces::{Coverage, Outcome, Piece};
use super::protocol::{
    CHUNK_MAGIC, Chunk, Command, Hole, MAX_ERROR_BYTES, MAX_EXTENTS, Request, SIMPLE_MAGIC,
    SimpleReply, StatusExtent, chunk, decode_error, errno,
};
use super::wire::{Fault, Peer, Wire};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U32, U64};

/// Requests under way at once: as many as QEMU takes in from one client.
const IN_FLIGHT: usize = 16;
/// Bytes of writes under way at once.
const WRITING_BYTES: u64 = 8 << 20;
/// A flush may take so many times as long as anything else: a disk has a large cache.
const FLUSH_PATIENCE: u32 = 20;
/// Errors that one reply may have.
const MAX_ERRORS: u32 = 256;
/// Extents that are kept of one reply; who wants more asks again.
const KEPT_EXTENTS: usize = 1 << 16;

/// A connection on which an export can be used.
pub struct Connection {
    wire: Wire,
    peer: Arc<Peer>,
    /// What the server said.
    pub export: Export,
    next_cookie: u64,
    /// Writes under way: cookie, offset and length.
    writes: Vec<(u64, u64, u64)>,
    /// The first write that the server refused: its offset, and the number of the error.
    pub failed_write: Option<(u64, i32)>,
    /// Requests that were answered.
    pub answered: u64,
    /// Errors since then that have not ended a reply.
    errors: u32,
}

const NOT_ASKED: &str = "bytes that were not asked for, or came before";

/// How a reply, or a chunk of one, begins.
enum Head {
    Simple(SimpleReply),
    Chunk(Chunk),
}

impl Head {
    fn cookie(&self) -> u64 {
        match self {
            Self::Simple(reply) => reply.cookie.get(),
            Self::Chunk(chunk) => chunk.cookie.get(),
        }
    }

    fn is_last(&self) -> bool {
        match self {
            Self::Simple(_) => true,
            Self::Chunk(chunk) => chunk.flags.get() & chunk::DONE != 0,
        }
    }
}

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
    /// Connects, and agrees upon the export.
    pub fn open(peer: &Arc<Peer>, bitmap: Option<&str>, stall: Duration) -> Result<Self, Fault> {
        let mut wire = Wire::connect(peer, stall)?;
        let export = agree(&mut wire, peer, bitmap)?;
        wire.stall = peer.stall;
        let (writes, failed_write) = (Vec::new(), None);
        Ok(Self {
            wire,
            peer: peer.clone(),
            export,
            next_cookie: 0,
            writes,
            failed_write,
            answered: 0,
            errors: 0,
        })
    }

    fn send(
        &mut self,
        command: Command,
        offset: u64,
        bytes: u32,
        data: &[u8],
    ) -> Result<u64, Fault> {
        self.next_cookie += 1;
        let request = Request::new(command, self.next_cookie, offset, bytes);
        self.wire.write(&self.peer, request.as_bytes(), data)?;
        Ok(self.next_cookie)
    }

    fn head(&mut self) -> Result<Head, Fault> {
        let magic: U32 = self.wire.read_message(&self.peer)?;
        match magic.get() {
            SIMPLE_MAGIC => Ok(Head::Simple(self.wire.read_message(&self.peer)?)),
            CHUNK_MAGIC if self.export.is_structured => {
                Ok(Head::Chunk(self.wire.read_message(&self.peer)?))
            }
            _ => Err(self.peer.violation("a reply begins with a wrong number")),
        }
    }

    /// The number of the error in a chunk.
    fn error_in(&mut self, chunk: &Chunk) -> Result<i32, Fault> {
        let bytes = chunk.bytes.get();
        if bytes > MAX_ERROR_BYTES {
            return Err(self.peer.violation("an error with too long a message"));
        }
        let data = self.wire.read_bytes(&self.peer, bytes)?;
        let error =
            decode_error(&data).ok_or_else(|| self.peer.violation("an error without a number"))?;
        self.errors += 1;
        if self.errors > MAX_ERRORS {
            return Err(self.peer.violation("a reply with too many errors"));
        }
        self.checked(error)
    }

    /// A request has its whole reply.
    fn end_reply(&mut self) {
        self.answered += 1;
        self.errors = 0;
    }

    /// What a server says before it hangs up is no error of the request.
    fn checked(&self, error: i32) -> Result<i32, Fault> {
        match error {
            libc::ESHUTDOWN => Err(self.peer.lost("the server is shutting down")),
            other => Ok(other),
        }
    }

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
                return Err(self.peer.violation("a reply to nothing that was asked"));
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
                return Err(self.peer.violation("a reply to nothing that was asked"));
            }
            match &head {
                Head::Simple(reply) => error = Some(self.checked(errno(reply.error.get()))?),
                Head::Chunk(chunk) => match chunk.kind.get() {
                    chunk::NONE if chunk.bytes.get() == 0 && head.is_last() => {}
                    chunk::STATUS => {
                        let found = self.status_in(chunk, context)?;
                        others += u32::from(found.is_none());
                        if others > 1 || (found.is_some() && extents.is_some()) {
                            return Err(self.peer.violation("a metadata context told twice"));
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

    /// Begins to write bytes. An error may come later: see [`Connection::failed_write`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        self.await_place(data.len() as u64)?;
        let cookie = self.send(Command::Write, offset, data.len() as u32, data)?;
        self.writes.push((cookie, offset, data.len() as u64));
        Ok(())
    }

    /// Begins to write zeros, which may become a hole.
    pub fn zero(&mut self, offset: u64, bytes: u32) -> Result<(), Fault> {
        self.await_place(0)?;
        let cookie = self.send(Command::Zero, offset, bytes, &[])?;
        self.writes.push((cookie, offset, 0));
        Ok(())
    }

    fn await_place(&mut self, bytes: u64) -> Result<(), Fault> {
        let is_full = |writes: &[(u64, u64, u64)]| {
            let under_way: u64 = writes.iter().map(|(.., bytes)| bytes).sum();
            writes.len() >= IN_FLIGHT || (!writes.is_empty() && under_way + bytes > WRITING_BYTES)
        };
        while is_full(&self.writes) {
            self.await_write()?;
        }
        Ok(())
    }

    /// Waits until no write is under way.
    pub fn finish_writes(&mut self) -> Result<(), Fault> {
        while !self.writes.is_empty() {
            self.await_write()?;
        }
        Ok(())
    }

    /// Takes the reply to one of the writes.
    fn await_write(&mut self) -> Result<(), Fault> {
        let head = self.head()?;
        let index = self.writes.iter().position(|(cookie, ..)| *cookie == head.cookie());
        let Some((index, (_, offset, _))) =
            index.and_then(|index| Some((index, *self.writes.get(index)?)))
        else {
            return Err(self.peer.violation("a reply to nothing that was asked"));
        };
        let error = self.plain_reply(&head)?;
        self.failed_write = self.failed_write.or(error.map(|error| (offset, error)));
        if head.is_last() {
            self.end_reply();
            self.writes.swap_remove(index);
        }
        Ok(())
    }

    /// The error in a reply that brings nothing else.
    fn plain_reply(&mut self, head: &Head) -> Result<Option<i32>, Fault> {
        match head {
            Head::Simple(reply) if reply.error.get() == 0 => Ok(None),
            Head::Simple(reply) => self.checked(errno(reply.error.get())).map(Some),
            Head::Chunk(chunk) => match chunk.kind.get() {
                chunk::NONE if chunk.bytes.get() == 0 && head.is_last() => Ok(None),
                kind if kind & chunk::ERROR != 0 => self.error_in(chunk).map(Some),
                kind => Err(self.peer.violation(format!("a chunk of kind {kind}"))),
            },
        }
    }

    /// Makes what was written durable. Gives the number of an error.
    pub fn flush(&mut self) -> Result<Option<i32>, Fault> {
        self.finish_writes()?;
        let cookie = self.send(Command::Flush, 0, 0, &[])?;
        self.wire.stall = self.peer.stall * FLUSH_PATIENCE;
        let mut error = None;
        loop {
            let head = self.head()?;
            if head.cookie() != cookie {
                return Err(self.peer.violation("a reply to nothing that was asked"));
            }
            error = error.or(self.plain_reply(&head)?);
            if head.is_last() {
                self.wire.stall = self.peer.stall;
                self.end_reply();
                return Ok(error);
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let request = Request::new(Command::Disconnect, 0, 0, 0);
        self.wire.say(request.as_bytes());
    }
}
