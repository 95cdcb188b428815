//! Objects in memory that are read once, front to back for the most part: what will be read next is fetched
//! while what was read is worked on, several requests at the same time.
//!
//! ```text
//! read ->  unit that is here, or on its way      a unit: some bytes of an object, one request
//!       -> else: a whole small object, a chunk of a sequence and those behind it, or these bytes alone
//! ```

use crate::base::error::Result;
use crate::store::Store;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What is fetched at once of a sequence.
const CHUNK_BYTES: u64 = 4 << 20;
/// So many are on their way beside the one that is read.
const CHUNKS_AHEAD: u64 = 6;
/// An object that is not longer is fetched whole.
pub(super) const SMALL_BYTES: u64 = 256 << 10;
/// What is kept in memory at most.
const KEPT_BYTES: u64 = 48 << 20;
/// What has been fetched, or is on its way, and nobody has read yet: of all sequences together.
const UNREAD_BYTES: u64 = 32 << 20;
/// Requests that are made at the same time: the ends of a thousand layers take eleven round trips.
const THREADS: usize = 192;
/// A read within so many bytes behind the last one goes on with it.
const NEAR_BYTES: u64 = 1 << 20;

/// Bytes of objects that are here, or on their way.
pub(super) struct Ahead(Arc<Shared>);

struct Shared {
    inner: Arc<dyn Store>,
    state: Mutex<State>,
    changed: Condvar,
    work: Condvar,
}

#[derive(Default)]
struct State {
    objects: HashMap<String, Object>,
    /// Units, those that were used longest ago first.
    order: VecDeque<(String, u64)>,
    kept_bytes: u64,
    unread_bytes: u64,
    wanted: VecDeque<(String, u64, u64)>,
    threads: usize,
    idle: usize,
    is_over: bool,
}

#[derive(Default)]
struct Object {
    /// By their first byte.
    units: BTreeMap<u64, Unit>,
    /// Where the last read ended, and how many went on where one before ended.
    last_end: u64,
    run: u32,
    bytes: Option<u64>,
}

struct Unit {
    length: u64,
    /// Somebody has read of it.
    is_read: bool,
    /// None while it is on its way.
    bytes: Option<Arc<Vec<u8>>>,
}

/// So many units that begin before a byte are looked at: small ones may lie within a larger one.
const NEAREST: usize = 16;

impl Object {
    /// The unit that a byte is in.
    fn unit_at(&self, offset: u64) -> Option<(u64, &Unit)> {
        let before = self.units.range(..=offset).rev().take(NEAREST);
        let mut before = before.map(|(first, unit)| (*first, unit));
        before.find(|(first, unit)| offset < first + unit.length)
    }

    /// The unit that a range begins in, if it holds all of it.
    fn unit_over(&self, offset: u64, length: u64) -> Option<(u64, &Unit)> {
        self.unit_at(offset).filter(|(first, unit)| offset + length <= first + unit.length)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches a unit that was marked as on its way.
    fn fetch(&self, name: &str, offset: u64, length: u64) -> Result<Arc<Vec<u8>>> {
        let mut bytes = vec![0; length as usize];
        let fetched = self.inner.read_at(name, offset, &mut bytes).map(|()| Arc::new(bytes));
        let mut state = self.lock();
        let state = &mut *state;
        let Some(object) = state.objects.get_mut(name) else { return fetched };
        match &fetched {
            Ok(bytes) => {
                let unit = object.units.get_mut(&offset);
                // It may have been forgotten, and be wanted again.
                if let Some(unit) = unit.filter(|u| u.bytes.is_none() && u.length == length) {
                    unit.bytes = Some(bytes.clone());
                    state.kept_bytes += length;
                    state.order.push_back((name.to_owned(), offset));
                }
            }
            // Whoever waits for it asks himself, and is told.
            Err(_) => {
                if let Some(unit) = object.units.remove(&offset) {
                    state.count_out(&unit);
                }
            }
        }
        state.forget_oldest();
        self.changed.notify_all();
        fetched
    }
}

impl State {
    /// What was read goes before what was not, and the oldest first.
    fn forget_oldest(&mut self) {
        while self.kept_bytes > KEPT_BYTES {
            let is_read = |(name, offset): &(String, u64)| {
                let object = self.objects.get(name);
                object.and_then(|o| o.units.get(offset)).is_none_or(|unit| unit.is_read)
            };
            let index = self.order.iter().position(is_read).unwrap_or(0);
            let Some((name, offset)) = self.order.remove(index) else { return };
            let unit = self.objects.get_mut(&name).and_then(|object| object.units.remove(&offset));
            if let Some(unit) = unit {
                self.count_out(&unit);
            }
        }
    }

