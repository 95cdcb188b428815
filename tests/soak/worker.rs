//! A worker: images of its own, a stream of numbers of its own, one step after the other.

use crate::command::{Ended, Order, Pace};
use crate::fault::Fault;
use crate::owner::Owned;
use crate::random::Random;
use crate::world::World;
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// How often everything of an image is looked at, on average, in steps.
const AUDIT: u64 = 12;
/// What a command says that would overwrite a file while it cannot be told what needs that, and how often it
/// is run again.
const REFUSED: &str = "it is not known whether";
const REFUSALS: u32 = 500;

pub struct Worker<'a> {
    pub world: &'a World,
    pub number: u64,
    pub random: Random,
    pub pace: Pace,
    /// For what is restored and exported.
    pub folder: PathBuf,
    pub serial: u64,
}

impl<'a> Worker<'a> {
    pub fn new(world: &'a World, number: u64, seed: u64) -> Self {
        let folder = world.place.join(format!("work{number}"));
        std::fs::create_dir(&folder).unwrap();
        let mut random = Random(seed.wrapping_add(number));
        random.next();
        Self { world, number, random, pace: Pace::default(), folder, serial: 0 }
    }

    pub fn run(mut self, end: Instant) {
        let stop = StopAll(self.world);
        let mut images: Vec<Owned> = Vec::new();
        for which in 0..1 + self.random.below(2) {
            let name = format!("vm{}{}", self.number, ["a", "b"][which as usize]);
            images.push(Owned::new(&mut self, &name));
        }
        while Instant::now() < end && !self.world.stop.load(Ordering::Relaxed) {
            let which = self.random.below(images.len() as u64) as usize;
            match self.random.below(20) {
                0..6 => self.look_at_others(),
                6 if images.len() > 1 => self.snapshot_all(&mut images),
                _ => self.step(&mut images[which]),
            }
            if self.random.below(AUDIT) == 0 {
                self.audit(&mut images[which]);
            }
        }
        if !self.world.stop.load(Ordering::Relaxed) {
            images.iter_mut().for_each(|owned| self.audit(owned));
            self.clear_folder();
        }
        std::mem::forget(stop);
    }

    /// A fault, or none.
    pub fn some_fault(&mut self) -> Fault {
        Fault::some(&mut self.random, self.world.tools)
    }

    pub fn order(&self, args: &[&str], fault: Fault) -> Order<'a> {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        // Two cores are not there for one.
        args.extend(["--threads".into(), "2".into()]);
        Order { worker: self.number, repo: &self.world.repo, args, fault }
    }

    /// Runs a command to its end, whatever that is. One that is refused while another worker damages an image
    /// with a base image is run again.
    pub fn run_with(&mut self, args: &[&str], fault: Fault) -> Ended {
        for _ in 0..REFUSALS {
            let ended = self.run_once(args, fault.clone());
            let is_refused = ended.code == Some(3) && ended.err.contains(REFUSED);
            if !is_refused {
                return ended;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        self.run_once(args, fault)
    }

    fn run_once(&mut self, args: &[&str], fault: Fault) -> Ended {
        let _turn = self.world.turn();
        let order = self.order(args, fault);
        order.start(self.world).end(self.world, &mut self.pace)
    }

    /// Perhaps under a fault.
    pub fn try_run(&mut self, args: &[&str]) -> Ended {
        let fault = self.some_fault();
        self.run_with(args, fault)
    }

    /// Without a fault.
    pub fn run_clean(&mut self, args: &[&str]) -> Ended {
        self.run_with(args, Fault::None)
    }

    /// Lets it run for a while, and ends it as a service is ended.
    pub fn run_for_a_while(&mut self, args: &[&str], signal: Signal, millis: u64) -> Ended {
        let _turn = self.world.turn();
        let mut order = self.order(args, Fault::None);
        order.fault = Fault::Signal(signal, 0);
        let running = order.start(self.world);
        std::thread::sleep(std::time::Duration::from_millis(millis));
        running.end(self.world, &mut self.pace)
    }

    /// A name that was never used, in the folder of this worker.
    pub fn new_path(&mut self, stem: &str) -> String {
        self.serial += 1;
        let name = format!("{stem}-{}", self.serial);
        self.folder.join(name).to_str().unwrap().into()
    }

    /// Nothing is left in the folder of this worker.
    #[track_caller]
    pub fn clear_folder(&mut self) {
        let left: Vec<_> = std::fs::read_dir(&self.folder).unwrap().map(|e| e.unwrap()).collect();
        let left: Vec<_> = left.into_iter().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// One failure is the end for all.
struct StopAll<'a>(&'a World);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}
