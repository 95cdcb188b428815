//! The rounds of one setting: every piece of work in turn, each with its ceiling beside it.

use super::ceiling::{self, Pieces};
use super::image::{ImagePlan, UNIT_BYTES};
use super::meter::metered;
use super::report::{Cache, Point, Row, Sample, Setting, Work};
use super::request::Request;
use super::scratch::Scratch;
use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::base::uri::Shown;
use crate::chain::Chain;
use crate::delta::BASE_FRAME_BYTES;
use crate::ops::rollback::types::RollbackRequest;
use crate::ops::snapshot::types::SnapshotRequest;
use crate::ops::verify::types::VerifyScope;
use crate::view::restore;

use crate::repo::Repository;
use crate::repo::config::Defaults;
use crate::repo::host::HostState;
use crate::repo::manifest::Snapshot;
use crate::repo::reference::At;
use crate::scan::{BadMedium, Index, Scope, scan};
use crate::tracking::Track;

use crate::image::write::NewFile;
use crate::image::{RawFile, Source};
use crate::store::{LocalStore, OsDisk};
use crate::view::SnapshotView;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "image";
/// Of a scattered read.
const RANGE_BYTES: u64 = 64 << 10;
const RANGES: u64 = 1000;
const SETTLE: Duration = Duration::from_millis(150);

/// What a piece of work says of itself.
#[derive(Default, Clone, Copy)]
struct Done {
    read_bytes: u64,
    written_bytes: u64,
}

/// Measures one setting.
pub struct Rounds<'a> {
    request: &'a Request,
    setting: Setting,
    scratch: &'a Scratch,
    context: Context,
    plan: &'a ImagePlan,
    image: PathBuf,
    /// Where the bytes are at the beginning of each piece of work of this round.
    cache: Cache,
    repository: Repository,
    /// The snapshot that each round begins at, and which the image equals then.
    tip: u64,
    /// Rounds of changes made to the image so far that stay.
    links: u64,
    point: Point,
}

impl<'a> Rounds<'a> {
    /// For an image that `plan` made, or fits, in `scratch`.
    pub fn new(
        request: &'a Request,
        setting: Setting,
        scratch: &'a Scratch,
        plan: &'a ImagePlan,
        image: PathBuf,
        context: &Context,
    ) -> Result<Self> {
        let context = context.clone().with_threads(setting.threads);
        let repository = new_repository(request, setting, &scratch.file("repository"))?;
        let (changed_bytes, base_bytes, delta_bytes) = (0, 0, 0);
        let point = Point { setting, changed_bytes, base_bytes, delta_bytes, rows: Vec::new() };
        Ok(Self {
            request,
            setting,
            scratch,
            context,
            plan,
            image,
            cache: Cache::Warm,
            repository,
            tip: 0,
            links: 0,
            point,
        })
    }

    /// All runs of all pieces of work, first warm, then cold. The image is afterwards what it was.
    pub fn run(mut self) -> Result<Point> {
        let caches: &[Cache] =
            if self.request.cold { &[Cache::Warm, Cache::Cold] } else { &[Cache::Warm] };
        for &cache in caches {
            self.cache = cache;
            for _ in 0..self.request.runs {
                self.round()?;
            }
        }
        self.undo_chain()?;
        let order = |row: &Row| {
            let work = Work::ALL.iter().position(|work| *work == row.work);
            (work, row.cache == Cache::Cold)
        };
        self.point.rows.sort_by_key(order);
        Ok(self.point)
    }

    /// Every piece of work once. A long chain is made only once.
    fn round(&mut self) -> Result<()> {
        if self.tip == 0 || self.setting.chain == 1 {
            let folder = self.scratch.file("repository");
            self.repository = new_repository(self.request, self.setting, &folder)?;
            self.base()?;
            self.grow_chain()?;
        }
        self.unchanged()?;
        let place = self.links + 1;
        self.plan.change(&self.image, place, self.setting.change, &self.context)?;
        self.scan()?;
        self.incremental()?;
        self.restore()?;
        self.verify()?;
        self.ranges()?;
        self.rollback()
    }

