//! Running virtual machines, through the monitor of their QEMU (QMP): which disks they have, what has been
//! written to these, and what was on them at one point in time. Nothing here knows of repositories.
//!
//! ```text
//! Machine -> Qmp -> Wire          commands, answers and events; lines; bytes
//!    |
//!    +-> disks, bitmaps           what there is, and what may be relied on
//!    +-> prepare -> Fleece        the disks as they were at one point in time, as exports of an NBD server
//!
//! Window -> agents, mounts        what is frozen around that point
//!    +-> Guard                    what undoes it when we cannot
//! ```

mod agent;
mod bitmaps;
mod checks;
mod clear;
mod disks;
mod fleece;
mod flush;
mod freeze;
mod guard;
mod guest_agent;
mod hooks;
mod mount_table;
mod mounted;
mod names;
mod on_image;
mod point;
mod qmp;
mod reset;
mod scope;
mod scratch;
mod server;
mod session;
mod sole;
mod types;
mod wire;
mod work;

pub use agent::find_agent;
pub use disks::{DirtyBitmap, MachineDisk};
pub use fleece::Fleece;
pub use freeze::{Freeze, LIMIT as FREEZE_LIMIT, Outcome as FreezeOutcome, Window};
pub use guard::{Guard, GuardState, Undo};
pub use guest_agent::GuestAgent;
pub use hooks::{Hooks, HooksBegun};
pub use names::{bitmap as bitmap_name, snapshot_of_bitmap};
pub use on_image::is_on_image;
pub use qmp::{Event, Qmp};
pub use reset::{Detached, Stopped};
pub use scope::leave_unit;
pub use session::{Machine, RunState};
pub use types::{FleeceOptions, FleecedDisk, Inserted, Member};
pub use wire::Wire;
