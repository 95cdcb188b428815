//! The one error type: a small stable kind; what, where and why; and what to do, as data.

use crate::base::message::{Action, Message};
use crate::base::named::named;
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use std::fmt;
use std::io;

named! {
    /// What class of thing went wrong. The set is small and stable; a program decides by it, a person
    /// reads the message.
    pub enum ErrorKind {
        /// The operating system refused an operation.
        Io = "io",
        /// Something named does not exist.
        NotFound = "not-found",
        /// Something would have to be overwritten.
        AlreadyExists = "already-exists",
        /// Somebody else uses the image, the target or the repository.
        Busy = "busy",
        /// What the caller asked for makes no sense.
        InvalidInput = "invalid-input",
        /// Bytes on disk are not what was written.
        Corrupt = "corrupt",
        /// Written by a later version, or not available on this system.
        Unsupported = "unsupported",
        /// Two things do not belong together.
        Mismatch = "mismatch",
        /// A limit of the format or of the system is exceeded.
        LimitExceeded = "limit-exceeded",
        /// The user asked to stop.
        Interrupted = "interrupted",
        /// Whoever was asked does not know the caller, or denies it something.
        Auth = "auth",
        /// A key is missing, or is not the one that is needed.
        Key = "key",
        /// A server or a network is not there now; another time it may be.
        Unavailable = "unavailable",
        /// A bug of imgsnap.
        Internal = "internal",
    }
}

/// An error of imgsnap. `Display` gives one line: what, where, why, and what to do.
#[derive(Debug)]
pub struct Error(Box<Fields>);

#[derive(Debug)]
struct Fields {
    kind: ErrorKind,
    message: String,
    operation: Option<String>,
    place: Option<String>,
    offset: Option<u64>,
    advice: Option<Message>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A result with imgsnap's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause. `message` says what and where, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Fields {
            kind,
            message: message.into(),
            operation: None,
            place: None,
            offset: None,
            advice: None,
            source: None,
        }))
    }

    /// The operating system refused an operation ("read", "open the image") on a file or device.
    pub fn os(operation: &str, place: impl fmt::Display, source: io::Error) -> Self {
        Self::refused(format!("cannot {operation} {place}"), operation, place, source)
    }

    /// The same at byte `offset` of it.
    pub fn os_at(
        operation: &str,
        place: impl fmt::Display,
        offset: u64,
        source: io::Error,
    ) -> Self {
        let what = format!("cannot {operation} {place} at byte {offset}");
        Self::refused(what, operation, place, source).at_offset(offset)
    }

    fn refused(what: String, operation: &str, place: impl fmt::Display, source: io::Error) -> Self {
        let mut error = Self::io(what, source);
        error.0.operation = Some(operation.to_owned());
        error.0.place = Some(place.to_string());
        error
    }

    /// The operating system refused something that is done to no file in particular: `what` says what
    /// ("cannot start a thread").
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            _ => ErrorKind::Io,
        };
        let mut error = Self::new(kind, what);
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let advice = Message::from("free some space and ").then(Action::Retry);
                error.0.advice = Some(advice);
            }
            io::ErrorKind::FileTooLarge => {
                let hint = "the file size limit is exceeded: raise it (ulimit -f), or use another \
                            file system";
                error.0.advice = Some(hint.into());
            }
            io::ErrorKind::PermissionDenied => {
                error.0.advice = Some("check its owner and mode".into());
            }
            _ => {}
        }
        match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => {
                error.0.advice = Some("raise the limit on open files (ulimit -n)".into());
            }
            Some(libc::ENAMETOOLONG) => error.0.advice = Some("choose a shorter name".into()),
            _ => {}
        }
        error.0.source = Some(Box::new(source));
        error
    }

    /// Bytes on disk are not what was written.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// The same as of another class.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, advice: impl Into<Message>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Says what to do, unless that was said.
    #[must_use]
    pub fn or_hint(self, advice: impl Into<Message>) -> Self {
        if self.0.advice.is_some() { self } else { self.hint(advice) }
    }

    /// Puts the place before the message: `place: message`.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        // Where it was when it was stopped says nothing of that place.
        if self.kind() == ErrorKind::Interrupted {
            return self;
        }
        let place = place.to_string();
        self.0.message = format!("{place}: {}", self.0.message);
        self.0.place.get_or_insert(place);
        self
    }

    /// Notes at which byte of the place it is; the message says so already.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// What and where, without the cause and what to do.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the operating system was to do, if that failed.
    pub fn operation(&self) -> Option<&str> {
        self.0.operation.as_deref()
    }

    /// Of what it is: a path, a URI, or the name of an image or snapshot.
    pub fn place(&self) -> Option<&str> {
        self.0.place.as_deref()
    }

    /// The first byte that it is of.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// What to do about it.
    pub fn advice(&self) -> Option<&Message> {
        self.0.advice.as_ref()
    }

    /// What, where and why.
    pub fn without_advice(&self) -> String {
        let Some(source) = &self.0.source else { return self.0.message.clone() };
        let text = match source.downcast_ref::<io::Error>().and_then(errno_of_kind) {
            Some(number) => io::Error::from_raw_os_error(number).to_string(),
            None => source.to_string(),
        };
        // "No such file or directory (os error 2)": the number helps nobody.
        format!("{}: {}", self.0.message, text.split(" (os error").next().unwrap_or_default())
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True if bytes were read, and are not what was written. Whatever else keeps something from being
    /// checked says nothing of it.
    pub fn is_damage(&self) -> bool {
        self.0.kind == ErrorKind::Corrupt
    }

    /// True if something could not be read now, and may be another time: that says nothing of what is there.
    pub fn is_unread(&self) -> bool {
        use ErrorKind::{Auth, Interrupted, Io, Unavailable};
        matches!(self.0.kind, Io | Auth | Unavailable | Interrupted)
    }

    /// True if the file system or a quota is full, or a file may not grow any more.
    pub fn is_storage_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        self.io_cause()
            .is_some_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }

    /// What the operating system said, if it was asked.
    fn io_cause(&self) -> Option<&io::Error> {
        self.0.source.as_ref().and_then(|s| s.downcast_ref::<io::Error>())
    }

    /// The number of the error of the operating system, if it was asked.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.io_cause().and_then(io::Error::raw_os_error)
    }

    /// True if nothing can be written there by this caller.
    pub fn is_read_only(&self) -> bool {
        let denied = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied];
        let is_denied = self.io_cause().is_some_and(|e| denied.contains(&e.kind()));
        is_denied || matches!(self.kind(), ErrorKind::Auth | ErrorKind::Unsupported)
    }

    /// True if a medium does not give back what is on it.
    pub fn is_bad_medium(&self) -> bool {
        // Sectors that cannot be read, and file systems whose checksums say so.
        const BAD: [i32; 4] = [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EBADMSG];
        self.io_cause()
            .and_then(io::Error::raw_os_error)
            .is_some_and(|number| BAD.contains(&number))
    }

    /// True if the reader of a pipe went away.
    pub fn is_broken_pipe(&self) -> bool {
        self.io_cause().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Message::from(self).fmt(f)
    }
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Error", 6)?;
        fields.serialize_field("kind", &self.0.kind)?;
        fields.serialize_field("message", &self.without_advice())?;
        fields.serialize_field("operation", &self.0.operation)?;
        fields.serialize_field("place", &self.0.place)?;
        fields.serialize_field("offset", &self.0.offset)?;
        fields.serialize_field("advice", &self.0.advice)?;
        fields.end()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as _)
    }
}

