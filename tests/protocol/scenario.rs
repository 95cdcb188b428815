//! Who does what on one store, how much may go wrong, and what must hold all the same.

use crate::explore::Model;
use crate::hosts::{At, Host, Turn};
use crate::store::{Answer, Ids, Item, Items, MARKER, Manifest, Request, Store};

/// What a host is to do, with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Snapshot(u8),
    /// Drops a snapshot.
    Drop(u8),
    /// Drops the image; whoever takes a snapshot of it then begins it anew.
    Forget(u8),
    /// Restores a snapshot; true: with a marker.
    Read(u8, bool),
    /// Clears away, in so many visits.
    Collect(u8, u8),
    /// Bases image 1 on a snapshot of image 0.
    Base,
    /// Takes that back.
    Remove,
    /// Plans a snapshot that workers take; its parent is kept meanwhile.
    Plan,
    /// Makes a part of it.
    Part,
    /// Names a part in the place of the plan.
    Join,
    /// Gives the plan up, or finds that it has expired.
    GiveUp,
}

/// A mistake that is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A put that succeeded counts as a commit, without a look at what rules.
    NumbersReused,
    /// An object gets a name that was free when it was looked for.
    NamesReused,
    /// The grace period counts from when the object was made.
    GraceFromCreation,
    /// Who drops deletes after the grace period although its commit was never confirmed.
    UndecidedDeleted,
    /// A reader without a marker takes what is missing for damage.
    MissingIsDamage,
    /// A reader with a marker does not look again after it has put it.
    MarkerTrusted,
    /// A writer that tries again names what was condemned meanwhile.
    CondemnedNamedAgain,
    /// What was condemned and is named no more has never been condemned.
    SweptForgotten,
    /// What is not named is deleted after the grace period, and not condemned first.
    SlowUploadDeleted,
    /// The pin is committed after what depends on it.
    PinLate,
    /// The grace period is measured by the clock of the collector, which is a day ahead.
    ClockOfHost,
    /// An image that is forgotten leaves no manifest.
    ForgottenWhole,
    /// A join that tries again does not look whether the plan is still pending.
    JoinedBlindly,
    /// The parts of a plan that is pending are condemned, since no manifest names them.
    PartsCondemned,
    /// A drop does not look for which snapshot a plan depends on.
    ParentDropped,
}

/// How much may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Days that pass.
    pub days: u8,
    /// Requests that are lost, delayed or duplicated, or whose answer is lost.
    pub faults: u8,
    /// Hosts that die.
    pub deaths: u8,
}

/// Who does what, and how much may go wrong.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    /// Host by host.
    pub tasks: Vec<Vec<Task>>,
    /// Snapshots of image 0 at the beginning.
    pub snapshots: u8,
    pub bounds: Bounds,
    pub mistake: Option<Mistake>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub store: Store,
    pub hosts: Vec<Host>,
    /// By image: commits that were reported as done.
    pub acknowledged: [Ids; 2],
    pub wrong: Option<&'static str>,
    left: Bounds,
}

/// What happens.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "for the trace")]
pub enum Step {
    Thinks { host: usize, then: At },
    Confirms { host: usize },
    Sends { host: usize, request: Request, fault: Option<Fault> },
    Dies { host: usize },
    Lands(Request),
    Vanishes(Request),
    DayPasses,
}

/// What can become of a request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    AnswerLost,
    SentTwice,
    CopyDelayed,
    Delayed,
    DiedAfterwards,
}

impl Scenario {
    pub fn task(&self, state: &State, host: usize) -> Option<Task> {
        self.tasks[host].get(state.hosts[host].task as usize).copied()
    }

    /// What a request can lead to: what the store has then, and what the sender is told.
    fn outcomes(&self, state: &State, request: Request) -> Vec<(Option<Fault>, State, Answer)> {
        let mut done = state.clone();
        let answer = done.store.apply(request);
        let mut outcomes = vec![(None, done.clone(), answer)];
        if state.left.faults > 0 {
            done.left.faults -= 1;
            outcomes.push((Some(Fault::AnswerLost), done.clone(), Answer::Unknown));
            let mut twice = done.clone();
            let second = twice.store.apply(request);
            if second != answer {
                outcomes.push((Some(Fault::SentTwice), twice, second));
            }
            done.store.delay(request);
            outcomes.push((Some(Fault::CopyDelayed), done, answer));
            let mut delayed = state.clone();
            delayed.left.faults -= 1;
            delayed.store.delay(request);
            outcomes.push((Some(Fault::Delayed), delayed, Answer::Unknown));
        }
        outcomes
    }