    fn base(&mut self) -> Result<()> {
        let frame_bytes = u64::from(BASE_FRAME_BYTES).max(self.setting.block_size.bytes().into());
        let compression = self.request.compression;
        let request = self.snapshot_request();
        let done = self.measure(
            Work::Base,
            |it| it.take(&request),
            |it| ceiling::compress(&it.image, compression, frame_bytes, &it.context),
        )?;
        self.point.base_bytes = done.written_bytes;
        Ok(())
    }

    /// The deltas between the base and the measured one.
    fn grow_chain(&mut self) -> Result<()> {
        for _ in 1..self.setting.chain {
            self.links += 1;
            self.plan.change(&self.image, self.links, self.setting.change, &self.context)?;
            self.take(&self.snapshot_request())?;
        }
        self.tip = self.latest()?.number;
        Ok(())
    }

    fn undo_chain(&mut self) -> Result<()> {
        if self.links > 0 { self.roll_back_to(1).map(|_| ()) } else { Ok(()) }
    }

    fn unchanged(&mut self) -> Result<()> {
        let request = SnapshotRequest { full_scan: true, ..self.snapshot_request() };
        self.measure(Work::Unchanged, |it| it.take(&request), Self::read_image)?;
        // The next one shall have the tip as its parent.
        self.repository.delete(NAME, &At::Latest, false, &self.context).map(|_| ())
    }

    fn scan(&mut self) -> Result<()> {
        let scan_alone = |it: &Self| {
            let image = RawFile::open(&it.image)?;
            let chain = it.newest()?;
            let found = scan(
                &image,
                &Index::Parent(&chain),
                Scope::Whole,
                BadMedium::Fail,
                &it.context,
                |_| Ok(()),
            )?;
            Ok(Done { read_bytes: found.read_bytes, written_bytes: 0 })
        };
        self.measure(Work::Scan, scan_alone, Self::read_image).map(|_| ())
    }

    fn incremental(&mut self) -> Result<()> {
        let request = self.snapshot_request();
        let done = self.measure(
            Work::Incremental,
            |it| it.take(&request),
            |it| {
                it.read_image()?;
                // As many bytes as this delta has, or that of the round before.
                let bytes = match it.point.delta_bytes {
                    0 => it.latest()?.file_bytes,
                    bytes => bytes,
                };
                let path = it.scratch.file("ceiling");
                ceiling::write_new(&path, bytes, &pieces_of(bytes))
            },
        )?;
        remove(&self.scratch.file("ceiling"))?;
        self.point.delta_bytes = done.written_bytes;
        self.point.changed_bytes = self.latest()?.changed_bytes;
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        let pieces = ceiling::data_of(&RawFile::open(&self.image)?, 1 << 20)?;
        let image_bytes = self.plan.image_bytes;
        let path = self.scratch.file("restored");
        let restore_whole = |it: &Self| {
            let chain = it.newest()?;
            let mut target = NewFile::create(&path, chain.geometry().image_bytes, false)?;
            let restored = restore(&chain, None, &mut target, &it.context)?;
            Ok(Done { read_bytes: 0, written_bytes: restored.data_bytes })
        };
        let copy = self.scratch.file("ceiling");
        self.measure(Work::Restore, restore_whole, |_| {
            ceiling::write_new(&copy, image_bytes, &pieces)
        })?;
        // The restored one stays, for the ceiling of the rollback.
        remove(&copy)
    }

    fn verify(&mut self) -> Result<()> {
        let verify = |it: &Self| {
            let verified = it.repository.verify(&VerifyScope::All, false, &it.context)?;
            match verified.damaged.first() {
                Some(damage) => Err(Error::corrupt(damage.message.to_string())),
                None => Ok(Done::default()),
            }
        };
        self.measure(Work::Verify, verify, |it| ceiling::decode(it.newest()?.layers(), &it.context))
            .map(|_| ())
    }

