//! Rollbacks of tracked images: after hints that lie, after a list that left something out, and of an image
//! that was touched only.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::tracked::{Guards, is_by_extents, liar, take, track, tracked, xfs};
use serde_json::{Value, json};

const BLOCK: u64 = 4096;

/// Adds to the configuration how much of what is called unchanged is looked at.
pub fn configure(lab: &Lab, setting: &str) {
    crate::config::add(&lab.repo, &format!("[snapshot]\n{setting}\n"));
}

/// A tracked image with three snapshots, changed since at two places, one in either half; and the library
/// that hides that. With a recheck of 100 % both are found, with 50 % the first one only.
struct Deceived {
    // Undone in this order.
    _guards: Guards,
    lab: Lab,
    image: String,
    /// Copies of the image as it is, and as it was at the second snapshot.
    present: String,
    second: String,
    liar: String,
}

impl Deceived {
    fn new(recheck: &str) -> Result<Self, String> {
        tools(&["cc"])?;
        let (lab, guards, image) = xfs()?;
        let liar = liar(&lab)?;
        track(&lab, &image);
        configure(&lab, &format!("recheck = {recheck}"));
        put(&image, MIB / 4, &noise(70, BLOCK));
        put(&image, MIB + 100 * BLOCK, &noise(71, BLOCK));
        let present = lab.path("present");
        keep(&image, &present);
        let second = lab.restore("vm@2");
        Ok(Self { lab, _guards: guards, image, present, second, liar })
    }

    fn roll_back(&self, more: &[&str]) -> (Value, String) {
        let args = [&["rollback", "vm", "--to", "@2", "--json"], more].concat();
        let mut command = self.lab.command(&args);
        command.env("LD_PRELOAD", &self.liar);
        let run = Started::spawn(command).wait().done();
        (run.json(), run.err)
    }

    /// The snapshot that comes next finds what was written since, and is the image.
    #[track_caller]
    fn goes_on(&self) {
        put(&self.image, MIB / 2, &noise(72, BLOCK));
        let (taken, err) = take(&self.lab, &self.image);
        is_by_extents(&taken);
        assert_eq!(err, "");
        self.lab.verify(usize::try_from(taken["number"].as_u64().unwrap()).unwrap());
    }
}

fn saves_all(recheck: &str) -> Result<(), String> {
    let of = Deceived::new(recheck)?;
    let (done, err) = of.roll_back(&[]);
    same(&of.present, &of.lab.restore(done["saved"].as_str().unwrap()));
    same(&of.second, &of.image);
    // The first was taken by what lies and is not to be trusted, the other by reading all.
    assert_eq!((&done["saved"], &done["scanned"]), (&json!("vm@5"), &json!(true)), "{done}");
    let said = "vm@4: 2 blocks that should have been unchanged had changed (first at byte 262144)";
    assert!(err.contains(said) || (recheck == "50" && err.contains("vm@4: 1 block ")), "{err}");
    assert_eq!(done["written_bytes"], 3 * BLOCK, "{done}");
    of.goes_on();
    Ok(())
}

#[test]
fn a_rollback_whose_hints_lie_saves_what_it_overwrites() {
    need!(saves_all("100"));
}

#[test]
fn a_rollback_whose_hints_lie_saves_what_no_recheck_has_looked_at_too() {
    need!(saves_all("50"));
}

fn writes_all(recheck: &str) -> Result<(), String> {
    let of = Deceived::new(recheck)?;
    let (done, err) = of.roll_back(&["--no-save"]);
    same(&of.second, &of.image);
    assert!(
        err.contains("that should have been unchanged had changed; reading the whole image"),
        "{err}"
    );
    assert_eq!((&done["saved"], &done["scanned"]), (&Value::Null, &json!(true)), "{done}");
    assert_eq!(
        (&done["hint"], &done["written_bytes"]),
        (&Value::Null, &json!(3 * BLOCK)),
        "{done}"
    );
    assert_eq!(of.lab.numbers("vm"), [1, 2, 3]);
    of.goes_on();
    Ok(())
}

#[test]
fn a_rollback_whose_hints_lie_and_that_saves_nothing_writes_all_the_same_all_that_differs() {
    need!(writes_all("50"));
    need!(writes_all("100"));
}

fn tells_the_truth(recheck: &str) -> Result<(), String> {
    let of = Deceived::new(recheck)?;
    let args = ["rollback", "vm", "--to", "@2", "--dry-run", "--json"];
    let honest = of.lab.run(&args).done();
    assert_eq!((&honest.json()["hint"], honest.err.as_str()), (&json!("extents"), ""));
    assert_eq!(honest.json()["written_bytes"], 3 * BLOCK);
    for more in [&["--dry-run"][..], &["--dry-run", "--no-save"]] {
        let (told, err) = of.roll_back(more);
        assert!(err.contains("2 blocks that") || recheck == "50", "{err}");
        assert!(
            err.contains("should have been unchanged had changed; reading the whole image"),
            "{err}"
        );
        assert_eq!(told["written_bytes"], 3 * BLOCK, "{told}");
        assert_eq!((&told["scanned"], &told["hint"]), (&json!(true), &Value::Null), "{told}");
    }
    same(&of.present, &of.image);
    assert_eq!(of.lab.numbers("vm"), [1, 2, 3]);
    of.goes_on();
    Ok(())
}

