//! Running virtual machines, through the monitor of their QEMU (QMP): which disks they have, what has been
//! written to these, and what was on them at one point in time. Nothing here knows of repositories.
//!
//! ```text
//! Machine -> Qmp -> Wire          commands, answers and events; lines; bytes
//!    |
//!    +-> disks, bitmaps           what there is, and what may be relied on
//!    +-> prepare -> Fleece        the disks as they were at one point in time, as exports of an NBD server
//! ```

mod bitmaps;
mod checks;
mod clear;
mod disks;
mod fleece;
mod flush;
mod names;
mod point;
mod qmp;
mod scratch;
mod server;
mod session;
mod types;
mod wire;
mod work;

pub use disks::{DirtyBitmap, MachineDisk};
pub use fleece::Fleece;
pub use names::bitmap as bitmap_name;
pub use qmp::{Event, Qmp};
pub use session::{Machine, RunState};
pub use types::{FleeceOptions, FleecedDisk, Inserted, Member};
pub use wire::Wire;
