//! The verbs, each with the folder that it begins with. Not among them: `watch`, which does not end (each
//! of its turns is `snapshot` and `prune`), `bench`, which works in a folder of its own, `man` and
//! `completions`.

use crate::inside::{Inside, is_sealed, opened};
use crate::lab::Lab;
use crate::random::Random;
use imgsnap::base::events::Context;
use imgsnap::repo::host::HostState;
use imgsnap::repo::manifest::{self, Rollback};
use imgsnap::store::store_at;
use imgsnap::{At, Repository};
use std::process::{Command, Stdio};

/// Where the folder of a verb lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Memory,
    /// The times of files are believed.
    Disk,
    /// XFS: images are tracked by clones.
    Xfs,
}

/// What stdout gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdout {
    Text,
    /// An image, from its beginning on.
    Image,
    /// A delta file.
    Delta,
}

#[derive(Clone)]
pub struct Verb {
    pub args: &'static str,
    pub place: Place,
    pub scene: (&'static str, fn(&Lab)),
    /// What is done once to the scene.
    pub prepare: fn(&Lab),
    /// What is done before each try, because a copy of a file is another file.
    pub ready: fn(&Lab),
    /// The image that it writes where it lies.
    pub target: Option<&'static str>,
    pub stdin: Option<&'static str>,
    pub stdout: Stdout,
}

impl Verb {
    fn new(args: &'static str) -> Self {
        Self {
            args,
            place: Place::Memory,
            scene: ("history", history),
            prepare: |_| {},
            ready: |_| {},
            target: None,
            stdin: None,
            stdout: Stdout::Text,
        }
    }

    fn prepared(self, prepare: fn(&Lab)) -> Self {
        Self { prepare, ..self }
    }

    fn onto(self, target: &'static str) -> Self {
        Self { target: Some(target), ..self }
    }

    fn giving(self, stdout: Stdout) -> Self {
        Self { stdout, ..self }
    }

    fn at(self, place: Place, ready: fn(&Lab)) -> Self {
        Self { place, ready, ..self }
    }

    fn long(self) -> Self {
        Self { scene: ("long", long), ..self }
    }

    /// By another program, if one is given.
    pub fn command(&self, lab: &Lab, by: Option<Command>) -> Command {
        let mut command = lab.command(by, self.args);
        if let Some(name) = self.stdin {
            command.stdin(Stdio::from(std::fs::File::open(lab.path(name)).unwrap()));
        }
        command
    }

    /// Puts what it begins with into `run`.
    pub fn begin(&self, lab: &Lab) {
        lab.begin_with("saved");
        (self.ready)(lab);
    }

    /// Makes what it begins with.
    pub fn save(&self, lab: &Lab) {
        let (name, make) = self.scene;
        if lab.has(name) {
            lab.begin_with(name);
        } else {
            lab.clear();
            make(lab);
            lab.save_as(name);
        }
        (self.prepare)(lab);
        lab.save_as("saved");
    }