    /// Of a unit that goes.
    fn count_out(&mut self, unit: &Unit) {
        if unit.bytes.is_some() {
            self.kept_bytes = self.kept_bytes.saturating_sub(unit.length);
        }
        if !unit.is_read {
            self.unread_bytes = self.unread_bytes.saturating_sub(unit.length);
        }
    }

    /// Notes that the unit that a byte is in is read.
    fn touch(&mut self, name: &str, offset: u64) {
        let Some(object) = self.objects.get_mut(name) else { return };
        let Some((first, _)) = object.unit_at(offset) else { return };
        if let Some(unit) = object.units.get_mut(&first).filter(|unit| !unit.is_read) {
            unit.is_read = true;
            self.unread_bytes = self.unread_bytes.saturating_sub(unit.length);
        }
    }

    /// Marks a unit as on its way; false if these bytes are already.
    fn mark(&mut self, name: &str, offset: u64, length: u64) -> bool {
        let object = self.objects.entry(name.to_owned()).or_default();
        if object.unit_over(offset, length).is_some() {
            return false;
        }
        // A shorter one that is here gives way; whoever waits for one that is on its way finds it.
        match object.units.get(&offset).map(|unit| unit.bytes.is_some()) {
            Some(false) => return false,
            Some(true) => {
                if let Some(unit) = object.units.remove(&offset) {
                    self.count_out(&unit);
                }
                self.order.retain(|(other, at)| (other.as_str(), *at) != (name, offset));
            }
            None => {}
        }
        let object = self.objects.entry(name.to_owned()).or_default();
        object.units.insert(offset, Unit { length, is_read: false, bytes: None });
        self.unread_bytes += length;
        true
    }
}

impl Ahead {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        let (state, changed, work) = Default::default();
        Self(Arc::new(Shared { inner, state, changed, work }))
    }

