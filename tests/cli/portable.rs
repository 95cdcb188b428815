//! `imgsnap export`, `import` and `apply`: snapshots that travel

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    BLOCK, DAMAGE, FAILED, KIB, Lab, Random, change, integer, noise, same, string,
};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;

/// Exports `disk@number` to the file of this name; against another one if `since` is not 0.
fn export(lab: &Lab, number: usize, since: usize, file: &str) {
    let reference = format!("disk@{number}");
    let since = format!("@{since}");
    let more: &[&str] = if since == "@0" { &[] } else { &["--since", &since] };
    lab.done(&[&["export", &reference, "-o", file], more].concat());
}

/// Three snapshots, and the files `1.delta`, which is a full one, `2.delta` and `3.delta`, each against
/// the one before; the images are in `1.img` and so on.
fn exported() -> (Lab, Vec<Vec<u8>>) {
    let (lab, states) = Lab::with_snapshots(3);
    for number in 1..=3 {
        export(&lab, number, number - 1, &format!("{number}.delta"));
        lab.write(&format!("{number}.img"), &states[number - 1]);
    }
    (lab, states)
}

/// Makes an image and a snapshot of each of these states.
fn history(states: &[Vec<u8>]) -> Lab {
    let lab = Lab::new();
    for (number, bytes) in (1..).zip(states) {
        lab.write("disk.img", bytes);
        lab.done(&["snapshot", "disk.img"]);
        lab.write(&format!("{number}.img"), bytes);
    }
    lab
}

/// 10 blocks, 5 of them, and 10 again, which end in zeros.
fn shrunk_and_regrown() -> Vec<Vec<u8>> {
    let long = noise(1, 10 * BLOCK);
    let short = long[..5 * BLOCK].to_vec();
    let mut again = short.clone();
    again.resize(10 * BLOCK, 0);
    again[9 * BLOCK..].copy_from_slice(&noise(2, BLOCK));
    vec![long, short, again]
}

fn digest(lab: &Lab, number: usize) -> String {
    string(&lab.json(&["show", &format!("disk@{number}")]), "image_digest").to_owned()
}

#[test]
fn a_full_export_and_deltas_on_it_give_each_image_without_a_repository() {
    let (lab, states) = exported();
    std::fs::remove_dir_all(lab.path("repo")).unwrap();
    let deltas = ["1.delta", "2.delta", "3.delta"];
    for count in 1..=3 {
        let out = format!("out-{count}");
        let done = lab.json(&[&["apply", "-o", &out], &deltas[..count]].concat());
        same(&lab.read(&out), &states[count - 1], &out);
        assert_eq!(integer(&done, "number"), count as u64);
        assert_eq!(done["deltas"], json!(deltas[..count]));
        assert_eq!(integer(&done, "image_bytes"), states[count - 1].len() as u64);
    }
    // Onto the image of one of them.
    for (base, deltas) in
        [("1.img", &deltas[1..2]), ("2.img", &deltas[2..]), ("1.img", &deltas[1..])]
    {
        lab.done(&[&["apply", "--base", base, "-o", "out", "--force"], deltas].concat());
        let number: usize = deltas.last().unwrap()[..1].parse().unwrap();
        same(&lab.read("out"), &states[number - 1], base);
    }
    // To a pipe, without a base.
    let piped = lab.run(&[&["apply", "-o", "-"], &deltas[..]].concat()).done();
    same(&piped.out, &states[2], "stdout");
}

#[test]
fn an_export_says_what_it_wrote() {
    let (lab, _) = Lab::with_snapshots(2);
    let done = lab.json(&["export", "disk@2", "--since", "disk@1", "-o", "out.delta"]);
    assert_eq!((string(&done, "ref"), string(&done, "since")), ("disk@2", "disk@1"));
    assert_eq!(integer(&done, "stored_bytes"), lab.read("out.delta").len() as u64);
    assert_eq!(string(&done, "image_digest"), digest(&lab, 2));
    let text = lab.done(&["export", "disk@2", "-o", "full.delta"]);
    assert!(text.starts_with("disk@2 (all of it) -> full.delta  "), "{text}");
    let full = lab.json(&["export", "disk@1", "-o", "first.delta"]);
    assert_eq!(full["since"], Value::Null);
    // To a pipe it is the same file, and the line is on stderr.
    let piped = lab.run(&["export", "disk@2", "--since", "@1", "-o", "-"]).done();
    assert_eq!(piped.out.len() as u64, integer(&done, "stored_bytes"));
    assert!(piped.err.starts_with("imgsnap: disk@2 (since disk@1) -> -  "), "{}", piped.err);
    lab.write("piped.delta", &piped.out);
    lab.done(&["apply", "first.delta", "piped.delta", "-o", "out.img"]);
    same(&lab.read("out.img"), &lab.read("disk.img"), "disk@2");
}

