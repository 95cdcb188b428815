//! What can be typed.

mod images;
mod work;

pub use images::{Format, Snapshot, Watch};
pub use work::{Plan, PlanVerb};

use super::bench::args::Bench;
use super::config::args::Config;
use super::hash::ContentDigest;
use super::key::args::{Key, KeyOptions, OwnerOptions};
use super::requests::args::Requests;
use super::restore::args::Restore;
use super::words::{self, parsed};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use imgsnap::Reference;
use imgsnap::base::digest::DigestAlgorithm;
use imgsnap::base::duration::parse_duration;
use imgsnap::base::read_limit::ReadRate;
use imgsnap::base::units::{BlockSize, PartSize, parse_bytes};
use imgsnap::codec::Compression;
use imgsnap::image::{ImageFormat, ImageUri, parse_image};
use imgsnap::repo::accepted::AcceptedState;
use imgsnap::repo::retention::{Count, LabelGlob, Period};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Block-level incremental snapshots of disk images.
///
/// A snapshot is named NAME@NUMBER, NAME@latest, NAME@head (the one that the live image last
/// equalled), NAME@LABEL, or NAME@2026-11-20 or a longer time (the newest one at or before it).
#[derive(Parser)]
#[command(name = "imgsnap", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Args {
    /// The repository; otherwise IMGSNAP_REPO, otherwise the user's data folder
    #[arg(short, long, global = true, value_name = "DIR|URL", value_hint = ValueHint::DirPath)]
    pub repo: Option<PathBuf>,
    /// Print results and errors as JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print warnings and errors only; verbs that show something print that
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say what is done
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Wait so long for another imgsnap that works on the image, as in 30s or 5min [default: fail at once]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_length)]
    pub lock_wait: Option<Duration>,
    /// Threads that work [default: one for each core, at most 16]
    #[arg(long, global = true, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Read images and the repository no faster, in bytes per second, as in 100M or 1.5GiB/s
    #[arg(long, global = true, value_name = "RATE", value_parser = parsed::<ReadRate>)]
    pub limit_read: Option<ReadRate>,
    /// Send no faster to a repository on a server
    #[arg(long, global = true, value_name = "RATE", value_parser = parsed::<ReadRate>)]
    pub limit_upload: Option<ReadRate>,
    /// Fetch no faster from a repository on a server
    #[arg(long, global = true, value_name = "RATE", value_parser = parsed::<ReadRate>)]
    pub limit_download: Option<ReadRate>,
    /// Keep the index of repositories on servers there; otherwise IMGSNAP_CACHE, otherwise the user's cache
    /// folder
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cache_dir: Option<PathBuf>,
    /// Keep no more than that of it [default: 4G]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size)]
    pub cache_size: Option<u64>,
    /// Keep none of it
    #[arg(long, global = true, conflicts_with_all = ["cache_dir", "cache_size"])]
    pub no_cache: bool,
    /// The hypervisor whose domains libvirt:DOMAIN names, as in qemu:///session [default: libvirt's]
    #[arg(long, global = true, value_name = "URI")]
    pub connect: Option<String>,
    /// Use IMAGE@COMMIT of an encrypted repository, or @NUMBER of its configuration, though this host has
    /// seen a newer one
    #[arg(long, global = true, value_name = "STATE", value_parser = parsed::<AcceptedState>)]
    pub accept_older: Vec<AcceptedState>,
    #[command(flatten)]
    pub keys: KeyOptions,
    #[command(flatten)]
    pub owner: OwnerOptions,
    #[command(subcommand)]
    pub command: Command,
}

