//! Lists of changes, in all formats: ascending, apart, never more memory than a small multiple of the text;
//! and a list that is written out again is the same list.
#![no_main]

use imgsnap::tracking::{ChangeHints, ChangeList};
use imgsnap_fuzz::meter;
use imgsnap_fuzz::seeds::plant;
use libfuzzer_sys::fuzz_target;
use std::fmt::Write;

fuzz_target!(init: plant(seeds), |data: &[u8]| {
    meter::within(data.len() * 64 + (64 << 10), || {
        let Ok(list) = ChangeList::parse(data).map_err(imgsnap_fuzz::chains::refusal) else { return };
        let ranges = ranges_of(list);
        assert!(ranges.iter().all(|(start, end)| start < end), "an empty range");
        assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "not ascending and apart");
        let mut lines = String::from("# again\n");
        ranges.iter().for_each(|(a, b)| writeln!(lines, "{a} {:#x}", b - a).unwrap());
        let again = ChangeList::parse(lines.as_bytes()).expect("what was read can be written");
        assert_eq!(ranges_of(again), ranges);
    });
});

fn ranges_of(mut list: ChangeList) -> Vec<(u64, u64)> {
    let next = || list.next_range().expect("a list does not fail");
    std::iter::from_fn(next).map(|range| (range.offset, range.end())).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    [
        r#"[{"offset":0,"length":65536,"type":0,"description":"clean"},
            {"offset":65536,"length":65536,"type":1,"description":"dirty"}]"#,
        r#"[{"offset":4194304,"length":8192,"exists":"true"},{"offset":0,"length":4096,"exists":false}]"#,
        "# since yesterday\n0x1000 4096\n\n  0 100   # the first\n50 0x64\n",
        "[]",
        r#"[{"offset":18446744073709551615,"length":1}]"#,
        r#"{"a":[[[[{"b":{}}]]]]}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
