//! What the workers share: the folder, the repository, the log, what is counted, and what each may know
//! of the images of the others.

use crate::fault::Tools;
use crate::inside::Inside;
use crate::state::{COMPARED, State};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// What takes that long hangs.
const HANGS: Duration = Duration::from_secs(120);
/// Commands that are told when something is wrong.
const TOLD: usize = 40;
/// Bytes of the file system on which all of it happens.
const DISK_BYTES: u64 = 3 << 30;

pub struct World {
    /// Of images, repository and what is restored.
    pub place: PathBuf,
    pub repo: PathBuf,
    pub inside: Inside,
    pub tools: Tools,
    /// Files can be cloned there.
    pub has_clones: bool,
    pub stop: Arc<AtomicBool>,
    mount: Option<Mount>,
    /// Held for writing by whoever must be alone, for reading by everybody else.
    calm: RwLock<()>,
    /// Held for writing while a process is started: until it is another program it has all our files, as
    /// if somebody used the image.
    forks: RwLock<()>,
    public: Mutex<BTreeMap<String, Public>>,
    counts: Mutex<BTreeMap<String, u64>>,
    log: Mutex<Log>,
    /// Process groups, and since when.
    running: Mutex<BTreeMap<i32, Instant>>,
}

/// What others may know of an image.
#[derive(Clone, Default)]
pub struct Public {
    pub known: BTreeMap<u64, Arc<State>>,
    /// Perhaps gone already.
    pub leaving: BTreeSet<u64>,
    /// One more each time it is removed: then numbers are used again.
    pub generation: u64,
    /// One more when something of it is damaged, and when that was put right: odd in between.
    pub damages: u64,
    /// It is perhaps not there.
    pub is_vague: bool,
}

struct Log {
    file: File,
    last: VecDeque<String>,
    sequence: u64,
}

struct Mount {
    at: PathBuf,
}

impl Drop for Mount {
    fn drop(&mut self) {
        for args in [[].as_slice(), &["-l"]] {
            let done = Command::new("umount").args(args).arg(&self.at).output();
            if done.is_ok_and(|done| done.status.success()) {
                return;
            }
        }
    }
}

impl World {
    pub fn new(folder: &Path, filesystem: &str, seed: u64, stop: Arc<AtomicBool>) -> Self {
        let mount = mount(folder, filesystem);
        if let Err(reason) = &mount {
            println!("soak: no file system of its own: {reason}");
        }
        let mount = mount.ok();
        let place = mount.as_ref().map_or(folder.to_owned(), |mount| mount.at.clone());
        let has_clones = mount.is_some() && ["xfs", "btrfs"].contains(&filesystem);
        let tools = Tools::find();
        let is_here = |is: bool| if is { "" } else { "no " };
        println!("soak: {}strace, {}prlimit", is_here(tools.strace), is_here(tools.prlimit));
        let mut file = File::create(folder.join("soak.log")).unwrap();
        writeln!(file, "seed {seed}").unwrap();
        let repo = place.join("repo");
        let program = Path::new(env!("CARGO_BIN_EXE_imgsnap"));
        let made = Command::new(program)
            .args(["init", "--part-size", "256K"])
            .env("IMGSNAP_REPO", &repo)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Self {
            place,
            inside: Inside::of(&repo),
            repo,
            tools,
            has_clones,
            stop,
            mount,
            calm: RwLock::default(),
            forks: RwLock::default(),
            public: Mutex::default(),
            counts: Mutex::default(),
            log: Mutex::new(Log { file, last: VecDeque::new(), sequence: 0 }),
            running: Mutex::default(),
        }
    }

    pub fn is_mounted(&self) -> bool {
        self.mount.is_some()
    }

