//! QMP, the monitor protocol of QEMU: a command, its answer, and events in between.

use super::wire::{Wire, said};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use crate::base::uri::Shown;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long the greeting may take: QEMU serves one client after the other.
const GREETING: Duration = Duration::from_secs(3);
/// Events that are kept.
const MAX_EVENTS: usize = 1024;

/// Something that happened to the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Which, as QMP calls it: "RESUME".
    pub name: String,
    /// What it is of.
    pub data: Value,
}

/// A session with the monitor of a QEMU.
pub struct Qmp {
    wire: Wire,
    /// Major and minor number of QEMU's version.
    version: (u64, u64),
    next_id: u64,
    events: VecDeque<Event>,
    /// Some events were not kept.
    has_lost_events: bool,
    /// Why the session is over.
    over: Option<String>,
}

impl Qmp {
    /// Begins a session on the socket at `path`.
    ///
    /// # Errors
    /// `NotFound` without a socket; `Unavailable` if nobody listens; `Busy` if somebody else has a session;
    /// `Io` if no QMP server answers.
    pub fn connect(path: &Path) -> Result<Self> {
        Self::connect_within(path, GREETING)
    }

    fn connect_within(path: &Path, limit: Duration) -> Result<Self> {
        let name = format!("the QMP socket {}", path.shown());
        let wire = Wire::connect(path, &name, limit).map_err(|error| match error.kind() {
            ErrorKind::Busy => busy(&name),
            _ => error,
        })?;
        let (version, events) = ((0, 0), VecDeque::new());
        let mut qmp =
            Self { wire, version, next_id: 0, events, has_lost_events: false, over: None };
        let Some(line) = qmp.wire.line(Instant::now() + limit)? else {
            return Err(busy(&name));
        };
        let greeting = qmp.parsed(&line)?;
        let number = |part: &str| {
            greeting.pointer(&format!("/QMP/version/qemu/{part}")).and_then(Value::as_u64)
        };
        qmp.version =
            number("major").zip(number("minor")).ok_or_else(|| qmp.violation("no QMP greeting"))?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Major and minor number of QEMU's version.
    pub fn version(&self) -> (u64, u64) {
        self.version
    }

    /// Its descriptor.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.wire.socket()
    }

    /// True if the session is over: nothing more can be asked.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Executes a command and gives what it returns.
    ///
    /// # Errors
    /// What QEMU says, as one line that names the command: `NotFound` for a device, `Unsupported` for a
    /// command that it does not have, otherwise `Io`. `Unavailable` if the session is over, or there is no
    /// answer in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_with(command, arguments, &[], PATIENCE)
    }

    /// The same with descriptors, and another limit.
    ///
    /// # Errors
    /// As of [`Qmp::execute`].
    pub fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Value> {
        if let Some(why) = &self.over {
            return Err(Error::new(ErrorKind::Unavailable, why.clone()));
        }
        let outcome = self.ask(command, arguments, files, limit);
        match outcome {
            Ok(answer) => self.checked(command, answer),
            Err(error) => Err(error),
        }
    }

    /// The event that is next of those that were not taken yet, and waits for it until `deadline`.
    ///
    /// # Errors
    /// `Unavailable` if the session is over.
    pub fn next_event(&mut self, deadline: Instant) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.message(deadline)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// All events that have come and were not taken yet; none if some were lost.
    pub fn take_events(&mut self) -> Option<Vec<Event>> {
        let events = self.events.drain(..).collect();
        (!std::mem::take(&mut self.has_lost_events)).then_some(events)
    }

    /// Sends a command and waits for its answer.
    fn ask(
        &mut self,
        command: &str,
        arguments: Value,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Map<String, Value>> {
        self.next_id += 1;
        let id = self.next_id;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        // In one piece: a guard may write to the same socket.
        let line = format!("{request}\n");
        let deadline = Instant::now() + limit;
        let sent = self.wire.send(line.as_bytes(), files, limit);
        sent.map_err(|e| self.end(e))?;
        loop {
            let Some(message) = self.message(deadline)? else {
                return Err(self.wire.silent(limit).at(format!("\"{command}\"")));
            };
            // An answer to what was asked before came too late, or is the guard's.
            if message.get("id").and_then(Value::as_u64) == Some(id) {
                return Ok(message);
            }
        }
    }

    /// The next answer, or an empty message for an event, which is kept; none until `deadline`.
    fn message(&mut self, deadline: Instant) -> Result<Option<Map<String, Value>>> {
        if let Some(why) = &self.over {
            return Err(Error::new(ErrorKind::Unavailable, why.clone()));
        }
        let line = match self.wire.line(deadline) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.end(error)),
        };
        let mut message = match self.parsed(&line) {
            Ok(message) => message,
            Err(error) => return Err(self.end(error)),
        };
        let Some(name) = message.get("event").and_then(Value::as_str) else {
            return Ok(message.as_object_mut().map(std::mem::take));
        };
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
            self.has_lost_events = true;
        }
        let data = message.get("data").cloned().unwrap_or_default();
        self.events.push_back(Event { name: name.to_owned(), data });
        Ok(Some(Map::new()))
    }

    fn parsed(&self, line: &[u8]) -> Result<Value> {
        let parsed = serde_json::from_slice(line).ok().filter(Value::is_object);
        parsed.ok_or_else(|| self.violation("invalid QMP message"))
    }

    fn violation(&self, what: &str) -> Error {
        self.wire.violation(what)
    }

    /// Nothing more can be asked: what is on its way is not known.
    fn end(&mut self, error: Error) -> Error {
        self.wire.shut();
        self.over.get_or_insert_with(|| error.without_advice());
        error
    }

    fn checked(&mut self, command: &str, mut answer: Map<String, Value>) -> Result<Value> {
        if let Some(value) = answer.remove("return") {
            return Ok(value);
        }
        let text = |part: &str| answer.get("error").and_then(|error| error.get(part)?.as_str());
        let Some(description) = text("desc") else {
            let error = self.violation("an answer without a result");
            return Err(self.end(error));
        };
        let kind = match text("class") {
            Some("DeviceNotFound") => ErrorKind::NotFound,
            Some("CommandNotFound") => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        let what = format!("QEMU refuses \"{command}\": {}", said(description));
        Err(Error::new(kind, what))
    }
}

fn busy(name: &str) -> Error {
    let what = format!("another program uses {name} (libvirt?)");
    Error::new(ErrorKind::Busy, what).hint(message![
        "give the machine a second QMP socket, or end that program, and ",
        Action::Retry
    ])
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