#[test]
fn one_delta_over_several_snapshots_needs_none_between_them() {
    let (lab, states) = exported();
    export(&lab, 3, 1, "1-3.delta");
    lab.done(&["apply", "1-3.delta", "--base", "1.img", "-o", "out"]);
    same(&lab.read("out"), &states[2], "disk@3");
    lab.done(&["apply", "1.delta", "1-3.delta", "-o", "out", "--force"]);
    same(&lab.read("out"), &states[2], "disk@3");
    let there = Lab::new();
    there.done(&["import", &lab.at("1.delta"), &lab.at("1-3.delta"), "--name", "disk"]);
    there.holds("disk", &[(1, &states[0]), (3, &states[2])]);
}

#[test]
fn an_undo_delta_leads_back() {
    let (lab, states) = exported();
    export(&lab, 1, 3, "undo.delta");
    lab.done(&["apply", "undo.delta", "--base", "3.img", "-o", "out"]);
    same(&lab.read("out"), &states[0], "disk@1");
    lab.done(&["apply", "undo.delta", "--base", "3.img", "--in-place"]);
    same(&lab.read("3.img"), &states[0], "disk@1");
    // There and back again.
    lab.done(&["apply", "2.delta", "3.delta", "--base", "1.img", "--in-place"]);
    lab.done(&["apply", "undo.delta", "--base", "1.img", "--in-place"]);
    same(&lab.read("1.img"), &states[0], "disk@1");
    // What it leads to is known where it comes from.
    let text = lab.done(&["import", "undo.delta"]);
    assert_eq!(text, "disk@1 is already in the repository\n");
}

#[test]
fn an_image_that_shrank_and_grew_again_has_no_old_bytes() {
    let states = shrunk_and_regrown();
    let lab = history(&states);
    for (number, since) in [(1, 0), (2, 1), (3, 2), (3, 1), (2, 3), (1, 2), (1, 3), (3, 0)] {
        let file = format!("{since}-{number}.delta");
        export(&lab, number, since, &file);
        if since == 0 {
            continue;
        }
        let base = format!("{since}.img");
        lab.done(&["apply", &file, "--base", &base, "-o", "out", "--force"]);
        same(&lab.read("out"), &states[number - 1], &file);
        lab.copy(&base, "live.img");
        lab.done(&["apply", &file, "--base", "live.img", "--in-place"]);
        same(&lab.read("live.img"), &states[number - 1], &file);
    }
    for deltas in [&["0-1.delta", "1-2.delta", "2-3.delta"][..], &["0-1.delta", "1-3.delta"]] {
        lab.done(&[&["apply", "-o", "out", "--force"], deltas].concat());
        same(&lab.read("out"), &states[2], "disk@3");
    }
    lab.done(&["apply", "1-2.delta", "2-3.delta", "--base", "1.img", "--in-place"]);
    same(&lab.read("1.img"), &states[2], "both in place");
    // With the middle left out in the repository, too.
    lab.done(&["delete", "disk@2", "--compact"]);
    lab.holds("disk", &[(1, &states[0]), (3, &states[2])]);
    let there = Lab::new();
    there.done(&["import", &lab.at("0-1.delta"), &lab.at("1-3.delta"), "--name", "disk"]);
    there.holds("disk", &[(1, &states[0]), (3, &states[2])]);
}

#[test]
fn whatever_an_image_became_each_export_leads_from_the_one_to_the_other() {
    let mut random = Random(99);
    let mut states = vec![noise(1, 30 * BLOCK)];
    for number in 1..6 {
        let mut bytes = states[number - 1].clone();
        let rest = [0, 1, 100, 4095][random.below(4) as usize];
        bytes.resize((1 + random.below(50) as usize) * BLOCK + rest, 0);
        for _ in 0..3 {
            let at = random.below(bytes.len() as u64) as usize;
            let length = (random.below(4 * BLOCK as u64) as usize).min(bytes.len() - at);
            let zeros = random.below(3) == 0;
            let new = if zeros { vec![0; length] } else { noise(random.next(), length) };
            bytes[at..at + length].copy_from_slice(&new);
        }
        states.push(bytes);
    }
    let lab = history(&states);
    for from in 1..=6 {
        for to in (1..=6).filter(|to| *to != from) {
            let file = format!("{from}-{to}.delta");
            export(&lab, to, from, &file);
            let base = format!("{from}.img");
            lab.done(&["apply", &file, "--base", &base, "-o", "out", "--force"]);
            same(&lab.read("out"), &states[to - 1], &file);
            lab.copy(&base, "live.img");
            let done = lab.json(&["apply", &file, "--base", "live.img", "--in-place"]);
            same(&lab.read("live.img"), &states[to - 1], &file);
            assert!(integer(&done, "written_bytes") <= states[to - 1].len() as u64);
        }
    }
}

