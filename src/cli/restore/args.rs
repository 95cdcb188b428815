//! What can be typed after `imgsnap restore`.

use super::super::exit;
use super::super::words::{self, parsed};
use clap::{Args as ClapArgs, ValueHint};
use imgsnap::base::units::{ByteRange, parse_bytes};
use imgsnap::image::ImageFormat;
use imgsnap::image::write::ClusterCompression;
use imgsnap::{DefineRequest, Error, Reference};
use std::path::PathBuf;
use uuid::Uuid;

#[derive(ClapArgs)]
pub struct Restore {
    /// Snapshot, as NAME@WHICH, or libvirt:DOMAIN@WHICH with --define
    #[arg(value_name = "REF", value_parser = snapshot)]
    pub reference: Reference,
    /// Define a new libvirt machine of this name from it, with a new UUID and MAC addresses
    #[arg(long, value_name = "NAME", requires = "pool", conflicts_with = "output")]
    pub define: Option<String>,
    /// Folder for the disks of the new machine
    #[arg(long, value_name = "DIR", requires = "define", value_hint = ValueHint::DirPath)]
    pub pool: Option<PathBuf>,
    /// Keep the UUID and the MAC addresses of the original machine
    #[arg(long, requires = "define")]
    pub same: bool,
    /// Trust the stored definition, including the host files, programs and devices that it names
    #[arg(long, requires = "define")]
    pub trust_xml: bool,
    /// New file (qcow2 if its name ends in .qcow2), block device, nbd://HOST/EXPORT, - for stdout, or a
    /// folder for the whole group, as DIR/NAME.img or DIR/NAME.qcow2
    #[arg(short, long, value_name = "FILE|DEVICE|NBD|-|DIR/", value_hint = ValueHint::FilePath)]
    #[arg(required_unless_present = "define", default_value = "-", hide_default_value = true)]
    pub output: PathBuf,
    /// Overwrite an existing file, device or export
    #[arg(short, long)]
    pub force: bool,
    /// Update an existing file, device or export that holds a state of the image, writing only what differs
    #[arg(long)]
    pub update: bool,
    /// Do not read the file if this host restored it and it is unchanged since
    #[arg(long, requires = "update")]
    pub trust_target: bool,
    /// Copy equal blocks from this raw file or device, which may be in use
    #[arg(long, value_name = "FILE|DEVICE", value_hint = ValueHint::FilePath)]
    pub seed: Option<PathBuf>,
    /// Restore only this range of the image, such as 1M+64K, to the start of the output
    #[arg(long, value_name = "OFFSET+LENGTH", value_parser = parse_range, conflicts_with = "update")]
    pub range: Option<ByteRange>,
    /// Write zeros where the image could not be read when the snapshot was taken
    #[arg(long)]
    pub accept_unread: bool,
    /// Format of the file: raw or qcow2 [default: qcow2 if its name or content says so]
    #[arg(long, value_name = "FORMAT", value_parser = parsed::<ImageFormat>)]
    pub format: Option<ImageFormat>,
    /// Compress the clusters of a new qcow2: zlib or zstd
    #[arg(long, value_name = "HOW", value_parser = parsed::<ClusterCompression>, conflicts_with = "update")]
    pub compress: Option<ClusterCompression>,
    /// Fail unless the image is at this commit, as shown by "imgsnap heads", or a later one
    #[arg(long, value_name = "COMMIT")]
    pub at_least: Option<Uuid>,
    /// Read the backing files of a qcow2 image that is updated (only for images you trust)
    #[arg(long, requires = "update")]
    pub backing_ok: bool,
}

/// What stands before the name of a domain.
const DOMAIN: &str = "libvirt:";

/// The domain of `libvirt:DOMAIN@WHICH` stands with its mark in the place of a name.
fn snapshot(text: &str) -> Result<Reference, String> {
    let Some((name, at)) = text.strip_prefix(DOMAIN).and_then(|rest| rest.rsplit_once('@')) else {
        return parsed::<Reference>(text);
    };
    let at = at.parse().map_err(|error| words::error(&error))?;
    Ok(Reference { name: format!("{DOMAIN}{name}"), at })
}

impl Restore {
    /// The machine that is to be made, if one is.
    pub fn defined(&self, connect: Option<&str>) -> Result<Option<DefineRequest>, Error> {
        let domain = self.reference.name.strip_prefix(DOMAIN);
        let refuse = |what: &str| Err(exit::usage(what));
        match (domain, &self.define, &self.pool) {
            (None, None, _) => Ok(None),
            (Some(domain), Some(name), Some(pool)) => Ok(Some(
                DefineRequest::new(domain, name, pool)
                    .at(self.reference.at.clone())
                    .same(self.same)
                    .trust_xml(self.trust_xml)
                    .accept_unread(self.accept_unread)
                    .connect(connect.map(str::to_owned)),
            )),
            (Some(_), ..) => refuse("to restore a machine, use --define NAME --pool DIR"),
            (None, ..) => refuse("--define requires a snapshot of a machine: libvirt:DOMAIN@WHICH"),
        }
    }
}

fn parse_range(text: &str) -> Result<ByteRange, String> {
    let bad = || format!("invalid range \"{text}\": write OFFSET+LENGTH, such as 1M+64K");
    let (offset, bytes) = text.split_once('+').ok_or_else(bad)?;
    let number = |text: &str| parse_bytes(text).map_err(|_| bad());
    match (number(offset)?, number(bytes)?) {
        (_, 0) => Err("the range is empty (0 bytes)".into()),
        (offset, bytes) => Ok(ByteRange { offset, bytes }),
    }
}
