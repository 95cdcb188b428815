//! Chains of hostile files: opened, restored, verified, merged, compared; and the second reader agrees.
#![no_main]

use imgsnap_fuzz::parts::Parts;
use imgsnap_fuzz::seeds::{of_chains, plant};
use imgsnap_fuzz::support::{naive_reader, open_chain};
use imgsnap_fuzz::{chains, mend, meter, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: begin(), |data: &[u8]| {
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

/// Mending leaves sound what is sound: otherwise nothing would be looked at behind the first check.
fn begin() {
    let is_sound = |seed: &Vec<u8>| {
        let mut files = Parts::of(seed).deltas;
        mend::chain(&mut files, seed[0]);
        naive_reader::restore(&files).is_ok()
    };
    let sound = of_chains().iter().filter(|seed| is_sound(seed)).count();
    assert!(sound >= 4 * seeds::chains().len(), "only {sound} sound chains to begin with");
    plant(of_chains);
}
