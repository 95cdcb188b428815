//! The real binary against real parts: ext4 images, loop devices, QEMU, other file systems, full
//! and read-only disks, kill -9 and truncation.
//!
//! Each test checks for its tools, and otherwise says on stderr that it is skipped, and why. What
//! it mounts, attaches and starts is undone by guards, also when it fails.

mod bad_media;
mod believed;
mod bytes;
mod clones;
mod clones_format;
#[path = "../support/config.rs"]
mod config;
mod devices;
mod disks;
mod ext4;
mod filesystems;
mod full_disk;
#[path = "../support/guest/mod.rs"]
mod guest;
#[path = "../support/json_lines.rs"]
mod json_lines;
mod killed;
mod kit;
mod libvirt;
mod libvirt_faults;
mod libvirt_guest;
mod libvirt_kit;
mod machine;
mod machine_faults;
mod machine_guest;
mod machine_kit;
mod machine_verbs;
mod mounts;
mod nbd;
mod nbd_fake;
mod nbd_servers;
mod no_free_space;
mod origins;
mod power_loss;
mod qcow2;
mod qcow2_hostile;
mod qcow2_images;
mod qcow2_write;
mod qemu;
mod qemu_export;
mod raced;
#[path = "../support/random.rs"]
mod random;
mod read_only;
mod sealed;
#[path = "../support/server.rs"]
mod server;
mod services;
mod sparse;
mod tracked;
mod tracked_histories;
mod tracked_live;
mod tracked_review;
mod tracked_rollback;
mod tracking_output;
mod truncated;
mod watch_prune;
mod work;
