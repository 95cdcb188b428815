//! Every released version's repository restores for ever (FORMAT.md P1, P2, J1 to J5).

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use imgsnap::progress::Context;
use imgsnap::repository::{Defaults, Repository, SnapshotRequest, VerifyScope};
use imgsnap::restore::restore;
use imgsnap::store::{LocalStore, OsDisk};
use imgsnap::target::Stream;
use std::path::Path;
use std::sync::Arc;
use support::{fixtures, is_blessing, naive_reader, text};

/// Copied, because a reader makes lock files.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn store(folder: &Path) -> Arc<LocalStore> {
    Arc::new(LocalStore::new(Arc::new(OsDisk::new(folder.into()))))
}

/// The images in the repository of a version, in the order of their numbers.
fn images() -> Vec<Vec<u8>> {
    let first = text(50_001, 1);
    let mut second = first.clone();
    second[20_000..40_000].fill(0);
    second.resize(80_000, 3);
    let third = second[..30_000].to_vec();
    vec![first, second, third]
}

fn bless(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let repository = Repository::init(store(folder), Defaults::default()).unwrap();
    let image = tempfile::tempdir().unwrap();
    for (index, bytes) in images().iter().enumerate() {
        let path = image.path().join("vm.img");
        std::fs::write(&path, bytes).unwrap();
        let label = (index == 1).then(|| "second".to_owned());
        let request = SnapshotRequest { image: path, label, ..SnapshotRequest::default() };
        repository.snapshot(&request, &Context::silent()).unwrap();
    }
    std::fs::remove_file(folder.join("vm/head.json")).unwrap();
}

#[test]
fn repositories_of_every_version_restore() {
    let versions = fixtures().join("repos");
    if is_blessing() && !versions.join("0.1.0").exists() {
        bless(&versions.join("0.1.0"));
    }
    let mut count = 0;
    for version in std::fs::read_dir(versions).unwrap().flatten() {
        let place = tempfile::tempdir().unwrap();
        copy(&version.path(), place.path());
        let repository = Repository::open(store(place.path())).unwrap();
        assert_eq!(repository.names().unwrap(), ["vm"]);
        let context = Context::silent();
        let reader = repository.read("vm", &context).unwrap();
        assert_eq!(reader.manifest().snapshots.len(), images().len());
        assert_eq!(reader.manifest().snapshots[1].label.as_deref(), Some("second"));
        for (snapshot, image) in reader.manifest().snapshots.iter().zip(images()) {
            let chain = repository.chain(&reader, snapshot.id).unwrap();
            let mut bytes = Vec::new();
            restore(&chain, None, &mut Stream::new(&mut bytes, "memory"), &context).unwrap();
            assert!(bytes == image, "{version:?} {}", snapshot.number);
            let files = naive_reader::chain_of(&place.path().join("vm"), snapshot.number).unwrap();
            assert!(naive_reader::restore(&files).unwrap() == image);
        }
        let verified = repository.verify(&VerifyScope::All, false, &context).unwrap();
        assert!(verified.damaged.is_empty());
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn a_manifest_of_a_later_version_is_refused_and_unknown_keys_are_not() {
    let place = tempfile::tempdir().unwrap();
    copy(&fixtures().join("repos/0.1.0"), place.path());
    let folder = place.path().join("vm");
    let file = std::fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_str().unwrap().contains("manifest."))
        .max()
        .unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let (_, body) = text.split_once('\n').unwrap();
    let seal = |version: u32, body: &str| {
        let digest = xxhash_rust::xxh3::xxh3_128(body.as_bytes());
        std::fs::write(&file, format!("imgsnap-manifest {version} {digest:032x}\n{body}")).unwrap();
    };
    let repository = Repository::open(store(place.path())).unwrap();
    let context = Context::silent();
    seal(1, &body.replacen('{', "{\"of_tomorrow\": [1, 2],", 1));
    assert_eq!(repository.read("vm", &context).unwrap().manifest().snapshots.len(), 3);
    seal(2, body);
    let error = repository.read("vm", &context).err().unwrap();
    assert_eq!(error.kind(), imgsnap::error::ErrorKind::Unsupported, "{error}");
    // J4: a parent that is missing, a number that stands twice.
    for (from, to) in
        [("\"number\": 2", "\"number\": 1"), ("\"next_number\": 4", "\"next_number\": 3")]
    {
        assert!(body.contains(from), "{from}");
        seal(1, &body.replacen(from, to, 1));
        let error = repository.read("vm", &context).err().unwrap();
        assert_eq!(error.kind(), imgsnap::error::ErrorKind::Corrupt, "{error}");
    }
}
