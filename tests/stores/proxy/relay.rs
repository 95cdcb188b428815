//! One connection of a client: request after request.

use super::answer::{self, Next};
use super::life::{Reader, close};
use super::message::{Body, Head};
use super::{Asked, Fault, Request, Shared, lock};
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

// A body up to here fits into the socket's buffer: sending it does not wait for the server.
const SMALL: u64 = 64 << 10;

/// Serves a client until it or the server closes, or a fault does.
pub fn serve(shared: &Arc<Shared>, client: Arc<TcpStream>) {
    let mut connection = Connection { shared, client: Reader::new(client), upstream: None };
    loop {
        match connection.exchange() {
            Ok(Next::Request) => {}
            Ok(Next::Fresh) => connection.upstream = None,
            Ok(Next::Close) => return connection.hang_up(),
            // What goes wrong on one side ends the other.
            Ok(Next::Reset) | Err(_) => return,
        }
    }
}

struct Connection<'a> {
    shared: &'a Arc<Shared>,
    client: Reader,
    upstream: Option<Reader>,
}

/// A request that is under way.
pub struct Entry<'a> {
    shared: &'a Shared,
    request: Arc<Mutex<Request>>,
    is_over: AtomicBool,
}

impl<'a> Entry<'a> {
    /// Writes it into the log, and asks the rule.
    fn new(shared: &'a Shared, head: &Head) -> (Self, Fault) {
        let start = Instant::now();
        let [method, target, _] = head.words();
        let request = Arc::new(Mutex::new(Request {
            method: method.into(),
            target: target.into(),
            body: 0,
            status: None,
            answer: 0,
            fault: Fault::None,
            start,
        }));
        let number = {
            let mut log = lock(&shared.log);
            log.push(Arc::clone(&request));
            let at_once = shared.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
            shared.most.fetch_max(at_once, Ordering::SeqCst);
            log.len() - 1
        };
        let entry = Self { shared, request, is_over: AtomicBool::new(false) };
        let rule = Arc::clone(&lock(&shared.rule));
        let fault = rule(&Asked { number, method, target, head });
        lock(&entry.request).fault = fault;
        (entry, fault)
    }

    /// Some of its body was read.
    fn sent(&self, bytes: u64) {
        lock(&self.request).body += bytes;
    }

    /// It is answered so.
    pub fn status(&self, status: u16) {
        lock(&self.request).status = Some(status);
    }

    /// Some of the answer's body is about to be passed on.
    ///
    /// Before, not after: a client that has its answer finds the log right, and asks the next thing alone.
    pub fn answered(&self, bytes: u64, is_last: bool) {
        lock(&self.request).answer += bytes;
        if is_last {
            self.over();
        }
    }

    /// The fault could not be done.
    pub fn undone(&self) {
        lock(&self.request).fault = Fault::None;
    }

