//! A process that undoes one thing when we cannot: when we are killed, or do not come to it in time.
//!
//! It is a fork of this process that never becomes another program, so it needs no memory to begin, nor
//! anything in a file system that may be frozen. This process may have other threads, which the fork has not,
//! but may hold locks in it for ever. So all that it runs is in this file: system calls, and arithmetic on
//! what was made before the fork. Nothing there allocates, takes a lock, or can panic.

use super::freeze::thaw_file_system;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What a guard does.
pub enum Duty {
    /// Thaws the file system of this file.
    Thaw(OwnedFd),
    /// Sends something to a socket.
    Send {
        /// The socket, of which this process may have another descriptor.
        socket: OwnedFd,
        /// What is sent.
        text: Vec<u8>,
        /// Something that is only in the answer.
        answer: Vec<u8>,
        /// It is sent again while there is no answer.
        repeats: bool,
    },
}

/// To a guard: from now on there is something to undo.
pub const ARM: u8 = b'+';
/// To a guard: there is nothing to undo any more.
pub const DISARM: u8 = b'-';
/// To a guard: end.
pub const END: u8 = b'.';
/// From a guard: it has no descriptor but its own.
pub const READY: u8 = b'r';
/// From a guard: it begins to undo.
pub const ACTS: u8 = b'!';

/// How long it tries once we are gone, in milliseconds.
const LAST_TRY: i64 = 6000;
/// The same for a file system of which the kernel says that it is not frozen.
const THAW_TRY: i64 = 1000;
/// Between two tries.
const STEP: i64 = 50;
/// Until something that has no answer is sent again.
const REPEAT: i64 = 1000;
/// The most descriptors that are closed one by one, where the kernel cannot close a range.
const MOST_CLOSED: u32 = 1 << 16;

/// Starts a guard, which is told what to do by `control`, one of two connected sockets: [`ARM`], [`DISARM`],
/// [`END`]. Armed, it does its duty if that is not over after `limit`, and says so ([`ACTS`]). It ends when
/// it is told to, and some seconds after the other end of `control` was closed: its process and all that have
/// copies of it are gone then; and if it is armed at that moment, it does its duty. Gives its process id. It
/// has said [`READY`] when it has let go of all other descriptors.
///
/// # Errors
/// Of the operating system: no memory, too many processes.
pub fn fork_guard(control: OwnedFd, duty: Duty, limit: Duration) -> io::Result<libc::pid_t> {
    let own = match &duty {
        Duty::Thaw(file) => file.as_raw_fd(),
        Duty::Send { socket, .. } => socket.as_raw_fd(),
    };
    let kept = [control.as_raw_fd().min(own), control.as_raw_fd().max(own)];
    let limit = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
    // SAFETY: all-zero bytes are a valid set of signals; the pointers are valid for the calls.
    let (all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        (all, std::mem::zeroed())
    };
    // No handler of ours may run in it, and nobody but who kills it ends it: it has all signals blocked.
    // SAFETY: sets of signals that live through the calls. What the child does after the fork is said at the
    // head of this file; it uses the descriptors and the memory of this frame, copies of which it has for
    // ever, since it never leaves `guard`.
    let id = unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let id = libc::fork();
        if id == 0 {
            Guard { control: control.as_raw_fd(), duty: &duty, limit, state: State::NONE }
                .run(kept);
        }
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        if id < 0 { Err(error) } else { Ok(id) }
    };
    drop((control, duty));
    id
}

struct Guard<'a> {
    control: RawFd,
    duty: &'a Duty,
    limit: i64,
    state: State,
}

/// What was done since it was armed.
struct State {
    /// So much of the text was sent.
    sent: usize,
    /// The file system was thawed, or the text was sent: it is not done again while we live.
    is_done: bool,
}

impl State {
    const NONE: Self = Self { sent: 0, is_done: false };
}

/// What it is told.
enum Told {
    Nothing,
    Byte(u8),
    Gone,
}

impl Guard<'_> {
    fn run(mut self, kept: [RawFd; 2]) -> ! {
        prepare(kept);
        self.tell(READY);
        let mut deadline = None;
        let mut has_acted = false;
        loop {
            match self.told() {
                Told::Byte(ARM) => {
                    deadline = deadline.or(Some(now().saturating_add(self.limit)));
                    continue;
                }
                Told::Byte(DISARM) => {
                    (deadline, self.state) = (None, State::NONE);
                    continue;
                }
                Told::Byte(END) => end(),
                Told::Byte(_) => continue,
                Told::Gone => {
                    if deadline.is_some() {
                        self.do_at_last();
                    }
                    end()
                }
                Told::Nothing => {}
            }
            let Some(at) = deadline else {
                wait_for(self.control, libc::POLLIN, -1);
                continue;
            };
            let left = at.saturating_sub(now());
            if left <= 0 {
                if !has_acted {
                    self.tell(ACTS);
                    has_acted = true;
                }
                self.do_while_we_live();
            }
            let pause = match self.state.is_done {
                _ if left > 0 => left,
                true => -1,
                false => STEP,
            };
            wait_for(self.control, libc::POLLIN, pause);
        }
    }

    /// We live, and take too long: it is done once. We may be about to freeze, or in the middle of it: the
    /// kernel says that nothing is frozen, and it is tried again. We read the socket, so it does not.
    fn do_while_we_live(&mut self) {
        if self.state.is_done {
            return;
        }
        self.state.is_done = match self.duty {
            Duty::Thaw(file) => thaw_file_system(file.as_fd()).is_ok(),
            Duty::Send { socket, text, .. } => self.state.send(socket.as_raw_fd(), text),
        };
    }

    /// We are gone.
    fn do_at_last(&mut self) {
        let begun = now();
        match self.duty {
            Duty::Thaw(file) => loop {
                let is_thawed = thaw_file_system(file.as_fd()).is_ok();
                if is_thawed || now().saturating_sub(begun) > THAW_TRY {
                    return;
                }
                wait_for(-1, 0, STEP);
            },
            Duty::Send { socket, text, answer, repeats } => {
                let socket = socket.as_raw_fd();
                let mut search = Search { bytes: [0; 4096], length: 0 };
                let mut sent_at = begun;
                self.state = State::NONE;
                while now().saturating_sub(begun) < LAST_TRY {
                    if !self.state.is_done {
                        self.state.is_done = self.state.send(socket, text);
                        sent_at = now();
                    }
                    match search.next(socket, answer) {
                        Found::Yes => return,
                        Found::More => continue,
                        Found::NotYet => {}
                    }
                    wait_for(socket, libc::POLLIN, STEP);
                    if *repeats && now().saturating_sub(sent_at) > REPEAT {
                        self.state = State::NONE;
                    }
                }
            }
        }
    }

    fn told(&self) -> Told {
        let mut byte = [0_u8];
        match receive(self.control, &mut byte) {
            1 => Told::Byte(u8::from_le_bytes(byte)),
            0 => Told::Gone,
            _ if is_for_now() => Told::Nothing,
            _ => Told::Gone,
        }
    }

    fn tell(&self, byte: u8) {
        // Whoever does not hear it is gone, or sees later what was done.
        send(self.control, &[byte]);
    }
}

