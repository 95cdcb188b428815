//! A store of which one request goes wrong. Requests are counted over all that a host asks, of the repository and
//! of the store in which it keeps what it knows itself.

use crate::turns::Alone;
use imgsnap::store::{
    Act, Fault, Host, Listed, LockGuard, LockKind, MemoryStore, Sharing, Store, Upload, World,
};
use imgsnap::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What goes wrong, from a request on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    Nothing,
    Once(Fault),
    /// It and the two that follow are lost.
    Outage,
    /// That becomes of it, and all that follow are lost: the host dies, or its network.
    Gone(Fault),
    /// It is answered: with an error that says that nothing was done.
    Refused,
    /// A bit of what is read is another one.
    Flipped,
    /// The object that is read ends in its middle, from then on.
    Short,
}

/// One thing that a host asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub act: Act,
    pub name: String,
    /// Bytes are read, and not a listing or a length.
    pub is_bytes: bool,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    is_refused: bool,
    is_flipped: bool,
    short: Option<String>,
}

/// Which request goes wrong, and how.
pub struct Plan {
    at: usize,
    wrong: Wrong,
    seen: Mutex<Seen>,
}

impl Plan {
    pub fn new(at: usize, wrong: Wrong) -> Arc<Self> {
        Arc::new(Self { at, wrong, seen: Mutex::default() })
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen().requests.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// The answer, unless that is a refusal.
    fn answer<T>(&self, what: &str, name: &str, code: i32, answer: Result<T>) -> Result<T> {
        if !std::mem::take(&mut self.seen().is_refused) {
            return answer;
        }
        let refusal = std::io::Error::from_raw_os_error(code);
        Err(Error::os(what, format!("memory:{name}"), refusal))
    }
}

impl Host for Plan {
    fn ask(&self, act: Act, name: &str) -> Fault {
        if act == Act::Pause {
            return Fault::None;
        }
        let mut seen = self.seen();
        let number = seen.requests.len();
        seen.requests.push(Request { act, name: name.into(), is_bytes: false });
        let (is_it, is_after) = (number == self.at, number > self.at);
        match self.wrong {
            Wrong::Once(fault) if is_it => return fault,
            Wrong::Outage if is_it || is_after && number < self.at + 3 => return Fault::Lost,
            Wrong::Gone(fault) if is_it => return fault,
            Wrong::Gone(_) if is_after => return Fault::Lost,
            Wrong::Refused if is_it => {
                seen.is_refused = true;
                return Fault::Lost;
            }
            Wrong::Flipped if is_it => seen.is_flipped = true,
            Wrong::Short if is_it => seen.short = Some(name.into()),
            _ => {}
        }
        Fault::None
    }
}

/// A store as one host sees it, for which a plan is made.
pub struct Faulty {
    pub world: World,
    inner: MemoryStore,
    plan: Arc<Plan>,
}

impl Faulty {
    pub fn new(world: World, plan: Arc<Plan>) -> Arc<Self> {
        let inner = MemoryStore::new(world.clone(), plan.clone(), Sharing::SHARED);
        Arc::new(Self { world, inner, plan })
    }

    /// Where an object ends that is cut off.
    fn end_of(&self, name: &str) -> Option<u64> {
        let is_short = self.plan.seen().short.as_deref() == Some(name);
        self.world.bytes(name).filter(|_| is_short).map(|bytes| bytes.len() as u64 / 2)
    }
}

impl Store for Faulty {
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.plan.answer("list", folder, libc::EIO, self.inner.list(folder))
    }

    fn list_timed(&self, folder: &str) -> Result<Vec<Listed>> {
        self.plan.answer("list", folder, libc::EIO, self.inner.list_timed(folder))
    }

    fn sharing(&self) -> Result<Sharing> {
        self.inner.sharing()
    }