/// What is served.
#[derive(Subcommand)]
pub enum Serve {
    /// The folder of a repository, to a host that uses it as ssh://HOST/PATH: ssh starts this
    Store {
        /// Over the standard input and output
        #[arg(long, required = true)]
        stdio: bool,
        /// Let the host add snapshots, and neither remove nor change anything
        #[arg(long)]
        append_only: bool,
        /// Only this folder, whichever the host names
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        path: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a repository
    Init(Init),
    /// Take a snapshot of an image file or block device, or of several
    #[command(visible_alias = "backup")]
    Snapshot(Snapshot),
    /// Take snapshots of images again and again, until it is told to stop
    Watch(Watch),
    /// Cut snapshots, a restore or a verification into tasks for several workers
    Plan(Plan),
    /// Do one task of a plan: store, restore or verify its part
    Part {
        /// The plan: its id, the beginning of it, or latest
        plan: String,
        /// The number of the task
        task: u32,
    },
    /// Make a whole of what the workers of a plan have done
    Join {
        /// The plan: its id, the beginning of it, or latest
        plan: String,
        /// Of snapshots, only that of this image
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
    },
    /// Give others access to a repository
    Serve {
        #[command(subcommand)]
        verb: Serve,
    },
    /// List images and their snapshots
    #[command(visible_alias = "ls")]
    List {
        /// Only this image; libvirt:[DOMAIN] shows the domains of libvirt, and what protects them
        name: Option<String>,
        /// Only the newest N snapshots of each image
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        last: Option<u64>,
    },
    /// Show the newest commit of each image, to be compared with what another host is shown
    Heads,
    /// Show all that is known of a snapshot
    Show {
        /// NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
    },
    /// Show how much two snapshots or images differ, and where
    Diff {
        /// A snapshot (NAME@WHICH) or an image file
        #[arg(value_name = "REF|IMAGE")]
        before: OsString,
        /// Another one
        #[arg(value_name = "REF|IMAGE")]
        after: OsString,
        #[command(flatten)]
        format: Format,
    },
    /// Write a snapshot, or a part of it, to a file, a device or stdout
    Restore(Restore),
    /// Bring the live image back to a snapshot, in place, writing only what differs
    Rollback(Rollback),
    /// Print a digest of a snapshot's content, to be compared with one that another program makes of an image
    Hash {
        /// NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
        /// sha256, sha512, blake3 or xxh3 (128 bits)
        #[arg(long, value_name = "NAME", default_value = "sha256", hide_default_value = false)]
        algorithm: ContentDigest,
    },
    /// Check that what is stored gives back every image
    #[command(visible_alias = "check")]
    Verify {
        /// An image or a snapshot; otherwise everything
        #[arg(value_name = "NAME|REF")]
        what: Option<String>,
        /// Only the checksums of the stored bytes, not each block's digest and each image digest
        #[arg(long)]
        quick: bool,
    },
    /// Show what snapshots cost, how much is added day by day, and where images change
    Stats {
        /// Only this image, with all details
        name: Option<String>,
        /// Write what monitoring needs of all images to a file, in OpenMetrics' text format, whole or not at all
        #[arg(long, value_name = "FILE", conflicts_with = "name", value_hint = ValueHint::FilePath)]
        metrics: Option<PathBuf>,
    },
    /// Remove the clones by which the changes of an image are found; the next snapshot reads all of it
    Untrack {
        /// The image
        name: String,
    },
    /// Drop the snapshots that no rule keeps, and get their room back
    Prune(Prune),
    /// Remove a snapshot, and the others of its group; those that rest on them stay as they are
    #[command(visible_alias = "rm")]
    Delete {
        /// NAME@WHICH; several are removed one after the other
        #[arg(required = true, value_name = "REF", value_parser = parsed::<Reference>)]
        references: Vec<Reference>,
        /// Only this snapshot, whatever was taken with it
        #[arg(long)]
        alone: bool,
        /// Merge its file into those that rest on it, even where that frees little
        #[arg(long)]
        compact: bool,
    },
    /// Make a snapshot a base that rests on no other, without reading the image
    Flatten {
        /// NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
    },
    /// Write a snapshot to one self-contained delta file: all of it, or what changed since another
    Export(Export),
    /// Take delta files into the repository, which can then continue their chain
    Import {
        /// Delta files, or - for one from stdin
        #[arg(required = true, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
        /// Name of the image, if it is not in the repository yet
        #[arg(short, long)]
        name: Option<String>,
        #[command(flatten)]
        first_use: FirstUse,
    },
    /// Make an image from delta files and the image that they begin from, without a repository
    Apply(Apply),
    /// Show the label of a snapshot, or give it one, or remove it
    Label {
        /// NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
        /// The new label; without it, the label is shown
        label: Option<String>,
        /// Remove the label
        #[arg(long, conflicts_with = "label")]
        remove: bool,
    },
    /// Keep a snapshot, and the others of its group, whatever prune, delete, remove or watch are told
    Protect {
        /// NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
        /// Only this snapshot, whatever was taken with it
        #[arg(long)]
        alone: bool,
        /// It may be dropped again
        #[arg(long)]
        off: bool,
    },
    /// Remove an image with all its snapshots from the repository
    Remove(Remove),
    /// Rebuild a lost or damaged manifest; with --from, put damaged files right, too
    Repair {
        /// The image; otherwise all
        name: Option<String>,
        /// Where to look for what is damaged: a repository, or an image; can be given several times
        #[arg(long, value_name = "REPO|IMAGE", value_hint = ValueHint::AnyPath)]
        from: Vec<PathBuf>,
    },
    /// Show or change what opens an encrypted repository
    Key {
        #[command(subcommand)]
        verb: Key,
    },
    /// Show what hosts ask the owner of the repository to drop, and do it or not
    Requests {
        #[command(subcommand)]
        verb: Requests,
    },
    /// Show or change the configuration: rules of prune, how snapshots are taken, what bases are made with
    Config {
        #[command(subcommand)]
        verb: Config,
    },
    /// Say where the live file of an image is now, or its base image
    Relink {
        /// The image
        name: String,
        /// Its file or device
        #[arg(value_hint = ValueHint::FilePath, required_unless_present = "base_image",
              value_parser = image_uri())]
        image: Option<ImageUri>,
        /// The base image of its chain, which is proved to be the same
        #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
        base_image: Option<PathBuf>,
        /// raw, qcow2, vmdk, vhdx, vdi or vhd [default: as before, or raw if it looks so]
        #[arg(long, value_name = "FORMAT", value_parser = parsed::<ImageFormat>)]
        format: Option<ImageFormat>,
    },
    /// Measure every verb against the ceiling of this machine
    Bench(Bench),
    /// Print a completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages
    Man {
        /// Into this folder
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

#[derive(ClapArgs)]
pub struct Remove {
    /// The image
    pub name: String,
    /// Do not ask; needed where there is no terminal to ask on
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(ClapArgs)]
pub struct Init {
    /// Unit of comparison, a power of two from 4K to 1M [default: 4K]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<BlockSize>,
    /// xxh3 (fast, against accidents) or blake3 (collision resistant) [default: xxh3]
    #[arg(long)]
    pub digest: Option<DigestAlgorithm>,
    /// lz4, zstd[:LEVEL] or none [default: lz4]
    #[arg(long)]
    pub compression: Option<Compression>,
    /// Cut larger images into parts of so much of the image, a power of two from 4K [default: 8G]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<PartSize>,
    /// This host alone will ever write to it: for servers that cannot keep two hosts apart
    #[arg(long)]
    pub single_writer: bool,
    /// Encrypt it: a key is made, which opens with the passphrase or key file that is given
    #[arg(long)]
    pub encrypt: bool,
    /// Make none: from now on, use the one that is there, where this host has used another one before
    #[arg(long)]
    #[arg(conflicts_with_all = ["block_size", "digest", "compression", "part_size"])]
    #[arg(conflicts_with_all = ["single_writer", "encrypt"])]
    pub accept: bool,
}

/// What becomes of a repository that is not there.
#[derive(ClapArgs, Clone, Copy)]
pub struct FirstUse {
    /// Fail if there is no repository, and make none
    #[arg(long)]
    pub must_exist: bool,
}

/// Reads an image, whose path need not be UTF-8.
fn image_uri() -> impl TypedValueParser<Value = ImageUri> {
    OsStringValueParser::new().try_map(|text| parse_image(text).map_err(|e| words::error(&e)))
}

#[derive(ClapArgs)]
pub struct Export {
    /// NAME@WHICH
    #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
    pub reference: Reference,
    /// Only what differs from this snapshot, which may be a later one [default: all of it]
    #[arg(long, value_name = "REF")]
    pub since: Option<String>,
    /// A new file, or - for stdout
    #[arg(short, long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Replace an existing file
    #[arg(short, long)]
    pub force: bool,
}

#[derive(ClapArgs)]
pub struct Apply {
    /// Delta files, from the oldest to the newest
    #[arg(required = true, value_name = "DELTA", value_hint = ValueHint::FilePath)]
    pub deltas: Vec<PathBuf>,
    /// The image that the first one begins from; without, it must be a full one
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub base: Option<PathBuf>,
    /// Write the image that they give to a new file, or - for stdout
    #[arg(short, long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    #[arg(required_unless_present = "in_place", conflicts_with = "in_place")]
    pub output: Option<PathBuf>,
    /// Change the base image itself, writing only the blocks that the deltas have
    #[arg(long, requires = "base")]
    pub in_place: bool,
    /// Replace an existing file
    #[arg(short, long)]
    pub force: bool,
}

/// Which snapshots are kept.
#[derive(ClapArgs)]
pub struct Keep {
    /// Keep the newest N
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_last: Option<Count>,
    /// Keep one of each of the last N hours
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_hourly: Option<Count>,
    /// Keep one of each of the last N days
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_daily: Option<Count>,
    /// Keep one of each of the last N weeks
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_weekly: Option<Count>,
    /// Keep one of each of the last N months
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_monthly: Option<Count>,
    /// Keep one of each of the last N years
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_yearly: Option<Count>,
    /// Keep all that are at most so much older than the newest, as in 30d or 1y6mo
    #[arg(long, value_name = "PERIOD")]
    pub keep_within: Option<Period>,
    /// Keep all whose label fits, as in "pre-*"; can be given several times
    #[arg(long, value_name = "GLOB")]
    pub keep_label: Vec<LabelGlob>,
}

/// N is a number from 1, or "unlimited". The newest snapshot of each of the last N periods that have
/// any is kept; rules unite. Without rules, those in the configuration hold.
#[derive(ClapArgs)]
pub struct Prune {
    /// The image
    #[arg(required_unless_present = "all")]
    pub name: Option<String>,
    /// All images
    #[arg(long, conflicts_with = "name")]
    pub all: bool,
    #[command(flatten)]
    pub keep: Keep,
    /// Merge files even where that frees little
    #[arg(long)]
    pub compact: bool,
    /// Change nothing, only tell what would be kept, and why
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(ClapArgs)]
pub struct Rollback {
    /// The image, by name or by the path of its live file
    #[arg(value_name = "IMAGE|NAME")]
    pub image: OsString,
    /// Where to: NAME@WHICH, or @WHICH
    #[arg(long, value_name = "REF")]
    pub to: String,
    /// Do not take a snapshot of the present state first
    #[arg(long)]
    pub no_save: bool,
    /// Believe nothing: read the whole image before and after
    #[arg(long)]
    pub prove: bool,
    /// Write to the device even if it is not the one that the last snapshot was taken of
    #[arg(long)]
    pub force_device: bool,
    /// Change nothing, only tell
    #[arg(long)]
    pub dry_run: bool,
    /// Read the files that a qcow2 image is based on: whoever wrote its header chose them
    #[arg(long)]
    pub backing_ok: bool,
    /// Only this image, not those that the snapshot was taken with
    #[arg(long)]
    pub alone: bool,
    /// Of a machine (qemu:SOCKET): stop and reset it, write to its disks, and start it
    #[arg(long, conflicts_with = "dry_run")]
    pub reset: bool,
    /// Of a machine (libvirt:DOMAIN): shut it down, write to its disks, and start it
    #[arg(long, conflicts_with = "dry_run")]
    pub shutdown: bool,
}

/// A length of time.
fn parse_length(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|e| words::error(&e))
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(every) if every < Duration::from_secs(1) => Err("it is less than a second".into()),
        other => other.map_err(|e| words::error(&e)),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|e| words::error(&e))
}

fn parse_threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|n| (1..=16).contains(n));
    threads.ok_or_else(|| format!("\"{text}\" is not a number from 1 to 16"))
}
