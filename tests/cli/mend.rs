//! `imgsnap repair --from`: damaged files are put right from wherever their blocks are.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BLOCK, DAMAGE, FAILED, Lab, string};
use serde_json::{Value, json};

/// A repository with a damaged file, and what its snapshots are.
struct Damaged {
    lab: Lab,
    states: Vec<Vec<u8>>,
}

impl Damaged {
    /// Three snapshots, of which a copy of the repository is made first.
    fn new() -> Self {
        let (lab, states) = Lab::with_snapshots(3);
        copy_folder(&lab, "repo", "copy");
        Self { lab, states }
    }

    fn holds(&self) {
        let kept: Vec<(u64, &[u8])> = (1..).zip(self.states.iter().map(Vec::as_slice)).collect();
        self.lab.holds("disk", &kept);
    }

    /// Repairs, which puts everything right. Gives how, of each file.
    #[track_caller]
    fn mended(&self, from: &[&str]) -> Vec<(String, String)> {
        let value = self.repair(from, 0);
        let files = value["files"].as_array().unwrap();
        let of = |f: &Value| (string(f, "snapshot").to_owned(), string(f, "by").to_owned());
        let mended = files.iter().map(of).collect();
        self.holds();
        mended
    }

    /// Repairs with this exit code, and gives what it printed.
    #[track_caller]
    fn repair(&self, from: &[&str], code: i32) -> Value {
        let mut args = vec!["repair", "disk", "--json"];
        from.iter().for_each(|path| args.extend(["--from", path]));
        let run = self.lab.run(&args);
        assert_eq!(run.code, Some(code), "{}{}", run.text(), run.err);
        run.json()
    }
}

pub fn copy_folder(lab: &Lab, from: &str, to: &str) {
    std::fs::create_dir(lab.path(to)).unwrap();
    for entry in std::fs::read_dir(lab.path(from)).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let (from, to) = (format!("{from}/{name}"), format!("{to}/{name}"));
        if entry.file_type().unwrap().is_dir() {
            copy_folder(lab, &from, &to);
        } else {
            lab.copy(&from, &to);
        }
    }
}

/// In a frame: the first one begins at byte 256.
const IN_A_FRAME: usize = 600;

fn in_the_page(lab: &Lab, delta: &str) -> usize {
    lab.read(delta).len() - 512 - 48
}

#[test]
fn damaged_blocks_are_taken_from_the_live_image() {
    let it = Damaged::new();
    let delta = it.lab.delta("disk", 1);
    it.lab.flip(&delta, IN_A_FRAME);
    // The image has changed since: not in the blocks of the first frame.
    it.lab.write("disk.img", &[&it.states[0][..256 * 1024], &[9; 256 * 1024]].concat());
    assert_eq!(it.mended(&["disk.img"]), [("disk@1".into(), "blocks".into())]);
    assert!(!it.lab.exists(&delta), "the damaged file is gone");
    assert_eq!(it.mended(&["disk.img"]), [], "nothing is damaged any more");
}

/// Bytes of the image may be anywhere: only their digest counts.
#[test]
fn damaged_blocks_are_found_at_another_place_and_in_other_snapshots() {
    let it = Damaged::new();
    let lab = &it.lab;
    // All of the image once more, in an image of its own, in the opposite order.
    let mut blocks: Vec<&[u8]> = it.states[0].chunks(BLOCK).collect();
    blocks.reverse();
    lab.write("reversed.img", &blocks.concat());
    lab.flip(&lab.delta("disk", 1), IN_A_FRAME);
    assert_eq!(it.mended(&["reversed.img"]), [("disk@1".into(), "blocks".into())]);

    // And in a later snapshot of the same image.
    let twice = [&it.states[2][..], &it.states[0][..]].concat();
    lab.write("disk.img", &twice);
    lab.done(&["snapshot", "disk.img"]);
    lab.flip(&lab.delta("disk", 1), IN_A_FRAME);
    let value = it.repair(&["repo"], 0);
    assert_eq!(value["files"][0]["by"], "blocks", "{value}");
    lab.holds("disk", &[(1, &it.states[0]), (2, &it.states[1]), (3, &it.states[2]), (4, &twice)]);
}

