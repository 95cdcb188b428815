//! Random disks in qcow2 files, made by QEMU's own tools from a seed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::random::Random;
use imgsnap::Result;
use imgsnap::base::units::ExtentKind;
use imgsnap::image::qcow2::Qcow2Image;
use imgsnap::image::{RawFile, Source};
use std::path::Path;

pub const QEMU: &[&str] = &["qemu-img", "qemu-io"];
const SECTOR: u64 = 512;

/// A random disk of 1 to 8 MiB, or a bit less; what it was made by, for the message of a failure.
pub fn random_disk(lab: &Lab, seed: u64) -> (String, String) {
    let mut random = Random(seed);
    let mut history = format!("seed {seed}:");
    let depth = random.below(4);
    let mut below: Option<(String, &str)> = None;
    for level in 0..=depth {
        let is_raw = below.is_none() && depth > 0 && random.below(2) == 0;
        let format = if is_raw { "raw" } else { "qcow2" };
        let name = format!("{seed}-{level}.{format}");
        let path = lab.path(&name);
        let sectors = random.below(15 << 10) + (1 << 10);
        let mut args = vec!["create".to_owned(), "-q".into(), "-f".into(), format.into()];
        let mut cluster = 0;
        if !is_raw {
            let (options, bytes) = random_options(&mut random, below.is_some());
            cluster = bytes;
            args.extend(["-o".to_owned(), options]);
        }
        if let Some((file, format)) = &below {
            args.extend(["-b".to_owned(), file.clone(), "-F".into(), (*format).into()]);
        }
        args.extend([path.clone(), (sectors * SECTOR).to_string()]);
        history.push_str(&format!("\n  qemu-img {}", args.join(" ")));
        tool("qemu-img", &args.iter().map(String::as_str).collect::<Vec<_>>());
        for round in 0..random.below(3) {
            let count = random.below(8) + 1;
            let size = sectors * SECTOR;
            let mut commands: Vec<String> =
                (0..count).map(|_| random_command(&mut random, size, cluster)).collect();
            // QEMU 7.2 goes on compressing into a cluster that it freed meanwhile, and cannot read that.
            commands.sort_by_key(|command| !command.starts_with("write -c"));
            history.push_str(&format!("\n  qemu-io {}: {}", path, commands.join("; ")));
            let mut args = vec!["-f", format, "-t", "unsafe", "-d", "unmap"];
            commands.iter().for_each(|command| args.extend(["-c", command]));
            args.push(&path);
            // Some cannot be done: zeros where version 2 has no word for them, compressed over what is there.
            let done = try_tool("qemu-io", &args);
            history.push_str(if done.is_ok() { "" } else { " (not all)" });
            if !is_raw && random.below(3) == 0 {
                history.push_str("\n  snapshot");
                tool("qemu-img", &["snapshot", "-c", &format!("s{round}"), &path]);
            }
        }
        if random.below(6) == 0 {
            let more = format!("+{}", (random.below(200) + 1) * SECTOR);
            // Version 2 cannot, with snapshots.
            let grown = try_tool("qemu-img", &["resize", "-q", "-f", format, &path, &more]);
            history.push_str(&format!("\n  resize {more}: {}", grown.is_ok()));
        }
        if !is_raw && below.is_none() && random.below(5) == 0 {
            history.push_str("\n  convert -c");
            let compressed = lab.path("compressed");
            let convert =
                ["convert", "-t", "unsafe", "-c", "-f", "qcow2", "-O", "qcow2", &path, &compressed];
            tool("qemu-img", &convert);
            std::fs::rename(&compressed, &path).unwrap();
        }
        // Named as people do it: relative to the file that names it, or not.
        let named = if random.below(2) == 0 { name } else { path };
        below = Some((named, format));
    }
    let (name, format) = below.unwrap();
    assert_eq!(format, "qcow2");
    (lab.path(name.rsplit('/').next().unwrap()), history)
}

fn random_options(random: &mut Random, has_backing: bool) -> (String, u64) {
    let cluster = 1_u64 << [9, 10, 12, 14, 16, 16, 18, 21][random.below(8) as usize];
    let is_old = random.below(4) == 0;
    let mut options =
        format!("cluster_size={cluster},compat={}", if is_old { "0.10" } else { "1.1" });
    if !is_old && random.below(3) == 0 {
        options.push_str(&format!(",lazy_refcounts=on,refcount_bits={}", 2 << random.below(6)));
    }
    if !is_old && random.below(3) == 0 {
        options.push_str(",compression_type=zstd");
    }
    let has_subclusters = !is_old && cluster >= 1 << 14 && random.below(2) == 0;
    if has_subclusters {
        options.push_str(",extended_l2=on");
    }
    let modes = ["off", "off", "metadata", "falloc", "full"];
    if !has_backing && cluster >= 4096 && !has_subclusters {
        let mode = modes[random.below(modes.len() as u64) as usize];
        options.push_str(&format!(",preallocation={mode}"));
    }
    (options, cluster)
}

/// For qemu-io. Whatever it does, it is the disk's new state that counts.
fn random_command(random: &mut Random, size: u64, cluster: u64) -> String {
    let sectors = size / SECTOR;
    let first = random.below(sectors);
    let count = (random.below(600) + 1).min(sectors - first);
    let (offset, bytes) = (first * SECTOR, count * SECTOR);
    let byte = random.below(255) + 1;
    match random.below(8) {
        0 => format!("write -z {offset} {bytes}"),
        1 => format!("write -z -u {offset} {bytes}"),
        2 => format!("discard {offset} {bytes}"),
        3 if cluster > 0 && size >= cluster => {
            let at = random.below(size / cluster) * cluster;
            format!("write -c -P {byte} {at} {cluster}")
        }
        _ => format!("write -P {byte} {offset} {bytes}"),
    }
}

/// Opened by us.
pub fn open(path: &str, backing_ok: bool) -> Result<Qcow2Image> {
    Qcow2Image::open(RawFile::open(Path::new(path))?, backing_ok)
}

/// All of a disk, read as a scan does: holes are known, data is read in windows. At most so many bytes of data.
pub fn read_all(image: &Qcow2Image, window: u64, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = Vec::new();
    let (mut at, mut data) = (0, 0);
    while at < image.image_bytes() && data < most {
        let extent = image.extent_at(at)?;
        assert!(extent.offset == at && extent.bytes > 0);
        let end = at + extent.bytes;
        assert!(end <= image.image_bytes());
        match extent.kind {
            // Nobody needs the zeros of a disk of exabytes.
            ExtentKind::Hole => bytes.resize(end.min(1 << 30) as usize, 0),
            ExtentKind::Data => {
                let mut at = at;
                while at < end && data < most {
                    let count = window.min(end - at);
                    let read = image.read(at, count as usize, &mut buffer)?;
                    assert_eq!(read.bytes().len() as u64, count);
                    bytes.extend_from_slice(read.bytes());
                    read.check(image)?;
                    (at, data) = (at + count, data + count);
                }
            }
        }
        at = end;
    }
    image.check_at_end()?;
    Ok(bytes)
}