#[test]
fn a_delta_leads_from_one_base_to_another_with_its_own_key() {
    let (lab, mut states) = Lab::with_snapshots(2);
    let mut bytes = states[1].clone();
    for (seed, full) in [(60, true), (61, false)] {
        change(&mut bytes, seed, 3);
        lab.write("disk.img", &bytes);
        lab.done(if full {
            &["snapshot", "disk.img", "--full"]
        } else {
            &["snapshot", "disk.img"]
        });
        states.push(bytes.clone());
    }
    for (number, bytes) in (1..).zip(&states) {
        lab.write(&format!("{number}.img"), bytes);
    }
    for (number, since) in [(3, 2), (4, 1), (1, 4), (2, 3)] {
        let file = format!("{since}-{number}.delta");
        export(&lab, number, since, &file);
        // As small as within one chain.
        assert!(lab.read(&file).len() < 15 * BLOCK, "{file}");
        lab.done(&["apply", &file, "--base", &format!("{since}.img"), "-o", "out", "--force"]);
        same(&lab.read("out"), &states[number - 1], &file);
    }
    let there = Lab::new();
    export(&lab, 1, 0, "1.delta");
    there.done(&["import", &lab.at("1.delta"), &lab.at("1-4.delta"), "--name", "disk"]);
    there.holds("disk", &[(1, &states[0]), (4, &states[3])]);
}

/// Two bases have two keys, and so two image digests of one image.
#[test]
fn a_delta_across_two_bases_is_a_snapshot_of_its_own() {
    let (lab, mut states) = Lab::with_snapshots(1);
    let mut bytes = states[0].clone();
    for (seed, full) in [(60, true), (61, false)] {
        change(&mut bytes, seed, 3);
        lab.write("disk.img", &bytes);
        lab.done(if full {
            &["snapshot", "disk.img", "--full"]
        } else {
            &["snapshot", "disk.img"]
        });
        states.push(bytes.clone());
    }
    for number in 1..=3 {
        export(&lab, number, number - 1, &format!("{number}.delta"));
    }
    lab.done(&["apply", "1.delta", "2.delta", "-o", "2.img"]);
    same(&lab.read("2.img"), &states[1], "disk@2");
    lab.done(&["apply", "3.delta", "--base", "2.img", "-o", "3.img"]);
    same(&lab.read("3.img"), &states[2], "disk@3");
    let line = lab.fails(FAILED, &["apply", "1.delta", "2.delta", "3.delta", "-o", "out"]);
    assert!(line.contains("3.delta starts from "), "{line}");
    // It is not taken for the one that it was made of.
    let line = lab.fails(FAILED, &["import", "2.delta"]);
    assert!(line.contains("which is a different snapshot"), "{line}");
    let there = Lab::new();
    let files: Vec<String> = (1..=3).map(|n| lab.at(&format!("{n}.delta"))).collect();
    there.done(&["import", &files[0], &files[1], "--name", "disk"]);
    there.holds("disk", &[(1, &states[0]), (2, &states[1])]);
    let line = there.fails(FAILED, &["import", &files[2]]);
    assert!(line.contains("which is not in the repository"), "{line}");
}

#[test]
fn exports_of_what_rests_on_dropped_ones_are_self_contained() {
    let (lab, states) = Lab::with_snapshots(4);
    lab.configure("[prune]\ngarbage = 50\n");
    lab.write("2.img", &states[1]);
    lab.done(&["delete", "disk@1"]);
    lab.done(&["delete", "disk@3"]);
    assert!(!lab.dropped("disk").is_empty());
    export(&lab, 4, 0, "full.delta");
    export(&lab, 4, 2, "2-4.delta");
    lab.done(&["apply", "full.delta", "-o", "full"]);
    same(&lab.read("full"), &states[3], "disk@4");
    lab.done(&["apply", "2-4.delta", "--base", "2.img", "--in-place"]);
    same(&lab.read("2.img"), &states[3], "disk@4");
}

