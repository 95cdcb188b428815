//! A view holds back its own files, for as long as it lives, and nothing else.

use crate::support::{Random, text};
use imgsnap::base::events::Context;
use imgsnap::image::Source;
use imgsnap::repo::manifest::{Condemned, ManifestDigest};
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::{
    At, Defaults, ErrorKind, ParentChoice, PruneRequest, Repository, SnapshotRequest, SnapshotView,
};
use std::path::PathBuf;

const BLOCKS: usize = 64;
const BLOCK: usize = 4096;

struct Lab {
    folder: tempfile::TempDir,
    /// What each snapshot is, from number 1 on.
    images: Vec<Vec<u8>>,
}

impl Lab {
    /// 1 <- 2 <- 3, then a new base 4.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut lab = Self { folder, images: Vec::new() };
        Repository::init(lab.repo(), Defaults::default()).unwrap();
        let (mut image, mut random) = (text(BLOCKS * BLOCK, 1), Random(7));
        for number in 1..=4 {
            for _ in 0..BLOCKS / 4 {
                let at = random.below(BLOCKS as u64) as usize * BLOCK;
                image[at..at + BLOCK].copy_from_slice(&random.bytes(BLOCK));
            }
            let live = lab.folder.path().join("vm.img");
            std::fs::write(&live, &image).unwrap();
            let parent = if number == 4 { ParentChoice::Full } else { ParentChoice::Incremental };
            let request = SnapshotRequest::new(live).parent(parent).full_scan(true);
            lab.open().snapshot(&request, &Context::silent()).unwrap();
            lab.images.push(image.clone());
        }
        lab
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    fn open(&self) -> Repository {
        Repository::open(self.repo()).unwrap()
    }

    fn view(&self, number: u64) -> SnapshotView {
        self.open().view("vm", &At::Number(number), &Context::silent()).unwrap()
    }

    /// Which of the files of some snapshots, as `paths` has them, are there.
    fn there(&self, paths: &[PathBuf]) -> Vec<bool> {
        paths.iter().map(|path| path.exists()).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let manifest = self.open().list("vm", &Context::silent()).unwrap().manifest;
        manifest.snapshots.iter().map(|s| self.repo().join("vm").join(&s.file)).collect()
    }

    fn check(&self, view: &SnapshotView, number: u64) {
        let mut buffer = Vec::new();
        let bytes = view.image_bytes() as usize;
        let window = view.read(0, bytes, &mut buffer).unwrap();
        assert!(window.bytes() == self.images[number as usize - 1], "{number}");
    }
}

/// Drops all but the newest, and merges.
fn prune(repository: &Repository) -> bool {
    let rules = Rules { last: Some(Count::Most(1)), ..Rules::default() };
    let request = PruneRequest::new().rules(Some(rules)).compact(true);
    repository.prune("vm", &request, &Context::silent()).unwrap().compaction.is_delayed
}

#[test]
fn what_a_view_reads_stays_while_everything_else_is_removed() {
    for held in 1..=3 {
        let lab = Lab::new();
        let files = lab.files();
        let view = lab.view(held);
        let guard = view.chain().guard().unwrap();
        assert_eq!((guard.image.as_str(), guard.sequence), ("vm", 5), "{guard:?}");
        assert_eq!(guard.files.len(), if held == 4 { 1 } else { held as usize });
        assert!(prune(&lab.open()), "{held}: some files are removed later");
        let is_held = |number: u64| number <= held || number == 4;
        assert_eq!(lab.there(&files), (1..=4).map(is_held).collect::<Vec<_>>(), "{held}");
        lab.check(&view, held);
        for label in ["a", "b", "c", "d"] {
            lab.open().label("vm", &At::Number(4), Some(label), &Context::silent()).unwrap();
        }
        let manifests = std::fs::read_dir(lab.repo().join("vm")).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("manifest.")
        });
        assert!(manifests.count() <= 2, "{held}: one that rules, and one before it");
        // A copy of its chain, and what goes through its tables, is enough.
        let (chain, walk) = (view.chain().clone(), view.chain().walk());
        drop(view);
        assert!(prune(&lab.open()));
        lab.check(&SnapshotView::new(chain), held);
        assert!(prune(&lab.open()), "{held}: a walk still goes through them");
        drop(walk);
        assert!(!prune(&lab.open()), "{held}");
        assert_eq!(lab.there(&files), [false, false, false, true], "{held}");
        lab.check(&lab.view(4), 4);
    }
}

/// J10 to J12: each commit names the one before it, what nobody names any more is condemned, and what is not
/// there any more is forgotten.
#[test]
fn what_is_dropped_is_condemned_until_it_is_gone() {
    let lab = Lab::new();
    let manifest = || lab.open().read("vm", &Context::silent()).unwrap().manifest().clone();
    let label = |label| {
        let before = manifest();
        let file = lab.repo().join(format!("vm/manifest.{:06}", before.sequence));
        let bytes = std::fs::read(file).unwrap();
        lab.open().label("vm", &At::Number(1), Some(label), &Context::silent()).unwrap();
        let after = manifest();
        assert_eq!(after.previous, Some(ManifestDigest::of(&bytes)));
        assert_eq!(after.ancestors.last().map(|a| (a.sequence, Some(a.commit))), {
            Some((before.sequence, before.commit))
        });
        after
    };
    let object = manifest().snapshots[3].file.clone();
    let view = lab.view(4);
    lab.open().delete("vm", &At::Number(4), true, &Context::silent()).unwrap();
    let sequence = manifest().sequence;
    let condemned = [Condemned { object, sequence }];
    assert_eq!(manifest().condemned, condemned);
    for still in ["a", "b"] {
        assert_eq!(label(still).condemned, condemned, "it is held");
    }
    drop(view);
    assert_eq!((label("c").condemned.len(), label("d").condemned.len()), (1, 0), "seen to be gone");
    assert_eq!((manifest().swept, lab.there(&lab.files())), (sequence, vec![true; 3]));
}

/// P6: another program holds a file back by the byte that FORMAT.md names.
#[test]
fn a_file_whose_byte_is_locked_is_not_removed() {
    use nix::fcntl::{FcntlArg, fcntl};
    let lab = Lab::new();
    let files = lab.files();
    let name = files[1].file_name().unwrap().to_str().unwrap();
    let lock_file = std::fs::File::open(lab.repo().join("vm/reap.lock")).unwrap();
    let lock = nix::libc::flock {
        l_type: nix::libc::F_RDLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: (xxhash_rust::xxh3::xxh3_64(name.as_bytes()) / 4) as i64,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&lock_file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    assert!(prune(&lab.open()));
    assert_eq!(lab.there(&files), [false, true, false, true]);
    drop(lock_file);
    assert!(!prune(&lab.open()));
    assert_eq!(lab.there(&files), [false, false, false, true]);
}

#[test]
fn an_image_is_not_removed_while_a_view_of_it_lives() {
    let lab = Lab::new();
    let view = lab.view(2);
    let remove = || lab.open().remove("vm", &Context::silent());
    assert_eq!(remove().unwrap_err().kind(), ErrorKind::Busy);
    lab.check(&view, 2);
    drop(view);
    remove().unwrap();
    assert!(!lab.repo().join("vm").exists());
}
