//! Servers for tests, which end with the test: the scripts in tests/servers.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use crate::kit::skipped;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// True if all servers are wanted, and all faults.
pub fn is_thorough() -> bool {
    std::env::var("IMGSNAP_SERVERS").as_deref() == Ok("all")
}

/// A server, or a stand-in for one, on this host.
pub struct Server {
    pub name: &'static str,
    folder: TempDir,
    env: BTreeMap<String, String>,
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(format!("{name}.sh"))
}

impl Server {
    /// Starts one; none if what it needs is not here, which is told.
    pub fn start(name: &'static str, options: &[&str]) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("imgsnap-server-").tempdir().unwrap();
        let place = folder.path().join("server");
        let out = Command::new(script(name))
            .arg("start")
            .arg(&place)
            .args(options)
            .env("IMGSNAP_TEST_OWNER", std::process::id().to_string())
            .output();
        let out = out.unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        match out.status.code() {
            Some(0) => {}
            // Where nobody asked for all servers, one that does not come up is none of ours to judge.
            code if code == Some(77) || !is_thorough() => {
                skipped(name, said.lines().last().unwrap_or_default());
                return None;
            }
            code => panic!("{name}: {code:?}: {said}"),
        }
        let text = std::fs::read_to_string(place.join("env")).unwrap();
        let env = text.lines().filter_map(|line| line.split_once('='));
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Some(Self { name, folder, env })
    }

    /// Does something else with it: `bucket NAME`, `kill NAME`.
    pub fn tell(&self, verb: &str, args: &[&str]) {
        let out = self.command(verb).args(args).output().unwrap();
        assert!(out.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&out.stderr));
    }

    /// The same as a command that is not run yet.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(script(self.name));
        command.arg(verb).arg(self.place());
        command
    }

    pub fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// Where it has its files.
    pub fn place(&self) -> PathBuf {
        self.folder.path().join("server")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let place = self.place();
        let out = Command::new(script(self.name)).arg("stop").arg(place).output().unwrap();
        if !out.status.success() && !std::thread::panicking() {
            panic!("{}: {}", self.name, String::from_utf8_lossy(&out.stderr));
        }
    }
}
