//! What leaves a repository, and comes back, and the configuration, in the schedules.

use crate::desk::context;
use crate::known::Exported;
use crate::random::Random;
use crate::schedules::{IMAGES, Scene};
use crate::turns::Alone;
use imgsnap::{At, ErrorKind, ExportRequest, Repository};
use std::sync::Arc;

impl Scene {
    pub fn export(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let (name, context, hour) = (IMAGES[image], context(), self.turns.hours());
        let Ok(listed) = repository.list(name, &context) else { return };
        let listed = listed.manifest.snapshots;
        let draw = |random: &mut Random| listed.get(random.below(listed.len() as u64) as usize);
        let Some(number) = draw(random).map(|s| s.number) else { return };
        let since = draw(random).filter(|s| s.number != number && random.below(2) == 0);
        let request = ExportRequest::new(name, At::Number(number));
        let request = request.since(since.map(|s| At::Number(s.number)));
        let mut bytes = Vec::new();
        let exported = repository.export(&request, &context, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        });
        match exported {
            Ok(exported) => {
                let mut known = self.known();
                let id = exported.snapshot.id;
                let content = known.contents.get(&id).cloned();
                known.exported.push(Exported { id, image, bytes, content });
            }
            Err(e) => self.check(host, "export", hour, &e),
        }
    }

    /// Takes in what was exported, which may be there, or be dropped, or have no place any more.
    pub fn import(&self, repository: &Repository, host: usize, random: &mut Random) {
        let (context, hour) = (context(), self.turns.hours());
        let mut known = self.known();
        let which = random.below(known.exported.len() as u64) as usize;
        let Some(Exported { id, image, bytes, content }) = known.exported.get(which).cloned()
        else {
            return;
        };
        // It may come back, whatever anybody is told.
        known.imported.insert(id);
        drop(known);
        let name = IMAGES[image];
        let imported = repository.import(&mut bytes.as_slice(), "memory", Some(name), &context);
        let imported = match imported {
            Ok(imported) => imported,
            // It has no place here, and says so.
            Err(e) if e.kind() == ErrorKind::Mismatch && !e.to_string().contains("content") => {
                return;
            }
            Err(e) => return self.check(host, "import", hour, &e),
        };
        let (id, label) = (imported.snapshot.id, &imported.snapshot.label);
        let mut known = self.known();
        known.images.insert(id, name);
        known.told.push(imported.snapshot.file.clone());
        if label.as_ref().is_some_and(|label| label.starts_with("keep-")) {
            known.kept.insert(id, name);
        }
        if content.is_some_and(|content| !known.is_what_it_was(id, &content)) {
            self.fail(host, "something else is imported");
        }
    }

    /// Adds a line to the configuration.
    pub fn configure(&self, host: usize, random: &mut Random) {
        let (store, hour) = (self.store(Arc::new(self.seat(host))), self.turns.hours());
        let line = format!("# {:016x}", random.next());
        let replaced = Repository::configuration(&store).and_then(|was| {
            let text = format!("{}{line}\n", was.text);
            Repository::replace_configuration(&store, &was, &text)
        });
        match replaced {
            Ok(_) => self.known().configured.push(line),
            Err(e) => {
                self.known().refuse(Some(line), &e);
                self.check(host, "config", hour, &e);
            }
        }
    }

    /// Who was told that it is configured has it, whoever came later, and nobody else has changed it.
    pub fn check_configuration(&self) {
        let text = Repository::configuration(&self.store(Arc::new(Alone))).unwrap().text;
        let known = self.known();
        let is_there = |line: &String| text.lines().any(|other| other == line);
        assert!(known.configured.iter().all(is_there), "schedule {}: {text}", self.seed);
        assert!(!known.refused.iter().any(is_there), "schedule {}: {text}", self.seed);
    }
}
