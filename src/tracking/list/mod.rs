//! Lists of changes that somebody else keeps: a hypervisor's dirty bitmap, a storage system's diff.
//!
//! | format | told by | what is changed |
//! | --- | --- | --- |
//! | `nbdinfo --map --json` of a dirty bitmap | `description` | `dirty`, and what the map does not cover |
//! | `rbd diff --format json` | an array without it | each entry |
//! | `thin_delta` (XML) | `<` at its beginning | all but `same` |
//! | lines of `offset length` | anything else | each line |

mod thin_delta;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::ByteRange;
use crate::tracking::ChangeHints;
use serde::Deserialize;
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// The longest list that is read, in bytes: half a million entries in its longest form.
pub const MAX_LIST_BYTES: u64 = 48 << 20;

/// Ranges of bytes that changed, ascending and apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeList {
    ranges: Arc<[ByteRange]>,
    /// As far as a map tells of anything, changed or not; none of a list, which tells only of changes.
    map_bytes: Option<u64>,
    /// Where its last range begins, before any were joined; none if there are none.
    last_offset: Option<u64>,
    /// The next one to be given.
    next: usize,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    offset: Option<u64>,
    length: u64,
    /// In what `qemu-img map` prints, and nowhere else.
    #[serde(default)]
    start: Option<Value>,
    #[serde(default)]
    depth: Option<Value>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    exists: Option<Value>,
    #[serde(default, rename = "type")]
    kind: Option<Value>,
}

impl ChangeList {
    /// Reads a list, whichever of the known formats it has.
    ///
    /// # Errors
    /// `InvalidInput` that says which line or entry is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| invalid("it is not text"))?;
        if text.trim().is_empty() {
            // As a program that failed leaves it.
            return Err(invalid("it is empty").hint("a list of no changes is []"));
        }
        let (ranges, map_bytes) = match text.trim_start().chars().next() {
            Some('[' | '{') => from_json(text)?,
            Some('<') => (thin_delta::parse(text)?, None),
            _ => (from_lines(text)?, None),
        };
        let list = Self { map_bytes, ..Self::of(ranges) };
        Ok(match map_bytes {
            Some(bytes) => list.and_from(bytes),
            None => list,
        })
    }

    /// Fails unless it can be of an image of `image_bytes` that had `before_bytes` when it began: a map ends
    /// where the image does (the block layers of QEMU and NBD count in sectors of 512 bytes), and nothing
    /// begins where the image never was.
    ///
    /// # Errors
    /// `Mismatch`, with both lengths.
    pub fn check_length(&self, image_bytes: u64, before_bytes: u64) -> Result<()> {
        let sectors = image_bytes.next_multiple_of(512);
        let wrong = match (self.map_bytes, self.last_offset) {
            (Some(bytes), _) if bytes != image_bytes && bytes != sectors => {
                format!("the map covers {bytes} bytes")
            }
            (None, Some(offset)) if offset >= image_bytes.max(before_bytes) => {
                format!("the list names a change at byte {offset}")
            }
            _ => return Ok(()),
        };
        let what = format!("{wrong}, but the image has {image_bytes}: it belongs to another image");
        Err(Error::new(ErrorKind::Mismatch, what).hint("use the one of this image"))
    }

    /// Of ranges in any order.
    pub fn of(mut ranges: Vec<ByteRange>) -> Self {
        ranges.retain(|range| range.bytes > 0);
        ranges.sort_unstable();
        let last_offset = ranges.last().map(|range| range.offset);
        let mut apart: Vec<ByteRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match apart.last_mut() {
                Some(last) if last.end() >= range.offset => {
                    *last = ByteRange::between(last.offset, last.end().max(range.end()));
                }
                _ => apart.push(range),
            }
        }
        Self { ranges: apart.into(), map_bytes: None, last_offset, next: 0 }
    }

    /// The same, and all from `start` on: of what was not there yet, no list tells.
    #[must_use]
    pub fn and_from(self, start: u64) -> Self {
        let new = std::iter::once(ByteRange::between(start, u64::MAX));
        let ranges = Self::of(self.ranges.iter().copied().chain(new).collect()).ranges;
        Self { ranges, ..self }
    }
}

