//! The NBD client against servers that are restricted, odd, wrong, slow or gone: the right bytes or one clear
//! error, never wrong bytes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::nbd_fake::{Config, Fake, Wrong};
use crate::random::Random;
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::units::ExtentKind;
use imgsnap::image::Source;
use imgsnap::image::nbd::{NbdDisk, NbdOptions, NbdPlace, NbdUri};
use imgsnap::image::write::{InPlace, NbdInPlace, Target};
use imgsnap::tracking::{ChangeHints, ChangeList};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PAGE: usize = 4096;

pub fn options() -> NbdOptions {
    let (stall, pause) = (Duration::from_millis(400), Duration::from_millis(1));
    NbdOptions { stall, pause, ..NbdOptions::default() }
}

pub fn writable() -> NbdOptions {
    NbdOptions { writable: true, ..options() }
}

fn open(fake: &Fake) -> NbdDisk {
    NbdDisk::open(&fake.uri(), options(), &Context::silent().with_threads(3)).unwrap()
}

/// Noise with some pages of zeros, the first one among them, and a ragged end.
pub fn image(pages: usize) -> Vec<u8> {
    let mut random = Random(7);
    let mut image = vec![0; pages * PAGE - 512];
    for page in image.chunks_mut(PAGE).skip(1) {
        if random.below(4) > 0 {
            page.copy_from_slice(&random.bytes(page.len()));
        }
    }
    image
}

/// Reads the extents that are data, by several threads, window by window.
pub fn read_all(disk: &NbdDisk) -> Result<Vec<u8>> {
    const WINDOW: usize = 50_000;
    let mut out = vec![0; disk.image_bytes() as usize];
    let mut at = 0;
    let mut is_hole = vec![false; out.len()];
    while at < out.len() {
        let extent = disk.extent_at(at as u64)?;
        assert_eq!(extent.offset, at as u64);
        assert!(extent.bytes > 0 && at as u64 + extent.bytes <= out.len() as u64);
        let end = at + extent.bytes as usize;
        is_hole[at..end].fill(extent.kind == ExtentKind::Hole);
        at = end;
    }
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..out.len())
            .step_by(WINDOW)
            .zip(out.chunks_mut(WINDOW))
            .map(|(start, out)| {
                let is_hole = &is_hole;
                scope.spawn(move || {
                    let mut buffer = vec![0x77; 100];
                    let window = disk.read(start as u64, out.len(), &mut buffer)?;
                    for (at, byte) in window.bytes().iter().enumerate() {
                        // What is said to be zeros is never read.
                        out[at] = if is_hole[start + at] { 0 } else { *byte };
                    }
                    Ok(())
                })
            })
            .collect();
        let outcomes: Vec<Result<()>> = readers.into_iter().map(|r| r.join().unwrap()).collect();
        outcomes.into_iter().collect::<Result<()>>()
    })?;
    Ok(out)
}

/// One line that says where, and what to do.
fn is_clear(error: &Error, fake: &Fake, what: &str) {
    let line = error.to_string();
    assert!(line.contains(&fake.uri().to_string()), "{what}: {line}");
    assert!(!line.contains('\n') && !line.contains("os error"), "{what}: {line}");
    assert!(error.advice().is_some() || error.offset().is_some(), "{what}: {line}");
}

/// Each of the kinds of servers that are allowed.
fn servers() -> Vec<Config> {
    let usual = Config::default();
    let mut all = vec![
        Config { structured: false, contexts: false, ..usual.clone() },
        Config { contexts: false, ..usual.clone() },
        Config { go: false, ..usual.clone() },
        Config { go: false, fixed: false, structured: false, contexts: false, ..usual.clone() },
        Config { flags: 1, ..usual.clone() },
        Config { clients: 1, ..usual.clone() },
    ];
    for sizes in
        [None, Some((1, 700)), Some((512, 1024)), Some((4096, 12_288)), Some((65_536, u32::MAX))]
    {
        for shuffled in [false, true] {
            all.push(Config { sizes, shuffled, ..usual.clone() });
        }
    }
    all
}

