//! What a host does: the protocol. Whatever it reads of the store it reads in one step, and what it sends then is
//! another one; between the two anything can happen, days included.

use crate::scenario::{Mistake, Scenario, State, Task};
use crate::store::{Answer, DAY, ITEMS, Id, Item, Items, MARKER, Manifest, Request};

/// How often a host begins a task anew before it gives up.
const TRIES: u8 = 2;
const NONE: Item = Item::MAX;

/// What a host does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    /// Reads the store, and decides.
    Think,
    Send(Request),
    /// Looks whether its commit has won.
    Confirm {
        image: u8,
        manifest: Manifest,
        is_decided: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// Which of its tasks.
    pub task: u8,
    pub at: At,
    pub is_dead: bool,
    /// How far in its task, and how often again.
    pub stage: u8,
    pub tries: u8,
    /// What it made, or reads.
    pub item: Item,
    /// The manifest that ruled before that.
    pub since: u8,
    /// Days since it began to read, or put its marker.
    pub days: u8,
}

impl Host {
    pub const NEW: Self = Self {
        task: 0,
        at: At::Think,
        is_dead: false,
        stage: 0,
        tries: 0,
        item: NONE,
        since: 0,
        days: 0,
    };

    /// The next task, or the end.
    fn next_task(&self) -> Self {
        Self { task: self.task + 1, ..Self::NEW }
    }
}

/// A step of a host.
pub struct Turn<'a> {
    pub scenario: &'a Scenario,
    pub state: &'a mut State,
    pub host: usize,
}

