//! Every released version's repository restores for ever (FORMAT.md P1, P2, P7, P8, J1 to J5).

use crate::support::{config, fixtures, is_blessing, naive_reader, text};
use imgsnap::base::events::Context;
use imgsnap::image::write::Stream;
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{LocalStore, OsDisk};
use imgsnap::view::restore;
use imgsnap::{At, Defaults, PruneRequest, Repository, SnapshotRequest, VerifyScope};
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

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

/// What is known on this host lies beside: a name that is none of an image.
fn host(folder: &Path) -> HostState {
    HostState::in_folder(&folder.join(".state"))
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
    let repository = Repository::init_in(store(folder), Defaults::default(), host(folder)).unwrap();
    let image = tempfile::tempdir().unwrap();
    for (index, bytes) in images().iter().enumerate() {
        let path = image.path().join("vm.img");
        std::fs::write(&path, bytes).unwrap();
        let label = (index == 1).then(|| "second".to_owned());
        let request = SnapshotRequest::new(path).label(label);
        repository.snapshot(&request, &Context::silent()).unwrap();
    }
    // Something that is condemned.
    let path = image.path().join("vm.img");
    std::fs::write(&path, text(10_000, 4)).unwrap();
    repository.snapshot(&SnapshotRequest::new(path), &Context::silent()).unwrap();
    repository.delete("vm", &At::Number(4), true, &Context::silent()).unwrap();
    std::fs::remove_file(folder.join("vm/head.json")).unwrap();
    let store = store(folder);
    let was = Repository::configuration(store.as_ref()).unwrap();
    let text = format!("{}\n[snapshot]\nrecheck = 2\n", was.text);
    Repository::replace_configuration(store.as_ref(), &was, &text).unwrap();
}

/// Both readers give these snapshots of a repository, and it has no others.
fn check(folder: &Path, numbers: &[u64]) {
    let context = Context::silent();
    let repository = Repository::open_in(store(folder), host(folder)).unwrap();
    let reader = repository.read("vm", &context).unwrap();
    let listed: Vec<u64> = reader.manifest().snapshots.iter().map(|s| s.number).collect();
    assert_eq!(listed, numbers);
    for snapshot in &reader.manifest().snapshots {
        let image = &images()[snapshot.number as usize - 1];
        let chain = repository.chain(&reader, snapshot.id).unwrap();
        let mut bytes = Vec::new();
        restore(&chain, None, &mut Stream::new(&mut bytes, "memory"), &context).unwrap();
        assert!(bytes == *image, "{folder:?} {}", snapshot.number);
        assert!(naive_reader::restore_from(&folder.join("vm"), snapshot.number).unwrap() == *image);
    }
    let verified = repository.verify(&VerifyScope::All, false, &context).unwrap();
    assert!(verified.damaged.is_empty());
}

/// Files of dropped snapshots stay as they are, unless all of them is garbage.
fn merge_nothing(folder: &Path) {
    config::add(folder, "[prune]\ngarbage = 100\n");
}

/// The version in the first line of the ruling manifest.
fn manifest_version(folder: &Path) -> String {
    let text = std::fs::read_to_string(ruling(&folder.join("vm"))).unwrap();
    text.split(' ').nth(1).unwrap().to_owned()
}

fn ruling(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    files.filter(|path| path.to_str().unwrap().contains("manifest.")).max().unwrap()
}

