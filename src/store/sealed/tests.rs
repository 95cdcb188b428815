//! What a second program made by FORMAT.md section 13 (`tests/support/sealed.py`), and every change of it.

use super::keys::{KeyId, MasterKey};
use super::names::NameKey;
use super::object::{Identity, Refusal, Sealer, open_whole, seal_whole, sealed_bytes};
use super::slots::Credential;
use super::{KeyRing, KeySource, SealedStore, recovery};
use crate::base::error::{ErrorKind, Result};
use crate::base::secret::Secret;
use crate::store::{Act, Fault, Host, MARKER, MemoryStore, Sharing, Store, World};
use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use serde_json::Value;
use std::sync::Arc;
use uuid::Uuid;
use zerocopy::IntoBytes;

/// Who is always answered.
struct Calm;

impl Host for Calm {
    fn ask(&self, _: Act, _: &str) -> Fault {
        Fault::None
    }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(World::default(), Arc::new(Calm), Sharing::SHARED))
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../fixtures/sealed/vectors.json")).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn keys() -> (MasterKey, KeyId, Uuid) {
    let vectors = vectors();
    let master = MasterKey::of(Secret::new(hex(&vectors["master"])).unwrap()).unwrap();
    let id = master.id().unwrap();
    assert_eq!(id, text(&vectors["key"]).parse().unwrap());
    (master, id, text(&vectors["repository"]).parse().unwrap())
}

fn pattern(count: u64, factor: u64) -> Vec<u8> {
    (0..count).map(|i| (i * factor + (i >> 8)) as u8).collect()
}

#[test]
fn objects_and_names_are_sealed_as_another_program_does() {
    let (vectors, (master, id, repository)) = (vectors(), keys());
    for object in vectors["objects"].as_array().unwrap() {
        let plain = pattern(object["bytes"].as_u64().unwrap(), 13);
        let identity = Identity::of(repository, text(&object["name"]));
        let salt = hex(&object["salt"]).try_into().unwrap();
        let (mut sealer, head) = Sealer::with_salt(&master, id, &identity, salt).unwrap();
        let mut sealed = head.as_bytes().to_vec();
        let mut put = |chunk: &[u8]| -> Result<()> {
            sealed.extend_from_slice(chunk);
            Ok(())
        };
        // In pieces of all lengths.
        for piece in plain.chunks(50_001) {
            sealer.add(piece, &mut put).unwrap();
        }
        sealer.end(&mut put).unwrap();
        assert_eq!(digest(&SHA256, &sealed).as_ref(), hex(&object["sealed"]), "{object}");
        assert_eq!(sealed.len() as u64, sealed_bytes(plain.len() as u64));
        assert_eq!(open_whole(&master, id, &identity, &sealed), Ok(plain));
    }
    let names = NameKey::new(&master, repository).unwrap();
    for name in vectors["names"].as_array().unwrap() {
        let (name, sealed) = (text(&name["name"]), text(&name["sealed"]));
        assert_eq!(
            (names.seal(name).as_str(), names.open(sealed).as_deref()),
            (sealed, Some(name))
        );
        let other = NameKey::new(&master, Uuid::from_u128(7)).unwrap();
        assert_eq!(other.open(sealed), None, "of another repository");
        let changed = |at: usize| {
            let digit = if sealed.as_bytes()[at] == b'a' { "b" } else { "a" };
            format!("{}{digit}{}", &sealed[..at], &sealed[at + 1..])
        };
        assert!((0..sealed.len()).all(|at| names.open(&changed(at)).is_none()));
    }
}