#[test]
fn a_delta_on_the_wrong_image_is_refused_with_both_digests() {
    let (lab, states) = exported();
    let begins = digest(&lab, 2);
    let mut other = states[1].clone();
    other[7 * BLOCK + 5] ^= 1;
    lab.write("other.img", &other);
    lab.write("short.img", &states[1][..100 * KIB]);
    for wrong in ["1.img", "other.img", "short.img"] {
        for to in [&["-o", "out"][..], &["--in-place"]] {
            let line = lab.fails(FAILED, &[&["apply", "3.delta", "--base", wrong], to].concat());
            let bytes = lab.read(wrong).len();
            assert!(
                line.contains(&format!("3.delta starts from an image of {} bytes", 512 * KIB)),
                "{line}"
            );
            assert!(line.contains(&format!("image digest {begins}")), "{line}");
            assert!(line.contains(&format!("{wrong} has {bytes} bytes and ")), "{line}");
            let have = line.split(" bytes and ").nth(1).unwrap().split(';').next().unwrap();
            assert!(have.len() == begins.len() && have != begins, "{line}");
            assert!(line.ends_with("use the image that the delta was exported against"), "{line}");
        }
    }
    // Under the key of the chain the digest is the one that the snapshot has.
    let line = lab.fails(FAILED, &["apply", "3.delta", "--base", "1.img", "-o", "out"]);
    assert!(line.contains(&digest(&lab, 1)), "{line}");
}

#[test]
fn an_image_that_is_longer_than_the_base_is_refused_and_keeps_what_it_has_more() {
    let (lab, states) = exported();
    let longer = [&states[1][..], &noise(5, 3 * BLOCK)].concat();
    lab.write("long.img", &longer);
    for to in [&["--in-place"][..], &["-o", "out"]] {
        let line = lab.fails(FAILED, &[&["apply", "3.delta", "--base", "long.img"], to].concat());
        assert!(line.contains(&format!("long.img has {} bytes and ", longer.len())), "{line}");
    }
    same(&lab.read("long.img"), &longer, "the base");
}

#[test]
fn deltas_in_the_wrong_order_are_refused_with_both_digests() {
    let (lab, _) = exported();
    for deltas in [&["3.delta", "2.delta"][..], &["2.delta", "2.delta"]] {
        let line =
            lab.fails(FAILED, &[&["apply", "--base", "1.img", "-o", "out"], deltas].concat());
        let ends = digest(&lab, deltas[0][..1].parse().unwrap());
        for part in ["2.delta starts from ", " before it ends at ", &digest(&lab, 1), &ends] {
            assert!(line.contains(part), "\"{part}\" is not in: {line}");
        }
        assert!(line.ends_with("give the delta files in order, oldest first"), "{line}");
    }
    // One left out.
    let line = lab.fails(FAILED, &["apply", "1.delta", "3.delta", "-o", "out"]);
    assert!(line.contains("3.delta starts from ") && line.contains(&digest(&lab, 2)), "{line}");
}

#[test]
fn a_full_delta_stands_first_and_alone_needs_no_base() {
    let (lab, _) = exported();
    export(&lab, 2, 0, "full.delta");
    let line =
        lab.fails(FAILED, &["apply", "2.delta", "full.delta", "--base", "1.img", "-o", "out"]);
    assert!(line.contains("full.delta is a full one, which starts from no image"), "{line}");
    let line = lab.fails(FAILED, &["apply", "full.delta", "--base", "1.img", "-o", "out"]);
    assert!(line.ends_with("leave out --base"), "{line}");
    let line = lab.fails(FAILED, &["apply", "full.delta", "--base", "1.img", "--in-place"]);
    assert!(line.ends_with("write a new image with -o"), "{line}");
    let line = lab.fails(FAILED, &["apply", "2.delta", "-o", "out"]);
    assert!(line.contains(&digest(&lab, 1)), "{line}");
    assert!(line.ends_with("give that image with --base"), "{line}");
    let line = lab.fails(FAILED, &["apply", "2.delta", "--base", "1.img", "-o", "-"]);
    assert!(line.contains("cannot be written to a pipe"), "{line}");
}

#[test]
fn a_truncated_delta_is_refused_and_nothing_is_touched() {
    let (lab, _) = exported();
    let there = Lab::new();
    for file in ["1.delta", "3.delta"] {
        let whole = lab.read(file);
        for length in [0, 1, 200, whole.len() / 3, whole.len() - 300, whole.len() - 1] {
            lab.write("cut.delta", &whole[..length]);
            let base: &[&str] = if file == "1.delta" { &[] } else { &["--base", "2.img"] };
            lab.fails(DAMAGE, &[&["apply", "cut.delta", "-o", "out"], base].concat());
            if !base.is_empty() {
                lab.fails(DAMAGE, &["apply", "cut.delta", "--base", "2.img", "--in-place"]);
            }
            there.fails(DAMAGE, &["import", &lab.at("cut.delta"), "--name", "disk"]);
            let before = there.everything();
            let run = there.run_with_input(&["import", "-", "--name", "disk"], &whole[..length]);
            let line = run.failed(DAMAGE);
            assert!(line.contains("stdin: "), "{line}");
            there.ensure_untouched(&before, "an import of a truncated delta");
        }
    }
}

