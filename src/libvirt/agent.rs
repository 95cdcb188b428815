//! The guest agent of a domain, which freezes the file systems in it: libvirt has the only connection to it.
//!
//! A shell that outlives us waits for the word to thaw, which it gets from the guard (`machine/guard.rs`). It
//! thaws by `virsh`, as often as it takes, and once more a second later: libvirt does a freeze that we had
//! asked for, and that it had only just heard of, before it does that.

use super::domain::Domain;
use super::virsh::nonsense;
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::machine::{GuestAgent, Undo, leave_unit};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long it is tried to thaw.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(200);
/// What the shell waits for, and says.
const WORD: &[u8] = b"thaw\n";
const ANSWER: &[u8] = b"imgsnap-thawed";
/// What it does. Its arguments are those of `virsh`, and the domain.
const SCRIPT: &str = "while read -r word; do n=0; until \"$@\" || [ $n -ge 200 ]; do n=$((n + 1)); sleep 1; \
                      done; sleep 1; \"$@\"; echo imgsnap-thawed; done";

/// The guest agent of a domain.
pub struct DomainAgent {
    domain: Domain,
    name: String,
    /// The shell, and what it hears us by.
    shell: Child,
    socket: UnixStream,
    /// A freeze was not answered.
    may_be_frozen: bool,
}

impl DomainAgent {
    /// Makes everything ready, and asks nothing.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn new(domain: &Domain, context: &Context) -> Result<Self> {
        let failed = |e| Error::io("cannot start the shell that thaws", e);
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        let virsh = domain.virsh.talkative();
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, "sh"]).arg(virsh.get_program()).args(virsh.get_args());
        shell.args(["domfsthaw", &domain.uuid]).current_dir("/");
        shell.envs(virsh.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let answers: OwnedFd = theirs.try_clone().map_err(failed)?.into();
        shell.stdin(OwnedFd::from(theirs)).stdout(answers).stderr(Stdio::null()).process_group(0);
        let shell = shell.spawn().map_err(failed)?;
        leave_unit(&[i32::try_from(shell.id()).unwrap_or_default()], context);
        let name = format!("the guest agent of {}", domain.uri());
        Ok(Self { domain: domain.clone(), name, shell, socket, may_be_frozen: false })
    }

    fn count(&self, verb: &str, limit: Duration) -> Result<u64> {
        let said = self.domain.virsh.change_within(&[verb, &self.domain.uuid], limit)?;
        // "Froze 2 filesystem(s)"
        let count = said.split_whitespace().find_map(|word| word.parse().ok());
        count.ok_or_else(|| nonsense(verb))
    }
}

impl GuestAgent for DomainAgent {
    fn name(&self) -> &str {
        &self.name
    }

    fn undo(&self) -> Result<Undo> {
        let failed = |e| Error::io("cannot duplicate a descriptor", e);
        let socket = self.socket.try_clone().map_err(failed)?.into();
        Ok(Undo::ThawBy { socket, text: WORD.to_vec(), answer: ANSWER.to_vec() })
    }

    /// To ask for it would mark the domain as tampered with (libvirt's "custom-ga-command").
    fn is_frozen(&mut self) -> Result<bool> {
        Ok(self.may_be_frozen)
    }

    fn freeze(&mut self, limit: Duration) -> Result<u64> {
        self.count("domfsfreeze", limit).map_err(|error| {
            let said = error.without_advice();
            let is_meant = |words: &[&str]| words.iter().any(|word| said.contains(word));
            let named = |kind| Error::new(kind, format!("{}: {said}", self.name));
            // It was done, or may be yet.
            let is_unclear = is_meant(&["not responding", "timeout", "makes no sense"]);
            let was_asked = !is_meant(&["not connected", "synchronization"]);
            if was_asked && (error.kind() == ErrorKind::Unavailable || is_unclear) {
                self.may_be_frozen = true;
                return named(ErrorKind::Unavailable);
            }
            match is_meant(&["frozen"]) {
                true => {
                    named(ErrorKind::Busy).hint(message![Action::Retry, " when they are thawed"])
                }
                false => named(error.kind())
                    .hint("check that qemu-guest-agent runs in the machine, or do not freeze it"),
            }
        })
    }

    fn thaw(&mut self, _: bool) -> Result<bool> {
        let begun = Instant::now();
        loop {
            match self.count("domfsthaw", PATIENCE) {
                Ok(count) => return Ok(count > 0),
                Err(error) if begun.elapsed() > PATIENCE => {
                    // The shell goes on with it when we have ended.
                    best_effort((&self.socket).write_all(WORD));
                    return Err(error.at(&self.name));
                }
                // The agent, or libvirt, may be starting again.
                Err(_) => sleep(STEP),
            }
        }
    }
}

impl Drop for DomainAgent {
    fn drop(&mut self) {
        // It ends with the last descriptor, which a guard may have.
        best_effort(self.socket.shutdown(Shutdown::Write));
        let begun = Instant::now();
        // It may be at it still: then it ends by itself.
        while begun.elapsed() < STEP && matches!(self.shell.try_wait(), Ok(None)) {
            sleep(STEP / 100);
        }
    }
}
