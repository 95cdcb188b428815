//! Processes that thaw, and let a machine go on, when we cannot: one for each thing to undo, so that none
//! waits for another.
//!
//! What is undone is armed before it is done, and disarmed when it is undone. What a guard does when we die
//! or take too long stands in `base/sys/guard.rs`; why nothing can stay frozen, in `freeze.rs`.

use super::scope::leave_unit;
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::base::sys::guard::{ACTS, ARM, DISARM, Duty, END, READY, fork_guard};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the guard writes to QMP. The first byte ends whatever we began to write there: QEMU's parser begins
/// anew. QEMU forgets what it has not executed when the last client is gone, so the guard waits for the
/// answer to the last command. That is for the mark of who stops a machine for longer (`reset.rs`): there is
/// none otherwise, and QEMU says so.
const CONTINUE: &[u8] = b"\xff{\"execute\":\"cont\"}\n\
    {\"execute\":\"blockdev-del\",\"arguments\":{\"node-name\":\"imgsnap-m-stopped\"},\
    \"id\":\"imgsnap-guard\"}\n";
/// What is in the answer alone.
const CONTINUED: &[u8] = b"\"imgsnap-guard\"";
/// How long one may take to begin.
const BEGIN: Duration = Duration::from_secs(5);
/// How long one may take to end when it is told to, and when it is killed.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(1);

/// What there may be to undo.
#[derive(Debug)]
pub enum Undo {
    /// The machine was stopped: the connection to its monitor.
    Continue(OwnedFd),
    /// File systems in it were frozen: who listens on this socket thaws them when it is asked.
    ThawBy {
        /// The socket.
        socket: OwnedFd,
        /// What asks it, whatever was asked before.
        text: Vec<u8>,
        /// What is only in the answer.
        answer: Vec<u8>,
    },
    /// A file system of this host was frozen: a file in it.
    ThawMount(OwnedFd),
}

/// How a guard is, or was at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuardState {
    /// It waits.
    Waiting,
    /// Somebody has killed it, or a part of it, before it had anything to do.
    Lost,
    /// The limit has passed, and it has undone what was armed, or tries to.
    Acted,
}

/// Processes that outlive us. Dropped, they end without having done anything.
pub struct Guard {
    watchers: Vec<Watcher>,
}

struct Watcher {
    /// Until its end was taken.
    id: Option<Pid>,
    control: UnixStream,
    has_acted: AtomicBool,
    is_gone: AtomicBool,
}

impl Guard {
    /// Starts the guards. Each undoes what is armed as soon as this process is gone, or if it is armed for
    /// longer than `limit`. They hold nothing but the descriptors that they are given.
    ///
    /// # Errors
    /// `Io` if the system has no process to give.
    pub fn start(limit: Duration, undo: Vec<Undo>, context: &Context) -> Result<Self> {
        let mut guard = Self { watchers: Vec::new() };
        for undo in undo {
            guard.watchers.push(Watcher::start(undo, limit)?);
        }
        let ids: Vec<i32> = guard.watchers.iter().filter_map(|w| w.id.map(Pid::as_raw)).collect();
        leave_unit(&ids, context);
        Ok(guard)
    }

    /// There will be something to undo: to be called before it is done.
    ///
    /// # Errors
    /// `Unavailable` if nobody would: then it must not be done.
    pub fn arm(&self, index: usize) -> Result<()> {
        let watcher = self.watchers.get(index);
        let is_told = watcher.is_some_and(|watcher| watcher.tell(ARM));
        if is_told && self.state() == GuardState::Waiting { Ok(()) } else { Err(self.failed()) }
    }

    /// It was undone: there is nothing more to do.
    pub fn disarm(&self, index: usize) {
        self.watchers.get(index).map(|watcher| watcher.tell(DISARM));
    }

    /// How it is.
    pub fn state(&self) -> GuardState {
        self.watchers.iter().map(Watcher::state).max().unwrap_or(GuardState::Waiting)
    }

