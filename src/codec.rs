//! Compression of frames. A frame is stored as it is where compression does not pay.

use crate::base::error::{Error, ErrorKind, Result};
use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use zstd::bulk::Compressor;

/// How the bytes of a frame are encoded (FORMAT.md R2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Stored = 0,
    /// One LZ4 block.
    Lz4 = 1,
    /// One zstd frame.
    Zstd = 2,
}

impl Codec {
    /// From the byte in the record header.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stored),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Store frames as they are.
    None,
    /// LZ4: the default, fast both ways.
    #[default]
    Lz4,
    /// zstd at a level from 1 to 19: smaller, slower to read.
    Zstd(i32),
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let level = |n: &str| n.parse::<i32>().ok().filter(|n| (1..=19).contains(n));
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "lz4" => Ok(Self::Lz4),
            None if text == "zstd" => Ok(Self::Zstd(1)),
            Some(("zstd", n)) if level(n).is_some() => Ok(Self::Zstd(level(n).unwrap_or(1))),
            _ => {
                let what = format!("unknown compression \"{text}\"");
                Err(Error::new(ErrorKind::InvalidInput, what)
                    .hint("use lz4, zstd, zstd:1 to zstd:19, or none"))
            }
        }
    }
}

impl Compression {
    /// How many threads may compress frames of a length at once: on large ones zstd takes tens of
    /// megabytes each.
    pub fn most_threads(self, frame_bytes: u64) -> usize {
        match self {
            Self::Zstd(6..) if frame_bytes > 256 << 10 => 1,
            Self::Zstd(6..) if frame_bytes > 128 << 10 => 4,
            Self::Zstd(_) if frame_bytes > 256 << 10 => 4,
            _ => usize::MAX,
        }
    }
}

/// Encodes a frame and says how. The payload is the frame itself or in `out`, whose memory is used
/// again and again.
///
/// Compression must save at least 1/64 of the frame: less is not worth the time to undo it at every
/// read.
pub fn encode<'a>(
    compression: Compression,
    raw: &'a [u8],
    out: &'a mut Vec<u8>,
) -> Result<(Codec, &'a [u8])> {
    let most = match compression {
        Compression::None => return Ok((Codec::Stored, raw)),
        Compression::Lz4 => lz4_flex::block::get_maximum_output_size(raw.len()),
        Compression::Zstd(_) => zstd::zstd_safe::compress_bound(raw.len()),
    };
    if out.len() < most {
        out.resize(most, 0);
    }
    let (codec, length) = match compression {
        Compression::Zstd(level) => {
            (Codec::Zstd, zstd_into(level, raw, out).map_err(|e| failed(&e))?)
        }
        _ => (Codec::Lz4, lz4_flex::block::compress_into(raw, out).map_err(|e| failed(&e))?),
    };
    match out.get(..length) {
        Some(payload) if length + raw.len() / 64 <= raw.len() => Ok((codec, payload)),
        _ => Ok((Codec::Stored, raw)),
    }
}

/// With one context for each thread: making one costs more than a frame, and fragments the memory.
fn zstd_into(level: i32, raw: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
    thread_local! {
        static CONTEXT: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|kept| {
        let mut context = match kept.take() {
            Some((of, context)) if of == level => context,
            _ => Compressor::new(level)?,
        };
        let length = context.compress_to_buffer(raw, out);
        *kept = Some((level, context));
        length
    })
}

fn failed(error: &dyn fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("compression failed: {error}"))
}

/// Decodes a payload to exactly the length of `raw`.
///
/// # Errors
/// `Corrupt` if the payload does not decode to that length.
pub fn decode(codec: Codec, payload: &[u8], raw: &mut [u8]) -> Result<()> {
    let failed = |e: &dyn fmt::Display| Error::corrupt(format!("cannot decode the frame: {e}"));
    let length = match codec {
        Codec::Stored => {
            if payload.len() == raw.len() {
                raw.copy_from_slice(payload);
            }
            payload.len()
        }
        Codec::Lz4 => lz4_flex::block::decompress_into(payload, raw).map_err(|e| failed(&e))?,
        Codec::Zstd => zstd::bulk::decompress_to_buffer(payload, raw).map_err(|e| failed(&e))?,
    };
    if length != raw.len() {
        let what = format!("the frame decodes to {length} bytes instead of {}", raw.len());
        return Err(Error::corrupt(what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_incompressible_ones_are_stored() {
        let text: Vec<u8> = (0..65536u32).map(|i| (i / 97) as u8).collect();
        let mut noise = vec![0; 65536];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for compression in ["none", "lz4", "zstd", "zstd:3"] {
            let compression: Compression = compression.parse().unwrap();
            for (raw, squeezable) in [(&text, true), (&noise, false)] {
                let mut out = Vec::new();
                let (codec, payload) = encode(compression, raw, &mut out).unwrap();
                let stored = compression == Compression::None || !squeezable;
                assert_eq!(codec == Codec::Stored, stored);
                let mut back = vec![1; raw.len()];
                decode(codec, payload, &mut back).unwrap();
                assert_eq!(&back, raw);
            }
        }
    }

    #[test]
    fn wrong_length_and_garbage_are_corrupt() {
        let mut out = Vec::new();
        for compression in [Compression::Lz4, Compression::Zstd(1)] {
            let (codec, payload) = encode(compression, &[7; 8192], &mut out).unwrap();
            for length in [4096, 8191, 8193, 100_000] {
                let error = decode(codec, payload, &mut vec![0; length]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
            assert!(decode(codec, &[0xff; 50], &mut [0; 8192]).is_err());
        }
    }

    #[test]
    fn compression_is_parsed_strictly() {
        for text in ["gzip", "zstd:0", "zstd:20", "zstd:", "lz4:1", ""] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
        assert_eq!("zstd:7".parse::<Compression>().unwrap().to_string(), "zstd:7");
    }
}
