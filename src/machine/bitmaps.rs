//! Which dirty bitmap tells what was written since a snapshot, and what becomes of the others.
//!
//! A bitmap begins before the point in time of its snapshot, and the one before ends after it, so there are
//! two for a while: `old`, of a snapshot that is known, and `new`, of one that is being taken. Whatever
//! became of that, the two tell what to do:
//!
//! | old | new | what happened | so |
//! | --- | --- | --- | --- |
//! | records | records, unknown | given up before the point in time | `new` goes |
//! | ended | records, unknown | given up after it | `old` goes on, with all that `new` has; `new` goes |
//! | ended | gone | somebody removed it | `old` has a gap: it goes |
//! | records, or ended | records, known | the snapshot stands | `old` goes |
//!
//! Each change is one transaction, so there is no other state.

use super::disks::{DirtyBitmap, MachineDisk};
use super::names;
use super::session::Machine;
use crate::base::error::Result;
use serde_json::{Value, json};
use uuid::Uuid;

/// A bit is of so many bytes.
const GRANULARITY: u64 = 64 << 10;
/// What is said when nothing serves, and nothing is wrong.
const NONE: &str =
    "QEMU has no bitmap from a snapshot of this image (it was restarted or migrated)";

/// A change of a bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It records again.
    Enable(String),
    /// What the first one has is added to the second.
    Merge(String, String),
    /// It goes.
    Remove(String),
}

/// What is to be done with the bitmaps of a disk, and what serves then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// In one transaction, in this order.
    pub steps: Vec<Step>,
    /// The snapshot since which a bitmap records without a gap, and its name; otherwise why there is none.
    pub since: Result<(Uuid, String), String>,
}

/// Chooses among the bitmaps of a disk. `known` are the snapshots of the image that can be relied on, the
/// newest first. Those of others, and of other images, are left as they are; so is one that is busy.
pub fn choose(bitmaps: &[DirtyBitmap], image: Uuid, known: &[Uuid]) -> Choice {
    let ours = || {
        bitmaps.iter().filter_map(|bitmap| {
            names::snapshot_of_bitmap(&bitmap.name, image).map(|snapshot| (snapshot, bitmap))
        })
    };
    let goes_on: Vec<&DirtyBitmap> = ours()
        .filter(|(snapshot, bitmap)| {
            !known.contains(snapshot) && bitmap.recording && fault(bitmap).is_none()
        })
        .map(|(_, bitmap)| bitmap)
        .collect();
    let (mut steps, mut since, mut why) = (Vec::new(), None, None);
    let of_known = known.iter().filter_map(|known| ours().find(|(snapshot, _)| snapshot == known));
    for (snapshot, bitmap) in of_known {
        let reason = match (fault(bitmap), bitmap.recording, goes_on.as_slice()) {
            (Some(fault), ..) => fault,
            (None, true, _) => {
                since = Some((snapshot, bitmap.name.clone()));
                break;
            }
            // Of several it would not be known which one began before this one ended.
            (None, false, [new]) => {
                let (new, old) = (new.name.clone(), bitmap.name.clone());
                steps.extend([Step::Enable(old.clone()), Step::Merge(new, old.clone())]);
                since = Some((snapshot, old));
                break;
            }
            (None, false, _) => "its bitmap had stopped recording".to_owned(),
        };
        why.get_or_insert(reason);
    }
    let serves = since.as_ref().map(|(_, name)| name.as_str());
    let goes = |bitmap: &&DirtyBitmap| Some(bitmap.name.as_str()) != serves && !bitmap.busy;
    let gone = ours().map(|(_, bitmap)| bitmap).filter(goes);
    steps.extend(gone.map(|bitmap| Step::Remove(bitmap.name.clone())));
    Choice { steps, since: since.ok_or_else(|| why.unwrap_or_else(|| NONE.to_owned())) }
}

