//! Objects in memory, as a bucket has them: several hosts, no locks, and all that may become of a request.
//! For tests of what is built on stores.

use super::{Listed, LockGuard, LockKind, Sharing, Store, Upload};
use crate::base::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a host asks of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// To list a folder, or to read an object or its size.
    Read,
    /// To put an object.
    Put,
    /// To remove one.
    Remove,
    /// To wait for a while.
    Pause,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is carried out and answered.
    None,
    /// It is not carried out, and not answered.
    Lost,
    /// It is carried out, and not answered.
    Unanswered,
    /// It is not answered, and carried out some time.
    Late,
    /// It is carried out and answered, and carried out once more some time.
    Twice,
}

/// A host that uses the store.
pub trait Host: Send + Sync {
    /// Called before each request; may wait until it is its turn.
    fn ask(&self, act: Act, name: &str) -> Fault;
}

#[derive(Clone)]
enum Change {
    PutIfAbsent(String, Arc<Vec<u8>>),
    Replace(String, Arc<Vec<u8>>),
    Remove(String),
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Arc<Vec<u8>>, Timestamp)>,
    now: Timestamp,
    late: Vec<Change>,
}

impl State {
    /// False if there is such an object.
    fn carry_out(&mut self, change: Change) -> bool {
        match change {
            Change::PutIfAbsent(name, _) if self.objects.contains_key(&name) => false,
            Change::PutIfAbsent(name, bytes) | Change::Replace(name, bytes) => {
                self.objects.insert(name, (bytes, self.now));
                true
            }
            Change::Remove(name) => {
                self.objects.remove(&name);
                true
            }
        }
    }
}

/// The objects that all hosts see, and their clock, which is at the year 1970 first.
#[derive(Clone, Default)]
pub struct World(Arc<Mutex<State>>);

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        let mut state = self.state();
        state.now = state.now.saturating_add(time).unwrap_or(Timestamp::MAX);
    }

    /// How many requests are on their way.
    pub fn late_requests(&self) -> usize {
        self.state().late.len()
    }

    /// Carries one of them out.
    pub fn land(&self, index: usize) {
        let mut state = self.state();
        if index < state.late.len() {
            let change = state.late.swap_remove(index);
            state.carry_out(change);
        }
    }

    /// The names of all objects.
    pub fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// The bytes of an object.
    pub fn bytes(&self, name: &str) -> Option<Arc<Vec<u8>>> {
        self.state().objects.get(name).map(|(bytes, _)| bytes.clone())
    }
}

/// What one host sees of it.
#[derive(Clone)]
pub struct MemoryStore {
    world: World,
    host: Arc<dyn Host>,
    sharing: Sharing,
}

impl MemoryStore {
    /// The objects of a world, as a host sees them.
    pub fn new(world: World, host: Arc<dyn Host>, sharing: Sharing) -> Self {
        Self { world, host, sharing }
    }

    fn unanswered(name: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("memory:{name}: no answer"))
    }

    fn read<T>(&self, name: &str, read: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        match self.host.ask(Act::Read, name) {
            Fault::Lost | Fault::Unanswered | Fault::Late => Err(Self::unanswered(name)),
            Fault::None | Fault::Twice => read(&self.world.state()),
        }
    }

    fn change(&self, act: Act, name: &str, change: Change) -> Result<()> {
        let fault = self.host.ask(act, name);
        let mut state = self.world.state();
        if matches!(fault, Fault::Late | Fault::Twice) {
            state.late.push(change.clone());
        }
        let is_done = match fault {
            Fault::None | Fault::Twice | Fault::Unanswered => state.carry_out(change),
            Fault::Lost | Fault::Late => false,
        };
        match fault {
            Fault::Lost | Fault::Late | Fault::Unanswered => Err(Self::unanswered(name)),
            _ if is_done => Ok(()),
            _ => Err(Error::new(ErrorKind::AlreadyExists, format!("memory:{name} exists"))),
        }
    }

    fn object(state: &State, name: &str) -> Result<Arc<Vec<u8>>> {
        let missing = || Error::new(ErrorKind::NotFound, format!("memory:{name} does not exist"));
        state.objects.get(name).map(|(bytes, _)| bytes.clone()).ok_or_else(missing)
    }
}

impl Store for MemoryStore {
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let listed = self.list_timed(folder)?;
        Ok(listed.into_iter().map(|object| object.name).collect())
    }

    fn list_timed(&self, folder: &str) -> Result<Vec<Listed>> {
        let above = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        self.read(folder, |state| {
            let mut listed: Vec<Listed> = Vec::new();
            let below = state.objects.range(above.clone()..);
            for (name, (bytes, time)) in below.take_while(|(name, _)| name.starts_with(&above)) {
                let rest = name.get(above.len()..).unwrap_or_default();
                let name = rest.split('/').next().unwrap_or_default().to_owned();
                if listed.last().is_none_or(|last| last.name != name) {
                    listed.push(Listed { name, time: *time, bytes: bytes.len() as u64 });
                }
            }
            Ok(listed)
        })
    }

    fn sharing(&self) -> Result<Sharing> {
        Ok(self.sharing)
    }

    fn size(&self, name: &str) -> Result<u64> {
        self.read(name, |state| Ok(Self::object(state, name)?.len() as u64))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read(name, |state| {
            let bytes = Self::object(state, name)?;
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let range = bytes.get(from..).and_then(|rest| rest.get(..buffer.len()));
            let short = || Error::corrupt(format!("memory:{name} ends before byte {offset}"));
            buffer.copy_from_slice(range.ok_or_else(short)?);
            Ok(())
        })
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        let (store, name) = (self.clone(), name.to_owned());
        Ok(Box::new(MemoryUpload { store, name, bytes: Vec::new() }))
    }

    fn pause(&self, _attempt: u32) {
        self.host.ask(Act::Pause, "");
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.change(Act::Put, name, Change::Replace(name.into(), Arc::new(bytes.to_vec())))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.change(Act::Remove, name, Change::Remove(name.into()))
    }

    fn sync_dir(&self, _folder: &str) -> Result<()> {
        Ok(())
    }

    fn create_folder(&self, _folder: &str) -> Result<()> {
        Ok(())
    }

    fn remove_folder(&self, folder: &str) -> Result<bool> {
        Ok(self.list(folder)?.is_empty())
    }

    fn lock(&self, _name: &str, _kind: LockKind) -> Result<Option<LockGuard>> {
        // There are none: nobody is kept out.
        Ok(Some(Box::new(())))
    }

    fn hold(&self, lock: &str, _objects: &[&str]) -> Result<Option<LockGuard>> {
        self.lock(lock, LockKind::Shared)
    }

    fn is_held(&self, _lock: &str, _object: Option<&str>) -> Result<bool> {
        Ok(false)
    }

    fn location(&self, name: &str) -> String {
        format!("memory:{name}")
    }
}

struct MemoryUpload {
    store: MemoryStore,
    name: String,
    bytes: Vec<u8>,
}

impl Upload for MemoryUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn publish(self: Box<Self>) -> Result<()> {
        let change = Change::PutIfAbsent(self.name.clone(), Arc::new(self.bytes));
        self.store.change(Act::Put, &self.name, change)
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        let change = Change::Replace(self.name.clone(), Arc::new(self.bytes));
        self.store.change(Act::Put, &self.name, change)
    }
}