    fn size(&self, name: &str) -> Result<u64> {
        let size = self.plan.answer("look at", name, libc::EIO, self.inner.size(name))?;
        Ok(self.end_of(name).unwrap_or(size))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read = self.inner.read_at(name, offset, buffer);
        if let Some(request) = self.plan.seen().requests.last_mut() {
            request.is_bytes = true;
        }
        self.plan.answer("read", name, libc::EIO, read)?;
        if self.end_of(name).is_some_and(|end| offset + buffer.len() as u64 > end) {
            return Err(Error::corrupt(format!("memory:{name} ends before byte {offset}")));
        }
        let mut seen = self.plan.seen();
        if !buffer.is_empty() && std::mem::take(&mut seen.is_flipped) {
            let at = self.plan.at.wrapping_mul(7919) % buffer.len();
            buffer[at] ^= 1 << (self.plan.at % 7);
        }
        Ok(())
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        let (inner, plan) = (self.inner.create(name)?, self.plan.clone());
        Ok(Box::new(FaultyUpload { inner, plan, name: name.into() }))
    }

    fn pause(&self, _attempt: u32) {}

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.plan.answer("write", name, libc::ENOSPC, self.inner.replace(name, bytes))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.plan.answer("remove", name, libc::EACCES, self.inner.remove(name))
    }

    fn sync_dir(&self, folder: &str) -> Result<()> {
        self.inner.sync_dir(folder)
    }

    fn create_folder(&self, folder: &str) -> Result<()> {
        self.inner.create_folder(folder)
    }

    fn remove_folder(&self, folder: &str) -> Result<bool> {
        self.inner.remove_folder(folder)
    }

    fn lock(&self, name: &str, kind: LockKind) -> Result<Option<LockGuard>> {
        self.inner.lock(name, kind)
    }

    fn hold(&self, lock: &str, objects: &[&str]) -> Result<Option<LockGuard>> {
        self.inner.hold(lock, objects)
    }

    fn is_held(&self, lock: &str, object: Option<&str>) -> Result<bool> {
        self.inner.is_held(lock, object)
    }

    fn location(&self, name: &str) -> String {
        self.inner.location(name)
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    plan: Arc<Plan>,
    name: String,
}

impl Upload for FaultyUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.inner.write(bytes)
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.plan.answer("write", &self.name, libc::ENOSPC, self.inner.publish())
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        self.plan.answer("write", &self.name, libc::ENOSPC, self.inner.publish_over())
    }
}

/// The objects of a world, with their times: it is made anew for each fault.
pub struct Objects {
    /// Seconds since the beginning, and what was put then.
    objects: Vec<(u64, String, Arc<Vec<u8>>)>,
    now: u64,
}

impl Objects {
    pub fn of(world: &World) -> Self {
        let store = MemoryStore::new(world.clone(), Arc::new(Alone), Sharing::SHARED);
        let seconds = |folder: &str, name: &str| {
            let listed = store.list_timed(folder).unwrap();
            let object = listed.into_iter().find(|object| object.name == name).unwrap();
            object.time.as_second() as u64
        };
        let time_of = |name: &str| match name.rsplit_once('/') {
            Some((folder, file)) => seconds(folder, file),
            None => seconds("", name),
        };
        let of = |name: String| {
            let bytes = world.bytes(&name).unwrap();
            (time_of(&name), name, bytes)
        };
        let mut objects: Vec<_> = world.names().into_iter().map(of).collect();
        objects.sort_by_key(|(time, ..)| *time);
        store.replace("now", b"").unwrap();
        let now = time_of("now");
        store.remove("now").unwrap();
        Self { objects, now }
    }

    pub fn world(&self) -> World {
        let (world, mut passed) = (World::default(), 0);
        let store = MemoryStore::new(world.clone(), Arc::new(Alone), Sharing::SHARED);
        for (time, name, bytes) in &self.objects {
            world.pass(Duration::from_secs(time - passed));
            passed = *time;
            store.replace(name, bytes).unwrap();
        }
        world.pass(Duration::from_secs(self.now - passed));
        world
    }
}
