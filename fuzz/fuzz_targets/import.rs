//! Hostile files that are imported, one after the other: what is taken in is sound, restores to what the
//! second reader says, and what is refused changes nothing.
#![no_main]

use imgsnap::repo::host::HostState;
use imgsnap::store::LocalStore;
use imgsnap::{Defaults, Repository, VerifyScope};
use imgsnap_fuzz::parts::Parts;
use imgsnap_fuzz::seeds::{of_chains, plant};
use imgsnap_fuzz::support::crash_disk::CrashDisk;
use imgsnap_fuzz::support::naive_reader;
use imgsnap_fuzz::{chains, context, mend, meter};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(init: plant(of_chains), |data: &[u8]| {
    let parts = Parts::of(data);
    let mut files = parts.deltas;
    mend::chain(&mut files, parts.how);
    meter::within(chains::allowance(data.len()), || import(&files));
});

fn import(files: &[Vec<u8>]) {
    let disk = CrashDisk::default();
    let store = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    let repository =
        Repository::init_in(store.clone(), Defaults::default(), HostState::in_store(store, "host"))
            .expect("an empty folder");
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for file in files {
        let before = snapshots(&repository);
        match repository.import(&mut file.as_slice(), "input", Some("vm"), &context()) {
            Err(error) => {
                chains::refusal(error);
                assert_eq!(snapshots(&repository), before, "refused, but something changed");
            }
            Ok(imported) if imported.is_new => taken.push(file.clone()),
            Ok(_) => assert_eq!(snapshots(&repository), before),
        }
    }
    let verified = repository.verify(&VerifyScope::All, false, &context()).expect("it can be read");
    assert!(verified.damaged.is_empty(), "imported, and damaged: {:?}", verified.damaged);
    assert_eq!(verified.snapshots, taken.len() as u64);
    let left = disk.files().iter().filter(|name| name.ends_with(".tmp")).count();
    assert_eq!(left, 0, "left behind: {:?}", disk.files());
    for id in snapshots(&repository) {
        let reader = repository.read("vm", &context()).expect("it is listed");
        let chain = repository.chain(&reader, id).expect("what was proved can be opened");
        let is_short =
            |d: &Arc<imgsnap::delta::Delta>| d.footer().image_bytes <= chains::MOST_BYTES;
        if chain.layers().iter().all(is_short) {
            let of = |delta: &Arc<imgsnap::delta::Delta>| {
                let id = *delta.header().file_id.as_bytes();
                taken.iter().find(|file| file[40..56] == id).cloned().unwrap_or_default()
            };
            let files: Vec<Vec<u8>> = chain.layers().iter().rev().map(of).collect();
            let unread = chain.layers().iter().any(|d| d.footer().counts.unread_blocks > 0);
            match (chains::bytes_of(&chain), naive_reader::restore(&files)) {
                (Ok(have), Ok(want)) => assert!(have == want, "two readers, two images"),
                (have, want) => assert!(unread, "{have:?} {want:?}"),
            }
        }
    }
}

fn snapshots(repository: &Repository) -> Vec<uuid::Uuid> {
    match repository.read("vm", &context()) {
        Ok(reader) => reader.manifest().snapshots.iter().map(|s| s.id).collect(),
        Err(_) => Vec::new(),
    }
}