#[test]
fn a_delta_with_a_flipped_bit_is_refused_and_nothing_is_touched() {
    let (lab, states) = exported();
    let whole = lab.read("3.delta");
    let there = Lab::new();
    there.done(&["import", &lab.at("1.delta"), &lab.at("2.delta"), "--name", "disk"]);
    let places = (0..whole.len()).step_by(whole.len() / 37).chain([whole.len() - 1]);
    for at in places {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        lab.write("bad.delta", &bad);
        for to in [&["-o", "out"][..], &["--in-place"]] {
            let run = &[&["apply", "bad.delta", "--base", "2.img"], to].concat();
            let before = lab.everything();
            let run = lab.run(run);
            // A flipped version is one of a later program.
            assert!([Some(DAMAGE), Some(FAILED)].contains(&run.code), "byte {at}: {}", run.err);
            lab.ensure_untouched(&before, &format!("byte {at}: {}", run.err));
        }
        let before = there.everything();
        let run = there.run(&["import", &lab.at("bad.delta")]);
        assert!([Some(DAMAGE), Some(FAILED)].contains(&run.code), "byte {at}: {}", run.err);
        there.ensure_untouched(&before, &format!("byte {at}: {}", run.err));
    }
    there.holds("disk", &[(1, &states[0]), (2, &states[1])]);
}

#[test]
fn what_is_no_delta_is_refused_and_named() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.write("text", b"hello");
    lab.write("noise", &noise(1, 100_000));
    for file in ["text", "noise", "disk.img"] {
        for args in [&["apply", file, "-o", "out"][..], &["import", file]] {
            let line = lab.fails(FAILED, args);
            assert!(line.contains(file), "{args:?}: {line}");
        }
    }
    for args in [&["apply", "nowhere", "-o", "out"][..], &["import", "nowhere"]] {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("nowhere"), "{line}");
    }
}

#[test]
fn in_place_writes_only_what_differs_into_the_same_file() {
    let (lab, states) = exported();
    let inode = |name| std::fs::metadata(lab.path(name)).unwrap().ino();
    let before = inode("1.img");
    let done = lab.json(&["apply", "2.delta", "3.delta", "--base", "1.img", "--in-place"]);
    assert_eq!(integer(&done, "written_bytes"), 6 * BLOCK as u64);
    assert_eq!((inode("1.img"), &done["in_place"]), (before, &json!(true)));
    same(&lab.read("1.img"), &states[2], "disk@3");
    // Without --in-place the base is not touched.
    lab.done(&["apply", "3.delta", "--base", "2.img", "-o", "out"]);
    same(&lab.read("2.img"), &states[1], "the base");
}

#[test]
fn an_interrupted_apply_in_place_is_finished_by_running_it_again() {
    let mut states = shrunk_and_regrown();
    let mut grown = states[0].clone();
    grown.resize(14 * BLOCK + 77, 9);
    grown[2 * BLOCK..3 * BLOCK].fill(8);
    states.push(grown);
    let lab = history(&states);
    for (number, since) in [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (1, 4), (2, 4)] {
        export(&lab, number, since, "delta");
        let (old, new) = (&states[since - 1], &states[number - 1]);
        let args = ["apply", "delta", "--base", "live.img", "--in-place"];
        for blocks in 0..=10 {
            // The first so many blocks are written; a longer image is cut at the end.
            let mut mixture = old.clone();
            let end = (blocks * BLOCK).min(new.len());
            mixture.resize(old.len().max(new.len()), 0);
            mixture[..end].copy_from_slice(&new[..end]);
            lab.write("live.img", &mixture);
            lab.done(&args);
            same(&lab.read("live.img"), new, &format!("{since} to {number} at {blocks}"));
        }
        // And again when it is done.
        lab.done(&args);
        same(&lab.read("live.img"), new, "applied twice");
        lab.remove("delta");
    }
}