#[test]
fn whatever_is_changed_cut_added_or_moved_is_refused() {
    let (master, id, repository) = keys();
    let delta = "vm/18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291.delta";
    let of = |name| Identity::of(repository, name);
    let identity = of(delta);
    for bytes in [0, 1, 100, 65_536, 65_537, 140_000] {
        let sealed = seal_whole(&master, id, &identity, &pattern(bytes, 13)).unwrap();
        let open = |sealed: &[u8]| open_whole(&master, id, &identity, sealed);
        let step = if sealed.len() < 500 { 1 } else { 997 };
        for at in (0..sealed.len()).step_by(step).chain([sealed.len() - 1]) {
            let mut bad = sealed.clone();
            bad[at] ^= 0x10;
            assert!(open(&bad).is_err(), "{bytes}: byte {at}");
            assert!(open(&sealed[..at]).is_err(), "{bytes}: cut at {at}");
        }
        for more in [1, 15, 16, 17, 65_552] {
            let longer = [sealed.clone(), vec![0; more]].concat();
            assert_eq!(open(&longer), Err(Refusal::Changed), "{bytes}: {more} more");
        }
        // Chunks are where they were, and of the object that they were of.
        let chunk = |from: &[u8], number: usize| from[96 + number * 65_552..][..65_552].to_vec();
        if bytes == 140_000 {
            let (first, second) = (chunk(&sealed, 0), chunk(&sealed, 1));
            let swapped = [&sealed[..96], &second, &first, &sealed[96 + 2 * 65_552..]].concat();
            assert_eq!(open(&swapped), Err(Refusal::Changed));
            let again = seal_whole(&master, id, &identity, &pattern(bytes, 13)).unwrap();
            let mixed = [&sealed[..96 + 65_552], &again[96 + 65_552..]].concat();
            assert_eq!(open(&mixed), Err(Refusal::Changed), "of another attempt");
            let shorter = [&sealed[..96 + 2 * 65_552]].concat();
            assert_eq!(open(&shorter), Err(Refusal::Changed), "without the last chunk");
        }
    }
    // An object is what it was, where it was; a delta file is the same in each image.
    let names = [
        delta,
        "vm/28ddab2b-d2f6-4c59-b4d5-c5dfe82e7291.delta",
        "vm/18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291.attachment",
        "vm/manifest.000001",
        "vm/manifest.000002",
        "db/manifest.000001",
        "config.000001",
        "config.000002",
        "plan.18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291",
    ];
    for name in names {
        let sealed = seal_whole(&master, id, &of(name), b"content").unwrap();
        for other in names {
            let opened = open_whole(&master, id, &of(other), &sealed);
            assert_eq!(opened.is_ok(), name == other, "{name} as {other}");
        }
        let elsewhere = Identity::of(Uuid::from_u128(7), name);
        let opened = open_whole(&master, id, &elsewhere, &sealed);
        assert_eq!(opened.is_ok(), name.ends_with(".delta"), "{name} in another repository");
        let new = MasterKey::new().unwrap();
        let opened = open_whole(&new, new.id().unwrap(), &of(name), &sealed);
        assert_eq!(opened, Err(Refusal::OtherKey(id)), "{name} with another key");
    }
}

struct Fixed(Credential);

impl KeySource for Fixed {
    fn given(&self) -> Result<Option<Credential>> {
        self.0.copy().map(Some)
    }
}

fn ring(credential: Credential) -> KeyRing {
    KeyRing::new(Fixed(credential))
}

fn key_file(bytes: &[u8]) -> Credential {
    Credential::KeyFile(Secret::copy(bytes).unwrap())
}

fn passphrase(text: &str) -> Credential {
    Credential::Passphrase(Secret::copy(text.as_bytes()).unwrap())
}

/// A store with a slot, whose text is changed first, and something that is sealed.
fn store_with(slot: &str, text: &Value) -> Arc<dyn Store> {
    let store = memory();
    let body = format!("{text:#}\n");
    let slot_text = crate::base::checked_text::to_checked("key", 1, &body);
    store.put_if_absent(&format!("key.{slot}"), &slot_text).unwrap();
    let (master, id, repository) = keys();
    let config = seal_whole(&master, id, &Identity::of(repository, "config.000001"), b"text");
    store.put_if_absent("config.000001", &config.unwrap()).unwrap();
    store
}

#[test]
fn a_slot_opens_with_what_it_was_made_of_and_not_if_anything_in_it_is_changed() {
    for slot in vectors()["slots"].as_array().unwrap() {
        let (id, told, given) = (text(&slot["slot"]), &slot["text"], hex(&slot["given"]));
        let is_file = told["derivation"]["kind"] == "key_file";
        let right = || match is_file {
            true => key_file(&given),
            false => passphrase(std::str::from_utf8(&given).unwrap()),
        };
        let wrong = || if is_file { key_file(&[7; 32]) } else { passphrase("incorrect") };
        let opened = |id: &str, text: &Value, given| {
            let opened = ring(given).open(store_with(id, text));
            opened.and_then(|store| store.read_whole("config.000001", 100)).map_err(|e| e.kind())
        };
        assert_eq!(opened(id, told, right()), Ok(b"text".to_vec()), "{slot}");
        assert_eq!(opened(id, told, wrong()), Err(ErrorKind::Key));
        // As 64 digits it is the same key file.
        if is_file {
            let digits = HEXLOWER.encode(&given);
            let spelled = key_file(format!("{digits}\n").as_bytes());
            assert_eq!(opened(id, told, spelled), Ok(b"text".to_vec()));
        }
        let other = "18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291";
        assert_eq!(opened(other, told, right()), Err(ErrorKind::Key), "under another name");
        for key in ["repository", "key", "salt", "wrapped"] {
            let mut changed = told.clone();
            let was = text(&changed[key]).to_owned();
            let digit = if was.ends_with('0') { "1" } else { "0" };
            changed[key] = format!("{}{digit}", &was[..was.len() - 1]).into();
            assert_eq!(opened(id, &changed, right()), Err(ErrorKind::Key), "{key}");
        }
        // Costs that would use up memory or time are refused before anything is done.
        for (cost, value) in [
            ("memory_kib", 4_u64),
            ("memory_kib", u64::from(u32::MAX)),
            ("passes", 0),
            ("passes", 100_000),
            ("lanes", 0),
            ("lanes", 1 << 20),
        ] {
            if !is_file {
                let mut changed = told.clone();
                changed["derivation"][cost] = value.into();
                assert_eq!(opened(id, &changed, right()), Err(ErrorKind::Key), "{cost} {value}");
            }
        }
    }
}

