//! What all these tests need: a folder to work in, the binary, tools, bytes, and guards that undo.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

pub use crate::bytes::*;
pub use crate::random::wait_until;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// The user without rights as which some tests run the binary.
const NOBODY: u32 = 65534;

/// Takes what a test needs, or returns from the test, visibly.
macro_rules! need {
    ($what:expr) => {
        match $what {
            Ok(value) => value,
            Err(reason) => {
                fn here() {}
                return crate::kit::skipped(std::any::type_name_of_val(&here), &reason);
            }
        }
    };
}
pub(crate) use need;

pub fn skipped(here: &str, reason: &str) {
    let test = here.trim_end_matches("::here").trim_start_matches("interop::");
    // Not by a macro: those are captured, and nobody would see it.
    writeln!(std::io::stderr().lock(), "skipped: {test}: {reason}").unwrap();
}

/// Held for reading while this process has an image open, for writing while it starts another one.
/// A child has all our descriptors until it becomes another program: for a moment it would look as
/// if somebody used the image.
static FORKS: RwLock<()> = RwLock::new(());

thread_local! {
    /// How often this thread holds it: asked for again behind somebody who waits to fork, it would wait for itself.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Nobody forks as long as it lives.
pub struct Calm {
    _held: Option<RwLockReadGuard<'static, ()>>,
}

impl Drop for Calm {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
    }
}

pub fn no_fork() -> Calm {
    let is_held = HELD.replace(HELD.get() + 1) > 0;
    let lock = || FORKS.read().unwrap_or_else(PoisonError::into_inner);
    Calm { _held: (!is_held).then(lock) }
}

/// To be held by who lets the library start a program.
pub fn forking() -> RwLockWriteGuard<'static, ()> {
    assert_eq!(HELD.get(), 0, "it would wait for itself");
    FORKS.write().unwrap_or_else(PoisonError::into_inner)
}

pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let _alone = forking();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Runs a program to its end.
pub fn output(command: &mut Command) -> std::io::Result<Output> {
    spawn(command)?.wait_with_output()
}

/// Fails with the name of the first tool that is not here.
pub fn tools(names: &[&str]) -> Result<(), String> {
    names.iter().try_for_each(|name| find_tool(name).map(|_| ()))
}

fn find_tool(name: &str) -> Result<String, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').chain(["/usr/sbin", "/sbin"]).map(|f| format!("{f}/{name}"));
    found.into_iter().find(|p| File::open(p).is_ok()).ok_or_else(|| format!("no {name} here"))
}

pub fn root() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("not root".into()) }
}

/// Runs a tool that must succeed, and gives its output.
#[track_caller]
pub fn tool(name: &str, args: &[&str]) -> String {
    try_tool(name, args).unwrap_or_else(|e| panic!("{e}"))
}

pub fn try_tool(name: &str, args: &[&str]) -> Result<String, String> {
    let output = output(&mut tool_command(name, args)?).map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into());
    }
    let err = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} {}: {}, {}", args.join(" "), output.status, err.trim()))
}

pub fn tool_command(name: &str, args: &[&str]) -> Result<Command, String> {
    let mut command = Command::new(find_tool(name)?);
    command.args(args);
    Ok(command)
}

/// A folder with a repository to be, removed at the end.
pub struct Lab {
    folder: TempDir,
    pub repo: String,
    /// Run as nobody, from a copy that nobody may run.
    program: Option<String>,
}

