//! The connections to an export: as many as are needed and the server allows, and new ones for those that are
//! lost.

use super::connection::Connection;
use super::handshake::Export;
use super::protocol::export::CAN_MULTI_CONN;
use super::wire::{Fault, Peer, TICK};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// More connections than this make nothing faster.
const MAX_CONNECTIONS: usize = 8;
/// How often a lost connection is replaced without an answer in between.
const TRIES: u32 = 3;
/// Each pause is so many times as long as the one before.
const LONGER: u32 = 4;
/// How long a server may take to answer one more connection. It may say that it takes several, and leave
/// those that are too many in its queue.
const MORE_STALL: Duration = Duration::from_secs(3);

/// The connections to an export.
pub struct Pool {
    peer: Arc<Peer>,
    bitmap: Option<String>,
    /// What the server said first, and has to say each time.
    pub export: Export,
    first_pause: Duration,
    state: Mutex<State>,
    freed: Condvar,
    /// Something was written, and not flushed yet: what another connection has of it is not known.
    pub is_unflushed: AtomicBool,
}

struct State {
    /// Those that nobody uses.
    free: Vec<Connection>,
    /// With those that somebody uses, or makes.
    open: usize,
    most: usize,
}

impl Pool {
    /// Makes the first connection. Of a disk that is written to it stays the only one: of several the
    /// protocol promises only after a flush that they see the same.
    pub fn open(
        peer: Arc<Peer>,
        bitmap: Option<String>,
        is_written: bool,
        first_pause: Duration,
    ) -> Result<Self> {
        let opened = Connection::open(&peer, bitmap.as_deref(), peer.stall);
        let first = opened.map_err(|fault| match fault {
            Fault::Lost(error) | Fault::Final(error) => error,
        })?;
        let export = first.export.without_ids();
        let most = match export.has(CAN_MULTI_CONN) && !is_written {
            true => peer.context.all_threads().min(MAX_CONNECTIONS),
            false => 1,
        };
        let state = Mutex::new(State { free: vec![first], open: 1, most });
        let (freed, is_unflushed) = (Condvar::new(), AtomicBool::new(false));
        Ok(Self { peer, bitmap, export, first_pause, state, freed, is_unflushed })
    }

    /// Does something on a connection, again on another one if that is lost. Nothing is repeated while
    /// something is written and not flushed: whether the server still has it is not known.
    ///
    /// # Errors
    /// `Unavailable` if there is no connection; `Busy` if the export is another one than before.
    pub fn with<T>(&self, mut work: impl FnMut(&mut Connection) -> Result<T, Fault>) -> Result<T> {
        let mut tries = 0;
        loop {
            let error = match self.lease().and_then(|mut lease| lease.run(&mut work, &mut tries)) {
                Ok(value) => return Ok(value),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Lost(error)) => error,
            };
            if self.is_unflushed.load(Ordering::Relaxed) {
                return Err(unflushed(error));
            }
            if tries >= TRIES {
                return Err(error);
            }
            self.pause(self.first_pause * LONGER.pow(tries))?;
            tries += 1;
        }
    }

    fn pause(&self, length: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < length {
            self.peer.context.check()?;
            std::thread::sleep(TICK.min(length.saturating_sub(begin.elapsed())));
        }
        self.peer.context.check()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for the caller alone.
    fn lease(&self) -> Result<Lease<'_>, Fault> {
        let mut state = self.lock();
        loop {
            self.peer.context.check()?;
            if let Some(connection) = state.free.pop() {
                return Ok(Lease { pool: self, connection: Some(connection) });
            }
            if state.open < state.most {
                let is_first = state.open == 0;
                state.open += 1;
                drop(state);
                // Takes its place back when it is dropped.
                let mut lease = Lease { pool: self, connection: None };
                match self.connect(is_first) {
                    Ok(connection) => {
                        lease.connection = Some(connection);
                        return Ok(lease);
                    }
                    Err(fault) if is_first || is_serious(&fault) => return Err(fault),
                    Err(_) => drop(lease),
                }
                // Those that there are have to do.
                state = self.lock();
                state.most = state.open.max(1);
                continue;
            }
            let waited = self.freed.wait_timeout(state, TICK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn connect(&self, is_first: bool) -> Result<Connection, Fault> {
        if self.is_unflushed.load(Ordering::Relaxed) {
            return Err(self.peer.lost("it was lost before"));
        }
        let stall = if is_first { self.peer.stall } else { self.peer.stall.min(MORE_STALL) };
        let connection = Connection::open(&self.peer, self.bitmap.as_deref(), stall)?;
        let (is, was) = (connection.export.without_ids(), &self.export);
        if is == *was {
            return Ok(connection);
        }
        let what = match is.bytes == was.bytes {
            true => format!("{} changed while it was used", self.peer.name),
            false => {
                format!("{} now has {} bytes instead of {}", self.peer.name, is.bytes, was.bytes)
            }
        };
        let hint = message![Action::Retry, " when its server no longer changes"];
        Err(Error::new(ErrorKind::Busy, what).hint(hint).into())
    }
}

fn unflushed(error: Error) -> Error {
    error.hint(message!["part of what was written may be lost: ", Action::Retry])
}

/// True if it does not help to use fewer connections.
fn is_serious(fault: &Fault) -> bool {
    let (Fault::Lost(error) | Fault::Final(error)) = fault;
    matches!(error.kind(), ErrorKind::Busy | ErrorKind::Interrupted)
}

/// A connection that is used.
struct Lease<'a> {
    pool: &'a Pool,
    /// None if it is gone.
    connection: Option<Connection>,
}

impl Lease<'_> {
    /// What an error leaves behind on a connection is not known: it is not used again.
    fn run<T>(
        &mut self,
        work: &mut impl FnMut(&mut Connection) -> Result<T, Fault>,
        tries: &mut u32,
    ) -> Result<T, Fault> {
        let Some(mut connection) = self.connection.take() else {
            return Err(self.pool.peer.lost("it is gone"));
        };
        let before = connection.answered;
        match work(&mut connection) {
            Ok(value) => {
                self.connection = Some(connection);
                Ok(value)
            }
            Err(fault) => {
                if matches!(fault, Fault::Lost(_)) {
                    // The others are most likely gone, too.
                    let mut state = self.pool.lock();
                    state.open -= state.free.len();
                    state.free.clear();
                    if connection.answered > before {
                        *tries = 0;
                    }
                }
                Err(fault)
            }
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        match self.connection.take() {
            Some(connection) => state.free.push(connection),
            None => state.open -= 1,
        }
        drop(state);
        self.pool.freed.notify_one();
    }
}