#[test]
fn a_rehearsal_of_a_rollback_whose_hints_lie_warns_and_tells_what_would_be_written_in_truth() {
    need!(tells_the_truth("50"));
    need!(tells_the_truth("100"));
}

/// An image with a base, and a snapshot by a list that left a change out.
fn listed_in_part(mkfs: &str, args: &[&str]) -> Result<(Lab, (Loop, Mount), String), String> {
    let lab = Lab::new();
    let guards = mounted(&lab, mkfs, args, 400)?;
    let image = lab.path("mnt/vm.img");
    make(&image, 2 * MIB);
    put(&image, MIB, &noise(1, MIB));
    lab.snapshot(&image);
    let (listed, left_out) = (MIB + 50 * BLOCK, MIB + 90 * BLOCK);
    put(&image, listed, &noise(20, BLOCK));
    put(&image, left_out, &noise(21, BLOCK));
    let list = lab.path("list");
    std::fs::write(&list, format!("{listed} {BLOCK}\n")).unwrap();
    let args = ["snapshot", &image, "--changed", &list, "--since", "@1", "--recheck", "0"];
    let taken = lab.run(&[&args[..], &["--json"]].concat()).done().json();
    assert_eq!((&taken["hint"]["kind"], &taken["changed_blocks"]), (&json!("list"), &json!(1)));
    Ok((lab, guards, image))
}

const SYSTEMS: [(&str, &[&str]); 2] =
    [("mkfs.ext4", &["-q"]), ("mkfs.xfs", &["-q", "-m", "reflink=1"])];

fn is_found(mkfs: &str, args: &[&str]) -> Result<(), String> {
    let (lab, _guards, image) = listed_in_part(mkfs, args)?;
    let plain = ["snapshot", &image, "--recheck", "0", "--json"];
    let taken = lab.run(&plain).done().json();
    assert_ne!(taken["hint"]["kind"], "times", "{mkfs}: {taken}");
    assert_eq!(taken["changed_blocks"], 1, "{mkfs}: {taken}");
    same(&image, &lab.restore("vm@3"));
    // That one is known to be the image, here: it is the list that is not believed.
    let taken = lab.run(&plain).done().json();
    assert_eq!(taken["hint"]["kind"], "times", "{mkfs}: {taken}");
    Ok(())
}

#[test]
fn what_a_list_left_out_is_found_though_the_times_of_the_image_have_not_changed_since() {
    for (mkfs, args) in SYSTEMS {
        need!(is_found(mkfs, args));
    }
}

fn is_saved(mkfs: &str, args: &[&str]) -> Result<(), String> {
    let (lab, _guards, image) = listed_in_part(mkfs, args)?;
    let (present, first) = (lab.path("present"), lab.restore("vm@1"));
    keep(&image, &present);
    let done = lab.run(&["rollback", "vm", "--to", "@1", "--json"]).done().json();
    assert_eq!(done["saved"], "vm@3", "{mkfs}: {done}");
    same(&present, &lab.restore("vm@3"));
    same(&first, &image);
    Ok(())
}

#[test]
fn a_rollback_after_a_list_that_left_something_out_saves_that_too() {
    for (mkfs, args) in SYSTEMS {
        need!(is_saved(mkfs, args));
    }
}

/// What has been found to miss something may have missed more.
#[test]
fn a_rollback_after_a_snapshot_that_had_missed_something_saves_all() {
    let of = need!(Deceived::new("50"));
    let mut command = of.lab.command(&["snapshot", &of.image, "--json"]);
    command.env("LD_PRELOAD", &of.liar);
    let taken = Started::spawn(command).wait().done().json();
    assert_eq!((&taken["changed_blocks"], &taken["hint"]["missed_blocks"]), (&json!(1), &json!(1)));
    let done = of.lab.run(&["rollback", "vm", "--to", "@2", "--json"]).done().json();
    same(&of.present, &of.lab.restore(done["saved"].as_str().unwrap()));
    same(&of.second, &of.image);
    assert_eq!((&done["saved"], &done["scanned"]), (&json!("vm@5"), &json!(true)), "{done}");
    of.goes_on();
}

/// The base that it still equals was read in full, but that is not what this rollback has done.
#[test]
fn a_rollback_of_an_image_that_was_touched_only_does_not_call_itself_scanned_and_proved() {
    let (lab, _guards, image) = need!(xfs());
    let taken = lab.run(&tracked(&image, "0")).done().json();
    assert_eq!((&taken["number"], &taken["hint"]), (&json!(1), &Value::Null), "{taken}");
    let first = lab.path("first");
    keep(&image, &first);
    tool("touch", &["-d", "2020-01-01", &image]);
    let done = lab.run(&["rollback", "vm", "--to", "@1", "--json"]).done().json();
    assert_eq!((&done["scanned"], &done["proved"]), (&json!(false), &json!(false)), "{done}");
    assert_eq!((&done["hint"], &done["saved"]), (&json!("extents"), &json!("vm@1")), "{done}");
    assert_eq!(done["written_bytes"], 0, "{done}");
    assert!(done["read_bytes"].as_u64().unwrap() <= MIB / 8, "{done}");
    assert_eq!(lab.numbers("vm"), [1]);
    same(&first, &image);
}
