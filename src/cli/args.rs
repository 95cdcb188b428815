//! What can be typed.

use super::bench::args::Bench;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use imgsnap::codec::Compression;
use imgsnap::digest::DigestAlgorithm;
use imgsnap::repository::Reference;
use imgsnap::restore::ByteRange;
use imgsnap::units::{BlockSize, parse_bytes};
use std::path::PathBuf;

/// Block-level incremental snapshots of disk images.
///
/// A snapshot is named NAME@NUMBER, NAME@latest, NAME@head (the one that the live image last
/// equalled), NAME@LABEL, or NAME@2026-11-20 or a longer time (the newest one at or before it).
#[derive(Parser)]
#[command(name = "imgsnap", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Args {
    /// The repository; otherwise IMGSNAP_REPO, otherwise the user's data folder
    #[arg(short, long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub repo: Option<PathBuf>,
    /// Print results as JSON, one object each
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results, warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say what is done
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Threads that work [default: one for each core, at most 16]
    #[arg(long, global = true, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a repository
    Init(Init),
    /// Take a snapshot of an image file or block device, or of several
    Snapshot(Snapshot),
    /// List images and their snapshots
    List {
        /// Only this image
        name: Option<String>,
    },
    /// Show all that is known of a snapshot
    Show {
        /// NAME@WHICH
        #[arg(value_name = "REF")]
        reference: Reference,
    },
    /// Show how much two snapshots or images differ, and where
    Diff {
        /// A snapshot (NAME@WHICH) or an image file
        #[arg(value_name = "REF|IMAGE")]
        before: String,
        /// Another one
        #[arg(value_name = "REF|IMAGE")]
        after: String,
    },
    /// Write a snapshot, or a part of it, to a file, a device or stdout
    Restore(Restore),
    /// Bring the live image back to a snapshot, in place, writing only what differs
    Rollback(Rollback),
    /// Check that what is stored gives back every image
    Verify {
        /// An image or a snapshot; otherwise everything
        #[arg(value_name = "NAME|REF")]
        what: Option<String>,
        /// Only the checksums of the stored bytes, not each block's digest and each image digest
        #[arg(long)]
        quick: bool,
    },
    /// Remove a snapshot that no other one rests on
    Delete {
        /// NAME@WHICH
        #[arg(value_name = "REF")]
        reference: Reference,
    },
    /// Give a snapshot a label, or take it away
    Label {
        /// NAME@WHICH
        #[arg(value_name = "REF")]
        reference: Reference,
        /// The label; without it, the snapshot has none afterwards
        label: Option<String>,
    },
    /// Remove an image with all its snapshots from the repository
    Forget {
        /// The image
        name: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Rebuild a lost or damaged manifest from the delta files
    Repair {
        /// The image; otherwise all
        name: Option<String>,
    },
    /// Say where the live file of an image is now
    Relink {
        /// The image
        name: String,
        /// Its file or device
        #[arg(value_hint = ValueHint::FilePath)]
        image: PathBuf,
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
}

#[derive(ClapArgs)]
pub struct Snapshot {
    /// The raw image file or block device; several share the threads
    #[arg(required = true, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub images: Vec<PathBuf>,
    /// Name of the image in the repository [default: its file name without extension]
    #[arg(short, long)]
    pub name: Option<String>,
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
    /// Read the image even if its file looks unchanged
    #[arg(long)]
    pub full_scan: bool,
    /// Make no snapshot if the image is unchanged
    #[arg(long)]
    pub skip_unchanged: bool,
    /// lz4, zstd[:LEVEL] or none [default: the repository's]
    #[arg(long)]
    pub compression: Option<Compression>,
    /// Change nothing, only tell
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(ClapArgs)]
pub struct Restore {
    /// NAME@WHICH
    #[arg(value_name = "REF")]
    pub reference: Reference,
    /// A new file, a block device, or - for stdout
    #[arg(short, long, value_name = "FILE|DEVICE|-", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Replace an existing file; write to a device
    #[arg(short, long)]
    pub force: bool,
    /// Only a part of the image, as in 1M+64K; it begins where the output begins
    #[arg(long, value_name = "OFFSET+LENGTH", value_parser = parse_range)]
    pub range: Option<ByteRange>,
}

#[derive(ClapArgs)]
pub struct Rollback {
    /// The image, by name or by the path of its live file
    #[arg(value_name = "IMAGE|NAME")]
    pub image: String,
    /// Where to: NAME@WHICH, or @WHICH
    #[arg(long, value_name = "REF")]
    pub to: String,
    /// Do not take a snapshot of the present state first
    #[arg(long)]
    pub no_save: bool,
    /// Believe nothing: read the whole image before and after
    #[arg(long)]
    pub prove: bool,
    /// Change nothing, only tell
    #[arg(long)]
    pub dry_run: bool,
}

fn parse_threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|n| (1..=16).contains(n));
    threads.ok_or_else(|| format!("\"{text}\" is not a number from 1 to 16"))
}

fn parse_range(text: &str) -> Result<ByteRange, String> {
    let bad = || format!("\"{text}\" is not OFFSET+LENGTH, as in 1M+64K");
    let (offset, bytes) = text.split_once('+').ok_or_else(bad)?;
    let number = |text: &str| parse_bytes(text).map_err(|_| bad());
    match (number(offset)?, number(bytes)?) {
        (_, 0) => Err("a range of 0 bytes".into()),
        (offset, bytes) => Ok(ByteRange { offset, bytes }),
    }
}