    fn ranges(&mut self) -> Result<()> {
        let pieces = self.scattered_ranges();
        let read = |it: &Self| {
            let view = SnapshotView::new(it.newest()?);
            let mut buffer = Vec::new();
            for &(offset, bytes) in &pieces {
                it.context.check()?;
                view.read(offset, bytes as usize, &mut buffer)?;
            }
            Ok(Done::default())
        };
        self.measure(Work::Range, read, |it| ceiling::read_pieces(&it.image, &pieces)).map(|_| ())
    }

    fn rollback(&mut self) -> Result<()> {
        let pieces = self.changed_pieces();
        let to = self.tip;
        let copy = self.scratch.file("restored");
        self.measure(
            Work::Rollback,
            |it| it.roll_back_to(to),
            |_| ceiling::write_over(&copy, &pieces),
        )?;
        remove(&copy)?;
        self.repository.delete(NAME, &At::Latest, false, &self.context).map(|_| ())
    }

    /// Runs a piece of work and its ceiling, both from the same state of the page cache. Which comes
    /// first alternates: many devices are faster after a rest, for a while.
    fn measure(
        &mut self,
        work: Work,
        run: impl FnOnce(&Self) -> Result<Done>,
        ceiling: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Done> {
        let cache = self.cache;
        self.context.check()?;
        self.context.note(format!("{work}, {cache}"));
        let samples = self.point.rows.iter().find(|r| (r.work, r.cache) == (work, cache));
        let ceiling_first = samples.is_some_and(|row| row.samples.len() % 2 == 1);
        let mut ceiling = Some(ceiling);
        let mut measure_ceiling = |it: &Self| match ceiling.take() {
            Some(ceiling) => {
                it.set_cache()?;
                Ok(metered(|| ceiling(it))?.seconds)
            }
            None => Ok(0.0),
        };
        let before_work = if ceiling_first { measure_ceiling(self)? } else { 0.0 };
        self.set_cache()?;
        let before = self.repository.traffic();
        let of_work = metered(|| run(self))?;
        let after = self.repository.traffic();
        let ceiling_seconds = before_work + measure_ceiling(self)?;
        let sample = Sample { seconds: of_work.seconds, ceiling_seconds };
        let done = of_work.value;
        let covered_bytes =
            if work == Work::Range { RANGES * RANGE_BYTES } else { self.plan.image_bytes };
        let row = Row {
            work,
            cache,
            covered_bytes,
            read_bytes: done.read_bytes + after.read_bytes - before.read_bytes,
            written_bytes: done.written_bytes,
            decoded_bytes: after.decoded_bytes - before.decoded_bytes,
            peak_bytes: of_work.peak_bytes,
            samples: vec![sample],
        };
        let is_same = |r: &&mut Row| (r.work, r.cache) == (work, cache);
        match self.point.rows.iter_mut().find(is_same) {
            Some(there) => {
                there.samples.push(sample);
                there.peak_bytes = there.peak_bytes.max(row.peak_bytes);
            }
            None => self.point.rows.push(row),
        }
        Ok(done)
    }

    /// Brings image and repository into the page cache, or out of it.
    fn set_cache(&self) -> Result<()> {
        // What the step before has left to the kernel (writing back, discarding) shall not be counted
        // here.
        nix::unistd::sync();
        std::thread::sleep(SETTLE);
        let mut files = vec![self.image.clone()];
        let folder = self.scratch.file("repository").join(NAME);
        if let Ok(entries) = std::fs::read_dir(folder) {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        for path in files {
            let failed = |e| Error::os("read", path.shown(), e);
            let file = File::open(&path).map_err(failed)?;
            match self.cache {
                Cache::Warm => ceiling::read_pieces(&path, &pieces_of(len(&file)?))?,
                Cache::Cold => {
                    file.sync_all().map_err(failed)?;
                    let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                    posix_fadvise(&file, 0, 0, advice).map_err(|e| failed(e.into()))?;
                }
            }
        }
        Ok(())
    }

    fn read_image(&self) -> Result<()> {
        ceiling::read_mapped(&self.image, &self.context)
    }

    /// The chain of the newest snapshot.
    fn newest(&self) -> Result<Chain> {
        let reader = self.repository.read(NAME, &self.context)?;
        self.repository.chain(&reader, reader.find(&At::Latest)?.id)
    }

    fn snapshot_request(&self) -> SnapshotRequest {
        SnapshotRequest {
            image: self.image.clone().into(),
            name: Some(NAME.into()),
            compression: Some(self.request.compression),
            // What it measures is the scan.
            track: Some(Track::None),
            ..SnapshotRequest::default()
        }
    }

    fn take(&self, request: &SnapshotRequest) -> Result<Done> {
        let snapshot = self.repository.snapshot(request, &self.context)?.snapshot;
        let read_bytes = snapshot.read_bytes.unwrap_or(0);
        Ok(Done { read_bytes, written_bytes: snapshot.file_bytes })
    }

    fn latest(&self) -> Result<Snapshot> {
        let reader = self.repository.read(NAME, &self.context)?;
        reader.find(&At::Latest).cloned()
    }

    fn roll_back_to(&self, number: u64) -> Result<Done> {
        let request = RollbackRequest::new(NAME, At::Number(number));
        let work = self.repository.rollback(&request, &self.context)?.work;
        Ok(Done { read_bytes: work.read_bytes, written_bytes: work.written_bytes })
    }

    /// What the round changed in the image.
    fn changed_pieces(&self) -> Pieces {
        let units = self.plan.image_bytes / UNIT_BYTES;
        let round = self.links + 1;
        let is_changed = |unit: &u64| self.plan.changes(*unit, round, self.setting.change);
        let mut pieces = Pieces::new();
        for unit in (0..units).filter(is_changed) {
            let offset = unit * UNIT_BYTES;
            match pieces.last_mut() {
                Some((start, bytes)) if *start + *bytes == offset && *bytes < 1 << 20 => {
                    *bytes += UNIT_BYTES;
                }
                _ => pieces.push((offset, UNIT_BYTES)),
            }
        }
        pieces
    }

    fn scattered_ranges(&self) -> Pieces {
        let places = (self.plan.image_bytes / RANGE_BYTES).max(1);
        // A stride that shares no factor with the number of places comes by each of them.
        let stride = (places * 5 / 8) | 1;
        (0..RANGES)
            .map(|index| (index.wrapping_mul(stride) % places * RANGE_BYTES, RANGE_BYTES))
            .collect()
    }
}

/// An empty repository, in the place of one that may be there.
fn new_repository(request: &Request, setting: Setting, folder: &Path) -> Result<Repository> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(|e| Error::os("remove", folder.shown(), e))?;
    }
    std::fs::create_dir(folder).map_err(|e| Error::os("create", folder.shown(), e))?;
    let store = LocalStore::new(Arc::new(OsDisk::new(folder.into())));
    let defaults = Defaults {
        block_size: setting.block_size,
        compression: request.compression,
        ..Defaults::default()
    };
    // What is measured leaves nothing behind elsewhere.
    let host = HostState::in_folder(&folder.join(".state"));
    Repository::init_in(Arc::new(store), defaults, host)
}

/// A file of a length, in pieces of 1 MiB.
fn pieces_of(bytes: u64) -> Pieces {
    (0..bytes).step_by(1 << 20).map(|offset| (offset, (bytes - offset).min(1 << 20))).collect()
}

fn len(file: &File) -> Result<u64> {
    file.metadata().map(|meta| meta.len()).map_err(|e| Error::io("cannot stat a file", e))
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|e| Error::os("remove", path.shown(), e))
}
