//! A full disk: what does not fit fails, loses nothing, and is possible again when there is room.

use crate::fault::Fault;
use crate::owner::Owned;
use crate::worker::Worker;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Worker<'_> {
    /// One command while there is hardly any room. Only on a disk of our own.
    pub fn full_disk(&mut self, owned: &mut Owned) {
        if !self.world.is_mounted() {
            return;
        }
        let left = match self.random.below(3) {
            0 => 4096 * self.random.below(20),
            1 => self.random.below(1 << 20),
            _ => self.random.below(16 << 20),
        };
        let number = owned.some_known(self);
        let target = owned.known[&number].state.clone();
        let before = Arc::new(owned.image.state.clone());
        let (name, path, reference) = (owned.name(), owned.image.path(), owned.reference(number));
        let (to, out) = (format!("@{number}"), self.new_path("restored"));
        let which = self.random.below(8);
        let args: &[&str] = match which {
            0 | 1 => &["snapshot", &path],
            2 => &["snapshot", &path, "--full"],
            3 => &["rollback", &name, "--to", &to],
            4 => &["delete", &reference, "--compact"],
            5 => &["prune", &name, "--keep-last", "2", "--compact"],
            6 => &["flatten", &reference],
            _ => &["restore", &reference, "-o", &out],
        };
        let go: BTreeSet<u64> = match which {
            4 => BTreeSet::from([number]),
            5 => owned.known.keys().rev().skip(2).copied().collect(),
            _ => BTreeSet::new(),
        };
        owned.leaving(self, &go);
        let run = {
            let _alone = self.world.alone();
            let _filler = self.world.fill(left);
            self.world.note(&format!("w{} disk has {left} bytes left", self.number));
            let order = self.order(args, Fault::None);
            order.start(self.world).end(self.world, &mut self.pace)
        };
        if !run.is_done() {
            let is_clear = ["No space left on device", "left; ", " of free space; "]
                .iter()
                .any(|said| run.err.contains(said));
            assert!(is_clear && run.code == Some(1), "{}: {:?}: {}", run.what, run.code, run.err);
            self.world.count("faults full-disk", 1);
        }
        if which == 7 {
            match std::fs::read(&out) {
                Ok(bytes) => {
                    assert!(run.is_done(), "{}: left a file", run.what);
                    assert_eq!(target.first_difference(&mut bytes.as_slice()), None);
                    std::fs::remove_file(&out).unwrap();
                }
                Err(_) => assert!(!run.is_done(), "{}: no file", run.what),
            }
            self.clear_folder();
        }
        if which == 3 {
            if run.is_done() {
                owned.image.state = (*target).clone();
            } else {
                self.finish(owned, number);
            }
        }
        owned.image.is_as_it_was(self.world);
        let add = [(before, None)];
        owned.reconcile(self, if which < 4 { &add } else { &[] }, &go);
    }

    /// If the image is a mixture, the rollback is run again.
    pub fn finish(&mut self, owned: &mut Owned, number: u64) {
        let name = owned.name();
        let listed = self.run_clean(&["list", &name]).done();
        if listed.err.contains("was interrupted") {
            let to = format!("@{number}");
            self.run_clean(&["rollback", &name, "--to", &to]).done();
            owned.image.state = (*owned.known[&number].state).clone();
        }
    }
}