/// What, where, why, and what to do.
impl From<&Error> for Message {
    fn from(error: &Error) -> Self {
        let message = Self::from(error.without_advice());
        match error.advice() {
            Some(advice) => message.then("; ").then(advice.clone()),
            None => message,
        }
    }
}

impl From<Error> for Message {
    fn from(error: Error) -> Self {
        (&error).into()
    }
}

/// For what is tried for the sake of order, and whose failure changes nothing: the comment beside the
/// call says why.
pub fn best_effort<T, E>(outcome: std::result::Result<T, E>) {
    drop(outcome);
}

/// What the system calls an error that was made here: the standard library has words of its own for them.
fn errno_of_kind(error: &io::Error) -> Option<i32> {
    // Some have a text of their own.
    let has_text = error.get_ref().is_some() || error.to_string() != error.kind().to_string();
    if error.raw_os_error().is_some() || has_text {
        return None;
    }
    Some(match error.kind() {
        io::ErrorKind::NotFound => libc::ENOENT,
        io::ErrorKind::PermissionDenied => libc::EACCES,
        io::ErrorKind::AlreadyExists => libc::EEXIST,
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::QuotaExceeded => libc::EDQUOT,
        io::ErrorKind::FileTooLarge => libc::EFBIG,
        io::ErrorKind::ResourceBusy => libc::EBUSY,
        io::ErrorKind::WouldBlock => libc::EAGAIN,
        io::ErrorKind::BrokenPipe => libc::EPIPE,
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_one_line_with_cause_and_hint() {
        let error = Error::io("cannot open /x", io::Error::from_raw_os_error(2)).hint("look again");
        assert_eq!(error.to_string(), "cannot open /x: No such file or directory; look again");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        // An error that was made here reads as one of the system.
        let error = Error::io("cannot open /x", io::ErrorKind::NotFound.into());
        assert_eq!(error.to_string(), "cannot open /x: No such file or directory");
    }

    #[test]
    fn place_goes_first() {
        let error = Error::corrupt("checksum mismatch").at("frame at 256").at("a.delta");
        assert_eq!(error.to_string(), "a.delta: frame at 256: checksum mismatch");
    }
}