#[test]
fn a_damaged_or_missing_file_is_copied_from_a_copy_of_the_repository() {
    let it = Damaged::new();
    let lab = &it.lab;
    for number in [1, 2, 3] {
        let delta = lab.delta("disk", number);
        let sound = lab.read(&delta);
        // In the header, a frame, the page, the footer; shorter; gone.
        for what in ["header", "frame", "page", "footer", "cut", "gone"] {
            match what {
                "header" => lab.flip(&delta, 20),
                "frame" => lab.flip(&delta, IN_A_FRAME),
                "page" => lab.flip(&delta, in_the_page(lab, &delta)),
                "footer" => lab.flip(&delta, sound.len() - 100),
                "cut" => lab.write(&delta, &sound[..sound.len() / 2]),
                _ => lab.remove(&delta),
            }
            let copied = it.repair(&["copy"], 0);
            assert_eq!(copied["rebuilt"], json!(false));
            let file = json!({"snapshot": format!("disk@{number}"), "mended": true, "by": "copy",
                "message": null});
            assert_eq!(copied["files"], json!([file]), "{what} of disk@{number}");
            assert_eq!(lab.read(&delta), sound, "{what} of disk@{number}");
        }
    }
    it.holds();
}

/// The other repository has merged its files: they are others, and yet they have the same snapshots.
#[test]
fn a_file_is_written_anew_from_the_same_snapshot_in_another_form() {
    let it = Damaged::new();
    let lab = &it.lab;
    lab.done(&["--repo", "copy", "flatten", "disk@3"]);
    lab.done(&["--repo", "copy", "flatten", "disk@2"]);
    for number in [1, 2, 3] {
        let delta = lab.delta("disk", number);
        lab.flip(&delta, in_the_page(lab, &delta));
        let how = if number == 1 { "copy" } else { "snapshot" };
        assert_eq!(it.mended(&["copy"]), [(format!("disk@{number}"), how.into())]);
    }
    // It is as before what the next one rests on.
    let mut next = it.states[2].clone();
    next[7] ^= 1;
    lab.write("disk.img", &next);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!(taken["changed_blocks"], 1, "{taken}");
    lab.restores("disk@4", &next);
}

/// One that knows nothing of this repository, with another key and other digests.
#[test]
fn damaged_blocks_are_found_in_a_repository_of_its_own() {
    let it = Damaged::new();
    let lab = &it.lab;
    for options in [&["--digest", "blake3"][..], &["--compression", "zstd:3"]] {
        lab.done(&[&["--repo", "own", "init"], options].concat());
        lab.write("disk.img", &it.states[0]);
        lab.done(&["--repo", "own", "snapshot", "disk.img", "--name", "another"]);
        lab.flip(&lab.delta("disk", 1), IN_A_FRAME);
        assert_eq!(it.mended(&["own"]), [("disk@1".into(), "blocks".into())]);
        std::fs::remove_dir_all(lab.path("own")).unwrap();
    }
}

#[test]
fn damage_in_two_files_is_put_right_from_two_places() {
    let it = Damaged::new();
    let lab = &it.lab;
    lab.flip(&lab.delta("disk", 1), IN_A_FRAME);
    lab.flip(&lab.delta("disk", 3), IN_A_FRAME);
    // The copy has lost one of them, too, and the image has what the other one needs.
    lab.flip(&lab.delta("disk", 3).replacen("repo", "copy", 1), 20);
    lab.write("disk.img", &it.states[2]);
    let mended = it.mended(&["copy", "disk.img"]);
    assert_eq!(mended, [("disk@1".into(), "copy".into()), ("disk@3".into(), "blocks".into())]);
}

#[test]
fn what_is_found_nowhere_stays_as_it_is_and_says_so() {
    let it = Damaged::new();
    let lab = &it.lab;
    lab.flip(&lab.delta("disk", 2), IN_A_FRAME);
    lab.write("other.img", &[3; 8 * BLOCK]);
    let before = lab.everything();
    let value = it.repair(&["other.img"], DAMAGE);
    assert_eq!(
        (&value["files"][0]["mended"], &value["files"][0]["by"]),
        (&json!(false), &json!(null))
    );
    let message = string(&value["files"][0], "message");
    assert!(message.contains("of 3 damaged blocks could not be found"), "{message}");
    lab.ensure_untouched(&before, "repair");
    let run = lab.run(&["repair", "disk", "--from", "other.img"]);
    assert_eq!((run.code, run.err.as_str()), (Some(DAMAGE), ""));
    assert!(run.text().starts_with("DAMAGED  disk@2 was not repaired: "), "{}", run.text());
    // The others are what they were.
    lab.restores("disk@1", &it.states[0]);
    assert_eq!(it.mended(&["other.img", "copy"]), [("disk@2".into(), "copy".into())]);
}

/// A copy that is of another snapshot, or changed, does not take its place.
#[test]
fn what_is_not_the_same_file_does_not_take_its_place() {
    let it = Damaged::new();
    let lab = &it.lab;
    let delta = lab.delta("disk", 2);
    let copied = delta.replacen("repo", "copy", 1);
    lab.flip(&delta, IN_A_FRAME);
    lab.flip(&copied, IN_A_FRAME + 1);
    let damaged = lab.read(&delta);
    lab.write("disk.img", &[0x55; BLOCK]);
    it.repair(&["copy"], DAMAGE);
    assert_eq!(lab.read(&delta), damaged);
    // Both are damaged in the same frame; the third one is not.
    lab.write("disk.img", &it.states[1]);
    assert_eq!(it.mended(&["copy", "disk.img"]), [("disk@2".into(), "blocks".into())]);
}

