//! Every verb over many snapshots of one image, and over many images: how the time grows.
//!
//! ```text
//! cargo bench --manifest-path benches/Cargo.toml --bench many -- [SNAPSHOTS ...]     1000 3000 otherwise
//! ```
//!
//! The repository is in memory (`/dev/shm`) where there is one, each snapshot changes one block of an image of 64 KiB, every
//! 500th is a base (what the length of a chain costs is in docs/history.md), and each time is the least of three, in
//! milliseconds. *growth* is the exponent between the last two: 1 is in proportion.

use imgsnap::image::write::Stream;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::{
    At, Context, Defaults, DiffSide, ExportRequest, ParentChoice, PruneRequest, Reference,
    Repository, RestoreRequest, RestoreTarget, RollbackRequest, SnapshotRequest, VerifyScope,
};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const BLOCKS: u64 = 16;

/// So long is a chain at most.
const CHAIN: u64 = 500;

struct Lab {
    folder: tempfile::TempDir,
    context: Context,
    taken: u64,
}

impl Lab {
    fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(base).unwrap();
        Repository::init(folder.path().join("repo"), Defaults::default()).unwrap();
        std::fs::write(folder.path().join("vm.img"), vec![1; (BLOCKS << 12) as usize]).unwrap();
        Self { folder, context: Context::silent(), taken: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> Repository {
        Repository::open(self.path("repo")).unwrap()
    }

    fn take(&mut self) {
        self.taken += 1;
        let file = std::fs::OpenOptions::new().write(true).open(self.path("vm.img")).unwrap();
        let block = self.taken.to_le_bytes().repeat(512);
        file.write_all_at(&block, (self.taken % BLOCKS) << 12).unwrap();
        drop(file);
        self.snapshot("vm", self.taken.is_multiple_of(CHAIN));
    }

    fn snapshot(&self, name: &str, full: bool) {
        let request = SnapshotRequest::new(self.path("vm.img")).name(Some(name.into()));
        let parent = if full { ParentChoice::Full } else { ParentChoice::default() };
        let request = request.parent(parent);
        self.open().snapshot(&request, &self.context).unwrap();
    }

    /// Puts the repository back to what it was.
    fn keep(&self) {
        copy(&self.path("repo"), &self.path("kept"));
    }

    fn put_back(&self) {
        std::fs::remove_dir_all(self.path("repo")).unwrap();
        copy(&self.path("kept"), &self.path("repo"));
    }

    /// Each verb, and how long it takes.
    fn measure(&mut self) -> Vec<(&'static str, f64)> {
        let middle = At::Number(self.taken / 2);
        let mut times = Vec::new();
        self.keep();
        for (name, verb) in VERBS {
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let repository = self.open();
                let begun = Instant::now();
                verb(self, &repository, &middle);
                best = best.min(begun.elapsed().as_secs_f64() * 1e3);
                if name.ends_with('*') {
                    self.put_back();
                }
            }
            times.push((name, best));
        }
        std::fs::remove_dir_all(self.path("kept")).unwrap();
        times
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

type Measured = fn(&Lab, &Repository, &At);
type Whole = fn(&Lab, &Repository);

/// Those with a star change the repository, which is put back then.
const VERBS: [(&str, Measured); 17] = [
    ("list", |lab, repository, _| drop(repository.list("vm", &lab.context).unwrap())),
    ("stats", |lab, repository, _| drop(repository.stats("vm", &lab.context).unwrap())),
    ("verify", |lab, repository, _| verify(lab, repository, false)),
    ("verify --quick", |lab, repository, _| verify(lab, repository, true)),
    ("restore, the last", |lab, repository, _| restore(lab, repository, &At::Latest)),
    ("restore, the middle", restore),
    ("diff", |lab, repository, middle| {
        let side = |at: At| DiffSide::Snapshot(Reference { name: "vm".into(), at });
        let (from, to) = (side(middle.clone()), side(At::Latest));
        drop(repository.diff(&from, &to, &lab.context).unwrap());
    }),
    ("export", |lab, repository, middle| {
        let mut out = Vec::new();
        let request = ExportRequest::new("vm", middle.clone());
        let mut write = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        repository.export(&request, &lab.context, &mut write).unwrap();
    }),
    ("repair, nothing to do", |lab, repository, _| {
        drop(repository.repair("vm", &lab.context).unwrap())
    }),
    ("snapshot *", |lab, repository, _| {
        let request = SnapshotRequest::new(lab.path("vm.img")).full_scan(true);
        drop(repository.snapshot(&request, &lab.context).unwrap());
    }),
    ("label *", |lab, repository, middle| {
        drop(repository.label("vm", middle, Some("x"), &lab.context).unwrap())
    }),
    ("delete *", |lab, repository, middle| {
        drop(repository.delete("vm", middle, false, &lab.context).unwrap())
    }),
    ("delete --compact *", |lab, repository, middle| {
        drop(repository.delete("vm", middle, true, &lab.context).unwrap())
    }),
    ("flatten *", |lab, repository, middle| {
        drop(repository.flatten("vm", middle, &lab.context).unwrap())
    }),
    ("prune, half of them *", |lab, repository, middle| {
        let At::Number(half) = middle else { return };
        let rules = Rules { last: Some(Count::Most(*half)), ..Rules::default() };
        let request = PruneRequest::new().rules(Some(rules)).compact(true);
        drop(repository.prune("vm", &request, &lab.context).unwrap())
    }),
    ("repair, no manifest *", |lab, repository, _| {
        for entry in std::fs::read_dir(lab.path("repo/vm")).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("manifest.") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        drop(repository.repair("vm", &lab.context).unwrap())
    }),
    ("rollback, and back *", |lab, repository, middle| {
        for to in [middle.clone(), At::Latest] {
            let request = RollbackRequest::new("vm", to).save(false);
            drop(repository.rollback(&request, &lab.context).unwrap());
        }
    }),
];

fn verify(lab: &Lab, repository: &Repository, quick: bool) {
    let verified = repository.verify(&VerifyScope::All, quick, &lab.context).unwrap();
    assert!(verified.damaged.is_empty());
}

fn restore(lab: &Lab, repository: &Repository, at: &At) {
    let mut bytes = Vec::new();
    let mut stream = Stream::new(&mut bytes, "memory");
    let request = RestoreRequest::new("vm").at(at.clone());
    repository.restore(&request, RestoreTarget::Target(&mut stream), &lab.context).unwrap();
}

fn table(what: &str, counts: &[u64], columns: &[Vec<(&'static str, f64)>]) {
    let head: String = counts.iter().map(|count| format!("{count:>10}")).collect();
    println!("{what:24}{head}    growth");
    for (row, (name, _)) in columns[0].iter().enumerate() {
        let times: Vec<f64> = columns.iter().map(|column| column[row].1).collect();
        let cells: String = times.iter().map(|time| format!("{time:>10.1}")).collect();
        let growth = match (&times[..], counts) {
            ([.., before, last], [.., few, many]) => {
                format!("{:>10.2}", (last / before).ln() / (*many as f64 / *few as f64).ln())
            }
            _ => String::new(),
        };
        println!("{name:24}{cells}{growth}");
    }
}

fn main() {
    let given = std::env::args().skip(1).filter_map(|count| count.parse().ok());
    let mut counts: Vec<u64> = given.collect();
    if counts.is_empty() {
        counts = vec![1000, 3000];
    }
    let mut lab = Lab::new();
    let columns: Vec<_> = counts
        .iter()
        .map(|count| {
            (lab.taken..*count).for_each(|_| lab.take());
            lab.measure()
        })
        .collect();
    table("snapshots of one image", &counts, &columns);
    let (counts, mut columns) = ([100, 1000], Vec::new());
    let lab = Lab::new();
    let mut taken = 0;
    for count in counts {
        (taken..count).for_each(|number| lab.snapshot(&format!("vm{number}"), false));
        taken = count;
        let verbs: [(&str, Whole); 4] = [
            ("names", |_, repository| drop(repository.names().unwrap())),
            ("image_named, the file", |lab, repository| {
                drop(repository.name_of_source(lab.path("vm.img"), &lab.context))
            }),
            ("verify --quick, all", |lab, repository| verify(lab, repository, true)),
            ("snapshot of one", |lab, _| lab.snapshot("vm7", false)),
        ];
        columns.push(
            verbs
                .map(|(name, verb)| {
                    let times = [(); 3].map(|()| {
                        let (repository, begun) = (lab.open(), Instant::now());
                        verb(&lab, &repository);
                        begun.elapsed().as_secs_f64() * 1e3
                    });
                    (name, times.into_iter().fold(f64::INFINITY, f64::min))
                })
                .to_vec(),
        );
    }
    println!();
    table("images", &counts, &columns);
}
