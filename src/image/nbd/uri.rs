//! What names an export of an NBD server (the NBD project's doc/uri.md).

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::{percent_decoded, percent_encoded};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

/// The port of an NBD server, unless another one is given.
const DEFAULT_PORT: u16 = 10809;
/// The longest name of an export that the protocol allows, in bytes.
const MAX_EXPORT_BYTES: usize = 4096;
/// The longest host name, in bytes (RFC 1035).
const MAX_HOST_BYTES: usize = 253;

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    /// Where the server listens.
    pub place: NbdPlace,
    /// Name of the export; empty for the default one.
    pub export: String,
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdPlace {
    /// On a port of a host.
    Tcp {
        /// Its name or address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// On a socket of this host: an absolute path.
    Unix(PathBuf),
}

impl FromStr for NbdUri {
    type Err = Error;

    /// Reads `nbd://HOST[:PORT]/[EXPORT]` or `nbd+unix:///[EXPORT]?socket=PATH`.
    ///
    /// # Errors
    /// `InvalidInput`; `Unsupported` for TLS.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str, hint: &str| {
            let what = format!("invalid NBD URI \"{}\": {why}", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, what).hint(hint.to_owned())
        };
        let usage = "write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH";
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("no scheme", usage))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = String::from_utf8(percent_decoded(export.as_bytes())?)
            .map_err(|_| invalid("the name of the export is not UTF-8", usage))?;
        if export.len() > MAX_EXPORT_BYTES || export.contains('\0') {
            return Err(invalid("invalid export name", usage));
        }
        let place = match scheme {
            "nbd" if query.is_empty() => tcp(authority).ok_or_else(|| invalid("no host", usage))?,
            "nbd" => return Err(invalid("parameters are not supported", usage)),
            "nbd+unix" => {
                let socket = query.strip_prefix("socket=").filter(|rest| !rest.contains('&'));
                let socket = percent_decoded(socket.unwrap_or_default().as_bytes())?;
                let path = PathBuf::from(OsString::from_vec(socket));
                if !path.is_absolute() || !authority.is_empty() {
                    return Err(invalid("the socket needs an absolute path", usage));
                }
                NbdPlace::Unix(path)
            }
            _ => {
                let what = format!("unsupported NBD URI \"{}\"", text.escape_debug());
                return Err(Error::new(ErrorKind::Unsupported, what)
                    .hint("TLS is not supported; use a socket of this host, or a tunnel"));
            }
        };
        Ok(Self { place, export })
    }
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`.
fn tcp(authority: &str) -> Option<NbdPlace> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let is_plain = host.bytes().all(|b| b.is_ascii_graphic() && !b"@[]/?#%".contains(&b));
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        // A sign would be read, too.
        Some(port) => port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()))?,
    };
    let is_one = is_plain && !host.is_empty() && host.len() <= MAX_HOST_BYTES && port != 0;
    is_one.then(|| NbdPlace::Tcp { host: host.to_owned(), port })
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encoded(self.export.as_bytes());
        match &self.place {
            NbdPlace::Tcp { host, port } => {
                let port = if *port == DEFAULT_PORT { String::new() } else { format!(":{port}") };
                match host.contains(':') {
                    true => write!(f, "nbd://[{host}]{port}/{export}"),
                    false => write!(f, "nbd://{host}{port}/{export}"),
                }
            }
            NbdPlace::Unix(path) => {
                let socket = percent_encoded(path.as_os_str().as_bytes());
                write!(f, "nbd+unix:///{export}?socket={socket}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_named_by_uris() {
        for (text, shown) in [
            ("nbd://host", "nbd://host/"),
            ("nbd://host:10809/vm", "nbd://host/vm"),
            ("nbd://10.0.0.1:10810/a/b", "nbd://10.0.0.1:10810/a/b"),
            ("nbd://[::1]:7/x%20y", "nbd://[::1]:7/x%20y"),
            ("nbd+unix:///?socket=/run/s", "nbd+unix:///?socket=/run/s"),
            ("nbd+unix:///v%C3%A4?socket=/run/a%26b", "nbd+unix:///v%C3%A4?socket=/run/a%26b"),
        ] {
            let uri: NbdUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), shown);
            assert_eq!(shown.parse::<NbdUri>().unwrap(), uri);
        }
        for text in [
            "nbd://",
            "nbd:///vm",
            "nbd://user@host/vm",
            "nbd://host:0/",
            "nbd://host:+1/",
            "nbd://host:99999/",
            "nbd://[::1/",
            "nbd://host/?socket=/s",
            "nbd+unix:///vm",
            "nbd+unix:///vm?socket=relative",
            "nbd+unix://host/vm?socket=/s",
            "nbd+unix:///vm?socket=/s&tls=1",
            "nbd://host/%ff",
            "nbd://host/%00",
        ] {
            let error = text.parse::<NbdUri>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}: {error}");
        }
        let error = "nbds://host/vm".parse::<NbdUri>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
