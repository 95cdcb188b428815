//! The verbs by which several workers take snapshots together.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::ops;
use crate::ops::work::types::{Joined, PartMade, PlanProgress, PlanRequest, Planned};
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
        ops::work::plan::run(self, request, context)
    }

    /// Does a task of the plan whose id begins so. It may be done by several, several times.
    ///
    /// # Errors
    /// `NotFound` if there is no such task, or the plan is over; `Mismatch` if the image was written to.
    pub fn part(&self, plan: &str, task: u32, context: &Context) -> Result<PartMade> {
        let plan = WorkPlan::find(self.store.as_ref(), plan)?;
        ops::work::part::run(self, &plan, task, context)
    }

    /// Makes the snapshots of a plan whose tasks are all done, or only that of `image`. Of each image, what
    /// became of it.
    ///
    /// # Errors
    /// `NotFound` if there is no such plan; `Interrupted`.
    pub fn join(
        &self,
        plan: &str,
        image: Option<&str>,
        context: &Context,
    ) -> Result<Vec<(String, Joined)>> {
        let plan = WorkPlan::find(self.store.as_ref(), plan)?;
        ops::work::join::run(self, &plan, image, context)
    }

    /// All plans that are not over, the oldest first.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn plans(&self, context: &Context) -> Result<Vec<PlanProgress>> {
        ops::work::manage::list(self, context)
    }

    /// How far a plan is.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn plan_progress(&self, plan: &str, context: &Context) -> Result<PlanProgress> {
        let plan = WorkPlan::find(self.store.as_ref(), plan)?;
        ops::work::manage::progress(self, plan, context)
    }

    /// Gives a plan up: its parts are garbage. Gives its id.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn drop_plan(&self, plan: &str, context: &Context) -> Result<Uuid> {
        let plan = WorkPlan::find(self.store.as_ref(), plan)?;
        ops::work::manage::drop_plan(self, &plan, context)?;
        Ok(plan.plan)
    }
}
