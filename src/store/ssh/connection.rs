//! The connection to a host: the program that makes it, and the answers that come by it.

use super::wire::{Answer, Ask, Outgoing, Request, Told, read_message, write_message};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::store::url::RemoteUrl;
use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the other host is told that this one is there. It gives up locks of one that is silent.
const PING: Duration = Duration::from_secs(20);
/// How long an answer may take: a disk that is very busy, or a folder with very many files.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the program may take to end once its input has.
const ENDING: Duration = Duration::from_secs(5);

/// A connection that is made, and may be lost by now.
pub(super) struct Connection {
    shared: Arc<Shared>,
    child: Mutex<Child>,
    /// Ends the thread that pings, when it is dropped.
    _pings: Sender<()>,
}

struct Shared {
    /// What to call the other host in messages.
    host: String,
    input: Mutex<Option<BufWriter<ChildStdin>>>,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
    /// What the program wrote last to its standard error, in one line.
    said: Mutex<String>,
}

#[derive(Default)]
struct Waiting {
    answers: HashMap<u64, Sender<(Answer, Vec<u8>)>>,
    /// Why there will be no more.
    lost: Option<String>,
    /// What failed of uploads, until somebody asks.
    failed: HashMap<u64, Error>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command that makes the connection: `ssh`, with all of its configuration, or what `IMGSNAP_SSH` names.
fn command(url: &RemoteUrl) -> Command {
    let variable = |name, usual: &str| {
        let set = std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        set.unwrap_or_else(|| usual.to_owned())
    };
    let ssh = variable("IMGSNAP_SSH", "ssh");
    let mut words = ssh.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("ssh"));
    command.args(words);
    if let Some(port) = url.port {
        command.args(["-p", &port.to_string()]);
    }
    let host = url.host.trim_start_matches('[').trim_end_matches(']');
    let user = url.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    // Nothing after it is an option.
    command.args(["-T", "--", &format!("{user}{host}")]);
    command.arg(format!("{} serve store --stdio", variable("IMGSNAP_SSH_PROGRAM", "imgsnap")));
    command
}

impl Connection {
    /// Makes one, and names the folder of a repository.
    ///
    /// # Errors
    /// `Unavailable`, or `Auth`, if there is none; what the other host says.
    pub fn open(url: &RemoteUrl) -> Result<Self> {
        let host = format!("{}://{}", url.kind.scheme(), url.host);
        let mut child = command(url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::io(format!("{host}: cannot start ssh"), e))?;
        let none = || Error::new(ErrorKind::Internal, format!("{host}: ssh without a pipe"));
        let input = child.stdin.take().ok_or_else(none)?;
        let output = child.stdout.take().ok_or_else(none)?;
        let errors = child.stderr.take().ok_or_else(none)?;
        let shared = Arc::new(Shared {
            host,
            input: Mutex::new(Some(BufWriter::with_capacity(64 << 10, input))),
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            said: Mutex::default(),
        });
        let failed = |e| Error::io("cannot start a thread", e);
        let of_errors = shared.clone();
        let listener = std::thread::Builder::new()
            .spawn(move || listen(BufReader::new(errors), &of_errors))
            .map_err(failed)?;
        let of_output = shared.clone();
        std::thread::Builder::new()
            .spawn(move || {
                let why = receive(BufReader::with_capacity(64 << 10, output), &of_output);
                // What the program says of it comes last.
                best_effort(listener.join());
                of_output.lose(why);
            })
            .map_err(failed)?;
        let (pings, end) = channel();
        let of_pings = shared.clone();
        std::thread::Builder::new().spawn(move || ping(&end, &of_pings)).map_err(failed)?;
        Ok(Self { shared, child: Mutex::new(child), _pings: pings })
    }