#[test]
fn sound_files_are_left_alone() {
    let it = Damaged::new();
    let before = it.lab.everything();
    assert_eq!(it.repair(&["copy", "disk.img"], 0)["files"], json!([]));
    let text = it.lab.done(&["repair", "--from", "copy"]);
    assert_eq!(text.trim(), "disk: no file is damaged");
    it.lab.ensure_untouched(&before, "repair");
    for (from, said) in [("nowhere", "nowhere"), ("home", "is not a repository")] {
        std::fs::create_dir_all(it.lab.path("home")).unwrap();
        let line = it.lab.run(&["repair", "--from", from]).failed(FAILED);
        assert!(line.contains(said), "{line}");
    }
}

#[test]
fn people_are_told_what_was_done() {
    let it = Damaged::new();
    it.lab.flip(&it.lab.delta("disk", 1), IN_A_FRAME);
    it.lab.write("disk.img", &it.states[0]);
    let text = it.lab.done(&["repair", "--from", "disk.img"]);
    assert!(
        text.starts_with("disk@1  repaired: ") && text.contains("damaged blocks recovered"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);
}

/// The manifest is lost, and so is the base: without a copy of it nothing of the image would be listed.
#[test]
fn with_the_manifest_lost_files_are_brought_back_before_it_is_rebuilt() {
    for is_gone in [false, true] {
        let it = Damaged::new();
        let lab = &it.lab;
        let delta = lab.delta("disk", 1);
        if is_gone {
            lab.remove(&delta);
        } else {
            lab.flip(&delta, 20);
        }
        remove_manifests(lab);
        let value = it.repair(&["copy"], 0);
        assert_eq!((&value["rebuilt"], &value["snapshots"]), (&json!(true), &json!(3)), "{value}");
        assert_eq!(value["brought_back"].as_array().unwrap().len(), 1, "{value}");
        it.holds();
    }
}

/// Nobody can be asked: what cannot be used stays, and is looked at again. Its numbers are not given away.
#[test]
fn what_a_repair_left_out_is_taken_in_when_it_is_put_right() {
    let it = Damaged::new();
    let lab = &it.lab;
    let delta = lab.delta("disk", 1);
    lab.flip(&delta, 20);
    remove_manifests(lab);
    let run = lab.run(&["repair", "disk", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.text());
    assert_eq!(run.json()["unused"].as_array().unwrap().len(), 3);
    let run = lab.run(&["repair", "disk", "--json"]);
    assert_eq!((run.code, &run.json()["rebuilt"]), (Some(DAMAGE), &json!(false)), "not yet");
    assert_eq!(run.json()["still_unused"].as_array().unwrap().len(), 3);
    lab.done(&["relink", "disk", "disk.img"]);
    assert_eq!(lab.json(&["snapshot", "disk.img"])["number"], 4);
    // The base is put right, and all are there again.
    lab.flip(&delta, 20);
    let value = lab.json(&["repair", "disk"]);
    assert_eq!((&value["rebuilt"], &value["snapshots"]), (&json!(true), &json!(4)), "{value}");
    let last = &it.states[2];
    lab.holds("disk", &[(1, &it.states[0]), (2, &it.states[1]), (3, last), (4, last)]);
    assert_eq!(lab.json(&["repair", "disk"])["rebuilt"], json!(false));
}

/// A file that is sound is not what is damaged, if its blocks are in a base image.
#[test]
fn a_changed_base_image_is_not_mended_by_a_copy_of_its_table() {
    let lab = Lab::new();
    let base: Vec<u8> = crate::support::disk(5, 64 * BLOCK);
    lab.write("base.img", &base);
    lab.write("clone.img", &base);
    lab.done(&["snapshot", "clone.img", "--base-image", "base.img"]);
    copy_folder(&lab, "repo", "copy");
    lab.write("good.img", &base);
    lab.flip("base.img", 100);
    let run = lab.run(&["repair", "clone", "--from", "copy"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.text());
    assert!(run.text().contains("relink clone --base-image"), "{}", run.text());
    // The copy knows where a good one is: there the same snapshot is whole.
    lab.done(&["--repo", "copy", "relink", "clone", "--base-image", "good.img"]);
    lab.done(&["repair", "clone", "--from", "copy"]);
    lab.holds("clone", &[(1, &base), (2, &base)]);
}

fn remove_manifests(lab: &Lab) {
    for file in lab.stored("disk").iter().filter(|f| f.starts_with("manifest.")) {
        lab.remove(&format!("repo/disk/{file}"));
    }
}
