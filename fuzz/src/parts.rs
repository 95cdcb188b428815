//! Several files in one input. Each begins with what it begins with on disk, so that bytes which are put in
//! or taken away move no border.

use imgsnap::format::header::MAGIC;

const MANIFEST: &[u8] = b"imgsnap-manifest ";
pub const HEAD: &[u8] = b"@head\n";
pub const TOML: &[u8] = b"@toml\n";

/// What an input holds.
#[derive(Default)]
pub struct Parts {
    /// What is done with it.
    pub how: u8,
    pub deltas: Vec<Vec<u8>>,
    pub manifests: Vec<Vec<u8>>,
    pub head: Option<Vec<u8>>,
    pub toml: Option<Vec<u8>>,
}

impl Parts {
    /// At most this many files of a kind: more only takes time.
    const MOST: usize = 8;

    pub fn of(data: &[u8]) -> Self {
        let mut parts = Self::default();
        let Some((how, rest)) = data.split_first() else { return parts };
        parts.how = *how;
        let marks = [MAGIC.as_slice(), MANIFEST, HEAD, TOML];
        let begins = |at: usize| marks.iter().any(|mark| rest[at..].starts_with(mark));
        let mut borders: Vec<usize> = (0..rest.len()).filter(|at| begins(*at)).collect();
        borders.push(rest.len());
        for pair in borders.windows(2) {
            parts.add(&rest[pair[0]..pair[1]]);
        }
        parts
    }

    fn add(&mut self, part: &[u8]) {
        if part.starts_with(&MAGIC) && self.deltas.len() < Self::MOST {
            self.deltas.push(part.to_vec());
        } else if part.starts_with(MANIFEST) && self.manifests.len() < Self::MOST {
            self.manifests.push(part.to_vec());
        } else if let Some(head) = part.strip_prefix(HEAD) {
            self.head = Some(head.to_vec());
        } else if let Some(toml) = part.strip_prefix(TOML) {
            self.toml = Some(toml.to_vec());
        }
    }

    /// The input that gives these files.
    pub fn join(how: u8, parts: &[&[u8]]) -> Vec<u8> {
        std::iter::once(how).chain(parts.concat()).collect()
    }
}
