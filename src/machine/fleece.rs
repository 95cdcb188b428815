//! Disks of a machine as they were at one point in time, while it goes on.

use super::disks::MachineDisk;
use super::session::{Machine, RunState};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::image::nbd::NbdUri;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// A disk of which a snapshot is taken.
#[derive(Debug, Clone)]
pub struct Member {
    /// The disk, as [`Machine::disks`] has it.
    pub disk: MachineDisk,
    /// The image that it is in the repository.
    pub image: Uuid,
    /// The snapshots of that image which can be relied on, the newest first.
    pub known: Vec<Uuid>,
    /// The snapshot that is taken.
    pub snapshot: Uuid,
    /// Bitmaps are used, and one is begun for the next snapshot. Otherwise none is touched.
    pub wants_bitmap: bool,
}

/// How it is done.
#[derive(Debug, Clone)]
pub struct FleeceOptions {
    /// Where what the machine overwrites is kept meanwhile: a folder.
    pub scratch_dir: PathBuf,
    /// How long a write of the machine may wait for that; then the snapshot is given up.
    pub cbw_timeout: Duration,
    /// How long the machine may stand still.
    pub max_stall: Duration,
    /// It may be stopped for a moment, for one point in time of several disks.
    pub may_stop: bool,
}

/// The point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// How long the machine stood still for it; none at all if it was not stopped.
    pub stall: Duration,
    /// What the machine did before, and does again.
    pub state: RunState,
    /// It is one point in time for all disks.
    pub at_one_time: bool,
}

/// A disk as it was at the point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleecedDisk {
    /// Where it is read.
    pub uri: NbdUri,
    /// The snapshot since which a dirty bitmap tells what was written, and its name; otherwise why there is
    /// none, if that is worth a word.
    pub since: Result<(Uuid, String), Option<String>>,
}

/// Disks of a machine at one point in time. Dropped, it takes all away that it has made.
pub struct Fleece {
    machine: Machine,
}

impl Machine {
    /// Makes everything ready for a point in time of some disks.
    ///
    /// # Errors
    /// `Busy` if somebody else works on the disks; `LimitExceeded` without free space in the scratch folder;
    /// `Unavailable`; what QEMU refuses. Then nothing is left of it.
    pub fn prepare(
        self,
        members: Vec<Member>,
        options: FleeceOptions,
        context: &Context,
    ) -> Result<Fleece> {
        drop((self, members, options));
        context.check()?;
        Err(Error::new(ErrorKind::Internal, "not there yet"))
    }

    /// Takes away what a killed run has left, but for bitmaps, which [`Machine::prepare`] sees to. True if
    /// there was something.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub fn recover(&mut self, context: &Context) -> Result<bool> {
        context.check()?;
        Err(Error::new(ErrorKind::Internal, "not there yet"))
    }
}

impl Fleece {
    /// The connection to the machine, for who has to speak when we cannot.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.machine.socket()
    }

    /// The point in time. `before_stop` is called before the machine is stopped, if it is; `after_cont` when
    /// it goes on.
    ///
    /// # Errors
    /// `Busy` if it would stand still for too long; `Unavailable`; what QEMU refuses. The machine does what
    /// it did before, and all is taken away.
    pub fn insert(
        &mut self,
        before_stop: &mut dyn FnMut(),
        after_cont: &mut dyn FnMut(),
        context: &Context,
    ) -> Result<Inserted> {
        before_stop();
        after_cont();
        context.check()?;
        Err(Error::new(ErrorKind::Internal, "not there yet"))
    }

    /// Makes the disks readable: one for each member, in their order.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub fn export(&mut self) -> Result<Vec<FleecedDisk>> {
        Err(Error::new(ErrorKind::Internal, "not there yet"))
    }

    /// The snapshot of a member stands: what was made for it goes, and the bitmap before.
    pub fn committed(&mut self, _member: usize, _context: &Context) {}

    /// There is no snapshot of a member: what was made for it goes, and the bitmap before goes on as if
    /// nothing had been.
    pub fn aborted(&mut self, _member: usize, _context: &Context) {}

    /// Why a member cannot be read any more, if that is so.
    pub fn scratch_error(&self, _member: usize) -> Option<Error> {
        None
    }

    /// Ends it. What is neither committed nor aborted is aborted.
    ///
    /// # Errors
    /// `Unavailable` if the machine is gone.
    pub fn finish(self, _context: &Context) -> Result<Machine> {
        Ok(self.machine)
    }
}
