//! Chains of delta files in a temporary folder, made of images without a scan.

use super::{BLOCK_BYTES, Image};
use imgsnap::base::digest::{Digest, DigestAlgorithm, DigestKey, Hasher, ImageDigest};
use imgsnap::base::units::{BlockRange, BlockSize};
use imgsnap::chain::Chain;
use imgsnap::codec::{self, Codec, Compression};
use imgsnap::delta::{Caches, Delta, DeltaWriter, EncodedFrames, Identity, Piece, Segmenter};
use imgsnap::format::{Features, Header, Lineage, RunKind};
use imgsnap::store::{LocalStore, OsDisk, Store};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// What the files of a chain hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Tables, and frames of one byte: for whoever never decodes one.
    Tables,
    /// Tables and frames, those of LZ4.
    All,
}

/// Makes chains, layer by layer. A clone of it goes on as a branch. The folder goes with the last.
#[derive(Clone)]
pub struct ChainMaker {
    folder: Arc<tempfile::TempDir>,
    store: Arc<dyn Store>,
    content: Content,
    /// Files, in all branches.
    made: Arc<AtomicU64>,
    hasher: Hasher,
    /// Of each block; none for zeros.
    digests: Vec<Option<Digest>>,
    image_digest: ImageDigest,
    parent: Option<Lineage>,
    /// Base first.
    files: Vec<String>,
}

impl ChainMaker {
    /// A chain whose base is `image`.
    pub fn new(image: &Image, content: Content) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let disk = Arc::new(OsDisk::new(folder.path().into()));
        let hasher = Hasher::new(DigestAlgorithm::Xxh3, DigestKey([0x5a; 32]));
        let mut maker = Self {
            folder,
            store: Arc::new(LocalStore::new(disk)),
            content,
            made: Arc::new(AtomicU64::new(1)),
            digests: vec![None; image.block_count() as usize],
            image_digest: hasher.empty_image(image.image_bytes()),
            hasher,
            parent: None,
            files: Vec::new(),
        };
        maker.add(image, 0..image.block_count());
        maker
    }

    /// Adds `layers` layers, each with a share of the blocks changed.
    pub fn grow(&mut self, image: &mut Image, layers: usize, percent: f64, seed: u64) {
        for layer in 0..layers {
            let blocks = image.change(percent, seed + layer as u64);
            self.add(image, blocks);
        }
    }

    /// Adds a layer: these blocks of the image, ascending.
    fn add(&mut self, image: &Image, blocks: impl IntoIterator<Item = u64>) {
        let id = Uuid::from_u128(self.made.fetch_add(1, Ordering::Relaxed).into());
        let (block_size, frame_bytes) =
            (BlockSize::DEFAULT, if self.parent.is_none() { 64 << 10 } else { 128 << 10 });
        let header = Header {
            features: Features::default(),
            file_id: id,
            image_id: Uuid::from_u128(1),
            block_size,
            frame_blocks: Header::frame_blocks_for(block_size, frame_bytes),
            algorithm: self.hasher.algorithm(),
            key: self.hasher.key(),
        };
        let name = format!("{id}.delta");
        let file = std::fs::File::create_new(self.folder.path().join(&name)).unwrap();
        let mut file = std::io::BufWriter::new(file);
        let mut out = |bytes: &[u8]| {
            file.write_all(bytes).unwrap();
            Ok(())
        };
        let mut writer = DeltaWriter::new(&header, &mut out);
        let mut segmenter = Segmenter::new(block_size, header.frame_blocks);
        let mut bytes = [0; BLOCK_BYTES];
        for block in blocks {
            let old = &mut self.digests[block as usize];
            if let Some(old) = old.take() {
                self.image_digest = self.image_digest.minus(self.hasher.term(block, old));
            }
            if image.block(block, &mut bytes) {
                let digest = self.hasher.digest(&bytes);
                segmenter.data(block, digest, &bytes);
                *old = Some(digest);
                self.image_digest = self.image_digest.plus(self.hasher.term(block, digest));
            } else if self.parent.is_some() {
                segmenter.run(RunKind::Zero, BlockRange { first: block, count: 1 });
            }
            segmenter.pieces().for_each(|piece| write(&mut writer, piece, self.content));
        }
        let last = segmenter.finish();
        last.into_iter().for_each(|piece| write(&mut writer, piece, self.content));
        let identity = Identity {
            snapshot_id: id,
            number: self.files.len() as u64 + 1,
            label: None,
            time_seconds: 1_760_000_000,
            time_nanoseconds: 0,
        };
        let image_bytes = image.image_bytes();
        writer.finish(&identity, self.parent, image_bytes, self.image_digest).unwrap();
        file.flush().unwrap();
        let image_digest = self.image_digest;
        self.parent = Some(Lineage { parent_id: id, image_bytes, image_digest });
        self.files.push(name);
    }

    /// Where there is room for other files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The chain of the first `layers` layers. What was read is in `caches`.
    pub fn open(&self, layers: usize, caches: &Caches) -> Chain {
        let files = self.files[..layers].iter().rev();
        let open = |name: &String| Delta::open(self.store.clone(), name, caches).unwrap();
        Chain::link(files.map(|name| Arc::new(open(name))).collect()).unwrap()
    }
}

fn write(writer: &mut DeltaWriter<'_>, piece: Piece, content: Content) {
    let mut frames = EncodedFrames::default();
    match (piece, content) {
        (Piece::Table(page), _) => return writer.table(page).unwrap(),
        (Piece::Frame { block_count, .. }, Content::Tables) => {
            frames.push(Codec::Stored, &[0], block_count);
        }
        (Piece::Frame { raw, block_count }, Content::All) => {
            let mut out = Vec::new();
            let (codec, payload) = codec::encode(Compression::Lz4, &raw, &mut out).unwrap();
            frames.push(codec, payload, block_count);
        }
        (other, _) => {
            drop(other);
            unreachable!("nothing is copied here")
        }
    }
    writer.frames(frames).unwrap();
}
