//! `imgsnap hash`

use super::exit;
use super::printer::Printer;
use aws_lc_rs::digest;
use clap::ValueEnum;
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::image::write::Stream;
use imgsnap::{Reference, Repository, RestoreRequest, RestoreTarget};
use serde_json::json;
use std::io::{self, Write};
use std::process::ExitCode;
use xxhash_rust::xxh3::Xxh3;

/// A digest that other programs know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ContentDigest {
    Sha256,
    Sha512,
    Blake3,
    Xxh3,
}

enum Digesting {
    Sha(digest::Context),
    Blake3(Box<blake3::Hasher>),
    Xxh3(Box<Xxh3>),
}

impl Digesting {
    fn new(algorithm: ContentDigest) -> Self {
        match algorithm {
            ContentDigest::Sha256 => Self::Sha(digest::Context::new(&digest::SHA256)),
            ContentDigest::Sha512 => Self::Sha(digest::Context::new(&digest::SHA512)),
            ContentDigest::Blake3 => Self::Blake3(Box::default()),
            ContentDigest::Xxh3 => Self::Xxh3(Box::default()),
        }
    }

    fn hex(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha(context) => hex(context.finish().as_ref()),
            Self::Blake3(hasher) => hasher.finalize().to_hex().to_string(),
            Self::Xxh3(hasher) => format!("{:032x}", hasher.digest128()),
        }
    }
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Sha(context) => context.update(bytes),
            Self::Blake3(hasher) => drop(hasher.update(bytes)),
            Self::Xxh3(hasher) => hasher.update(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn run(
    repository: &Repository,
    reference: &Reference,
    algorithm: ContentDigest,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let reader = repository.read(&reference.name, context)?;
    let snapshot = reader.find(&reference.at)?.clone();
    drop(reader);
    let name = algorithm.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
    let place = format!("{}@{}", reference.name, snapshot.number);
    let mut target = Stream::new(Digesting::new(algorithm), &name);
    let request = RestoreRequest::new(&reference.name).at(imgsnap::At::Id(snapshot.id));
    repository.restore(&request, RestoreTarget::Target(&mut target), context)?;
    let digest = std::mem::replace(target.inner(), Digesting::new(algorithm)).hex();
    if printer.is_json() {
        let (bytes, id) = (snapshot.image_bytes, snapshot.id);
        let value =
            json!({"ref": place, "id": id, "algorithm": name, "digest": digest, "bytes": bytes});
        printer.json(&value)?;
    } else {
        // As sha256sum prints it.
        printer.line(&format!("{digest}  {place}"))?;
    }
    Ok(exit::DONE)
}
