//! Snapshots that stand for their origin: clones of files on XFS, loop devices over them in the place of volumes, and
//! what the real `thin_delta` says of thin ones.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::tracked::xfs;

const BYTES: u64 = 4 * MIB;

#[test]
fn a_clone_of_a_file_or_a_device_over_it_is_recorded_as_its_origin() {
    let (lab, _guards, image) = need!(xfs());
    let clone = lab.path("mnt/now.img");
    tool("cp", &["--reflink=always", &image, &clone]);
    // The origin is in use and changes: what is read does not.
    put(&image, MIB, &noise(4, 4096));
    lab.run(&["-v", "snapshot", &clone, "--of", &image]).done().says("they share extents");
    assert_eq!(lab.numbers("vm"), [1]);
    same(&lab.restore("vm@1"), &clone);
    let shown = lab.run(&["show", "vm@1", "--json"]).json();
    assert_eq!(shown["consistency"], "crash", "{shown}");
    assert!(shown["clone_seconds"].is_null(), "no clone is kept of it: {shown}");
    // As volumes, which share nothing that can be seen.
    let origin = need!(Loop::new(&[], &image));
    let snapshot = need!(Loop::new(&["--read-only"], &clone));
    lab.run(&["-v", "snapshot", &snapshot.device, "--of", &origin.device, "--name", "volume"])
        .done()
        .says("sampled blocks are equal");
    drop(snapshot);
    let done = lab.run(&["rollback", "volume", "--to", "@1", "--json"]).json();
    assert_eq!((&done["written_bytes"], &done["scanned"]), (&4096.into(), &true.into()), "{done}");
    drop(origin);
    same(&image, &clone);
    // Another file of the same length.
    let other = lab.path("mnt/other.img");
    make(&other, 2 * MIB);
    put(&other, MIB, &noise(5, MIB));
    lab.run(&["snapshot", &other, "--of", &image]).fails(1).says("nothing shows that");
}

/// Metadata of a pool with blocks of 64 KiB: device 1, and device 2, in which four blocks are other ones.
const POOL: &str = r#"<superblock uuid="" time="2" transaction="3" flags="0" version="2" data_block_size="128" nr_data_blocks="1000">
  <device dev_id="1" mapped_blocks="20" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>
    <range_mapping origin_begin="20" data_begin="10" length="10" time="0"/>
  </device>
  <device dev_id="2" mapped_blocks="20" transaction="1" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="4" time="0"/>
    <single_mapping origin_block="4" data_block="100" time="1"/>
    <range_mapping origin_begin="5" data_begin="5" length="3" time="0"/>
    <range_mapping origin_begin="20" data_begin="10" length="10" time="0"/>
    <single_mapping origin_block="40" data_block="200" time="1"/>
  </device>
</superblock>
"#;

#[test]
fn what_thin_delta_says_is_all_that_is_read() {
    need!(tools(&["thin_restore", "thin_delta"]));
    const BLOCK: u64 = 64 << 10;
    let lab = Lab::new();
    let (xml, pool) = (lab.path("pool.xml"), lab.path("pool.bin"));
    std::fs::write(&xml, POOL).unwrap();
    make(&pool, 4 * MIB);
    tool("thin_restore", &["-i", &xml, "-o", &pool]);
    // The volumes that are so: what is not mapped is zeros.
    let (one, two) = (lab.path("vm.img"), lab.path("vm-2.img"));
    for volume in [&one, &two] {
        make(volume, BYTES);
        put(volume, 0, &noise(3, 8 * BLOCK));
        put(volume, 20 * BLOCK, &noise(4, 10 * BLOCK));
    }
    put(&one, 8 * BLOCK, &noise(5, 2 * BLOCK));
    put(&two, 4 * BLOCK, &noise(6, BLOCK));
    put(&two, 40 * BLOCK, &noise(7, BLOCK));
    lab.run(&["snapshot", &one]).done();
    for (more, number) in [(&[][..], 2), (&["--verbose"], 3)] {
        let args = [&["--thin1", "1", "--thin2", "2"], more, &[pool.as_str()]].concat();
        let list = lab.path("delta.xml");
        std::fs::write(&list, tool("thin_delta", &args)).unwrap();
        let args =
            ["snapshot", &two, "--of", &one, "--changed", &list, "--since", "@1", "--parent", "@1"];
        let taken = lab.run(&[&args[..], &["--recheck", "0", "--json"]].concat()).json();
        assert_eq!(taken["hint"]["named_bytes"], 4 * BLOCK, "{taken}");
        // Two of the four are holes.
        assert_eq!(taken["read_bytes"], 2 * BLOCK, "{taken}");
        same(&lab.restore(&format!("vm@{number}")), &two);
    }
}
