//! What can be typed for the verbs that read images.

use super::super::elsewhere::Elsewhere;
use super::super::words::{self, parsed};
use super::{FirstUse, Keep, image_uri, parse_interval, parse_length};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args as ClapArgs, ValueHint};
use imgsnap::Track;
use imgsnap::base::units::{BlockSize, PartSize};
use imgsnap::codec::Compression;
use imgsnap::image::{ImageFormat, ImageUri};
use imgsnap::machine::{Freeze, Hooks};
use imgsnap::tracking::Recheck;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

#[derive(ClapArgs, Clone)]
pub struct Snapshot {
    /// Image: a file, a block device, nbd://HOST/EXPORT, or the disks of a virtual machine,
    /// qemu:SOCKET[/DISK] or libvirt:DOMAIN[/DISK]; can be given several times
    #[arg(required_unless_present = "all", value_name = "IMAGE", value_hint = ValueHint::FilePath,
          value_parser = image_uri())]
    pub images: Vec<ImageUri>,
    /// Snapshot all libvirt domains, like libvirt:* (libvirt:web* selects some)
    #[arg(long, conflicts_with_all = ["images", "name", "group"])]
    pub all: bool,
    /// Name of the image in the repository [default: its file name without extension]
    #[arg(short, long)]
    pub name: Option<String>,
    /// Snapshot all images at the same point in time, as a group with this name
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["base_image", "dry_run", "of"])]
    pub group: Option<String>,
    /// Label for the snapshot
    #[arg(short, long)]
    pub label: Option<String>,
    /// Create a base, which depends on no other snapshot
    #[arg(long, group = "against")]
    pub full: bool,
    /// Use the base of the chain as the parent
    #[arg(long, group = "against")]
    pub differential: bool,
    /// Use this snapshot as the parent
    #[arg(long, group = "against", value_name = "REF")]
    pub parent: Option<String>,
    /// Use this raw image, of which IMAGE is a clone, as the base, without copying it
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath, conflicts_with = "dry_run")]
    pub base_image: Option<PathBuf>,
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// Read the whole image, ignoring hints about what changed
    #[arg(long)]
    pub full_scan: bool,
    #[command(flatten)]
    pub tracking: Tracking,
    #[command(flatten)]
    pub window: Window,
    /// Read the changed ranges from a file, or - for stdin: "nbdinfo --map=qemu:dirty-bitmap:NAME --json",
    /// "rbd diff --format json" or thin_delta, or lines of "offset length" in bytes
    #[arg(long, value_name = "FILE|-", value_hint = ValueHint::FilePath, requires = "since")]
    #[arg(conflicts_with = "base_image", group = "told")]
    pub changed: Option<PathBuf>,
    /// Read the changed ranges from this dirty bitmap of the NBD export or qcow2 file
    #[arg(
        long,
        value_name = "NAME",
        requires = "since",
        conflicts_with = "base_image",
        group = "told"
    )]
    pub bitmap: Option<String>,
    /// Snapshot at which the list or bitmap starts: the parent or one of its ancestors
    #[arg(long, value_name = "REF", requires = "told")]
    pub since: Option<String>,
    /// Record this file or device, of which IMAGE is a snapshot (LVM, ZFS or clone), as the source
    #[arg(long, value_name = "ORIGIN", value_hint = ValueHint::FilePath, value_parser = image_uri())]
    #[arg(conflicts_with = "base_image")]
    pub of: Option<ImageUri>,
    /// Accept --of even if nothing shows that the image is a snapshot of it
    #[arg(long, requires = "of")]
    pub force: bool,
    /// Do not take a snapshot if the image is unchanged
    #[arg(long)]
    pub skip_unchanged: bool,
    #[command(flatten)]
    pub format: Format,
    /// Skip the parts of a bad disk that cannot be read, and mark them as unread
    #[arg(long)]
    pub skip_bad: bool,
    /// Block size of a new base, a power of two from 4K to 1M [default: the repository's]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<BlockSize>,
    /// Store a new base and its deltas in parts that each cover this much of the image, a power of two
    /// from 4K; smaller images are stored in one file [default: 8G]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<PartSize>,
    /// Compression: lz4, zstd[:LEVEL] or none [default: the repository's]
    #[arg(long)]
    pub compression: Option<Compression>,
    /// Dry run: change nothing, only report what would be done
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub first_use: FirstUse,
    /// Domains are named by a pattern, and each gets a line.
    #[arg(skip)]
    pub is_brief: bool,
}

