//! Who else could change a repository. Whoever can write to it, or put another one in its place, says which
//! file a rollback writes to, and what a restore gives: it is trusted like a program.

use super::printer::Printer;
use imgsnap::base::folder::is_ours;
use imgsnap::base::uri::Shown;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whom a kernel names where it has no name: in a container, or over NFS. Nobody can judge that owner.
const NOBODY: u32 = 65534;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Warns, once, if others may change the repository, which need not exist yet.
///
/// Not of groups: with a umask of 002, which is common, everybody's own group may write to everything.
pub fn warn_of_others(repository: &Path, printer: &Printer) {
    // By the way that a look at it goes: a link in it leads elsewhere.
    let there = repository.ancestors().find_map(|path| std::fs::canonicalize(path).ok());
    let Some(there) = there else { return };
    let is_whole = std::fs::canonicalize(repository).is_ok();
    for (depth, path) in there.ancestors().enumerate() {
        let Ok(meta) = std::fs::metadata(path) else { continue };
        let is_repository = is_whole && depth == 0;
        if let Some(why) = wrong_with(&meta, is_repository) {
            let place = path.shown();
            let what = if is_repository { "" } else { ", and so can the repository in it" };
            printer.warn(&format!(
                "{place} {why}{what}; whoever changes it can choose what a rollback overwrites"
            ));
            return;
        }
    }
}

fn wrong_with(meta: &Metadata, is_repository: bool) -> Option<String> {
    if !is_ours(meta.uid()) && meta.uid() != NOBODY {
        return Some(format!("can be changed by its owner, {}", user(meta.uid())));
    }
    // In a sticky folder others can make files, but not rename those of somebody else.
    let is_safe = meta.mode() & STICKY != 0 && !is_repository;
    (meta.mode() & OTHERS_WRITE != 0 && !is_safe).then(|| "can be changed by every user".to_owned())
}

fn user(id: u32) -> String {
    let named = nix::unistd::User::from_uid(id.into()).ok().flatten();
    named.map_or(id.to_string(), |user| user.name)
}
