//! What can be typed.

mod images;
mod retention;
mod work;

pub use images::{Format, Snapshot, Watch};
pub use retention::{Keep, Prune};
pub use work::{Plan, PlanVerb};

use super::bench::args::Bench;
use super::config::args::Config;
use super::hash::ContentDigest;
use super::key::args::{Key, KeyOptions, OwnerOptions};
use super::requests::args::Requests;
use super::restore::args::Restore;
use super::screen::Colours;
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
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Block-level incremental snapshots of disk images.
///
/// A snapshot is written NAME@NUMBER, NAME@latest, NAME@head (the one that the live image last
/// equalled), NAME@LABEL or NAME@TIME, such as vm@2026-11-20 (the newest one at or before that time).
#[derive(Parser)]
#[command(name = "imgsnap", version, max_term_width = 100, arg_required_else_help = true)]
#[command(next_help_heading = "Global options")]
pub struct Args {
    /// Repository [default: IMGSNAP_REPO, or else the user's data folder]
    #[arg(short, long, global = true, value_name = "DIR|URL", value_hint = ValueHint::DirPath)]
    pub repo: Option<PathBuf>,
    /// Print results and errors as JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print warnings and errors only; commands that show something still print it
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print each step
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Use colors: auto, always or never [default: auto, as NO_COLOR and CLICOLOR_FORCE say]
    #[arg(long, global = true, value_name = "WHEN", default_value_t, value_enum)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub color: Colours,
    /// Wait this long for another imgsnap to finish with the image, such as 30s [default: fail at once]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_length)]
    pub lock_wait: Option<Duration>,
    /// Number of threads [default: one per core, at most 16]
    #[arg(long, global = true, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Limit reads of images and the repository, in bytes per second, such as 100M or 1.5GiB/s
    #[arg(long, global = true, value_name = "RATE", value_parser = parsed::<ReadRate>)]
    pub limit_read: Option<ReadRate>,
    /// Limit uploads to servers, in bytes per second
    #[arg(long, global = true, value_name = "RATE", value_parser = parsed::<ReadRate>)]
    pub limit_upload: Option<ReadRate>,
    /// Limit downloads from servers, in bytes per second
    #[arg(long, global = true, value_name = "RATE", value_parser = parsed::<ReadRate>)]
    pub limit_download: Option<ReadRate>,
    /// Folder for the cached index of repositories on servers [default: IMGSNAP_CACHE, or else the user's
    /// cache folder]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cache_dir: Option<PathBuf>,
    /// Maximum size of the cache [default: 4G]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size)]
    pub cache_size: Option<u64>,
    /// Do not use the cache
    #[arg(long, global = true, conflicts_with_all = ["cache_dir", "cache_size"])]
    pub no_cache: bool,
    /// Hypervisor that libvirt:DOMAIN refers to, such as qemu:///session [default: libvirt's]
    #[arg(long, global = true, value_name = "URI")]
    pub connect: Option<String>,
    /// Accept IMAGE@COMMIT, or configuration @NUMBER, of an encrypted repository although this host has
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
    /// Serve a repository folder to a host that uses it as ssh://HOST/PATH; started by ssh
    Store {
        /// Communicate over standard input and output
        #[arg(long, required = true)]
        stdio: bool,
        /// Let the client add snapshots, but not remove or change anything
        #[arg(long)]
        append_only: bool,
        /// Serve this folder only, and refuse all others
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        path: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum Command {
    /// Create a repository
    Init(Init),
    /// Take snapshots of image files, block devices or virtual machines
    #[command(visible_alias = "backup")]
    Snapshot(Snapshot),
    /// Take snapshots of images at regular intervals until interrupted
    Watch(Watch),
    /// List images and their snapshots
    #[command(visible_alias = "ls")]
    List {
        /// List only this image; libvirt:[DOMAIN] lists libvirt domains and their newest snapshots
        name: Option<String>,
        /// List only the newest N snapshots of each image
        #[arg(long, value_name = "N", value_parser = parse_count)]
        last: Option<u64>,
    },
    /// Show the newest commit of each image, for comparison with other hosts
    Heads,
    /// Show the details of a snapshot
    Show {
        /// Snapshot, as NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
    },
    /// Show how much two snapshots or images differ, and where
    Diff {
        /// Snapshot (NAME@WHICH) or image file
        #[arg(value_name = "REF|IMAGE")]
        before: OsString,
        /// Snapshot or image file to compare it with
        #[arg(value_name = "REF|IMAGE")]
        after: OsString,
        #[command(flatten)]
        format: Format,
    },
    /// Write a snapshot, or part of it, to a file, a device or stdout
    Restore(Restore),
    /// Return the live image to a snapshot in place, writing only what differs
    Rollback(Rollback),
    /// Print a digest of a snapshot's content, for comparison with the digest of an image file
    Hash {
        /// Snapshot, as NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
        /// Digest: sha256, sha512, blake3 or xxh3 (128 bits)
        #[arg(long, value_name = "NAME", default_value = "sha256", hide_default_value = false)]
        algorithm: ContentDigest,
    },
    /// Check that every snapshot can be restored
    #[command(visible_alias = "check")]
    Verify {
        /// Image or snapshot to verify [default: everything]
        #[arg(value_name = "NAME|REF")]
        what: Option<String>,
        /// Check only the checksums of the stored bytes, not block and image digests
        #[arg(long)]
        quick: bool,
    },
    /// Show the space used by snapshots, the growth by day, and where images change
    Stats {
        /// Show only this image, in detail
        name: Option<String>,
        /// Write metrics of all images to a file, atomically, in the OpenMetrics text format
        #[arg(long, value_name = "FILE", conflicts_with = "name", value_hint = ValueHint::FilePath)]
        metrics: Option<PathBuf>,
    },
    /// Remove the clones used to find changes; the next snapshot reads the whole image
    Untrack {
        /// The image
        name: String,
    },
    /// Drop the snapshots that no retention rule keeps, and free their space
    Prune(Prune),
    /// Delete a snapshot and the others of its group; snapshots that depend on them stay intact
    #[command(visible_alias = "rm")]
    Delete {
        /// Snapshot, as NAME@WHICH; can be given several times
        #[arg(required = true, value_name = "REF", value_parser = parsed::<Reference>)]
        references: Vec<Reference>,
        /// Apply to this snapshot only, not to the others of its group
        #[arg(long)]
        alone: bool,
        /// Merge its file into those that depend on it, even if that frees little space
        #[arg(long)]
        compact: bool,
    },
    /// Turn a snapshot into a base, which depends on no other, without reading the image
    Flatten {
        /// Snapshot, as NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
    },
    /// Export a snapshot to one delta file: all of it, or what changed since another snapshot
    Export(Export),
    /// Import delta files into the repository, which can then continue their chain
    Import {
        /// Delta files, or - to read one from stdin
        #[arg(required = true, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
        /// Name of the image, if it is not in the repository yet
        #[arg(short, long)]
        name: Option<String>,
        #[command(flatten)]
        first_use: FirstUse,
    },
    /// Build an image from delta files and the image that they start from, without a repository
    Apply(Apply),
    /// Show, set or remove the label of a snapshot
    Label {
        /// Snapshot, as NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
        /// New label; if omitted, the present label is shown
        label: Option<String>,
        /// Remove the label
        #[arg(long, conflicts_with = "label")]
        remove: bool,
    },
    /// Protect a snapshot and the others of its group from prune, delete, remove and watch
    Protect {
        /// Snapshot, as NAME@WHICH
        #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
        reference: Reference,
        /// Apply to this snapshot only, not to the others of its group
        #[arg(long)]
        alone: bool,
        /// Remove the protection
        #[arg(long)]
        off: bool,
    },
    /// Remove an image and all its snapshots from the repository
    Remove(Remove),
    /// Rebuild a lost or damaged manifest; with --from, also repair damaged files
    Repair {
        /// Image to repair [default: all]
        name: Option<String>,
        /// Repository or image from which to recover damaged data; can be given several times
        #[arg(long, value_name = "REPO|IMAGE", value_hint = ValueHint::AnyPath)]
        from: Vec<PathBuf>,
    },
    /// Show or change the keys of an encrypted repository
    Key {
        #[command(subcommand)]
        verb: Key,
    },
    /// Show, confirm or reject the requests of hosts to drop snapshots
    Requests {
        #[command(subcommand)]
        verb: Requests,
    },
    /// Show or change the configuration: retention rules, snapshot settings, defaults of new bases
    Config {
        #[command(subcommand)]
        verb: Config,
    },
    /// Set where the live file of an image, or its base image, is now
    Relink {
        /// The image
        name: String,
        /// File or device in which the image is now
        #[arg(value_hint = ValueHint::FilePath, required_unless_present = "base_image",
              value_parser = image_uri())]
        image: Option<ImageUri>,
        /// Base image of its chain, which is verified
        #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
        base_image: Option<PathBuf>,
        /// Format: raw, qcow2, vmdk, vhdx, vdi or vhd [default: as before, or raw if it looks raw]
        #[arg(long, value_name = "FORMAT", value_parser = parsed::<ImageFormat>)]
        format: Option<ImageFormat>,
    },
    /// Split snapshots, a restore or a verification into tasks for several workers
    Plan(Plan),
    /// Run one task of a plan: store, restore or verify its part
    Part {
        /// Plan: its id, a prefix of the id, or latest
        plan: String,
        /// Number of the task
        task: u32,
    },
    /// Combine the finished tasks of a plan into its result
    Join {
        /// Plan: its id, a prefix of the id, or latest
        plan: String,
        /// Join only the snapshot of this image
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
    },
    /// Serve a repository to other hosts
    Serve {
        #[command(subcommand)]
        verb: Serve,
    },
    /// Benchmark each operation against the limits of this machine
    Bench(Bench),
    /// Print a shell completion script
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Write manual pages
    Man {
        /// Folder to write them to
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

#[derive(ClapArgs)]
pub struct Remove {
    /// The image
    pub name: String,
    /// Do not ask for confirmation; required without a terminal
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(ClapArgs)]
pub struct Init {
    /// Block size, a power of two from 4K to 1M [default: 4K]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<BlockSize>,
    /// Digest: xxh3 (fast, detects accidental damage) or blake3 (collision-resistant) [default: xxh3]
    #[arg(long)]
    pub digest: Option<DigestAlgorithm>,
    /// Compression: lz4, zstd[:LEVEL] or none [default: lz4]
    #[arg(long)]
    pub compression: Option<Compression>,
    /// Store larger images in parts that each cover this much, a power of two from 4K [default: 8G]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<PartSize>,
    /// Let only this host write to it; for servers that cannot exclude concurrent writers
    #[arg(long)]
    pub single_writer: bool,
    /// Encrypt it with a new key, which the given passphrase or key file unlocks
    #[arg(long)]
    pub encrypt: bool,
    /// Accept the existing repository, where this host has used another one before; create none
    #[arg(long)]
    #[arg(conflicts_with_all = ["block_size", "digest", "compression", "part_size"])]
    #[arg(conflicts_with_all = ["single_writer", "encrypt"])]
    pub accept: bool,
}

/// What becomes of a repository that is not there.
#[derive(ClapArgs, Clone, Copy)]
pub struct FirstUse {
    /// Fail if the repository does not exist, instead of creating it
    #[arg(long)]
    pub must_exist: bool,
}

/// Reads an image, whose path need not be UTF-8.
fn image_uri() -> impl TypedValueParser<Value = ImageUri> {
    OsStringValueParser::new().try_map(|text| parse_image(text).map_err(|e| words::error(&e)))
}

#[derive(ClapArgs)]
pub struct Export {
    /// Snapshot, as NAME@WHICH
    #[arg(value_name = "REF", value_parser = parsed::<Reference>)]
    pub reference: Reference,
    /// Export only what differs from this snapshot, which may be a later one [default: everything]
    #[arg(long, value_name = "REF")]
    pub since: Option<String>,
    /// File to create, or - for stdout
    #[arg(short, long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Overwrite an existing file
    #[arg(short, long)]
    pub force: bool,
}

#[derive(ClapArgs)]
pub struct Apply {
    /// Delta files, oldest first
    #[arg(required = true, value_name = "DELTA", value_hint = ValueHint::FilePath)]
    pub deltas: Vec<PathBuf>,
    /// Image that the first delta starts from; omit it if that delta is a full one
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub base: Option<PathBuf>,
    /// File to write the resulting image to, or - for stdout
    #[arg(short, long, value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    #[arg(required_unless_present = "in_place", conflicts_with = "in_place")]
    pub output: Option<PathBuf>,
    /// Change the base image in place, writing only the blocks in the deltas
    #[arg(long, requires = "base")]
    pub in_place: bool,
    /// Overwrite an existing file
    #[arg(short, long)]
    pub force: bool,
}

#[derive(ClapArgs)]
pub struct Rollback {
    /// Image, by its name or the path of its live file; or NAME@WHICH instead of --to
    #[arg(value_name = "IMAGE|NAME")]
    pub image: OsString,
    /// Snapshot to return to, as NAME@WHICH or @WHICH
    #[arg(long, value_name = "REF")]
    pub to: Option<String>,
    /// Do not save the present state in a snapshot first
    #[arg(long)]
    pub no_save: bool,
    /// Read the whole image before and after, without trusting hints
    #[arg(long)]
    pub prove: bool,
    /// Write to the device even if the last snapshot was taken of a different one
    #[arg(long)]
    pub force_device: bool,
    /// Dry run: change nothing, only report
    #[arg(long)]
    pub dry_run: bool,
    /// Read the backing files that a qcow2 image names (only for images you trust)
    #[arg(long)]
    pub backing_ok: bool,
    /// Roll back this image only, not the others of the snapshot's group
    #[arg(long)]
    pub alone: bool,
    /// For a machine (qemu:SOCKET): stop and reset it, write to its disks, and start it again
    #[arg(long, conflicts_with = "dry_run")]
    pub reset: bool,
    /// For a machine (libvirt:DOMAIN): shut it down, write to its disks, and start it again
    #[arg(long, conflicts_with = "dry_run")]
    pub shutdown: bool,
}

/// A length of time.
fn parse_length(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|e| words::error(&e))
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(every) if every < Duration::from_secs(1) => Err("it must be at least one second".into()),
        other => other.map_err(|e| words::error(&e)),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|e| words::error(&e))
}

fn parse_count(text: &str) -> Result<u64, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| format!("invalid number \"{text}\": expected a positive integer"))
}

fn parse_threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|n| (1..=16).contains(n));
    threads.ok_or_else(|| format!("invalid number \"{text}\": expected 1 to 16"))
}
