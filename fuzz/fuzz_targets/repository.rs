//! A hostile repository: its manifest, files, head state and configuration. Everything is asked of it and
//! every verb is run on it; what could be restored before, and is listed after, still restores to the same
//! bytes.
#![no_main]

use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::Rules;
use imgsnap::store::{Disk, LocalStore};
use imgsnap::{At, ExportRequest, PruneRequest, Repository, VerifyScope};
use imgsnap_fuzz::parts::Parts;
use imgsnap_fuzz::seeds::{of_repositories, plant};
use imgsnap_fuzz::support::config::sealed;
use imgsnap_fuzz::support::crash_disk::CrashDisk;
use imgsnap_fuzz::{chains, context, mend, meter};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Snapshots that are there, and what they restore to; none if they do not.
type Visible = BTreeMap<Uuid, Option<Vec<u8>>>;

fuzz_target!(init: plant(of_repositories), |data: &[u8]| {
    let mut parts = Parts::of(data);
    mend::chain(&mut parts.deltas, parts.how);
    if parts.how & mend::CHECKSUMS != 0 {
        parts.manifests.iter_mut().for_each(mend::manifest);
    }
    let disk = put(&parts);
    meter::within(chains::allowance(data.len()) * 2, || run(&disk, data));
});

/// The files where they belong, as far as their bytes tell.
fn put(parts: &Parts) -> CrashDisk {
    let disk = CrashDisk::default();
    disk.create_folder("vm").expect("an empty disk");
    let toml = parts.toml.as_deref().unwrap_or(b"version = 1\n");
    // As an older program wrote it, or with the checksum of what is written now.
    match std::str::from_utf8(toml) {
        Ok(text) if parts.how & mend::CHECKSUMS != 0 => disk.put("config.000001", &sealed(text)),
        _ => disk.put("repository.toml", toml),
    }
    for file in &parts.deltas {
        let id = file.get(40..56).and_then(|id| Uuid::from_slice(id).ok()).unwrap_or_default();
        disk.put(&format!("vm/{id}.delta"), file);
    }
    for bytes in &parts.manifests {
        let sequence = sequence_in(bytes).unwrap_or(1);
        disk.put(&format!("vm/{}", imgsnap::repo::manifest::file_name(sequence)), bytes);
    }
    if let Some(head) = &parts.head {
        disk.put("vm/head.json", head);
    }
    disk
}

fn sequence_in(manifest: &[u8]) -> Option<u64> {
    let body = manifest.iter().position(|b| *b == b'\n')?;
    let value: serde_json::Value = serde_json::from_slice(&manifest[body..]).ok()?;
    value["sequence"].as_u64()
}

fn run(disk: &CrashDisk, data: &[u8]) {
    let store = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    let host = HostState::in_store(store.clone(), "host");
    let Some(repository) = said(Repository::open_in(store, host)) else { return };
    said(repository.names());
    if said(repository.repair("vm", &context())).is_some_and(|done| done.rebuilt.is_some()) {
        // It can be read again, and is not repaired twice.
        assert_eq!(repository.repair("vm", &context()).expect("repaired").rebuilt, None);
    }
    let Some(before) = visible(&repository) else { return };
    said(repository.list("vm", &context()));
    if !has_much_unread(&repository) {
        for quick in [true, false] {
            let verified = said(repository.verify(&VerifyScope::All, quick, &context()));
            if verified.is_some_and(|v| v.damaged.is_empty()) && !quick {
                let short = before.values().flatten().count();
                assert!(short <= before.len());
            }
        }
        said(repository.stats("vm", &context()));
    }
    // The last byte chooses what is done.
    match data.last().copied().unwrap_or_default() % 6 {
        0 => prune(&repository, true, false),
        1 => prune(&repository, true, true),
        2 => said(repository.delete("vm", &At::Number(1), true, &context()))
            .map(drop)
            .unwrap_or_default(),
        3 => said(repository.flatten("vm", &At::Latest, &context())).map(drop).unwrap_or_default(),
        4 => said(repository.label("vm", &At::Latest, Some("x"), &context()))
            .map(drop)
            .unwrap_or_default(),
        _ => said(repository.prune("vm", &request(None, false, false), &context()))
            .map(drop)
            .unwrap_or_default(),
    }
    prune(&repository, false, true);
    let after = visible(&repository).expect("it could be listed before");
    for (id, bytes) in &after {
        let known = before.get(id).expect("no snapshot comes from nowhere");
        assert!(known.is_none() || known == bytes, "{id} restored before, and not to the same now");
    }
    export(&repository);
    said(repository.remove("vm", &context()));
}

fn request(rules: Option<Rules>, compact: bool, dry_run: bool) -> PruneRequest {
    PruneRequest::new().rules(rules).compact(compact).dry_run(dry_run)
}

fn prune(repository: &Repository, compact: bool, dry_run: bool) {
    let rules = Rules { last: "1".parse().ok(), ..Rules::default() };
    let pruned = said(repository.prune("vm", &request(Some(rules), compact, dry_run), &context()));
    if let Some(pruned) = pruned {
        let is_kept = |(_, keep): &(_, Vec<String>)| !keep.is_empty();
        assert!(pruned.decisions.is_empty() || pruned.decisions.iter().any(is_kept), "all is gone");
    }
}

/// The newest snapshot as one file.
fn export(repository: &Repository) {
    let Some(reader) = said(repository.read("vm", &context())) else { return };
    let Some(latest) = reader.manifest().latest().map(|s| s.id) else { return };
    let Some(chain) = said(repository.chain(&reader, latest)) else { return };
    if chains::unread_blocks(&chain).is_some() {
        let nowhere = &mut |_: &[u8]| Ok(());
        let request = ExportRequest::new("vm", At::Latest);
        said(repository.export(&request, &context(), nowhere).map(|_| ()));
    }
}

fn has_much_unread(repository: &Repository) -> bool {
    let Some(reader) = said(repository.read("vm", &context())) else { return true };
    let manifest = reader.manifest();
    let mut chains =
        manifest.snapshots.iter().filter_map(|s| said(repository.chain(&reader, s.id)));
    chains.any(|chain| chains::unread_blocks(&chain).is_none())
}

fn visible(repository: &Repository) -> Option<Visible> {
    let reader = said(repository.read("vm", &context()))?;
    let bytes = |id| {
        let chain = said(repository.chain(&reader, id))?;
        if chain.geometry().image_bytes > chains::MOST_BYTES {
            return None;
        }
        said(chains::bytes_of(&chain))
    };
    Some(reader.manifest().snapshots.iter().map(|s| (s.id, bytes(s.id))).collect())
}

/// The outcome, if there is one; errors say what is wrong, in one line.
fn said<T>(result: Result<T>) -> Option<T> {
    let tell = |error: Error| {
        assert!(!error.to_string().contains('\n'), "more than one line: {error}");
        assert!(error.kind() != ErrorKind::Io || !error.to_string().contains("fault"), "{error}");
    };
    result.map_err(tell).ok()
}