    /// Others may work, too.
    pub fn turn(&self) -> RwLockReadGuard<'_, ()> {
        self.calm.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody else runs a command, or changes an image.
    pub fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.calm.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a file of the test's own: not while somebody fills the disk.
    pub fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let _beside_others = self.calm.read().unwrap_or_else(PoisonError::into_inner);
        std::fs::write(path, bytes).unwrap();
    }

    pub fn no_fork(&self) -> RwLockReadGuard<'_, ()> {
        self.forks.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forking(&self) -> RwLockWriteGuard<'_, ()> {
        self.forks.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, what: &str, times: u64) {
        *lock(&self.counts).entry(what.to_owned()).or_default() += times;
    }

    pub fn begins(&self, group: i32) {
        lock(&self.running).insert(group, Instant::now());
    }

    /// False if it was ended because it took too long.
    pub fn ends(&self, group: i32) -> bool {
        lock(&self.running).remove(&group).is_some()
    }

    /// Ends what hangs, until it is told to end itself.
    pub fn watch(&self, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(200));
            lock(&self.running).retain(|group, since| {
                let is_late = since.elapsed() > HANGS;
                if is_late {
                    let group = nix::unistd::Pid::from_raw(*group);
                    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).ok();
                }
                !is_late
            });
        }
    }

    /// Notes a line, with its number.
    pub fn note(&self, line: &str) {
        let mut log = lock(&self.log);
        log.sequence += 1;
        let line = format!("{:06} {line}", log.sequence);
        writeln!(log.file, "{line}").unwrap();
        log.last.push_back(line);
        if log.last.len() > TOLD {
            log.last.pop_front();
        }
    }

    pub fn last_commands(&self) -> String {
        let log = lock(&self.log);
        let lines: Vec<&str> = log.last.iter().map(String::as_str).collect();
        format!("the last commands:\n{}", lines.join("\n"))
    }

    pub fn summary(&self) -> String {
        let mut text = String::new();
        let mut kind = "";
        let counts = lock(&self.counts);
        for (what, times) in counts.iter() {
            let (group, name) = what.split_once(' ').unwrap();
            if group != kind {
                let all = counts.iter().filter(|(w, _)| w.starts_with(&format!("{group} ")));
                let sum: u64 = all.map(|(_, times)| times).sum();
                text.push_str(&format!("\n{group} ({sum}):"));
            }
            kind = group;
            text.push_str(&format!(" {name} {times},"));
        }
        let compared = COMPARED.load(Ordering::Relaxed);
        format!(
            "{}\ncompared: {compared} bytes",
            text.replace(",\n", "\n").trim_matches([',', '\n'])
        )
    }

    /// What is left that nobody needs, when all are done.
    pub fn left_over(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        let mut folders = vec![self.place.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_folder = entry.file_type().unwrap().is_dir();
                match (is_folder, name.as_str()) {
                    (true, _) => folders.push(entry.path()),
                    // It stays (FORMAT.md P11); and these for some minutes, since anybody may be at them.
                    (_, ".reserve") => {}
                    _ if entry.path().parent().is_some_and(|above| above.ends_with("places")) => {}
                    _ if name.contains(".restored.") || name.contains(".seen.") => {}
                    _ if name.ends_with(".tmp") || name.starts_with('.') => left.push(entry.path()),
                    _ => {}
                }
            }
        }
        left
    }

    /// Changes what others may know of an image.
    pub fn tell(&self, name: &str, change: impl FnOnce(&mut Public)) {
        change(lock(&self.public).entry(name.into()).or_default());
    }

    pub fn public(&self) -> BTreeMap<String, Public> {
        lock(&self.public).clone()
    }

    /// Takes all the room but so many bytes, while nobody else works.
    pub fn fill(&self, left: u64) -> Filler {
        let path = self.place.join("filler");
        let file = File::create(&path).unwrap();
        let stat = nix::sys::statvfs::statvfs(&self.place).unwrap();
        let free = stat.blocks_available() * stat.fragment_size();
        let none = nix::fcntl::FallocateFlags::empty();
        // What cannot be had at once, in halves.
        let (mut at, mut piece) = (0, free.saturating_sub(left));
        while piece >= 4096 {
            match nix::fcntl::fallocate(&file, none, at as i64, piece as i64) {
                Ok(()) => (at, piece) = (at + piece, 0),
                Err(_) => piece /= 2,
            }
        }
        Filler(path)
    }
}

pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        // XFS frees what is unlinked later, and what is cut off at once.
        File::options().write(true).open(&self.0).unwrap().set_len(0).unwrap();
        std::fs::remove_file(&self.0).unwrap();
    }
}

pub fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mount(folder: &Path, filesystem: &str) -> Result<Mount, String> {
    let mkfs: (&str, &[&str]) = match filesystem {
        "xfs" => ("mkfs.xfs", &["-q", "-m", "reflink=1"]),
        "btrfs" => ("mkfs.btrfs", &["-q"]),
        "ext4" => ("mke2fs", &["-q", "-F", "-t", "ext4"]),
        "none" => return Err("none was wanted".into()),
        other => return Err(format!("{other} is not known")),
    };
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".into());
    }
    let (file, at) = (folder.join("filesystem"), folder.join("mnt"));
    File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
    std::fs::create_dir(&at).unwrap();
    let run = |name: &str, args: &[&str], paths: &[&Path]| {
        let done = Command::new(name).args(args).args(paths).output();
        let done = done.map_err(|e| format!("{name}: {e}"))?;
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        if done.status.success() { Ok(()) } else { Err(format!("{name}: {said}")) }
    };
    run(mkfs.0, mkfs.1, &[&file])?;
    run("mount", &["-o", "loop,discard"], &[&file, &at])?;
    Ok(Mount { at })
}
