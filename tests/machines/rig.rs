//! What all scenarios begin with.

use crate::guest::{self, Machine};
use crate::kit::Lab;
use std::path::Path;

pub struct Rig {
    /// The folder of the guest's disk.
    guest: String,
    /// Which QEMU it is.
    pub qemu: String,
    pub seed: u64,
    /// How often something is killed.
    pub count: u64,
}

impl Rig {
    /// # Errors
    /// Why no guest can be run here.
    pub fn new(seed: u64, count: u64) -> Result<Self, String> {
        Ok(Self { guest: guest::built()?, qemu: guest::version()?, seed, count })
    }

    /// A guest with one disk, which boots by a kernel beside it.
    pub fn one_disk(&self, lab: &Lab) -> Machine {
        Machine::of_guest(&folder(lab), "vm", &self.guest)
    }
}

fn folder(lab: &Lab) -> String {
    let path = lab.path("vm");
    Path::new(&path).parent().unwrap().to_str().unwrap().to_owned()
}