#[test]
fn an_existing_output_is_replaced_only_with_force() {
    let (lab, states) = exported();
    lab.write("mine", b"precious");
    for args in [
        &["export", "disk@1", "-o", "mine"][..],
        &["apply", "1.delta", "-o", "mine"],
        &["apply", "2.delta", "--base", "1.img", "-o", "mine"],
    ] {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("mine") && line.contains("--force"), "{line}");
    }
    // With --force it is replaced when all is well, and not before.
    lab.fails(FAILED, &["apply", "3.delta", "--base", "1.img", "-o", "mine", "--force"]);
    lab.flip(&lab.delta("disk", 2), 300);
    lab.fails(DAMAGE, &["export", "disk@3", "-o", "mine", "--force"]);
    lab.done(&["apply", "2.delta", "--base", "1.img", "-o", "mine", "--force"]);
    same(&lab.read("mine"), &states[1], "disk@2");
    lab.done(&["export", "disk@1", "-o", "mine", "--force"]);
    lab.done(&["apply", "mine", "-o", "out"]);
    same(&lab.read("out"), &states[0], "disk@1");
}

#[test]
fn an_export_of_damaged_blocks_fails_and_leaves_nothing() {
    let (lab, _) = Lab::with_snapshots(3);
    lab.flip(&lab.delta("disk", 2), 300);
    for args in [
        &["export", "disk@3", "-o", "out"][..],
        &["export", "disk@2", "--since", "@1", "-o", "out"],
        &["export", "disk@1", "--since", "@3", "-o", "out"],
    ] {
        let run = lab.run(args);
        if args[1] == "disk@1" {
            // To go back nothing of it is needed but its table.
            run.done();
            continue;
        }
        run.failed(DAMAGE);
        assert!(!lab.exists("out"));
    }
}

#[test]
fn an_export_against_itself_or_another_image_is_refused() {
    let (lab, _) = Lab::with_snapshots(2);
    lab.grow_history("web.img", 1);
    let line = lab.fails(FAILED, &["export", "disk@2", "--since", "@latest", "-o", "out"]);
    assert_eq!(line, "a snapshot cannot be exported relative to itself");
    let line = lab.fails(FAILED, &["export", "disk@2", "--since", "web@1", "-o", "out"]);
    assert_eq!(line, "web@1 is a snapshot of another image than \"disk\"");
}

#[test]
fn imported_snapshots_are_those_that_were_exported() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.done(&["label", "disk@2", "gold"]);
    for number in 1..=3 {
        export(&lab, number, number - 1, &format!("{number}.delta"));
    }
    let files: Vec<String> = [3, 1, 2].iter().map(|n| lab.at(&format!("{n}.delta"))).collect();
    // A repository is made; the order of the files does not matter.
    let there = Lab::bare();
    let text = there.done(&["import", &files[0], &files[1], &files[2], "--name", "copy"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("copy@1  ") && lines[0].contains(" imported and verified in "));
    assert!(lines[1].starts_with("copy@2  \"gold\"  "), "{text}");
    let (old, new) = (lab.json(&["list"]), there.json(&["list"]));
    for (old, new) in old.as_array().unwrap().iter().zip(new.as_array().unwrap()) {
        for name in [
            "number",
            "id",
            "parent",
            "parent_number",
            "kind",
            "label",
            "time",
            "image_bytes",
            "image_digest",
            "block_bytes",
            "changed_blocks",
            "changed_bytes",
        ] {
            assert_eq!(new[name], old[name], "{name} of {}", old["ref"]);
        }
        assert_eq!(new["head"], json!(false));
    }
    there.holds("copy", &[(1, &states[0]), (2, &states[1]), (3, &states[2])]);
}

#[test]
fn an_import_of_what_is_here_is_harmless() {
    let (lab, states) = exported();
    let there = Lab::new();
    let file = lab.at("1.delta");
    let first = there.json(&["import", &file, "--name", "disk"]);
    assert_eq!(first["imported"], json!(true));
    let before = there.everything();
    let again = there.json(&["import", &file]);
    assert_eq!((&again["imported"], &again["id"]), (&json!(false), &first["id"]));
    assert_eq!(
        there.done(&["import", &file, "--name", "disk"]),
        "disk@1 is already in the repository\n"
    );
    there.ensure_untouched(&before, "a second import");
    there.holds("disk", &[(1, &states[0])]);
    // The same where it comes from.
    for number in 1..=3 {
        let text = lab.done(&["import", &format!("{number}.delta")]);
        assert_eq!(text, format!("disk@{number} is already in the repository\n"));
    }
}

#[test]
fn an_import_through_a_pipe_is_the_same() {
    let (lab, states) = exported();
    let there = Lab::new();
    for number in 1..=3 {
        let since = format!("@{}", number - 1);
        let more: &[&str] = if number == 1 { &[] } else { &["--since", &since] };
        let reference = format!("disk@{number}");
        let sent = lab.run(&[&["export", &reference, "-o", "-"], more].concat()).done();
        let run = there.run_with_input(&["import", "-", "--name", "disk"], &sent.out).done();
        assert!(run.text().starts_with(&format!("disk@{number}  ")), "{}", run.text());
    }
    there.holds("disk", &[(1, &states[0]), (2, &states[1]), (3, &states[2])]);
}

