//! A small server and a small client of its own for the tests of the proxy, written apart from it.

use super::life::{self, Life};
use super::lock;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A request that was carried out: its head and the bytes of its body.
pub type Done = (String, u64);

/// What the server knows.
#[derive(Default)]
pub struct State {
    done: Mutex<Vec<Done>>,
    /// How many there were.
    pub connections: AtomicUsize,
    /// Bytes of bodies that have come.
    pub come: AtomicU64,
    waiting: Mutex<usize>,
    met: Condvar,
}

/// A server. The path says what it answers: `/bytes/N`, `/chunks/N`, `/end/N` and `/old/N` so many bytes, of
/// known length, in chunks, until the connection ends, and in HTTP/1.0; `/meet/N` nothing before so many ask
/// for it; `/early` an error without reading the body, `/stuck` the same and does not close; `/same` 304.
pub struct Origin {
    life: Arc<Life>,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it knows.
    pub state: Arc<State>,
}

impl Origin {
    /// Listens on a free port.
    pub fn start() -> Self {
        let (life, state) = (Arc::new(Life::default()), Arc::new(State::default()));
        let own = Arc::clone(&state);
        let address = life::listen(&life, move |stream| {
            own.connections.fetch_add(1, Ordering::SeqCst);
            // A client that went away.
            drop(own.serve(&stream));
        });
        Self { life, address, state }
    }

    /// What was carried out, in its order.
    pub fn done(&self) -> Vec<Done> {
        lock(&self.state.done).clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.life.end(self.address);
    }
}

/// Waits for something that comes soon.
pub fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a body of so many bytes is.
pub fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i % 251) as u8).collect()
}

/// The same in chunks, with all that chunks may have.
pub fn chunks(bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for (number, chunk) in content(bytes).chunks(70_001).enumerate() {
        let extension = if number % 2 == 0 { ";name=\"a;b\"" } else { "" };
        all.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
        all.extend_from_slice(chunk);
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"0\r\nX-Sum: 12\r\nX-More: 3\r\n\r\n");
    all
}

/// Lines until an empty one; none at the end of the connection.
fn read_head(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Reads a body in chunks.
fn read_chunks(from: &mut impl BufRead, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let digits = line.trim_end().split(';').next().unwrap_or("");
        let size = usize::from_str_radix(digits, 16).map_err(io::Error::other)?;
        if size == 0 {
            while from.read_line(&mut line)? > 2 {}
            return Ok(());
        }
        let mut chunk = vec![0; size + 2];
        from.read_exact(&mut chunk)?;
        each(&chunk[..size]);
    }
}

impl State {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let (mut from, mut to) = (BufReader::with_capacity(256 << 10, stream), stream);
        while let Some(head) = read_head(&mut from)? {
            let mut words = head.split(' ');
            let (method, target) = (words.next().unwrap(), words.next().unwrap());
            if ["/early", "/stuck"].contains(&target) {
                to.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nearly")?;
                if target == "/stuck" {
                    std::thread::sleep(Duration::from_secs(3));
                }
                return Ok(());
            }
            if value(&head, "expect").is_some() {
                to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let body = self.read_body(&head, &mut from)?;
            lock(&self.done).push((head.clone(), body));
            if let Some(count) = target.strip_prefix("/meet/") {
                self.meet(count.parse().unwrap());
            }
            if !answer(method, target, to)? {
                break;
            }
        }
        Ok(())
    }

    fn read_body(&self, head: &str, from: &mut impl BufRead) -> io::Result<u64> {
        let mut all = 0;
        let mut count = |bytes: usize| {
            all += bytes as u64;
            self.come.fetch_add(bytes as u64, Ordering::SeqCst);
        };
        if value(head, "transfer-encoding").is_some() {
            read_chunks(from, |bytes| count(bytes.len()))?;
            return Ok(all);
        }
        let mut left: usize =
            value(head, "content-length").map_or(0, |length| length.parse().unwrap());
        while left > 0 {
            let bytes = from.fill_buf()?.len().min(left);
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            from.consume(bytes);
            left -= bytes;
            count(bytes);
        }
        Ok(all)
    }

