//! What all these tests need: a folder with images and a repository, the binary, and bytes that are
//! the same in every run.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::config;
use crate::json_lines;
pub use crate::random::{Random, wait_until};
use rustix::fs::XattrFlags;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tempfile::TempDir;

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;
pub const BLOCK: usize = 4096;

/// What the program exits with.
pub const DONE: i32 = 0;
pub const FAILED: i32 = 1;
pub const USAGE: i32 = 2;
pub const DAMAGE: i32 = 3;
pub const BUSY: i32 = 4;
pub const KEY: i32 = 5;
pub const HOPELESS: i32 = 6;
pub const INTERRUPTED: i32 = 130;

/// The user without rights as which some tests run the binary.
pub const NOBODY: u32 = 65534;

/// Says that a test could not be made here. Not by a macro: those are captured, and nobody would
/// see it.
pub fn skipped(test: &str, reason: &str) {
    writeln!(std::io::stderr().lock(), "skipped: {test}: {reason}").unwrap();
}

/// Held for reading while this process has a file open, for writing while it starts another one. A
/// child has all our descriptors until it becomes another program: for a moment it would look as if
/// somebody used the image.
static FORKS: RwLock<()> = RwLock::new(());

pub fn no_fork() -> RwLockReadGuard<'static, ()> {
    FORKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives nobody else has a descriptor that a child could keep.
pub fn alone_to_fork() -> RwLockWriteGuard<'static, ()> {
    FORKS.write().unwrap_or_else(PoisonError::into_inner)
}

pub fn spawn(command: &mut Command) -> Child {
    let _alone = alone_to_fork();
    command.spawn().unwrap()
}

/// True if there is a C compiler; otherwise says that a test is skipped.
pub fn has_cc(test: &str) -> bool {
    let mut trial = Command::new("sh");
    let is_there = spawn(trial.args(["-c", "command -v cc > /dev/null"])).wait();
    let is_there = is_there.is_ok_and(|status| status.success());
    if !is_there {
        skipped(test, "no cc here");
    }
    is_there
}

/// Builds what stands before the C library, from a source beside the tests; false if that fails.
#[must_use]
pub fn build_shim(source: &str, shim: &Path) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(source);
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(shim).arg(source);
    spawn(&mut cc).wait().is_ok_and(|status| status.success())
}

/// A folder to work in, removed at the end. Its repository is `repo`, and need not be there yet.
pub struct Lab {
    folder: TempDir,
}

impl Lab {
    /// Without a repository.
    pub fn bare() -> Self {
        Self { folder: tempfile::Builder::new().prefix("imgsnap-cli-").tempdir().unwrap() }
    }

    /// With an empty repository.
    pub fn new() -> Self {
        let lab = Self::bare();
        lab.done(&["init"]);
        lab
    }

    /// With `disk.img` (512 KiB) and that many snapshots of it, each with a few changed blocks;
    /// gives what the image was at each.
    pub fn with_snapshots(count: usize) -> (Self, Vec<Vec<u8>>) {
        let lab = Self::new();
        let states = lab.grow_history("disk.img", count);
        (lab, states)
    }

