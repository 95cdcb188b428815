//! File systems that stand still at the point in time: in the machine, by its guest agent, or mounted here
//! from the image.
//!
//! # Why nothing stays frozen, or stopped
//!
//! For each thing there is a process of its own (a guard), which is armed *before* the thing is done and
//! disarmed *after* it was undone. So whenever something is frozen, its guard is armed; and an armed guard
//! undoes at its limit, and when we are gone. Case by case:
//!
//! - **We are killed before the freeze is asked for**: nothing is frozen. The guard asks for a thaw all the
//!   same: if somebody else froze in this very moment, that is undone too. Before, it is checked that
//!   nothing is frozen.
//! - **In the middle of FIFREEZE**, which waits for the device as long as it has to and cannot be
//!   interrupted: a process that is killed there keeps its descriptors until the request has ended. So the
//!   guard sees our end after it, and what it thaws then is frozen.
//! - **In the middle of guest-fsfreeze-freeze**: the agent does one command after the other, so it does the
//!   guard's thaw after our freeze. Half a line of ours is ended by the guard's first byte.
//! - **In the middle of `stop`**: the same holds for QEMU's monitor. The guard stays until it has the answer,
//!   since QEMU forgets what a client has asked that hung up.
//! - **After the thaw, before the guard is disarmed**: it thaws what is not frozen: the kernel says so, the
//!   agent answers 0, and `cont` does nothing to a machine that runs.
//! - **The limit passes while FIFREEZE goes on**: nothing can stop it, and writers wait until it is done.
//!   The guard's thaw waits in the kernel, or is tried every 50 ms, so the file system is thawed as soon as
//!   it is frozen. Its guard goes on with that for as long as we live, whatever the limit: were it to end
//!   before the request does, and we be killed then, nobody would thaw. The other guards wait for nobody.
//! - **The limit passes between freeze and thaw**: the guard undoes, and says so first. We thaw again, which
//!   fails, or not; the outcome is not frozen in either case.
//! - **The limit passes while we are stopped (SIGSTOP) before the freeze**: the guard has nothing to undo
//!   yet. It tries a thaw until we tell it that there is nothing, or are gone.
//! - **A guard is killed**: we see it before each freeze, which is not begun then, and at the end, which
//!   says so. What is frozen we thaw, as always.
//! - **We are told to stop, or fail**: `Window` thaws when it is dropped.
//! - **We and the guard are killed**: then it stays, and only another process could have helped.

use super::agent::Agent;
use super::guard::{Guard, GuardState, Undo};
use super::guest_agent::GuestAgent;
use super::mount_table::MountTable;
use super::mounted::MountedFileSystem;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::base::uri::Shown;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long file systems may be frozen, unless something else is said.
pub const LIMIT: Duration = Duration::from_secs(10);

/// What is to be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freeze {
    /// All file systems in the machine, by its guest agent: its socket, if it is named.
    Agent(Option<PathBuf>),
    /// What is mounted there.
    Mount(PathBuf),
}

impl Freeze {
    /// Reads "agent", "agent:SOCKET", or a mount point ("./agent" for a folder of that name).
    ///
    /// # Errors
    /// `InvalidInput` if nothing is named.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let path = |bytes: &[u8]| match bytes {
            [] => {
                let what = format!("invalid freeze target \"{}\"", Path::new(text).shown());
                let hint = "use a mount point, agent or agent:SOCKET";
                Err(Error::new(ErrorKind::InvalidInput, what).hint(hint))
            }
            bytes => Ok(PathBuf::from(OsStr::from_bytes(bytes))),
        };
        match text.as_bytes() {
            b"agent" => Ok(Self::Agent(None)),
            bytes => match bytes.strip_prefix(b"agent:") {
                Some(socket) => Ok(Self::Agent(Some(path(socket)?))),
                None => Ok(Self::Mount(path(bytes)?)),
            },
        }
    }
}

/// What became of the freezes.
#[derive(Debug)]
pub struct Outcome {
    /// Something was to be frozen, and every freeze still stood after the point in time.
    pub frozen: bool,
    /// Why not, if something was to be frozen.
    pub why_not: Option<Error>,
    /// What may still be frozen.
    pub stuck: Option<Error>,
    /// What became of the guard.
    pub guard: GuardState,
}

/// Something that can be frozen.
enum Thing {
    Agent(Box<dyn GuestAgent>),
    Mount(MountedFileSystem),
}