impl State {
    /// Sends what is left of a text. True if all of it is sent, or nothing can be sent any more.
    fn send(&mut self, socket: RawFd, text: &[u8]) -> bool {
        loop {
            let rest = text.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                return true;
            }
            match usize::try_from(send(socket, rest)) {
                Ok(count) => self.sent = self.sent.saturating_add(count),
                Err(_) => return !is_for_now(),
            }
        }
    }
}

/// What was received last, in which an answer is looked for.
struct Search {
    bytes: [u8; 4096],
    length: usize,
}

enum Found {
    /// It is there, or nothing comes any more.
    Yes,
    /// Something else came.
    More,
    NotYet,
}

impl Search {
    fn next(&mut self, socket: RawFd, answer: &[u8]) -> Found {
        let rest = self.bytes.get_mut(self.length..).unwrap_or_default();
        let count = match usize::try_from(receive(socket, rest)) {
            Ok(0) => return Found::Yes,
            Ok(count) => count,
            Err(_) if is_for_now() => return Found::NotYet,
            Err(_) => return Found::Yes,
        };
        self.length = self.length.saturating_add(count).min(self.bytes.len());
        let received = self.bytes.get(..self.length).unwrap_or_default();
        if (0..received.len()).any(|at| received.get(at..).is_some_and(|r| r.starts_with(answer))) {
            return Found::Yes;
        }
        // It may have begun with the last bytes. An answer is much shorter than what is kept for it.
        let kept = answer.len().min(self.length).min(1024);
        self.bytes.copy_within(self.length.saturating_sub(kept)..self.length, 0);
        self.length = kept;
        Found::More
    }
}

/// What comes first: a session of its own, so that no terminal reaches it; a name; and no descriptor but
/// its own, and no folder: what is locked, leased, mounted or listened to is not held by it.
fn prepare(kept: [RawFd; 2]) {
    // SAFETY: numbers, and strings with their end, which live through the calls.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"imgsnap-guard".as_ptr());
        libc::chdir(c"/".as_ptr());
    }
    let [low, high] = kept.map(|fd| u32::try_from(fd).unwrap_or_default());
    if low > 0 {
        close_range(0, low.saturating_sub(1));
    }
    if high > low.saturating_add(1) {
        close_range(low.saturating_add(1), high.saturating_sub(1));
    }
    close_range(high.saturating_add(1), u32::MAX);
}

fn close_range(first: u32, last: u32) {
    let (from, to) = (libc::c_ulong::from(first), libc::c_ulong::from(last));
    // SAFETY: numbers of a register's width. Nobody in this process uses what is closed: it has one thread,
    // and that uses the two descriptors which are in none of the ranges.
    let is_closed =
        unsafe { libc::syscall(libc::SYS_close_range, from, to, 0 as libc::c_ulong) } == 0;
    if !is_closed {
        // Before Linux 5.9.
        for fd in first..=last.min(first.saturating_add(MOST_CLOSED)) {
            // SAFETY: as above.
            unsafe { libc::close(fd as RawFd) };
        }
    }
}

fn end() -> ! {
    // SAFETY: a number; it runs no handler of this process.
    unsafe { libc::_exit(0) }
}

/// Milliseconds since some moment.
fn now() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a structure that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

/// Waits until something of a descriptor is ready, and no longer than so many milliseconds.
fn wait_for(fd: RawFd, events: libc::c_short, milliseconds: i64) {
    let mut wanted = libc::pollfd { fd, events, revents: 0 };
    let timeout = libc::c_int::try_from(milliseconds).unwrap_or(libc::c_int::MAX);
    // SAFETY: one structure, as is said, that lives through the call.
    unsafe { libc::poll(&raw mut wanted, 1, timeout) };
}

fn send(socket: RawFd, bytes: &[u8]) -> isize {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: a buffer that is as long as is said; the kernel only reads it.
    unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) }
}

fn receive(socket: RawFd, bytes: &mut [u8]) -> isize {
    // SAFETY: a buffer that is as long as is said.
    unsafe { libc::recv(socket, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) }
}

/// True if what failed last failed for this moment alone.
fn is_for_now() -> bool {
    let number = io::Error::last_os_error().raw_os_error();
    matches!(number, Some(libc::EAGAIN | libc::EINTR))
}
