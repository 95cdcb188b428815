//! The verbs that end the life of snapshots, or only touch what is said of them; two writers at once; and
//! the look at everything.

use crate::command::pick;
use crate::fault::Fault;
use crate::owner::Owned;
use crate::worker::Worker;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Worker<'_> {
    pub fn delete(&mut self, owned: &mut Owned) {
        let number = owned.some_known(self);
        let go = BTreeSet::from([number]);
        owned.leaving(self, &go);
        let reference = owned.reference(number);
        let mut args = vec!["delete", &reference];
        args.extend((self.random.below(2) == 0).then_some("--compact"));
        let is_done = self.try_run(&args).done_unless_faulted();
        owned.reconcile(self, &[], &go);
        assert!(!is_done || !owned.known.contains_key(&number), "{reference} is still there");
    }

    /// All but the newest so many, and the one that the live image equals.
    pub fn prune(&mut self, owned: &mut Owned) {
        let keep = 1 + self.random.below(6);
        let newest = owned.known.keys().rev().copied().take(keep as usize).collect::<BTreeSet<_>>();
        let go: BTreeSet<u64> =
            owned.known.keys().copied().filter(|number| !newest.contains(number)).collect();
        let (name, keep) = (owned.name(), keep.to_string());
        let mut args = vec!["prune", &name, "--keep-last", &keep];
        args.extend((self.random.below(2) == 0).then_some("--compact"));
        let is_dry = self.random.below(6) == 0;
        args.extend(is_dry.then_some("--dry-run"));
        let go = if is_dry { BTreeSet::new() } else { go };
        owned.leaving(self, &go);
        let is_done = self.try_run(&args).done_unless_faulted();
        owned.reconcile(self, &[], &go);
        let left = owned.known.keys().filter(|number| go.contains(number)).count();
        assert!(!is_done || left <= 1, "{name}: {left} were to be dropped and are listed");
        if self.random.below(2) == 0 {
            owned.known.keys().copied().collect::<Vec<_>>().into_iter().for_each(|number| {
                owned.restores(self, number);
            });
        }
    }

    pub fn flatten(&mut self, owned: &mut Owned) {
        let number = owned.some_known(self);
        let is_done = self.try_run(&["flatten", &owned.reference(number)]).done_unless_faulted();
        owned.reconcile(self, &[], &BTreeSet::new());
        if is_done || self.random.below(2) == 0 {
            owned.restores(self, number);
        }
    }

    pub fn label(&mut self, owned: &mut Owned) {
        let number = owned.some_known(self);
        self.serial += 1;
        let label = format!("l{}-{}", self.number, self.serial);
        let label = (self.random.below(3) > 0).then_some(label);
        let reference = owned.reference(number);
        let mut args = vec!["label", &reference];
        args.push(label.as_deref().unwrap_or("--remove"));
        let is_done = self.try_run(&args).done_unless_faulted();
        let labels = &mut owned.known.get_mut(&number).unwrap().labels;
        labels.push(label.clone());
        if is_done {
            *labels = vec![label];
        }
        owned.reconcile(self, &[], &BTreeSet::new());
    }

    /// All of an image goes, or nothing.
    pub fn remove(&mut self, owned: &mut Owned) {
        let all: BTreeSet<u64> = owned.known.keys().copied().collect();
        self.world.tell(&owned.name(), |public| {
            public.leaving.clone_from(&all);
            public.generation += 1;
            public.is_vague = true;
        });
        let run = self.try_run(&["remove", &owned.name(), "--yes"]);
        // Somebody reads it: nothing has happened.
        let is_busy = run.code == Some(4);
        let is_done = is_busy || run.done_unless_faulted();
        owned.reconcile(self, &[], &all);
        let left = owned.known.len();
        assert!(left == 0 || left == all.len(), "{left} of {} are left", all.len());
        assert!(!is_done || is_busy || left == 0, "{} is still there", owned.name());
        if left == 0 {
            owned.past.clear();
            owned.templates.drain(..).for_each(|path| std::fs::remove_file(path).unwrap());
        }
    }

    /// Two that write to the same image at the same time: each is done, or told that it is busy.
    pub fn duel(&mut self, owned: &mut Owned) {
        let before = Arc::new(owned.image.state.clone());
        let number = owned.some_known(self);
        let to = format!("@{number}");
        let (name, path, reference) = (owned.name(), owned.image.path(), owned.reference(number));
        let ones: [&[&str]; 3] =
            [&["snapshot", &path], &["snapshot", &path], &["flatten", &reference]];
        let one = pick(&mut self.random, &ones);
        let others: [&[&str]; 6] = [
            &["snapshot", &path, "--full"],
            &["delete", &reference, "--compact"],
            &["prune", &name, "--keep-last", "3"],
            &["label", &reference, "--remove"],
            &["rollback", &name, "--to", &to],
            &["rollback", &name, "--to", &to, "--no-save"],
        ];
        let other = pick(&mut self.random, &others);
        let mut go = BTreeSet::new();
        match other[0] {
            "delete" => go.extend([number]),
            // The snapshot that comes at the same time may be the third.
            "prune" => go.extend(owned.known.keys().rev().skip(2)),
            "label" => owned.known.get_mut(&number).unwrap().labels.push(None),
            _ => {}
        }
        owned.leaving(self, &go);
        let faults = [Fault::None, self.some_fault()];
        let [one, other] = {
            let _turn = self.world.turn();
            let runs = [(one, 0), (other, 1)].map(|(args, which)| {
                // Rollbacks that are killed are looked at elsewhere.
                let is_rollback = args[0] == "rollback";
                let fault = if is_rollback { Fault::None } else { faults[which].clone() };
                (self.order(args, fault).start(self.world), args)
            });
            runs.map(|(run, args)| (run.end(self.world, &mut self.pace), args))
        };
        let target = owned.known[&number].state.clone();
        for (run, args) in [&one, &other] {
            // Whoever comes second may not find what the first one has removed.
            let is_gone = go.contains(&number) && args[0] == "flatten" && run.code == Some(1);
            let is_busy = run.code == Some(4);
            if !is_busy && !is_gone {
                run.done_unless_faulted();
            }
            if args[0] == "rollback" && run.is_done() {
                owned.image.state = (*target).clone();
            } else if args[0] == "rollback" {
                // Somebody opened the image in the middle of it.
                self.finish(owned, number);
            }
        }
        owned.image.is_as_it_was(self.world);
        let add = [(before.clone(), None), (before, None), (target, None)];
        owned.reconcile(self, &add, &go);
    }

    /// Looks at all of an image: what is listed restores, is sound, and there is nothing else.
    pub fn audit(&mut self, owned: &mut Owned) {
        owned.image.is_as_it_was(self.world);
        owned.reconcile(self, &[], &BTreeSet::new());
        let Some(number) = owned.known.keys().next().copied() else { return };
        for number in owned.known.keys() {
            owned.restores(self, *number);
        }
        self.is_sound(owned);
        // With nobody who reads, the next writer clears up.
        let reference = owned.reference(number);
        let alone = self.world.alone();
        let run = |args: &[&str], worker: &mut Self| {
            let order = worker.order(args, Fault::None);
            order.start(worker.world).end(worker.world, &mut worker.pace).done()
        };
        let mut args = vec!["label", &reference];
        args.push(owned.known[&number].labels[0].as_deref().unwrap_or("--remove"));
        run(&args, self);
        self.is_tidy(owned);
        drop(alone);
        self.world.count("checked audits", 1);
    }

    #[track_caller]
    pub fn is_sound(&mut self, owned: &Owned) {
        let verified = self.run_clean(&["verify", &owned.name(), "--json"]).done().json();
        assert_eq!(verified["damaged"], serde_json::json!([]), "{}", owned.name());
        assert_eq!(verified["snapshots"], owned.known.len(), "{}", owned.name());
    }

    /// The folder of an image has the files that its manifest names, and no others.
    #[track_caller]
    fn is_tidy(&self, owned: &Owned) {
        let mut files = self.world.inside.names(&owned.name());
        files.sort();
        let ruling = files.iter().rfind(|file| file.starts_with("manifest.")).unwrap();
        let text = self.world.inside.read(&format!("{}/{ruling}", owned.name()));
        let text = String::from_utf8(text).unwrap();
        let manifest: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
        // A snapshot names its file and its parts, a pending one what is finished of it.
        let lists = ["snapshots", "dropped", "pending"].map(|list| manifest[list].as_array());
        let entries = lists.into_iter().flatten().flatten();
        let objects = entries.flat_map(|entry| {
            let lists = ["parts", "objects"].map(|list| entry[list].as_array());
            entry.get("file").into_iter().chain(lists.into_iter().flatten().flatten())
        });
        let kept = manifest["kept"].as_array().into_iter().flatten();
        let named: BTreeSet<&str> =
            objects.chain(kept).map(|file| file.as_str().unwrap()).collect();
        let is_ours = |file: &&String| file.ends_with(".delta") || file.ends_with(".tmp");
        let there: BTreeSet<&str> = files.iter().filter(is_ours).map(String::as_str).collect();
        assert_eq!(there, named, "{}: files that nobody names, or that are missing", owned.name());
        let manifests = files.iter().filter(|file| file.starts_with("manifest.")).count();
        assert!(manifests <= 2, "{files:?}");
        let hidden = std::fs::read_dir(&owned.image.folder).unwrap();
        let beside: Vec<_> = hidden.map(|entry| entry.unwrap().file_name()).collect();
        assert!(beside.len() <= 2, "beside the image: {beside:?}");
    }
}