    /// What to call the other host in messages.
    pub fn host(&self) -> &str {
        &self.shared.host
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// What the other host says; `Unavailable` if the connection is lost.
    pub fn ask(&self, ask: Ask, body: &[u8]) -> Result<(u64, Told, Vec<u8>)> {
        let (id, answer) = self.shared.send(ask, body, true)?;
        let lost = || self.shared.lost();
        let answer = answer.ok_or_else(lost)?;
        let (answer, body) = answer.recv_timeout(PATIENCE).map_err(|e| match e {
            RecvTimeoutError::Disconnected => lost(),
            RecvTimeoutError::Timeout => {
                let what = format!("{}: no answer for {PATIENCE:?}", self.host());
                Error::new(ErrorKind::Unavailable, what)
            }
        })?;
        answer.told.map(|told| (id, told, body)).map_err(|e| e.of(self.host()))
    }

    /// Says something that is answered only if it fails.
    ///
    /// # Errors
    /// `Unavailable` if the connection is lost.
    pub fn say(&self, ask: Ask, body: &[u8]) -> Result<()> {
        self.shared.send(ask, body, false).map(drop)
    }

    /// What failed of an upload, if anything has.
    pub fn failure(&self, upload: u64) -> Option<Error> {
        lock(&self.shared.waiting).failed.remove(&upload)
    }

    /// True if there will be no more answers.
    pub fn is_lost(&self) -> bool {
        lock(&self.shared.waiting).lost.is_some()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The end of its input ends it; if not, it is ended.
        lock(&self.shared.input).take();
        let mut child = lock(&self.child);
        for _ in 0..ENDING.as_millis() / 10 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        best_effort(child.kill());
        best_effort(child.wait());
    }
}

impl Shared {
    #[allow(clippy::type_complexity, reason = "it is named once")]
    fn send(
        &self,
        ask: Ask,
        body: &[u8],
        is_answered: bool,
    ) -> Result<(u64, Option<Receiver<(Answer, Vec<u8>)>>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut answer = None;
        if is_answered {
            let (sender, receiver) = channel();
            let mut waiting = lock(&self.waiting);
            if waiting.lost.is_none() {
                waiting.answers.insert(id, sender);
            }
            answer = Some(receiver);
        }
        let request = Request { id, ask };
        let mut input = lock(&self.input);
        let sent = input.as_mut().is_some_and(|input| {
            let message = Outgoing { head: &request, body };
            let sent = write_message(input, &message);
            // What is followed by more need not go at once.
            sent.and_then(|()| if is_answered { input.flush() } else { Ok(()) }).is_ok()
        });
        drop(input);
        if !sent {
            // Whoever reads the answers finds out why.
            if let Some(answer) = &answer {
                best_effort(answer.recv_timeout(ENDING));
            }
            return Err(self.lost());
        }
        Ok((id, answer))
    }

    fn lost(&self) -> Error {
        let host = &self.host;
        let why = lock(&self.waiting).lost.clone();
        let why = why.unwrap_or_else(|| "the connection was closed".into());
        let is_denied = why.contains("Permission denied") || why.contains("verification failed");
        let kind = if is_denied { ErrorKind::Auth } else { ErrorKind::Unavailable };
        let error = Error::new(kind, format!("{host}: {why}"));
        match () {
            () if is_denied => error.hint("try to log in with ssh alone"),
            () if why.contains("not found") => {
                error.hint("install imgsnap there, or set IMGSNAP_SSH_PROGRAM to its path")
            }
            () => error.hint("check that the host can be reached, and try again"),
        }
    }

    fn lose(&self, why: String) {
        let said = lock(&self.said).clone();
        let mut waiting = lock(&self.waiting);
        waiting.lost.get_or_insert(if said.is_empty() { why } else { format!("{why}: {said}") });
        waiting.answers.clear();
    }
}

/// Hands answers to those who wait for them. Gives why there are no more.
fn receive(mut output: impl Read, shared: &Shared) -> String {
    loop {
        let (answer, body) = match read_message::<Answer>(&mut output) {
            Ok(Some(answer)) => answer,
            Ok(None) => return "the connection was closed".into(),
            Err(e) => return format!("the connection was lost: {e}"),
        };
        let mut waiting = lock(&shared.waiting);
        match (waiting.answers.remove(&answer.id), &answer.told) {
            // Nobody may wait any more.
            (Some(sender), _) => best_effort(sender.send((answer, body))),
            (None, Err(_)) => {
                let id = answer.id;
                if let Err(error) = answer.told {
                    waiting.failed.insert(id, error.of(&shared.host));
                }
            }
            (None, Ok(_)) => {}
        }
    }
}

/// So many lines, and letters of each, are told of what the program says.
const LINES: usize = 4;
const LETTERS: usize = 200;

/// Keeps the last lines that the program said.
fn listen(errors: impl BufRead, shared: &Shared) {
    let mut lines = VecDeque::new();
    for line in errors.split(b'\n').map_while(|line| line.ok()) {
        let line = String::from_utf8_lossy(&line);
        let line: String = line.trim().chars().filter(|c| !c.is_control()).take(LETTERS).collect();
        if !line.is_empty() {
            lines.push_back(line);
            if lines.len() > LINES {
                lines.pop_front();
            }
            *lock(&shared.said) = lines.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        }
    }
}

fn ping(end: &Receiver<()>, shared: &Shared) {
    while end.recv_timeout(PING) == Err(RecvTimeoutError::Timeout) {
        if shared.send(Ask::Ping, &[], false).is_err() {
            return;
        }
        // It is not kept back.
        if let Some(input) = lock(&shared.input).as_mut() {
            best_effort(input.flush());
        }
    }
}