struct Item {
    thing: Thing,
    is_frozen: bool,
    /// It was to be frozen, and is not.
    why_not: Option<Error>,
}

/// A time in which file systems are frozen and the machine may be stopped. Dropped, it undoes both.
pub struct Window {
    /// In the order in which they are frozen. The guard has them in the same order, and then the machine.
    items: Vec<Item>,
    guard: Option<Guard>,
    has_machine: bool,
    limit: Duration,
}

impl Window {
    /// Makes everything ready, and freezes nothing. `own` is who freezes the machine, if that is no socket
    /// ([`Freeze::Agent`] without one). `machine` is a descriptor of the connection to the
    /// monitor of a machine that may be stopped. Everything is undone when it lasts longer than `limit`.
    /// What stands in `forbidden` is written to meanwhile, so it may not lie on what is frozen: repository,
    /// state, scratch files, clones and images. Neither may what standard error goes to.
    ///
    /// Without freezes and machine there is nothing to guard, and no process is started.
    ///
    /// # Errors
    /// `InvalidInput` for an agent without a socket ([`find_agent`](super::find_agent)), for what is no mount
    /// point, named twice, or forbidden; `NotFound`; `Unavailable` if an agent does not answer; `Busy` if it
    /// has frozen; `Io` if no guard can be started.
    pub fn open(
        freezes: &[Freeze],
        own: Option<Box<dyn GuestAgent>>,
        machine: Option<OwnedFd>,
        limit: Duration,
        forbidden: &[PathBuf],
        context: &Context,
    ) -> Result<Self> {
        let mut things = Vec::new();
        // First what takes longest.
        let is_meant = own.is_some() && freezes.contains(&Freeze::Agent(None));
        things.extend(own.filter(|_| is_meant).map(Thing::Agent));
        for socket in agents(freezes, is_meant)? {
            let mut agent = Agent::connect(&socket)?;
            if agent.is_frozen()? {
                return Err(agent.already_frozen());
            }
            things.push(Thing::Agent(Box::new(agent)));
        }
        things.extend(mounts(freezes, forbidden)?.into_iter().map(Thing::Mount));
        let failed = |e| Error::io("cannot duplicate a descriptor", e);
        let mut undo = Vec::new();
        for thing in &things {
            undo.push(match thing {
                Thing::Agent(agent) => agent.undo()?,
                Thing::Mount(mount) => {
                    Undo::ThawMount(mount.file().try_clone_to_owned().map_err(failed)?)
                }
            });
        }
        let has_machine = machine.is_some();
        undo.extend(machine.map(Undo::Continue));
        let guard = match undo.is_empty() {
            true => None,
            false => Some(Guard::start(limit, undo, context)?),
        };
        let item = |thing| Item { thing, is_frozen: false, why_not: None };
        Ok(Self { items: things.into_iter().map(item).collect(), guard, has_machine, limit })
    }

    /// Freezes everything, one after the other.
    ///
    /// # Errors
    /// Whatever keeps something from being frozen: then all is thawed again. `Busy` if it takes longer than
    /// the limit.
    pub fn freeze(&mut self, context: &Context) -> Result<()> {
        let outcome = self.freeze_all(context);
        if outcome.is_err() {
            // What may be frozen still is said with why it was thawed.
            let stuck = self.undo_all();
            if let (Err(error), Some(stuck)) = (&outcome, stuck) {
                let what = format!("{}; {}", error.without_advice(), stuck.without_advice());
                let error = Error::new(error.kind(), what);
                return Err(match stuck.advice() {
                    Some(advice) => error.hint(advice.clone()),
                    None => error,
                });
            }
        }
        outcome
    }

