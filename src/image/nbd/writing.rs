//! Writes, zeros and flushes: several are under way at once, and what fails is told later.

use super::connection::{Connection, Head, IN_FLIGHT, Write};
use super::protocol::{Command, chunk, errno};
use super::wire::Fault;
use std::ops::Range;

/// Bytes of writes under way at once.
const WRITING_BYTES: u64 = 8 << 20;
/// A flush may take so many times as long as anything else: a disk has a large cache.
const FLUSH_PATIENCE: u32 = 20;

impl Connection {
    /// Begins to write bytes. An error may come later: see [`Connection::failed_write`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        let bytes = data.len() as u64;
        self.await_place(offset..offset + bytes, bytes)?;
        let cookie = self.send(Command::Write, offset, bytes as u32, data)?;
        self.writes.push(Write { cookie, range: offset..offset + bytes, payload: bytes });
        Ok(())
    }

    /// Begins to write zeros, which may become a hole.
    pub fn zero(&mut self, offset: u64, bytes: u32) -> Result<(), Fault> {
        let range = offset..offset + u64::from(bytes);
        self.await_place(range.clone(), 0)?;
        let cookie = self.send(Command::Zero, offset, bytes, &[])?;
        self.writes.push(Write { cookie, range, payload: 0 });
        Ok(())
    }

    /// Waits until one more may be under way, and none that it overlaps is: a server does them in any order.
    fn await_place(&mut self, range: Range<u64>, payload: u64) -> Result<(), Fault> {
        let has_place = |writes: &[Write]| {
            let under_way: u64 = writes.iter().map(|write| write.payload).sum();
            let overlaps =
                |write: &Write| write.range.start < range.end && range.start < write.range.end;
            writes.len() < IN_FLIGHT
                && under_way + payload <= WRITING_BYTES
                && !writes.iter().any(overlaps)
        };
        while !self.writes.is_empty() && !has_place(&self.writes) {
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
        let index = self.writes.iter().position(|write| write.cookie == head.cookie());
        let found = index.and_then(|index| Some((index, self.writes.get(index)?.range.start)));
        let Some((index, offset)) = found else {
            return Err(self.peer.violation("a reply without a request"));
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
                return Err(self.peer.violation("a reply without a request"));
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
