//! Running virtual machines, through the monitor of their QEMU (QMP): which disks they have, what has been
//! written to these, and what was on them at one point in time. Nothing here knows of repositories.
//!
//! ```text
//! Machine -> Qmp -> Wire          commands, answers and events; lines; bytes
//!    |
//!    +-> disks, bitmaps           what there is, and what may be relied on
//!    +-> prepare -> Fleece        the disks as they were at one point in time, as exports of an NBD server
//! ```

mod disks;
mod fleece;
mod names;
mod qmp;
mod session;
mod wire;

pub use disks::{DirtyBitmap, MachineDisk};
pub use fleece::{Fleece, FleeceOptions, FleecedDisk, Inserted, Member};
pub use names::bitmap as bitmap_name;
pub use qmp::{Event, Qmp};
pub use session::{Machine, RunState};
pub use wire::Wire;
