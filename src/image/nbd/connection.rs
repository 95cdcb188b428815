//! One connection, and the requests that are under way on it. Whoever has it sends requests, as many as
//! may be under way, and takes the replies in the order in which they come.

use super::handshake::{Export, agree};
use super::protocol::{
    CHUNK_MAGIC, Chunk, Command, MAX_ERROR_BYTES, Request, SIMPLE_MAGIC, SimpleReply, chunk,
    decode_error,
};
use super::wire::{Fault, Peer, Wire};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::IntoBytes;
use zerocopy::big_endian::U32;

/// Requests under way at once: as many as QEMU takes in from one client.
pub const IN_FLIGHT: usize = 16;
/// Errors that one reply may have.
const MAX_ERRORS: u32 = 256;

/// A connection on which an export can be used.
pub struct Connection {
    /// Its bytes.
    pub wire: Wire,
    /// Whose it is.
    pub peer: Arc<Peer>,
    /// What the server said.
    pub export: Export,
    next_cookie: u64,
    /// The last request was sent whole.
    is_whole: bool,
    /// Writes under way.
    pub writes: Vec<Write>,
    /// The first write that the server refused: its offset, and the number of the error.
    pub failed_write: Option<(u64, i32)>,
    /// Requests that were answered.
    pub answered: u64,
    /// Errors since then that have not ended a reply.
    errors: u32,
}

/// A write under way.
pub struct Write {
    /// What its reply is known by.
    pub cookie: u64,
    /// Which bytes of the export.
    pub range: Range<u64>,
    /// Bytes that were sent.
    pub payload: u64,
}

/// How a reply, or a chunk of one, begins.
pub enum Head {
    /// All of it, but for the data of a read.
    Simple(SimpleReply),
    /// What follows is told by its kind.
    Chunk(Chunk),
}

impl Head {
    /// Of the request.
    pub fn cookie(&self) -> u64 {
        match self {
            Self::Simple(reply) => reply.cookie.get(),
            Self::Chunk(chunk) => chunk.cookie.get(),
        }
    }

    /// True if the reply ends with it.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Simple(_) => true,
            Self::Chunk(chunk) => chunk.flags.get() & chunk::DONE != 0,
        }
    }
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
            is_whole: true,
            writes,
            failed_write,
            answered: 0,
            errors: 0,
        })
    }

    /// Sends a request, and gives what its reply will be known by.
    pub fn send(
        &mut self,
        command: Command,
        offset: u64,
        bytes: u32,
        data: &[u8],
    ) -> Result<u64, Fault> {
        self.next_cookie += 1;
        let request = Request::new(command, self.next_cookie, offset, bytes);
        self.is_whole = false;
        self.wire.write(&self.peer, request.as_bytes(), data)?;
        self.is_whole = true;
        Ok(self.next_cookie)
    }

    /// The head of the next reply.
    pub fn head(&mut self) -> Result<Head, Fault> {
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
    pub fn error_in(&mut self, chunk: &Chunk) -> Result<i32, Fault> {
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
    pub fn end_reply(&mut self) {
        self.answered += 1;
        self.errors = 0;
    }

    /// What a server says before it hangs up is no error of the request.
    pub fn checked(&self, error: i32) -> Result<i32, Fault> {
        match error {
            libc::ESHUTDOWN => Err(self.peer.lost("the server is shutting down")),
            other => Ok(other),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Into half a write it would be taken for data.
        if self.is_whole {
            let request = Request::new(Command::Disconnect, 0, 0, 0);
            self.wire.say(request.as_bytes());
        }
    }
}
