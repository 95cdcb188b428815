//! `imgsnap snapshot --changed`: only what a list names is read, and a share of the rest.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BLOCK, FAILED, Lab, MIB, Run, USAGE, integer, noise, string};
use serde_json::{Value, json};

/// Blocks of the image.
const COUNT: usize = 1024;

/// Blocks that each snapshot looks at if nothing is said: 1 %.
const SHARE: u64 = 11;

/// `disk.img` of 4 MiB, and one snapshot of it.
pub fn lab() -> (Lab, Vec<u8>) {
    let lab = Lab::new();
    let bytes = noise(1, 4 * MIB);
    assert_eq!(bytes.len(), COUNT * BLOCK);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    (lab, bytes)
}

/// Writes noise to blocks of the image. None of them is in the share of the first snapshots.
pub fn alter(lab: &Lab, bytes: &mut [u8], blocks: &[usize], seed: u64) {
    for &block in blocks {
        let new = noise(seed * 10_000 + block as u64, BLOCK);
        bytes[block * BLOCK..][..BLOCK].copy_from_slice(&new);
    }
    lab.write("disk.img", bytes);
}

/// Another state of the image, and a snapshot of it that read all.
fn grow(lab: &Lab, bytes: &mut [u8], blocks: &[usize], seed: u64) {
    alter(lab, bytes, blocks, seed);
    lab.done(&["snapshot", "disk.img", "--full-scan"]);
}

/// The arguments for a snapshot with a list, which is written.
fn args<'a>(lab: &Lab, list: &str, since: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    lab.write("list", list.as_bytes());
    [&["snapshot", "disk.img", "--changed", "list", "--since", since], more].concat()
}

#[track_caller]
fn taken(lab: &Lab, list: &str, since: &str, more: &[&str]) -> Value {
    lab.json(&args(lab, list, since, more))
}

fn id(lab: &Lab, reference: &str) -> String {
    string(&lab.json(&["show", reference]), "id").to_owned()
}

/// Fails unless a snapshot was taken by a list since another one, and looked at so many named blocks,
/// at its share of the rest, and at nothing else.
#[track_caller]
fn by_list(lab: &Lab, taken: &Value, since: &str, named_bytes: u64, recheck_blocks: u64) {
    let hint = &taken["hint"];
    let blocks = integer(taken, "image_bytes").div_ceil(BLOCK as u64);
    let cycle = (recheck_blocks > 0).then(|| blocks.div_ceil(recheck_blocks));
    let want = json!({
        "kind": "list",
        "since": id(lab, since),
        "named_bytes": named_bytes,
        "recheck_blocks": recheck_blocks,
        "recheck_cycle": cycle,
        "missed_blocks": 0,
    });
    assert_eq!(hint, &want, "{taken}");
    let read = named_bytes + recheck_blocks * BLOCK as u64;
    assert_eq!(integer(taken, "read_bytes"), read, "{taken}");
    assert_eq!((&taken["believed"], &taken["full_scan_reason"]), (&json!(false), &Value::Null));
}

fn of_blocks(blocks: u64) -> u64 {
    blocks * BLOCK as u64
}

/// A line for each run of blocks.
fn lines(runs: &[(usize, usize)]) -> String {
    runs.iter().map(|(first, count)| format!("{} {}\n", first * BLOCK, count * BLOCK)).collect()
}

/// What `nbdinfo --map=qemu:dirty-bitmap:NAME --json` says of an image in which these runs are dirty.
fn nbdinfo(runs: &[(usize, usize)]) -> String {
    let entry = |first: usize, end: usize, kind: u32| {
        let description = ["clean", "dirty"][kind as usize];
        let (offset, length) = (first * BLOCK, (end - first) * BLOCK);
        json!({"offset": offset, "length": length, "type": kind, "description": description})
    };
    let mut entries = Vec::new();
    let mut at = 0;
    for &(first, count) in runs {
        entries.push(entry(at, first, 0));
        entries.push(entry(first, first + count, 1));
        at = first + count;
    }
    entries.push(entry(at, COUNT, 0));
    serde_json::to_string_pretty(&entries).unwrap()
}

