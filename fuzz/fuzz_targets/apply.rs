//! Hostile delta files that are applied to an image: what comes out is what the chain gives, and an image
//! that does not fit, or a file that is damaged, leaves the image as it was.
#![no_main]

use imgsnap::image::RawFile;
use imgsnap::ops::apply::engine::Patch;
use imgsnap_fuzz::chains::{MOST_BYTES, Memory, Nowhere, bytes_of, refusal, unread_blocks};
use imgsnap_fuzz::parts::Parts;
use imgsnap_fuzz::seeds::{images, of_chains, plant};
use imgsnap_fuzz::support::open_chain;
use imgsnap_fuzz::{chains, context, mend, meter};
use libfuzzer_sys::fuzz_target;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let folder = above.join(format!("imgsnap-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the files");
    folder
});

fuzz_target!(init: plant(of_chains), |data: &[u8]| {
    let parts = Parts::of(data);
    let mut files = parts.deltas;
    mend::chain(&mut files, parts.how);
    let Some(first) = files.first() else { return };
    let chain = open_chain(&files).ok();
    if chain.as_ref().is_some_and(|chain| unread_blocks(chain).is_none()) {
        return;
    }
    // The image at the first file, or, if there is none, one that may fit.
    let base = open_chain(std::slice::from_ref(first)).and_then(|chain| bytes_of(&chain));
    let base = base.unwrap_or_else(|_| images().swap_remove(0));
    let want = chain.and_then(|chain| bytes_of(&chain).ok());
    let image = FOLDER.join("image");
    std::fs::write(&image, &base).expect("the image can be written");
    let paths: Vec<PathBuf> = (0..files.len()).map(|n| FOLDER.join(format!("{n}.delta"))).collect();
    for (path, file) in paths.iter().zip(&files) {
        std::fs::write(path, file).expect("the delta can be written");
    }
    meter::within(chains::allowance(data.len()), || {
        full(&paths, want.as_deref());
        onto(&paths[1..], &image, &base, want.as_deref());
    });
});

/// All files, which need no image.
fn full(paths: &[PathBuf], want: Option<&[u8]>) {
    let Ok(patch) = Patch::open(paths, &context()).map_err(refusal) else { return };
    if patch.image_bytes() > MOST_BYTES {
        patch.write(None, &mut Nowhere, &context()).map(drop).map_err(refusal).ok();
        return;
    }
    let mut target = Memory::new(patch.image_bytes());
    match patch.write(None, &mut target, &context()) {
        Ok(_) => assert!(want == Some(&target.0), "applied, and another image"),
        Err(error) => assert!(want.is_none(), "refused: {}", refusal(error)),
    }
}

/// All but the first, onto the image at the first: to a new image, and in place.
fn onto(paths: &[PathBuf], image: &Path, base: &[u8], want: Option<&[u8]>) {
    let Ok(patch) = Patch::open(paths, &context()).map_err(refusal) else { return };
    if patch.image_bytes() > MOST_BYTES {
        return;
    }
    let mut target = Memory::new(patch.image_bytes());
    let made = {
        let source = RawFile::open(image).expect("the image can be opened");
        patch.write(Some(&source), &mut target, &context()).map_err(refusal)
    };
    let in_place = {
        let file = RawFile::open_to_write(image).expect("the image can be opened");
        patch.write_in_place(&file, &context()).map_err(refusal)
    };
    let now = std::fs::read(image).expect("the image can be read");
    match in_place {
        Ok(_) => {
            assert!(made.is_ok(), "in place, but not to a new image: {made:?}");
            assert!(now == target.0, "in place, and another image");
            assert!(want.is_none_or(|want| want == now), "applied, and another image");
        }
        Err(error) => {
            assert!(made.is_err(), "to a new image, but not in place: {error}");
            assert!(now == base, "refused, and written: {error}");
        }
    }
}
