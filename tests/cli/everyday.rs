//! What is typed every day: names of snapshots, several of them, what scripts and monitoring read.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BUSY, FAILED, Lab, USAGE, integer, string};
use serde_json::Value;
use sha2_of::sha256;
use std::time::{Duration, Instant};

/// What another program says.
mod sha2_of {
    use std::path::Path;
    use std::process::Command;

    pub fn sha256(path: &Path) -> String {
        let out = Command::new("sha256sum").arg(path).output().unwrap();
        String::from_utf8(out.stdout).unwrap()[..64].to_owned()
    }
}

fn number(lab: &Lab, reference: &str) -> u64 {
    integer(&lab.json(&["show", reference]), "number")
}

#[test]
fn a_snapshot_is_named_by_its_distance_its_age_or_its_id() {
    let (lab, _) = Lab::with_snapshots(4);
    lab.done(&["label", "disk@2", "monday"]);
    for (reference, want) in [
        ("disk@latest~1", 3),
        ("disk@latest~3", 1),
        ("disk@monday~1", 1),
        ("disk@4~2", 2),
        ("disk@0s", 4),
    ] {
        assert_eq!(number(&lab, reference), want, "{reference}");
    }
    for number in 1..=4 {
        let id = string(&lab.json(&["show", &format!("disk@{number}")]), "id").to_owned();
        // A number of digits alone is a number.
        let prefix = (8..=36)
            .map(|length| &id[..length])
            .find(|text| !text.bytes().all(|b| b.is_ascii_digit()));
        for text in [prefix.unwrap(), &id, &id.to_uppercase()] {
            assert_eq!(self::number(&lab, &format!("disk@{text}")), number, "{text}");
        }
    }
    // A label is one whatever it looks like.
    lab.done(&["label", "disk@1", "beef"]);
    assert_eq!(number(&lab, "disk@beef"), 1);
    for (reference, said) in [
        ("disk@latest~4", "there are fewer snapshots than that before disk@4"),
        ("disk@1d", "\"disk\" has no snapshot at or before 20"),
        ("disk@0123abcd", "no snapshot of \"disk\" has the label \"0123abcd\""),
    ] {
        let line = lab.fails(FAILED, &["show", reference]);
        assert!(line.starts_with(said), "{reference}: {line}");
    }
    for (reference, said) in [
        ("@2", "write NAME@2, e.g. vm@2"),
        ("disk@5m", "write 5min for minutes, or 5mo for months"),
        ("disk@", "missing snapshot after '@'"),
    ] {
        let line = lab.run(&["show", reference]).misused();
        assert!(line.contains(said), "{reference}: {line}");
    }
    for label in ["1h", "x~1", "12"] {
        lab.fails(FAILED, &["label", "disk@1", label]);
    }
}

#[test]
fn several_are_deleted_and_the_newest_are_listed() {
    let (lab, states) = Lab::with_snapshots(6);
    let listed = lab.json(&["list", "disk", "--last", "2"]);
    let numbers: Vec<u64> =
        listed.as_array().unwrap().iter().map(|one| integer(one, "number")).collect();
    assert_eq!(numbers, [5, 6]);
    assert_eq!(lab.done(&["ls", "--last", "1"]).lines().count(), 3);
    // Each is what it was named when it began, also if that goes by the newest.
    lab.done(&["rm", "disk@latest", "disk@latest~1"]);
    lab.holds("disk", &[(1, &states[0]), (2, &states[1]), (3, &states[2]), (4, &states[3])]);
    // What is not there is told before anything goes.
    lab.fails(FAILED, &["delete", "disk@1", "disk@9"]);
    lab.done(&["protect", "disk@2"]);
    let run = lab.run(&["delete", "disk@1", "disk@2", "disk@3", "--json"]);
    assert_eq!(run.code, Some(FAILED), "{}", run.err);
    assert!(run.err.contains("disk@2 is protected"), "{}", run.err);
    lab.holds("disk", &[(2, &states[1]), (4, &states[3])]);
    // Of an image as a whole `rm` knows nothing.
    let line = lab.run(&["rm", "disk"]).misused();
    assert!(line.contains("does not name a snapshot"), "{line}");
    lab.done(&["check"]);
    lab.done(&["backup", "disk.img"]);
}

