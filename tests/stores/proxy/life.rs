//! Threads and sockets that end together, and sockets that can be reset.

use super::lock;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is open and what runs.
#[derive(Default)]
pub struct Life {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    is_over: bool,
    sockets: Vec<Weak<TcpStream>>,
    threads: Vec<JoinHandle<()>>,
    panics: usize,
}

fn over() -> io::Error {
    io::Error::other("the proxy has ended")
}

impl Life {
    /// Takes a socket, which is closed at the end.
    pub fn adopt(&self, stream: TcpStream) -> io::Result<Arc<TcpStream>> {
        stream.set_nodelay(true)?;
        let stream = Arc::new(stream);
        let mut state = lock(&self.state);
        if state.is_over {
            return Err(over());
        }
        state.sockets.retain(|socket| socket.strong_count() > 0);
        state.sockets.push(Arc::downgrade(&stream));
        Ok(stream)
    }

    /// Connects to a server of this host.
    pub fn connect(&self, to: SocketAddr) -> io::Result<Arc<TcpStream>> {
        self.adopt(TcpStream::connect_timeout(&to, Duration::from_secs(5))?)
    }

    /// Closes all connections.
    pub fn close_all(&self) {
        let sockets: Vec<_> = lock(&self.state).sockets.iter().filter_map(Weak::upgrade).collect();
        for socket in sockets {
            close(&socket);
        }
    }

    /// Runs something in a thread that is waited for at the end.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.state);
        if state.is_over {
            return;
        }
        // What has ended but is not joined keeps its stack.
        let over: Vec<_> = state.threads.extract_if(.., |thread| thread.is_finished()).collect();
        state.panics += over.into_iter().filter_map(|thread| thread.join().err()).count();
        state.threads.push(std::thread::spawn(work));
    }

    /// Waits for so long; an error if the end comes first.
    pub fn sleep(&self, duration: Duration) -> io::Result<()> {
        if duration.is_zero() {
            return Ok(());
        }
        let state = lock(&self.state);
        let slept = self.ended.wait_timeout_while(state, duration, |state| !state.is_over);
        let (state, _) = slept.unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.is_over { Err(over()) } else { Ok(()) }
    }

    /// Ends all, and waits for it. A rule that panicked is told here.
    pub fn end(&self, listener: SocketAddr) {
        lock(&self.state).is_over = true;
        self.ended.notify_all();
        // Wakes the thread that accepts. If that does not work, it is not asleep.
        drop(TcpStream::connect(listener));
        self.close_all();
        let threads = std::mem::take(&mut lock(&self.state).threads);
        let ends = threads.into_iter().map(JoinHandle::join);
        let panics = ends.filter_map(Result::err).count() + lock(&self.state).panics;
        assert!(panics == 0 || std::thread::panicking(), "{panics} threads of a proxy panicked");
    }

    /// True at the end.
    pub fn is_over(&self) -> bool {
        lock(&self.state).is_over
    }
}

/// Listens on a free port; each connection has a thread.
pub fn listen<F>(life: &Arc<Life>, each: F) -> SocketAddr
where
    F: Fn(Arc<TcpStream>) + Send + Sync + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let each = Arc::new(each);
    let own = Arc::clone(life);
    life.spawn(move || {
        while !own.is_over() {
            match listener.accept() {
                Ok((stream, _)) => {
                    let Ok(stream) = own.adopt(stream) else { continue };
                    let each = Arc::clone(&each);
                    own.spawn(move || each(stream));
                }
                // Too many open files, or a client that was too fast.
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    address
}

/// Wakes whoever reads it or writes to it, here and there. An error means that it is closed.
pub fn close(stream: &TcpStream) {
    drop(stream.shutdown(Shutdown::Both));
}

const BUFFER: usize = 256 << 10;

/// Reads a socket.
///
/// If it `keeps`, what was read last stays in the socket as well: a socket that is closed while it holds
/// something unread sends a reset (RFC 2525, 2.17), which `std` has no other way to ask for.
pub struct Reader {
    stream: Arc<TcpStream>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    // So many bytes before `end` are still in the socket.
    kept: usize,
    keeps: bool,
    // If so, a read that takes too long is an error.
    is_given_up: Arc<AtomicBool>,
}

impl Reader {
    /// Has read nothing yet.
    pub fn new(stream: Arc<TcpStream>) -> Self {
        let (buffer, is_given_up) = (vec![0; BUFFER], Arc::default());
        Self { stream, buffer, start: 0, end: 0, kept: 0, keeps: false, is_given_up }
    }

    /// The socket, to write to.
    pub fn stream(&self) -> &Arc<TcpStream> {
        &self.stream
    }

    /// From now on the socket can be reset by dropping it, or no longer.
    pub fn keep(&mut self, keeps: bool) -> io::Result<()> {
        self.keeps = keeps;
        if keeps { Ok(()) } else { self.take_kept() }
    }

    /// What ends a read that waits in another thread, within a moment after it is set to true.
    ///
    /// It is not the socket that is closed for reading: Linux would tell the other side no more that there is
    /// room, which then waits for minutes to send the rest.
    pub fn end_of_patience(&self) -> io::Result<Arc<AtomicBool>> {
        self.stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Arc::clone(&self.is_given_up))
    }

    /// Reads wait for as long as it takes.
    pub fn be_patient(&self) -> io::Result<()> {
        self.stream.set_read_timeout(None)
    }

    fn take_kept(&mut self) -> io::Result<()> {
        let kept = self.end - self.kept..self.end;
        self.kept = 0;
        // The same bytes once more, over themselves.
        (&*self.stream).read_exact(&mut self.buffer[kept])
    }

    /// What was read and not consumed.
    pub fn filled(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// So many bytes of it are done with.
    pub fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        assert!(self.start <= self.end);
    }

    /// Waits for more: how much came, 0 at the end.
    pub fn fill(&mut self) -> io::Result<usize> {
        self.take_kept()?;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            return Err(io::Error::other("a head that is too long"));
        }
        let room = &mut self.buffer[self.end..];
        let bytes = loop {
            let read = match self.keeps {
                true => self.stream.peek(room),
                false => (&*self.stream).read(room),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // So the system tells that the time is over.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.is_given_up.load(Ordering::SeqCst) {
                        return Err(error);
                    }
                }
                read => break read?,
            }
        };
        self.end += bytes;
        self.kept = if self.keeps { bytes } else { 0 };
        Ok(bytes)
    }

    /// False if the other side has closed it, or has said something unasked.
    pub fn is_idle(&self) -> bool {
        let peek = || {
            self.stream.set_nonblocking(true)?;
            let peeked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            peeked
        };
        let waits = peek().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        waits && self.filled().is_empty()
    }

    /// Waits until the other side closes it, for so long at most.
    pub fn await_close(&mut self, longest: Duration) -> io::Result<()> {
        let deadline = Instant::now() + longest;
        self.is_given_up.store(true, Ordering::SeqCst);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.stream.set_read_timeout(Some(left))?;
            self.consume(self.filled().len());
            match self.fill() {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.filled().is_empty() {
            self.fill()?;
        }
        let bytes = self.filled().len().min(into.len());
        into[..bytes].copy_from_slice(&self.filled()[..bytes]);
        self.consume(bytes);
        Ok(bytes)
    }
}
