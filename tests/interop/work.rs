//! Plans of images that are in use: workers read a clone.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::tracked::{clones, xfs};
use std::fs::File;

/// Does all tasks of a plan of an image.
fn planned(lab: &Lab, image: &str) -> (String, Vec<String>) {
    let planned = lab.run(&["plan", image, "--json"]).json();
    let tasks = planned["tasks"].as_array().unwrap().iter();
    let tasks = tasks.map(|task| task["task"].to_string()).collect();
    (planned["plan"].as_str().unwrap().to_owned(), tasks)
}

#[test]
fn an_image_that_is_in_use_is_cloned_and_the_clone_is_taken() {
    let (lab, _guards, image) = need!(xfs());
    lab.run(&["snapshot", &image, "--part-size", "256K"]).done();
    let writer = File::options().write(true).open(&image).unwrap();
    put(&image, 300_000, &noise(2, 600_000));
    let then = std::fs::read(&image).unwrap();
    let (plan, tasks) = planned(&lab, &image);
    assert_eq!(tasks.len(), 8);
    // It goes on, and is taken meanwhile: what the workers read stays.
    put(&image, 0, &noise(3, MIB));
    lab.run(&["snapshot", &image]).done();
    let now = std::fs::read(&image).unwrap();
    assert!(lab.run(&["list", "vm"]).done().err.is_empty(), "a clone of no use is told of");
    tasks.iter().for_each(|task| drop(lab.run(&["part", &plan, task]).done()));
    lab.run(&["join", &plan]).done();
    for (number, bytes) in [(2, &then), (3, &now)] {
        let shown = lab.run(&["show", &format!("vm@{number}"), "--json"]).done().json();
        assert_eq!(shown["consistency"], "crash", "{shown}");
        assert!(std::fs::read(lab.restore(&format!("vm@{number}"))).unwrap() == *bytes, "{number}");
    }
    assert_eq!(clones(&lab).len(), 1, "that of the newest snapshot");
    // One that is given up, and one whose clone somebody removed.
    let (plan, tasks) = planned(&lab, &image);
    assert_eq!(clones(&lab).len(), 2);
    lab.run(&["plan", "drop", &plan]).done();
    assert_eq!(clones(&lab).len(), 1);
    lab.run(&["part", &plan, &tasks[0]]).fails(6).says("there is no plan");
    let (plan, tasks) = planned(&lab, &image);
    let kept = clones(&lab);
    let shown = lab.run(&["plan", "show", &plan, "--json"]).done().json();
    let id = shown["images"][0]["id"].as_str().unwrap();
    assert!(kept.iter().any(|name| name == id), "{kept:?}");
    std::fs::remove_file(lab.path(&format!("mnt/.imgsnap/{id}"))).unwrap();
    lab.run(&["part", &plan, &tasks[0]]).fails(6).says("make a new plan");
    drop(writer);
    lab.verify(3);
}