#[test]
fn an_import_without_its_parent_is_refused_and_names_it() {
    let (lab, states) = exported();
    let there = Lab::new();
    let parent = lab.json(&["show", "disk@2"])["id"].clone();
    let line = there.fails(FAILED, &["import", &lab.at("3.delta"), "--name", "disk"]);
    assert!(line.contains(&format!(
        "snapshot {}, which is not in the repository",
        parent.as_str().unwrap()
    )));
    assert!(line.ends_with("import that one first"), "{line}");
    there.done(&["import", &lab.at("1.delta"), "--name", "disk"]);
    there.fails(FAILED, &["import", &lab.at("3.delta")]);
    there.holds("disk", &[(1, &states[0])]);
    // A full one fills the gap.
    export(&lab, 3, 0, "full.delta");
    there.done(&["import", &lab.at("full.delta")]);
    there.holds("disk", &[(1, &states[0]), (3, &states[2])]);
    // And what lies between them comes later.
    there.done(&["import", &lab.at("2.delta")]);
    there.holds("disk", &[(1, &states[0]), (2, &states[1]), (3, &states[2])]);
}

#[test]
fn an_undo_delta_is_no_import() {
    let (lab, states) = exported();
    export(&lab, 2, 3, "undo.delta");
    let there = Lab::new();
    export(&lab, 3, 0, "full.delta");
    there.done(&["import", &lab.at("full.delta"), "--name", "disk"]);
    let line = there.fails(FAILED, &["import", &lab.at("undo.delta")]);
    assert!(line.contains("it leads from disk@3 back to disk@2"), "{line}");
    assert!(line.ends_with("use it with \"imgsnap apply\""), "{line}");
    there.holds("disk", &[(3, &states[2])]);
}

#[test]
fn a_new_image_needs_a_name_and_that_of_another_image_is_refused() {
    let (lab, _) = exported();
    let there = Lab::new();
    let web = there.grow_history("web.img", 1);
    let file = lab.at("1.delta");
    let line = there.fails(FAILED, &["import", &file]);
    assert!(line.ends_with("give it a name with --name"), "{line}");
    let line = there.fails(FAILED, &["import", &file, "--name", "web"]);
    assert_eq!(line, "\"web\" is a different image; choose another name with --name");
    for name in ["", "a/b", "..", "x@1"] {
        there.fails(FAILED, &["import", &file, "--name", name]);
    }
    there.done(&["import", &file, "--name", "disk"]);
    let line = there.fails(FAILED, &["import", &lab.at("2.delta"), "--name", "other"]);
    assert_eq!(
        line,
        "the image is called \"disk\" in this repository, not \"other\"; leave out --name"
    );
    there.holds("web", &[(1, &web[0])]);
    // A damaged neighbour is no reason to refuse it.
    there.flip(&there.manifest("web"), 300);
    there.done(&["import", &lab.at("2.delta")]);
    assert_eq!(there.numbers("disk"), [1, 2]);
}

#[test]
fn an_imported_chain_goes_on_after_a_relink() {
    let (lab, states) = exported();
    let there = Lab::new();
    let files: Vec<String> = (1..=3).map(|n| lab.at(&format!("{n}.delta"))).collect();
    there.done(&["import", &files[0], &files[1], &files[2], "--name", "disk"]);
    let mut bytes = states[2].clone();
    change(&mut bytes, 80, 2);
    there.write("disk.img", &bytes);
    there.done(&["relink", "disk", "disk.img"]);
    let taken = there.json(&["snapshot", "disk.img"]);
    assert_eq!((integer(&taken, "number"), integer(&taken, "parent_number")), (4, 3));
    assert_eq!(integer(&taken, "changed_blocks"), 2);
    there.done(&["rollback", "disk", "--to", "@1"]);
    same(&there.read("disk.img"), &states[0], "disk@1");
    there.done(&["prune", "disk", "--keep-last", "1", "--compact"]);
    there.holds("disk", &[(1, &states[0]), (4, &bytes)]);
    // And back to where it comes from.
    there.done(&["export", "disk@4", "-o", "4.delta"]);
    lab.done(&["import", &there.at("4.delta")]);
    lab.restores("disk@4", &bytes);
}

