//! Manifests: what decodes encodes to what decodes to the same, whatever is asked of it ends, and the second
//! reader agrees on what is valid.
#![no_main]

use imgsnap::repo::manifest::{Manifest, check_name, sequence_of};
use imgsnap::repo::retention::{Rules, Times, decide};
use imgsnap_fuzz::seeds::{fixtures, plant, read};
use imgsnap_fuzz::support::naive_reader;
use imgsnap_fuzz::{chains, mend, meter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(seeds), |data: &[u8]| {
    let Some((&how, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if how & 1 != 0 {
        mend::manifest(&mut bytes);
    }
    meter::within(bytes.len() * 64 + (64 << 10), || decode(&bytes));
    if let Ok(text) = std::str::from_utf8(&bytes) {
        sequence_of(text);
        check_name(text).map_err(chains::refusal).ok();
    }
});

fn decode(bytes: &[u8]) {
    let manifest = match Manifest::decode(bytes) {
        Ok(manifest) => manifest,
        Err(error) => {
            chains::refusal(error);
            return;
        }
    };
    let encoded = manifest.encode().expect("what was read can be written");
    let again = Manifest::decode(&encoded).expect("what was written can be read");
    let again = again.encode().expect("it can be written");
    assert!(again == encoded, "{}", String::from_utf8_lossy(&again));
    for snapshot in manifest.stored() {
        let lineage = manifest.lineage(snapshot.id).expect("every parent is there");
        assert!(lineage.len() <= manifest.stored().len());
        manifest.parent_of(snapshot);
        assert!(manifest.children(snapshot.id).all(|child| child.number > snapshot.number));
        assert!(
            snapshot.label.as_ref().is_none_or(|l| !l.contains(char::is_control)),
            "{snapshot:?}"
        );
        assert!(!snapshot.file.contains('/'), "a path in {:?}", snapshot.file);
    }
    let rules = Rules { last: "1".parse().ok(), within: "1y2m".parse().ok(), ..Rules::default() };
    let utc = jiff::tz::TimeZone::UTC;
    let now = jiff::Timestamp::now();
    let times = Times::of(&manifest.snapshots, now);
    assert!(times.readings().all(|times| times.is_sorted()));
    assert!(times.is_in_doubt || times.readings().flatten().all(|time| *time <= now));
    let decisions = decide(&rules, &manifest.snapshots, &times, &utc);
    assert_eq!(decisions.len(), manifest.snapshots.len());
    assert!(manifest.snapshots.is_empty() || decisions.iter().any(|d| !d.keep.is_empty()));
    // Of what it knows, nothing is refused by the second reader.
    if let Err(why) = naive_reader::parse_manifest(bytes) {
        // A repair names files as it finds them, and what a dropped snapshot is kept for may be gone.
        let known = why.starts_with("J3: file is") || why.ends_with("nothing rests on it");
        assert!(known, "read, but {why}");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for path in fixtures("repos") {
        let is_manifest = path
            .file_name()
            .is_some_and(|name| name.to_str().is_some_and(|name| name.starts_with("manifest.")));
        if is_manifest {
            for how in [0, 1] {
                seeds.push([&[how], read(&path).as_slice()].concat());
            }
        }
    }
    for text in fixtures("repos").iter().filter_map(|path| path.file_name()?.to_str()) {
        seeds.push([&[0], text.as_bytes()].concat());
    }
    seeds
}