#[test]
fn each_format_of_a_list_leads_to_what_it_names_and_to_nothing_else() {
    let rbd = json!([
        {"offset": 100 * BLOCK, "length": 2 * BLOCK, "exists": "true"},
        {"offset": 500 * BLOCK, "length": BLOCK, "exists": "false"},
    ]);
    let hex = format!("0x{:x} 0x{:X}\n\n0x1f4000 0x1000 # the last one\n", 100 * BLOCK, 2 * BLOCK);
    for (format, list) in [
        ("nbdinfo", nbdinfo(&[(100, 2), (500, 1)])),
        ("rbd", rbd.to_string()),
        ("lines", format!("# since monday\n  409600\t8192 # two\n{}", lines(&[(500, 1)]))),
        ("hex", hex),
        ("carriage returns", "409600 8192\r\n2048000 4096\r\n".to_owned()),
    ] {
        let (lab, mut bytes) = lab();
        alter(&lab, &mut bytes, &[100, 101], 2);
        bytes[500 * BLOCK..][..BLOCK].fill(0);
        lab.write("disk.img", &bytes);
        let taken = taken(&lab, &list, "@1", &[]);
        by_list(&lab, &taken, "disk@1", of_blocks(3), SHARE);
        let counts = ["changed_blocks", "data_blocks", "zero_blocks"].map(|n| integer(&taken, n));
        assert_eq!(counts, [3, 2, 1], "{format}: {taken}");
        lab.restores("disk@2", &bytes);
        assert_eq!(lab.json(&["verify"])["damaged"], json!([]), "{format}");
        // What was read by the list is what reading all of it finds.
        let whole = lab.json(&["snapshot", "disk.img", "--full-scan"]);
        assert_eq!(integer(&whole, "changed_blocks"), 0, "{format}");
        assert_eq!(whole["image_digest"], taken["image_digest"], "{format}");
    }
}

#[test]
fn people_read_how_much_the_list_named_and_what_else_was_looked_at() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[100, 500], 2);
    let list = lines(&[(100, 1), (500, 1)]);
    let text = lab.done(&args(&lab, &list, "disk@1", &[]));
    assert!(text.starts_with("disk@2  changes since disk@1\n"), "{text}");
    let want = "  tracked   8.00 KiB   may have changed, according to the list; 44.0 KiB of the rest was also read";
    assert_eq!(text.lines().last(), Some(want), "{text}");
    let shown = lab.done(&["show", "disk@2"]);
    let want = "  found      by a list of changes since disk@1: 8.00 KiB may have changed\n  \
                verified   44.0 KiB of what was reported unchanged, all of it within 94 snapshots\n";
    assert!(shown.contains(want), "{shown}");
    let text = lab.done(&args(&lab, "[]", "@2", &["--recheck", "0"]));
    let want = "  tracked        0 B   may have changed, according to the list";
    assert_eq!(text.lines().last(), Some(want), "{text}");
    let shown = lab.done(&["show", "disk@3"]);
    assert!(shown.contains("  verified   none of what was reported unchanged\n"), "{shown}");
    lab.restores("disk@3", &bytes);
}