impl Lab {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("imgsnap-interop-").tempdir().unwrap();
        let repo = folder.path().join("repo").to_str().unwrap().to_owned();
        Self { folder, repo, program: None }
    }

    /// One whose binary runs as nobody, who may read the files of this lab and write to its
    /// repository only.
    pub fn of_nobody() -> Result<Self, String> {
        root()?;
        let mut lab = Self::new();
        std::fs::set_permissions(lab.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let program = lab.path("imgsnap");
        {
            let _calm = no_fork();
            std::fs::copy(env!("CARGO_BIN_EXE_imgsnap"), &program).unwrap();
        }
        lab.program = Some(program);
        std::fs::create_dir(&lab.repo).unwrap();
        chown(&lab.repo, Some(NOBODY), Some(NOBODY)).unwrap();
        let output = output(&mut lab.command(&["--version"]));
        match output {
            Ok(output) if output.status.success() => Ok(lab),
            _ => Err("nobody may not run programs in the temporary folder".into()),
        }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.program {
            Some(program) => Command::new(program),
            None => Command::new(env!("CARGO_BIN_EXE_imgsnap")),
        };
        if self.program.is_some() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(args).env("IMGSNAP_REPO", &self.repo).current_dir(self.folder.path());
        command.env("IMGSNAP_STATE", self.path("state"));
        command
    }

    /// Runs imgsnap to its end, whatever that is.
    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(args.join(" "), output(&mut self.command(args)).unwrap())
    }

    /// Starts it.
    pub fn start(&self, args: &[&str]) -> Started {
        Started::spawn(self.command(args))
    }

    /// Starts it, and stops it right after a call about `file`: "lock 1" (the first of its lock bytes),
    /// "lease 1", "map 3" (the third window). None if it ended before.
    ///
    /// # Errors
    /// Without a C compiler: why.
    pub fn start_held(
        &self,
        args: &[&str],
        at: &str,
        file: &str,
    ) -> Result<Option<Started>, String> {
        let shim = self.path("hold.so");
        if !Path::new(&shim).exists() {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/hold.c");
            let built =
                output(Command::new("cc").args(["-shared", "-fPIC", "-o", &shim, source, "-ldl"]));
            let built = built.map_err(|e| format!("cc: {e}"))?;
            if !built.status.success() {
                return Err(format!("cc: {}", String::from_utf8_lossy(&built.stderr)));
            }
        }
        let inode = std::fs::metadata(file).unwrap().ino();
        let mut command = self.command(args);
        command.env("LD_PRELOAD", &shim).env("IMGSNAP_HOLD", format!("{at} {inode}"));
        let mut started = Started::spawn(command);
        while state_of(started.id()) != Some('T') {
            if started.is_over() {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Some(started))
    }

    /// Takes a snapshot and gives its number.
    #[track_caller]
    pub fn snapshot(&self, image: &str) -> u64 {
        self.run(&["snapshot", image, "--json"]).done().json()["number"].as_u64().unwrap()
    }

    /// True if there is a repository; otherwise that is what is said.
    #[track_caller]
    pub fn has_repository(&self) -> bool {
        let run = self.run(&["list"]);
        run.code() == Some(0) || {
            run.fails(1).says("is not a repository");
            false
        }
    }

    /// The numbers of an image's snapshots; none if there is no such image.
    #[track_caller]
    pub fn numbers(&self, name: &str) -> Vec<u64> {
        let list = self.run(&["list", "--json"]).done().json();
        let of_name = list.as_array().unwrap().iter().filter(|s| s["name"] == name);
        of_name.map(|s| s["number"].as_u64().unwrap()).collect()
    }

    /// Verifies everything: that many snapshots, and nothing damaged.
    #[track_caller]
    pub fn verify(&self, snapshots: usize) {
        let verified = self.run(&["verify", "--json"]).done().json();
        assert_eq!(verified["damaged"], serde_json::json!([]));
        assert_eq!(verified["snapshots"], snapshots);
    }

    /// Restores to a file that does not exist, gives its path. Never as nobody, who may not make
    /// one.
    #[track_caller]
    pub fn restore(&self, reference: &str) -> String {
        let out = self.path(&format!("{reference}.restored"));
        std::fs::remove_file(&out).ok();
        let mut restore = Command::new(env!("CARGO_BIN_EXE_imgsnap"));
        restore.args(["--repo", &self.repo, "restore", reference, "-o", &out]);
        Run::of(format!("restore {reference}"), output(&mut restore).unwrap()).done();
        out
    }

    /// Names in the folder of an image in the repository, sorted.
    pub fn stored(&self, name: &str) -> Vec<String> {
        names_in(&format!("{}/{name}", self.repo))
    }

    /// What the manifest of an image that rules names: the files of its snapshots, and of those that are
    /// dropped but held. Sorted.
    #[track_caller]
    pub fn named(&self, name: &str) -> Vec<String> {
        let files = self.stored(name);
        let ruling = files.iter().rfind(|f| f.starts_with("manifest.")).unwrap();
        let text = std::fs::read_to_string(format!("{}/{name}/{ruling}", self.repo)).unwrap();
        let manifest: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
        let lists =
            ["snapshots", "dropped"].into_iter().filter_map(|list| manifest[list].as_array());
        let text = |name: &Value| name.as_str().unwrap().to_owned();
        let files = |s: &Value| {
            let parts = s["parts"].as_array().into_iter().flatten().map(text);
            parts.chain([text(&s["file"])]).collect::<Vec<_>>()
        };
        let mut named: Vec<String> = lists.flatten().flat_map(files).collect();
        named.sort();
        named
    }

    /// Fails unless the repository has nothing but what it needs: no temporary file, no delta that
    /// the manifest does not name.
    #[track_caller]
    pub fn is_tidy(&self, name: &str) {
        let files = self.stored(name);
        assert_eq!(files.iter().filter(|f| f.ends_with(".tmp")).count(), 0, "{files:?}");
        let deltas: Vec<&String> = files.iter().filter(|f| f.ends_with(".delta")).collect();
        assert_eq!(deltas, self.named(name).iter().collect::<Vec<_>>(), "{files:?}");
        // The ruling one, and the one before it.
        assert!(files.iter().filter(|f| f.starts_with("manifest.")).count() <= 2, "{files:?}");
    }
}

