//! Lines of JSON to and from a socket of this host: none is longer than it may be, and nothing waits longer
//! than it may.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Action, message};
use crate::base::uri::Shown;
use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;
use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest line that is taken, in bytes.
const MAX_LINE_BYTES: usize = 16 << 20;
/// What is read at once.
const PIECE_BYTES: usize = 64 << 10;
/// The shortest wait: none at all means for ever to the system.
const SHORTEST: Duration = Duration::from_millis(1);
/// How much of a foreign text is passed on, in characters.
const MOST_SAID: usize = 300;

/// A connection to a server that speaks in lines.
pub struct Wire {
    stream: UnixStream,
    /// What it is called in messages.
    name: String,
    /// What was read and is not used yet.
    input: Vec<u8>,
    /// So much of it has no end of a line in it.
    searched: usize,
}

impl Wire {
    /// Connects to the socket at `path`, which is `name` in messages.
    ///
    /// # Errors
    /// `NotFound` without a socket; `Unavailable` if nobody listens; `Busy` if the server takes nobody in for
    /// `limit`.
    pub fn connect(path: &Path, name: &str, limit: Duration) -> Result<Self> {
        let failed = |e: Errno| Error::os("connect to", name, io::Error::from(e));
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
        // A server whose queue is full holds up who connects, as long as that says.
        let patience = TimeVal::new(limit.as_secs() as i64, i64::from(limit.subsec_micros()));
        setsockopt(&socket, SendTimeout, &patience).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => {}
            Err(Errno::ECONNREFUSED) => {
                let what = format!("no process listens on {}", path.shown());
                return Err(Error::new(ErrorKind::Unavailable, what)
                    .hint("check that the virtual machine runs"));
            }
            Err(Errno::EAGAIN | Errno::EINPROGRESS) => {
                let seconds = limit.as_secs_f32();
                let what = format!("{name} has accepted no connection for {seconds} s");
                return Err(
                    Error::new(ErrorKind::Busy, what).hint(message![Action::Retry, " later"])
                );
            }
            Err(errno) => return Err(failed(errno)),
        }
        Ok(Self { stream: socket.into(), name: name.to_owned(), input: Vec::new(), searched: 0 })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its descriptor.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Ends the connection, also for who has a copy of the descriptor: the server takes in the next client.
    pub fn shut(&self) {
        best_effort(self.stream.shutdown(Shutdown::Both));
    }

    /// Sends bytes, and descriptors with the first of them.
    ///
    /// # Errors
    /// `Unavailable` if the server is gone, or does not take them within `limit`.
    pub fn send(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>], limit: Duration) -> Result<()> {
        let begun = Instant::now();
        let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            let left = limit.saturating_sub(begun.elapsed()).max(SHORTEST);
            self.stream.set_write_timeout(Some(left)).map_err(|e| self.lost(&e))?;
            let rights = [ControlMessage::ScmRights(&files)];
            let rights = if sent == 0 && !files.is_empty() { rights.as_slice() } else { &[] };
            let (parts, flags) = ([IoSlice::new(rest)], MsgFlags::MSG_NOSIGNAL);
            match sendmsg::<()>(self.stream.as_raw_fd(), &parts, rights, flags, None) {
                Ok(count) => sent += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if begun.elapsed() < limit => {}
                Err(Errno::EAGAIN) => return Err(self.silent(limit)),
                Err(errno) => return Err(self.lost(&errno.into())),
            }
        }
        Ok(())
    }

    /// The next line, without its end; none if there is none until `deadline`.
    ///
    /// # Errors
    /// `Unavailable` if the connection ends; `Io` for a line that is too long.
    pub fn line(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            let unsearched = self.input.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.input.drain(..=self.searched + at).collect();
                self.searched = 0;
                while line.last().is_some_and(|byte| b"\r\n".contains(byte)) {
                    line.pop();
                }
                return Ok(Some(line));
            }
            self.searched = self.input.len();
            if self.input.len() > MAX_LINE_BYTES {
                return Err(self.violation("a line is longer than 16 MiB"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left.max(SHORTEST))).map_err(|e| self.lost(&e))?;
            let mut piece = [0; PIECE_BYTES];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(self.lost(&io::Error::other("it was closed"))),
                Ok(count) => self.input.extend_from_slice(piece.get(..count).unwrap_or_default()),
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted => {}
                    _ => return Err(self.lost(&e)),
                },
            }
        }
    }

    /// The server says what it may not say.
    pub fn violation(&self, what: &str) -> Error {
        let what = format!("{}: {what}", self.name);
        Error::new(ErrorKind::Io, what).hint("check which program listens there")
    }

    /// No answer.
    pub fn silent(&self, limit: Duration) -> Error {
        let what = format!("{}: no answer for {} s", self.name, limit.as_secs_f32());
        Error::new(ErrorKind::Unavailable, what)
            .hint(message!["check the virtual machine, and ", Action::Retry])
    }

    fn lost(&self, why: &io::Error) -> Error {
        // Without the number that the system has for it: it is of no medium.
        let why = why.to_string();
        let why = why.split(" (os error").next().unwrap_or_default();
        let what = format!("lost the connection to {}: {why}", self.name);
        Error::new(ErrorKind::Unavailable, what).hint("check that the virtual machine runs")
    }
}

/// What somebody else says, as a part of a line for people.
pub fn said(text: &str) -> String {
    let mut chars = text.trim().chars();
    let mut clean: String =
        chars.by_ref().take(MOST_SAID).map(|c| if c.is_control() { '?' } else { c }).collect();
    if chars.next().is_some() {
        clean.push_str("...");
    }
    clean
}
