//! Everything that is written by hand: names of snapshots, times, lengths, counts, rules, the files that are
//! edited. What has a form to be written in comes back from it as it was.
#![no_main]

use imgsnap::base::digest::{Digest, DigestAlgorithm, ImageDigest};
use imgsnap::base::units::{BlockSize, parse_bytes, parse_duration};
use imgsnap::codec::Compression;
use imgsnap::repo::host::HostState;
use imgsnap::repo::manifest::{self, Manifest};
use imgsnap::repo::retention::{Count, LabelGlob, Period};
use imgsnap::store::{Disk, LocalStore};
use imgsnap::tracking::Recheck;
use imgsnap::{At, Context, Defaults, Reference, Repository, Track, check_label};
use imgsnap_fuzz::meter;
use imgsnap_fuzz::seeds::{fixture, plant, read};
use imgsnap_fuzz::support::config::sealed;
use imgsnap_fuzz::support::crash_disk::CrashDisk;
use libfuzzer_sys::fuzz_target;
use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::Arc;

fuzz_target!(init: plant(seeds), |data: &[u8]| {
    let Some((&what, bytes)) = data.split_first() else { return };
    meter::within(bytes.len() * 256 + (256 << 10), || match what % 3 {
        0 => toml(bytes),
        1 => head(bytes),
        _ => std::str::from_utf8(bytes).map(words).unwrap_or_default(),
    });
});

fn words(text: &str) {
    there_and_back::<Compression>(text);
    there_and_back::<BlockSize>(text);
    there_and_back::<DigestAlgorithm>(text);
    there_and_back::<Count>(text);
    there_and_back::<Period>(text);
    there_and_back::<LabelGlob>(text);
    one_line(text.parse::<Recheck>());
    one_line(text.parse::<Track>());
    one_line(text.parse::<At>());
    one_line(parse_bytes(text)).inspect(|bytes| assert!(*bytes <= 1 << 62));
    one_line(parse_duration(text));
    if let Some(reference) = one_line(text.parse::<Reference>()) {
        assert!(!reference.name.contains(['/', '@']) && !reference.name.starts_with('.'));
    }
    if one_line(check_label(text)).is_some() {
        assert_eq!(text.parse::<At>().unwrap(), At::Label(text.into()));
        assert!(!text.contains(char::is_control));
    }
    // A pattern and a label: the first line and the rest.
    if let Some((pattern, label)) = text.split_once('\n')
        && let Some(glob) = one_line(pattern.parse::<LabelGlob>())
    {
        glob.matches(label);
    }
    if let Some(digest) = Digest::from_hex(text) {
        assert_eq!(digest.to_hex(), text.to_ascii_lowercase());
        assert_eq!(ImageDigest::from_hex(text).unwrap().to_hex(), digest.to_hex());
    }
}

fn there_and_back<T>(text: &str)
where
    T: FromStr<Err = imgsnap::base::error::Error> + Display + Debug + PartialEq,
{
    if let Some(value) = one_line(text.parse::<T>()) {
        let written = value.to_string();
        assert_eq!(written.parse::<T>().expect("what was written can be read"), value, "{written}");
    }
}

fn one_line<T>(result: imgsnap::base::error::Result<T>) -> Option<T> {
    result.map_err(|error| error.kind()).ok()
}

/// As an older program wrote it, as it is written now, and in the place of that with its first line.
fn toml(bytes: &[u8]) {
    opened("repository.toml", bytes);
    opened("config.000001", bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        opened("config.000001", &sealed(text));
        replaced(text);
    }
}

/// What is taken is read again, and everything in it makes sense.
fn replaced(text: &str) {
    let disk = CrashDisk::default();
    // Nothing that could be read, so it has no id to be kept.
    disk.put("config.000001", &sealed("="));
    let store = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    let was = Repository::configuration(store.as_ref()).expect("a configuration");
    let replaced = one_line(Repository::replace_configuration(store.as_ref(), &was, text));
    if replaced.is_some_and(|now| now != was) {
        assert_eq!(Repository::configuration(store.as_ref()).expect("it was written").text, text);
        let host = HostState::in_store(store.clone(), "host");
        let repository = Repository::open_in(store, host).expect("it was checked");
        for name in ["vm", "db"] {
            repository.policy(name).expect("it was checked");
            repository.snapshot_policy(name).expect("it was checked");
        }
    }
}

fn opened(place: &str, bytes: &[u8]) {
    let disk = CrashDisk::default();
    disk.put(place, bytes);
    let store = Arc::new(LocalStore::new(Arc::new(disk)));
    let host = HostState::in_store(store.clone(), "host");
    let Some(repository) = one_line(Repository::open_in(store, host)) else { return };
    one_line(repository.defaults());
    for name in ["vm", "db"] {
        one_line(repository.policy(name));
        one_line(repository.snapshot_policy(name));
    }
    one_line(repository.unknown_images_in_config());
}

/// What is known of a live image, by this host and by an earlier program.
fn head(bytes: &[u8]) {
    let disk = CrashDisk::default();
    let store = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    let host = HostState::in_store(store.clone(), "host");
    let repository =
        Repository::init_in(store.clone(), Defaults::default(), host).expect("nothing is there");
    disk.create_folder("vm").expect("nothing is there");
    let mut manifest = Manifest::new("vm", None);
    manifest::commit(store.as_ref(), &mut manifest).expect("nothing is there");
    disk.put("vm/head.json", bytes);
    disk.put(&format!("{}/{}.json", repository.id(), manifest.image_id), bytes);
    let reader = repository.read("vm", &Context::silent()).expect("it can be read");
    assert_eq!(reader.head().snapshot, None, "there is none");
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let toml = read(&fixture("repos/0.1.0/repository.toml"));
    seeds.push([&[0], toml.as_slice()].concat());
    let more = b"\n[prune]\nkeep_last = 3\nkeep_daily = \"unlimited\"\nkeep_within = \"1y6m\"\n\
        keep_label = [\"pre-*\", \"v[0-9]\"]\ngarbage = 5.5\n[images.\"vm\".prune]\nkeep_weekly = 2\n\
        [snapshot]\ntrack = \"auto\"\nrecheck = 1\nmax_stall = \"1s\"\n[images.vm.snapshot]\nrecheck = 0.5\n";
    seeds.push([&[0], toml.as_slice(), more.as_slice()].concat());
    let head = br#"{"snapshot":"a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a001","stat":{"device":1,"inode":2,
        "bytes":3,"mtime_ns":4,"ctime_ns":5,"boot_id":"x","filesystem":6},"intent":{"target":
        "a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a001","saved":null},"skipped":7}"#;
    seeds.push([&[1], head.as_slice()].concat());
    let record = br#"{"machine":"host","repository":"r","image":"vm","source":"file:///a%20b","live":{"kind":"file",
        "inode":2,"born_ns":3},"snapshot":null,"stat":null,"skipped":7,"newest":{"sequence":9,"commit":
        "a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a001"}}"#;
    seeds.push([&[1], record.as_slice()].concat());
    for text in [
        "vm@2",
        "vm@latest",
        "vm@2026-11-20",
        "@2026-11-20T18:30:00.5+02:00",
        "zstd:19",
        "64K",
        "1.5GiB",
        "xxh3",
        "unlimited",
        "1y6m2w3d4h",
        "v[!0-9]*?\nv1",
        "0.5 %",
        "500ms",
        "1h30m",
        "reflink",
        "000102030405060708090a0b0c0d0eff",
        "9999-12-31",
        "-009999-01-01T00:00Z",
    ] {
        seeds.push([&[2], text.as_bytes()].concat());
    }
    seeds
}