impl Turn<'_> {
    fn me(&mut self) -> &mut Host {
        &mut self.state.hosts[self.host]
    }

    fn is(&self, mistake: Mistake) -> bool {
        self.scenario.mistake == Some(mistake)
    }

    fn ruling(&self, image: u8) -> Manifest {
        *self.state.store.images[image as usize].ruling()
    }

    fn done(&mut self) {
        let next = self.me().next_task();
        *self.me() = next;
    }

    /// Goes on to a stage of the task, and reads the store anew.
    fn go_to(&mut self, stage: u8) {
        self.me().stage = stage;
        self.me().at = At::Think;
    }

    fn send(&mut self, request: Request) {
        self.me().at = At::Send(request);
    }

    /// Sends what follows the manifest that rules.
    fn commit(&mut self, image: u8, change: impl FnOnce(&mut Manifest)) {
        let mut manifest = self.ruling(image);
        manifest.ancestors = manifest.set();
        manifest.sequence += 1;
        manifest.id = self.fresh_id();
        change(&mut manifest);
        self.send(Request::Put { image, manifest });
    }

    fn fresh_id(&self) -> Id {
        let used = self.state.used_ids();
        (0..Id::MAX).find(|id| used & 1 << id == 0).unwrap()
    }

    fn fresh(&self, image: u8) -> Item {
        let used = match self.is(Mistake::NamesReused) {
            true => self.state.store.images[image as usize].data,
            false => self.state.used_items(self.scenario, image),
        };
        (0..ITEMS as Item).find(|item| used & 1 << item == 0).expect("more items than there are")
    }

    /// True if a commit may name what was made while `since` ruled: it is not condemned, and has not been.
    fn may_name(&self, image: u8, item: Item, since: u8) -> bool {
        let ruling = self.ruling(image);
        let is_condemned = ruling.condemned[item as usize] > 0;
        let may_have_been = ruling.swept > since;
        (!is_condemned || self.is(Mistake::CondemnedNamedAgain))
            && (!may_have_been || self.is(Mistake::SweptForgotten))
    }

    /// Begins anew, or gives up.
    fn again(&mut self, stage: u8) {
        self.me().tries += 1;
        match self.me().tries < TRIES {
            true => {
                self.me().stage = stage;
                self.think();
            }
            false => self.done(),
        }
    }

    pub fn think(&mut self) {
        self.me().at = At::Think;
        match self.scenario.task(self.state, self.host).unwrap() {
            Task::Snapshot(image) => self.snapshot(image),
            Task::Drop(image) => self.drop(image),
            Task::Forget(image) => self.forget(image),
            Task::Read(image, marker) => self.read(image, marker),
            Task::Collect(image, visits) => self.collect(image, visits),
            Task::Base => self.base(),
            Task::Remove => self.remove(),
            Task::Plan => self.plan(),
            Task::Part => self.part(),
            Task::Join => self.join(),
            Task::GiveUp => self.give_up(),
        }
    }

    /// Goes on with what the store answered.
    pub fn answered(&mut self, request: Request, answer: Answer) {
        let stage = self.me().stage;
        let task = self.scenario.task(self.state, self.host).unwrap();
        match (request, answer) {
            (Request::Put { image, manifest }, _) => {
                if answer == Answer::Done && self.is(Mistake::NumbersReused) {
                    return self.won(image, manifest);
                }
                let is_decided = answer != Answer::Unknown;
                self.me().at = At::Confirm { image, manifest, is_decided };
            }
            (Request::Upload { .. }, Answer::Done) => self.go_to(1),
            // It may land at any time, under a name that nobody else uses.
            (Request::Upload { .. }, _) => {
                self.me().tries += 1;
                if self.me().tries < TRIES { self.go_to(0) } else { self.done() }
            }
            (Request::Mark { .. }, Answer::Done) => {
                self.me().days = 0;
                self.go_to(1);
            }
            (Request::Mark { .. }, _) => self.go_to(2),
            (Request::Delete { .. }, _) if matches!(task, Task::Drop(_)) => self.done(),
            (Request::DeleteAll { image, .. }, _) => {
                self.state.acknowledged[image as usize] = 0;
                self.done();
            }
            (Request::Delete { .. } | Request::DeleteManifest { .. }, _) => self.go_to(stage),
        }
    }

    /// Who has put a manifest has won if it rules, or is an ancestor of the one that does.
    pub fn confirm(&mut self, image: u8, manifest: Manifest, is_decided: bool) {
        let ruling = self.ruling(image);
        let task = self.scenario.task(self.state, self.host).unwrap();
        if ruling.set() & 1 << manifest.id != 0 {
            self.won(image, manifest);
        } else if !is_decided && ruling.sequence < manifest.sequence {
            // The same once more: whichever lands, it is this commit.
            self.me().tries += 1;
            if self.me().tries < TRIES {
                self.send(Request::Put { image, manifest });
            } else if let (Task::Drop(_), true) = (task, self.is(Mistake::UndecidedDeleted)) {
                self.go_to(2);
            } else {
                self.done();
            }
        } else {
            let stage = self.me().stage;
            self.again(stage);
        }
    }

    fn won(&mut self, image: u8, manifest: Manifest) {
        self.state.acknowledged[image as usize] |= 1 << manifest.id;
        let stage = self.me().stage;
        match self.scenario.task(self.state, self.host).unwrap() {
            Task::Collect(..) => self.go_to(0),
            Task::Base | Task::Remove if stage == 0 => {
                self.me().tries = 0;
                self.go_to(1);
            }
            Task::Forget(_) if self.is(Mistake::ForgottenWhole) => self.go_to(2),
            _ => self.done(),
        }
    }

    fn snapshot(&mut self, image: u8) {
        if self.me().stage == 0 {
            let (item, since) = (self.fresh(image), self.ruling(image).sequence);
            (self.me().item, self.me().since) = (item, since);
            return self.send(Request::Upload { image, item, is_part: false });
        }
        let (item, since) = (self.me().item, self.me().since);
        if !self.may_name(image, item, since) {
            return self.again(0);
        }
        self.commit(image, |next| {
            next.snapshots |= 1 << item;
            next.condemned[item as usize] = 0;
        });
    }

    fn drop(&mut self, image: u8) {
        if self.me().stage == 2 {
            let item = self.me().item;
            if self.me().days >= DAY {
                self.send(Request::Delete { image, item });
            }
            return;
        }
        let ruling = self.ruling(image);
        let kept = if self.is(Mistake::ParentDropped) { 0 } else { ruling.planned_on() };
        let free = ruling.snapshots & !kept;
        if free == 0 {
            return self.done();
        }
        let item = free.trailing_zeros() as Item;
        self.me().item = item;
        self.commit(image, |next| {
            next.snapshots &= !(1 << item);
            if next.pinned() & 1 << item == 0 {
                next.condemn(item);
            }
        });
    }

    /// The last manifest stays, and names nothing.
    fn forget(&mut self, image: u8) {
        if self.me().stage == 2 {
            let none = Manifest { id: self.fresh_id(), ..Manifest::default() };
            return self.send(Request::DeleteAll { image, none });
        }
        self.commit(image, |next| {
            let dropped = std::mem::take(&mut next.snapshots);
            let items = (0..ITEMS as Item).filter(|item| dropped & 1 << item != 0);
            items.for_each(|item| next.condemn(item));
        });
    }

    /// Nothing is read after the manifest but an object; whoever may put markers looks again after that.
    fn read(&mut self, image: u8, marker: bool) {
        let (ruling, host) = (self.ruling(image), self.host as u8);
        let (stage, item) = (self.me().stage, self.me().item);
        match stage {
            0 if ruling.snapshots == 0 => self.done(),
            0 => {
                self.me().item = (Items::BITS - 1 - ruling.snapshots.leading_zeros()) as Item;
                match marker {
                    true => self.send(Request::Mark { host, image, sequence: ruling.sequence }),
                    false => self.go_to(2),
                }
            }
            1 if ruling.snapshots & 1 << item == 0 && !self.is(Mistake::MarkerTrusted) => {
                self.done()
            }
            1 => self.go_to(3),
            _ => {
                let is_there = self.state.store.images[image as usize].data & 1 << item != 0;
                let is_listed = ruling.snapshots & 1 << item != 0;
                let days = self.me().days;
                self.state.wrong = match () {
                    () if is_there => None,
                    () if is_listed => Some("a snapshot that is listed cannot be read"),
                    () if self.is(Mistake::MissingIsDamage) => {
                        Some("what was dropped is called damaged")
                    }
                    () if days < DAY => Some("a reader is disturbed within the grace period"),
                    () if stage == 3 && days < MARKER => {
                        Some("a reader is disturbed in spite of its marker")
                    }
                    () => None,
                };
                self.done();
            }
        }
    }

    /// Clears away: one deletion, or one commit, at a visit.
    fn collect(&mut self, image: u8, visits: u8) {
        if self.me().tries >= visits {
            return self.done();
        }
        self.me().tries += 1;
        let ruling = self.ruling(image);
        if let Some(request) = self.to_delete(image, &ruling) {
            return self.send(request);
        }
        // Who is condemned is named by nobody, so a pin of that kind is taken away at once.
        let pins = self.ruling(0).pins;
        let is_pin = |item: &usize| image == 1 && pins[*item] > 0;
        let unpinned = (0..ITEMS).filter(is_pin).find(|item| ruling.condemned[*item] > 0);
        if let Some(pin) = unpinned {
            return self.commit(0, |next| unpin(next, pin as Item));
        }
        let folder = &self.state.store.images[image as usize];
        let is_there = |item: usize| folder.data & 1 << item != 0 || is_pin(&item);
        let parts = match ruling.plan.is_some() && !self.is(Mistake::PartsCondemned) {
            true => folder.parts,
            false => 0,
        };
        let named = ruling.named() | parts;
        let is_unnamed = |item: &usize| is_there(*item) && named & 1 << item == 0;
        let mut unnamed: Vec<usize> = (0..ITEMS).filter(is_unnamed).collect();
        if self.is(Mistake::SlowUploadDeleted) {
            unnamed.retain(is_pin);
        }
        let is_swept = |item: &usize| ruling.condemned[*item] > 0 && !is_there(*item);
        let swept: Vec<usize> = (0..ITEMS).filter(is_swept).collect();
        if unnamed.is_empty() && swept.is_empty() {
            return self.done();
        }
        self.commit(image, |next| {
            unnamed.into_iter().for_each(|item| next.condemn(item as Item));
            for item in swept {
                next.swept = next.swept.max(next.condemned[item]);
                next.condemned[item] = 0;
            }
        });
    }

    /// The first thing that nothing holds back any more.
    fn to_delete(&self, image: u8, ruling: &Manifest) -> Option<Request> {
        let store = &self.state.store;
        let folder = &store.images[image as usize];
        let ahead = if self.is(Mistake::ClockOfHost) { DAY } else { 0 };
        let is_marked = |condemned: u8| {
            let mut markers = store.markers.iter().flatten();
            markers.any(|(of, read, age)| *of == image && *read < condemned && *age < MARKER)
        };
        let is_over = |item: usize, condemned: u8| match self.scenario.mistake {
            Some(Mistake::GraceFromCreation) => folder.ages[item] >= DAY,
            _ => folder.age_of(condemned) + ahead >= DAY,
        };
        let is_doomed = |item: &usize| {
            let condemned = ruling.condemned[*item];
            let is_there = folder.data & 1 << item != 0;
            let is_condemned = condemned > 0 && is_over(*item, condemned) && !is_marked(condemned);
            let is_old = self.is(Mistake::SlowUploadDeleted)
                && ruling.named() & 1 << item == 0
                && folder.ages[*item] >= DAY;
            is_there && (is_condemned || is_old)
        };
        if let Some(item) = (0..ITEMS).find(is_doomed) {
            return Some(Request::Delete { image, item: item as Item });
        }
        let (oldest, _) = folder.manifests.first()?;
        let sequence = oldest.sequence;
        let is_old = sequence < ruling.sequence && folder.age_of(sequence + 1) + ahead >= DAY;
        is_old.then_some(Request::DeleteManifest { image, sequence })
    }

    /// Bases image 1 on a snapshot of image 0: first the pin, then what depends on it.
    fn base(&mut self) {
        let is_pin = (self.me().stage == 0) != self.is(Mistake::PinLate);
        if self.me().stage == 0 {
            let (pin, since) = (self.fresh(1), self.ruling(1).sequence);
            (self.me().item, self.me().since) = (pin, since);
        }
        let (pin, since) = (self.me().item, self.me().since);
        let origin = self.ruling(0);
        if is_pin {
            let object = match self.ruling(1).base {
                Some((mine, object)) if mine == pin => object,
                _ if origin.snapshots == 0 => return self.done(),
                _ => origin.snapshots.trailing_zeros() as Item,
            };
            return self.commit(0, |next| next.pins[pin as usize] = object + 1);
        }
        if !self.may_name(1, pin, since) {
            return self.again(0);
        }
        let object = match origin.pins[pin as usize] {
            0 if self.is(Mistake::PinLate) && origin.snapshots > 0 => {
                origin.snapshots.trailing_zeros() as Item
            }
            0 => return self.done(),
            object => object - 1,
        };
        self.commit(1, |next| next.base = Some((pin, object)));
    }

    /// Image 1 is based on nothing any more: first that, then the pin.
    fn remove(&mut self) {
        let pin = self.me().item;
        if self.me().stage == 1 {
            return match self.ruling(0).pins[pin as usize] {
                0 => self.done(),
                _ => self.commit(0, |next| unpin(next, pin)),
            };
        }
        let Some((pin, _)) = self.ruling(1).base else { return self.done() };
        self.me().item = pin;
        self.commit(1, |next| {
            next.base = None;
            next.condemn(pin);
        });
    }

    /// First the plan is pending, then parts are made: so they are nobody's garbage.
    fn plan(&mut self) {
        let ruling = self.ruling(0);
        let parent = match ruling.snapshots {
            0 => NONE,
            snapshots => snapshots.trailing_zeros() as Item,
        };
        match ruling.plan {
            Some(_) => self.done(),
            None => self.commit(0, |next| next.plan = Some(parent)),
        }
    }

    fn part(&mut self) {
        if self.me().stage > 0 || self.ruling(0).plan.is_none() {
            return self.done();
        }
        let item = self.fresh(0);
        self.me().item = item;
        self.send(Request::Upload { image: 0, item, is_part: true });
    }

    /// Whichever part is there; what comes later is named by nobody.
    fn join(&mut self) {
        let folder = &self.state.store.images[0];
        let parts = folder.parts & folder.data;
        let is_blind = self.is(Mistake::JoinedBlindly) && self.me().item != NONE;
        if !is_blind && (self.ruling(0).plan.is_none() || parts == 0) {
            return self.done();
        }
        if !is_blind {
            self.me().item = parts.trailing_zeros() as Item;
        }
        let item = self.me().item;
        self.commit(0, |next| {
            next.plan = None;
            next.snapshots |= 1 << item;
        });
    }

    fn give_up(&mut self) {
        match self.ruling(0).plan {
            None => self.done(),
            Some(_) => self.commit(0, |next| next.plan = None),
        }
    }
}

/// Takes a pin away, and what only that kept.
fn unpin(manifest: &mut Manifest, pin: Item) {
    let object = std::mem::take(&mut manifest.pins[pin as usize]);
    let kept = manifest.snapshots | manifest.pinned();
    if object > 0 && kept & 1 << (object - 1) == 0 {
        manifest.condemn(object - 1);
    }
}
