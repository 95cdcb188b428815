//! A program that runs beside us, and not longer than we do.
//!
//! A thread of its own starts it, reads what it says, and takes its end. The kernel ends the program when
//! that thread ends (PR_SET_PDEATHSIG), which it does only after the program, or with all of us. So it makes
//! no difference which thread asked for it, and a SIGKILL leaves nothing behind.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::sys::bind_child;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

/// How much is kept of what it says, the last of it: QEMU repeats what it was given, a whole chain.
const MOST_SAID: usize = 64 << 10;
/// How often it is asked whether it still runs.
const STEP: Duration = Duration::from_millis(5);
/// How long it may take to end in good order.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that was started.
pub struct Process {
    shared: Arc<Shared>,
    /// Its number, until it has ended.
    id: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Until its end was taken: as long its number is nobody else's.
    child: Option<Child>,
    said: Vec<u8>,
    ended: Option<Option<ExitStatus>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it and stays with it.
    fn keep(&self, mut command: Command, started: &Sender<io::Result<u32>>) {
        let spawned = command.spawn();
        // The descriptors that it was given are its own now.
        drop(command);
        let told = match spawned {
            Ok(mut child) => {
                let (id, stderr) = (child.id(), child.stderr.take());
                self.lock().child = Some(child);
                best_effort(started.send(Ok(id)));
                stderr
            }
            Err(error) => return best_effort(started.send(Err(error))),
        };
        if let Some(stderr) = told {
            self.listen(stderr);
        }
        // Whoever closes its stderr may go on for a while.
        while !self.take_end() {
            sleep(STEP);
        }
    }

    fn listen(&self, mut stderr: ChildStderr) {
        let mut piece = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut piece) {
            let said = &mut self.lock().said;
            said.extend_from_slice(piece.get(..count).unwrap_or_default());
            let excess = said.len().saturating_sub(MOST_SAID);
            said.drain(..excess);
        }
    }

    /// True once it has ended.
    fn take_end(&self) -> bool {
        let mut state = self.lock();
        let Some(child) = &mut state.child else { return true };
        let ended = match child.try_wait() {
            Ok(None) => return false,
            Ok(Some(status)) => Some(status),
            // Somebody else took it: it is over.
            Err(_) => None,
        };
        state.child = None;
        state.ended = Some(ended);
        true
    }
}

impl Process {
    /// Starts a program. It inherits `files`, under their numbers. `on_our_death` is what the kernel sends it
    /// when we are killed.
    ///
    /// # Errors
    /// Of the operating system; `NotFound` if there is no such program.
    pub fn start(mut command: Command, files: Vec<File>, on_our_death: Signal) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Ctrl-C is for us, who end it when we are ready. Its messages are read by a program.
        command.process_group(0).current_dir("/").env("LC_ALL", "C");
        bind_child(&mut command, files, on_our_death as libc::c_int);
        let shared = Arc::new(Shared::default());
        let (started, is_started) = channel();
        let kept = shared.clone();
        Builder::new().spawn(move || kept.keep(command, &started))?;
        let id = is_started.recv().map_err(io::Error::other)??;
        Ok(Self { shared, id })
    }

    /// True if it has ended.
    pub fn is_over(&self) -> bool {
        self.shared.lock().ended.is_some()
    }

    /// What it has said on stderr, the last of it.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().said).into_owned()
    }

    /// How it has ended.
    pub fn status(&self) -> Option<ExitStatus> {
        self.shared.lock().ended.flatten()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    fn signal(&self, signal: Signal) {
        let state = self.shared.lock();
        if state.child.is_some() {
            // It may be over, which is what we want.
            best_effort(kill(Pid::from_raw(self.id as i32), signal));
        }
    }

    fn await_end(&self, patience: Duration) -> bool {
        let begun = Instant::now();
        while !self.is_over() && begun.elapsed() < patience {
            sleep(STEP);
        }
        self.is_over()
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// `Unavailable` if it does not, or ends with an error.
    pub fn end(&self, name: &str) -> Result<()> {
        self.signal(Signal::SIGTERM);
        let failed = |why: String| {
            Error::new(ErrorKind::Unavailable, format!("{name} did not end cleanly: {why}"))
        };
        if !self.await_end(PATIENCE) {
            return Err(failed(format!("it is still running after {} s", PATIENCE.as_secs())));
        }
        match self.status() {
            Some(status) if !status.success() => Err(failed(status.to_string())),
            _ => Ok(()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_over() {
            return;
        }
        // One that writes leaves fewer traces if it may end by itself.
        self.signal(Signal::SIGTERM);
        if !self.await_end(PATIENCE) {
            self.signal(Signal::SIGKILL);
            self.await_end(PATIENCE);
        }
    }
}
