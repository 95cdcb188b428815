//! A proxy for protocols that it does not know: bytes, counted, late, and cut off.

use super::life::{self, Life, close};
use super::lock;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were made, those included that were closed at once.
    pub connections: usize,
    /// Bytes to the server.
    pub up: u64,
    /// Bytes to the clients.
    pub down: u64,
}

#[derive(Default)]
struct State {
    counts: Counts,
    latency: Duration,
    // What may still pass until the connections are cut.
    left: Option<u64>,
    // Whether they stay so.
    is_lasting: bool,
    is_broken: bool,
    // How often it was cut: a connection of a round before is closed.
    round: u64,
}

/// Which of the counts.
type Way = fn(&mut Counts) -> &mut u64;

/// When bytes arrive, and how many of the buffer they are.
type Piece = (Instant, Vec<u8>, usize);

struct Shared {
    life: Arc<Life>,
    upstream: SocketAddr,
    state: Mutex<State>,
}

/// A TCP proxy, until it is dropped: then all connections are closed and all threads have ended.
pub struct TcpProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl TcpProxy {
    /// Listens on a free port of 127.0.0.1, and passes all on.
    pub fn start(upstream: SocketAddr) -> Self {
        let (life, state) = (Arc::new(Life::default()), Mutex::default());
        let shared = Arc::new(Shared { life, upstream, state });
        let each = {
            let shared = Arc::clone(&shared);
            move |client| shared.connect(client)
        };
        let address = life::listen(&shared.life, each);
        Self { shared, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// After so many bytes more, of all connections both ways, all connections are closed. Later ones work.
    pub fn cut_after(&self, bytes: u64) {
        self.cut(bytes, false);
    }

    /// The same, but later ones are closed at once, until `mend`.
    pub fn break_after(&self, bytes: u64) {
        self.cut(bytes, true);
    }

    fn cut(&self, bytes: u64, is_lasting: bool) {
        let mut state = lock(&self.shared.state);
        (state.left, state.is_lasting, state.is_broken) = (Some(bytes), is_lasting, false);
        if bytes == 0 {
            state.cut();
            drop(state);
            self.shared.life.close_all();
        }
    }

    /// Nothing is cut any more.
    pub fn mend(&self) {
        let mut state = lock(&self.shared.state);
        (state.left, state.is_broken) = (None, false);
    }

    /// What is added to each round trip: half of it each way, however many bytes are under way.
    pub fn set_latency(&self, latency: Duration) {
        lock(&self.shared.state).latency = latency;
    }

    /// What has passed since the start.
    pub fn counts(&self) -> Counts {
        lock(&self.shared.state).counts
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.life.end(self.address);
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: Arc<TcpStream>) {
        let (is_broken, round) = {
            let mut state = lock(&self.state);
            state.counts.connections += 1;
            (state.is_broken, state.round)
        };
        if is_broken {
            return;
        }
        let Ok(server) = self.life.connect(self.upstream) else { return };
        if lock(&self.state).round != round {
            return;
        }
        let (up, down): (Way, Way) = (|counts| &mut counts.up, |counts| &mut counts.down);
        let ways = [(&client, &server, up), (&server, &client, down)];
        for (from, to, way) in ways {
            let (filled, written) = channel();
            let (used, free) = channel();
            let (shared, from, to) = (Arc::clone(self), Arc::clone(from), Arc::clone(to));
            let own = (Arc::clone(self), Arc::clone(&from));
            self.life.spawn(move || own.0.read(&own.1, &filled, &free, round));
            self.life.spawn(move || {
                // An error is the end of the connection, both ways.
                if shared.write(&to, &written, &used, round, way).is_err() {
                    close(&to);
                    close(&from);
                }
            });
        }
    }

    /// Reads one way; what is read has a time at which it arrives.
    fn read(
        &self,
        mut from: &TcpStream,
        filled: &Sender<Piece>,
        free: &Receiver<Vec<u8>>,
        round: u64,
    ) {
        // So that a fast sender is not slowed by the latency, and does not fill the memory.
        let mut buffers = 0;
        loop {
            let mut buffer = match free.try_recv() {
                Ok(buffer) => buffer,
                Err(_) if buffers < 512 => {
                    buffers += 1;
                    vec![0; 128 << 10]
                }
                Err(_) => match free.recv() {
                    Ok(buffer) => buffer,
                    Err(_) => return,
                },
            };
            let bytes = match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(_) => return,
            };
            // What is left unread makes it a reset, for a client that would wait for room without an end.
            if self.life.is_over() || lock(&self.state).round != round {
                return;
            }
            let due = Instant::now() + lock(&self.state).latency / 2;
            if filled.send((due, buffer, bytes)).is_err() {
                return;
            }
        }
    }

    /// Writes one way, until there is no more.
    fn write(
        &self,
        mut to: &TcpStream,
        written: &Receiver<Piece>,
        used: &Sender<Vec<u8>>,
        round: u64,
        way: Way,
    ) -> io::Result<()> {
        while let Ok((due, buffer, bytes)) = written.recv() {
            self.life.sleep(due.saturating_duration_since(Instant::now()))?;
            let Some((allowed, is_cut)) = self.allow(round, bytes, way) else { break };
            let written = to.write_all(&buffer[..allowed]);
            if is_cut {
                self.life.close_all();
            }
            written?;
            // Nobody takes it back if the other thread has ended.
            drop(used.send(buffer));
        }
        to.shutdown(Shutdown::Write)
    }

    /// How many of so many bytes may pass, which are counted, and whether all is cut after them. None if it
    /// has been already.
    fn allow(&self, round: u64, bytes: usize, way: Way) -> Option<(usize, bool)> {
        let mut state = lock(&self.state);
        if state.round != round {
            return None;
        }
        let left = state.left.map(|left| usize::try_from(left).unwrap_or(usize::MAX));
        let allowed = left.map_or(bytes, |left| left.min(bytes));
        *way(&mut state.counts) += allowed as u64;
        let is_cut = left == Some(allowed);
        state.left = state.left.map(|left| left - allowed as u64);
        if is_cut {
            state.cut();
        }
        Some((allowed, is_cut))
    }
}

impl State {
    fn cut(&mut self) {
        self.left = None;
        self.is_broken = self.is_lasting;
        self.round += 1;
    }
}
