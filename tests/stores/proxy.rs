//! A proxy between a client and a server on this host: it counts requests, and does wrong to chosen ones.
//!
//! [`Proxy`] knows HTTP/1.1, with one connection to the server for each of the client. What is not to go
//! wrong passes as it is: heads byte for byte (signatures cover them, `Host` too), bodies as they come.
//! [`TcpProxy`] knows bytes alone.

mod answer;
mod life;
mod message;
mod origin;
mod relay;
mod tcp;
mod tests;
mod tests_tcp;

pub use tcp::{Counts, TcpProxy};

use life::Life;
use message::Head;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What is done to a request, or to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It goes on so much later, even if the client has given up by then.
    Delay(Duration),
    /// It does not go on; the connection is closed (FIN).
    Refuse,
    /// It is read to its end and does not go on; the connection is reset (RST).
    ResetBefore,
    /// It is read to its end and does not go on; the connection is closed after so long.
    Lost(Duration),
    /// It is carried out; the connection is reset (RST) before any answer.
    Unanswered,
    /// After so many bytes of the answer's body the connection is closed (FIN); its length is told as it was.
    CutBody(u64),
    /// The answer's body has only so many bytes, and `Content-Length` agrees.
    ShortBody(u64),
    /// It does not go on; the answer is this status, with an error of S3.
    Status(u16),
    /// It is carried out; the answer is this status, with an error of S3.
    StatusAfter(u16),
    /// It does not go on; the answer is 200 with an `<Error>`: CompleteMultipartUpload and copies have such.
    OkWithError,
    /// It is carried out; the answer is 200 with an `<Error>`.
    OkWithErrorAfter,
    /// The `ETag` of the answer is another.
    WrongETag,
    /// This byte of the answer's body is another (counted on from the start if the body is shorter).
    FlipByte(u64),
    /// It is sent a second time 50 ms after it was answered; the second answer is dropped.
    Twice,
    /// The answer's head comes, and half of its body, and the rest so much later.
    Stall(Duration),
}

/// A request, as a rule sees it before it goes on.
pub struct Asked<'a> {
    /// From 0 since the start or [`Proxy::clear`]: its place in [`Proxy::requests`].
    pub number: usize,
    /// `GET` and so on.
    pub method: &'a str,
    /// The path, with the query.
    pub target: &'a str,
    head: &'a Head,
}

impl Asked<'_> {
    /// What a header says; its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }
}

/// A request that was made, and what has become of it by now.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET` and so on.
    pub method: String,
    /// The path, with the query.
    pub target: String,
    /// Bytes of its body that were read, without the framing of chunks.
    pub body: u64,
    /// What the client was answered; none if it was not.
    pub status: Option<u16>,
    /// Bytes of the answer's body that were passed on, without the framing of chunks.
    pub answer: u64,
    /// What was done. What could not be is not said: an answer without a body has none to cut.
    pub fault: Fault,
    /// When its head had come.
    pub start: Instant,
}

type Rule = Arc<dyn Fn(&Asked<'_>) -> Fault + Send + Sync>;

/// What the threads of a proxy share.
struct Shared {
    life: Arc<Life>,
    upstream: Mutex<SocketAddr>,
    rule: Mutex<Rule>,
    log: Mutex<Vec<Arc<Mutex<Request>>>>,
    latency: Mutex<Duration>,
    pace: Mutex<Pace>,
    in_flight: AtomicUsize,
    most: AtomicUsize,
    // Second copies of requests that have not gone yet.
    copies: AtomicUsize,
}

/// How fast bodies pass.
struct Pace {
    rate: Option<u64>,
    // When what has passed so far is through.
    free: Instant,
}

/// A guard against a test that panicked: what is in there is still right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An HTTP proxy, until it is dropped: then all connections are closed and all threads have ended.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, and passes all on.
    pub fn start(upstream: SocketAddr) -> Self {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            life: Arc::new(Life::default()),
            upstream: Mutex::new(upstream),
            rule: Mutex::new(Arc::new(|_: &Asked<'_>| Fault::None)),
            log: Mutex::default(),
            latency: Mutex::default(),
            pace: Mutex::new(Pace { rate: None, free: now }),
            in_flight: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            copies: AtomicUsize::new(0),
        });
        let each = {
            let shared = Arc::clone(&shared);
            move |client| relay::serve(&shared, client)
        };
        let address = life::listen(&shared.life, each);
        Self { shared, address }
    }

    /// What clients are told: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Decides from now on what is done to each request. It may be asked by several threads at once.
    pub fn set_rule(&self, rule: impl Fn(&Asked<'_>) -> Fault + Send + Sync + 'static) {
        *lock(&self.shared.rule) = Arc::new(rule);
    }

    /// What is added to each request's round trip: half of it there, half of it back.
    pub fn set_latency(&self, latency: Duration) {
        *lock(&self.shared.latency) = latency;
    }

    /// Bytes a second of all bodies together, both ways.
    pub fn set_rate(&self, rate: Option<u64>) {
        *lock(&self.shared.pace) = Pace { rate: rate.map(|r| r.max(1)), free: Instant::now() };
    }

    /// Where requests go from now on. Those that are under way end where they are.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// All requests since the start or `clear`, in the order in which they came.
    ///
    /// What a client has been answered stands here already.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.log).iter().map(|entry| lock(entry).clone()).collect()
    }

    /// Forgets the requests, and how many there were at once.
    pub fn clear(&self) {
        let mut log = lock(&self.shared.log);
        log.clear();
        self.shared.most.store(self.shared.in_flight.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// The highest number of requests that were under way at the same time, since the start or `clear`.
    pub fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }

    /// Waits until no request is under way, and no second copy of one; false if there is after a minute.
    pub fn settle(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        let is_busy = || {
            let under_way = [&self.shared.in_flight, &self.shared.copies];
            under_way.iter().any(|count| count.load(Ordering::SeqCst) > 0)
        };
        while is_busy() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        !is_busy()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.life.end(self.address);
    }
}

impl Shared {
    /// Waits for half of the latency.
    fn travel(&self) -> std::io::Result<()> {
        let latency = *lock(&self.latency);
        self.life.sleep(latency / 2)
    }

    /// The pieces that a body passes in, and the wait before each one.
    fn piece(&self) -> usize {
        let rate = lock(&self.pace).rate;
        // Small enough that it flows, large enough that sleeping is exact.
        rate.map_or(usize::MAX, |rate| (rate / 200).clamp(512, 256 << 10) as usize)
    }

    fn pace(&self, bytes: usize) -> std::io::Result<()> {
        let wait = {
            let mut pace = lock(&self.pace);
            let Some(rate) = pace.rate else { return Ok(()) };
            let now = Instant::now();
            let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
            pace.free = pace.free.max(now) + takes;
            pace.free - now
        };
        self.life.sleep(wait)
    }
}
