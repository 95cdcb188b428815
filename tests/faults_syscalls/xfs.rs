//! An XFS in a file, mounted; unmounted and detached at the end.

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub struct Xfs {
    folder: TempDir,
    device: Option<String>,
    at: PathBuf,
    is_mounted: bool,
}

/// Runs a tool; what it says, or why not.
fn tool(name: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(name).args(args).output().map_err(|e| format!("{name}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

pub fn mounted() -> Result<Xfs, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".into());
    }
    let folder = crate::lab::memory();
    let folder = tempfile::Builder::new().prefix("imgsnap-faults-xfs-").tempdir_in(folder).unwrap();
    let (file, at) = (folder.path().join("filesystem"), folder.path().join("mnt"));
    std::fs::create_dir(&at).unwrap();
    std::fs::File::create(&file).unwrap().set_len(400 << 20).unwrap();
    let mut xfs = Xfs { folder, device: None, at, is_mounted: false };
    let file = file.to_str().unwrap();
    tool("mkfs.xfs", &["-q", "-m", "reflink=1", file])?;
    let device = tool("losetup", &["-f", "--show", file])?;
    xfs.device = Some(device.clone());
    tool("mount", &[&device, xfs.at.to_str().unwrap()])?;
    xfs.is_mounted = true;
    Ok(xfs)
}

impl Xfs {
    pub fn folder(&self) -> &Path {
        &self.at
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let at = self.at.to_str().unwrap();
        if self.is_mounted && tool("umount", &[at]).is_err() {
            tool("umount", &["-l", at]).ok();
        }
        if let Some(device) = &self.device {
            tool("losetup", &["-d", device]).ok();
        }
        assert!(self.folder.path().exists());
    }
}
