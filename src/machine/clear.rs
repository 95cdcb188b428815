//! Takes away what we have made in QEMU, by what is there: so it makes no difference who made it, how far
//! that came, and how often it is tried.

use super::disks::text;
use super::names::{self, Kind, Names};
use super::session::Machine;
use crate::base::error::{Result, best_effort};
use crate::base::events::Context;
use serde_json::{Value, json};
use std::collections::BTreeSet;

impl Machine {
    /// Takes away what a killed run has left, but for bitmaps, which [`Machine::prepare`] sees to. True if
    /// there was something.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub fn recover(&mut self, context: &Context) -> Result<bool> {
        context.check()?;
        let had_exports = self.end_exports(&names::is_read_export);
        let had_nodes = self.nodes()?.iter().any(is_ours);
        // It was started when there were nodes already, and is stopped before they go. What others export was
        // exported by another server.
        let is_others = self.exports()?.iter().any(|export| export.is_nbd);
        let had_exports = had_exports?;
        if (had_exports || had_nodes) && !is_others {
            // It need not have been started yet.
            best_effort(self.change("nbd-server-stop", json!({})));
        }
        best_effort(self.execute("closefd", json!({ "fdname": names::LISTENER })));
        self.clear(None)?;
        self.remove_unused_nulls()?;
        Ok(had_exports || had_nodes)
    }

    /// Takes away what belongs to one disk, or to all: the disk is what its device uses again, and filters,
    /// scratch files and descriptors are gone. What cannot go does not keep the others.
    ///
    /// # Errors
    /// The first one: `Unavailable`; what QEMU refuses.
    pub(super) fn clear(&mut self, only: Option<&Names>) -> Result<()> {
        let is_export = |name: &str| match only {
            Some(names) => name == names.export() || name == names.flush(),
            None => names::is_read_export(name),
        };
        let mut outcome = self.end_exports(&is_export).map(drop);
        let nodes: Vec<String> =
            self.nodes()?.iter().filter_map(|node| text(node, "node-name")).collect();
        let is_meant = |name: &&String| match (names::kind(name), only) {
            (Some(Kind::Snapshot), Some(names)) => **name == names.snapshot(),
            (Some(Kind::Filter), Some(names)) => **name == names.filter(),
            (Some(Kind::Scratch), Some(names)) => **name == names.scratch(),
            (Some(Kind::Snapshot | Kind::Filter | Kind::Scratch), None) => true,
            _ => false,
        };
        let ours: Vec<&String> = nodes.iter().filter(is_meant).collect();
        let of = |kind: Kind| ours.iter().filter(move |name| names::kind(name) == Some(kind));
        // From the top: what others are on cannot go.
        for name in of(Kind::Snapshot) {
            outcome = outcome.and(self.remove_node(name));
        }
        let filters: BTreeSet<&str> = of(Kind::Filter).map(|name| name.as_str()).collect();
        if !filters.is_empty() {
            for drive in self.drives()?.iter().filter(|drive| filters.contains(drive.node.as_str()))
            {
                let behind = nodes.iter().find(|node| Names::of(node).filter() == drive.node);
                if let Some(node) = behind {
                    outcome = outcome.and(self.use_node(&drive.device, node));
                }
            }
        }
        for name in of(Kind::Filter).chain(of(Kind::Scratch)) {
            outcome = outcome.and(self.remove_node(name));
        }
        outcome.and(self.remove_descriptors(only))
    }

    /// Lets a device use a node.
    ///
    /// # Errors
    /// `NotFound` if there is no such device; `Unavailable`; what QEMU refuses.
    pub(super) fn use_node(&mut self, device: &str, node: &str) -> Result<()> {
        let value = json!({ "path": device, "property": "drive", "value": node });
        self.change("qom-set", value).map(drop)
    }

    fn remove_node(&mut self, name: &str) -> Result<()> {
        self.change("blockdev-del", json!({ "node-name": name })).map(drop)
    }

    /// Those of scratch files whose node was never made.
    fn remove_descriptors(&mut self, only: Option<&Names>) -> Result<()> {
        let answer = self.execute("query-fdsets", json!({}))?;
        for set in answer.as_array().into_iter().flatten() {
            let files = set.get("fds").and_then(Value::as_array).into_iter().flatten();
            let mut opaque = files.filter_map(|file| text(file, "opaque"));
            let is_meant = opaque.any(|opaque| match only {
                Some(names) => opaque == names.scratch(),
                None => names::kind(&opaque) == Some(Kind::Scratch),
            });
            if let (true, Some(id)) = (is_meant, set.get("fdset-id").and_then(Value::as_u64)) {
                self.change("remove-fd", json!({ "fdset-id": id }))?;
            }
        }
        Ok(())
    }
}

fn is_ours(node: &Value) -> bool {
    let kind = text(node, "node-name").and_then(|name| names::kind(&name));
    matches!(kind, Some(Kind::Filter | Kind::Scratch | Kind::Snapshot))
}