pub fn names_in(folder: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A run of imgsnap that has ended.
pub struct Run {
    what: String,
    pub status: ExitStatus,
    pub out: Vec<u8>,
    pub err: String,
}

impl Run {
    pub fn of(what: String, output: Output) -> Self {
        let err = String::from_utf8(output.stderr).unwrap();
        Self { what, status: output.status, out: output.stdout, err }
    }

    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn is_killed(&self) -> bool {
        self.status.signal() == Some(libc::SIGKILL)
    }

    #[track_caller]
    pub fn done(self) -> Self {
        assert_eq!(self.code(), Some(0), "imgsnap {}: {}: {}", self.what, self.status, self.err);
        self
    }

    /// It failed with this code and one clear line, and printed no result.
    #[track_caller]
    pub fn fails(self, code: i32) -> Self {
        let what = format!("imgsnap {}: {}: {}", self.what, self.status, self.err);
        assert_eq!(self.code(), Some(code), "{what}");
        let errors = self.err.lines().filter(|l| l.starts_with("imgsnap: error: ")).count();
        assert_eq!(errors, 1, "{what}");
        let others = self.err.lines().filter(|l| !l.starts_with("imgsnap: ")).count();
        assert!(others == 0 && crate::json_lines::is_only_errors(&self.out), "{what}");
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "imgsnap {}: \"{text}\" not in: {}", self.what, self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        crate::json_lines::parsed(&format!("imgsnap {}", self.what), &self.out)
    }
}

/// A process that runs; killed if it still does at the end.
pub struct Started {
    child: Option<Child>,
    what: String,
}

impl Started {
    pub fn spawn(mut command: Command) -> Self {
        let what = format!("{command:?}");
        Self { child: Some(spawn(&mut command).unwrap()), what }
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.id()).unwrap());
        nix::sys::signal::kill(id, signal).unwrap();
    }

    /// True if it has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Stops it as soon as it has said that on stderr, which is taken away; false if it ended before.
    pub fn stop_when_it_says(&mut self, text: &str) -> bool {
        if !self.waits_for(text) {
            return false;
        }
        self.signal(Signal::SIGSTOP);
        wait_until(|| state_of(self.id()) == Some('T'))
    }

    /// Reads its stderr until it has said that; false if it ended before.
    pub fn waits_for(&mut self, text: &str) -> bool {
        let mut said = Vec::new();
        let err = self.child.as_mut().unwrap().stderr.as_mut().unwrap();
        while !String::from_utf8_lossy(&said).contains(text) {
            let mut piece = [0; 512];
            match err.read(&mut piece).unwrap() {
                0 => return false,
                count => said.extend_from_slice(&piece[..count]),
            }
        }
        true
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Run {
        let what = std::mem::take(&mut self.what);
        Run::of(what, self.child.take().unwrap().wait_with_output().unwrap())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// "T" is stopped, "Z" is over.
pub fn state_of(id: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A mounted file system, unmounted at the end.
pub struct Mount {
    at: String,
    is_mounted: bool,
}

impl Mount {
    /// `args` are those of mount(8) before the folder, which is made.
    pub fn new(args: &[&str], at: &str) -> Result<Self, String> {
        root()?;
        std::fs::create_dir_all(at).unwrap();
        try_tool("mount", &[args, &[at]].concat())?;
        Ok(Self { at: at.into(), is_mounted: true })
    }

    pub fn tmpfs(at: &str, options: &str) -> Result<Self, String> {
        Self::new(&["-t", "tmpfs", "-o", options, "interop"], at)
    }

    #[track_caller]
    pub fn remount(&self, options: &str) {
        tool("mount", &["-o", &format!("remount,{options}"), &self.at]);
    }

    #[track_caller]
    pub fn unmount(mut self) {
        tool("umount", &[&self.at]);
        self.is_mounted = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted && try_tool("umount", &[&self.at]).is_err() {
            try_tool("umount", &["-l", &self.at]).ok();
        }
    }
}

/// A loop device on a file, detached at the end.
pub struct Loop {
    pub device: String,
}

impl Loop {
    pub fn new(args: &[&str], file: &str) -> Result<Self, String> {
        root()?;
        let device = try_tool("losetup", &[&["-f", "--show"], args, &[file]].concat())?;
        Ok(Self { device: device.trim().into() })
    }

    /// One of that many bytes of noise.
    pub fn of_noise(file: &str, bytes: u64, seed: u64) -> Result<Self, String> {
        make(file, bytes);
        put(file, 0, &noise(seed, bytes));
        Self::new(&[], file)
    }

    /// Detaches it and waits until its file is let go.
    #[track_caller]
    pub fn detach(self) {
        let device = self.device.clone();
        drop(self);
        let is_gone = || try_tool("losetup", &[&device]).is_err();
        assert!(wait_until(is_gone), "{device} is still attached");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        try_tool("losetup", &["-d", &self.device]).ok();
    }
}

/// A file system of that kind in a file, mounted.
pub fn mounted(
    lab: &Lab,
    mkfs: &str,
    args: &[&str],
    mebibytes: u64,
) -> Result<(Loop, Mount), String> {
    tools(&[mkfs, "losetup", "mount"])?;
    let file = lab.path("filesystem");
    make(&file, mebibytes * MIB);
    try_tool(mkfs, &[args, &[&file]].concat())?;
    let device = Loop::new(&[], &file)?;
    let mount = Mount::new(&[&device.device], &lab.path("mnt"))?;
    Ok((device, mount))
}