#[test]
fn each_kind_of_server_is_read() {
    let image = image(61);
    for (number, config) in servers().into_iter().enumerate() {
        let (has_contexts, several) = (config.contexts, config.flags & 256 != 0);
        let fake = Fake::new(config, &image);
        let disk = open(&fake);
        assert!(read_all(&disk).unwrap() == image, "server {number}");
        let mut random = Random(number as u64);
        for _ in 0..40 {
            let start = random.below(image.len() as u64) as usize;
            let end = start + 1 + random.below((image.len() - start) as u64) as usize;
            let mut buffer = Vec::new();
            let window = disk.read(start as u64, end - start, &mut buffer).unwrap();
            assert!(window.bytes() == &image[start..end], "server {number}: {start} to {end}");
        }
        for (at, page) in (0..).step_by(PAGE).zip(image.chunks(PAGE)) {
            let is_hole = disk.extent_at(at).unwrap().kind == ExtentKind::Hole;
            let is_zero = has_contexts && page.iter().all(|byte| *byte == 0);
            assert_eq!(is_hole, is_zero, "server {number}: page at {at}");
        }
        let connections = fake.connections();
        let most = if several { 3 } else { 1 };
        assert!((1..=most).contains(&connections), "server {number}: {connections}");
    }
}

/// None: the right bytes.
fn expected(wrong: Wrong, is_status: bool) -> Option<ErrorKind> {
    use ErrorKind::{Busy, Io, Unavailable};
    match wrong {
        Wrong::Cut | Wrong::Error(108) => None,
        Wrong::CutInside if !is_status => None,
        // To what asks for less a flow of bytes is no answer at all.
        Wrong::Drip if is_status => Some(Io),
        Wrong::CutFromThen | Wrong::Stall | Wrong::StallInside | Wrong::Drip => Some(Unavailable),
        Wrong::ShortenedThenCut => Some(Busy),
        // A medium that is right again when it is read again; block status is a help, and nothing more.
        Wrong::Error(5) | Wrong::ErrorAt(5) | Wrong::SimpleError(5) | Wrong::UnknownErrorChunk => {
            None
        }
        Wrong::Error(_) | Wrong::ErrorAt(_) | Wrong::SimpleError(_) if is_status => None,
        Wrong::Status if is_status => None,
        Wrong::NoExtents if !is_status => None,
        Wrong::BeyondEnd | Wrong::TinyExtent => None,
        _ => Some(Io),
    }
}

pub const WRONGS: &[Wrong] = &[
    Wrong::Cut,
    Wrong::CutInside,
    Wrong::CutFromThen,
    Wrong::ShortenedThenCut,
    Wrong::Stall,
    Wrong::StallInside,
    Wrong::Drip,
    Wrong::Error(5),
    Wrong::Error(12),
    Wrong::Error(22),
    Wrong::Error(61),
    Wrong::Error(74),
    Wrong::Error(108),
    Wrong::Error(0),
    Wrong::ErrorAt(5),
    Wrong::ErrorAt(22),
    Wrong::SimpleError(5),
    Wrong::SimpleError(1),
    Wrong::LongError,
    Wrong::EndlessErrors,
    Wrong::UnknownErrorChunk,
    Wrong::Magic,
    Wrong::Cookie,
    Wrong::CookieBefore,
    Wrong::UnknownChunk,
    Wrong::NothingWithoutEnd,
    Wrong::Early,
    Wrong::Twice,
    Wrong::Overlap,
    Wrong::Outside,
    Wrong::Before,
    Wrong::Longer,
    Wrong::Empty,
    Wrong::LongHole,
    Wrong::SimpleData,
    Wrong::Status,
    Wrong::NoExtents,
    Wrong::ZeroExtent,
    Wrong::OtherContext,
    Wrong::ContextTwice,
    Wrong::OddStatus,
    Wrong::HugeStatus,
    Wrong::BeyondEnd,
    Wrong::TinyExtent,
];

