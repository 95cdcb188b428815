//! The verbs by which several workers do one thing together.

use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::base::units::PartSize;
use crate::ops::work;
use crate::ops::work::types::{
    PlanJoined, PlanProgress, PlanRequest, PlanRestoreRequest, Planned, TaskDone,
};
use crate::repo::Repository;
use crate::repo::work::WorkPlan;
use uuid::Uuid;

impl Repository {
    /// Cuts snapshots into tasks. Until each is joined, or given up, its parent stays, and so does what
    /// workers make.
    ///
    /// # Errors
    /// If the plan cannot be put into the repository. An image that cannot be planned is told in the outcome.
    pub fn plan(&self, request: &PlanRequest, context: &Context) -> Result<Planned> {
        work::snapshots::plan::run(self, request, context)
    }

    /// Cuts the restore of a snapshot to a new file into tasks. Until it is joined, or given up, the snapshot
    /// stays.
    ///
    /// # Errors
    /// `AlreadyExists` if there is such a file; `Unsupported` where its file system cannot lock files.
    pub fn plan_restore(
        &self,
        request: &PlanRestoreRequest,
        context: &Context,
    ) -> Result<WorkPlan> {
        work::restore::plan(self, request, context)
    }

    /// Cuts the verification of an image, or of all of them, into tasks of up to so many stored bytes.
    ///
    /// # Errors
    /// Of the store.
    pub fn plan_verify(
        &self,
        image: Option<&str>,
        part_size: Option<PartSize>,
        context: &Context,
    ) -> Result<WorkPlan> {
        work::verify::plan(self, image, part_size, context)
    }

    /// Does a task of the plan whose id begins so. It may be done by several, several times.
    ///
    /// # Errors
    /// `NotFound` if there is no such task, or the plan is over; `Mismatch` if the image was written to.
    pub fn part(&self, plan: &str, task: u32, context: &Context) -> Result<TaskDone> {
        let plan = WorkPlan::find(self.store.as_ref(), plan)?;
        work::manage::part(self, &plan, task, context)
    }

    /// Makes a whole of a plan whose tasks are all done: of snapshots, each whose tasks are, or only that of
    /// `image`.
    ///
    /// # Errors
    /// `NotFound` if there is no such plan; `Interrupted`.
    pub fn join(&self, plan: &str, image: Option<&str>, context: &Context) -> Result<PlanJoined> {
        let plan = WorkPlan::find(self.store.as_ref(), plan)?;
        work::manage::join(self, &plan, image, context)
    }

    /// All plans that are not over, the oldest first.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn plans(&self, context: &Context) -> Result<Vec<PlanProgress>> {
        work::manage::list(self, context)
    }

    /// How far a plan is.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn plan_progress(&self, plan: &str, context: &Context) -> Result<PlanProgress> {
        let plan = WorkPlan::find(self.store.as_ref(), plan)?;
        work::manage::progress(self, plan, context)
    }

    /// Gives a plan up: its parts are garbage. By its whole id also one that cannot be read, or of which only
    /// something pending is left. Gives its id.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn drop_plan(&self, plan: &str, context: &Context) -> Result<Uuid> {
        let found = match (WorkPlan::find(self.store.as_ref(), plan), Uuid::parse_str(plan)) {
            (Err(e), Ok(id)) if e.is_damage() || e.kind() == ErrorKind::NotFound => {
                return match work::manage::drop_unknown(self, id, context)? {
                    true => Ok(id),
                    false => Err(e),
                };
            }
            (found, _) => found?,
        };
        work::manage::drop_plan(self, &found, context)?;
        Ok(found.plan)
    }
}