    fn over(&self) {
        if !self.is_over.swap(true, Ordering::SeqCst) {
            self.shared.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.over();
    }
}

/// A request whose second copy has not gone yet.
struct Copy(Arc<Shared>);

impl Copy {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.copies.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let shared = &self.0;
        shared.life.sleep(Duration::from_millis(50))?;
        let upstream = *lock(&shared.upstream);
        let mut upstream = Reader::new(shared.life.connect(upstream)?);
        upstream.stream().as_ref().write_all(bytes)?;
        let method = bytes.split(|&b| b == b' ').next().and_then(|word| str::from_utf8(word).ok());
        while let Some(head) = Head::read(&mut upstream)? {
            if head.status()? >= 200 {
                return head.body_of_answer(method.unwrap_or(""))?.read(&mut upstream, |_| {});
            }
        }
        Ok(())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.copies.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Connection<'_> {
    fn exchange(&mut self) -> io::Result<Next> {
        let shared = self.shared;
        // Until it is known that the connection will not be reset.
        self.client.keep(true)?;
        let Some(head) = Head::read(&mut self.client)? else { return Ok(Next::Close) };
        let (entry, fault) = Entry::new(shared, &head);
        self.client.keep(matches!(fault, Fault::ResetBefore | Fault::Unanswered))?;
        let mut body = head.body_of_request()?;
        shared.travel()?;
        let next = match fault {
            Fault::Refuse => Next::Close,
            Fault::ResetBefore | Fault::Lost(_) | Fault::Status(_) | Fault::OkWithError => {
                if head.waits() {
                    self.client.stream().as_ref().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                let note = |_: &[u8], bytes, _| entry.sent(bytes);
                pass(shared, &mut self.client, &mut body, None, b"", note)?;
                match fault {
                    Fault::ResetBefore => Next::Reset,
                    Fault::Lost(long) => {
                        self.client.await_close(long)?;
                        Next::Close
                    }
                    _ => {
                        shared.travel()?;
                        answer::tell(&entry, self.client.stream(), head.words()[0], fault)?
                    }
                }
            }
            Fault::Delay(long) => {
                shared.life.sleep(long)?;
                self.forward(&head, body, &entry, fault)?
            }
            _ => self.forward(&head, body, &entry, fault)?,
        };
        match next {
            Next::Request | Next::Fresh if head.closes() => Ok(Next::Close),
            next => Ok(next),
        }
    }

    /// Lets a request go on, and what comes back.
    fn forward(
        &mut self,
        head: &Head,
        body: Body,
        entry: &Entry,
        fault: Fault,
    ) -> io::Result<Next> {
        let shared = self.shared;
        let mut copy = (fault == Fault::Twice).then(|| (Copy::new(shared), Vec::new()));
        let to = *lock(&shared.upstream);
        let is_good = |upstream: &Reader| {
            upstream.stream().peer_addr().is_ok_and(|address| address == to) && upstream.is_idle()
        };
        let upstream = match self.upstream.take().filter(is_good) {
            Some(upstream) => upstream,
            None => Reader::new(shared.life.connect(to)?),
        };
        let upstream = self.upstream.insert(upstream);
        let server = Arc::clone(upstream.stream());
        let client = Arc::clone(self.client.stream());
        let is_small = matches!(body, Body::Length(..=SMALL)) && !head.waits();
        let gives_up = if is_small { None } else { Some(self.client.end_of_patience()?) };
        let (from, copied) = (&mut self.client, copy.as_mut().map(|(_, bytes)| bytes));
        let (done, is_done) = mpsc::channel();
        let next = std::thread::scope(|scope| {
            let send = {
                let (mut body, server) = (body, Arc::clone(&server));
                let raw = &head.raw;
                move || {
                    let mut copied = copied;
                    let note = |bytes: &[u8], content, _| {
                        entry.sent(content);
                        if let Some(copied) = &mut copied {
                            copied.extend_from_slice(bytes);
                        }
                    };
                    let passed = pass(shared, from, &mut body, Some(&server), raw, note);
                    if passed.is_err() {
                        // The server learns that no more comes; it may have answered already.
                        drop(server.shutdown(Shutdown::Write));
                    }
                    // Nobody waits for it if the answer was sooner.
                    done.send(passed.is_ok()).ok();
                }
            };
            // The answer may come before the end of what is sent: then both sides go on at once.
            if is_small {
                send();
            } else {
                scope.spawn(send);
            }
            let next = answer::pass_back(shared, entry, upstream, &client, head.words()[0], fault);
            let patience = Duration::from_secs(if next.is_ok() { 1 } else { 0 });
            if !is_done.recv_timeout(patience).unwrap_or(false) {
                // The rest of the request is of no use to anybody.
                close(&server);
                if let Some(gives_up) = &gives_up {
                    gives_up.store(true, Ordering::SeqCst);
                }
                return next.map(|_| Next::Close);
            }
            next
        });
        if gives_up.is_some() {
            self.client.be_patient()?;
        }
        if let Some((copy, bytes)) = copy
            && next.is_ok()
        {
            // It is of no matter what becomes of it.
            shared.life.spawn(move || drop(copy.send(&bytes)));
        }
        next
    }

    /// Closes without a reset, which would take from the client what it has not read; with one if it goes on
    /// sending.
    fn hang_up(&mut self) {
        let closing = self.client.stream().shutdown(Shutdown::Write);
        let closing = closing.and_then(|()| self.client.keep(true));
        // What is wrong with it now is no matter.
        drop(closing.and_then(|()| self.client.await_close(Duration::from_secs(1))));
    }
}

/// Passes a head and a body on, or drops them; tells `note` each piece before: the bytes as they are, how
/// many of them are content, and whether they are the last.
pub fn pass(
    shared: &Shared,
    from: &mut Reader,
    body: &mut Body,
    to: Option<&TcpStream>,
    head: &[u8],
    mut note: impl FnMut(&[u8], u64, bool),
) -> io::Result<()> {
    let write = |bytes: &[u8]| to.map_or(Ok(()), |mut to| to.write_all(bytes));
    let mut head = Some(head).filter(|head| !head.is_empty());
    loop {
        if body.is_over() || from.filled().is_empty() {
            if let Some(head) = head.take() {
                note(head, 0, body.is_over());
                write(head)?;
            }
            if body.is_over() {
                note(b"", 0, true);
                return Ok(());
            }
            if from.fill()? == 0 {
                body.end()?;
                continue;
            }
        }
        let mut content = 0;
        let used = body.advance(from.filled(), |bytes| content += bytes.len() as u64)?;
        let bytes = &from.filled()[..used];
        let piece = shared.piece();
        let mut joined = Vec::new();
        if let Some(head) = head.take() {
            // A small body goes with its head: one packet, not two.
            if used <= piece {
                joined = [head, bytes].concat();
            } else {
                note(head, 0, false);
                write(head)?;
            }
        }
        let mut pieces = bytes.chunks(piece).peekable();
        while let Some(bytes) = pieces.next() {
            shared.pace(bytes.len())?;
            let raw = if joined.is_empty() { bytes } else { &joined };
            let is_last = pieces.peek().is_none() && body.is_over();
            note(raw, std::mem::take(&mut content), is_last);
            write(raw)?;
        }
        from.consume(used);
    }
}
