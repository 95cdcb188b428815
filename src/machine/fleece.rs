//! Disks of a machine as they were at one point in time, while it goes on.

use super::session::Machine;
use super::types::{FleeceOptions, FleecedDisk, Inserted, Member};
use super::work::Work;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use uuid::Uuid;

/// Disks of a machine at one point in time. Dropped, it takes all away that it has made.
pub struct Fleece {
    /// None when it has ended.
    work: Option<Work>,
    /// The connection to the machine, for who has to speak when we cannot.
    socket: OwnedFd,
    context: Context,
}

impl Machine {
    /// Makes everything ready for a point in time of some disks: what a killed run left was taken away by
    /// [`Machine::recover`].
    ///
    /// # Errors
    /// `Busy` if somebody else works on the disks; `LimitExceeded` without free space in the scratch folder;
    /// `Unsupported` for what QEMU cannot do in its version; `Unavailable`; what QEMU refuses. Then nothing
    /// is left of it.
    pub fn prepare(
        self,
        members: Vec<Member>,
        options: FleeceOptions,
        context: &Context,
    ) -> Result<Fleece> {
        let socket = self.socket().try_clone_to_owned();
        let socket = socket.map_err(|e| Error::io("cannot duplicate a descriptor", e))?;
        let work = Work::begin(self, members, options, context)?;
        Ok(Fleece { work: Some(work), socket, context: context.clone() })
    }
}

impl Fleece {
    /// The connection to the machine, for who has to speak when we cannot.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The point in time. `before_stop` is called before the machine is stopped, if it is; `after_cont` when
    /// it goes on, and not if it does not.
    ///
    /// # Errors
    /// `Busy` if it would stand still for too long; `Unavailable`; what QEMU refuses; `Interrupted`. The
    /// machine goes on, and all is taken away: every member is aborted.
    pub fn insert(
        &mut self,
        before_stop: &mut dyn FnMut() -> Result<()>,
        after_cont: &mut dyn FnMut(),
        context: &Context,
    ) -> Result<Inserted> {
        self.or_end(context, |work| work.insert(before_stop, after_cont, context))
    }

    /// Makes the disks readable: one for each member, in their order.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses; `Interrupted`. Then all is taken away: every member is aborted.
    pub fn export(&mut self) -> Result<Vec<FleecedDisk>> {
        let context = self.context.clone();
        self.or_end(&context, |work| work.export(&context))
    }

    fn or_end<T>(
        &mut self,
        context: &Context,
        step: impl FnOnce(&mut Work) -> Result<T>,
    ) -> Result<T> {
        let Some(work) = &mut self.work else {
            return Err(Error::new(ErrorKind::Internal, "the work on the machine has ended"));
        };
        step(work).inspect_err(|_| work.end(context))
    }

    /// The snapshot of a member stands: what was made for it goes, and the bitmap before. What cannot be done
    /// is a warning; the next run does it. Called again nothing happens.
    pub fn committed(&mut self, member: usize, context: &Context) {
        if let Some(work) = &mut self.work {
            work.close(member, true, context);
        }
    }

    /// There is no snapshot of a member, since it equals one that is there: what was made for it goes, and
    /// what is written from the point in time on counts since that one. What cannot be done is a warning.
    pub fn left_out(&mut self, member: usize, equal: Uuid, context: &Context) {
        if let Some(work) = &mut self.work {
            work.adopt(member, equal, context);
            work.close(member, false, context);
        }
    }

    /// There is no snapshot of a member: what was made for it goes, and the bitmap before goes on as if
    /// nothing had been. What cannot be done is a warning; the next run does it. Called again nothing
    /// happens.
    pub fn aborted(&mut self, member: usize, context: &Context) {
        if let Some(work) = &mut self.work {
            work.close(member, false, context);
        }
    }

    /// Why a member cannot be read any more, if that is so: its scratch file is full, or was too slow. None
    /// if it can be read, or if the machine is gone.
    pub fn scratch_error(&self, member: usize) -> Option<Error> {
        self.work.as_ref()?.scratch_error(member)
    }

    /// Ends it. What is neither committed nor aborted is aborted.
    ///
    /// # Errors
    /// `Unavailable` if the machine is gone.
    pub fn finish(mut self, context: &Context) -> Result<Machine> {
        let gone = || Error::new(ErrorKind::Unavailable, "the connection to the machine was lost");
        let mut work = self.work.take().ok_or_else(gone)?;
        work.end(context);
        match work.machine.is_lost() {
            true => Err(gone().hint("check that the virtual machine runs")),
            false => Ok(work.machine),
        }
    }
}

impl Drop for Fleece {
    fn drop(&mut self) {
        if let Some(work) = &mut self.work {
            work.end(&self.context);
        }
    }
}