#[test]
fn a_label_that_is_taken_is_left_out_with_a_warning() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.done(&["label", "disk@2", "gold"]);
    export(&lab, 1, 0, "1.delta");
    export(&lab, 2, 1, "2.delta");
    let there = Lab::new();
    there.done(&["import", &lab.at("1.delta"), "--name", "disk"]);
    there.done(&["label", "disk@1", "gold"]);
    let run = there.run(&["import", &lab.at("2.delta")]).done();
    assert!(run.err.starts_with("imgsnap: warning: "), "{}", run.err);
    assert!(run.err.contains("disk@2 is imported without its label \"gold\""), "{}", run.err);
    there.holds("disk", &[(1, &states[0]), (2, &states[1])]);
    there.restores("disk@gold", &states[0]);
    assert_eq!(there.json(&["show", "disk@2"])["label"], Value::Null);
}

#[test]
fn a_number_that_another_snapshot_has_is_refused() {
    let (lab, states) = exported();
    let there = Lab::new();
    there.done(&["import", &lab.at("1.delta"), "--name", "disk"]);
    let mut bytes = states[0].clone();
    change(&mut bytes, 80, 2);
    there.write("disk.img", &bytes);
    there.done(&["relink", "disk", "disk.img"]);
    assert_eq!(integer(&there.json(&["snapshot", "disk.img"]), "number"), 2);
    let line = there.fails(FAILED, &["import", &lab.at("2.delta")]);
    assert!(line.contains("it has the number of disk@2, which is a different snapshot"), "{line}");
    there.holds("disk", &[(1, &states[0]), (2, &bytes)]);
}

#[test]
fn what_was_dropped_comes_back_only_when_its_file_is_gone() {
    let (lab, states) = exported();
    let there = Lab::new();
    there.configure("[prune]\ngarbage = 50\n");
    let files: Vec<String> = (1..=3).map(|n| lab.at(&format!("{n}.delta"))).collect();
    there.done(&["import", &files[0], &files[1], &files[2], "--name", "disk"]);
    there.done(&["delete", "disk@2"]);
    assert_eq!(there.dropped("disk"), [2]);
    let line = there.fails(FAILED, &["import", &files[1]]);
    assert!(line.contains("disk@2 was dropped from this repository"), "{line}");
    there.done(&["delete", "disk@3"]);
    assert_eq!(there.dropped("disk"), [0; 0]);
    there.done(&["import", &files[1]]);
    there.holds("disk", &[(1, &states[0]), (2, &states[1])]);
    // Onto a dropped parent that is still there.
    there.done(&["import", &files[2]]);
    there.done(&["delete", "disk@2"]);
    there.done(&["delete", "disk@3"]);
    assert_eq!(integer(&there.json(&["list"])[0], "number"), 1);
    assert!(there.numbers("disk").len() == 1);
}

#[test]
fn a_second_branch_is_imported_onto_a_dropped_parent() {
    let (lab, mut states) = Lab::with_snapshots(2);
    let mut bytes = states[0].clone();
    change(&mut bytes, 70, 3);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img", "--parent", "@1"]);
    states.push(bytes);
    for (number, since) in [(1, 0), (2, 1), (3, 1)] {
        export(&lab, number, since, &format!("{number}.delta"));
    }
    let there = Lab::new();
    there.configure("[prune]\ngarbage = 50\n");
    there.done(&["import", &lab.at("1.delta"), &lab.at("2.delta"), "--name", "disk"]);
    there.done(&["delete", "disk@1"]);
    assert_eq!(there.dropped("disk"), [1]);
    there.done(&["import", &lab.at("3.delta")]);
    there.holds("disk", &[(2, &states[1]), (3, &states[2])]);
    there.done(&["prune", "disk", "--keep-last", "2", "--compact"]);
    assert_eq!(there.dropped("disk"), [1], "two rest on it");
    there.holds("disk", &[(2, &states[1]), (3, &states[2])]);
}

#[test]
fn a_file_of_the_repository_is_a_delta_that_can_be_applied_and_imported() {
    let (lab, states) = Lab::with_snapshots(3);
    let files: Vec<String> = (1..=3).map(|n| lab.delta("disk", n)).collect();
    lab.done(&["apply", &files[0], &files[1], &files[2], "-o", "out"]);
    same(&lab.read("out"), &states[2], "disk@3");
    let there = Lab::new();
    let files: Vec<String> = files.iter().map(|f| lab.at(f)).collect();
    there.done(&["import", &files[2], &files[1], &files[0], "--name", "disk"]);
    there.holds("disk", &[(1, &states[0]), (2, &states[1]), (3, &states[2])]);
    for file in &files {
        assert!(lab.done(&["import", file]).ends_with(" is already in the repository\n"));
    }
}
