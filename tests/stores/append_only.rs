//! A host that may only add: what it is refused, and what a stolen key cannot do, message by message
//! (FORMAT.md N1, N2, N3).

use crate::kit::{Lab, noise};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// All files of a folder, with what is in them.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                    all.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    all
}

/// A repository with two snapshots, whose host may only add from now on.
fn lab() -> (Lab, Vec<Vec<u8>>) {
    let mut lab = Lab::by_ssh("");
    let first = lab.read("disk.img");
    lab.done(&["snapshot", "disk.img"]);
    let second = lab.change(1);
    lab.done(&["snapshot", "disk.img"]);
    lab.serve("--append-only");
    (lab, vec![first, second])
}

#[test]
fn it_adds_and_reads() {
    let (lab, mut states) = lab();
    for seed in 2..5 {
        states.push(lab.change(seed));
        lab.done(&["snapshot", "disk.img"]);
    }
    lab.write("new.img", &noise(7, 1 << 20));
    lab.done(&["snapshot", "new.img"]);
    for (index, state) in states.iter().enumerate() {
        lab.ensure_is(&format!("disk@{}", index + 1), state);
    }
    lab.done(&["verify"]);
    lab.done(&["list"]);
}

#[test]
fn it_neither_removes_nor_changes() {
    let (lab, states) = lab();
    let before = files(&lab.path("repo"));
    for args in [
        &["delete", "disk@1"][..],
        &["prune", "disk", "--keep-last", "1"],
        &["label", "disk@1", "other"],
        &["remove", "disk", "--yes"],
        &["rollback", "disk.img", "--to", "disk@1", "--no-save"],
    ] {
        let line = lab.fails(args);
        // The first is said where a manifest is checked, the other one where an object is.
        let says = ["with append-only access, a host must not ", "this key may only add"];
        assert!(says.iter().any(|what| line.contains(what)), "{args:?}: {line}");
    }
    let after = files(&lab.path("repo"));
    for (name, bytes) in before {
        assert!(after.get(&name) == Some(&bytes), "{name} is another one, or gone");
    }
    lab.ensure_is("disk@1", &states[0]);
    lab.ensure_is("disk@2", &states[1]);
}

/// Whoever has the key, and speaks the protocol as he likes.
struct Thief {
    server: Child,
    input: ChildStdin,
    output: ChildStdout,
    next: u64,
}

impl Thief {
    fn new(lab: &Lab) -> Self {
        let mut server = Command::new(env!("CARGO_BIN_EXE_imgsnap"))
            .args(["serve", "store", "--stdio", "--append-only", "--path", &lab.at("repo")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (input, output) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
        let mut thief = Self { server, input, output, next: 0 };
        let hello = json!({ "ask": "hello", "version": 1, "path": lab.at("repo") });
        thief.ask(hello, b"").unwrap();
        thief
    }

    fn send(&mut self, mut ask: Value, body: &[u8]) -> u64 {
        self.next += 1;
        ask["id"] = self.next.into();
        let head = serde_json::to_vec(&ask).unwrap();
        for length in [head.len(), body.len()] {
            self.input.write_all(&(length as u32).to_be_bytes()).unwrap();
        }
        self.input.write_all(&head).unwrap();
        self.input.write_all(body).unwrap();
        self.input.flush().unwrap();
        self.next
    }

    /// What was told, or why not.
    fn ask(&mut self, ask: Value, body: &[u8]) -> Result<Value, String> {
        self.send(ask, body);
        let mut lengths = [0; 8];
        self.output.read_exact(&mut lengths).unwrap();
        let length = |at: usize| u32::from_be_bytes(lengths[at..at + 4].try_into().unwrap());
        let mut head = vec![0; length(0) as usize];
        self.output.read_exact(&mut head).unwrap();
        let mut body = vec![0; length(4) as usize];
        self.output.read_exact(&mut body).unwrap();
        let answer: Value = serde_json::from_slice(&head).unwrap();
        match answer["told"].get("Ok") {
            Some(told) => Ok(told.clone()),
            None => Err(answer["told"]["Err"]["message"].as_str().unwrap().to_owned()),
        }
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

#[test]
fn a_stolen_key_destroys_nothing() {
    let (lab, states) = lab();
    let before = files(&lab.path("repo"));
    let manifest = before.keys().rfind(|name| name.contains("/manifest.")).unwrap().clone();
    let delta = before.keys().find(|name| name.ends_with(".delta")).unwrap().clone();
    let next = {
        let (folder, number) = manifest.rsplit_once('.').unwrap();
        format!("{folder}.{:06}", number.parse::<u64>().unwrap() + 1)
    };
    let mut thief = Thief::new(&lab);
    let text = String::from_utf8(before[&manifest].clone()).unwrap();
    for (ask, body) in [
        (json!({ "ask": "remove", "name": manifest }), &b""[..]),
        (json!({ "ask": "remove", "name": delta }), b""),
        (json!({ "ask": "remove", "name": "config.000001" }), b""),
        (json!({ "ask": "remove", "name": "../disk.img" }), b""),
        (json!({ "ask": "replace", "name": delta }), b"other"),
        (json!({ "ask": "replace", "name": "disk/head.json" }), b"{}"),
        (json!({ "ask": "put", "name": "config.000002" }), b"version = 1\n"),
        (json!({ "ask": "put", "name": delta }), b"other"),
        (json!({ "ask": "put", "name": manifest }), b"other"),
        (json!({ "ask": "put", "name": next }), b"other"),
        // The same again, under the next number.
        (json!({ "ask": "put", "name": next }), text.as_bytes()),
        (json!({ "ask": "put", "name": "../../etc/cron.d/x" }), b"x"),
        (json!({ "ask": "put", "name": "disk/../../x.delta" }), b"x"),
        (json!({ "ask": "put", "name": "disk/.ssh" }), b"x"),
        (json!({ "ask": "put", "name": "disk/write.lock" }), b"x"),
        (json!({ "ask": "put", "name": ".shared" }), b""),
        (json!({ "ask": "read", "name": "../disk.img", "offset": 0, "bytes": 10 }), b""),
        (json!({ "ask": "read", "name": delta, "offset": 0, "bytes": 1_u64 << 40 }), b""),
        (json!({ "ask": "list", "folder": "..", "timed": false }), b""),
        (json!({ "ask": "create-folder", "folder": "../x" }), b""),
        (json!({ "ask": "remove-folder", "folder": "disk" }), b""),
        (json!({ "ask": "lock", "name": "../lock", "exclusive": true }), b""),
        (json!({ "ask": "hold", "lock": "disk/manifest.000001", "objects": [] }), b""),
    ] {
        let why = thief.ask(ask.clone(), body);
        assert!(why.is_err(), "{ask}: {why:?}");
    }
    // By an upload it is the same.
    for (name, over) in [(&delta, true), (&delta, false), (&next, false)] {
        thief.ask(json!({ "ask": "begin", "name": name }), b"").unwrap();
        let upload = thief.next;
        thief.send(json!({ "ask": "write", "upload": upload }), b"other");
        let why = thief.ask(json!({ "ask": "publish", "upload": upload, "over": over }), b"");
        assert!(why.is_err(), "{name}: {why:?}");
    }
    drop(thief);
    let after = files(&lab.path("repo"));
    for (name, bytes) in before {
        assert!(after.get(&name) == Some(&bytes), "{name} is another one, or gone");
    }
    lab.ensure_is("disk@1", &states[0]);
    lab.ensure_is("disk@2", &states[1]);
    assert!(!lab.path("x").exists());
}
