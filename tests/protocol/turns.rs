//! Hosts that take turns: one of them goes on until it asks the store for something, and then it is drawn who
//! goes on, what becomes of the request, and whether a host falls asleep, or dies, or days pass meanwhile.

use crate::random::Random;
use crate::watch::Watch;
use imgsnap::store::{Act, Fault, Host, World};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
/// Hours that may pass at once, and that a host may sleep: less than a grace period, more than one, more than a
/// marker lives.
const SPANS: [u64; 4] = [20, 4 * 24, 8 * 24, 20 * 24];

/// How much goes wrong, in thousandths of the requests.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    pub faults: u64,
    pub sleeps: u64,
    pub deaths: u64,
    pub days: u64,
    pub sleeper: Option<Sleeper>,
}

/// A host that sleeps once for days or weeks, before a request after which others must not have gone too far.
#[derive(Debug, Clone, Copy)]
pub struct Sleeper {
    pub host: usize,
    pub before: Before,
    /// So many of these requests come first.
    pub skipped: u64,
    pub hours: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Commit,
    Upload,
    Marker,
    Removal,
    Listing,
    /// A part of a snapshot.
    Reading,
}

impl Before {
    pub const ALL: [Self; 6] =
        [Self::Commit, Self::Upload, Self::Marker, Self::Removal, Self::Listing, Self::Reading];

    fn of(act: Act, name: &str) -> Option<Self> {
        let is_delta = name.ends_with(".delta");
        match act {
            Act::Put if name.contains("/manifest.") => Some(Self::Commit),
            Act::Put if is_delta => Some(Self::Upload),
            Act::Put if name.contains("/marker.") => Some(Self::Marker),
            Act::Remove if is_delta => Some(Self::Removal),
            Act::Read if is_delta => Some(Self::Reading),
            Act::Read if !name.contains('/') => Some(Self::Listing),
            _ => None,
        }
    }
}

struct State {
    random: Random,
    trouble: Trouble,
    world: World,
    /// Requests of each host that wait for their turn.
    waiting: Vec<usize>,
    granted: Vec<bool>,
    /// Turns that it sleeps, and the hour until which it does.
    asleep: Vec<u64>,
    until: Vec<u64>,
    /// Its request is one before which a sleep is of interest: a commit, a removal, a listing.
    is_critical: Vec<bool>,
    hours: u64,
    watch: Watch,
    /// Something was put or removed, perhaps, since the last look.
    is_changed: bool,
    dead: Vec<bool>,
    done: Vec<bool>,
    running: Option<usize>,
    turns: u64,
    /// One schedule alone is told turn by turn.
    is_traced: bool,
}

impl State {
    fn pass(&mut self, hours: u64) {
        self.hours += hours;
        self.world.pass(HOUR * hours as u32);
        if self.is_traced && hours > 0 {
            println!("{hours} hours pass");
        }
    }

    fn fall_asleep(&mut self, host: usize, before: Option<Before>) {
        let sleeper = self.trouble.sleeper.as_mut();
        match sleeper.filter(|sleeper| sleeper.host == host && Some(sleeper.before) == before) {
            Some(sleeper) if sleeper.skipped > 0 => sleeper.skipped -= 1,
            Some(sleeper) => {
                self.until[host] = self.hours + sleeper.hours;
                self.trouble.sleeper = None;
            }
            None => {}
        }
    }

    fn look(&mut self) {
        self.watch.look(&self.world, self.hours);
        self.is_changed = false;
    }
}

/// Whose turn it is.
pub struct Turns {
    state: Mutex<State>,
    /// One for each host.
    woken: Vec<Condvar>,
}

impl Turns {
    pub fn new(
        hosts: usize,
        seed: u64,
        trouble: Trouble,
        world: World,
        grace: Duration,
    ) -> Arc<Self> {
        let state = State {
            random: Random(seed),
            trouble,
            world,
            waiting: vec![0; hosts],
            granted: vec![false; hosts],
            asleep: vec![0; hosts],
            until: vec![0; hosts],
            is_critical: vec![false; hosts],
            hours: 0,
            watch: Watch::new(grace.as_secs() / 3600),
            is_changed: true,
            dead: vec![false; hosts],
            done: vec![false; hosts],
            running: None,
            turns: 0,
            is_traced: std::env::var_os("IMGSNAP_SCHEDULE").is_some(),
        };
        let woken = (0..hosts).map(|_| Condvar::new()).collect();
        Arc::new(Self { state: Mutex::new(state), woken })
    }

    pub fn is_dead(&self, host: usize) -> bool {
        self.state.lock().unwrap().dead[host]
    }

    /// How many hours have passed.
    pub fn hours(&self) -> u64 {
        self.state.lock().unwrap().hours
    }

