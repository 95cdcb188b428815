//! A snapshot onto a target that is there: read, compared, and only what differs written, in one pass.
//!
//! Nothing of the target is saved. Interrupted, it is half written, and the same update run again completes
//! it: it goes by what it finds there.

use super::task::{Done, Task};
use super::types::UpdateOutcome;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::message::{Message, Setting, Verb, message};
use crate::base::uri::Shown;
use crate::chain::Chain;
use crate::image::write::{InPlace, OsMedium};
use crate::image::{Disk, ImageFormat, ImageUri, Intent, RawFile, ReadBy, Source, Unguarded};
use crate::repo::inside::refuse_target;
use crate::repo::live_file::{
    live_image_at, name_of_source, warn_if_not_durable, warn_if_unguarded,
};
use crate::repo::restored::RestoredNote;
use crate::repo::session::Reader;
use crate::view::update::{DiffSource, Update, Updated, whole};
use crate::view::{Restored, Samples, sample};
use std::fmt;
use std::fs::Metadata;
use std::path::Path;

/// A file without a byte holds no state of anything.
fn refuse_empty(path: &Path, meta: &Metadata) -> Result<()> {
    if !meta.is_file() || meta.len() > 0 {
        return Ok(());
    }
    let what = format!("{} is empty (0 bytes)", path.shown());
    Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
        "leave ",
        Setting::Update,
        " out, and use ",
        Setting::Force,
        " to replace it"
    ]))
}

/// What is known of the target without reading it.
#[derive(Default)]
struct Known {
    /// The snapshot that it is, and its number.
    snapshot: Option<(Chain, u64)>,
    /// Why there is none, if it was asked for.
    why_not: Option<String>,
}