#[test]
fn what_changed_between_an_ancestor_and_the_parent_is_looked_at_though_no_list_names_it() {
    let (lab, mut bytes) = lab();
    let first = bytes.clone();
    grow(&lab, &mut bytes, &[300, 310], 2);
    grow(&lab, &mut bytes, &[400], 3);
    // One block is again what it was at the ancestor, another one is not: of neither need a list since
    // then tell anything.
    bytes[300 * BLOCK..][..BLOCK].copy_from_slice(&first[300 * BLOCK..][..BLOCK]);
    alter(&lab, &mut bytes, &[500], 4);
    let list = lines(&[(310, 1), (400, 1), (500, 1)]);
    let taken = taken(&lab, &list, "disk@1", &["--recheck", "0"]);
    by_list(&lab, &taken, "disk@1", of_blocks(4), 0);
    assert_eq!((integer(&taken, "parent_number"), integer(&taken, "changed_blocks")), (3, 2));
    lab.restores("disk@4", &bytes);
    lab.restores("disk@1", &first);
    assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn the_ancestor_is_named_by_any_reference_and_the_hint_says_which_it_was() {
    let (lab, mut bytes) = lab();
    lab.done(&["label", "disk@1", "first"]);
    for (number, since) in [(2, "disk@first"), (3, "@first"), (4, "@latest"), (5, "disk@head")] {
        alter(&lab, &mut bytes, &[200 + number], number as u64);
        // Since the first one, what the snapshots after it changed has to be looked at, too.
        let is_ancestor = since.ends_with("first");
        let named = if is_ancestor { number as u64 - 1 } else { 1 };
        let list = lines(&[(200 + number, 1)]);
        let of = if is_ancestor { "disk@1" } else { &format!("disk@{}", number - 1) };
        let taken = taken(&lab, &list, since, &["--recheck", "0"]);
        // Blocks side by side are read at once.
        by_list(&lab, &taken, of, of_blocks(named), 0);
        lab.restores(&format!("disk@{number}"), &bytes);
    }
}

#[test]
fn ranges_may_be_unaligned_unordered_overlapping_empty_and_end_beyond_the_end() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[200, 201, 600, COUNT - 1], 2);
    // In bytes, from a block to the one after it.
    let list = format!(
        "{} 100\n{} 2\n{} 1\n{} 4096\n{} 0\n{} {}\n",
        600 * BLOCK + 5,
        201 * BLOCK - 1,
        600 * BLOCK,
        600 * BLOCK,
        700 * BLOCK,
        (COUNT - 1) * BLOCK + 1,
        1u64 << 60,
    );
    let taken = taken(&lab, &list, "@1", &["--recheck", "0"]);
    by_list(&lab, &taken, "disk@1", of_blocks(4), 0);
    assert_eq!(integer(&taken, "changed_blocks"), 4);
    lab.restores("disk@2", &bytes);
}

#[test]
fn a_list_that_is_of_another_image_is_refused() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[1000], 2);
    let entry = |offset: usize, length: usize, what: &str| json!({"offset": offset, "length": length, "type": 0, "description": what});
    let beyond = COUNT * BLOCK;
    let lists = [
        // Of a shorter disk, or cut off; of a longer one.
        (json!([entry(0, 900 * BLOCK, "clean")]).to_string(), "the map covers 3686400 bytes"),
        (json!([entry(0, beyond + 512, "dirty")]).to_string(), "the map covers 4194816 bytes"),
        (format!("0 1\n{beyond} 5\n"), "the list names a change at byte 4194304"),
        (json!([{"offset": beyond, "length": 1, "exists": "true"}]).to_string(), "the list names"),
        // What qemu-img says of where things are stored.
        (
            json!([{"start": 0, "length": beyond, "depth": 0, "present": true, "zero": false,
                    "data": true, "offset": 0}])
            .to_string(),
            "it is from \"qemu-img map\"",
        ),
    ];
    for (list, why) in lists {
        lab.write("list", list.as_bytes());
        let args = ["snapshot", "disk.img", "--changed", "list", "--since", "@1"];
        let line = lab.fails(FAILED, &args);
        assert!(line.contains(why), "{line}");
    }
    let list = json!([entry(0, 1000 * BLOCK, "clean"), entry(1000 * BLOCK, 24 * BLOCK, "dirty")]);
    taken(&lab, &list.to_string(), "@1", &["--recheck", "0"]);
    lab.restores("disk@2", &bytes);
}

#[test]
fn an_empty_list_says_that_nothing_changed() {
    let (lab, bytes) = lab();
    for (number, list) in [(2, "[]"), (3, "# nothing\n\n"), (4, "0 0\n")] {
        let taken = taken(&lab, list, "@latest", &[]);
        by_list(&lab, &taken, &format!("disk@{}", number - 1), 0, SHARE);
        assert_eq!(integer(&taken, "changed_blocks"), 0, "{list:?}");
        lab.restores(&format!("disk@{number}"), &bytes);
    }
}