#[test]
fn whatever_a_server_does_wrong_gives_no_wrong_bytes() {
    let image = image(52);
    for (number, wrong) in WRONGS.iter().enumerate() {
        for at in [1, 2, 3, 20 + number as u64, 121 + number as u64, 200] {
            let what = format!("{wrong:?} at request {at}");
            let wrong_at = Some((*wrong, at));
            let config = Config { sizes: Some((512, 1024)), wrong: wrong_at, ..Config::default() };
            let fake = Fake::new(config, &image);
            let outcome = read_all(&open(&fake));
            match (outcome, expected(*wrong, at == 1)) {
                (Ok(bytes), None) => assert!(bytes == image, "{what}: wrong bytes"),
                (Err(error), Some(kind)) => {
                    is_clear(&error, &fake, &what);
                    // Another connection, of before, may ask for what is not there any more.
                    let is_gone = kind == ErrorKind::Busy && error.kind() == ErrorKind::Io;
                    assert!(error.kind() == kind || is_gone, "{what}: {error}");
                    assert!(!error.is_bad_medium(), "{what}: {error}");
                }
                // Another connection, of before, read the rest.
                (Ok(bytes), Some(ErrorKind::Busy)) => assert!(bytes == image, "{what}"),
                (Ok(_), Some(kind)) => panic!("{what}: {kind:?} was expected"),
                (Err(error), None) => panic!("{what}: {error}"),
            }
            assert!(fake.requests() >= at, "{what}: never reached");
        }
    }
}

#[test]
fn a_connection_that_is_lost_again_and_again_is_made_again_while_there_is_progress() {
    let image = image(20);
    let fake =
        Fake::new(Config { cut_every: 7, sizes: Some((512, 1024)), ..Config::default() }, &image);
    assert!(read_all(&open(&fake)).unwrap() == image);
    assert!(fake.connections() > 10);
}

#[test]
fn only_errors_of_a_medium_are_bad_sectors_and_their_place_is_exact() {
    let image = image(64);
    for config in servers() {
        let unit = config.sizes.map_or(512, |(minimum, _)| u64::from(minimum).max(512));
        // A sector, a few that follow each other, the last one.
        let length = image.len() as u64;
        let bad = vec![20_480..20_992, 100_352..103_424, length - 512..length];
        let fake = Fake::new(Config { bad: bad.clone(), ..config }, &image);
        let disk = open(&fake);
        let (mut at, mut found) = (0, Vec::new());
        let mut buffer = Vec::new();
        while at < length {
            match disk.read_until_bad(at, (length - at) as usize, &mut buffer).unwrap() {
                None => assert_eq!(buffer.len() as u64, length - at),
                Some(error) => {
                    assert!(error.is_bad_medium(), "{error}");
                    is_clear(&error, &fake, "bad");
                    assert_eq!(error.offset(), Some(at + buffer.len() as u64));
                    found.push(at + buffer.len() as u64);
                }
            }
            assert!(buffer == image[at as usize..][..buffer.len()]);
            at = ((at + buffer.len() as u64) / unit + 1) * unit;
        }
        let all = (0..length).step_by(unit as usize);
        let is_bad = |at: &u64| bad.iter().any(|bad| bad.start < at + unit && *at < bad.end);
        assert_eq!(found, all.filter(is_bad).collect::<Vec<_>>(), "units of {unit}");
        let error = disk.read(0, 50_000, &mut Vec::new()).map(|_| ()).unwrap_err();
        assert!(error.is_bad_medium() && error.offset() == found.first().copied(), "{error}");
    }
}

/// As a scan does it that stores what can be read.
#[test]
fn many_bad_sectors_in_a_row_cost_a_request_each() {
    let image = image(256);
    let fake =
        Fake::new(Config { bad: vec![0..400_000, 400_000..800_000], ..Config::default() }, &image);
    let disk = open(&fake);
    let (mut at, mut bad, length) = (0, 0, image.len() as u64);
    while at < length {
        let mut buffer = Vec::new();
        let found = disk.read_until_bad(at, (length - at) as usize, &mut buffer).unwrap();
        bad += u64::from(found.is_some());
        at = (at + buffer.len() as u64) / 4096 * 4096 + 4096;
    }
    assert_eq!(bad, 800_000 / 4096 + 1);
    assert!(fake.requests() < bad * 2 + 50, "{} for {bad}", fake.requests());
}