    /// Waits until so many are here at once.
    fn meet(&self, count: usize) {
        let mut waiting = lock(&self.waiting);
        *waiting += 1;
        self.met.notify_all();
        let long = Duration::from_secs(60);
        drop(self.met.wait_timeout_while(waiting, long, |waiting| *waiting < count).unwrap());
    }
}

/// Answers; false if the connection ends with it.
fn answer(method: &str, target: &str, mut to: &TcpStream) -> io::Result<bool> {
    let (kind, bytes) = target.trim_start_matches('/').split_once('/').unwrap_or((target, "0"));
    let bytes = bytes.parse().unwrap_or(0);
    let body = content(bytes);
    let start = "HTTP/1.1 200 OK\r\neTag:  \"e1\"\r\n";
    match (method, kind) {
        ("HEAD", _) => write!(to, "{start}Content-Length: {bytes}\r\n\r\n")?,
        ("DELETE", _) => write!(to, "HTTP/1.1 204 No Content\r\n\r\n")?,
        (_, "/same") => write!(to, "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n")?,
        (_, "bytes") => {
            let head = format!("{start}Content-Length: {bytes}\r\n\r\n");
            to.write_all(&[head.as_bytes(), &body].concat())?;
        }
        (_, "chunks") => {
            write!(to, "{start}Transfer-Encoding: chunked\r\n\r\n")?;
            to.write_all(&chunks(bytes))?;
        }
        (_, "end") => {
            write!(to, "{start}Connection: close\r\n\r\n")?;
            to.write_all(&body)?;
            return Ok(false);
        }
        (_, "old") => {
            write!(to, "HTTP/1.0 200 OK\r\nContent-Length: {bytes}\r\n\r\n")?;
            to.write_all(&body)?;
            return Ok(false);
        }
        _ => write!(to, "{start}Content-Length: 0\r\n\r\n")?,
    }
    Ok(true)
}

/// One connection of a client.
pub struct Client {
    /// What it reads from.
    pub stream: BufReader<TcpStream>,
}

/// An answer, as far as it came.
#[derive(Debug)]
pub struct Answer {
    /// Of its first line.
    pub status: u16,
    /// All of it.
    pub head: String,
    /// Without the framing of chunks.
    pub body: Vec<u8>,
    /// False if the connection ended inside of the body.
    pub is_whole: bool,
}

impl Answer {
    /// The body, which is text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

impl Client {
    /// Connects.
    pub fn new(url: &str) -> Self {
        let stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        // Nothing here takes as long.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Sends anything.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_ref().write_all(bytes)
    }

    /// The answer to what was sent.
    pub fn answer(&mut self, method: &str) -> io::Result<Answer> {
        let head = read_head(&mut self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let (mut body, mut is_whole) = (Vec::new(), true);
        let has_none = method == "HEAD" || [100, 204, 304].contains(&status);
        if has_none {
            // What else comes would be the next answer.
        } else if value(&head, "transfer-encoding").is_some() {
            is_whole = read_chunks(&mut self.stream, |bytes| body.extend_from_slice(bytes)).is_ok();
        } else if let Some(length) = value(&head, "content-length") {
            let length = length.parse().unwrap();
            is_whole = self.stream.by_ref().take(length).read_to_end(&mut body)? as u64 == length;
        } else {
            self.stream.read_to_end(&mut body)?;
        }
        Ok(Answer { status, head, body, is_whole })
    }

    /// A request with a body, or without one.
    pub fn ask(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<Answer> {
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let head = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{length}\r\n");
        self.send(&[head.as_bytes(), body].concat())?;
        self.answer(method)
    }

    /// A request without a body.
    pub fn get(&mut self, target: &str) -> io::Result<Answer> {
        self.ask("GET", target, b"")
    }

    /// True if the server closes it now, without a reset.
    pub fn is_closed(&mut self) -> bool {
        self.stream.read(&mut [0]).is_ok_and(|bytes| bytes == 0)
    }
}