    /// Makes an image and that many snapshots of it.
    pub fn grow_history(&self, image: &str, count: usize) -> Vec<Vec<u8>> {
        let mut bytes = disk(image.len() as u64, 512 * KIB);
        let mut states = Vec::new();
        for number in 1..=count {
            if number > 1 {
                change(&mut bytes, number as u64, 3);
            }
            self.write(image, &bytes);
            let taken = self.json(&["snapshot", image]);
            assert_eq!(taken["number"], number, "{taken}");
            states.push(bytes.clone());
        }
        states
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text.
    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file, in place if it is there.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let _calm = no_fork();
        let file = File::options().write(true).create(true).truncate(false).open(self.path(name));
        let file = file.unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        let _calm = no_fork();
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    pub fn copy(&self, from: &str, to: &str) {
        self.write(to, &self.read(from));
    }

    pub fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.path(from), self.path(to)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// Bytes that a file takes up on its disk.
    pub fn allocated(&self, name: &str) -> u64 {
        std::fs::metadata(self.path(name)).unwrap().blocks() * 512
    }

    pub fn set_mode(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    /// Mode, owner and group of a file.
    pub fn whose(&self, name: &str) -> [u32; 3] {
        let meta = self.path(name).metadata().unwrap();
        [meta.mode() & 0o7777, meta.uid(), meta.gid()]
    }

    /// Gives a file an extended attribute; false if that cannot be had here.
    #[must_use]
    pub fn set_xattr(&self, name: &str, attribute: &str, value: &[u8]) -> bool {
        rustix::fs::setxattr(self.path(name), attribute, value, XattrFlags::empty()).is_ok()
    }

    /// The extended attributes of a file.
    pub fn xattrs(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let (path, mut buffer) = (self.path(name), vec![0; 64 * KIB]);
        let bytes = rustix::fs::listxattr(&path, &mut buffer[..]).unwrap_or(0);
        let names = String::from_utf8(buffer[..bytes].to_vec()).unwrap();
        let value = |attribute: &str| {
            let mut buffer = vec![0; 64 * KIB];
            let bytes = rustix::fs::getxattr(&path, attribute, &mut buffer[..]).unwrap();
            buffer[..bytes].to_vec()
        };
        names.split_terminator('\0').map(|name| (name.to_owned(), value(name))).collect()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.prepare(Command::new(env!("CARGO_BIN_EXE_imgsnap")), args)
    }

    /// A copy of the binary that every user may run, in a folder that every user may enter.
    fn program_for_all(&self) -> PathBuf {
        std::fs::set_permissions(self.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let program = self.path("imgsnap-for-all");
        if !program.exists() {
            let _calm = no_fork();
            std::fs::copy(env!("CARGO_BIN_EXE_imgsnap"), &program).unwrap();
        }
        program
    }

    /// Where another user keeps what is known of live images.
    fn state_of(&self, user: u32) -> PathBuf {
        let folder = self.path(&format!("state-{user}"));
        if std::fs::create_dir(&folder).is_ok() {
            // Only root has other users.
            std::os::unix::fs::chown(&folder, Some(user), None).ok();
        }
        folder
    }

    /// The same as another user, who has no group but this one. Only for root.
    pub fn command_as(&self, user: u32, group: u32, args: &[&str]) -> Command {
        let mut command = Command::new(self.program_for_all());
        command.uid(user).gid(group);
        let mut command = self.prepare(command, args);
        command.env("IMGSNAP_STATE", self.state_of(user));
        command
    }

    /// The same as nobody; none if that cannot be had here.
    pub fn command_of_nobody(&self, args: &[&str]) -> Option<Command> {
        let program = self.program_for_all();
        let drop_to = |args: &[&str]| {
            let id = NOBODY.to_string();
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &id, "--clear-groups"]).arg(&program);
            let mut command = self.prepare(command, args);
            command.env("IMGSNAP_STATE", self.state_of(NOBODY));
            command
        };
        let mut trial = drop_to(&["--version"]);
        trial.stdout(Stdio::null()).stderr(Stdio::null());
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|folder| folder.join("setpriv").exists())
        });
        let works = found && spawn(&mut trial).wait().unwrap().success();
        works.then(|| drop_to(args))
    }

    fn prepare(&self, mut command: Command, args: &[&str]) -> Command {
        command.args(args).current_dir(self.folder.path());
        command.env("IMGSNAP_REPO", self.path("repo")).env("HOME", self.path("home"));
        command.env("IMGSNAP_STATE", self.path("state"));
        command.env("TZ", "UTC").env_remove("XDG_DATA_HOME").env_remove("COLUMNS");
        command
    }

    /// Runs imgsnap to its end, whatever that is.
    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(&mut self.command(args))
    }

    /// The same under a limit, as `ulimit` of a shell takes it.
    pub fn limited(&self, limit: &str, args: &[&str]) -> Run {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("ulimit {limit}; exec \"$@\""), "bash"]);
        shell.arg(env!("CARGO_BIN_EXE_imgsnap"));
        Run::of(&mut self.prepare(shell, args))
    }

    /// It must work; gives its stdout as text.
    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        self.run(args).done().text()
    }

    /// It must work with `--json`; gives the one value that it printed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["--json"]].concat()).done().json()
    }

    /// It must fail with one line, with that code, and leave everything as it was. Gives the line.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        self.fails_as(code, &mut self.command(args))
    }

    /// The same for a command that was prepared.
    #[track_caller]
    pub fn fails_as(&self, code: i32, command: &mut Command) -> String {
        let before = self.everything();
        let line = Run::of(command).failed(code);
        self.ensure_untouched(&before, &line);
        line
    }

    /// All files in the lab: images, targets and the repository. Without lock files, which say
    /// nothing, and without manifests that a newer one has replaced, which any writer clears away.
    pub fn everything(&self) -> Files {
        let mut files = Files::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                let name = path.strip_prefix(self.folder.path()).unwrap().to_owned();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    files.insert(name, None);
                    folders.push(path);
                } else if kind.is_symlink() {
                    let target = std::fs::read_link(&path).unwrap();
                    files.insert(name, Some(target.into_os_string().into_encoded_bytes()));
                } else if kind.is_file() && path.extension().is_none_or(|e| e != "lock") {
                    let _calm = no_fork();
                    files.insert(name, Some(std::fs::read(&path).unwrap()));
                }
            }
        }
        let superseded: Vec<PathBuf> =
            files.keys().filter(|p| is_superseded(p, &files)).cloned().collect();
        files.retain(|path, _| !superseded.contains(path));
        files
    }

    #[track_caller]
    pub fn ensure_untouched(&self, before: &Files, what: &str) {
        let after = self.everything();
        let mut differing: Vec<&PathBuf> = Vec::new();
        differing.extend(before.iter().filter(|(p, b)| after.get(*p) != Some(b)).map(|(p, _)| p));
        differing.extend(after.keys().filter(|p| !before.contains_key(*p)));
        assert!(differing.is_empty(), "{differing:?} changed by: {what}");
    }

    /// Fails unless a snapshot gives back these bytes.
    #[track_caller]
    pub fn restores(&self, reference: &str, bytes: &[u8]) {
        let out = format!("restored-{}", reference.replace([':', '/'], "-"));
        std::fs::remove_file(self.path(&out)).ok();
        self.done(&["restore", reference, "-o", &out]);
        same(&self.read(&out), bytes, reference);
        self.remove(&out);
    }

    /// Fails unless an image has exactly these snapshots, each gives back its bytes, and all that is
    /// stored is sound and named.
    #[track_caller]
    pub fn holds(&self, name: &str, kept: &[(u64, &[u8])]) {
        let numbers: Vec<u64> = kept.iter().map(|(number, _)| *number).collect();
        assert_eq!(self.numbers(name), numbers, "the snapshots of {name}");
        for (number, bytes) in kept {
            self.restores(&format!("{name}@{number}"), bytes);
        }
        let verified = self.json(&["verify", name]);
        assert_eq!(verified["damaged"], serde_json::json!([]), "{verified}");
        self.is_tidy(name);
    }

    /// The numbers of the snapshots of an image.
    #[track_caller]
    pub fn numbers(&self, name: &str) -> Vec<u64> {
        let list = self.json(&["list", name]);
        list.as_array().unwrap().iter().map(|s| integer(s, "number")).collect()
    }

    /// Fails unless the folder of an image has the files that its manifest names and no others.
    #[track_caller]
    pub fn is_tidy(&self, name: &str) {
        let mut named: Vec<String> = self.catalogue(name).into_iter().map(|(_, f)| f).collect();
        named.extend(self.parts(name).into_values().flatten());
        named.sort();
        assert_eq!(self.deltas(name), named, "files that no manifest names, or that are missing");
        let temporary = self.stored(name).into_iter().find(|f| f.ends_with(".tmp"));
        assert_eq!(temporary, None);
    }

    /// What the ruling manifest of an image names: numbers and files of its snapshots, and of those
    /// that are dropped but held.
    pub fn catalogue(&self, name: &str) -> Vec<(u64, String)> {
        let manifest = self.manifest_json(name);
        let lists =
            ["snapshots", "dropped"].into_iter().filter_map(|list| manifest[list].as_array());
        lists.flatten().map(|s| (integer(s, "number"), string(s, "file").to_owned())).collect()
    }

    /// Numbers of the snapshots that are dropped but whose files are held.
    /// The parts of each snapshot, dropped ones included, by number, as far as it has any.
    pub fn parts(&self, name: &str) -> BTreeMap<u64, Vec<String>> {
        let manifest = self.manifest_json(name);
        let lists = ["snapshots", "dropped"].map(|list| manifest[list].as_array().cloned());
        let parts = |s: &Value| {
            let names = s["parts"].as_array()?.iter().map(|name| name.as_str().unwrap().to_owned());
            Some((integer(s, "number"), names.collect()))
        };
        lists.into_iter().flatten().flatten().filter_map(|s| parts(&s)).collect()
    }

    pub fn dropped(&self, name: &str) -> Vec<u64> {
        let manifest = self.manifest_json(name);
        let dropped = manifest["dropped"].as_array().into_iter().flatten();
        dropped.map(|s| integer(s, "number")).collect()
    }

    fn manifest_json(&self, name: &str) -> Value {
        let text = String::from_utf8(self.read(&self.manifest(name))).unwrap();
        serde_json::from_str(text.split_once('\n').unwrap().1).unwrap()
    }

    /// Names of the delta files in the folder of an image, sorted.
    pub fn deltas(&self, name: &str) -> Vec<String> {
        self.stored(name).into_iter().filter(|f| f.ends_with(".delta")).collect()
    }

    /// Runs imgsnap with these bytes on its stdin.
    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Run {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let mut stdin = child.stdin.take().unwrap();
        // Whoever stops reading has said why on stderr.
        let written = stdin.write_all(input);
        drop(stdin);
        let run = Run::ended(&command, child.wait_with_output().unwrap());
        assert!(written.is_ok() || run.code != Some(DONE), "it worked without all of its input");
        run
    }

    /// Adds a text to the configuration, whatever it says. Returns the path of the object that rules then.
    pub fn configure(&self, text: &str) -> String {
        let _calm = no_fork();
        self.at(&format!("repo/{}", config::add(self.path("repo"), text)))
    }

    /// The object that has the configuration.
    pub fn config_object(&self) -> String {
        let entries = std::fs::read_dir(self.path("repo")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        format!("repo/{}", config::ruling(&names.collect::<Vec<_>>()))
    }

    /// The text of the configuration that rules.
    pub fn configuration(&self) -> String {
        config::text_in(self.path("repo"))
    }

    /// Reads an image in the repository until it is dropped, as far as others can tell.
    pub fn reader_of(&self, name: &str) -> ReaderAtWork {
        let lock = File::open(self.path("repo").join(name).join("reap.lock")).unwrap();
        lock.lock_shared().unwrap();
        ReaderAtWork { lock: Some(lock) }
    }

    /// The delta files of an image, by number.
    pub fn delta(&self, name: &str, number: u64) -> String {
        let shown = self.json(&["show", &format!("{name}@{number}")]);
        let file = PathBuf::from(shown["file"].as_str().unwrap());
        format!("repo/{name}/{}", file.file_name().unwrap().to_str().unwrap())
    }

    /// Names of the files of an image in the repository, sorted.
    pub fn stored(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("repo").join(name)).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The path of the manifest that rules.
    pub fn manifest(&self, name: &str) -> String {
        let files = self.stored(name);
        let newest = files.iter().rfind(|f| f.starts_with("manifest.")).unwrap();
        format!("repo/{name}/{newest}")
    }

    /// Where this host keeps what it knows of the live file of an image.
    pub fn known_of(&self, name: &str) -> String {
        let text = String::from_utf8(self.read(&self.manifest(name))).unwrap();
        let manifest: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
        let file = format!("{}.json", string(&manifest, "image_id"));
        let folders = std::fs::read_dir(self.path("state")).unwrap();
        let folders = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap());
        let found = folders.map(|folder| format!("state/{folder}/{file}"));
        found.into_iter().find(|path| self.exists(path)).unwrap()
    }

    /// Changes that.
    pub fn forge_known_of(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let file = self.known_of(name);
        let mut known = serde_json::from_slice(&self.read(&file)).unwrap();
        change(&mut known);
        self.write(&file, known.to_string().as_bytes());
    }

    /// Makes an image what an earlier program would have left: the same snapshots in a manifest of version 1,
    /// and what is known of the live file beside it.
    pub fn as_of_before(&self, name: &str, head: &[u8]) {
        let known: Value = serde_json::from_slice(&self.read(&self.known_of(name))).unwrap();
        self.remove(&self.known_of(name));
        let file = self.manifest(name);
        forge(self, name, |manifest| {
            manifest["source"] = self.at("disk.img").into();
            manifest["live"] = known["live"].clone();
            let keys = manifest.as_object_mut().unwrap();
            for key in ["commit", "previous", "ancestors", "condemned", "swept", "host", "needs"] {
                keys.remove(key);
            }
        });
        let text = String::from_utf8(self.read(&file)).unwrap();
        self.write(&file, text.replacen("imgsnap-manifest 3", "imgsnap-manifest 1", 1).as_bytes());
        self.write(&format!("repo/{name}/head.json"), head);
    }

    /// Removes all manifests of an image.
    pub fn lose_manifests(&self, name: &str) {
        for file in self.stored(name).iter().filter(|f| f.starts_with("manifest.")) {
            self.remove(&format!("repo/{name}/{file}"));
        }
    }

    /// Turns some bits of a byte of a file around.
    pub fn flip(&self, name: &str, at: usize) {
        let mut bytes = self.read(name);
        bytes[at] ^= 0x5a;
        self.write(name, &bytes);
    }
}

