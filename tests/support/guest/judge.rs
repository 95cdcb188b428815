//! Judges of disks that were restored. They use none of what restored them.

use super::machine::Machine;
use crate::kit::{Random, get, output, tool_command, try_tool};
use std::collections::BTreeSet;
use std::path::Path;

/// What the disk of a guest holds that wrote numbered files.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// The numbers of its files; equal if there is none.
    pub first: u64,
    pub last: u64,
    /// Its file system was not frozen: its journal had to be replayed.
    pub was_replayed: bool,
}

/// Judges the disk of a guest that wrote numbered files, and kept so many of them: fsck calls it clean after
/// the replay of its journal, and its files are those that it had at one moment, with the right bytes.
///
/// # Errors
/// What is wrong.
pub fn system(disk: &str, keep: u64) -> Result<Held, String> {
    let work = tempfile::Builder::new().prefix("judge-").tempdir().map_err(|e| e.to_string())?;
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let partition = path("partition");
    let (from, to) = (format!("if={disk}"), format!("of={partition}"));
    try_tool("dd", &[&from, &to, "bs=1M", "skip=1", "conv=sparse", "status=none"])?;

    let was_replayed = needs_replay(&partition)?;
    if was_replayed {
        replay(&partition)?;
        if needs_replay(&partition)? {
            return Err("its journal cannot be replayed".to_owned());
        }
    }
    try_tool("e2fsck", &["-fn", &partition])?;

    let files = path("files");
    std::fs::create_dir(&files).unwrap();
    try_tool("debugfs", &["-R", &format!("rdump /data {files}"), &partition])?;
    let (first, last) = numbered(&Path::new(&files).join("data"), keep)?;
    Ok(Held { first, last, was_replayed })
}

fn needs_replay(partition: &str) -> Result<bool, String> {
    let header = try_tool("dumpe2fs", &["-h", partition])?;
    let features = header.lines().find(|line| line.starts_with("Filesystem features:"));
    Ok(features.ok_or("no features")?.contains("needs_recovery"))
}

/// What the kernel does at mount, which is all that may be wrong.
fn replay(partition: &str) -> Result<(), String> {
    let done = output(&mut tool_command("e2fsck", &["-fy", partition])?).unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    if !matches!(done.status.code(), Some(0 | 1)) {
        return Err(format!("e2fsck -fy: {}: {said}", done.status));
    }
    // Each mend is a question that is answered. The totals in the superblock are in no journal: the kernel counts
    // them at mount; files that were open or being cut are ended then, too, and that is no question.
    let mut subject = "";
    for line in said.lines() {
        let is_total = ["blocks", "inodes"].iter().any(|what| {
            subject.starts_with(&format!("Free {what} count wrong (")) && line == "Fix? yes"
        });
        if (line.contains("? yes") && !is_total) || line.contains("FIXED") {
            return Err(format!("not clean after the replay: {said}"));
        }
        subject = line;
    }
    Ok(())
}

/// The bytes of file n (`tests/servers/tiny-guest.c`).
pub fn content(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let bytes = 16384 + random.below(6145) * 8;
    random.bytes(usize::try_from(bytes).unwrap())
}

/// The first and last of the files in a folder, which must be all between them.
fn numbered(folder: &Path, keep: u64) -> Result<(u64, u64), String> {
    let mut numbers: BTreeSet<u64> = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| e.to_string())? {
        let name = entry.map_err(|e| e.to_string())?.file_name().into_string().unwrap();
        if name == "new" {
            // The one under way.
            continue;
        }
        let number = name.strip_prefix('f').and_then(|rest| rest.parse().ok());
        numbers.insert(number.ok_or(format!("a file {name}"))?);
    }
    let (Some(&first), Some(&last)) = (numbers.first(), numbers.last()) else { return Ok((0, 0)) };
    if numbers.len() as u64 != last - first + 1 {
        return Err(format!("files are missing among {numbers:?}"));
    }
    // The oldest one goes after the newest one has come.
    let may_begin = last.saturating_sub(keep).max(1)..=(last + 1).saturating_sub(keep).max(1);
    if !may_begin.contains(&first) {
        return Err(format!("files {first} to {last}, of {keep}"));
    }
    for number in numbers {
        let bytes = std::fs::read(folder.join(format!("f{number}"))).map_err(|e| e.to_string())?;
        if bytes != content(number) {
            return Err(format!("file {number} has other bytes"));
        }
    }
    Ok((first, last))
}

/// The number that a disk of the counter holds.
///
/// # Errors
/// If that is none.
pub fn counter(disk: &str) -> Result<u64, String> {
    let sector = get(disk, 0, 512);
    let mut numbers = sector.chunks(8).map(|n| u64::from_le_bytes(n.try_into().unwrap()));
    let first = numbers.next().unwrap();
    match numbers.all(|number| number == first) {
        true => Ok(first),
        false => Err(format!("{disk}: a sector of two moments")),
    }
}

/// A guest boots by that disk, which is not written to.
#[track_caller]
pub fn boots(disk: &str) {
    let folder = tempfile::Builder::new().prefix("judge-").tempdir().unwrap();
    let machine = Machine::new(folder.path().to_str().unwrap(), "judge").disk(disk, "raw");
    machine.thrown_away().boot().is_well();
}

/// Both have the same bytes.
pub fn is_same(one: &str, other: &str) -> bool {
    try_tool("cmp", &[one, other]).is_ok()
}
