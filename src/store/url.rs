//! URLs of repositories that are not folders.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::{percent_decoded, percent_encoded};
use std::fmt;

/// What kind of server a repository is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    /// Amazon S3, or what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// HDFS.
    Hdfs,
    /// A folder of another host, by ssh.
    Ssh,
}

impl RemoteKind {
    const ALL: [(&'static str, Self); 5] = [
        ("s3", Self::S3),
        ("gs", Self::Gcs),
        ("az", Self::Azure),
        ("hdfs", Self::Hdfs),
        ("ssh", Self::Ssh),
    ];

    /// The scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(scheme, _)| scheme)
    }

    fn usage(self) -> &'static str {
        match self {
            Self::S3 => "write s3://BUCKET/PREFIX",
            Self::Gcs => "write gs://BUCKET/PREFIX",
            Self::Azure => "write az://CONTAINER/PREFIX",
            Self::Hdfs => "write hdfs://HOST:PORT/PATH",
            Self::Ssh => "write ssh://[USER@]HOST[:PORT]/PATH",
        }
    }
}

/// The URL of a repository: `SCHEME://[USER@]AUTHORITY/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteUrl {
    /// What kind of server.
    pub kind: RemoteKind,
    /// The user; only of ssh.
    pub user: Option<String>,
    /// The bucket, the container, or the host. Empty where the default one is meant (HDFS).
    pub host: String,
    /// The port, if one is given.
    pub port: Option<u16>,
    /// The path, without slashes at its ends and without empty steps. May be empty.
    pub path: String,
}

impl RemoteUrl {
    /// Reads a URL with one of the schemes above; none if it has another one.
    ///
    /// # Errors
    /// `InvalidInput` if it cannot be one.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
        let Some((_, kind)) = RemoteKind::ALL.into_iter().find(|(name, _)| *name == scheme) else {
            return Ok(None);
        };
        let invalid = |why: &str| {
            let what = format!("invalid URL \"{}\": {why}", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, what).hint(kind.usage())
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) if kind == RemoteKind::Ssh => (Some(user.to_owned()), place),
            Some(_) => return Err(invalid("it must not contain credentials")),
            None => (None, authority),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (host, Some(port.ok_or_else(|| invalid("invalid port"))?))
            }
            _ => (place, None),
        };
        let has_port = matches!(kind, RemoteKind::Hdfs | RemoteKind::Ssh);
        if port.is_some() && !has_port {
            let why = "a port belongs to the endpoint, which is set in an environment variable";
            return Err(invalid(why));
        }
        if host.is_empty() && kind != RemoteKind::Hdfs {
            return Err(invalid("the host or bucket is missing"));
        }
        // What begins with '-' would be an option of ssh.
        let is_option = |name: &str| name.starts_with('-');
        let is_odd = |name: &str| name.contains(|c: char| c.is_control() || c.is_whitespace());
        let names = [Some(host), user.as_deref()];
        if names.into_iter().flatten().any(|name| is_option(name) || is_odd(name))
            || user.as_deref() == Some("")
        {
            return Err(invalid("invalid host or user name"));
        }
        if path.contains(['?', '#']) {
            return Err(invalid("parameters are not supported"));
        }
        let path = String::from_utf8(percent_decoded(path.as_bytes())?);
        let path = path.map_err(|_| invalid("the path is not UTF-8"))?;
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        if steps.iter().any(|step| matches!(*step, "." | "..")) || path.contains('\0') {
            return Err(invalid("the path has \".\" or \"..\" in it"));
        }
        if steps.is_empty() && has_port {
            return Err(invalid("the path is missing"));
        }
        Ok(Some(Self { kind, user, host: host.to_owned(), port, path: steps.join("/") }))
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.kind.scheme())?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(&self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        let slash = if self.path.is_empty() { "" } else { "/" };
        write!(f, "{slash}{}", percent_encoded(self.path.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        for (text, written) in [
            ("s3://bucket/a/b", "s3://bucket/a/b"),
            ("s3://bucket", "s3://bucket"),
            ("gs://bucket//a//b/", "gs://bucket/a/b"),
            ("az://container/a%20b", "az://container/a%20b"),
            ("hdfs://nn:8020/a", "hdfs://nn:8020/a"),
            ("hdfs:///a", "hdfs:///a"),
            ("ssh://me@host:22/srv/r", "ssh://me@host:22/srv/r"),
            ("ssh://[::1]:22/r", "ssh://[::1]:22/r"),
            ("ssh://[::1]/r", "ssh://[::1]/r"),
        ] {
            let url = RemoteUrl::parse(text).unwrap().unwrap();
            assert_eq!(url.to_string(), written);
            assert_eq!(RemoteUrl::parse(written).unwrap(), Some(url));
        }
        for other in ["/srv/r", "nbd://host/x", "file:///r", "S3://bucket"] {
            assert_eq!(RemoteUrl::parse(other).unwrap(), None, "{other}");
        }
        for bad in [
            "s3://",
            "s3:///a",
            "s3://key:secret@bucket/a",
            "s3://bucket:9000/a",
            "s3://bucket/a?x=1",
            "s3://bucket/../a",
            "s3://buck et/a",
            "hdfs://nn:8020",
            "hdfs://nn:0/a",
            "hdfs://nn:x/a",
            "ssh://host",
            "ssh://-oProxyCommand=x/a",
            "ssh://-l@host/a",
            "ssh://@host/a",
        ] {
            assert_eq!(RemoteUrl::parse(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }
}
