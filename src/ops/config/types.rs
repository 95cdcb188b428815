//! The configuration as it stands.

use serde::Serialize;

/// The text of a configuration, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Configuration {
    /// Its number; none if it is what an older program wrote.
    pub number: Option<u64>,
    /// Where it is.
    pub place: String,
    /// TOML (FORMAT.md P1), as it was written.
    pub text: String,
}
