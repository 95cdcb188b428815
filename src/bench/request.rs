//! What is to be measured.

use super::report::{Setting, Sweep};
use crate::codec::Compression;
use std::path::PathBuf;

/// Which blocks of the image change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pattern {
    /// Single blocks anywhere.
    #[default]
    Random,
    /// Runs of 512 KiB anywhere.
    Clustered,
    /// As in a virtual machine: rewritten files, scattered records of a database, an appended log,
    /// freed blocks; and 40 % of the image was never written.
    Vm,
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Request {
    /// An image of the user's, which is copied; otherwise one is made.
    pub image: Option<PathBuf>,
    /// Length of the one that is made.
    pub image_bytes: u64,
    /// Block size, change, threads; of the first point of a sweep where that varies them.
    pub setting: Setting,
    /// Which blocks change.
    pub pattern: Pattern,
    /// The share by which LZ4 shortens the image that is made, about; 0 to 1.
    pub compressible: f64,
    /// How frames are compressed.
    pub compression: Compression,
    /// Where the scratch folder is made.
    pub folder: PathBuf,
    /// How often each work is run.
    pub runs: usize,
    /// Also from the device.
    pub cold: bool,
    /// What varies.
    pub sweep: Option<Sweep>,
}
