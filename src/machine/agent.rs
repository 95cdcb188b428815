//! The QEMU guest agent, which freezes the file systems in a machine: over a socket that QEMU connects to a
//! serial port of the machine.
//!
//! There is no connection to the agent itself: whatever others have asked and not waited for is still
//! answered, and comes first. So a question that only we can have asked goes before the first command, and
//! after each that had no answer (guest-sync-delimited): all until its answer is thrown away.

use super::guard::Undo;
use super::guest_agent::GuestAgent;
use super::wire::{Wire, said};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use crate::base::uri::Shown;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long an answer may take that takes the agent no time.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the agent may take to thaw, and how long it is tried.
const THAW: Duration = Duration::from_secs(10);
/// Until it is asked again.
const STEP: Duration = Duration::from_secs(5);
/// The same after an answer.
const PAUSE: Duration = Duration::from_millis(100);
/// What the agent's port is called.
const PORT: &str = "org.qemu.guest_agent.0";
/// Precedes the answer to guest-sync-delimited; sent, it ends what somebody has begun to write.
const MARK: u8 = 0xff;

/// A guest agent.
pub struct Agent {
    wire: Wire,
    /// What comes next is the answer to what is asked next.
    is_in_step: bool,
}

/// What the agent has said to a command.
#[derive(Debug, PartialEq)]
enum Answer {
    /// It returns that.
    Return(Value),
    /// It refuses: why.
    Refused(String),
}

impl Agent {
    /// Connects to the socket of an agent, and waits until it answers.
    ///
    /// # Errors
    /// `NotFound` without a socket; `Unavailable` if nobody listens, or no agent answers.
    pub fn connect(path: &Path) -> Result<Self> {
        let name = format!("the guest agent ({})", path.shown());
        let mut agent = Self { wire: Wire::connect(path, &name, PATIENCE)?, is_in_step: false };
        agent.synchronize(Instant::now() + PATIENCE).map_err(|error| {
            let hint = message![
                "check that qemu-guest-agent runs in the machine and that no other program (libvirt?) \
                 uses its socket, and ",
                Action::Retry
            ];
            if error.kind() == ErrorKind::Unavailable { error.hint(hint) } else { error }
        })?;
        Ok(agent)
    }

    /// Thaws all file systems of the machine, and gives the number of those that were frozen. It is tried
    /// again for some seconds: an agent that was killed may be started again.
    ///
    /// # Errors
    /// `Unavailable` if there is no answer: then they may still be frozen. What the agent refuses.
    pub fn thaw_all(&mut self) -> Result<u64> {
        let command = "guest-fsfreeze-thaw";
        let deadline = Instant::now() + THAW;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match self.execute(command, left.min(STEP)) {
                // If an answer was late, and is thrown away, it says none: who asks takes that for not
                // frozen.
                Ok(Answer::Return(Value::Number(number))) => {
                    return Ok(number.as_u64().unwrap_or_default());
                }
                Ok(answer) => self.unexpected(command, &answer),
                Err(error) => error,
            };
            if left.is_zero() {
                return Err(error);
            }
            // A guard may have asked on the same socket, and this be an answer to that.
            self.is_in_step = false;
            sleep(PAUSE.min(left));
        }
    }

    /// The agent has frozen before.
    pub fn already_frozen(&self) -> Error {
        let what = format!("{}: another program has frozen the file systems", self.wire.name());
        let hint = message![Action::Retry, " when they are thawed"];
        Error::new(ErrorKind::Busy, what).hint(hint)
    }

    fn execute(&mut self, command: &str, limit: Duration) -> Result<Answer> {
        let deadline = Instant::now() + limit;
        if !self.is_in_step {
            self.synchronize(deadline)?;
        }
        // Until there is an answer.
        self.is_in_step = false;
        self.send(&[], command, json!({}), limit)?;
        let Some(line) = self.wire.line(deadline)? else {
            return Err(self.wire.silent(limit).at(format!("\"{command}\"")));
        };
        let answer = answer_in(&line);
        self.is_in_step = answer.is_some();
        answer.ok_or_else(|| self.wire.violation("invalid answer"))
    }

    /// Throws away all that comes before the answer to a question that nobody else has asked.
    fn synchronize(&mut self, deadline: Instant) -> Result<()> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let id = fresh_id();
        self.send(&[MARK], "guest-sync-delimited", json!({ "id": id }), limit)?;
        while let Some(line) = self.wire.line(deadline)? {
            // What was begun before stands before the mark in the same line.
            let Some(at) = line.iter().rposition(|byte| *byte == MARK) else { continue };
            let answer = line.get(at + 1..).and_then(answer_in);
            if answer == Some(Answer::Return(id.into())) {
                self.is_in_step = true;
                return Ok(());
            }
        }
        Err(self.wire.silent(limit))
    }

    fn send(
        &mut self,
        before: &[u8],
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<()> {
        self.wire.send(&line_of(before, command, arguments), &[], limit)
    }

    fn unexpected(&mut self, command: &str, answer: &Answer) -> Error {
        match answer {
            Answer::Refused(why) => {
                let what = format!("{} refuses \"{command}\": {}", self.wire.name(), said(why));
                Error::new(ErrorKind::Io, what)
            }
            Answer::Return(_) => {
                self.is_in_step = false;
                self.wire.violation(&format!("an unexpected answer to \"{command}\""))
            }
        }
    }
}

