//! A machine, as long as we are the client of its monitor.

use super::names::{self, Kind};
use super::qmp::Qmp;
use super::sole::lock_peer;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// What is needed came with this version: `on-cbw-error` and `cbw-timeout`.
const OLDEST: (u64, u64) = (7, 1);
/// How long a change may take: a device lets go of its disk when what it has asked for is done.
const CHANGE: Duration = Duration::from_secs(30);
/// How often it is tried again to let a machine go on, and how long in between.
const MORE_TRIES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(200);
/// The command that tells of all nodes.
pub(super) const ALL_NODES: &str = "query-named-block-nodes";

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Its processors run.
    Running,
    /// They do not, and it has a state in memory that belongs to its disks.
    Paused,
    /// It has not begun, or has ended: nothing in its memory counts.
    Off,
}

/// A machine whose monitor serves us, and nobody else meanwhile.
pub struct Machine {
    /// The session.
    pub(super) qmp: Qmp,
    socket: PathBuf,
    /// Nobody else of us works on it.
    _sole: Option<File>,
}

impl Machine {
    /// Connects to the QMP socket of a machine.
    ///
    /// # Errors
    /// `NotFound` without a socket; `Unavailable` if nobody listens; `Busy` if somebody else is connected,
    /// or another of us works on it; `Unsupported` for a QEMU before 7.1.
    pub fn connect(socket: &Path, context: &Context) -> Result<Self> {
        context.check()?;
        let qmp = Qmp::connect(socket)?;
        let (major, minor) = qmp.version();
        if (major, minor) < OLDEST {
            let what = format!("the machine runs on QEMU {major}.{minor}");
            let hint = "QEMU 7.1 or later is needed";
            return Err(Error::new(ErrorKind::Unsupported, what).hint(hint));
        }
        let sole = lock_peer(qmp.socket())?;
        Ok(Self { qmp, socket: socket.to_owned(), _sole: sole })
    }

    /// The path of its QMP socket.
    pub fn path(&self) -> &Path {
        &self.socket
    }

    /// The connection to it. QEMU serves one client at a time, so whoever is to speak for us when we cannot
    /// shares it.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.qmp.socket()
    }

    /// Executes a command.
    ///
    /// # Errors
    /// As of [`Qmp::execute`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.qmp.execute(command, arguments)
    }

    /// Executes a command that changes something, which may take longer.
    ///
    /// # Errors
    /// As of [`Qmp::execute`].
    pub(super) fn change(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.qmp.execute_with(command, arguments, &[], CHANGE)
    }

    /// The same with a descriptor that QEMU is to have.
    ///
    /// # Errors
    /// As of [`Qmp::execute`].
    pub(super) fn give(
        &mut self,
        command: &str,
        arguments: Value,
        file: BorrowedFd<'_>,
    ) -> Result<Value> {
        self.qmp.execute_with(command, arguments, &[file], CHANGE)
    }

    /// An answer that makes no sense.
    pub(super) fn nonsense(&self, command: &str) -> Error {
        let what = format!("unexpected answer of QEMU to \"{command}\"");
        Error::new(ErrorKind::Io, what).hint("check its version")
    }

    /// True if the connection was lost.
    pub fn is_lost(&self) -> bool {
        self.qmp.is_over()
    }

    /// Connects anew if the session is over: whoever has to put something in order tries once more.
    pub(super) fn reconnect(&mut self) {
        if self.qmp.is_over()
            && let Ok(qmp) = Qmp::connect(&self.socket)
        {
            self.qmp = qmp;
        }
    }

    /// Lets a machine that we have stopped go on. It has a filter of ours.
    ///
    /// # Errors
    /// `Unavailable` if QEMU is gone, what QEMU refuses: with what is to be done then.
    pub(super) fn go_on(&mut self) -> Result<()> {
        let mut outcome = self.change("cont", json!({})).map(drop);
        for _ in 0..MORE_TRIES {
            if outcome.is_ok() {
                return Ok(());
            }
            sleep(PAUSE);
            // Another machine may have come in its place, which somebody else has stopped.
            let is_lost = self.qmp.is_over();
            self.reconnect();
            if is_lost && !self.has_filter() {
                break;
            }
            outcome = self.change("cont", json!({})).map(drop);
        }
        outcome.map_err(|error| {
            let what = format!("the machine may still be stopped: {}", error.without_advice());
            Error::new(error.kind(), what)
                .hint("resume it with the command \"cont\" in its monitor")
        })
    }

    /// The names of all nodes.
    ///
    /// # Errors
    /// `Unavailable`; `Io` if QEMU's answer makes no sense.
    pub(super) fn node_names(&mut self) -> Result<BTreeSet<String>> {
        let nodes = match self.execute(ALL_NODES, json!({ "flat": true }))? {
            Value::Array(nodes) => nodes,
            _ => return Err(self.nonsense(ALL_NODES)),
        };
        let name = |node: &Value| Some(node.get("node-name")?.as_str()?.to_owned());
        Ok(nodes.iter().filter_map(name).collect())
    }

    fn has_filter(&mut self) -> bool {
        let Ok(Value::Array(nodes)) = self.execute(ALL_NODES, json!({ "flat": true })) else {
            return false;
        };
        nodes
            .iter()
            .filter_map(|node| node.get("node-name")?.as_str())
            .any(|name| matches!(names::kind(name), Some(Kind::Filter)))
    }

    /// What the machine does.
    ///
    /// # Errors
    /// `Busy` while it migrates, or when it has; `Unavailable`.
    pub fn run_state(&mut self) -> Result<RunState> {
        let status = self.execute("query-status", json!({}))?;
        let name = status.get("status").and_then(Value::as_str).unwrap_or_default();
        let is_running = status.get("running").and_then(Value::as_bool).unwrap_or_default();
        match name {
            "inmigrate" | "finish-migrate" | "postmigrate" | "colo" => {
                let what = format!("the machine is migrating or has migrated (state \"{name}\")");
                let hint = message![Action::Retry, " on the host on which it then runs"];
                Err(Error::new(ErrorKind::Busy, what).hint(hint))
            }
            _ if is_running => Ok(RunState::Running),
            "prelaunch" | "preconfig" | "shutdown" => Ok(RunState::Off),
            _ => Ok(RunState::Paused),
        }
    }
}