/// How it is found, without reading, what changed.
#[derive(ClapArgs, Clone)]
pub struct Tracking {
    /// Find changes by comparing clones (XFS, btrfs): auto, reflink or none [default: auto]
    #[arg(help_heading = "Finding changes")]
    #[arg(long, value_name = "HOW")]
    pub track: Option<Track>,
    /// Recheck this much of what hints report as unchanged, in turn [default: 1% or 64 MiB]
    #[arg(help_heading = "Finding changes")]
    #[arg(long, value_name = "P%")]
    pub recheck: Option<Recheck>,
    /// Longest time that cloning may hold up the writes of a running machine [default: 1s]
    #[arg(help_heading = "Finding changes")]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    pub max_stall: Option<Duration>,
}

/// What happens around the point in time of a snapshot.
#[derive(ClapArgs, Clone)]
pub struct Window {
    /// Freeze file systems during the snapshot: "agent" or agent:SOCKET (through the guest agent), or the
    /// mount point of a file system on the image; can be given several times
    #[arg(help_heading = "Consistency")]
    #[arg(long, value_name = "WHAT", value_hint = ValueHint::AnyPath, value_parser = frozen())]
    pub freeze: Vec<Freeze>,
    /// Longest time that file systems may stay frozen [default: 10s]
    #[arg(help_heading = "Consistency")]
    #[arg(long, value_name = "TIME", value_parser = parse_length, requires = "freeze")]
    pub freeze_limit: Option<Duration>,
    /// Run this command (with sh -c) before the snapshot; if it fails, take no snapshot
    #[arg(help_heading = "Consistency")]
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub pre: Option<OsString>,
    /// Run this command (with sh -c) after the snapshot, even if it failed
    #[arg(help_heading = "Consistency")]
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub post: Option<OsString>,
    /// Snapshot the disks of a machine one after another, so that it is never stopped
    #[arg(help_heading = "Consistency")]
    #[arg(long)]
    pub one_by_one: bool,
    /// Folder for data that a machine overwrites while its disks are read [default: /var/tmp]
    #[arg(help_heading = "Consistency")]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub scratch_dir: Option<PathBuf>,
}

impl Window {
    /// As the library takes it.
    pub fn request(&self) -> imgsnap::Window {
        imgsnap::Window::default()
            .freeze(self.freeze.clone())
            .freeze_limit(self.freeze_limit)
            .hooks(Hooks { pre: self.pre.clone(), post: self.post.clone() })
            .one_by_one(self.one_by_one)
            .scratch_dir(self.scratch_dir.clone())
    }
}

#[derive(ClapArgs)]
pub struct Watch {
    /// Image files, devices, NBD exports or machines to watch
    #[arg(required = true, value_name = "IMAGE", value_hint = ValueHint::FilePath,
          value_parser = image_uri())]
    pub images: Vec<ImageUri>,
    /// Name of the image in the repository [default: its file name without extension]
    #[arg(short, long)]
    pub name: Option<String>,
    /// Label each snapshot LABEL-DATE-TIME
    #[arg(short, long)]
    pub label: Option<String>,
    /// Interval between snapshots, such as 30s, 5min, 1h or 1d
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    pub every: Duration,
    #[command(flatten)]
    pub keep: Keep,
    #[command(flatten)]
    pub tracking: Tracking,
    #[command(flatten)]
    pub window: Window,
    #[command(flatten)]
    pub format: Format,
    /// Skip the parts of a bad disk that cannot be read, and mark them as unread
    #[arg(long)]
    pub skip_bad: bool,
    /// Compression: lz4, zstd[:LEVEL] or none [default: the repository's]
    #[arg(long)]
    pub compression: Option<Compression>,
    #[command(flatten)]
    pub first_use: FirstUse,
}

fn frozen() -> impl TypedValueParser<Value = Freeze> {
    OsStringValueParser::new()
        .try_map(|text| Freeze::parse(&text).map_err(|error| words::error(&error)))
}

/// How the image file is to be read.
#[derive(ClapArgs, Clone)]
pub struct Format {
    /// Format of the image, overriding the detected or recorded one: raw, qcow2, vmdk, vhdx, vdi or vhd
    #[arg(help_heading = "Image format")]
    #[arg(long, value_name = "FORMAT", value_parser = parsed::<ImageFormat>)]
    pub format: Option<ImageFormat>,
    /// Read formats that are not supported natively through qemu-nbd
    #[arg(help_heading = "Image format")]
    #[arg(long)]
    pub via_qemu: bool,
    /// Read the backing, data and extent files that an image names (only for images you trust)
    #[arg(help_heading = "Image format")]
    #[arg(long)]
    pub backing_ok: bool,
}