/// P1 (no rules in the configuration), J2: old files are merged, and the manifest becomes one of version 3.
#[test]
fn repositories_of_every_version_are_pruned_flattened_and_extended() {
    let context = Context::silent();
    for version in std::fs::read_dir(fixtures().join("repos")).unwrap().flatten() {
        let in_copy = |merges: bool, work: &dyn Fn(&Repository, &Path)| {
            let place = tempfile::tempdir().unwrap();
            copy(&version.path(), place.path());
            if !merges {
                merge_nothing(place.path());
            }
            work(
                &Repository::open_in(store(place.path()), host(place.path())).unwrap(),
                place.path(),
            );
        };
        let prune = |repository: &Repository, last, compact| {
            let rules = Rules { last: Some(Count::Most(last)), ..Rules::default() };
            let request = PruneRequest::new().rules(Some(rules)).compact(compact);
            repository.prune("vm", &request, &context).unwrap()
        };
        in_copy(true, &|repository, folder| {
            assert!(repository.prune("vm", &PruneRequest::default(), &context).is_err());
            prune(repository, 2, false);
            check(folder, &[2, 3]);
            prune(repository, 1, true);
            check(folder, &[3]);
            assert_eq!(manifest_version(folder), "3");
        });
        for number in [1, 2, 3] {
            for (compact, merges) in [(false, true), (false, false), (true, false)] {
                in_copy(merges, &|repository, folder| {
                    repository.delete("vm", &At::Number(number), compact, &context).unwrap();
                    let left: Vec<u64> = (1..=3).filter(|n| *n != number).collect();
                    check(folder, &left);
                    let listed = repository.list("vm", &context).unwrap().manifest;
                    assert_eq!(manifest_version(folder), "3");
                    let stays = !merges && !compact && number < 3;
                    assert_eq!(!listed.dropped.is_empty(), stays, "{number} {compact}");
                });
            }
            in_copy(true, &|repository, folder| {
                repository.flatten("vm", &At::Number(number), &context).unwrap();
                check(folder, &[1, 2, 3]);
                for other in (1..=3).filter(|n| *n != number) {
                    repository.delete("vm", &At::Number(other), true, &context).unwrap();
                }
                check(folder, &[number]);
            });
        }
    }
}

