//! An encrypted repository of which one object is hostile: it is refused, or what is restored is what was stored.
#![no_main]

use imgsnap::base::error::Result;
use imgsnap::base::secret::Secret;
use imgsnap::image::write::Stream;
use imgsnap::repo::host::HostState;
use imgsnap::store::sealed::{Credential, KeyRing, KeySource};
use imgsnap::store::{LocalStore, Store};
use imgsnap::view::restore;
use imgsnap::{Defaults, Repository, SnapshotRequest};
use imgsnap_fuzz::seeds::images;
use imgsnap_fuzz::support::crash_disk::CrashDisk;
use imgsnap_fuzz::support::power::Survival;
use imgsnap_fuzz::{context, meter};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};

struct Key;

impl KeySource for Key {
    fn given(&self) -> Result<Option<Credential>> {
        Secret::copy(&[7; 32]).map(|key| Some(Credential::KeyFile(key)))
    }
}

fn opened(disk: &CrashDisk) -> Result<Arc<dyn Store>> {
    KeyRing::new(Key).open(Arc::new(LocalStore::new(Arc::new(disk.clone()))))
}

fn host() -> HostState {
    HostState::in_store(Arc::new(LocalStore::new(Arc::new(CrashDisk::default()))), "host")
}

/// A sound one, with a snapshot of each image.
static SOUND: LazyLock<CrashDisk> = LazyLock::new(|| {
    let disk = CrashDisk::default();
    let store = opened(&disk).expect("an empty disk");
    let repository = Repository::init_in(store, Defaults::default(), host()).expect("it is made");
    let file = std::env::temp_dir().join(format!("imgsnap-fuzz-sealed-{}", std::process::id()));
    for image in images() {
        std::fs::write(&file, image).expect("a temporary file");
        let request = SnapshotRequest::new(file.clone()).name(Some("vm".into()));
        repository.snapshot(&request, &context()).expect("it is taken");
    }
    std::fs::remove_file(file).expect("it is there");
    disk
});

fuzz_target!(|data: &[u8]| {
    let [which, how, rest @ ..] = data else { return };
    let disk = SOUND.after_power_loss(Survival::Everything);
    let files = disk.files();
    let Some(name) = files.get(usize::from(*which) % files.len()) else { return };
    let mut bytes = disk.get(name).expect("it is there");
    match how % 3 {
        // Bytes of it, anywhere.
        0 => {
            for change in rest.chunks_exact(4) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= change[2];
                }
            }
        }
        1 => bytes.truncate(rest.first().map_or(0, |byte| usize::from(*byte) * bytes.len() / 256)),
        _ => bytes = rest.to_vec(),
    }
    disk.put(name, &bytes);
    meter::within(data.len() * 64 + (64 << 20), || look(&disk));
});

fn look(disk: &CrashDisk) {
    let Ok(repository) = opened(disk).and_then(|store| Repository::open_in(store, host())) else {
        return;
    };
    let Ok(reader) = repository.read("vm", &context()) else { return };
    let images = images();
    for snapshot in &reader.manifest().snapshots {
        let Ok(chain) = repository.chain(&reader, snapshot.id) else { continue };
        let mut bytes = Vec::new();
        if restore(&chain, None, &mut Stream::new(&mut bytes, "memory"), &context()).is_ok() {
            assert!(images.contains(&bytes), "number {} is another image", snapshot.number);
        }
    }
}