impl GuestAgent for Agent {
    fn name(&self) -> &str {
        self.wire.name()
    }

    fn undo(&self) -> Result<Undo> {
        let failed = |e| Error::io("cannot duplicate a descriptor", e);
        let socket = self.wire.socket().try_clone_to_owned().map_err(failed)?;
        let (text, answer) = thaw_request();
        Ok(Undo::ThawBy { socket, text, answer })
    }

    fn is_frozen(&mut self) -> Result<bool> {
        let command = "guest-fsfreeze-status";
        match self.execute(command, PATIENCE)? {
            Answer::Return(Value::String(status)) => Ok(status == "frozen"),
            answer => Err(self.unexpected(command, &answer)),
        }
    }

    fn freeze(&mut self, limit: Duration) -> Result<u64> {
        let command = "guest-fsfreeze-freeze";
        match self.execute(command, limit)? {
            Answer::Return(Value::Number(number)) => Ok(number.as_u64().unwrap_or_default()),
            // So it is said of a command that may not be used meanwhile.
            Answer::Refused(why) if why.contains("frozen") => Err(self.already_frozen()),
            answer => Err(self.unexpected(command, &answer)),
        }
    }

    fn thaw(&mut self, has_guard_acted: bool) -> Result<bool> {
        if has_guard_acted {
            // Others have written to the same socket: what comes next is not known.
            self.is_in_step = false;
        }
        // Whoever cannot tell that it was frozen has to thaw all the same.
        let was_frozen = self.is_frozen().unwrap_or(false);
        Ok(self.thaw_all()? > 0 && was_frozen)
    }
}

/// What thaws a machine, written to the agent's socket in whatever state that is; and what is only in the
/// answer to it.
pub fn thaw_request() -> (Vec<u8>, Vec<u8>) {
    let id = fresh_id();
    let mut text = line_of(&[MARK], "guest-fsfreeze-thaw", json!({}));
    // The agent does one after the other: when it answers this, it has thawed.
    text.extend(line_of(&[MARK], "guest-sync-delimited", json!({ "id": id })));
    (text, id.to_string().into_bytes())
}

fn line_of(before: &[u8], command: &str, arguments: Value) -> Vec<u8> {
    let request = json!({ "execute": command, "arguments": arguments });
    [before, format!("{request}\n").as_bytes()].concat()
}

/// A number that nobody else uses, and that every parser of JSON keeps.
fn fresh_id() -> u64 {
    (Uuid::new_v4().as_u128() as u64 >> 12) | 1 << 51
}

fn answer_in(line: &[u8]) -> Option<Answer> {
    let mut parsed: Value = serde_json::from_slice(line).ok()?;
    if let Some(value) = parsed.get_mut("return") {
        return Some(Answer::Return(value.take()));
    }
    let why = parsed.get("error")?.get("desc")?.as_str()?;
    Some(Answer::Refused(why.to_owned()))
}

/// Finds the socket of a machine's guest agent. `execute` asks QEMU (QMP).
///
/// # Errors
/// `NotFound` if the machine has no port for an agent, or QEMU none for us; `Busy` if somebody else is
/// connected to it; of `execute`.
pub fn find_agent(execute: &mut dyn FnMut(&str, Value) -> Result<Value>) -> Result<PathBuf> {
    let hint = "give the socket of its guest agent";
    let missing = |what: &str| Error::new(ErrorKind::NotFound, what).hint(hint);
    let label = chardev_of_port(execute)?
        .ok_or_else(|| missing(&format!("the machine has no port for a guest agent ({PORT})")))?;
    let chardevs = execute("query-chardev", json!({}))?;
    let is_it = |chardev: &&Value| chardev.get("label").and_then(Value::as_str) == Some(&label);
    let found = chardevs.as_array().into_iter().flatten().find(is_it);
    let text = found.and_then(|chardev| chardev.get("filename")?.as_str()).unwrap_or_default();
    let (is_free, text) = match text.strip_prefix("disconnected:") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let listens = text.strip_prefix("unix:").and_then(|text| text.split_once(",server"));
    // QEMU would have to tell of its folder, too.
    let path = listens.map(|(path, _)| PathBuf::from(path)).filter(|path| path.is_absolute());
    let path = path.ok_or_else(|| {
        missing(&format!(
            "QEMU does not listen on a socket for the guest agent (\"{}\")",
            said(text)
        ))
    })?;
    if is_free {
        return Ok(path);
    }
    let what = format!("another program uses the socket of the guest agent, {}", path.shown());
    Err(Error::new(ErrorKind::Busy, what)
        .hint(message!["end that program (libvirt?), and ", Action::Retry]))
}

/// What the port of the agent is connected to, as QEMU names it.
fn chardev_of_port(
    execute: &mut dyn FnMut(&str, Value) -> Result<Value>,
) -> Result<Option<String>> {
    for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let entries = execute("qom-list", json!({ "path": folder }))?;
        for entry in entries.as_array().into_iter().flatten() {
            let text = |part: &str| entry.get(part).and_then(Value::as_str);
            let (Some(name), Some("child<virtserialport>")) = (text("name"), text("type")) else {
                continue;
            };
            let mut property = |property: &str| {
                let path = format!("{folder}/{name}");
                execute("qom-get", json!({ "path": path, "property": property }))
            };
            if property("name")?.as_str() == Some(PORT) {
                return Ok(property("chardev")?.as_str().map(str::to_owned));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
