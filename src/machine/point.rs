//! The point in time itself: from one moment on what the machine overwrites is kept.

use super::session::RunState;
use super::types::Inserted;
use super::work::Work;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, Message, Setting, message};
use serde_json::json;
use std::time::{Duration, Instant};

impl Work {
    /// The point in time of all members.
    ///
    /// # Errors
    /// As of [`super::Fleece::insert`]; the machine goes on, but what was made is still there.
    pub fn insert(
        &mut self,
        before_stop: &mut dyn FnMut() -> Result<()>,
        after_cont: &mut dyn FnMut(),
        context: &Context,
    ) -> Result<Inserted> {
        context.check()?;
        let state = self.machine.run_state()?;
        let are_several = self.parts.len() > 1;
        if state == RunState::Running && are_several && self.options.may_stop {
            return self.insert_stopped(before_stop, after_cont);
        }
        self.switch()?;
        // Somebody may have let it go on.
        let is_still = state != RunState::Running && self.machine.run_state()? == state;
        Ok(Inserted { stall: Duration::ZERO, state, at_one_time: is_still || !are_several })
    }

    fn insert_stopped(
        &mut self,
        before_stop: &mut dyn FnMut() -> Result<()>,
        after_cont: &mut dyn FnMut(),
    ) -> Result<Inserted> {
        let most = self.options.max_stall;
        if let Some(flusher) = &self.flusher {
            let took = flusher.flush()?;
            if took > most {
                let what = format!(
                    "the machine has so much to write that it would be stopped for about {} s; \
                     the limit is {} s",
                    took.as_secs_f32(),
                    most.as_secs_f32()
                );
                return Err(Error::new(ErrorKind::Busy, what).hint(stall_hint()));
            }
        }
        self.machine.qmp.take_events();
        before_stop()?;
        let begun = Instant::now();
        let outcome = self.while_stopped(begun, most);
        let events = self.machine.qmp.take_events();
        let goes_on = self.machine.go_on();
        let stall = begun.elapsed();
        if goes_on.is_ok() {
            after_cont();
        }
        goes_on?;
        outcome?;
        if let Some(flusher) = self.flusher.take() {
            flusher.end(&mut self.machine)?;
        }
        // Whoever let it go on meanwhile made several points in time of it.
        let was_still = events.is_some_and(|events| events.iter().all(|e| e.name != "RESUME"));
        Ok(Inserted { stall, state: RunState::Running, at_one_time: was_still })
    }

    fn while_stopped(&mut self, begun: Instant, most: Duration) -> Result<()> {
        self.machine.execute("stop", json!({}))?;
        let took = begun.elapsed();
        if took > most {
            let what = format!(
                "stopping the machine took {} s; the limit is {} s",
                took.as_secs_f32(),
                most.as_secs_f32()
            );
            return Err(Error::new(ErrorKind::Busy, what).hint(stall_hint()));
        }
        self.switch()
    }

    /// From here on what is overwritten is kept, and what is written belongs to the new bitmaps. The old ones
    /// end later: they may have too much, and never too little.
    fn switch(&mut self) -> Result<()> {
        for part in &self.parts {
            self.machine.use_node(&part.member.disk.device, &part.names.filter())?;
        }
        let old = self.parts.iter().filter_map(|part| {
            let (_, bitmap) = part.since.as_ref().ok()?;
            Some((part.member.disk.node.as_str(), bitmap.as_str()))
        });
        self.machine.end_bitmaps(&old.collect::<Vec<_>>())
    }
}

fn stall_hint() -> Message {
    message![Action::Retry, " when it writes less, or allow more with ", Setting::MaxStall]
}
