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
    /// The image, which every worker sees under this name and nobody writes to; several make one plan
    #[arg(required_unless_present_any = ["restore", "verify"], value_name = "IMAGE",
          value_hint = ValueHint::FilePath, value_parser = image_uri())]
    pub images: Vec<ImageUri>,
    /// Instead of taking snapshots, restore this one to a new file, or a new object in S3
    #[arg(long, value_name = "REF", requires = "output", value_parser = parsed::<Reference>,
          conflicts_with_all = ["images", "verify", "name", "label", "full", "format", "backing_ok",
                                "block_size", "compression", "source_held"])]
    pub restore: Option<Reference>,
    /// The file that is restored, whose folder every worker sees under this name, or s3://BUCKET/KEY
    #[arg(short, long, value_name = "TARGET", requires = "restore", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Instead of taking snapshots, verify all that is stored, or what is of the image --name
    #[arg(long, conflicts_with_all = ["images", "label", "full", "format", "backing_ok",
                                      "block_size", "compression", "source_held"])]
    pub verify: bool,
    /// Name of the image in the repository [default: its file name without extension]
    #[arg(short, long)]
    pub name: Option<String>,
    /// A label for the snapshot
    #[arg(short, long)]
    pub label: Option<String>,
    /// Make a base that depends on no other snapshot
    #[arg(long)]
    pub full: bool,
    /// raw, qcow2, vmdk, vhdx, vdi or vhd [default: as before, or raw if it looks so]
    #[arg(long, value_name = "FORMAT", value_parser = parsed::<ImageFormat>)]
    pub format: Option<ImageFormat>,
    /// Read the files that a qcow2 image refers to
    #[arg(long)]
    pub backing_ok: bool,
    /// Unit of comparison of a new base, a power of two from 4K to 1M [default: the repository's]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<BlockSize>,
    /// How much of the image a task of a new base or a restore is, and how much that is stored a task of a
    /// verification; a power of two from 4K [default: 8G]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<PartSize>,
    /// lz4, zstd[:LEVEL] or none [default: the repository's]
    #[arg(long)]
    pub compression: Option<Compression>,
    /// Why nobody writes to the image until it is joined, where its file system does not see to that;
    /// recorded with the snapshot
    #[arg(long, value_name = "REASON")]
    pub source_held: Option<String>,
    /// Ask there on which hosts images in HDFS lie, as in http://namenode:9870/webhdfs/v1, and name them with
    /// each task
    #[arg(long, value_name = "URL")]
    pub webhdfs: Option<String>,
}

#[derive(Subcommand)]
pub enum PlanVerb {
    /// List plans that are not over, and how far they are
    List,
    /// Show the tasks of a plan
    Show {
        /// Its id, the beginning of it, or latest
        plan: String,
    },
    /// Give a plan up, and what was made of it
    Drop {
        /// Its id, the beginning of it, or latest
        plan: String,
    },
}