/// Holds the lock that keeps files from being unlinked.
pub struct ReaderAtWork {
    lock: Option<File>,
}

impl Drop for ReaderAtWork {
    fn drop(&mut self) {
        // No child that is just being started has it, too.
        let _calm = no_fork();
        drop(self.lock.take());
    }
}

pub type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

fn is_superseded(path: &Path, files: &Files) -> bool {
    let is_manifest = |path: &Path| {
        path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("manifest."))
    };
    let is_newer = |other: &PathBuf| {
        is_manifest(other) && other.parent() == path.parent() && other.as_path() > path
    };
    is_manifest(path) && files.keys().any(is_newer)
}

/// A run of imgsnap that has ended.
pub struct Run {
    what: String,
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = spawn(command);
        Self::ended(command, child.wait_with_output().unwrap())
    }

    pub fn ended(command: &Command, output: Output) -> Self {
        let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        Self {
            what: format!("imgsnap {}", args.join(" ")),
            code: output.status.code(),
            out: output.stdout,
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub fn done(self) -> Self {
        assert_eq!(self.code, Some(DONE), "{}: {}", self.what, self.err);
        self
    }

    /// It failed with that code, one line on stderr and nothing on stdout. Gives the line.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        let Self { what, err, .. } = &self;
        assert_eq!(self.code, Some(code), "{what}: {err}");
        assert!(json_lines::is_only_errors(&self.out), "{what}: a result on stdout");
        assert_eq!(err.lines().count(), 1, "{what}: not one line: {err}");
        assert!(err.starts_with("imgsnap: error: "), "{what}: {err}");
        assert!(err.ends_with('\n'), "{what}: {err}");
        let message = err.trim_start_matches("imgsnap: error: ").trim_end();
        assert!(!message.is_empty() && !message.contains("(os error"), "{what}: {err}");
        message.to_owned()
    }

    /// It was refused as wrong usage.
    #[track_caller]
    pub fn misused(self) -> String {
        assert_eq!(self.code, Some(USAGE), "{}: {}", self.what, self.err);
        assert!(json_lines::is_only_errors(&self.out), "{}", self.what);
        let is_help = self.err.contains("Usage: ");
        assert!(is_help || self.err.lines().count() == 1, "{}: {}", self.what, self.err);
        self.err
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap()
    }

    /// The one value on stdout, on a line of its own.
    #[track_caller]
    pub fn json(&self) -> Value {
        json_lines::parsed(&self.what, &self.out)
    }
}

