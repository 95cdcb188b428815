//! A repository that is made at first use, by several at once; one that nothing came into; and what a host
//! remembers of a place (FORMAT.md S6).

use crate::support::text;
use imgsnap::base::events::Context;
use imgsnap::repo::first_use::{init, is_first, open_or_init};
use imgsnap::repo::host::HostState;
use imgsnap::store::{Above, Store, store_at};
use imgsnap::{Defaults, ErrorKind, Repository, SnapshotRequest};
use std::path::PathBuf;
use std::sync::{Arc, Barrier};

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> Arc<dyn Store> {
        store_at(&self.path("repo")).unwrap()
    }

    fn host(&self) -> HostState {
        HostState::in_folder(&self.path("state"))
    }

    fn first(&self) -> imgsnap::Result<Repository> {
        let defaults = Defaults::default();
        open_or_init(self.store(), defaults, Above::MustExist, &self.host())
    }

    fn open(&self) -> imgsnap::Result<Repository> {
        Repository::open_in(store_at(&self.path("repo"))?, self.host())
    }

    fn snapshot(&self, repository: &Repository, name: &str) -> imgsnap::Result<()> {
        let image = self.path(name);
        std::fs::write(&image, text(50_000, 7)).unwrap();
        repository.snapshot(&SnapshotRequest::new(image), &Context::silent()).map(drop)
    }
}

#[test]
fn of_several_at_once_one_makes_it_and_all_have_it() {
    for round in 0..30 {
        let lab = Lab::new();
        let barrier = Barrier::new(6);
        let made: usize = std::thread::scope(|threads| {
            let (lab, barrier) = (&lab, &barrier);
            let each = |number: usize| {
                barrier.wait();
                let repository = lab.first().unwrap_or_else(|e| panic!("round {round}: {e}"));
                // Every other one finds nothing to put into it.
                if number.is_multiple_of(2) {
                    lab.snapshot(&repository, &format!("image-{number}")).unwrap();
                }
                let is_new = repository.is_new();
                assert!(!repository.take_back().unwrap() || is_new, "another one's");
                usize::from(is_new)
            };
            let started: Vec<_> =
                (0..6).map(|number| threads.spawn(move || each(number))).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // It may have been taken back before the next one came.
        assert!((1..=6).contains(&made), "round {round}: {made}");
        assert_eq!(lab.open().unwrap().names().unwrap(), ["image-0", "image-2", "image-4"]);
    }
}

#[test]
fn one_that_nothing_came_into_is_taken_back_by_who_made_it_unless_others_have_it() {
    let lab = Lab::new();
    assert!(is_first(lab.store().as_ref(), &lab.host()));
    let made = lab.first().unwrap();
    assert!(made.is_new() && !is_first(lab.store().as_ref(), &lab.host()));
    assert!(made.take_back().unwrap());
    assert!(!lab.path("repo").exists(), "its folder was made, too");
    // Of one that is there only what was made goes.
    std::fs::create_dir(lab.path("repo")).unwrap();
    assert!(lab.first().unwrap().take_back().unwrap());
    assert_eq!(std::fs::read_dir(lab.path("repo")).unwrap().count(), 0);
    let (made, other) = (lab.first().unwrap(), lab.first().unwrap());
    assert!(made.is_new() && !other.is_new());
    assert!(!made.take_back().unwrap(), "the other one may be about to use it");
    lab.snapshot(&other, "vm").unwrap();
    assert!(!other.take_back().unwrap(), "it is not its own");
    assert_eq!(lab.open().unwrap().names().unwrap(), ["vm"]);
    // Something else in it, whatever it is, is a reason to leave it.
    std::fs::remove_dir_all(lab.path("repo")).unwrap();
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    let made = lab.first().unwrap();
    std::fs::create_dir(lab.path("repo/vm")).unwrap();
    assert!(!made.take_back().unwrap());
    lab.snapshot(&lab.open().unwrap(), "vm").unwrap();
}

#[test]
fn what_an_init_left_that_was_killed_is_gone_on_with() {
    let lab = Lab::new();
    lab.first().unwrap();
    std::fs::remove_file(lab.path("repo/config.000001")).unwrap();
    let made = lab.first().unwrap();
    assert!(made.is_new());
    lab.snapshot(&made, "vm").unwrap();
}

/// S6.
#[test]
fn a_place_is_remembered_once_something_is_in_it() {
    let lab = Lab::new();
    let gone = || std::fs::remove_dir_all(lab.path("repo")).unwrap();
    lab.first().unwrap();
    gone();
    let repository = lab.first().unwrap();
    let one = repository.id();
    lab.snapshot(&repository, "vm").unwrap();
    gone();
    for error in [lab.open().unwrap_err(), lab.first().unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains(&format!("{one} that this host has used")), "{error}");
        let advice = error.advice().unwrap().actions().next().unwrap().to_string();
        assert_eq!(advice, "init()");
    }
    assert!(!is_first(lab.store().as_ref(), &lab.host()) && !lab.path("repo").exists());
    // A library that opens another one is refused where it writes.
    let elsewhere = HostState::in_folder(&lab.path("elsewhere"));
    let path = lab.path("repo");
    init(store_at(&path).unwrap(), Defaults::default(), Above::MustExist, &elsewhere).unwrap();
    let repository = lab.open().unwrap();
    for error in [
        repository.check_place().unwrap_err(),
        lab.snapshot(&repository, "vm").unwrap_err(),
        lab.first().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        let advice = error.advice().unwrap().actions().next().unwrap().to_string();
        assert_eq!(advice, "init(accept)");
    }
    // What is made on purpose takes its place.
    gone();
    init(store_at(&path).unwrap(), Defaults::default(), Above::MustExist, &lab.host()).unwrap();
    lab.snapshot(&lab.open().unwrap(), "vm").unwrap();
}

/// Who has opened it without its lock would put an image where there is no repository.
#[test]
fn nothing_is_put_into_one_that_was_taken_back_meanwhile() {
    let lab = Lab::new();
    let mine = lab.first().unwrap();
    let other = lab.open().unwrap();
    assert!(mine.take_back().unwrap());
    std::fs::create_dir_all(lab.path("repo")).unwrap();
    let refused = lab.snapshot(&other, "image").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    assert_eq!(std::fs::read_dir(lab.path("repo")).unwrap().count(), 0);
}
