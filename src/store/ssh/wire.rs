//! The messages between a host and the one that serves its store.
//!
//! ```text
//! 4 bytes  length of the head    big endian
//! 4 bytes  length of the body
//!          head                  JSON: a request or an answer
//!          body                  bytes of an object
//! ```

use crate::base::error::{Error, ErrorKind};
use crate::store::{Listed, ReserveKept, Sharing};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::time::Duration;

/// The version of what is said here.
pub const PROTOCOL: u32 = 1;
/// The longest body: what is read or written at once.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// The longest head: the list of a folder is one.
const MAX_HEAD_BYTES: usize = 256 << 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// The first one.
    Hello {
        /// [`PROTOCOL`].
        version: u32,
        /// The folder of the repository.
        path: String,
    },
    /// Nothing: the host is there.
    Ping,
    /// What a folder holds; the times and lengths only if they are asked for.
    List { folder: String, timed: bool },
    /// What all folders hold.
    ListAll,
    /// What keeps users apart.
    Sharing,
    /// Length of an object.
    Size { name: String },
    /// A part of one.
    Read { name: String, offset: u64, bytes: u64 },
    /// One that is not longer than that.
    ReadWhole { name: String, limit: u64 },
    /// Puts the body, unless there is an object of that name.
    Put { name: String },
    /// Puts the body.
    Replace { name: String },
    /// Removes an object.
    Remove { name: String },
    /// Makes removals durable.
    SyncDir { folder: String },
    /// Makes a folder.
    CreateFolder { folder: String },
    /// Removes it, if it is empty.
    RemoveFolder { folder: String },
    /// Begins an object. The number of this request names the upload.
    Begin { name: String },
    /// Adds the body to an upload. It is answered only if it fails.
    Write { upload: u64 },
    /// Ends an upload.
    Publish { upload: u64, over: bool },
    /// Gives one up.
    Abort { upload: u64 },
    /// Takes a lock. The number of this request names it.
    Lock { name: String, exclusive: bool },
    /// Holds objects back.
    Hold { lock: String, objects: Vec<String> },
    /// Whether somebody does.
    IsHeld { lock: String, object: Option<String> },
    /// Lets go of a lock.
    Unlock { held: u64 },
    /// How much can be written.
    FreeSpace,
    /// Keeps some of it back.
    KeepReserve { bytes: u64, of_the_rest: bool },
    /// Gives that back.
    ReleaseReserve,
}

/// A request with its number, each another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Which answer is the one to it.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub ask: Ask,
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// That of the request.
    pub id: u64,
    /// What was found, or why not.
    pub told: std::result::Result<Told, WireError>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// It is done; what was read is in the body.
    Done,
    /// Objects of a folder.
    Listed(Vec<WireListed>),
    /// Objects of all folders.
    All(BTreeMap<String, Vec<WireListed>>),
    /// A number.
    Number(u64),
    /// Yes or no; a lock is held by somebody else if not.
    Is(bool),
    /// A number that may not be known.
    Perhaps(Option<u64>),
    /// Users are kept apart by locks, or else by markers: for so many seconds.
    Sharing(Option<(u64, u64)>),
}

/// An object of a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WireListed {
    name: String,
    time: Timestamp,
    bytes: u64,
}

impl From<Listed> for WireListed {
    fn from(listed: Listed) -> Self {
        Self { name: listed.name, time: listed.time, bytes: listed.bytes }
    }
}

impl WireListed {
    /// A name alone.
    pub fn named(name: String) -> Self {
        Self { name, time: Timestamp::UNIX_EPOCH, bytes: 0 }
    }
}

impl From<WireListed> for Listed {
    fn from(listed: WireListed) -> Self {
        Self { name: listed.name, time: listed.time, bytes: listed.bytes }
    }
}

impl From<Sharing> for Told {
    fn from(sharing: Sharing) -> Self {
        Self::Sharing(match sharing {
            Sharing::Locked => None,
            Sharing::Shared { grace, marker_life } => {
                Some((grace.as_secs(), marker_life.as_secs()))
            }
        })
    }
}

impl Told {
    /// What keeps users apart, if that is what was asked.
    pub(super) fn sharing(self) -> Option<Sharing> {
        let Self::Sharing(sharing) = self else { return None };
        Some(sharing.map_or(Sharing::Locked, |(grace, life)| Sharing::Shared {
            grace: Duration::from_secs(grace),
            marker_life: Duration::from_secs(life),
        }))
    }
}

/// True if what is kept is to be of the rest.
pub(super) fn is_of_the_rest(of: ReserveKept) -> bool {
    of == ReserveKept::OfTheRest
}

/// An error as it is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireError {
    kind: String,
    message: String,
    /// What the operating system said: a number of errno.
    os: Option<i32>,
    advice: Option<String>,
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        let os = error.raw_os_error();
        // With its number the text of the operating system is told, too.
        let message = if os.is_some() { error.message().into() } else { error.without_advice() };
        let advice = error.advice().map(ToString::to_string);
        Self { kind: error.kind().name().into(), message, os, advice }
    }
}

