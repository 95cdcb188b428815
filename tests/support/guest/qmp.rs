//! What the tests ask QEMU themselves, on a monitor of their own: the program under test has the other one.

use crate::random::wait_until;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub struct Qmp {
    to: UnixStream,
    from: BufReader<UnixStream>,
    /// What was told and not asked for, in order.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects as soon as somebody listens.
    pub fn connect(socket: &str) -> Self {
        let mut connected = None;
        wait_until(|| {
            connected = UnixStream::connect(socket).ok();
            connected.is_some()
        });
        let to = connected.unwrap_or_else(|| panic!("QEMU does not listen on {socket}"));
        to.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let from = BufReader::new(to.try_clone().unwrap());
        let mut qmp = Self { to, from, events: Vec::new() };
        assert!(qmp.line().unwrap()["QMP"].is_object());
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    fn line(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => Err("QEMU is gone".to_owned()),
            Ok(_) => Ok(serde_json::from_str(&line).unwrap()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// # Errors
    /// What QEMU says against it, or that it is gone.
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.to.write_all(format!("{request}\n").as_bytes()).map_err(|e| e.to_string())?;
        loop {
            let mut said = self.line()?;
            if let Some(value) = said.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = said.get("error") {
                return Err(format!("{command}: {}", error["desc"]));
            }
            self.events.push(said);
        }
    }

    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.try_execute(command, arguments).unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// "running", "paused" ...
    #[track_caller]
    pub fn status(&mut self) -> String {
        self.execute("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// What was told since it was asked last.
    pub fn events(&mut self) -> Vec<Value> {
        self.status();
        std::mem::take(&mut self.events)
    }

    /// Of what was told since it was asked last: for how long the machine was stopped, each time.
    pub fn stops(&mut self) -> Vec<Duration> {
        let mut stops = Vec::new();
        let mut since = None;
        for event in self.events() {
            let time = &event["timestamp"];
            let micros = time["seconds"].as_u64().unwrap() * 1_000_000
                + time["microseconds"].as_u64().unwrap();
            match event["event"].as_str() {
                Some("STOP") => since = Some(micros),
                Some("RESUME") => stops.extend(
                    since.take().map(|since| Duration::from_micros(micros.saturating_sub(since))),
                ),
                _ => {}
            }
        }
        stops
    }

    /// The names of all bitmaps: node and bitmap.
    pub fn bitmaps(&mut self) -> Vec<(String, String)> {
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true }));
        let mut names = Vec::new();
        for node in nodes.as_array().unwrap() {
            for bitmap in node["dirty-bitmaps"].as_array().into_iter().flatten() {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                names.push((text(&node["node-name"]), text(&bitmap["name"])));
            }
        }
        names.sort();
        names
    }

    /// Everything of ours that is in QEMU besides bitmaps: nodes, exports, an NBD server, sets of descriptors.
    pub fn left_over(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true }));
        for node in nodes.as_array().unwrap() {
            let name = node["node-name"].as_str().unwrap_or_default();
            if name.starts_with("imgsnap-") || node["drv"] == "copy-before-write" {
                left.push(format!("node {name} ({})", node["drv"]));
            }
        }
        for export in self.execute("query-block-exports", json!({})).as_array().unwrap() {
            left.push(format!("export {}", export["id"]));
        }
        for set in self.execute("query-fdsets", json!({})).as_array().unwrap() {
            left.push(format!("fdset {set}"));
        }
        // It cannot be asked for; stopped a second time, it is an error.
        if self.try_execute("nbd-server-stop", json!({})).is_ok() {
            left.push("an NBD server".to_owned());
        }
        left
    }
}
