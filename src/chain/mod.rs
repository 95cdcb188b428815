//! A snapshot and its ancestors, opened and checked against each other: the index of an image.
//!
//! ```text
//! layer 0, the snapshot     ..DD....Z...      D data, Z zero, . not in this file
//! layer 1, its parent       .D.....DD...
//! layer 2, the base         DDDDDDDD....
//! as the cursor sees it     DDDDDDDDZ       each block by its newest layer; zero if none has it
//! ```

mod compare;
mod cursor;
mod fork;
mod history;
mod index_chunk;
mod unread;
mod walk;

pub use compare::Comparison;
pub use cursor::{ChainCursor, TablePrefetchers};
pub use fork::{Difference, Differences, Fork, Touched};
pub use history::digest_steps;
pub use index_chunk::{IndexChunk, PageOf, Span, State};
pub use walk::SpanWalk;

use crate::base::digest::{Hasher, ImageDigest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::units::Geometry;
use crate::delta::{Delta, ReadGuard};
use crate::format::Lineage;
use std::fmt;
use std::sync::Arc;

/// A snapshot with all its ancestors.
#[derive(Clone)]
pub struct Chain {
    /// Newest first, the base last; never empty.
    layers: Arc<[Arc<Delta>]>,
    tip: Arc<Delta>,
    geometry: Geometry,
    unread_as_zeros: bool,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<&str> = self.layers.iter().map(|delta| delta.name()).collect();
        f.debug_struct("Chain").field("files", &files).finish_non_exhaustive()
    }
}

impl Chain {
    /// Checks the links of open files, newest first.
    pub fn link(layers: Vec<Arc<Delta>>) -> Result<Self> {
        Self::link_onto(layers, None)
    }

    /// The same where the last file was taken against the tip of `below`, which is of another image.
    pub fn link_onto(mut layers: Vec<Arc<Delta>>, below: Option<&Self>) -> Result<Self> {
        check_links(&layers)?;
        if let Some((below, last)) = below.zip(layers.last()) {
            check_content(last, &below.tip)?;
            layers.extend(below.layers.iter().cloned());
        }
        let (Some(tip), Some(base)) = (layers.first().cloned(), layers.last()) else {
            return Err(Error::new(ErrorKind::InvalidInput, "the chain has no snapshots"));
        };
        if base.footer().parent.is_some() {
            return Err(Error::corrupt(format!("{}: its parent is missing", base.location())));
        }
        let geometry = tip.geometry()?;
        Ok(Self { layers: layers.into(), tip, geometry, unread_as_zeros: false })
    }

    /// The newest file.
    pub fn tip(&self) -> &Arc<Delta> {
        &self.tip
    }

    /// What keeps the files of the chain from being removed; none where their user does, or nothing can.
    pub fn guard(&self) -> Option<&ReadGuard> {
        self.tip.guard().map(Arc::as_ref)
    }

    /// Newest first.
    pub fn layers(&self) -> &Arc<[Arc<Delta>]> {
        &self.layers
    }

    /// Block size of the chain and length of the image at the tip.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Through how many images it leads: two where it comes from one that is based on another.
    pub(crate) fn images(&self) -> usize {
        self.layers.chunk_by(|a, b| a.header().image_id == b.header().image_id).count()
    }

    /// The keyed function of the chain.
    pub fn hasher(&self) -> &Hasher {
        self.tip.hasher()
    }

    /// Digest of the image at the tip.
    pub fn image_digest(&self) -> ImageDigest {
        self.tip.footer().image_digest
    }

    /// What a child of the tip says of it.
    pub fn as_parent(&self) -> Lineage {
        Lineage {
            parent_id: self.tip.footer().snapshot_id,
            image_bytes: self.geometry.image_bytes,
            image_digest: self.image_digest(),
        }
    }

    /// Fails if a snapshot must not be built on this chain (FORMAT.md H4).
    pub fn check_extendable(&self) -> Result<()> {
        match self.layers.iter().find(|d| d.header().features.read_compatible != 0) {
            None => Ok(()),
            Some(delta) => {
                let what = format!("{}: unknown feature bits", delta.location());
                Err(Error::new(ErrorKind::Unsupported, what).hint(message![
                    "it was written by a later imgsnap; use that version, or take a ",
                    Setting::Full,
                    " snapshot",
                ]))
            }
        }
    }

    /// True if equal digests mean equal blocks in both: one algorithm, key and block size.
    pub fn is_comparable(&self, other: &Self) -> bool {
        let key = |c: &Self| (c.hasher().algorithm(), c.hasher().key().0, c.geometry.block_size);
        key(self) == key(other)
    }

    /// The index from block 0 on, in chunks.
    pub fn cursor(&self) -> ChainCursor {
        ChainCursor::new(&self.layers)
    }

    /// Ask for tables of the index before they are needed.
    pub fn prefetchers(&self) -> TablePrefetchers {
        TablePrefetchers::new(&self.layers)
    }

    /// The index from block 0 on, span by span.
    pub fn walk(&self) -> SpanWalk {
        self.walk_to(self.geometry.block_count())
    }

    /// The same for whoever goes no further than `end`: what is damaged behind it is not met.
    pub fn walk_to(&self, end: u64) -> SpanWalk {
        SpanWalk::new(self.cursor(), end, IndexChunk::new(self.layers.clone()))
    }
}

/// Checks that each of some open files, newest first, is the child of the next one.
///
/// # Errors
/// `Corrupt` if one is not.
pub fn check_links(layers: &[Arc<Delta>]) -> Result<()> {
    layers
        .iter()
        .zip(layers.iter().skip(1))
        .try_for_each(|(child, parent)| check_link(child, parent))
}

fn check_link(child: &Delta, parent: &Delta) -> Result<()> {
    check_content(child, parent)?;
    if child.header().image_id != parent.header().image_id {
        return Err(wrong_parent(child, parent, "its parent belongs to a different image"));
    }
    Ok(())
}

/// The same of whatever image the parent is.
fn check_content(child: &Delta, parent: &Delta) -> Result<()> {
    let (lower, upper) = (parent.header(), child.header());
    let link = child.footer().parent;
    let wrong = if link.map(|p| p.parent_id) != Some(parent.footer().snapshot_id) {
        "its parent is a different snapshot"
    } else if (upper.block_size, upper.algorithm, upper.key)
        != (lower.block_size, lower.algorithm, lower.key)
    {
        "its parent has a different block size, digest or key"
    } else if link.map(|p| (p.image_bytes, p.image_digest))
        != Some((parent.footer().image_bytes, parent.footer().image_digest))
    {
        "its parent had different content"
    } else {
        return Ok(());
    };
    Err(wrong_parent(child, parent, wrong))
}

fn wrong_parent(child: &Delta, parent: &Delta, wrong: &str) -> Error {
    Error::corrupt(format!("{}: {wrong} than {}", child.location(), parent.location()))
}
