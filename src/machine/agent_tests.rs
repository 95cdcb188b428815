//! Against agents that answer in every way.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

/// What the agent says to a request, as bytes; nothing at all if it is silent.
type Answers = Box<dyn FnMut(&str, &Value) -> Vec<u8> + Send>;

/// Serves one client; gives the names of the commands that it was asked.
fn serve(path: &Path, mut answers: Answers) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut to = stream.try_clone().unwrap();
        let (mut asked, mut line, mut from) = (Vec::new(), Vec::new(), BufReader::new(stream));
        while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            // As the real one does, it forgets what stands before the mark.
            let start = line.iter().rposition(|byte| *byte == MARK).map_or(0, |at| at + 1);
            let request: Value = serde_json::from_slice(&line[start..]).unwrap();
            let command = request["execute"].as_str().unwrap().to_owned();
            to.write_all(&answers(&command, &request["arguments"])).ok();
            asked.push(command);
            line.clear();
        }
        asked
    })
}

fn synced(arguments: &Value) -> Vec<u8> {
    [b"\xff".as_slice(), format!("{{\"return\": {}}}\n", arguments["id"]).as_bytes()].concat()
}

/// One that is as it should be, but for what `answers` says of a command.
fn agent_that(
    mut other: impl FnMut(&str) -> Option<&'static str> + Send + 'static,
) -> (tempfile::TempDir, Result<Agent>, JoinHandle<Vec<String>>) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("ga");
    let served = serve(
        &path,
        Box::new(move |command, arguments| match (other(command), command) {
            (Some(said), _) => said.as_bytes().to_vec(),
            (_, "guest-sync-delimited") => synced(arguments),
            (_, "guest-fsfreeze-status") => b"{\"return\": \"thawed\"}\r\n".to_vec(),
            _ => b"{\"return\": 2}\n".to_vec(),
        }),
    );
    (place, Agent::connect(&path), served)
}

#[test]
fn it_freezes_and_thaws_and_says_how_many() {
    let (_place, agent, served) = agent_that(|_| None);
    let mut agent = agent.unwrap();
    assert!(!agent.is_frozen().unwrap());
    assert_eq!(agent.freeze(PATIENCE).unwrap(), 2);
    assert_eq!(agent.thaw_all().unwrap(), 2);
    drop(agent);
    let names = ["sync-delimited", "fsfreeze-status", "fsfreeze-freeze", "fsfreeze-thaw"];
    assert_eq!(served.join().unwrap(), names.map(|name| format!("guest-{name}")));
}

#[test]
fn what_others_have_asked_is_thrown_away() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("ga");
    let served = serve(
        &path,
        Box::new(|command, arguments| match command {
            "guest-sync-delimited" => {
                let stale = b"{\"return\": 77}\n\xff{\"return\": 4}\n\
                              {\"error\": {\"desc\": \"JSON parse\"}}\n\
                              \xff{\"return\": \"\n\xffnothing\n\n{\"return\": {\xff\xff";
                [stale.as_slice(), synced(arguments).as_slice()].concat()
            }
            _ => b"{\"return\": 3}\n".to_vec(),
        }),
    );
    let mut agent = Agent::connect(&path).unwrap();
    assert_eq!(agent.freeze(PATIENCE).unwrap(), 3);
    // Somebody writes to the same socket.
    agent.is_in_step = false;
    assert_eq!(agent.thaw_all().unwrap(), 3);
    drop(agent);
    assert_eq!(served.join().unwrap().len(), 4);
}

#[test]
fn an_agent_that_is_silent_or_answers_others_is_not_there() {
    // All at once: each takes as long as an agent may.
    std::thread::scope(|scope| {
        for says in [&b""[..], b"\xff{\"return\": 5}\n", b"{\"return\": 5}\n"] {
            scope.spawn(|| {
                let place = tempfile::tempdir().unwrap();
                let path = place.path().join("ga");
                let served = serve(&path, Box::new(|_, _| says.to_vec()));
                let begun = Instant::now();
                let error = Agent::connect(&path).map(drop).unwrap_err();
                assert!(begun.elapsed() >= PATIENCE, "it was waited for");
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                let said = error.to_string();
                assert!(said.contains("the guest agent (/"), "{said}");
                assert!(said.contains("no answer for"), "{said}");
                assert!(said.contains("check that qemu-guest-agent runs"), "{said}");
                assert_eq!(served.join().unwrap(), ["guest-sync-delimited"]);
            });
        }
    });
}

#[test]
fn what_it_refuses_is_said_and_what_others_froze_is_theirs() {
    let refusal = "{\"error\": {\"class\": \"GenericError\", \
                   \"desc\": \"failed to freeze /: \\u0007 no\"}}\n";
    let (_place, agent, _served) =
        agent_that(move |command| (command == "guest-fsfreeze-freeze").then_some(refusal));
    let error = agent.unwrap().freeze(PATIENCE).unwrap_err();
    let said = error.to_string();
    assert!(
        said.ends_with("refuses \"guest-fsfreeze-freeze\": failed to freeze /: ? no"),
        "{said}"
    );
    let refusal = "{\"error\": {\"class\": \"CommandNotFound\", \
                   \"desc\": \"Command guest-fsfreeze-freeze has been \
                   disabled: the agent is in frozen state\"}}\n";
    let (_place, agent, _served) =
        agent_that(move |command| (command == "guest-fsfreeze-freeze").then_some(refusal));
    let error = agent.unwrap().freeze(PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("another program has frozen the file systems"), "{error}");
    for answer in ["{\"return\": \"frozen\"}\n", "{\"return\": {}}\n", "[]\n", "{\"return\"\n"] {
        let (_place, agent, _served) =
            agent_that(move |command| (command == "guest-fsfreeze-status").then_some(answer));
        match agent.unwrap().is_frozen() {
            Ok(is_frozen) => assert!(is_frozen && answer.contains("\"frozen\"")),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{error}"),
        }
    }
}

