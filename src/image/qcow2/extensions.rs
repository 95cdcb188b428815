//! What follows the fixed fields of a qcow2 header.

use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::{U32, U64};

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const DATA_FILE: u32 = 0x4441_5441;

/// An entry of the table of names: kind, bit, name.
const FEATURE_BYTES: usize = 48;
const INCOMPATIBLE: u8 = 0;

/// Where the persistent bitmaps are described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapDirectory {
    /// How many there are.
    pub count: u32,
    /// Where it is in the file.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// Those of a header that matter here.
#[derive(Debug, Default)]
pub(super) struct Extensions<'a> {
    pub backing_format: Option<&'a [u8]>,
    pub data_file: Option<&'a [u8]>,
    pub bitmaps: Option<BitmapDirectory>,
    feature_names: Option<&'a [u8]>,
}

impl<'a> Extensions<'a> {
    /// Reads the area of extensions, to its end or to the mark of it. What is not known is passed over.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(area: &'a [u8]) -> Result<Self, &'static str> {
        let mut found = Self::default();
        let mut rest = area;
        while let Ok(([kind, bytes], after)) = <[U32; 2]>::read_from_prefix(rest) {
            if kind.get() == 0 {
                break;
            }
            let bytes = bytes.get() as usize;
            let data = after.get(..bytes).ok_or("an extension extends beyond its end")?;
            let slot = match kind.get() {
                BACKING_FORMAT => Some(&mut found.backing_format),
                DATA_FILE => Some(&mut found.data_file),
                FEATURE_NAMES => Some(&mut found.feature_names),
                _ => None,
            };
            if slot.is_some_and(|slot| slot.replace(data).is_some()) {
                return Err("duplicate extension");
            }
            if kind.get() == BITMAPS && found.bitmaps.replace(bitmaps(data)?).is_some() {
                return Err("duplicate extension");
            }
            rest = after.get(bytes.next_multiple_of(8)..).unwrap_or_default();
        }
        if found.data_file.is_some_and(|name| name.is_empty() || name.contains(&0)) {
            return Err("the name of its data file");
        }
        Ok(found)
    }

    /// What an incompatible feature is called.
    pub fn feature_name(&self, bit: u32) -> Option<String> {
        let mut entries = self.feature_names?.chunks_exact(FEATURE_BYTES);
        let name = entries.find_map(|entry| match entry {
            [INCOMPATIBLE, number, name @ ..] if u32::from(*number) == bit => Some(name),
            _ => None,
        })?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }
}

fn bitmaps(data: &[u8]) -> Result<BitmapDirectory, &'static str> {
    let (count, rest) = U32::read_from_prefix(data).map_err(|_| WRONG_BITMAPS)?;
    let (_, rest) = U32::read_from_prefix(rest).map_err(|_| WRONG_BITMAPS)?;
    let [bytes, offset] = <[U64; 2]>::read_from_bytes(rest).map_err(|_| WRONG_BITMAPS)?;
    Ok(BitmapDirectory { count: count.get(), offset: offset.get(), bytes: bytes.get() })
}

const WRONG_BITMAPS: &str = "where its bitmaps are";
