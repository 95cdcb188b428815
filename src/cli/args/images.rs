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
    /// The image: a file, a block device, nbd://HOST/EXPORT, or the disks of a machine, qemu:SOCKET[/DISK] or
    /// libvirt:DOMAIN[/DISK]; several share the threads
    #[arg(required_unless_present = "all", value_name = "IMAGE", value_hint = ValueHint::FilePath,
          value_parser = image_uri())]
    pub images: Vec<ImageUri>,
    /// All domains of libvirt, several at a time (libvirt:* names them, too, and libvirt:web* some)
    #[arg(long, conflicts_with_all = ["images", "name", "group"])]
    pub all: bool,
    /// Name of the image in the repository [default: its file name without extension]
    #[arg(short, long)]
    pub name: Option<String>,
    /// Take all images as they are at one point in time, as a group of this name
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["base_image", "dry_run", "of"])]
    pub group: Option<String>,
    /// A label for the snapshot
    #[arg(short, long)]
    pub label: Option<String>,
    /// Make a base that rests on no other snapshot
    #[arg(long, group = "against")]
    pub full: bool,
    /// Take the base of the chain as the parent
    #[arg(long, group = "against")]
    pub differential: bool,
    /// Take this snapshot as the parent
    #[arg(long, group = "against", value_name = "REF")]
    pub parent: Option<String>,
    /// Take this raw image as the base, without a copy: the image is a clone of it
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath, conflicts_with = "dry_run")]
    pub base_image: Option<PathBuf>,
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// Read all of the image, whatever is known of it
    #[arg(long)]
    pub full_scan: bool,
    #[command(flatten)]
    pub tracking: Tracking,
    #[command(flatten)]
    pub window: Window,
    /// A list of what changed: "nbdinfo --map=qemu:dirty-bitmap:NAME --json", "rbd diff --format json",
    /// of thin_delta, or lines of "offset length" in bytes
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "since")]
    #[arg(conflicts_with = "base_image", group = "told")]
    pub changed: Option<PathBuf>,
    /// What changed, as this dirty bitmap says, which the NBD server of the image has, or its qcow2 file
    #[arg(
        long,
        value_name = "NAME",
        requires = "since",
        conflicts_with = "base_image",
        group = "told"
    )]
    pub bitmap: Option<String>,
    /// The snapshot since which the list or bitmap tells: the parent or an ancestor of it
    #[arg(long, value_name = "REF", requires = "told")]
    pub since: Option<String>,
    /// The image is a snapshot of this file or device, which is what is recorded
    #[arg(long, value_name = "ORIGIN", value_hint = ValueHint::FilePath, value_parser = image_uri())]
    #[arg(conflicts_with = "base_image")]
    pub of: Option<ImageUri>,
    /// Take it as a snapshot of that although nothing tells that it is one
    #[arg(long, requires = "of")]
    pub force: bool,
    /// Make no snapshot if the image is unchanged
    #[arg(long)]
    pub skip_unchanged: bool,
    #[command(flatten)]
    pub format: Format,
    /// Store what can be read of a bad disk, and mark the rest as unread
    #[arg(long)]
    pub skip_bad: bool,
    /// Unit of comparison of a new base, a power of two from 4K to 1M [default: the repository's]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<BlockSize>,
    /// Cut a new base, and what follows it, into parts of so much of the image, a power of two from 4K;
    /// smaller images are one file [default: 8G]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<PartSize>,
    /// lz4, zstd[:LEVEL] or none [default: the repository's]
    #[arg(long)]
    pub compression: Option<Compression>,
    /// Change nothing, only tell
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
    /// Find changes by clones of the image (XFS, btrfs): auto, reflink or none [default: auto]
    #[arg(long, value_name = "HOW")]
    pub track: Option<Track>,
    /// Read this much of what is called unchanged, another part each time [default: 1% or 64 MiB]
    #[arg(long, value_name = "P%")]
    pub recheck: Option<Recheck>,
    /// How long writes of a running machine may wait while its image is cloned [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    pub max_stall: Option<Duration>,
}

/// What happens around the point in time of a snapshot.
#[derive(ClapArgs, Clone)]
pub struct Window {
    /// Freeze for the moment of the snapshot: "agent" or agent:SOCKET, by the guest agent of the machine, or
    /// a mount point of a file system that lies on the image; can be given several times
    #[arg(long, value_name = "WHAT", value_hint = ValueHint::AnyPath, value_parser = frozen())]
    pub freeze: Vec<Freeze>,
    /// How long it may be frozen at the most [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_length, requires = "freeze")]
    pub freeze_limit: Option<Duration>,
    /// Run this before, by sh -c; if it fails there is no snapshot
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub pre: Option<OsString>,
    /// Run this after, by sh -c, also after a failure
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub post: Option<OsString>,
    /// Take the disks of a machine one after the other, so that it is never stopped
    #[arg(long)]
    pub one_by_one: bool,
    /// Where what a machine overwrites is kept while its disks are read [default: /var/tmp]
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
    /// Image files, devices, NBD exports, or machines
    #[arg(required = true, value_name = "IMAGE", value_hint = ValueHint::FilePath,
          value_parser = image_uri())]
    pub images: Vec<ImageUri>,
    /// Name of the image in the repository [default: its file name without extension]
    #[arg(short, long)]
    pub name: Option<String>,
    /// Label each snapshot LABEL-DATE-TIME
    #[arg(short, long)]
    pub label: Option<String>,
    /// How often, as in 30s, 5min, 1h or 1d
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
    /// Store what can be read of a bad disk, and mark the rest as unread
    #[arg(long)]
    pub skip_bad: bool,
    /// lz4, zstd[:LEVEL] or none [default: the repository's]
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
    /// The format of the image, whatever it looks like, or was before: raw, qcow2, vmdk, vhdx, vdi or vhd
    #[arg(long, value_name = "FORMAT", value_parser = parsed::<ImageFormat>)]
    pub format: Option<ImageFormat>,
    /// Read a format through qemu-nbd that is not read natively
    #[arg(long)]
    pub via_qemu: bool,
    /// Read the backing, data and extent files that an image names: whoever wrote it chose them
    #[arg(long)]
    pub backing_ok: bool,
}
