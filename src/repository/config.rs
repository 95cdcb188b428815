//! `repository.toml`: version, identity and the defaults for new bases (FORMAT.md P1).

use crate::codec::Compression;
use crate::digest::DigestAlgorithm;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Store, read_small};
use crate::units::BlockSize;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

pub(super) const FILE: &str = "repository.toml";
const VERSION: u32 = 1;

/// With what a new base is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Unit of comparison.
    pub block_size: BlockSize,
    /// Digest of blocks.
    pub digest: DigestAlgorithm,
    /// Compression; of deltas, too.
    pub compression: Compression,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            block_size: BlockSize::DEFAULT,
            digest: DigestAlgorithm::default(),
            compression: Compression::default(),
        }
    }
}

impl fmt::Display for Defaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks, {}, {}", self.block_size, self.digest, self.compression)
    }
}

pub(super) struct Config {
    pub(super) id: Uuid,
    defaults: Defaults,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    id: Option<Uuid>,
    new: Option<WireNew>,
}

#[derive(Serialize, Deserialize)]
struct WireNew {
    block_size: u32,
    digest: String,
    compression: String,
}

impl Config {
    pub(super) fn new(defaults: Defaults) -> Self {
        Self { id: Uuid::new_v4(), defaults }
    }

    pub(super) fn defaults(&self) -> Defaults {
        self.defaults
    }

    pub(super) fn encode(&self) -> Result<String> {
        let Defaults { block_size, digest, compression } = self.defaults;
        let new = WireNew {
            block_size: block_size.bytes(),
            digest: digest.to_string(),
            compression: compression.to_string(),
        };
        let wire = Wire { version: VERSION, id: Some(self.id), new: Some(new) };
        let body = toml::to_string(&wire).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot write {FILE}: {e}"))
        })?;
        Ok(format!("# An imgsnap repository. [new] may be edited; it is for new bases.\n\n{body}"))
    }

    pub(super) fn load(store: &dyn Store) -> Result<Self> {
        let bytes = read_small(store, FILE, 1 << 20).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                let what = format!("{} is not a repository", store.location(""));
                Error::new(ErrorKind::NotFound, what)
                    .hint("name one with --repo, or make one with \"imgsnap init\"")
            }
            _ => e,
        })?;
        Self::decode(&bytes).map_err(|e| e.at(store.location(FILE)))
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| Error::corrupt("it is no text"))?;
        // A later version may have keys that this one cannot read: the version is looked at first.
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let first_line = |e: toml::de::Error| {
            Error::corrupt(e.message().lines().next().unwrap_or_default().to_owned())
                .hint("correct it by hand")
        };
        let VersionOnly { version } = toml::from_str(text).map_err(first_line)?;
        if version > VERSION {
            let what = format!("repository version {version}, this program knows {VERSION}");
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint("a later imgsnap made it; use that one"));
        }
        let wire: Wire = toml::from_str(text).map_err(first_line)?;
        let mut defaults = Defaults::default();
        if let Some(new) = wire.new {
            defaults = Defaults {
                block_size: BlockSize::new(new.block_size)?,
                digest: new.digest.parse()?,
                compression: new.compression.parse()?,
            };
        }
        Ok(Self { id: wire.id.unwrap_or_default(), defaults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_comes_back_and_bad_ones_are_refused() {
        let text = Config::new(Defaults::default()).encode().unwrap();
        assert_eq!(Config::decode(text.as_bytes()).unwrap().defaults(), Defaults::default());
        let later = Config::decode(b"version = 2\nnew = 7").err().unwrap();
        assert_eq!(later.kind(), ErrorKind::Unsupported);
        for bad in [&b""[..], b"version = \"x\"", b"version = 1\n[new]\nblock_size = 3", &[0xff]] {
            assert!(Config::decode(bad).is_err());
        }
        let odd = text.replace("4096", "5000");
        assert!(Config::decode(odd.as_bytes()).is_err());
    }
}
