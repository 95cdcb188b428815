//! What errors of HDFS mean.

use crate::base::error::{Error, ErrorKind};
use hdfs_native::HdfsError;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a NameNode in safe mode is waited for: when it starts, that ends by itself. Less than what all
/// attempts at a request take.
const SAFE_MODE: Duration = Duration::from_secs(35);

/// A NameNode that takes no changes: for some time after its start, or for as long as an administrator wants.
#[derive(Default)]
pub(super) struct SafeMode {
    /// When it was seen first, and last.
    seen: Mutex<Option<(Instant, Instant)>>,
}

impl SafeMode {
    /// True if it is no use to wait any longer.
    fn stays(&self) -> bool {
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = match *seen {
            // Somebody asks every ten seconds at least.
            Some((first, last)) if now - last < SAFE_MODE / 2 => first,
            _ => now,
        };
        *seen = Some((first, now));
        now - first > SAFE_MODE
    }

    /// What an error of a request means.
    pub fn error(&self, doing: &str, place: &str, error: HdfsError) -> Error {
        match &error {
            HdfsError::RPCError(class, _) | HdfsError::FatalRPCError(class, _)
                if class.ends_with("SafeModeException") && self.stays() =>
            {
                // As a file system that is mounted read-only: what only reads goes on.
                let why = io::ErrorKind::ReadOnlyFilesystem;
                let refused = io::Error::new(why, "the NameNode is in safe mode");
                Error::os(doing, place, refused)
                    .hint("try again when it has left that (hdfs dfsadmin -safemode get)")
            }
            _ => failed(doing, place, error),
        }
    }
}

/// What an error of HDFS means.
fn failed(doing: &str, place: &str, error: HdfsError) -> Error {
    let (kind, why) = match error {
        HdfsError::FileNotFound(_) => (ErrorKind::NotFound, "No such file or directory".into()),
        HdfsError::AlreadyExists(_) => (ErrorKind::AlreadyExists, "it already exists".into()),
        HdfsError::RPCError(class, message) | HdfsError::FatalRPCError(class, message) => {
            let message = message.lines().next().unwrap_or_default().to_owned();
            let is = |name: &str| class.ends_with(name);
            if is("QuotaExceededException") {
                let full = io::Error::from(io::ErrorKind::QuotaExceeded);
                return Error::os(doing, place, full);
            }
            let kind = match () {
                () if is("AccessControlException") => ErrorKind::Auth,
                () if is("SafeModeException") || is("StandbyException") => ErrorKind::Unavailable,
                // Which DataNodes there are changes.
                () if message.contains("could only be written to") => ErrorKind::Unavailable,
                () if is("FileNotFoundException") => ErrorKind::NotFound,
                () => ErrorKind::Io,
            };
            (kind, message)
        }
        HdfsError::IOError(e) => (ErrorKind::Unavailable, e.to_string()),
        HdfsError::SASLError(_) | HdfsError::GSSAPIError(..) | HdfsError::NoSASLMechanism => {
            (ErrorKind::Auth, error.to_string())
        }
        HdfsError::InvalidPath(_) | HdfsError::IsADirectoryError(_) => {
            (ErrorKind::Io, error.to_string())
        }
        HdfsError::UnsupportedFeature(_) | HdfsError::UnsupportedErasureCodingPolicy(_) => {
            (ErrorKind::Unsupported, error.to_string())
        }
        other => (ErrorKind::Unavailable, other.to_string()),
    };
    let error = Error::new(kind, format!("cannot {doing} {place}: {why}"));
    match kind {
        ErrorKind::Auth => error.hint("check the user (HADOOP_USER_NAME, kinit) and the owner"),
        ErrorKind::Unavailable => error.hint("check that the server can be reached, and try again"),
        _ => error,
    }
}