#[test]
fn of_an_image_that_grew_what_is_new_is_looked_at_in_any_case() {
    for (before, after) in
        [(4 * MIB, 4 * MIB + 10 * BLOCK + 100), (4 * MIB + 5, 4 * MIB + 3 * BLOCK), (1, 2 * MIB)]
    {
        let lab = Lab::new();
        let bytes = noise(3, after);
        lab.write("disk.img", &bytes[..before]);
        lab.done(&["snapshot", "disk.img"]);
        lab.write("disk.img", &bytes);
        let taken = taken(&lab, "[]", "@1", &["--recheck", "0"]);
        by_list(&lab, &taken, "disk@1", (after - before / BLOCK * BLOCK) as u64, 0);
        lab.restores("disk@2", &bytes);
        lab.restores("disk@1", &bytes[..before]);
        assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
    }
}

#[test]
fn of_an_image_that_shrank_no_list_need_tell() {
    for after in [3 * MIB, 3 * MIB + 5, 1] {
        let (lab, mut bytes) = lab();
        bytes.truncate(after);
        lab.write("disk.img", &bytes);
        let list = lines(&[(900, 20)]);
        let taken = taken(&lab, &list, "@1", &["--recheck", "0"]);
        by_list(&lab, &taken, "disk@1", (after % BLOCK) as u64, 0);
        lab.restores("disk@2", &bytes);
        assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
        let whole = lab.json(&["snapshot", "disk.img", "--full-scan"]);
        assert_eq!(integer(&whole, "changed_blocks"), 0, "{after}");
    }
}

#[test]
fn what_was_cut_off_and_came_back_between_an_ancestor_and_now_is_found() {
    let (lab, bytes) = lab();
    for middle in [2 * MIB, 2 * MIB + 77] {
        lab.write("disk.img", &bytes[..middle]);
        lab.done(&["snapshot", "disk.img", "--full-scan"]);
        // As it was at the ancestor: a list since then names nothing.
        lab.write("disk.img", &bytes);
        let taken = taken(&lab, "[]", "@1", &["--recheck", "0"]);
        assert_eq!(taken["hint"]["kind"], "list", "{taken}");
        assert_eq!(integer(&taken["hint"], "missed_blocks"), 0, "{taken}");
        lab.restores(string(&taken, "ref"), &bytes);
    }
    assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
}

/// It is refused with one line, with a list that is written, and nothing is stored.
#[track_caller]
fn refused(lab: &Lab, list: &str, since: &str, more: &[&str]) -> String {
    let args = args(lab, list, since, more);
    lab.fails(FAILED, &args)
}

#[test]
fn what_is_no_list_of_changes_is_refused_with_its_place() {
    let (lab, _) = lab();
    let known = "supported are \"nbdinfo --map --json\", \"rbd diff --format json\", thin_delta, and lines of \
                 \"offset length\"";
    let bitmap = "use a dirty bitmap: nbdinfo --map=qemu:dirty-bitmap:NAME --json";
    let map = |description: &str| {
        json!([
            {"offset": 0, "length": 65_536, "type": 0, "description": "clean"},
            {"offset": 65_536, "length": 65_536, "type": 3, "description": description},
        ])
    };
    for (list, place, way_out) in [
        ("0 4096\n4096\n", "line 2: ", known),
        ("0 4096\n\n# all\n1 2 3\n", "line 4: ", known),
        ("-1 4096\n", "line 1: ", known),
        ("0 4K\n", "line 1: ", known),
        ("0x 4096\n", "line 1: ", known),
        ("18446744073709551615 1\n", "line 1: ", known),
        ("0 99999999999999999999\n", "line 1: ", known),
        ("offset length\n", "line 1: ", known),
        ("{\"offset\": 0}", "line 1: it is not a list of changes: ", known),
        ("[\n  {\"offset\": 0, \"length\": 1},\n  7\n]", "line 3: ", known),
        ("[{\"offset\": 0, \"length\": 1}", "line 1: it is not a list of changes: ", known),
        ("[{\"offset\": 0}]", "line 1: it is not a list of changes: ", known),
        ("[{\"offset\": 0, \"length\": 1, \"exists\": 7}]", "entry 1: \"exists\" is ", known),
        ("[{\"offset\": 0, \"length\": -1}]", "line 1: it is not a list of changes: ", known),
        ("[{\"offset\": 18446744073709551615, \"length\": 9}]", "entry 1: ", "2^64"),
        (&map("hole,zero").to_string(), "entry 2: it says \"hole,zero\", ", bitmap),
        (&map("data").to_string(), "entry 2: it says \"data\", ", bitmap),
        (&map("a\nb").to_string(), "entry 2: it says \"a\\nb\", ", bitmap),
        ("[{\"offset\": 0, \"length\": 1, \"type\": 1}]", "entry 1: it says ", bitmap),
        // As programs leave it that failed, or are not done yet.
        ("", "it is empty", "a list of no changes is []"),
        (" \n", "it is empty", "a list of no changes is []"),
        ("0 4096\n4096 40", "its last line is incomplete", ""),
    ] {
        let line = refused(&lab, list, "@1", &[]);
        assert!(line.starts_with(&format!("list: {place}")), "{list}: {line}");
        assert!(line.ends_with(way_out), "{list}: {line}");
    }
    lab.write("list", &[0xff, 0xfe, 0x00]);
    let args = ["snapshot", "disk.img", "--changed", "list", "--since", "@1"];
    assert!(lab.fails(FAILED, &args).starts_with("list: it is not text"));
}

