//! States of a repository that are used though they are not what a host has seen.

use crate::base::error::{Error, ErrorKind, Result};
use uuid::Uuid;

/// A state that is used though it is not what this host has seen: `IMAGE@COMMIT`, or `@NUMBER` for the
/// configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedState {
    pub(crate) image: String,
    pub(crate) what: String,
}

impl AcceptedState {
    /// The configuration with that number.
    pub fn config(number: u64) -> Self {
        Self { image: String::new(), what: number.to_string() }
    }
}

impl std::str::FromStr for AcceptedState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let what = format!("invalid state of an image: \"{}\"", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, what)
                .hint("write IMAGE@COMMIT, or @NUMBER for the configuration")
        };
        let (image, what) = text.rsplit_once('@').ok_or_else(wrong)?;
        let is_right = match image {
            "" => what.parse::<u64>().is_ok(),
            _ => Uuid::parse_str(what).is_ok() || what == GONE,
        };
        let accepted = Self { image: image.to_owned(), what: what.to_owned() };
        if is_right { Ok(accepted) } else { Err(wrong()) }
    }
}

/// What is accepted of an image that has vanished.
pub(crate) const GONE: &str = "gone";
