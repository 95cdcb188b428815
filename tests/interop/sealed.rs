//! Encrypted repositories, read by a second program, which was made from FORMAT.md alone.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use std::process::Command;

/// What Python prints: that of `IMGSNAP_PYTHON`, since Debian's own package has no Argon2id.
fn python(args: &[&str]) -> Result<String, String> {
    let python = std::env::var("IMGSNAP_PYTHON").unwrap_or_else(|_| "python3".into());
    let out = output(Command::new(&python).args(args)).map_err(|e| format!("{python}: {e}"))?;
    match out.status.success() {
        true => Ok(String::from_utf8(out.stdout).unwrap()),
        false => Err(format!("{python}: {}", String::from_utf8_lossy(&out.stderr))),
    }
}

/// Z2, Z3, Z4, Z5, Z6; what is of Z9 has tests beside its code.
#[test]
fn a_second_program_reads_what_is_sealed_by_the_specification_alone() {
    need!(python(&["-c", "from cryptography.hazmat.primitives.kdf.argon2 import Argon2id"]));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/sealed.py");
    // What it writes is what the unit tests hold ours against.
    let vectors = std::fs::read_to_string("fixtures/sealed/vectors.json").unwrap();
    assert_eq!(python(&[script, "vectors"]).unwrap(), vectors);
    let lab = Lab::new();
    let (key, image) = (lab.path("key"), lab.path("vm.img"));
    std::fs::write(&key, [200; 32]).unwrap();
    let sealed = |args: &[&str]| lab.run(&[&["--key-file", &key], args].concat()).done();
    sealed(&["init", "--encrypt"]);
    let mut states = Vec::new();
    for turn in 0..3_u8 {
        let mut bytes: Vec<u8> = (0..700_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        bytes[100_000 * usize::from(turn)..][..5000].fill(turn + 1);
        std::fs::write(&image, &bytes).unwrap();
        sealed(&["snapshot", &image, "--label", &format!("turn-{turn}")]);
        states.push(bytes);
    }
    let plain = lab.path("plain");
    python(&[script, "open", &lab.repo, &key, &plain]).unwrap();
    let elsewhere = |args: &[&str]| {
        let mut command = lab.command(&[&["--repo", &plain], args].concat());
        command.env("IMGSNAP_STATE", lab.path("another-host"));
        Run::of(args.join(" "), output(&mut command).unwrap()).done()
    };
    elsewhere(&["verify"]);
    for (turn, bytes) in states.iter().enumerate() {
        let restored = elsewhere(&["restore", &format!("vm@turn-{turn}"), "-o", "-"]).out;
        assert!(restored == *bytes, "turn {turn}");
    }
}
