//! `imgsnap requests`

pub mod args;

use super::page::{Page, Table};
use super::printer::Printer;
use super::repo::{self, Where};
use super::{exit, output, prune, remove};
use args::Requests;
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::{Confirmed, DropRequest, Repository};
use serde_json::json;
use std::process::ExitCode;
use uuid::Uuid;

pub fn run(
    place: &Where,
    verb: &Requests,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    match verb {
        Requests::List => list(&repo::open(place, context)?, printer)?,
        Requests::Confirm { request, yes } => {
            let repository = repo::open_to_change(place, context)?;
            let (request, confirmed) = repository.confirm_request(request, *yes, context)?;
            match confirmed {
                Confirmed::Snapshots(deleted) if deleted.is_empty() => {
                    let what = "none of the requested snapshots exists any more";
                    match printer.is_json() {
                        true => printer.json(&json!({"name": request.image, "deleted": []}))?,
                        false => printer.line(&format!("{}: {what}", request.image))?,
                    }
                }
                Confirmed::Snapshots(deleted) => {
                    deleted.iter().try_for_each(|deleted| prune::say_deleted(deleted, printer))?;
                }
                Confirmed::Image(removed) => {
                    remove::say_removed(&request.image, &removed, printer)?;
                }
                _ => {}
            }
        }
        Requests::Reject { request } => {
            let id = repo::open_to_change(place, context)?.reject_request(request)?;
            match printer.is_json() {
                true => printer.json(&json!({"rejected": id}))?,
                false => printer.line(&format!("rejected the request {}", output::short(id)))?,
            }
        }
    }
    Ok(exit::DONE)
}

/// What was asked, in words.
fn asked(request: &DropRequest) -> String {
    let Some(snapshots) = &request.snapshots else { return format!("remove {}", request.image) };
    let numbers: Vec<String> =
        snapshots.iter().take(SHOWN).map(|s| format!("@{}", s.number)).collect();
    let more = match snapshots.len().saturating_sub(SHOWN) as u64 {
        0 => String::new(),
        more => format!(" and {} more", output::count(more)),
    };
    format!("drop {}{}{more}", request.image, numbers.join(" "))
}

/// So many snapshots are named.
const SHOWN: usize = 12;

fn list(repository: &Repository, printer: &Printer) -> Result<()> {
    let requests = repository.requests()?;
    if printer.is_json() {
        return requests.iter().try_for_each(|(id, request)| match request {
            Ok(request) => {
                let DropRequest { image, image_id, host, time, snapshots, .. } = request;
                printer.json(&json!({"id": id, "image": image, "image_id": image_id,
                    "host": host, "time": time, "snapshots": snapshots}))
            }
            Err(e) => printer.json(&json!({"id": id, "error": e.message()})),
        });
    }
    let row = |(id, request): &(Uuid, Result<DropRequest>)| match request {
        Ok(r) => vec![
            output::short(*id),
            output::time(r.time),
            r.host.name.escape_debug().to_string(),
            asked(r),
        ],
        Err(e) => vec![output::short(*id), String::new(), String::new(), e.message().to_owned()],
    };
    if requests.is_empty() {
        return printer.line("no requests");
    }
    let rows: Vec<Vec<String>> = requests.iter().map(row).collect();
    let table = Table::new(&["REQUEST", "TIME", "HOST", "TO"], &rows);
    printer.page(&Page::default().table(table.leaving_out(&["TIME", "HOST"])))
}