/// A process that is killed at the end if it still runs.
pub struct Started {
    pub child: Child,
}

impl Started {
    pub fn new(command: &mut Command) -> Self {
        Self::with_input(command.stdin(Stdio::null()))
    }

    /// With the stdin that the command has.
    pub fn with_input(command: &mut Command) -> Self {
        // A group of its own: a shell and what it starts.
        Self { child: spawn(command.process_group(0)) }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Changes the ruling manifest of an image, and its digest with it.
pub fn forge(lab: &Lab, name: &str, change: impl FnOnce(&mut Value)) {
    let file = lab.manifest(name);
    let text = String::from_utf8(lab.read(&file)).unwrap();
    let mut value: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    change(&mut value);
    let body = format!("{value:#}\n");
    let digest = xxhash_rust::xxh3::xxh3_128(body.as_bytes());
    lab.write(&file, format!("imgsnap-manifest 3 {digest:032x}\n{body}").as_bytes());
}

/// A whole number in JSON, as byte counts must be.
#[track_caller]
pub fn integer(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} is no whole number: {value}"))
}

#[track_caller]
pub fn string<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is no text: {value}"))
}

/// Fails with the place of the first difference.
#[track_caller]
pub fn same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: length");
    if let Some(at) = found.iter().zip(wanted).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} is {:#x}, not {:#x}", found[at], wanted[at]);
    }
}