    /// What was wrong at any time.
    pub fn wrong(&self) -> Option<String> {
        self.state.lock().unwrap().watch.wrong.clone()
    }

    /// True if a manifest that ruled named a file, at any time.
    pub fn has_ruled(&self, file: &str) -> bool {
        self.state.lock().unwrap().watch.named.contains(file)
    }

    /// How many turns there were.
    pub fn turns(&self) -> u64 {
        self.state.lock().unwrap().turns
    }

    /// The host has nothing more to do.
    pub fn end(&self, host: usize) {
        let mut state = self.state.lock().unwrap();
        state.done[host] = true;
        if state.running == Some(host) {
            state.running = None;
        }
        self.next(&mut state);
    }

    fn next(&self, state: &mut State) {
        let is_computing = |host: usize| !state.done[host] && state.waiting[host] == 0;
        if state.running.is_some() || (0..state.done.len()).any(is_computing) {
            return;
        }
        state.turns += 1;
        if state.is_changed {
            state.look();
        }
        let Trouble { sleeps, days, .. } = state.trouble;
        if state.random.below(1000) < days {
            let span = SPANS[state.random.below(SPANS.len() as u64) as usize];
            state.pass(span);
        }
        if state.until.iter().any(|until| *until > state.hours) && state.random.below(6) == 0 {
            let hours = [12, 24, 96][state.random.below(3) as usize];
            state.pass(hours);
        }
        let late = state.world.late_requests() as u64;
        if late > 0 && state.random.below(8) == 0 {
            let which = state.random.below(late) as usize;
            if state.is_traced {
                println!("late request {which} of {late} lands");
            }
            state.world.land(which);
            state.look();
        }
        let all: Vec<usize> = (0..state.done.len()).filter(|h| state.waiting[*h] > 0).collect();
        for host in &all {
            state.asleep[*host] = state.asleep[*host].saturating_sub(1);
        }
        let is_awake = |s: &State, host: usize| s.asleep[host] == 0 && s.until[host] <= s.hours;
        let mut awake: Vec<usize> =
            all.iter().copied().filter(|host| is_awake(state, *host)).collect();
        if awake.is_empty() {
            let Some(first) = all.iter().copied().min_by_key(|host| state.until[*host]) else {
                return;
            };
            state.pass(state.until[first].saturating_sub(state.hours));
            awake = vec![first];
        }
        let host = awake[state.random.below(awake.len() as u64) as usize];
        let sleeps = if state.is_critical[host] { 6 * sleeps } else { sleeps };
        if state.random.below(1000) < sleeps && all.len() > 1 {
            // Once for each request.
            state.is_critical[host] = false;
            match state.random.below(2) {
                0 => state.asleep[host] = 1 + state.random.below(60),
                _ => {
                    let span = SPANS[state.random.below(SPANS.len() as u64) as usize];
                    state.until[host] = state.hours + span;
                }
            }
            return self.next(state);
        }
        state.asleep[host] = 0;
        state.running = Some(host);
        state.granted[host] = true;
        self.woken[host].notify_all();
    }

    fn take_turn(&self, host: usize, act: Act, name: &str) -> Fault {
        let mut state = self.state.lock().unwrap();
        let before = Before::of(act, name);
        let is_critical = matches!(before, Some(Before::Commit | Before::Listing));
        state.is_critical[host] = is_critical || act == Act::Remove;
        state.fall_asleep(host, before);
        state.waiting[host] += 1;
        if state.running == Some(host) {
            state.running = None;
        }
        self.next(&mut state);
        while !state.granted[host] {
            state = self.woken[host].wait(state).unwrap();
        }
        state.granted[host] = false;
        state.waiting[host] -= 1;
        let Trouble { faults, deaths, .. } = state.trouble;
        state.dead[host] |= state.random.below(1000) < deaths;
        let drawn = [Fault::Lost, Fault::Unanswered, Fault::Late, Fault::Twice];
        let rate = if act == Act::Read { faults / 4 } else { faults };
        let fault = match state.random.below(1000) < rate {
            _ if state.dead[host] => Fault::Lost,
            true => drawn[state.random.below(4) as usize],
            false => Fault::None,
        };
        // As soon as this returns.
        state.is_changed |= act != Act::Read;
        if state.is_traced {
            println!("host {host}: {act:?} {name}: {fault:?}");
        }
        fault
    }
}

/// A host that takes turns.
pub struct Seat {
    pub turns: Arc<Turns>,
    pub host: usize,
}

impl Host for Seat {
    fn ask(&self, act: Act, name: &str) -> Fault {
        self.turns.take_turn(self.host, act, name)
    }
}

/// A host that is alone, and to which nothing happens.
pub struct Alone;

impl Host for Alone {
    fn ask(&self, _act: Act, _name: &str) -> Fault {
        Fault::None
    }
}