impl Task<'_> {
    /// Brings a file, a device or an export to the snapshot.
    ///
    /// # Errors
    /// `NotFound` if it is not there; `Mismatch` if it does not seem to hold a state of the image;
    /// `InvalidInput` if it is a live image, or too small. After the first write the message says that it is
    /// half written.
    pub fn update(&self, image: &ImageUri, reader: Reader, context: &Context) -> Result<Done> {
        let format = match image.file() {
            Some(path) => {
                self.refuse(path, context)?;
                self.format_at(path)?
            }
            None => {
                self.refuse_live(name_of_source(self.repository, image, context)?, image)?;
                ImageFormat::RAW
            }
        };
        let by = ReadBy { via_qemu: true, backing_ok: self.request.backing_ok };
        let target = Disk::open_to_write(image, format, by, context)?;
        target.raw().into_iter().for_each(|raw| warn_if_unguarded(raw, context));
        let mut disk = target.in_place(&OsMedium)?;
        disk.check_free_space(self.chain.geometry().image_bytes)?;
        // What QEMU writes is not known by the times of its file alone.
        let file = target.raw().filter(|raw| !raw.is_device());
        let note = file.map(|raw| RestoredNote::of(self.repository, raw.path())).transpose()?;
        let known = match self.request.trust_target {
            false => Known::default(),
            true => match self.known(note.as_ref(), file, &reader) {
                Ok(snapshot) => Known { snapshot: Some(snapshot), why_not: None },
                Err(why) => Known { snapshot: None, why_not: Some(why.to_string()) },
            },
        };
        drop(reader);
        let samples = match known.snapshot.is_some() || self.request.force {
            true => None,
            false => Some(self.sample(target.source(), context)?),
        };
        if let Some(note) = &note {
            // Otherwise half of it would be taken for what it was.
            note.remove().map_err(|e| e.or_hint("nothing was written"))?;
        }
        let done = self.bring((target.source(), format), disk.as_mut(), known, samples, context)?;
        if let Some(raw) = target.raw() {
            raw.check_alone(Intent::Read)
                .map_err(|e| self.half_written(disk.as_ref(), format, e))?;
        }
        if let Some(raw) = file
            && let (Some(identity), Some(stat)) = (raw.identity(), raw.stable_stat())
        {
            self.note_restored(raw.path(), identity, stat, context);
        }
        warn_if_not_durable(&target, context);
        Ok(done)
    }

    fn refuse(&self, path: &Path, context: &Context) -> Result<()> {
        let place = path.shown();
        let meta = std::fs::metadata(path).map_err(|e| {
            let error = Error::os("open", &place, e);
            match error.kind() {
                ErrorKind::NotFound => {
                    error.hint(message!["leave ", Setting::Update, " out to restore to a new file"])
                }
                _ => error,
            }
        })?;
        self.refuse_live(live_image_at(self.repository, path, context)?, &place)?;
        refuse_target(self.repository, path)?;
        refuse_empty(path, &meta)
    }

    /// How the disk lies in a file: as was said, or as it looks if its name says the same. A guest can write
    /// any header into a raw disk.
    fn format_at(&self, path: &Path) -> Result<ImageFormat> {
        if let Some(format) = self.request.format {
            return Ok(format);
        }
        // Why it cannot be opened is said by who opens it to write.
        let Ok(file) = Unguarded::open(path) else { return Ok(ImageFormat::RAW) };
        if ImageFormat::within(&file) != ImageFormat::QCOW2 {
            return Ok(ImageFormat::RAW);
        }
        if ImageFormat::is_qcow2_by_name(path) && !self.request.force {
            return Ok(ImageFormat::QCOW2);
        }
        let what = format!("{} looks like a qcow2 image", path.shown());
        Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
            "choose its format with ",
            Setting::Format.to("qcow2"),
            " or ",
            Setting::Format.to("raw"),
        ]))
    }

    /// A live image is rolled back.
    fn refuse_live(&self, name: Option<String>, place: &impl fmt::Display) -> Result<()> {
        let Some(name) = name else { return Ok(()) };
        let rollback = Verb::Rollback.of(&name);
        let rollback = match name == self.request.name {
            true => rollback.with(Setting::To, self.reference()),
            false => rollback.asking(Setting::To),
        };
        let what = format!("{place} is the live file of \"{name}\"");
        Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
            "use ",
            rollback,
            ", which saves its present state first"
        ]))
    }

    /// The snapshot that the target is known to be, with its number; or why there is none.
    fn known(
        &self,
        note: Option<&RestoredNote>,
        target: Option<&RawFile>,
        reader: &Reader,
    ) -> std::result::Result<(Chain, u64), Message> {
        let (note, target) = note.zip(target).ok_or("it is a device, or not a raw file")?;
        let id = note.snapshot(target, self.image_id)?;
        let snapshot = reader.manifest().by_id(id);
        let snapshot = snapshot.ok_or("the snapshot that it was restored from has been dropped")?;
        let chain = reader.chain(self.repository, id)?;
        match chain.is_comparable(self.chain) {
            true => Ok((chain, snapshot.number)),
            false => {
                Err(format!("{} belongs to another chain", self.reference_to(snapshot)).into())
            }
        }
    }

    /// Brings the disk under `image`, whatever it is, to the snapshot.
    fn bring(
        &self,
        (image, format): (&dyn Source, ImageFormat),
        disk: &mut dyn InPlace,
        known: Known,
        samples: Option<Samples>,
        context: &Context,
    ) -> Result<Done> {
        let source = match &known.snapshot {
            Some((chain, _)) => DiffSource::Tables(chain),
            None => DiffSource::Scan(&whole),
        };
        let (target, seed, phase) = (self.chain, self.seed, Phase::Restore);
        let update = Update { image, target, source: &source, seed, phase };
        let done = update.execute(disk, context).map_err(|e| self.half_written(disk, format, e))?;
        let bytes = target.geometry().image_bytes;
        let Updated { written_bytes, read_bytes, data_bytes, seed_bytes, .. } = done;
        let longer_bytes = image.image_bytes().saturating_sub(bytes);
        Ok(Done {
            restored: Restored { bytes, data_bytes, proved: known.snapshot.is_none(), seed_bytes },
            update: Some(UpdateOutcome {
                written_bytes,
                matched_bytes: bytes.saturating_sub(written_bytes),
                read_bytes,
                samples,
                trusted: known.snapshot.map(|(_, number)| number),
                not_trusted: known.why_not,
            }),
            untouched_bytes: if disk.has_fixed_length() { longer_bytes } else { 0 },
        })
    }

    /// Fails unless the disk seems to hold a state of the image.
    fn sample(&self, image: &dyn Source, context: &Context) -> Result<Samples> {
        let samples = sample(image, self.chain, context)?;
        if samples.is_alike() {
            return Ok(samples);
        }
        let (name, reference) = (image.name(), self.reference());
        let what = match samples.compared {
            0 => format!("{reference} has no data to compare {name} with"),
            compared => format!(
                "{name} does not seem to hold a state of \"{}\": of {compared} sampled blocks, {} match \
                 {reference}",
                self.request.name, samples.matched
            ),
        };
        Err(Error::new(ErrorKind::Mismatch, what).hint(message![
            "use ",
            Setting::Force,
            " to overwrite it anyway"
        ]))
    }
}