#[test]
fn the_digest_of_the_content_is_that_of_other_programs() {
    let (lab, states) = Lab::with_snapshots(2);
    for (number, bytes) in states.iter().enumerate() {
        lab.write("plain.img", bytes);
        let reference = format!("disk@{}", number + 1);
        let want = sha256(&lab.path("plain.img"));
        assert_eq!(lab.done(&["hash", &reference]), format!("{want}  {reference}\n"));
        let value = lab.json(&["hash", &reference]);
        assert_eq!((string(&value, "digest"), string(&value, "algorithm")), (&*want, "sha256"));
        assert_eq!(integer(&value, "bytes"), bytes.len() as u64);
        for (algorithm, want) in [
            ("blake3", blake3::hash(bytes).to_hex().to_string()),
            ("xxh3", format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes))),
        ] {
            let text = lab.done(&["hash", &reference, "--algorithm", algorithm, "-q"]);
            assert_eq!(text, format!("{want}  {reference}\n"));
        }
        assert_eq!(lab.done(&["hash", &reference, "--algorithm", "sha512"]).len(), 128 + 9);
    }
    lab.flip(&lab.delta("disk", 1), 300);
    assert_eq!(lab.run(&["hash", "disk@1"]).code, Some(crate::support::DAMAGE));
}

#[test]
fn what_goes_wrong_is_an_object_for_programs() {
    let (lab, _) = Lab::with_snapshots(1);
    for (args, code, kind, advice) in [
        (&["show", "disk@9"][..], FAILED, "not-found", Some("\"imgsnap list disk\" lists")),
        (&["show", "disk"], USAGE, "usage", Some("see \"imgsnap show --help\"")),
        (&["frobnicate"], USAGE, "usage", Some("see \"imgsnap --help\"")),
        (&["snapshot", "gone.img"], FAILED, "not-found", None),
    ] {
        let run = lab.run(&[args, &["--json"]].concat());
        assert_eq!(run.code, Some(code), "{args:?}: {}", run.err);
        assert_eq!(run.err.lines().count(), 1, "{args:?}: {}", run.err);
        let value: Value = serde_json::from_str(&run.text()).unwrap();
        let error = &value["error"];
        assert_eq!((string(error, "kind"), integer(error, "exit_code")), (kind, code as u64));
        let message = string(error, "message");
        assert!(run.err.contains(message), "{message}: {}", run.err);
        match (error["advice"].as_str(), advice) {
            (Some(told), Some(advice)) => assert!(told.contains(advice), "{told}"),
            (told, advice) => assert_eq!(told, advice, "{args:?}"),
        }
    }
}

/// Damage (3) is what was right once.
#[test]
fn a_mistake_is_no_damage() {
    let (lab, _) = Lab::with_snapshots(1);
    for bytes in [&b"# a text"[..], &[0; 4096]] {
        lab.write("x.delta", bytes);
        for args in [&["import", "x.delta"][..], &["apply", "x.delta", "-o", "y"]] {
            let line = lab.fails(FAILED, args);
            assert!(line.ends_with("is not a delta file; use one that \"export\" wrote"), "{line}");
        }
    }
    lab.done(&["export", "disk@1", "-o", "real.delta"]);
    lab.flip("real.delta", 100);
    for args in [&["import", "real.delta"][..], &["apply", "real.delta", "-o", "y"]] {
        assert_eq!(lab.run(args).code, Some(crate::support::DAMAGE), "{args:?}");
    }
}

