//! An init, a change of the configuration, a take-over of what an older program wrote and a repair, failing and
//! dying at each of their operations: what rules is what was before or what was to be (FORMAT.md P1, P7, P8).

use crate::support::config;
use crate::support::crash_disk::CrashDisk;
use crate::support::power::Survival;
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::repo::host::HostState;
use imgsnap::store::{LocalStore, Store};
use imgsnap::{Defaults, Repository};
use std::sync::Arc;

fn store(disk: &CrashDisk) -> Arc<dyn Store> {
    Arc::new(LocalStore::new(Arc::new(disk.clone())))
}

fn host(disk: &CrashDisk) -> HostState {
    HostState::in_store(store(disk), "host")
}

fn init(disk: &CrashDisk) -> Result<()> {
    Repository::init_in(store(disk), Defaults::default(), host(disk)).map(drop)
}

fn text(disk: &CrashDisk) -> Result<String> {
    let text = Repository::configuration(store(disk).as_ref())?.text;
    Repository::open_in(store(disk), host(disk)).expect("it makes sense");
    Ok(text)
}

/// Adds a line.
fn change(disk: &CrashDisk) -> Result<()> {
    let store = store(disk);
    let was = Repository::configuration(store.as_ref())?;
    let text = format!("{}# once more\n", was.text);
    Repository::replace_configuration(store.as_ref(), &was, &text).map(drop)
}

/// A repository as an older program left it.
fn old() -> CrashDisk {
    let disk = CrashDisk::default();
    init(&disk).unwrap();
    let text = text(&disk).unwrap();
    let old = CrashDisk::default();
    old.put("repository.toml", format!("version = 1\n{text}").as_bytes());
    old
}

/// What a program that knows no numbered configuration does with the file that it knows.
fn is_refused_by_older_programs(disk: &CrashDisk) -> bool {
    let text = String::from_utf8(disk.get("repository.toml").unwrap_or_default()).unwrap();
    let version = text.parse::<toml::Table>().unwrap().get("version").and_then(|v| v.as_integer());
    version.is_some_and(|version| version > 1)
}

/// What is on the disk after a fault, or a crash, at each operation of `work`, and how that ended.
fn survivors(
    disk: &CrashDisk,
    work: &dyn Fn(&CrashDisk) -> Result<()>,
) -> Vec<(String, bool, CrashDisk)> {
    let counting = disk.survivor();
    work(&counting).unwrap();
    let mut survivors = Vec::new();
    for operation in 1..=counting.operations() {
        let failing = disk.survivor();
        failing.fail_at(operation);
        let is_done = work(&failing).is_ok();
        let place = format!("{:?}", failing.log().get(operation as usize - 1));
        survivors.push((format!("failed at {place}"), is_done, failing.survivor()));
        let crashing = disk.survivor();
        crashing.crash_at(operation);
        let is_done = work(&crashing).is_ok();
        survivors.push((format!("killed at {place}"), is_done, crashing.survivor()));
        for survival in
            [Survival::Nothing, Survival::Everything, Survival::Any(operation), Survival::Any(99)]
        {
            let what = format!("power lost at {place}: {survival:?}");
            survivors.push((what, is_done, crashing.after_power_loss(survival)));
        }
    }
    assert!(survivors.len() >= 30, "{}", survivors.len());
    survivors
}