/// Bytes that do not compress.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    Random(seed).bytes(bytes)
}

/// A disk: of each 32 KiB a part is noise, a part text, a part zeros.
pub fn disk(seed: u64, bytes: usize) -> Vec<u8> {
    let mut disk = noise(seed, bytes);
    for (number, piece) in disk.chunks_mut(32 * KIB).enumerate() {
        match number % 4 {
            1 => piece.fill(0),
            2 => {
                const WORDS: &[u8] =
                    b"it was the best of times, it was the worst of times, it was the end";
                for word in piece.chunks_mut(16) {
                    let at = usize::from(word[0]) % 48;
                    word.copy_from_slice(&WORDS[at..][..word.len()]);
                }
            }
            _ => {}
        }
    }
    disk
}

/// Writes noise to that many blocks, never two of them neighbours; gives their numbers.
pub fn change(disk: &mut [u8], seed: u64, blocks: usize) -> Vec<usize> {
    let stride = disk.len() / BLOCK / blocks;
    assert!(stride >= 3, "too small for {blocks} changes");
    let chosen =
        (0..blocks).map(|n| n * stride + (seed as usize) % (stride - 1)).collect::<Vec<_>>();
    for &block in &chosen {
        let bytes = noise(seed.wrapping_mul(1000) + block as u64, BLOCK);
        disk[block * BLOCK..][..BLOCK].copy_from_slice(&bytes);
    }
    chosen
}

/// True if the times of files are believed where the lab is: then an unchanged image is not read.
pub fn trusts_times(path: &Path) -> bool {
    let kind = nix::sys::statfs::statfs(path).unwrap().filesystem_type().0;
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010].contains(&kind)
}