/// The answer to a freeze is late: it comes before that to the next question, and counts for nothing.
#[test]
fn an_answer_that_is_late_is_not_taken_for_another_one() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("ga");
    let mut is_late = false;
    let served = serve(
        &path,
        Box::new(move |command, arguments| match command {
            "guest-fsfreeze-freeze" => {
                is_late = true;
                Vec::new()
            }
            "guest-sync-delimited" if is_late => {
                [b"{\"return\": 9}\n".as_slice(), &synced(arguments)].concat()
            }
            "guest-sync-delimited" => synced(arguments),
            _ => b"{\"return\": 1}\n".to_vec(),
        }),
    );
    let mut agent = Agent::connect(&path).unwrap();
    let error = agent.freeze(Duration::from_millis(200)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(agent.thaw_all().unwrap(), 1);
    drop(agent);
    assert_eq!(served.join().unwrap().len(), 4);
}

/// A guard has asked on the same socket: its answers come in between.
#[test]
fn a_thaw_gets_through_among_answers_to_others() {
    let mut thaws = 0;
    let (_place, agent, served) = agent_that(move |command| {
        let others = "{\"error\": {\"desc\": \"JSON parse error\"}}\n{\"return\": \"thawed\"}\n";
        thaws += usize::from(command == "guest-fsfreeze-thaw");
        (command == "guest-fsfreeze-thaw" && thaws == 1).then_some(others)
    });
    let mut agent = agent.unwrap();
    assert_eq!(agent.thaw_all().unwrap(), 2);
    drop(agent);
    assert_eq!(served.join().unwrap().iter().filter(|name| name.ends_with("thaw")).count(), 2);
}

#[test]
fn what_a_guard_writes_thaws_and_has_an_answer_of_its_own() {
    let (text, answer) = thaw_request();
    let (own, theirs) = UnixStream::pair().unwrap();
    (&own).write_all(b"{\"execute\": \"guest-fs").unwrap();
    (&own).write_all(&text).unwrap();
    drop(own);
    let lines: Vec<Vec<u8>> =
        BufReader::new(theirs).split(b'\n').map(std::result::Result::unwrap).collect();
    let requests: Vec<Value> = lines
        .iter()
        .map(|line| {
            let at = line.iter().rposition(|byte| *byte == MARK).unwrap();
            serde_json::from_slice(&line[at + 1..]).unwrap()
        })
        .collect();
    assert_eq!(requests[0]["execute"], "guest-fsfreeze-thaw");
    assert_eq!(requests[1]["execute"], "guest-sync-delimited");
    assert_eq!(requests[1]["arguments"]["id"].to_string().as_bytes(), answer);
    assert_ne!(thaw_request().1, answer);
}

/// QEMU as far as it is asked for.
fn qemu(ports: Value, chardevs: Value) -> impl FnMut(&str, Value) -> Result<Value> {
    move |command, arguments| {
        let text = |part: &str| arguments[part].as_str().unwrap_or_default().to_owned();
        match command {
            "query-chardev" => Ok(chardevs.clone()),
            "qom-list" if text("path").ends_with("anon") => Ok(json!([
                { "name": "device[0]", "type": "child<virtserialport>" },
                { "name": "type", "type": "string" },
            ])),
            "qom-list" => Ok(json!([
                { "name": "vd0", "type": "child<virtio-blk-pci>" },
                { "name": "port0", "type": "child<virtserialport>" },
            ])),
            _ => Ok(ports[text("path").rsplit('/').next().unwrap()][text("property")].clone()),
        }
    }
}

#[test]
fn the_socket_of_the_agent_is_found() {
    let ports = json!({
        "port0": { "name": "com.redhat.spice.0", "chardev": "spice" },
        "device[0]": { "name": PORT, "chardev": "ga" },
    });
    let found = |filename: &str| {
        let spice = json!({ "label": "spice", "filename": "spicevmc" });
        let others = json!([spice, { "label": "ga", "filename": filename }]);
        find_agent(&mut qemu(ports.clone(), others))
    };
    let path = found("disconnected:unix:/run/a b,c,server=on").unwrap();
    assert_eq!(path, PathBuf::from("/run/a b,c"));
    let error = found("unix:/run/ga,server=on").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    for other in ["disconnected:unix:ga,server=on", "unix:/run/ga", "pty:/dev/pts/1", ""] {
        let error = found(other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().ends_with("; give the socket of its guest agent"), "{error}");
    }
    let error = find_agent(&mut qemu(json!({}), json!([]))).unwrap_err();
    assert!(error.to_string().contains("has no port for a guest agent"), "{error}");
}
