//! What we call what we make in QEMU: everything begins with `imgsnap-`, and leads back to its disk, so that
//! what a killed run left can be taken away without any record of it.

use uuid::Uuid;

/// How all of our names begin.
const PREFIX: &str = "imgsnap-";
/// The descriptor of the socket on which QEMU's NBD server is to listen, until it has it.
pub const LISTENER: &str = "imgsnap-nbd";

/// A node that stands for this: we have stopped the machine, and it is to go on.
pub const STOPPED: &str = "imgsnap-m-stopped";

/// The bitmap that records since a snapshot of an image.
pub fn bitmap(image: Uuid, snapshot: Uuid) -> String {
    format!("{PREFIX}{image}-{snapshot}")
}

/// The snapshot of an image since which a bitmap records; none if it is not ours, or of another image.
pub fn snapshot_of_bitmap(name: &str, image: Uuid) -> Option<Uuid> {
    let text = name.strip_prefix(&format!("{PREFIX}{image}-"))?;
    let snapshot = Uuid::try_parse(text).ok()?;
    // An id can be written in several ways, of which we use one.
    (bitmap(image, snapshot) == name).then_some(snapshot)
}

/// What belongs to a disk. No name is longer than the 31 bytes that QEMU allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(String);

impl Names {
    /// By the node that is the disk.
    pub fn of(node: &str) -> Self {
        let digest = blake3::hash(node.as_bytes());
        Self(digest.to_hex().chars().take(16).collect())
    }

    /// The filter that copies what is overwritten.
    pub fn filter(&self) -> String {
        format!("{PREFIX}c-{}", self.0)
    }

    /// Where it copies it.
    pub fn scratch(&self) -> String {
        format!("{PREFIX}t-{}", self.0)
    }

    /// The disk as it was.
    pub fn snapshot(&self) -> String {
        format!("{PREFIX}s-{}", self.0)
    }

    /// The export of that.
    pub fn export(&self) -> String {
        format!("{PREFIX}e-{}", self.0)
    }

    /// The export of the disk itself, by which it is flushed.
    pub fn flush(&self) -> String {
        format!("{PREFIX}f-{}", self.0)
    }

    /// What is in the place of the disk while it is put back.
    pub fn null(&self) -> String {
        format!("{PREFIX}n-{}", self.0)
    }

    /// The disk, held while no device uses it.
    pub fn keeper(&self) -> String {
        format!("{PREFIX}k-{}", self.0)
    }

    /// The export of the disk by which it is written to.
    pub fn written(&self) -> String {
        format!("{PREFIX}w-{}", self.0)
    }

    /// True if a node stands where its disk should be.
    pub fn stand_in(&self, node: &str) -> bool {
        node == self.filter() || node == self.null()
    }
}

/// What something of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A copy-before-write filter.
    Filter,
    /// What it copies to.
    Scratch,
    /// A snapshot-access node.
    Snapshot,
    /// Anything else.
    Other,
}

/// What a node or an export is by its name; none if it is not ours.
pub fn kind(name: &str) -> Option<Kind> {
    let rest = name.strip_prefix(PREFIX)?;
    Some(match rest.split_once('-').map(|(kind, _)| kind) {
        Some("c") => Kind::Filter,
        Some("t") => Kind::Scratch,
        Some("s") => Kind::Snapshot,
        _ => Kind::Other,
    })
}

/// True for what is in the place of a disk while it is put back.
pub fn is_null(node: &str) -> bool {
    kind_of(node) == Some("n")
}

/// What is in the place of the disk that a node holds; none if it holds none.
pub fn null_of_keeper(node: &str) -> Option<String> {
    let disk = node.strip_prefix(PREFIX)?.strip_prefix("k-")?;
    Some(Names(disk.to_owned()).null())
}

/// True for an export by which a disk is written to.
pub fn is_write_export(name: &str) -> bool {
    kind_of(name) == Some("w")
}

fn kind_of(name: &str) -> Option<&str> {
    Some(name.strip_prefix(PREFIX)?.split_once('-')?.0)
}

/// True for an export of a disk as it was, or to flush it: not for one that is written to.
pub fn is_read_export(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
    rest.is_some_and(|(kind, _)| kind == "e" || kind == "f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_lead_back_to_their_disk() {
        for node in ["d0", "#block123", "libvirt-1-format", ""] {
            let names = Names::of(node);
            assert_eq!(names, Names::of(node));
            let all = [
                (names.filter(), Some(Kind::Filter)),
                (names.scratch(), Some(Kind::Scratch)),
                (names.snapshot(), Some(Kind::Snapshot)),
                (names.export(), Some(Kind::Other)),
                (names.flush(), Some(Kind::Other)),
                (names.null(), Some(Kind::Other)),
                (names.keeper(), Some(Kind::Other)),
                (names.written(), Some(Kind::Other)),
            ];
            for (name, is) in all {
                assert!(name.len() <= 31 && kind(&name) == is, "{name}");
                assert_eq!(is_read_export(&name), [names.export(), names.flush()].contains(&name));
                assert_eq!(is_write_export(&name), name == names.written());
                assert_eq!(is_null(&name), name == names.null());
            }
            assert!(names.stand_in(&names.filter()) && names.stand_in(&names.null()));
            assert!(!names.stand_in(&Names::of("other").filter()) && !names.stand_in(node));
        }
        // A later version finds what an earlier one has left.
        assert_eq!(Names::of("d0").filter(), "imgsnap-c-40f72d58e58552eb");
        for other in ["d0", "imgsnapc-1", "libvirt-imgsnap-c-1"] {
            assert_eq!(kind(other), None);
            assert!(!is_read_export(other));
        }
        assert_eq!(kind(&bitmap(Uuid::from_u128(1), Uuid::from_u128(2))), Some(Kind::Other));
    }

    #[test]
    fn a_bitmap_says_since_which_snapshot_of_which_image() {
        let (image, snapshot) = (Uuid::from_u128(0xa1), Uuid::from_u128(0xb2));
        let name = bitmap(image, snapshot);
        let text =
            "imgsnap-00000000-0000-0000-0000-0000000000a1-00000000-0000-0000-0000-0000000000b2";
        assert_eq!(name, text);
        assert_eq!(snapshot_of_bitmap(&name, image), Some(snapshot));
        assert_eq!(snapshot_of_bitmap(&name, snapshot), None);
        for other in [
            format!("{name}0"),
            format!("x{name}"),
            name.to_uppercase(),
            name.replace("b2", "B2"),
            format!("imgsnap-{image}-{}", snapshot.simple()),
            format!("imgsnap-{image}-"),
            format!("imgsnap-{image}"),
            "bitmap0".to_owned(),
        ] {
            assert_eq!(snapshot_of_bitmap(&other, image), None, "{other}");
        }
    }
}
