//! Damage: `verify` finds it, nothing gives wrong bytes, and with the file put back, or after a repair, all
//! is there.

use crate::command::pick;
use crate::fault::Fault;
use crate::owner::Owned;
use crate::stranger::damaged;
use crate::worker::Worker;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file of the repository that was damaged, and what it was.
struct Damaged {
    path: PathBuf,
    bytes: Vec<u8>,
    how: String,
}

impl Damaged {
    fn new(worker: &mut Worker<'_>, path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let all = bytes.len() as u64;
        let at = worker.random.below(all);
        let how = match worker.random.below(6) {
            0 => {
                std::fs::remove_file(&path).unwrap();
                "removed".into()
            }
            1 => {
                file.set_len(at).unwrap();
                format!("cut at {at}")
            }
            2 => {
                let end = all.min(at + 4096) as usize;
                let zeros: Vec<u8> = bytes[at as usize..end].iter().map(|byte| !byte).collect();
                file.write_all_at(&zeros, at).unwrap();
                format!("overwritten at {at}")
            }
            _ => {
                let bit = 1 << worker.random.below(8);
                file.write_all_at(&[bytes[at as usize] ^ bit], at).unwrap();
                format!("flipped at {at}")
            }
        };
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let of = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        worker.world.note(&format!("w{} damage: {of}/{name} {how}", worker.number));
        Self { path, bytes, how }
    }

    /// As a copy is put back.
    fn put_back(&self, worker: &mut Worker<'_>) {
        let copy = worker.new_path("copy");
        worker.world.write(&copy, &self.bytes);
        std::fs::rename(copy, &self.path).unwrap();
        worker.world.note(&format!("w{} put back", worker.number));
    }
}

