//! What these tests need: a folder with an image, the binary, and servers, which end with the test.

use crate::random::Random;
pub use crate::server::{Server, is_thorough};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

pub const MIB: usize = 1 << 20;
pub const BLOCK: usize = 4096;

/// Says that a test could not be made here. Not by a macro: those are captured, and nobody would see it.
pub fn skipped(test: &str, reason: &str) {
    writeln!(std::io::stderr().lock(), "skipped: {test}: {}", reason.trim()).unwrap();
}

impl Server {
    /// A repository there. That of moto, which does not always keep racers apart, is of one host alone.
    pub fn lab(&self, repo: &str, env: &BTreeMap<String, String>) -> Lab {
        let lab = Lab::new(repo, env);
        if self.name == "moto" {
            lab.done(&["init", "--single-writer"]);
        }
        lab
    }
}

/// True if a server can be started within seconds: what it needs is here.
pub fn is_near(needed: &str) -> bool {
    let cache = std::env::var_os("IMGSNAP_TEST_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| {
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/imgsnap-tests"))
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin".into(), "/sbin".into()]);
    folders.extend(cache);
    folders.iter().any(|folder| folder.join(needed).exists())
}

/// An S3 server with the bucket `imgsnap-test`: the real one if it is to be had within seconds.
pub fn s3() -> Option<(Server, BTreeMap<String, String>)> {
    let name = if is_thorough() || is_near("radosgw") { "radosgw" } else { "moto" };
    let server = Server::start(name, &[])?;
    server.tell("bucket", &["imgsnap-test"]);
    let env = server.env().clone();
    Some((server, env))
}

/// What a run of the binary said.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A folder to work in, a repository somewhere, and a host that uses it.
pub struct Lab {
    folder: TempDir,
    pub repo: String,
    env: BTreeMap<String, String>,
}

impl Lab {
    /// With an image `disk.img` of 4 MiB.
    pub fn new(repo: &str, env: &BTreeMap<String, String>) -> Self {
        let folder = tempfile::Builder::new().prefix("imgsnap-stores-").tempdir().unwrap();
        let lab = Self { folder, repo: repo.into(), env: env.clone() };
        lab.write("disk.img", &noise(1, 4 * MIB));
        lab
    }

    /// Over ssh, or what stands in for it: a program of this host.
    pub fn by_ssh(options: &str) -> Self {
        let mut lab = Self::new("", &BTreeMap::new());
        lab.serve(options);
        lab.repo = format!("ssh://host{}", lab.at("repo"));
        lab
    }

    /// How the other host serves.
    pub fn serve(&mut self, options: &str) {
        // What is the last argument of ssh is a command for the shell there.
        let ssh = self.path("ssh");
        std::fs::write(&ssh, "#!/bin/sh\nfor last; do :; done\nexec sh -c \"$last\"\n").unwrap();
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
        let binary = env!("CARGO_BIN_EXE_imgsnap");
        // A forced command is what it is, whatever was asked for.
        let program = match options {
            "" => binary.to_owned(),
            _ => format!("{binary} serve store --stdio {options} --path {} #", self.at("repo")),
        };
        self.env.insert("IMGSNAP_SSH".into(), ssh.to_str().unwrap().into());
        self.env.insert("IMGSNAP_SSH_PROGRAM".into(), program);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file, in place if it is there.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let file = File::options().write(true).create(true).truncate(false).open(self.path(name));
        let file = file.unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Changes some blocks of the image, and gives what it is then.
    pub fn change(&self, seed: u64) -> Vec<u8> {
        let mut bytes = self.read("disk.img");
        for index in 0..3 {
            let block = (seed as usize * 37 + index * 211) % (bytes.len() / BLOCK);
            bytes[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(&noise(seed + 100, BLOCK));
        }
        self.write("disk.img", &bytes);
        bytes
    }

    /// The binary, as a host by that name runs it.
    pub fn command_as(&self, host: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imgsnap"));
        command.current_dir(self.folder.path()).args(args).stdin(Stdio::null());
        command.env("IMGSNAP_REPO", &self.repo).env_remove("AWS_PROFILE");
        command.env("IMGSNAP_STATE", self.path(&format!("state-{host}")));
        command.env("IMGSNAP_CACHE", self.path(&format!("cache-{host}")));
        command.env("HOME", self.path("home")).envs(&self.env);
        command
    }

    pub fn run_as(&self, host: &str, args: &[&str]) -> Run {
        Run::of(&self.command_as(host, args).output().unwrap())
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.run_as("one", args)
    }

    /// What a run says that must succeed.
    pub fn done(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_eq!(run.code, Some(0), "{args:?}: {run:?}");
        run.out
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let out = self.done(&[&["--json"], args].concat());
        crate::json_lines::parsed(&format!("imgsnap {}", args.join(" ")), out.as_bytes())
    }

    /// The one line of an error.
    pub fn fails(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert!(!matches!(run.code, Some(0) | None), "{args:?}: {run:?}");
        let lines: Vec<&str> = run.err.lines().filter(|l| l.contains("error: ")).collect();
        assert_eq!(lines.len(), 1, "{args:?}: {run:?}");
        lines[0].to_owned()
    }

    /// A snapshot is what the image was.
    pub fn ensure_is(&self, reference: &str, bytes: &[u8]) {
        let out = format!("out-{}", reference.replace('@', "-"));
        self.done(&["restore", reference, "-o", &out, "--force"]);
        assert!(self.read(&out) == bytes, "{reference} is not what it was");
    }
}

impl Run {
    pub fn of(out: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: out.status.code(), out: text(&out.stdout), err: text(&out.stderr) }
    }
}

/// Bytes that are the same in every run, and cannot be compressed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    Random(seed).bytes(bytes)
}