#[test]
fn an_init_that_is_interrupted_anywhere_goes_on_where_it_was() {
    for (what, is_done, disk) in survivors(&CrashDisk::default(), &init) {
        let is_there = match Repository::open_in(store(&disk), host(&disk)) {
            Ok(_) => is_done,
            Err(e) => {
                assert!(!is_done, "{what}: {e}");
                assert_eq!(e.kind(), ErrorKind::NotFound, "{what}: {e}");
                assert!(Repository::is_vacant(store(&disk).as_ref()), "{what}");
                init(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(disk.files(), ["config.000001", "repository.toml"], "{what}");
                true
            }
        };
        text(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(is_refused_by_older_programs(&disk), "{what}");
        assert_eq!(init(&disk).unwrap_err().kind(), ErrorKind::AlreadyExists, "{what}");
        // What was reported as done stays.
        let lost = disk.after_power_loss(Survival::Nothing);
        assert!(!is_there || text(&lost).is_ok() && is_refused_by_older_programs(&lost), "{what}");
    }
}

#[test]
fn what_lies_in_a_folder_with_a_marker_is_left_alone() {
    for name in ["config.000002x", "thesis.txt"] {
        let disk = CrashDisk::default();
        disk.put("repository.toml", b"version = 2\n");
        assert!(Repository::is_vacant(store(&disk).as_ref()));
        disk.put(name, b"mine");
        assert!(!Repository::is_vacant(store(&disk).as_ref()));
        assert_eq!(init(&disk).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let mut files = [name, "repository.toml"];
        files.sort_unstable();
        assert_eq!(disk.files(), files);
    }
    // What an older program wrote is no marker.
    let disk = CrashDisk::default();
    disk.put("repository.toml", b"version = 1\n");
    assert!(!Repository::is_vacant(store(&disk).as_ref()));
}

/// Also the take-over: afterwards the text before or the new one rules, and what is left to do is done by the next
/// change, or by a repair.
#[test]
fn a_change_survives_every_fault() {
    let new = CrashDisk::default();
    init(&new).unwrap();
    for scene in [new.survivor(), old()] {
        let before = text(&scene).unwrap();
        let done = scene.survivor();
        change(&done).unwrap();
        let after = text(&done).unwrap();
        assert!(is_refused_by_older_programs(&done) && before != after);
        assert_eq!(text(&done.after_power_loss(Survival::Nothing)).unwrap(), after);
        let mut between = 0;
        for (what, is_done, disk) in survivors(&scene, &change) {
            let now = text(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(now == after || (!is_done && now == before), "{what}: {now}");
            let is_between = now == after && !is_refused_by_older_programs(&disk);
            between += usize::from(is_between);
            assert!(!is_done || !is_between, "{what}");
            for by_repair in [true, false] {
                let disk = disk.survivor();
                if by_repair {
                    assert_eq!(Repository::restore_config(&store(&disk)).unwrap(), None, "{what}");
                    assert_eq!(text(&disk).unwrap(), now, "{what}");
                } else {
                    change(&disk).unwrap_or_else(|e| panic!("{what}, again: {e}"));
                    let files = disk.files();
                    assert!(!files.iter().any(|file| file.ends_with(".tmp")), "{what}: {files:?}");
                }
                let is_old = by_repair && now == before && scene.get("config.000001").is_none();
                assert_eq!(is_refused_by_older_programs(&disk), !is_old, "{what}");
            }
        }
        let is_old = scene.get("config.000001").is_none();
        assert_eq!(between > 0, is_old, "a crash between the two steps of the take-over");
    }
}

/// A repair that is interrupted is done by the next one.
#[test]
fn the_repair_of_a_configuration_survives_every_fault() {
    let repair = |disk: &CrashDisk| Repository::restore_config(&store(disk)).map(drop);
    for (what, damage) in [("config.000002", 1), ("config.000001", 0)] {
        let disk = CrashDisk::default();
        init(&disk).unwrap();
        if damage > 0 {
            change(&disk).unwrap();
        }
        let good = config::text_of("config.000001", disk.get("config.000001").unwrap());
        disk.put(what, b"imgsnap-config 1 damaged\n");
        let scene = disk.survivor();
        for (place, is_done, disk) in survivors(&scene, &repair) {
            match text(&disk) {
                Ok(_) => {}
                Err(e) => assert!(!is_done && e.kind() == ErrorKind::Corrupt, "{place}: {e}"),
            }
            repair(&disk).unwrap_or_else(|e| panic!("{place}: {e}"));
            let now = text(&disk).unwrap();
            assert!(damage == 0 || now == good, "{place}: {now}");
            // What is damaged stays, and no number comes twice.
            assert_eq!(disk.get(what).unwrap(), b"imgsnap-config 1 damaged\n");
        }
    }
}

/// Put if absent decides, whatever each of them read.
#[test]
fn of_two_writers_the_second_is_told() {
    for disk in [old(), {
        let disk = CrashDisk::default();
        init(&disk).unwrap();
        disk
    }] {
        let store = store(&disk);
        let was = Repository::configuration(store.as_ref()).unwrap();
        let replace = |text: String| Repository::replace_configuration(store.as_ref(), &was, &text);
        let won = replace(format!("{}# mine\n", was.text)).unwrap();
        assert_eq!(won.number, Some(was.number.unwrap_or(0) + 1));
        let error = replace(format!("{}# theirs\n", was.text)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert_eq!(Repository::configuration(store.as_ref()).unwrap(), won);
    }
    // Also where the number was taken after it was looked for.
    let disk = CrashDisk::default();
    init(&disk).unwrap();
    let counting = disk.survivor();
    change(&counting).unwrap();
    let first = config::text_of("config.000001", disk.get("config.000001").unwrap());
    let theirs = config::sealed(&format!("{first}# theirs\n"));
    let mut told = 0;
    for operation in 1..=counting.operations() {
        let racing = disk.survivor();
        racing.intrude_at(operation, "config.000002", &theirs);
        let outcome = change(&racing);
        let is_mine = racing.get("config.000002").unwrap() != theirs;
        assert_eq!(outcome.is_ok(), is_mine, "{operation}");
        if let Err(e) = outcome {
            assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
            told += 1;
        }
    }
    assert!(told > 0);
}