#[test]
fn a_list_that_cannot_be_read_is_refused() {
    let (lab, _) = lab();
    for (file, why) in [
        ("missing", "cannot read missing: No such file or directory"),
        ("repo", "cannot read repo: Is a directory"),
        ("disk.img/list", "cannot read disk.img/list: Not a directory"),
    ] {
        let args = ["snapshot", "disk.img", "--changed", file, "--since", "@1"];
        assert_eq!(lab.fails(FAILED, &args), why);
    }
}

#[test]
fn a_list_since_what_is_no_ancestor_is_refused_and_nothing_is_stored() {
    let (lab, mut bytes) = lab();
    grow(&lab, &mut bytes, &[300], 2);
    lab.write("other.img", &noise(9, MIB));
    lab.done(&["snapshot", "other.img"]);
    let line = refused(&lab, "[]", "@7", &[]);
    assert_eq!(line, "there is no snapshot disk@7; \"imgsnap list disk\" lists its snapshots");
    let line = refused(&lab, "[]", "@monday", &[]);
    assert!(line.starts_with("no snapshot of \"disk\" has the label \"monday\"; "), "{line}");
    let line = refused(&lab, "[]", "other@1", &[]);
    assert!(line.starts_with("other@1 is a snapshot of another image"), "{line}");
    let line = refused(&lab, "[]", "1", &[]);
    assert!(line.starts_with("\"1\" does not name a snapshot"), "{line}");
    // A sister of the parent, and the one above it.
    let no_ancestor = "the list starts at disk@2, which is no ancestor of the parent disk@1; choose an \
                       ancestor with --since, or leave --changed out";
    assert_eq!(refused(&lab, "[]", "@2", &["--parent", "@1"]), no_ancestor);
    assert_eq!(refused(&lab, "[]", "@2", &["--differential"]), no_ancestor);
    assert_eq!(refused(&lab, "[]", "@2", &["--differential", "--dry-run"]), no_ancestor);
    lab.done(&["snapshot", "disk.img", "--full"]);
    let line = refused(&lab, "[]", "@2", &[]);
    assert!(line.contains("disk@2, which is no ancestor of the parent disk@3"), "{line}");
}

#[test]
fn a_list_goes_with_no_base() {
    let (lab, _) = lab();
    for more in [&["--full"][..], &["--full", "--full-scan"], &["--full", "--dry-run"]] {
        let line = refused(&lab, "[]", "@1", more);
        let want =
            "a new base of \"disk\" has no parent, so a list cannot be used; leave --changed out";
        assert_eq!(line, want, "{more:?}");
    }
    // Of an image that has no snapshot, none can be named.
    lab.write("new.img", &noise(9, MIB));
    for more in [&[][..], &["--dry-run"]] {
        let args = ["snapshot", "new.img", "--changed", "list", "--since", "@1"];
        let line = lab.fails(FAILED, &[&args, more].concat());
        assert!(line.starts_with("there is no snapshot new@1; "), "{more:?}: {line}");
    }
    assert!(!lab.exists("repo/new"), "an image without snapshots stayed behind");
}

