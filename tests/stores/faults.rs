//! Requests go wrong, in each way, at whatever moment, while a repository in an object store is used: nothing
//! is lost, nothing is wrong, and one line says why something was not done.
//!
//! By default some, `IMGSNAP_STORE_FAULTS=N` N of them; the seed is printed by a failure.

use crate::kit::{Lab, Run, is_thorough, s3};
use crate::proxy::{Asked, Fault, Proxy};
use crate::random::Random;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How many faults there are if nothing is said.
const USUAL: usize = 20;
const THOROUGH: usize = 1000;
/// Requests of a verb, about.
const REQUESTS: u64 = 14;

const SHORT: Duration = Duration::from_millis(50);

fn fault(random: &mut Random) -> Fault {
    let faults = [
        Fault::Delay(SHORT),
        Fault::Refuse,
        Fault::ResetBefore,
        Fault::Lost(SHORT),
        Fault::Unanswered,
        Fault::CutBody(random.below(3000)),
        Fault::ShortBody(random.below(3000)),
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Status(409),
        Fault::Status(403),
        Fault::StatusAfter(500),
        Fault::StatusAfter(503),
        Fault::OkWithError,
        Fault::OkWithErrorAfter,
        Fault::WrongETag,
        Fault::FlipByte(random.below(3000)),
        Fault::Twice,
        Fault::Stall(SHORT),
    ];
    faults[random.below(faults.len() as u64) as usize]
}

/// A repository whose requests go wrong, and what must be in it.
struct World {
    lab: Lab,
    proxy: Proxy,
    /// What each snapshot is.
    states: BTreeMap<u64, Vec<u8>>,
}

impl World {
    fn numbers(&self) -> Vec<u64> {
        let listed = self.lab.json(&["list", "disk"]);
        listed.as_array().unwrap().iter().map(|s| s["number"].as_u64().unwrap()).collect()
    }

    /// Runs a verb while the request with that number goes wrong.
    fn run(&self, args: &[&str], at: usize, fault: Fault) -> Run {
        self.proxy.clear();
        let hit = Arc::new(AtomicUsize::new(0));
        self.proxy.set_rule(move |asked: &Asked<'_>| {
            let is_it = asked.number >= at && hit.fetch_add(1, Ordering::SeqCst) == 0;
            if is_it { fault } else { Fault::None }
        });
        let run = self.lab.run(args);
        self.proxy.set_rule(|_| Fault::None);
        assert!(self.proxy.settle());
        run
    }

    /// What is listed now is what was acknowledged, and what each snapshot is, it is still.
    fn judge(&mut self, run: &Run, may_be: Option<(u64, Vec<u8>)>, dropped: Option<u64>) {
        let errors = run.err.lines().filter(|line| line.contains("error: ")).count();
        match run.code {
            Some(0) => assert_eq!(errors, 0, "{run:?}"),
            Some(1 | 3 | 4) => assert_eq!(errors, 1, "{run:?}"),
            _ => panic!("{run:?}"),
        }
        let numbers = self.numbers();
        if let Some((number, bytes)) = may_be {
            let is_there = numbers.contains(&number);
            assert!(is_there || run.code != Some(0), "{number} was acknowledged: {numbers:?}");
            if is_there {
                self.states.insert(number, bytes);
            }
        }
        if let Some(number) = dropped {
            let is_there = numbers.contains(&number);
            assert!(!is_there || run.code != Some(0), "{number} was dropped: {numbers:?}");
            if !is_there {
                self.states.remove(&number);
            }
        }
        let known: Vec<u64> = self.states.keys().copied().collect();
        assert_eq!(numbers, known, "{run:?}");
    }
}

#[test]
fn requests_may_go_wrong() {
    let Some((server, mut env)) = s3() else { return };
    let upstream = env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(upstream);
    env.insert("AWS_ENDPOINT_URL".into(), proxy.url());
    let lab = server.lab("s3://imgsnap-test/r", &env);
    let mut world = World { lab, proxy, states: BTreeMap::new() };
    let first = world.lab.read("disk.img");
    world.lab.done(&["snapshot", "disk.img"]);
    world.states.insert(1, first);
    let usual = if is_thorough() { THOROUGH } else { USUAL };
    let count = std::env::var("IMGSNAP_STORE_FAULTS").map_or(usual, |n| n.parse().unwrap());
    let seed = std::env::var("IMGSNAP_STORE_SEED").map_or(20_261_128, |n| n.parse().unwrap());
    let mut random = Random(seed);
    let mut failed = 0;
    for turn in 0..count {
        let (at, fault) = (random.below(REQUESTS) as usize, fault(&mut random));
        let numbers: Vec<u64> = world.states.keys().copied().collect();
        let any = numbers[random.below(numbers.len() as u64) as usize];
        let reference = format!("disk@{any}");
        eprintln!("seed {seed}, turn {turn}: request {at}, {fault:?}, snapshots {numbers:?}");
        let verb = random.below(10);
        let run = match verb {
            0..=4 => {
                let bytes = world.lab.change(1000 + turn as u64);
                let run = world.run(&["--json", "snapshot", "disk.img"], at, fault);
                let number = world.numbers().last().copied().unwrap();
                let is_new = !numbers.contains(&number);
                assert!(is_new || run.code != Some(0), "{run:?}");
                world.judge(&run, is_new.then_some((number, bytes)), None);
                run
            }
            5 | 6 => {
                let args = ["restore", &reference, "-o", "out.img", "--force"];
                let run = world.run(&args, at, fault);
                if run.code == Some(0) {
                    assert!(world.lab.read("out.img") == world.states[&any], "{reference}");
                }
                world.judge(&run, None, None);
                run
            }
            7 if numbers.len() > 3 => {
                let run = world.run(&["delete", &reference], at, fault);
                world.judge(&run, None, Some(any));
                run
            }
            8 => {
                let run = world.run(&["list"], at, fault);
                world.judge(&run, None, None);
                run
            }
            _ => {
                let run = world.run(&["verify"], at, fault);
                // What was damaged on the way is read again, and sound then.
                world.judge(&run, None, None);
                run
            }
        };
        failed += usize::from(run.code != Some(0));
    }
    assert!(world.lab.done(&["verify"]).contains("sound"));
    for (number, bytes) in &world.states {
        world.lab.ensure_is(&format!("disk@{number}"), bytes);
    }
    eprintln!("{count} faults, {failed} verbs failed, {} snapshots", world.states.len());
}