    /// A second run may take one more snapshot of what the image is, or was before it was rolled back: that
    /// this was saved may not have been noted any more.
    pub fn adds(&self) -> bool {
        self.args.contains("snapshot ") || self.args.contains("rollback ")
    }
}

const IMAGE_BYTES: usize = 70_000;

fn text(seed: u64, bytes: usize) -> Vec<u8> {
    Random(seed).bytes(bytes).into_iter().map(|b| b"etaoin shrdlu\n"[usize::from(b) % 14]).collect()
}

/// An image after some days.
fn state(day: usize) -> Vec<u8> {
    let mut image = text(1, IMAGE_BYTES);
    for change in 1..day {
        image[change * 9000..][..5000].copy_from_slice(&text(50 + change as u64, 5000));
    }
    image.truncate(IMAGE_BYTES - day * 1000);
    image
}

/// An image with three snapshots that has changed since, and another one with one.
fn history(lab: &Lab) {
    lab.done("init");
    for day in 1..=3 {
        lab.write("vm.img", &state(day));
        lab.done("snapshot vm.img");
    }
    lab.done("label vm@2 two");
    lab.write("web.img", &text(7, 20_000));
    lab.done("snapshot web.img");
    lab.done("export vm@1 -o full.delta");
    lab.done("export vm@2 --since @1 -o day.delta");
    lab.write("vm.img", &state(4));
    lab.write("web.img", &text(8, 20_000));
    for name in ["state1.img", "target.img"] {
        lab.write(name, &state(1));
    }
}

/// One whose files are so long that they are written by a thread of their own, and go to the device while
/// more is made.
fn long(lab: &Lab) {
    const BYTES: usize = 9 << 20;
    let mut image = vec![0; BYTES];
    image[..2_500_000].copy_from_slice(&Random(5).bytes(2_500_000));
    image[5 << 20..][..70_000].copy_from_slice(&text(6, 70_000));
    lab.write("long.img", &image);
    lab.done("snapshot long.img");
    image[1 << 20..][..1_100_000].copy_from_slice(&Random(9).bytes(1_100_000));
    image[8 << 20..][..9000].copy_from_slice(&text(9, 9000));
    lab.write("long.img", &image);
}

fn with_base_image(lab: &Lab) {
    lab.write("template.img", &state(1));
    lab.write("clone.img", &state(2));
    lab.done("snapshot clone.img --base-image template.img");
    lab.write("clone.img", &state(3));
}

fn with_base_image_copied(lab: &Lab) {
    with_base_image(lab);
    lab.write("template2.img", &state(1));
}

/// This host knows what the target is.
fn restored(lab: &Lab) {
    lab.done("restore vm@1 -o target.img --force");
}

/// A copy of the image lies beside it.
fn copied(lab: &Lab) {
    lab.write("copy.img", &std::fs::read(lab.path("long.img")).unwrap());
}

/// The image as its newest snapshot has it.
fn unchanged(lab: &Lab) {
    lab.write("vm.img", &state(3));
}

/// Two snapshots rest on the second one.
fn forked(lab: &Lab) {
    lab.write("vm.img", &state(5));
    lab.done("snapshot vm.img --parent @2");
    lab.write("vm.img", &state(6));
    lab.done("snapshot vm.img");
}

/// The newest is a base in parts, and then one cell of it changed, and both.
fn in_parts(lab: &Lab) {
    lab.write("vm.img", &text(21, IMAGE_BYTES));
    lab.done("snapshot vm.img --full --part-size 64K");
    let mut image = text(21, IMAGE_BYTES);
    image[..5000].fill(7);
    lab.write("vm.img", &image);
    lab.done("snapshot vm.img");
    image[3000..68_000].copy_from_slice(&text(22, 65_000));
    lab.write("vm.img", &image);
}

fn in_parts_without_manifests(lab: &Lab) {
    in_parts(lab);
    without_manifests(lab);
}

/// Workers are to make a base.
fn planned(lab: &Lab) {
    lab.done("plan vm.img --full --part-size 64K --source-held nobody");
}

/// They have.
fn made(lab: &Lab) {
    planned(lab);
    lab.done("part latest 1");
    lab.done("part latest 2");
}

/// Workers are to restore a snapshot.
fn to_restore(lab: &Lab) {
    lab.done("plan --restore vm@3 -o out.img --part-size 64K");
}

/// They have.
fn ranges_restored(lab: &Lab) {
    to_restore(lab);
    lab.done("part latest 1");
    lab.done("part latest 2");
}

/// Workers are to verify what is stored.
fn to_verify(lab: &Lab) {
    lab.done("plan --verify");
}

/// They have.
fn files_verified(lab: &Lab) {
    to_verify(lab);
    lab.done("part latest 1");
}

/// The newest of both are a group, and one has changed since.
fn grouped(lab: &Lab) {
    lab.done("snapshot vm.img web.img --group night");
    lab.write("vm.img", &state(5));
}

fn interrupted(lab: &Lab) {
    let mut mixture = state(1);
    mixture[20_000..40_000].copy_from_slice(&state(4)[20_000..40_000]);
    lab.write("vm.img", &mixture);
    let store = opened(store_at(&lab.path("repo")).unwrap()).unwrap();
    let host = HostState::in_folder(&lab.path("state"));
    let repository = Repository::open_in(store.clone(), host.clone()).unwrap();
    let reader = repository.read("vm", &Context::silent()).unwrap();
    let id = |number| reader.find(&At::Number(number)).unwrap().id;
    let host = host.host().clone();
    let rollback = Rollback { id: None, host, target: id(1), saved: Some(id(3)), live: None };
    let mut next = reader.manifest().clone();
    next.rollback = Some(rollback);
    manifest::commit(store.as_ref(), &mut next).unwrap();
}

fn without_manifests(lab: &Lab) {
    let folder = Inside::of(&lab.path("repo")).folder("vm");
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_name().to_str().unwrap().starts_with("manifest.") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// The configuration is `repository.toml` alone.
fn of_an_older_program(lab: &Lab) {
    let object = lab.path("repo/config.000001");
    let text = std::fs::read_to_string(&object).unwrap();
    let text = format!("version = 1\n{}", text.split_once('\n').unwrap().1);
    std::fs::write(lab.path("repo/repository.toml"), text).unwrap();
    std::fs::remove_file(object).unwrap();
}

/// The same, taken over by somebody who was killed before the marker was written.
fn half_taken_over(lab: &Lab) {
    let object = std::fs::read(lab.path("repo/config.000001")).unwrap();
    of_an_older_program(lab);
    std::fs::write(lab.path("repo/config.000001"), object).unwrap();
}

fn damaged_manifest(lab: &Lab) {
    let folder = Inside::of(&lab.path("repo")).folder("vm");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let newest = entries.filter(|p| p.to_str().unwrap().contains("/manifest.")).max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    bytes[200] ^= 1;
    std::fs::write(newest, bytes).unwrap();
}

/// With a second key.
fn with_keys(lab: &Lab) {
    lab.write("second", &[7; 32]);
    lab.done("key add --new-key-file second");
    lab.write("third", &[8; 32]);
}

/// The newest snapshot is known again to be what the image is.
fn known(lab: &Lab) {
    lab.done("snapshot vm.img --skip-unchanged --full-scan --track none");
}

/// The clone of the newest snapshot lies beside the image, which changes then.
fn tracked(lab: &Lab) {
    unchanged(lab);
    lab.done("snapshot vm.img --track reflink");
    lab.write("vm.img", &state(4));
}

/// All of them.
pub fn all() -> Vec<Verb> {
    let base_image_copied = |lab: &Lab| {
        with_base_image(lab);
        lab.write("moved.img", &state(1));
    };
    let list = |lab: &Lab| {
        std::fs::write(lab.path("list"), "0 70000\n").unwrap();
    };
    let mut verbs = vec![
        Verb::new("prune vm --keep-last 2 --compact").prepared(forked),
        Verb::new("prune --all --keep-last 1 --compact"),
        Verb::new("prune vm --keep-last 1"),
        Verb::new("delete vm@2 --compact"),
        Verb::new("delete vm@1 --compact"),
        Verb::new("delete vm@3"),
        Verb::new("delete vm@4").prepared(grouped),
        Verb::new("prune --all --keep-daily 1 --compact").prepared(grouped),
        Verb::new("flatten vm@3"),
        Verb::new("flatten clone@2").prepared(with_base_image),
        Verb::new("rollback vm --to @1").onto("vm.img"),
        Verb::new("rollback vm --to @1 --no-save").onto("vm.img"),
        Verb::new("rollback vm --to @2 --prove").onto("vm.img"),
        Verb::new("rollback vm --to @1").prepared(interrupted).onto("vm.img"),
        Verb::new("rollback clone --to @1").prepared(with_base_image).onto("clone.img"),
        Verb::new("rollback vm --to @1").prepared(unchanged).at(Place::Disk, known).onto("vm.img"),
        Verb::new("rollback vm --to @4").prepared(grouped).onto("vm.img"),
        Verb::new("rollback vm --to @1 --dry-run"),
        Verb::new("--repo fresh snapshot vm.img"),
        Verb::new("snapshot vm.img"),
        Verb::new("snapshot vm.img --full --label day4"),
        Verb::new("snapshot vm.img --full --part-size 64K"),
        Verb::new("snapshot vm.img").prepared(in_parts),
        Verb::new("prune vm --keep-last 1 --compact").prepared(in_parts),
        Verb::new("flatten vm@5").prepared(in_parts),
        Verb::new("rollback vm --to @4").prepared(in_parts).onto("vm.img"),
        Verb::new("restore vm@5 -o out.img").prepared(in_parts),
        Verb::new("export vm@5 -o out.delta").prepared(in_parts),
        Verb::new("repair vm").prepared(in_parts_without_manifests),
        Verb::new("plan vm.img --full --part-size 64K --source-held nobody"),
        Verb::new("part latest 1").at(Place::Memory, planned),
        Verb::new("join latest").at(Place::Memory, made),
        Verb::new("plan drop latest").at(Place::Memory, made),
        Verb::new("plan --restore vm@3 -o out.img --part-size 64K"),
        Verb::new("part latest 2").at(Place::Memory, to_restore),
        Verb::new("join latest").at(Place::Memory, ranges_restored),
        Verb::new("plan drop latest").at(Place::Memory, ranges_restored),
        Verb::new("plan --verify"),
        Verb::new("part latest 1").at(Place::Memory, to_verify),
        Verb::new("join latest").at(Place::Memory, files_verified),
        Verb::new("snapshot vm.img --differential --compression zstd:3"),
        Verb::new("snapshot vm.img --skip-unchanged"),
        Verb::new("snapshot vm.img --skip-unchanged").prepared(unchanged),
        Verb::new("snapshot vm.img --skip-unchanged").prepared(unchanged).at(Place::Disk, known),
        Verb::new("snapshot vm.img").prepared(unchanged).at(Place::Disk, known),
        Verb::new("snapshot vm.img --changed list --since @3 --recheck 0").prepared(list),
        Verb::new("snapshot vm.img --dry-run"),
        Verb::new("snapshot vm.img web.img"),
        Verb::new("snapshot vm.img web.img --group night"),
        Verb::new("snapshot clone.img --base-image template.img --full").prepared(with_base_image),
        Verb::new("snapshot clone.img").prepared(with_base_image),
        Verb::new("restore vm@3 -o out.img"),
        Verb::new("restore vm@3 -o target.img --force"),
        Verb::new("restore clone@2 -o out.img").prepared(with_base_image),
        Verb::new("restore vm@3 --range 4K+40K -o part"),
        Verb::new("restore vm@3 -o -").giving(Stdout::Image),
        Verb::new("restore vm@3 -o out.img --seed state1.img"),
        Verb::new("restore vm@3 -o target.img --update").onto("target.img"),
        Verb::new("restore clone@2 -o template2.img --update --seed vm.img")
            .prepared(with_base_image_copied)
            .onto("template2.img"),
        Verb::new("restore vm@3 -o target.img --update --trust-target")
            .at(Place::Disk, restored)
            .onto("target.img"),
        Verb::new("export vm@3 -o out.delta"),
        Verb::new("export vm@3 --since @1 -o out.delta"),
        Verb::new("export vm@2 --since @1 -o -").giving(Stdout::Delta),
        Verb::new("--repo other import full.delta day.delta --name vm"),
        Verb { stdin: Some("full.delta"), ..Verb::new("--repo other import - --name vm") },
        Verb::new("apply day.delta --base state1.img -o out.img"),
        Verb::new("apply day.delta --base target.img --in-place").onto("target.img"),
        Verb::new("apply full.delta -o -").giving(Stdout::Image),
        Verb::new("repair vm").prepared(without_manifests),
        Verb::new("repair").prepared(damaged_manifest),
        Verb::new("relink vm moved.img").prepared(base_image_copied),
        Verb::new("relink clone --base-image moved.img").prepared(base_image_copied),
        Verb::new("label vm@3 gold"),
        Verb::new("protect vm@4").prepared(grouped),
        Verb::new("remove web -y"),
        Verb::new("untrack vm"),
        Verb::new("--repo fresh init"),
        Verb::new("config set prune.keep_last 2"),
        Verb::new("diff vm@1 vm@3"),
        Verb::new("diff vm@2 vm.img"),
        Verb::new("verify"),
        Verb::new("verify --quick"),
        Verb::new("stats"),
        Verb::new("stats vm"),
        Verb::new("list"),
        Verb::new("show vm@2"),
        Verb::new("rollback long --to @1").long().onto("long.img"),
        Verb::new("restore long@1 -o out.img").long(),
        Verb::new("restore long@1 -o copy.img --update").long().prepared(copied).onto("copy.img"),
        Verb::new("snapshot long.img").long(),
        Verb::new("--repo fresh snapshot long.img").long(),
    ];
    verbs.extend(match is_sealed() {
        true => vec![Verb::new("key add --new-key-file third").prepared(with_keys)],
        // What an older program wrote is not encrypted.
        false => vec![
            Verb::new("config set prune.keep_last 2").prepared(of_an_older_program),
            Verb::new("repair web").prepared(half_taken_over),
        ],
    });
    verbs
}

/// Those that work with clones.
pub fn tracked_ones() -> Vec<Verb> {
    let of = |args| Verb::new(args).prepared(unchanged).at(Place::Xfs, tracked);
    vec![
        of("snapshot vm.img --track reflink"),
        of("snapshot vm.img --track reflink --skip-unchanged"),
        of("rollback vm --to @1").onto("vm.img"),
        of("rollback vm --to @1 --no-save").onto("vm.img"),
        of("prune vm --keep-last 1 --compact"),
        of("delete vm@4"),
        of("remove vm -y"),
        of("untrack vm"),
        of("restore vm@3 -o vm.img --force"),
    ]
}