    fn host_steps(&self, state: &State, host: usize, out: &mut Vec<(Step, State)>) {
        if state.hosts[host].is_dead || self.task(state, host).is_none() {
            return;
        }
        let turn = |state: &mut State, does: &dyn Fn(&mut Turn)| {
            does(&mut Turn { scenario: self, state, host });
        };
        let mut next = state.clone();
        match state.hosts[host].at {
            At::Think => {
                turn(&mut next, &|turn| turn.think());
                let then = next.hosts[host].at;
                out.push((Step::Thinks { host, then }, next));
            }
            At::Confirm { image, manifest, is_decided } => {
                turn(&mut next, &|turn| turn.confirm(image, manifest, is_decided));
                out.push((Step::Confirms { host }, next));
            }
            At::Send(request) => {
                for (fault, mut next, answer) in self.outcomes(state, request) {
                    turn(&mut next, &|turn| turn.answered(request, answer));
                    out.push((Step::Sends { host, request, fault }, next));
                }
                if state.left.deaths > 0 {
                    next.left.deaths -= 1;
                    next.hosts[host].is_dead = true;
                    next.store.delay(request);
                    let fault = Some(Fault::DiedAfterwards);
                    out.push((Step::Sends { host, request, fault }, next));
                }
            }
        }
    }

    /// What collectors leave that have all the time there is.
    fn left_over(&self, state: &State) -> Result<(), String> {
        let mut state = State { left: Bounds { days: 0, faults: 0, deaths: 0 }, ..state.clone() };
        let host = state.hosts.len();
        let mut alone = self.clone();
        alone.tasks.push(Vec::new());
        state.hosts.push(Host::NEW);
        for _ in 0..8 {
            let before = state.store.clone();
            // A plan that nobody joins expires.
            alone.tasks[host] = vec![Task::GiveUp, Task::Collect(1, 30), Task::Collect(0, 30)];
            state.hosts[host] = Host::NEW;
            loop {
                let mut steps = Vec::new();
                alone.host_steps(&state, host, &mut steps);
                let Some((_, next)) = steps.pop() else { break };
                state = next;
            }
            state.store.pass_a_day();
            if state.store == before {
                break;
            }
        }
        let [origin, other] = &state.store.images;
        let (pins, base) = (origin.ruling().pin_set(), other.ruling().base_pin());
        for folder in &state.store.images {
            let ruling = folder.ruling();
            let named = ruling.snapshots | ruling.pinned();
            if folder.data != named || folder.manifests.len() > 1 || ruling.all_condemned() > 0 {
                return Err(format!("more than is named is left for ever: {folder:?}"));
            }
        }
        if pins == base { Ok(()) } else { Err(format!("pins {pins:b} are left for ever")) }
    }
}

impl State {
    /// Manifests that somebody may still put, of an image.
    fn on_the_way(&self, of: u8) -> impl Iterator<Item = &Manifest> {
        let held = self.hosts.iter().filter(|host| !host.is_dead);
        let sent = held.filter_map(|host| match &host.at {
            At::Send(request) => Some(request),
            _ => None,
        });
        let puts = self.store.late.iter().chain(sent).filter_map(move |request| match request {
            Request::Put { image, manifest } if *image == of => Some(manifest),
            _ => None,
        });
        let confirmed = self.hosts.iter().filter_map(move |host| match &host.at {
            At::Confirm { image, manifest, .. } if *image == of => Some(manifest),
            _ => None,
        });
        puts.chain(confirmed)
    }

    fn manifests(&self, image: u8) -> impl Iterator<Item = &Manifest> {
        let stored =
            self.store.images[image as usize].manifests.iter().map(|(manifest, _)| manifest);
        stored.chain(self.on_the_way(image))
    }

    /// Ids that anything still depends on.
    pub fn used_ids(&self) -> Ids {
        let used = |image| self.manifests(image).fold(0, |ids: Ids, manifest| ids | manifest.set());
        used(0) | used(1) | self.acknowledged[0] | self.acknowledged[1]
    }

    /// Items of an image that anything or anybody still names.
    pub fn used_items(&self, scenario: &Scenario, image: u8) -> Items {
        let mut used = self.store.images[image as usize].data;
        for manifest in self.manifests(image) {
            used |= manifest.named();
        }
        if image == 1 {
            for manifest in self.manifests(0) {
                used |= manifest.pin_set();
            }
        } else {
            for manifest in self.manifests(1) {
                used |= manifest.base.map_or(0, |(_, object)| 1 << object);
            }
        }
        let held = self.hosts.iter().filter_map(|host| match &host.at {
            At::Send(request) => Some(request),
            _ => None,
        });
        for request in self.store.late.iter().chain(held) {
            match request {
                Request::Upload { image: of, item, .. } | Request::Delete { image: of, item }
                    if *of == image =>
                {
                    used |= 1 << item;
                }
                _ => {}
            }
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let of = match scenario.task(self, index) {
                Some(Task::Snapshot(of) | Task::Drop(of) | Task::Read(of, _)) => of,
                Some(Task::Base | Task::Remove) => 1,
                Some(Task::Plan | Task::Part | Task::Join | Task::GiveUp) => 0,
                Some(Task::Forget(_) | Task::Collect(..)) | None => continue,
            };
            if of == image && host.item < Item::MAX {
                used |= 1 << host.item;
            }
        }
        used
    }

