//! What `thin_delta` prints (thin-provisioning-tools): the differences between two thin volumes of LVM, in
//! blocks of the pool, whose size it states.
//!
//! ```xml
//! <superblock … data_block_size="128" …>         sectors of 512 bytes
//!   <diff left="1" right="2">
//!     <same begin="0" length="4"/>
//!     <different begin="4" length="1"/>           also left_only, right_only
//!   </diff>
//! </superblock>
//! ```
//!
//! With `--verbose`, `begin` and `length` are in `<range …/>` within these.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::ByteRange;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

const SECTOR_BYTES: u64 = 512;
/// The largest block of a pool, in sectors: 1 GiB (the kernel's Documentation, thin-provisioning.rst).
const MAX_BLOCK_SECTORS: u64 = 1 << 21;

/// The ranges that differ.
///
/// # Errors
/// `InvalidInput`, with the byte at which it is wrong; also if it is not whole.
pub(super) fn parse(text: &str) -> Result<Vec<ByteRange>> {
    let mut reader = Reader::from_str(text);
    let mut found = Found::default();
    loop {
        let at = reader.buffer_position();
        let invalid = |what: &str| {
            let what = format!("byte {at}: {what}");
            Error::new(ErrorKind::InvalidInput, what).hint("use the output of thin_delta")
        };
        match reader.read_event() {
            Ok(Event::Start(tag)) => found.open(&tag).map_err(invalid)?,
            Ok(Event::Empty(tag)) => {
                found.open(&tag).map_err(invalid)?;
                found.close(tag.name().as_ref());
            }
            Ok(Event::End(tag)) => found.close(tag.name().as_ref()),
            Ok(Event::Eof) if found.is_whole => return Ok(found.ranges),
            Ok(Event::Eof) => return Err(invalid("it is incomplete")),
            Ok(Event::DocType(_)) => return Err(invalid("a document type is not expected")),
            Ok(_) => {}
            // What the parser says quotes the text, which may hold anything.
            Err(_) => return Err(invalid("invalid XML")),
        }
    }
}

#[derive(Default)]
struct Found {
    ranges: Vec<ByteRange>,
    block_bytes: Option<u64>,
    /// What the ranges within it are.
    is_different: Option<bool>,
    has_diff: bool,
    /// Its end was there.
    is_whole: bool,
}

impl Found {
    fn open(&mut self, tag: &BytesStart<'_>) -> Result<(), &'static str> {
        if self.is_whole {
            return Err("something follows the end");
        }
        match tag.name().as_ref() {
            "superblock" if self.block_bytes.is_none() => {
                let sectors = number(tag, "data_block_size")?.ok_or("no data_block_size")?;
                if !(1..=MAX_BLOCK_SECTORS).contains(&sectors) {
                    return Err("invalid data_block_size");
                }
                self.block_bytes = Some(sectors * SECTOR_BYTES);
            }
            "diff" if self.block_bytes.is_some() && !self.has_diff => self.has_diff = true,
            name @ ("same" | "different" | "left_only" | "right_only") if self.has_diff => {
                self.is_different = Some(name != "same");
                self.add(tag)?;
            }
            "range" if self.is_different.is_some() => self.add(tag)?,
            _ => return Err("an unknown element"),
        }
        Ok(())
    }

    fn add(&mut self, tag: &BytesStart<'_>) -> Result<(), &'static str> {
        let (Some(begin), Some(length)) = (number(tag, "begin")?, number(tag, "length")?) else {
            let is_outer = tag.name().as_ref() != "range" && tag.attributes().next().is_none();
            return if is_outer { Ok(()) } else { Err("no begin or length") };
        };
        let block_bytes = self.block_bytes.unwrap_or_default();
        let range = begin.checked_mul(block_bytes).zip(length.checked_mul(block_bytes));
        let range = range.filter(|(offset, bytes)| offset.checked_add(*bytes).is_some());
        let range = range.map(|(offset, bytes)| ByteRange { offset, bytes });
        let range = range.ok_or("begin and length extend beyond 2^64 bytes")?;
        self.ranges.extend((self.is_different == Some(true)).then_some(range));
        Ok(())
    }

    fn close(&mut self, name: &str) {
        match name {
            "superblock" => self.is_whole = self.has_diff,
            "range" | "diff" => {}
            _ => self.is_different = None,
        }
    }
}

fn number(tag: &BytesStart<'_>, name: &str) -> Result<Option<u64>, &'static str> {
    let invalid = "an invalid number";
    let Some(found) = tag.try_get_attribute(name).map_err(|_| invalid)? else { return Ok(None) };
    let text: &str = &found.value;
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number).map(Some).ok_or(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        r#"<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="9">"#;

    #[test]
    fn what_differs_is_counted_in_blocks_of_the_pool() {
        let of = |inner: &str| {
            parse(&format!("{HEAD}<diff left=\"1\" right=\"2\">{inner}</diff></superblock>\n"))
        };
        let block = |first: u64, count: u64| ByteRange { offset: first << 16, bytes: count << 16 };
        let plain = r#"<same begin="0" length="4"/> <different begin="4" length="1"/>
            <left_only begin="8" length="2"/><same begin="20" length="10"/>
            <right_only begin="40" length="2"/>"#;
        let verbose = r#"<same><range begin="0" data_begin="0" length="4"/></same>
            <different><range begin="4" left_data_begin="4" right_data_begin="100" length="1"/></different>
            <left_only><range begin="8" data_begin="8" length="2"/></left_only>
            <same><range begin="20" data_begin="10" length="10"/></same>
            <right_only><range begin="40" data_begin="200" length="2"/></right_only>"#;
        for text in [plain, verbose] {
            assert_eq!(of(text).unwrap(), [block(4, 1), block(8, 2), block(40, 2)]);
        }
        assert_eq!(of("").unwrap(), []);
        for wrong in [
            r#"<different begin="4"/>"#,
            r#"<different begin="-4" length="1"/>"#,
            r#"<different begin="4" length="999999999999999"/>"#,
            r#"<other begin="4" length="1"/>"#,
            r#"<range begin="4" length="1"/>"#,
            r#"<different begin="4" length="1">"#,
            "<a",
            "</a\nb>",
        ] {
            let error = of(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_is_not_whole_or_states_no_block_size_is_refused() {
        let whole = format!(
            "{HEAD}<diff left=\"1\" right=\"2\"><same begin=\"0\" length=\"4\"/></diff></superblock>"
        );
        assert!(parse(&whole).is_ok());
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        for head in [
            "<superblock>",
            "<superblock data_block_size=\"0\">",
            "<superblock data_block_size=\"x\">",
            "",
        ] {
            assert!(parse(&whole.replace(HEAD, head)).is_err(), "{head}");
        }
        assert!(parse(&format!("{whole}<superblock data_block_size=\"8\">")).is_err());
        assert!(parse(&format!("<!DOCTYPE x [<!ENTITY a \"b\">]>{whole}")).is_err());
    }
}