    fn freeze_all(&mut self, context: &Context) -> Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) };
        for (index, item) in self.items.iter_mut().enumerate() {
            context.check()?;
            guard.arm(index).map_err(|e| e.at(item.thing.name()))?;
            item.freeze(self.limit).inspect_err(|_| {
                if !item.is_frozen {
                    guard.disarm(index);
                }
            })?;
            if guard.state() != GuardState::Waiting {
                return Err(guard.failed().at(item.thing.name()));
            }
        }
        Ok(())
    }

    /// The machine is about to be stopped.
    ///
    /// # Errors
    /// `Unavailable` if nobody would let it go on when we cannot: then it must not be stopped.
    pub fn before_stop(&self) -> Result<()> {
        match &self.guard {
            Some(guard) if self.has_machine => guard.arm(self.items.len()),
            _ => Ok(()),
        }
    }

    /// The machine goes on.
    pub fn after_cont(&self) {
        if let Some(guard) = self.guard.as_ref().filter(|_| self.has_machine) {
            guard.disarm(self.items.len());
        }
    }

    /// How the guard is. If it has acted, the machine may have gone on in the middle of the point in time.
    pub fn guard(&self) -> GuardState {
        self.guard.as_ref().map_or(GuardState::Waiting, Guard::state)
    }

    /// Thaws everything after the point in time, and ends the guard.
    pub fn thaw(mut self) -> Outcome {
        let state = self.guard();
        let stuck = self.undo_all();
        let guard = self.guard.take().map_or(GuardState::Waiting, Guard::end);
        let mut why_not = self.items.iter_mut().find_map(|item| item.why_not.take());
        if !self.items.is_empty() && guard == GuardState::Acted {
            let seconds = self.limit.as_secs_f32();
            let when = if state == guard { "before" } else { "about when" };
            let what =
                format!("the freeze was ended after {seconds} s, {when} the snapshot was ready");
            why_not = Some(Error::new(ErrorKind::Busy, what).hint(message![Action::Retry]));
        }
        Outcome { frozen: !self.items.is_empty() && why_not.is_none(), why_not, stuck, guard }
    }

    /// Thaws what is frozen; the last first, since it may lie on one before it. What may still be frozen.
    fn undo_all(&mut self) -> Option<Error> {
        let guard = self.guard.as_ref();
        let has_acted = guard.is_some_and(|guard| guard.state() == GuardState::Acted);
        let mut stuck = None;
        for (index, item) in self.items.iter_mut().enumerate().rev() {
            if !item.is_frozen {
                continue;
            }
            match item.thaw(has_acted) {
                Ok(()) => item.is_frozen = false,
                Err(error) => stuck = Some(error),
            }
            if let Some(guard) = guard.filter(|_| !item.is_frozen) {
                guard.disarm(index);
            }
        }
        stuck
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.undo_all();
    }
}

impl Thing {
    fn name(&self) -> String {
        match self {
            Self::Agent(agent) => agent.name().to_owned(),
            Self::Mount(mount) => mount.place().shown().into_owned(),
        }
    }

    /// True if it was frozen until now.
    fn thaw(&mut self, has_guard_acted: bool) -> Result<bool> {
        match self {
            Self::Mount(mount) => mount.thaw(),
            Self::Agent(agent) => agent.thaw(has_guard_acted).map_err(|e| {
                let what = format!("{}: the file systems may still be frozen", e.without_advice());
                Error::new(e.kind(), what).hint("thaw them in the machine, or restart it")
            }),
        }
    }
}

impl Item {
    /// Freezes it. On an error it is frozen if `is_frozen` says so, or may be.
    fn freeze(&mut self, limit: Duration) -> Result<()> {
        match &mut self.thing {
            Thing::Mount(mount) => mount.freeze()?,
            Thing::Agent(agent) => match agent.freeze(limit) {
                Ok(0) => {
                    let what = format!("{}: no file system could be frozen", agent.name());
                    self.why_not = Some(Error::new(ErrorKind::Unsupported, what));
                }
                Ok(_) => {}
                Err(error) => {
                    self.is_frozen = match error.kind() {
                        ErrorKind::Busy => false,
                        // It may still do it.
                        ErrorKind::Unavailable => true,
                        _ => agent.is_frozen().unwrap_or(true),
                    };
                    return Err(error);
                }
            },
        }
        self.is_frozen = true;
        Ok(())
    }

    /// Thaws it, and notes if it was not frozen any more.
    fn thaw(&mut self, has_guard_acted: bool) -> Result<()> {
        let (stood, name) = (self.thing.thaw(has_guard_acted)?, self.thing.name());
        if !stood {
            let what = format!("{name}: it was thawed before the snapshot was ready");
            let error = Error::new(ErrorKind::Busy, what).hint(message![Action::Retry]);
            self.why_not.get_or_insert(error);
        }
        Ok(())
    }
}

