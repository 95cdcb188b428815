//! What can be typed for the verbs by which several workers take snapshots together.

use super::super::words::parsed;
use super::image_uri;
use clap::{Args as ClapArgs, Subcommand, ValueHint};
use imgsnap::Reference;
use imgsnap::base::units::{BlockSize, PartSize};
use imgsnap::codec::Compression;
use imgsnap::image::{ImageFormat, ImageUri};
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Plan {
    #[command(subcommand)]
    pub verb: Option<PlanVerb>,
    /// Image at a path that is the same for all workers, to which nobody writes; several make one plan
    #[arg(required_unless_present_any = ["restore", "verify"], value_name = "IMAGE",
          value_hint = ValueHint::FilePath, value_parser = image_uri())]
    pub images: Vec<ImageUri>,
    /// Restore this snapshot to a new file or S3 object instead of taking snapshots
    #[arg(long, value_name = "REF", requires = "output", value_parser = parsed::<Reference>,
          conflicts_with_all = ["images", "verify", "name", "label", "full", "format", "backing_ok",
                                "block_size", "compression", "source_held"])]
    pub restore: Option<Reference>,
    /// File to restore to, at a path that is the same for all workers, or s3://BUCKET/KEY
    #[arg(short, long, value_name = "TARGET", requires = "restore", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Verify the whole repository, or the image --name, instead of taking snapshots
    #[arg(long, conflicts_with_all = ["images", "label", "full", "format", "backing_ok",
                                      "block_size", "compression", "source_held"])]
    pub verify: bool,
    /// Name of the image in the repository [default: its file name without extension]
    #[arg(short, long)]
    pub name: Option<String>,
    /// Label for the snapshot
    #[arg(short, long)]
    pub label: Option<String>,
    /// Create a base, which depends on no other snapshot
    #[arg(long)]
    pub full: bool,
    /// Format: raw, qcow2, vmdk, vhdx, vdi or vhd [default: as before, or raw if it looks raw]
    #[arg(long, value_name = "FORMAT", value_parser = parsed::<ImageFormat>)]
    pub format: Option<ImageFormat>,
    /// Read the backing files that a qcow2 image names (only for images you trust)
    #[arg(long)]
    pub backing_ok: bool,
    /// Block size of a new base, a power of two from 4K to 1M [default: the repository's]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<BlockSize>,
    /// Size of a task: bytes of the image for a new base or a restore, stored bytes for a verification;
    /// a power of two from 4K [default: 8G]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<PartSize>,
    /// Compression: lz4, zstd[:LEVEL] or none [default: the repository's]
    #[arg(long)]
    pub compression: Option<Compression>,
    /// State why nobody writes to the image until the plan is joined, if nothing else ensures that;
    /// recorded with the snapshot
    #[arg(long, value_name = "REASON")]
    pub source_held: Option<String>,
    /// Ask this WebHDFS URL, such as http://namenode:9870/webhdfs/v1, which hosts hold images in HDFS, and
    /// show them with each task
    #[arg(long, value_name = "URL")]
    pub webhdfs: Option<String>,
}

#[derive(Subcommand)]
pub enum PlanVerb {
    /// List pending plans and their progress
    List,
    /// Show the tasks of a plan
    Show {
        /// Plan: its id, a prefix of the id, or latest
        plan: String,
    },
    /// Drop a plan and discard the results of its tasks
    Drop {
        /// Plan: its id, a prefix of the id, or latest
        plan: String,
    },
}
