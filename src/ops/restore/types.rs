//! What a restore did.

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Length of what was restored.
    pub bytes: u64,
    /// Bytes of it that were data.
    pub data_bytes: u64,
    /// True if the image digest was compared: for a whole image, not for a part.
    pub proved: bool,
}
