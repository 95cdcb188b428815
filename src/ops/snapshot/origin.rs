//! A snapshot device stands for its origin: what is read is one, what is recorded the other. That it is one
//! has to be told by something: by LVM or ZFS, by extents that both files share, or by blocks that are equal.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::base::units::ExtentKind;
use crate::base::uri::Shown;
use crate::image::{LiveImage, RawFile, Source};
use crate::tracking::{ChangeHints, MapDifferences, TimeSpent, has_physical_addresses};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

/// Blocks that are compared, and places where they are looked for: many are zeros in both.
const SAMPLES: u64 = 64;
const PLACES: u64 = 1024;
const SAMPLE_BYTES: u64 = 4096;
/// How long LVM may take to answer: it waits for devices, and for its locks.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked whether it has.
const STEP: Duration = Duration::from_millis(5);
/// An answer is a line.
const MOST_PRINTED: usize = 4096;

/// Fails unless something tells that `live` is a snapshot of `origin`.
///
/// # Errors
/// `Mismatch`, unless `force`; `InvalidInput` if it is the origin itself.
pub(crate) fn check_origin(
    live: &LiveImage,
    origin: &Path,
    force: bool,
    context: &Context,
) -> Result<()> {
    let (place, of) = (live.disk.name(), origin.shown());
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(origin);
    let file = opened.map_err(|e| Error::os("open image", &of, e))?;
    let container = live.disk.container();
    if container.is_some_and(|container| is_same(container.file(), &file)) {
        let what = format!("{place} is {of} itself, not a snapshot of it");
        return Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
            "leave ",
            Setting::Of,
            " out"
        ]));
    }
    let proof = container.map(|container| told(container, origin, &file, context)).transpose()?;
    if let Some(proof) = proof.flatten() {
        context.note(format!("{place} is a snapshot of {of}: {proof}"));
        return Ok(());
    }
    let (equal, compared) = sample(live.disk.source(), &file, context)?;
    let found = format!("{equal} of {compared} sampled blocks are equal");
    if compared > 0 && equal * 2 >= compared {
        context.note(format!("{place} is taken as a snapshot of {of}: {found}"));
        return Ok(());
    }
    if force {
        context.note(format!("{place} is taken as a snapshot of {of}, as requested: {found}"));
        return Ok(());
    }
    let what = format!("nothing shows that {place} is a snapshot of {of}: {found}");
    Err(Error::new(ErrorKind::Mismatch, what)
        .hint(message!["check the origin; if it is correct, use ", Setting::Force]))
}

fn is_same(one: &File, other: &File) -> bool {
    let Some((one, other)) = one.metadata().ok().zip(other.metadata().ok()) else { return false };
    let is_same_file = (one.dev(), one.ino()) == (other.dev(), other.ino());
    is_same_file || (one.rdev() != 0 && one.rdev() == other.rdev())
}

/// Who tells that one is a snapshot of the other, besides their content.
fn told(
    snapshot: &RawFile,
    origin: &Path,
    file: &File,
    context: &Context,
) -> Result<Option<&'static str>> {
    if zfs_tells(snapshot.path(), origin) {
        return Ok(Some("the name of the ZFS volume says so"));
    }
    if lvm_tells(snapshot, origin, context)? {
        return Ok(Some("LVM says so"));
    }
    let shares = !snapshot.is_device() && shares_extents(snapshot, file);
    Ok(shares.then_some("they share extents"))
}

/// A snapshot of a ZFS volume is called as the volume, `@`, and a name of its own.
fn zfs_tells(snapshot: &Path, origin: &Path) -> bool {
    let names = snapshot.to_str().zip(origin.to_str());
    names.is_some_and(|(snapshot, origin)| {
        let volume = snapshot.strip_prefix("/dev/zvol/").and_then(|rest| rest.split_once('@'));
        volume.map(|(volume, _)| volume) == origin.strip_prefix("/dev/zvol/") && volume.is_some()
    })
}

/// Asks LVM for the origin of a logical volume.
fn lvm_tells(snapshot: &RawFile, origin: &Path, context: &Context) -> Result<bool> {
    let is_volume = snapshot.is_device() && snapshot.is_mapped_by("LVM-");
    if !is_volume {
        return Ok(false);
    }
    let origin_of = lvs(snapshot.path(), "vg_name,origin", context)?;
    Ok(origin_of.is_some() && origin_of == lvs(origin, "vg_name,lv_name", context)?)
}

/// Two fields of a logical volume; none if one of them is empty, or LVM does not answer.
fn lvs(device: &Path, fields: &str, context: &Context) -> Result<Option<(String, String)>> {
    const LVS: [&str; 5] = ["lvs", "--noheadings", "--separator", "/", "-o"];
    let [program, options @ ..] = LVS;
    let mut command = Command::new(program);
    command.args(options).arg(fields).arg(device);
    command.env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let line = first_line(command, PATIENCE, context)?;
    Ok(line.and_then(|line| two_fields(&line)))
}