#[test]
fn the_recovery_text_opens_what_has_no_slot_and_no_digit_of_it_may_be_wrong() {
    let (master, id, repository) = keys();
    let text = recovery::to_text(repository, &master, None);
    let read = |text: &str| recovery::read(&Secret::copy(text.as_bytes()).unwrap());
    assert_eq!(read(&text).unwrap().master.id().unwrap(), id);
    assert!(read(&text.replace('\n', "\r\n")).is_ok(), "with other ends of lines");
    let begin = text.find("repository: ").unwrap() + "repository: ".len();
    for (at, was) in text.char_indices().filter(|(at, c)| *at >= begin && c.is_ascii_hexdigit()) {
        let digit = if was == '0' { "1" } else { "0" };
        let changed = format!("{}{digit}{}", &text[..at], &text[at + 1..]);
        assert!(read(&changed).is_err(), "{changed}");
    }
}

#[test]
fn one_that_is_not_sealed_and_one_without_a_key_are_told() {
    let plain = memory();
    plain.put_if_absent(MARKER, b"version = 2\n").unwrap();
    plain.put_if_absent("config.000001", b"imgsnap-config 1 00\n").unwrap();
    let refused = ring(passphrase("x")).open(plain).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Key, "{refused}");

    struct Nobody;
    impl KeySource for Nobody {
        fn given(&self) -> Result<Option<Credential>> {
            Ok(None)
        }
    }
    let slot = &vectors()["slots"][0];
    let store = store_with(text(&slot["slot"]), &slot["text"]);
    let refused = KeyRing::new(Nobody).open(store).err().unwrap();
    assert!(refused.to_string().contains("no key was given"), "{refused}");
}

#[test]
fn any_range_of_an_object_is_what_was_written() {
    let (master, _, repository) = keys();
    let sealing = super::Sealing::new(repository, master, None).unwrap();
    let inner = memory();
    let store = SealedStore::new(inner.clone(), Arc::new(sealing));
    let name = "vm/18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291.delta";
    let all = pattern(300_000, 13);
    let mut upload = store.create(name).unwrap();
    all.chunks(7777).for_each(|piece| upload.write(piece).unwrap());
    upload.publish().unwrap();
    assert_eq!(store.size(name).unwrap(), 300_000);
    for (offset, count) in [
        (0, 1),
        (0, 300_000),
        (1, 299_999),
        (65_535, 2),
        (65_536, 65_536),
        (60_000, 200_000),
        (131_072, 131_072),
        (299_999, 1),
        (300_000, 0),
    ] {
        // Twice: the second time some of it is kept.
        for _ in 0..2 {
            let mut buffer = vec![0; count];
            store.read_at(name, offset, &mut buffer).unwrap();
            assert_eq!(buffer, all[offset as usize..][..count], "{count} bytes at {offset}");
        }
    }
    assert!(store.read_at(name, 299_999, &mut [0; 2]).is_err());
    // Nothing of it, nor of its name, is in what is stored.
    for (folder, objects) in inner.list_all().unwrap() {
        assert!(!folder.contains("vm"));
        for object in objects.iter().filter(|_| !folder.is_empty()) {
            let name = format!("{folder}/{}", object.name);
            let stored = inner.read_whole(&name, 1 << 20).unwrap();
            assert!(!stored.windows(16).any(|window| window == &all[1000..1016]));
        }
    }
}