impl WireError {
    /// The error, as of a host.
    pub(super) fn of(self, host: &str) -> Error {
        let kind = ErrorKind::ALL.iter().find(|kind| kind.name() == self.kind);
        let kind = kind.copied().unwrap_or(ErrorKind::Io);
        let message = format!("{host}: {}", self.message);
        let error = match self.os {
            Some(number) => Error::io(message, io::Error::from_raw_os_error(number)).of_kind(kind),
            None => Error::new(kind, message),
        };
        match self.advice {
            Some(advice) => error.hint(advice),
            None => error,
        }
    }
}

/// A message that came: its head and its body.
pub type Incoming<T> = (T, Vec<u8>);

/// A message to be sent.
pub struct Outgoing<'a, T> {
    /// The head.
    pub head: &'a T,
    /// The body.
    pub body: &'a [u8],
}

/// Writes a message.
///
/// # Errors
/// `InvalidInput` if it is too long.
pub fn write_message<T: Serialize>(out: &mut impl Write, message: &Outgoing<T>) -> io::Result<()> {
    let head = serde_json::to_vec(message.head)?;
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the message is too long");
    let (head_bytes, body_bytes) = (u32::try_from(head.len()), u32::try_from(message.body.len()));
    let head_bytes = head_bytes.map_err(|_| too_long())?;
    let body_bytes = body_bytes.map_err(|_| too_long())?;
    let mut lengths = [0; 8];
    let (first, second) = lengths.split_at_mut(4);
    first.copy_from_slice(&network_order(head_bytes));
    second.copy_from_slice(&network_order(body_bytes));
    out.write_all(&lengths)?;
    out.write_all(&head)?;
    out.write_all(message.body)
}

/// Reads a message; none at the end.
///
/// # Errors
/// `InvalidData` for what is none.
pub fn read_message<T: for<'a> Deserialize<'a>>(
    input: &mut impl Read,
) -> io::Result<Option<Incoming<T>>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut lengths = [0; 8];
    let mut have = 0;
    while have < lengths.len() {
        match input.read(lengths.get_mut(have..).unwrap_or_default()) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let (first, second) = lengths.split_at(4);
    let (head_bytes, body_bytes) = (length(first), length(second));
    if head_bytes > MAX_HEAD_BYTES || body_bytes > MAX_BODY_BYTES {
        // What comes first may be text of the shell of the other host.
        let text = String::from_utf8_lossy(&lengths).escape_debug().to_string();
        return Err(invalid(format!("no message of imgsnap begins with \"{text}\"")));
    }
    // Nothing is allocated for what does not come.
    let (mut head, mut body) = (Vec::new(), Vec::new());
    for (part, bytes) in [(&mut head, head_bytes), (&mut body, body_bytes)] {
        part.reserve_exact(bytes.min(1 << 20));
        if input.by_ref().take(bytes as u64).read_to_end(part)? < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = serde_json::from_slice(&head).map_err(|e| invalid(e.to_string()))?;
    Ok(Some((head, body)))
}

fn network_order(number: u32) -> [u8; 4] {
    let [a, b, c, d] = number.to_le_bytes();
    [d, c, b, a]
}

fn length(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_as_they_were_sent() {
        let mut sent = Vec::new();
        let asks = [
            Ask::Ping,
            Ask::Hello { version: PROTOCOL, path: "/srv/r".into() },
            Ask::Read { name: "vm/x.delta".into(), offset: 7, bytes: 9 },
            Ask::Lock { name: "vm/write.lock".into(), exclusive: true },
        ];
        let requests: Vec<Request> =
            asks.into_iter().enumerate().map(|(id, ask)| Request { id: id as u64, ask }).collect();
        for request in &requests {
            write_message(&mut sent, &Outgoing { head: request, body: b"body" }).unwrap();
        }
        let mut input = &sent[..];
        for request in requests {
            assert_eq!(read_message(&mut input).unwrap(), Some((request, b"body".to_vec())));
        }
        assert_eq!(read_message::<Request>(&mut input).unwrap(), None);
        let first = 8 + br#"{"id":0,"ask":"ping"}"#.len() + b"body".len();
        for end in 1..first {
            assert!(read_message::<Request>(&mut &sent[..end]).is_err(), "{end}");
        }
        for other in
            [&b"Welcome to host\n"[..], b"\0\0\0\x02\0\0\0\0{}", b"\0\0\0\x02\xff\xff\xff\xff{}"]
        {
            assert!(read_message::<Request>(&mut &other[..]).is_err());
        }
    }

    #[test]
    fn errors_are_told_as_they_were() {
        let full = Error::io("cannot write", io::Error::from_raw_os_error(libc::ENOSPC));
        let told = WireError::from(&full).of("host");
        assert!(told.is_storage_full());
        assert_eq!(told.to_string(), format!("host: {full}"));
        let busy = Error::new(ErrorKind::Busy, "in use").hint("wait");
        let told = WireError::from(&busy).of("host");
        assert_eq!((told.kind(), told.to_string()), (ErrorKind::Busy, "host: in use; wait".into()));
    }
}