/// The sockets of the agents, each once. `has_own`: who has no socket is known.
fn agents(freezes: &[Freeze], has_own: bool) -> Result<Vec<PathBuf>> {
    let mut sockets = Vec::new();
    for freeze in freezes {
        let socket = match freeze {
            Freeze::Mount(_) => continue,
            Freeze::Agent(None) if has_own => continue,
            Freeze::Agent(socket) => socket.clone(),
        };
        let Some(socket) = socket else {
            let what = "the socket of the guest agent is not known";
            let hint = "give it as agent:SOCKET";
            return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
        };
        if sockets.contains(&socket) {
            return Err(twice(&socket, &socket));
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

/// The file systems, in the order in which they can be frozen: one that lies on another one before it.
fn mounts(freezes: &[Freeze], forbidden: &[PathBuf]) -> Result<Vec<MountedFileSystem>> {
    let mut left: Vec<MountedFileSystem> = Vec::new();
    for freeze in freezes {
        let Freeze::Mount(place) = freeze else { continue };
        let mount = MountedFileSystem::open(place)?;
        if let Some(same) = left.iter().find(|other| other.is_same(&mount)) {
            return Err(twice(same.place(), place));
        }
        left.push(mount);
    }
    if left.is_empty() {
        return Ok(left);
    }
    let table = MountTable::read();
    let stderr = (Path::new("/proc/self/fd/2"), "what standard error is written to".to_owned());
    let named = forbidden.iter().map(|path| (path.as_path(), path.shown().into_owned()));
    for (path, what) in named.chain([stderr]) {
        let reached = table.reached(path);
        left.iter().try_for_each(|mount| mount.refuse_if_reached(&reached, &what))?;
    }
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let is_on_top = |mount: &MountedFileSystem| !left.iter().any(|other| other.lies_on(mount));
        let next = left.iter().position(is_on_top).unwrap_or_default();
        ordered.push(left.remove(next));
    }
    Ok(ordered)
}

fn twice(first: &Path, second: &Path) -> Error {
    let what = match first == second {
        true => format!("{} is given twice", first.shown()),
        false => format!("{} and {} are the same file system", first.shown(), second.shown()),
    };
    Error::new(ErrorKind::InvalidInput, what).hint("give it only once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_frozen_is_read() {
        let parsed = |text: &str| Freeze::parse(OsStr::new(text));
        assert_eq!(parsed("agent").unwrap(), Freeze::Agent(None));
        assert_eq!(parsed("agent:/a b").unwrap(), Freeze::Agent(Some("/a b".into())));
        assert_eq!(parsed("./agent").unwrap(), Freeze::Mount("./agent".into()));
        assert_eq!(parsed("agents").unwrap(), Freeze::Mount("agents".into()));
        for text in ["", "agent:"] {
            let error = parsed(text).unwrap_err().to_string();
            let want = format!("invalid freeze target \"{text}\"; use a mount point");
            assert!(error.contains(&want), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_frozen_is_refused_before_anything_is() {
        let place = tempfile::tempdir().unwrap();
        let open = |freezes: &[Freeze]| {
            Window::open(freezes, None, None, LIMIT, &[], &Context::silent()).map(drop).unwrap_err()
        };
        let error = open(&[Freeze::Mount(place.path().into())]);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("is not a mount point; use the folder"), "{error}");
        let error = open(&[Freeze::Mount(place.path().join("no"))]);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let error = open(&[Freeze::Mount("/proc".into()), Freeze::Mount("/proc/self/..".into())]);
        assert!(error.to_string().contains("same file system; give it only once"), "{error}");
        let error = open(&[Freeze::Agent(None)]);
        assert!(error.to_string().contains("is not known; give it as agent:SOCKET"), "{error}");
        let socket = Freeze::Agent(Some(place.path().join("ga")));
        assert_eq!(open(std::slice::from_ref(&socket)).kind(), ErrorKind::NotFound);
        let error = open(&[socket.clone(), socket]);
        assert!(error.to_string().contains("is given twice"), "{error}");
    }

    #[test]
    fn without_freezes_and_machine_nothing_is_guarded() {
        let context = Context::silent();
        let mut window = Window::open(&[], None, None, LIMIT, &[], &context).unwrap();
        assert!(window.guard.is_none());
        window.freeze(&context).unwrap();
        window.before_stop().unwrap();
        window.after_cont();
        let outcome = window.thaw();
        assert!(!outcome.frozen && outcome.why_not.is_none() && outcome.stuck.is_none());
    }
}