#[test]
fn another_imgsnap_is_waited_for_as_long_as_is_said() {
    let (lab, _) = Lab::with_snapshots(1);
    let lock = std::fs::File::options().write(true).open(lab.path("repo/disk/write.lock")).unwrap();
    lock.lock().unwrap();
    let begun = Instant::now();
    lab.fails(BUSY, &["label", "disk@1", "a"]);
    let line = lab.fails(BUSY, &["label", "disk@1", "a", "--lock-wait", "1s"]);
    assert!(line.contains("another imgsnap is working on \"disk\""), "{line}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let waiting = std::thread::scope(|threads| {
        let waiting = threads.spawn(|| lab.run(&["label", "disk@1", "a", "--lock-wait", "5min"]));
        std::thread::sleep(Duration::from_millis(300));
        lock.unlock().unwrap();
        waiting.join().unwrap()
    });
    waiting.done();
    assert_eq!(string(&lab.json(&["show", "disk@a"]), "label"), "a");
}

#[test]
fn monitoring_reads_a_file_that_is_whole() {
    let (lab, _) = Lab::with_snapshots(3);
    lab.write("a\"b.img", &[7; 5000]);
    lab.done(&["snapshot", "a\"b.img"]);
    lab.done(&["stats", "--metrics", "imgsnap.prom"]);
    let text = String::from_utf8(lab.read("imgsnap.prom")).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let names: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    assert!(names.len() >= 11 && names.iter().all(|name| name.ends_with(" gauge")), "{text}");
    let value = |sample: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("{sample} ")));
        let line = line.unwrap_or_else(|| panic!("{sample}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let shown = lab.json(&["show", "disk@3"]);
    for (name, key) in [
        ("imgsnap_stored_bytes", "stored_bytes"),
        ("imgsnap_changed_bytes", "changed_bytes"),
        ("imgsnap_image_bytes", "image_bytes"),
    ] {
        let of = format!("{name}{{image=\"disk\"}}");
        assert_eq!(value(&of), shown[key].as_f64().unwrap(), "{of}");
    }
    assert_eq!(value("imgsnap_snapshots{image=\"disk\"}"), 3.0);
    assert_eq!(value("imgsnap_snapshots{image=\"a\\\"b\"}"), 1.0);
    assert_eq!(value("imgsnap_findings{image=\"disk\"}"), 0.0);
    assert!(value("imgsnap_age_seconds{image=\"disk\"}") < 600.0);
    assert!(value("imgsnap_free_bytes") > 0.0);
    // Of one that cannot be read only that is told, and the others are told of.
    lab.flip(&lab.manifest("disk"), 300);
    let run = lab.run(&["stats", "--metrics", "imgsnap.prom"]);
    assert_eq!(run.code, Some(crate::support::DAMAGE), "{}", run.err);
    let text = String::from_utf8(lab.read("imgsnap.prom")).unwrap();
    assert!(text.contains("imgsnap_findings{image=\"disk\"} 1\n"), "{text}");
    assert!(!text.contains("imgsnap_snapshots{image=\"disk\"}"), "{text}");
    assert!(text.contains("imgsnap_snapshots{image=\"a\\\"b\"} 1\n"), "{text}");
    // A folder is no file; nothing is left beside it.
    std::fs::create_dir(lab.path("folder")).unwrap();
    lab.run(&["stats", "--metrics", "folder"]);
    let left: Vec<_> = std::fs::read_dir(lab.path("")).unwrap().map(|e| e.unwrap()).collect();
    assert!(left.iter().all(|e| !e.file_name().to_str().unwrap().contains(".tmp")), "{left:?}");
}

/// A watch labels each snapshot, and ends with whoever read what it prints.
#[test]
fn a_watch_labels_what_it_takes() {
    let (lab, _) = Lab::with_snapshots(1);
    let mut bytes = lab.read("disk.img");
    bytes[0] ^= 1;
    lab.write("disk.img", &bytes);
    let mut command =
        lab.command(&["watch", "disk.img", "--every", "1s", "--label", "auto", "--name", "disk"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut watch = command.spawn().unwrap();
    let mut out = std::io::BufReader::new(watch.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert!(line.contains("disk@2"), "{line}");
    drop(out);
    let begun = Instant::now();
    while watch.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            watch.kill().unwrap();
            panic!("it goes on though nobody reads");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let label = string(&lab.json(&["show", "disk@2"]), "label").to_owned();
    assert!(label.starts_with("auto-20") && label.len() == "auto-20261129-190000".len(), "{label}");
}
