//! Chains of hostile files: opened, restored, verified, merged, compared; and the second reader agrees.
#![no_main]

use imgsnap_fuzz::parts::Parts;
use imgsnap_fuzz::seeds::{of_chains, plant};
use imgsnap_fuzz::support::{naive_reader, open_chain};
use imgsnap_fuzz::{chains, mend, meter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(of_chains), |data: &[u8]| {
    let mut files = Parts::of(data).deltas;
    let how = data.first().copied().unwrap_or_default();
    mend::chain(&mut files, how);
    meter::within(chains::allowance(data.len()), || match open_chain(&files) {
        Ok(chain) => chains::check(&files, &chain),
        Err(error) => {
            let error = chains::refusal(error);
            let naive = naive_reader::restore(&files);
            assert!(naive.is_err(), "refused, but it is sound: {error}");
        }
    });
});
