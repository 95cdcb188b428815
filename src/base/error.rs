//! The one error type: a small stable kind, one line that says what, where and what to do, and the
//! cause.

use std::fmt;
use std::io;

/// What class of thing went wrong. The set is small and stable; a program decides by it, a person
/// reads the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused an operation.
    Io,
    /// Something named does not exist.
    NotFound,
    /// Something would have to be overwritten.
    AlreadyExists,
    /// Somebody else uses the image, the target or the repository.
    Busy,
    /// What the caller asked for makes no sense.
    InvalidInput,
    /// Bytes on disk are not what was written.
    Corrupt,
    /// Written by a later version, or not available on this system.
    Unsupported,
    /// Two things do not belong together.
    Mismatch,
    /// A limit of the format or of the system is exceeded.
    LimitExceeded,
    /// The user asked to stop.
    Interrupted,
}

/// An error of imgsnap. `Display` gives one line: what, where, and what to do.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A result with imgsnap's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause. `message` says what and where, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// The operating system refused: `what` is the operation and its object ("cannot read /x/y").
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            _ => ErrorKind::Io,
        };
        let mut error = Self::new(kind, what);
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                error.hint = Some("free some space and run the command again".into());
            }
            io::ErrorKind::FileTooLarge => {
                let hint = "a file may not be that long here: raise the limit (ulimit -f), or use another \
                            file system";
                error.hint = Some(hint.into());
            }
            io::ErrorKind::PermissionDenied => {
                error.hint = Some("check its owner and mode".into());
            }
            _ => {}
        }
        if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
            error.hint = Some("raise the limit on open files (ulimit -n)".into());
        }
        error.source = Some(Box::new(source));
        error
    }

    /// Bytes on disk are not what was written.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what to do, unless that was said.
    #[must_use]
    pub fn or_hint(self, hint: impl Into<String>) -> Self {
        if self.hint.is_some() { self } else { self.hint(hint) }
    }

    /// Puts the place before the message: `place: message`.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What and where, without the cause and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// True if bytes were read, and are not what was written. Whatever else keeps something from being
    /// checked says nothing of it.
    pub fn is_damage(&self) -> bool {
        self.kind == ErrorKind::Corrupt
    }

    /// True if the file system or a quota is full, or a file may not grow any more.
    pub fn is_storage_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let cause = self.source.as_ref().and_then(|s| s.downcast_ref::<io::Error>());
        cause.is_some_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }

    /// True if a medium does not give back what is on it.
    pub fn is_bad_medium(&self) -> bool {
        let cause = self.source.as_ref().and_then(|s| s.downcast_ref::<io::Error>());
        // Sectors that cannot be read, and file systems whose checksums say so.
        const BAD: [i32; 4] = [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EBADMSG];
        cause.and_then(io::Error::raw_os_error).is_some_and(|number| BAD.contains(&number))
    }

    /// True if the reader of a pipe went away.
    pub fn is_broken_pipe(&self) -> bool {
        let cause = self.source.as_ref().and_then(|s| s.downcast_ref::<io::Error>());
        cause.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            // "No such file or directory (os error 2)": the number helps nobody.
            let text = source.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            write!(f, ": {text}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

/// For what is tried for the sake of order, and whose failure changes nothing: the comment beside the
/// call says why.
pub fn best_effort<T, E>(outcome: std::result::Result<T, E>) {
    drop(outcome);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_one_line_with_cause_and_hint() {
        let error = Error::io("cannot open /x", io::Error::from_raw_os_error(2)).hint("look again");
        assert_eq!(error.to_string(), "cannot open /x: No such file or directory; look again");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn place_goes_first() {
        let error = Error::corrupt("checksum differs").at("frame at 256").at("a.delta");
        assert_eq!(error.to_string(), "a.delta: frame at 256: checksum differs");
    }
}