/// Why a bitmap cannot be used, whether it records or not.
fn fault(bitmap: &DirtyBitmap) -> Option<String> {
    if bitmap.inconsistent {
        return Some("QEMU crashed since: its bitmap is inconsistent".to_owned());
    }
    if bitmap.busy {
        return Some("its bitmap is in use by another program".to_owned());
    }
    (bitmap.granularity > GRANULARITY)
        .then(|| format!("the granularity of its bitmap is {} bytes", bitmap.granularity))
}

fn action(node: &str, step: &Step) -> Value {
    let of = |what: &str, data: Value| json!({ "type": format!("block-dirty-bitmap-{what}"), "data": data });
    match step {
        Step::Enable(name) => of("enable", json!({ "node": node, "name": name })),
        Step::Merge(from, into) => {
            of("merge", json!({ "node": node, "target": into, "bitmaps": [from] }))
        }
        Step::Remove(name) => of("remove", json!({ "node": node, "name": name })),
    }
}

impl Machine {
    /// Brings the bitmaps of a disk in order, and tells which one serves.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses: then nothing was changed.
    pub(super) fn settle_bitmaps(
        &mut self,
        node: &str,
        bitmaps: &[DirtyBitmap],
        image: Uuid,
        known: &[Uuid],
    ) -> Result<Result<(Uuid, String), String>> {
        let choice = choose(bitmaps, image, known);
        if !choice.steps.is_empty() {
            let actions: Vec<Value> = choice.steps.iter().map(|step| action(node, step)).collect();
            self.change("transaction", json!({ "actions": actions }))?;
        }
        Ok(choice.since)
    }

