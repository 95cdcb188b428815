//! Snapshots that travel: exported, applied without a repository, imported into another one.

use crate::command::{Ended, Order};
use crate::fault::Fault;
use crate::owner::Owned;
use crate::state::State;
use crate::worker::Worker;
use std::path::Path;

impl Worker<'_> {
    pub fn travel(&mut self, owned: &mut Owned) {
        let (one, two) = (owned.some_known(self), owned.some_known(self));
        let states = [one, two].map(|number| owned.known[&number].state.clone());
        let [one_at, two_at] = [one, two].map(|number| owned.reference(number));
        let full = self.new_path("full.delta");
        self.until_done(&["export", &one_at, "-o", &full], &full);
        let image = self.new_path("applied.img");
        self.until_done(&["apply", &full, "-o", &image], &image);
        is(&image, &states[0], &one_at);
        let side = self.new_path("side");
        self.import(&side, &["import", &full, "--name", "side"]);
        self.gives_elsewhere(&side, one, &states[0]);
        if one != two {
            let day = self.new_path("day.delta");
            self.until_done(&["export", &two_at, "--since", &one_at, "-o", &day], &day);
            let other = self.new_path("other.img");
            self.until_done(&["apply", &full, &day, "-o", &other], &other);
            is(&other, &states[1], &two_at);
            if two > one {
                self.import(&side, &["import", &day]);
                self.gives_elsewhere(&side, two, &states[1]);
            } else {
                let run = self.run_in(&side, &["import", &day], Fault::None);
                run.fails(1, "back to");
            }
            self.apply_in_place(&day, &image, &states[1]);
            remove(&[&day, &other]);
        }
        remove(&[&full, &image]);
        std::fs::remove_dir_all(side).unwrap();
        self.clear_folder();
    }

    /// Again and again, until it is done; until then there is no file.
    #[track_caller]
    fn until_done(&mut self, args: &[&str], out: &str) {
        let run = self.try_run(args);
        self.clear_hidden(&run);
        if !run.done_unless_faulted() {
            // Named, but not told any more: then it is whole.
            if Path::new(out).exists() {
                self.run_clean(args).fails(1, "exists");
                return;
            }
            self.run_clean(args).done();
        }
    }

    fn run_in(&mut self, repo: &str, args: &[&str], fault: Fault) -> Ended {
        let _turn = self.world.turn();
        let order = Order { repo: Path::new(repo), ..self.order(args, fault) };
        order.start(self.world).end(self.world, &mut self.pace)
    }

    #[track_caller]
    fn import(&mut self, side: &str, args: &[&str]) {
        let fault = self.some_fault();
        let run = self.run_in(side, args, fault);
        if !run.done_unless_faulted() {
            // Whether it is there already or not.
            self.run_in(side, args, Fault::None).done();
        }
    }

    #[track_caller]
    fn gives_elsewhere(&mut self, side: &str, number: u64, state: &State) {
        let reference = format!("side@{number}");
        let run = self.run_in(side, &["restore", &reference, "-o", "-"], Fault::None).done();
        assert_eq!(state.first_difference(&mut run.out.as_slice()), None, "{}", run.what);
        self.world.count("checked travelled", 1);
        let verified = self.run_in(side, &["verify", "--json"], Fault::None).done().json();
        assert_eq!(verified["damaged"], serde_json::json!([]));
    }

    /// Interrupted, it is completed by running it again.
    #[track_caller]
    fn apply_in_place(&mut self, delta: &str, image: &str, state: &State) {
        let args = ["apply", delta, "--base", image, "--in-place"];
        for _ in 0..3 {
            if self.try_run(&args).done_unless_faulted() {
                return is(image, state, "applied in place");
            }
            let found = std::fs::read(image).unwrap();
            if state.first_difference(&mut found.as_slice()).is_none() {
                // All was written, and there was no time to tell.
                return;
            }
        }
        self.run_clean(&args).done();
        is(image, state, "applied in place at last");
    }
}

#[track_caller]
fn is(path: &str, state: &State, what: &str) {
    let found = std::fs::read(path).unwrap();
    assert_eq!(state.first_difference(&mut found.as_slice()), None, "{what}");
}

fn remove(paths: &[&str]) {
    paths.iter().for_each(|path| std::fs::remove_file(path).unwrap());
}
