//! A QMP server that says whatever it likes.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread::{JoinHandle, spawn};
use tempfile::TempDir;

const GREETING_LINE: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "#,
    r#""capabilities": ["oob"]}}"#,
    "\r\n"
);
/// How long is waited for what does not come.
const SHORT: Duration = Duration::from_millis(300);

struct Fake {
    folder: TempDir,
    /// Ends when the client has gone.
    server: JoinHandle<()>,
}

type Next<'a> = &'a mut dyn FnMut() -> Option<Value>;
type Say<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// Greets, and takes the client's capabilities.
fn greet(next: Next, say: Say) {
    say(GREETING_LINE.as_bytes());
    let first = next().unwrap();
    assert_eq!(first["execute"], "qmp_capabilities");
    say(format!("{{\"return\": {{}}, \"id\": {}}}\r\n", first["id"]).as_bytes());
}

impl Fake {
    /// It serves one client: it takes what that says, and says what it likes.
    fn new(talk: impl FnOnce(Next, Say) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let server = spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut next = || serde_json::from_str(&lines.next()?.ok()?).ok();
            talk(&mut next, &mut |bytes| stream.write_all(bytes).is_ok());
        });
        Self { folder, server }
    }

    /// One with which a session begins.
    fn polite(talk: impl FnOnce(Next, Say) + Send + 'static) -> (Self, Qmp) {
        let fake = Self::new(talk);
        let qmp = Qmp::connect(&fake.folder.path().join("qmp")).unwrap();
        (fake, qmp)
    }

    fn connect(&self) -> Result<Qmp> {
        Qmp::connect_within(&self.folder.path().join("qmp"), SHORT)
    }

    fn end(self) {
        self.server.join().unwrap();
    }
}

#[track_caller]
fn fails(outcome: Result<Value>, kind: ErrorKind, says: &str) {
    let error = outcome.unwrap_err();
    let text = error.to_string();
    assert!(error.kind() == kind && text.contains(says), "{kind:?} {says}: {error:?}");
    assert!(!text.chars().any(char::is_control) && text.chars().count() < 600, "{text:?}");
}

fn ask(qmp: &mut Qmp, command: &str) -> Result<Value> {
    qmp.execute_with(command, json!({}), &[], SHORT)
}

#[test]
fn a_server_that_greets_as_none_does_is_told_in_one_line() {
    let deep = [b"[".repeat(1 << 20), b"\n".to_vec()].concat();
    let long = vec![b'x'; 17 << 20];
    for (text, kind, says) in [
        (&b""[..], ErrorKind::Unavailable, "lost the connection"),
        (b"{\"QMP\": {\"vers", ErrorKind::Unavailable, "lost the connection"),
        (b"SSH-2.0-OpenSSH\r\n", ErrorKind::Io, "invalid QMP message"),
        (b"{\"QMP\": {}}\n", ErrorKind::Io, "no QMP greeting"),
        (b"[1, 2]\n", ErrorKind::Io, "invalid QMP message"),
        (&deep, ErrorKind::Io, "invalid QMP message"),
        (&long, ErrorKind::Io, "longer than 16 MiB"),
    ] {
        let text = text.to_owned();
        let fake = Fake::new(move |_, say| {
            say(&text);
        });
        fails(fake.connect().map(|_| Value::Null), kind, says);
        fake.end();
    }
    // It serves somebody else.
    let fake = Fake::new(|next, _| assert_eq!(next(), None));
    fails(
        fake.connect().map(|_| Value::Null),
        ErrorKind::Busy,
        "another program uses the QMP socket",
    );
    fake.end();
}

#[test]
fn without_a_server_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let connect = || Qmp::connect_within(&path, SHORT).map(|_| Value::Null);
    fails(connect(), ErrorKind::NotFound, "the QMP socket");
    drop(UnixListener::bind(&path).unwrap());
    fails(connect(), ErrorKind::Unavailable, "no process listens");
    std::fs::remove_file(&path).unwrap();
    // One that takes nobody in: its queue is full after a while.
    let _listener = UnixListener::bind(&path).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = Wire::connect(&path, "it", Duration::from_millis(1)) {
        queued.push(stream);
        assert!(queued.len() < 100_000);
    }
    fails(connect(), ErrorKind::Busy, "another program uses");
    let long = folder.path().join("x".repeat(200));
    let error = Qmp::connect(&long).map(|_| Value::Null);
    assert!(error.is_err());
}