    /// Begins a bitmap on a disk. It is stored with the disk when QEMU ends, if the format can do that.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub(super) fn begin_bitmap(&mut self, disk: &MachineDisk, name: &str) -> Result<()> {
        let bitmap = |persistent: bool| {
            json!({
                "node": disk.node, "name": name, "granularity": GRANULARITY,
                "persistent": persistent,
            })
        };
        let command = "block-dirty-bitmap-add";
        if disk.format == "qcow2" && self.change(command, bitmap(true)).is_ok() {
            return Ok(());
        }
        // Version 2 of the format has no bitmaps.
        self.change(command, bitmap(false)).map(drop)
    }

    /// Gives a bitmap another name.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses: then it has the old one.
    pub(super) fn replace_bitmap(
        &mut self,
        disk: &MachineDisk,
        old: &str,
        new: &str,
    ) -> Result<()> {
        let actions = |is_persistent: bool| {
            let node = disk.node.as_str();
            let added = json!({
                "node": node, "name": new, "granularity": GRANULARITY, "persistent": is_persistent,
            });
            let steps = [Step::Merge(old.to_owned(), new.to_owned()), Step::Remove(old.to_owned())];
            let mut actions = vec![json!({ "type": "block-dirty-bitmap-add", "data": added })];
            actions.extend(steps.iter().map(|step| action(node, step)));
            json!({ "actions": actions })
        };
        if disk.format == "qcow2" && self.change("transaction", actions(true)).is_ok() {
            return Ok(());
        }
        self.change("transaction", actions(false)).map(drop)
    }

    /// Ends bitmaps, each of a node, in one transaction.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses: then all go on.
    pub(super) fn end_bitmaps(&mut self, bitmaps: &[(&str, &str)]) -> Result<()> {
        let end = |(node, name): &(&str, &str)| {
            json!({
                "type": "block-dirty-bitmap-disable", "data": { "node": node, "name": name },
            })
        };
        let actions: Vec<Value> = bitmaps.iter().map(end).collect();
        match actions.is_empty() {
            true => Ok(()),
            false => self.execute("transaction", json!({ "actions": actions })).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: Uuid = Uuid::from_u128(1);

    fn id(letter: char) -> Uuid {
        Uuid::from_u128(u128::from(letter as u32))
    }

    fn name(letter: char) -> String {
        names::bitmap(IMAGE, id(letter))
    }

    /// "A": records; "a": has ended; "A!": inconsistent; "A*": busy; "A%": coarse; "?": not ours; "2": of
    /// another image.
    fn bitmap(text: &str) -> DirtyBitmap {
        let letter = text.chars().next().unwrap();
        let name = match letter {
            '?' => "backup0".to_owned(),
            '2' => names::bitmap(id('2'), id('A')),
            letter => name(letter.to_ascii_uppercase()),
        };
        DirtyBitmap {
            name,
            recording: !letter.is_ascii_lowercase() && !text.ends_with('!'),
            busy: text.ends_with('*'),
            persistent: false,
            inconsistent: text.ends_with('!'),
            granularity: if text.ends_with('%') { 1 << 20 } else { GRANULARITY },
            count: 0,
        }
    }

    /// As "+A" (enabled), "B>A" (merged into A), "-B" (removed).
    fn shown(steps: &[Step]) -> String {
        let letter = |name: &str| {
            let snapshot = names::snapshot_of_bitmap(name, IMAGE).unwrap();
            char::from_u32(u32::try_from(snapshot.as_u128()).unwrap()).unwrap()
        };
        let step = |step: &Step| match step {
            Step::Enable(name) => format!("+{}", letter(name)),
            Step::Merge(from, into) => format!("{}>{}", letter(from), letter(into)),
            Step::Remove(name) => format!("-{}", letter(name)),
        };
        steps.iter().map(step).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn whatever_became_of_the_last_run_the_bitmaps_tell_what_to_do() {
        let (stopped, crashed) = ("had stopped recording", "inconsistent");
        // Known snapshots, newest first; bitmaps; steps; what serves, or why nothing does.
        for (known, bitmaps, steps, serves) in [
            // Nothing is under way.
            ("BA", "B", "", "B"),
            ("BA", "A", "", "A"),
            ("BA", "B ? 2", "", "B"),
            ("BA", "", "", NONE),
            ("", "", "", NONE),
            ("BA", "? 2", "", NONE),
            // Given up before the point in time.
            ("A", "A N", "-N", "A"),
            ("A", "N A", "-N", "A"),
            ("", "N", "-N", NONE),
            // Given up after it.
            ("A", "a N", "+A N>A -N", "A"),
            ("A", "N a ? 2", "+A N>A -N", "A"),
            // The snapshot stands.
            ("BA", "a B", "-A", "B"),
            ("BA", "A B", "-A", "B"),
            ("BA", "B N", "-N", "B"),
            // A repository that was put back to yesterday has other snapshots.
            ("A", "N", "-N", NONE),
            ("A", "n", "-N", NONE),
            // What has a gap.
            ("A", "a", "-A", stopped),
            ("A", "a n", "-A -N", stopped),
            ("A", "a N!", "-A -N", stopped),
            ("A", "a N M", "-A -N -M", stopped),
            ("BA", "b A", "-B", "A"),
            ("BA", "b a", "-B -A", stopped),
            ("BA", "b a N", "+B N>B -A -N", "B"),
            // What is not to be relied on.
            ("A", "A!", "-A", crashed),
            ("A", "A! N", "-A -N", crashed),
            ("BA", "B! A", "-B", "A"),
            ("A", "A%", "-A", "1048576 bytes"),
            // What is in use stays.
            ("A", "A*", "", "in use"),
            ("A", "A N*", "", "A"),
            ("A", "a N*", "-A", stopped),
            ("BA", "B* A", "", "A"),
        ] {
            let known: Vec<Uuid> = known.chars().map(id).collect();
            let all: Vec<DirtyBitmap> = bitmaps.split_whitespace().map(bitmap).collect();
            let choice = choose(&all, IMAGE, &known);
            let what = format!("{known:?} {bitmaps}");
            match &choice.since {
                Ok((snapshot, found)) => {
                    let letter = serves.chars().next().unwrap();
                    assert_eq!((*snapshot, found), (id(letter), &name(letter)), "{what}");
                    assert_eq!(serves.len(), 1, "{what}");
                }
                Err(why) => assert!(why.contains(serves) && serves.len() > 1, "{what}: {why}"),
            }
            assert_eq!(shown(&choice.steps), steps, "{what}");
        }
    }
}
