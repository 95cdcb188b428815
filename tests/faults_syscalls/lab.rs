//! A folder to work in, of which each try gets a copy at the same place: manifests name the image by its
//! path.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use tempfile::TempDir;

/// Held for reading while this process holds an image, for writing while it starts another one: a child has
/// all our descriptors until it becomes another program, and would look as if it used the image. What is
/// closed before a verb is started is closed in the children of others as well by then.
static FORKS: RwLock<()> = RwLock::new(());

pub fn no_fork() -> RwLockReadGuard<'static, ()> {
    FORKS.read().unwrap_or_else(PoisonError::into_inner)
}

pub fn spawn(command: &mut Command) -> Child {
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

/// A folder in memory, where that is to be had.
pub fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if tempfile::tempfile_in(&memory).is_ok() { memory } else { std::env::temp_dir() }
}

/// Two folders: `saved`, which stays, and `run`, in which verbs run.
pub struct Lab {
    _removed_at_the_end: Option<TempDir>,
    folder: PathBuf,
}

impl Lab {
    pub fn in_memory() -> Self {
        Self::below(&memory())
    }

    /// On a disk, whose file system keeps times that are believed.
    pub fn on_disk() -> Self {
        Self::below(&std::env::temp_dir())
    }

    pub fn below(folder: &Path) -> Self {
        let made = tempfile::Builder::new().prefix("imgsnap-faults-").tempdir_in(folder).unwrap();
        let lab = Self { folder: made.path().to_owned(), _removed_at_the_end: Some(made) };
        lab.clear();
        lab
    }

    pub fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.run().join(name)
    }

    /// Where nothing is copied from or judged.
    pub fn aside(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn clear(&self) {
        std::fs::remove_dir_all(self.run()).ok();
        std::fs::create_dir(self.run()).unwrap();
    }

    /// What `run` holds is what each try begins with.
    pub fn save_as(&self, name: &str) {
        std::fs::remove_dir_all(self.aside(name)).ok();
        copy(&self.run(), &self.aside(name));
    }

    pub fn begin_with(&self, name: &str) {
        std::fs::remove_dir_all(self.run()).unwrap();
        std::fs::create_dir(self.run()).unwrap();
        for entry in std::fs::read_dir(self.aside(name)).unwrap().map(Result::unwrap) {
            self.take_image(&entry.file_name().into_string().unwrap());
        }
        copy(&self.aside(name), &self.run());
    }

    /// An image is the same file in each try, as a manifest knows it: it has another name aside.
    fn take_image(&self, name: &str) {
        if name.ends_with(".img") {
            let kept = self.aside(&format!("kept-{name}"));
            if !kept.exists() {
                File::create(&kept).unwrap();
            }
            std::fs::hard_link(&kept, self.path(name)).unwrap();
            File::options().write(true).open(&kept).unwrap().set_len(0).unwrap();
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.aside(name).exists()
    }

    /// Writes a file, sparse where it is zero.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        if !self.path(name).exists() {
            self.take_image(name);
        }
        write(&self.path(name), bytes);
    }

    /// The binary, in `run`, with its threads one after the other as far as that goes.
    pub fn command(&self, program: Option<Command>, args: &str) -> Command {
        let binary = env!("CARGO_BIN_EXE_imgsnap");
        let mut command = program.map_or_else(
            || Command::new(binary),
            |mut outer| {
                outer.arg(binary);
                outer
            },
        );
        command.args(args.split(' ')).args(["--threads", "1"]).current_dir(self.run());
        command
            .env("IMGSNAP_REPO", self.path("repo"))
            .env("HOME", self.path("home"))
            .env("IMGSNAP_STATE", self.path("state"))
            .env("TZ", "UTC");
        command.env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end, which must be a good one.
    #[track_caller]
    pub fn done(&self, args: &str) {
        let output = spawn(&mut self.command(None, args)).wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "imgsnap {args}: {}: {err}", output.status);
    }
}

fn write(path: &Path, bytes: &[u8]) {
    const PIECE: usize = 1 << 16;
    let mut file = File::options().write(true).create(true).truncate(false).open(path).unwrap();
    if bytes.len() <= PIECE * 4 {
        file.write_all(bytes).unwrap();
    }
    file.set_len(bytes.len() as u64).unwrap();
    if bytes.len() > PIECE * 4 {
        for (index, piece) in bytes.chunks(PIECE).enumerate() {
            if piece.iter().any(|&byte| byte != 0) {
                file.write_all_at(piece, (index * PIECE) as u64).unwrap();
            }
        }
    }
}

/// But for clones: a copy of one is none.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_name() == ".imgsnap" {
            continue;
        }
        let (kind, to) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &to);
        } else {
            let bytes = std::fs::read(entry.path()).unwrap();
            write(&to, &bytes);
        }
    }
}
