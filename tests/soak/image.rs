//! A live image: a file, and what should be in it.

use crate::random::Random;
use crate::state::{State, some_bytes};
use crate::world::World;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

pub struct Image {
    pub name: String,
    /// A folder of its own: the image, and `.imgsnap` with its clones.
    pub folder: PathBuf,
    pub path: PathBuf,
    pub state: State,
}

impl Image {
    pub fn new(world: &World, name: &str, random: &mut Random) -> Self {
        let folder = world.place.join(name);
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join(format!("{name}.img"));
        let bytes = some_length(random);
        let mut image =
            Self { name: name.into(), folder, path: path.clone(), state: State::zeros(bytes) };
        {
            let _calm = world.no_fork();
            File::create(&path).unwrap().set_len(bytes).unwrap();
        }
        for _ in 0..4 {
            image.change(world, random);
        }
        image
    }

    pub fn path(&self) -> String {
        self.path.to_str().unwrap().into()
    }

    /// Does to the image what a guest does, or its owner.
    pub fn change(&mut self, world: &World, random: &mut Random) {
        let _turn = world.turn();
        let _calm = world.no_fork();
        let file = File::options().read(true).write(true).open(&self.path).unwrap();
        for _ in 0..1 + random.below(6) {
            self.change_once(&file, random);
        }
        if random.below(4) == 0 {
            file.sync_all().unwrap();
        }
    }

    fn change_once(&mut self, file: &File, random: &mut Random) {
        let all = self.state.bytes;
        let at = random.below(all);
        let most = [600, 70_000, 1 << 20][random.below(3) as usize];
        let bytes = 1 + random.below((all - at).min(most));
        match random.below(20) {
            0..9 => self.put(file, at, &some_bytes(random, bytes)),
            9..11 => self.put(file, at, &vec![0; usize::try_from(bytes).unwrap()]),
            11..14 => {
                let mode =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(file, mode, at as i64, bytes as i64).unwrap();
                self.state.write(at, &vec![0; usize::try_from(bytes).unwrap()]);
            }
            14..17 => {
                // What is elsewhere, too.
                let from = random.below(all);
                let copy = self.state.read(from, bytes.min(all - from));
                self.put(file, at, &copy[..copy.len().min((all - at) as usize)]);
            }
            17 => self.resize(file, some_length(random)),
            18 => self.resize(file, (all + random.below(200_000)).min(64 << 20)),
            _ => self.resize(file, (all - random.below(all.min(200_000))).max(1)),
        }
    }

    fn put(&mut self, file: &File, at: u64, bytes: &[u8]) {
        file.write_all_at(bytes, at).unwrap();
        self.state.write(at, bytes);
    }

    fn resize(&mut self, file: &File, bytes: u64) {
        file.set_len(bytes).unwrap();
        self.state.resize(bytes);
    }

    /// Makes the file anew.
    pub fn replace(&mut self, world: &World, state: &State) {
        let _turn = world.turn();
        let _calm = world.no_fork();
        state.make(&File::options().write(true).open(&self.path).unwrap());
        self.state = state.clone();
    }

    /// How the file differs from what it should be, if it does.
    pub fn difference_to(&self, world: &World, state: &State) -> Option<String> {
        let _calm = world.no_fork();
        state.first_difference(&mut File::open(&self.path).unwrap())
    }

    #[track_caller]
    pub fn is_as_it_was(&self, world: &World) {
        let difference = self.difference_to(world, &self.state);
        assert_eq!(difference, None, "the live image {} was changed", self.name);
    }
}

/// From a few bytes to 64 MiB, most of them small.
fn some_length(random: &mut Random) -> u64 {
    match random.below(20) {
        0..3 => 1 + random.below(20_000),
        3..12 => 1 + random.below(2 << 20),
        12..18 => (1 << 20) + random.below(7 << 20),
        18 => (1 + random.below(8)) << 20,
        _ => (8 << 20) + random.below(56 << 20),
    }
}