    /// Why it is no guard any more.
    pub fn failed(&self) -> Error {
        let (kind, what) = match self.state() {
            GuardState::Acted => (ErrorKind::Busy, "the time limit was exceeded"),
            _ => (ErrorKind::Unavailable, "the process that thaws was killed"),
        };
        Error::new(kind, what).hint(message![Action::Retry])
    }

    /// Ends it, whatever is armed, and says what became of it.
    pub fn end(mut self) -> GuardState {
        // All of them end at once.
        for watcher in &self.watchers {
            watcher.tell(END);
        }
        self.watchers.iter_mut().map(Watcher::end).max().unwrap_or(GuardState::Waiting)
    }
}

impl Watcher {
    fn start(undo: Undo, limit: Duration) -> Result<Self> {
        let duty = match undo {
            Undo::ThawMount(file) => Duty::Thaw(file),
            Undo::Continue(socket) => {
                let (text, answer) = (CONTINUE.to_vec(), CONTINUED.to_vec());
                Duty::Send { socket, text, answer, repeats: false }
            }
            Undo::ThawBy { socket, text, answer } => {
                Duty::Send { socket, text, answer, repeats: true }
            }
        };
        let failed = |e| Error::io("cannot start the process that thaws", e);
        let (control, theirs) = UnixStream::pair().map_err(failed)?;
        let id = fork_guard(theirs.into(), duty, limit).map_err(failed)?;
        let (has_acted, is_gone) = (AtomicBool::new(false), AtomicBool::new(false));
        let watcher = Self { id: Some(Pid::from_raw(id)), control, has_acted, is_gone };
        // Until then it has all that we have open.
        watcher.control.set_read_timeout(Some(BEGIN)).map_err(failed)?;
        let mut byte = [0];
        (&watcher.control).read_exact(&mut byte).map_err(failed)?;
        watcher.control.set_nonblocking(true).map_err(failed)?;
        if byte == [READY] { Ok(watcher) } else { Err(failed(IoKind::InvalidData.into())) }
    }

    /// True if it hears that, or will.
    fn tell(&self, byte: u8) -> bool {
        matches!((&self.control).write(&[byte]), Ok(1))
    }

    /// Takes in what it has said.
    fn hear(&self) {
        let mut bytes = [0; 8];
        loop {
            match (&self.control).read(&mut bytes) {
                Ok(1..) if bytes.contains(&ACTS) => self.has_acted.store(true, Ordering::Relaxed),
                Ok(1..) => {}
                Err(e) if matches!(e.kind(), IoKind::WouldBlock | IoKind::Interrupted) => return,
                Ok(0) | Err(_) => return self.is_gone.store(true, Ordering::Relaxed),
            }
        }
    }

    fn state(&self) -> GuardState {
        self.hear();
        match (self.has_acted.load(Ordering::Relaxed), self.is_gone.load(Ordering::Relaxed)) {
            (true, _) => GuardState::Acted,
            (_, true) => GuardState::Lost,
            _ => GuardState::Waiting,
        }
    }

    /// Tells it to end, waits until it has, and says how it was.
    fn end(&mut self) -> GuardState {
        let Some(id) = self.id.take() else { return self.state() };
        self.tell(END);
        let mut status = await_end(id);
        if status.is_none() {
            // The kernel holds it: it thaws a file system that does not answer.
            best_effort(kill(id, Signal::SIGKILL));
            status = await_end(id);
        }
        let has_ended_well = matches!(status, Some(WaitStatus::Exited(_, 0)));
        match self.state() {
            GuardState::Acted => GuardState::Acted,
            _ if has_ended_well => GuardState::Waiting,
            _ => GuardState::Lost,
        }
    }
}

fn await_end(id: Pid) -> Option<WaitStatus> {
    let begun = Instant::now();
    loop {
        match waitpid(id, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(status) => return Some(status),
            // Somebody else took its end.
            Err(_) => return Some(WaitStatus::Exited(id, 0)),
        }
        if begun.elapsed() > PATIENCE {
            return None;
        }
        sleep(STEP);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end();
    }
}
