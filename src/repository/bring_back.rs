//! Before a lost manifest is rebuilt: files that are lost as well come back from other repositories.

use super::Repository;
use super::mend::{MendSource, is_final};
use crate::delta::Delta;
use crate::error::{ErrorKind, Result};
use crate::manifest::ImageFile;
use crate::progress::Context;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

impl Repository {
    /// Brings back, from other repositories, what a repair of a lost manifest would have to leave out: files
    /// that cannot be opened, and parents that are missing. Gives the names of the files.
    ///
    /// # Errors
    /// If a copy cannot be written.
    pub fn bring_back(
        &self,
        name: &str,
        sources: &[MendSource],
        context: &Context,
    ) -> Result<Vec<String>> {
        let store = self.store.as_ref();
        let mut brought = Vec::new();
        match crate::manifest::load(store, name) {
            Ok(manifest) if manifest.unused.is_empty() => return Ok(brought),
            Err(e) if e.kind() != ErrorKind::Corrupt => return Err(e),
            _ => {}
        }
        let _write = self.lock_to_write(name)?;
        for source in sources {
            let MendSource::Repository(other) = source else { continue };
            for reader in other.readers(context)? {
                let (mut here, mut parents) = self.files_of(name, reader.manifest().image_id)?;
                // The newest first: what it rests on is wanted then, too.
                for theirs in reader.manifest().stored().iter().rev() {
                    let is_broken = here.get(&theirs.file) == Some(&false);
                    let is_missing =
                        !here.contains_key(&theirs.file) && parents.contains(&theirs.id);
                    if !is_broken && !is_missing {
                        continue;
                    }
                    let file = format!("{}/{}", reader.manifest().name, theirs.file);
                    match self.copy_file(name, theirs, other, &file, context) {
                        Ok(()) => {
                            brought.push(theirs.file.clone());
                            here.insert(theirs.file.clone(), true);
                            parents.extend(theirs.parent);
                        }
                        Err(e) if is_final(&e) => return Err(e),
                        Err(e) => context.progress().note(&format!("{file}: not used: {e}")),
                    }
                }
            }
        }
        Ok(brought)
    }

    /// The delta files in the folder of an image, and whether each can be opened and is of that image; and
    /// the snapshots that those rest on.
    fn files_of(
        &self,
        name: &str,
        image_id: Uuid,
    ) -> Result<(HashMap<String, bool>, HashSet<Uuid>)> {
        let (mut files, mut parents) = (HashMap::new(), HashSet::new());
        for file in self.store.list(name)?.into_iter().filter(|file| ImageFile::is_delta(file)) {
            let opened = Delta::open(self.store.clone(), &format!("{name}/{file}"), &self.caches);
            let opened = match opened {
                Err(e) if e.kind() == ErrorKind::Io => return Err(e),
                other => other.ok().filter(|delta| delta.header().image_id == image_id),
            };
            let parent = opened.as_ref().and_then(|delta| delta.footer().parent);
            parents.extend(parent.map(|p| p.parent_id));
            files.insert(file, opened.is_some());
        }
        Ok((files, parents))
    }
}
