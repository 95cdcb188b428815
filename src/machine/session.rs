//! A machine, as long as we are the client of its monitor.

use super::qmp::Qmp;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use serde_json::{Value, json};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// What is needed came with this version: `on-cbw-error` and `cbw-timeout`.
const OLDEST: (u64, u64) = (7, 1);

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
}

impl Machine {
    /// Connects to the QMP socket of a machine.
    ///
    /// # Errors
    /// `NotFound` without a socket; `Unavailable` if nobody listens; `Busy` if somebody else is connected;
    /// `Unsupported` for a QEMU before 7.1.
    pub fn connect(socket: &Path, context: &Context) -> Result<Self> {
        context.check()?;
        let qmp = Qmp::connect(socket)?;
        let (major, minor) = qmp.version();
        if (major, minor) < OLDEST {
            let what = format!("the machine runs in QEMU {major}.{minor}");
            let hint = "QEMU 7.1 or later is needed";
            return Err(Error::new(ErrorKind::Unsupported, what).hint(hint));
        }
        Ok(Self { qmp, socket: socket.to_owned() })
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
                let what = format!("the machine migrates, or has migrated (state \"{name}\")");
                let hint = message![Action::Retry, " where it runs then"];
                Err(Error::new(ErrorKind::Busy, what).hint(hint))
            }
            _ if is_running => Ok(RunState::Running),
            "prelaunch" | "preconfig" | "shutdown" => Ok(RunState::Off),
            _ => Ok(RunState::Paused),
        }
    }
}
