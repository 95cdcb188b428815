//! Numbers and times as people read them.

use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::units::{BlockRange, Geometry, NamedBlocks};
use imgsnap::base::uri::Shown;
use imgsnap::image::ImageUri;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::Path;
use uuid::Uuid;

/// Fails if stdout is a terminal: `what` is for a file or a pipe.
pub fn refuse_terminal(what: &str) -> Result<()> {
    if std::io::stdout().is_terminal() {
        let what = format!("refusing to write {what} to a terminal");
        return Err(
            Error::new(ErrorKind::InvalidInput, what).hint("redirect stdout to a file or a pipe")
        );
    }
    Ok(())
}

/// Bytes in binary units, three digits: `1.50 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for larger in UNITS.iter().skip(1) {
        if value < 999.5 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{} {unit}", digits(value))
}

/// Three digits, or as many as stand before the point: `0.25`, `12.5`, `1250`.
pub fn digits(value: f64) -> String {
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$}")
}

/// A count with a comma between thousands.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A path as people read it: on one line, whatever is in it.
pub fn shown(path: &Path) -> String {
    path.shown().replace('\n', "\\n")
}

/// An image as people read it: on one line, whatever is in it.
pub fn image(image: &ImageUri) -> String {
    image.to_string().replace('\n', "\\n")
}

/// The file name of a path as people read it; the whole path if that is not UTF-8.
pub fn file_name(path: &Path) -> String {
    let name = path.file_name().and_then(OsStr::to_str);
    name.map_or_else(|| shown(path), |name| shown(Path::new(name)))
}

/// A path as JSON has it: as it is, or, if it is not UTF-8, absolute and as a percent-encoded `file:` URI.
pub fn path(path: &Path) -> Value {
    path.shown().into()
}

/// Ranges of blocks as ranges of bytes.
pub fn ranges_json(blocks: &NamedBlocks, geometry: Geometry) -> Value {
    let range = |r: &BlockRange| json!({"offset": geometry.offset(r.first), "bytes": geometry.bytes_in(*r)});
    blocks.ranges.iter().map(range).collect()
}

/// A count with its noun: `1 snapshot`, `2 snapshots`.
pub fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A share in percent; a dash where there is no whole.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let share = part as f64 * 100.0 / whole as f64;
    match share {
        s if s > 0.0 && s < 0.1 => "<0.1 %".into(),
        s if s >= 1000.0 => ">999 %".into(),
        s => format!("{s:.1} %"),
    }
}

/// A share that somebody chose, in percent: `1 %`, `0.1 %`.
pub fn share(share: f64) -> String {
    format!("{} %", (share * 1e8).round() / 1e6)
}

/// A time to compare with others, three digits and never long: `1.25 ms`, `125 s`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        ..0.000_999_5 => format!("{} µs", digits(seconds * 1e6)),
        ..0.999_5 => format!("{} ms", digits(seconds * 1e3)),
        _ => format!("{} s", digits(seconds)),
    }
}

/// A duration in one unit, or in two where it is long.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    let two = |unit: u64, name: &str, part: u64, part_name: &str| {
        let rest = (whole + part / 2) / part * part;
        format!("{} {name} {:02} {part_name}", rest / unit, rest % unit / part)
    };
    match seconds {
        ..0.0995 => format!("{:.0} ms", seconds * 1000.0),
        ..99.995 => format!("{seconds:.2} s"),
        _ if whole < 7200 => two(60, "min", 1, "s"),
        _ if whole < 2 * 86_400 => two(3600, "h", 60, "min"),
        _ => two(86_400, "days", 3600, "h"),
    }
}

/// How long something will take, about.
pub fn time_left(seconds: u64) -> String {
    match seconds {
        ..100 => format!("{seconds} s"),
        100..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// Throughput.
pub fn rate(amount: u64, seconds: f64) -> String {
    format!("{}/s", bytes((amount as f64 / seconds.max(1e-6)) as u64))
}

/// Local time to the second; with its offset where that time of day comes twice.
pub fn time(time: Timestamp) -> String {
    let local = time.to_zoned(TimeZone::system());
    let twice = local.time_zone().to_ambiguous_timestamp(local.datetime()).is_ambiguous();
    let offset = if twice { local.offset().to_string() } else { String::new() };
    format!("{}{offset}", local.strftime("%Y-%m-%d %H:%M:%S"))
}

/// How long ago.
pub fn age(time: Timestamp) -> String {
    let seconds = Timestamp::now().as_second() - time.as_second();
    match seconds {
        ..0 => "in the future".into(),
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        172_800..63_072_000 => format!("{} days ago", seconds / 86_400),
        _ => format!("{} years ago", seconds / 31_557_600),
    }
}

/// As much of an id as tells it from others.
pub fn short(id: Uuid) -> String {
    id.to_string().chars().take(8).collect()
}

/// What to say where the owner was asked to do something.
pub fn asked(to: &str, request: Uuid) -> String {
    let id = short(request);
    format!("asked the owner to {to}; the owner can run: imgsnap requests confirm {id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        for (value, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_240, "10.0 KiB"),
            (102_400, "100 KiB"),
            (1 << 20, "1.00 MiB"),
            (1_023 << 10, "1.00 MiB"),
            (8 << 30, "8.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn counts_are_grouped_and_nouns_agree() {
        assert_eq!(
            (count(1), count(1000), count(1_234_567)),
            ("1".into(), "1,000".into(), "1,234,567".into())
        );
        assert_eq!((plural(1, "block"), plural(2, "block")), ("1 block".into(), "2 blocks".into()));
        assert_eq!(
            (percent(1, 0), percent(1, 100_000), percent(1, 8)),
            ("-".into(), "<0.1 %".into(), "12.5 %".into())
        );
    }

    #[test]
    fn times_and_numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0.00 µs"),
            (0.000_5, "500 µs"),
            (0.000_999_9, "1.00 ms"),
            (0.012_345, "12.3 ms"),
            (0.999_4, "999 ms"),
            (0.999_9, "1.00 s"),
            (99.94, "99.9 s"),
            (1234.5, "1234 s"),
        ] {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(
            (digits(0.123), digits(9.996), digits(1250.0)),
            ("0.12".into(), "10.0".into(), "1250".into())
        );
    }

    #[test]
    fn durations_have_one_unit_or_two() {
        for (value, text) in [
            (0.0, "0 ms"),
            (0.099, "99 ms"),
            (0.0999, "0.10 s"),
            (99.99, "99.99 s"),
            (99.996, "1 min 40 s"),
            (3599.9, "60 min 00 s"),
            (7199.0, "119 min 59 s"),
            (7200.0, "2 h 00 min"),
            (86_399.0, "24 h 00 min"),
            (180_000.0, "2 days 02 h"),
        ] {
            assert_eq!(duration(value), text);
        }
    }

    #[test]
    fn a_chosen_share_is_told_as_it_was_typed() {
        for (value, text) in [(0.07, "7 %"), (0.001, "0.1 %"), (1.0, "100 %"), (1e-6, "0.0001 %")] {
            assert_eq!(share(value), text);
        }
    }

    #[test]
    fn a_path_that_is_no_text_is_a_uri() {
        let bytes = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"/a b/\xff%");
        assert_eq!(path(Path::new(bytes)), "file:///a%20b/%FF%25");
        assert_eq!(path(Path::new("a b/%.img")), "a b/%.img");
    }
}
