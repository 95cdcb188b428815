//! `imgsnap snapshot --base-of` and `--find-base`: chains that begin from another image's snapshot

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BLOCK, DAMAGE, FAILED, Lab, MIB, change, integer, noise, string};
use serde_json::{Value, json};

/// Three snapshots of `template`, and `clone` with two: the first has other bytes in four blocks of `template@2`.
struct Cloned {
    lab: Lab,
    template: Vec<Vec<u8>>,
    clone: Vec<Vec<u8>>,
}

impl Cloned {
    fn new() -> Self {
        let lab = Lab::new();
        let mut bytes = noise(1, MIB);
        let mut template = Vec::new();
        for seed in 0..3 {
            change(&mut bytes, seed + 1, 5);
            lab.write("template.img", &bytes);
            lab.done(&["snapshot", "template.img"]);
            template.push(bytes.clone());
        }
        let mut bytes = template[1].clone();
        let mut clone = Vec::new();
        for args in [&["--base-of", "template@2"][..], &[]] {
            change(&mut bytes, 20 + args.len() as u64, 4);
            lab.write("clone.img", &bytes);
            lab.done(&[&["snapshot", "clone.img"], args].concat());
            clone.push(bytes.clone());
        }
        Self { lab, template, clone }
    }

    /// Both restore to what they were.
    fn holds(&self) {
        let number = |snapshot: &Value| integer(snapshot, "number");
        for (name, states) in [("template", &self.template), ("clone", &self.clone)] {
            let list = self.lab.json(&["list", name]);
            let listed = list.as_array().unwrap().iter().map(number);
            let listed: Vec<_> = listed.map(|at| (at, &states[at as usize - 1][..])).collect();
            self.lab.holds(name, &listed);
        }
    }

    /// Which images need a snapshot of the template.
    fn needed_by(&self, number: u64) -> Vec<String> {
        let text = self.lab.done(&["show", &format!("template@{number}")]);
        let line = text.lines().find_map(|line| line.trim().strip_prefix("needed by"));
        let names = line.unwrap().trim();
        if names == "no other image" { Vec::new() } else { vec![names.to_owned()] }
    }
}

#[test]
fn a_clone_costs_a_delta() {
    let cloned = Cloned::new();
    cloned.holds();
    let lab = &cloned.lab;
    let list = lab.json(&["list", "clone"]);
    assert_eq!((string(&list[0], "kind"), &list[0]["parent"]), ("delta", &Value::Null));
    assert_eq!((integer(&list[0], "number"), integer(&list[0], "changed_blocks")), (1, 4));
    assert_eq!(string(&list[0]["base_of"], "ref"), "template@2");
    assert_eq!(list[1]["base_of"], Value::Null);
    assert!(integer(&list[0], "stored_bytes") < 6 * BLOCK as u64, "{list}");
    let text = lab.done(&["list"]);
    assert!(text.contains("  template@2  ") && text.contains("(needed by clone)"), "{text}");
    let text = lab.done(&["show", "clone@1"]);
    assert!(text.contains("template@2, of another image"), "{text}");
    assert_eq!(cloned.needed_by(2), ["clone"]);
    assert!(cloned.needed_by(1).is_empty());
    let text = lab.done(&["stats", "clone"]);
    assert!(text.contains("(depends on template@2)"), "{text}");
}
