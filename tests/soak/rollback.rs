//! Rolling back, interrupted at random moments: the image is what it was, or what it should become, or a
//! mixture of which everybody is told, and which running it again completes.

use crate::fault::Fault;
use crate::owner::Owned;
use crate::worker::Worker;
use std::collections::BTreeSet;
use std::sync::Arc;

/// After so many nothing is done to it any more.
const FAULTS: u64 = 4;

impl Worker<'_> {
    pub fn rollback(&mut self, owned: &mut Owned) {
        let before = Arc::new(owned.image.state.clone());
        let mut is_mixture = false;
        for attempt in 0.. {
            let number = owned.some_known(self);
            let target = owned.known[&number].state.clone();
            let is_saving = self.random.below(3) > 0;
            let args = self.arguments(owned, number, is_saving);
            let fault = match self.random.below(3) {
                _ if attempt >= FAULTS => Fault::None,
                0 => Fault::in_writing(&mut self.random, self.world.tools),
                _ => self.some_fault(),
            };
            // One that was killed before the first byte, or after the last one, left no mixture.
            let known = owned.known.values().map(|known| known.state.clone());
            let is_now = |state: &Arc<_>| owned.image.difference_to(self.world, state).is_none();
            let whole = match is_mixture {
                true => std::iter::once(before.clone()).chain(known).find(is_now),
                false => Some(before.clone()),
            };
            let run = self.run_with(&args.iter().map(String::as_str).collect::<Vec<_>>(), fault);
            let is_done = run.done_unless_faulted();
            if args.contains(&"--dry-run".into()) {
                owned.reconcile(self, &[], &BTreeSet::new());
                if is_mixture {
                    continue;
                }
                return owned.image.is_as_it_was(self.world);
            }
            // What is saved is what was there before, and only if that was no mixture.
            let saved = whole.clone().filter(|_| is_saving).map(|whole| (whole, None));
            owned.reconcile(self, saved.as_slice(), &BTreeSet::new());
            if is_done {
                let done = run.json();
                let is_resumed = done["resumed"].as_bool().unwrap();
                assert!(is_resumed || whole.is_some(), "what is half written is saved: {done}");
                assert!(is_mixture || !is_resumed, "nothing was begun: {done}");
                if let Some((whole, _)) = saved.filter(|_| !is_resumed) {
                    let saved = done["saved"].as_str().unwrap().rsplit_once('@').unwrap().1;
                    let saved = &owned.known[&saved.parse::<u64>().unwrap()];
                    assert!(saved.state.is(&whole), "what was saved is not what was: {done}");
                }
                owned.image.state = (*target).clone();
                owned.image.is_as_it_was(self.world);
                assert!(!self.is_told_as_mixture(owned));
                self.world.count("rollbacks done", 1);
                return;
            }
            if self.is_told_as_mixture(owned) {
                is_mixture = true;
                self.world.count("rollbacks interrupted", 1);
                if self.leave_mixture(owned) {
                    return;
                }
            } else if owned.image.difference_to(self.world, &target).is_none() {
                // It got through and had no time to tell, or there was nothing to do.
                owned.image.state = (*target).clone();
                return;
            } else {
                assert!(!is_mixture, "{}: a mixture that nobody knows of any more", run.what);
                owned.image.is_as_it_was(self.world);
                if self.random.below(2) == 0 {
                    return;
                }
            }
        }
    }

    fn arguments(&mut self, owned: &Owned, number: u64, is_saving: bool) -> Vec<String> {
        let image = if self.random.below(4) == 0 { owned.image.path() } else { owned.name() };
        let mut args = vec!["rollback".to_owned(), image, "--to".into(), format!("@{number}")];
        args.push("--json".into());
        args.extend((!is_saving).then(|| "--no-save".into()));
        match self.random.below(12) {
            0..3 => args.push("--prove".into()),
            3 => args.push("--dry-run".into()),
            _ => {}
        }
        args
    }

    fn is_told_as_mixture(&mut self, owned: &Owned) -> bool {
        let listed = self.run_clean(&["list", &owned.name()]).done();
        listed.err.contains("was interrupted")
    }

    /// Does something else while the image is a mixture. True if it is none any more.
    fn leave_mixture(&mut self, owned: &mut Owned) -> bool {
        match self.random.below(6) {
            0 => {
                let path = owned.image.path();
                self.run_clean(&["snapshot", &path]).fails(1, "was interrupted");
                owned.reconcile(self, &[], &BTreeSet::new());
            }
            1 => {
                // Both ends of the rollback are kept, whatever the rules say.
                let go: BTreeSet<u64> = owned.known.keys().rev().skip(2).copied().collect();
                owned.leaving(self, &go);
                let args = ["prune", &owned.name(), "--keep-last", "2"];
                self.try_run(&args).done_unless_faulted();
                owned.reconcile(self, &[], &go);
            }
            2 => {
                // Its owner puts something else there.
                let number = owned.some_known(self);
                let state = owned.known[&number].state.clone();
                owned.image.replace(self.world, &state);
                let path = owned.image.path();
                self.run_clean(&["relink", &owned.name(), &path]).done();
                assert!(!self.is_told_as_mixture(owned));
                return true;
            }
            _ => {}
        }
        false
    }
}