/// The few bytes that a program prints; none if it fails, or does not end in time: then it is killed.
///
/// # Errors
/// `Interrupted`.
fn first_line(
    mut command: Command,
    patience: Duration,
    context: &Context,
) -> Result<Option<Vec<u8>>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Ok(None) };
    let begun = Instant::now();
    let outcome = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status.success()),
            Ok(None) if begun.elapsed() < patience => {}
            _ => break Ok(false),
        }
        if let Err(e) = context.check() {
            break Err(e);
        }
        sleep(STEP);
    };
    let mut line = vec![0; MOST_PRINTED];
    let count = match (&outcome, &mut child.stdout) {
        (Ok(true), Some(stdout)) => stdout.read(&mut line).unwrap_or(0),
        _ => 0,
    };
    line.truncate(count);
    best_effort(child.kill());
    // One that waits for a device cannot be killed, and must not be waited for.
    best_effort(Builder::new().spawn(move || child.wait()));
    Ok(outcome?.then_some(line))
}

fn two_fields(output: &[u8]) -> Option<(String, String)> {
    let text = str::from_utf8(output).ok()?.trim();
    let (group, volume) = text.split_once('/')?;
    // A hidden volume, such as one that is about to go, stands in brackets.
    let volume = volume.trim_matches(['[', ']']);
    let is_one = !group.is_empty() && !volume.is_empty() && !text.contains('\n');
    is_one.then(|| (group.to_owned(), volume.to_owned()))
}

/// True if at least half of what is allocated in the snapshot is the origin's.
fn shares_extents(snapshot: &RawFile, origin: &File) -> bool {
    if !has_physical_addresses(origin) || !is_on_one_filesystem(snapshot.file(), origin) {
        return false;
    }
    best_effort(origin.sync_all());
    best_effort(snapshot.file().sync_all());
    let differing = || -> Result<u64> {
        let failed = |e| Error::os("open", snapshot.path().shown(), e);
        let files =
            (origin.try_clone().map_err(failed)?, snapshot.file().try_clone().map_err(failed)?);
        let mut differences = MapDifferences::new(files.0, files.1, TimeSpent::default())?;
        let mut bytes = 0;
        while let Some(range) = differences.next_range()? {
            bytes += range.end().min(snapshot.image_bytes()).saturating_sub(range.offset);
        }
        Ok(bytes)
    };
    let allocated = snapshot.file().metadata().map_or(0, |meta| meta.blocks() * 512);
    allocated > 0 && differing().is_ok_and(|differing| differing <= allocated / 2)
}

fn is_on_one_filesystem(one: &File, other: &File) -> bool {
    let devices = one.metadata().ok().zip(other.metadata().ok());
    devices.is_some_and(|(one, other)| one.dev() == other.dev())
}

/// How many blocks are equal, and how many were compared. Blocks that are zeros in both tell nothing.
fn sample(snapshot: &dyn Source, origin: &File, context: &Context) -> Result<(u64, u64)> {
    let bytes = snapshot.image_bytes();
    let step = (bytes / PLACES).max(SAMPLE_BYTES).next_multiple_of(SAMPLE_BYTES);
    let (mut equal, mut compared, mut looked, mut at) = (0, 0, 0, 0);
    let (mut buffer, mut there) = (Vec::new(), vec![0; SAMPLE_BYTES as usize]);
    while at < bytes && compared < SAMPLES && looked < PLACES {
        context.check()?;
        let extent = snapshot.extent_at(at)?;
        if extent.kind == ExtentKind::Hole {
            at += extent.bytes;
            continue;
        }
        let (here, count) = (at, SAMPLE_BYTES.min(bytes - at) as usize);
        (at, looked) = (at + step, looked + 1);
        let window = snapshot.read_copied(here, count, &mut buffer)?;
        let there = there.get_mut(..count).unwrap_or_default();
        there.fill(0);
        // What is missing at its end, or cannot be read, is not equal.
        let is_read = origin.read_exact_at(there, here).is_ok();
        if window.bytes().iter().chain(&*there).all(|&byte| byte == 0) {
            continue;
        }
        compared += 1;
        equal += u64::from(is_read && window.bytes() == there);
    }
    Ok((equal, compared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_managers_tell_of_what_a_volume_is_a_snapshot() {
        let pair = |one: &str, other: &str| Some((one.to_owned(), other.to_owned()));
        for (output, found) in [
            ("  vg/vm\n", pair("vg", "vm")),
            ("  vg/[vm]\n", pair("vg", "vm")),
            ("  vg/\n", None),
            ("", None),
            ("  vg/a\n  vg/b\n", None),
        ] {
            assert_eq!(two_fields(output.as_bytes()), found, "{output:?}");
        }
        for (snapshot, origin, tells) in [
            ("/dev/zvol/tank/vm@now", "/dev/zvol/tank/vm", true),
            ("/dev/zvol/tank/vm@now", "/dev/zvol/tank/other", false),
            ("/dev/zvol/tank/vm", "/dev/zvol/tank/vm", false),
            ("/srv/vm@now", "/srv/vm", false),
        ] {
            assert_eq!(zfs_tells(Path::new(snapshot), Path::new(origin)), tells, "{snapshot}");
        }
    }
}
