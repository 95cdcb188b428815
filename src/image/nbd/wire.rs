//! Bytes to and from a server: nothing waits longer than it may, and each wait ends when the user asks to
//! stop.

use crate::base::error::{Error, ErrorKind};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::image::nbd::{NbdPlace, NbdUri};
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How often a wait looks whether it is to end.
pub const TICK: Duration = Duration::from_millis(100);
/// A server that gives or takes less in a second, however steadily, is taken for one that hangs.
const LEAST_RATE: u64 = 8 << 10;
/// What is read at once where only a few bytes are wanted.
const INPUT_BYTES: usize = 4096;

/// Why something did not come about.
pub enum Fault {
    /// The connection is gone; another one may do.
    Lost(Error),
    /// Another connection puts nothing right.
    Final(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Who is spoken to.
pub struct Peer {
    /// Where it is, and which export.
    pub uri: NbdUri,
    /// The same in messages.
    pub name: String,
    /// Ends waits.
    pub context: Context,
    /// How long the server may be silent while something is asked of it.
    pub stall: Duration,
}

impl Peer {
    /// No connection, or none any more.
    pub fn lost(&self, why: impl std::fmt::Display) -> Fault {
        // Without the number that the system has for it: it is of no medium.
        let text = why.to_string();
        let why = text.split(" (os error").next().unwrap_or_default();
        let what = format!("lost the connection to {}: {why}", self.name);
        Fault::Lost(self.unavailable(what))
    }

    /// The server does what the protocol does not allow.
    pub fn violation(&self, what: impl std::fmt::Display) -> Fault {
        let what = format!("{}: the server violates the NBD protocol: {what}", self.name);
        let hint = "check which program listens there, and its version";
        Fault::Final(Error::new(ErrorKind::Io, what).hint(hint))
    }

    fn stalled(&self, limit: Duration) -> Fault {
        let seconds = limit.as_secs_f32();
        let what = format!("{}: no answer from the server for {seconds} s", self.name);
        Fault::Final(self.unavailable(what))
    }

    /// Fails if a message of so many bytes has been under way for too long.
    fn check_pace(&self, stall: Duration, begin: Instant, bytes: usize) -> Result<(), Fault> {
        let most = 2 * stall + Duration::from_millis(bytes as u64 * 1000 / LEAST_RATE);
        if begin.elapsed() <= most {
            return Ok(());
        }
        let seconds = begin.elapsed().as_secs_f32();
        let what =
            format!("{}: {bytes} bytes were not transferred within {seconds:.1} s", self.name);
        Err(Fault::Final(self.unavailable(what)))
    }

    fn unavailable(&self, what: String) -> Error {
        Error::new(ErrorKind::Unavailable, what)
            .hint(message!["check the server and the network, and ", Action::Retry])
    }

    fn refused(&self, error: io::Error) -> Fault {
        let is_named =
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
        let failed = Error::os("connect to", &self.name, error);
        let failed = if is_named { failed } else { failed.of_kind(ErrorKind::Unavailable) };
        Fault::Lost(failed.or_hint("check that the server runs and listens there"))
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(out),
            Self::Unix(stream) => stream.read(out),
        }
    }

    fn write(&mut self, head: &[u8], body: &[u8]) -> io::Result<usize> {
        let parts = [IoSlice::new(head), IoSlice::new(body)];
        match self {
            Self::Tcp(stream) => stream.write_vectored(&parts),
            Self::Unix(stream) => stream.write_vectored(&parts),
        }
    }
}

/// Tries each address of a name; none for longer than its part of `limit`.
fn dial(place: &NbdPlace, limit: Duration) -> io::Result<Stream> {
    let stream = match place {
        NbdPlace::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(TICK))?;
            stream.set_write_timeout(Some(TICK))?;
            Stream::Unix(stream)
        }
        NbdPlace::Tcp { host, port } => {
            let addresses: Vec<_> = (host.as_str(), *port).to_socket_addrs()?.collect();
            let limit = limit / addresses.len().max(1) as u32;
            let mut outcome = Err(io::Error::other("the name has no address"));
            for address in addresses {
                outcome = TcpStream::connect_timeout(&address, limit);
                if outcome.is_ok() {
                    break;
                }
            }
            let stream = outcome?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TICK))?;
            stream.set_write_timeout(Some(TICK))?;
            Stream::Tcp(stream)
        }
    };
    Ok(stream)
}