impl Worker<'_> {
    pub fn damage(&mut self, owned: &mut Owned) {
        let kind = self.random.below(10);
        damaged(self, owned, |worker, owned| match kind {
            0..6 => worker.damage_delta(owned),
            6..9 => worker.damage_manifest(owned),
            _ => worker.damage_head(owned),
        });
        owned.reconcile(self, &[], &BTreeSet::new());
        self.is_sound(owned);
    }

    fn files(&self, owned: &Owned, which: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let folder = self.world.inside.folder(&owned.name());
        let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        let named = entries.filter(|entry| which(entry.file_name().to_str().unwrap()));
        let mut files: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
        files.sort();
        files
    }

    /// What the manifest that rules names: as files of snapshots, dropped or not, and as kept.
    fn named(&self, owned: &Owned) -> (BTreeSet<String>, BTreeSet<String>) {
        let ruling = self.files(owned, |name| name.starts_with("manifest.")).pop().unwrap();
        let ruling = ruling.file_name().unwrap().to_str().unwrap();
        let text = self.world.inside.read(&format!("{}/{ruling}", owned.name()));
        let text = String::from_utf8(text).unwrap();
        let manifest: serde_json::Value =
            serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
        let all = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
        let name = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let stored = [all("snapshots"), all("dropped")].concat();
        (stored.iter().map(|s| name(&s["file"])).collect(), all("kept").iter().map(name).collect())
    }

    fn damage_delta(&mut self, owned: &mut Owned) {
        let (stored, kept) = self.named(owned);
        let named = self.files(owned, |name| stored.contains(name) || kept.contains(name));
        let path = pick(&mut self.random, &named);
        let damage = Damaged::new(self, path);
        let file = damage.path.file_name().unwrap().to_str().unwrap().to_owned();
        let name = owned.name();
        for depth in [[].as_slice(), &["--quick"]] {
            let args = [["verify", &name, "--json"].as_slice(), depth].concat();
            let run = self.run_clean(&args);
            // Kept, it is nobody's.
            let is_kept = kept.contains(&file);
            let is_found = run.code == Some(3) && run.json()["damaged"] != serde_json::json!([]);
            assert!(is_found || is_kept, "{}: {} was not found", run.what, damage.how);
        }
        self.world.count("damages found", 1);
        for _ in 0..2 {
            let number = owned.some_known(self);
            let path = self.new_path("restored");
            let run = self.run_clean(&["restore", &owned.reference(number), "-o", &path]);
            let is_damage = run.code == Some(3);
            assert!(run.is_done() || is_damage, "{}: {:?}: {}", run.what, run.code, run.err);
            match std::fs::read(&path) {
                Ok(bytes) if run.is_done() => {
                    let difference =
                        owned.known[&number].state.first_difference(&mut bytes.as_slice());
                    assert_eq!(difference, None, "{}: wrong bytes", run.what);
                    std::fs::remove_file(&path).unwrap();
                }
                found => assert!(found.is_err() && is_damage, "{}: left a file", run.what),
            }
        }
        let (add, go) = self.work_on_damaged(owned);
        // What was merged into others, or dropped, is not needed any more.
        let (stored, kept) = self.named(owned);
        if stored.contains(&file) || kept.contains(&file) {
            damage.put_back(self);
        }
        owned.reconcile(self, &add, &go);
    }

    /// A verb that meets the damage, or not. Gives what may have come, and what may have gone.
    #[allow(clippy::type_complexity)]
    fn work_on_damaged(
        &mut self,
        owned: &mut Owned,
    ) -> (Vec<(Arc<crate::state::State>, Option<String>)>, BTreeSet<u64>) {
        let before = Arc::new(owned.image.state.clone());
        let number = owned.some_known(self);
        let (name, path, reference) = (owned.name(), owned.image.path(), owned.reference(number));
        let rest: BTreeSet<u64> = owned.known.keys().rev().skip(2).copied().collect();
        match self.random.below(7) {
            0 | 1 => {
                self.try_run(&["snapshot", &path]);
                (vec![(before, None)], BTreeSet::new())
            }
            2 => {
                self.try_run(&["flatten", &reference]);
                (Vec::new(), BTreeSet::new())
            }
            3 => {
                let go = BTreeSet::from([number]);
                owned.leaving(self, &go);
                self.try_run(&["delete", &reference, "--compact"]);
                (Vec::new(), go)
            }
            4 => {
                owned.leaving(self, &rest);
                self.try_run(&["prune", &name, "--keep-last", "2", "--compact"]);
                (Vec::new(), rest)
            }
            5 => {
                let to = format!("@{number}");
                let run = self.run_clean(&["rollback", &name, "--to", &to]);
                if run.is_done() {
                    owned.image.state = (*owned.known[&number].state).clone();
                }
                // The rehearsal finds it while the image is still whole.
                owned.image.is_as_it_was(self.world);
                (vec![(before, None)], BTreeSet::new())
            }
            _ => (Vec::new(), BTreeSet::new()),
        }
    }

    fn damage_manifest(&mut self, owned: &mut Owned) {
        let name = owned.name();
        let all = self.files(owned, |name| name.starts_with("manifest."));
        let may_repair = owned.templates.is_empty();
        let mut damages = Vec::new();
        if may_repair && self.random.below(3) == 0 {
            for path in &all {
                let bytes = std::fs::read(path).unwrap();
                damages.push(Damaged { path: path.clone(), bytes, how: "removed".into() });
                std::fs::remove_file(path).unwrap();
            }
            self.world.note(&format!("w{} damage: all manifests of {name} removed", self.number));
        } else {
            let damage = Damaged::new(self, all.last().unwrap().clone());
            // Without the newest one the one before it rules: nobody can see that one is missing.
            if damage.how == "removed" {
                return damage.put_back(self);
            }
            damages.push(damage);
        }
        let how = damages.last().unwrap().how.clone();
        for args in [["list", &name], ["verify", &name]] {
            let run = self.run_clean(&args);
            assert_eq!(run.code, Some(3), "{}: manifest {how}: {}", run.what, run.err);
        }
        let path = owned.image.path();
        let run = self.run_clean(&["snapshot", &path]);
        assert_eq!(run.code, Some(3), "{}: manifest {how}: {}", run.what, run.err);
        self.world.count("damages found", 1);
        if !may_repair || self.random.below(3) == 0 {
            return damages.iter().for_each(|damage| damage.put_back(self));
        }
        self.try_run(&["repair", &name]);
        let run = self.run_clean(&["repair", &name]);
        // A part of a base that was interrupted is of no snapshot, which only the manifest knew.
        let told = String::from_utf8_lossy(&run.out);
        let is_kept = ["kept, but not used: ", "kept, but still not used: "];
        let keeps_parts = run.code == Some(3) && is_kept.iter().any(|what| told.contains(what));
        assert!(run.is_done() || keeps_parts, "{}: {:?}: {}", run.what, run.code, run.err);
        self.accept_repaired(owned);
        self.run_clean(&["relink", &name, &path]).done();
        self.world.count("damages repaired", 1);
    }

    /// All that is known is there; what was dropped may be there again, as it was; labels may be older.
    fn accept_repaired(&mut self, owned: &mut Owned) {
        let listed: BTreeMap<u64, Option<String>> = owned.listed(self);
        for number in owned.known.keys() {
            assert!(listed.contains_key(number), "{} was not repaired", owned.reference(*number));
        }
        for (number, label) in listed {
            if let Some(known) = owned.known.get_mut(&number) {
                known.labels = vec![label];
                continue;
            }
            let past = owned.past.get(&number).cloned().unwrap_or_default();
            let mut states = past.iter().chain(&owned.tried);
            let found = states.find(|state| owned.gives(self, number, state).is_none());
            let state = found.unwrap_or_else(|| panic!("@{number} came from nowhere")).clone();
            owned.remember(number, state, label);
        }
        owned.publish(self);
    }

    fn damage_head(&mut self, owned: &mut Owned) {
        let (name, path) = (owned.name(), owned.image.path());
        let head = self.world.inside.folder(&name).join("head.json");
        if !Path::new(&head).exists() {
            return;
        }
        let bytes = std::fs::read(&head).unwrap();
        let cut = self.random.below(bytes.len() as u64) as usize;
        self.world.write(&head, &bytes[..cut]);
        self.world.note(&format!("w{} damage: head of {name}", self.number));
        self.run_clean(&["snapshot", &path]).fails(1, "is damaged");
        self.world.count("damages found", 1);
        let number = owned.some_known(self);
        let back = ["rollback", &name, "--to", &format!("@{number}"), "--no-save"];
        if self.random.below(2) == 0 {
            self.run_with(&back, Fault::None).done();
            owned.image.state = (*owned.known[&number].state).clone();
            owned.image.is_as_it_was(self.world);
        } else {
            self.run_clean(&["relink", &name, &path]).done();
        }
    }
}