#[test]
fn repositories_of_every_version_restore() {
    let versions = fixtures().join("repos");
    // The latest layout: numbered configurations.
    if is_blessing() && !versions.join("config-1").exists() {
        bless(&versions.join("config-1"));
    }
    let mut count = 0;
    for version in std::fs::read_dir(versions).unwrap().flatten() {
        let place = tempfile::tempdir().unwrap();
        copy(&version.path(), place.path());
        let repository = Repository::open_in(store(place.path()), host(place.path())).unwrap();
        assert_eq!(repository.names().unwrap(), ["vm"]);
        check(place.path(), &[1, 2, 3]);
        let reader = repository.read("vm", &Context::silent()).unwrap();
        assert_eq!(reader.manifest().snapshots[1].label.as_deref(), Some("second"));
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn a_manifest_of_a_later_version_is_refused_and_unknown_keys_are_not() {
    let place = tempfile::tempdir().unwrap();
    copy(&fixtures().join("repos/0.1.0"), place.path());
    let folder = place.path().join("vm");
    let file = ruling(&folder);
    let text = std::fs::read_to_string(&file).unwrap();
    let (_, body) = text.split_once('\n').unwrap();
    let seal = |version: u32, body: &str| {
        let digest = xxhash_rust::xxh3::xxh3_128(body.as_bytes());
        std::fs::write(&file, format!("imgsnap-manifest {version} {digest:032x}\n{body}")).unwrap();
    };
    let repository = Repository::open_in(store(place.path()), host(place.path())).unwrap();
    let context = Context::silent();
    let commit = "\"commit\": \"18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291\",";
    for (version, more) in
        [(1, "\"of_tomorrow\": [1, 2],".into()), (3, format!("{commit} \"of_tomorrow\": 1,"))]
    {
        seal(version, &body.replacen('{', &format!("{{{more}"), 1));
        assert_eq!(repository.read("vm", &context).unwrap().manifest().snapshots.len(), 3);
        assert_eq!(naive_reader::read_manifest(&folder).unwrap().snapshots.len(), 3);
    }
    // What it says it needs is understood or refused.
    seal(3, &body.replacen('{', &format!("{{{commit} \"needs\": [\"tomorrow\"],"), 1));
    let error = repository.read("vm", &context).err().unwrap();
    assert_eq!(error.kind(), imgsnap::base::error::ErrorKind::Unsupported, "{error}");
    assert!(naive_reader::read_manifest(&folder).unwrap_err().starts_with("J5"));
    for version in [5, 6, 1000] {
        seal(version, body);
        let error = repository.read("vm", &context).err().unwrap();
        assert_eq!(error.kind(), imgsnap::base::error::ErrorKind::Unsupported, "{error}");
        assert!(naive_reader::read_manifest(&folder).unwrap_err().starts_with("J5"));
    }
    seal(0, body);
    let error = repository.read("vm", &context).err().unwrap();
    assert_eq!(error.kind(), imgsnap::base::error::ErrorKind::Corrupt, "{error}");
    assert!(naive_reader::read_manifest(&folder).unwrap_err().starts_with("J5"));
    // Version 3 is a commit.
    seal(3, body);
    let error = repository.read("vm", &context).err().unwrap();
    assert_eq!(error.kind(), imgsnap::base::error::ErrorKind::Corrupt, "{error}");
    assert!(naive_reader::read_manifest(&folder).unwrap_err().starts_with("J10"));
    // J4: a parent that is missing, a number that stands twice.
    for (from, to) in
        [("\"number\": 2", "\"number\": 1"), ("\"next_number\": 4", "\"next_number\": 3")]
    {
        assert!(body.contains(from), "{from}");
        seal(1, &body.replacen(from, to, 1));
        let error = repository.read("vm", &context).err().unwrap();
        assert_eq!(error.kind(), imgsnap::base::error::ErrorKind::Corrupt, "{error}");
    }
}

/// J2 to J5, P4: what is dropped.
#[test]
fn a_manifest_with_dropped_snapshots_is_refused_where_it_is_wrong() {
    let place = tempfile::tempdir().unwrap();
    copy(&fixtures().join("repos/0.1.0"), place.path());
    merge_nothing(place.path());
    let folder = place.path().join("vm");
    let repository = Repository::open_in(store(place.path()), host(place.path())).unwrap();
    let context = Context::silent();
    repository.delete("vm", &At::Number(2), false, &context).unwrap();
    let file = ruling(&folder);
    let text = std::fs::read_to_string(&file).unwrap();
    let (first, body) = text.split_once('\n').unwrap();
    assert!(first.starts_with("imgsnap-manifest 3 "), "{first}");
    let good: serde_json::Value = serde_json::from_str(body).unwrap();
    type Edit = fn(&mut serde_json::Value);
    let edits: [(&str, u32, Edit); 13] = [
        // The second version is what tells an older program that it must not read on.
        ("version", 1, |_| {}),
        ("no commit", 3, |json| drop(json.as_object_mut().unwrap().remove("commit"))),
        ("ancestors", 3, |json| {
            json["ancestors"] = serde_json::json!([{"sequence": 99, "commit": json["commit"]}]);
        }),
        ("condemned and named", 3, |json| {
            let object = json["snapshots"][0]["file"].clone();
            json["condemned"] = serde_json::json!([{"object": object, "sequence": 1}]);
        }),
        ("protected and dropped", 3, |json| json["dropped"][0]["protected"] = true.into()),
        ("swept", 3, |json| json["swept"] = 99.into()),
        ("label", 3, |json| json["dropped"][0]["label"] = "x".into()),
        ("number", 3, |json| json["dropped"][0]["number"] = 3.into()),
        ("number of a parent", 3, |json| json["dropped"][0]["number"] = 9.into()),
        ("next number", 3, |json| json["next_number"] = 3.into()),
        ("id", 3, |json| json["dropped"][0]["id"] = json["snapshots"][0]["id"].clone()),
        ("missing parent", 3, |json| json["dropped"][0]["id"] = json["image_id"].clone()),
        ("order", 3, |json| {
            let listed = json["snapshots"].as_array_mut().unwrap();
            listed.reverse();
        }),
    ];
    let seal = |version: u32, json: &serde_json::Value| {
        let body = format!("{json:#}\n");
        let digest = xxhash_rust::xxh3::xxh3_128(body.as_bytes());
        std::fs::write(&file, format!("imgsnap-manifest {version} {digest:032x}\n{body}")).unwrap();
    };
    for version in [2, 3] {
        seal(version, &good);
        check(place.path(), &[1, 3]);
    }
    for (name, version, edit) in edits {
        let mut json = good.clone();
        edit(&mut json);
        seal(version, &json);
        let error = repository.read("vm", &context).err().unwrap();
        assert_eq!(error.kind(), imgsnap::base::error::ErrorKind::Corrupt, "{name}: {error}");
        assert!(naive_reader::read_manifest(&folder).is_err(), "{name}");
    }
}