#[test]
fn a_list_and_since_when_it_tells_go_together_and_with_one_image() {
    let (lab, _) = lab();
    lab.write("more.img", &noise(9, MIB));
    lab.write("list", b"[]");
    let before = lab.everything();
    for (args, named) in [
        (&["snapshot", "disk.img", "--changed", "list"][..], "--since <REF>"),
        (&["snapshot", "disk.img", "--since", "@1"], "--changed <FILE|->|--bitmap <NAME>"),
        (
            &["snapshot", "disk.img", "more.img", "--changed", "list", "--since", "@1"],
            "--changed applies to one image only; snapshot it separately",
        ),
        // The base would be the first snapshot, made only now: no list can be since then.
        (
            &[
                "snapshot",
                "more.img",
                "--base-image",
                "disk.img",
                "--changed",
                "list",
                "--since",
                "@1",
            ],
            "--base-image",
        ),
    ] {
        let run: Run = lab.run(args);
        assert_eq!(run.code, Some(USAGE), "{}", run.err);
        let said = run.misused();
        assert!(said.contains(named), "{args:?}: {said}");
        lab.ensure_untouched(&before, &args.join(" "));
    }
}

#[test]
fn a_full_scan_reads_all_whatever_the_list_says() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[300], 2);
    // The list does not name it: nobody believed it, so nothing was missed.
    let taken = taken(&lab, &lines(&[(100, 1)]), "@1", &["--full-scan"]);
    assert_eq!(
        (&taken["hint"], string(&taken, "full_scan_reason")),
        (&Value::Null, "as requested")
    );
    assert_eq!(integer(&taken, "read_bytes"), bytes.len() as u64);
    assert_eq!(integer(&taken, "changed_blocks"), 1);
    lab.restores("disk@2", &bytes);
    // What it is since is looked at all the same.
    assert!(refused(&lab, "[]", "@7", &["--full-scan"]).starts_with("there is no snapshot disk@7"));
}

#[test]
fn a_list_goes_with_a_dry_run_with_skip_unchanged_and_with_any_parent() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[300], 2);
    let list = lines(&[(300, 1)]);
    lab.write("list", list.as_bytes());
    let before = lab.everything();
    let told = taken(&lab, &list, "@1", &["--dry-run"]);
    lab.ensure_untouched(&before, "a dry run");
    let took = taken(&lab, &list, "@1", &["--skip-unchanged"]);
    by_list(&lab, &took, "disk@1", of_blocks(1), SHARE);
    assert_eq!((&told["dry_run"], &took["skipped"]), (&json!(true), &json!(false)));
    for name in ["number", "hint", "read_bytes", "changed_blocks", "image_digest", "stored_bytes"] {
        assert_eq!(told[name], took[name], "{name}");
    }
    // The list may name what did not change.
    let skipped = taken(&lab, &list, "@2", &["--skip-unchanged"]);
    assert_eq!((integer(&skipped, "number"), &skipped["skipped"]), (2, &json!(true)));
    assert_eq!(lab.numbers("disk"), [1, 2]);
    alter(&lab, &mut bytes, &[400], 3);
    let list = lines(&[(300, 1), (400, 1)]);
    for more in [&["--differential"][..], &["--parent", "@1"]] {
        let took = taken(&lab, &list, "disk@1", more);
        by_list(&lab, &took, "disk@1", of_blocks(2), SHARE);
        assert_eq!((integer(&took, "parent_number"), integer(&took, "changed_blocks")), (1, 2));
        lab.restores(string(&took, "ref"), &bytes);
    }
    let took = taken(&lab, &list, "disk@1", &["--parent", "@2"]);
    by_list(&lab, &took, "disk@1", of_blocks(2), SHARE);
    assert_eq!((integer(&took, "parent_number"), integer(&took, "changed_blocks")), (2, 1));
    lab.restores(string(&took, "ref"), &bytes);
}