#[test]
fn writes_are_what_the_server_has_at_the_end() {
    for (number, config) in servers().into_iter().enumerate() {
        for flags in [config.flags, config.flags & !64] {
            let mut wanted = image(40);
            let fake = Fake::new(Config { flags, ..config.clone() }, &wanted);
            let disk = NbdDisk::open(&fake.uri(), writable(), &Context::silent()).unwrap();
            let mut target = NbdInPlace::new(&disk);
            target.check_free_space(wanted.len() as u64).unwrap();
            let error = target.check_free_space(wanted.len() as u64 + 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(!target.is_begun() && target.has_fixed_length());
            let mut random = Random(number as u64);
            let mut written = 0;
            for turn in 0..60 {
                let start = random.below(wanted.len() as u64) as usize;
                let most = if turn % 3 == 0 { wanted.len() } else { 5000 };
                let most = most.min(wanted.len() - start);
                let bytes = 1 + random.below(most as u64) as usize;
                let range = &mut wanted[start..start + bytes];
                if turn % 2 == 0 {
                    range.copy_from_slice(&random.bytes(bytes));
                    target.write(start as u64, range).unwrap();
                } else {
                    range.fill(0);
                    target.zero(start as u64, bytes as u64).unwrap();
                }
                written += bytes as u64;
                // What was written is read, and what was known of zeros is forgotten.
                if turn % 20 == 7 {
                    assert!(read_all(&disk).unwrap() == wanted, "server {number}");
                }
            }
            target.finish().unwrap();
            assert_eq!(target.written_bytes(), written);
            assert!(fake.image() == wanted, "server {number}");
            assert_eq!(fake.connections(), 1, "of several it is not known that they see the same");
        }
    }
}

#[test]
fn a_write_that_did_not_come_about_is_told() {
    let before = image(30);
    let wrongs = [
        (Wrong::Cut, ErrorKind::Unavailable),
        (Wrong::CutFromThen, ErrorKind::Unavailable),
        (Wrong::Stall, ErrorKind::Unavailable),
        (Wrong::Error(5), ErrorKind::Io),
        (Wrong::Error(28), ErrorKind::Io),
        (Wrong::Error(108), ErrorKind::Unavailable),
        (Wrong::SimpleError(1), ErrorKind::Io),
        (Wrong::EndlessErrors, ErrorKind::Io),
        (Wrong::Magic, ErrorKind::Io),
        (Wrong::Cookie, ErrorKind::Io),
        (Wrong::UnknownChunk, ErrorKind::Io),
        (Wrong::NothingWithoutEnd, ErrorKind::Io),
        (Wrong::SimpleData, ErrorKind::Io),
    ];
    for (wrong, kind) in wrongs {
        for at in [1, 2, 17, 40, 61] {
            if (wrong, at) == (Wrong::SimpleData, 61) {
                // Of a flush this is the right answer.
                continue;
            }
            let what = format!("{wrong:?} at request {at}");
            let fake = Fake::new(Config { wrong: Some((wrong, at)), ..Config::default() }, &before);
            let disk = NbdDisk::open(&fake.uri(), writable(), &Context::silent()).unwrap();
            let mut target = NbdInPlace::new(&disk);
            let mut wanted = before.clone();
            // 60 requests, and a flush.
            let outcome = (0..30).try_for_each(|turn| {
                let place = turn * 1000..turn * 1000 + 500;
                wanted[place.clone()].fill(turn as u8);
                target.write(place.start as u64, &wanted[place.clone()])?;
                wanted[place.end..place.end + 500].fill(0);
                target.zero(place.end as u64, 500)
            });
            // What follows an answer that was none is noticed with the next one.
            let outcome = outcome.and_then(|()| target.finish()).and_then(|()| target.finish());
            let error = outcome.expect_err(&what);
            is_clear(&error, &fake, &what);
            assert_eq!(error.kind(), kind, "{what}: {error}");
            assert_eq!(error.is_storage_full(), wrong == Wrong::Error(28), "{what}");
        }
    }
}

#[test]
fn a_dirty_bitmap_names_what_changed() {
    let image = image(40);
    let fake = Fake::new(Config { sizes: Some((512, 1024)), ..Config::default() }, &image);
    let with = |bitmap: &str| NbdOptions { bitmap: Some(bitmap.into()), ..options() };
    let context = Context::silent();
    let disk = NbdDisk::open(&fake.uri(), with("b0"), &context).unwrap();
    let mut changes = disk.bitmap_ranges().map(ChangeList::of).unwrap();
    let mut found = Vec::new();
    while let Some(range) = changes.next_range().unwrap() {
        found.push((range.offset, range.bytes));
    }
    let odd = (0..40u64).filter(|page| page % 2 == 1);
    let wanted: Vec<_> =
        odd.map(|page| (page * 4096, if page == 39 { 3584 } else { 4096 })).collect();
    assert_eq!(found, wanted);
    assert!(read_all(&disk).unwrap() == image);
    let error = NbdDisk::open(&fake.uri(), with("b1"), &context).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("\"b1\""), "{error}");
    let error = open(&fake).bitmap_ranges().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

#[test]
fn what_cannot_be_opened_says_why() {
    let image = image(4);
    let refused = |config: Config, options: NbdOptions, export: &str| {
        let fake = Fake::new(config, &image);
        let uri = NbdUri { export: export.into(), ..fake.uri() };
        let error = NbdDisk::open(&uri, options, &Context::silent()).err().unwrap();
        (error.kind(), error.to_string())
    };
    let usual = Config::default();
    for (config, options, export, kind, says) in [
        (Config { flags: 3, ..usual.clone() }, writable(), "disk", ErrorKind::Auth, "read-only"),
        (usual.clone(), options(), "other", ErrorKind::NotFound, "there is no export"),
        (
            Config { go: false, ..usual.clone() },
            options(),
            "x",
            ErrorKind::NotFound,
            "there is no export",
        ),
        (
            Config { sizes: Some((0, 1)), ..usual.clone() },
            options(),
            "disk",
            ErrorKind::Io,
            "impossible",
        ),
        (
            Config { sizes: Some((600, 9000)), ..usual.clone() },
            options(),
            "disk",
            ErrorKind::Io,
            "impossible",
        ),
        (
            Config { sizes: Some((512, 256)), ..usual.clone() },
            options(),
            "disk",
            ErrorKind::Io,
            "impossible",
        ),
        (
            Config { clients: 0, ..usual.clone() },
            options(),
            "disk",
            ErrorKind::Unavailable,
            "no answer",
        ),
    ] {
        let (found, text) = refused(config, options, export);
        assert_eq!(found, kind, "{text}");
        assert!(text.contains(says), "{text}");
    }
    let fake = Fake::new(usual, &[]);
    let error = NbdDisk::open(&fake.uri(), options(), &Context::silent()).err().unwrap();
    assert!(
        error.kind() == ErrorKind::InvalidInput && error.to_string().contains("is empty"),
        "{error}"
    );
}

#[test]
fn who_is_no_nbd_server_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    for (number, (hello, kind)) in [
        (&b""[..], ErrorKind::Unavailable),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ErrorKind::Io),
        (b"NBDMAGIC", ErrorKind::Unavailable),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53aaaaaaaaaaaaaaaaa", ErrorKind::Unsupported),
        (b"NBDMAGICIHAVEOPT\0\x01aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", ErrorKind::Io),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(number.to_string());
        let uri = NbdUri { place: NbdPlace::Unix(path.clone()), export: String::new() };
        let error = NbdDisk::open(&uri, options(), &Context::silent()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(hello).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        });
        let error = NbdDisk::open(&uri, options(), &Context::silent()).err().unwrap();
        assert_eq!(error.kind(), kind, "{number}: {error}");
        server.join().unwrap();
        // Nobody listens any more.
        let error = NbdDisk::open(&uri, options(), &Context::silent()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().starts_with("cannot connect to nbd+unix:"), "{error}");
    }
}

#[test]
fn who_asks_to_stop_does_not_wait_for_a_server() {
    let image = image(10);
    for at in [1, 2, 3] {
        let fake = Fake::new(
            Config {
                sizes: Some((512, 1024)),
                wrong: Some((Wrong::Stall, at)),
                ..Config::default()
            },
            &image,
        );
        let stop = Arc::new(AtomicBool::new(false));
        struct Silent;
        impl imgsnap::Observer for Silent {
            fn observe(&self, _: imgsnap::Event) {}
        }
        let context = Context::new(Arc::new(Silent), stop.clone());
        let disk = NbdDisk::open(&fake.uri(), NbdOptions::default(), &context).unwrap();
        let outcome = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_all(&disk));
            while fake.requests() < at {
                std::thread::sleep(Duration::from_millis(1));
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap()
        });
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
    }
}