    /// States that differ by what can decide nothing any more are one.
    fn forget(&mut self, scenario: &Scenario) {
        for index in 0..self.hosts.len() {
            let is_over = scenario.task(self, index).is_none();
            let host = &mut self.hosts[index];
            if host.is_dead {
                *host = Host { is_dead: true, ..Host::NEW };
            } else if is_over {
                *host = Host { task: host.task, ..Host::NEW };
            }
        }
        for marker in &mut self.store.markers {
            *marker = marker.filter(|(_, _, age)| *age < MARKER);
        }
        let keeps_ages = matches!(
            scenario.mistake,
            Some(Mistake::GraceFromCreation | Mistake::SlowUploadDeleted)
        );
        for image in 0..2u8 {
            let folder = &mut self.store.images[image as usize];
            if !keeps_ages {
                folder.ages = Default::default();
            }
            // Of those that do not rule nothing is read but their number and age.
            let old = folder.manifests.len() - 1;
            for (manifest, _) in folder.manifests.iter_mut().take(old) {
                *manifest = Manifest { sequence: manifest.sequence, id: 15, ..Manifest::default() };
            }
            self.forget_ids(image);
        }
    }

    /// Commits that every manifest which can ever rule has as its ancestor, or that none has.
    fn forget_ids(&mut self, image: u8) {
        let ruling = *self.store.images[image as usize].ruling();
        let ways = || std::iter::once(&ruling).chain(self.on_the_way(image));
        let in_all = ways().fold(Ids::MAX, |ids, manifest| ids & manifest.ancestors);
        let live = ways().fold(0, |ids: Ids, manifest| ids | 1 << manifest.id);
        let acknowledged = self.acknowledged[image as usize];
        let kept = live | (acknowledged & !in_all);
        self.acknowledged[image as usize] &= kept;
        let forget = |manifest: &mut Manifest| manifest.ancestors &= kept;
        let folder = &mut self.store.images[image as usize];
        folder.manifests.iter_mut().for_each(|(manifest, _)| forget(manifest));
        for request in &mut self.store.late {
            if let Request::Put { image: of, manifest } = request
                && *of == image
            {
                forget(manifest);
            }
        }
        for host in &mut self.hosts {
            match &mut host.at {
                At::Send(Request::Put { image: of, manifest }) if *of == image => forget(manifest),
                At::Confirm { image: of, manifest, .. } if *of == image => forget(manifest),
                _ => {}
            }
        }
    }
}

impl Model for Scenario {
    type State = State;
    type Step = Step;

    fn first(&self) -> State {
        let mut store = Store { markers: vec![None; self.tasks.len()], ..Store::default() };
        for (image, snapshots) in [(0, (1 << self.snapshots) - 1), (1, 0)] {
            let first = Manifest { sequence: 1, snapshots, ..Manifest::default() };
            store.images[image].manifests.push((first, 0));
            store.images[image].data = snapshots;
        }
        State {
            store,
            hosts: vec![Host::NEW; self.tasks.len()],
            acknowledged: [0; 2],
            wrong: None,
            left: self.bounds,
        }
    }

    fn steps(&self, state: &State) -> Vec<(Step, State)> {
        let mut out = Vec::new();
        for host in 0..state.hosts.len() {
            self.host_steps(state, host, &mut out);
            let of = &state.hosts[host];
            let has_begun = of.stage > 0 || of.at != At::Think;
            if state.left.deaths > 0 && !of.is_dead && has_begun {
                let mut next = state.clone();
                next.left.deaths -= 1;
                next.hosts[host].is_dead = true;
                out.push((Step::Dies { host }, next));
            }
        }
        for index in 0..state.store.late.len() {
            let mut next = state.clone();
            let request = next.store.late.remove(index);
            out.push((Step::Vanishes(request), next.clone()));
            next.store.apply(request);
            out.push((Step::Lands(request), next));
        }
        if state.left.days > 0 {
            let mut next = state.clone();
            next.left.days -= 1;
            next.store.pass_a_day();
            for index in 0..next.hosts.len() {
                let is_reader = matches!(self.task(state, index), Some(Task::Read(..)));
                let host = &mut next.hosts[index];
                if host.item < Item::MAX && (is_reader || host.stage > 1) {
                    host.days = (host.days + 1).min(MARKER);
                }
            }
            out.push((Step::DayPasses, next));
        }
        out.retain_mut(|(_, next)| {
            next.forget(self);
            next != state
        });
        out
    }

    fn check(&self, state: &State) -> Result<(), String> {
        if let Some(wrong) = state.wrong {
            return Err(wrong.into());
        }
        let [origin, other] = &state.store.images;
        let base = other.ruling().base.map_or(0, |(_, object)| 1 << object);
        for (folder, more) in [(origin, base), (other, 0)] {
            let ruling = folder.ruling();
            let kept = ruling.pinned() | ruling.planned_on();
            let missing = (ruling.snapshots | kept | more) & !folder.data;
            if missing > 0 {
                return Err(format!("what is named is gone: {missing:b} of {ruling:?}"));
            }
        }
        for (folder, acknowledged) in state.store.images.iter().zip(state.acknowledged) {
            if acknowledged & !folder.ruling().set() != 0 {
                return Err(format!(
                    "a commit was acknowledged, and is lost: {:?}",
                    folder.ruling()
                ));
            }
        }
        Ok(())
    }

    fn check_end(&self, state: &State) -> Result<(), String> {
        self.left_over(state)
    }
}
