//! Virtual machines that libvirt manages, by its own command `virsh`: which there are, what they consist of,
//! their checkpoints, and their disks as they were at one point in time. Nothing here knows of repositories.
//!
//! ```text
//! Hypervisor -> Virsh              what is asked, as a command of libvirt's own
//!    |
//!    +-> Domain -> Definition      the machine, and what its XML says of it
//!           |
//!           +-> checkpoints        since which snapshot its bitmaps record
//!           +-> Backup             its disks at one point in time, over NBD
//!           +-> DomainAgent        its file systems, frozen
//! ```
//!
//! `virsh` and not `libvirt.so.0`: it is there wherever libvirt is, in its version; it needs no `unsafe` code
//! and no declarations of ours of somebody else's structures; what hangs or crashes is another process; and
//! what was done can be typed. A call takes about 20 ms, and a snapshot a dozen of them.

mod agent;
mod backup;
mod checkpoints;
mod definition;
mod domain;
mod hypervisor;
mod job;
mod names;
mod parts;
mod remake;
mod scratch;
mod virsh;

pub use agent::DomainAgent;
pub use backup::{Backup, BackupDisk, Ending, SourceAt};
pub use checkpoints::{CheckpointState, KnownSnapshot};
pub use definition::{Definition, DomainDisk};
pub use domain::{Domain, DomainState};
pub use hypervisor::Hypervisor;
pub use parts::{NVRAM, RUNNING, TPM, XML};
pub use remake::Remake;
