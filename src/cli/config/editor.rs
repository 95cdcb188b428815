//! A text in the user's editor.

use imgsnap::base::error::{Error, ErrorKind, Result, best_effort};
use imgsnap::base::uri::Shown;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A text that was edited, in a file that stays until it is dropped.
pub struct Edited {
    file: PathBuf,
    pub text: String,
}

impl Edited {
    /// Lets the user edit a text. None if it is as it was.
    pub fn from(text: &str) -> Result<Option<Self>> {
        let file = write(text)?;
        let ended = run(&file);
        let failed = |e| Error::os("read", file.shown(), e);
        match (ended, std::fs::read_to_string(&file).map_err(failed)) {
            (ended, Ok(edited)) if edited == text => {
                remove(&file);
                ended.map(|()| None)
            }
            (Ok(()), Ok(text)) => Ok(Some(Self { file, text })),
            (Err(e), _) | (_, Err(e)) => Err(kept(e, &file)),
        }
    }

    /// Removes the file if the text was used; otherwise the error says where it is.
    pub fn end<T>(self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(done) => {
                remove(&self.file);
                Ok(done)
            }
            Err(e) => Err(kept(e, &self.file)),
        }
    }
}

fn kept(error: Error, file: &Path) -> Error {
    error.hint(format!("nothing was changed; the edited text is in {}", file.shown()))
}

fn write(text: &str) -> Result<PathBuf> {
    let name = format!("imgsnap-config-{}.toml", uuid::Uuid::new_v4().simple());
    let path = std::env::temp_dir().join(name);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| Error::os("write", path.shown(), e))?;
    Ok(path)
}

fn remove(file: &Path) {
    // It is of no use to anybody, and no harm.
    best_effort(std::fs::remove_file(file));
}

/// The editor may be a command with options, as everywhere.
fn run(file: &Path) -> Result<()> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".into());
    let mut script = editor.clone();
    script.push(" \"$@\"");
    let ended = Command::new("sh").arg("-c").arg(script).arg(&editor).arg(file).status();
    let status = ended.map_err(|e| Error::io("cannot run the editor", e))?;
    if status.success() {
        return Ok(());
    }
    let what = format!("the editor ({}) failed: {status}", editor.to_string_lossy());
    Err(Error::new(ErrorKind::InvalidInput, what))
}
