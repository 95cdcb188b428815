//! Where images are written to. One trait; an implementation per file.
//!
//! On a target that existed before, zeros are written or punched, never assumed; only a file that
//! we made keeps its holes.

mod medium;
mod nbd_in_place;
mod new_file;
mod new_object;
mod object_range;
mod qcow2;
mod raw_in_place;
mod sent;
mod shared_file;
mod stream;

pub use medium::{Medium, OsMedium};
pub use nbd_in_place::NbdInPlace;
pub use new_file::NewFile;
pub use new_object::NewObject;
pub use object_range::ObjectRange;
pub use qcow2::{ClusterCompression, NewQcow2};
pub use raw_in_place::RawInPlace;
pub use shared_file::{MadeFile, Place, SharedFile};
pub use stream::Stream;

use crate::base::error::Result;

/// Written where holes cannot be punched.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A disk that is being written.
pub trait Target {
    /// Writes bytes at an offset.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes a range read as zeros.
    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()>;

    /// All before `offset` is written, and will not be written again: it can go to the device.
    fn advance_watermark(&mut self, offset: u64) -> Result<()>;

    /// True if it is written in ascending order only.
    fn is_sequential(&self) -> bool {
        false
    }

    /// Makes everything durable, and visible where it was not. Without it, nothing new is left
    /// behind, as far as the kind of target allows.
    fn finish(&mut self) -> Result<()>;

    /// What to call it in a message.
    fn name(&self) -> String;
}

/// A disk that exists, and is changed where it lies: nothing is assumed of what is on it.
pub trait InPlace: Target {
    /// True if it cannot be made longer or shorter: a device, an export.
    fn has_fixed_length(&self) -> bool;

    /// Fails if an image of `bytes` bytes has no place there.
    fn check_free_space(&self, bytes: u64) -> Result<()>;

    /// Gives it its length; what is added reads as zeros. Not of a fixed length.
    fn set_length(&mut self, bytes: u64) -> Result<()>;

    /// True if anything was changed, or may have been.
    fn is_begun(&self) -> bool;

    /// Bytes written or zeroed so far.
    fn written_bytes(&self) -> u64;
}