impl ChangeHints for ChangeList {
    fn next_range(&mut self) -> Result<Option<ByteRange>> {
        let range = self.ranges.get(self.next).copied();
        self.next += 1;
        Ok(range)
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

fn range(offset: u64, bytes: u64) -> Option<ByteRange> {
    offset.checked_add(bytes).map(|_| ByteRange { offset, bytes })
}

/// The ranges, and, of a map, as far as it goes.
fn from_json(text: &str) -> Result<(Vec<ByteRange>, Option<u64>)> {
    let mut entries = Entries::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = reader.deserialize_seq(&mut entries).and_then(|()| reader.end());
    if let Some(wrong) = entries.wrong {
        return Err(wrong);
    }
    read.map_err(|e| {
        invalid(format!("line {}: it is not a list of changes: {e}", e.line())).hint(KNOWN)
    })?;
    let map_bytes = entries.is_map.filter(|is_map| *is_map).map(|_| entries.covered);
    Ok((entries.ranges, map_bytes))
}

/// The entries of a list as they are read, one after the other.
#[derive(Default)]
struct Entries {
    ranges: Vec<ByteRange>,
    count: u64,
    /// True for a map, which tells of what is clean, too.
    is_map: Option<bool>,
    /// As far as a map tells anything.
    covered: u64,
    /// What is wrong with the last one.
    wrong: Option<Error>,
}

impl<'de> Visitor<'de> for &mut Entries {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element()? {
            if let Err(wrong) = self.add(&entry) {
                self.wrong = Some(wrong);
                return Err(A::Error::custom("an entry is wrong"));
            }
        }
        Ok(())
    }
}

impl Entries {
    fn add(&mut self, entry: &Entry) -> Result<()> {
        self.count += 1;
        let index = self.count;
        let at = |what: &str| invalid(format!("entry {index}: {what}"));
        if entry.start.is_some() || entry.depth.is_some() {
            return Err(at(
                "it is from \"qemu-img map\", which shows what is stored, not what changed",
            )
            .hint("use a dirty bitmap: nbdinfo --map=qemu:dirty-bitmap:NAME --json"));
        }
        let offset = entry.offset.ok_or_else(|| at("it has no \"offset\"").hint(KNOWN))?;
        let changed = range(offset, entry.length)
            .ok_or_else(|| at("offset and length extend beyond 2^64"))?;
        let is_of_map = entry.description.is_some() || entry.kind.is_some();
        if !*self.is_map.get_or_insert(is_of_map) {
            // Without `exists` it is some list of ranges: what else can they be than changed.
            if is_of_map {
                return Err(at("it differs in form from those before it").hint(KNOWN));
            }
            if !matches!(entry.exists, None | Some(Value::Bool(_) | Value::String(_))) {
                return Err(at("\"exists\" is neither true nor false").hint(KNOWN));
            }
            self.ranges.push(changed);
            return Ok(());
        }
        match entry.description.as_deref() {
            Some("clean") => {}
            Some("dirty") => self.ranges.push(changed),
            other => {
                let what = other.unwrap_or("nothing").escape_debug();
                return Err(at(&format!("it says \"{what}\", neither \"dirty\" nor \"clean\""))
                    .hint("use a dirty bitmap: nbdinfo --map=qemu:dirty-bitmap:NAME --json"));
            }
        }
        // What a map leaves out is not called clean.
        self.ranges.extend(
            (changed.offset > self.covered)
                .then(|| ByteRange::between(self.covered, changed.offset)),
        );
        self.covered = self.covered.max(changed.end());
        Ok(())
    }
}

const KNOWN: &str = "supported are \"nbdinfo --map --json\", \"rbd diff --format json\", thin_delta, \
                     and lines of \"offset length\"";

fn from_lines(text: &str) -> Result<Vec<ByteRange>> {
    let mut ranges = Vec::new();
    if !text.ends_with('\n') {
        return Err(invalid("its last line is incomplete"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let fields: Vec<&str> = line.split_whitespace().collect();
        let found = match fields.as_slice() {
            [] => continue,
            [offset, length] => match (bytes(offset), bytes(length)) {
                (Some(offset), Some(length)) => range(offset, length),
                _ => None,
            },
            _ => None,
        };
        ranges.push(found.ok_or_else(|| {
            invalid(format!("line {number}: expected \"offset length\" in bytes")).hint(KNOWN)
        })?);
    }
    Ok(ranges)
}

/// Decimal, or hexadecimal after 0x.
fn bytes(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let is_number = digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_number.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Vec<(u64, u64)> {
        bounds(&ChangeList::parse(text.as_bytes()).unwrap())
    }

    fn bounds(list: &ChangeList) -> Vec<(u64, u64)> {
        list.ranges.iter().map(|range| (range.offset, range.end())).collect()
    }

    fn refused(text: &str) -> String {
        ChangeList::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn each_format_is_told_by_its_look() {
        let nbdinfo = r#"[
            { "offset": 0, "length": 65536, "type": 0, "description": "clean" },
            { "offset": 65536, "length": 65536, "type": 1, "description": "dirty" },
            { "offset": 131072, "length": 65536, "type": 0, "description": "clean" } ]"#;
        assert_eq!(ranges(nbdinfo), [(65536, 131_072), (196_608, u64::MAX)]);
        let rbd = r#"[{"offset":4194304,"length":8192,"exists":"true"},
                      {"offset":0,"length":4096,"exists":"false"}]"#;
        assert_eq!(ranges(rbd), [(0, 4096), (4_194_304, 4_202_496)]);
        let lines = "# since yesterday\n0x1000 4096\n\n  0 100   # the first\n50 0x64\n";
        assert_eq!(ranges(lines), [(0, 150), (4096, 8192)]);
        for nothing in ["[]", "0 0\n", "# nothing\n"] {
            assert_eq!(ranges(nothing), [], "{nothing:?}");
        }
    }

    #[test]
    fn what_a_map_does_not_cover_counts_as_changed() {
        let map = r#"[{"offset":4096,"length":4096,"type":0,"description":"clean"},
                      {"offset":16384,"length":4096,"type":0,"description":"clean"}]"#;
        assert_eq!(ranges(map), [(0, 4096), (8192, 16_384), (20_480, u64::MAX)]);
    }

    #[test]
    fn what_is_no_list_of_changes_is_refused_with_its_place() {
        let allocation = r#"[{"offset":0,"length":4096,"type":0,"description":"data"}]"#;
        assert!(refused(allocation).starts_with("entry 1: it says \"data\""));
        let bare = r#"[{"offset":0,"length":4096,"type":1}]"#;
        assert!(refused(bare).starts_with("entry 1: it says \"nothing\""));
        assert!(refused("0 4096\n4096\n").starts_with("line 2: expected \"offset length\""));
        for bad in [
            "{}",
            "[1]",
            "[{\"offset\":-1,\"length\":1}]",
            "{\"a\":",
            "1 2 3\n",
            "-1 2\n",
            "1 +2\n",
        ] {
            assert!(refused(bad).contains("supported are"), "{bad}");
        }
        let beyond = format!("0 1\n{} 1\n", u64::MAX);
        assert!(refused(&beyond).starts_with("line 2"));
        assert!(ChangeList::parse(&[0xff, 0xfe]).is_err());
        let mixed = r#"[{"offset":0,"length":1},{"offset":1,"length":1,"description":"clean"}]"#;
        assert!(refused(mixed).starts_with("entry 2: it differs in form from those before it"));
    }

    #[test]
    fn what_may_be_cut_off_is_refused() {
        for text in ["", "\n", "  "] {
            assert!(
                refused(text).starts_with("it is empty; a list of no changes is []"),
                "{text:?}"
            );
        }
        assert!(refused("0 4096\n4096 40").starts_with("its last line is incomplete"));
        assert!(refused(r#"[{"offset":0,"length":1},"#).contains("supported are"));
    }

    #[test]
    fn what_is_new_counts_as_changed() {
        let list = ChangeList::of(vec![ByteRange::between(0, 10), ByteRange::between(500, 600)]);
        let list = list.and_from(550);
        assert_eq!(bounds(&list), [(0, 10), (500, u64::MAX)]);
    }

    #[test]
    fn a_list_of_an_image_of_another_length_is_refused() {
        let fits = |text: &str, bytes| {
            ChangeList::parse(text.as_bytes()).unwrap().check_length(bytes, 1).is_ok()
        };
        let map = r#"[{"offset":0,"length":8192,"type":0,"description":"clean"},
                      {"offset":8192,"length":2048,"type":1,"description":"dirty"}]"#;
        // QEMU counts in sectors.
        for (bytes, is_right) in
            [(10_240, true), (10_000, true), (9728, false), (10_241, false), (4096, false)]
        {
            assert_eq!(fits(map, bytes), is_right, "{bytes}");
        }
        let rbd = r#"[{"offset":8192,"length":4096,"exists":"true"},{"offset":0,"length":1}]"#;
        for list in [rbd, "0 1\n8192 4096\n", "0 8193\n8192 1\n"] {
            for (bytes, is_right) in [(8192, false), (8193, true), (1 << 30, true)] {
                assert_eq!(fits(list, bytes), is_right, "{list} {bytes}");
            }
        }
        assert!(fits("[]", 1) && fits("0 0\n9999 0\n", 1));
        let cut = ChangeList::parse(b"8192 1\n").unwrap();
        assert!(cut.check_length(4096, 8193).is_ok(), "it was longer when the list began");
    }

    #[test]
    fn what_qemu_img_map_prints_is_no_list_of_changes() {
        let map = r#"[{"start":0,"length":65536,"depth":0,"present":true,"zero":false,
                       "data":true,"offset":327680}]"#;
        assert!(refused(map).starts_with("entry 1: it is from \"qemu-img map\""));
        let hole = r#"[{"start":0,"length":65536,"depth":0,"present":false,"data":false}]"#;
        assert!(refused(hole).contains("qemu-img map"));
        assert!(refused(r#"[{"length":1}]"#).starts_with("entry 1: it has no \"offset\""));
        let people =
            "Offset          Length          Mapped to       File\n0 0x1000 0x50000 a.qcow2\n";
        assert!(refused(people).starts_with("line 1"));
    }
}
