//! Who reads images that somebody else changes at the same time: right bytes, or that it is gone.

use crate::command::{Ended, pick};
use crate::owner::Owned;
use crate::worker::Worker;
use crate::world::Public;
use std::collections::BTreeMap;

impl Worker<'_> {
    pub fn look_at_others(&mut self) {
        let public = self.world.public();
        let there: Vec<&String> =
            public.iter().filter(|(_, of)| !of.known.is_empty()).map(|(name, _)| name).collect();
        if there.is_empty() {
            return;
        }
        let name = pick(&mut self.random, &there).clone();
        let numbers: Vec<u64> = public[&name].known.keys().copied().collect();
        let number = pick(&mut self.random, &numbers);
        let other = pick(&mut self.random, &numbers);
        let (one, other) = (format!("{name}@{number}"), format!("{name}@{other}"));
        let (of_one, of_all): (Vec<&str>, bool) = match self.random.below(20) {
            0..8 => (vec!["restore", &one, "-o", "-"], false),
            8..10 => (vec!["verify", &name], false),
            10 => (vec!["show", &one], false),
            11 => (vec!["diff", &one, &other], false),
            12 => (vec!["stats", &name], false),
            13 => (vec!["export", &one, "-o", "-"], false),
            14 => (vec!["list", &name], false),
            15 => (vec!["stats"], true),
            16 => (vec!["verify", "--quick"], true),
            _ => (vec!["list"], true),
        };
        let run = self.try_run(&of_one);
        let now = self.world.public();
        if of_all {
            let is_damaged = is_any_damaged(&public, &now);
            let is_excused = run.is_done() || is_damaged || !run.had_no_fault();
            assert!(is_excused || is_any_gone(&run, &public, &now), "{}: {}", run.what, run.err);
            return;
        }
        self.judge_of_one(&run, &of_one, &public[&name], &now[&name], number);
    }

    fn judge_of_one(&self, run: &Ended, args: &[&str], before: &Public, now: &Public, number: u64) {
        let is_other = before.generation != now.generation || before.is_vague || now.is_vague;
        if run.is_done() {
            if args[0] == "restore" && !is_other {
                let difference = before.known[&number].first_difference(&mut run.out.as_slice());
                assert_eq!(difference, None, "{}", run.what);
                self.world.count("checked by-others", 1);
            }
            return;
        }
        let was_damaged = before.damages != now.damages || now.damages % 2 == 1;
        let left = |of: &Public, n: &u64| of.leaving.contains(n) || !of.known.contains_key(n);
        // Any of them: a diff and an export look at two.
        let is_gone = before.known.keys().any(|n| left(before, n) || left(now, n));
        let is_excused = is_other || was_damaged || (is_gone && run.code == Some(1));
        assert!(is_excused || !run.had_no_fault(), "{}: {:?}: {}", run.what, run.code, run.err);
    }

    /// What the defaults of the repository are is of no matter to those who work in it.
    pub fn configure(&mut self) {
        let _alone = self.world.alone();
        let inside = &self.world.inside;
        let (names, get) = (inside.names(""), |name: &str| inside.read(name));
        let ruling = crate::config::ruling(&names);
        let text = crate::config::text_of(&ruling, get(&ruling));
        let mut config: toml::Table = text.parse().unwrap();
        let new = config["new"].as_table_mut().unwrap();
        let size = 4096_i64 << self.random.below(9);
        new.insert("block_size".into(), size.into());
        new.insert("digest".into(), pick(&mut self.random, &["xxh3", "blake3"]).into());
        let compression = pick(&mut self.random, &["none", "lz4", "lz4", "zstd:1", "zstd:3"]);
        new.insert("compression".into(), compression.into());
        let parts = [64 << 10, 256 << 10, 1 << 20, 8_i64 << 30];
        new.insert("part_size".into(), pick(&mut self.random, &parts).into());
        let mut prune = toml::Table::new();
        prune.insert("garbage".into(), pick(&mut self.random, &[0_i64, 5, 40, 100]).into());
        config.insert("prune".into(), prune.into());
        let (name, bytes) = crate::config::changed(&names, get, |_| config.to_string());
        inside.put(&name, &bytes);
    }
}

fn is_any_damaged(before: &BTreeMap<String, Public>, now: &BTreeMap<String, Public>) -> bool {
    let of =
        |all: &BTreeMap<String, Public>| -> Vec<u64> { all.values().map(|p| p.damages).collect() };
    of(before) != of(now) || of(now).iter().any(|damages| damages % 2 == 1)
}

/// A verification of all images ends at one that is removed meanwhile.
fn is_any_gone(
    run: &Ended,
    before: &BTreeMap<String, Public>,
    now: &BTreeMap<String, Public>,
) -> bool {
    let is_gone =
        |name: &String| now[name].is_vague || now[name].generation != before[name].generation;
    run.what.contains("imgsnap verify") && run.code == Some(1) && before.keys().any(is_gone)
}

/// Keeps others from taking damage for an error, as long as it stands.
pub fn damaged<T>(
    worker: &mut Worker<'_>,
    owned: &mut Owned,
    work: impl FnOnce(&mut Worker<'_>, &mut Owned) -> T,
) -> T {
    let name = owned.name();
    worker.world.tell(&name, |public| public.damages += 1);
    let done = work(worker, owned);
    worker.world.tell(&name, |public| public.damages += 1);
    done
}
