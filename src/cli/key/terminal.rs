//! Asking for a passphrase on the terminal, where it is not shown.

use imgsnap::base::error::{Error, ErrorKind, Result, best_effort};
use imgsnap::base::secret::Secret;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;

/// No passphrase is longer.
const MAX_BYTES: usize = 1024;

/// True if somebody is there.
pub fn is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// A terminal that does not show what is typed, until it is dropped.
struct Hidden {
    terminal: File,
    was: Termios,
    /// Signals that would end or stop the process meanwhile wait until it shows again.
    signals: SigSet,
}

impl Hidden {
    fn begin() -> Result<Self> {
        let failed = |e| Error::os("open", "/dev/tty", e);
        let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(failed)?;
        let set = |e: nix::Error| failed(e.into());
        let was = tcgetattr(&terminal).map_err(set)?;
        let waiting: SigSet =
            [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP].into_iter().collect();
        let signals = waiting.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(set)?;
        let mut hidden = was.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        hidden.local_flags.insert(LocalFlags::ECHONL);
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &hidden).map_err(set)?;
        Ok(Self { terminal, was, signals })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        best_effort(tcsetattr(&self.terminal, SetArg::TCSAFLUSH, &self.was));
        best_effort(self.signals.thread_set_mask());
    }
}

/// Asks for one line. Ctrl-C ends it, and the terminal shows what is typed again.
pub fn ask(prompt: &str) -> Result<Secret> {
    let mut hidden = Hidden::begin()?;
    let failed = |e| Error::os("use", "/dev/tty", e);
    hidden.terminal.write_all(prompt.as_bytes()).map_err(failed)?;
    let mut line = Secret::new(vec![0; MAX_BYTES])?;
    let mut count = 0;
    loop {
        // Which a signal interrupts: a read is begun again.
        let mut ready = [PollFd::new(hidden.terminal.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => {
                best_effort(hidden.terminal.write_all(b"\n"));
                return Err(Error::new(ErrorKind::Interrupted, "stopped"));
            }
            other => other.map_err(|e| failed(e.into()))?,
        };
        let mut byte = [0];
        match hidden.terminal.read(&mut byte).map_err(failed)? {
            0 => break,
            _ if byte == *b"\n" => break,
            _ => {}
        }
        let too_long = || Error::new(ErrorKind::InvalidInput, "the passphrase is too long");
        *line.bytes_mut().get_mut(count).ok_or_else(too_long)? = byte[0];
        count += 1;
    }
    if count == 0 {
        return Err(Error::new(ErrorKind::InvalidInput, "no passphrase was entered"));
    }
    Secret::copy(line.bytes().get(..count).unwrap_or_default())
}

/// Asks for a new one, twice.
pub fn ask_new(prompt: &str) -> Result<Secret> {
    let first = ask(prompt)?;
    let second = ask("repeat the passphrase: ")?;
    match first.bytes() == second.bytes() {
        true => Ok(first),
        false => Err(Error::new(ErrorKind::InvalidInput, "the passphrases do not match")),
    }
}