    /// Fills a buffer with bytes of an object that is `object_bytes` long.
    pub fn read(
        &self,
        name: &str,
        object_bytes: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let length = buffer.len() as u64;
        if length == 0 || offset.saturating_add(length) > object_bytes {
            return self.0.inner.read_at(name, offset, buffer);
        }
        let mut state = self.0.lock();
        let object = state.objects.entry(name.to_owned()).or_default();
        object.bytes = Some(object_bytes);
        let is_near = (object.last_end..=object.last_end + NEAR_BYTES).contains(&offset);
        object.run = if is_near && object.last_end > 0 { object.run.saturating_add(1) } else { 0 };
        object.last_end = offset + length;
        let is_sequence = object.run >= 2;
        let is_small = object_bytes <= SMALL_BYTES;
        if is_sequence && !is_small {
            // Behind what is read now.
            let first = offset / CHUNK_BYTES;
            for chunk in first..=first + CHUNKS_AHEAD {
                let at = chunk * CHUNK_BYTES;
                // The first one is read now, whatever others have fetched.
                let has_room = chunk == first || state.unread_bytes < UNREAD_BYTES;
                if at < object_bytes && has_room {
                    self.want(&mut state, name, at, CHUNK_BYTES.min(object_bytes - at));
                }
            }
        }
        let (mut offset, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let left = rest.len() as u64;
            state.touch(name, offset);
            let object = state.objects.entry(name.to_owned()).or_default();
            match object.unit_at(offset) {
                Some((first, Unit { bytes: Some(bytes), .. })) => {
                    let bytes = bytes.clone();
                    let found = bytes.get((offset - first) as usize..).unwrap_or_default();
                    let count = found.len().min(rest.len());
                    let (now, later) = rest.split_at_mut(count);
                    drop(state);
                    now.copy_from_slice(found.get(..count).unwrap_or_default());
                    (offset, rest) = (offset + count as u64, later);
                    state = self.0.lock();
                }
                Some(_) => {
                    state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                // Nobody has asked for it.
                None => {
                    let (at, length) = match is_small {
                        true => (0, object_bytes),
                        false => (offset, left),
                    };
                    let is_marked = is_small && state.mark(name, at, length);
                    drop(state);
                    if !is_marked {
                        return self.0.inner.read_at(name, offset, rest);
                    }
                    self.0.fetch(name, at, length)?;
                    state = self.0.lock();
                }
            }
        }
        Ok(())
    }

    /// The same of what is read here and there: nothing behind it is fetched.
    pub fn read_scattered(
        &self,
        name: &str,
        object_bytes: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let length = buffer.len() as u64;
        let mut state = self.0.lock();
        let object = state.objects.entry(name.to_owned()).or_default();
        let is_here = object.unit_over(offset, length).is_some();
        let before = (object.last_end, object.run);
        drop(state);
        if !is_here && object_bytes > SMALL_BYTES {
            return self.0.inner.read_at(name, offset, buffer);
        }
        let read = self.read(name, object_bytes, offset, buffer);
        state = self.0.lock();
        let object = state.objects.entry(name.to_owned()).or_default();
        (object.last_end, object.run) = before;
        drop(state);
        read
    }

    /// Bytes of an object that will be read soon.
    pub fn prefetch(&self, name: &str, offset: u64, length: u64) {
        if length > 0 {
            self.want(&mut self.0.lock(), name, offset, length);
        }
    }

    /// Lets go of all that is here.
    pub fn forget_all(&self) {
        let names: Vec<String> = self.0.lock().objects.keys().cloned().collect();
        names.iter().for_each(|name| self.forget(name));
    }

    /// Lets go of what is here of an object.
    pub fn forget(&self, name: &str) {
        let mut state = self.0.lock();
        let Some(object) = state.objects.remove(name) else { return };
        object.units.values().for_each(|unit| state.count_out(unit));
        state.order.retain(|(other, _)| other != name);
        self.0.changed.notify_all();
    }

    /// Has a unit fetched, unless these bytes are here, or on their way.
    fn want(&self, state: &mut State, name: &str, offset: u64, length: u64) {
        if !state.mark(name, offset, length) {
            return;
        }
        state.wanted.push_back((name.to_owned(), offset, length));
        if state.idle < state.wanted.len() && state.threads < THREADS {
            let shared = self.0.clone();
            let started =
                std::thread::Builder::new().stack_size(256 << 10).spawn(move || work(&shared));
            match started {
                Ok(_) => state.threads += 1,
                // With no thread at all nobody would ever fetch it.
                Err(_) if state.threads == 0 => {
                    state.wanted.pop_back();
                    let object = state.objects.get_mut(name);
                    if let Some(unit) = object.and_then(|object| object.units.remove(&offset)) {
                        state.count_out(&unit);
                    }
                }
                Err(_) => {}
            }
        }
        self.0.work.notify_one();
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_over = true;
        state.wanted.clear();
        self.0.work.notify_all();
    }
}

/// Fetches what is wanted until nobody is there any more.
fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if state.is_over {
            return;
        }
        match state.wanted.pop_front() {
            Some((name, offset, length)) => {
                drop(state);
                // Whoever needs it is told.
                drop(shared.fetch(&name, offset, length));
                state = shared.lock();
            }
            None => {
                state.idle += 1;
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}
