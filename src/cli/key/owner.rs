//! `imgsnap key owner`

use super::super::printer::Printer;
use super::super::repo::{self, Where};
use super::super::{exit, output};
use super::args::OwnerVerb;
use super::given::owner_key_in;
use super::written::write_secret;
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::signing::OwnerSigner;
use imgsnap::base::uri::Shown;
use imgsnap::{Repository, SignedImage};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

pub fn run(
    place: &Where,
    verb: Option<&OwnerVerb>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    match verb {
        None => show(&repo::open(place, context)?, printer)?,
        Some(OwnerVerb::Sign) => {
            let signed = repo::open_to_change(place, context)?.sign(context)?;
            tell_signed(&signed, printer)?;
        }
        Some(OwnerVerb::Create { file }) => {
            let repository = repo::open_to_change(place, context)?;
            // One that was interrupted is finished.
            let is_it = |key| owner_key_in(file).is_ok_and(|signer| signer.key() == key);
            if let Some(owner) = repository.owner().filter(|owner| !is_it(owner.key)) {
                let what = format!("{} already has an owner: {}", repository.location(), owner.key);
                return Err(Error::new(ErrorKind::AlreadyExists, what)
                    .hint("to change the owner, use \"imgsnap key owner change\""));
            }
            take(place, &repository, file, printer, context)?;
        }
        Some(OwnerVerb::Change { file }) => {
            let repository = repo::open_to_change(place, context)?;
            if repository.owner().is_none_or(|owner| !owner.is_ours) {
                let what = "only the present owner can name a new one";
                return Err(Error::new(ErrorKind::Auth, what)
                    .hint("give the present owner's key with --owner-key-file"));
            }
            take(place, &repository, file, printer, context)?;
        }
    }
    Ok(exit::DONE)
}

fn show(repository: &Repository, printer: &Printer) -> Result<()> {
    let owner = repository.owner();
    if printer.is_json() {
        return printer.json(&json!({ "owner": owner }));
    }
    match owner {
        None => printer.line("this repository has no owner: every host may drop snapshots"),
        Some(owner) => {
            let here = if owner.is_ours { "  (its private key is given)" } else { "" };
            printer.line(&format!("{}{here}", owner.key))
        }
    }
}

/// Makes the key in a file the owner: a new one, if there is no such file.
fn take(
    place: &Where,
    repository: &Repository,
    file: &Path,
    printer: &Printer,
    context: &Context,
) -> Result<()> {
    let is_there = file.symlink_metadata().is_ok();
    let signer = match is_there {
        true => owner_key_in(file)?,
        false => {
            let signer = OwnerSigner::new()?;
            write_secret(file, signer.to_text().as_bytes())?;
            signer
        }
    };
    let signer = Arc::new(signer);
    let signed = repository.take_ownership(&signer, context)?;
    // By the new key, all must be as it was.
    let owner = repo::open(&place.with_owner_key(&signer), context)?.owner();
    let key = signer.key();
    if owner.is_none_or(|owner| owner.key != key) {
        return Err(Error::new(ErrorKind::Internal, "the repository has another owner"));
    }
    if printer.is_json() {
        let file = file.shown();
        return printer
            .json(&json!({"owner": key.to_string(), "key_file": file, "signed": signed}));
    }
    printer.line(&format!("owner     {key}"))?;
    printer.line(&format!("key file  {}", file.shown()))?;
    printer.line(&format!("signed    {}", output::plural(signed.len() as u64, "image")))?;
    printer.say("keep the key file off the hosts that take snapshots, and make a copy of it");
    Ok(())
}

fn tell_signed(signed: &[SignedImage], printer: &Printer) -> Result<()> {
    if printer.is_json() {
        return signed.iter().try_for_each(|image| printer.json(&json!(image)));
    }
    signed.iter().try_for_each(|image| {
        let what = if image.is_new { "signed" } else { "already signed" };
        printer.line(&format!("{}  commit {}  {what}", image.name, image.commit))
    })
}
