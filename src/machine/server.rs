//! The NBD server of a machine, on a socket of ours, and what it exports.

use super::names;
use super::session::Machine;
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Action, message};
use crate::image::nbd::{NbdPlace, NbdUri};
use crate::image::qemu::PrivateFolder;
use serde_json::{Value, json};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long an export may take to go. QEMU lets go of it when what was asked for is done.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const STEP: Duration = Duration::from_millis(5);

/// The NBD server of a machine, as long as it is ours.
pub struct NbdServer {
    /// The socket lies in it. QEMU is given a descriptor that listens: it need not be allowed there.
    place: PrivateFolder,
}

impl NbdServer {
    /// Starts it.
    ///
    /// # Errors
    /// `Busy` if it is in use; `Unavailable`; of the operating system.
    pub fn start(machine: &mut Machine) -> Result<Self> {
        let place = PrivateFolder::create()?;
        let listener = UnixListener::bind(place.socket())
            .map_err(|e| Error::io("cannot create a socket in a temporary folder", e))?;
        machine.give("getfd", json!({ "fdname": names::LISTENER }), listener.as_fd())?;
        let address = json!({ "type": "fd", "data": { "str": names::LISTENER } });
        let started = machine.change("nbd-server-start", json!({ "addr": address }));
        if let Err(error) = started {
            let is_others = error.message().contains("already running");
            machine.reconnect();
            // Unless QEMU has taken it.
            best_effort(machine.execute("closefd", json!({ "fdname": names::LISTENER })));
            if is_others {
                return Err(in_use());
            }
            // It may have been started all the same, if the answer was lost.
            best_effort(machine.change("nbd-server-stop", json!({})));
            return Err(error);
        }
        Ok(Self { place })
    }

    /// Where an export is read.
    pub fn uri(&self, export: &str) -> NbdUri {
        NbdUri { place: NbdPlace::Unix(self.place.socket()), export: export.to_owned() }
    }

    /// Stops it.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub fn stop(self, machine: &mut Machine) -> Result<()> {
        machine.change("nbd-server-stop", json!({})).map(drop)
    }
}

fn in_use() -> Error {
    let what = "the NBD server of the machine is in use (a backup or a migration?)";
    Error::new(ErrorKind::Busy, what)
        .hint(message!["wait until that has ended, and ", Action::Retry])
}

/// An export of a machine.
pub struct Export {
    /// Its id.
    pub id: String,
    /// It is one of the NBD server.
    pub is_nbd: bool,
}

impl Machine {
    /// Begins to export a node, read-only, with a dirty bitmap, which is of another node.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub(super) fn export(
        &mut self,
        name: &str,
        node: &str,
        bitmap: Option<(&str, &str)>,
    ) -> Result<()> {
        let mut export = json!({ "type": "nbd", "id": name, "name": name, "node-name": node });
        if let (Some((node, name)), Some(export)) = (bitmap, export.as_object_mut()) {
            export.insert("bitmaps".to_owned(), json!([{ "node": node, "name": name }]));
        }
        self.change("block-export-add", export).map(drop)
    }

    /// What it exports.
    ///
    /// # Errors
    /// `Unavailable`; `Io` if QEMU's answer makes no sense.
    pub(super) fn exports(&mut self) -> Result<Vec<Export>> {
        let answer = self.execute("query-block-exports", json!({}))?;
        let all = answer.as_array().ok_or_else(|| self.nonsense("query-block-exports"))?;
        let export = |value: &Value| {
            let id = value.get("id")?.as_str()?.to_owned();
            Some(Export { id, is_nbd: value.get("type")?.as_str()? == "nbd" })
        };
        Ok(all.iter().filter_map(export).collect())
    }

    /// Ends the exports for which `is_meant` holds, and waits until they are gone. True if there were any.
    ///
    /// # Errors
    /// `Unavailable`, also if one does not go in time; what QEMU refuses.
    pub(super) fn end_exports(&mut self, is_meant: &dyn Fn(&str) -> bool) -> Result<bool> {
        let begun = Instant::now();
        let mut left: Vec<String> = Vec::new();
        for export in self.exports()?.into_iter().filter(|export| is_meant(&export.id)) {
            // Also if a client is connected: it may be one that was killed.
            let outcome =
                self.change("block-export-del", json!({ "id": export.id, "mode": "hard" }));
            match outcome {
                Ok(_) => {}
                // It may go already; whether it does is seen below.
                Err(error) if error.kind() == ErrorKind::Io => {}
                Err(error) => return Err(error),
            }
            left.push(export.id);
        }
        let had_some = !left.is_empty();
        while !left.is_empty() {
            let are: Vec<String> = self.exports()?.into_iter().map(|export| export.id).collect();
            left.retain(|id| are.contains(id));
            match left.first() {
                Some(id) if begun.elapsed() > PATIENCE => {
                    let what = format!("the export {id} of the machine does not end");
                    return Err(Error::new(ErrorKind::Unavailable, what));
                }
                Some(_) => sleep(STEP),
                None => {}
            }
        }
        Ok(had_some)
    }
}
