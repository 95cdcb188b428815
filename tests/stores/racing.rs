//! Several hosts use one bucket at the same time: one takes snapshots, one drops some, one restores.

use crate::kit::{Run, is_near, is_thorough, s3, skipped};
use crate::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How many snapshots are taken.
fn usual() -> u64 {
    if is_thorough() { 150 } else { 15 }
}

/// Those that stay in any case.
const NEWEST: usize = 3;

#[test]
fn hosts_that_race_lose_nothing() {
    // moto keeps two hosts apart for the most part only.
    if !is_thorough() && !is_near("radosgw") {
        return skipped("hosts_that_race_lose_nothing", "no Ceph here");
    }
    let Some((server, env)) = s3() else { return };
    let lab = server.lab("s3://imgsnap-test/r", &env);
    let first = lab.read("disk.img");
    lab.done(&["snapshot", "disk.img"]);
    let states = Mutex::new(BTreeMap::from([(1_u64, first)]));
    let dropped = Mutex::new(BTreeSet::new());
    let is_over = AtomicBool::new(false);
    // Damage is never what another host does.
    let check = |run: &Run| assert!(matches!(run.code, Some(0 | 1 | 4)), "{run:?}");
    let known = |besides: usize, random: &mut Random| {
        let states = states.lock().unwrap();
        let numbers: Vec<u64> = states.keys().copied().collect();
        let count = numbers.len().saturating_sub(besides) as u64;
        (count > 0).then(|| numbers[random.below(count) as usize])
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..usual() {
                let bytes = lab.change(turn);
                let run = lab.run_as("one", &["--json", "snapshot", "disk.img"]);
                check(&run);
                if run.code == Some(0) {
                    let taken: serde_json::Value = serde_json::from_str(&run.out).unwrap();
                    states.lock().unwrap().insert(taken["number"].as_u64().unwrap(), bytes);
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            let mut random = Random(1);
            while !is_over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
                let Some(number) = known(NEWEST, &mut random) else { continue };
                // Whatever becomes of it: from now on nobody relies on it.
                dropped.lock().unwrap().insert(number);
                check(&lab.run_as("two", &["delete", &format!("disk@{number}")]));
                states.lock().unwrap().remove(&number);
            }
        });
        scope.spawn(|| {
            let mut random = Random(2);
            while !is_over.load(Ordering::SeqCst) {
                let Some(number) = known(0, &mut random) else { continue };
                let Some(bytes) = states.lock().unwrap().get(&number).cloned() else { continue };
                let reference = format!("disk@{number}");
                let args = ["restore", &reference, "-o", "three.img", "--force"];
                let run = lab.run_as("three", &args);
                check(&run);
                if run.code == Some(0) {
                    assert!(lab.read("three.img") == bytes, "{reference}");
                }
            }
        });
    });
    let listed = lab.json(&["list", "disk"]);
    let listed: BTreeSet<u64> =
        listed.as_array().unwrap().iter().map(|s| s["number"].as_u64().unwrap()).collect();
    let (states, dropped) = (states.into_inner().unwrap(), dropped.into_inner().unwrap());
    for (number, bytes) in &states {
        assert!(listed.contains(number), "{number} was acknowledged: {listed:?}");
        lab.ensure_is(&format!("disk@{number}"), bytes);
    }
    assert!(lab.done(&["verify"]).contains("no damage found"));
    eprintln!("{} snapshots are there, {} were dropped", states.len(), dropped.len());
}