#[test]
fn answers_of_others_and_events_are_kept_apart() {
    let (fake, mut qmp) = Fake::polite(|next, say| {
        greet(next, say);
        let id = next().unwrap()["id"].as_u64().unwrap();
        say(b"{\"return\": 1, \"id\": \"imgsnap-guard\"}\r\n{\"event\": \"STOP\", \"data\": {}}\r\n");
        say(format!("{{\"return\": 2, \"id\": {}}}\n{{\"return\": 3}}\n", id + 1).as_bytes());
        say(format!("{{\"return\": 4, \"id\": {id}}}\n{{\"event\": \"RESUME\"}}\n").as_bytes());
        // The second one is not answered in time, and then before the third.
        let late = next().unwrap()["id"].as_u64().unwrap();
        let id = next().unwrap()["id"].as_u64().unwrap();
        say(format!("{{\"return\": 5, \"id\": {late}}}\n{{\"return\": 6, \"id\": {id}}}\n")
            .as_bytes());
        next();
    });
    assert_eq!(qmp.version(), (10, 0));
    assert_eq!(ask(&mut qmp, "one").unwrap(), 4);
    fails(ask(&mut qmp, "two"), ErrorKind::Unavailable, "\"two\"");
    assert!(!qmp.is_over());
    assert_eq!(ask(&mut qmp, "three").unwrap(), 6);
    let names: Vec<String> = qmp.take_events().unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["STOP", "RESUME"]);
    assert_eq!(qmp.next_event(Instant::now() + SHORT).unwrap(), None);
    drop(qmp);
    fake.end();
}

#[test]
fn a_flood_of_events_ends_and_is_not_kept() {
    let (fake, mut qmp) = Fake::polite(|next, say| {
        greet(next, say);
        while say(b"{\"event\": \"VSERPORT_CHANGE\", \"data\": {\"open\": true}}\r\n") {}
    });
    fails(ask(&mut qmp, "query-status"), ErrorKind::Unavailable, "no answer for 0.3 s");
    assert!(qmp.events.len() <= MAX_EVENTS && qmp.take_events().is_none());
    assert!(qmp.next_event(Instant::now() + SHORT).unwrap().is_some());
    drop(qmp);
    fake.end();
}

#[test]
fn what_qemu_refuses_is_one_line_with_the_command() {
    let (fake, mut qmp) = Fake::polite(|next, say| {
        greet(next, say);
        for error in [
            r#"{"class": "GenericError", "desc": "no\u001b[31m such\r\nnode"}"#.to_owned(),
            format!(r#"{{"class": "DeviceNotFound", "desc": "{}"}}"#, "x".repeat(1 << 20)),
            r#"{"class": "CommandNotFound", "desc": "not found"}"#.to_owned(),
            r#"{"class": 7, "desc": "odd"}"#.to_owned(),
        ] {
            let id = next().unwrap()["id"].clone();
            say(format!("{{\"id\": {id}, \"error\": {error}}}\n").as_bytes());
        }
        let id = next().unwrap()["id"].clone();
        say(format!("{{\"id\": {id}}}\n").as_bytes());
        next();
    });
    let says = "QEMU refuses \"a\": no?[31m such??node";
    fails(ask(&mut qmp, "a"), ErrorKind::Io, says);
    fails(ask(&mut qmp, "b"), ErrorKind::NotFound, "xxx...");
    fails(ask(&mut qmp, "c"), ErrorKind::Unsupported, "not found");
    fails(ask(&mut qmp, "d"), ErrorKind::Io, "odd");
    fails(ask(&mut qmp, "e"), ErrorKind::Io, "without a result");
    // Nothing that it says counts any more.
    fails(ask(&mut qmp, "f"), ErrorKind::Unavailable, "without a result");
    drop(qmp);
    fake.end();
}

#[test]
fn one_that_hangs_up_in_the_middle_is_gone_for_good() {
    let (fake, mut qmp) = Fake::polite(|next, say| {
        greet(next, say);
        let id = next().unwrap()["id"].clone();
        say(format!("{{\"id\": {id}, \"retu").as_bytes());
    });
    fails(ask(&mut qmp, "quit"), ErrorKind::Unavailable, "lost the connection");
    assert!(qmp.is_over());
    fails(ask(&mut qmp, "cont"), ErrorKind::Unavailable, "lost the connection");
    assert!(qmp.next_event(Instant::now() + SHORT).is_err());
    fake.end();
}