/// A connection, as bytes.
pub struct Wire {
    stream: Stream,
    /// What was read and is not used yet.
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// How long the server may be silent.
    pub stall: Duration,
}

impl Wire {
    /// Connects.
    pub fn connect(peer: &Peer, stall: Duration) -> Result<Self, Fault> {
        // To look up a name, or to wait for a place in a queue, takes as long as it takes: another thread
        // does it, and is left alone if it takes too long.
        let (sender, receiver) = sync_channel(1);
        let place = peer.uri.place.clone();
        // Nobody may wait for it any more.
        let dialer = move || sender.send(dial(&place, stall)).unwrap_or_default();
        std::thread::Builder::new()
            .name("nbd-connect".into())
            .spawn(dialer)
            .map_err(|e| Error::io("cannot start a thread", e))?;
        let begin = Instant::now();
        let stream = loop {
            match receiver.recv_timeout(TICK.min(stall)) {
                Ok(Ok(stream)) => break stream,
                Ok(Err(error)) => return Err(peer.refused(error)),
                Err(RecvTimeoutError::Timeout) => peer.context.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(peer.lost("the thread that connects has failed"));
                }
            }
            // The last address may fail just in time.
            if begin.elapsed() > stall + TICK {
                return Err(peer.stalled(stall));
            }
        };
        let input = vec![0; INPUT_BYTES].into_boxed_slice();
        Ok(Self { stream, input, start: 0, end: 0, stall })
    }

    /// Reads exactly as many bytes as there is place for.
    pub fn read(&mut self, peer: &Peer, mut out: &mut [u8]) -> Result<(), Fault> {
        let (begin, bytes) = (Instant::now(), out.len());
        while !out.is_empty() {
            peer.context.check()?;
            peer.check_pace(self.stall, begin, bytes)?;
            let have = self.input.get(self.start..self.end).unwrap_or_default();
            let count = if !have.is_empty() {
                let count = have.len().min(out.len());
                let (now, from) = (out.get_mut(..count), have.get(..count));
                now.unwrap_or_default().copy_from_slice(from.unwrap_or_default());
                self.start += count;
                count
            } else if out.len() < INPUT_BYTES {
                let (stream, input) = (&mut self.stream, &mut self.input);
                (self.start, self.end) = (0, transfer(peer, self.stall, || stream.read(input))?);
                0
            } else {
                transfer(peer, self.stall, || self.stream.read(out))?
            };
            out = out.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads a message of fixed length.
    pub fn read_message<T: FromBytes + IntoBytes + Immutable>(
        &mut self,
        peer: &Peer,
    ) -> Result<T, Fault> {
        let mut message = T::new_zeroed();
        self.read(peer, message.as_mut_bytes())?;
        Ok(message)
    }

    /// Reads a message of `bytes` bytes, which are checked against a limit already.
    pub fn read_bytes(&mut self, peer: &Peer, bytes: u32) -> Result<Vec<u8>, Fault> {
        let mut message = vec![0; bytes as usize];
        self.read(peer, &mut message)?;
        Ok(message)
    }

    /// Writes a head and what follows it.
    pub fn write(&mut self, peer: &Peer, mut head: &[u8], mut body: &[u8]) -> Result<(), Fault> {
        let (begin, bytes) = (Instant::now(), head.len() + body.len());
        while !head.is_empty() || !body.is_empty() {
            peer.context.check()?;
            peer.check_pace(self.stall, begin, bytes)?;
            let count = transfer(peer, self.stall, || self.stream.write(head, body))?;
            let of_head = count.min(head.len());
            head = head.get(of_head..).unwrap_or_default();
            body = body.get(count - of_head..).unwrap_or_default();
        }
        Ok(())
    }

    /// Says something once, and does not care whether it arrives.
    pub fn say(&mut self, message: &[u8]) {
        crate::base::error::best_effort(self.stream.write(message, &[]));
    }
}

/// Moves some bytes, as soon as it can.
fn transfer(
    peer: &Peer,
    stall: Duration,
    mut step: impl FnMut() -> io::Result<usize>,
) -> Result<usize, Fault> {
    let begin = Instant::now();
    loop {
        match step() {
            Ok(0) => return Err(peer.lost("the server closed it")),
            Ok(count) => return Ok(count),
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => {
                    peer.context.check()?;
                    if begin.elapsed() >= stall {
                        return Err(peer.stalled(stall));
                    }
                }
                _ => return Err(peer.lost(e)),
            },
        }
    }
}
